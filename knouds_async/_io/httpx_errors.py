"""httpx's errors in place of httpcore's, in one context manager.

Rule of the file: whatever a connection can raise is in the table, so that callers need to know httpx's tree alone.
"""

from __future__ import annotations

import ssl
from typing import Final

import anyio
import httpcore
import httpx

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


_FOREIGN: Final = tuple(HTTPX_ERRORS)


class _Mapped:
    """Holds nothing, so that one serves all; a generator would cost ten times as much, several times a request."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, _FOREIGN):
            mapped = next(ours for theirs, ours in HTTPX_ERRORS.items() if isinstance(error, theirs))
            raise mapped(str(error)) from error


_MAPPED: Final = _Mapped()


def httpx_errors() -> _Mapped:
    """Raise httpx's error in place of httpcore's: `with httpx_errors(): ...`."""
    return _MAPPED
