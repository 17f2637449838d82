"""One attempt of a call: whether it was sent, its body, its cancellation, against a scripted server on a real port."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import gzip
import io
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import attrs
import httpcore
import httpx
import pytest
import respx
import trustme
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSStream
from hypothesis import given, settings
from hypothesis import strategies as st

from knouds_async import AsyncKnouds, ConnectionFailedError, NotRun, Retries
from knouds_async._io.exchange import Exchange, SentTrace, UnreadableBody, causes_of, is_stock, read_body
from knouds_async._io.pool import PooledTransport
from knouds_async._io.proxy import read_proxy
from knouds_async._sansio import endpoints
from knouds_async._sansio.responses import Answer
from knouds_async._sansio.retry import Garbled, NotSent, Outcome, Unanswered
from knouds_async.config import Secret, Timeouts, __version__
from knouds_async.types import Target
from tests.io.scripted import (
    HALF,
    KEY,
    OK,
    Get,
    body_of,
    cancel_natively,
    cancel_with_a_scope,
    connected,
    eventually,
    serving,
)

REAL_TIME = True  # sockets know no other
HURRIED = Timeouts(connect=0.05)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_calls_in_a_row_share_one_connection(scheme: str) -> None:
    """Over TLS as without; a body arrives whole whatever its size, in chunks and zipped."""
    async with serving(scheme) as server, connected(server.url) as client:
        assert body_of(await client.get("a")) == b"{}"
        assert body_of(await client.get("big")) == b"x" * 900_000
        assert body_of(await client.get("chunked")) == b"{}"
        assert body_of(await client.get("zipped")) == b"z" * 100_000
        assert (server.opened, client.books) == (1, (0, 1))


async def test_what_is_sent() -> None:
    """A read sends host, key and what it accepts; a submit its body too; no key goes where none is due."""
    async with serving() as server, connected(server.url) as client:
        await client.get("a")
        await client.attempt(endpoints.submit(Target("workflows", "a"), {"n": 1}))
        await client.attempt(endpoints.cancel_execution("a"))
        await client.attempt(endpoints.health())
    heads = [head.split("\r\n") for _, head in server.served]
    assert [lines[0] for lines in heads] == [
        "GET /api/executions/a HTTP/1.1",
        "POST /api/workflows/a/run?async=true HTTP/1.1",
        "POST /api/executions/a/cancel HTTP/1.1",
        "GET /api/health HTTP/1.1",
    ]
    agent = f"User-Agent: knouds-async/{__version__}"
    always = {f"Host: {server.url[7:]}", "Accept: application/json", "Accept-Encoding: gzip", agent}
    assert all(always <= set(lines) for lines in heads)
    assert [f"x-api-key: {KEY}" in lines for lines in heads] == [True, True, True, False]
    assert "Content-Type: application/json" in heads[1]
    assert "Content-Length: 0" in heads[2]
    assert server.bodies == [b"", b'{"inputs":{"n":1}}', b"", b""]


async def test_a_certificate_that_is_not_trusted_gets_no_request() -> None:
    """The handshake fails, nothing was sent, and the socket is closed."""
    async with serving("https") as server, connected(server.url, is_trusting=False) as client:
        outcome = await client.get("a")
        assert isinstance(outcome, NotSent)
        assert "CERTIFICATE_VERIFY_FAILED" in outcome.seen
        assert server.served == []
        await eventually(lambda: server.open == 0)


@pytest.mark.parametrize(
    ("part", "expected", "seen"),
    [
        ("reset", Unanswered, "RemoteProtocolError: Server disconnected without sending a response"),
        ("stall", Unanswered, "ReadTimeout"),
        ("nonsense", Unanswered, "RemoteProtocolError: illegal status line"),
        ("truncated", Garbled, "cut short"),
        ("stall-in-body", Garbled, "cut short .ReadTimeout"),
        ("stacked", Garbled, "content-encoding"),
    ],
)
async def test_what_goes_wrong_after_sending(part: str, expected: type[Outcome], seen: str) -> None:
    """It counts as sent, says what was seen, and frees slot and socket for the next call."""
    async with serving() as server, connected(server.url, timeouts=Timeouts(read=0.3)) as client:
        outcome = await client.get(part)
        assert type(outcome) is expected
        assert not isinstance(outcome, (Answer, NotSent))
        assert seen.partition(" .*")[0] in outcome.seen.replace("(", ".")
        assert client.books == (0, 0)
        await eventually(lambda: server.open == 0)
        assert body_of(await client.get("a")) == b"{}"


async def test_a_garbled_answer_keeps_what_was_read() -> None:
    """Status and headers are there, and whether it was cut short or refused."""
    async with serving() as server, connected(server.url) as client:
        cut, refused = await client.get("truncated"), await client.get("stacked")
    assert isinstance(cut, Garbled)
    assert isinstance(refused, Garbled)
    assert (cut.status, cut.headers, cut.is_cut, refused.is_cut) == (200, {"date": "now"}, True, False)
    assert (cut.part, refused.part) == (b"half", b"")


@pytest.mark.parametrize("part", ["stall", "stall-in-body"])
async def test_the_whole_exchange_is_bounded(part: str) -> None:
    """The call's own time ends it wherever it stands, and the connection with it."""
    async with serving() as server, connected(server.url) as client:
        outcome = await client.get(part, total=0.3)
        assert isinstance(outcome, Unanswered)
        assert "within 0.3 s" in outcome.seen
        assert outcome.part == (b"half" if part == "stall-in-body" else b"")
        assert client.books == (0, 0)
        await eventually(lambda: server.open == 0)


async def test_a_paid_call_may_be_silent_for_as_long_as_it_may_take() -> None:
    """The timeout of a single read does not cut a run that is still in progress."""
    async with serving() as server, connected(server.url, timeouts=Timeouts(read=0.01, run=0.3)) as client:
        outcome = await client.attempt(endpoints.run(Target("workflows", "stall"), {}))
        assert isinstance(outcome, Unanswered)
        assert "within 0.3 s" in outcome.seen


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_where_nobody_listens_nothing_was_sent(scheme: str) -> None:
    """A refused connection is certainly not sent, and costs no slot."""
    async with serving() as gone:
        url = gone.url.replace("http:", f"{scheme}:")
    async with connected(url) as client:
        outcome = await client.get("a")
        assert isinstance(outcome, NotSent)
        assert "ConnectError" in outcome.seen
        assert url in outcome.seen
        assert client.books == (0, 0)


async def test_a_stalled_handshake_was_certainly_not_sent() -> None:
    """The time for connecting ends it, and the socket is closed."""
    async with serving() as server, connected(server.url.replace("http:", "https:"), timeouts=HURRIED) as client:
        outcome = await client.get("a")
        assert isinstance(outcome, NotSent)
        assert "ConnectTimeout" in outcome.seen
        assert client.books == (0, 0)
        await eventually(lambda: server.open == 0)


@pytest.mark.parametrize("part", ["then-close", "close"])
async def test_a_closed_connection_is_never_used(part: str) -> None:
    """Closed by the server, or announced to be: the next call opens another."""
    async with serving() as server, connected(server.url) as client:
        for number in range(1, 4):
            assert body_of(await client.get(part)) == b"{}"
            await eventually(lambda: server.open == 0)
            await anyio.sleep(0.01)  # for the news to cross the loopback
            assert server.opened == number


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("part", ["twice", "twice-in-records", "twice-when-full"])
async def test_an_answer_nobody_asked_for_is_no_answer_to_what_comes_next(part: str, scheme: str) -> None:
    """What a server sends behind an answer ends the connection: a stray 429 would have a paid run sent twice.

    Also in a TLS record of its own, and where the answer fills all that is read at once.
    """
    submit = endpoints.submit(Target("workflows", "a"), {})
    async with serving(scheme) as server, connected(server.url) as client:
        assert body_of(await client.get(part)).strip(b"x") in (b"{}", b"")
        outcome = await client.attempt(submit)
        assert isinstance(outcome, Answer)
        assert (outcome.status, server.opened) == (200, 2)


async def test_a_connection_whose_parser_is_not_found_is_used_once() -> None:
    """Should httpcore rename the fields that are read, no unread bytes can be taken for an answer."""
    async with serving() as server, connected(server.url) as client:
        await client.get("a")
        idle = client.pool._pool.idle[0]
        assert not idle._has_more()
        idle._http = object()  # type: ignore[assignment,misc]
        assert idle._has_more()


@pytest.mark.parametrize("clock", ["steady", "boot", "wall"])
async def test_a_paid_call_trusts_only_a_connection_just_used(clock: str) -> None:
    """One that was idle for a while, by any clock (a laptop that slept), may be dead: was the run begun, then?"""
    submit = endpoints.submit(Target("workflows", "a"), {})
    async with serving() as server, connected(server.url) as client:
        await client.get("a")
        await client.attempt(submit)
        assert server.opened == 1
        idle = client.pool._pool.idle[0]
        assert idle.idle_since is not None
        if (now := getattr(idle.idle_since, clock)) is None:
            pytest.skip("this system has no such clock")
        earlier: dict[str, Any] = {clock: now - 3.0}
        idle.idle_since = attrs.evolve(idle.idle_since, **earlier)
        await client.attempt(submit)
        assert server.opened == 2


async def test_the_key_is_masked_wherever_it_is_echoed() -> None:
    """In a body, in a header and in words about a malformed answer."""
    async with serving() as server, connected(server.url) as client:
        echo, rubbish = await client.get("echo"), await client.get("echo-rubbish")
    assert isinstance(echo, Answer)
    assert isinstance(rubbish, Unanswered)
    assert (echo.body, echo.headers) == (b"the key ***", {"location": "the key ***"})
    assert KEY not in repr(rubbish)


async def test_closing_ends_idle_connections_now_and_the_others_later() -> None:
    """A call after that is certainly not sent."""
    async with serving() as server, connected(server.url) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.get, "stall", 0.1)
            await eventually(lambda: len(server.served) == 1)
            await client.get("a")
            await client.pool.aclose()
            assert client.books == (1, 0)
        assert client.books == (0, 0)
        outcome = await client.get("a")
        assert isinstance(outcome, NotSent)
        await eventually(lambda: server.open == 0)


@pytest.mark.parametrize("using", ["httpx", "httpcore"])
async def test_mocks_of_respx_see_every_call(using: str) -> None:
    """In either of its ways, and also those that are put in place while connections are open."""
    async with serving() as server, connected(server.url) as client:
        await client.get("a")
        with respx.mock(using=using) as router:
            route = router.get(f"{server.url}/api/executions/a").respond(200, text="mocked")
            assert body_of(await client.get("a")) == b"mocked"
            assert route.calls.last.request.headers["x-api-key"] == KEY
        assert body_of(await client.get("a")) == b"{}"
        assert len(server.served) == 2


PATCHED = [
    (httpx.AsyncClient, "send"),
    (httpx.AsyncClient, "_send_single_request"),
    (httpx.AsyncClient, "_transport_for_url"),
    (httpx.AsyncHTTPTransport, "handle_async_request"),
    (httpcore.AsyncHTTPConnection, "handle_async_request"),
]


@pytest.mark.parametrize(("kind", "method"), PATCHED, ids=lambda each: getattr(each, "__name__", each))
async def test_every_call_goes_where_tools_listen(kind: type, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What traces, records or mocks HTTP puts itself in place of one of these methods, and finds request and body."""
    heard: list[str] = []
    original = getattr(kind, method)

    def listening(*arguments: Any, **options: Any) -> Any:
        heard.append(method)
        return original(*arguments, **options)

    monkeypatch.setattr(kind, method, listening)
    async with serving() as server, connected(server.url) as client:
        await client.get("a")
        await client.attempt(endpoints.submit(Target("workflows", "a"), {"n": 1}))
        assert (heard, len(server.served)) == ([method] * 2, 2)


async def test_tools_find_the_body_of_a_request() -> None:
    """A request can be inspected before it is sent, and has the key by then."""
    seen: list[httpx.Request] = []

    async def look(request: httpx.Request) -> None:
        seen.append(request)

    async with serving() as server, connected(server.url) as client:
        client.http.event_hooks = {"request": [look]}
        await client.attempt(endpoints.submit(Target("workflows", "a"), {"n": 1}))
    assert [(each.content, each.headers["x-api-key"]) for each in seen] == [(b'{"inputs":{"n":1}}', KEY)]


async def _cancel_thousands(cancel: Callable[[Get, int], Awaitable[None]]) -> None:
    async with (
        serving() as server,
        serving("https") as secure,
        connected(server.url) as plain,
        connected(secure.url) as safe,
        connected(server.url.replace("http:", "https:")) as stalled,
    ):
        clients = [plain, safe, stalled]
        for turns in range(30):
            for client in clients:
                for part in ("a", "stall", "stall-in-body"):
                    await cancel(functools.partial(client.get, part), turns)
                    assert client.books[0] == 0
        gc.collect()
        await eventually(lambda: server.open + secure.open == sum(client.books[1] for client in clients))
        assert body_of(await clients[0].get("a")) == body_of(await clients[1].get("a")) == b"{}"
        assert any("executions/a " in head for _, head in server.served)


@pytest.mark.slow
async def test_thousands_of_calls_cancelled_by_scope_leave_nothing_behind() -> None:
    """Cancelled while connecting, shaking hands, sending or reading, every slot and every socket comes back."""
    await _cancel_thousands(cancel_with_a_scope)


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("times", [1, 3])
async def test_thousands_of_calls_cancelled_natively_leave_nothing_behind(times: int) -> None:
    """The same holds for task.cancel(), and when it comes again during the clean-up."""
    await _cancel_thousands(functools.partial(cancel_natively, times=times))


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


async def after_events(*events: str) -> SentTrace:
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
    trace = await after_events(*events)
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
    """The last event proves it, for any transport and any error."""
    trace = await after_events(*events)
    assert not trace.may_have_been_sent(error, transport_is_known=False)
    assert not trace.may_have_been_sent(error, transport_is_known=True)


@pytest.mark.parametrize("events", [[], ["pool.wait.started", "pool.wait.complete"], ["somebody.elses.event"]])
async def test_without_a_usable_event_the_class_decides_and_only_for_known_transports(events: list[str]) -> None:
    """A known transport raises these classes only before sending; an unknown one proves nothing."""
    trace = await after_events(*events)
    for error in PROVES_NOT_SENT:
        assert not trace.may_have_been_sent(error("x"), transport_is_known=True)
        assert trace.may_have_been_sent(error("x"), transport_is_known=False)
    for error in PROVES_NOTHING:
        assert trace.may_have_been_sent(error("x"), transport_is_known=True)
    assert trace.may_have_been_sent(None, transport_is_known=True)


def test_every_transport_error_has_been_thought_about() -> None:
    """A class that httpx adds is examined before it counts as a proof of anything."""

    def tree(error: type[httpx.TransportError]) -> set[type[httpx.TransportError]]:
        return {error}.union(*(tree(child) for child in error.__subclasses__()))

    of_httpx = {error for error in tree(httpx.TransportError) if error.__module__ == "httpx"}
    assert of_httpx <= {*PROVES_NOT_SENT, *PROVES_NOTHING}


async def test_a_class_derived_from_a_proof_is_no_proof() -> None:
    """Another library's ConnectTimeout may well mean that the server has hung up."""

    class ServerDisconnected(httpx.ConnectTimeout):
        pass

    assert (await after_events()).may_have_been_sent(ServerDisconnected("x"), transport_is_known=True)


def answer_late(listener: socket.socket, received: threading.Event, answers: tuple[bytes, ...]) -> None:
    """Answer one request after half a second, piece by piece."""
    connection, _ = listener.accept()
    with connection:
        while not connection.recv(65536).endswith(b"}}"):
            pass
        received.set()
        for piece in answers:
            time.sleep(0.5)
            connection.sendall(piece)
        connection.settimeout(20.0)
        with suppress(OSError):
            connection.recv(1)


@contextlib.contextmanager
def answering_late(*answers: bytes) -> Iterator[tuple[str, threading.Event]]:
    """Serve one request from a thread of its own; yield where, and what is set once the request is there."""
    received = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_late, args=(listener, received, answers))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", received
        thread.join(20)


async def submit_and_freeze(client: httpx.AsyncClient, url: str, received: threading.Event, seconds: float) -> Outcome:
    """Submit within 0.3 s, and block the event loop as soon as the request has arrived."""
    outcomes: list[Outcome] = []
    exchange = Exchange(client, base_url=url, key=Secret(KEY), timeouts=Timeouts(submit=0.3), is_known=True)

    async def submit() -> None:
        outcomes.append(await exchange.attempt(endpoints.submit(Target("workflows", "a"), {}), SentTrace()))

    async with client, anyio.create_task_group() as tasks:
        tasks.start_soon(submit)
        await eventually(received.is_set)
        time.sleep(seconds)  # noqa: ASYNC251  (as a process is that is stopped)
    return outcomes[0]


@pytest.mark.parametrize("is_pooled", [True, False])
async def test_an_answer_that_came_while_the_process_was_frozen_is_read(*, is_pooled: bool) -> None:
    """The time of a paid request is up when the process runs again, and its answer is there: the run is known."""
    client = httpx.AsyncClient(transport=PooledTransport() if is_pooled else None)
    with answering_late(OK) as (url, received):
        assert body_of(await submit_and_freeze(client, url, received, 1.0)) == b"{}"


@pytest.mark.slow
async def test_what_comes_later_than_a_moment_after_a_freeze_is_not_waited_for() -> None:
    """A second later the outcome is open, with what has come of the answer."""
    with answering_late(HALF) as (url, received):
        outcome = await submit_and_freeze(httpx.AsyncClient(transport=PooledTransport()), url, received, 1.0)
    assert isinstance(outcome, Unanswered)
    assert outcome.part == b"half"


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
    return PooledTransport(proxy=read_proxy(proxy))


Through = Callable[[str], httpx.AsyncHTTPTransport]


async def failure(transport: httpx.AsyncHTTPTransport, trace: SentTrace) -> httpx.TransportError:
    """Post something through the proxy, and give the error."""
    async with httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(0.1)) as http:
        with pytest.raises(httpx.TransportError) as caught:
            await http.post("https://behind.test/", extensions={"trace": trace})
    return caught.value


@pytest.mark.slow
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
TO_THE_SERVICE = {"request": httpcore.Request("POST", "https://knouds.ai/")}


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
    await trace(HEADERS, TO_THE_SERVICE)
    assert trace.may_have_been_sent(None, transport_is_known=False)


@pytest.mark.parametrize("event", ["socks.setup_socks5_connection.started", "socks.setup_socks5_connection.failed"])
async def test_what_is_said_to_a_socks_proxy_is_not_our_request(event: str) -> None:
    """Until it has connected on, nothing of ours has left."""
    assert not (await after_events(*CONNECTED, event)).may_have_been_sent(None, transport_is_known=False)


class TooLateError(Exception):
    """What the last word is in these tests."""


class Asked:
    """Refuses when it is called for the nth time."""

    def __init__(self, *, at: int) -> None:
        self.left = at

    def __call__(self) -> None:
        """Refuse, or not yet."""
        self.left -= 1
        if self.left <= 0:
            raise TooLateError


@pytest.mark.parametrize("head", [HEADERS, "http2.send_connection_init.started"])
async def test_a_request_that_was_held_back_is_not_sent_for_good(head: str) -> None:
    """Refused at its first byte it counts as not sent, whatever httpcore reports of its end; and it is never sent."""

    def refuse() -> None:
        raise TooLateError

    trace = SentTrace(refuse)
    await trace(HEADERS, CONNECT)
    for _ in range(2):  # a transport may try again
        with pytest.raises(TooLateError):
            await trace(head, TO_THE_SERVICE)
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
        await trace(HEADERS, TO_THE_SERVICE)
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


async def a_submit_that_is_held_back(
    transport: httpx.AsyncHTTPTransport, *, at: int, inputs: str = "paid"
) -> tuple[Outcome, bytes]:
    """Return what comes of a submit that is refused when asked for the nth time, and what the server heard of it."""
    heard: list[bytes] = []
    outcomes: list[Outcome] = []

    async def listen(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    heard.append(await stream.receive())

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port: int = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610  (not Django's)
    call = endpoints.submit(Target("workflows", "w"), {"product_name": inputs})
    async with listener, anyio.create_task_group() as tasks, httpx.AsyncClient(transport=transport) as http:
        tasks.start_soon(listener.serve, listen)
        exchange = Exchange(
            http,
            base_url=f"http://127.0.0.1:{port}",
            key=Secret(KEY),
            timeouts=Timeouts(),
            is_known=True,
            is_lent=isinstance(transport, PooledTransport),
        )
        outcomes.append(await exchange.attempt(call, SentTrace(Asked(at=at))))
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    return outcomes[0], b"".join(heard)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("transport", [httpx.AsyncHTTPTransport, PooledTransport])
async def test_a_body_that_is_held_back_does_not_follow_its_head(
    transport: Callable[[], httpx.AsyncHTTPTransport],
) -> None:
    """A process that was frozen between the two sends no body: without it nothing runs. The head counts as sent."""
    outcome, heard = await a_submit_that_is_held_back(transport(), at=3)
    assert isinstance(outcome, Unanswered)
    assert b"POST" in heard
    assert b"paid" not in heard


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("transport", [httpx.AsyncHTTPTransport, PooledTransport])
async def test_a_large_body_is_held_back_in_the_middle(transport: Callable[[], httpx.AsyncHTTPTransport]) -> None:
    """It leaves in pieces, and a process that was frozen between two of them sends no more."""
    outcome, heard = await a_submit_that_is_held_back(transport(), at=5, inputs="x" * 1_000_000)
    assert isinstance(outcome, Unanswered)
    assert 50_000 < len(heard) < 500_000


async def test_a_body_that_is_held_back_the_first_time_was_not_sent() -> None:
    """Where a transport shows no events the last word is asked for at the body, and no second body is given."""
    trace = SentTrace(asked := Asked(at=1))
    with pytest.raises(TooLateError):
        trace.before_body()
    assert not trace.may_have_been_sent(TooLateError(), transport_is_known=False)
    trace, asked.left = SentTrace(asked), 2
    trace.before_body()
    with pytest.raises(TooLateError):
        trace.before_body()
    assert trace.may_have_been_sent(TooLateError(), transport_is_known=False)


STEP = 64 * 1024


class Chunks(httpx.AsyncByteStream):
    """A body in the given pieces, that knows whether it was closed and how much of it was asked for."""

    def __init__(self, *chunks: bytes) -> None:
        self.is_closed = False
        self.given = 0
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Return the pieces, unless closed."""
        for chunk in self._chunks:
            if self.is_closed:
                return
            self.given += 1
            yield chunk

    async def aclose(self) -> None:
        """Note it."""
        self.is_closed = True


def answer(*chunks: bytes, encoding: str | None = None) -> httpx.Response:
    """Make a response whose body is still to be read."""
    headers = {} if encoding is None else {"content-encoding": encoding}
    return httpx.Response(200, headers=headers, stream=Chunks(*chunks))


async def read(response: httpx.Response, most: int = 2**25) -> bytes:
    """Return the decoded body of a response."""
    return await read_body(response, response.headers.get("content-encoding", ""), io.BytesIO(), most=most)


@pytest.mark.parametrize("encoding", [None, "", "identity", "Identity"])
async def test_a_plain_body_is_given_as_it_came(encoding: str | None) -> None:
    """Without an encoding the pieces are joined."""
    assert await read(answer(b"one ", b"", b"two", encoding=encoding)) == b"one two"


@pytest.mark.parametrize("encoding", ["gzip", " GZIP "])
async def test_a_gzipped_body_is_inflated(encoding: str) -> None:
    """One gzip member is what we ask for and take."""
    assert await read(answer(gzip.compress(b"hello"), encoding=encoding)) == b"hello"


@pytest.mark.parametrize("encoding", [None, "gzip"])
async def test_an_empty_body_is_empty_whatever_its_label(encoding: str | None) -> None:
    """A 204 or a HEAD may be labelled like the body that it does not have."""
    assert await read(answer(encoding=encoding)) == b""
    assert await read(answer(b"", encoding=encoding)) == b""


@pytest.mark.parametrize("encoding", ["gzip, gzip", "gzip, identity", "br", "deflate", "zstd", "x", "identity,gzip"])
async def test_other_and_stacked_encodings_are_refused_unread(encoding: str) -> None:
    """Only identity and a single gzip are read; the words of the header are not repeated."""
    response = answer(gzip.compress(gzip.compress(b"x")), encoding=encoding)
    with pytest.raises(UnreadableBody, match="content-encoding") as caught:
        await read(response)
    assert response.is_closed
    assert encoding not in caught.value.reason or encoding == "x"


async def test_stacked_encodings_in_two_headers_are_refused() -> None:
    """Two header lines stack just as a comma does."""
    headers = [("content-encoding", "gzip"), ("content-encoding", "gzip")]
    with pytest.raises(UnreadableBody, match="content-encoding"):
        await read(httpx.Response(200, headers=headers, stream=Chunks(b"x")))


@pytest.mark.parametrize("size", [0, 1, STEP - 1, STEP, STEP + 1, 3 * STEP])
async def test_a_body_may_be_exactly_as_long_as_allowed(size: int) -> None:
    """The limit itself is allowed, one byte more is not, plain or gzipped."""
    content = bytes(size)
    for chunk, encoding in ((content, None), (gzip.compress(content), "gzip")):
        assert await read(answer(chunk, encoding=encoding), most=size) == content
        if size:
            with pytest.raises(UnreadableBody, match=f"is longer than {size - 1} bytes"):
                await read(answer(chunk, encoding=encoding), most=size - 1)


async def test_reading_stops_where_the_limit_is_passed() -> None:
    """What is over the limit is not fetched, and the response is closed."""
    body = Chunks(*[b"x" * 10] * 1000)
    response = httpx.Response(200, stream=body)
    with pytest.raises(UnreadableBody):
        await read(response, most=95)
    assert body.given == 10
    assert body.is_closed


async def test_a_gzip_stream_that_never_gets_anywhere_is_refused() -> None:
    """Empty blocks for ever inflate to nothing, but are bounded too."""
    deflate = zlib.compressobj(wbits=31)
    start = deflate.compress(b"") + deflate.flush(zlib.Z_FULL_FLUSH)
    nothing = b"\x00\x00\x00\xff\xff" * 1000
    body = Chunks(start, *[nothing] * 1000)
    with pytest.raises(UnreadableBody, match="more than 1000 bytes"):
        await read(httpx.Response(200, headers={"content-encoding": "gzip"}, stream=body), most=1000)
    assert body.given < 20


@pytest.mark.parametrize("extra", [b"x", gzip.compress(b"more", mtime=0), b"\x00"])
@pytest.mark.parametrize("is_apart", [True, False])
async def test_nothing_may_follow_the_gzip_stream(extra: bytes, *, is_apart: bool) -> None:
    """Neither rubbish nor a second member, in the same piece or in the next."""
    packed = gzip.compress(b"hello")
    chunks = (packed, b"", extra) if is_apart else (packed + extra,)
    with pytest.raises(UnreadableBody, match="after the end"):
        await read(answer(*chunks, encoding="gzip"))


@pytest.mark.parametrize("damaged", [b"no gzip at all", gzip.compress(b"hello", mtime=0)[:-8] + b"\x00" * 8])
async def test_a_damaged_gzip_stream_is_refused(damaged: bytes) -> None:
    """What is no gzip, or fails its checksum, is not given out, and zlib's error is not chained."""
    with pytest.raises(UnreadableBody, match="damaged") as caught:
        await read(answer(damaged, encoding="gzip"))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_gzip_in_any_pieces_comes_back_whole_and_a_part_of_it_never(draws: st.DataObject) -> None:
    """Pieces and steps leave no trace in what is read, and a stream cut anywhere is noticed."""
    unit = draws.draw(st.binary(min_size=1, max_size=50))
    content = unit * draws.draw(st.integers(0, 5000))
    packed = gzip.compress(content, draws.draw(st.integers(0, 9)))
    cut = draws.draw(st.integers(1, len(packed) - 1))
    size = draws.draw(st.integers(1, len(packed)))

    async def unpacked(stream: bytes) -> bytes:
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        return await read(answer(*pieces, encoding="gzip"), most=len(content))

    assert anyio.run(unpacked, packed) == content
    with pytest.raises(UnreadableBody, match="cut off"):
        anyio.run(unpacked, packed[:cut])


async def test_what_was_read_before_us_is_taken_as_read() -> None:
    """An event hook that logs bodies, or a mock, has read the response already: its content counts."""

    async def log(response: httpx.Response) -> None:
        await response.aread()

    def play(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-encoding": "gzip"}, content=gzip.compress(b"hello"))

    transport = httpx.MockTransport(play)
    for hooks in ({}, {"response": [log]}):
        async with httpx.AsyncClient(transport=transport, event_hooks=hooks) as http:
            async with http.stream("GET", "http://mocked.test/") as response:
                assert await read(response) == b"hello"
            async with http.stream("GET", "http://mocked.test/") as response:
                with pytest.raises(UnreadableBody, match="longer"):
                    await read(response, most=4)


async def test_what_was_streamed_away_before_us_cannot_be_read() -> None:
    """When somebody else has consumed the stream there is nothing left to give."""
    response = answer(b"hello")
    async for _ in response.aiter_raw():
        pass
    with pytest.raises(UnreadableBody, match="something else"):
        await read(response)


async def test_transport_errors_pass_through() -> None:
    """A connection that breaks in the body is an error of the transport's."""

    class Broken(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"half"
            raise httpx.ReadError("broken")

    with pytest.raises(httpx.ReadError):
        await read(httpx.Response(200, stream=Broken()))


LIMITED = """
import gzip, io, resource, sys, zlib
import anyio, httpx
from knouds_async._io.exchange import UnreadableBody, read_body

MIB = 1024 * 1024
resource.setrlimit(resource.RLIMIT_AS, (512 * MIB, 512 * MIB))

def zeros(mebibytes):
    deflate = zlib.compressobj(9, wbits=31)
    return b"".join(deflate.compress(bytes(MIB)) for _ in range(mebibytes)) + deflate.flush()

class Body(httpx.AsyncByteStream):
    def __init__(self, content): self.content = content
    async def __aiter__(self): yield self.content

async def main():
    once = zeros(600)
    twice = gzip.compress(once)
    for body, encoding in ((once, "gzip"), (twice, "gzip, gzip"), (bytes(40 * MIB), "identity")):
        response = httpx.Response(200, headers={"content-encoding": encoding}, stream=Body(body))
        try:
            await read_body(response, encoding, io.BytesIO())
        except UnreadableBody as refused:
            print(refused.reason)
    response = httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Body(twice))
    assert await read_body(response, "gzip", io.BytesIO()) == once  # labelled once, inflated once
    response = httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Body(zeros(32)))
    assert len(await read_body(response, "gzip", io.BytesIO())) == 32 * MIB
    with open("/proc/self/status") as status:  # ru_maxrss would count what the parent held when it forked
        print(next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM")))

anyio.run(main)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_bombs_stay_in_small_memory() -> None:
    """Bodies that inflate to more than the process may have are refused, and those within bounds are still read."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    *reasons, peak = done.stdout.splitlines()
    assert reasons == [
        f"is longer than {32 * 1024 * 1024} bytes",
        "has a content-encoding other than identity or a single gzip",
        f"is longer than {32 * 1024 * 1024} bytes",
    ]
    assert int(peak) < 200


REFUSED = os.strerror(errno.ECONNREFUSED)


def caused_by(error: Exception, *causes: BaseException) -> Exception:
    """Return an error that came from others, one below the other."""
    last: BaseException = error
    for cause in causes:
        last.__cause__ = cause
        last = cause
    return error


CERT = ssl.SSLCertVerificationError(1, "certificate verify failed")
CERT.verify_message = "self-signed certificate"
GROUP = ExceptionGroup(
    "many",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "x"),
        OSError(errno.ENETUNREACH, "x"),
        OSError(errno.ECONNREFUSED, "y"),
    ],
)


@pytest.mark.parametrize(
    ("causes", "words"),
    [
        ([ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 1)")], REFUSED),
        ([OSError("All failed"), GROUP], f"{REFUSED}; {os.strerror(errno.ENETUNREACH)}"),
        ([socket.gaierror(socket.EAI_NONAME, "Name or service not known")], "the name is not known: Name or service"),
        ([ValueError("x"), CERT], "TLS: certificate verify failed: self-signed certificate"),
        ([ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")], "TLS: "),
        ([ValueError("x")], ""),
        ([], ""),
    ],
)
def test_what_lies_below_an_error_is_named(causes: list[BaseException], words: str) -> None:
    """However deep it lies, each reason once."""
    found = causes_of(caused_by(OSError("All connection attempts failed"), *causes))
    assert found.startswith(words)
    assert bool(found) is bool(words)


def test_what_an_error_says_itself_is_not_said_twice() -> None:
    """A reason that stands in the text already is left out; a ring of causes ends."""
    error = caused_by(OSError(f"[Errno 111] {REFUSED}"), ConnectionRefusedError(errno.ECONNREFUSED, "x"))
    assert causes_of(error) == ""
    error.__cause__ = caused_by(ValueError("x"), error)
    assert causes_of(error) == ""


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Return a port where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_refused_connection_says_so(closed_port: int, anyio_backend: str) -> None:
    """A port where nothing listens: the error names the reason and the address."""
    url = f"http://127.0.0.1:{closed_port}"
    async with AsyncKnouds("knouds_live_x", base_url=url, retries=Retries(attempts=1)) as knouds:
        with pytest.raises(ConnectionFailedError, match=REFUSED) as caught:
            await knouds.whoami()
    assert url in str(caught.value)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_proxy_that_is_not_there_is_named_by_its_host(
    closed_port: int,
    anyio_backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host and port of the proxy stand in the error, and neither its user nor its password."""
    monkeypatch.setenv("HTTPS_PROXY", f"http://canary:canary@127.0.0.1:{closed_port}")
    knouds = AsyncKnouds("knouds_live_x", base_url="https://knouds.example", retries=Retries(attempts=1))
    async with knouds:
        with pytest.raises(ConnectionFailedError, match=f"through the proxy 127.0.0.1:{closed_port}") as caught:
            await knouds.workflows.submit("a", {})
    assert "canary" not in str(caught.value)
    assert REFUSED in str(caught.value)


ITS_KEY = "knouds_live_test_0123456789"
UNKNOWN = trustme.CA()


class CountingServer:
    """A TLS counting_server whose handshakes are counted."""

    url = ""
    handshakes = 0


@pytest.fixture
async def counting_server() -> AsyncIterator[CountingServer]:
    """Serve TLS with a certificate of an unknown authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    UNKNOWN.issue_cert("127.0.0.1").configure_cert(context)
    found = CountingServer()

    async def handle(stream: ByteStream) -> None:
        found.handshakes += 1
        try:
            with suppress(anyio.BrokenResourceError, anyio.EndOfStream, ssl.SSLError):
                await TLSStream.wrap(stream, server_side=True, ssl_context=context, standard_compatible=False)
        finally:
            await anyio.aclose_forcefully(stream)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.listeners[0].extra(SocketAttribute.local_port)  # noqa: S610  (no Django)
        found.url = f"https://127.0.0.1:{port}"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, handle)
            yield found
            tasks.cancel_scope.cancel()


async def test_an_unknown_authority_is_tried_once(counting_server: CountingServer) -> None:
    """The error of the call names the variable, is no passing fault, and is not tried again."""
    async with AsyncKnouds(ITS_KEY, base_url=counting_server.url) as knouds:
        for call in (knouds.whoami(), knouds.workflows.submit("a", {})):
            before = counting_server.handshakes
            with pytest.raises(ConnectionFailedError, match="SSL_CERT_FILE") as caught:
                await call
            assert caught.value.is_lasting
            assert not caught.value.may_have_run
            assert str(caught.value).count("SSL_CERT_FILE") == 1
            await anyio.sleep(0.1)
            assert counting_server.handshakes == before + 1


async def test_a_batch_does_not_wait_for_it(counting_server: CountingServer) -> None:
    """A batch takes an unknown authority for no outage: its jobs were not run, and it ends."""
    async with AsyncKnouds(ITS_KEY, base_url=counting_server.url) as knouds:
        found = await knouds.models.gather("gpt-image-2", [{"prompt": "a"}, {"prompt": "b"}])
    assert [type(outcome) for outcome in found] == [NotRun, NotRun]


@pytest.mark.slow
async def test_an_authority_that_is_named_is_believed(counting_server: CountingServer) -> None:
    """With the authority in an ssl_context of the caller's the handshake comes about."""
    context = ssl.create_default_context()
    UNKNOWN.configure_trust(context)
    async with AsyncKnouds(ITS_KEY, base_url=counting_server.url, ssl_context=context) as knouds:
        with pytest.raises(Exception, match="GET /api/whoami") as caught:
            await knouds.whoami()
    assert not getattr(caught.value, "is_lasting", False)


def test_whose_errors_show_what_was_sent() -> None:
    """Of clients that are lent, exactly httpx's own transports are trusted; any other, a subclass or a mount is not."""

    class Subclass(httpx.AsyncHTTPTransport):
        pass

    mock = httpx.MockTransport(lambda request: httpx.Response(200))
    assert is_stock(httpx.AsyncClient(transport=httpx.AsyncHTTPTransport()))
    assert not is_stock(httpx.AsyncClient(transport=mock))
    assert not is_stock(httpx.AsyncClient(transport=Subclass()))
    assert not is_stock(httpx.AsyncClient(mounts={"https://": mock}))


@pytest.mark.parametrize("is_lent", [False, True])
async def test_only_a_client_of_our_own_is_closed(is_lent: bool) -> None:
    """A client that is lent stays open for its owner."""
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200))) as http:
        exchange = Exchange(
            http,
            base_url="https://knouds.test",
            key=Secret(KEY),
            timeouts=Timeouts(),
            is_known=False,
            is_lent=is_lent,
        )
        await exchange.aclose()
        assert http.is_closed is not is_lent


async def test_what_a_lent_client_adds_is_what_it_has_by_now() -> None:
    """Its headers and cookies may change from call to call."""
    seen: list[tuple[str | None, str | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.headers.get("x-owner"), request.headers.get("cookie")))
        return httpx.Response(200, json={"user": {}})

    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http,
        AsyncKnouds(ITS_KEY, base_url="https://knouds.test", http_client=http) as knouds,
    ):
        await knouds.whoami()
        http.headers["x-owner"] = "me"
        await knouds.whoami()
        for cookie in ("c", "d"):
            http.cookies.set("session", cookie)
            await knouds.whoami()
    assert seen == [(None, None), ("me", None), ("me", "session=c"), ("me", "session=d")]


async def test_a_lent_client_that_was_closed_has_sent_nothing() -> None:
    """Also one that has a way of its own to send, of which nothing else could be said."""

    class Own(httpx.AsyncClient):
        async def send(self, *arguments: Any, **options: Any) -> httpx.Response:
            return await super().send(*arguments, **options)

    http = Own(transport=httpx.MockTransport(lambda _: httpx.Response(200)))
    await http.aclose()
    retries = Retries(attempts=1)
    async with AsyncKnouds(ITS_KEY, base_url="https://knouds.test", http_client=http, retries=retries) as knouds:
        with pytest.raises(ConnectionFailedError, match="the HTTP client is closed"):
            await knouds.workflows.submit("a", {"n": 1})
