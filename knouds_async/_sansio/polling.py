"""When to poll each run and when to fetch a listing instead: all polling decisions, by one rule. Pure.

A request is due when the ends it would notice are expected to have gone unnoticed for as long as it costs, together:
`cost_of_request` seconds, more where quota is scarce. While three or more runs are awaited a listing serves them all,
and polls of runs that it shows are rare. Ends that were reported are polled first, and the others in the order in
which they became due. A report never finishes a run: a poll has to confirm it.

`now` is local monotonic seconds and `jitter` is uniform in [0, 1). A due time is reconsidered before anything is sent
for it, and at least every ten seconds: whatever changes what a request costs, the schedule follows.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from typing import Final

import attrs

from knouds_async._sansio.durations import CANCEL_DURATION, CANCEL_KEY, NEW_ENDS, Durations, LearnedDurations
from knouds_async._sansio.listings import Listings, PageRequest, Quota, StatusPage
from knouds_async.config import Backoff, Polling
from knouds_async.errors import (
    APIError,
    ConnectionFailedError,
    InvalidResponseError,
    KnoudsError,
    NoAnswerError,
    NotFoundError,
    RateLimitError,
    ServiceError,
)

ASSUMED_AGE: Final = 30.0
"""Seconds that a run of unknown age is assumed to have been running when it is first polled."""


@attrs.define(eq=False, repr=False)
class TrackedRun:
    """What is known of one run, also while nobody waits for it. Times are local monotonic seconds.

    `expects_delivery`: whether its end should be delivered to a webhook, None when unknown. `last_seen_at`: when a
    poll last found it running; `last_listed_at`: when a listing did; `last_row_at`: when one had a row of it.
    `counted_until`: up to when its time was counted towards its `durations`, which it has while it is polled.
    """

    execution_id: str
    duration_key: str = ""
    submitted_at: float | None = None
    request_id: str | None = None
    expected: float | None = None
    expects_delivery: bool | None = None
    started_at: float = math.nan
    poll_count: int = 0
    jitter: float = 0.5
    last_poll_at: float = -math.inf
    last_seen_at: float = -math.inf
    last_listed_at: float = -math.inf
    last_row_at: float = -math.inf
    counted_until: float = -math.inf
    not_before: float = -math.inf
    wake_at: float = math.inf
    deadlines: list[float] = attrs.field(factory=list)
    durations: Durations = attrs.field(init=False)

    def start(self, started_at: float, submitted_at: float | None = None) -> None:
        """Set when it started, and when it was submitted if that is known now."""
        self.started_at = self.counted_until = started_at
        self.submitted_at = self.submitted_at if submitted_at is None else submitted_at

    @property
    def last_running_at(self) -> float:
        """When it was last seen running, by a poll or by a listing."""
        return max(self.last_seen_at, self.last_listed_at)

    def age(self, at: float) -> float:
        """Return its age at a time; 0 for a time before its start."""
        return at - self.started_at if at > self.started_at else 0.0

    def hazard(self, now: float) -> float:
        """Return how likely it is to finish now, as ends per second at risk."""
        return self.durations.hazard(self.age(now))


# ---- What a failed poll means

NOT_FOUND_GRACE: Final = 5.0  # seconds for which a fresh id may answer 404 (contract 5, assumed)

_TRANSIENT: Final = (ConnectionFailedError, NoAnswerError, InvalidResponseError, ServiceError, RateLimitError)
_PROXY_TIMEOUTS: Final = (408, 499)  # a proxy timed out: that says nothing of the run


def failures_of(error: KnoudsError, *, age: float | None) -> float:
    """Return how many failures a failed poll counts for, of the `Polling.max_failures` in a row that end a wait.

    0 when it is as good as one that found the run running, 1 when it says nothing of the run, inf when no later poll
    can do better. `age`: seconds since the submit, None when unknown.
    """
    if isinstance(error, APIError) and not error.from_service:
        return 1  # somebody in between, who knows nothing of the run
    if isinstance(error, NotFoundError):
        return 0 if age is not None and age <= NOT_FOUND_GRACE else math.inf
    is_proxy_timeout = isinstance(error, APIError) and error.status in _PROXY_TIMEOUTS
    return 1 if is_proxy_timeout or isinstance(error, _TRANSIENT) else math.inf


# ---- Whether to rely on webhooks

_LATEST_ENDS: Final = 50
_MIN_ENDS: Final = 3  # fewer may be luck
_MIN_OF_BUS: Final = 0.4  # the part of the latest ends that must have been delivered, over a bus
_MIN_OF_OWN: Final = 0.9  # and without, where others may receive the deliveries of this client's runs
_DELIVERY_FACTOR: Final = 16.0  # of the cost of a request while webhooks arrive
_DELIVERY_PART: Final = 32.0  # of the median: what a request costs then at least, before that factor


class DeliveryRecord:
    """How far to rely on deliveries, by which of the latest ends were delivered.

    `is_expected`: whether deliveries can be handed to this client; `has_bus`: whether those that others receive reach
    it too; `overdue`: how many runs should have been delivered by now.
    """

    def __init__(self) -> None:
        self.is_expected = self.has_bus = False
        self.overdue = 0
        self._was_delivered: OrderedDict[str, bool] = OrderedDict()

    def add(self, execution_id: str, *, was_delivered: bool) -> None:
        """Record an end that was delivered, maybe after a poll had found it, or that a poll found first."""
        self._was_delivered[execution_id] = was_delivered
        if len(self._was_delivered) > _LATEST_ENDS:
            self._was_delivered.popitem(last=False)

    @property
    def is_reliable(self) -> bool:
        """Whether deliveries are expected and come: with a bus for the most part, else nearly all, once a few came."""
        ends, delivered = len(self._was_delivered), sum(self._was_delivered.values())
        if self.has_bus:
            return self.is_expected and (ends < _MIN_ENDS or delivered >= _MIN_OF_BUS * ends)
        return self.is_expected and delivered >= _MIN_ENDS and delivered >= _MIN_OF_OWN * (ends + self.overdue)

    @property
    def cost_factor(self) -> float:
        """How many times its cost a request has to be worth while relied on: the rarer a miss seems, the more."""
        if self.has_bus:
            return _DELIVERY_FACTOR
        ends, delivered = len(self._was_delivered) + self.overdue, sum(self._was_delivered.values())
        return min(_DELIVERY_FACTOR, (1 + ends) / (1 + ends - delivered))


# ---- The scheduler

_MIN_RUNS: Final = 3  # awaited runs for which a listing pays
_MAX_UNSEEN_LAG: Final = 1.0  # seconds by which listings may be late; beyond, runs are polled as well
_LISTED_WITHIN: Final = 3.0  # seconds after which a listing has to show a run
_LIMITED: Final = 5  # polls for each run: fewer are a limit
_RECHECK_COST: Final = 36.0  # of a poll of a run that listings show running, in seconds

_EARLY_AGES: Final = (1.5, 6.0, 12.0)  # at which a run of a new target is polled at the latest
_MAX_EARLY_COST: Final = 1.0  # a cost of a request up to which there are early ones
_PLENTIFUL: Final = 10  # requests that have to be left for each run, and the most runs, or there are no early ones

_DELIVERY_GRACE: Final = 0.5  # seconds that a delivery may arrive after a listing has shown the end
_OVERDUE: Final = 1.0  # seconds beyond the longest of all durations, at least, after which a delivery is overdue
_OVERDUE_ENDS: Final = 0.2  # ends that are expected in the time beyond
_HIGHEST_COST: Final = 4.0  # seconds that a request costs at most where quota is scarce
_SPECULATIVE_SHARE: Final = 0.03  # of scarce polls: for runs that listings show, at least
_TARGET_USE: Final = 1.6  # the part of the remaining quota to plan for: few windows are as busy throughout as now

_LAST_POLL_LEAD: Final = 0.5  # seconds before a deadline, or the end of a window, at which a last poll is sent
_FIRST_STEP: Final = 600.0
_LONGEST_STEP: Final = 60.0
_RECONSIDER: Final = 10.0  # seconds after which a due time is worked out anew
_QUOTA_RECHECK: Final = 1.0  # seconds after which a run that found no quota asks again
_FORECAST_PER_RUN: Final = 0.002  # seconds between two forecasts, for each run; one second at least
_MAX_UNCERTAINTY: Final = 30.0  # seconds within which an end has to be known to teach anything
_FAILURE_PAUSE: Final = 2.0  # seconds after a failed poll, for each failure in a row
_MAX_FAILURE_PAUSE: Final = 10.0
_POLL_WITHIN: Final = 2.0  # seconds within which a poll should come back
_MAX_BEFORE_ANSWER: Final = 10  # polls in flight before the first answer shows the quota
_NO_QUOTA: Final = Quota()


@attrs.frozen(repr=False)
class PollPlan:
    """What to send now, and when to plan again (inf: when something changes)."""

    polls: list[str]
    page: PageRequest | None
    next_at: float


class PollScheduler:
    """The polls and listings for all executions that somebody waits for.

    A run is in `_heap`, by when to consider a poll of its own; in `_ready` by when to poll it, if it was reported
    finished; or in `_in_flight`, since that was sent, also after it was removed. `_reported`: the status of the row
    that reported each, None for a webhook. `_singles`: how many runs no listing serves, `_relies`: whether deliveries
    were relied on, both at the last forecast. `_listed_at`: when the last listing began that is complete. Where polls
    are few, `_taken_at`: when one was sent for a run that only may have finished; there is no other `_spaced_until`.
    """

    def __init__(self, polling: Polling, learned: LearnedDurations) -> None:
        self.deliveries = DeliveryRecord()
        self._polling = polling
        self._learned = learned
        self._listings = Listings()
        self._runs: dict[str, TrackedRun] = {}
        self._by_request: dict[str | None, TrackedRun] = {}
        self._heap: list[tuple[float, str]] = []
        self._ready: list[tuple[float, float, str]] = []
        self._reported: dict[str, str | None] = {}
        self._in_flight: dict[str, float] = {}
        self._scarcity, self._singles = 1.0, 0
        self._forecast_at, self._listing_at, self._listed_at = -math.inf, math.inf, -math.inf
        self._taken_at = self._spaced_until = -math.inf
        self._uses_listings = self._relies = self._is_answered = False
        self._is_plenty = True

    def __len__(self) -> int:
        """Return the number of runs being polled."""
        return len(self._runs)

    def __contains__(self, execution_id: str) -> bool:
        """Return whether a run is being polled."""
        return execution_id in self._runs

    @property
    def polls_needed(self) -> int:
        """How many polls show the ends of all runs, beside those in flight."""
        return len(self._runs) - sum(name in self._runs for name in self._in_flight)

    # Who is polled.

    def add(self, run: TrackedRun, now: float) -> None:
        """Start polling a run where it left off; one of unknown age is polled at once."""
        if math.isnan(run.started_at):
            run.start(now - ASSUMED_AGE if run.submitted_at is None else run.submitted_at)
        run.durations = self._learned.durations_for(run.duration_key, run.expected)
        run.deadlines = []
        self._runs[run.execution_id] = run
        self._index(run)
        if self._in_flight.get(run.execution_id, -math.inf) <= now - _POLL_WITHIN:  # else an earlier wait began a poll
            self._in_flight.pop(run.execution_id, None)
            self._schedule(run, now)

    def remove(self, execution_id: str) -> None:
        """Stop polling a run; it can be added again."""
        run = self._runs.pop(execution_id, None)
        if run is not None:
            self._reported.pop(execution_id, None)
            self._unlist(run)

    def _index(self, run: TrackedRun) -> None:
        """Index a run by its request id; one that has none, or that of another, is shown by no listing."""
        if run.request_id is not None:
            self._by_request.setdefault(run.request_id, run)

    def _unlist(self, run: TrackedRun) -> None:
        """Leave a run to polls, whatever listings show."""
        if self._by_request.get(run.request_id) is run:
            del self._by_request[run.request_id]

    def set_request_id(self, run: TrackedRun, request_id: str) -> None:
        """Set the request id by which listings show a run, unless it is known already."""
        if run.request_id is None:
            run.request_id = request_id
            if run.execution_id in self._runs:
                self._index(run)

    def add_deadline(self, execution_id: str, deadline: float, now: float) -> None:
        """Add a deadline until which somebody waits for a run."""
        run = self._runs.get(execution_id)
        if run is not None:
            run.deadlines = [*(each for each in run.deadlines if each > now), deadline]
            self._schedule(run, now)

    def report_finished(self, execution_id: str, status: str | None = None, *, not_before: float = -math.inf) -> None:
        """Record that a run was reported finished: it is polled before all others, the oldest first."""
        run = self._runs.get(execution_id)
        if run is not None and execution_id not in self._reported and execution_id not in self._in_flight:
            self._reported[execution_id] = status
            heapq.heappush(self._ready, (not_before, run.started_at, execution_id))

    def cancel_requested(self, run: TrackedRun, now: float) -> None:
        """Record that a run was asked to cancel: it will finish soon."""
        if run.duration_key != CANCEL_KEY:
            run.duration_key, run.expected = CANCEL_KEY, CANCEL_DURATION
            run.durations = self._learned.durations_for(CANCEL_KEY, CANCEL_DURATION)
            run.start(now, submitted_at=now)
            run.last_seen_at = now
            self._schedule(run, now)

    # When a poll of a run is due.

    def _schedule(self, run: TrackedRun, now: float) -> float:
        """Put a run into the heap, to be considered when it is due or in ten seconds; return when it is due."""
        due_at = self._due_at(run, now)
        run.wake_at = min(due_at, now + _RECONSIDER)
        heapq.heappush(self._heap, (run.wake_at, run.execution_id))
        return due_at

    def _next_at(self) -> float:
        """Return when to consider the next run; what the heap has of others is void."""
        while self._heap:
            at, name = self._heap[0]
            run = self._runs.get(name)
            is_waiting = name not in self._in_flight and name not in self._reported
            if run is not None and run.wake_at == at and is_waiting:
                return at
            heapq.heappop(self._heap)
        return math.inf

    def _due_at(self, run: TrackedRun, now: float) -> float:
        """Return when a poll of a run is due."""
        if run.submitted_at is None and run.poll_count == 0:
            return run.not_before  # it may have finished long since
        if self._polling.schedule is not None:
            return max(run.not_before, _due_on_schedule(run, self._polling.schedule))
        if self._is_left_to_deliveries(run):
            cost = max(self._polling.cost_of_request, run.durations.median / _DELIVERY_PART)
            seen, cost = run.age(run.last_running_at), cost * self.deliveries.cost_factor
            age = run.durations.next_poll(seen, cost, longest=_FIRST_STEP, tail=0)
        elif not self._is_listed(run):
            age = self._next_poll(run, run.last_running_at)
        else:
            age = run.durations.next_poll(run.age(run.last_seen_at), _RECHECK_COST, longest=_FIRST_STEP)
            if self._listings.lag > _MAX_UNSEEN_LAG:  # then it was running that much earlier
                age = min(age, self._next_poll(run, max(run.last_seen_at, run.last_listed_at - self._listings.lag)))
        return max(run.not_before, _due_for_deadline(run, now, run.started_at + age))

    def _next_poll(self, run: TrackedRun, seen_at: float) -> float:
        """Return the age at which a run is polled by its own schedule that was last running at a time."""
        seen, cost = run.age(seen_at), self._polling.cost_of_request * self._scarcity
        return run.durations.next_poll(seen, cost, longest=self._longest_step(run, seen))

    def _longest_step(self, run: TrackedRun, seen: float) -> float:
        """Return the longest step after a run was seen running at an age; one of a new target may be a short one."""
        longest = _longest_step(seen)
        is_new = run.durations.end_count < NEW_ENDS and run.expected is None
        early = (age - seen for age in _EARLY_AGES if age > seen + 0.1)
        return min(longest, next(early, longest)) if is_new and self._is_plenty else longest

    def _is_left_to_deliveries(self, run: TrackedRun) -> bool:
        return bool(run.expects_delivery) and self.deliveries.is_reliable

    def _is_overdue(self, run: TrackedRun, now: float) -> bool:
        """Return whether a run should have been delivered: it seems to have outlived all others, by a good deal."""
        longest = run.durations.longest
        if not run.expects_delivery or not longest or run.age(run.last_running_at) > longest:
            return False
        beyond = run.age(now) - longest
        return beyond > _OVERDUE and run.hazard(now) * beyond > _OVERDUE_ENDS

    def _is_shown(self, run: TrackedRun) -> bool:
        """Return whether listings show a run: the last one did, or it was too fresh for it."""
        has_row = run.last_row_at >= self._listed_at or run.started_at + _LISTED_WITHIN > self._listed_at
        return has_row and self._by_request.get(run.request_id) is run

    def _is_listed(self, run: TrackedRun) -> bool:
        """Return whether listings serve a run."""
        return self._uses_listings and self._is_shown(run) and not self._is_left_to_deliveries(run)

    # What to send.

    def plan(self, now: float, *, poll_quota: Quota = _NO_QUOTA, usage_quota: Quota = _NO_QUOTA) -> PollPlan:
        """Return what to send now; polls are in flight until `polled`, a page until it was received or failed."""
        is_limited = poll_quota.available < _LIMITED * len(self._runs)
        fewest = 1 if is_limited and self._listings.is_proven else _MIN_RUNS - self._listings.is_proven
        may_list = self._polling.sweeps and self._polling.schedule is None and len(self._runs) >= fewest
        self._update_costs(now, poll_quota, usage_quota, may_list=may_list)
        available = poll_quota.available if self._in_flight else max(1, poll_quota.available)  # one may wait in line
        polls = self._take_reported(now, available)
        polls += self._take_due(now, self._speculative_polls(now, available - len(polls), poll_quota))
        reported_at = self._ready[0][0] if self._ready else math.inf
        page, next_at = None, min(self._next_at(), reported_at)
        if next_at <= now:
            next_at = self._spaced_until if now < self._spaced_until < now + _QUOTA_RECHECK else now + _QUOTA_RECHECK
        if may_list:
            listing_at = self._listings.next_at(now, usage_quota)
            listing_at = max(listing_at, self._listing_at) if self._uses_listings else listing_at
            if listing_at <= now and not (reported_at <= now and poll_quota.available <= 0):
                page, self._listing_at = self._listings.start(now, len(self._by_request)), math.inf
            next_at = min(next_at, listing_at if listing_at > now else math.inf)
        if may_list or (self._relies and not self.deliveries.has_bus):
            next_at = min(next_at, max(self._forecast_at, now + _QUOTA_RECHECK))
        return PollPlan(polls, page, next_at)

    def _update_costs(self, now: float, poll_quota: Quota, usage_quota: Quota, *, may_list: bool) -> None:
        """Work out what requests are worth: whether listings are used, and how scarce polls are."""
        used_listings, relied = self._uses_listings, self._relies
        self._uses_listings = may_list and self._listings.is_usable(now, usage_quota)
        is_unused = min(poll_quota.available, usage_quota.available) >= _PLENTIFUL * max(1, len(self._runs))
        is_few = len(self._runs) <= _PLENTIFUL
        self._is_plenty = is_unused and is_few and self._polling.cost_of_request <= _MAX_EARLY_COST
        if used_listings != self._uses_listings or now >= self._forecast_at:
            self._update_forecast(now, poll_quota)
        if used_listings != self._uses_listings or relied != self._relies:
            for run in self._runs.values():
                self._schedule(run, now)

    def _update_forecast(self, now: float, quota: Quota) -> None:
        """Work out from all runs when a listing is due, and the factor of the cost of a poll.

        A listing is due when the ends of all runs that it serves are expected to have gone unnoticed, together, for
        what a request costs. At a cost of c the polls of a run that are worth sending are sqrt(hazard / 2c) a second:
        the cost is the one at which they just use up what is left of the quota.
        """
        self._forecast_at = now + max(1.0, _FORECAST_PER_RUN * len(self._runs))
        self.deliveries.overdue = sum(self._is_overdue(run, now) for run in self._runs.values())
        self._relies, self._singles = self.deliveries.is_reliable, 0
        polls = ends = delay = weight = 0.0  # delay: twice what has gone unnoticed; ends: by how much it grows
        counted = set[str]()  # that a hundred runs of a new target run is no more evidence than that one does
        latest = math.inf  # that no run goes unseen for longer than its longest step
        for run in self._runs.values():
            hazard, is_listed = run.hazard(now), self._is_listed(run)
            if run.durations.longest or not is_listed or run.duration_key not in counted:
                _count_running(run)
                counted.add(run.duration_key)
            self._singles += not is_listed
            if not is_listed or self._listings.lag > _MAX_UNSEEN_LAG:
                polls += math.sqrt(hazard / 2)
            if is_listed and run.execution_id not in self._reported:
                seen_at = max(run.last_running_at, run.started_at)
                age = run.age(seen_at)
                latest = min(latest, seen_at + self._longest_step(run, age))
                since = max(0.0, now - seen_at)
                weight, ends, delay = weight + hazard, ends + hazard * since, delay + hazard * since * since
        missing = 2 * self._polling.cost_of_request - delay
        step = (math.sqrt(ends * ends + weight * missing) - ends) / weight if weight and missing > 0 else 0.0
        self._listing_at = min(now + step, latest) if weight else math.inf
        per_second = _TARGET_USE * quota.per_second
        cost = min(_HIGHEST_COST, (polls / per_second) ** 2) if per_second > 0 else _HIGHEST_COST
        self._scarcity = max(1.0, cost / self._polling.cost_of_request) if quota.limit is not None else 1.0

    def _take_reported(self, now: float, available: float) -> list[str]:
        """Return runs that were reported finished, as many as may be polled now."""
        taken: list[str] = []
        while self._ready and self._ready[0][0] <= now and len(taken) + 1 <= available:
            name = heapq.heappop(self._ready)[2]
            if name in self._reported and name not in self._in_flight:
                taken.append(name)
                self._in_flight[name] = now
        return taken

    def _take_due(self, now: float, spare: float) -> list[str]:
        """Return runs to poll that only may have finished, in the order in which they became due."""
        taken: list[str] = []
        while self._next_at() <= now < math.inf and len(taken) + 1 <= spare:
            name = heapq.heappop(self._heap)[1]
            if self._schedule(self._runs[name], now) <= now:
                taken.append(name)
                self._in_flight[name] = now
        if taken:
            self._taken_at = now
        return taken

    def _speculative_polls(self, now: float, available: float, quota: Quota) -> float:
        """Return how many polls there are for runs that only may have finished; few are spread over the window."""
        spare = available
        if self._uses_listings:  # a poll is kept for the result of each run that they serve
            spare = max(0.0, available - len(self._runs) + self._singles)
            if not self._listings.is_trusted(now):
                spare = max(spare, _SPECULATIVE_SHARE * available)
        if not self._is_answered:
            spare = min(spare, max(1.0, _MAX_BEFORE_ANSWER - len(self._in_flight)))
        if len(self._runs) <= available or self._polling.schedule is not None:
            return spare
        if spare <= 0:
            return 0
        left = 60.0 if quota.resets_in is None else max(0.0, quota.resets_in - _LAST_POLL_LEAD)
        self._spaced_until = self._taken_at + left / spare
        return 1 if available >= 1 and now >= self._spaced_until else 0

    # What came back.

    def polled(self, execution_id: str, now: float, jitter: float = 0.5, *, failures: float = 0) -> None:
        """Record that a poll came back without the end of its run; `failures`: polls of it that failed in a row."""
        self._is_answered = True
        run = self._runs.get(execution_id)
        if self._in_flight.pop(execution_id, None) is None or run is None:
            return
        run.poll_count, run.last_poll_at, run.jitter = run.poll_count + 1, now, jitter
        run.not_before = now + min(_MAX_FAILURE_PAUSE, _FAILURE_PAUSE * failures)
        if not failures:
            run.last_seen_at = now
            if execution_id in self._reported:
                self._refute(run, self._reported.pop(execution_id), now)
        self._queue(run, now)

    def _queue(self, run: TrackedRun, now: float) -> None:
        if run.execution_id in self._reported:
            heapq.heappush(self._ready, (run.not_before, run.started_at, run.execution_id))
        else:
            self._schedule(run, now)

    def _refute(self, run: TrackedRun, status: str | None, now: float) -> None:
        """Record that a run was reported finished, by a row with a status or by a webhook, and is still running."""
        if status is None:
            run.expects_delivery = False
        elif self._listings.refuted(now, status):
            self._unlist(run)

    def finished(
        self,
        execution_id: str,
        now: float,
        *,
        duration: float | None = None,
        is_polled: bool = True,
        is_typical: bool = True,
    ) -> None:
        """Record that a run finished and learn from it; `duration`: seconds as the service gave them, if it did.

        `is_polled`: whether a poll found it; `is_typical`: whether it says how long such runs take.
        """
        run = self._runs.get(execution_id)
        if run is None:
            return
        if is_typical:
            self._learn(run, now, duration, is_polled=is_polled)
        took = run.age(now) if duration is None else duration
        is_shown = self._reported.get(execution_id) is not None
        self._listings.observe_end(now, took, run.age(run.last_listed_at) - took, is_shown=is_shown)
        self.remove(execution_id)

    def _learn(self, run: TrackedRun, now: float, duration: float | None, *, is_polled: bool) -> None:
        """Learn from a run that has finished by now; an end that may have been at almost any time teaches nothing."""
        if run.submitted_at is None:
            return
        hi = run.age(now)
        lo = min(run.age(run.last_running_at), hi) if is_polled else hi  # deliveries come at once
        if duration is not None and lo <= duration <= hi:
            lo = hi = duration
        if hi - lo <= max(_MAX_UNCERTAINTY, hi / 2):
            run.durations.observe_end(lo, hi, counted_until=run.age(run.counted_until))

    def page_received(self, page: PageRequest, status_page: StatusPage, now: float) -> PageRequest | None:
        """Process a page; return the next page of the listing, None when it is complete."""
        matched, deepest = page.matched, 0
        for row, (request, status) in enumerate(status_page.row_statuses, 1):
            run = self._by_request.get(request)
            if run is None:
                continue
            deepest = row
            matched += run.last_row_at != page.started_at
            run.last_row_at = page.started_at
            if self._listings.is_running(status):
                run.last_listed_at = page.started_at
            elif not self._is_left_to_deliveries(run):
                may_be_delivered = self.deliveries.is_expected and run.expects_delivery
                not_before = now + _DELIVERY_GRACE if may_be_delivered else -math.inf
                self.report_finished(run.execution_id, status, not_before=not_before)
        following = self._listings.next_page(
            attrs.evolve(page, matched=matched), status_page, now, len(self._by_request), deepest
        )
        if following is None:
            self._forecast_at, self._listed_at = now, page.started_at
            for run in self._runs.values():
                if not self._is_shown(run):
                    self._schedule(run, now)
        return following

    def page_failed(self, now: float) -> None:
        """Record a page that failed: there are no listings for a while."""
        self._listings.failed(now)

    def requests_cancelled(self, now: float) -> None:
        """Record that the polls and the listing in flight were cancelled."""
        self._listings.is_in_flight = False
        in_flight, self._in_flight = self._in_flight, {}
        for run in [self._runs[name] for name in in_flight if name in self._runs]:
            self._queue(run, now)


def _count_running(run: TrackedRun) -> None:
    """Count the time of a running run, so that the fast ones of a batch do not make the target look fast."""
    seen = run.last_running_at
    if seen > run.counted_until and run.submitted_at is not None:
        run.durations.observe_running(run.age(run.counted_until), run.age(seen))
        run.counted_until = seen


def _longest_step(seen: float) -> float:
    """Return the longest step after a run was seen running at an age, whatever was learned."""
    return min(_LONGEST_STEP, max(10.0, seen / 4)) if seen > 0 else _FIRST_STEP


def _due_on_schedule(run: TrackedRun, schedule: Backoff) -> float:
    try:
        pause = min(schedule.longest, schedule.first * float(schedule.factor) ** run.poll_count)
    except OverflowError:
        pause = schedule.longest
    since = run.last_poll_at if run.poll_count else (run.submitted_at or 0.0)
    return since + pause * (1.0 + schedule.jitter * (run.jitter - 0.5))


def _due_for_deadline(run: TrackedRun, now: float, at: float) -> float:
    """Return when the poll planned for `at` is due: before a deadline, if that cuts its step by a quarter at most."""
    seen = max(run.last_running_at, run.started_at)
    last_polls = (deadline - _LAST_POLL_LEAD for deadline in run.deadlines if deadline > now)
    return min((poll for poll in last_polls if (3 * at + seen) / 4 <= poll < at), default=at)
