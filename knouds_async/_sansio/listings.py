"""Bulk status by usage listings: how a page is read, when a listing pays, and how far listings are believed. Pure.

A listing is due when the ends expected since the last one are expected to have gone unnoticed, in all, for as many
seconds as its pages cost. It is only a report: a run that it does not show is polled as if there were no listings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, TypeAlias

import attrs

from knouds_async._sansio.responses import Answer, UnreadableError, parsed
from knouds_async.types import Status

# ---- A page of the listing

RowStatus: TypeAlias = tuple[str, str]
"""A request id and what a row says of its status."""


@attrs.frozen
class StatusPage:
    """A page: the usable rows, how many rows it had, how many match in all (None: not given)."""

    row_statuses: tuple[RowStatus, ...]
    row_count: int
    total: int | None = None


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
    total = body.get("total")
    return StatusPage(tuple(row_statuses), len(rows), total if isinstance(total, int) else None)


# ---- What requests are left, and what one is worth

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


# ---- When a listing is due, and how many pages it takes

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
        """Advance the time at the rate of ends set last."""
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


# ---- The circuit breaker

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
