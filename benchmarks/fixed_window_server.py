"""A server that counts requests in fixed windows, as seen by a limiter: it answers or refuses, and says so in headers.

Rule of the file: it knows only its own clock; `now` is the true time of a request's arrival, in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import attrs

__all__ = ["ROUNDINGS", "Answer", "FixedWindowServer"]

ROUNDINGS: Final[dict[str, Callable[[float], int]]] = {"up": math.ceil, "down": math.floor, "nearest": round}


@attrs.frozen(kw_only=True)
class Answer:
    """What one request was answered: the headers of contract 6, and `Date`."""

    refused: bool
    limit: int
    remaining: int
    reset: int
    date: int
    retry_after: int | None


@attrs.define(kw_only=True)
class FixedWindowServer:
    """Counts `limit` requests in each window of `length` seconds; windows begin at `phase`, or with their first hit."""

    limit: int
    length: float
    phase: float
    epoch: float
    rounding: str = "up"
    is_opened_by_hit: bool = False
    counted: int = 0
    opened: float = -math.inf

    def begins(self, now: float) -> float:
        """Return when the window at `now` began (or would, with a hit)."""
        if self.is_opened_by_hit:
            return self.opened if now < self.opened + self.length else now
        return math.floor((now - self.phase) / self.length) * self.length + self.phase

    def left(self, now: float) -> int:
        """Return the remaining tokens of the current window."""
        return self.limit - self.counted if self.begins(now) == self.opened else self.limit

    def hit(self, now: float) -> Answer:
        """Count a request, or refuse it."""
        opened = self.begins(now)
        if opened != self.opened:
            self.opened, self.counted = opened, 0
        refused = self.counted >= self.limit
        self.counted += not refused
        edge = opened + self.length
        return Answer(
            refused=refused,
            limit=self.limit,
            remaining=self.limit - self.counted,
            reset=ROUNDINGS[self.rounding](edge + self.epoch),
            date=math.floor(now + self.epoch),
            retry_after=max(1, math.ceil(edge - now)) if refused else None,
        )
