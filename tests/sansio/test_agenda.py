"""The scheduler on plain schedules: which executions are polled when."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from knouds_async._sansio.agenda import PollScheduler
from knouds_async._sansio.durations import LearnedDurations
from knouds_async._sansio.tracked_run import TrackedRun
from knouds_async.config import Backoff, Polling

EVEN = Backoff(first=1.0, factor=2.0, longest=5.0, jitter=0.0)


class Plain:
    """A scheduler on a plain schedule, whose requests are not limited."""

    def __init__(self, schedule: Backoff) -> None:
        self.scheduler = PollScheduler(Polling(schedule=schedule), LearnedDurations())
        self.runs: dict[str, TrackedRun] = {}
        self.now, self.draw = 0.0, 0.5

    def __len__(self) -> int:
        """Count the runs."""
        return len(self.scheduler)

    def watch(self, run: TrackedRun, now: float, draw: float) -> None:
        """Start to poll a run."""
        self.now, self.draw = max(self.now, now), draw
        self.runs[run.execution_id] = run
        self.scheduler.add(run, now, draw)

    def forget(self, name: str) -> TrackedRun:
        """Stop polling a run."""
        self.scheduler.remove(name)
        return self.runs.pop(name)

    def due(self, now: float) -> list[str]:
        """Return the runs to poll now."""
        self.now = max(self.now, now)
        return self.scheduler.plan(now, self.draw).polls

    def next_due_at(self) -> float:
        """Return when the next poll is due."""
        return self.scheduler._index.next_due_at()

    def polled(self, name: str, now: float, draw: float) -> None:
        """Record a poll that did not find the end."""
        self.scheduler.polled(name, now, draw)


def run(name: str, submitted_at: float | None = None, count: int = 0, last: float = -math.inf) -> TrackedRun:
    """Return what is known of a run."""
    return TrackedRun(name, submitted_at=submitted_at, poll_count=count, last_poll_at=last)


def polls_at(schedule: Backoff, number: int, *, draw: float = 0.5, submitted_at: float = 0.0) -> list[float]:
    """Return when an execution is polled if each poll comes back at once."""
    plan, times = Plain(schedule), []
    plan.watch(run("a", submitted_at), submitted_at, draw)
    for _ in range(number):
        times.append(plan.next_due_at())
        assert plan.due(times[-1]) == ["a"]
        plan.polled("a", times[-1], draw)
    return times


def test_an_empty_scheduler_plans_nothing() -> None:
    """With nobody waiting there is nothing to do, ever."""
    plan = Plain(EVEN)
    assert (len(plan), plan.due(1e9), plan.next_due_at()) == (0, [], math.inf)


def test_polls_follow_the_schedule() -> None:
    """First after `first` seconds, then at steps longer by `factor`, up to `longest`."""
    assert polls_at(EVEN, 6) == [1.0, 3.0, 7.0, 12.0, 17.0, 22.0]
    assert polls_at(EVEN, 2, submitted_at=100.0) == [101.0, 103.0]


def test_a_fixed_pace_is_fixed() -> None:
    """A factor of one polls every `first` seconds."""
    assert polls_at(Backoff(first=2.0, factor=1.0, longest=2.0, jitter=0.0), 4) == [2.0, 4.0, 6.0, 8.0]


def test_the_longest_step_bounds_the_first() -> None:
    """No step, the first included, is longer than `longest`."""
    assert polls_at(Backoff(first=60.0, longest=5.0, jitter=0.0), 2) == [5.0, 10.0]


@given(
    st.floats(0.001, 1e3),
    st.floats(1, 1e9) | st.integers(1, 10**9) | st.just(math.inf),
    st.floats(0.001, 1e3) | st.just(math.inf),
    st.floats(0, 1),
    st.integers(0, 10**6),
    st.floats(0, 1, exclude_max=True),
)
def test_the_next_poll_is_always_ahead(
    first: float, factor: float, longest: float, jitter: float, count: int, draw: float
) -> None:
    """After any number of polls at any pace, the next comes later, by no more than the jitter beyond `longest`."""
    plan = Plain(Backoff(first=first, factor=factor, longest=longest, jitter=jitter))
    plan.watch(run("a", 0.0, count, 50.0), 50.0, draw)
    assert plan.due(math.inf) == ["a"]
    plan.polled("a", 100.0, draw)
    assert 100.0 < plan.next_due_at() <= 100.0 + longest * (1 + jitter / 2)


@given(st.floats(0, 1), st.floats(0, 1, exclude_max=True))
def test_the_jitter_spreads_a_step_about_its_middle(jitter: float, draw: float) -> None:
    """A step varies by `jitter` of itself in all; the first poll after a submit does not vary."""
    schedule = Backoff(first=4.0, factor=1.0, longest=4.0, jitter=jitter)
    first, second = polls_at(schedule, 2, draw=draw)
    assert first == 4.0
    assert second - first == pytest.approx(4.0 * (1 + jitter * (draw - 0.5)))


def test_a_run_of_unknown_age_is_polled_at_once() -> None:
    """An attached run may have finished long since."""
    plan = Plain(EVEN)
    plan.watch(run("a"), 50.0, 0.5)
    assert plan.next_due_at() == 50.0
    assert plan.due(50.0) == ["a"]
    plan.polled("a", 50.5, 0.5)
    assert plan.next_due_at() == 52.5


def test_a_run_that_was_submitted_long_ago_is_polled_now() -> None:
    """A poll that would have been due is due now, not in the past."""
    plan = Plain(EVEN)
    plan.watch(run("a", 0.0), 500.0, 0.5)
    assert plan.next_due_at() == 500.0


def test_the_schedule_goes_on_where_it_stood() -> None:
    """A wait that ends and begins again neither starts the steps anew nor polls more often."""
    plan = Plain(EVEN)
    plan.watch(run("a", 0.0), 0.0, 0.5)
    for now in (1.0, 3.0):
        assert plan.due(now) == ["a"]
        plan.polled("a", now, 0.5)
    polls = plan.forget("a")
    assert (polls.submitted_at, polls.poll_count, polls.last_poll_at) == (0.0, 2, 3.0)
    assert (len(plan), plan.next_due_at()) == (0, math.inf)
    plan.watch(polls, 4.0, 0.5)
    assert plan.next_due_at() == 7.0
    assert plan.due(7.0) == ["a"]
    assert plan.due(math.inf) == []


def test_an_execution_in_flight_is_not_due() -> None:
    """One poll at a time: the next is planned when the last has come back."""
    plan = Plain(EVEN)
    plan.watch(run("a", 0.0), 0.0, 0.5)
    assert plan.due(1.0) == ["a"]
    assert (plan.due(1e9), plan.next_due_at(), len(plan)) == ([], math.inf, 1)
    plan.polled("a", 9.0, 0.5)
    assert plan.next_due_at() == 11.0


def test_a_poll_that_nobody_waits_for_any_more_is_of_no_account() -> None:
    """News of an execution that was forgotten meanwhile plans nothing."""
    plan = Plain(EVEN)
    plan.watch(run("a", 0.0), 0.0, 0.5)
    assert plan.due(1.0) == ["a"]
    plan.forget("a")
    plan.polled("a", 2.0, 0.5)
    assert (len(plan), plan.next_due_at()) == (0, math.inf)


def test_due_executions_come_in_the_order_of_their_times() -> None:
    """Who is due first is polled first; who is not due is not polled."""
    plan = Plain(EVEN)
    for number, name in enumerate(["c", "a", "b", "late"]):
        plan.watch(run(name, float(number)), 0.0, 0.5)
    assert plan.due(3.5) == ["c", "a", "b"]
    assert plan.next_due_at() == 4.0


class Watching(RuleBasedStateMachine):
    """Any order of watching, polling and forgetting, checked against a plain dictionary of due times."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.due_at: dict[str, float] = {}
        self.in_flight: dict[str, float] = {}
        self.left: set[str] = set()
        self.kept: dict[str, TrackedRun] = {}

    @initialize(jitter=st.sampled_from([0.0, 0.1, 1.0]))
    def begin(self, jitter: float) -> None:
        """Start with an empty scheduler."""
        self.plan = Plain(Backoff(first=1.0, factor=2.0, longest=5.0, jitter=jitter))

    @property
    def watched(self) -> set[str]:
        """Everything that is tracked."""
        return {*self.due_at, *self.in_flight} - self.left

    @rule(name=st.sampled_from("abcd"), is_known=st.booleans(), draw=st.floats(0, 0.99))
    def watch(self, name: str, is_known: bool, draw: float) -> None:
        """Start to poll, with what is remembered."""
        if name not in self.watched:
            polls = self.kept.pop(name, None) or run(name, self.now if is_known else None)
            self.plan.watch(polls, self.now, draw)
            is_left = name in self.left
            self.left.discard(name)
            if is_left and self.in_flight[name] > self.now - 2.0:  # the poll that is in flight serves this wait too
                return
            self.in_flight.pop(name, None)  # else it is as good as lost
            if polls.submitted_at is None and polls.poll_count == 0:
                self.due_at[name] = self.now
            else:
                since = (
                    polls.last_poll_at
                    if polls.poll_count
                    else self.now
                    if polls.submitted_at is None
                    else polls.submitted_at
                )
                assert self.plan.next_due_at() <= max(self.now, since + 7.5)
                self.due_at[name] = self.plan.runs[name].due_at

    @rule(seconds=st.floats(0, 9))
    def wait(self, seconds: float) -> None:
        """Let time pass and take what is due."""
        self.now += seconds
        found = self.plan.due(self.now)
        assert set(found) == {name for name, at in self.due_at.items() if at <= self.now}
        assert len(found) == len(set(found))
        assert found == sorted(found, key=lambda name: (self.due_at[name], name))
        for name in found:
            del self.due_at[name]
            self.in_flight[name] = self.now

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), draw=st.floats(0, 0.99))
    def poll(self, data: st.DataObject, draw: float) -> None:
        """Finish a poll."""
        name = data.draw(st.sampled_from(sorted(self.in_flight)))
        self.plan.polled(name, self.now, draw)
        del self.in_flight[name]
        if name in self.left:
            self.left.remove(name)
            return
        self.due_at[name] = self.plan.runs[name].due_at
        assert self.now < self.due_at[name] <= self.now + 7.5

    @precondition(lambda self: self.watched)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """Stop polling."""
        name = data.draw(st.sampled_from(sorted(self.watched)))
        self.kept[name] = self.plan.forget(name)
        self.due_at.pop(name, None)
        if name in self.in_flight:
            self.left.add(name)

    @invariant()
    def knows_what_comes_next(self) -> None:
        """The next poll is the earliest that is planned, and everything tracked is counted."""
        if hasattr(self, "plan"):
            assert self.plan.next_due_at() == min(self.due_at.values(), default=math.inf)
            assert len(self.plan) == len(self.watched)


Watching.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestWatching = Watching.TestCase


def test_a_plan_that_was_replaced_gives_no_poll() -> None:
    """An execution that was forgotten and tracked again is polled by its new plan only."""
    scheduler = Plain(Backoff(first=1.0, jitter=0.0))
    scheduler.watch(run("a", 0.0), 0.0, 0.5)
    scheduler.forget("a")
    scheduler.watch(run("a", 5.0), 5.0, 0.5)
    assert scheduler.due(5.5) == []
    assert scheduler.due(6.0) == ["a"]
