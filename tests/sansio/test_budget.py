"""The budget of a batch: never passed by one credit of estimate, whatever comes in whatever order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async._sansio.budget import Prices, Totals, Verdict, verdict
from knouds_async._sansio.entries import (
    Abandoned,
    Accepted,
    Ended,
    Ending,
    Entry,
    Event,
    Lost,
    NoneFound,
    NotSent,
    ResendApproved,
    Sending,
    advance,
)

NEW = Entry(key="a", target="workflows/x", digest="d")


def moved(*events: Event) -> Totals:
    """Give the totals after events of one job."""
    totals, entry = Totals().moved(None, NEW), NEW
    for event in events:
        following = advance(entry, event)
        totals, entry = totals.moved(entry, following), following
    return totals


def sending(reserve: float | None = 12) -> Sending:
    """Give a submit with credits set aside."""
    return Sending(owner="me", sent_at=1.0, reserve=reserve)


ACCEPTED = Accepted(owner="me", execution_id="run-1")
LOST = Lost("me", "closed")


@pytest.mark.parametrize(
    ("events", "totals"),
    [
        ([], Totals()),
        ([sending()], Totals(reserved=12)),
        ([sending(), ACCEPTED], Totals(reserved=12)),
        ([sending(), NotSent("me")], Totals()),
        ([sending(), LOST], Totals(reserved=12)),
        ([sending(), LOST, NoneFound(1.0)], Totals()),
        ([sending(), LOST, Abandoned()], Totals(reserved=12)),
        ([sending(), LOST, ResendApproved()], Totals(reserved=12)),
        ([sending(), Ended(Ending(status="completed", cost=20))], Totals(spent=20)),
        ([sending(), Ended(Ending(status="failed"))], Totals(spent=12)),
        ([sending(), Ended(Ending(status="completed", cost=0))], Totals()),
        ([sending(None)], Totals(unpriced=1)),
        ([sending(None), LOST], Totals(unpriced=1)),
        ([sending(None), LOST, Abandoned()], Totals()),
        ([sending(None), Ended(Ending(status="failed"))], Totals()),
        ([sending(None), Ended(Ending(status="completed"))], Totals(unpriced=1)),
        ([sending(None), Ended(Ending(status="cancelled"))], Totals(unpriced=1)),
        ([sending(None), Ended(Ending(status="completed", cost=20))], Totals(spent=20)),
        ([sending(), Ended(Ending(status="completed"))], Totals(spent=12)),
    ],
)
def test_every_stage_has_its_weight(events: list[Event], totals: Totals) -> None:
    """What may have run counts as if it had, until its real cost is known or it certainly did not run."""
    assert moved(*events) == totals


@pytest.mark.parametrize(
    ("totals", "price", "cap", "said"),
    [
        (Totals(), 12, 12, Verdict.GO),
        (Totals(), 12, 11.99, Verdict.NEVER),
        (Totals(spent=88, reserved=0), 12, 100, Verdict.GO),
        (Totals(spent=89, reserved=0), 12, 100, Verdict.NEVER),
        (Totals(spent=50, reserved=39), 12, 100, Verdict.WAIT),
        (Totals(spent=0.1 + 0.2), 0.7, 1.0, Verdict.GO),
        (Totals(unpriced=2), 12, 36, Verdict.GO),
        (Totals(unpriced=2), 12, 35, Verdict.WAIT),
        (Totals(), None, 1, Verdict.GO),
        (Totals(), None, 0, Verdict.NEVER),
        (Totals(unpriced=1), None, 100, Verdict.WAIT),
        (Totals(spent=5), None, 5, Verdict.NEVER),
        (Totals(reserved=5), None, 5, Verdict.WAIT),
        (Totals(), 0, 0, Verdict.GO),
    ],
)
def test_a_run_is_sent_when_it_surely_fits(totals: Totals, price: float | None, cap: float, said: Verdict) -> None:
    """It may go, has to wait for what is set aside, or can never fit."""
    assert verdict(totals, price, cap) is said


def test_what_was_let_through_counts() -> None:
    """Runs that are about to be sent count before they are on record."""
    assert verdict(Totals(), 12, 24, queued=12) is Verdict.GO
    assert verdict(Totals(), 12, 23, queued=12) is Verdict.WAIT
    assert verdict(Totals(), None, 100, is_alone=False) is Verdict.WAIT


@given(
    st.integers(0, 500),
    st.integers(1, 40),
    st.lists(st.tuples(st.sampled_from(["send", "end", "lose", "refuse"]), st.integers(0, 20)), max_size=60),
)
def test_the_cap_is_never_passed_by_a_credit_of_estimate(cap: int, price: int, steps: list[tuple[str, int]]) -> None:
    """All that is spent and set aside stays under the cap, as long as runs cost what was estimated at most."""
    totals = Totals()
    out: list[Entry] = []
    for step, number in steps:
        if step == "send":
            if verdict(totals, price, cap) is Verdict.GO:
                sent = advance(NEW, sending(price))
                totals = totals.moved(NEW, sent)
                out.append(sent)
        elif out:
            entry = out.pop(number % len(out))
            event: Any = {
                "end": Ended(Ending(status="completed", cost=min(number, price))),
                "lose": LOST,
                "refuse": NotSent("me"),
            }[step]
            totals = totals.moved(entry, advance(entry, event))
        assert totals.spent + totals.reserved <= cap


def test_a_price_is_the_estimate_or_what_runs_really_cost() -> None:
    """The schema's estimate counts, unless real runs cost more; without one it is their mean."""
    assert Prices().price is None
    assert Prices(estimate=12).price == 12
    assert Prices().paid(10).paid(20).paid(None).price == 15
    assert Prices(estimate=12).paid(10).price == 12
    assert Prices(estimate=12).paid(30).price == 30
