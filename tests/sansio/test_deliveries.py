"""How far deliveries are relied on: what is remembered, when runs under a webhook are polled, when that ends."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async._sansio.deliveries import (
    CONTRADICTORY,
    FIRST_POLL_AGE,
    FallbackPolling,
    RecentDeliveries,
    is_complete,
    is_end,
)
from knouds_async.types import ExecutionState, Failure, Status


def state(status: str, execution_id: str = "a", result: object = None, error: Failure | None = None) -> ExecutionState:
    """Return a state as a delivery tells it."""
    known = Status(status) if status in set(Status) else status
    return ExecutionState(execution_id=execution_id, status=known, result=result, error=error)


def expecting(ends: str = "") -> FallbackPolling:
    """Return a fallback that expects deliveries and has seen these ends: + told by a delivery, - found by a poll."""
    fallback = FallbackPolling()
    fallback.is_expected = True
    for one in ends:
        if one == "+":
            fallback.record_delivered("t", age=None)
        else:
            fallback.record_missed()
    return fallback


@pytest.mark.parametrize(
    ("one", "complete", "end"),
    [
        (state("completed", result={"text": "x"}), True, True),
        (state("completed"), False, True),
        (state("failed", error=Failure("X")), True, True),
        (state("failed"), False, True),
        (state("cancelled"), True, True),
        (state(CONTRADICTORY), False, True),
        (state("processing"), False, False),
        (state("odd", result=1), False, False),
    ],
)
def test_which_deliveries_need_no_poll(one: ExecutionState, complete: bool, end: bool) -> None:
    """A result, an error or a cancellation says all; an end without them has to be polled; the rest is no end."""
    assert (is_complete(one), is_end(one)) == (complete, end)


def test_early_deliveries_are_remembered_and_never_go_back() -> None:
    """The first end of a run is kept against later ones, except that a whole one replaces one that says less."""
    recent = RecentDeliveries()
    assert recent.get("a") is None
    assert recent.add(state("completed"))
    assert not recent.add(state("failed"))
    complete = state("completed", result=1)
    assert not recent.add(complete)  # it tells more, but not of another end
    assert recent.get("a") == complete
    assert not recent.add(state("failed", error=Failure("X")))
    assert recent.get("a") == complete


def test_early_memory_is_bounded() -> None:
    """The oldest run is forgotten first."""
    recent = RecentDeliveries(max_states=2)
    for name in "abc":
        recent.add(state("cancelled", name))
    assert len(recent) == 2
    assert recent.get("a") is None
    assert recent.get("c") is not None


def test_no_deliveries_are_trusted_before_they_are_expected() -> None:
    """Without a receiver a client polls as ever, whatever comes."""
    fallback = FallbackPolling()
    fallback.record_delivered("t", age=None)
    assert not fallback.is_reliable
    assert not fallback.has_deliveries


@pytest.mark.parametrize(
    ("ends", "reliable", "delivering"),
    [
        ("", True, False),
        ("--", True, False),
        ("---", False, False),
        ("+", True, True),
        ("++---", True, True),
        ("+---", False, False),
        ("-" * 50 + "+" * 40, True, True),
    ],
)
def test_confidence_follows_the_ends_seen_lately(ends: str, reliable: bool, delivering: bool) -> None:
    """Reliance is given in advance, lost when most of three or more ends were not delivered, and won back."""
    fallback = expecting(ends)
    assert (fallback.is_reliable, fallback.has_deliveries) == (reliable, delivering)


def test_a_run_is_delayed_until_it_is_overdue() -> None:
    """Of an unknown target: for a minute and a half; of a known one: half as long again as the longest lately."""
    fallback = expecting()
    fallback.delay("a", "t", submitted_at=0.0, now=1.0)
    assert fallback.is_delayed("a")
    assert fallback.next_due_at() == FIRST_POLL_AGE
    assert fallback.pop_due(FIRST_POLL_AGE - 1) == []
    assert fallback.pop_due(FIRST_POLL_AGE) == ["a"]
    assert not fallback.is_delayed("a")
    assert fallback.next_due_at() == math.inf
    for age in (20.0, 40.0, 30.0):
        fallback.record_delivered("t", age=age)
    fallback.delay("b", "t", submitted_at=100.0, now=101.0)
    assert fallback.next_due_at() == 160.0


def test_runs_that_were_out_before_any_ended_are_judged_by_those_that_end() -> None:
    """Of runs submitted at once a lost end is noticed soon after the others', not after the minute and a half."""
    fallback = expecting()
    for name in "ab":
        fallback.delay(name, "t", submitted_at=0.0, now=0.0)
    fallback.delay("c", "other", submitted_at=0.0, now=0.0)
    fallback.release("b")
    for _ in range(7):
        fallback.record_delivered("t", age=12.0)
    assert fallback.next_due_at() == FIRST_POLL_AGE
    fallback.record_delivered("t", age=12.0)
    assert fallback.next_due_at() == 18.0
    assert fallback.pop_due(18.0) == ["a"]
    assert fallback.next_due_at() == FIRST_POLL_AGE


def test_a_run_is_not_overdue_while_others_of_its_kind_end_ever_later() -> None:
    """The longest of the ends seen lately counts when a run comes to be polled, not when it was held."""
    fallback = expecting()
    fallback.delay("a", "t", submitted_at=0.0, now=0.0)
    for age in range(1, 9):
        fallback.record_delivered("t", age=float(age))
    assert fallback.next_due_at() == 12.0
    fallback.record_delivered("t", age=11.0)
    assert fallback.pop_due(12.0) == []
    assert fallback.is_delayed("a")
    assert fallback.next_due_at() == 16.5
    assert fallback.pop_due(16.5) == ["a"]


def test_a_longer_hold_is_not_shortened_by_what_takes_longer_still() -> None:
    """Eight ends that come late do not move a poll to a later time than it had."""
    fallback = expecting()
    fallback.delay("a", "t", submitted_at=0.0, now=0.0)
    for _ in range(8):
        fallback.record_delivered("t", age=80.0)
    assert fallback.next_due_at() == FIRST_POLL_AGE
    assert fallback.pop_due(FIRST_POLL_AGE) == []
    assert fallback.next_due_at() == 120.0


def test_an_overdue_run_is_held_for_ever_longer_steps() -> None:
    """A run that a poll finds alive is left alone for half its age, so that a long one costs few polls."""
    fallback, now, polls = expecting(), 0.0, 0
    while now < 3600:
        fallback.delay("a", "t", submitted_at=0.0, now=now)
        now = fallback.next_due_at()
        assert fallback.pop_due(now) == ["a"]
        polls += 1
    assert polls < 14


def test_a_run_of_unknown_age_is_polled_at_a_slow_pace() -> None:
    """Where the submit is not known, the time of the poll stands for it."""
    fallback = expecting("+")
    fallback.delay("a", "t", submitted_at=50.0, now=50.0)
    assert fallback.next_due_at() == 50.0 + FIRST_POLL_AGE


def test_who_is_let_go_is_not_due() -> None:
    """A run nobody waits for any more is held no longer, and a new hold replaces the old one."""
    fallback = expecting()
    fallback.delay("a", "t", submitted_at=0.0, now=0.0)
    fallback.delay("a", "t", submitted_at=5.0, now=5.0)
    assert fallback.next_due_at() == FIRST_POLL_AGE + 5
    assert fallback.release("a")
    assert not fallback.release("a")
    assert fallback.next_due_at() == math.inf
    assert fallback.pop_due(1e9) == []


def test_all_are_let_go_when_deliveries_fail_to_come() -> None:
    """When trust is lost, nobody waits for what will not come."""
    fallback = expecting("+")
    fallback.delay("a", "t", submitted_at=0.0, now=0.0)
    for _ in range(4):
        fallback.record_missed()
    assert fallback.pop_due(1.0) == ["a"]
    assert fallback.next_due_at() == math.inf


def test_targets_are_bounded() -> None:
    """What is known of a target goes when a thousand others came after it."""
    fallback = expecting()
    fallback.record_delivered("t", age=10.0)
    for place in range(1000):
        fallback.record_delivered(f"t{place}", age=10.0)
    fallback.delay("a", "t", submitted_at=0.0, now=0.0)
    assert fallback.next_due_at() == FIRST_POLL_AGE


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1e6), st.booleans()), max_size=30))
def test_a_held_run_is_due_once_and_not_in_the_past(steps: list[tuple[str, float, bool]]) -> None:
    """Whatever is held, let go and told in any order: each is due at most once, and never before now."""
    fallback, now = expecting(), 0.0
    for name, after, is_delayed in steps:
        fallback.pop_due(now)
        fallback.delay(name, "t", submitted_at=now - after, now=now)
        assert fallback.next_due_at() > now
        now += after
        if not is_delayed:
            fallback.release(name)
        fallback.record_delivered("t", age=after)
    found = fallback.pop_due(1e18)
    assert len(found) == len(set(found))
    assert fallback.next_due_at() == math.inf
