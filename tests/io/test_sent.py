"""Whether a request may have been sent, from the events and from real failures behind a proxy."""

import contextlib
from collections.abc import AsyncGenerator, Callable

import anyio
import anyio.abc
import httpcore
import httpx
import pytest

from knouds_async._io.exchange import SentTrace
from knouds_async._io.pool import PooledTransport, Proxy

HEADERS = "http11.send_request_headers.started"
CONNECTED = ["connection.connect_tcp.started", "connection.connect_tcp.complete"]
PROVES_NOT_SENT: list[type[httpx.TransportError]] = [
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
]
PROVES_NOTHING: list[type[httpx.TransportError]] = [
    httpx.ReadError,
    httpx.ReadTimeout,
    httpx.WriteError,
    httpx.WriteTimeout,
    httpx.CloseError,
    httpx.NetworkError,
    httpx.TimeoutException,
    httpx.ProtocolError,
    httpx.RemoteProtocolError,
    httpx.ProxyError,
    httpx.TransportError,
]


async def after(*events: str) -> SentTrace:
    """Show a trace some events."""
    trace = SentTrace()
    for event in events:
        await trace(event, {})
    return trace


@pytest.mark.parametrize("error", [None, httpx.ConnectError("x"), httpx.PoolTimeout("x"), httpx.ReadError("x")])
@pytest.mark.parametrize(
    "events",
    [
        [HEADERS],
        [*CONNECTED, HEADERS],
        ["http2.send_connection_init.started"],
        [*CONNECTED, HEADERS, "http11.send_request_headers.failed"],
        [*CONNECTED, HEADERS, "http11.response_closed.complete", "connection.connect_tcp.started"],
        [HEADERS, "pool.wait.started"],
    ],
)
async def test_once_sending_has_begun_it_counts_as_sent(events: list[str], error: httpx.TransportError | None) -> None:
    """Neither what comes later nor the error's class takes that back."""
    trace = await after(*events)
    assert trace.may_have_been_sent(error, transport_is_known=True)
    assert trace.may_have_been_sent(error, transport_is_known=False)


@pytest.mark.parametrize("error", [None, httpx.ReadTimeout("x"), httpx.ConnectError("x")])
@pytest.mark.parametrize(
    "events",
    [
        ["pool.wait.started"],
        CONNECTED[:1],
        CONNECTED,
        ["pool.wait.started", "pool.wait.complete", "connection.connect_tcp.failed"],
        [*CONNECTED, "connection.start_tls.started"],
    ],
)
async def test_while_waiting_or_connecting_nothing_was_sent(
    events: list[str], error: httpx.TransportError | None
) -> None:
    """The last event proves it, whoever's transport it is and whatever the error."""
    trace = await after(*events)
    assert not trace.may_have_been_sent(error, transport_is_known=False)
    assert not trace.may_have_been_sent(error, transport_is_known=True)


@pytest.mark.parametrize("events", [[], ["pool.wait.started", "pool.wait.complete"], ["somebody.elses.event"]])
async def test_without_a_usable_event_the_class_decides_and_only_for_known_transports(events: list[str]) -> None:
    """A known transport raises these classes only before sending; an unknown one proves nothing."""
    trace = await after(*events)
    for error in PROVES_NOT_SENT:
        assert not trace.may_have_been_sent(error("x"), transport_is_known=True)
        assert trace.may_have_been_sent(error("x"), transport_is_known=False)
    for error in PROVES_NOTHING:
        assert trace.may_have_been_sent(error("x"), transport_is_known=True)
    assert trace.may_have_been_sent(None, transport_is_known=True)


def test_every_transport_error_has_been_thought_about() -> None:
    """A class that httpx adds is looked at before it counts as a proof of anything."""

    def tree(error: type[httpx.TransportError]) -> set[type[httpx.TransportError]]:
        return {error}.union(*(tree(child) for child in error.__subclasses__()))

    of_httpx = {error for error in tree(httpx.TransportError) if error.__module__ == "httpx"}
    assert of_httpx <= {*PROVES_NOT_SENT, *PROVES_NOTHING}


async def test_a_class_derived_from_a_proof_is_no_proof() -> None:
    """Another library's ConnectTimeout may well mean that the server has hung up."""

    class ServerDisconnected(httpx.ConnectTimeout):
        pass

    assert (await after()).may_have_been_sent(ServerDisconnected("x"), transport_is_known=True)


# A proxy is asked to CONNECT with a request of its own, which fires the same events as ours in httpx's transport.


@contextlib.asynccontextmanager
async def a_proxy(answer: bytes, *, hangs_up: bool) -> AsyncGenerator[str]:
    """Serve a proxy that answers any request so, and then hangs up or falls silent."""

    async def play(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                seen = b""
                while b"\r\n\r\n" not in seen:
                    seen += await stream.receive()
                if answer:
                    await stream.send(answer)
                while not hangs_up:
                    await stream.receive()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port: int = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610  (not Django's)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, play)
        yield f"http://127.0.0.1:{port}"
        tasks.cancel_scope.cancel()


def stock(proxy: str) -> httpx.AsyncHTTPTransport:
    """Return httpx's own transport, as a caller's client has it."""
    return httpx.AsyncHTTPTransport(proxy=proxy)


def ours(proxy: str) -> httpx.AsyncHTTPTransport:
    """Return the transport of our own client."""
    return PooledTransport(proxy=Proxy.of(proxy))


Through = Callable[[str], httpx.AsyncHTTPTransport]


async def failure(transport: httpx.AsyncHTTPTransport, trace: SentTrace) -> httpx.TransportError:
    """Post something through the proxy, and give the error."""
    async with httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(0.1)) as http:
        with pytest.raises(httpx.TransportError) as caught:
            await http.post("https://behind.test/", extensions={"trace": trace})
    return caught.value


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("through", [stock, ours])
@pytest.mark.parametrize(
    ("answer", "hangs_up"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", False),
        (b"HTTP/1.1 503 X\r\n\r\nbut the body does not end", False),
        (b"nonsense\r\n\r\n", False),
        (b"", False),
        (b"", True),
        (b"HTTP/1.1 200 OK\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\n\r\nno TLS at all", True),
    ],
)
async def test_a_tunnel_that_does_not_come_about_was_certainly_not_sent(
    through: Through, answer: bytes, *, hangs_up: bool
) -> None:
    """What a proxy is asked, and a TLS handshake behind it, is no part of our request."""
    trace = SentTrace()
    async with a_proxy(answer, hangs_up=hangs_up) as proxy:
        error = await failure(through(proxy), trace)
    assert not trace.may_have_been_sent(error, transport_is_known=False)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("through", [stock, ours])
async def test_a_proxy_that_is_not_there_was_sent_nothing(through: Through) -> None:
    """Failing to connect to the proxy itself proves that nothing was sent."""
    async with a_proxy(b"", hangs_up=True) as proxy:
        pass
    trace = SentTrace()
    error = await failure(through(proxy), trace)
    assert not trace.may_have_been_sent(error, transport_is_known=False)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("through", [stock, ours])
async def test_a_plain_request_that_a_proxy_had_may_have_been_passed_on(through: Through) -> None:
    """Without TLS there is no tunnel: the proxy has the whole request, whatever it says of it."""
    trace = SentTrace()
    async with a_proxy(b"", hangs_up=True) as proxy, httpx.AsyncClient(transport=through(proxy)) as http:
        with pytest.raises(httpx.TransportError) as caught:
            await http.post("http://behind.test/", extensions={"trace": trace})
    assert trace.may_have_been_sent(caught.value, transport_is_known=True)


CONNECT = {"request": httpcore.Request("CONNECT", "http://proxy.test/")}
OURS = {"request": httpcore.Request("POST", "https://knouds.ai/")}


async def test_our_request_is_told_from_the_proxys() -> None:
    """Every event of CONNECT is before ours, its end and an error included; the first of ours is sending."""
    trace = SentTrace()
    await trace(HEADERS, CONNECT)
    for event in ("http11.send_request_headers.complete", "http11.receive_response_headers.complete"):
        await trace(event, {"return_value": None})
        assert not trace.may_have_been_sent(None, transport_is_known=False)
    await trace("http11.response_closed.started", {})
    assert not trace.may_have_been_sent(None, transport_is_known=False)
    await trace("proxy.start_tls.started", {})
    assert not trace.may_have_been_sent(None, transport_is_known=False)
    await trace(HEADERS, OURS)
    assert trace.may_have_been_sent(None, transport_is_known=False)


@pytest.mark.parametrize("event", ["socks.setup_socks5_connection.started", "socks.setup_socks5_connection.failed"])
async def test_what_is_said_to_a_socks_proxy_is_not_our_request(event: str) -> None:
    """Until it has connected on, nothing of ours has left."""
    assert not (await after(*CONNECTED, event)).may_have_been_sent(None, transport_is_known=False)


# Something may have a last word before the first byte.


class TooLateError(Exception):
    """What the last word is in these tests."""


@pytest.mark.parametrize("head", [HEADERS, "http2.send_connection_init.started"])
async def test_a_request_that_was_held_back_is_not_sent_for_good(head: str) -> None:
    """Refused at its first byte it counts as not sent, whatever httpcore tells of its end; and it never leaves."""

    def refuse() -> None:
        raise TooLateError

    trace = SentTrace(refuse)
    await trace(HEADERS, CONNECT)
    for _ in range(2):  # a transport may try again
        with pytest.raises(TooLateError):
            await trace(head, OURS)
        for event in ("http11.response_closed.started", "http11.response_closed.complete"):
            await trace(event, {})
        assert not trace.may_have_been_sent(TooLateError(), transport_is_known=False)


async def test_the_last_word_is_asked_for_once() -> None:
    """At the first byte of our own request, not of the proxy's, and not again."""
    asked: list[int] = []
    trace = SentTrace(lambda: asked.append(1))
    await trace(HEADERS, CONNECT)
    assert asked == []
    for _ in range(2):
        await trace(HEADERS, OURS)
    assert asked == [1]
    assert trace.may_have_been_sent(None, transport_is_known=False)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("transport", [httpx.AsyncHTTPTransport, PooledTransport])
async def test_what_is_held_back_does_not_leave(transport: Callable[[], httpx.AsyncHTTPTransport]) -> None:
    """No byte reaches the server, and its connection is closed."""
    heard: list[bytes] = []

    async def listen(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                heard.append(await stream.receive())

    def refuse() -> None:
        raise TooLateError

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port: int = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610  (not Django's)
    trace = SentTrace(refuse)
    async with listener, anyio.create_task_group() as tasks, httpx.AsyncClient(transport=transport()) as http:
        tasks.start_soon(listener.serve, listen)
        with pytest.raises(TooLateError) as caught:
            await http.post(f"http://127.0.0.1:{port}/", content=b"paid", extensions={"trace": trace})
        assert not trace.may_have_been_sent(caught.value, transport_is_known=False)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert heard == []
