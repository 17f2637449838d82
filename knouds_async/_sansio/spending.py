"""What requests are left, what one is worth when they are scarce, and how the last ones are spread. Pure."""

from __future__ import annotations

import math
from typing import Final

import attrs

HIGHEST_COST: Final = 4.0
"""Seconds of latency that a request is worth at most."""

_TARGET_USE: Final = 0.8  # the part of a limit that polls plan to use
_RECHECK: Final = 1.0  # seconds until a quota without a reset is checked again


@attrs.frozen(kw_only=True)
class Quota:
    """The quota of a route: its limit, what remains of this window, and seconds to the next; None: unknown.

    A route without a limit has None for all three.
    """

    limit: int | None = None
    remaining: int | None = None
    resets_in: float | None = None

    @property
    def available(self) -> float:
        """Requests that may be sent now."""
        return math.inf if self.remaining is None else max(0, self.remaining)

    def next_at(self, now: float) -> float:
        """Return when there are more."""
        return now + (_RECHECK if self.resets_in is None else max(self.resets_in, 0.0) + 0.06)


def scarcity_cost(cost: float, polls_per_second: float, limit: int | None) -> float:
    """Return the cost of a request at which polls just use up the quota, if that is above `cost`.

    `polls_per_second`: those worth sending at a cost of 1 s (`Forecast.polls_per_second`); they go by the root of it.
    """
    if limit is None:
        return cost
    return max(cost, min(HIGHEST_COST, (polls_per_second / (_TARGET_USE * limit / 60)) ** 2))


class QuotaSpreader:
    """Spreads what is left of a window over the rest of it."""

    def __init__(self) -> None:
        self._saved = 0.0
        self._updated_at = -math.inf

    def take(self, now: float, available: float, resets_in: float | None) -> int:
        """Return how many requests may be sent now, given what is left and the seconds to the reset."""
        remaining_time = max(resets_in if resets_in is not None else 60.0, 0.25)
        elapsed = min(now - self._updated_at, 1.0) if self._updated_at > -math.inf else 0.0
        self._saved = min(self._saved + available * elapsed / remaining_time, available)
        self._updated_at = now
        count = int(self._saved + 1e-6)
        self._saved = max(0.0, self._saved - count)
        return count

    def next_at(self, now: float, available: float, resets_in: float | None) -> float:
        """Return when `take` returns the next."""
        remaining_time = max(resets_in if resets_in is not None else 60.0, 0.25)
        return now + (min(1.0, (1 - self._saved) * remaining_time / available) if available > 0 else 1.0)
