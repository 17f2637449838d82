"""Rate limiter: `acquire(route)` waits until the request may be sent. The arithmetic is `rate_limit`.

Order and waiting only. First come, first served within a priority; only the first in the queue sleeps; a waiter that is
cancelled costs nothing and notifies the next. No task of its own.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final, Protocol

import anyio
import attrs

from knouds_async import config
from knouds_async._io.concurrency import HomeLoop
from knouds_async._sansio import rate_limit
from knouds_async._sansio.clock import ClockBounds
from knouds_async._sansio.endpoints import Priority
from knouds_async._sansio.rate_limit import Decision, Granted, Permit, QuotaHeaders
from knouds_async.config import Secret
from knouds_async.errors import ConfigurationError, RateLimitError

_OURS: Final = rate_limit.MINUTE / 12  # seconds that are paused after a 429 which names no time, so asked for by nobody
_ADVICE: Final = "Wait, or allow longer waits (Retries(longest=...), Limiter(max_wait=...))"


class Bucket(Protocol):
    """Where the permits of one route come from: a window of our own, or one that several processes share."""

    def try_acquire(self, now: float, waiting: int) -> Decision:
        """Return a permit, or when to ask again; `waiting`: how many permits are wanted in all."""
        ...

    def on_response(
        self, now: float, permit: Permit, reply: QuotaHeaders, date: float | None, clock: ClockBounds
    ) -> None:
        """Update from the headers of a response; `clock` has its `date` already."""
        ...

    def release(self, now: float, permit: Permit) -> None:
        """Take back a permit that was not used."""
        ...

    def mark_unanswered(self, now: float, permit: Permit) -> None:
        """Count a request as sent to which no response will come."""
        ...

    def state(self, now: float) -> tuple[int | None, int | None, float | None]:
        """Return limit, remaining and the seconds to the reset; None: not known, or not limited."""
        ...

    def pause_left(self, now: float) -> float:
        """Return the seconds for which the service asked to send nothing."""
        ...


class LocalBucket:
    """A bucket of this process alone."""

    def __init__(self, limit: float | None, share: float) -> None:
        is_unlimited = limit == math.inf
        known = None if limit is None or is_unlimited else int(limit)
        self._window = rate_limit.new_window(known, share=share, unlimited=is_unlimited)

    def try_acquire(self, now: float, waiting: int) -> Decision:
        """Return a permit, or when to ask again."""
        self._window, decision = rate_limit.try_acquire(self._window, now, waiting)
        return decision

    def on_response(
        self,
        now: float,
        permit: Permit,
        reply: QuotaHeaders,
        date: float | None,  # noqa: ARG002
        clock: ClockBounds,
    ) -> None:
        """Update from the headers of a response."""
        self._window = rate_limit.on_response(self._window, now, permit, reply, clock)

    def release(self, now: float, permit: Permit) -> None:  # noqa: ARG002
        """Take back a permit that was not used."""
        self._window = rate_limit.release(self._window, permit)

    def mark_unanswered(self, now: float, permit: Permit) -> None:
        """Count a request as sent to which no response will come."""
        self._window = rate_limit.mark_unanswered(self._window, now, permit)

    def state(self, now: float) -> tuple[int | None, int | None, float | None]:
        """Return limit, remaining and the seconds to the reset."""
        limit = None if self._window.limits.unlimited else self._window.limits.limit
        return limit, rate_limit.remaining(self._window, now), rate_limit.resets_in(self._window, now)

    def pause_left(self, now: float) -> float:
        """Return the seconds for which the service asked to send nothing."""
        return rate_limit.pause_left(self._window, now)


class _Waiter:
    """One request in the queue; `changed` is set when it should ask again. `max_pause`: the longest it accepts."""

    __slots__ = ("changed", "max_pause")

    def __init__(self, max_pause: float) -> None:
        self.max_pause = max_pause
        self.changed = anyio.Event()


class _WaitQueue:
    """The requests of one route that wait for a permit, by priority; the first priority goes first."""

    __slots__ = ("bucket", "by_priority", "refusals")

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.refusals = 0
        self.by_priority: tuple[OrderedDict[_Waiter, None], ...] = tuple(OrderedDict() for _ in Priority)

    def first(self) -> _Waiter | None:
        return next((next(iter(priority)) for priority in self.by_priority if priority), None)

    def join(self, waiter: _Waiter, priority: Priority, *, front: bool) -> None:
        self.by_priority[priority][waiter] = None
        if front:
            self.by_priority[priority].move_to_end(waiter, last=False)

    def leave(self, waiter: _Waiter, priority: Priority) -> None:
        del self.by_priority[priority][waiter]
        self.notify()

    def waiting(self) -> int:
        return sum(len(priority) for priority in self.by_priority)

    def notify(self) -> None:
        first = self.first()
        if first is not None:
            first.changed.set()

    def notify_over_max_pause(self, held: float) -> None:
        """Notify all that do not accept a pause of so many seconds."""
        for waiter in (waiter for priority in self.by_priority for waiter in priority if held > waiter.max_pause):
            waiter.changed.set()


@attrs.frozen(kw_only=True)
class LimiterStats:
    """The estimated state of a route's quota: `limit` and `left` in requests, `resets_in` in seconds.

    `waiting`: requests in the queue, `refusals`: 429s seen. `held_for`: seconds for which the service asked to send
    nothing (`Retry-After` of a 429). None: not known, or not limited.
    """

    limit: int | None
    left: int | None
    resets_in: float | None
    waiting: int
    refusals: int
    held_for: float = 0.0


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
        self._home = HomeLoop(
            "Limiter", "its times and its queue belong there. Use one per event loop, or a SharedLimiter for them all"
        )

    def for_key(self, key: Secret) -> Limiter:  # noqa: ARG002  (one limiter of this kind is one account's)
        """Return the limiter of a key's account: this one."""
        return self

    def try_acquire(self, route: str) -> Permit | None:
        """Return a permit if there is one and nobody waits for it; never waits."""
        self._home.enter()
        queue = self._queue(route)
        if queue.first() is not None:
            return None
        decision = queue.bucket.try_acquire(anyio.current_time(), 1)
        return decision.permit if isinstance(decision, Granted) else None

    async def acquire(
        self, route: str, priority: Priority = Priority.SUBMIT, *, front: bool = False, max_pause: float = math.inf
    ) -> Permit:
        """Wait for a permit, which `on_response`, `release` or `mark_unanswered` takes back.

        RateLimitError when it would take longer than `max_wait`, and at once where the service asked for a pause of
        more than `max_pause` seconds. Cancelled while waiting: nothing was taken, and the next is notified.
        """
        if (permit := self.try_acquire(route)) is not None:
            return permit
        with anyio.CancelScope(deadline=anyio.current_time() + self._max_wait):
            waiter = _Waiter(max(_OURS, min(max_pause, self._max_wait)))
            if (permit := await _wait(self._queue(route), waiter, priority, front=front)) is not None:
                return permit
            raise self._paused(route)
        raise self._too_long(route)

    def on_response(self, route: str, permit: Permit, reply: QuotaHeaders, date: float | None) -> None:
        """Update from the headers of a response; `date`: its `Date` header in epoch seconds."""
        queue, now = self._queue(route), anyio.current_time()
        if date is not None:
            self._clock = self._clock.update(date, min(permit.sent, now), now)
        queue.refusals += reply.refused
        queue.bucket.on_response(now, permit, reply, date, self._clock)
        queue.notify()
        if reply.refused:
            queue.notify_over_max_pause(queue.bucket.pause_left(now))

    def release(self, route: str, permit: Permit) -> None:
        """Release a permit: the request was not sent."""
        queue = self._queue(route)
        queue.bucket.release(anyio.current_time(), permit)
        queue.notify()

    def mark_unanswered(self, route: str, permit: Permit) -> None:
        """Count a request that was sent and will have no response: the server may have counted it."""
        queue = self._queue(route)
        queue.bucket.mark_unanswered(anyio.current_time(), permit)
        queue.notify()

    def server_time(self, now: float) -> float | None:
        """Return the service's clock at the local moment `now`, epoch seconds; None until a response has shown it."""
        return self._clock.server_time(now)

    def stats(self, route: str) -> LimiterStats:
        """Return a route's quota for a dashboard."""
        queue, now = self._queue(route), anyio.current_time()
        limit, left, resets_in = queue.bucket.state(now)
        return LimiterStats(
            limit=limit,
            left=left,
            resets_in=resets_in,
            waiting=queue.waiting(),
            refusals=queue.refusals,
            held_for=queue.bucket.pause_left(now),
        )

    def _queue(self, route: str) -> _WaitQueue:
        queue = self._queues.get(route)
        if queue is None:
            queue = self._queues[route] = _WaitQueue(self._bucket(route))
        return queue

    def _bucket(self, route: str) -> Bucket:  # noqa: ARG002  (every route begins alike)
        return LocalBucket(self._guess, self._share)

    def _too_long(self, route: str) -> RateLimitError:
        stats = self.stats(route)
        return RateLimitError(
            f"{route}: rate limit: no slot within {self._max_wait:g} s; the request was not sent",
            code="RATE_LIMIT_EXCEEDED",
            retry_after=stats.resets_in,
            limit=stats.limit,
            advice=_ADVICE,
        )

    def _paused(self, route: str) -> RateLimitError:
        stats = self.stats(route)
        return RateLimitError(
            f"{route}: the service asked for a pause that lasts {stats.held_for:.0f} s more; the request was not sent",
            code="RATE_LIMIT_EXCEEDED",
            retry_after=stats.held_for,
            limit=stats.limit,
            is_pause=True,
            advice=_ADVICE,
        )


async def _wait(queue: _WaitQueue, waiter: _Waiter, priority: Priority, *, front: bool) -> Permit | None:
    """Wait for a permit; None for a pause that the waiter does not accept."""
    queue.join(waiter, priority, front=front)
    try:
        while True:
            until = math.inf
            if queue.first() is waiter:
                decision = queue.bucket.try_acquire(anyio.current_time(), queue.waiting())
                if isinstance(decision, Granted):
                    return decision.permit
                until = decision.until
            if queue.bucket.pause_left(anyio.current_time()) > waiter.max_pause:
                return None
            waiter.changed = anyio.Event()
            with anyio.CancelScope(deadline=until):
                await waiter.changed.wait()
    finally:
        queue.leave(waiter, priority)
