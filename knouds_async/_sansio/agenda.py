"""When to poll each run, when to fetch a usage listing, and when to decide again: all polling decisions. Pure.

`now` is local monotonic seconds and `jitter` is uniform in [0, 1); nothing here waits or sends. When one run is due is
decided in `pace`, when a listing pays and is believed in `listings`, what was reported finished
is kept in `hints`, and `grants` shares out the requests. O(log n) per event; work over all runs is rare.
"""

from __future__ import annotations

import math
from typing import Final

import attrs

from knouds_async._sansio.crowd import Forecast
from knouds_async._sansio.durations import CANCEL_KEY, LearnedDurations
from knouds_async._sansio.grants import ExpectedDelay, ReadyQueue
from knouds_async._sansio.hints import ReportedFinished
from knouds_async._sansio.listings import (
    MIN_RUNS,
    ListingBreaker,
    ListingScheduler,
    PageRequest,
    Quota,
    StatusPage,
    scarcity_cost,
)
from knouds_async._sansio.pace import PollTiming
from knouds_async._sansio.roster import RunIndex
from knouds_async._sansio.tracked_run import PollStage, TrackedRun
from knouds_async.config import Polling

_FORECAST_HOLDS: Final = 0.25  # seconds for which a forecast holds
_COUNT_PER_RUN: Final = 0.002  # seconds between two counts of all runs, for each of them
_RECHECK: Final = 1.0  # seconds after which a listing that is not due is reconsidered
_MIN_RUNS_PROVEN: Final = 2  # running runs for which a listing pays once listings are proven
_PLENTY: Final = 5  # polls that have to be left for each run, or listings are preferred
_SPECULATIVE_SHARE: Final = 0.1  # of scarce requests: for runs that listings do not show
_MAX_LAG: Final = 5.0  # seconds by which a listing may lag
_FAILURE_PAUSE: Final = 2.0  # seconds after a failed poll
_MAX_FAILURE_PAUSE: Final = 10.0
_POLL_WITHIN: Final = 2.0  # seconds within which a poll should come back
_FEW_RUNS: Final = 10  # runs that may be polled before the quota is known
_PROBE_WAIT: Final = 2.0  # seconds for which that is waited for
_NO_QUOTA: Final = Quota()


@attrs.frozen
class PollPlan:
    """What to send now, and when to plan again (inf: when something changes)."""

    polls: list[str]
    page: PageRequest | None
    next_at: float


class PollScheduler:
    """The polls and listings for all executions that somebody waits for."""

    def __init__(self, polling: Polling, learned: LearnedDurations) -> None:
        self._polling = polling
        self._learned = learned
        self._index = RunIndex()
        self._ready = ReadyQueue()
        self._in_flight: dict[str, float] = {}  # since when; also runs that were removed meanwhile
        self._listings = ListingScheduler(polling.cost_of_request)
        self._breaker = ListingBreaker()
        self._timing = PollTiming(polling, learned, self._index, self._listings, self._breaker)
        self._reported = ReportedFinished(self._index, self._ready, self._listings, self._breaker)
        self._forecast = Forecast()
        self._forecast_until = self._next_count_at = -math.inf
        self._first_poll_at = math.inf
        self._is_answered = False

    def __len__(self) -> int:
        """Return the number of runs being polled."""
        return len(self._index)

    def __contains__(self, execution_id: str) -> bool:
        """Return whether a run is being polled."""
        return self._index.get(execution_id) is not None

    def add(self, run: TrackedRun, now: float, jitter: float) -> None:
        """Start polling a run where it left off; one of unknown age is polled at once."""
        run.settle_start(now)
        self._learned.durations_for(run.duration_key, run.expected)  # created, if it is new
        self._index.add(run)
        if self._in_flight.get(run.execution_id, -math.inf) > now - _POLL_WITHIN:  # an earlier wait began it
            run.stage = PollStage.IN_FLIGHT
        else:
            self._schedule(run, now, jitter)

    def remove(self, execution_id: str) -> None:
        """Stop polling a run; it can be added again."""
        run = self._index.remove(execution_id)
        if run is not None:
            self._ready.discard(run)
            self._reported.discard(execution_id)
            self._timing.remove(execution_id)

    def add_deadline(self, execution_id: str, deadline: float, now: float, jitter: float) -> None:
        """Add a deadline until which somebody waits for a run."""
        run = self._index.get(execution_id)
        if run is not None:
            run.add_deadline(deadline)
            if run.stage is PollStage.SCHEDULED:
                self._schedule(run, now, jitter)

    def report_finished(self, execution_id: str) -> None:
        """Record that a run was reported finished: it is polled before all others."""
        run = self._index.get(execution_id)
        if run is not None and not run.is_reported and run.stage is not PollStage.IN_FLIGHT:
            self._reported.add(run)

    def set_request_id(self, run: TrackedRun, request_id: str) -> None:
        """Set the request id by which listings show a run."""
        self._index.set_request_id(run, request_id)

    def set_submitted_at(self, run: TrackedRun, submitted_at: float) -> None:
        """Set when a run was submitted whose age was unknown."""
        self._index.reset_start(run, run.duration_key, submitted_at)

    def cancel_requested(self, run: TrackedRun, now: float, jitter: float) -> None:
        """Record that a run was asked to cancel: it will finish soon."""
        if run.duration_key != CANCEL_KEY:
            self._index.reset_start(run, CANCEL_KEY, now)
            run.last_seen_at = now
            if run.stage is PollStage.SCHEDULED:
                self._schedule(run, now, jitter)

    def plan(
        self, now: float, jitter: float, *, poll_quota: Quota = _NO_QUOTA, usage_quota: Quota = _NO_QUOTA
    ) -> PollPlan:
        """Return what to send now; polls are in flight until `polled`, a page until it was received or failed."""
        self._timing.is_quota_limited = poll_quota.available <= _PLENTY * len(self._index)
        used_listings, uses_listings = self._timing.uses_listings, self._may_list(now)
        self._timing.uses_listings = uses_listings
        self._update_forecast(now, poll_quota, uses_listings=uses_listings)
        if used_listings and not uses_listings:
            for run in self._index:
                if run.stage is PollStage.SCHEDULED:
                    run.due_at = max(now, self._timing.due_at(run, now, jitter))
            self._index.rebuild_heap()
        self._count_running(now)
        probe_until = self._probe_until(now, poll_quota)
        while (now >= probe_until or not self._has_begun()) and (due := self._index.pop_due(now)) is not None:
            self._consider(due, now, jitter)
        page, page_at = self._next_page(now, poll_quota, usage_quota) if uses_listings else (None, math.inf)
        polls, more_at = self._take_polls(now, poll_quota, uses_listings=uses_listings)
        return PollPlan(polls, page, min(max(self._index.next_due_at(), probe_until), more_at, page_at))

    def _may_list(self, now: float) -> bool:
        if not self._polling.sweeps or self._polling.schedule is not None or not self._breaker.allows_requests(now):
            return False
        fewest = MIN_RUNS
        if self._breaker.is_proven:
            fewest = 1 if self._timing.is_quota_limited else _MIN_RUNS_PROVEN
        return len(self._index) >= max(fewest, 2 * self._listings.depth - 1)

    def _update_forecast(self, now: float, poll_quota: Quota, *, uses_listings: bool) -> None:
        """Update the forecast: what listings will find, and what a request is worth when requests are scarce."""
        if uses_listings:
            self._listings.advance(now)
        else:
            self._listings.pause()
        is_priced = not uses_listings and poll_quota.limit is not None and len(self._index) > 1
        if now < self._forecast_until or not (uses_listings or is_priced) or self._polling.schedule is not None:
            return
        ages = self._index.ages
        self._forecast = ages.forecast(self._learned, now)
        self._forecast_until = now + max(_FORECAST_HOLDS, _COUNT_PER_RUN / 20 * ages.key_count)
        self._listings.set_rate(self._forecast.ends_per_second)
        self._timing.cost = self._polling.cost_of_request
        if is_priced:
            self._timing.cost = scarcity_cost(self._timing.cost, self._forecast.polls_per_second, poll_quota.limit)

    def _probe_until(self, now: float, poll_quota: Quota) -> float:
        """Return until when a single poll is sent first: its answer shows the quota for the rest."""
        if self._is_answered or poll_quota.limit is not None or len(self._index) <= _FEW_RUNS:
            return -math.inf
        if self._first_poll_at == math.inf and self._index.next_due_at() <= now:
            self._first_poll_at = now
        return now if self._first_poll_at == math.inf else self._first_poll_at + _PROBE_WAIT

    def _has_begun(self) -> bool:
        return bool(self._in_flight) or self._ready.has_candidates

    def _consider(self, run: TrackedRun, now: float, jitter: float) -> None:
        has_schedule = self._polling.schedule is not None  # its jitter was applied before
        if not has_schedule and (at := self._timing.due_at(run, now, jitter)) > now:
            self._index.schedule(run, at)
        elif run.is_reported:
            run.stage = PollStage.REPORTED
            self._ready.add_reported(run)
        else:
            self._ready.add(run)

    def _take_polls(self, now: float, poll_quota: Quota, *, uses_listings: bool) -> tuple[list[str], float]:
        """Return the polls that may be sent now, and when there will be more."""
        available = (
            poll_quota.available if self._in_flight else max(1, poll_quota.available)
        )  # one may always wait in line
        taken = self._ready.take_reported(available)
        available -= len(taken)
        more_at = poll_quota.next_at(now) if self._ready.has_reported else math.inf
        if self._ready.has_candidates:
            speculative, at = self._take_candidates(now, available, poll_quota, uses_listings=uses_listings)
            taken, more_at = taken + speculative, min(more_at, at)
        self._in_flight |= {run.execution_id: now for run in taken}
        return [run.execution_id for run in taken], more_at

    def _take_candidates(
        self, now: float, available: float, poll_quota: Quota, *, uses_listings: bool
    ) -> tuple[list[TrackedRun], float]:
        """Return the polls of runs that may have finished, and when there will be more."""
        ready = self._ready
        if self._polling.schedule is not None:
            return ready.take_all(available), poll_quota.next_at(now) if ready.has_candidates else math.inf
        if uses_listings and self._breaker.is_proven and self._listings.is_expected(now):
            return [], self._listings.expected_until()
        if available <= 0:
            return [], poll_quota.next_at(now)
        budget = max(_SPECULATIVE_SHARE * available, available - len(self._index)) if uses_listings else available
        if ready.candidate_count <= budget and len(self._index) <= available:
            return ready.take_all(), math.inf
        candidates = ready.take_ranked(now, budget, poll_quota, self._delay(now))
        return candidates, ready.next_ranked_at(now, budget, poll_quota) if ready.has_candidates else math.inf

    def _next_page(self, now: float, poll_quota: Quota, usage_quota: Quota) -> tuple[PageRequest | None, float]:
        """Return the page to request now, or when to decide again."""
        if self._ready.has_reported and poll_quota.available <= 0:
            return None, math.inf  # runs that were reported finished wait already
        at = self._listings.due_at(usage_quota)
        if at > now:
            return None, min(at, now + _RECHECK)
        return self._listings.start(now, self._reported.listable_count()), math.inf

    def _schedule(self, run: TrackedRun, now: float, jitter: float) -> None:
        self._index.schedule(run, max(now, self._timing.due_at(run, now, jitter)))

    def _delay(self, now: float) -> ExpectedDelay:
        def delay(run: TrackedRun) -> float:
            return self._learned.durations_for(run.duration_key).expected_delay(
                run.age(run.last_running_at), run.age(now)
            )[0]

        return delay

    def polled(self, execution_id: str, now: float, jitter: float, *, is_answered: bool = True) -> None:
        """Record that a poll came back without the end of its run: the run is still running, or the poll failed."""
        self._in_flight.pop(execution_id, None)
        self._is_answered = True
        run = self._index.get(execution_id)
        if run is None or run.stage is not PollStage.IN_FLIGHT:
            return
        run.poll_count, run.last_poll_at = run.poll_count + 1, now
        if is_answered:
            self._found_running(run, now)
        else:
            run.failures += 1
            run.not_before = now + min(_MAX_FAILURE_PAUSE, _FAILURE_PAUSE * run.failures)
        self._schedule(run, now, jitter)

    def _found_running(self, run: TrackedRun, now: float) -> None:
        run.last_seen_at, run.not_before, run.failures = now, now, 0
        if run.is_reported:
            self._reported.refute(run, now)
        if len(self._index) <= _FEW_RUNS:
            self._learned.observe_running([run])

    def finished(self, execution_id: str, now: float, *, duration: float | None = None) -> None:
        """Record that a run finished and learn from it; `duration`: seconds as the service gave them, if it did."""
        run = self._index.get(execution_id)
        if run is None:
            return
        self._learned.observe_finished(run, now, duration)
        if self._reported.was_listed(run):
            is_late = duration is not None and run.age(run.last_listed_at) - duration > max(_MAX_LAG, duration / 8)
            self._breaker.record_hit(now, is_late=is_late)
        elif run.request_id is not None and self._timing.uses_listings and not run.is_reported:
            self._breaker.record_unlisted_end(run.request_id, now, was_listed=run.last_listed_at > -math.inf)
        self.remove(execution_id)

    def _count_running(self, now: float) -> None:
        """Count the time of all running runs, so that the fast ones of a batch do not make the target look fast."""
        if now >= self._next_count_at:
            self._learned.observe_running(self._index)
            self._next_count_at = now + max(_RECHECK, _COUNT_PER_RUN * len(self._index))

    def page_received(self, page: PageRequest, status_page: StatusPage, now: float) -> PageRequest | None:
        """Process a page; return the next page of the listing, None when it is complete."""
        return self._reported.page_received(page, status_page, now)

    def page_failed(self, now: float, *, is_permanent: bool) -> None:
        """Record a page that failed: listings back off, or stop for long when no later page can do better."""
        self._listings.failed(now)
        self._reported.reset()
        if is_permanent:
            self._breaker.trip(now)

    def requests_cancelled(self, now: float, jitter: float) -> None:
        """Record that the polls and the listing in flight were cancelled."""
        self._listings.cancelled()
        self._reported.reset()
        self._in_flight.clear()
        for run in self._index:
            if run.stage is PollStage.IN_FLIGHT:
                self._schedule(run, now, jitter)
