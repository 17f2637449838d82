"""When a listing pays that shows the ends of many runs at once, and which of its pages to ask for. Pure.

Rule of the file: a sweep is due when the ends expected since the last one are expected to have gone unseen, in all,
for as many seconds as its pages cost.
"""

from __future__ import annotations

import math
from typing import Final

import attrs

from knouds_async._sansio.listing import Listing
from knouds_async._sansio.spending import Quota

FEWEST: Final = 3
"""Runs that have to be out for a sweep to pay."""

LARGEST: Final = 500
"""Rows of a page (contract 10)."""

_GAP: Final = 1.0  # seconds between two sweeps at least, and for each page beyond the fourth
_PAGES_A_SECOND: Final = 4
_PATIENCE: Final = 2.0
_LONGEST: Final = 15.0
_FIRST_BACKOFF: Final = 2.0
_LONGEST_BACKOFF: Final = 300.0
_EXPLORE: Final = 15.0
_LONGEST_EXPLORE: Final = 600.0


@attrs.frozen
class Page:
    """A page to ask for, of a sweep that began at `began`, which has shown `shown` of the runs that it is for."""

    began: float
    offset: int = 0
    limit: int = LARGEST
    number: int = 0
    shown: int = 0


class Sweeps:
    """The pace and the depth of the sweeps."""

    def __init__(self, cost: float) -> None:
        """Begin before the first one; `cost`: of a page, in seconds of notice."""
        self._cost = cost
        self.is_under_way = False
        self.last_good = -math.inf  # when the last one began that came back
        self._last = -math.inf
        self._as_of = math.nan
        self._rate = 0.0
        self._ends = 0.0  # expected since the last sweep
        self._unseen = 0.0  # seconds for which they are expected to have gone unseen
        self._not_before = -math.inf
        self._failures = 0
        self._depth = 1
        self._reach = LARGEST
        self._explore_at = -math.inf
        self._explore_pause = _EXPLORE

    @property
    def pages(self) -> int:
        """How many pages a sweep takes."""
        return self._depth

    def is_expected(self, now: float) -> bool:
        """Tell whether a sweep is about to come back: it will show more than looks could."""
        return self.is_under_way and now < self.expected_until()

    def expected_until(self) -> float:
        """Say until when it is waited for."""
        return self._last + _PATIENCE

    def rest(self) -> None:
        """Take note that there is nothing to sweep for."""
        self._as_of = math.nan
        self._rate = self._ends = self._unseen = 0.0

    def advance(self, now: float) -> None:
        """Let time pass at the rate of ends that was last told."""
        if math.isnan(self._as_of):
            self._as_of, self._last = now, max(self._last, now - _LONGEST / 2)
        passed = now - self._as_of
        if passed > 0:
            self._unseen += self._ends * passed + self._rate * passed * passed / 2
            self._ends += self._rate * passed
            self._as_of = now

    def expect(self, rate: float) -> None:
        """Take note of how many ends are expected per second from now on."""
        self._rate = rate

    def due_at(self, usage: Quota) -> float:
        """Say when the next is due, as of the time last told."""
        now = self._as_of
        if self.is_under_way or math.isnan(now):
            return math.inf
        if usage.room <= 0:
            return max(self._not_before, usage.next_at(now))
        gap = max(_GAP, self._depth / _PAGES_A_SECOND)
        if usage.left is not None and usage.resets_in is not None:
            gap = max(gap, usage.resets_in * self._depth / usage.left)
        lacks = self._cost * self._depth - self._unseen
        pays_at = now if lacks <= 0 else now + self._seconds_of(lacks)
        return max(min(pays_at, self._last + _LONGEST), self._last + gap, self._not_before)

    def _seconds_of(self, lacks: float) -> float:
        """Solve ends x + rate x²/2 = lacks for x."""
        root = math.sqrt(self._ends * self._ends + 2 * self._rate * lacks)
        return 2 * lacks / (self._ends + root) if root > 0 else math.inf

    def begin(self, now: float, runs: int) -> Page:
        """Begin a sweep for so many runs; give its first page."""
        self.is_under_way = True
        self._last, self._ends, self._unseen = now, 0.0, 0.0
        return Page(now, limit=min(LARGEST, max(50, 2 * self._reach + runs + 20)))

    def next_page(self, page: Page, listing: Listing, runs: int, deepest: int) -> Page | None:
        """Give the next page if it is useful, after one that showed our runs down to row `deepest` (0: none).

        `page` has what was shown of the `runs` that the sweep is for. It goes deeper as long as some are missing and
        the page was full; beyond the depth at which ours were found before, only now and then.
        """
        if deepest:
            self._depth = max(self._depth, page.number + 1)
            self._explore_pause = _EXPLORE
        if listing.rows and page.shown < runs and self._goes_deeper(page, listing, runs, deepest):
            offset = page.offset + listing.rows
            return attrs.evolve(page, offset=offset, limit=LARGEST, number=page.number + 1)
        self._finish(page, deepest)
        return None

    def _goes_deeper(self, page: Page, listing: Listing, runs: int, deepest: int) -> bool:
        """Tell whether there is a next page that may well show some of those that are missing."""
        is_known_deep = deepest > 0 or page.number + 1 < max(self._depth, math.ceil(runs / LARGEST))
        if listing.rows >= page.limit and is_known_deep:
            return True
        is_last = listing.rows < page.limit and (listing.total is None or page.offset + listing.rows >= listing.total)
        if is_last or page.began < self._explore_at:
            return False
        self._explore_at = page.began + self._explore_pause
        self._explore_pause = min(2 * self._explore_pause, _LONGEST_EXPLORE)
        return True

    def _finish(self, page: Page, deepest: int) -> None:
        """End a sweep: it came back, and showed how deep the next has to go."""
        self.is_under_way, self.last_good, self._failures = False, page.began, 0
        self._depth = max(1, page.number + (1 if deepest or page.number == 0 else 0))
        self._reach = page.offset + deepest if deepest else LARGEST

    def failed(self, now: float) -> None:
        """Take note of a sweep that did not come back: the next waits, longer each time."""
        self.is_under_way = False
        pause = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2 ** min(self._failures, 20))
        self._failures += 1
        self._not_before = now + pause

    def dropped(self) -> None:
        """Take note of a sweep that nobody waited for to its end."""
        self.is_under_way = False
