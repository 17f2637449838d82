"""A scripted HTTP/1.1 server on a real port, and a client of our own without limiter and retries, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import ssl
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import httpx
import trustme
from anyio.streams.tls import TLSAttribute, TLSListener, TLSStream

from knouds_async._io.exchange import Exchange, SentTrace
from knouds_async._io.pool import PooledTransport
from knouds_async._io.proxy import read_proxy
from knouds_async._sansio import endpoints
from knouds_async._sansio.endpoints import Call
from knouds_async._sansio.responses import Answer
from knouds_async._sansio.retry import Outcome
from knouds_async.config import Secret, Timeouts

KEY = "knouds_live_CANARY0123456789"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
HALF = b"HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 9\r\n\r\nhalf"
STRAY = b"HTTP/1.1 429 X\r\nContent-Length: 0\r\n\r\n"
FULL = b"HTTP/1.1 200 OK\r\nContent-Length: 65494\r\n\r\n" + b"x" * 65494  # as much as is read at once
ECHO = f"the key {KEY}".encode()
ZIPPED = gzip.compress(b"z" * 100_000)
PARTS = {
    "big": (b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n" + b"x" * 900_000, "go on"),
    "chunked": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "go on"),
    "zipped": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(ZIPPED) + ZIPPED,
        "go on",
    ),
    "stacked": (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip, gzip\r\nContent-Length: 1\r\n\r\nx", "go on"),
    "echo": (b"HTTP/1.1 502 X\r\nLocation: %b\r\nContent-Length: %d\r\n\r\n%b" % (ECHO, len(ECHO), ECHO), "go on"),
    "echo-rubbish": (ECHO + b"\r\n\r\n", "hang up"),
    "twice": (OK + STRAY, "go on"),
    "twice-in-records": (OK + STRAY, "go on"),
    "twice-when-full": (FULL + STRAY, "go on"),
    "then-close": (OK, "hang up"),
    "close": (OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), "hang up"),
    "reset": (b"", "hang up"),
    "stall": (b"", "stall"),
    "stall-in-body": (HALF, "stall"),
    "truncated": (HALF, "hang up"),
    "nonsense": (b"nonsense\r\n\r\n", "hang up"),
}


async def received(stream: anyio.abc.ByteReceiveStream) -> tuple[str, bytes]:
    """Return the head and the body of the next request on a connection."""
    seen = b""
    while b"\r\n\r\n" not in seen:
        seen += await stream.receive()
    head, _, body = seen.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    length = next((int(line[15:]) for line in lines if line.lower().startswith("content-length:")), 0)
    while len(body) < length:
        body += await stream.receive()
    return head.decode(), body


class Server:
    """Plays the part that a request's path ends in; `served` lists (number of the connection, head) as they came."""

    def __init__(self, port: int, scheme: str) -> None:
        self.url = f"{scheme}://localhost:{port}"
        self.opened = self.open = 0
        self.served: list[tuple[int, str]] = []
        self.bodies: list[bytes] = []

    async def connection(self, stream: anyio.abc.ByteStream) -> None:
        """Play one connection to its end."""
        self.opened += 1
        self.open += 1
        number = self.opened
        gone = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError)
        try:
            async with stream:
                with contextlib.suppress(*gone):
                    while await self._exchange(stream, number):
                        pass
        except gone:
            pass
        finally:
            self.open -= 1

    async def _exchange(self, stream: anyio.abc.ByteStream, number: int) -> bool:
        head, body = await received(stream)
        self.served.append((number, head))
        self.bodies.append(body)
        part = head.split()[1].split("?")[0].split("/")[-1 if head.startswith("GET") else 3]
        answer, then = PARTS.get(part, (OK, "go on"))
        if part == "twice-in-records" and isinstance(stream, TLSStream):
            stream.extra(TLSAttribute.ssl_object).write(OK)  # noqa: S610  (not Django's)
            answer = STRAY
        if answer:
            await stream.send(answer)
        while then == "stall":
            await stream.receive()  # until the client hangs up
        return then == "go on"


AUTHORITY = trustme.CA()


@contextlib.asynccontextmanager
async def serving(scheme: str = "http") -> AsyncGenerator[Server]:
    """Serve on a free port of the loopback until the block ends."""
    listener: Any = await anyio.create_tcp_listener(local_host="localhost", family=socket.AF_INET)
    server = Server(listener.extra(anyio.abc.SocketAttribute.local_port), scheme)  # noqa: S610  (not Django's)
    if scheme == "https":
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        AUTHORITY.issue_cert("localhost", "knouds.test").configure_cert(context)
        listener = TLSListener(listener, context, standard_compatible=False)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, server.connection)
        yield server
        tasks.cancel_scope.cancel()


class Client:
    """An exchange over connections of our own, and what its pool holds."""

    def __init__(self, url: str, timeouts: Timeouts, limit: int, proxy: str | None, *, is_trusting: bool) -> None:
        context = ssl.create_default_context()
        if is_trusting:
            AUTHORITY.configure_trust(context)
        self.pool = PooledTransport(
            ssl_context=context, limit=limit, proxy=None if proxy is None else read_proxy(proxy)
        )
        self.http = httpx.AsyncClient(transport=self.pool)
        self.exchange = Exchange(
            self.http,
            base_url=url,
            key=Secret(KEY),
            timeouts=timeouts,
            is_known=True,
            is_lent=False,
        )

    async def get(self, part: str, total: float | None = None) -> Outcome:
        """Poll an execution; the server knows its part from the id."""
        return await self.attempt(endpoints.get_execution(part), total=total)

    async def attempt(self, call: Call[Any], total: float | None = None) -> Outcome:
        """Send a call once."""
        return await self.exchange.attempt(call, SentTrace(), total=total)

    @property
    def books(self) -> tuple[int, int]:
        """FIFOLimiter in use, and idle connections."""
        return self.pool._pool.in_use, len(self.pool._pool.idle)


@contextlib.asynccontextmanager
async def connected(
    url: str,
    *,
    timeouts: Timeouts | None = None,
    limit: int = 10,
    proxy: str | None = None,
    is_trusting: bool = True,
) -> AsyncGenerator[Client]:
    """Return a client, closed after the block."""
    client = Client(url, timeouts or Timeouts(), limit, proxy, is_trusting=is_trusting)
    try:
        yield client
    finally:
        await client.pool.aclose()


async def eventually(is_true: Callable[[], bool]) -> None:
    """Wait until something that is on its way has happened."""
    with anyio.fail_after(20):
        while not is_true():  # noqa: ASYNC110  (nothing sets an event for what the other end sees)
            await anyio.sleep(0.001)


def body_of(outcome: Outcome) -> bytes:
    """Return the body of an answer."""
    assert isinstance(outcome, Answer)
    return outcome.body


Get = Callable[[], Coroutine[Any, Any, object]]
WAVE = 10


async def cancel_with_a_scope(get: Get, turns: int) -> None:
    """Cancel a wave of calls through anyio after some turns of the loop."""
    async with anyio.create_task_group() as tasks:
        for _ in range(WAVE):
            tasks.start_soon(get)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()


async def cancel_natively(get: Get, turns: int, *, times: int) -> None:
    """Cancel a wave of calls with task.cancel(), once or again while they are still cleaning up."""
    tasks = [asyncio.ensure_future(get()) for _ in range(WAVE)]
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()
    for _ in range(times):
        for task in tasks:
            task.cancel()
        await anyio.lowlevel.checkpoint()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [outcome for outcome in outcomes if isinstance(outcome, Exception)] == []


def shown_by(error: BaseException) -> str:
    """Return what an error shows, with the local variables of all frames but the test's."""
    frames = traceback.TracebackException.from_exception(error, capture_locals=True).stack[1:]
    assert frames
    return "".join([*traceback.StackSummary.from_list(frames).format(), str(error), repr(error)])
