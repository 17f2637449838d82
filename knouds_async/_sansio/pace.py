"""When one run is due for a poll: on a plain schedule, or by its duration model. Pure.

One run at a time. A run that listings show as running is left to them until it is due for a recheck; one that they do
not show is polled as if there were no listings, at most `longest_step` after it was last seen running.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Final

from knouds_async._sansio.durations import Durations, LearnedDurations
from knouds_async._sansio.listings import MIN_RUNS, ListingBreaker, ListingScheduler
from knouds_async._sansio.roster import RunIndex
from knouds_async._sansio.tracked_run import TrackedRun
from knouds_async.config import Backoff, Polling

_LEAD: Final = 0.5  # seconds before a deadline at which a last poll is sent
_LIKELY: Final = 0.25  # the probability of an end that is worth one
_FIRST_STEP: Final = 600.0
_LISTED_AFTER: Final = 3.0  # seconds after its submit from which a run should be listed
_NEW_FACTOR: Final = 0.8  # of the cost, while a duration model is new: it may be wrong
_LIMITED_FACTOR: Final = 4.0  # times the delay of a recheck when the quota is limited


def longest_step(age: float) -> float:
    """Return the longest step between two polls of a run of that age, in seconds."""
    return max(10.0, age / 4)


class PollTiming:
    """When each run is due.

    `cost`: of a poll now, in seconds of latency. `is_quota_limited`: whether few polls are left. `uses_listings`:
    whether listings are being fetched.
    """

    def __init__(
        self,
        polling: Polling,
        learned: LearnedDurations,
        index: RunIndex,
        listings: ListingScheduler,
        breaker: ListingBreaker,
    ) -> None:
        self.cost = polling.cost_of_request
        self.is_quota_limited = self.uses_listings = False
        self._schedule = polling.schedule
        self._learned = learned
        self._index = index
        self._listings = listings
        self._breaker = breaker
        self._probes: set[str] = set()

    def remove(self, execution_id: str) -> None:
        """Remove a run that is no longer polled."""
        self._probes.discard(execution_id)

    def due_at(self, run: TrackedRun, now: float, jitter: float) -> float:
        """Return when a run is to be polled, or when to decide again."""
        if self._schedule is not None:
            return max(run.not_before, _due_on_schedule(run, self._schedule, jitter))
        if run.is_reported:
            return run.not_before
        at = self._due_with_listings(run, now) if self.uses_listings else self._due_alone(run, run.last_running_at)
        if run.deadlines:
            at = _due_for_deadline(run, self._learned.durations_for(run.duration_key), now, at)
        return max(run.not_before, at)

    def _due_alone(self, run: TrackedRun, last_running_at: float) -> float:
        """Return when a run is due without listings: when its expected delay reaches the cost of a poll."""
        if run.submitted_at is None and run.poll_count == 0:
            return -math.inf
        cost = self.cost * (_NEW_FACTOR if self._learned.is_new(run.duration_key) else 1.0)
        return run.started_at + self._learned.next_poll(run.duration_key, run.age(last_running_at), cost)

    def _due_with_listings(self, run: TrackedRun, now: float) -> float:
        """Return when a run is polled although there are listings: when none shows it, or as a recheck."""
        is_listed = self._listings.last_success_at >= run.started_at + _LISTED_AFTER
        is_unconfirmed = is_listed and self._breaker.is_unconfirmed
        if is_unconfirmed or not self._index.is_listable(run) or self._is_probe(run):
            return self._due_alone(run, run.last_seen_at)
        last_running_at = run.last_listed_at if self._breaker.shows_running else self._listings.last_success_at
        if not is_listed:
            last_running_at = run.started_at + _LISTED_AFTER
        listed_until = last_running_at + longest_step(run.age(last_running_at))
        if listed_until > now:
            return min(listed_until, self._recheck_at(run))
        return self._due_alone(run, run.last_running_at)

    def _recheck_at(self, run: TrackedRun) -> float:
        """Return when a run that listings show as running is polled all the same."""
        delay = self._breaker.recheck_after * (_LIMITED_FACTOR if self.is_quota_limited else 1.0)
        age = run.age(run.last_seen_at)
        if age <= 0:
            return run.started_at + self._learned.next_poll(run.duration_key, 0.0, delay)
        return run.started_at + self._learned.durations_for(run.duration_key).next_poll(age, delay, longest=_FIRST_STEP)

    def _is_probe(self, run: TrackedRun) -> bool:
        """Return whether a run is one of the few that are polled until listings have proven themselves."""
        if self._breaker.is_proven:
            self._probes.clear()
            return False
        if len(self._probes) < MIN_RUNS:
            self._probes.add(run.execution_id)
        return run.execution_id in self._probes


def _due_on_schedule(run: TrackedRun, schedule: Backoff, jitter: float) -> float:
    if run.submitted_at is None and run.poll_count == 0:
        return -math.inf
    try:
        pause = min(schedule.longest, schedule.first * float(schedule.factor) ** run.poll_count)
    except OverflowError:
        pause = schedule.longest
    since = run.last_poll_at if run.poll_count else (run.submitted_at or 0.0)
    return since + pause * (1.0 + schedule.jitter * (jitter - 0.5) * (run.poll_count > 0))


def _due_for_deadline(run: TrackedRun, durations: Durations, now: float, at: float) -> float:
    """Return when the poll planned for `at` is due, given the deadlines of those who wait.

    The first wait that ends before it, and by whose end the run has likely finished, gets a last poll.
    """
    deadlines, last_running_at = run.deadlines_after(now), run.age(run.last_running_at)

    def probability(deadline: float) -> float:
        return durations.expected_delay(last_running_at, run.age(deadline - _LEAD))[1]

    first = bisect_left(deadlines, _LIKELY, key=probability)
    return at if first == len(deadlines) else min(at, deadlines[first] - _LEAD)
