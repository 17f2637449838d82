"""When to poll each run, when to fetch a usage listing, and when to decide again: all polling decisions. Pure.

`now` is local monotonic seconds and `jitter` is uniform in [0, 1); nothing here waits or sends. O(log n) per event;
work over all runs is rare. From the bottom up: the running runs by age and by due time, the queue of those that are due
and wait for a request, when one run is due, what was reported finished, what a failed poll means, and `PollScheduler`,
which decides by all of it.

While there are plenty of requests, all due runs are polled; when there are more runs than requests left in the window,
those reported finished go first, and the rest is spread over the rest of the window. A run that listings show as
running is left to them until it is due for a recheck. A report never finishes a run: a poll has to confirm it.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final

import attrs

from knouds_async._sansio.durations import CANCEL_KEY, EDGES, Durations, LearnedDurations, PollStage, TrackedRun
from knouds_async._sansio.listings import (
    MIN_RUNS,
    ListingBreaker,
    ListingScheduler,
    PageRequest,
    Quota,
    QuotaSpreader,
    StatusPage,
    scarcity_cost,
)
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

# ---- The ages of the running runs, as histograms


@attrs.frozen
class Forecast:
    """What to expect of all running runs: ends per second, and the sum of the roots of half the hazards.

    The second is the rate of polls that costs least when a poll costs a second of latency.
    """

    ends_per_second: float = 0.0
    polls_per_second: float = 0.0


class AgeHistogram:
    """The start times of the running runs, by duration key."""

    def __init__(self) -> None:
        self._starts: dict[str, list[float]] = {}
        self._count = 0

    def __len__(self) -> int:
        """Return the number of runs."""
        return self._count

    @property
    def key_count(self) -> int:
        """The number of duration keys."""
        return len(self._starts)

    def add(self, key: str, started_at: float) -> None:
        """Add a run."""
        insort(self._starts.setdefault(key, []), started_at)
        self._count += 1

    def remove(self, key: str, started_at: float) -> None:
        """Remove a run that was added."""
        times = self._starts[key]
        del times[bisect_left(times, started_at)]
        self._count -= 1
        if not times:
            del self._starts[key]

    def forecast(self, learned: LearnedDurations, now: float) -> Forecast:
        """Return what to expect now; O(bins of age) for each duration key, however many runs it has."""
        ends = polls = 0.0
        for key, times in self._starts.items():
            for count, hazard in _by_hazard(learned.durations_for(key), times, now):
                ends += count * hazard
                polls += count * math.sqrt(hazard / 2)
        return Forecast(ends, polls)


def _by_hazard(durations: Durations, times: list[float], now: float) -> Iterator[tuple[int, float]]:
    """Group runs by the bin of their age: how many, and the hazard there."""
    if len(times) <= len(EDGES) // 4:
        for started_at in times:
            yield 1, durations.hazard(now - started_at)
        return
    youngest, oldest = (bisect_right(EDGES, max(0.0, now - started_at)) - 1 for started_at in (times[-1], times[0]))
    older = len(times)
    for k in range(youngest, oldest + 1):
        above = bisect_right(times, now - (EDGES[k + 1] if k < oldest else math.inf))
        if older > above:
            yield older - above, durations.hazard(EDGES[k])
        older = above


# ---- The runs by id, by request id and by due time


class RunIndex:
    """The tracked runs; `ages` counts those that nothing has reported finished."""

    def __init__(self) -> None:
        self.ages = AgeHistogram()
        self._runs: dict[str, TrackedRun] = {}
        self._by_request: dict[str, TrackedRun | None] = {}  # None: more than one run has it
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        """Return the number of runs."""
        return len(self._runs)

    def __iter__(self) -> Iterator[TrackedRun]:
        """Iterate over all runs."""
        return iter(self._runs.values())

    def get(self, execution_id: str) -> TrackedRun | None:
        """Return a run, None when it is not tracked."""
        return self._runs.get(execution_id)

    def add(self, run: TrackedRun) -> None:
        """Add a run."""
        self._runs[run.execution_id] = run
        self.ages.add(run.duration_key, run.started_at)
        self._index(run)

    def remove(self, execution_id: str) -> TrackedRun | None:
        """Remove a run; it can be added again."""
        run = self._runs.pop(execution_id, None)
        if run is None:
            return None
        if not run.is_reported:
            self.ages.remove(run.duration_key, run.started_at)
        if run.request_id is not None and self._by_request.get(run.request_id) is run:
            del self._by_request[run.request_id]
        run.stage, run.is_reported, run.deadlines = PollStage.IDLE, False, None
        return run

    # The request that a run is listed by.

    def set_request_id(self, run: TrackedRun, request_id: str) -> None:
        """Set it, unless it is known already."""
        if run.request_id is None:
            run.request_id = request_id
            if run.execution_id in self._runs:
                self._index(run)

    def _index(self, run: TrackedRun) -> None:
        request = run.request_id
        if request is not None:
            known = self._by_request.get(request, run)
            self._by_request[request] = run if known is run else None

    def by_request_id(self, request_id: str) -> TrackedRun | None:
        """Return the run listed under a request id; None when there is none, or more than one."""
        return self._by_request.get(request_id)

    def is_listable(self, run: TrackedRun) -> bool:
        """Return whether a listing can show this run and no other under its request id."""
        return run.request_id is not None and self._by_request.get(run.request_id) is run

    def listable_count(self) -> int:
        """Return the number of request ids that listings can show."""
        return len(self._by_request)

    # What is counted of it.

    def reset_start(self, run: TrackedRun, key: str, submitted_at: float) -> None:
        """Change from when a run's age is counted, and under which duration key."""
        is_counted = run.execution_id in self._runs and not run.is_reported
        if is_counted:
            self.ages.remove(run.duration_key, run.started_at)
        run.duration_key = key
        run.submitted_at = run.started_at = run.counted_until = submitted_at
        if is_counted:
            self.ages.add(run.duration_key, run.started_at)

    def mark_reported(self, run: TrackedRun) -> None:
        """Mark a run as reported finished."""
        run.is_reported, run.stage = True, PollStage.REPORTED
        self.ages.remove(run.duration_key, run.started_at)

    def unmark_reported(self, run: TrackedRun) -> None:
        """Mark a run as running after all."""
        run.is_reported = False
        self.ages.add(run.duration_key, run.started_at)

    # When to think of it.

    def schedule(self, run: TrackedRun, due_at: float) -> None:
        """Schedule a run; what was scheduled for it before is void."""
        run.stage, run.due_at = PollStage.SCHEDULED, due_at
        heapq.heappush(self._heap, (due_at, run.execution_id))

    def rebuild_heap(self) -> None:
        """Rebuild the heap after the due times of many runs have changed."""
        self._heap = [(run.due_at, run.execution_id) for run in self if run.stage is PollStage.SCHEDULED]
        heapq.heapify(self._heap)

    def next_due_at(self) -> float:
        """Return when the next run is due; inf when none is scheduled."""
        while self._heap:
            due_at, execution_id = self._heap[0]
            run = self._runs.get(execution_id)
            if run is not None and run.stage is PollStage.SCHEDULED and run.due_at == due_at:
                return due_at
            heapq.heappop(self._heap)
        return math.inf

    def pop_due(self, now: float) -> TrackedRun | None:
        """Return a run that is due now, None when there is none."""
        if self.next_due_at() > now or not self._heap:
            return None
        return self._runs[heapq.heappop(self._heap)[1]]


# ---- The due runs that wait for a request

_RANKING_HOLDS: Final = 0.25  # seconds for which a ranking holds
_RANKING_PER_RUN: Final = 0.001  # or for each run that was ranked

ExpectedDelay = Callable[[TrackedRun], float]
"""For how long a run's end is expected to have gone unnoticed, in seconds."""


class ReadyQueue:
    """The runs that are due for a poll and wait for a request."""

    def __init__(self) -> None:
        self._reported: deque[TrackedRun] = deque()
        self._candidates: dict[str, TrackedRun] = {}
        self._ranked: list[str] = []
        self._ranked_until = -math.inf
        self._spread = QuotaSpreader()

    @property
    def has_reported(self) -> bool:
        """Whether a run that was reported finished is waiting."""
        while self._reported and self._reported[0].stage is not PollStage.REPORTED:
            self._reported.popleft()
        return bool(self._reported)

    @property
    def candidate_count(self) -> int:
        """How many runs that may have finished are waiting."""
        return len(self._candidates)

    @property
    def has_candidates(self) -> bool:
        """Whether a run that may have finished is waiting."""
        return bool(self._candidates)

    def add_reported(self, run: TrackedRun) -> None:
        """Add a run that was reported finished."""
        self._reported.append(run)

    def add(self, run: TrackedRun) -> None:
        """Add a run that is due for a poll."""
        run.stage = PollStage.READY
        self._candidates[run.execution_id] = run

    def discard(self, run: TrackedRun) -> None:
        """Remove a run that is no longer due."""
        self._candidates.pop(run.execution_id, None)

    def take_reported(self, available: float) -> list[TrackedRun]:
        """Return runs that were reported finished, as many as may be polled now."""
        taken: list[TrackedRun] = []
        while len(taken) < available and self.has_reported:
            taken.append(self._reported.popleft())
            taken[-1].stage = PollStage.IN_FLIGHT
        return taken

    def take_all(self, available: float = math.inf) -> list[TrackedRun]:
        """Return all due runs, or the first of them."""
        taken = list(self._candidates.values())
        return self._sent(taken if len(taken) <= available else taken[: int(available)])

    def take_ranked(self, now: float, budget: float, quota: Quota, delay: ExpectedDelay) -> list[TrackedRun]:
        """Return the runs to poll now if `budget` requests are to last until the window ends."""
        taken: list[TrackedRun] = []
        for _ in range(min(self._spread.take(now, budget, quota.resets_in), len(self._candidates))):
            taken += self._sent([self._pop_ranked(now, delay)])
        return taken

    def _pop_ranked(self, now: float, delay: ExpectedDelay) -> TrackedRun:
        """Return the run whose end is expected to have gone unnoticed for longest."""
        while True:
            if not self._ranked or now >= self._ranked_until:
                self._ranked = sorted(self._candidates, key=lambda execution_id: delay(self._candidates[execution_id]))
                self._ranked_until = now + max(_RANKING_HOLDS, _RANKING_PER_RUN * len(self._ranked))
            run = self._candidates.get(self._ranked.pop())
            if run is not None:
                return run

    def next_ranked_at(self, now: float, budget: float, quota: Quota) -> float:
        """Return when `take_ranked` returns the next."""
        return self._spread.next_at(now, budget, quota.resets_in)

    def _sent(self, runs: list[TrackedRun]) -> list[TrackedRun]:
        for run in runs:
            run.stage = PollStage.IN_FLIGHT
            del self._candidates[run.execution_id]
        return runs


# ---- When one run is due

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


# ---- The runs that were reported finished


class ReportedFinished:
    """The runs that were reported finished and have not been polled since."""

    def __init__(self, index: RunIndex, ready: ReadyQueue, listings: ListingScheduler, breaker: ListingBreaker) -> None:
        self._index = index
        self._ready = ready
        self._listings = listings
        self._breaker = breaker
        self._statuses: dict[str, str | None] = {}  # the status by which a listing reported it
        self._matching: dict[str, str] = {}

    def add(self, run: TrackedRun, status: str | None = None) -> None:
        """Poll a run before all others; `status`: by which a listing shows it, None for another source."""
        self._ready.discard(run)
        self._index.mark_reported(run)
        self._statuses[run.execution_id] = status
        self._ready.add_reported(run)

    def discard(self, execution_id: str) -> None:
        """Remove a run that is no longer polled."""
        self._statuses.pop(execution_id, None)

    def was_listed(self, run: TrackedRun) -> bool:
        """Return whether it was a listing that reported the run."""
        return self._statuses.get(run.execution_id) is not None

    def refute(self, run: TrackedRun, now: float) -> None:
        """Record that a poll found a reported run still running."""
        self._index.unmark_reported(run)
        status = self._statuses.pop(run.execution_id)
        if status is not None and self._breaker.record_wrong_end(now, status):
            run.ignore_until = now + longest_step(run.age(now))

    def listable_count(self) -> int:
        """Return the number of runs that a listing can still show something new of."""
        return self._index.listable_count() - len(self._statuses)

    def page_received(self, page: PageRequest, status_page: StatusPage, now: float) -> PageRequest | None:
        """Process a page; return the next page of the listing, None when it is complete."""
        matched, deepest = page.matched, 0
        finished: dict[str, tuple[TrackedRun, str]] = {}
        for row, (request, status) in enumerate(status_page.row_statuses, 1):
            run = self._index.by_request_id(request)
            if run is None:
                continue
            deepest = row
            if run.is_reported:
                continue
            is_running = self._breaker.means_running(status)
            self._breaker.record_match(is_running=is_running)
            if is_running:
                matched += run.last_listed_at != page.started_at
                self._listed_running(run, page.started_at, now)
            elif run.ignore_until > now or run.stage is PollStage.IN_FLIGHT:
                matched += 1
            else:
                finished[run.execution_id] = run, status
        for run, status in sorted(finished.values(), key=lambda one: one[0].started_at):
            self.add(run, status)
        self._matching |= self._breaker.relevant(status_page.row_statuses)
        following = self._listings.next_page(
            attrs.evolve(page, matched=matched), status_page, self.listable_count(), deepest
        )
        if following is None:
            self._breaker.check_unlisted_ends(
                page.started_at, now, self._matching, is_last_page=status_page.row_count < page.limit
            )
            self._matching = {}
        return following

    def _listed_running(self, run: TrackedRun, started_at: float, now: float) -> None:
        run.last_listed_at = started_at
        if run.stage is PollStage.READY:  # it waits for a request, and may need none any more
            self._ready.discard(run)
            self._index.schedule(run, now)

    def reset(self) -> None:
        """Forget the listing in progress: it was cut short."""
        self._matching = {}


# ---- What a failed poll means

NOT_FOUND_GRACE: Final = 5.0  # seconds for which a fresh id may answer 404 (contract 5, assumed)
MAX_POLL_FAILURES: Final = 5  # polls that may fail in a row before a wait without a deadline ends

_TRANSIENT: Final = (ConnectionFailedError, NoAnswerError, InvalidResponseError, ServiceError, RateLimitError)
_PROXY_TIMEOUTS: Final = (408, 499)  # a proxy timed out: that says nothing of the run


class PollFailure(Enum):
    """What a failed poll means for those who wait."""

    IGNORABLE = "ignorable"
    """As good as a poll that found the run running."""
    TRANSIENT = "transient"
    """Of the way there, not of the run: `MAX_POLL_FAILURES` in a row end a wait that has no deadline."""
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


# ---- The scheduler

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
