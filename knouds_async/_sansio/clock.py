"""The server's clock, seen from here: how far it can be from the local monotonic clock, as an interval.

Rule of the file: local times are monotonic seconds, server times are epoch seconds; only this interval joins them.
"""

from __future__ import annotations

import math
from typing import Final

import attrs

__all__ = ["ServerClock"]

DRIFT: Final = 1e-4
"""Seconds by which two clocks can part in a second: about ten times what common crystals do."""

FINE: Final = 0.2
"""Seconds between the bounds that are near enough: about what round trips allow."""

COARSE: Final = 2.0
"""Seconds between the bounds from which on answers are too slow to tell more."""


@attrs.frozen
class ServerClock:
    """Bounds on (server epoch seconds - local monotonic seconds); a new value for every answer heard (contract 6)."""

    lo: float = -math.inf
    hi: float = math.inf
    at: float = 0.0

    @property
    def known(self) -> bool:
        """Tell whether any `Date` header has been heard."""
        return self.lo > -math.inf

    def heard(self, date: float, sent: float, answered: float) -> ServerClock:
        """Take in a `Date` header (whole epoch seconds, cut) of an answer to a request `sent` and `answered` then.

        The server wrote it between those two local moments, so the difference is in [date - answered, date + 1 - sent].
        What was known before counts too, a little widened for drift; when the two contradict each other,
        a clock was set and only the newest counts.
        """
        lo, hi = date - answered, date + 1 - sent
        drift = DRIFT * max(0.0, answered - self.at) if self.known else 0.0
        both_lo, both_hi = max(lo, self.lo - drift), min(hi, self.hi + drift)
        if both_lo > both_hi:
            return ServerClock(lo, hi, answered)
        return ServerClock(both_lo, both_hi, answered)

    @property
    def turn(self) -> float | None:
        """Give a local moment at which, by the middle of the bounds, one of the server's seconds begins.

        The `Date` of a request sent then halves the bounds. None while that is not worth it, or not to be had.
        """
        return -(self.lo + self.hi) / 2 if FINE < self.hi - self.lo < COARSE else None

    def server_time(self, now: float) -> float | None:
        """Estimate the server's epoch time at the local moment `now`; None before any `Date` was heard."""
        return now + (self.lo + self.hi) / 2 if self.known else None
