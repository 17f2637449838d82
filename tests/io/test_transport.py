"""The connection pool against a scripted HTTP/1.1 server on a real port, on both backends in real time."""

import asyncio
import contextlib
import functools
import gc
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import httpx
import pytest
import respx

from knouds_async._io.exchange import SentTrace
from knouds_async._io.pool import PooledTransport

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BIG = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000
HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"
PARTS = {
    "then-close": (OK, "hang up"),
    "close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", "hang up"),
    "reset": (b"", "hang up"),
    "stall": (b"", "stall"),
    "stall-in-body": (HALF, "stall"),
    "truncated": (HALF, "hang up"),
    "drip": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "drip"),
    "nonsense": (b"nonsense\r\n\r\n", "hang up"),
    "big": (BIG, "go on"),
}
TIMEOUT = httpx.Timeout(20.0)


class Server:
    """Plays the part that a request's path names, and keeps what it saw.

    `served` lists (number of the connection, path) in the order of arrival.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.opened = 0
        self.open = 0
        self.served: list[tuple[int, str]] = []
        self.bodies: list[bytes] = []
        self.go = anyio.Event()

    async def connection(self, stream: anyio.abc.SocketStream) -> None:
        """Play one connection to its end."""
        self.opened += 1
        self.open += 1
        number = self.opened
        try:
            async with stream:
                with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                    while await self._exchange(stream, number):
                        pass
        finally:
            self.open -= 1

    async def _exchange(self, stream: anyio.abc.SocketStream, number: int) -> bool:
        seen = b""
        while b"\r\n\r\n" not in seen:
            seen += await stream.receive()
        head, _, body = seen.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        length = next((int(line[15:]) for line in lines if line.lower().startswith("content-length:")), 0)
        while len(body) < length:
            body += await stream.receive()
        path = lines[0].split()[1]
        self.served.append((number, path))
        self.bodies.append(body)
        return await self._play(stream, path)

    async def _play(self, stream: anyio.abc.SocketStream, path: str) -> bool:
        """Answer; say whether the connection stays open."""
        part = path.removeprefix("/").split("/")[0]
        if part == "when-told":
            await self.go.wait()
        answer, then = PARTS.get(part, (OK, "go on"))
        if answer:
            await stream.send(answer)
        while then == "drip":
            await stream.send(b"1\r\nx\r\n")
            await anyio.lowlevel.checkpoint()
        while then == "stall":
            await stream.receive()  # until the client hangs up
        return then == "go on"


def port_of(listener: anyio.abc.Listener[anyio.abc.SocketStream]) -> int:
    """Return the port the system has chosen."""
    port: int = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610  (not Django's)
    return port


@contextlib.asynccontextmanager
async def serving() -> AsyncGenerator[Server]:
    """Serve on a free port of the loopback until the block ends."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    server = Server(port_of(listener))
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, server.connection)
        yield server
        tasks.cancel_scope.cancel()


async def eventually(is_true: Callable[[], bool]) -> None:
    """Wait until something that is on its way has happened."""
    with anyio.fail_after(20):
        while not is_true():  # noqa: ASYNC110  (nothing sets an event for what the other end sees)
            await anyio.sleep(0.001)


def in_use(transport: PooledTransport) -> int:
    """Count the slots that are taken."""
    return transport._pool.inner.in_use


def idle(transport: PooledTransport) -> int:
    """Count the connections kept for reuse."""
    return len(transport._pool.inner.idle)


async def expect_ok(http: httpx.AsyncClient, url: str) -> None:
    """Get an ordinary answer."""
    response = await http.get(url)
    assert (response.status_code, response.content) == (200, b"ok")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run on both backends in real time: sockets know no other."""
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Collect what a test has dropped while it is still the one to blame for a ResourceWarning."""
    yield
    gc.collect()


async def test_requests_in_a_row_share_one_connection() -> None:
    """A connection whose response was read is used again."""
    async with serving() as server, httpx.AsyncClient(transport=PooledTransport()) as http:
        for _ in range(5):
            await expect_ok(http, server.url)
        assert server.opened == 1


async def test_a_body_arrives_whole() -> None:
    """What is posted and what is answered arrive unchanged, whatever their size."""
    async with serving() as server, httpx.AsyncClient(transport=PooledTransport()) as http:
        response = await http.post(f"{server.url}/big", content=b"y" * 200_000)
        assert response.content == b"x" * 300_000
        assert server.bodies == [b"y" * 200_000]


async def test_the_connection_used_last_is_used_first() -> None:
    """Idle connections are a stack, so that those not needed any more can expire."""
    async with serving() as server, httpx.AsyncClient(transport=PooledTransport()) as http:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(expect_ok, http, f"{server.url}/when-told")
            await eventually(lambda: len(server.served) == 1)
            await expect_ok(http, f"{server.url}/second")
            server.go.set()
        last_closed = 1
        for _ in range(3):
            await expect_ok(http, f"{server.url}/after")
        assert [number for number, path in server.served if path == "/after"] == [last_closed] * 3


async def test_a_connection_dropped_by_the_server_is_never_used() -> None:
    """An idle connection that the server has closed is replaced without anyone noticing."""
    transport = PooledTransport()
    async with serving() as server, httpx.AsyncClient(transport=transport) as http:
        for number in range(1, 6):
            await expect_ok(http, f"{server.url}/then-close")
            await eventually(lambda: server.open == 0)
            await anyio.sleep(0.01)  # for the news to cross the loopback
            assert server.opened == number
        assert (in_use(transport), idle(transport)) == (0, 1)


async def test_a_connection_the_server_will_close_is_not_kept() -> None:
    """After "Connection: close" nothing is kept."""
    transport = PooledTransport()
    async with serving() as server, httpx.AsyncClient(transport=transport) as http:
        await expect_ok(http, f"{server.url}/close")
        assert (in_use(transport), idle(transport)) == (0, 0)


async def test_expired_connections_are_closed_by_a_request_to_anywhere() -> None:
    """Idle connections to an origin that nobody asks any more do not stay open for ever."""
    transport = PooledTransport(keepalive_expiry=0.02)
    async with serving() as left, serving() as other, httpx.AsyncClient(transport=transport) as http:
        await expect_ok(http, left.url)
        assert left.open == 1
        await anyio.sleep(0.05)
        await expect_ok(http, other.url)
        await eventually(lambda: left.open == 0)
        assert idle(transport) == 1


async def test_an_expired_connection_is_not_used() -> None:
    """After the keep-alive time a request opens a new connection."""
    async with serving() as server, httpx.AsyncClient(transport=PooledTransport(keepalive_expiry=0.02)) as http:
        await expect_ok(http, server.url)
        await anyio.sleep(0.05)
        await expect_ok(http, server.url)
        assert server.opened == 2


async def test_a_fresh_request_uses_only_a_fresh_connection() -> None:
    """A paid submit opens a new connection rather than trust one that has been idle for a while; others reuse it."""
    transport = PooledTransport(fresh_within=0.02)
    fresh = {"knouds.fresh": True}
    async with serving() as server, httpx.AsyncClient(transport=transport) as http:
        await http.post(f"{server.url}/1", extensions=fresh)
        await anyio.sleep(0.05)
        await http.get(f"{server.url}/2", extensions={"knouds.fresh": False})
        await anyio.sleep(0.05)
        await http.post(f"{server.url}/3", extensions=fresh)
        assert server.served == [(1, "/1"), (1, "/2"), (2, "/3")]


async def test_a_fresh_request_uses_the_connection_that_was_just_used() -> None:
    """A burst of paid submits does not open a connection for each."""
    async with serving() as server, httpx.AsyncClient(transport=PooledTransport(fresh_within=20.0)) as http:
        for _ in range(3):
            await http.post(server.url, extensions={"knouds.fresh": True})
        assert server.opened == 1


async def test_idle_connections_count_towards_the_limit() -> None:
    """Opening one more closes the connection that has been idle the longest, to wherever it leads."""
    transport = PooledTransport(limit=2)
    async with serving() as one, serving() as two, serving() as three, httpx.AsyncClient(transport=transport) as http:
        for server in (one, two, three):
            await expect_ok(http, server.url)
        await eventually(lambda: one.open == 0)
        assert (two.open, three.open, idle(transport)) == (1, 1, 2)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/reset", httpx.RemoteProtocolError),
        ("/stall", httpx.ReadTimeout),
        ("/stall-in-body", httpx.ReadTimeout),
        ("/truncated", httpx.RemoteProtocolError),
        ("/nonsense", httpx.RemoteProtocolError),
    ],
)
async def test_what_goes_wrong_after_sending(path: str, expected: type[httpx.TransportError]) -> None:
    """A failure after the request has left raises httpx's own error, counts as sent and frees the slot."""
    transport = PooledTransport(limit=1)
    trace = SentTrace()
    timeout = httpx.Timeout(20.0, read=0.05)
    async with serving() as server, httpx.AsyncClient(transport=transport, timeout=timeout) as http:
        with pytest.raises(expected) as caught:
            await http.post(f"{server.url}{path}", extensions={"trace": trace})
        assert type(caught.value) is expected
        assert trace.may_have_been_sent(caught.value, transport_is_known=True)
        assert (in_use(transport), idle(transport)) == (0, 0)
        await eventually(lambda: server.open == 0)
        await expect_ok(http, server.url)


async def test_a_refused_connection_was_certainly_not_sent() -> None:
    """Where nobody listens nothing is sent, and the slot is free again."""
    async with serving() as gone:
        url = gone.url
    transport = PooledTransport(limit=1)
    trace = SentTrace()
    async with httpx.AsyncClient(transport=transport) as http:
        for _ in range(3):
            with pytest.raises(httpx.ConnectError) as caught:
                await http.post(url, extensions={"trace": trace})
            assert not trace.may_have_been_sent(caught.value, transport_is_known=False)
        assert in_use(transport) == 0


async def test_a_stalled_tls_handshake_was_certainly_not_sent() -> None:
    """A time-out while connecting closes the socket, and nothing has been sent."""
    transport = PooledTransport(limit=1, ssl_context=ssl.create_default_context())
    trace = SentTrace()
    async with serving() as server, httpx.AsyncClient(transport=transport, timeout=0.05) as http:
        with pytest.raises(httpx.ConnectTimeout) as caught:
            await http.post(server.url.replace("http:", "https:"), extensions={"trace": trace})
        assert not trace.may_have_been_sent(caught.value, transport_is_known=False)
        assert in_use(transport) == 0
        await eventually(lambda: server.open == 0)


async def test_a_server_that_does_not_speak_tls_cannot_be_connected_to() -> None:
    """Nonsense in the handshake is a ConnectError; httpx's TLS context is made when none was given."""
    transport = PooledTransport()
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
        httpx.AsyncClient(transport=transport, timeout=TIMEOUT) as http,
    ):

        async def talk_nonsense(stream: anyio.abc.SocketStream) -> None:
            async with stream:
                await stream.send(b"this is no TLS record\r\n\r\n")
                with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                    while True:
                        await stream.receive()

        tasks.start_soon(listener.serve, talk_nonsense)
        port = port_of(listener)
        with pytest.raises(httpx.ConnectError):
            await http.get(f"https://127.0.0.1:{port}")
        assert in_use(transport) == 0
        tasks.cancel_scope.cancel()


async def test_other_protocols_are_refused() -> None:
    """Anything but http and https is httpx.UnsupportedProtocol, certainly not sent."""
    transport = PooledTransport()
    request = httpx.Request("GET", "ftp://127.0.0.1/")
    with pytest.raises(httpx.UnsupportedProtocol) as caught:
        await transport.handle_async_request(request)
    assert not SentTrace().may_have_been_sent(caught.value, transport_is_known=True)
    assert in_use(transport) == 0


@pytest.mark.parametrize("path", ["/big", "/stall-in-body", "/drip", "/"])
async def test_a_body_that_is_not_read_costs_its_connection(path: str) -> None:
    """Leaving a response before its end closes the connection, and frees the slot for the next request."""
    transport = PooledTransport(limit=1)
    async with serving() as server, httpx.AsyncClient(transport=transport, timeout=TIMEOUT) as http:
        async with http.stream("GET", f"{server.url}{path}"):
            assert in_use(transport) == 1
        assert (in_use(transport), idle(transport)) == (0, 0)
        await eventually(lambda: server.open == 0)
        await expect_ok(http, server.url)


async def test_a_body_left_in_the_middle_costs_its_connection() -> None:
    """The transport's own stream leaves no unfinished generator behind, and cannot be read any further."""
    transport = PooledTransport(limit=1)
    async with serving() as server:
        for path in ("/big", "/stall-in-body"):
            response = await transport.handle_async_request(httpx.Request("GET", f"{server.url}{path}"))
            assert isinstance(response.stream, httpx.AsyncByteStream)
            chunks = aiter(response.stream)
            assert await anext(chunks)
            await response.aclose()
            await response.stream.aclose()
            assert (in_use(transport), idle(transport)) == (0, 0)
            with pytest.raises(httpx.StreamClosed):
                await anext(chunks)
        await transport.aclose()


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_a_body_that_breaks_gives_its_slot_back_unasked(*, is_cancelled: bool) -> None:
    """A failure or a cancellation while reading frees the slot, even if nobody closes the response."""
    transport = PooledTransport(limit=1)
    path = "stall-in-body" if is_cancelled else "truncated"
    async with serving() as server:
        response = await transport.handle_async_request(httpx.Request("GET", f"{server.url}/{path}"))
        assert isinstance(response.stream, httpx.AsyncByteStream)
        chunks = aiter(response.stream)
        assert await anext(chunks) == b"half"
        if is_cancelled:
            with anyio.move_on_after(0.01):
                await anext(chunks)
        else:
            with pytest.raises(httpx.RemoteProtocolError):
                await anext(chunks)
        assert (in_use(transport), idle(transport)) == (0, 0)
        await eventually(lambda: server.open == 0)
        await response.aclose()
        assert in_use(transport) == 0


async def test_a_body_can_be_closed_while_another_task_reads_it() -> None:
    """The reader gets an error, the closer does not, and the slot comes back once."""
    transport = PooledTransport(limit=1)
    async with serving() as server, httpx.AsyncClient(transport=transport, timeout=TIMEOUT) as http:
        request = http.build_request("GET", f"{server.url}/stall-in-body")
        response = await http.send(request, stream=True)
        failed: list[BaseException] = []

        async def read() -> None:
            try:
                await response.aread()
            except httpx.TransportError as error:
                failed.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            await response.aclose()
        assert [type(error) for error in failed] == [httpx.ReadError]
        assert (in_use(transport), idle(transport)) == (0, 0)


async def test_closing_ends_idle_connections_now_and_the_others_later() -> None:
    """What is in use when the transport closes may be read to the end, and is then closed instead of kept."""
    transport = PooledTransport(limit=2)
    async with serving() as server, httpx.AsyncClient(transport=PooledTransport()) as http:
        first = await transport.handle_async_request(httpx.Request("GET", server.url))
        second = await transport.handle_async_request(httpx.Request("GET", server.url))
        await first.aread()
        assert (in_use(transport), idle(transport), server.open) == (1, 1, 2)
        await transport.aclose()
        await transport.aclose()
        assert idle(transport) == 0
        await eventually(lambda: server.open == 1)
        assert await second.aread() == b"ok"
        assert (in_use(transport), idle(transport)) == (0, 0)
        await eventually(lambda: server.open == 0)
        with pytest.raises(httpx.ConnectError, match="closed"):
            await transport.handle_async_request(httpx.Request("GET", server.url))
        await expect_ok(http, server.url)


async def test_closing_under_cancellation_closes_all_the_same() -> None:
    """A cancelled aclose() has closed every idle connection."""
    transport = PooledTransport()
    async with serving() as server:
        responses = [await transport.handle_async_request(httpx.Request("GET", server.url)) for _ in range(5)]
        for response in responses:
            await response.aread()
        assert idle(transport) == 5
        with anyio.CancelScope() as scope:
            scope.cancel()
            await transport.aclose()
        assert idle(transport) == 0
        await eventually(lambda: server.open == 0)


@pytest.mark.parametrize(
    ("mocked", "is_sent"),
    [
        (httpx.ReadTimeout, True),
        (httpx.RemoteProtocolError, True),
        (httpx.ConnectError, False),
        (httpx.ConnectTimeout, False),
    ],
)
async def test_respx_intercepts_and_its_errors_are_judged_by_class(
    mocked: type[httpx.TransportError], *, is_sent: bool
) -> None:
    """A mocked connection fires no events, so the class decides; mocked or not, every slot comes back."""
    transport = PooledTransport(limit=1)
    with respx.mock:
        respx.get("http://mocked.test/").respond(200, json={"is": "mocked"})
        respx.post("http://mocked.test/").mock(side_effect=mocked)
        async with httpx.AsyncClient(transport=transport) as http:
            for _ in range(3):
                assert (await http.get("http://mocked.test/")).json() == {"is": "mocked"}
            trace = SentTrace()
            with pytest.raises(mocked) as caught:
                await http.post("http://mocked.test/", extensions={"trace": trace})
            assert trace.may_have_been_sent(caught.value, transport_is_known=True) is is_sent
            assert (in_use(transport), idle(transport)) == (0, 0)


# Cancellation: at every turn of the event loop that a request takes, in every way it can be cancelled.

Request = Callable[[], Coroutine[Any, Any, None]]
WAVE = 10


async def cancel_with_a_scope(request: Request, turns: int) -> None:
    """Cancel a wave of requests through anyio after some turns of the loop."""
    async with anyio.create_task_group() as tasks:
        for _ in range(WAVE):
            tasks.start_soon(request)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()


async def cancel_natively(request: Request, turns: int, *, times: int) -> None:
    """Cancel a wave of requests with task.cancel(), once or again while they are still cleaning up."""
    tasks = [asyncio.ensure_future(request()) for _ in range(WAVE)]
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()
    for _ in range(times):
        for task in tasks:
            task.cancel()
        await anyio.lowlevel.checkpoint()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    unexpected = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert unexpected == []


@pytest.mark.slow
async def test_ten_thousand_requests_cancelled_by_scope_leave_nothing_behind() -> None:
    """Cancelled while waiting, connecting, sending or reading, every slot and every socket comes back."""
    await _cancel_ten_thousand(cancel_with_a_scope)


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("times", [1, 3])
async def test_ten_thousand_requests_cancelled_natively_leave_nothing_behind(times: int) -> None:
    """The same holds for task.cancel(), which no shield keeps out, and when it comes again during the clean-up."""
    await _cancel_ten_thousand(functools.partial(cancel_natively, times=times))


async def _cancel_ten_thousand(cancel: Callable[[Request, int], Awaitable[None]]) -> None:
    limit = WAVE
    transport = PooledTransport(limit=limit)
    seen: set[str] = set()

    async def pausing(event: str, details: object) -> None:
        seen.add(event)
        await anyio.lowlevel.checkpoint()

    async with serving() as server, httpx.AsyncClient(transport=transport, timeout=TIMEOUT) as http:
        secure = server.url.replace("http:", "https:")
        paused = [f"{server.url}/", secure]
        plain = [f"{server.url}/", f"{server.url}/stall", f"{server.url}/stall-in-body"]
        requests = [functools.partial(_get, http, url, trace=pausing) for url in paused]
        requests += [functools.partial(_get, http, url, trace=None) for url in plain]
        for turns in range(10_000 // (WAVE * len(requests))):
            for request in requests:
                await cancel(request, turns)
                assert in_use(transport) == 0
        gc.collect()
        await eventually(lambda: server.open == idle(transport))
        async with anyio.create_task_group() as tasks:
            for _ in range(limit):
                tasks.start_soon(expect_ok, http, server.url)
    stages = {"connection.connect_tcp.started", "connection.start_tls.started"}
    stages |= {"http11.send_request_headers.started", "http11.receive_response_body.started"}
    assert stages <= seen  # the cancellations were spread over everything a request goes through


async def _get(http: httpx.AsyncClient, url: str, *, trace: Callable[[str, object], Awaitable[None]] | None) -> None:
    await http.get(url, extensions={} if trace is None else {"trace": trace})
