"""One attempt of a call over our own pool, against a scripted HTTP/1.1 server on a real port, in real time."""

from __future__ import annotations

import asyncio
import functools
import gc
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import attrs
import httpcore
import httpx
import pytest
import respx

from knouds_async._sansio import endpoints
from knouds_async._sansio.responses import Answer
from knouds_async._sansio.retry import Garbled, NotSent, Outcome, Unanswered
from knouds_async.config import Timeouts
from knouds_async.types import Target
from tests.io.scripted import KEY, body_of, connected, eventually, serving

HURRIED = Timeouts(connect=0.05)


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
    always = {f"Host: {server.url[7:]}", "Accept: application/json", "Accept-Encoding: gzip", "User-Agent: test"}
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
    async with serving() as server, connected(server.url, timeouts=Timeouts(read=0.05)) as client:
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
        outcome = await client.get(part, total=0.05)
        assert isinstance(outcome, Unanswered)
        assert "within 0.05 s" in outcome.seen
        assert outcome.part == (b"half" if part == "stall-in-body" else b"")
        assert client.books == (0, 0)
        await eventually(lambda: server.open == 0)


async def test_a_paid_call_may_be_silent_for_as_long_as_it_may_take() -> None:
    """The time of a single read does not cut a run that is still going on."""
    async with serving() as server, connected(server.url, timeouts=Timeouts(read=0.01, run=0.1)) as client:
        outcome = await client.attempt(endpoints.run(Target("workflows", "stall"), {}))
        assert isinstance(outcome, Unanswered)
        assert "within 0.1 s" in outcome.seen


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
async def test_a_connection_that_is_over_is_never_used(part: str) -> None:
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
    """Should httpcore rename what is looked into, nothing unseen can be taken for an answer."""
    async with serving() as server, connected(server.url) as client:
        await client.get("a")
        idle = client.pool._pool.inner.idle.oldest()
        assert idle is not None
        assert not idle._has_more()
        idle._http = object()  # type: ignore[assignment,misc]
        assert idle._has_more()


@pytest.mark.parametrize("clock", ["loop", "steady", "boot", "wall"])
async def test_a_paid_call_trusts_only_a_connection_just_used(clock: str) -> None:
    """One that was idle for a while, by any clock (a laptop that slept), may be dead: was the run begun, then?"""
    submit = endpoints.submit(Target("workflows", "a"), {})
    async with serving() as server, connected(server.url) as client:
        await client.get("a")
        await client.attempt(submit)
        assert server.opened == 1
        idle = client.pool._pool.inner.idle.oldest()
        assert idle is not None
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
    """A request can be looked into before it is sent, and its key is in it by then."""
    seen: list[httpx.Request] = []

    async def look(request: httpx.Request) -> None:
        seen.append(request)

    async with serving() as server, connected(server.url) as client:
        client.http.event_hooks = {"request": [look]}
        await client.attempt(endpoints.submit(Target("workflows", "a"), {"n": 1}))
    assert [(each.content, each.headers["x-api-key"]) for each in seen] == [(b'{"inputs":{"n":1}}', KEY)]


# Cancellation: at every turn of the event loop that a call takes, in every way it can be cancelled.

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


async def _cancel_thousands(cancel: Callable[[Get, int], Awaitable[None]]) -> None:
    async with (
        serving() as server,
        serving("https") as secure,
        connected(server.url) as plain,
        connected(secure.url) as safe,
        connected(server.url.replace("http:", "https:")) as stalled,
    ):
        clients = [plain, safe, stalled]
        for turns in range(60):
            for client in clients:
                for part in ("a", "stall", "stall-in-body"):
                    await cancel(functools.partial(client.get, part), turns % 30)
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
