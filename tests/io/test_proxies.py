"""Calls behind HTTP and SOCKS proxies: over the pool that serves without one, with the same proofs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
import respx
from anyio.streams.tls import TLSListener

from knouds_async import AsyncKnouds, Completed, ConnectionFailedError, Outcome, Retries
from knouds_async._sansio import endpoints
from knouds_async._sansio.responses import Answer
from knouds_async._sansio.retry import NotSent, Unanswered
from knouds_async.config import Timeouts
from knouds_async.testing import Emulator, serve
from knouds_async.types import Target
from tests.io.proxies import SPEAK, Proxy, copy, proxying
from tests.io.scripted import AUTHORITY, Client, Server, body_of, connected, eventually, serving

pytest.importorskip("socksio")

SUBMIT = endpoints.submit(Target("workflows", "a"), {})
HURRIED = Timeouts(connect=0.2)
SCHEMES = ["http", "https"]


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


@contextlib.asynccontextmanager
async def behind(
    kind: str, scheme: str, *, user: str | None = None, login: str | None = None, timeouts: Timeouts | None = None
) -> AsyncGenerator[tuple[Server, Proxy, Client]]:
    """Return a server, a proxy before it and a client that goes through that; `login`: what it says of itself."""
    async with serving(scheme) as server, proxying(kind, urlsplit(server.url).port or 0, user=user) as proxy:
        url = proxy.url if login is None else proxy.url.replace("//", f"//{login}@")
        async with connected(f"{scheme}://knouds.test", proxy=url, timeouts=timeouts) as client:
            yield server, proxy, client


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", SPEAK)
@pytest.mark.parametrize("user", [None, "who:pass word"])
async def test_calls_go_through_the_proxy_and_share_a_connection(kind: str, scheme: str, user: str | None) -> None:
    """The name is looked up by the proxy, which is told who asks, and one connection serves calls in a row."""
    async with behind(kind, scheme, user=user) as (server, proxy, client):
        assert body_of(await client.get("a")) == b"{}"
        assert body_of(await client.get("big")) == b"x" * 900_000
        assert isinstance(await client.attempt(SUBMIT), Answer)
        assert (server.opened, len(proxy.asked), client.books) == (1, 1, (0, 1))
        assert "knouds.test" in proxy.asked[0]
    assert not any("Proxy-Authorization" in head for _, head in server.served if scheme == "https")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", SPEAK)
async def test_a_paid_call_gets_a_fresh_connection_behind_a_proxy_too(kind: str, scheme: str) -> None:
    """One that was idle for a while is not trusted with it."""
    async with behind(kind, scheme) as (server, _, client):
        await client.get("a")
        idle = client.pool._pool.inner.idle.oldest()
        assert idle is not None
        client.pool._pool.inner._fresh_within = -1.0
        await client.attempt(SUBMIT)
        assert server.opened == 2


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", SPEAK)
@pytest.mark.parametrize("part", ["twice", "twice-in-records", "twice-when-full"])
async def test_a_stray_answer_is_nobodys_behind_a_proxy_too(kind: str, scheme: str, part: str) -> None:
    """What came behind an answer is never taken for the answer to a paid call."""
    async with behind(kind, scheme) as (server, _, client):
        await client.get(part)
        await anyio.sleep(0.05)  # for what the proxy passes on in pieces
        outcome = await client.attempt(SUBMIT)
        assert isinstance(outcome, Answer)
        assert (outcome.status, server.opened) == (200, 2)


REFUSALS = {
    "http": {
        b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n": "407 Proxy Authentication Required",
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nno!!": "403 Forbidden",
        b"HTTP/1.1 503 Service Unavailable\r\n\r\n<html>": "503 Service Unavailable",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n": "ProxyError",
        b"nonsense\r\n\r\n": "illegal status line",
        b"HTTP/1.1 200 Connection established\r\n\r\n": "ConnectError",
        b"": "disconnected",
    },
    "socks5": {
        b"\5\4\0\1\0\0\0\0\0\0": "host unreachable",
        b"\5\2\0\1\0\0\0\0\0\0": "connection not allowed by ruleset",
        b"\5\5\0\1\0\0\0\0\0\0": "connection refused",
        b"\5\5": "does not speak SOCKS 5",
        b"HTTP/1.1 400 Bad Request\r\n\r\n": "does not speak SOCKS 5",
        b"": "hung up",
    },
}


@pytest.mark.parametrize(
    ("kind", "refusal", "words"), [(kind, *each) for kind, all_ in REFUSALS.items() for each in all_.items()]
)
async def test_a_tunnel_that_is_refused_was_certainly_not_sent(kind: str, refusal: bytes, words: str) -> None:
    """It says what the proxy said, names it by its host, and leaves nothing open; the next call may get through."""
    async with behind(kind, "https", user="who:SECRET") as (server, proxy, client):
        proxy.refusal = refusal
        outcome = await client.attempt(SUBMIT)
        assert isinstance(outcome, NotSent)
        assert words in outcome.seen
        assert "SECRET" not in outcome.seen
        assert client.books == (0, 0)
        await eventually(lambda: proxy.open == 0)
        assert server.served == []
        proxy.refusal = None
        assert isinstance(await client.attempt(SUBMIT), Answer)


@pytest.mark.parametrize("kind", SPEAK)
@pytest.mark.parametrize("refusal", [b"", b"HTTP/1.1 200 OK\r\n\r\n", b"\5\0\0\1\0\0\0\0\0\0"])
async def test_a_proxy_that_falls_silent_was_sent_nothing(kind: str, refusal: bytes) -> None:
    """The time for connecting ends it, also a paid call's whose answer might take long."""
    async with behind(kind, "https", timeouts=HURRIED) as (server, proxy, client):
        proxy.refusal, proxy.hangs_up = refusal, False
        outcome = await client.attempt(endpoints.run(Target("workflows", "a"), {}))
        assert isinstance(outcome, NotSent)
        await eventually(lambda: proxy.open == 0)
        assert server.served == []


@pytest.mark.parametrize("kind", SPEAK)
@pytest.mark.parametrize("login", ["who:wrong", None])
async def test_a_proxy_that_does_not_know_us_was_sent_nothing(kind: str, login: str | None) -> None:
    """Nor does the error show what it was told."""
    async with serving("https") as server, proxying(kind, urlsplit(server.url).port or 0, user="who:right") as proxy:
        host = urlsplit(proxy.url).netloc.rpartition("@")[2]
        url = f"{kind}://{host}" if login is None else f"{kind}://{login}@{host}"
        async with connected("https://knouds.test", proxy=url) as client:
            outcome = await client.attempt(SUBMIT)
    assert isinstance(outcome, NotSent)
    assert host in outcome.seen
    assert "wrong" not in outcome.seen


@pytest.mark.parametrize("kind", SPEAK)
async def test_a_proxy_that_is_not_there_is_named_by_its_host(kind: str) -> None:
    """Nothing was sent, and the user sees that it is the proxy that cannot be reached."""
    async with proxying(kind, 1, user="who:SECRET") as proxy:
        pass
    async with connected("https://knouds.test", proxy=proxy.url) as client:
        outcome = await client.attempt(SUBMIT)
    assert isinstance(outcome, NotSent)
    assert f"no connection to the proxy {urlsplit(proxy.url).netloc.rpartition('@')[2]}" in outcome.seen
    assert "SECRET" not in outcome.seen


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", SPEAK)
async def test_what_a_tunnel_carried_may_have_run(kind: str, scheme: str) -> None:
    """Once our own request has left, a proxy that dies proves nothing."""
    async with behind(kind, scheme) as (server, _, client):
        outcome = await client.attempt(endpoints.submit(Target("workflows", "reset"), {}))
        assert isinstance(outcome, Unanswered)
        assert len(server.served) == 1


@pytest.mark.parametrize("refusal", [b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", b""])
async def test_a_plain_request_that_a_proxy_had_may_have_been_passed_on(refusal: bytes) -> None:
    """Without a tunnel the request is in the proxy's hands."""
    async with behind("http", "http") as (_, proxy, client):
        proxy.refusal = refusal
        assert not isinstance(await client.attempt(SUBMIT), NotSent)


@pytest.mark.parametrize("kind", SPEAK)
@pytest.mark.parametrize("using", ["httpx", "httpcore"])
async def test_mocks_of_respx_see_calls_behind_a_proxy(kind: str, using: str) -> None:
    """As calls of the service: no proxy is asked for anything."""
    async with connected("https://knouds.test", proxy=f"{kind}://127.0.0.1:1") as client:
        with respx.mock(using=using) as router:
            router.get("https://knouds.test/api/executions/a").respond(200, text="mocked")
            assert body_of(await client.get("a")) == b"mocked"


# Cancellation: as without a proxy, at every turn of the event loop that a call takes.

Get = Callable[[], Coroutine[Any, Any, object]]
Cancel = Callable[[Get, int], Awaitable[None]]
WAVE = 10


async def by_scope(get: Get, turns: int) -> None:
    """Cancel a wave of calls through anyio after some turns of the loop."""
    async with anyio.create_task_group() as tasks:
        for _ in range(WAVE):
            tasks.start_soon(get)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()


async def natively(get: Get, turns: int) -> None:
    """Cancel a wave of calls with task.cancel(), and again while they are still cleaning up."""
    tasks = [asyncio.ensure_future(get()) for _ in range(WAVE)]
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()
    for _ in range(3):
        for task in tasks:
            task.cancel()
        await anyio.lowlevel.checkpoint()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [outcome for outcome in outcomes if isinstance(outcome, Exception)] == []


async def _cancel_thousands(kind: str, cancel: Cancel) -> None:
    """Cancel 3 500 calls: with those of the other two backends and ways, 10 000 behind each kind of proxy."""
    parts = ("a", "stall", "stall-in-body")
    for scheme in SCHEMES:
        async with behind(kind, scheme) as (server, proxy, client):
            for turns in range(3500 // WAVE // len(parts) // len(SCHEMES) + 1):
                for part in parts:
                    await cancel(functools.partial(client.get, part), 3 * turns)
                    assert client.books[0] == 0
            gc.collect()
            await eventually(lambda: server.open == proxy.open == client.books[1])
            async with anyio.create_task_group() as tasks:
                for _ in range(WAVE):
                    tasks.start_soon(_expect_answer, client)


async def _expect_answer(client: Client) -> None:
    assert body_of(await client.get("a")) == b"{}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["http", "socks5"])
async def test_thousands_of_calls_cancelled_behind_a_proxy_leave_nothing_behind(kind: str) -> None:
    """Cancelled while the tunnel is asked for, in the handshake, sending or reading, every socket comes back."""
    await _cancel_thousands(kind, by_scope)


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("kind", ["http", "socks5"])
async def test_thousands_of_calls_cancelled_natively_behind_a_proxy_leave_nothing_behind(kind: str) -> None:
    """The same holds for task.cancel(), when it comes again during the clean-up."""
    await _cancel_thousands(kind, natively)


# The whole client behind a proxy of the environment.


@contextlib.asynccontextmanager
async def in_tls(url: str) -> AsyncGenerator[int]:
    """Serve what a port serves in plain over TLS as well, as knouds.test; give the port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert("knouds.test").configure_cert(context)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port: int = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610  (not Django's)

    async def relay(stream: anyio.abc.ByteStream) -> None:
        there = await anyio.connect_tcp("127.0.0.1", urlsplit(url).port or 0)
        async with stream, there, anyio.create_task_group() as tasks:
            tasks.start_soon(copy, stream, there, tasks.cancel_scope)
            tasks.start_soon(copy, there, stream, tasks.cancel_scope)

    secure = TLSListener(listener, context, standard_compatible=False)
    async with secure, anyio.create_task_group() as tasks:
        tasks.start_soon(secure.serve, relay)
        yield port
        tasks.cancel_scope.cancel()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "refusal"),
    [
        ("http", b"HTTP/1.1 503 Service Unavailable\r\n\r\n"),
        ("http", b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"),
        ("socks5", b"\5\4\0\1\0\0\0\0\0\0"),
    ],
)
async def test_a_batch_goes_on_when_the_proxy_lets_it_through_again(
    kind: str, refusal: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While tunnels are refused it pauses, and no job is unknown; each runs once in the end."""
    emulator, outcomes = Emulator(tier="enterprise", duration=0.01), list[Outcome]()
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    async with serve(emulator) as url, in_tls(url) as port, proxying(kind, port) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        proxy.refusal = refusal

        async def relent() -> None:
            await eventually(lambda: len(proxy.asked) >= 3)
            proxy.refusal = None

        retries = Retries(attempts=1)
        async with (
            anyio.create_task_group() as tasks,
            AsyncKnouds(
                emulator.api_key, base_url="https://knouds.test", ssl_context=context, retries=retries
            ) as knouds,
        ):
            with pytest.raises(ConnectionFailedError) as caught:
                await knouds.workflows.submit("my-thumbnail-pipeline", {"product_name": "x"})
            assert not caught.value.may_have_run
            tasks.start_soon(relent)
            jobs = [{"product_name": str(number)} for number in range(20)]
            outcomes = await knouds.workflows.gather("my-thumbnail-pipeline", jobs, validate=False)
    assert [type(outcome) for outcome in outcomes] == [Completed] * 20
    assert len(emulator.runs) == 20
