"""Our own HTTP client: certificates, sockets, and a pool that survives any cancellation."""

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
import zipapp
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import httpcore
import httpx
import pytest
import respx

import knouds_async
from knouds_async import AsyncKnouds, ConfigurationError
from knouds_async._io import pool as ours
from knouds_async._io.exchange import SentTrace
from knouds_async._io.pool import PooledTransport, Stream, own_client
from knouds_async._sansio import endpoints
from knouds_async._sansio.retry import Unanswered
from knouds_async.types import Target
from tests.io.scripted import (
    WAVE,
    Client,
    Get,
    cancel_natively,
    cancel_with_a_scope,
    connected,
    eventually,
    received,
    serving,
    shown_by,
)

REAL_TIME = True  # sockets know no other
KEY = "knouds_live_test_0123456789"


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


def transport_for(url: str, context: ssl.SSLContext | None = None) -> PooledTransport:
    """Return the transport of our client for a base URL."""
    transport = own_client(url, ssl_context=context, connections=7)._transport
    assert isinstance(transport, PooledTransport)
    return transport


def test_without_a_proxy_it_is_our_pool() -> None:
    """The pool of our own is used, with the caller's TLS context."""
    assert transport_for("https://knouds.ai", ssl.create_default_context())._pool._proxied_by is None


def test_httpx_still_keeps_its_pool_where_ours_is_put() -> None:
    """The one private name of httpx that our transport fills: `AsyncHTTPTransport` asks it for every request."""
    assert isinstance(httpx.AsyncHTTPTransport()._pool, httpcore.AsyncConnectionPool)
    assert isinstance(transport_for("https://knouds.ai")._pool, httpcore.AsyncConnectionPool)
    assert PooledTransport.handle_async_request is httpx.AsyncHTTPTransport.handle_async_request


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
async def test_a_request_that_follows_a_silence_is_given_up_as_well(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy may take long to make a tunnel: what is then written has its 30 s all the same."""
    monkeypatch.setattr("knouds_async._io.pool._DELIVERED", 0.02)
    async with serving() as server:
        stream = await Stream.connect("127.0.0.1", int(server.url.rpartition(":")[2]), 5.0)
        stream.guard(on=True)
        with pytest.raises(httpcore.ReadTimeout):
            await stream.read(100, 0.1)
        assert sockets.patience() == 0
        await stream.write(b"POST")
        assert sockets.patience() == 30_000
        stream.close()


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
        with contextlib.suppress(OSError):
            stream.socket.shutdown(socket.SHUT_RDWR)
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
