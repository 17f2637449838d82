"""One TCP connection as httpcore reads and writes it, with or without TLS, that is what it seems.

Rule of the file: only httpcore's errors leave it, and the socket can be torn down at any moment without waiting.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import ssl
import struct
import sys
from typing import Any, Final

import anyio
import anyio.abc
import httpcore
from anyio.streams.tls import TLSAttribute, TLSStream

__all__ = ["Stream"]

_KEEPALIVE: Final = 60
"""Seconds of silence after which the system asks whether the other end is there: a NAT forgets what says nothing."""
_PROBES: Final = {"TCP_KEEPIDLE": _KEEPALIVE, "TCP_KEEPALIVE": _KEEPALIVE, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}
_UNDELIVERED: Final = 30_000
"""Milliseconds after which the system gives up what the other end has not acknowledged."""
_DELIVERED: Final = 5.0  # seconds of silence between looks whether all was acknowledged
_USER_TIMEOUT: Final[int | None] = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux
_LINGER: Final = "hh" if sys.platform == "win32" else "ii"
_EXTRAS: Final = {
    "ssl_object": TLSAttribute.ssl_object,
    "client_addr": anyio.abc.SocketAttribute.local_address,
    "server_addr": anyio.abc.SocketAttribute.remote_address,
}
_BROKEN: Final = (anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError, OSError)


class Stream(httpcore.AsyncNetworkStream):
    """A connected stream: `tcp` is what is at the bottom of it, `tls` what is on top, if anything."""

    def __init__(self, tcp: _Tcp, tls: TLSStream | None = None) -> None:
        self._tcp = tcp
        self._stream = tcp.stream if tls is None else tls

    @classmethod
    async def connect(cls, host: str, port: int, timeout: float | None) -> Stream:
        """Open a TCP connection within `timeout` seconds, with keep-alive probes; httpcore's connect errors."""
        try:
            with anyio.fail_after(timeout):
                tcp = _Tcp(await anyio.connect_tcp(host, port))
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(*error.args) from error
        except _BROKEN as error:
            raise httpcore.ConnectError(str(error)) from error
        tcp.keep_alive()
        return cls(tcp)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read what there is, b"" at the end; httpcore.ReadTimeout after `timeout` seconds of silence."""
        left = math.inf if timeout is None else timeout
        while self._tcp.may_be_undelivered and left > _DELIVERED:
            if (read := await self._read(max_bytes, _DELIVERED)) is not None:
                return read
            left -= _DELIVERED
            self._tcp.release_delivered()
        if (read := await self._read(max_bytes, left)) is None:
            raise httpcore.ReadTimeout
        return read

    async def _read(self, max_bytes: int, timeout: float) -> bytes | None:
        """Read; None when nothing came in time."""
        try:
            with anyio.CancelScope(deadline=anyio.current_time() + timeout):
                return await self._stream.receive(max_bytes)
        except anyio.EndOfStream:
            return b""
        except _BROKEN as error:
            raise httpcore.ReadError(str(error)) from error
        return None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all of it; httpcore.WriteTimeout when that takes longer than `timeout` seconds."""
        if not buffer:
            return
        try:
            with anyio.CancelScope(deadline=anyio.current_time() + (math.inf if timeout is None else timeout)) as scope:
                await self._stream.send(buffer)
        except (anyio.EndOfStream, *_BROKEN) as error:  # the end: of TLS, told while we were sending
            raise httpcore.WriteError(str(error)) from error
        if scope.cancelled_caught:
            raise httpcore.WriteTimeout

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> Stream:
        """Shake hands within `timeout` seconds and return the stream inside; httpcore's connect errors."""
        try:
            with anyio.fail_after(timeout):
                tls = await TLSStream.wrap(
                    self._stream,
                    ssl_context=ssl_context,
                    hostname=server_hostname,
                    standard_compatible=False,
                    server_side=False,
                )
        except TimeoutError as error:
            self._tcp.close()
            raise httpcore.ConnectTimeout(*error.args) from error
        except (anyio.EndOfStream, *_BROKEN) as error:
            self._tcp.close()
            raise httpcore.ConnectError(str(error)) from error
        return Stream(self._tcp, tls)

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore asks for, by its names."""
        if info == "is_readable":
            return _is_readable(self._tcp.socket)
        if info == "socket":
            return self._tcp.socket
        return self._stream.extra(_EXTRAS[info], None) if info in _EXTRAS else None  # noqa: S610  (not Django's)

    def has_unread(self) -> bool:
        """Whether bytes came that nobody has read, though they left the socket: in a TLS record or asyncio's queue."""
        stream: Any = self._stream
        while isinstance(stream, TLSStream):
            if _holds_record(stream.extra(TLSAttribute.ssl_object)):  # noqa: S610  (as above)
                return True
            stream = stream.transport_stream
        return bool(getattr(getattr(stream, "_protocol", None), "read_queue", None))  # anyio does not show it

    def guard(self, *, on: bool) -> None:
        """Have the system give up what is not delivered in 30 s, and forget it when the socket closes; or neither.

        For a paid request: delivered later, it would begin a run that was called unknown long before.
        """
        self._tcp.guard(on=on)

    async def aclose(self) -> None:
        """Free the socket; never waits."""
        self._tcp.close()

    def close(self) -> None:
        """Free the socket now."""
        self._tcp.close()


class _Tcp:
    """The socket below, with what is set on it; anyio's stream reads and writes it."""

    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self.stream: Final = stream
        self.socket: Final[Any] = stream.extra(anyio.abc.SocketAttribute.raw_socket, None)  # noqa: S610  (as above)
        self.may_be_undelivered = False
        self._is_guarded = False

    def keep_alive(self) -> None:
        self._set(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _PROBES.items():
            if hasattr(socket, name):
                self._set(socket.IPPROTO_TCP, getattr(socket, name), value)

    def guard(self, *, on: bool) -> None:
        if on is not self._is_guarded:
            self._is_guarded = self.may_be_undelivered = on
            self._set(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(_LINGER, on, 0))
            self._give_up_after(_UNDELIVERED if on else 0)

    def release_delivered(self) -> None:
        """Let the other end be silent once it has all: one lost probe of the keep-alive would end the connection."""
        if _undelivered(self.socket) == 0:
            self.may_be_undelivered = False
            self._give_up_after(0)

    def _give_up_after(self, milliseconds: int) -> None:
        if _USER_TIMEOUT is not None:
            self._set(socket.IPPROTO_TCP, _USER_TIMEOUT, milliseconds)

    def _set(self, level: int, name: int, value: int | bytes) -> None:
        with contextlib.suppress(OSError, TypeError, AttributeError):  # closed already, or not to be had here
            self.socket.setsockopt(level, name, value)

    def close(self) -> None:
        if self._is_guarded and (transport := getattr(self.stream, "_transport", None)) is not None:
            transport.abort()  # asyncio's: anyio before 4.16 would end it in peace first, and only then reset it
        # Both backends free the socket before they first wait, and then wait for nothing in particular: taking only
        # those steps leaves no place where a cancellation could get in between. (Older releases of anyio throw away
        # what asyncio has not sent yet in the second.)
        closing = self.stream.aclose()
        with contextlib.suppress(StopIteration, OSError, AttributeError):
            closing.send(None)
            closing.send(None)
        closing.close()


def _holds_record(tls: Any) -> bool:
    """Whether a TLS layer holds a record that was not read, or the end of it."""
    try:
        tls.read(1)
    except ssl.SSLWantReadError:
        return False
    except (ssl.SSLError, ValueError):
        return True
    return True


def _is_readable(sock: Any) -> bool:
    number = -1 if sock is None else sock.fileno()
    if number < 0:
        return True
    if not hasattr(select, "poll"):
        return bool(select.select([number], [], [], 0)[0])
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return bool(poll.poll(0))


def _undelivered(sock: Any) -> int:
    """Return the number of bytes that the other end has not acknowledged; as if there were some where nobody knows."""
    try:
        import fcntl
        import termios

        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (ImportError, OSError, ValueError, AttributeError):
        return 1
