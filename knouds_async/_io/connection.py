"""One HTTP/1.1 connection, and the socket under it, which can be torn down at any moment without waiting.

Rule of the file: whatever has been opened is reachable from here, so that no cancellation can strand a socket.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import anyio
import attrs
import httpcore

from knouds_async._io.proxy import Proxy
from knouds_async._io.stream import Stream
from knouds_async._sansio.clock import Reading

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


class _Dialler(httpcore.AsyncNetworkBackend):
    """Opens one TCP stream and remembers it.

    httpcore forgets the stream when a TLS handshake (or a trace callback) is cancelled, which would leave the
    socket open until it is garbage collected.
    """

    stream: Stream | None = None
    is_guarded = False

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002  (none is given)
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002  (likewise)
    ) -> httpcore.AsyncNetworkStream:
        """Connect, and keep hold of the stream."""
        sys.audit("knouds_async.connect", host, port)  # uvloop's look-ups raise no event of their own
        self.stream = await Stream.connect(host, port, timeout)
        self.stream.guard(on=self.is_guarded)
        return self.stream

    def guard(self, *, on: bool) -> None:
        """Guard the stream, also one that is still to be opened: see `Stream.guard`."""
        self.is_guarded = on
        if self.stream is not None:
            self.stream.guard(on=on)


@attrs.frozen
class _Tunnels(httpcore.AsyncNetworkBackend):
    """Opens a stream through a proxy; for httpcore that is connecting, and no part of a request."""

    proxy: Proxy
    dialler: _Dialler
    ssl_context: ssl.SSLContext | None

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002  (none is given)
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002  (likewise)
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the proxy, and have it connect on, in `timeout` seconds in all."""
        try:
            with anyio.fail_after(timeout):
                return await self.proxy.tunnel(self.dialler, host, port, self.ssl_context)
        except TimeoutError as error:
            why = f"no tunnel through the proxy {self.proxy.name} within {timeout:g} s"
            raise httpcore.ConnectTimeout(why) from error


class Connection:
    """A connection to one origin, straight or through a proxy, used by one request at a time.

    `idle_since` is when its last response was closed.
    """

    def __init__(self, origin: Origin, ssl_context: ssl.SSLContext | None, proxy: Proxy | None = None) -> None:
        """Prepare a connection; the first request opens it."""
        self.origin: Final = origin
        self.idle_since: Reading | None = None
        self._dialler: Final = _Dialler()
        self._stream: Any = None
        self._http: Final = _http(origin, ssl_context, proxy, self._dialler)

    async def send(self, request: httpcore.Request, *, is_paid: bool) -> httpcore.Response:
        """Send one request and read the head of its response; httpcore's errors pass through."""
        self._dialler.guard(on=is_paid)
        response = await self._http.handle_async_request(request)
        self._stream = response.extensions.get("network_stream")
        return response

    def rest(self, now: Reading) -> bool:
        """Get ready for another request; False when there can be none, and the connection is to be closed.

        There can be one when the last response was read to the end, nothing came after it, and both sides agree.
        """
        self._dialler.guard(on=False)
        self.idle_since = now
        return self._http.is_available() and not self._has_more()

    def is_dropped(self) -> bool:
        """Whether there is something to read although nothing was asked: the server has hung up."""
        return self._http.has_expired()

    def _has_more(self) -> bool:
        """Whether more came than was asked for: the next request would take it for its own answer.

        A stray 429 would have a paid run sent twice. httpcore does not look, and shows nothing to look at: its parser
        is at the bottom of what wraps it. Where none is found, no connection is used twice.
        """
        http: Any = self._http
        while (inner := getattr(http, "_connection", None)) is not None:
            http = inner
        parser = getattr(http, "_h11_state", None)
        if parser is None or parser.trailing_data != (b"", False):
            return True
        return isinstance(self._stream, Stream) and self._stream.has_unread()

    def close(self) -> None:
        """Free the socket now; what a paid request left in it that was not answered is thrown away."""
        if self._dialler.stream is not None:
            self._dialler.stream.close()


def _http(
    origin: Origin, ssl_context: ssl.SSLContext | None, proxy: Proxy | None, dialler: _Dialler
) -> httpcore.AsyncConnectionInterface:
    """Make httpcore's connection; plain HTTP goes through an HTTP proxy request by request, all else in a tunnel."""
    to = httpcore.Origin(origin.scheme, origin.host, origin.port)
    if proxy is not None and not proxy.is_socks and origin.scheme == b"http":
        return httpcore.AsyncHTTPProxy(
            httpcore.URL(scheme=proxy.scheme, host=proxy.host, port=proxy.port, target=b"/"),
            proxy_headers=proxy.headers,
            proxy_ssl_context=ssl_context if proxy.scheme == "https" else None,
            network_backend=dialler,
        ).create_connection(to)
    network = dialler if proxy is None else _Tunnels(proxy, dialler, ssl_context)
    return httpcore.AsyncHTTPConnection(to, ssl_context=ssl_context, network_backend=network)
