"""An httpx transport over a connection pool that stays cheap with many requests and survives any cancellation.

Rule of the file: httpx outside, httpcore's public `AsyncHTTPConnection` inside; the pool itself knows neither.
Slot and connection belong to a request until its response is closed, and go back in one synchronous step.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, AsyncIterator
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel
import httpcore
import httpx

from knouds_async._io.body import UnreadableBody, read_body
from knouds_async._io.connection import Connection, Origin
from knouds_async._io.httpx_errors import HTTPX_ERRORS, httpx_errors
from knouds_async._io.pool import Pool
from knouds_async._io.sent import SentTrace

if TYPE_CHECKING:
    import ssl

__all__ = ["HeldBody", "PooledTransport", "SentTrace", "UnreadableBody", "Whole", "origin_of", "read_body"]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class PooledTransport(httpx.AsyncBaseTransport):
    """Sends httpx's requests over pooled HTTP/1.1 connections, at most `limit` at once (design 4.1).

    Requests beyond that wait in order, for httpx's pool time-out at most (`httpx.PoolTimeout`); the `trace`
    extension hears "pool.wait.started" and "pool.wait.complete" of those that have to. Idle connections are kept
    for `keepalive_expiry` seconds. A request whose `extensions["knouds.fresh"]` is true only reuses a connection
    idle for at most `fresh_within` seconds: were it sent on a stale one, its outcome would be unknown.
    Cancellation at any point closes the connection and frees its place.
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        limit: int = 100,
        keepalive_expiry: float = 60.0,
        fresh_within: float = 2.0,
    ) -> None:
        """Start without a connection; without an `ssl_context` httpx's default is made when first needed."""
        self._ssl_context = ssl_context
        self._pool: Final = Pool(
            self._connect, limit=limit, keepalive_expiry=keepalive_expiry, fresh_within=fresh_within
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and give its response, whose body is still to be read and closed.

        Raises `httpx.TransportError`s as httpx's own transport does, and `httpx.ConnectError` when closed.
        """
        response, body = await self.send(_core_request(request), origin_of(request.url))
        return httpx.Response(
            status_code=response.status, headers=response.headers, stream=body, extensions=response.extensions
        )

    async def send(self, request: httpcore.Request, origin: Origin) -> tuple[httpcore.Response, HeldBody]:
        """Send httpcore's request, and give its response and what reads and closes its body; errors are httpx's."""
        self._refuse_if_closed()
        has_waited = not self._pool.slots.take_now()
        if has_waited:
            await self._wait_for_slot(request)
        connection: Connection | None = None
        try:
            if has_waited:
                await _trace(request, "pool.wait.complete")
                self._refuse_if_closed()
            is_fresh = bool(request.extensions.get("knouds.fresh"))
            connection = self._pool.connection(origin, now=anyio.current_time(), is_fresh=is_fresh)
            with httpx_errors():
                response = await connection.send(request)
        except BaseException:
            self._pool.discard(connection)
            raise
        return response, HeldBody(response, connection, self._pool)

    async def aclose(self) -> None:
        """Close the idle connections at once and the others when their responses are closed; idempotent.

        Requests that wait for their turn fail with `httpx.ConnectError`. Cancelled, it has closed all the same.
        """
        self._pool.close()
        await anyio.lowlevel.checkpoint()  # asyncio lets go of its sockets one turn later

    async def _wait_for_slot(self, request: httpcore.Request) -> None:
        await _trace(request, "pool.wait.started")
        timeout = request.extensions.get("timeout", {}).get("pool")
        try:
            with anyio.fail_after(timeout):
                await self._pool.slots.take()
        except TimeoutError:
            raise httpx.PoolTimeout(f"no connection became free within {timeout} s") from None

    def _refuse_if_closed(self) -> None:
        if self._pool.is_closed:
            raise httpx.ConnectError("the transport is closed")

    def _connect(self, origin: Origin) -> Connection:
        if origin.scheme == b"https" and self._ssl_context is None:
            self._ssl_context = httpx.create_ssl_context()
        return Connection(origin, self._ssl_context)


class HeldBody(httpx.AsyncByteStream):
    """A response's body, which holds slot and connection until it is closed or breaks."""

    def __init__(self, response: httpcore.Response, connection: Connection, pool: Pool) -> None:
        assert isinstance(response.stream, AsyncIterable)  # noqa: S101  (for the type checker)
        self._response = response
        self._chunks = aiter(response.stream)
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
            with httpx_errors():
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
        with contextlib.suppress(RuntimeError, *HTTPX_ERRORS):
            async for _ in self._chunks:
                pass

    async def _finish(self) -> None:
        self._is_over = True
        try:
            await self._response.aclose()
        finally:
            self._pool.give_back(self._connection, now=anyio.current_time())

    def _discard(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._pool.discard(self._connection)


class Whole:
    """A request's body in one piece.

    httpx's own is a generator; left half way by a connection that breaks, it would end in a ResourceWarning on trio.
    """

    def __init__(self, content: bytes) -> None:
        """Hold the bytes."""
        self._left = [content] if content else []

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over itself."""
        return self

    async def __anext__(self) -> bytes:
        """Give it once."""
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


def origin_of(url: httpx.URL) -> Origin:
    """Give where a URL leads to; httpx.UnsupportedProtocol for anything but http and https."""
    if url.scheme not in _DEFAULT_PORTS:
        raise httpx.UnsupportedProtocol(f"only http and https are spoken here, not {url.scheme!r}")
    return Origin(url.raw_scheme, url.raw_host, url.port or _DEFAULT_PORTS[url.scheme])


def _core_request(request: httpx.Request) -> httpcore.Request:
    url = request.url
    assert isinstance(request.stream, httpx.AsyncByteStream)  # noqa: S101  (as httpx's own transport has it)
    is_whole = isinstance(request.stream, httpx.ByteStream)
    return httpcore.Request(
        request.method,
        httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
        headers=request.headers.raw,
        content=Whole(request.content) if is_whole else request.stream,
        extensions=request.extensions,
    )


async def _trace(request: httpcore.Request, event: str) -> None:
    if (trace := request.extensions.get("trace")) is not None:
        await trace(event, {})
