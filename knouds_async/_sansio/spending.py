"""What requests there are to spend, what one is worth when they are scarce, and how the last ones are spread. Pure."""

from __future__ import annotations

import math
from typing import Final

import attrs

DEAREST: Final = 4.0
"""Seconds of notice that a request is worth at most."""

_SPENT: Final = 0.8  # the part of a limit that looks plan to use
_RETRY: Final = 1.0  # seconds until the quota is asked for again that says nothing of its reset


@attrs.frozen(kw_only=True)
class Quota:
    """How the quota of a route stands: its limit, what is left of this window, and seconds to the next; None: unknown.

    A route without a limit has None for all three.
    """

    limit: int | None = None
    left: int | None = None
    resets_in: float | None = None

    @property
    def room(self) -> float:
        """Requests that may be sent now."""
        return math.inf if self.left is None else max(0, self.left)

    def next_at(self, now: float) -> float:
        """Say when there are more."""
        return now + (_RETRY if self.resets_in is None else max(self.resets_in, 0.0) + 0.06)


def price(cost: float, looks: float, limit: int | None) -> float:
    """Give the cost of a request at which looks just spend the quota, if that is dearer than `cost`.

    `looks`: looks per second that are worth it at a cost of 1 s (`Outlook.looks`); they go by the root of the cost.
    """
    if limit is None:
        return cost
    return max(cost, min(DEAREST, (looks / (_SPENT * limit / 60)) ** 2))


class Spread:
    """Spreads what is left of a window over the rest of it."""

    def __init__(self) -> None:
        """Begin with nothing saved up."""
        self._saved = 0.0
        self._as_of = -math.inf

    def take(self, now: float, room: float, resets_in: float | None) -> int:
        """Give how many requests may be sent now, given what is left and the seconds to the reset."""
        rest = max(resets_in if resets_in is not None else 60.0, 0.25)
        passed = min(now - self._as_of, 1.0) if self._as_of > -math.inf else 0.0
        self._saved = min(self._saved + room * passed / rest, room)
        self._as_of = now
        whole = int(self._saved + 1e-6)
        self._saved = max(0.0, self._saved - whole)
        return whole

    def next_at(self, now: float, room: float, resets_in: float | None) -> float:
        """Say when `take` gives the next."""
        rest = max(resets_in if resets_in is not None else 60.0, 0.25)
        return now + (min(1.0, (1 - self._saved) * rest / room) if room > 0 else 1.0)
