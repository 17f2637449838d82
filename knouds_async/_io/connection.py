"""One HTTP/1.1 connection, and the socket under it, which can be torn down at any moment without waiting.

Rule of the file: whatever has been opened is reachable from here, so that no cancellation can strand a socket.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Final, cast

import attrs
import httpcore

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

__all__ = ["Connection", "Origin"]


@attrs.frozen
class Origin:
    """Where a connection leads to; only requests to the same origin may share one."""

    scheme: bytes
    host: bytes
    port: int


# anyio's streams on trio too; the cast because httpcore declares the class twice, for want of anyio.
_NETWORK: Final = cast("httpcore.AsyncNetworkBackend", httpcore.AnyIOBackend())


class _Dialler(httpcore.AsyncNetworkBackend):
    """Opens one TCP stream and remembers it.

    httpcore forgets the stream when a TLS handshake (or a trace callback) is cancelled, which would leave the
    socket open until it is garbage collected.
    """

    stream: httpcore.AsyncNetworkStream | None = None

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect, and keep hold of the stream."""
        sys.audit("knouds_async.connect", host, port)  # uvloop's look-ups raise no event of their own
        self.stream = await _NETWORK.connect_tcp(host, port, timeout, local_address, socket_options)
        return self.stream


class Connection:
    """A connection to one origin, used by one request at a time.

    `idle_since` is when its last response was closed (seconds of the event loop's clock).
    """

    def __init__(self, origin: Origin, ssl_context: ssl.SSLContext | None) -> None:
        """Prepare a connection; the first request opens it."""
        self.origin: Final = origin
        self.idle_since = 0.0
        self._dialler: Final = _Dialler()
        self._http: Final = httpcore.AsyncHTTPConnection(
            httpcore.Origin(origin.scheme, origin.host, origin.port),
            ssl_context=ssl_context,
            network_backend=self._dialler,
        )

    async def send(self, request: httpcore.Request) -> httpcore.Response:
        """Send one request and read the head of its response; httpcore's errors pass through."""
        return await self._http.handle_async_request(request)

    def is_idle(self) -> bool:
        """Whether its last response was read to the end, nothing came after it, and both sides would go on."""
        return self._http.is_available() and not self._has_more()

    def is_dropped(self) -> bool:
        """Whether there is something to read although nothing was asked: the server has hung up."""
        return self._http.has_expired()

    def _has_more(self) -> bool:
        """Whether more came than was asked for: the next request would take it for its own answer.

        A stray 429 would have a paid run sent twice. httpcore does not look, and shows nothing to look at.
        """
        reader = getattr(getattr(self._http, "_connection", None), "_h11_state", None)
        return reader is not None and reader.trailing_data != (b"", False)

    def close(self) -> None:
        """Free the socket now."""
        if self._dialler.stream is None:
            return
        # Both backends free the socket before they first wait, and then wait for nothing in particular. Taking
        # only that first step leaves no place where a cancellation could get in between.
        closing = self._dialler.stream.aclose()
        with contextlib.suppress(StopIteration, OSError):
            closing.send(None)
        closing.close()
