"""The circuit breaker for listings: closed by ends that they showed first, opened by ends that they did not show. Pure.

A listing is only a report. A run that it does not show is polled as if there were no listings.
"""

from __future__ import annotations

import math
from typing import Final

from knouds_async._sansio.listing import RowStatus
from knouds_async.types import Status

_LISTED_WITHIN: Final = 3.0  # seconds after which a listing has to show an end
_MANY_HITS: Final = 10  # hits that reset the backoff
_WINDOW: Final = 100  # hits and misses beyond are halved, so that old ones count less
_MIN_MISSES: Final = 3  # misses that can open it
_MAX_MISS_RATE: Final = 0.2  # of hits and misses
_OPEN_FOR: Final = 600.0
_MAX_OPEN_FOR: Final = 3600.0
_MAX_STATUSES: Final = 100
_FINISHED: Final = frozenset({Status.COMPLETED.value, Status.FAILED.value, Status.CANCELLED.value})


class ListingBreaker:
    """How far listings have proven right.

    `shows_running`: whether they list running runs; if so, a run that is missing counts as not listed.
    """

    def __init__(self) -> None:
        self.shows_running = False
        self._has_matched = False
        self._hits = 0.0
        self._misses = 0.0
        self._unlisted: dict[str, tuple[float, bool]] = {}
        self._running = {Status.PROCESSING.value, Status.CANCEL_REQUESTED.value}
        self._open_until = -math.inf
        self._open_for = _OPEN_FOR

    @property
    def is_proven(self) -> bool:
        """Whether a listing has shown an end before a poll found it."""
        return self._hits >= 1

    @property
    def is_unconfirmed(self) -> bool:
        """Whether listings have shown no end yet, and missed one or show none of our runs: they prove nothing."""
        return not self.is_proven and (self._misses > 0 or not self._has_matched)

    @property
    def recheck_after(self) -> float:
        """Seconds of expected delay after which a run that listings show as running is polled all the same."""
        if self._misses >= 0.5:
            return 10.0
        return 30.0 + 0.3 * self._hits if self.is_proven else 20.0

    def allows_requests(self, now: float) -> bool:
        """Return whether listings may be requested."""
        return now >= self._open_until

    def means_running(self, status: str) -> bool:
        """Return whether a row with that status is of a running run."""
        return status in self._running

    def record_match(self, *, is_running: bool) -> None:
        """Record a row of one of our runs."""
        self._has_matched = True
        self.shows_running = self.shows_running or is_running

    def record_hit(self, now: float, *, is_late: bool) -> None:
        """Record that a poll confirmed an end that a listing had shown; `is_late`: long after it happened."""
        self._count(now, hit=not is_late)

    def record_wrong_end(self, now: float, status: str) -> bool:
        """Record that a poll found a run still running that a listing had shown as finished; return if it was wrong.

        An unknown status may be one of running runs: then it is remembered as such.
        """
        if status not in _FINISHED and len(self._running) < _MAX_STATUSES:
            self._running.add(status)
            return False
        self._count(now, hit=False)
        return True

    def record_unlisted_end(self, request_id: str, now: float, *, was_listed: bool) -> None:
        """Record that a poll found an end that no listing had shown: one has to show it soon."""
        self._unlisted[request_id] = now, was_listed

    def check_unlisted_ends(
        self, started_at: float, now: float, row_statuses: dict[str, str], *, is_last_page: bool
    ) -> None:
        """Compare the ends that polls found first with what a listing that began then has shown."""
        for request_id, (found_at, was_listed) in list(self._unlisted.items()):
            status = row_statuses.get(request_id)
            if status is not None and status not in self._running:
                self._count(now, hit=True)
            elif started_at < found_at + _LISTED_WITHIN:
                continue
            elif status is not None or is_last_page or not was_listed:
                self._count(now, hit=False)
            self._unlisted.pop(request_id, None)  # a run that was shown before has sunk below the pages asked for

    def relevant(self, row_statuses: tuple[RowStatus, ...]) -> dict[str, str]:
        """Return the rows that matter for `check_unlisted_ends`."""
        return (
            {request: status for request, status in row_statuses if request in self._unlisted} if self._unlisted else {}
        )

    def trip(self, now: float) -> None:
        """Request no listing for a while, longer each time, and start over after that."""
        self._open_until = now + self._open_for
        self._open_for = min(2 * self._open_for, _MAX_OPEN_FOR)
        self._hits = self._misses = 0.0
        self._has_matched = self.shows_running = False
        self._unlisted.clear()

    def _count(self, now: float, *, hit: bool) -> None:
        if hit:
            self._hits += 1
            self._has_matched = True
            self._open_for = _OPEN_FOR if self._hits >= _MANY_HITS else self._open_for
        else:
            self._misses += 1
        if self._hits + self._misses > _WINDOW:
            self._hits, self._misses = self._hits / 2, self._misses / 2
        is_often = self._misses >= _MIN_MISSES and self._misses > _MAX_MISS_RATE * (self._hits + self._misses)
        if is_often or (self._misses and not self._has_matched):
            self.trip(now)
