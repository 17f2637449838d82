"""Proxies: what the environment names, what they refuse, and calls through them, which any cancellation may end."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from urllib.parse import urlsplit

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
import respx
from anyio.streams.tls import TLSListener

from knouds_async import AsyncKnouds, Completed, ConfigurationError, ConnectionFailedError, Outcome, Retries
from knouds_async._io import proxy as ours
from knouds_async._io.pool import PooledTransport, own_client
from knouds_async._io.proxy import is_bypassed, name_of, proxy_for, read_proxy
from knouds_async._sansio import endpoints
from knouds_async._sansio.responses import Answer
from knouds_async._sansio.retry import NotSent, Unanswered
from knouds_async.config import Timeouts
from knouds_async.testing import Emulator, serve
from knouds_async.types import Target
from tests.io.proxies import SPEAK, Proxy, copy, proxying
from tests.io.scripted import (
    AUTHORITY,
    WAVE,
    Client,
    Get,
    Server,
    body_of,
    cancel_natively,
    cancel_with_a_scope,
    connected,
    eventually,
    serving,
    shown_by,
)

pytest.importorskip("socksio")
REAL_TIME = True  # sockets know no other
KEY = "knouds_live_test_0123456789"
PASSWORD = "s3cr/et#word"
SUBMIT = endpoints.submit(Target("workflows", "a"), {})
HURRIED = Timeouts(connect=0.2)
SCHEMES = ["http", "https"]


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({}, "https://knouds.ai", None),
        ({"HTTPS_PROXY": "http://p:3128"}, "https://knouds.ai", "http://p:3128"),
        ({"https_proxy": "http://p:3128"}, "https://knouds.ai/prefix", "http://p:3128"),
        ({"HTTPS_PROXY": "p:3128"}, "https://knouds.ai", "http://p:3128"),
        ({"HTTPS_PROXY": ""}, "https://knouds.ai", None),
        ({"ALL_PROXY": "http://all:1"}, "https://knouds.ai", "http://all:1"),
        ({"ALL_PROXY": "all:1"}, "https://knouds.ai", "http://all:1"),
        ({"ALL_PROXY": "socks5://all:1", "HTTPS_PROXY": "http://p:1"}, "https://knouds.ai", "http://p:1"),
        ({"HTTP_PROXY": "http://p:3128"}, "https://knouds.ai", None),
        ({"HTTP_PROXY": "http://p:3128"}, "http://inner.example", "http://p:3128"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "knouds.ai"}, "https://knouds.ai", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": ".knouds.ai"}, "https://api.knouds.ai", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "other.ai, knouds.ai"}, "https://api.knouds.ai", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, "https://knouds.ai", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "knouds.ai:8443"}, "https://knouds.ai:8443", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "knouds.ai:443"}, "https://knouds.ai", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "knouds.ai:8443"}, "https://knouds.ai", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "nouds.ai"}, "https://knouds.ai", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "other.ai"}, "https://knouds.ai", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "ALL_PROXY": "http://p:2"}, "https://localhost:8000", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://127.0.0.1:8000", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://[::1]:8000", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "2001:db8::1"}, "https://[2001:db8::1]", None),
        ({"HTTPS_PROXY": "http://p:1", "https_proxy": ""}, "https://knouds.ai", None),
        ({"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, "http://inner.example", None),
        ({"HTTPS_PROXY": "http://user:p%40ss@p:1/"}, "https://knouds.ai", "http://p:1"),
    ],
)
def test_the_environment_names_the_proxy(
    environment: dict[str, str], url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The usual variables count, and no proxy is asked to reach this machine."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = proxy_for(url)
    assert (found and f"{found.url.scheme.decode()}://{name_of(found)}") == proxy


@pytest.mark.parametrize(
    ("entries", "host", "port", "is_named"),
    [
        ("*.knouds.ai", "api.knouds.ai", 443, True),
        ("*.knouds.ai", "a.api.knouds.ai", 443, True),
        ("*.knouds.ai", "knouds.ai", 443, False),
        ("*.knouds.ai:8443", "api.knouds.ai", 443, False),
        ("KNOUDS.ai", "Knouds.AI.", 443, True),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("10.1.2.3/8", "10.9.9.9", 443, True),
        ("10.0.0.0/8", "10.example", 443, False),
        ("192.168.0.1", "192.168.0.1", 443, True),
        ("168.0.1", "192.168.0.1", 443, False),
        ("2001:db8::/32", "2001:db8::5", 443, True),
        ("[2001:db8::]/32", "2001:db8::5", 443, True),
        ("[2001:db8::5]", "2001:db8::5", 443, True),
        ("[2001:db8::5]:8443", "2001:db8::5", 8443, True),
        ("[2001:db8::5]:8443", "2001:db8::5", 443, False),
        ("2001:0db8:0::5", "2001:db8::5", 443, True),
        ("2001:db8::/32", "10.0.0.1", 443, False),
        ("a.example b.example", "b.example", None, True),
        (" , ,", "b.example", 443, False),
        ("*.", "b.example", 443, False),
        ("10.0.0.0/99", "10.0.0.1", 443, False),
    ],
)
def test_who_goes_without_a_proxy(entries: str, host: str, port: int | None, is_named: bool) -> None:
    """Names, names below, addresses, ranges, IPv6 in brackets; a port binds an entry to it."""
    assert is_bypassed(entries, host, port) is is_named


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (f"http://user:{PASSWORD}@p:3128", "percent-encoded"),
        ("http://user:pass\n@p:3128", "line ends"),
        ("http://p:3128\n", "line ends"),
        ('"http://p:3128"', "quotes"),
        ("'http://p:3128'", "quotes"),
        ("http://p:31 28", "spaces"),
        ("http://user:pässword@p:3128", "no URL has"),
        ("http://", "http://host:port"),
        ("http://:3128", "http://host:port"),
        ("http://p:99999", "http://host:port"),
        ("http://p:port", "http://host:port"),
        ("http://p/pac?x", "http://host:port"),
        ("http://user:s3cr@256.1.1.1:1", "http://host:port"),
        ("http://user:s3cr@[v1.x]:1", "http://host:port"),
        (f"http://user:s3cr@{'p' * 70_000}:1", "http://host:port"),
        (f"user:{PASSWORD}@p", "http://host:port"),
        ("socks4://p:1080", "'socks4'"),
        ("s3cr:et://p:1080", "must be one of"),
    ],
)
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "all_proxy"])
def test_a_proxy_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    """The constructor names the variable and what is wrong, and shows no part of what may be a password."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=said) as caught:
        AsyncKnouds(KEY)
    assert f"${name}" in str(caught.value)
    assert "s3cr" not in shown_by(caught.value)
    assert "pass\n" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "ALL_PROXY"])
def test_socks_without_its_package_is_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A SOCKS proxy says at once which package it needs."""
    monkeypatch.setenv(name, f"socks5://user:{PASSWORD.replace('/', '').replace('#', '')}@p:1080")
    monkeypatch.setattr(ours, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match="socksio") as caught:
        AsyncKnouds(KEY)
    assert f"${name}" in str(caught.value)
    assert "s3cr" not in str(caught.value)
    AsyncKnouds(KEY, base_url="http://127.0.0.1:1")  # no proxy is asked to reach this machine


def is_proxied(url: str) -> bool:
    """Return whether our client goes through a proxy to a base URL."""
    transport = own_client(url, ssl_context=None, connections=7)._transport
    assert isinstance(transport, PooledTransport)
    return transport._pool._proxied_by is not None


@pytest.mark.parametrize(
    ("variable", "url", "expected"),
    [
        ("HTTPS_PROXY", "https://knouds.ai", True),
        ("https_proxy", "https://knouds.ai", True),
        ("ALL_PROXY", "https://knouds.ai", True),
        ("HTTP_PROXY", "https://knouds.ai", False),
        ("HTTPS_PROXY", "https://127.0.0.1:8000", False),
        ("HTTPS_PROXY", "http://localhost:8000", False),
    ],
)
def test_a_proxy_of_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch, variable: str, url: str, expected: bool
) -> None:
    """With a proxy for the scheme it is gone through; the loopback is never proxied."""
    monkeypatch.setenv(variable, "http://proxy.test:3128")
    assert is_proxied(url) is expected


def test_no_proxy_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that $NO_PROXY names is reached directly."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv("NO_PROXY", "knouds.ai")
    assert not is_proxied("https://knouds.ai")


@contextlib.asynccontextmanager
async def behind(
    kind: str, scheme: str, *, user: str | None = None, login: str | None = None, timeouts: Timeouts | None = None
) -> AsyncGenerator[tuple[Server, Proxy, Client]]:
    """Return a server, a proxy before it and a client that goes through that; `login`: what it says of itself."""
    async with serving(scheme) as server, proxying(kind, urlsplit(server.url).port or 0, user=user) as proxy:
        url = proxy.url if login is None else proxy.url.replace("//", f"//{login}@")
        async with connected(f"{scheme}://knouds.test", proxy=url, timeouts=timeouts) as client:
            yield server, proxy, client


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", SPEAK)
@pytest.mark.parametrize("user", [None, "who:pass word"])
async def test_calls_go_through_the_proxy_and_share_a_connection(kind: str, scheme: str, user: str | None) -> None:
    """The proxy resolves the name and gets the credentials, and one connection serves calls in a row."""
    async with behind(kind, scheme, user=user) as (server, proxy, client):
        assert body_of(await client.get("a")) == b"{}"
        assert body_of(await client.get("big")) == b"x" * 900_000
        assert isinstance(await client.attempt(SUBMIT), Answer)
        assert (server.opened, len(proxy.asked), client.books) == (1, 1, (0, 1))
        assert "knouds.test" in proxy.asked[0]
    assert not any("Proxy-Authorization" in head for _, head in server.served if scheme == "https")


@pytest.mark.parametrize("kind", SPEAK)
async def test_no_log_shows_a_proxys_password(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Also at the level at which httpcore logs each step of a connection."""
    caplog.set_level(logging.DEBUG)
    async with behind(kind, "http", user="who:s3cr-word") as (_, _, client):
        assert isinstance(await client.attempt(SUBMIT), Answer)
    assert "httpcore" in {record.name.partition(".")[0] for record in caplog.records}
    assert "s3cr" not in caplog.text


@pytest.mark.parametrize("kind", ["http", "https"])
async def test_an_address_of_ipv6_is_asked_for_in_brackets(kind: str) -> None:
    """Of a proxy that makes a tunnel: without them nobody knows where the port begins."""
    async with (
        serving() as server,
        proxying(kind, urlsplit(server.url).port or 0) as proxy,
        connected("https://[2001:db8::1]:8443", proxy=proxy.url) as client,
    ):
        assert isinstance(await client.attempt(SUBMIT), NotSent)
    assert "[2001:db8::1]:8443" in proxy.asked[0]


async def test_a_connection_that_is_late_in_the_step_in_which_it_is_made_was_sent_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Frozen while it reads the proxy's last answer, a process has sent nothing, or continues as if it had not been."""
    socks = pytest.importorskip("socksio.socks5").SOCKS5Connection
    receive = socks.receive_data

    def freeze(self: object, data: bytes) -> object:
        if len(data) >= 10:
            time.sleep(0.3)
        return receive(self, data)

    monkeypatch.setattr(socks, "receive_data", freeze)
    async with behind("socks5", "http", timeouts=HURRIED) as (server, _, client):
        outcome = await client.attempt(SUBMIT)
    assert isinstance(outcome, NotSent | Answer)
    assert len(server.served) == isinstance(outcome, Answer)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", SPEAK)
async def test_a_paid_call_gets_a_fresh_connection_behind_a_proxy_too(kind: str, scheme: str) -> None:
    """One that was idle for a while is not trusted with it."""
    async with behind(kind, scheme) as (server, _, client):
        await client.get("a")
        client.pool._pool.fresh_within = -1.0
        await client.attempt(SUBMIT)
        assert server.opened == 2


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", SPEAK)
@pytest.mark.parametrize("part", ["twice", "twice-in-records", "twice-when-full"])
async def test_a_stray_answer_is_discarded_behind_a_proxy_too(kind: str, scheme: str, part: str) -> None:
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
        b"\5\4\0\1\0\0\0\0\0\0": "Host unreachable",
        b"\5\2\0\1\0\0\0\0\0\0": "Connection not allowed by ruleset",
        b"\5\5\0\1\0\0\0\0\0\0": "Connection refused",
        b"\5\5": "Malformed reply",
        b"HTTP/1.1 400 Bad Work\r\n\r\n": "Malformed reply",
        b"": "Malformed reply",
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


@pytest.mark.slow
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
    """Nor does the error show the credentials."""
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
    assert f"no connection through the proxy {urlsplit(proxy.url).netloc.rpartition('@')[2]}" in outcome.seen
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


async def _cancel_thousands(kind: str, cancel: Callable[[Get, int], Awaitable[None]]) -> None:
    """Cancel 1 680 calls: with those of the other backend and way, 5 040 behind each kind of proxy."""
    parts = ("a", "stall", "stall-in-body")
    for scheme in SCHEMES:
        async with behind(kind, scheme) as (server, proxy, client):
            for turns in range(28):
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
    await _cancel_thousands(kind, cancel_with_a_scope)


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("kind", ["http", "socks5"])
async def test_thousands_of_calls_cancelled_natively_behind_a_proxy_leave_nothing_behind(kind: str) -> None:
    """The same holds for task.cancel(), when it comes again during the clean-up."""
    await _cancel_thousands(kind, functools.partial(cancel_natively, times=3))


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
async def test_a_batch_continues_when_the_proxy_lets_it_through_again(
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


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://proxy.test", "proxy.test:80"),
        ("https://user:s3cret@proxy.test", "proxy.test:443"),
        ("http://user:s3cret@proxy.test:3128", "proxy.test:3128"),
        ("socks5://user:s3cret@proxy.test", "proxy.test:1080"),
        ("socks5h://proxy.test:9050", "proxy.test:9050"),
    ],
)
def test_a_proxy_is_named_without_its_credentials(url: str, name: str) -> None:
    """What may be shown of a proxy is its host and port; user and password are only for the proxy itself."""
    proxy = read_proxy(url)
    assert name_of(proxy) == name
    assert "s3cret" not in f"{proxy} {proxy!r}"
    assert proxy.auth == ((b"user", b"s3cret") if "@" in url else None)


@pytest.mark.parametrize("url", ["ftp://proxy.test", "proxy.test", "socks4://proxy.test"])
def test_what_is_no_proxy_is_refused(url: str) -> None:
    """The scheme has to be one that is spoken."""
    with pytest.raises(ValueError, match="proxy"):
        read_proxy(url)
