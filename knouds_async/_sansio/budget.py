"""What a batch may still spend: credits spent and set aside, against a cap. Pure.

Rule of the file: a run is sent only when all that is spent, all that is set aside and its own price fit under the cap.
What may have run counts as if it had. Without a price, one run at a time is sent, until its cost is known: when it ends
and its cost was not told, no cap can be kept, and nothing more is sent.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import attrs

from knouds_async._sansio.entries import OPEN, Entry, Stage

_ROUNDING: Final = 1e-9


@attrs.frozen(kw_only=True)
class Totals:
    """Credits of all jobs: `spent` by ended runs, `reserved` for others.

    `unpriced`: how many runs count with no credits yet, for they may be out, or their cost was not told at the end.
    """

    spent: float = 0.0
    reserved: float = 0.0
    unpriced: int = 0

    def moved(self, before: Entry | None, after: Entry) -> Totals:
        """Give the totals after an entry has changed."""
        old, new = _weight(before), _weight(after)
        return Totals(
            spent=self.spent - old.spent + new.spent,
            reserved=self.reserved - old.reserved + new.reserved,
            unpriced=self.unpriced - old.unpriced + new.unpriced,
        )


_NOTHING: Final = Totals()


def _weight(entry: Entry | None) -> Totals:
    """Give what one entry adds to the totals; an end whose cost was not told counts with what was set aside.

    Where nothing was, it stays unpriced; but for a failed one, of which nobody says that it costs anything.
    """
    if entry is None or entry.stage is Stage.NEW:
        return _NOTHING
    aside = entry.reserved or 0.0
    if entry.ending is not None:
        is_open = entry.reserved is None and entry.ending.cost is None and entry.ending.status != "failed"
        return Totals(spent=aside if entry.ending.cost is None else entry.ending.cost, unpriced=int(is_open))
    return Totals(reserved=aside, unpriced=int(entry.reserved is None and entry.stage in OPEN))


class Verdict(Enum):
    """Whether another run may be sent."""

    GO = "go"
    WAIT = "wait"
    """Not now: what is set aside may turn out cheaper, or give the price."""
    NEVER = "never"
    """What is spent leaves no room."""


def verdict(totals: Totals, price: float | None, cap: float, *, queued: float = 0.0, is_alone: bool = True) -> Verdict:
    """Tell whether a run of this price may be sent.

    `queued`: credits of runs that were let through and are not in the totals yet; `is_alone`: whether there is no such
    run. Whoever is told to wait with nothing out will wait for ever.
    """
    out = totals.spent + totals.reserved + queued
    if price is None:
        if totals.unpriced or not is_alone:
            return Verdict.WAIT
        return Verdict.GO if out < cap else Verdict.WAIT if totals.spent < cap else Verdict.NEVER
    most = cap * (1 + _ROUNDING)
    if out + price * (1 + totals.unpriced) <= most:
        return Verdict.GO
    return Verdict.WAIT if totals.spent + price <= most else Verdict.NEVER


@attrs.frozen(kw_only=True)
class Prices:
    """What a run of a target costs: the schema's `estimate`, or the mean of real costs where that is more."""

    estimate: float | None = None
    runs: int = 0
    credits: float = 0.0

    @property
    def price(self) -> float | None:
        """Credits to set aside for a run; None while nothing is known."""
        mean = self.credits / self.runs if self.runs else None
        known = [each for each in (self.estimate, mean) if each is not None]
        return max(known) if known else None

    def paid(self, cost: float | None) -> Prices:
        """Learn the real cost of a run."""
        return self if cost is None else attrs.evolve(self, runs=self.runs + 1, credits=self.credits + cost)
