"""One attempt of a call over HTTP: answered, garbled, not sent, or sent and unanswered; it never raises."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from knouds_async._io import lent
from knouds_async._io.body import CutBody, UnreadableBody
from knouds_async._io.concurrency import OwnTask
from knouds_async._io.sent import SentTrace
from knouds_async._io.through_httpx import ThroughHttpx
from knouds_async._sansio.endpoints import Call
from knouds_async._sansio.responses import Answer, Mask
from knouds_async._sansio.retry import Garbled, NotSent, Outcome, Unanswered
from knouds_async.config import Secret, Timeouts

if TYPE_CHECKING:
    import httpx


_MOST: Final = 3
_DEEPEST: Final = 20


def causes_of(error: BaseException) -> str:
    """Return the different reasons of an error that its own text leaves out, at most three; "" where there are none."""
    said, found = str(error).lower(), list[str]()
    for cause in _below(error, _DEEPEST):
        words = _words(cause)
        if words and words.lower() not in said and words not in found:
            found.append(words)
    return "; ".join(found[:_MOST])


def _below(error: BaseException, depth: int) -> Iterator[BaseException]:
    """Return what an error came from, the members of a group one by one, the nearest first."""
    if depth == 0:
        return
    below = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    cause = error.__cause__ or error.__context__  # HTTP libraries raise `from None`, and the reason lies below
    for each in (*below, *([cause] if cause is not None else [])):
        yield each
        yield from _below(each, depth - 1)


def _words(cause: BaseException) -> str:
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


class Apart:
    """Runs exchanges in tasks of their own."""

    def __init__(self) -> None:
        """Run nothing yet."""
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
            with anyio.move_on_after(limit):
                await task.over.wait()
        finally:
            if not task.over.is_set():
                self._left.add(scope)
                _leave(trace, scope)
        return task.result() if task.over.is_set() else None

    def release(self, give_back: Callable[[], None]) -> None:
        """Return a caller's place in the line: at once, or when an exchange that was left has let go of the pool."""
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


_UNTRUSTED: Final = (
    "trying again does not help: where something here inspects TLS, name the file of its authority in $SSL_CERT_FILE "
    "or pass ssl_context=; else check the base URL and the clock of this machine"
)
_PART: Final = 64 * 1024  # a receipt is far shorter


class Exchange:
    """Sends calls to one base URL with one key."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        *,
        base_url: str,
        key: Secret,
        timeouts: Timeouts,
        agent: str,
        is_known: bool,
        proxy: str | None = None,
        is_lent: bool = True,
    ) -> None:
        """Use `http`; `is_lent`: it is the caller's, and what it adds to requests is kept.

        `is_known`: whether the transport is one whose errors tell what was sent. `proxy`: its host, if there is one.
        """
        self._way = ThroughHttpx(http, base_url, key, timeouts, agent=agent, is_lent=is_lent)
        self._apart = Apart() if is_lent and lent.has_stock_pool(http) else None
        self._lent = http if is_lent else None
        self._mask = Mask(key)
        self._address = self._mask.text(base_url) + (f" through the proxy {proxy}" if proxy is not None else "")
        self._timeouts = timeouts
        self._is_known = is_known

    async def attempt(self, call: Call[Any], trace: SentTrace, *, total: float | None = None) -> Outcome:
        """Send a call once and give what came of it, within `total` seconds or the call's own timeout.

        Cancelled: the connection is closed; `trace` tells whether the request may have left.
        """
        limit = self.limit(call, total)
        if self._way.is_closed:
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

    def limit(self, call: Call[Any], total: float | None) -> float:
        """Return the seconds that an exchange may take in all."""
        limit: float = getattr(self._timeouts, call.timeout_kind.value) if total is None else total
        return limit

    def longest_queue(self, call: Call[Any], total: float | None) -> float:
        """Return the seconds to wait for a connection; a paid request waits at least as long as it may take itself."""
        limit = self.limit(call, total)
        return max(self._timeouts.pool, limit) if call.pays_for is not None else self._timeouts.pool

    def release(self, give_back: Callable[[], None]) -> None:
        """Return a place in the line for connections, as soon as no exchange that was left uses it."""
        if self._apart is None:
            give_back()
        else:
            self._apart.release(give_back)

    async def _bounded(self, call: Call[Any], trace: SentTrace, limit: float, part: io.BytesIO) -> Outcome | None:
        """Perform it within `limit` seconds, None when they are over; a pool that no cancellation may reach is left."""
        if self._apart is not None:
            return await self._apart.run(lambda: self._perform(call, trace, limit, part), trace, limit)
        with anyio.move_on_after(limit):
            return await self._perform(call, trace, limit, part)
        return None

    async def _perform(self, call: Call[Any], trace: SentTrace, limit: float, part: io.BytesIO) -> Outcome:
        reply = await self._way.send(call, trace, limit)
        seen = self._mask.headers(reply.headers())
        try:
            body = await reply.read(part)
        except UnreadableBody as odd:
            why = f"the body of the answer {odd}"
            return Garbled(reply.status, seen, why, is_cut=False, part=self._part(part))
        except CutBody as cut:
            why = f"the answer was cut short ({self._words(cut.error)})"
            return Garbled(reply.status, seen, why, is_cut=True, part=self._part(part))
        finally:
            with contextlib.suppress(Exception):  # what was read is worth more than a tidy end
                await reply.aclose()
        # An answer that echoes the request must not carry the key into errors.
        return Answer(reply.status, seen, self._mask.body(body))

    def _classify(self, error: Exception | None, trace: SentTrace, limit: float, part: io.BytesIO) -> Outcome:
        """Judge from the trace, not from the error's class, whether the request may have left."""
        seen = self._words(error) if error is not None else f"no complete answer within {limit:g} s"
        may_have_left = trace.may_have_been_sent(error, transport_is_known=self._is_known)
        if may_have_left and not lent.connector_failed(self._lent, error):
            return Unanswered(seen, self._part(part))
        return NotSent(f"{seen} ({self._address})", _UNTRUSTED if _is_untrusted(error) else None)

    def _words(self, error: Exception) -> str:
        """Name an error in words that cannot hold the key."""
        text = self._mask.text(str(error)).rstrip(". ")  # the sentence goes on
        if why := self._mask.text(causes_of(error)):
            text = f"{text} ({why})" if text else why
        return f"{type(error).__name__}: {text}" if text else type(error).__name__

    def _part(self, read: io.BytesIO) -> bytes:
        """Return the beginning of a body that did not come whole: the id of a run may be in it."""
        return self._mask.body(bytes(read.getbuffer()[:_PART]))


def _is_untrusted(error: BaseException | None) -> bool:
    """Return whether a certificate was not believed; the libraries between wrap the error that says so."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None
