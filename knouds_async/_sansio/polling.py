"""When to poll each run and when to fetch a listing instead: all polling decisions, by one rule. Pure.

A run is due when its end is expected to have gone unnoticed for as long as a request for it costs. A request costs
`cost_of_request` seconds, more where quota is scarce, and its part of that where one listing serves many runs. What is
due is served by one listing if three or more runs are awaited, by a poll if not; ends that were reported are polled
first, and the others in the order in which they became due. A report never finishes a run: a poll has to confirm it.

`now` is local monotonic seconds and `jitter` is uniform in [0, 1). A due time is reconsidered before anything is sent
for it, and at least every ten seconds: whatever changes what a request costs, the schedule follows.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from enum import Enum
from itertools import islice
from typing import Final

import attrs

from knouds_async._sansio.durations import CANCEL_KEY, Durations, LearnedDurations
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

    `duration_key`: under which its duration is learned. `submitted_at`: None when unknown. `expects_delivery`: whether
    its end should be delivered to a webhook, None when unknown. `poll_count`: own polls so far, and `failures` those
    that failed in a row. `last_seen_at`: when such a poll last found it running; `last_listed_at`: when a listing last
    did; `last_row_at`: when one last had a row of it; `counted_until`: up to when its time was counted towards its
    duration model. `recheck_at`: when it is polled though listings show it running. `not_before`: no poll before.
    `ignore_until`: listings are ignored before, for they were wrong of it. `deadlines`: of those who wait, sorted.
    """

    execution_id: str
    duration_key: str = ""
    submitted_at: float | None = None
    request_id: str | None = None
    expected: float | None = None
    expects_delivery: bool | None = None
    started_at: float = math.nan
    poll_count: int = 0
    failures: int = 0
    last_poll_at: float = -math.inf
    last_seen_at: float = -math.inf
    last_listed_at: float = -math.inf
    last_row_at: float = -math.inf
    counted_until: float = -math.inf
    recheck_at: float = math.inf
    not_before: float = -math.inf
    ignore_until: float = -math.inf
    due_at: float = math.inf
    deadlines: list[float] | None = None

    def start(self, started_at: float) -> None:
        """Set when it started."""
        self.started_at = self.counted_until = started_at

    @property
    def last_running_at(self) -> float:
        """When it was last seen running, by a poll or by a listing."""
        return max(self.last_seen_at, self.last_listed_at)

    def age(self, at: float) -> float:
        """Return its age at a time; 0 for a time before its start."""
        return at - self.started_at if at > self.started_at else 0.0


# ---- What a failed poll means

NOT_FOUND_GRACE: Final = 5.0  # seconds for which a fresh id may answer 404 (contract 5, assumed)

_TRANSIENT: Final = (ConnectionFailedError, NoAnswerError, InvalidResponseError, ServiceError, RateLimitError)
_PROXY_TIMEOUTS: Final = (408, 499)  # a proxy timed out: that says nothing of the run


class PollFailure(Enum):
    """What a failed poll means for those who wait."""

    IGNORABLE = "ignorable"
    """As good as a poll that found the run running."""
    TRANSIENT = "transient"
    """Of the way there, not of the run: `Polling.max_failures` in a row end a wait that has no deadline."""
    PERMANENT = "permanent"
    """No later poll can do better: every wait ends."""


def classify_poll_error(error: KnoudsError, *, age: float | None) -> PollFailure:
    """Return what a failed poll means; `age`: seconds since the submit, None when unknown."""
    if isinstance(error, APIError) and not error.from_service:
        return PollFailure.TRANSIENT  # somebody in between, who knows nothing of the run
    if isinstance(error, NotFoundError):
        return PollFailure.IGNORABLE if age is not None and age <= NOT_FOUND_GRACE else PollFailure.PERMANENT
    is_proxy_timeout = isinstance(error, APIError) and error.status in _PROXY_TIMEOUTS
    return PollFailure.TRANSIENT if is_proxy_timeout or isinstance(error, _TRANSIENT) else PollFailure.PERMANENT


# ---- Whether to rely on webhooks

_MIN_ENDS: Final = 3
_MIN_DELIVERED: Final = 0.4  # the part of the latest ends that must have been delivered


class DeliveryRecord:
    """Whether the latest ends were delivered. `is_expected`: whether deliveries can be handed to this client."""

    def __init__(self) -> None:
        self.is_expected = False
        self._was_delivered: deque[bool] = deque(maxlen=50)

    def add(self, *, was_delivered: bool) -> None:
        """Record an end that was delivered, or that a poll found first."""
        self._was_delivered.append(was_delivered)

    @property
    def is_reliable(self) -> bool:
        """Whether deliveries are expected and come, for the most part."""
        seen, delivered = len(self._was_delivered), sum(self._was_delivered)
        return self.is_expected and (seen < _MIN_ENDS or delivered >= _MIN_DELIVERED * seen)

    @property
    def has_any(self) -> bool:
        """Whether deliveries came lately."""
        return self.is_reliable and any(self._was_delivered)


# ---- The scheduler

_MIN_RUNS: Final = 3  # awaited runs for which a listing pays
_PROBES: Final = 1  # runs that are polled as well until listings have proven right
_RECHECK_COST: Final = 30.0  # of a poll of a run that listings show running, in seconds
_DOUBTED_COST: Final = 10.0  # the same while listings have shown no end, or once one was wrong
_LIMITED_FACTOR: Final = 4.0  # the factor of it where polls are limited

_NEW_ENDS: Final = 3  # ends from which a target is known
_EARLY_AGES: Final = (1.5, 6.0, 12.0)  # at which a run of a new target is polled at the latest
_OUTLIVED_STEP: Final = 0.2  # of its age: the longest step of a run that outlived all that were seen
_CHEAP: Final = 1.0  # a cost of a request up to which there are early ones
_PLENTY: Final = 10  # requests that have to be left for each that is due at a time, or there are no early ones

_DELIVERY_FACTOR: Final = 16.0  # of the cost while webhooks arrive
_HIGHEST_COST: Final = 4.0  # seconds that a request costs at most where quota is scarce
_TARGET_USE: Final = 0.8  # the part of the remaining quota that polls plan to use
_SPECULATIVE_SHARE: Final = 0.1  # of scarce polls: for runs that listings have not reported

_LEAD: Final = 0.5  # seconds before a deadline at which a last poll is sent
_LIMITED: Final = 5  # polls for each run: fewer are a limit
_LIKELY: Final = 0.25  # the probability of an end that is worth one
_FIRST_STEP: Final = 600.0
_LONGEST_STEP: Final = 60.0
_RECONSIDER: Final = 10.0  # seconds after which a due time is worked out anew
_BLOCKED: Final = 1.0  # seconds after which a run that found no quota asks again
_COUNT_PER_RUN: Final = 0.002  # seconds between two counts of all runs, for each of them; one second at least
_VAGUE: Final = 30.0  # seconds within which an end has to be known to teach anything
_FAILURE_PAUSE: Final = 2.0  # seconds after a failed poll
_MAX_FAILURE_PAUSE: Final = 10.0
_POLL_WITHIN: Final = 2.0  # seconds within which a poll should come back
_FEW: Final = 10  # polls in flight before the first answer shows the quota
_ROUNDING: Final = 1e-6
_NO_QUOTA: Final = Quota()


@attrs.frozen(repr=False)
class PollPlan:
    """What to send now, and when to plan again (inf: when something changes). `served`: the runs due for a listing."""

    polls: list[str]
    page: PageRequest | None
    served: list[str]
    next_at: float


class PollScheduler:
    """The polls and listings for all executions that somebody waits for.

    A run is in `_heap`, by when to consider it next; in `_overdue` or, when it was reported finished, in `_ready`,
    while it waits for a poll; or in `_in_flight`, since that was sent, also after it was removed. `_reported`: the
    status of its row by which each was reported, None for a webhook. `_hidden`: those that listings do not show.
    """

    def __init__(self, polling: Polling, learned: LearnedDurations) -> None:
        self.deliveries = DeliveryRecord()
        self._polling = polling
        self._learned = learned
        self._listings = Listings()
        self._runs: dict[str, TrackedRun] = {}
        self._by_request: dict[str, TrackedRun | None] = {}  # None: more than one run has it
        self._heap: list[tuple[float, float, str]] = []
        self._overdue: list[tuple[float, str]] = []
        self._reported: dict[str, str | None] = {}
        self._ready: deque[str] = deque()
        self._in_flight: dict[str, float] = {}
        self._hidden: set[str] = set()
        self._scarcity, self._next_count_at = 1.0, -math.inf
        self._saved, self._saved_at = 0.0, -math.inf
        self._uses_listings = self._is_limited = self._is_answered = False
        self._is_plenty = polling.cost_of_request <= _CHEAP

    def __len__(self) -> int:
        """Return the number of runs being polled."""
        return len(self._runs)

    def __contains__(self, execution_id: str) -> bool:
        """Return whether a run is being polled."""
        return execution_id in self._runs

    # Who is polled.

    def add(self, run: TrackedRun, now: float, jitter: float) -> None:
        """Start polling a run where it left off; one of unknown age is polled at once."""
        if math.isnan(run.started_at):
            run.start(now - ASSUMED_AGE if run.submitted_at is None else run.submitted_at)
        self._learned.add(run.duration_key, run.expected)
        self._runs[run.execution_id] = run
        run.due_at, run.recheck_at, run.deadlines = math.inf, self._recheck_at(run), None
        self._index(run)
        if self._in_flight.get(run.execution_id, -math.inf) <= now - _POLL_WITHIN:  # else an earlier wait began a poll
            self._in_flight.pop(run.execution_id, None)
            self._schedule(run, now, jitter)

    def remove(self, execution_id: str) -> None:
        """Stop polling a run; it can be added again."""
        run = self._runs.pop(execution_id, None)
        if run is not None:
            self._reported.pop(execution_id, None)
            self._hidden.discard(execution_id)
            if run.request_id is not None and self._by_request.get(run.request_id) is run:
                del self._by_request[run.request_id]

    def _index(self, run: TrackedRun) -> None:
        """Index a run by its request id; one that has none, or shares it, is shown by no listing."""
        other = None if run.request_id is None else self._by_request.setdefault(run.request_id, run)
        if other is not run:
            self._hidden |= {run.execution_id} | ({other.execution_id} if other else set())
            if run.request_id is not None:
                self._by_request[run.request_id] = None

    def set_request_id(self, run: TrackedRun, request_id: str) -> None:
        """Set the request id by which listings show a run, unless it is known already."""
        if run.request_id is None:
            run.request_id = request_id
            if run.execution_id in self._runs:
                self._hidden.discard(run.execution_id)
                self._index(run)

    def set_submitted_at(self, run: TrackedRun, submitted_at: float) -> None:
        """Set when a run was submitted whose age was unknown."""
        run.submitted_at = submitted_at
        run.start(submitted_at)

    def add_deadline(self, execution_id: str, deadline: float, now: float, jitter: float) -> None:
        """Add a deadline until which somebody waits for a run."""
        run = self._runs.get(execution_id)
        if run is not None:
            run.deadlines = run.deadlines or []
            insort(run.deadlines, deadline)
            if self._is_scheduled(run):
                self._schedule(run, now, jitter)

    def report_finished(self, execution_id: str) -> None:
        """Record that a run was reported finished: it is polled before all others."""
        if execution_id in self._runs and execution_id not in self._reported and execution_id not in self._in_flight:
            self._reported[execution_id] = None
            self._ready.append(execution_id)

    def cancel_requested(self, run: TrackedRun, now: float, jitter: float) -> None:
        """Record that a run was asked to cancel: it will finish soon."""
        if run.duration_key != CANCEL_KEY:
            run.duration_key = CANCEL_KEY
            self._learned.add(CANCEL_KEY, None)
            self.set_submitted_at(run, now)
            run.last_seen_at = now
            if self._is_scheduled(run):
                self._schedule(run, now, jitter)

    def _is_waiting(self, run: TrackedRun) -> bool:
        return run.execution_id not in self._reported and run.execution_id not in self._in_flight

    def _is_scheduled(self, run: TrackedRun) -> bool:
        return run.execution_id in self._runs and run.execution_id not in self._in_flight

    # When a run is due.

    def _schedule(self, run: TrackedRun, now: float, jitter: float) -> None:
        at = self._due_at(run, now, jitter)
        self._push(run, at, max(now, min(at, now + _RECONSIDER)))

    def _push(self, run: TrackedRun, due_at: float, at: float) -> None:
        """Put a run that is due at a time into the heap, to be considered at another; what was there before is void."""
        run.due_at = due_at
        heapq.heappush(self._heap, (at, due_at, run.execution_id))

    def _next_at(self) -> float:
        while self._heap:
            at, due_at, name = self._heap[0]
            run = self._runs.get(name)
            if run is not None and run.due_at == due_at and self._is_scheduled(run):
                return at
            heapq.heappop(self._heap)
        return math.inf

    def _due_at(self, run: TrackedRun, now: float, jitter: float) -> float:
        """Return when a run is due for a listing or a poll."""
        if run.submitted_at is None and run.poll_count == 0:
            return run.not_before  # it may have finished long since
        if self._polling.schedule is not None:
            return max(run.not_before, _due_on_schedule(run, self._polling.schedule, jitter))
        durations = self._learned.durations_for(run.duration_key)
        if run.recheck_at <= now:
            run.recheck_at = self._recheck_at(run)
        is_served = self._is_served(run, now)
        seen = run.age(run.last_seen_at if self._is_probe(run) else run.last_running_at)
        if self._is_left_to_deliveries(run):
            cost = max(_DELIVERY_FACTOR * self._polling.cost_of_request, durations.median)
            age = durations.next_poll(seen, cost, longest=_FIRST_STEP)
        elif is_served:
            cost = self._polling.cost_of_request / self._served_count()
            age = seen + min(math.sqrt(2 * cost / durations.hazard(seen)), self._longest_step(durations, seen))
        else:
            cost = self._polling.cost_of_request * self._scarcity
            age = durations.next_poll(seen, cost, longest=self._longest_step(durations, seen))
        at = min(run.started_at + age, run.recheck_at if is_served else math.inf)
        return max(run.not_before, _due_for_deadline(run, durations, now, at) if run.deadlines else at)

    def _longest_step(self, durations: Durations, seen: float) -> float:
        """Return the longest step after a run was seen running at an age: none is known that took so long, or some."""
        longest = min(_LONGEST_STEP, max(10.0, seen / 4)) if seen > 0 else _FIRST_STEP
        if not self._is_plenty or seen < durations.longest or durations.expected is not None:
            return longest
        if durations.end_count >= _NEW_ENDS:
            return min(longest, max(_EARLY_AGES[0] / 2, _OUTLIVED_STEP * seen))
        return min(longest, next((age - seen for age in _EARLY_AGES if age > seen + 0.1), longest))

    def _is_left_to_deliveries(self, run: TrackedRun) -> bool:
        if run.expects_delivery is None:
            return self.deliveries.has_any and run.poll_count > 0
        return run.expects_delivery and self.deliveries.is_reliable

    def _is_served(self, run: TrackedRun, now: float) -> bool:
        """Return whether listings serve a run, and no poll of its own is due."""
        is_listed = self._uses_listings and run.execution_id not in self._hidden and now < run.recheck_at
        return is_listed and not self._is_probe(run) and not self._is_left_to_deliveries(run)

    def _is_probe(self, run: TrackedRun) -> bool:
        """Return whether a run is one of the few that are polled as well until listings have proven right."""
        return not self._listings.is_proven and run.execution_id in islice(self._runs, _PROBES)

    def _served_count(self) -> int:
        return max(1, len(self._runs) - len(self._hidden) - len(self._reported))

    def _recheck_at(self, run: TrackedRun) -> float:
        """Return when a run is polled though listings show it running."""
        cost = _RECHECK_COST if self._listings.is_proven and not self._listings.has_missed else _DOUBTED_COST
        cost *= _LIMITED_FACTOR if self._is_limited else 1.0
        durations, seen = self._learned.durations_for(run.duration_key), run.age(run.last_seen_at)
        return run.started_at + durations.next_poll(seen, cost, longest=_FIRST_STEP)

    # What to send.

    def plan(
        self, now: float, jitter: float, *, poll_quota: Quota = _NO_QUOTA, usage_quota: Quota = _NO_QUOTA
    ) -> PollPlan:
        """Return what to send now; polls are in flight until `polled`, a page until it was received or failed."""
        fewest = _MIN_RUNS - self._listings.is_proven
        may_list = self._polling.sweeps and self._polling.schedule is None and len(self._runs) >= fewest
        self._weigh(now, poll_quota, usage_quota, may_list=may_list)
        available = poll_quota.available if self._in_flight else max(1, poll_quota.available)  # one may wait in line
        served = self._sort_due(now, jitter, self._listings.next_at(now, usage_quota))
        polls = self._take_reported(now, available)
        polls += self._take_overdue(now, jitter, self._spare(now, available - len(polls), poll_quota))
        page, next_at = None, self._next_at()
        if self._ready or self._overdue:
            next_at = min(next_at, poll_quota.next_at(now) if available < len(polls) + 1 else now + _BLOCKED)
        if may_list:
            wants_listing = bool(served) or now >= self._listings.retry_at() or self._listings.has_to_check(now)
            is_possible = now >= self._listings.next_at(now, usage_quota)
            if wants_listing and is_possible and not (self._ready and poll_quota.available <= 0):
                page = self._listings.start(now, self._served_count())
            next_at = min(next_at, max(self._listings.retry_at(), now + _BLOCKED))
        return PollPlan(polls, page, served, next_at)

    def _weigh(self, now: float, poll_quota: Quota, usage_quota: Quota, *, may_list: bool) -> None:
        """Work out what requests are worth: whether listings are used, and how scarce polls are."""
        used_listings = self._uses_listings
        self._uses_listings = may_list and self._listings.is_usable(now, usage_quota)
        self._is_limited = poll_quota.available <= _LIMITED * len(self._runs)
        singles = max(1, len(self._hidden)) if self._uses_listings else len(self._runs)
        is_unused = min(poll_quota.available, usage_quota.available) >= _PLENTY * singles
        self._is_plenty = is_unused and singles <= _FEW and self._polling.cost_of_request <= _CHEAP
        if now >= self._next_count_at or used_listings != self._uses_listings:
            self._next_count_at = now + max(1.0, _COUNT_PER_RUN * len(self._runs))
            self._count_running()
            self._scarcity = 1.0 if poll_quota.limit is None else self._scarcity_of(poll_quota, now)

    def _scarcity_of(self, quota: Quota, now: float) -> float:
        """Return the factor of the cost at which polls just use up what is left of the quota.

        At a cost of c the polls of a run that are worth sending are sqrt(hazard / 2c) a second.
        """
        polls = sum(
            math.sqrt(self._learned.durations_for(run.duration_key).hazard(run.age(now)) / 2)
            for run in self._runs.values()
            if not self._is_served(run, now)
        )
        per_second = _TARGET_USE * quota.per_second
        cost = _HIGHEST_COST if per_second <= 0 else min(_HIGHEST_COST, (polls / per_second) ** 2)
        return max(1.0, cost / self._polling.cost_of_request)

    def _take_reported(self, now: float, available: float) -> list[str]:
        """Return runs that were reported finished, as many as may be polled now."""
        taken: list[str] = []
        while self._ready and len(taken) + 1 <= available:
            name = self._ready.popleft()
            if name in self._reported and name not in self._in_flight:
                taken.append(name)
                self._in_flight[name] = now
        return taken

    def _sort_due(self, now: float, jitter: float, listing_at: float) -> list[str]:
        """Put the runs that are due where they wait for a poll; return those that wait for a listing."""
        served: list[str] = []
        while self._heap and self._next_at() <= now:
            run = self._runs[heapq.heappop(self._heap)[2]]
            if self._is_due(run, now, jitter):
                if run.execution_id in self._reported:
                    self._ready.append(run.execution_id)
                elif self._is_served(run, now):
                    served.append(run.execution_id)
                    self._push(run, run.due_at, listing_at if listing_at > now else now + 1.0)
                else:
                    heapq.heappush(self._overdue, (run.due_at, run.execution_id))
        return served

    def _take_overdue(self, now: float, jitter: float, spare: float) -> list[str]:
        """Return runs to poll that only may have finished, in the order in which they became due."""
        taken: list[str] = []
        while self._overdue and len(taken) + 1 <= spare + _ROUNDING:
            due_at, name = heapq.heappop(self._overdue)
            run = self._runs.get(name)
            if run is not None and run.due_at == due_at and self._is_scheduled(run) and self._is_due(run, now, jitter):
                taken.append(name)
                self._in_flight[name] = now
        self._saved -= len(taken)
        return taken

    def _is_due(self, run: TrackedRun, now: float, jitter: float) -> bool:
        """Return whether a run is due by now; if not, it is scheduled anew."""
        if self._polling.schedule is None:  # else the jitter would be drawn again
            at = self._due_at(run, now, jitter)
            run.due_at = at if at > now else min(run.due_at, now)
        if run.due_at > now:
            self._push(run, run.due_at, min(run.due_at, now + _RECONSIDER))
        return run.due_at <= now

    def _spare(self, now: float, available: float, quota: Quota) -> float:
        """Return how many polls there are for runs that only may have finished: few are spread over the window."""
        spare = max(_SPECULATIVE_SHARE * available, available - len(self._runs)) if self._uses_listings else available
        if not self._is_answered:
            spare = min(spare, max(1.0, _FEW - len(self._in_flight)))
        if len(self._runs) <= available or self._polling.schedule is not None:
            self._saved, self._saved_at = 0.0, now
            return spare
        resets_in = max(60.0 if quota.resets_in is None else quota.resets_in, 1.0)
        earned = spare * min(now - self._saved_at, _BLOCKED) / resets_in
        self._saved = min(max(1.0, spare), max(0.0, self._saved) + earned)
        self._saved_at = now
        return self._saved

    def _count_running(self) -> None:
        """Count the time of all running runs, so that the fast ones of a batch do not make the target look fast."""
        spans: dict[str, list[tuple[float, float]]] = {}
        for run in self._runs.values():
            seen = run.last_running_at
            if seen > run.counted_until and run.submitted_at is not None:
                spans.setdefault(run.duration_key, []).append((run.age(run.counted_until), run.age(seen)))
                run.counted_until = seen
        for key, new_spans in spans.items():
            self._learned.observe_running(key, new_spans)

    # What came back.

    def polled(self, execution_id: str, now: float, jitter: float, *, is_answered: bool = True) -> None:
        """Record that a poll came back without the end of its run: the run is still running, or the poll failed."""
        self._is_answered = True
        run = self._runs.get(execution_id)
        if self._in_flight.pop(execution_id, None) is None or run is None:
            return
        run.poll_count, run.last_poll_at = run.poll_count + 1, now
        if is_answered:
            run.last_seen_at, run.not_before, run.failures = now, now, 0
            run.recheck_at = self._recheck_at(run)
            if execution_id in self._reported:
                self._refute(run, self._reported.pop(execution_id), now)
        else:
            run.failures += 1
            run.not_before = now + min(_MAX_FAILURE_PAUSE, _FAILURE_PAUSE * run.failures)
        if execution_id in self._reported:
            self._push(run, run.not_before, run.not_before)
        else:
            self._schedule(run, now, jitter)

    def _refute(self, run: TrackedRun, status: str | None, now: float) -> None:
        """Record that a run was reported finished, by a row with a status or by a webhook, and is still running."""
        if status is None:
            run.expects_delivery = False
        elif self._listings.refuted(now, status):
            run.ignore_until = now + max(10.0, run.age(now) / 4)
            self._hidden.add(run.execution_id)

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
        if self._reported.get(execution_id) is not None:
            took = run.age(now) if duration is None else duration
            self._listings.confirmed(now, run.age(run.last_listed_at) - took, took)
        elif is_polled and self._uses_listings and execution_id not in self._reported and run.request_id is not None:
            self._listings.found_first(run.request_id, now)
        self.remove(execution_id)

    def _learn(self, run: TrackedRun, now: float, duration: float | None, *, is_polled: bool) -> None:
        """Learn from a run that has finished by now; an end that may have been at almost any time teaches nothing."""
        if run.submitted_at is None:
            return
        hi = run.age(now)
        lo = min(run.age(run.last_running_at), hi) if is_polled else hi  # deliveries come at once
        if duration is not None and lo <= duration <= hi:
            lo = hi = duration
        if hi - lo <= max(_VAGUE, hi / 2):
            self._learned.observe_end(run.duration_key, lo, hi, counted_until=run.age(run.counted_until))

    def page_received(self, page: PageRequest, status_page: StatusPage, now: float) -> PageRequest | None:
        """Process a page; return the next page of the listing, None when it is complete."""
        matched, deepest = page.matched, 0
        finished: dict[str, str] = {}
        for row, (request, status) in enumerate(status_page.row_statuses, 1):
            run = self._by_request.get(request)
            if run is None:
                self._listings.check_row(request, status, now)
                continue
            deepest = row
            matched += run.last_row_at != page.started_at and run.execution_id not in self._reported
            run.last_row_at = page.started_at
            if run.ignore_until > now:
                continue
            self._hidden.discard(run.execution_id)
            if self._listings.is_running(status):
                run.last_listed_at = page.started_at
            elif not self._is_left_to_deliveries(run) and self._is_waiting(run):
                finished[run.execution_id] = status
        self._reported |= finished
        self._ready.extend(sorted(finished, key=lambda name: self._runs[name].started_at))
        awaited = len(self._by_request) - len(self._reported)
        page = attrs.evolve(page, matched=matched)
        following = self._listings.next_page(page, status_page, now, awaited, deepest)
        if following is None:
            self._listings.check_missing(page.started_at, now)
            self._hidden.update(
                run.execution_id
                for run in self._runs.values()
                if run.last_row_at < page.started_at and self._listings.is_due_to_show(page.started_at, run.started_at)
            )
        return following

    def page_failed(self, now: float, *, is_permanent: bool) -> None:
        """Record a page that failed: there are no listings for a while, or for long when none can do better."""
        self._listings.failed(now, is_permanent=is_permanent)

    def requests_cancelled(self, now: float, jitter: float) -> None:
        """Record that the polls and the listing in flight were cancelled."""
        self._listings.cancelled()
        in_flight, self._in_flight = self._in_flight, {}
        for name in in_flight:
            if name in self._reported:
                self._ready.append(name)
            elif (run := self._runs.get(name)) is not None:
                self._schedule(run, now, jitter)


def _due_on_schedule(run: TrackedRun, schedule: Backoff, jitter: float) -> float:
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
    deadlines, last_running_at = run.deadlines or [], run.age(run.last_running_at)
    del deadlines[: bisect_right(deadlines, now)]

    def probability(deadline: float) -> float:
        return durations.probability(last_running_at, run.age(deadline - _LEAD))

    first = bisect_left(deadlines, _LIKELY, key=probability)
    return at if first == len(deadlines) else min(at, deadlines[first] - _LEAD)
