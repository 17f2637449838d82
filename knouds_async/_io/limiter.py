"""Rate limiter: `acquire(route)` waits until the request may be sent. The arithmetic is `rate_limit`.

Order and waiting only. First come, first served within a priority; only the first in the queue sleeps; a waiter that is
cancelled costs nothing and notifies the next. No task of its own.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, TypeAlias

import anyio
import attrs

from knouds_async import config
from knouds_async._io.concurrency import HomeLoop
from knouds_async._sansio.clock import ClockBounds
from knouds_async._sansio.endpoints import Priority
from knouds_async._sansio.rate_limit import LimiterStats, Permit, QuotaHeaders, RetryAt, WindowLimiter
from knouds_async.config import Secret
from knouds_async.errors import ConfigurationError, RateLimitError
from knouds_async.telemetry import fields

__all__ = ["Bucket", "Limiter", "LimiterStats"]

logger = logging.getLogger("knouds_async")

_WORTH_SAYING: Final = 1.0  # seconds that a window still lasts: below, it is a probe at its edge that is waited for
_BURST: Final = 0.1  # seconds in which the requests of a burst join the queue
Report: TypeAlias = Callable[[WindowLimiter, float, Permit], None]  # given the window's time, and the permit by it


class Bucket:
    """The permits of one route: from a window of our own here, from one that is shared in the classes below this one.

    `now` is the event loop's time.
    """

    def __init__(self, window: WindowLimiter) -> None:
        self.window = window

    def try_acquire(self, now: float) -> Permit | RetryAt:
        """Return a permit if there is one, or when to ask again."""
        return self.window.try_acquire(now)

    def report(self, now: float, permit: Permit, report: Report, *, is_refusal: bool = False) -> None:  # noqa: ARG002
        """Report to the window what became of a permit."""
        report(self.window, now, permit)

    def stats(self, now: float) -> LimiterStats:
        """Return how the quota stands, and change nothing: another thread may ask."""
        return self.window.stats(now)


@attrs.define(eq=False, repr=False)
class _Waiter:
    """One request in the queue; `changed` is set when it should ask again.

    `longest`: the seconds that it accepts to be held by a refusal; `max_wait`: by a pause that was asked for.
    """

    longest: float
    max_wait: float
    changed: anyio.Event = attrs.field(factory=lambda: anyio.Event())  # noqa: PLW0108  (anyio loads it when it is used)

    def accepts(self, stats: LimiterStats) -> bool:
        return stats.held_for <= (min(self.longest, self.max_wait) if stats.is_pause else self.longest)


class _WaitQueue:
    """The requests of one route that wait for a permit, by priority; the first priority goes first."""

    __slots__ = ("_by_priority", "_logged_until", "_waiting_since", "bucket", "refusals", "route")

    def __init__(self, route: str, bucket: Bucket) -> None:
        self.route, self.bucket = route, bucket
        self.refusals = 0
        self._waiting_since, self._logged_until = math.inf, -math.inf
        self._by_priority: tuple[OrderedDict[_Waiter, None], ...] = tuple(OrderedDict() for _ in Priority)

    async def wait(self, waiter: _Waiter, priority: Priority, *, front: bool) -> Permit | None:
        """Wait for a permit; None when a refusal holds the route for longer than the waiter accepts."""
        queue = self._by_priority[priority]
        queue[waiter] = None
        if front:
            queue.move_to_end(waiter, last=False)
        try:
            while True:
                now, until = anyio.current_time(), math.inf
                if self.first() is waiter:
                    decision = self.bucket.try_acquire(now)
                    if isinstance(decision, Permit):
                        return decision
                    until = min(decision.until, self._log_wait(now))
                if not waiter.accepts(self.bucket.stats(now)):
                    return None
                waiter.changed = anyio.Event()
                with anyio.CancelScope(deadline=until):
                    await waiter.changed.wait()
        finally:
            del queue[waiter]
            self.notify()

    def first(self) -> _Waiter | None:
        return next((next(iter(queue)) for queue in self._by_priority if queue), None)

    def waiting(self) -> int:
        return sum(map(len, self._by_priority))

    def notify(self) -> None:
        first = self.first()
        if first is not None:
            first.changed.set()

    def notify_unaccepting(self, stats: LimiterStats) -> None:
        for waiter in (waiter for queue in self._by_priority for waiter in queue if not waiter.accepts(stats)):
            waiter.changed.set()

    def _log_wait(self, now: float) -> float:
        """Log once a window that requests wait for it, when a burst has joined; return when to call again."""
        if not logger.isEnabledFor(logging.INFO):
            return math.inf
        stats = self.bucket.stats(now)
        wait = max(stats.held_for, (stats.resets_in or 0.0) if stats.left == 0 else 0.0)
        if now < self._logged_until or wait < _WORTH_SAYING:
            self._waiting_since = math.inf
            return math.inf
        self._waiting_since = min(self._waiting_since, now)
        if now < self._waiting_since + _BURST:
            return self._waiting_since + _BURST
        self._waiting_since, self._logged_until = math.inf, now + wait
        count, ends = self.waiting(), "the service asked for a pause of" if stats.is_pause else "the window resets in"
        requests = "1 request waits" if count == 1 else f"{count} requests wait"
        extra = fields("rate_limit_wait", route=self.route, count=count, wait=wait)
        logger.info("%s for %s; %s %.0f s", requests, self.route, ends, wait, extra=extra)
        return math.inf


class Limiter:
    """A token bucket for each route that follows the server's window: its tokens are what is left of this window.

    `tier`: the first guess of the limit, None to learn it from the headers; the headers win. `share`: the part of each
    window that is ours, e.g. 0.7 leaves 30 % to others. `max_wait`: seconds after which a request that still waits for
    a permit raises RateLimitError instead; None waits for ever. Nothing was sent then. Clients of one event loop may
    share it; in another, WrongEventLoopError is raised: `SharedLimiter` serves several.
    """

    def __init__(self, tier: str | None = None, *, share: float = 1.0, max_wait: float | None = None) -> None:
        self._guess = config.requests_per_minute(tier)
        self._share = config.share(share)
        if max_wait is not None and not (isinstance(max_wait, (int, float)) and max_wait >= 0):
            raise ConfigurationError(f"max_wait={max_wait!r}: must be a number of seconds of at least 0, or None")
        self._max_wait = math.inf if max_wait is None else max_wait
        self._queues: dict[str, _WaitQueue] = {}
        self._clock = ClockBounds()
        self._monotonic = -math.inf  # the clock of all threads less that of the event loop
        self._home = HomeLoop(
            "Limiter", "its times and its queue belong there. Use one per event loop, or a SharedLimiter for them all"
        )

    def for_key(self, key: Secret) -> Limiter:  # noqa: ARG002  (one limiter of this kind is one account's)
        """Return the limiter of a key's account: this one."""
        return self

    @property
    def share(self) -> float:
        """The part of each window that is ours."""
        return self._share

    def try_acquire(self, route: str) -> Permit | None:
        """Return a permit if there is one and nobody waits for it; never waits."""
        self._home.enter()
        queue = self._queue(route)
        if queue.first() is not None:
            return None
        permit = queue.bucket.try_acquire(anyio.current_time())
        return permit if isinstance(permit, Permit) else None

    async def acquire(
        self, route: str, priority: Priority = Priority.SUBMIT, *, front: bool = False, max_pause: float = math.inf
    ) -> Permit:
        """Wait for a permit, which `on_response`, `release` or `mark_unanswered` takes back.

        RateLimitError when it would take longer than `max_wait`, and at once where a refusal holds the route for more
        than `max_pause` seconds. Cancelled while waiting: nothing was taken, and the next is notified.
        """
        if (permit := self.try_acquire(route)) is not None:
            return permit
        began = anyio.current_time()
        with anyio.CancelScope(deadline=began + self._max_wait):
            waiter = _Waiter(max_pause, self._max_wait)
            if (permit := await self._queue(route).wait(waiter, priority, front=front)) is not None:
                return attrs.evolve(permit, waited=anyio.current_time() - began)
            raise self._error(
                route, "a 429 of the service allows nothing for {0.held_for:.0f} s more", longest=max_pause
            )
        raise self._error(route, f"rate limit: no slot within {self._max_wait:g} s")

    def on_response(self, route: str, permit: Permit, reply: QuotaHeaders, date: float | None) -> None:
        """Update from the headers of a response; `date`: its `Date` header in epoch seconds."""
        now = anyio.current_time()
        if date is not None:
            self._clock = self._clock.update(date, min(permit.sent, now), now)
        self._monotonic = time.monotonic() - now
        self._report(route, permit, lambda window, at, by: window.on_response(at, by, reply, date), reply)

    def release(self, route: str, permit: Permit) -> None:
        """Release a permit: the request was not sent."""
        self._report(route, permit, lambda window, _, by: window.release(by))

    def mark_unanswered(self, route: str, permit: Permit) -> None:
        """Count a request that was sent and will have no response: the server may have counted it."""
        self._report(route, permit, lambda window, _, by: window.mark_unanswered(by))

    def server_time(self, now: float) -> float | None:
        """Return the service's clock at the local moment `now`, epoch seconds; None until a response has shown it."""
        return self._clock.server_time(now)

    def stats(self, route: str) -> LimiterStats:
        """Return a route's quota for a dashboard."""
        queue = self._queue(route)
        stats = queue.bucket.stats(anyio.current_time())
        return attrs.evolve(stats, waiting=queue.waiting(), refusals=queue.refusals)

    def quotas(self) -> list[tuple[str, int | None, int]]:
        """Return the routes that were used, with the requests that are left and that wait; callable in any thread."""
        now = time.monotonic() - self._monotonic
        queues = tuple(self._queues.items())
        return [(route, queue.bucket.stats(now).left, queue.waiting()) for route, queue in queues if now < math.inf]

    def _report(self, route: str, permit: Permit, report: Report, reply: QuotaHeaders | None = None) -> None:
        queue, now = self._queue(route), anyio.current_time()
        is_refusal = reply is not None and reply.refused
        queue.bucket.report(now, permit, report, is_refusal=is_refusal)
        queue.notify()
        if is_refusal:
            queue.refusals += 1
            queue.notify_unaccepting(queue.bucket.stats(now))

    def _queue(self, route: str) -> _WaitQueue:
        queue = self._queues.get(route)
        if queue is None:
            queue = self._queues[route] = _WaitQueue(route, self._bucket(route))
        return queue

    def _bucket(self, route: str) -> Bucket:  # noqa: ARG002  (every route begins alike)
        return Bucket(self._first_guess())

    def _first_guess(self) -> WindowLimiter:
        is_unlimited = self._guess == math.inf
        known = None if self._guess is None or is_unlimited else int(self._guess)
        return WindowLimiter(known, share=self._share, unlimited=is_unlimited)

    def _error(self, route: str, what: str, *, longest: float = math.inf) -> RateLimitError:
        stats = self.stats(route)
        return RateLimitError(
            f"{route}: {what.format(stats)}; the request was not sent",
            code="RATE_LIMIT_EXCEEDED",
            retry_after=stats.held_for or stats.resets_in,
            limit=stats.limit,
            is_pause=stats.is_pause or stats.held_for > longest,
            advice="Wait, or allow longer waits (Retries(longest=...), Limiter(max_wait=...))",
        )
