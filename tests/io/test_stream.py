"""The socket below a connection: what is set on it, what closing it does, and which errors leave it."""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
import struct
import sys
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.abc
import httpcore
import httpx
import pytest

from knouds_async._io.pool import Stream
from knouds_async._sansio import endpoints
from knouds_async._sansio.retry import Unanswered
from knouds_async.config import Timeouts
from knouds_async.types import Target
from tests.io.scripted import Client, connected, eventually, serving

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the options and the reset are looked at as Linux has them")
SUBMIT = endpoints.submit(Target("workflows", "a"), {})
STALL = endpoints.run(Target("workflows", "stall"), {})


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
    """Look at the sockets that are opened."""
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
    """Return the URL of a port whose system takes connections and what its buffers hold, and nobody reads it."""
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
    """Its connection ends in a reset: what is in buffers here is thrown away and tried again by nobody."""
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
        raw = stream._tcp
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
    idle = client.pool._pool.inner.idle.oldest()
    assert idle is not None
    assert isinstance(idle._stream, Stream)
    return idle._stream


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncios_queue_is_where_it_is_looked_for() -> None:
    """Bytes beyond what was asked for wait in anyio's stream on asyncio, which shows them to nobody else."""
    async with serving() as server:
        stream = await Stream.connect("127.0.0.1", int(server.url.rpartition(":")[2]), 5.0)
        await stream.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await stream.read(10, 5.0)
        assert stream.has_unread()
        while stream.has_unread():
            await stream.read(10, 5.0)
        assert not stream.get_extra_info("is_readable")
        stream.close()


async def test_a_read_ends_with_its_time() -> None:
    """httpx has its own ReadTimeout, and the connection goes."""
    async with serving() as server, connected(server.url, timeouts=Timeouts(read=0.05)) as client:
        http = httpx.AsyncClient(transport=client.pool)
        with pytest.raises(httpx.ReadTimeout):
            await http.get(f"{server.url}/api/executions/stall", timeout=0.05)
        assert client.books == (0, 0)
