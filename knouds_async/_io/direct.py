"""The short way of a call to the service and back: one write, mostly one read, over connections of our own.

Rule of the file: only what the service's own calls need, which is always the same; anything else goes through httpx
(`through_httpx`). No call waits here for a connection: `pipeline` lets no more begin than there may be.
"""

from __future__ import annotations

import io
import ssl
from typing import Any, Final

import anyio
import httpx

from knouds_async._io.body import UnreadableBody, collector
from knouds_async._io.connection import Origin
from knouds_async._io.line import Line
from knouds_async._io.pool import Pool
from knouds_async._io.sent import SentTrace
from knouds_async._sansio import headers, http1
from knouds_async._sansio.calls import Call
from knouds_async._sansio.http1 import Head, MalformedAnswer, Reading
from knouds_async._sansio.replies import Answer
from knouds_async._sansio.retry import Garbled
from knouds_async.config import Secret, Timeouts

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_KEEPALIVE: Final = 60.0  # seconds that an idle connection is kept
_FRESH: Final = 2.0  # seconds for which an idle connection is trusted with a paid request
_NEAR: Final = 0.01  # a deadline that is early by less than this part of its time is left where it is


class _Bound:
    """The one deadline of an exchange: the end of its time or, sooner, of what is being waited for."""

    def __init__(self, now: float, limit: float) -> None:
        self.limit = limit
        self._end = now + limit
        self._late: tuple[type[httpx.TimeoutException], float] | None = None
        self.scope = anyio.CancelScope(deadline=self._end)

    def allow(self, seconds: float, late: type[httpx.TimeoutException]) -> None:
        """Bound what follows to some seconds, after which it is `late`. To move the deadline costs a timer."""
        at = anyio.current_time() + seconds
        self._late = (late, seconds) if at < self._end else None
        at = min(at, self._end)
        if not 0 <= at - self.scope.deadline <= seconds * _NEAR:
            self.scope.deadline = at

    def passed(self) -> None:
        """Raise what passing the deadline means; nothing: the whole exchange took too long."""
        if self._late is not None:
            late, seconds = self._late
            raise late(f"nothing for {seconds:g} s")


class Direct:
    """Sends calls to one base URL with one key, over HTTP/1.1."""

    def __init__(
        self,
        base_url: str,
        key: Secret,
        timeouts: Timeouts,
        *,
        agent: str,
        ssl_context: ssl.SSLContext,
        connections: int,
    ) -> None:
        """Connect to nothing yet; `connections` at once at most."""
        url = httpx.URL(base_url)
        self._origin = Origin(url.raw_scheme, url.raw_host, url.port or _DEFAULT_PORTS[url.scheme])
        self._prefix = url.raw_path.rstrip(b"/")
        self._key = key
        self._timeouts = timeouts
        self._headers = (
            b"Host: %b\r\nAccept: application/json\r\nAccept-Encoding: gzip\r\nConnection: keep-alive\r\n"
            b"User-Agent: %b\r\n" % (url.netloc, agent.encode("ascii"))
        )
        self._pool = Pool(
            lambda origin: Line(origin, ssl_context),
            limit=connections,
            keepalive_expiry=_KEEPALIVE,
            fresh_within=_FRESH,
        )

    async def send(self, call: Call[Any], trace: SentTrace, limit: float, read: io.BytesIO) -> Answer | Garbled | None:
        """Send a call once and give its answer as it came, the key perhaps in it; None: not within `limit` seconds.

        `read` collects the body, and holds what came of it when the rest did not.
        Raises what httpx's own transport would. Cancelled: the connection is closed; `trace` tells what may have left.
        """
        trace.begins()
        now = anyio.current_time()
        bound, reading = _Bound(now, limit), Reading(call.method.encode())
        line = self._line(now, is_fresh=call.pays_for is not None)
        try:
            with bound.scope:
                await self._ask(line, call, trace, bound)
                answer = await self._answer(line, call, reading, bound, read)
                line.is_clean = reading.is_reusable
                return answer
            bound.passed()
        except (UnreadableBody, MalformedAnswer, httpx.TransportError) as error:
            return _garbled(reading.head, error)
        else:
            return None
        finally:
            self._pool.give_back(line, now=anyio.current_time())

    def _line(self, now: float, *, is_fresh: bool) -> Line:
        if self._pool.is_closed:
            raise httpx.ConnectError("the connections are closed")
        if not self._pool.slots.take_now():
            raise httpx.PoolTimeout("all connections are busy")
        return self._pool.connection(self._origin, now=now, is_fresh=is_fresh)

    async def _ask(self, line: Line, call: Call[Any], trace: SentTrace, bound: _Bound) -> None:
        line.is_clean = False
        request = self._request(call)
        if not line.is_open:
            bound.allow(self._timeouts.connect, httpx.ConnectTimeout)
            await line.open()
        bound.allow(self._timeouts.write, httpx.WriteTimeout)
        trace.sends()
        await line.write(request)

    def _request(self, call: Call[Any]) -> bytes:
        lines = self._headers
        if call.body is not None:
            lines += b"Content-Type: application/json\r\n"
        if call.keyed:  # it goes to the base URL's origin, for there is no other
            lines += b"x-api-key: %b\r\n" % self._key.reveal().encode("ascii")
        return http1.request(call.method.encode(), self._prefix + call.path.encode("ascii"), lines, call.body)

    async def _answer(self, line: Line, call: Call[Any], reading: Reading, bound: _Bound, read: io.BytesIO) -> Answer:
        # A paid request may take as long as it is allowed to in all.
        patience = self._timeouts.read if call.pays_for is None else max(self._timeouts.read, bound.limit)
        body = None
        while not reading.is_over:
            bound.allow(patience, httpx.ReadTimeout)
            piece = reading.feed(await line.read())
            if body is None and reading.head is not None:
                body = collector(reading.head.headers.get("content-encoding", ""), read)
            if body is not None:
                body.feed(piece)
        assert reading.head is not None and body is not None  # noqa: S101, PT018  (for the type checker)
        return Answer(reading.head.status, _seen(reading.head), body.finish())

    def close(self) -> None:
        """Close what is idle at once, and what is in use when it comes back; refuse what comes from now on."""
        self._pool.close()


def _garbled(head: Head | None, error: UnreadableBody | MalformedAnswer | httpx.TransportError) -> Garbled:
    """Say what was wrong with an answer whose head has come; without one, raise what went wrong."""
    if head is None:
        raise error if isinstance(error, httpx.TransportError) else httpx.RemoteProtocolError(str(error))
    if isinstance(error, UnreadableBody):
        return Garbled(head.status, _seen(head), f"the body of the answer {error}", is_cut=False)
    why = f"the answer was cut short ({type(error).__name__}: {error})"
    return Garbled(head.status, _seen(head), why, is_cut=True)


def _seen(head: Head) -> dict[str, str]:
    return {name: head.headers[name] for name in headers.READ if name in head.headers}
