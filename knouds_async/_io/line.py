"""One HTTP/1.1 connection for the service's own calls: opened, one exchange after another, closed without waiting.

Rule of the file: whatever has been opened is reachable from here, so that no cancellation can strand a socket. Its
errors are httpx's, as if httpx had sent the request.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Callable
from typing import Final

import anyio
import httpx
from anyio.abc import ByteStream, SocketAttribute, SocketStream
from anyio.streams.tls import TLSStream

from knouds_async._io.connection import Origin

_PIECE: Final = 256 * 1024  # asyncio reads as much at once; less would be cut off it


class Line:
    """A connection to one origin, used by one request at a time.

    `idle_since`: when its last answer was read (seconds of the event loop's clock). `is_clean`: nothing is under way.
    """

    def __init__(self, origin: Origin, ssl_context: ssl.SSLContext) -> None:
        """Prepare it; the first request opens it."""
        self.origin: Final = origin
        self.idle_since = 0.0
        self.is_clean = False
        self._ssl_context = ssl_context
        self._tcp: SocketStream | None = None
        self._stream: ByteStream | None = None
        self._can_read: Callable[[], bool] = lambda: True

    @property
    def is_open(self) -> bool:
        """Whether a request can be written to it."""
        return self._stream is not None

    async def open(self) -> None:
        """Connect, and shake hands for https; httpx.ConnectError when that fails. Cancelled: `close` it."""
        try:
            self._tcp = tcp = await anyio.connect_tcp(self.origin.host.decode("ascii"), self.origin.port)
            self._stream = tcp if self.origin.scheme == b"http" else await self._secured(tcp)
        except (OSError, anyio.BrokenResourceError, anyio.EndOfStream) as error:  # ssl.SSLError is an OSError
            raise httpx.ConnectError(str(error)) from error
        self._can_read = _readable(tcp.extra(SocketAttribute.raw_socket))  # noqa: S610  (not Django's)

    async def _secured(self, tcp: SocketStream) -> TLSStream:
        self._ssl_context.set_alpn_protocols(["http/1.1"])
        host = self.origin.host.decode("ascii")
        return await TLSStream.wrap(
            tcp, server_side=False, hostname=host, ssl_context=self._ssl_context, standard_compatible=False
        )

    async def write(self, data: bytes) -> None:
        """Write it all. A server that hangs up meanwhile may have answered first: that is for `read` to find."""
        assert self._stream is not None  # noqa: S101  (it is open)
        try:
            await self._stream.send(data)
        except anyio.BrokenResourceError:
            return
        except (anyio.EndOfStream, anyio.ClosedResourceError, ssl.SSLError) as error:
            raise httpx.WriteError(str(error)) from error

    async def read(self) -> bytes:
        """Read the next piece; b"" when the server has hung up."""
        assert self._stream is not None  # noqa: S101  (it is open)
        try:
            return await self._stream.receive(_PIECE)
        except anyio.EndOfStream:
            return b""
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError) as error:
            raise httpx.ReadError(str(error)) from error

    def is_idle(self) -> bool:
        """Whether its last answer was read to the end and both sides would go on."""
        return self.is_clean

    def is_dropped(self) -> bool:
        """Whether there is something to read although nothing was asked: the server has hung up."""
        return self._can_read()

    def close(self) -> None:
        """Free the socket now."""
        if self._tcp is None:
            return
        # Both backends free the socket before they first wait, and then wait for nothing in particular. Taking
        # only that first step leaves no place where a cancellation could get in between.
        closing = self._tcp.aclose()
        with contextlib.suppress(StopIteration, OSError):
            closing.send(None)
        closing.close()


def _readable(raw: socket.socket) -> Callable[[], bool]:
    """Give what tells at once whether a socket has something to read."""
    if not hasattr(select, "poll"):  # Windows
        return lambda: bool(select.select([raw], [], [], 0)[0])
    poll = select.poll()
    poll.register(raw, select.POLLIN)
    return lambda: bool(poll.poll(0))
