"""httpx's errors in place of httpcore's, in one context manager.

Rule of the file: whatever a connection can raise is in the table, so that callers need to know httpx's tree alone.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING, Final

import anyio
import httpcore
import httpx

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["HTTPX_ERRORS", "httpx_errors"]

# Most specific first; like httpx's own table, and below it what slips through httpcore unmapped.
HTTPX_ERRORS: Final[dict[type[Exception], type[httpx.TransportError]]] = {
    httpcore.ConnectTimeout: httpx.ConnectTimeout,
    httpcore.ReadTimeout: httpx.ReadTimeout,
    httpcore.WriteTimeout: httpx.WriteTimeout,
    httpcore.PoolTimeout: httpx.PoolTimeout,
    httpcore.TimeoutException: httpx.TimeoutException,
    httpcore.ConnectError: httpx.ConnectError,
    httpcore.ReadError: httpx.ReadError,
    httpcore.WriteError: httpx.WriteError,
    httpcore.NetworkError: httpx.NetworkError,
    httpcore.ProxyError: httpx.ProxyError,
    httpcore.UnsupportedProtocol: httpx.UnsupportedProtocol,
    httpcore.LocalProtocolError: httpx.LocalProtocolError,
    httpcore.RemoteProtocolError: httpx.RemoteProtocolError,
    httpcore.ProtocolError: httpx.ProtocolError,
    httpcore.ConnectionNotAvailable: httpx.ConnectError,  # raised before anything is sent
    ssl.SSLError: httpx.ReadError,  # a TLS record that makes no sense
    anyio.EndOfStream: httpx.WriteError,  # the server ended TLS while we were sending
}


@contextlib.contextmanager
def httpx_errors() -> Generator[None]:
    """Raise httpx's error in place of httpcore's."""
    try:
        yield
    except tuple(HTTPX_ERRORS) as error:
        mapped = next(ours for theirs, ours in HTTPX_ERRORS.items() if isinstance(error, theirs))
        raise mapped(str(error)) from error
