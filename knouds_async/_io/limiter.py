"""Rate limiter: `acquire(route)` waits until the request may be sent. Order and waiting only; `rate_limit` is the rest.

First come, first served within a priority; only the first in the queue sleeps; a waiter that is cancelled costs nothing
and notifies the next. No task of its own.
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
from knouds_async._sansio.rate_limit import LimiterStats, Permit, QuotaHeaders, WindowLimiter
from knouds_async.errors import ConfigurationError, RateLimitError, safe_repr
from knouds_async.telemetry import fields

logger = logging.getLogger("knouds_async")

_WORTH_SAYING: Final = 1.0  # seconds that a window still lasts: below, it is a probe at its edge that is waited for
_BURST: Final = 0.1  # seconds in which the requests of a burst join the queue
STUCK: Final = 3.0  # seconds without an answer, or with a file held by another process, until a store is unusable
AGAIN: Final = 10.0  # seconds until an unusable store is tried again
Report: TypeAlias = Callable[[WindowLimiter, float, Permit], None]  # given the window's time, and the permit by it
Accepts: TypeAlias = Callable[[LimiterStats], bool]  # whether one who waits accepts what a refusal asks for


class Bucket:
    """The permits of one route, and the requests that wait for them: by priority, the first priority first.

    The window is its own here, and shared in the classes that build on this one. `now` is the event loop's time.
    `clock`: the window's time, if it is another.
    """

    def __init__(self, route: str, window: WindowLimiter, clock: Callable[[], float] | None = None) -> None:
        self.route, self.window, self._clock = route, window, clock
        self._refusals = 0
        self._waiting_since, self._logged_until = math.inf, -math.inf
        self._by_priority: tuple[OrderedDict[Accepts, anyio.Event], ...] = tuple(OrderedDict() for _ in Priority)

    def here(self, now: float) -> float:
        """Return the time by the window's clock."""
        return now if self._clock is None else self._clock()

    def try_acquire(self, now: float) -> Permit | float:
        """Return a permit if there is one, or when to ask again."""
        return self.window.try_acquire(now)

    def update(self, now: float, permit: Permit, report: Report, *, is_refusal: bool) -> None:  # noqa: ARG002
        """Report to the window what became of a permit."""
        report(self.window, now, permit)

    def stats(self, now: float) -> LimiterStats:
        """Return how the quota stands, and change nothing: another thread may ask."""
        return attrs.evolve(self.window.stats(self.here(now)), waiting=self.waiting(), refusals=self._refusals)

    async def wait(self, accepts: Accepts, priority: Priority, *, front: bool) -> Permit | None:
        """Wait for a permit; None when a refusal holds the route for longer than the waiter accepts."""
        queue = self._by_priority[priority]
        queue[accepts] = anyio.Event()
        if front:
            queue.move_to_end(accepts, last=False)
        try:
            while True:
                changed = queue[accepts] = anyio.Event()
                now, until = anyio.current_time(), math.inf
                if self.first() is changed:
                    decision = self.try_acquire(now)
                    if isinstance(decision, Permit):
                        return decision
                    until = min(decision, self._log_wait(now))
                if not accepts(self.stats(now)):
                    return None
                with anyio.CancelScope(deadline=until):
                    await changed.wait()
        finally:
            del queue[accepts]
            self.notify()

    def waiting(self) -> int:
        """Return how many wait."""
        return sum(map(len, self._by_priority))

    def first(self) -> anyio.Event | None:
        """Return what lets the first of them ask again."""
        for queue in self._by_priority:
            if queue:
                return next(iter(queue.values()))
        return None

    def notify(self) -> None:
        """Notify the first: it asks again."""
        if (first := self.first()) is not None:
            first.set()

    def report(self, permit: Permit, report: Report, *, is_refusal: bool = False) -> None:
        """Report to the window what became of a permit, and notify those who wait."""
        now = anyio.current_time()
        self.update(now, permit, report, is_refusal=is_refusal)
        self.notify()
        if is_refusal:
            self._refusals += 1
            stats = self.stats(now)
            for changed in (it for queue in self._by_priority for accepts, it in queue.items() if not accepts(stats)):
                changed.set()

    def _log_wait(self, now: float) -> float:
        """Log once a window that requests wait for it, when a burst has joined; return when to call again."""
        if not logger.isEnabledFor(logging.INFO):
            return math.inf
        stats = self.stats(now)
        wait = max(stats.held_for, (stats.resets_in or 0.0) if stats.left == 0 else 0.0)
        if now < self._logged_until or wait < _WORTH_SAYING:
            self._waiting_since = math.inf
            return math.inf
        self._waiting_since = min(self._waiting_since, now)
        if now < self._waiting_since + _BURST:
            return self._waiting_since + _BURST
        self._waiting_since, self._logged_until = math.inf, now + wait
        requests = "1 request waits" if stats.waiting == 1 else f"{stats.waiting} requests wait"
        ends = "the service asked for a pause of" if stats.is_pause else "the window resets in"
        extra = fields("rate_limit_wait", route=self.route, count=stats.waiting, wait=wait)
        logger.info("%s for %s; %s %.0f s", requests, self.route, ends, wait, extra=extra)
        return math.inf


class Outage:
    """A time in which what stores the windows is not used; the quota is then shared blindly, at the cost of some 429s.

    `until`: when it ends; -inf where there is none.
    """

    def __init__(self, again: float) -> None:
        self.until = -math.inf
        self._again = again

    def begin(self, store: object, why: object, now: float) -> None:
        """Begin it, which is one warning, or prolong it."""
        if self.until == -math.inf:
            message = "the quota in %s cannot be shared, continuing without it: %s"
            logger.warning(message, store, why, extra=fields("quota_not_shared"))
        self.until = now + self._again


class Limiter:
    """A token bucket for each route that follows the server's window: its tokens are what is left of this window.

    `tier`: the first guess of the limit, None to learn it from the headers; the headers win. `share`: the part of each
    window that is ours, e.g. 0.7 leaves 30 % to others. `max_wait`: seconds after which a request that waits for a
    permit raises RateLimitError and is not sent; None waits for ever. Clients of one event loop may share it; another
    raises WrongEventLoopError: `SharedLimiter` serves several.
    """

    def __init__(self, tier: str | None = None, *, share: float = 1.0, max_wait: float | None = None) -> None:
        limit = config.requests_per_minute(tier)
        known = None if limit is None or limit == math.inf else int(limit)
        self._first_guess = WindowLimiter(known, share=config.share(share), unlimited=limit == math.inf)
        if max_wait is not None and not (config.is_number(max_wait) and max_wait >= 0):
            message = f"max_wait={safe_repr(max_wait)}: must be a number of seconds of at least 0, or None"
            raise ConfigurationError(message)
        self._max_wait = math.inf if max_wait is None else max_wait
        self._make_bucket: Callable[[str, WindowLimiter], Bucket] = Bucket
        self._buckets: dict[str, Bucket] = {}
        self._clock = ClockBounds()
        self._monotonic = -math.inf  # the clock of all threads less that of the event loop
        self._home = HomeLoop("Limiter", "its times and its queue belong there. Use a SharedLimiter for several")

    def for_key(self, key: config.Secret) -> Limiter:  # noqa: ARG002  (one limiter of this kind is one account's)
        """Return the limiter of a key's account: this one."""
        return self

    @property
    def share(self) -> float:
        """The part of each window that is ours."""
        return self._first_guess.share

    def try_acquire(self, route: str) -> Permit | None:
        """Return a permit if there is one and nobody waits for it; never waits."""
        self._home.enter()
        bucket = self._bucket(route)
        permit = bucket.try_acquire(anyio.current_time()) if bucket.first() is None else None
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

        def accepts(stats: LimiterStats) -> bool:
            return stats.held_for <= (min(max_pause, self._max_wait) if stats.is_pause else max_pause)

        with anyio.CancelScope(deadline=began + self._max_wait) as scope:
            if (permit := await self._bucket(route).wait(accepts, priority, front=front)) is not None:
                return attrs.evolve(permit, waited=anyio.current_time() - began)
        raise self._error(route, max_pause, is_late=scope.cancelled_caught)

    def on_response(self, route: str, permit: Permit, reply: QuotaHeaders, date: float | None) -> None:
        """Update from the headers of a response; `date`: its `Date` header in epoch seconds."""
        now = anyio.current_time()
        if date is not None:
            self._clock = self._clock.update(date, min(permit.sent, now), now)
        self._monotonic = time.monotonic() - now
        self._bucket(route).report(
            permit, lambda window, here, by: window.on_response(here, by, reply, date), is_refusal=reply.refused
        )

    def release(self, route: str, permit: Permit) -> None:
        """Release a permit: the request was not sent."""
        self._bucket(route).report(permit, lambda window, _, by: window.release(by))

    def mark_unanswered(self, route: str, permit: Permit) -> None:
        """Count a request that was sent and will have no response: the server may have counted it."""
        self._bucket(route).report(permit, lambda window, _, by: window.mark_unanswered(by))

    def server_time(self, now: float) -> float | None:
        """Return the service's clock at the local moment `now`, epoch seconds; None until a response has shown it."""
        return self._clock.server_time(now)

    def stats(self, route: str) -> LimiterStats:
        """Return a route's quota for a dashboard."""
        return self._bucket(route).stats(anyio.current_time())

    def quotas(self) -> list[tuple[str, int | None, int]]:
        """Return the routes that were used, with the requests that are left and that wait; callable in any thread."""
        if self._monotonic == -math.inf:  # nothing was answered, so nothing is known
            return []
        now = time.monotonic() - self._monotonic
        stats = [(route, bucket.stats(now)) for route, bucket in tuple(self._buckets.items())]
        return [(route, each.left, each.waiting) for route, each in stats]

    def _bucket(self, route: str) -> Bucket:
        if route not in self._buckets:
            self._buckets[route] = self._make_bucket(route, self._first_guess.copy())
        return self._buckets[route]

    def _error(self, route: str, max_pause: float, *, is_late: bool) -> RateLimitError:
        stats = self.stats(route)
        late, held = f"rate limit: no slot within {self._max_wait:g} s", f"for {stats.held_for:.0f} s more"
        why = late if is_late else f"a 429 of the service allows nothing {held}"
        return RateLimitError(
            f"{route}: {why}; the request was not sent",
            code="RATE_LIMIT_EXCEEDED",
            retry_after=stats.held_for or stats.resets_in,
            limit=stats.limit,
            is_pause=stats.is_pause or (not is_late and stats.held_for > max_pause),
            advice="Wait, or allow longer waits (Retries(longest=...), Limiter(max_wait=...))",
        )
