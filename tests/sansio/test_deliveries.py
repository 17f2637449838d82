"""How far deliveries are relied on: what is remembered, when runs under a webhook are looked at, when that ends."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async._sansio.deliveries import CONTRADICTORY, FIRST, Early, Net, is_whole, tells_end
from knouds_async.types import ExecutionState, Failure, Status


def state(status: str, execution_id: str = "a", result: object = None, error: Failure | None = None) -> ExecutionState:
    """Give a state as a delivery tells it."""
    known = Status(status) if status in set(Status) else status
    return ExecutionState(execution_id=execution_id, status=known, result=result, error=error)


def expecting(told: str = "") -> Net:
    """Give a net that expects deliveries and has seen these ends: + told by a delivery, - found by a look."""
    net = Net()
    net.is_expected = True
    for one in told:
        if one == "+":
            net.told("t", age=None)
        else:
            net.missed()
    return net


@pytest.mark.parametrize(
    ("one", "whole", "end"),
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
def test_which_deliveries_need_no_look(one: ExecutionState, whole: bool, end: bool) -> None:
    """A result, an error or a cancellation says all; an end without them has to be looked up; the rest is no end."""
    assert (is_whole(one), tells_end(one)) == (whole, end)


def test_early_deliveries_are_remembered_and_never_go_back() -> None:
    """The first end of a run is kept against later ones, except that a whole one replaces one that says less."""
    early = Early()
    assert early.get("a") is None
    assert early.keep(state("completed"))
    assert not early.keep(state("failed"))
    whole = state("completed", result=1)
    assert not early.keep(whole)  # it tells more, but not of another end
    assert early.get("a") == whole
    assert not early.keep(state("failed", error=Failure("X")))
    assert early.get("a") == whole


def test_early_memory_is_bounded() -> None:
    """The oldest run is forgotten first."""
    early = Early(most=2)
    for name in "abc":
        early.keep(state("cancelled", name))
    assert len(early) == 2
    assert early.get("a") is None
    assert early.get("c") is not None


def test_no_deliveries_are_trusted_before_they_are_expected() -> None:
    """Without a receiver a client polls as ever, whatever comes."""
    net = Net()
    net.told("t", age=None)
    assert not net.is_trusted
    assert not net.has_caught


@pytest.mark.parametrize(
    ("told", "trusted", "caught"),
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
def test_trust_follows_the_ends_seen_lately(told: str, trusted: bool, caught: bool) -> None:
    """Trust is given in advance, lost when most of three or more ends were not told, and won back by those that are."""
    net = expecting(told)
    assert (net.is_trusted, net.has_caught) == (trusted, caught)


def test_a_run_is_held_until_it_is_overdue() -> None:
    """Of an unknown target: for a minute and a half; of a known one: half as long again as the longest lately."""
    net = expecting()
    net.hold("a", "t", since=0.0, now=1.0)
    assert net.holds("a")
    assert net.next_at() == FIRST
    assert net.due(FIRST - 1) == []
    assert net.due(FIRST) == ["a"]
    assert not net.holds("a")
    assert net.next_at() == math.inf
    for age in (20.0, 40.0, 30.0):
        net.told("t", age=age)
    net.hold("b", "t", since=100.0, now=101.0)
    assert net.next_at() == 160.0


def test_runs_that_were_out_before_any_ended_are_judged_by_those_that_end() -> None:
    """Of runs submitted at once a lost end is noticed soon after the others', not after the minute and a half."""
    net = expecting()
    for name in "ab":
        net.hold(name, "t", since=0.0, now=0.0)
    net.hold("c", "other", since=0.0, now=0.0)
    net.let_go("b")
    for _ in range(7):
        net.told("t", age=12.0)
    assert net.next_at() == FIRST
    net.told("t", age=12.0)
    assert net.next_at() == 18.0
    assert net.due(18.0) == ["a"]
    assert net.next_at() == FIRST


def test_a_run_is_not_overdue_while_others_of_its_kind_end_ever_later() -> None:
    """The longest of the ends seen lately counts when a run comes to be looked at, not when it was held."""
    net = expecting()
    net.hold("a", "t", since=0.0, now=0.0)
    for age in range(1, 9):
        net.told("t", age=float(age))
    assert net.next_at() == 12.0
    net.told("t", age=11.0)
    assert net.due(12.0) == []
    assert net.holds("a")
    assert net.next_at() == 16.5
    assert net.due(16.5) == ["a"]


def test_a_longer_hold_is_not_shortened_by_what_takes_longer_still() -> None:
    """Eight ends that come late do not move a look to a later time than it had."""
    net = expecting()
    net.hold("a", "t", since=0.0, now=0.0)
    for _ in range(8):
        net.told("t", age=80.0)
    assert net.next_at() == FIRST
    assert net.due(FIRST) == []
    assert net.next_at() == 120.0


def test_an_overdue_run_is_held_for_ever_longer_steps() -> None:
    """A run that a look finds alive is left alone for half its age, so that a long one costs few looks."""
    net, now, looks = expecting(), 0.0, 0
    while now < 3600:
        net.hold("a", "t", since=0.0, now=now)
        now = net.next_at()
        assert net.due(now) == ["a"]
        looks += 1
    assert looks < 14


def test_a_run_of_unknown_age_is_looked_at_at_a_slow_pace() -> None:
    """Where the submit is not known, the time of the look stands for it."""
    net = expecting("+")
    net.hold("a", "t", since=50.0, now=50.0)
    assert net.next_at() == 50.0 + FIRST


def test_who_is_let_go_is_not_due() -> None:
    """A run nobody waits for any more is held no longer, and a new hold replaces the old one."""
    net = expecting()
    net.hold("a", "t", since=0.0, now=0.0)
    net.hold("a", "t", since=5.0, now=5.0)
    assert net.next_at() == FIRST + 5
    assert net.let_go("a")
    assert not net.let_go("a")
    assert net.next_at() == math.inf
    assert net.due(1e9) == []


def test_all_are_let_go_when_deliveries_fail_to_come() -> None:
    """When trust is lost, nobody waits for what will not come."""
    net = expecting("+")
    net.hold("a", "t", since=0.0, now=0.0)
    for _ in range(4):
        net.missed()
    assert net.due(1.0) == ["a"]
    assert net.next_at() == math.inf


def test_targets_are_bounded() -> None:
    """What is known of a target goes when a thousand others came after it."""
    net = expecting()
    net.told("t", age=10.0)
    for place in range(1000):
        net.told(f"t{place}", age=10.0)
    net.hold("a", "t", since=0.0, now=0.0)
    assert net.next_at() == FIRST


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1e6), st.booleans()), max_size=30))
def test_a_held_run_is_due_once_and_not_in_the_past(steps: list[tuple[str, float, bool]]) -> None:
    """Whatever is held, let go and told in any order: each is due at most once, and never before now."""
    net, now = expecting(), 0.0
    for name, after, is_kept in steps:
        net.due(now)
        net.hold(name, "t", since=now - after, now=now)
        assert net.next_at() > now
        now += after
        if not is_kept:
            net.let_go(name)
        net.told("t", age=after)
    found = net.due(1e18)
    assert len(found) == len(set(found))
    assert net.next_at() == math.inf
