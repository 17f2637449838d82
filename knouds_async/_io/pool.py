"""Our HTTP client: httpx over our own connection pool, straight or through the proxy that the environment names.

The pool is cheap with many requests, and it survives any cancellation.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import anyio.abc
import anyio.lowlevel
import httpcore
import httpx
from anyio.streams.tls import TLSAttribute, TLSStream

from knouds_async import config
from knouds_async._io.concurrency import Wakeup, read_clocks
from knouds_async._io.exchange import Exchange, connection_limit, is_shortage, is_stock
from knouds_async._io.proxy import ProxiedConnection, proxy_for
from knouds_async._sansio import responses
from knouds_async._sansio.clock import Reading
from knouds_async.config import Secret, Timeouts
from knouds_async.errors import ConfigurationError, safe_repr

_CERTIFICATES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def tls_context(url: str, proxy: httpcore.Proxy | None) -> ssl.SSLContext | None:
    """Return what checks the certificates of a service; None where there is no TLS: loading them takes long."""
    if urlsplit(url).scheme != "https" and (proxy is None or proxy.url.scheme != b"https"):
        return None
    named = {name: path for name in (*_CERTIFICATES, "SSLKEYLOGFILE") if (path := config.environment().get(name))}
    name = next((name for name in _CERTIFICATES if name in named), "")
    try:
        if name and not (Path(named[name]).is_dir() if name == "SSL_CERT_DIR" else Path(named[name]).exists()):
            raise FileNotFoundError("there is no such file or folder")
        return httpx.create_ssl_context(trust_env=True)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        if getattr(error, "filename", None) == named.get("SSLKEYLOGFILE", ""):
            name = "SSLKEYLOGFILE"
        if not name:
            raise
        why = getattr(error, "strerror", None) or str(error)
    raise ConfigurationError(
        f"${name} names {named[name]!r}, which cannot be used: {why}; correct it, unset it, or pass ssl_context="
    )


def check_context(given: object) -> None:
    """Raise ConfigurationError for what is no context of a client's: each call would fail, and be tried again."""
    if given is not None and not isinstance(given, ssl.SSLContext):
        raise ConfigurationError(f"ssl_context={safe_repr(given)}: must be an ssl.SSLContext, or None for the default")
    if given is not None and given.protocol == ssl.PROTOCOL_TLS_SERVER:
        raise ConfigurationError("ssl_context=: is a server's; make a client's with ssl.create_default_context()")


responses.converter()  # what reads answers is loaded before there are any


def exchange_for(
    lent: httpx.AsyncClient | None,
    base_url: str,
    key: Secret,
    timeouts: Timeouts,
    *,
    ssl_context: ssl.SSLContext | None,
    connections: int,
) -> Exchange:
    """Return what sends calls, through the client that is lent or through one of our own.

    `connections`: how many calls may be in flight at once; a lent client allows what it allows, where that can be seen.
    """
    check_context(ssl_context)
    is_lent = lent is not None
    http = lent if lent is not None else own_client(base_url, ssl_context=ssl_context, connections=connections)
    return Exchange(
        http,
        base_url=base_url,
        key=key,
        timeouts=timeouts,
        is_known=not is_lent or is_stock(http),
        is_lent=is_lent,
        connections=connection_limit(http, connections) if is_lent else connections,
    )


class _NoCookies(httpx.Cookies):
    """A jar that stays empty: the service's cookies are not ours to keep, and looking for some takes a while."""

    def extract_cookies(self, response: httpx.Response) -> None:
        """Keep none."""


class _OwnClient(httpx.AsyncClient):
    """httpx's client without cookies."""

    cookies = _NoCookies()  # type: ignore[override]  # a property of httpx's


def own_client(base_url: str, *, ssl_context: ssl.SSLContext | None, connections: int) -> httpx.AsyncClient:
    """Build the client over our pool, through the proxy that the environment names (`HTTPS_PROXY`), if any."""
    proxy = proxy_for(base_url)
    verify = ssl_context if ssl_context is not None else tls_context(base_url, proxy)
    transport = PooledTransport(ssl_context=verify, proxy=proxy, limit=connections)
    return _OwnClient(transport=transport, trust_env=False, follow_redirects=False)


_KEEPALIVE: Final = 60
"""Seconds of silence after which the system asks whether the other end is there: a NAT forgets what says nothing."""
_PROBES: Final = {"TCP_KEEPIDLE": _KEEPALIVE, "TCP_KEEPALIVE": _KEEPALIVE, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}
_UNDELIVERED: Final = 30_000
"""Milliseconds after which the system gives up what the other end has not acknowledged."""
_DELIVERED: Final = 5.0  # seconds of silence after which it is checked whether all was acknowledged
_USER_TIMEOUT: Final[int | None] = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux
_LINGER: Final = "hh" if sys.platform == "win32" else "ii"
_BROKEN: Final = (anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError, OSError)


class Stream(httpcore.AsyncNetworkStream):
    """A connected TCP stream, in TLS or not, with what is set on its socket."""

    def __init__(self, tcp: anyio.abc.SocketStream) -> None:
        self._tcp: Final = tcp
        self._stream: anyio.abc.SocketStream | TLSStream = tcp
        self.socket: Final[Any] = tcp.extra(anyio.abc.SocketAttribute.raw_socket, None)  # noqa: S610  (not Django's)
        self._may_be_undelivered = False
        self._is_guarded = False

    @classmethod
    async def connect(cls, host: str, port: int, timeout: float | None) -> Stream:
        """Open a TCP connection within `timeout` seconds, with keep-alive probes; httpcore's connect errors."""
        try:
            with anyio.fail_after(timeout):
                stream = cls(await anyio.connect_tcp(host, port))
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(*error.args) from error
        except _BROKEN as error:
            raise httpcore.ConnectError(str(error)) from error
        stream._keep_alive()
        return stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read what there is, b"" at the end; httpcore.ReadTimeout after `timeout` seconds of silence."""
        left = math.inf if timeout is None else timeout
        while self._may_be_undelivered and left > _DELIVERED:
            if (read := await self._read(max_bytes, _DELIVERED)) is not None:
                return read
            left -= _DELIVERED
            self._release_delivered()
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
        if self._is_guarded and not self._may_be_undelivered:
            self._may_be_undelivered = True
            self._give_up_after(_UNDELIVERED)
        try:
            with anyio.CancelScope(deadline=anyio.current_time() + (math.inf if timeout is None else timeout)) as scope:
                await self._stream.send(buffer)
        except (anyio.EndOfStream, *_BROKEN) as error:  # the end: of TLS, seen while sending
            raise httpcore.WriteError(str(error)) from error
        if scope.cancelled_caught:
            raise httpcore.WriteTimeout

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> Stream:
        """Shake hands within `timeout` seconds, and be the stream inside; httpcore's connect errors."""
        try:
            with anyio.fail_after(timeout):
                self._stream = await TLSStream.wrap(
                    self._stream,
                    ssl_context=ssl_context,
                    hostname=server_hostname,
                    standard_compatible=False,
                    server_side=False,
                )
        except TimeoutError as error:
            self.close()
            raise httpcore.ConnectTimeout(*error.args) from error
        except (anyio.EndOfStream, *_BROKEN) as error:
            self.close()
            raise httpcore.ConnectError(str(error)) from error
        return self

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore asks for, by its names."""
        if info == "is_readable":
            return _is_readable(self.socket)
        if info == "socket":
            return self.socket
        return self._stream.extra(TLSAttribute.ssl_object, None) if info == "ssl_object" else None  # noqa: S610  (as above)

    def has_unread(self) -> bool:
        """Whether bytes were received and not read, beyond those in the socket: in a TLS record or asyncio's queue."""
        stream: Any = self._stream
        while isinstance(stream, TLSStream):
            if _holds_record(stream.extra(TLSAttribute.ssl_object)):  # noqa: S610  (as above)
                return True
            stream = stream.transport_stream
        return bool(getattr(getattr(stream, "_protocol", None), "read_queue", None))  # anyio does not show it

    async def aclose(self) -> None:
        """Free the socket; never waits."""
        self.close()

    def _keep_alive(self) -> None:
        self._set(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _PROBES.items():
            if hasattr(socket, name):
                self._set(socket.IPPROTO_TCP, getattr(socket, name), value)

    def guard(self, *, on: bool) -> None:
        """Make the system give up what is not delivered in 30 s, and forget it when the socket closes; or neither.

        For a paid request: delivered later, it would begin a run that was called unknown long before.
        """
        if on is not self._is_guarded:
            self._is_guarded = self._may_be_undelivered = on
            self._set(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(_LINGER, on, 0))
            self._give_up_after(_UNDELIVERED if on else 0)

    def _release_delivered(self) -> None:
        """Allow the other end to be silent once it has all: one lost keep-alive probe would end the connection."""
        if _undelivered(self.socket) == 0:
            self._may_be_undelivered = False
            self._give_up_after(0)

    def _give_up_after(self, milliseconds: int) -> None:
        if _USER_TIMEOUT is not None:
            self._set(socket.IPPROTO_TCP, _USER_TIMEOUT, milliseconds)

    def _set(self, level: int, name: int, value: int | bytes) -> None:
        with contextlib.suppress(OSError, TypeError, AttributeError):  # closed already, or not to be had here
            self.socket.setsockopt(level, name, value)

    def close(self) -> None:
        """Free the socket now; what a paid request left in it that was not answered is thrown away."""
        if self._is_guarded and (transport := getattr(self._tcp, "_transport", None)) is not None:
            transport.abort()  # asyncio's: anyio before 4.16 would end it in peace first, and only then reset it
        # Both backends free the socket before they first wait, and then wait for nothing in particular: taking only
        # those steps leaves no place where a cancellation could get in between. (Older releases of anyio throw away
        # what asyncio has not sent yet in the second.)
        closing = self._tcp.aclose()
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
    """Return the number of bytes that the other end has not acknowledged; 1 where that cannot be known."""
    try:
        import fcntl
        import termios

        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (ImportError, OSError, ValueError, AttributeError):
        return 1


class Connection(httpcore.AsyncNetworkBackend):
    """A connection to one origin, straight or through a proxy, used by one request at a time.

    `idle_since` is when its last response was closed. It opens its TCP stream itself, to close it in any case: httpcore
    forgets the stream when a TLS handshake (or a trace callback) is cancelled, and leaves the socket to the garbage
    collector.
    """

    def __init__(
        self, origin: httpcore.Origin, ssl_context: ssl.SSLContext | None, proxy: httpcore.Proxy | None = None
    ) -> None:
        self.origin: Final = origin
        self.idle_since: Reading
        self._is_paid = False
        self._stream: Stream | None = None
        self._http: Final[httpcore.AsyncConnectionInterface] = (
            httpcore.AsyncHTTPConnection(origin, ssl_context, network_backend=self)
            if proxy is None
            else ProxiedConnection(proxy, ssl_context, self)
        )

    async def connect_tcp(  # httpcore gives nothing else
        self, host: str, port: int, timeout: float | None = None, *_: Any, **__: Any
    ) -> httpcore.AsyncNetworkStream:
        """Connect, and keep hold of the socket."""
        sys.audit("knouds_async.connect", host, port)  # uvloop's look-ups raise no event of their own
        self._stream = stream = await Stream.connect(host, port, timeout)
        stream.guard(on=self._is_paid)
        return stream

    def _guard(self, *, is_paid: bool) -> None:
        """Guard the socket of a paid request, also one that is still to be opened."""
        self._is_paid = is_paid
        if self._stream is not None:
            self._stream.guard(on=is_paid)

    async def send(self, request: httpcore.Request, *, is_paid: bool) -> httpcore.Response:
        """Send one request and read the head of its response; httpcore's errors pass through."""
        self._guard(is_paid=is_paid)
        return await self._http.handle_async_request(request)

    def rest(self, now: Reading) -> bool:
        """Get ready for another request; False when there can be none, and the connection is to be closed.

        There can be one when the last response was read to the end, nothing came after it, and both sides agree.
        """
        self._guard(is_paid=False)
        self.idle_since = now
        return self._http.is_available() and not self._has_more()

    def is_dropped(self) -> bool:
        """Whether there is something to read although nothing was asked: the server has hung up."""
        return self._http.has_expired()

    def _has_more(self) -> bool:
        """Whether more came than was asked for: the next request would take it for its own answer.

        A stray 429 would have a paid run sent twice. httpcore does not look, and shows nothing to look at: its parser
        is at the bottom of what wraps it. Where none is found, no connection is used twice.
        """
        http: Any = self._http
        while (inner := getattr(http, "_connection", None)) is not None:
            http = inner
        parser = getattr(http, "_h11_state", None)
        if parser is None or parser.trailing_data != (b"", False):
            return True
        return self._stream is None or self._stream.has_unread()

    def close(self) -> None:
        """Free the socket now."""
        if self._stream is not None:
            self._stream.close()


_ENDED: Final = (RuntimeError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException)


class PooledTransport(httpx.AsyncHTTPTransport):
    """httpx's own transport over pooled HTTP/1.1 connections of ours (design 4.1).

    While at most `limit` connections are in use, no more than that are open; a queue is for the caller to have. Idle
    ones are kept for a minute. A request whose `extensions["knouds.fresh"]` is true only reuses a connection that was
    idle for at most two seconds: were it sent on a stale one, its outcome would be unknown.
    Cancellation at any point closes the connection.

    Where the process has no descriptor for another connection, a request waits for one of those in use; for a minute
    some fewer are then opened, for files and the ledger need descriptors as well.
    """

    def __init__(
        self, *, ssl_context: ssl.SSLContext | None = None, proxy: httpcore.Proxy | None = None, limit: int = 100
    ) -> None:
        # httpx's own __init__ would make a pool; this is the one private name of httpx that is used here.
        self._pool: _ConnectionPool = _ConnectionPool(ssl_context, proxy, limit)


_SHORT: Final = 60.0  # seconds for which a shortage is remembered
_LEFT: Final = 8  # descriptors that are left to others in a shortage
_RETRY: Final = 1.0  # seconds after which it is looked whether others have freed some


class _ConnectionPool(httpcore.AsyncConnectionPool):
    """Connections in use, which are counted, and idle ones, the one used last at the end."""

    expiry = 60.0  # seconds for which an idle connection is kept
    fresh_within = 2.0  # seconds for which an idle connection is used for a paid request

    def __init__(self, ssl_context: ssl.SSLContext | None, proxy: httpcore.Proxy | None, limit: int) -> None:
        super().__init__()
        self.idle: Final[list[Connection]] = []
        self.in_use = 0
        self.is_closed = False
        self._context = ssl_context
        self._proxied_by = proxy
        if proxy is not None:
            proxy.ssl_context = ssl_context  # for one that is spoken to over TLS
        self._limit = limit
        self._most, self._short_since = math.inf, read_clocks()  # what the process has descriptors for
        self._freed: Final = Wakeup()

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send the request and return its response, which holds its connection until it is closed or breaks."""
        while True:
            if self.is_closed:
                raise httpcore.ConnectError("the connection pool is closed")
            try:
                return await self._send(request)
            except httpcore.ConnectError as error:  # nothing was sent
                if not (is_shortage(error) and self._makes_room()):
                    raise
            await self._room()

    async def _send(self, request: httpcore.Request) -> httpcore.Response:
        is_paid = bool(request.extensions.get("knouds.fresh"))
        if self.in_use >= self._most:
            await self._room()
        connection = self._take(request.url.origin, read_clocks(), is_fresh=is_paid)
        try:
            response = await connection.send(request, is_paid=is_paid)
        except BaseException:
            self.discard(connection)
            raise
        response.stream = _PooledStream(response.stream, connection, self)
        return response

    def _makes_room(self) -> bool:
        """Close what is idle and allow fewer connections; False when there are none whose end would help."""
        has_idle = bool(self.idle)
        while self.idle:
            self.idle.pop().close()
        if not (has_idle or self.in_use):
            return False
        self._most, self._short_since = max(1, min(self._most, self.in_use - _LEFT)), read_clocks()
        return True

    async def _room(self) -> None:
        """Wait while there are descriptors for no more connections than are in use."""
        await anyio.lowlevel.checkpoint()  # asyncio frees its sockets one turn later
        while self.in_use >= self._most:
            if read_clocks().since(self._short_since) > _SHORT:
                self._most = math.inf
                return
            with anyio.move_on_after(_RETRY):
                await self._freed.wait()

    def _release(self) -> None:
        self.in_use -= 1
        self._freed.notify()

    def _take(self, origin: httpcore.Origin, now: Reading, *, is_fresh: bool) -> Connection:
        """Return a connection to use: the one used last, if it is still good, or a new one."""
        while self.idle and now.since(self.idle[0].idle_since) > self.expiry:
            self.idle.pop(0).close()
        longest = self.fresh_within if is_fresh else self.expiry
        for at in range(len(self.idle) - 1, -1, -1):
            if self.idle[at].origin == origin:
                if now.since(self.idle[at].idle_since) > longest:
                    break
                if not (found := self.idle.pop(at)).is_dropped():
                    self.in_use += 1
                    return found
                found.close()
        while self.idle and self.in_use + len(self.idle) >= min(self._limit, self._most):
            self.idle.pop(0).close()
        self.in_use += 1
        return Connection(origin, self._context, self._proxied_by)

    def give_back(self, connection: Connection) -> None:
        """Return a connection to the pool, to be used again if both sides agree."""
        self._release()
        has_room = self.in_use + len(self.idle) < self._most
        if connection.rest(read_clocks()) and has_room and not self.is_closed:
            self.idle.append(connection)
        else:
            connection.close()

    def discard(self, connection: Connection) -> None:
        """Close a connection instead of returning it to the pool."""
        self._release()
        connection.close()

    async def aclose(self) -> None:
        """Close the idle connections at once and the others when their responses are closed; idempotent.

        Cancelled, it has closed all the same.
        """
        self.is_closed = True
        while self.idle:
            self.idle.pop().close()
        await anyio.lowlevel.checkpoint()  # asyncio frees its sockets one turn later


class _PooledStream:
    """A response's body, which holds its connection until it is closed or breaks."""

    def __init__(self, stream: Any, connection: Connection, pool: _ConnectionPool) -> None:
        self._stream = stream
        self._chunks: AsyncIterator[bytes] = aiter(stream)
        self._connection = connection
        self._pool = pool
        self._is_read = False
        self._is_over = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._is_over:
            raise httpx.StreamClosed
        try:
            return await anext(self._chunks)
        except StopAsyncIteration:
            self._is_read = True
            raise
        except BaseException:
            self._discard()
            raise

    async def aclose(self) -> None:
        """Release the connection: for reuse when the body was read to its end, for good when it was not."""
        if self._is_over:
            return
        if self._is_read:
            self._is_over = True
            try:
                await self._stream.aclose()
            finally:
                self._pool.give_back(self._connection)
            return
        self._discard()
        # httpcore reads in generators, which trio wants ended; on the closed socket they end by themselves.
        # RuntimeError: another task is just reading, and will run into the same end.
        with contextlib.suppress(*_ENDED):
            async for _ in self._chunks:
                pass

    def _discard(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._pool.discard(self._connection)
