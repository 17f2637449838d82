"""Our connection pool inside httpx: it stays cheap with many requests and survives any cancellation.

Rule of the file: httpx's transport and httpcore's pool are subclassed where they are meant to be filled, so that what
traces or mocks them sees every call. A connection belongs to a request until its response is closed, and goes back in
one synchronous step.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import anyio.lowlevel
import httpcore
import httpx

from knouds_async._io.clocks import read_clocks
from knouds_async._io.connection import Connection, Origin
from knouds_async._io.pool import Pool
from knouds_async._io.proxy import Proxy

if TYPE_CHECKING:
    import ssl

__all__ = ["PooledTransport", "Whole"]

_DEFAULT_PORTS: Final = {b"http": 80, b"https": 443}
_ENDED: Final = (RuntimeError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException)


class PooledTransport(httpx.AsyncHTTPTransport):
    """httpx's own transport over pooled HTTP/1.1 connections of ours (design 4.1).

    At most `limit` connections are open while no more are in use; a queue is for the caller to have. Idle ones are
    kept for `keepalive_expiry` seconds. A request whose `extensions["knouds.fresh"]` is true only reuses a connection
    idle for at most `fresh_within` seconds: were it sent on a stale one, its outcome would be unknown.
    Cancellation at any point closes the connection.
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        proxy: Proxy | None = None,
        limit: int = 100,
        keepalive_expiry: float = 60.0,
        fresh_within: float = 2.0,
    ) -> None:
        """Start without a connection; without an `ssl_context` httpx's default is made when first needed."""
        # httpx's own __init__ would make a pool; this is the one private name of httpx that is used here.
        self._pool: _ConnectionPool = _ConnectionPool(ssl_context, proxy, limit, keepalive_expiry, fresh_within)


class _ConnectionPool(httpcore.AsyncConnectionPool):
    def __init__(
        self,
        ssl_context: ssl.SSLContext | None,
        proxy: Proxy | None,
        limit: int,
        keepalive_expiry: float,
        fresh_within: float,
    ) -> None:
        super().__init__()
        self._context = ssl_context
        self._proxied_by = proxy
        self.books: Final = Pool(
            self._connect, limit=limit, keepalive_expiry=keepalive_expiry, fresh_within=fresh_within
        )

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send the request and return its response, which holds its connection until it is closed or breaks."""
        origin = _origin(request.url)
        if self.books.is_closed:
            raise httpcore.ConnectError("the connection pool is closed")
        is_paid = bool(request.extensions.get("knouds.fresh"))
        try:
            connection = self.books.take(origin, read_clocks(), is_fresh=is_paid)
        except (OSError, ValueError) as error:  # of a TLS context, say: nothing was sent
            raise httpcore.ConnectError(str(error)) from error
        try:
            response = await connection.send(request, is_paid=is_paid)
        except BaseException:
            self.books.discard(connection)
            raise
        response.stream = _HeldBody(response.stream, connection, self.books)
        return response

    async def aclose(self) -> None:
        """Close the idle connections at once and the others when their responses are closed; idempotent.

        Cancelled, it has closed all the same.
        """
        self.books.close()
        await anyio.lowlevel.checkpoint()  # asyncio lets go of its sockets one turn later

    def _connect(self, origin: Origin) -> Connection:
        is_tls = origin.scheme == b"https" or (self._proxied_by is not None and self._proxied_by.scheme == "https")
        if is_tls and self._context is None:
            self._context = httpx.create_ssl_context()
        return Connection(origin, self._context, self._proxied_by)


class _HeldBody:
    """A response's body, which holds its connection until it is closed or breaks."""

    def __init__(self, stream: Any, connection: Connection, pool: Pool) -> None:
        self._stream = stream
        self._chunks: AsyncIterator[bytes] = aiter(stream)
        self._connection = connection
        self._pool = pool
        self._is_read = False
        self._is_over = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._is_over:
            raise httpx.StreamClosed
        try:
            return await anext(self._chunks)
        except StopAsyncIteration:
            self._is_read = True
            raise
        except BaseException:
            self._discard()
            raise

    async def aclose(self) -> None:
        """Let go of the connection: for reuse when the body was read to its end, for good when it was not."""
        if self._is_over:
            return
        if self._is_read:
            await self._finish()
            return
        self._discard()
        # httpcore reads in generators, which trio wants ended; on the closed socket they end by themselves.
        # RuntimeError: another task is just reading, and will run into the same end.
        with contextlib.suppress(*_ENDED):
            async for _ in self._chunks:
                pass

    async def _finish(self) -> None:
        self._is_over = True
        try:
            if (close := getattr(self._stream, "aclose", None)) is not None:
                await close()
        finally:
            self._pool.give_back(self._connection, read_clocks())

    def _discard(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._pool.discard(self._connection)


class Whole(httpx.ByteStream):
    """A request's body in one piece.

    httpx's own is iterated by a generator; left half way by a connection that breaks, it would end in a
    ResourceWarning on trio.
    """

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the one piece there is, or none."""
        return _Once(b"".join(self))


class _Once:
    def __init__(self, content: bytes) -> None:
        self._left = [content] if content else []

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


def _origin(url: httpcore.URL) -> Origin:
    """Return where a URL leads to; httpcore.UnsupportedProtocol for anything but http and https."""
    port = url.port or _DEFAULT_PORTS.get(url.scheme)
    if url.scheme not in _DEFAULT_PORTS or port is None:
        raise httpcore.UnsupportedProtocol(f"only http and https are spoken here, not {url.scheme!r}")
    return Origin(url.scheme, url.host, port)
