"""Turns for several processes: never more than the window has, handed out in lots, learned from every report."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knouds_async._sansio import rate_limit
from knouds_async._sansio.rate_limit import (
    FIRST_PAUSE,
    LEASE_TIME,
    MOST_PERMITS,
    Lease,
    Permit,
    PermitReport,
    QuotaHeaders,
    RetryAt,
    SharedWindow,
    from_plain,
    report_and_lease,
    to_plain,
)

EPOCH = 1_780_000_000.0


def fresh(limit: int | None = 100) -> SharedWindow:
    """Return what is believed at first."""
    return SharedWindow(rate_limit.new_window(limit))


def answered(permit: Permit, at: float, remaining: int, reset: float, limit: int = 100) -> PermitReport:
    """Report an answer with the headers of a window."""
    reply = QuotaHeaders(limit=limit, remaining=remaining, reset=EPOCH + reset)
    return PermitReport(outcome="answered", permit=permit, at=at, reply=reply, date=EPOCH + math.floor(at))


def lot(leased: Lease | RetryAt) -> tuple[Permit, ...]:
    """Return the turns of a lease."""
    assert isinstance(leased, Lease)
    return leased.permits


def test_the_first_turn_goes_alone_and_its_answer_releases_a_lot() -> None:
    """One probe for all processes; then lots of at most ten."""
    shared, first = report_and_lease(fresh(), 5.0, [], 50)
    assert len(lot(first)) == 1
    assert isinstance(first, Lease)
    assert first.is_awaited
    shared, nothing = report_and_lease(shared, 5.1, [], 50)
    assert nothing == RetryAt(5.1 + FIRST_PAUSE)
    shared, more = report_and_lease(shared, 5.2, [answered(lot(first)[0], 5.2, 99, 60)], 50)
    assert len(lot(more)) == MOST_PERMITS
    assert isinstance(more, Lease)
    assert not more.is_awaited
    assert more.until == 5.2 + LEASE_TIME


def test_a_lot_is_never_larger_than_what_is_wanted_or_left() -> None:
    """Turns that nobody waits for stay in the file for others; an empty window gives none."""
    shared, first = report_and_lease(fresh(3), 5.0, [], 1)
    shared, some = report_and_lease(shared, 5.1, [answered(lot(first)[0], 5.1, 2, 60, 3)], 1)
    assert len(lot(some)) == 1
    shared, last = report_and_lease(shared, 5.2, [], 1)
    assert len(lot(last)) == 1
    _, nothing = report_and_lease(shared, 5.3, [], 9)
    assert isinstance(nothing, RetryAt)
    assert nothing.until > 5.3


def test_turns_given_back_are_given_out_again() -> None:
    """A returned turn is as good as new; a lost one counts as spent."""
    shared, first = report_and_lease(fresh(2), 5.0, [], 1)
    shared, second = report_and_lease(shared, 5.1, [answered(lot(first)[0], 5.1, 1, 60, 2)], 1)
    back = PermitReport(outcome="released", permit=lot(second)[0], at=5.2)
    shared, again = report_and_lease(shared, 5.2, [back], 1)
    assert len(lot(again)) == 1
    _, nothing = report_and_lease(shared, 5.3, [PermitReport(outcome="unanswered", permit=lot(again)[0], at=5.3)], 1)
    assert isinstance(nothing, RetryAt)


def test_nothing_wanted_is_only_a_report() -> None:
    """A report may come without a wish."""
    shared, first = report_and_lease(fresh(), 5.0, [], 1)
    shared, nothing = report_and_lease(shared, 5.1, [answered(lot(first)[0], 5.1, 99, 60)], 0)
    assert isinstance(nothing, RetryAt)
    assert shared.clock.known


def test_a_reader_polls_the_less_often_the_longer_it_takes() -> None:
    """At once when a turn is free, soon for a probe's answer, and half way to an edge that is far away."""
    shared, _ = report_and_lease(fresh(1), 5.0, [], 1)
    looks = [5.1]
    for _ in range(25):
        shared, again = report_and_lease(shared, looks[-1], [], 0)
        assert isinstance(again, RetryAt)
        looks.append(again.until)
    pauses = [late - soon for soon, late in pairwise(looks)]
    assert pauses[0] == pytest.approx(FIRST_PAUSE)
    assert max(pauses) <= rate_limit.LONGEST_PAUSE
    assert looks[-1] > 60
    shared, second = report_and_lease(fresh(), 5.0, [], 1)
    shared, free = report_and_lease(shared, 5.1, [answered(lot(second)[0], 5.1, 99, 60)], 0)
    assert free == RetryAt(5.1)
    for _ in range(10):
        shared, _ = report_and_lease(shared, 5.1, [], 50)
    looks = [5.1]
    for _ in range(9):
        shared, full = report_and_lease(shared, looks[-1], [], 9)
        looks.append(full.until)
    assert looks == sorted(set(looks))
    assert looks[-1] > 57


def test_a_mirror_goes_through_json() -> None:
    """What is stored is read back as it was; rubbish is no shared window, and no error."""
    shared, first = report_and_lease(fresh(None), 5.0, [], 1)
    shared, _ = report_and_lease(shared, 5.1, [answered(lot(first)[0], 5.1, 99, 60)], 7)
    assert from_plain(json.loads(json.dumps(to_plain(shared)))) == shared


@pytest.mark.parametrize("rubbish", [None, 7, "x", [], {}, {"window": 7}, {"window": {"limits": None}, "clock": {}}])
def test_rubbish_is_no_mirror(rubbish: object) -> None:
    """A file of another version is learned anew."""
    assert from_plain(rubbish) is None


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), processes=st.integers(1, 5), limit=st.integers(1, 30), phase=st.floats(0, 59))
def test_no_window_gives_more_than_its_limit(seed: int, processes: int, limit: int, phase: float) -> None:
    """Processes that lease at random moments, with any latency, together never pass the limit, and get it all."""
    dice, shared, now = Random(seed), fresh(None), 100.0
    spent: dict[int, int] = {}
    coming: list[tuple[float, PermitReport]] = []
    while now < 100 + 60 * 4:
        now += dice.uniform(0.0, 0.3) / processes
        for due in sorted((one for one in coming if one[0] <= now), key=lambda one: one[0]):
            coming.remove(due)
            shared, _ = report_and_lease(shared, due[0], [due[1]], 0)
        shared, leased = report_and_lease(shared, now, [], dice.randint(1, 15))
        for permit in leased.permits if isinstance(leased, Lease) else ():
            arrived = now + dice.uniform(0.0, 0.05)
            window = math.floor((arrived - phase) / 60)
            spent[window] = spent.get(window, 0) + 1
            back = arrived + dice.uniform(0.01, 0.2)
            coming.append((back, answered(permit, back, limit - spent[window], _reset(phase, window), limit)))
    assert max(spent.values()) <= limit
    assert all(spent[window] == limit for window in sorted(spent)[1:-1])


def _reset(phase: float, window: int) -> float:
    return math.ceil(phase + (window + 1) * 60)


def test_the_constants_keep_a_lot_well_inside_the_time_of_transit() -> None:
    """A turn is used soon enough for the shared window, which takes it as sent when it was leased."""
    assert LEASE_TIME < 1.0
    assert rate_limit.IDLE_PAUSE > FIRST_PAUSE
