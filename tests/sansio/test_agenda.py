"""The agenda on plain schedules: which executions are looked at when."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from knouds_async._sansio.agenda import Agenda
from knouds_async._sansio.course import Course
from knouds_async._sansio.learned import Learned
from knouds_async.config import Backoff, Polling

EVEN = Backoff(first=1.0, factor=2.0, longest=5.0, jitter=0.0)


class Plain:
    """An agenda on a plain schedule, whose requests are not limited."""

    def __init__(self, schedule: Backoff) -> None:
        self.agenda = Agenda(Polling(schedule=schedule), Learned())
        self.courses: dict[str, Course] = {}
        self.now, self.roll = 0.0, 0.5

    def __len__(self) -> int:
        """Count the runs."""
        return len(self.agenda)

    def watch(self, course: Course, now: float, roll: float) -> None:
        """Begin to watch a run."""
        self.now, self.roll = max(self.now, now), roll
        self.courses[course.execution_id] = course
        self.agenda.watch(course, now, roll)

    def forget(self, name: str) -> Course:
        """Stop watching a run."""
        self.agenda.forget(name)
        return self.courses.pop(name)

    def due(self, now: float) -> list[str]:
        """Give the runs to look at now."""
        self.now = max(self.now, now)
        return self.agenda.plan(now, self.roll).looks

    def next_at(self) -> float:
        """Give when the next look is due."""
        return self.agenda._roster.next_at()

    def looked(self, name: str, now: float, roll: float) -> None:
        """Take note of a look that did not find the end."""
        self.agenda.looked(name, now, roll)


def course(name: str, submitted: float | None = None, count: int = 0, last: float = -math.inf) -> Course:
    """Give what is known of a run."""
    return Course(name, submitted=submitted, count=count, last=last)


def looks_at(schedule: Backoff, number: int, *, roll: float = 0.5, submitted: float = 0.0) -> list[float]:
    """Give when an execution is looked at if each look is over at once."""
    plan, times = Plain(schedule), []
    plan.watch(course("a", submitted), submitted, roll)
    for _ in range(number):
        times.append(plan.next_at())
        assert plan.due(times[-1]) == ["a"]
        plan.looked("a", times[-1], roll)
    return times


def test_an_empty_agenda_plans_nothing() -> None:
    """With nobody waiting there is nothing to do, ever."""
    plan = Plain(EVEN)
    assert (len(plan), plan.due(1e9), plan.next_at()) == (0, [], math.inf)


def test_looks_follow_the_schedule() -> None:
    """First after `first` seconds, then at steps longer by `factor`, up to `longest`."""
    assert looks_at(EVEN, 6) == [1.0, 3.0, 7.0, 12.0, 17.0, 22.0]
    assert looks_at(EVEN, 2, submitted=100.0) == [101.0, 103.0]


def test_a_fixed_pace_is_fixed() -> None:
    """A factor of one looks every `first` seconds."""
    assert looks_at(Backoff(first=2.0, factor=1.0, longest=2.0, jitter=0.0), 4) == [2.0, 4.0, 6.0, 8.0]


def test_the_longest_step_bounds_the_first() -> None:
    """No step, the first included, is longer than `longest`."""
    assert looks_at(Backoff(first=60.0, longest=5.0, jitter=0.0), 2) == [5.0, 10.0]


@given(
    st.floats(0.001, 1e3),
    st.floats(1, 1e9) | st.integers(1, 10**9) | st.just(math.inf),
    st.floats(0.001, 1e3) | st.just(math.inf),
    st.floats(0, 1),
    st.integers(0, 10**6),
    st.floats(0, 1, exclude_max=True),
)
def test_the_next_look_is_always_ahead(
    first: float, factor: float, longest: float, jitter: float, count: int, roll: float
) -> None:
    """After any number of looks at any pace, the next comes later, by no more than the jitter beyond `longest`."""
    plan = Plain(Backoff(first=first, factor=factor, longest=longest, jitter=jitter))
    plan.watch(course("a", 0.0, count, 50.0), 50.0, roll)
    assert plan.due(math.inf) == ["a"]
    plan.looked("a", 100.0, roll)
    assert 100.0 < plan.next_at() <= 100.0 + longest * (1 + jitter / 2)


@given(st.floats(0, 1), st.floats(0, 1, exclude_max=True))
def test_the_jitter_spreads_a_step_about_its_middle(jitter: float, roll: float) -> None:
    """A step varies by `jitter` of itself in all; the first look after a submit does not vary."""
    schedule = Backoff(first=4.0, factor=1.0, longest=4.0, jitter=jitter)
    first, second = looks_at(schedule, 2, roll=roll)
    assert first == 4.0
    assert second - first == pytest.approx(4.0 * (1 + jitter * (roll - 0.5)))


def test_a_run_of_unknown_age_is_looked_at_at_once() -> None:
    """An attached run may be over long since."""
    plan = Plain(EVEN)
    plan.watch(course("a"), 50.0, 0.5)
    assert plan.next_at() == 50.0
    assert plan.due(50.0) == ["a"]
    plan.looked("a", 50.5, 0.5)
    assert plan.next_at() == 52.5


def test_a_run_that_was_submitted_long_ago_is_looked_at_now() -> None:
    """A look that would have been due is due now, not in the past."""
    plan = Plain(EVEN)
    plan.watch(course("a", 0.0), 500.0, 0.5)
    assert plan.next_at() == 500.0


def test_the_schedule_goes_on_where_it_stood() -> None:
    """A wait that ends and begins again neither starts the steps anew nor looks more often."""
    plan = Plain(EVEN)
    plan.watch(course("a", 0.0), 0.0, 0.5)
    for now in (1.0, 3.0):
        assert plan.due(now) == ["a"]
        plan.looked("a", now, 0.5)
    looks = plan.forget("a")
    assert (looks.submitted, looks.count, looks.last) == (0.0, 2, 3.0)
    assert (len(plan), plan.next_at()) == (0, math.inf)
    plan.watch(looks, 4.0, 0.5)
    assert plan.next_at() == 7.0
    assert plan.due(7.0) == ["a"]
    assert plan.due(math.inf) == []


def test_an_execution_under_way_is_not_due() -> None:
    """One look at a time: the next is planned when the last is over."""
    plan = Plain(EVEN)
    plan.watch(course("a", 0.0), 0.0, 0.5)
    assert plan.due(1.0) == ["a"]
    assert (plan.due(1e9), plan.next_at(), len(plan)) == ([], math.inf, 1)
    plan.looked("a", 9.0, 0.5)
    assert plan.next_at() == 11.0


def test_a_look_that_nobody_waits_for_any_more_is_of_no_account() -> None:
    """News of an execution that was forgotten meanwhile plans nothing."""
    plan = Plain(EVEN)
    plan.watch(course("a", 0.0), 0.0, 0.5)
    assert plan.due(1.0) == ["a"]
    plan.forget("a")
    plan.looked("a", 2.0, 0.5)
    assert (len(plan), plan.next_at()) == (0, math.inf)


def test_due_executions_come_in_the_order_of_their_times() -> None:
    """Who is due first is looked at first; who is not due is not looked at."""
    plan = Plain(EVEN)
    for number, name in enumerate(["c", "a", "b", "late"]):
        plan.watch(course(name, float(number)), 0.0, 0.5)
    assert plan.due(3.5) == ["c", "a", "b"]
    assert plan.next_at() == 4.0


class Watching(RuleBasedStateMachine):
    """Any order of watching, looking and forgetting, checked against a plain dictionary of due times."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.due_at: dict[str, float] = {}
        self.under_way: dict[str, float] = {}
        self.left: set[str] = set()
        self.kept: dict[str, Course] = {}

    @initialize(jitter=st.sampled_from([0.0, 0.1, 1.0]))
    def begin(self, jitter: float) -> None:
        """Start with an empty agenda."""
        self.plan = Plain(Backoff(first=1.0, factor=2.0, longest=5.0, jitter=jitter))

    @property
    def watched(self) -> set[str]:
        """Everything that is watched."""
        return {*self.due_at, *self.under_way} - self.left

    @rule(name=st.sampled_from("abcd"), is_known=st.booleans(), roll=st.floats(0, 0.99))
    def watch(self, name: str, is_known: bool, roll: float) -> None:
        """Begin to watch, with what is remembered."""
        if name not in self.watched:
            looks = self.kept.pop(name, None) or course(name, self.now if is_known else None)
            self.plan.watch(looks, self.now, roll)
            is_left = name in self.left
            self.left.discard(name)
            if is_left and self.under_way[name] > self.now - 2.0:  # the look that is under way serves this wait too
                return
            self.under_way.pop(name, None)  # else it is as good as lost
            if looks.submitted is None and looks.count == 0:
                self.due_at[name] = self.now
            else:
                since = looks.last if looks.count else self.now if looks.submitted is None else looks.submitted
                assert self.plan.next_at() <= max(self.now, since + 7.5)
                self.due_at[name] = self.plan.courses[name].at

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
            self.under_way[name] = self.now

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), roll=st.floats(0, 0.99))
    def look(self, data: st.DataObject, roll: float) -> None:
        """Finish a look."""
        name = data.draw(st.sampled_from(sorted(self.under_way)))
        self.plan.looked(name, self.now, roll)
        del self.under_way[name]
        if name in self.left:
            self.left.remove(name)
            return
        self.due_at[name] = self.plan.courses[name].at
        assert self.now < self.due_at[name] <= self.now + 7.5

    @precondition(lambda self: self.watched)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """Stop watching."""
        name = data.draw(st.sampled_from(sorted(self.watched)))
        self.kept[name] = self.plan.forget(name)
        self.due_at.pop(name, None)
        if name in self.under_way:
            self.left.add(name)

    @invariant()
    def knows_what_comes_next(self) -> None:
        """The next look is the earliest that is planned, and everything watched is counted."""
        if hasattr(self, "plan"):
            assert self.plan.next_at() == min(self.due_at.values(), default=math.inf)
            assert len(self.plan) == len(self.watched)


Watching.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestWatching = Watching.TestCase


def test_a_plan_that_was_replaced_gives_no_look() -> None:
    """An execution that was forgotten and watched again is looked at by its new plan only."""
    agenda = Plain(Backoff(first=1.0, jitter=0.0))
    agenda.watch(course("a", 0.0), 0.0, 0.5)
    agenda.forget("a")
    agenda.watch(course("a", 5.0), 5.0, 0.5)
    assert agenda.due(5.5) == []
    assert agenda.due(6.0) == ["a"]
