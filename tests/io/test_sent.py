"""Whether a request may have been sent, from the events and from real failures behind a proxy."""

import contextlib
from collections.abc import AsyncGenerator

import anyio
import anyio.abc
import httpx
import pytest

from knouds_async._io.sent import SentTrace

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


# A proxy is asked to CONNECT with a request of its own, which fires the same events as ours.


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


async def failure(proxy: str, trace: SentTrace) -> httpx.TransportError:
    """Post something through the proxy, and give the error."""
    transport = httpx.AsyncHTTPTransport(proxy=proxy)
    async with httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(0.1)) as http:
        with pytest.raises(httpx.TransportError) as caught:
            await http.post("https://behind.test/", extensions={"trace": trace})
    return caught.value


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("answer", "hangs_up", "expected"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", True, httpx.ProxyError),
        (b"", False, httpx.ReadTimeout),
        (b"", True, httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\n\r\n", False, httpx.ConnectTimeout),
        (b"HTTP/1.1 200 OK\r\n\r\n", True, httpx.ConnectError),
    ],
)
async def test_a_failure_behind_a_proxy_is_never_taken_for_not_sent(
    answer: bytes, expected: type[httpx.TransportError], *, hangs_up: bool
) -> None:
    """From the proxy's CONNECT on, any failure counts as sent, one in the TLS handshake included."""
    trace = SentTrace()
    async with a_proxy(answer, hangs_up=hangs_up) as proxy:
        error = await failure(proxy, trace)
    assert isinstance(error, expected)
    assert trace.may_have_been_sent(error, transport_is_known=True)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_proxy_that_is_not_there_was_sent_nothing() -> None:
    """Failing to connect to the proxy itself proves that nothing was sent."""
    async with a_proxy(b"", hangs_up=True) as proxy:
        pass
    trace = SentTrace()
    error = await failure(proxy, trace)
    assert not trace.may_have_been_sent(error, transport_is_known=True)
