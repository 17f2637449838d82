"""When a usage listing pays, which shows the status of many runs at once, and which of its pages to request. Pure.

A listing is due when the ends expected since the last one are expected to have gone unnoticed, in all, for as many
seconds as its pages cost.
"""

from __future__ import annotations

import math
from typing import Final

import attrs

from knouds_async._sansio.listing import StatusPage
from knouds_async._sansio.spending import Quota

MIN_RUNS: Final = 3
"""Running runs for which a listing pays."""

MAX_ROWS: Final = 500
"""Rows of a page (contract 10)."""

_MIN_GAP: Final = 1.0  # seconds between two listings at least, and for each page beyond the fourth
_PAGES_A_SECOND: Final = 4
_ANSWER_WITHIN: Final = 2.0
_MAX_GAP: Final = 15.0
_FIRST_BACKOFF: Final = 2.0
_MAX_BACKOFF: Final = 300.0
_PROBE_INTERVAL: Final = 15.0
_MAX_PROBE_INTERVAL: Final = 600.0


@attrs.frozen
class PageRequest:
    """A page to request, of a listing that began at `started_at` and has shown `matched` of the tracked runs."""

    started_at: float
    offset: int = 0
    limit: int = MAX_ROWS
    number: int = 0
    matched: int = 0


class ListingScheduler:
    """When listings are due, and how many pages they take."""

    def __init__(self, cost: float) -> None:
        self._cost = cost
        self.is_in_flight = False
        self.last_success_at = -math.inf  # when the last one began that arrived
        self._last = -math.inf
        self._updated_at = math.nan
        self._rate = 0.0
        self._expected_ends = 0.0  # expected since the last listing
        self._expected_delay = 0.0  # seconds for which they are expected to have gone unnoticed
        self._not_before = -math.inf
        self._failures = 0
        self._depth = 1
        self._deepest_row = MAX_ROWS
        self._next_probe_at = -math.inf
        self._probe_interval = _PROBE_INTERVAL

    @property
    def depth(self) -> int:
        """How many pages a listing takes."""
        return self._depth

    def is_expected(self, now: float) -> bool:
        """Return whether a listing is about to arrive: it will show more than polls could."""
        return self.is_in_flight and now < self.expected_until()

    def expected_until(self) -> float:
        """Return until when it is waited for."""
        return self._last + _ANSWER_WITHIN

    def pause(self) -> None:
        """Stop counting: there is nothing to list."""
        self._updated_at = math.nan
        self._rate = self._expected_ends = self._expected_delay = 0.0

    def advance(self, now: float) -> None:
        """Let time pass at the rate of ends set last."""
        if math.isnan(self._updated_at):
            self._updated_at, self._last = now, max(self._last, now - _MAX_GAP / 2)
        passed = now - self._updated_at
        if passed > 0:
            self._expected_delay += self._expected_ends * passed + self._rate * passed * passed / 2
            self._expected_ends += self._rate * passed
            self._updated_at = now

    def set_rate(self, rate: float) -> None:
        """Set how many ends are expected per second from now on."""
        self._rate = rate

    def due_at(self, usage_quota: Quota) -> float:
        """Return when the next listing is due, as of the last `advance`."""
        now = self._updated_at
        if self.is_in_flight or math.isnan(now):
            return math.inf
        if usage_quota.available <= 0:
            return max(self._not_before, usage_quota.next_at(now))
        gap = max(_MIN_GAP, self._depth / _PAGES_A_SECOND)
        if usage_quota.remaining is not None and usage_quota.resets_in is not None:
            gap = max(gap, usage_quota.resets_in * self._depth / usage_quota.remaining)
        missing = self._cost * self._depth - self._expected_delay
        pays_at = now if missing <= 0 else now + self._seconds_until(missing)
        return max(min(pays_at, self._last + _MAX_GAP), self._last + gap, self._not_before)

    def _seconds_until(self, missing: float) -> float:
        """Solve ends x + rate x²/2 = missing for x."""
        root = math.sqrt(self._expected_ends * self._expected_ends + 2 * self._rate * missing)
        return 2 * missing / (self._expected_ends + root) if root > 0 else math.inf

    def start(self, now: float, runs: int) -> PageRequest:
        """Start a listing for so many runs; return its first page."""
        self.is_in_flight = True
        self._last, self._expected_ends, self._expected_delay = now, 0.0, 0.0
        return PageRequest(now, limit=min(MAX_ROWS, max(50, 2 * self._deepest_row + runs + 20)))

    def next_page(self, page: PageRequest, status_page: StatusPage, runs: int, deepest: int) -> PageRequest | None:
        """Return the next page if it is useful, after one that showed our runs down to row `deepest` (0: none).

        `page.matched` counts those of the `runs` that were shown so far. It continues while some are missing and the
        page was full; beyond the depth at which ours were found before, only now and then.
        """
        if deepest:
            self._depth = max(self._depth, page.number + 1)
            self._probe_interval = _PROBE_INTERVAL
        if status_page.row_count and page.matched < runs and self._continues(page, status_page, runs, deepest):
            offset = page.offset + status_page.row_count
            return attrs.evolve(page, offset=offset, limit=MAX_ROWS, number=page.number + 1)
        self._finish(page, deepest)
        return None

    def _continues(self, page: PageRequest, status_page: StatusPage, runs: int, deepest: int) -> bool:
        """Return whether a next page may well show some of the missing runs."""
        is_expected_deeper = deepest > 0 or page.number + 1 < max(self._depth, math.ceil(runs / MAX_ROWS))
        if status_page.row_count >= page.limit and is_expected_deeper:
            return True
        is_last = status_page.row_count < page.limit and (
            status_page.total is None or page.offset + status_page.row_count >= status_page.total
        )
        if is_last or page.started_at < self._next_probe_at:
            return False
        self._next_probe_at = page.started_at + self._probe_interval
        self._probe_interval = min(2 * self._probe_interval, _MAX_PROBE_INTERVAL)
        return True

    def _finish(self, page: PageRequest, deepest: int) -> None:
        """Finish a listing: it arrived, and showed how deep the next has to go."""
        self.is_in_flight, self.last_success_at, self._failures = False, page.started_at, 0
        self._depth = max(1, page.number + (1 if deepest or page.number == 0 else 0))
        self._deepest_row = page.offset + deepest if deepest else MAX_ROWS

    def failed(self, now: float) -> None:
        """Record a listing that failed: the next waits, longer each time."""
        self.is_in_flight = False
        pause = min(_MAX_BACKOFF, _FIRST_BACKOFF * 2 ** min(self._failures, 20))
        self._failures += 1
        self._not_before = now + pause

    def cancelled(self) -> None:
        """Record a listing that was cancelled."""
        self.is_in_flight = False
