"""Turns at the rate limit: `acquire(route)` waits until the request may be sent. The mathematics is `window`.

Rule of the file: order and waiting only. First come, first served within a lane; only the head of the line sleeps;
a waiter that is cancelled costs nothing and wakes the next. No task of its own.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import anyio
import attrs

from knouds_async import config
from knouds_async._sansio import window as windows
from knouds_async._sansio.calls import Lane
from knouds_async._sansio.clock import ServerClock
from knouds_async._sansio.window import Go, Reply, Ticket, Window


class _Waiter:
    """One request in line; `news` is set when it should ask again."""

    __slots__ = ("news",)

    def __init__(self) -> None:
        self.news = anyio.Event()


class _Line:
    """The requests of one route that wait for their turn: a lane each, the first lane goes first."""

    __slots__ = ("lanes", "refusals", "window")

    def __init__(self, window: Window) -> None:
        self.window = window
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

    def wake(self) -> None:
        first = self.first()
        if first is not None:
            first.news.set()


@attrs.frozen(kw_only=True)
class LimiterStats:
    """A route's quota as it is believed to stand: `limit` and `left` in requests, `resets_in` in seconds.

    `waiting`: requests in line, `refusals`: 429s seen. None: not known, or not limited.
    """

    limit: int | None
    left: int | None
    resets_in: float | None
    waiting: int
    refusals: int


class Limiter:
    """A token bucket per route that mirrors the server's window: its tokens are what is left of this window.

    `tier`: the first guess of the limit, None to learn it from the headers; the headers win.
    """

    def __init__(self, tier: str | None = None, *, share: float = 1.0) -> None:
        """Know nothing of the server yet."""
        self._guess = config.requests_per_minute(tier)
        self._share = share
        self._lines: dict[str, _Line] = {}
        self._clock = ServerClock()

    async def acquire(self, route: str, lane: Lane = Lane.SUBMIT, *, at_head: bool = False) -> Ticket:
        """Wait for a turn; give the ticket that `answered`, `returned` or `lost` takes back.

        Cancelled while waiting: nothing was taken, and the next in line is woken.
        """
        line = self._line(route)
        if line.first() is None:
            line.window, decision = windows.take(line.window, anyio.current_time())
            if isinstance(decision, Go):
                return decision.ticket
        return await _wait(line, lane, at_head=at_head)

    def answered(self, route: str, ticket: Ticket, reply: Reply, date: float | None) -> None:
        """Learn from an answer; `date`: its `Date` header in epoch seconds."""
        line, now = self._line(route), anyio.current_time()
        if date is not None:
            self._clock = self._clock.heard(date, ticket.sent, now)
        line.refusals += reply.refused
        line.window = windows.answered(line.window, now, ticket, reply, self._clock)
        line.wake()

    def returned(self, route: str, ticket: Ticket) -> None:
        """Give a turn back: the request never left."""
        line = self._line(route)
        line.window = windows.returned(line.window, ticket)
        line.wake()

    def lost(self, route: str, ticket: Ticket) -> None:
        """Take note of a request that left and will have no answer: the server may have counted it."""
        line = self._line(route)
        line.window = windows.lost(line.window, anyio.current_time(), ticket)
        line.wake()

    def server_time(self) -> float | None:
        """Give the service's clock, epoch seconds; None until it was heard."""
        return self._clock.server_time(anyio.current_time())

    def stats(self, route: str) -> LimiterStats:
        """Give a route's quota for a dashboard."""
        line, now = self._line(route), anyio.current_time()
        return LimiterStats(
            limit=line.window.rules.limit,
            left=windows.left(line.window, now),
            resets_in=windows.resets_in(line.window, now),
            waiting=sum(len(lane) for lane in line.lanes),
            refusals=line.refusals,
        )

    def _line(self, route: str) -> _Line:
        line = self._lines.get(route)
        if line is None:
            is_unlimited = self._guess == math.inf
            limit = None if self._guess is None or is_unlimited else int(self._guess)
            window = windows.unknown(limit, share=self._share, unlimited=is_unlimited)
            line = self._lines[route] = _Line(window)
        return line


async def _wait(line: _Line, lane: Lane, *, at_head: bool) -> Ticket:
    waiter = _Waiter()
    line.join(waiter, lane, at_head=at_head)
    try:
        while True:
            until = math.inf
            if line.first() is waiter:
                line.window, decision = windows.take(line.window, anyio.current_time())
                if isinstance(decision, Go):
                    return decision.ticket
                until = decision.until
            waiter.news = anyio.Event()
            with anyio.CancelScope(deadline=until):
                await waiter.news.wait()
    finally:
        line.leave(waiter, lane)
