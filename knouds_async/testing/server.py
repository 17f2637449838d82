"""A small HTTP/1.1 server on a loopback port that performs an emulator's faults on real sockets.

The emulator decides, this reads, waits, writes and breaks connections.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import anyio
import attrs
import h11
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.stapled import MultiListener

from knouds_async.testing.asgi import background_tasks
from knouds_async.testing.emulator import Emulator
from knouds_async.testing.messages import Broken, Later, Request, Response, Wire

__all__ = ["serve"]

_DISCONNECTED = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, h11.ProtocolError)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_READ_SIZE = 65_536
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to


@asynccontextmanager
async def serve(
    emulator: Emulator, *, host: str = "127.0.0.1", port: int = 0, serves_media: bool = False
) -> AsyncIterator[str]:
    """Serve an emulator while the block runs; yields the base URL. Needs real time.

    Webhooks are delivered meanwhile. `port` 0 takes a free one. `serves_media`: the files of results as well, on a port
    of their own, for they are of another origin (contract 12); the emulator's `media_url` is set to it. Leaving the
    block closes every connection at once.
    OSError when the port is taken or the host is not this machine's.
    """
    listener = await anyio.create_tcp_listener(local_host=host, local_port=port)
    names = [host, *(await _machine_names() if host in _EVERYWHERE else ())]
    async with listener, emulator.delivering(), AsyncExitStack() as stack, background_tasks() as tasks:
        tasks.start_soon(listener.serve, partial(_serve_connection, emulator, names))
        if serves_media:
            files = await stack.enter_async_context(await anyio.create_tcp_listener(local_host=host))
            tasks.start_soon(files.serve, partial(_serve_connection, emulator, names, only="/media/"))
            emulator.media_url = f"{_url(host, files)}/media"
        yield _url(host, listener)


async def _machine_names() -> list[str]:
    """Return the name of this machine, and its full name where that can be found."""
    name = socket.gethostname()
    try:
        found = await anyio.getaddrinfo(name, 0, flags=socket.AI_CANONNAME)
    except OSError:
        return [name]
    return [name, *(canonical for *_, canonical, _ in found if canonical)]


def _url(host: str, listener: MultiListener[SocketStream]) -> str:
    port: int = listener.extra(SocketAttribute.local_port)  # noqa: S610 - anyio's, not Django's
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


async def _serve_connection(emulator: Emulator, names: Sequence[str], stream: SocketStream, *, only: str = "/") -> None:
    connection = _Connection(stream, names)
    try:
        while await _serve_request(emulator, connection, only):
            connection.wire.start_next_cycle()
    except _DISCONNECTED:
        pass
    finally:
        await anyio.aclose_forcefully(stream)


async def _serve_request(emulator: Emulator, connection: _Connection, only: str) -> bool:
    """Read one request and answer it; return whether the connection can be reused. Other paths than `only`: 404."""
    head = await connection.read_head()
    if head is None:
        return False
    if not head.path.startswith(only):
        await connection.read_body()
        return await connection.answer(Response(404, {"content-type": "text/plain"}, b"Not found"))
    met = emulator.connect(head, anyio.current_time())
    if isinstance(met, Broken):
        return await connection.apply_fault(met)
    outcome = emulator.handle(attrs.evolve(met, body=await connection.read_body()), anyio.current_time())
    while isinstance(outcome, Later):
        await anyio.sleep_until(outcome.at)
        outcome = emulator.resume(outcome, max(outcome.at, anyio.current_time()))
    if isinstance(outcome, Broken):
        return await connection.apply_fault(outcome)
    return await connection.answer(outcome)


class _Connection:
    """One client's connection: h11 reads and writes the bytes, this breaks it where a fault says so."""

    def __init__(self, stream: SocketStream, names: Sequence[str]) -> None:
        self.wire = h11.Connection(h11.SERVER)
        self._stream = stream
        self._hosts = (*names, str(stream.extra(SocketAttribute.local_address)[0]))  # noqa: S610 - anyio's, not Django's
        self._is_head = False

    async def read_head(self) -> Request | None:
        """Read a request up to its body; None when the client has closed."""
        event = await self._next_event()
        if not isinstance(event, h11.Request):
            return None
        self._is_head = event.method == b"HEAD"  # then the answer has no body
        path, _, query = event.target.decode("ascii").partition("?")
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
        return Request(event.method.decode("ascii"), path, query, headers, hosts=self._hosts)

    async def read_body(self) -> bytes:
        """Read the body to its end."""
        parts: list[bytes] = []
        while isinstance(event := await self._next_event(), h11.Data):
            parts.append(bytes(event.data))
        return b"".join(parts)

    async def answer(self, response: Response) -> bool:
        """Write a whole answer; return whether the connection can be reused."""
        await self._send_head(response)
        if not self._is_head:
            await self._send(h11.Data(data=response.body))
        await self._send(h11.EndOfMessage())
        return self.wire.our_state is h11.DONE and self.wire.their_state is h11.DONE

    async def apply_fault(self, broken: Broken) -> bool:
        """Break the connection as a fault says; return whether it can be reused."""
        match broken.wire, broken.response:
            case ((Wire.REFUSED | Wire.RESET), _):
                self._reset_on_close()
            case ((Wire.STALLED | Wire.UNREACHABLE), _):
                await self._wait_until_client_is_gone()
            case Wire.SLOW, Response() as response:
                await anyio.sleep(broken.seconds)
                return await self.answer(response)
            case Wire.TRUNCATED, Response() as response:
                await self._send_head(response)
                await self._send(h11.Data(data=response.body[: len(response.body) // 2]))
            case Wire.DRIPPING, Response() as response:
                return await self._drip(response, broken.seconds)
            case Wire.DROPPED, Response() as response:
                await self.answer(response)
            case _:  # closed without an answer: leaving is enough
                pass
        return False

    async def _drip(self, response: Response, seconds: float) -> bool:
        await self._send_head(response)
        for place in range(len(response.body)):
            await anyio.sleep(seconds)
            await self._send(h11.Data(data=response.body[place : place + 1]))
        await self._send(h11.EndOfMessage())
        return True

    async def _send_head(self, response: Response) -> None:
        headers = [*response.headers.items(), ("content-length", str(len(response.body)))]
        await self._send(h11.Response(status_code=response.status, headers=headers))

    async def _send(self, event: h11.Event) -> None:
        if written := self.wire.send(event):
            await self._stream.send(written)

    async def _next_event(self) -> object:
        while (event := self.wire.next_event()) is h11.NEED_DATA:
            try:
                self.wire.receive_data(await self._stream.receive(_READ_SIZE))
            except anyio.EndOfStream:
                self.wire.receive_data(b"")
        return event

    async def _wait_until_client_is_gone(self) -> None:
        while True:
            await self._stream.receive(_READ_SIZE)

    def _reset_on_close(self) -> None:
        raw: socket.socket = self._stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - anyio's, not Django's
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
