"""Usage listings as bulk status: how a page is read, how many pages a listing takes, and how far it is relied on. Pure.

A listing is a report only: an end that it shows is confirmed by a poll, and a run that it does not show is polled.
Listings that fail, or turn out to be late or wrong, are as if there were none until one that was tried has arrived.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, TypeAlias

import attrs

from knouds_async._sansio.responses import Answer, UnreadableError, parsed
from knouds_async.types import Record, Status

# ---- What is left of a quota

_RECHECK: Final = 1.0  # seconds until a quota without a reset is checked again


@attrs.frozen(eq=False, repr=False)
class Quota(Record):
    """The quota of a route: requests a window, how many are left of this one, seconds until its end; None: not known.

    An unlimited route has the limit `math.inf`, or None.
    """

    limit: float | None = None
    left: float | None = None
    resets_in: float | None = None

    @property
    def available(self) -> float:
        """Requests that may be sent now."""
        return math.inf if self.left is None else max(0, self.left)

    @property
    def per_second(self) -> float:
        """Requests a second that use up what is left just when the window ends."""
        return self.available / max(60.0 if self.resets_in is None else self.resets_in, 1.0)

    def next_at(self, now: float) -> float:
        """Return when there are more."""
        return now + (_RECHECK if self.resets_in is None else max(self.resets_in, 0.0) + 0.06)


# ---- A page of the listing

RowStatus: TypeAlias = tuple[str, str]
"""A request id and what a row says of its status."""

MAX_ROWS: Final = 500
"""Rows of a page (contract 10)."""


@attrs.frozen(repr=False)
class StatusPage:
    """A page: the usable rows, and how many rows it had."""

    row_statuses: tuple[RowStatus, ...]
    row_count: int


@attrs.frozen(eq=False, repr=False)
class PageRequest:
    """A page of a listing that began at `started_at` and has shown `matched` of the awaited runs before."""

    started_at: float
    offset: int = 0
    limit: int = MAX_ROWS
    number: int = 1
    matched: int = 0


def read_status_page(answer: Answer) -> StatusPage:
    """Return a page; unusable rows are left out, and raise UnreadableError without a list of rows."""
    body = parsed(answer.body)
    rows = body.get("rows") if isinstance(body, Mapping) else None
    if not isinstance(rows, list):
        raise UnreadableError("'rows' is not a list")
    row_statuses = []
    for row in rows:
        if isinstance(row, dict):
            request, status = row.get("requestId"), row.get("status")
            if isinstance(request, str) and isinstance(status, str):
                row_statuses.append((request, status))
    return StatusPage(tuple(row_statuses), len(rows))


# ---- Listings

_MIN_GAP: Final = 1.0  # seconds between two listings at least, and for each page beyond the fourth
_PAGES_A_SECOND: Final = 4
_ANSWER_WITHIN: Final = 2.0  # seconds for a page; a later one is as good as none
_MAX_GAP: Final = 15.0  # seconds to the next; when it takes longer, there are polls
_FIRST_BACKOFF: Final = 2.0
_MAX_BACKOFF: Final = 300.0
_MAX_LAG: Final = 5.0  # seconds by which it may show an end late
_LAG_KEPT: Final = 0.9  # of a lag, for each end that was shown sooner
_MIN_MISSES: Final = 3  # misses that open the breaker
_MAX_MISS_RATE: Final = 0.2  # of hits and misses
_TRUSTED_FOR: Final = 60.0  # seconds after a hit
_WINDOW: Final = 100  # hits and misses beyond are halved, so that old ones count less
_OPEN_FOR: Final = 600.0
_MAX_STATUSES: Final = 100
_FINISHED: Final = frozenset({Status.COMPLETED.value, Status.FAILED.value, Status.CANCELLED.value})


class Listings:
    """When a listing may be made, how deep it goes, and a circuit breaker for listings that prove wrong.

    A hit is an end that a listing showed in time; a miss is one that it showed late, or that was none.
    """

    def __init__(self) -> None:
        self.is_in_flight = False
        self._started_at = self._sent_at = self._not_before = -math.inf  # of the last listing, its last page; the next
        self._failures = 0
        self._pages, self._deepest_row = 1, MAX_ROWS  # that were of use in the last one
        self._running = {Status.PROCESSING.value, Status.CANCEL_REQUESTED.value}
        self._hits = self._misses = 0.0
        self._hit_at = -math.inf
        self.lag = 0.0  # seconds by which ends are shown late

    @property
    def is_proven(self) -> bool:
        """Whether a listing has shown an end in time."""
        return self._hits > 0

    def is_usable(self, now: float, quota: Quota) -> bool:
        """Return whether to rely on listings: the last one arrived, and the next one can be had soon."""
        if self.is_in_flight:
            return not self._failures and now <= self._sent_at + _ANSWER_WITHIN
        return not self._failures and self.next_at(now, quota) <= now + _MAX_GAP

    def next_at(self, now: float, quota: Quota) -> float:
        """Return from when the next listing may be made; what is left of the quota is spread over its window."""
        if self.is_in_flight:
            return math.inf
        if quota.available <= 0:
            return quota.next_at(now)
        gap = max(_MIN_GAP, self._pages / _PAGES_A_SECOND, self._pages / quota.per_second)
        return max(self._started_at + gap, self._not_before)

    def start(self, now: float, runs: int) -> PageRequest:
        """Start a listing for so many runs; return its first page."""
        self.is_in_flight, self._started_at, self._sent_at = True, now, now
        return PageRequest(now, limit=min(MAX_ROWS, max(50, 2 * self._deepest_row + runs)))

    def next_page(
        self, page: PageRequest, status_page: StatusPage, now: float, runs: int, deepest: int
    ) -> PageRequest | None:
        """Return the next page, after one that showed our runs down to row `deepest` (0: none); None: no more.

        It continues while some of the `runs` are missing and there are more rows, one page beyond those of use.
        """
        self._sent_at = max(now, self._sent_at)
        is_useful = deepest > 0 or page.number <= self._pages
        if page.matched < runs and status_page.row_count >= page.limit and is_useful:
            return attrs.evolve(page, offset=page.offset + page.limit, limit=MAX_ROWS, number=page.number + 1)
        self.is_in_flight = False
        if now >= self._not_before:
            self._failures = 0
        self._pages = max(1, page.number - (not deepest))
        self._deepest_row = page.offset + deepest if deepest else MAX_ROWS
        return None

    def failed(self, now: float) -> None:
        """Record a listing that failed: the next one is tried later, each time."""
        self.is_in_flight = False
        pause = min(_MAX_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(self._failures, 20))
        self._not_before, self._failures = now + pause, self._failures + 1

    # How far they are relied on.

    def is_running(self, status: str) -> bool:
        """Return whether a row with that status is of a running run."""
        return status in self._running

    def is_trusted(self, now: float) -> bool:
        """Return whether a listing has shown an end in time lately."""
        return now < self._hit_at + _TRUSTED_FOR

    def observe_end(self, now: float, duration: float, lag: float, *, is_shown: bool) -> None:
        """Record for how long a listing showed a run running after its end; `is_shown`: until one showed the end."""
        self.lag = max(lag, self.lag * _LAG_KEPT if is_shown else self.lag)
        was_late = lag > max(_MAX_LAG, duration / 8)
        if was_late or is_shown:
            self.count(now, is_hit=not was_late)

    def refuted(self, now: float, status: str) -> bool:
        """Record that a poll found a run still running that a row said had finished; return whether that was wrong.

        An unknown status may be one of running runs: then it is remembered as such.
        """
        if status not in _FINISHED and len(self._running) < _MAX_STATUSES:
            self._running.add(status)
            return False
        self.count(now, is_hit=False)
        return True

    def count(self, now: float, *, is_hit: bool) -> None:
        """Count a hit or a miss: three misses among few hits, or one before any, end listings for ten minutes."""
        self._hits, self._misses = self._hits + is_hit, self._misses + (not is_hit)
        self._hit_at = now if is_hit else self._hit_at
        if self._hits + self._misses > _WINDOW:
            self._hits, self._misses = self._hits / 2, self._misses / 2
        is_often = self._misses >= _MIN_MISSES and self._misses > _MAX_MISS_RATE * (self._hits + self._misses)
        if is_often or not self._hits:
            self._not_before, self._failures = now + _OPEN_FOR, max(1, self._failures)
            self._hits = self._misses = 0.0
