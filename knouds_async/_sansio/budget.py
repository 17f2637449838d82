"""What a batch may still spend: credits spent and reserved, against a cap. Pure.

Rule of the file: a run is sent only when all that is spent, all that is reserved and its own price fit under the cap.
What may have run counts as if it had. A price is the largest of the estimate and the costs seen; every run in flight is
reserved with it, also when it turns out later (`repriced`). A run whose cost was not told counts with its reservation.
Without a price, one run at a time is sent, until its cost is known: when it ends and its cost was not told, no cap can
be kept, and nothing more is sent.

What can be passed all the same: a run may turn out dearer than the estimate and than every run before it. With `p`
reserved for each, and a real cost of at most `r`, charges are at most `cap + n * (r - p)`, where `n` counts the runs
that are in flight when the last is sent, and those whose cost is never told. Few ends of runs say little about `r`, so
`n` grows with them: no more runs are in flight than have ended, and one, unless they fit at ten times their price.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import attrs

from knouds_async._sansio.entries import OPEN, Entry, Stage

_ROUNDING: Final = 1e-9
_DEARER: Final = 10.0  # a run that costs so many times what others do is no surprise


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
    """Give what one entry adds to the totals; an end whose cost was not told counts with what was reserved.

    Where nothing was, it stays unpriced: a failed one too, for nobody says that it costs nothing.
    """
    if entry is None or entry.stage is Stage.NEW:
        return _NOTHING
    aside = entry.reserved or 0.0
    if entry.ending is not None:
        is_open = entry.reserved is None and entry.ending.cost is None
        return Totals(spent=aside if entry.ending.cost is None else entry.ending.cost, unpriced=int(is_open))
    return Totals(reserved=aside, unpriced=int(entry.reserved is None and entry.stage in OPEN))


class Verdict(Enum):
    """Whether another run may be sent."""

    GO = "go"
    WAIT = "wait"
    """Not now: what is set aside may turn out cheaper, or give the price."""
    NEVER = "never"
    """What is spent leaves no room."""


def verdict(totals: Totals, price: float | None, cap: float, *, queued: int = 0) -> Verdict:
    """Tell whether a run of this price may be sent.

    `queued`: runs that were let through and are not in the totals yet. Whoever is told to wait with no run in flight
    will wait for ever.
    """
    if price is None:
        if totals.unpriced or queued:
            return Verdict.WAIT
        is_room = totals.spent + totals.reserved < cap
        return Verdict.GO if is_room else Verdict.WAIT if totals.spent < cap else Verdict.NEVER
    most = cap * (1 + _ROUNDING)
    if totals.spent + _in_flight(totals, price, queued) <= most:
        return Verdict.GO
    return Verdict.WAIT if totals.spent + price <= most else Verdict.NEVER


def is_bold(totals: Totals, price: float, cap: float, *, queued: int, in_flight: int, ended: int) -> bool:
    """Tell whether one more run is more than the `ended` runs, whose costs are known, vouch for."""
    is_cheap = price > 0 and totals.spent + _DEARER * _in_flight(totals, price, queued) <= cap
    return in_flight > ended and not is_cheap


def _in_flight(totals: Totals, price: float, queued: int) -> float:
    """Return what all that may be in flight costs, with one more run."""
    return totals.reserved + price * (1 + queued + totals.unpriced)


@attrs.frozen(kw_only=True)
class Prices:
    """What a run of a target costs: the schema's `estimate`, and the largest cost seen; how many runs `ended`."""

    estimate: float | None = None
    ended: int = 0
    highest_cost: float | None = None

    @property
    def price(self) -> float | None:
        """Credits to reserve for a run; None while nothing is known."""
        return larger(self.estimate, self.highest_cost)

    def paid(self, cost: float | None) -> Prices:
        """Learn the real cost of a run that ended; None: it was not told, and waiting does not help."""
        return attrs.evolve(self.seen(cost), ended=self.ended + 1)

    def seen(self, highest_cost: float | None) -> Prices:
        """Learn the largest cost that others have seen; nothing, as a trial grant costs, is no price."""
        return attrs.evolve(self, highest_cost=larger(self.highest_cost, highest_cost or None))


def repriced(entry: Entry, cost: float) -> Entry:
    """Return an entry whose run, where one may be in flight, is reserved with no less than a run of its target cost."""
    if entry.stage in (Stage.NEW, Stage.FINAL):
        return entry
    return attrs.evolve(entry, reserved=larger(entry.reserved, cost))


def larger(one: float | None, other: float | None) -> float | None:
    """Return the larger of two numbers of credits, of which either may not be known."""
    known = [each for each in (one, other) if each is not None]
    return max(known, default=None)
