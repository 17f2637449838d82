"""When runs are polled: on plain schedules, by what was learned, under any listing and quota, and after failures."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from knouds_async import errors
from knouds_async._sansio.durations import CANCEL_KEY, LearnedDurations
from knouds_async._sansio.listings import PageRequest, Quota, StatusPage
from knouds_async._sansio.polling import (
    NOT_FOUND_GRACE,
    DeliveryRecord,
    PollPlan,
    PollScheduler,
    TrackedRun,
    failures_of,
)
from knouds_async.config import Backoff, Polling
from knouds_async.errors import APIError, KnoudsError

# ---- On a plain schedule

EVEN = Backoff(first=1.0, factor=2.0, longest=5.0, jitter=0.0)


class Plain:
    """A scheduler on a plain schedule, whose requests are not limited."""

    def __init__(self, schedule: Backoff) -> None:
        self.scheduler = PollScheduler(Polling(schedule=schedule), LearnedDurations())
        self.runs: dict[str, TrackedRun] = {}
        self.now = 0.0

    def __len__(self) -> int:
        """Count the runs."""
        return len(self.scheduler)

    def watch(self, run: TrackedRun, now: float) -> None:
        """Start to poll a run."""
        self.now = max(self.now, now)
        self.runs[run.execution_id] = run
        self.scheduler.add(run, now)

    def forget(self, name: str) -> TrackedRun:
        """Stop polling a run."""
        self.scheduler.remove(name)
        return self.runs.pop(name)

    def due(self, now: float) -> list[str]:
        """Return the runs to poll now."""
        self.now = max(self.now, now)
        return self.scheduler.plan(now).polls

    def next_due_at(self) -> float:
        """Return when the next poll is due."""
        return self.scheduler._next_at()

    def polled(self, name: str, now: float, draw: float = 0.5) -> None:
        """Record a poll that did not find the end."""
        self.scheduler.polled(name, now, draw)


def named_run(name: str, submitted_at: float | None = None, count: int = 0, last: float = -math.inf) -> TrackedRun:
    """Return what is known of a run."""
    return TrackedRun(name, submitted_at=submitted_at, poll_count=count, last_poll_at=last)


def polls_at(schedule: Backoff, number: int, *, draw: float = 0.5, submitted_at: float = 0.0) -> list[float]:
    """Return when an execution is polled if each poll comes back at once."""
    plan, times = Plain(schedule), []
    plan.watch(named_run("a", submitted_at), submitted_at)
    for _ in range(number):
        times.append(plan.next_due_at())
        assert plan.due(times[-1]) == ["a"]
        plan.polled("a", times[-1], draw)
    return times


def test_an_empty_scheduler_plans_nothing() -> None:
    """Without waiters there is nothing to do, ever."""
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
    st.floats(0.001, 1e3),
    st.floats(0, 1),
    st.integers(0, 10**6),
    st.floats(0, 1, exclude_max=True),
)
def test_the_next_poll_is_always_ahead(
    first: float, factor: float, longest: float, jitter: float, count: int, draw: float
) -> None:
    """After any number of polls at any pace, the next comes later, by no more than the jitter beyond `longest`."""
    plan = Plain(Backoff(first=first, factor=factor, longest=longest, jitter=jitter))
    plan.watch(named_run("a", 0.0, count, 50.0), 50.0)
    assert plan.due(1e4) == ["a"]
    plan.polled("a", 1e4, draw)
    assert 1e4 < plan.next_due_at() <= 1e4 + longest * (1 + jitter / 2)


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
    plan.watch(named_run("a"), 50.0)
    assert plan.next_due_at() <= 50.0
    assert plan.due(50.0) == ["a"]
    plan.polled("a", 50.5)
    assert plan.next_due_at() == 52.5


def test_a_run_that_was_submitted_long_ago_is_polled_now() -> None:
    """A poll that would have been due is due now, not in the past."""
    plan = Plain(EVEN)
    plan.watch(named_run("a", 0.0), 500.0)
    assert plan.due(500.0) == ["a"]


def test_the_schedule_continues_where_it_stood() -> None:
    """A wait that ends and begins again neither starts the steps anew nor polls more often."""
    plan = Plain(EVEN)
    plan.watch(named_run("a", 0.0), 0.0)
    for now in (1.0, 3.0):
        assert plan.due(now) == ["a"]
        plan.polled("a", now)
    polls = plan.forget("a")
    assert (polls.submitted_at, polls.poll_count, polls.last_poll_at) == (0.0, 2, 3.0)
    assert (len(plan), plan.next_due_at()) == (0, math.inf)
    plan.watch(polls, 4.0)
    assert plan.next_due_at() == 7.0
    assert plan.due(7.0) == ["a"]
    assert plan.due(1e9) == []


def test_an_execution_in_flight_is_not_due() -> None:
    """One poll at a time: the next is planned when the last has come back."""
    plan = Plain(EVEN)
    plan.watch(named_run("a", 0.0), 0.0)
    assert plan.due(1.0) == ["a"]
    assert (plan.due(1e9), plan.next_due_at(), len(plan)) == ([], math.inf, 1)
    plan.polled("a", 9.0)
    assert plan.next_due_at() == 11.0


def test_a_poll_without_a_waiter_is_ignored() -> None:
    """News of an execution that was forgotten meanwhile plans nothing."""
    plan = Plain(EVEN)
    plan.watch(named_run("a", 0.0), 0.0)
    assert plan.due(1.0) == ["a"]
    plan.forget("a")
    plan.polled("a", 2.0)
    assert (len(plan), plan.next_due_at()) == (0, math.inf)


def test_due_executions_come_in_the_order_of_their_times() -> None:
    """Who is due first is polled first; who is not due is not polled."""
    plan = Plain(EVEN)
    for number, name in enumerate(["c", "a", "b", "late"]):
        plan.watch(named_run(name, float(number)), 0.0)
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

    @rule(name=st.sampled_from("abcd"), is_known=st.booleans())
    def watch(self, name: str, is_known: bool) -> None:
        """Start to poll, with what is remembered."""
        if name not in self.watched:
            polls = self.kept.pop(name, None) or named_run(name, self.now if is_known else None)
            self.plan.watch(polls, self.now)
            is_left = name in self.left
            self.left.discard(name)
            if is_left and self.in_flight[name] > self.now - 2.0:  # the poll that is in flight serves this wait too
                return
            self.in_flight.pop(name, None)  # else it is as good as lost
            if polls.submitted_at is None and polls.poll_count == 0:
                self.due_at[name] = -math.inf
            else:
                since = (
                    polls.last_poll_at
                    if polls.poll_count
                    else self.now
                    if polls.submitted_at is None
                    else polls.submitted_at
                )
                assert self.plan.next_due_at() <= max(self.now, since + 7.5)
                self.due_at[name] = self.plan.runs[name].wake_at

    @rule(seconds=st.floats(0, 9))
    def wait(self, seconds: float) -> None:
        """Wait and return what is due."""
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
        self.due_at[name] = self.plan.runs[name].wake_at
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
            due_at = min(self.due_at.values(), default=math.inf)
            assert self.plan.next_due_at() == due_at or max(self.plan.next_due_at(), due_at) <= self.now
            assert len(self.plan) == len(self.watched)


Watching.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestWatching = Watching.TestCase


def test_a_plan_that_was_replaced_gives_no_poll() -> None:
    """An execution that was forgotten and tracked again is polled by its new plan only."""
    scheduler = Plain(Backoff(first=1.0, jitter=0.0))
    scheduler.watch(named_run("a", 0.0), 0.0)
    scheduler.forget("a")
    scheduler.watch(named_run("a", 5.0), 5.0)
    assert scheduler.due(5.5) == []
    assert scheduler.due(6.0) == ["a"]


# ---- By what was learned

KEY = "workflows/a"


def run(number: int, submitted_at: float | None = 0.0, request: str | None = "") -> TrackedRun:
    """Return a run that was just submitted; `request` "" is its own."""
    return TrackedRun(
        f"x{number}", duration_key=KEY, submitted_at=submitted_at, request_id=f"r{number}" if request == "" else request
    )


def watching(number: int, *, learned: LearnedDurations | None = None, **options: Any) -> PollScheduler:
    """Return a scheduler that polls so many runs, all submitted at 0."""
    scheduler = PollScheduler(Polling(**options), learned or LearnedDurations())
    for place in range(number):
        scheduler.add(run(place), 0.0)
    return scheduler


def status_page(rows: dict[int, str]) -> StatusPage:
    """Return a page with the rows of some runs."""
    return StatusPage(tuple((f"r{number}", status) for number, status in rows.items()), len(rows))


def next_page(scheduler: PollScheduler, now: float) -> PageRequest:
    """Poll from then on, all runs still running, until a listing is due; return its page."""
    for step in range(400):
        plan = scheduler.plan(now + step / 10)
        for name in plan.polls:
            scheduler.polled(name, now + step / 10)
        if plan.page is not None:
            return plan.page
    raise AssertionError("no sweep")


def after_listing(scheduler: PollScheduler, rows: dict[int, str], now: float = 0.0) -> tuple[PollPlan, float]:
    """Answer a listing of the scheduler with these rows; return the plan that follows, and when that was."""
    page = next_page(scheduler, now)
    assert scheduler.page_received(page, status_page(rows), page.started_at) is None
    return scheduler.plan(page.started_at), page.started_at


def running(number: int) -> dict[int, str]:
    """Return the rows of so many running runs."""
    return dict.fromkeys(range(number), "processing")


def test_one_run_is_polled_when_its_end_is_likely() -> None:
    """Cold: early in case it is short, and then at steps of some seconds; nothing is due before, and nothing twice."""
    scheduler, now, polls = watching(1), 0.0, list[float]()
    while len(polls) < 8:
        plan = scheduler.plan(now)
        assert plan.page is None
        now = plan.next_at if not plan.polls else now
        if plan.polls:
            assert plan.polls == ["x0"]
            assert scheduler.plan(now + 1) == PollPlan([], None, math.inf)
            polls.append(now)
            scheduler.polled("x0", now)
    assert polls[:3] == [1.5, 6.0, 12.0]
    assert all(2 <= later - sooner <= 10 for sooner, later in pairwise(polls[2:]))


def test_a_run_of_unknown_age_is_polled_at_once_and_then_as_if_half_over() -> None:
    """An attached run is polled now, and some seconds later."""
    scheduler = PollScheduler(Polling(), LearnedDurations())
    scheduler.add(run(0, submitted_at=None), 100.0)
    assert scheduler.plan(100.0).polls == ["x0"]
    scheduler.polled("x0", 100.0)
    assert 102 <= scheduler.plan(100.0).next_at <= 106


def test_three_runs_are_listed_and_what_a_listing_shows_as_finished_is_polled() -> None:
    """A report makes one poll, at once; the run has finished only when that poll says so."""
    scheduler = watching(5)
    plan = scheduler.plan(0.0)
    assert plan.page is None
    assert plan.next_at <= 1.5
    at = next(step / 10 for step in range(1, 200) if scheduler.plan(step / 10).page is not None)
    assert 1 <= at <= 8
    scheduler.page_received(PageRequest(at), status_page(running(5) | {1: "completed"}), at)
    assert scheduler.plan(at).polls == ["x1"]
    scheduler.finished("x1", at + 0.1)
    scheduler.polled("x1", at + 0.1)
    assert ("x1" in scheduler, len(scheduler)) == (False, 4)


def test_a_row_that_slips_to_the_next_page_makes_no_second_poll() -> None:
    """New rows push older ones down, so a page may show again what the one before it has shown as finished."""
    scheduler = watching(5)
    page = next_page(scheduler, 0.0)
    for _ in range(2):
        scheduler.page_received(page, status_page(running(5) | {1: "completed"}), page.started_at)
    assert scheduler.plan(page.started_at).polls == ["x1"]


def test_fewer_runs_are_listed_once_listings_have_proven_right() -> None:
    """Three at first, then two; and one where polls are scarcer than listings."""
    scheduler = watching(3)
    for number in (0, 1):
        plan, now = after_listing(scheduler, running(3) | {number: "completed"}, 10.0 * number)
        assert plan.polls == [f"x{number}"]
        scheduler.finished(f"x{number}", now)
        scheduler.polled(f"x{number}", now)
        assert number or next_page(scheduler, now + 1).matched == 0
        scheduler.requests_cancelled(now + 5)
    few, many = Quota(limit=10, left=2, resets_in=30.0), Quota(limit=100, left=90, resets_in=30.0)
    pages = [bool(scheduler.plan(20.0 + at, poll_quota=few, usage_quota=many).page) for at in range(60)]
    assert any(pages)


def test_two_runs_are_not_listed_and_no_run_is_without_listings() -> None:
    """Two runs are polled singly; so are many when listings are not wanted."""
    for scheduler in (watching(2), watching(20, sweeps=False)):
        assert all(scheduler.plan(now / 4).page is None for now in range(200))


def test_a_run_that_a_listing_has_just_shown_running_is_not_polled() -> None:
    """Once a listing was first with an end, those that it shows running are left to it."""
    scheduler = watching(8)
    _, now = after_listing(scheduler, running(8))
    for _ in range(40):
        now += 1.0
        plan = scheduler.plan(now)
        for name in plan.polls:
            scheduler.finished(name, now) if name == "x0" else None
            scheduler.polled(name, now)
        if plan.page is not None:
            scheduler.page_received(plan.page, status_page(running(8) | {0: "completed"}), now)
    assert "x0" not in scheduler
    polled = [name for name in (f"x{number}" for number in range(3, 8)) if scheduler._runs[name].poll_count]
    assert polled == []


def test_a_report_that_is_wrong_is_not_believed_again() -> None:
    """A run that a poll finds running has its reports ignored, and is polled as ever."""
    scheduler = watching(5)
    plan, now = after_listing(scheduler, running(5) | {0: "completed"})
    assert plan.polls == ["x0"]
    scheduler.polled("x0", now)
    scheduler.page_received(PageRequest(now + 0.1), status_page(running(5) | {0: "completed"}), now + 0.1)
    assert scheduler.plan(now + 0.1).polls == []
    assert "x0" in scheduler.plan(now + 15).polls


def test_an_unknown_word_is_learned() -> None:
    """A run of unknown status is polled once, and the status is then known to be of running runs."""
    scheduler = watching(5)
    plan, now = after_listing(scheduler, running(5) | {0: "rendering"})
    assert plan.polls == ["x0"]
    scheduler.polled("x0", now)
    scheduler.page_received(PageRequest(now + 1), status_page(running(5) | {0: "rendering", 1: "rendering"}), now + 1)
    assert scheduler.plan(now + 1).polls == []


def test_a_request_that_runs_share_shows_one_of_them() -> None:
    """The others are polled singly, and so is that one once a row was another's."""
    scheduler = PollScheduler(Polling(), LearnedDurations())
    for number in range(4):
        scheduler.add(run(number, request="same"), 0.0)
    scheduler.add(run(9, request=None), 0.0)
    names = ["x0", "x1", "x2", "x3", "x9"]
    scheduler.plan(0.0)
    scheduler.page_received(PageRequest(6.0), StatusPage((("same", "completed"),), 1), 6.0)
    assert "x0" in scheduler.plan(6.0).polls
    scheduler.plan(7.0)
    for name in names:
        scheduler.polled(name, 7.0)
    scheduler.page_received(PageRequest(8.0), StatusPage((("same", "completed"),), 1), 8.0)
    assert scheduler.plan(8.0).polls == []
    assert sorted(scheduler.plan(12.0).polls) == names
    for name in names:
        scheduler.remove(name)
    assert not scheduler._by_request


def test_a_run_is_identified_by_its_first_poll() -> None:
    """The request of an attached run, once it is known, is what listings show it by; a second name does not count."""
    scheduler = PollScheduler(Polling(), LearnedDurations())
    late = run(0, request=None)
    scheduler.set_request_id(late, "r0")
    scheduler.add(late, 0.0)
    other = run(1, request=None)
    scheduler.add(other, 0.0)
    scheduler.set_request_id(other, "r1")
    scheduler.set_request_id(other, "r2")
    scheduler.plan(0.0)
    scheduler.page_received(PageRequest(1.0), status_page({0: "completed", 1: "completed", 2: "processing"}), 1.0)
    assert sorted(scheduler.plan(1.0).polls) == ["x0", "x1"]


def test_failing_listings_wait_longer_each_time() -> None:
    """After each failure the next listing comes later."""
    scheduler, starts = watching(20), []
    for step in range(400):
        if scheduler.plan(step / 4).page is not None:
            starts.append(step / 4)
            scheduler.page_failed(step / 4)
    assert len(starts) == 6
    gaps = [later - sooner for sooner, later in pairwise(starts)]
    assert gaps == sorted(gaps)


def test_polls_that_fail_are_tried_again_after_a_pause() -> None:
    """Each failure in a row lengthens the pause, to ten seconds at most; a poll that comes back ends that."""
    scheduler, now, pauses = watching(1), 7.5, []
    assert scheduler.plan(now).polls == ["x0"]
    for failures in range(1, 8):
        scheduler.polled("x0", now, failures=failures)
        pauses.append(scheduler.plan(now).next_at - now)
        now += pauses[-1]
        assert scheduler.plan(now).polls == ["x0"]
    assert pauses == pytest.approx([2, 4, 6, 8, 10, 10, 10])
    scheduler.polled("x0", now)
    assert scheduler.plan(now).next_at < now + 8


def test_a_known_end_whose_poll_failed_goes_first_again() -> None:
    """After the pause the run is polled before all that only may have finished."""
    scheduler = watching(5)
    plan, now = after_listing(scheduler, running(5) | {3: "failed"})
    assert plan.polls == ["x3"]
    scheduler.polled("x3", now, failures=1)
    few = Quota(limit=100, left=1, resets_in=30.0)
    assert scheduler.plan(now + 10, poll_quota=few).polls == ["x3"]


def test_known_ends_wait_for_requests_and_go_oldest_first() -> None:
    """With two requests left two ends are polled, the rest in the next window; no listing is made meanwhile."""
    scheduler = PollScheduler(Polling(), LearnedDurations())
    for number in range(6):
        scheduler.add(run(number, submitted_at=float(number)), 5.0)
    page = next_page(scheduler, 5.0)
    now = page.started_at
    scheduler.page_received(page, status_page(dict.fromkeys(reversed(range(6)), "completed")), now)
    assert scheduler.plan(now, poll_quota=Quota(limit=100, left=2, resets_in=20.0)).polls == ["x0", "x1"]
    plan = scheduler.plan(now + 5, poll_quota=Quota(limit=100, left=0, resets_in=15.0))
    assert (plan.polls, plan.page) == ([], None)
    assert plan.next_at <= now + 20.06
    full = Quota(limit=100, left=100, resets_in=60.0)
    assert scheduler.plan(now + 20.1, poll_quota=full).polls == ["x2", "x3", "x4", "x5"]


def test_one_poll_may_always_wait_in_line() -> None:
    """With nothing left and nothing in flight one poll is made, which waits for its turn."""
    scheduler = watching(1)
    assert scheduler.plan(60.0, poll_quota=Quota(limit=100, left=0, resets_in=30.0)).polls == ["x0"]


def test_few_polls_go_ahead_while_the_quota_is_not_known() -> None:
    """Many runs are due, and nothing is known of the quota: ten are polled until an answer shows it."""
    scheduler = watching(50, sweeps=False)
    first = scheduler.plan(20.0)
    assert len(first.polls) == 10
    scheduler.polled(first.polls[0], 20.1)
    assert len(scheduler.plan(20.1).polls) == 40


def test_scarce_polls_are_spread_and_go_to_those_unseen_for_longest() -> None:
    """Of many that are due each gets its turn over the window, those first whose ends are most likely unseen."""
    learned = LearnedDurations()
    for age in (30.0, 40.0, 50.0) * 10:
        learned.durations_for(KEY).observe_end(age, age)
    scheduler = PollScheduler(Polling(sweeps=False), learned)
    for number in range(40):
        scheduler.add(run(number, submitted_at=-2.0 * number), 0.0)
    polls: list[str] = []
    for step in range(40):
        left = Quota(limit=20, left=20 - len(polls), resets_in=60.0 - step / 2)
        plan = scheduler.plan(40.0 + step / 2, poll_quota=left)
        polls += plan.polls
        assert len(plan.polls) <= 2
        assert plan.next_at <= 41.1 + step / 2
    assert 3 <= len(polls) <= 8
    assert set(polls) <= {f"x{number}" for number in range(25, 40)}


def test_polls_that_a_window_left_are_not_spent_at_once_in_the_next() -> None:
    """Fifty runs become due in a new window of twenty polls: however few the last window took, they are spread."""
    scheduler = watching(50, sweeps=False)
    scheduler.add(run(50, submitted_at=None), 0.0)
    assert scheduler.plan(0.0).polls == ["x50"]
    scheduler.polled("x50", 0.0)  # the quota is known from now on
    polls = []
    for step in range(160):
        left = Quota(limit=20, left=20, resets_in=60.0 - (step / 2 - 9.0) % 60.0)
        polls.append(len(scheduler.plan(step / 2, poll_quota=left).polls))
    assert sum(polls) > 9
    assert max(polls) <= 4


def test_plain_polls_that_are_due_go_in_turn() -> None:
    """On a plain schedule scarce requests go to who is due first."""
    scheduler = PollScheduler(Polling.every(2.0), LearnedDurations())
    for number in range(5):
        scheduler.add(run(number, submitted_at=number / 10), 0.5)
    few = Quota(limit=100, left=2, resets_in=7.0)
    plan = scheduler.plan(3.0, poll_quota=few)
    assert plan.polls == ["x0", "x1"]
    assert 3.0 < plan.next_at <= 10.06
    assert scheduler.plan(10.1, poll_quota=Quota(limit=100, left=9, resets_in=60.0)).polls == [
        "x2",
        "x3",
        "x4",
    ]


def test_that_many_runs_of_a_new_target_run_is_no_more_evidence_than_of_one() -> None:
    """A hundred that run for 11 s do not make an end at 12 s unlikely; once one has finished, all that ran counts."""
    hazards = []
    for number in (3, 100):
        learned = LearnedDurations()
        scheduler = watching(number, learned=learned)
        after_listing(scheduler, running(number), 11.0)
        scheduler.plan(13.0)
        hazards.append(learned.durations_for(KEY).hazard(12.0))
    assert hazards[0] == pytest.approx(hazards[1], rel=0.05)
    scheduler.finished("x0", 14.0)
    scheduler.plan(16.0)
    assert sum(learned.durations_for(KEY).exposure) > 1000


def test_scarce_requests_cost_more() -> None:
    """The same runs are polled more rarely when there are few requests for them."""

    def first_poll(limit: int) -> float:
        scheduler, quota = watching(30, sweeps=False), Quota(limit=limit, left=limit, resets_in=60.0)
        scheduler.plan(0.0, poll_quota=quota)
        return next(now / 4 for now in range(400) if scheduler.plan(now / 4, poll_quota=quota).polls)

    assert first_poll(10_000) < first_poll(40) - 5


def test_a_poll_that_was_begun_for_an_earlier_wait_serves_the_next() -> None:
    """A run whose waiter changes is not polled twice at once, unless the first poll hangs."""
    scheduler, one = PollScheduler(Polling(), LearnedDurations()), run(0)
    scheduler.add(one, 0.0)
    assert scheduler.plan(8.0).polls == ["x0"]
    scheduler.remove("x0")
    scheduler.add(one, 9.0)
    assert scheduler.plan(30.0).polls == []
    scheduler.remove("x0")
    scheduler.add(one, 30.0)
    assert scheduler.plan(30.0).polls == ["x0"]
    scheduler.requests_cancelled(31.0)
    assert scheduler.plan(31.0).polls == ["x0"]


def test_a_run_that_is_asked_to_end_is_polled_soon() -> None:
    """A cancel takes seconds; its end teaches nothing of the runs of the target."""
    learned = LearnedDurations()
    scheduler, one = PollScheduler(Polling(), learned), run(0)
    scheduler.add(one, 0.0)
    scheduler.cancel_requested(one, 1.0)
    scheduler.cancel_requested(one, 1.2)
    assert scheduler.plan(1.2).next_at < 4
    assert scheduler.plan(4.0).polls == ["x0"]
    scheduler.finished("x0", 4.0)
    assert [learned.durations_for(key).end_count for key in (KEY, CANCEL_KEY)] == [0, 1]
    idle = run(1)
    scheduler.cancel_requested(idle, 5.0)
    scheduler.add(idle, 6.0)
    assert scheduler.plan(6.0).next_at < 9
    in_flight = run(2)
    scheduler.add(in_flight, 6.0)
    assert "x2" in scheduler.plan(20.0).polls
    scheduler.cancel_requested(in_flight, 20.0)
    assert "x2" not in scheduler.plan(60.0).polls


def polls_of_one_beside(number: int) -> int:
    """Return how often a run that no listing shows is polled in a minute of 100 polls, beside so many that they do."""
    scheduler, now, polls, left = watching(number), 0.0, 0, 100
    scheduler.add(run(number, request=None), 0.0)
    while now < 58:
        plan = scheduler.plan(now, poll_quota=Quota(limit=100, left=left, resets_in=60 - now))
        for name in plan.polls:
            scheduler.polled(name, now)
        if plan.page is not None:
            scheduler.page_received(plan.page, status_page(running(number)), now)
        polls, left = polls + (f"x{number}" in plan.polls), left - len(plan.polls)
        now = max(now + 0.05, min(plan.next_at, now + 1))
    return polls


def test_runs_that_listings_serve_make_polls_of_others_no_scarcer() -> None:
    """A run that no listing shows is polled as often beside four hundred that they do as beside one hundred."""
    assert polls_of_one_beside(400) >= polls_of_one_beside(100) >= 5


def test_a_run_that_should_take_hours_is_polled_within_ten_minutes() -> None:
    """However long the runs of its target take and whatever a request is worth, one may fail at once."""
    learned = LearnedDurations()
    learned.durations_for(KEY, 7200.0)
    scheduler, now = watching(1, learned=learned, cost_of_request=100.0), 0.0
    while not (plan := scheduler.plan(now)).polls:
        now = plan.next_at
    assert 60 < now <= 600


@pytest.mark.parametrize(("seen_at", "is_known"), [(1000.0, False), (1100.0, True), (1900.0, True)])
def test_an_end_that_may_have_been_at_almost_any_time_teaches_nothing(seen_at: float, is_known: bool) -> None:
    """An end that the service does not date counts if it was within the last half of the time, or half a minute."""
    learned = LearnedDurations()
    scheduler = watching(1, learned=learned)
    assert scheduler.plan(seen_at).polls == ["x0"]
    scheduler.polled("x0", seen_at)
    scheduler.finished("x0", 2100.0)
    assert learned.durations_for(KEY).end_count == pytest.approx(int(is_known))
    scheduler.add(run(1), 0.0)
    scheduler.finished("x1", 29.0)
    assert learned.durations_for(KEY).end_count == pytest.approx(1 + is_known)


def test_a_run_that_says_its_age_is_polled_by_it() -> None:
    """The date of an attached run, once it is known, is what its age is counted from."""
    scheduler, one = PollScheduler(Polling(), LearnedDurations()), run(0, submitted_at=None)
    scheduler.add(one, 100.0)
    assert scheduler.plan(100.0).polls == ["x0"]
    one.start(99.0, submitted_at=99.0)
    scheduler.polled("x0", 100.0)
    assert scheduler.plan(100.0).next_at == 100.5  # early, at an age of 1.5 s
    reported = run(1)
    scheduler.add(reported, 100.0)
    scheduler.report_finished("x1")
    reported.start(90.0, submitted_at=90.0)
    assert scheduler.plan(100.0).polls == ["x1"]
    scheduler.finished("x1", 100.1)
    assert len(scheduler) == 1


def test_a_report_from_elsewhere_makes_one_poll() -> None:
    """What a delivery announces is polled now, once; and one that is wrong costs listings nothing."""
    scheduler = watching(1)
    scheduler.report_finished("x0")
    scheduler.report_finished("x0")
    scheduler.report_finished("nobody")
    assert scheduler.plan(0.1).polls == ["x0"]
    scheduler.report_finished("x0")
    scheduler.polled("x0", 0.2)
    assert scheduler.plan(0.2).polls == []
    scheduler.report_finished("x0")
    assert scheduler.plan(0.3).polls == ["x0"]
    scheduler.finished("x0", 0.4)
    scheduler.finished("x0", 0.4)
    scheduler.polled("x0", 0.4)
    assert len(scheduler) == 0


def test_who_waits_until_a_deadline_gets_a_last_poll() -> None:
    """A poll that is due soon after a deadline is sent just before it; also for one of several."""
    assert polls_of(watching(1, cost_of_request=10.0), 60.0) == pytest.approx([52.3], abs=0.1)
    scheduler = watching(1, cost_of_request=10.0)
    scheduler.add_deadline("x0", 40.0, 0.0)
    scheduler.add_deadline("x0", 5.0, 0.0)
    scheduler.add_deadline("nobody", 5.0, 0.0)
    assert all(scheduler.plan(now / 2).polls == [] for now in range(79))
    assert scheduler.plan(39.5).polls == ["x0"]
    scheduler.add_deadline("x0", 42.0, 39.6)
    scheduler.polled("x0", 39.7)
    assert all(scheduler.plan(now / 2).polls == [] for now in range(80, 98))


def test_a_deadline_soon_after_it_was_set_counts() -> None:
    """It moves a poll that is due within ten seconds, too."""
    scheduler = watching(1)
    assert scheduler.plan(1.5).polls == ["x0"]
    scheduler.polled("x0", 1.5)
    assert scheduler.plan(1.6).next_at == 6.0
    scheduler.add_deadline("x0", 6.2, 2.0)
    assert scheduler.plan(5.7).polls == ["x0"]


def test_a_reported_run_may_leave() -> None:
    """A run without waiters is not polled, reported as finished or not, and all counts are as before."""
    scheduler = watching(4)
    scheduler.plan(0.0)
    page = scheduler.plan(6.0).page
    assert page is not None
    scheduler.page_received(page, status_page({0: "completed", 1: "completed"}), 6.0)
    scheduler.remove("x0")
    scheduler.remove("x0")
    polls = scheduler.plan(6.0).polls
    assert "x1" in polls
    assert "x0" not in polls
    for number in range(1, 4):
        scheduler.remove(f"x{number}")
    assert (len(scheduler), len(scheduler._reported), len(scheduler._by_request)) == (0, 0, 0)


def test_a_listing_reads_the_next_page_while_runs_are_missing() -> None:
    """A full page that lacks some runs is followed by the next, and the listing is complete when all were shown."""
    scheduler = watching(4)
    first = next_page(scheduler, 0.0)
    others = tuple((f"other{number}", "completed") for number in range(498))
    second = scheduler.page_received(
        first, StatusPage((*others, ("r0", "processing"), ("r1", "processing")), 500), first.started_at
    )
    assert second is not None
    assert (second.offset, second.matched) == (500, 2)
    assert scheduler.plan(first.started_at).page is None
    assert scheduler.page_received(second, status_page({2: "processing", 3: "processing"}), first.started_at) is None


def test_a_cut_leaves_what_was_not_in_flight_alone() -> None:
    """When polls are cut, only the runs that were being polled are due again."""
    scheduler = PollScheduler(Polling(), LearnedDurations())
    scheduler.add(run(0), 0.0)
    scheduler.add(run(1, submitted_at=7.5), 7.5)
    assert scheduler.plan(8.0).polls == ["x0"]
    scheduler.requests_cancelled(8.0)
    assert scheduler.plan(8.0).polls == ["x0"]


@settings(max_examples=60)
@given(st.data(), st.integers(1, 12), st.integers(0, 2**32))
def test_no_listing_delays_a_run_beyond_its_longest_step(data: st.DataObject, number: int, seed: int) -> None:
    """Whatever listings say, each run is polled or shown running within the longest step, and never twice at once."""
    dice = random.Random(seed)
    statuses = data.draw(st.lists(st.sampled_from(["processing", "completed", "odd", None]), min_size=1, max_size=4))
    scheduler, now = watching(number), 0.0
    in_flight: dict[str, float] = {}
    seen = dict.fromkeys(range(number), 0.0)
    while now < 200.0:
        plan = scheduler.plan(now)
        assert not set(plan.polls) & set(in_flight)
        assert plan.next_at > now
        in_flight |= dict.fromkeys(plan.polls, now + dice.uniform(0.01, 1.0))
        if plan.page is not None:
            rows = {place: status for place in range(number) if (status := dice.choice(statuses)) is not None}
            if dice.random() < 0.1:
                scheduler.page_failed(now)
            else:
                seen |= dict.fromkeys((place for place, status in rows.items() if status != "completed"), now)
                scheduler.page_received(plan.page, status_page(rows), now)
            now += 0.01
            continue
        now = max(now + 0.01, min(plan.next_at, min(in_flight.values(), default=math.inf), 200.0))
        for name in [name for name, at in in_flight.items() if at <= now]:
            del in_flight[name]
            scheduler.polled(name, now)
            seen[int(name[1:])] = now
        assert all(now - last <= 45.0 + max(10.0, last / 4) for last in seen.values())


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32))
def test_all_ends_are_found_under_any_quota(number: int, limit: int, seed: int) -> None:
    """Runs that end at any time are all found, with no more polls in a window than there are, and no standstill."""
    dice = random.Random(seed)
    ends = [dice.expovariate(1 / 40) for _ in range(number)]
    scheduler, now, spent, window = watching(number), 0.0, 0, 0
    for _ in range(20_000):
        if not len(scheduler):
            break
        if now // 60 != window:
            window, spent = int(now // 60), 0
        quota = Quota(limit=limit, left=limit - spent, resets_in=60 - now % 60)
        plan = scheduler.plan(now, poll_quota=quota)
        spent += len(plan.polls)
        assert spent <= limit + 1
        if spent > limit:  # it waits in line for the next window
            window, spent = window + 1, 1
            now = 60.0 * window
        for name in plan.polls:
            if ends[int(name[1:])] <= now:
                scheduler.finished(name, now, duration=ends[int(name[1:])])
            scheduler.polled(name, now)
        if plan.page is not None:
            rows = {place: "completed" if end <= now else "processing" for place, end in enumerate(ends)}
            scheduler.page_received(plan.page, status_page(rows), now)
        elif not plan.polls:
            now = max(now + 0.01, min(plan.next_at, 60 * (window + 1) + 0.01))
    assert len(scheduler) == 0


# ---- What a failed poll means


def refused(status: int) -> APIError:
    """Return a refusal of a poll by its status."""
    return APIError("x", status=status)


@pytest.mark.parametrize(
    ("error", "count"),
    [
        (errors.ConnectionFailedError("x"), 1),
        (errors.NoAnswerError("x"), 1),
        (errors.InvalidResponseError("x"), 1),
        (errors.ServiceError("x", status=502), 1),
        (errors.RateLimitError("x", status=429), 1),
        (refused(408), 1),
        (refused(499), 1),
        (refused(418), math.inf),
        (errors.AuthenticationError("x", status=401), math.inf),
        (errors.CapabilityDeniedError("x", status=403), math.inf),
        (errors.UnexpectedRedirectError("x", status=302), math.inf),
        (errors.BadRequestError("x", status=400), math.inf),
        (errors.BadRequestError("x", status=400, from_service=False), 1),
        (errors.AuthenticationError("x", status=401, from_service=False), 1),
        (errors.PermissionDeniedError("x", status=403, from_service=False), 1),
        (errors.NotFoundError("x", status=404, from_service=False), 1),
        (errors.UnexpectedRedirectError("x", status=303, from_service=False), 1),
        (APIError("x", status=425, from_service=False), 1),
        (errors.ClientClosedError("x"), math.inf),
        (errors.WrongEventLoopError("x"), math.inf),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_fault_of_the_way_passes_and_a_refusal_lasts(error: KnoudsError, count: float) -> None:
    """What went wrong on the way says nothing of the run; a refusal would come again."""
    for age in (None, 0.0, 4.0, 1e6):
        assert failures_of(error, age=age) == count, age


@pytest.mark.parametrize("kind", [errors.NotFoundError, errors.ExecutionNotFoundError])
@pytest.mark.parametrize(
    ("age", "count"),
    [
        (0.0, 0),
        (3.0, 0),
        (NOT_FOUND_GRACE, 0),
        (NOT_FOUND_GRACE + 0.01, math.inf),
        (None, math.inf),
    ],
)
def test_a_fresh_id_may_be_unknown_for_a_moment(kind: type[APIError], age: float | None, count: float) -> None:
    """A 404 shortly after the submit is replication (contract 5); later, or of unknown age, it is final."""
    error: Any = kind("x", status=404)
    assert failures_of(error, age=age) == count
    assert 3.0 <= NOT_FOUND_GRACE <= 5.0


# ---- Whether webhooks are relied on


def deliveries(ends: str, *, has_bus: bool) -> DeliveryRecord:
    """Return a record of ends: "+" for one that was delivered."""
    record = DeliveryRecord()
    record.is_expected, record.has_bus = True, has_bus
    for place, end in enumerate(ends):
        record.add(f"x{place}", was_delivered=end == "+")
    return record


@pytest.mark.parametrize(
    ("ends", "is_reliable"),
    [
        ("", True),
        ("--", True),
        ("---", False),
        ("+", True),
        ("++---", True),
        ("+---", False),
        ("-" * 50 + "+" * 40, True),
    ],
)
def test_reliance_on_a_bus_follows_the_latest_ends(ends: str, is_reliable: bool) -> None:
    """Reliance is given in advance, lost when most of three or more ends were not delivered, and won back."""
    record = deliveries(ends, has_bus=True)
    assert (record.is_reliable, record.cost_factor) == (is_reliable, 16.0)
    record.is_expected = False
    assert not record.is_reliable


@pytest.mark.parametrize(
    ("ends", "overdue", "is_reliable", "factor"),
    [
        ("", 0, False, 1.0),
        ("-", 0, False, 1.0),
        ("++", 0, False, 3.0),
        ("+++", 0, True, 4.0),
        ("+++", 1, False, 2.5),
        ("+++-", 0, False, 2.5),
        ("+" * 9, 0, True, 10.0),
        ("+" * 9, 1, True, 5.5),
        ("+" * 9 + "-", 1, False, 4.0),
        ("+" * 15, 0, True, 16.0),
        ("+" * 50, 0, True, 16.0),
        ("-" * 50 + "+" * 44, 0, False, 51 / 7),
        ("-" * 50 + "+" * 45, 0, True, 8.5),
    ],
)
def test_reliance_without_a_bus_is_earned(ends: str, overdue: int, is_reliable: bool, factor: float) -> None:
    """It begins once three ends were delivered, grows with them, and ends where more than a tenth is missing."""
    record = deliveries(ends, has_bus=False)
    record.overdue = overdue
    assert record.is_reliable is is_reliable
    assert record.cost_factor == pytest.approx(factor)


def test_a_delivery_that_comes_after_a_poll_is_no_miss() -> None:
    """A poll that is faster than the delivery says nothing against it."""
    record = deliveries("-++", has_bus=False)
    assert not record.is_reliable
    record.add("x0", was_delivered=True)
    assert (record.is_reliable, record.cost_factor) == (True, 4.0)


def test_a_run_whose_end_should_be_delivered_is_polled_once_it_is_overdue() -> None:
    """Nobody has seen the target: after a minute and more; once others took 3 s, soon; and after a wrong report."""
    scheduler = PollScheduler(Polling(), LearnedDurations())
    scheduler.deliveries.is_expected = scheduler.deliveries.has_bus = True
    for number in range(9):
        one = run(number)
        one.expects_delivery = True
        scheduler.add(one, 0.0)
    assert all(scheduler.plan(now / 2).polls == [] for now in range(4))
    for number in range(8):
        scheduler.finished(f"x{number}", 3.0, is_polled=False)
    polls = [now / 2 for now in range(6, 40) if scheduler.plan(now / 2).polls]
    assert polls == [8.0]
    alone = PollScheduler(Polling(), LearnedDurations())
    alone.deliveries.is_expected = alone.deliveries.has_bus = True
    last = run(0)
    last.expects_delivery = True
    alone.add(last, 0.0)
    assert [now for now in range(120) if alone.plan(float(now)).polls] == [73]
    alone.polled("x0", 73.0)
    alone.report_finished("x0")
    assert alone.plan(74.0).polls == ["x0"]
    alone.polled("x0", 74.0)
    assert [now for now in range(74, 113) if alone.plan(float(now)).polls]


def test_overdue_runs_end_reliance_without_a_bus() -> None:
    """Of ten runs eight were delivered at 10 s: once the others are overdue, and not before, nothing is left to it."""
    scheduler = PollScheduler(Polling(), LearnedDurations())
    scheduler.deliveries.is_expected = True
    for number in range(11):
        one = run(number)
        one.expects_delivery = number < 10
        scheduler.add(one, 0.0)
    for number in range(8):
        scheduler.deliveries.add(f"x{number}", was_delivered=True)
        scheduler.finished(f"x{number}", 10.0, is_polled=False)
    overdue = []
    for now in (9.5, 10.5, 15.0):
        scheduler.plan(now)
        overdue.append(scheduler.deliveries.overdue)
    assert overdue == [0, 0, 2]
    assert not scheduler.deliveries.is_reliable


# ---- One rule


def polls_of(scheduler: PollScheduler, until: float, **quotas: Quota) -> list[float]:
    """Poll the only run of a scheduler until a time, each poll finding it running; return when."""
    times, now = [], 0.0
    while now < until:
        plan = scheduler.plan(now, **quotas)
        for name in plan.polls:
            times.append(now)
            scheduler.polled(name, now)
        now = max(now + 1e-6, plan.next_at) if not plan.polls else now
    return times


def test_a_run_that_outlives_all_others_is_polled_closely() -> None:
    """Of a target whose runs took a second, one that continues is polled at steps that grow with the root of it."""
    learned = LearnedDurations()
    for _ in range(4):
        learned.durations_for(KEY).observe_end(1.0, 1.0)
    times = polls_of(watching(1, learned=learned), 12.0)
    assert all(later - sooner <= math.sqrt(sooner / 2) + 0.1 for sooner, later in pairwise(times))
    assert len(times) <= 14


def test_early_polls_need_a_quota_that_is_nearly_unused() -> None:
    """With few requests left, or many runs, or where a caller values requests, a new target is not polled early."""
    few = Quota(limit=100, left=9, resets_in=30.0)
    assert min(polls_of(watching(1), 20.0, poll_quota=few)) > 6
    assert min(polls_of(watching(1, cost_of_request=1.5), 30.0)) > 6
    many = watching(11, sweeps=False)
    many.plan(0.0)
    assert all(many.plan(float(now)).polls == [] for now in range(8))


def test_early_polls_are_for_runs_of_which_nothing_is_known() -> None:
    """Neither one that is younger than those seen, nor one whose length the caller has named, is polled early."""
    learned = LearnedDurations()
    for _ in range(4):
        learned.durations_for(KEY).observe_end(45.0, 45.0)
    assert len(polls_of(watching(1, learned=learned), 44.0)) <= 8
    scheduler = PollScheduler(Polling(), LearnedDurations())
    scheduler.add(TrackedRun("x0", duration_key=KEY, submitted_at=0.0, expected=45.0), 0.0)
    assert min(polls_of(scheduler, 40.0)) > 6


def test_without_a_receiver_a_run_that_expects_a_delivery_is_polled_like_others() -> None:
    """No webhook can reach this client, so nothing is left to them."""
    scheduler, one = PollScheduler(Polling(), LearnedDurations()), run(0)
    one.expects_delivery = True
    scheduler.add(one, 0.0)
    assert polls_of(scheduler, 10.0)[:2] == polls_of(watching(1), 10.0)[:2]


def test_an_end_that_a_listing_shows_is_polled_once_its_delivery_has_had_time_to_come() -> None:
    """It may be on its way for half a second; a run whose end is not delivered here is polled at once."""
    scheduler = PollScheduler(Polling(), LearnedDurations())
    scheduler.deliveries.is_expected = True
    for number in range(3):
        one = run(number)
        one.expects_delivery = number < 2
        scheduler.add(one, 0.0)
    plan, now = after_listing(scheduler, dict.fromkeys(range(3), "completed"))
    assert plan.polls == ["x2"]
    assert now < plan.next_at <= now + 0.5
    scheduler.finished("x0", now + 0.2, is_polled=False)
    assert scheduler.plan(now + 0.4).polls == []
    assert scheduler.plan(now + 0.5).polls == ["x1"]


def test_a_second_report_of_a_run_does_not_shorten_the_pause_after_a_failure() -> None:
    """However often it was reported, it is polled once, and again after the pause."""
    scheduler, one_left = watching(1), Quota(limit=10, left=1, resets_in=30.0)
    for _ in range(2):
        scheduler.report_finished("x0", "completed")
    assert scheduler.plan(1.0, poll_quota=one_left).polls == ["x0"]
    scheduler.polled("x0", 1.0, failures=1)
    assert scheduler.plan(2.0).polls == []
    assert scheduler.plan(3.0).polls == ["x0"]


def test_due_times_follow_what_is_learned_meanwhile() -> None:
    """A run that was scheduled before its target was known is reconsidered within ten seconds."""
    learned = LearnedDurations()
    scheduler = watching(1, learned=learned, cost_of_request=2.0)
    scheduler.plan(0.0)
    for _ in range(50):
        learned.durations_for(KEY).observe_end(8.0, 8.0)
    assert [now for now in range(40) if scheduler.plan(float(now)).polls] == [11]


def test_listings_that_fail_are_as_if_there_were_none() -> None:
    """A run is polled when it would be without listings, nothing of the failures is kept, and they are tried again."""
    scheduler, times, tried = watching(12), dict[str, float](), []
    for step in range(1200):
        plan = scheduler.plan(step / 10)
        if plan.page is not None:
            tried.append(step / 10)
            scheduler.page_failed(step / 10)
        for name in plan.polls:
            times.setdefault(name, step / 10)
            scheduler.polled(name, step / 10)
    assert len(times) == 12
    assert max(times.values()) <= 24
    assert 4 <= len(tried) <= 8


def test_ends_that_no_listing_shows_are_looked_for_and_then_listings_stop() -> None:
    """When all runs are hidden, the ends that polls find are looked for in a listing, and the first miss is enough."""
    scheduler, pages = watching(6), []
    for step in range(1500):
        plan = scheduler.plan(step / 10)
        if plan.page is not None:
            pages.append(step / 10)
            scheduler.page_received(plan.page, StatusPage((), 0), step / 10)
        for name in plan.polls:
            if step > 400 + 50 * int(name[1:]):
                scheduler.finished(name, step / 10)
            scheduler.polled(name, step / 10)
    assert len(pages) <= 5
    assert len(scheduler) == 0


def trusting(number: int) -> tuple[PollScheduler, float]:
    """Return a scheduler with so many runs, whose listings have shown the end of another in time, and the time."""
    scheduler = watching(6)
    plan, now = after_listing(scheduler, running(6) | {5: "completed"})
    assert plan.polls == ["x5"]
    scheduler.finished("x5", now)
    for place in range(number, 5):
        scheduler.remove(f"x{place}")
    return scheduler, now


def listed_until(scheduler: PollScheduler, now: float, left: int) -> tuple[int, list[str]]:
    """Run for 400 s with so many polls left and listings that show all runs running; return pages and polls."""
    quotas = {
        "poll_quota": Quota(limit=99, left=left, resets_in=60.0),
        "usage_quota": Quota(limit=99, left=90),
    }
    pages, polls = 0, list[str]()
    for step in range(1, 4000):
        plan = scheduler.plan(now + step / 10, **quotas)
        polls += plan.polls
        if plan.page is not None:
            pages += 1
            scheduler.page_received(plan.page, status_page(running(5)), now + step / 10)
    return pages, polls


def test_listings_serve_where_polls_are_scarce() -> None:
    """What the results need is not spent on runs that listings show; a lone last run is listed then, else polled."""
    assert len(listed_until(*trusting(5), left=5)[1]) <= 4
    assert listed_until(*trusting(1), left=3)[0] > 5
    assert listed_until(*trusting(1), left=90)[0] == 0
