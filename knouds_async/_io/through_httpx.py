"""The one way of a call: AsyncClient.send, of our own client or of the caller's, and what keeps it from leaving."""

from __future__ import annotations

import functools
import io
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from knouds_async._io.body import CutBody, read_body
from knouds_async._io.lent import errors, httpx_of, sends_plainly
from knouds_async._io.sent import SentTrace
from knouds_async._sansio import responses
from knouds_async._sansio.endpoints import Call
from knouds_async.config import Secret, Timeouts

if TYPE_CHECKING:
    import httpx


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
    """Make a subclass of a request class that tells the trace in its extensions when it is asked for one of these."""

    def asked(self: Any, name: str) -> Any:
        if name in names and (trace := self.extensions.get(_TRACE)) is not None:
            trace.is_withheld = False
        return kind.__getattribute__(self, name)

    return type(kind.__name__, (kind,), {"__getattribute__": asked, "__module__": kind.__module__})


_READ: Final = {name.encode(): name for name in responses.READ}
_OF_LIMIT: Final = 0.9
_ADDRESSES: Final = 1024  # a URL is looked at again and again while its run lasts, and costs much to parse


class HttpxReply:
    """An answer whose body is still to be read and closed."""

    def __init__(self, response: httpx.Response, over: httpx.ByteStream) -> None:
        """Read the headers once; a repeated header's values are joined by commas. `over`: stands for a closed body."""
        self._response = response
        self._over = over
        self.status = response.status_code
        self._headers: dict[bytes, bytes] = {}
        for raw_name, value in response.headers.raw:
            name = raw_name.lower()
            self._headers[name] = b"%b, %b" % (self._headers[name], value) if name in self._headers else value

    def headers(self) -> Mapping[str, str]:
        """Return the headers that this library reads, as they came."""
        found = {name: self._headers.get(raw) for raw, name in _READ.items()}
        return {name: value.decode("latin-1") for name, value in found.items() if value is not None}

    async def read(self, into: io.BytesIO) -> bytes:
        """Read the body; UnreadableBody or CutBody for what goes wrong. `into` holds what came."""
        encoding = self._headers.get(b"content-encoding", b"").decode("latin-1")
        try:
            return await read_body(self._response, encoding=encoding, into=into)
        except errors("TransportError") as cut:
            raise CutBody(cut) from None

    async def aclose(self) -> None:
        """Release the connection."""
        try:
            await self._response.aclose()
        finally:
            self._response.stream = self._over  # it and the response hold each other, until some garbage collection


class ThroughHttpx:
    """Sends calls to one base URL with one key; `is_lent`: through the caller's client."""

    def __init__(
        self, http: httpx.AsyncClient, base_url: str, key: Secret, timeouts: Timeouts, *, agent: str, is_lent: bool
    ) -> None:
        """Prepare what is the same in every request."""
        self._http = http
        self._httpx = own = httpx_of(http)
        self._base_url = base_url
        self._key = key
        self._auth = _key_auth(own.Auth)
        self._body, self._over = _one_piece(own.ByteStream), own.ByteStream(b"")
        self._origin = _origin(own.URL(base_url))
        self._is_lent = is_lent
        self._url: Callable[[str], httpx.URL] = functools.lru_cache(_ADDRESSES)(lambda path: own.URL(base_url + path))
        self._host = (b"Host", own.URL(base_url).netloc)
        self._headers = [
            (b"Accept", b"application/json"),
            (b"Accept-Encoding", b"gzip"),
            (b"User-Agent", agent.encode("ascii")),
        ]
        self._timeouts = {name: getattr(timeouts, name) for name in ("connect", "read", "write", "pool")}

    @property
    def is_closed(self) -> bool:
        """Whether the client would refuse to send anything."""
        return bool(getattr(self._http, "is_closed", False))

    async def send(self, call: Call[Any], trace: SentTrace, limit: float) -> HttpxReply:
        """Send a call and return its answer; raises what the client raises."""
        request = self._lent(call) if self._is_lent else self._own(call)
        is_paid, wait = call.pays_for is not None, self._timeouts
        if is_paid:  # it may take as long as it is allowed to in all
            wait = {**wait, "read": max(wait["read"], limit)}
        if self._is_lent:  # a pool that has no connection says so before the time is over in all
            wait = {**wait, "pool": min(wait["pool"], limit * _OF_LIMIT)}
        request.extensions = {"timeout": wait, "trace": trace, "knouds.fresh": is_paid}
        if self._is_lent:
            withheld(request, self._http, trace)
        auth = self._auth(self._key, self._origin, self._http.auth if self._is_lent else None, is_keyed=call.keyed)
        response = await self._http.send(request, stream=True, auth=auth, follow_redirects=False)
        return HttpxReply(response, self._over)

    def _own(self, call: Call[Any]) -> httpx.Request:
        """Build a request without what httpx would work out anew for each."""
        lines = [self._host, *self._added(call)]
        if call.body is not None or call.method in ("POST", "PUT"):
            lines.append((b"Content-Length", b"%d" % len(call.body or b"")))
        stream = self._body(call.body or b"")
        request: httpx.Request = self._httpx.Request(call.method, self._url(call.path), headers=lines, stream=stream)
        request.read()  # so that whoever looks at the request finds its body
        return request

    def _lent(self, call: Call[Any]) -> httpx.Request:
        """Build a request with what the caller's client adds."""
        url = self._url(call.path)
        request = self._http.build_request(call.method, url, content=call.body, headers=self._added(call))
        request.url = url  # the client may have default parameters
        if call.body is not None:
            request.stream = self._body(call.body)
        return request

    def _added(self, call: Call[Any]) -> list[tuple[bytes, bytes]]:
        return self._headers if call.body is None else [*self._headers, (b"Content-Type", b"application/json")]


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


class _OnePiece:
    """A request's body in one piece.

    httpx's own is iterated by a generator; left half way by a connection that breaks, it would end in a
    ResourceWarning on trio.
    """

    def __aiter__(self: Iterable[bytes]) -> AsyncIterator[bytes]:
        return _Once(b"".join(self))


class _Once:
    def __init__(self, content: bytes) -> None:
        self._left = [content] if content else []

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


@functools.cache
def _one_piece(stream: type) -> Any:
    """Make a body in one piece a stream of httpx or of httpx2."""
    return type("OnePiece", (_OnePiece, stream), {})


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
