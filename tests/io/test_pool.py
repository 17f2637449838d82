"""Our own HTTP client: what the environment names, proxies, sockets, and a pool that survives any cancellation."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import os
import socket
import ssl
import struct
import subprocess
import sys
import traceback
import zipapp
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.abc
import anyio.lowlevel
import httpcore
import httpx
import pytest
import respx
from anyio.streams.tls import TLSListener

import knouds_async
from knouds_async import AsyncKnouds, Completed, ConfigurationError, ConnectionFailedError, Outcome, Retries
from knouds_async._io import pool as ours
from knouds_async._io.exchange import SentTrace
from knouds_async._io.pool import PooledTransport, Stream, is_bypassed, name_of, own_client, proxy_for, read_proxy
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
    received,
    serving,
)

REAL_TIME = True  # sockets know no other
KEY = "knouds_live_test_0123456789"
PASSWORD = "s3cr/et#word"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from an environment that names no proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


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


def shown_by(error: BaseException) -> str:
    """Return what an error shows, with the local variables of all frames but the test's."""
    frames = traceback.TracebackException.from_exception(error, capture_locals=True).stack[1:]
    assert frames
    return "".join([*traceback.StackSummary.from_list(frames).format(), str(error), repr(error)])


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


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_certificates_that_are_not_there_are_an_error(
    monkeypatch: pytest.MonkeyPatch, name: str, tmp_path: Path
) -> None:
    """A missing file or folder of certificates, and one that holds none, is named with its variable."""
    wrong = tmp_path / "no-such.pem"
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv(name, str(wrong))
    monkeypatch.setenv("HTTPS_PROXY", "http://user:s3cret@p:1")
    monkeypatch.setenv("KNOUDS_KEY", KEY)
    with pytest.raises(ConfigurationError, match=f"{name} names .*no-such.pem") as caught:
        AsyncKnouds()
    assert "s3cret" not in shown_by(caught.value)
    assert KEY not in shown_by(caught.value)
    wrong.write_text("no certificate")
    with pytest.raises(ConfigurationError, match=f"{name} names"):
        AsyncKnouds(KEY)
    AsyncKnouds(KEY, ssl_context=ssl.create_default_context())
    AsyncKnouds(KEY, base_url="http://127.0.0.1:1")


def test_a_key_log_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Python writes the keys of TLS connections where $SSLKEYLOGFILE says, so that is named, too."""
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "no-such" / "keys"))
    with pytest.raises(ConfigurationError, match=r"\$SSLKEYLOGFILE names .*no-such"):
        AsyncKnouds(KEY)


@pytest.mark.parametrize("given", [True, "ca.pem", ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)])
@pytest.mark.parametrize("http_client", [None, httpx.AsyncClient(verify=False)])  # noqa: S501  (it is not used)
def test_an_ssl_context_that_is_none_is_refused(given: Any, http_client: Any) -> None:
    """Anything but a client's SSL context is refused when the client is built, not by each call."""
    with pytest.raises(ConfigurationError, match="ssl_context="):
        AsyncKnouds(KEY, ssl_context=given, http_client=http_client)


def test_plain_http_loads_no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """To a service without TLS no TLS context is made: it takes longer than all the rest of a client."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a TLS context was made")

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", refuse)
    monkeypatch.setattr(ssl, "create_default_context", refuse)
    AsyncKnouds(KEY, base_url="http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://p:1")
    AsyncKnouds(KEY, base_url="http://inner.example", allow_insecure_http=True)


def test_a_copy_without_metadata_runs(tmp_path: Path) -> None:
    """Vendored or in a zip, without `.dist-info`, the package builds a client and knows its version."""
    source, copy = Path(knouds_async.__file__).parent, tmp_path / "app"
    (copy / "knouds_async").parent.mkdir()
    for path in source.rglob("*"):
        if path.suffix in (".py", ".json") and "__pycache__" not in path.parts:
            (copy / "knouds_async" / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (copy / "knouds_async" / path.relative_to(source)).write_bytes(path.read_bytes())
    (copy / "__main__.py").write_text(
        "import importlib.metadata\n"
        "def missing(name): raise importlib.metadata.PackageNotFoundError(name)\n"
        "importlib.metadata.version = missing\n"
        "from knouds_async import AsyncKnouds, __file__, __version__\n"
        f"AsyncKnouds({KEY!r})\n"
        "print(__file__, __version__)\n"
    )
    zipapp.create_archive(copy, tmp_path / "app.pyz")
    command = [sys.executable, str(tmp_path / "app.pyz")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": ""})  # noqa: S603
    assert "app.pyz" in done.stdout
    assert done.stdout.split()[-1] == knouds_async.__version__


PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def transport_for(url: str, context: ssl.SSLContext | None = None) -> PooledTransport:
    """Return the transport of our client for a base URL."""
    transport = own_client(url, ssl_context=context, connections=7)._transport
    assert isinstance(transport, PooledTransport)
    return transport


def is_proxied(url: str) -> bool:
    """Return whether our client goes through a proxy to a base URL."""
    return transport_for(url)._pool._proxied_by is not None


def test_without_a_proxy_it_is_our_pool() -> None:
    """The pool of our own is used, with the caller's TLS context."""
    assert transport_for("https://knouds.ai", ssl.create_default_context())._pool._proxied_by is None


def test_httpx_still_keeps_its_pool_where_ours_is_put() -> None:
    """The one private name of httpx that our transport fills: `AsyncHTTPTransport` asks it for every request."""
    assert isinstance(httpx.AsyncHTTPTransport()._pool, httpcore.AsyncConnectionPool)
    assert isinstance(transport_for("https://knouds.ai")._pool, httpcore.AsyncConnectionPool)
    assert PooledTransport.handle_async_request is httpx.AsyncHTTPTransport.handle_async_request


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


def test_redirects_and_the_environment_are_off() -> None:
    """Our client follows no redirect and picks up no credentials of the environment."""
    client = own_client("https://knouds.ai", ssl_context=None, connections=1)
    assert not client.follow_redirects
    assert not client.trust_env


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the options and the reset are looked at as Linux has them")
SUBMIT = endpoints.submit(Target("workflows", "a"), {})
STALL = endpoints.run(Target("workflows", "stall"), {})


class Sockets:
    """Remembers the sockets that were opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[Any] = []
        connect = Stream.connect

        async def remembering(host: str, port: int, timeout: float | None) -> Stream:
            stream = await connect(host, port, timeout)
            self.opened.append(stream.get_extra_info("socket"))
            return stream

        monkeypatch.setattr(Stream, "connect", remembering)

    def option(self, level: int, name: int) -> int:
        """Return an option of the socket opened last."""
        value: int = self.opened[-1].getsockopt(level, name)
        return value

    def linger(self) -> tuple[int, int]:
        """Return whether the socket opened last lingers, and how long."""
        on, seconds = struct.unpack("ii", self.opened[-1].getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
        return on, seconds

    def patience(self) -> int:
        """Return the milliseconds after which the system gives up what is not acknowledged; 0: as it always does."""
        return self.option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Sockets:
    """Record the sockets that are opened."""
    return Sockets(monkeypatch)


@LINUX
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_every_connection_is_kept_alive(scheme: str, sockets: Sockets) -> None:
    """After a minute of silence the system asks: a NAT would forget a run that says nothing for minutes."""
    async with serving(scheme) as server, connected(server.url) as client:
        await client.get("a")
        assert sockets.option(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sockets.option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


@LINUX
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("is_reused", [False, True])
async def test_a_paid_request_is_given_up_where_it_is_not_delivered(
    scheme: str, sockets: Sockets, *, is_reused: bool
) -> None:
    """Within 30 s, and at once when the socket closes or its process dies; neither holds for other requests."""
    async with serving(scheme) as server, connected(server.url) as client:
        if is_reused:
            await client.get("a")
            assert (sockets.linger()[0], sockets.patience()) == (0, 0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.attempt, STALL, 20.0)
            await eventually(lambda: len(server.served) == 1 + is_reused)
            assert (sockets.linger(), sockets.patience()) == ((1, 0), 30_000)
            tasks.cancel_scope.cancel()
        await client.attempt(SUBMIT)
        assert (sockets.linger()[0], sockets.patience()) == (0, 0)  # answered, it closes as others do


@LINUX
async def test_what_was_delivered_may_be_silent_for_long(sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single probe that is lost must not end a run of many minutes: the 30 s are for the request alone."""
    monkeypatch.setattr("knouds_async._io.pool._DELIVERED", 0.02)
    async with serving() as server, connected(server.url) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.attempt, STALL, 20.0)
        await eventually(lambda: len(server.served) == 1)
        await eventually(lambda: sockets.patience() == 0)
        assert sockets.linger() == (1, 0)
        tasks.cancel_scope.cancel()


@LINUX
async def test_what_was_not_delivered_is_waited_for_no_longer_than_that(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the other end has not taken all, the 30 s stand."""
    monkeypatch.setattr("knouds_async._io.pool._DELIVERED", 0.01)
    inputs = {"text": "x" * 8_000_000}  # more than the buffers on the way hold
    with deaf() as (url, _):
        async with connected(url) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(client.attempt, endpoints.submit(Target("workflows", "a"), inputs), 20.0)
            await eventually(lambda: bool(sockets.opened))
            await anyio.sleep(0.1)
            assert sockets.patience() == 30_000
            tasks.cancel_scope.cancel()


@contextlib.contextmanager
def deaf() -> Iterator[tuple[str, socket.socket]]:
    """Return the URL of a port where the system accepts connections and fills its buffers, and nothing reads them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10.0)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", listener


def heard_by(listener: socket.socket) -> tuple[int, type[OSError] | None]:
    """Read now what was sent to a port: how many bytes there are, and which error ended them, if any."""
    there, _ = listener.accept()
    count = 0
    with there:
        there.settimeout(10.0)
        try:
            while piece := there.recv(1_000_000):
                count += len(piece)
        except OSError as error:
            return count, type(error)
    return count, None


@LINUX
@pytest.mark.parametrize("size", [1, 8_000_000])
async def test_a_paid_request_that_was_not_taken_is_not_delivered_once_it_is_given_up(size: int) -> None:
    """Its connection ends in a reset: what is in buffers here is discarded and never sent."""
    submit = endpoints.submit(Target("workflows", "a"), {"text": "x" * size})
    with deaf() as (url, listener):
        async with connected(url) as client:
            outcome = await client.attempt(submit, 0.3)
            assert isinstance(outcome, Unanswered)
            await anyio.sleep(0.05)  # asyncio lets go of its sockets one turn later
        count, error = heard_by(listener)
    assert error is ConnectionResetError
    assert count < 8_000_000


async def test_faults_of_tls_are_httpcores_errors() -> None:
    """A record that makes no sense, and an end of TLS while we send, are faults of the network as others are."""
    async with serving("https") as server, connected(server.url) as client:
        await client.get("a")
        stream = _stream(client)
        raw = stream.tcp
        with contextlib.suppress(OSError):
            raw.socket.shutdown(socket.SHUT_RDWR)
        with pytest.raises((httpcore.WriteError, httpcore.ReadError)):
            for _ in range(5):
                await stream.write(b"x" * 100_000, 5.0)
                if await stream.read(10, 5.0) == b"":
                    raise httpcore.ReadError

    class Broken:
        async def receive(self, most: int) -> bytes:
            raise ssl.SSLError("bad record")

        async def send(self, item: bytes) -> None:
            raise anyio.EndOfStream

    stream._stream = Broken()  # type: ignore[assignment]
    with pytest.raises(httpcore.ReadError, match="bad record"):
        await stream.read(10)
    with pytest.raises(httpcore.WriteError):
        await stream.write(b"x")


def _stream(client: Client) -> Stream:
    idle = client.pool._pool.idle[0]
    assert isinstance(idle._stream, Stream)
    return idle._stream


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncios_queue_is_where_it_is_read() -> None:
    """Bytes beyond what was asked for wait in anyio's stream on asyncio, where nothing else can see them."""
    async with serving() as server:
        stream = await Stream.connect("127.0.0.1", int(server.url.rpartition(":")[2]), 5.0)
        await stream.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await stream.read(10, 5.0)
        assert stream.has_unread()
        while stream.has_unread():
            await stream.read(10, 5.0)
        assert not stream.get_extra_info("is_readable")
        await stream.aclose()


async def test_a_read_ends_with_its_time() -> None:
    """httpx has its own ReadTimeout, and the connection goes."""
    async with serving() as server, connected(server.url) as client:
        http = httpx.AsyncClient(transport=client.pool)
        with pytest.raises(httpx.ReadTimeout):
            await http.get(f"{server.url}/api/executions/stall", timeout=httpx.Timeout(20.0, read=0.05))
        assert client.books == (0, 0)


OKAY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BIG = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000
HALF_A_BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"
ANSWERS = {
    "then-close": (OKAY, "hang up"),
    "close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", "hang up"),
    "reset": (b"", "hang up"),
    "stall": (b"", "stall"),
    "stall-in-body": (HALF_A_BODY, "stall"),
    "truncated": (HALF_A_BODY, "hang up"),
    "drip": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "drip"),
    "nonsense": (b"nonsense\r\n\r\n", "hang up"),
    "big": (BIG, "go on"),
}
TIMEOUT = httpx.Timeout(20.0)


class AnsweringServer:
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
        head, body = await received(stream)
        path = head.split()[1]
        self.served.append((number, path))
        self.bodies.append(body)
        return await self._play(stream, path)

    async def _play(self, stream: anyio.abc.SocketStream, path: str) -> bool:
        """Answer; say whether the connection stays open."""
        part = path.removeprefix("/").split("/")[0]
        if part == "when-told":
            await self.go.wait()
        answer, then = ANSWERS.get(part, (OKAY, "go on"))
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
async def answering() -> AsyncGenerator[AnsweringServer]:
    """Serve on a free port of the loopback until the block ends."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    server = AnsweringServer(port_of(listener))
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, server.connection)
        yield server
        tasks.cancel_scope.cancel()


def in_use(transport: PooledTransport) -> int:
    """Count the slots that are taken."""
    return transport._pool.in_use


def idle(transport: PooledTransport) -> int:
    """Count the connections kept for reuse."""
    return len(transport._pool.idle)


async def expect_ok(http: httpx.AsyncClient, url: str) -> None:
    """Get an ordinary answer."""
    response = await http.get(url)
    assert (response.status_code, response.content) == (200, b"ok")


async def test_requests_in_a_row_share_one_connection() -> None:
    """A connection whose response was read is used again."""
    async with answering() as server, httpx.AsyncClient(transport=PooledTransport()) as http:
        for _ in range(5):
            await expect_ok(http, server.url)
        assert server.opened == 1


async def test_a_body_arrives_whole() -> None:
    """What is posted and what is answered arrive unchanged, whatever their size."""
    async with answering() as server, httpx.AsyncClient(transport=PooledTransport()) as http:
        response = await http.post(f"{server.url}/big", content=b"y" * 200_000)
        assert response.content == b"x" * 300_000
        assert server.bodies == [b"y" * 200_000]


async def test_the_connection_used_last_is_used_first() -> None:
    """Idle connections are a stack, so that those not needed any more can expire."""
    async with answering() as server, httpx.AsyncClient(transport=PooledTransport()) as http:
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
    async with answering() as server, httpx.AsyncClient(transport=transport) as http:
        for number in range(1, 6):
            await expect_ok(http, f"{server.url}/then-close")
            await eventually(lambda: server.open == 0)
            await anyio.sleep(0.01)  # for the news to cross the loopback
            assert server.opened == number
        assert (in_use(transport), idle(transport)) == (0, 1)


async def test_a_connection_the_server_will_close_is_not_kept() -> None:
    """After "Connection: close" nothing is kept."""
    transport = PooledTransport()
    async with answering() as server, httpx.AsyncClient(transport=transport) as http:
        await expect_ok(http, f"{server.url}/close")
        assert (in_use(transport), idle(transport)) == (0, 0)


async def test_expired_connections_are_closed_by_a_request_to_anywhere() -> None:
    """Idle connections to an origin that is no longer used do not stay open for ever."""
    transport = PooledTransport()
    transport._pool.expiry = 0.02
    async with answering() as left, answering() as other, httpx.AsyncClient(transport=transport) as http:
        await expect_ok(http, left.url)
        assert left.open == 1
        await anyio.sleep(0.05)
        await expect_ok(http, other.url)
        await eventually(lambda: left.open == 0)
        assert idle(transport) == 1


async def test_an_expired_connection_is_not_used() -> None:
    """After the keep-alive time a request opens a new connection."""
    transport = PooledTransport()
    transport._pool.expiry = 0.02
    async with answering() as server, httpx.AsyncClient(transport=transport) as http:
        await expect_ok(http, server.url)
        await anyio.sleep(0.05)
        await expect_ok(http, server.url)
        assert server.opened == 2


async def test_a_fresh_request_uses_only_a_fresh_connection() -> None:
    """A paid submit opens a new connection rather than trust one that has been idle for a while; others reuse it."""
    transport = PooledTransport()
    transport._pool.fresh_within = 0.02
    fresh = {"knouds.fresh": True}
    async with answering() as server, httpx.AsyncClient(transport=transport) as http:
        await http.post(f"{server.url}/1", extensions=fresh)
        await anyio.sleep(0.05)
        await http.get(f"{server.url}/2", extensions={"knouds.fresh": False})
        await anyio.sleep(0.05)
        await http.post(f"{server.url}/3", extensions=fresh)
        assert server.served == [(1, "/1"), (1, "/2"), (2, "/3")]


async def test_a_fresh_request_uses_the_connection_that_was_just_used() -> None:
    """A burst of paid submits does not open a connection for each."""
    transport = PooledTransport()
    transport._pool.fresh_within = 20.0
    async with answering() as server, httpx.AsyncClient(transport=transport) as http:
        for _ in range(3):
            await http.post(server.url, extensions={"knouds.fresh": True})
        assert server.opened == 1


async def test_idle_connections_count_towards_the_limit() -> None:
    """Opening one more closes the connection that has been idle the longest, to wherever it leads."""
    transport = PooledTransport(limit=2)
    async with (
        answering() as one,
        answering() as two,
        answering() as three,
        httpx.AsyncClient(transport=transport) as http,
    ):
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
    timeout = httpx.Timeout(20.0, read=0.3)
    async with answering() as server, httpx.AsyncClient(transport=transport, timeout=timeout) as http:
        with pytest.raises(expected) as caught:
            await http.post(f"{server.url}{path}", extensions={"trace": trace})
        assert type(caught.value) is expected
        assert trace.may_have_been_sent(caught.value, transport_is_known=True)
        assert (in_use(transport), idle(transport)) == (0, 0)
        await eventually(lambda: server.open == 0)
        await expect_ok(http, server.url)


async def test_a_refused_connection_was_certainly_not_sent() -> None:
    """Where nothing listens nothing is sent, and the slot is free again."""
    async with answering() as gone:
        url = gone.url
    transport = PooledTransport(limit=1)
    trace = SentTrace()
    async with httpx.AsyncClient(transport=transport) as http:
        for _ in range(3):
            with pytest.raises(httpx.ConnectError) as caught:
                await http.post(url, extensions={"trace": trace})
            assert not trace.may_have_been_sent(caught.value, transport_is_known=False)
        assert in_use(transport) == 0


def allow_connections(monkeypatch: pytest.MonkeyPatch, server: AnsweringServer, most: int) -> None:
    """Allow this process to connect while it has fewer connections than that; then it has no file descriptor left."""
    connect = anyio.connect_tcp

    async def limited(*args: Any) -> Any:
        if server.open >= most:
            try:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            except OSError as error:
                raise OSError("All connection attempts failed") from error
        stream = await connect(*args)
        await eventually(lambda: server.open > 0)
        return stream

    monkeypatch.setattr(anyio, "connect_tcp", limited)


async def test_without_a_file_descriptor_left_the_pool_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that cannot connect for lack of descriptors waits for a connection of ours, and is no error."""
    async with answering() as server, httpx.AsyncClient(transport=PooledTransport(), timeout=TIMEOUT) as http:
        allow_connections(monkeypatch, server, 3)
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(expect_ok, http, f"{server.url}/when-told")
            await eventually(lambda: len(server.served) == 3)
            for _ in range(20):
                tasks.start_soon(expect_ok, http, server.url)
            await anyio.wait_all_tasks_blocked()
            assert len(server.served) == 3
            server.go.set()
        assert len(server.served) == 23


async def test_without_a_connection_of_ours_a_shortage_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others hold all descriptors there is nothing to wait for; idle connections are closed first."""
    transport = PooledTransport()
    async with answering() as server, answering() as other, httpx.AsyncClient(transport=transport) as http:
        await expect_ok(http, other.url)
        allow_connections(monkeypatch, server, 0)
        with pytest.raises(httpx.ConnectError):
            await http.get(server.url)
        await eventually(lambda: other.open == 0)
        assert in_use(transport) == idle(transport) == 0


async def test_a_shortage_leaves_descriptors_to_others_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """So long eight connections fewer are open, in use or idle; who waits for one then gets it."""
    transport, url = PooledTransport(), "/when-told"
    async with answering() as server, httpx.AsyncClient(transport=transport, timeout=TIMEOUT) as http:
        allow_connections(monkeypatch, server, 12)
        async with anyio.create_task_group() as tasks:
            for _ in range(12):
                tasks.start_soon(expect_ok, http, server.url + url)
            await eventually(lambda: len(server.served) == 12)
            tasks.start_soon(expect_ok, http, server.url + url)
            await anyio.wait_all_tasks_blocked()
            server.go.set()
        assert in_use(transport) + idle(transport) <= 4
        server.go = anyio.Event()
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(expect_ok, http, server.url + url)
            await eventually(lambda: in_use(transport) == 4)
            await anyio.wait_all_tasks_blocked()
            assert in_use(transport) == 4
            monkeypatch.setattr(ours, "_SHORT", 0.0)
            await eventually(lambda: in_use(transport) == 10)
            server.go.set()


async def test_a_stalled_tls_handshake_was_certainly_not_sent() -> None:
    """A time-out while connecting closes the socket, and nothing has been sent."""
    transport = PooledTransport(limit=1, ssl_context=ssl.create_default_context())
    trace = SentTrace()
    async with answering() as server, httpx.AsyncClient(transport=transport, timeout=0.05) as http:
        with pytest.raises(httpx.ConnectTimeout) as caught:
            await http.post(server.url.replace("http:", "https:"), extensions={"trace": trace})
        assert not trace.may_have_been_sent(caught.value, transport_is_known=False)
        assert in_use(transport) == 0
        await eventually(lambda: server.open == 0)


async def test_a_server_that_does_not_speak_tls_cannot_be_connected_to() -> None:
    """Nonsense in the handshake is a ConnectError."""
    transport = PooledTransport(ssl_context=ssl.create_default_context())
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


@pytest.mark.parametrize("path", ["/big", "/stall-in-body", "/drip", "/"])
async def test_a_body_that_is_not_read_costs_its_connection(path: str) -> None:
    """Leaving a response before its end closes the connection, and frees the slot for the next request."""
    transport = PooledTransport(limit=1)
    async with answering() as server, httpx.AsyncClient(transport=transport, timeout=TIMEOUT) as http:
        async with http.stream("GET", f"{server.url}{path}"):
            assert in_use(transport) == 1
        assert (in_use(transport), idle(transport)) == (0, 0)
        await eventually(lambda: server.open == 0)
        await expect_ok(http, server.url)


async def test_a_body_left_in_the_middle_costs_its_connection() -> None:
    """The transport's own stream leaves no unfinished generator behind, and cannot be read any further."""
    transport = PooledTransport(limit=1)
    async with answering() as server:
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
    """A failure or a cancellation while reading frees the slot, even if the response is not closed."""
    transport = PooledTransport(limit=1)
    path = "stall-in-body" if is_cancelled else "truncated"
    async with answering() as server:
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
    async with answering() as server, httpx.AsyncClient(transport=transport, timeout=TIMEOUT) as http:
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
    async with answering() as server, httpx.AsyncClient(transport=PooledTransport()) as http:
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
    async with answering() as server:
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


@pytest.mark.slow
async def test_thousands_of_requests_cancelled_by_scope_leave_nothing_behind() -> None:
    """Cancelled while waiting, connecting, sending or reading, every slot and every socket comes back."""
    await _cancel_at_each_turn(cancel_with_a_scope)


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("times", [1, 3])
async def test_thousands_of_requests_cancelled_natively_leave_nothing_behind(times: int) -> None:
    """The same holds for task.cancel(), which no shield keeps out, and when it comes again during the clean-up."""
    await _cancel_at_each_turn(functools.partial(cancel_natively, times=times))


TURNS = 80  # all requests that are answered at all are answered after some fifty; with four tests 16,000 requests


async def _cancel_at_each_turn(cancel: Callable[[Get, int], Awaitable[None]]) -> None:
    limit = WAVE
    transport = PooledTransport(limit=limit, ssl_context=ssl.create_default_context())
    seen: set[str] = set()

    async def pausing(event: str, details: object) -> None:
        seen.add(event)
        await anyio.lowlevel.checkpoint()

    async with answering() as server, httpx.AsyncClient(transport=transport, timeout=TIMEOUT) as http:
        secure = server.url.replace("http:", "https:")
        paused = [f"{server.url}/", secure]
        plain = [f"{server.url}/", f"{server.url}/stall", f"{server.url}/stall-in-body"]
        requests = [functools.partial(_get, http, url, trace=pausing) for url in paused]
        requests += [functools.partial(_get, http, url, trace=None) for url in plain]
        for turns in range(TURNS):
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


pytest.importorskip("socksio")
HURRIED = Timeouts(connect=0.2)
SCHEMES = ["http", "https"]


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
