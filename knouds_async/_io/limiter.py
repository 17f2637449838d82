"""Turns at the rate limit: `acquire(route)` waits until the request may be sent. The mathematics is `window`.

Rule of the file: order and waiting only. First come, first served within a lane; only the head of the line sleeps;
a waiter that is cancelled costs nothing and wakes the next. No task of its own.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final, Protocol

import anyio
import attrs

from knouds_async import config
from knouds_async._io.backend import HomeLoop
from knouds_async._sansio import window as windows
from knouds_async._sansio.calls import Lane
from knouds_async._sansio.clock import ServerClock
from knouds_async._sansio.window import Go, Reply, Ticket, Turn
from knouds_async.config import Secret
from knouds_async.errors import ConfigurationError, RateLimitError

_OURS: Final = windows.MINUTE / 12  # seconds that are paused after a 429 which names no time, so asked for by nobody
_ADVICE: Final = "Wait, or allow longer waits (Retries(longest=...), Limiter(max_wait=...))"


class Bucket(Protocol):
    """Where the turns of one route come from: a mirror of our own, or one that several processes share."""

    def take(self, now: float, waiting: int) -> Turn:
        """Give a turn, or when to ask again; `waiting`: how many turns are wanted in all."""
        ...

    def answered(self, now: float, ticket: Ticket, reply: Reply, date: float | None, clock: ServerClock) -> None:
        """Learn from an answer; `clock` has heard its `date` already."""
        ...

    def returned(self, now: float, ticket: Ticket) -> None:
        """Take back a turn that was not used."""
        ...

    def lost(self, now: float, ticket: Ticket) -> None:
        """Take note that no answer will come."""
        ...

    def stands(self, now: float) -> tuple[int | None, int | None, float | None]:
        """Give limit, left and the seconds to the reset; None: not known, or not limited."""
        ...

    def held(self, now: float) -> float:
        """Give the seconds for which the service asked that nothing be sent."""
        ...


class Mirror:
    """A bucket of this process alone."""

    def __init__(self, limit: float | None, share: float) -> None:
        """Begin with a guess of the limit: inf is unlimited, None not known."""
        is_unlimited = limit == math.inf
        known = None if limit is None or is_unlimited else int(limit)
        self._window = windows.unknown(known, share=share, unlimited=is_unlimited)

    def take(self, now: float, waiting: int) -> Turn:
        """Give a turn, or when to ask again."""
        self._window, turn = windows.take(self._window, now, waiting)
        return turn

    def answered(self, now: float, ticket: Ticket, reply: Reply, date: float | None, clock: ServerClock) -> None:  # noqa: ARG002
        """Learn from an answer."""
        self._window = windows.answered(self._window, now, ticket, reply, clock)

    def returned(self, now: float, ticket: Ticket) -> None:  # noqa: ARG002
        """Take back a turn that was not used."""
        self._window = windows.returned(self._window, ticket)

    def lost(self, now: float, ticket: Ticket) -> None:
        """Take note that no answer will come."""
        self._window = windows.lost(self._window, now, ticket)

    def stands(self, now: float) -> tuple[int | None, int | None, float | None]:
        """Give limit, left and the seconds to the reset."""
        limit = None if self._window.rules.unlimited else self._window.rules.limit
        return limit, windows.left(self._window, now), windows.resets_in(self._window, now)

    def held(self, now: float) -> float:
        """Give the seconds for which the service asked that nothing be sent."""
        return windows.held(self._window, now)


class _Waiter:
    """One request in line; `news` is set when it should ask again. `longest`: the longest pause that it bears."""

    __slots__ = ("longest", "news")

    def __init__(self, longest: float) -> None:
        self.longest = longest
        self.news = anyio.Event()


class _Line:
    """The requests of one route that wait for their turn: a lane each, the first lane goes first."""

    __slots__ = ("bucket", "lanes", "refusals")

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.refusals = 0
        self.lanes: tuple[OrderedDict[_Waiter, None], ...] = tuple(OrderedDict() for _ in Lane)

    def first(self) -> _Waiter | None:
        return next((next(iter(lane)) for lane in self.lanes if lane), None)

    def join(self, waiter: _Waiter, lane: Lane, *, at_head: bool) -> None:
        self.lanes[lane][waiter] = None
        if at_head:
            self.lanes[lane].move_to_end(waiter, last=False)

    def leave(self, waiter: _Waiter, lane: Lane) -> None:
        del self.lanes[lane][waiter]
        self.wake()

    def waiting(self) -> int:
        return sum(len(lane) for lane in self.lanes)

    def wake(self) -> None:
        first = self.first()
        if first is not None:
            first.news.set()

    def wake_impatient(self, held: float) -> None:
        """Wake all who do not bear a pause of so many seconds."""
        for waiter in (waiter for lane in self.lanes for waiter in lane if held > waiter.longest):
            waiter.news.set()


@attrs.frozen(kw_only=True)
class LimiterStats:
    """A route's quota as it is believed to stand: `limit` and `left` in requests, `resets_in` in seconds.

    `waiting`: requests in line, `refusals`: 429s seen. `held_for`: seconds for which the service asked that nothing be
    sent (`Retry-After` of a 429). None: not known, or not limited.
    """

    limit: int | None
    left: int | None
    resets_in: float | None
    waiting: int
    refusals: int
    held_for: float = 0.0


class Limiter:
    """A token bucket per route that mirrors the server's window: its tokens are what is left of this window.

    `tier`: the first guess of the limit, None to learn it from the headers; the headers win. `share`: the part of each
    window that is ours, e.g. 0.7 leaves 30 % to others. `max_wait`: seconds after which a request that still waits for
    its turn raises RateLimitError instead; None waits for ever. Nothing was sent then. Clients of one event loop may
    share it; in another, WrongEventLoopError is raised: `SharedLimiter` serves several.
    """

    def __init__(self, tier: str | None = None, *, share: float = 1.0, max_wait: float | None = None) -> None:
        """Know nothing of the server yet."""
        self._guess = config.requests_per_minute(tier)
        self._share = config.share(share)
        if max_wait is not None and not (isinstance(max_wait, (int, float)) and max_wait >= 0):
            raise ConfigurationError(f"max_wait={max_wait!r}: must be a number of seconds of at least 0, or None")
        self._max_wait = math.inf if max_wait is None else max_wait
        self._lines: dict[str, _Line] = {}
        self._clock = ServerClock()
        self._home = HomeLoop(
            "Limiter", "its times and its line belong there. Use one per event loop, or a SharedLimiter for them all"
        )

    def for_key(self, key: Secret) -> Limiter:  # noqa: ARG002  (one limiter of this kind is one account's)
        """Give the limiter of a key's account: this one."""
        return self

    def take_now(self, route: str) -> Ticket | None:
        """Take a turn if there is one and nobody waits for it."""
        self._home.enter()
        line = self._line(route)
        if line.first() is not None:
            return None
        turn = line.bucket.take(anyio.current_time(), 1)
        return turn.ticket if isinstance(turn, Go) else None

    async def acquire(
        self, route: str, lane: Lane = Lane.SUBMIT, *, at_head: bool = False, longest: float = math.inf
    ) -> Ticket:
        """Wait for a turn; give the ticket that `answered`, `returned` or `lost` takes back.

        RateLimitError when it would take longer than `max_wait`, and at once where the service asked for a pause of
        more than `longest` seconds. Cancelled while waiting: nothing was taken, and the next in line is woken.
        """
        if (ticket := self.take_now(route)) is not None:
            return ticket
        with anyio.CancelScope(deadline=anyio.current_time() + self._max_wait):
            waiter = _Waiter(max(_OURS, min(longest, self._max_wait)))
            if (ticket := await _wait(self._line(route), waiter, lane, at_head=at_head)) is not None:
                return ticket
            raise self._paused(route)
        raise self._too_long(route)

    def answered(self, route: str, ticket: Ticket, reply: Reply, date: float | None) -> None:
        """Learn from an answer; `date`: its `Date` header in epoch seconds."""
        line, now = self._line(route), anyio.current_time()
        if date is not None:
            self._clock = self._clock.heard(date, min(ticket.sent, now), now)
        line.refusals += reply.refused
        line.bucket.answered(now, ticket, reply, date, self._clock)
        line.wake()
        if reply.refused:
            line.wake_impatient(line.bucket.held(now))

    def returned(self, route: str, ticket: Ticket) -> None:
        """Give a turn back: the request never left."""
        line = self._line(route)
        line.bucket.returned(anyio.current_time(), ticket)
        line.wake()

    def lost(self, route: str, ticket: Ticket) -> None:
        """Take note of a request that left and will have no answer: the server may have counted it."""
        line = self._line(route)
        line.bucket.lost(anyio.current_time(), ticket)
        line.wake()

    def server_time(self, now: float) -> float | None:
        """Give the service's clock at the local moment `now`, epoch seconds; None until it was heard."""
        return self._clock.server_time(now)

    def stats(self, route: str) -> LimiterStats:
        """Give a route's quota for a dashboard."""
        line, now = self._line(route), anyio.current_time()
        limit, left, resets_in = line.bucket.stands(now)
        return LimiterStats(
            limit=limit,
            left=left,
            resets_in=resets_in,
            waiting=line.waiting(),
            refusals=line.refusals,
            held_for=line.bucket.held(now),
        )

    def _line(self, route: str) -> _Line:
        line = self._lines.get(route)
        if line is None:
            line = self._lines[route] = _Line(self._bucket(route))
        return line

    def _bucket(self, route: str) -> Bucket:  # noqa: ARG002  (every route begins alike)
        return Mirror(self._guess, self._share)

    def _too_long(self, route: str) -> RateLimitError:
        stats = self.stats(route)
        return RateLimitError(
            f"{route}: no turn at the rate limit within {self._max_wait:g} s; nothing was sent",
            code="RATE_LIMIT_EXCEEDED",
            retry_after=stats.resets_in,
            limit=stats.limit,
            advice=_ADVICE,
        )

    def _paused(self, route: str) -> RateLimitError:
        stats = self.stats(route)
        return RateLimitError(
            f"{route}: the service asked for a pause that lasts {stats.held_for:.0f} s more; nothing was sent",
            code="RATE_LIMIT_EXCEEDED",
            retry_after=stats.held_for,
            limit=stats.limit,
            is_pause=True,
            advice=_ADVICE,
        )


async def _wait(line: _Line, waiter: _Waiter, lane: Lane, *, at_head: bool) -> Ticket | None:
    """Wait for a turn; None for a pause that the waiter does not bear."""
    line.join(waiter, lane, at_head=at_head)
    try:
        while True:
            until = math.inf
            if line.first() is waiter:
                turn = line.bucket.take(anyio.current_time(), line.waiting())
                if isinstance(turn, Go):
                    return turn.ticket
                until = turn.until
            if line.bucket.held(anyio.current_time()) > waiter.longest:
                return None
            waiter.news = anyio.Event()
            with anyio.CancelScope(deadline=until):
                await waiter.news.wait()
    finally:
        line.leave(waiter, lane)
