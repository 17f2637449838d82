"""One attempt of a call over HTTP: answered, garbled, not sent, or sent and unanswered; it never raises.

It goes through `AsyncClient.send`, of our own client or of the caller's. httpx and its fork httpx2 have the same names;
a request, a URL or an error of the one is none to the other. Neither is imported here: where there is a client, its
module is loaded.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import math
import os
import socket
import ssl
import sys
import zlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, cast

import anyio
import attrs

from knouds_async._io.concurrency import OwnTask, call_at
from knouds_async._sansio import responses
from knouds_async._sansio.endpoints import Call
from knouds_async._sansio.responses import Answer, Mask
from knouds_async._sansio.retry import Garbled, NotSent, Outcome, Unanswered
from knouds_async.config import Secret, Timeouts, __version__
from knouds_async.errors import ConfigurationError, safe_repr

if TYPE_CHECKING:
    import httpx


_MODULES: Final = ("httpx", "httpx2")
_STEPS: Final = ("send", "_send_handling_auth", "_send_handling_redirects", "_send_single_request")


def checked_client(client: object) -> httpx.AsyncClient | None:
    """Return a lent client, for type checkers as httpx's; ConfigurationError for what is no asynchronous client."""
    if client is None or isinstance(client, tuple(module.AsyncClient for module in _loaded())):
        return cast("httpx.AsyncClient | None", client)
    is_sync = isinstance(client, tuple(module.Client for module in _loaded()))
    why = "a synchronous client would block the event loop" if is_sync else "must be an asynchronous client"
    raise ConfigurationError(f"http_client={safe_repr(client)}: {why}; lend an httpx.AsyncClient or httpx2.AsyncClient")


def httpx_of(client: object) -> ModuleType:
    """Return the module that a client comes from: httpx2, or else httpx."""
    kind: Any = type(client)
    return _module_of(kind)


@functools.cache
def _module_of(kind: Any) -> ModuleType:
    return sys.modules["httpx2" if "httpx2" in [_top(each) for each in kind.__mro__] else "httpx"]


def http_errors(*names: str) -> tuple[type[Exception], ...]:
    """Return the errors of these names, of httpx and of httpx2, as far as they are loaded."""
    return tuple(getattr(module, name) for module in _loaded() for name in names)


def _loaded() -> list[ModuleType]:
    return [sys.modules[name] for name in _MODULES if name in sys.modules]


# What is in a client, and below it.


def sends_plainly(client: object) -> bool:
    """Return whether a client sends in httpx's own way: one that has a way of its own may send more than once."""
    own = httpx_of(client).AsyncClient
    is_own = all(getattr(type(client), step, None) is getattr(own, step, 0) for step in _STEPS)
    return is_own and not vars(client).keys() & set(_STEPS)


def has_foreign_auth(client: object) -> bool:
    """Return whether a client has an auth that is not httpx's: it may send copies of a request, one after the other."""
    auth = getattr(client, "auth", None)
    return auth is not None and _top(type(auth)) not in _MODULES


def transports(client: object) -> list[object]:
    """List what a client sends through: its transport and those of its mounts."""
    mounts = getattr(client, "_mounts", None) or {}
    return [one for one in (getattr(client, "_transport", None), *mounts.values()) if one is not None]


def is_stock(client: object) -> bool:
    """Return whether a client sends by exactly httpx's own ways alone, so that its errors can be trusted."""
    is_own = {type(transport) for transport in transports(client)} == {httpx_of(client).AsyncHTTPTransport}
    return is_own and sends_plainly(client) and not has_foreign_auth(client)


def has_stock_pool(client: object) -> bool:
    """Return whether an httpcore pool lies below a client, also within a transport that wraps another."""
    return any(_pool(transport) is not None for transport in _unwrapped(client))


def connection_limit(client: object, otherwise: int) -> float:
    """Return how many connections a client allows at once, where that can be seen."""
    seen = [limit for transport in _unwrapped(client) if (limit := _limit(transport)) is not None]
    return min(seen, default=otherwise)


def _unwrapped(client: object) -> Iterator[object]:
    for transport in transports(client):
        yield transport
        yield from getattr(transport, "__dict__", {}).values()


def _pool(transport: object) -> object | None:
    pool = getattr(transport, "_pool", None)
    return pool if _top(type(pool)) in ("httpcore", "httpcore2") else None


def _limit(transport: object) -> int | None:
    pool, connector = _pool(transport), getattr(getattr(transport, "client", None), "connector", None)
    limits = getattr(transport, "limits", None)
    for owner, name in ((pool, "_max_connections"), (connector, "limit"), (limits, "max_connections")):
        limit = getattr(owner, name, None)
        if isinstance(limit, int) and limit > 0:  # aiohttp says 0 for any number
            return limit
    return None


def _top(kind: type) -> str:
    return kind.__module__.partition(".")[0]


# What proves that nothing was sent.


def connector_failed(client: object, error: Exception | None) -> bool:
    """Return whether aiohttp's connector failed, so that nothing was sent: refused, no such host, TLS, or too late.

    By the cause, not by the error: httpx-aiohttp calls it a ConnectTimeout also when the server has hung up. It proves
    nothing where somebody in between may have sent the request before.
    """
    aiohttp = sys.modules.get("aiohttp")
    names = ("ClientConnectorError", "ConnectionTimeoutError", "ClientHttpProxyError")
    proofs = tuple(kind for name in names if (kind := getattr(aiohttp, name, None)) is not None)
    return isinstance(getattr(error, "__cause__", None), proofs) and _is_plain_aiohttp(client)


def _is_plain_aiohttp(client: object) -> bool:
    """Return whether a client sends by aiohttp's own ways alone; a transport that has made no session sent nothing."""
    below = transports(client)
    kinds = {(_top(type(transport)), type(transport).__name__) for transport in below}
    made = [one for transport in below if not callable(one := getattr(transport, "client", None)) and one is not None]
    are_plain = all(_top(type(one)) == "aiohttp" and not getattr(one, "_middlewares", ()) for one in made)
    is_own = kinds == {("httpx_aiohttp", "AiohttpTransport")}
    return is_own and are_plain and sends_plainly(client) and not has_foreign_auth(client)


_SENDING: Final = ("http11.", "http2.")
_HEAD: Final = ("http11.send_request_headers.started", "http2.send_request_headers.started")
_BEFORE_SENDING: Final = ("pool.wait.started", "connection.", "proxy.", "socks.")


_FAILED_BEFORE_SENDING: Final = (
    "ConnectError",
    "ConnectTimeout",
    "PoolTimeout",
    "UnsupportedProtocol",
    "LocalProtocolError",
)


class CallerLeft(Exception):  # noqa: N818  (it ends a task that nobody waits for)
    """The caller has left: nobody waits for the answer."""


@attrs.define(eq=False, repr=False)
class SentTrace:
    """Watches one attempt at a request: put it in the request's `extensions["trace"]`, one for each attempt.

    `before_first_byte`: called when the request is about to leave, and when its body is. Where it raises, nothing
    leaves, then or later.
    `is_withheld`: whether the request is still to be handed to a transport; `has_begun_sending`: it was seen to leave.
    """

    _before_first_byte: Callable[[], None] | None = attrs.field(default=None, alias="before_first_byte")
    is_withheld: bool = attrs.field(default=False, init=False)
    has_begun_sending: bool = attrs.field(default=False, init=False)
    _has_given_body: bool = attrs.field(default=False, init=False)
    _is_connecting: bool = attrs.field(default=False, init=False)  # a proxy is asked to CONNECT, by its own request
    _last_event: str = attrs.field(default="", init=False)
    _refusal: BaseException | None = attrs.field(default=None, init=False)

    async def __call__(self, event: str, details: object) -> None:
        """Note an event; never waits. Raises what `before_first_byte` raises."""
        if self.has_begun_sending:
            return
        if not event.startswith(_SENDING):
            self._last_event = event
            return
        if event in _HEAD:
            self._is_connecting = _method(details) == b"CONNECT"
        if not (self._is_connecting and event.startswith("http11.")):  # no proxy is asked over HTTP/2
            self._begin(event)

    def _begin(self, event: str) -> None:
        """Count the request as sent, for good, unless it must not be: httpcore reports the end of that one too."""
        if self._refusal is None:
            self.check()
            self.has_begun_sending = True
        elif event.endswith(".started") and not event.endswith("response_closed.started"):
            raise self._refusal

    def check(self) -> None:
        """Ask whether the first byte may leave, and raise what keeps all of them from leaving."""
        if self._before_first_byte is None:
            return
        try:
            self._before_first_byte()
        except BaseException as refusal:
            self._refusal = refusal
            raise

    def before_body(self) -> None:
        """Ask again where the body, or more of it, is about to leave: without all of it nothing runs.

        A process can be frozen after the head, or in the middle of a large body. What has left, or may have, stays so
        when this raises.
        """
        if not (self.has_begun_sending or self._has_given_body):
            self.check()
        elif self._before_first_byte is not None:
            self._before_first_byte()
        self._has_given_body = True

    def withdraw(self) -> None:
        """Keep the request from leaving, if it has not yet: CallerLeft is raised where it would."""
        self._before_first_byte = _raise_caller_left

    def may_have_been_sent(self, error: Exception | None, *, transport_is_known: bool) -> bool:
        """Return whether any byte of the request may have left; False is a proof that none has.

        `transport_is_known` means one of ours or exactly `httpx.AsyncHTTPTransport`: only those raise, say,
        `ConnectTimeout` for nothing but a connection that could not be made. That counts when no event was seen,
        as with mocks, which replace the code that would have fired them.
        """
        if self.has_begun_sending:
            return True
        if (
            self.is_withheld
            or self._refusal is not None
            or self._is_connecting
            or self._last_event.startswith(_BEFORE_SENDING)
        ):
            return False
        return not (transport_is_known and error is not None and type(error) in http_errors(*_FAILED_BEFORE_SENDING))


def _raise_caller_left() -> NoReturn:
    raise CallerLeft


def _method(details: object) -> object:
    """Return the method of the request that an event is of."""
    return getattr(details.get("request"), "method", None) if isinstance(details, Mapping) else None


_MOST: Final = 32 * 1024 * 1024
_STEP: Final = 64 * 1024
_GZIP: Final = 16 + zlib.MAX_WBITS


class UnreadableBody(Exception):  # noqa: N818  (it is turned into a public error before anyone sees it)
    """The body cannot be read; `reason` says why, as in "the body" + reason, in no words of the server's."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason: Final = reason


class _BodyReader:
    """Collects a body as it comes, up to `most` bytes; one gzip member is inflated in small steps."""

    def __init__(self, encoding: str, into: io.BytesIO, most: int) -> None:
        encodings = [name.strip().lower() for name in encoding.split(",")]  # several headers are joined by commas
        if encodings not in ([""], ["identity"], ["gzip"]):
            raise UnreadableBody("has a content-encoding other than identity or a single gzip")
        self._inflate = zlib.decompressobj(_GZIP) if encodings == ["gzip"] else None
        self._into = into  # its value is given out without a second copy, which joining chunks would make
        self._most = most
        self._zipped = 0

    def feed(self, chunk: bytes) -> None:
        if self._inflate is None:
            self._write(chunk)
            return
        self._zipped += len(chunk)
        if self._zipped > self._most + _STEP:  # a gzip stream may be endless without inflating to anything
            raise UnreadableBody(f"is a gzip stream of more than {self._most} bytes")
        while chunk:
            try:
                piece = self._inflate.decompress(chunk, _STEP)
            except zlib.error:
                raise UnreadableBody("is a damaged gzip stream") from None
            if self._inflate.unused_data:
                raise UnreadableBody("continues after the end of its gzip stream")
            self._write(piece)
            chunk = self._inflate.unconsumed_tail

    def _write(self, piece: bytes) -> None:
        if self._into.tell() + len(piece) > self._most:
            raise UnreadableBody(f"is longer than {self._most} bytes")
        self._into.write(piece)

    def finish(self) -> bytes:
        if self._inflate is not None and self._zipped and not self._inflate.eof:
            raise UnreadableBody("is a gzip stream that is cut off")
        return self._into.getvalue()


async def read_body(response: httpx.Response, encoding: str, into: io.BytesIO, *, most: int = _MOST) -> bytes:
    """Read and decode the body of a streamed response, at most `most` bytes of it once decoded.

    Memory stays below `most` and one small step, whatever the server sends. Raises `UnreadableBody` for a longer
    body, for any content-encoding but identity and a single gzip, and for a gzip stream that is damaged, cut off
    or followed by something; the response is closed then. httpx's transport errors and cancellation pass through.
    `encoding`: its content-encoding. `into`: still holds what came of it when the rest did not.
    The time it takes is for the caller to bound (traps, "Hostile or odd answers").
    """
    if response.is_stream_consumed:
        return _already_read(response, most)
    chunks = response.aiter_raw()
    try:
        reader = _BodyReader(encoding, into, most)
        async for chunk in chunks:
            reader.feed(chunk)
        return reader.finish()
    except UnreadableBody:
        await abandon(response, chunks)
        raise


def _already_read(response: httpx.Response, most: int) -> bytes:
    """Return what an event hook or a mock has read before us."""
    try:
        content = response.content
    except http_errors("ResponseNotRead"):
        raise UnreadableBody("was read by something else") from None
    if len(content) > most:
        raise UnreadableBody(f"is longer than {most} bytes")
    return content


async def abandon(response: httpx.Response, chunks: AsyncIterator[bytes]) -> None:
    """Close the response, then let the generators that were reading it run into that and end.

    Left to the garbage collector they would end in a ResourceWarning on trio.
    """
    passing = http_errors("TransportError", "StreamError")
    with contextlib.suppress(*passing):
        await response.aclose()
    with contextlib.suppress(*passing):
        while await anext(chunks, None) is not None:
            pass


_TRACE: Final = "knouds.trace"


def withheld(request: httpx.Request, client: object, trace: SentTrace) -> None:
    """Mark in `trace` that nothing was sent until the client hands the request to a transport.

    Right before, httpx asks the request for its stream; an auth may send a copy, for which it asks for the content. A
    client that sends in another way than httpx's own does not count.
    """
    if sends_plainly(client):
        trace.is_withheld = True
        names = ("stream",) if getattr(client, "auth", None) is None else ("stream", "content", "read", "aread")
        kind: Any = type(request)
        request.__class__ = _marking(kind, names)
        request.extensions[_TRACE] = trace


@functools.cache
def _marking(kind: Any, names: tuple[str, ...]) -> Any:
    """Make a subclass of a request class that notes in the trace of its extensions when one of these is read."""
    marking = {name: _asked_for(name, getattr(kind, name, None)) for name in names}
    return type(kind.__name__, (kind,), {**marking, "__module__": kind.__module__})


def _asked_for(name: str, inherited: Any) -> property:
    def get(request: Any) -> Any:
        if (trace := request.extensions.get(_TRACE)) is not None:
            trace.is_withheld = False
        return vars(request)[name] if inherited is None else inherited.__get__(request)

    def store(request: Any, value: Any) -> None:
        vars(request)[name] = value

    return property(get, store)


_ENCODING: Final = "content-encoding"
_READ: Final = {name.encode(): name for name in (*responses.READ, _ENCODING)}
_OF_LIMIT: Final = 0.9
_ADDRESSES: Final = 1024  # a URL is requested again and again while its run lasts, and costs much to parse


def _headers_of(response: httpx.Response) -> dict[str, str]:
    """Return the headers that this library reads, and the encoding; a repeated one's values are joined by commas."""
    found: dict[str, str] = {}
    for raw_name, value in response.headers.raw:
        if (name := _READ.get(raw_name.lower())) is not None:
            text = value.decode("latin-1")
            found[name] = f"{found[name]}, {text}" if name in found else text
    return found


class _KeyAuth:
    """Adds the key to what goes to the base URL's origin, and what the caller's own client adds."""

    def __init__(
        self, key: Secret, origin: tuple[str, str, int | None], lent: httpx.Auth | None, *, is_keyed: bool
    ) -> None:
        self._key = key
        self._origin = origin
        self._lent = lent
        self._is_keyed = is_keyed

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Add the key, whichever tool or hook has the request next."""
        if self._is_keyed and _origin(request.url) == self._origin:
            request.headers["x-api-key"] = self._key.reveal()
        if self._lent is None:
            yield request
            return
        flow = self._lent.async_auth_flow(request)
        try:
            sent = await anext(flow, None)
            while sent is not None:
                sent = await flow.asend((yield sent))
        except StopAsyncIteration:
            return
        finally:
            await flow.aclose()


@functools.cache
def _key_auth(auth: type) -> Any:
    """Make the class that adds the key an auth of httpx or of httpx2."""
    return type("_KeyAuth", (_KeyAuth, auth), {})


class _RequestBody:
    """A request's body, of which each piece asks `trace` before it leaves: a large one takes a while.

    httpx's own is iterated by a generator; left half way by a connection that breaks, it would end in a
    ResourceWarning on trio.
    """

    trace: SentTrace | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        content: Iterable[bytes] = self  # type: ignore[assignment]  # a stream of httpx's is below it
        return _BodyPieces(b"".join(content), self.trace)


class _BodyPieces:
    def __init__(self, content: bytes, trace: SentTrace | None) -> None:
        self._left = [content[at : at + _STEP] for at in range(0, len(content), _STEP)]
        self._left.reverse()
        self._trace = trace

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        if self._trace is not None:
            self._trace.before_body()
        return self._left.pop()


@functools.cache
def _request_body(stream: type) -> Any:
    """Make our body a stream of httpx or of httpx2."""
    return type("RequestBody", (_RequestBody, stream), {})


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


_MOST_CAUSES: Final = 3
_DEEPEST: Final = 20


def causes_of(error: BaseException) -> str:
    """Return the different reasons of an error that its own text leaves out, at most three; "" where there are none."""
    text, found = str(error).lower(), list[str]()
    for cause in _causes(error, _DEEPEST):
        words = _description(cause)
        if words and words.lower() not in text and words not in found:
            found.append(words)
    return "; ".join(found[:_MOST_CAUSES])


_SHORTAGES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def is_shortage(error: BaseException) -> bool:
    """Return whether an error came from what the process has run out of, file descriptors above all."""
    causes = (error, *_causes(error, _DEEPEST))
    if any(isinstance(cause, OSError) and cause.errno in _SHORTAGES for cause in causes):
        return True
    return any(isinstance(cause, socket.gaierror) for cause in causes) and not _has_descriptors()


def _has_descriptors() -> bool:
    """Return whether descriptors are left: a resolver without any says that the name is not known."""
    try:
        for descriptor in os.pipe():
            os.close(descriptor)
    except OSError:
        return False
    return True


def _causes(error: BaseException, depth: int) -> Iterator[BaseException]:
    """Return what an error came from, the members of a group one by one, the nearest first."""
    if depth == 0:
        return
    below = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    cause = error.__cause__ or error.__context__  # HTTP libraries raise `from None`, and the reason lies below
    for each in (*below, *([cause] if cause is not None else [])):
        yield each
        yield from _causes(each, depth - 1)


def _description(cause: BaseException) -> str:
    match cause:
        case ssl.SSLCertVerificationError():
            reason = getattr(cause, "verify_message", "")  # aiohttp's own has none, and one with a reason below it
            return f"TLS: certificate verify failed: {reason}" if reason else ""
        case ssl.SSLError():
            reason = getattr(cause, "reason", None) or "handshake failed"
            return f"TLS: {reason.replace('_', ' ').lower()}"
        case socket.gaierror():
            return f"the name is not known: {cause.strerror}"
        case OSError(errno=int() as number) if number > 0:
            return os.strerror(number)
    return ""


T = TypeVar("T")

_LINGERING: Final = 120.0
"""Seconds that a request whose caller has left may still wait and connect; the client's own time-outs end it sooner."""


class DetachedExchanges:
    """Runs exchanges in tasks of their own."""

    def __init__(self) -> None:
        self._running: dict[anyio.CancelScope, OwnTask[Any]] = {}  # held here, for loops hold tasks weakly
        self._left: set[anyio.CancelScope] = set()
        self._owed: deque[Callable[[], None]] = deque()

    async def run(self, work: Callable[[], Awaitable[T]], trace: SentTrace, limit: float) -> T | None:
        """Return what `work` returns or raise what it raises; None after `limit` seconds.

        Cancelled, or after the limit, the caller leaves at once: work that has begun sending is cut, other work never
        begins to.
        """
        scope = anyio.CancelScope()

        async def exchange() -> T | None:
            try:
                with scope:
                    return await work()
                return None
            finally:
                self._ended(scope)

        task = OwnTask(exchange)
        if not task.over.is_set():
            self._running[scope] = task
        try:
            await _within(limit, task.over.wait)
        finally:
            if not task.over.is_set():
                self._left.add(scope)
                _leave(trace, scope)
        return task.result() if task.over.is_set() else None

    def release(self, give_back: Callable[[], None]) -> None:
        """Return a caller's place in the queue: at once, or when an exchange that was left has left the pool."""
        if len(self._left) > len(self._owed):
            self._owed.append(give_back)
        else:
            give_back()

    def _ended(self, scope: anyio.CancelScope) -> None:
        self._running.pop(scope, None)
        self._left.discard(scope)
        while len(self._owed) > len(self._left):
            self._owed.popleft()()


def _leave(trace: SentTrace, scope: anyio.CancelScope) -> None:
    trace.withdraw()
    if trace.has_begun_sending:
        scope.cancel()
    else:
        scope.deadline = anyio.current_time() + _LINGERING


_LATE: Final = 0.5  # seconds by which no timer of a loop that runs is late
_GRACE: Final = 1.0  # seconds


async def _within(limit: float, work: Callable[[], Awaitable[T]]) -> T | None:
    """Return what `work` returns, or None after `limit` seconds.

    A process that was frozen beyond them (SIGSTOP, a paused container) finds them passed, and with them what came
    meanwhile: that is then still read, for a second.
    """
    deadline = anyio.current_time() + limit
    with anyio.CancelScope() as scope:

        def expire(late: float) -> None:
            scope.deadline = deadline if late < _LATE else deadline + late + _GRACE

        prevent = call_at(deadline, expire)
        try:
            return await work()
        finally:
            prevent()
    return None


_UNTRUSTED: Final = (
    "trying again does not help: where something here inspects TLS, name the file of its authority in $SSL_CERT_FILE "
    "or pass ssl_context=; else check the base URL and the clock of this machine"
)
_PART: Final = 64 * 1024  # a receipt is far shorter


class Exchange:
    """Sends calls to one base URL with one key.

    `is_lent`: the client is the caller's, and what it adds is kept. `is_known`: whether the errors of its
    transport show what was sent. `connections`: how many attempts are made at once.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        *,
        base_url: str,
        key: Secret,
        timeouts: Timeouts,
        is_known: bool,
        is_lent: bool = True,
        connections: float = math.inf,
    ) -> None:
        self.connections: Final = connections
        self._http = http
        self._httpx = own = httpx_of(http)
        self._is_lent = is_lent
        self._is_known = is_known
        self._timeouts = timeouts
        self._waits = _waits(timeouts)
        self._detached = DetachedExchanges() if is_lent and has_stock_pool(http) else None
        self._key, self._mask = key, Mask(key)
        self._auth = _key_auth(own.Auth)
        self._body, self._closed = _request_body(own.ByteStream), own.ByteStream(b"")
        self._address = self._mask.text(base_url)
        self._origin = _origin(own.URL(base_url))
        self._url: Callable[[str], httpx.URL] = functools.lru_cache(_ADDRESSES)(lambda path: own.URL(base_url + path))
        self._host = (b"Host", own.URL(base_url).netloc)
        self._headers = [
            (b"Accept", b"application/json"),
            (b"Accept-Encoding", b"gzip"),
            (b"User-Agent", f"knouds-async/{__version__}".encode("ascii")),
        ]

    async def attempt(self, call: Call[Any], trace: SentTrace, *, total: float | None = None) -> Outcome:
        """Send a call once and give what came of it, within `total` seconds or the call's own timeout.

        Cancelled: the connection is closed; `trace` knows whether the request may have left.
        """
        limit = self.limit(call, total)
        if getattr(self._http, "is_closed", False):
            return NotSent(f"the HTTP client is closed ({self._address})")
        error: Exception | None = None
        part = io.BytesIO()
        try:
            trace.check()  # also where the transport shows no events
            if (outcome := await self._bounded(call, trace, limit, part)) is not None:
                return outcome
        except Exception as failure:  # noqa: BLE001  (a caller's own transport may raise anything)
            error = failure
        except BaseException as stop:  # noqa: BLE001  (raised again)
            raise stop.with_traceback(None) from None
        return self._classify(error, trace, limit, part)

    async def aclose(self) -> None:
        """Close the HTTP client, unless it is the caller's."""
        if not self._is_lent:
            await self._http.aclose()

    def limit(self, call: Call[Any], total: float | None) -> float:
        """Return the seconds that an exchange may take in all."""
        limit: float = getattr(call.timeouts or self._timeouts, call.timeout_kind.value) if total is None else total
        return limit

    def longest_queue(self, call: Call[Any], total: float | None) -> float:
        """Return the seconds to wait for a connection; a paid request waits at least as long as it may take itself."""
        limit, pool = self.limit(call, total), (call.timeouts or self._timeouts).pool
        return max(pool, limit) if call.pays_for is not None else pool

    def release(self, give_back: Callable[[], None]) -> None:
        """Return a place in the queue for connections, as soon as no exchange that was left uses it."""
        if self._detached is None:
            give_back()
        else:
            self._detached.release(give_back)

    async def _bounded(self, call: Call[Any], trace: SentTrace, limit: float, part: io.BytesIO) -> Outcome | None:
        """Perform it within `limit` seconds, else return None; a pool that no cancellation may reach is left."""
        work = partial(self._perform, call, trace, limit, part)
        if self._detached is not None:
            return await self._detached.run(work, trace, limit)
        if call.pays_for is not None:  # on trio that takes a task
            return await _within(limit, work)
        with anyio.move_on_after(limit):
            return await work()
        return None

    async def _perform(self, call: Call[Any], trace: SentTrace, limit: float, part: io.BytesIO) -> Outcome:
        response = await self._send(call, trace, limit)
        headers = _headers_of(response)
        encoding = headers.pop(_ENCODING, "")
        status, seen = response.status_code, self._mask.headers(headers)
        try:
            body = await read_body(response, encoding, part)
        except UnreadableBody as odd:
            return Garbled(status, seen, f"the body of the answer {odd}", is_cut=False, part=self._part(part))
        except http_errors("TransportError") as error:
            why = f"the answer was cut short ({self._described(error)})"
            return Garbled(status, seen, why, is_cut=True, part=self._part(part))
        finally:
            with contextlib.suppress(Exception):  # what was read is worth more than a tidy end
                await self._close(response)
        # An answer that echoes the request must not carry the key into errors.
        return Answer(status, seen, self._mask.body(body))

    async def _close(self, response: httpx.Response) -> None:
        try:
            await response.aclose()
        finally:
            response.stream = self._closed  # it and the response hold each other, until some garbage collection

    async def _send(self, call: Call[Any], trace: SentTrace, limit: float) -> httpx.Response:
        """Send a call and return the head of its answer; raises what the client raises."""
        request = self._request(call)
        is_paid, waits = call.pays_for is not None, self._waits if call.timeouts is None else _waits(call.timeouts)
        if is_paid:  # it may take as long as it is allowed to in all
            waits = {**waits, "read": None}
        if self._is_lent:  # a pool that has no connection says so before the whole time has passed
            waits = {**waits, "pool": min(waits["pool"], limit * _OF_LIMIT)}
        request.extensions = {"timeout": waits, "trace": trace, "knouds.fresh": is_paid}
        if call.body is not None:
            cast("_RequestBody", request.stream).trace = trace
        if self._is_lent:
            withheld(request, self._http, trace)
        auth = self._auth(self._key, self._origin, self._http.auth if self._is_lent else None, is_keyed=call.keyed)
        return await self._http.send(request, stream=True, auth=auth, follow_redirects=False)

    def _request(self, call: Call[Any]) -> httpx.Request:
        """Build a request: the caller's client by itself, for ours without what httpx would work out anew for each."""
        request: httpx.Request
        url, lines = self._url(call.path), self._headers
        if call.body is not None:
            lines = [*lines, (b"Content-Type", b"application/json")]
        if self._is_lent:
            request = self._http.build_request(call.method, url, content=call.body, headers=lines)
            request.url = url  # the client may have default parameters
            if call.body is not None:
                request.stream = self._body(call.body)
            return request
        if call.method in ("POST", "PUT"):
            lines = [*lines, (b"Content-Length", b"%d" % len(call.body or b""))]
        stream = self._body(call.body or b"")
        request = self._httpx.Request(call.method, url, headers=[self._host, *lines], stream=stream)
        request.read()  # so that hooks and tools find its body
        return request

    def _classify(self, error: Exception | None, trace: SentTrace, limit: float, part: io.BytesIO) -> Outcome:
        """Judge from the trace, not from the error's class, whether the request may have left."""
        seen = self._described(error) if error is not None else f"no complete answer within {limit:g} s"
        may_have_left = trace.may_have_been_sent(error, transport_is_known=self._is_known)
        if may_have_left and not connector_failed(self._http if self._is_lent else None, error):
            return Unanswered(seen, self._part(part))
        return NotSent(f"{seen} ({self._address})", _UNTRUSTED if _is_untrusted(error) else None)

    def _described(self, error: Exception) -> str:
        """Name an error in words that cannot hold the key."""
        text = self._mask.text(str(error)).rstrip(". ")  # the sentence continues
        if why := self._mask.text(causes_of(error)):
            text = f"{text} ({why})" if text else why
        return f"{type(error).__name__}: {text}" if text else type(error).__name__

    def _part(self, read: io.BytesIO) -> bytes:
        """Return the beginning of a body that did not come whole: the id of a run may be in it."""
        return self._mask.body(bytes(read.getbuffer()[:_PART]))


def _waits(timeouts: Timeouts) -> dict[str, Any]:
    return {name: getattr(timeouts, name) for name in ("connect", "read", "write", "pool")}


def _is_untrusted(error: BaseException | None) -> bool:
    """Return whether a certificate was not believed; the libraries between wrap the error that says so."""
    causes = () if error is None else (error, *_causes(error, _DEEPEST))
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes)
