"""What a ledger decides about a claim, whose run a receipt names, and the ledger of a batch that was given none."""

from __future__ import annotations

import logging
from typing import Any

import attrs
import pytest

from knouds_async._batch.ledger import Claim, MemoryLedger, OverBudget, Taken, Written, decide, held_against
from knouds_async._sansio.ledger import (
    Accepted,
    Ended,
    Ending,
    Entry,
    Fit,
    Lost,
    NoRun,
    Sending,
    Stage,
    Totals,
    advance,
)

NEW = Entry(key="a", target="workflows/x", digest="d")


def claim(owner: str = "me", *, key: str = "a", reserve: float | None = 12, cap: float | None = None) -> Claim:
    """Return a claim on a job."""
    sending = Sending(owner=owner, sent_at=1.0, reserve=reserve)
    return Claim(key=key, target="workflows/x", digest="d", sending=sending, cap=cap)


def test_a_new_job_is_written() -> None:
    """It is sending, with its owner and its credits, whether or not it was on record before."""
    for entry in (None, NEW):
        decided = decide(entry, claim(cap=12), Totals(), None)
        assert isinstance(decided, Written)
        assert (decided.entry.stage, decided.entry.owner, decided.totals.reserved) == (Stage.SENDING, "me", 12)


@pytest.mark.parametrize(
    "change",
    [{"digest": "other"}, {"target": "workflows/y"}, {"stage": Stage.UNKNOWN}, {"stage": Stage.SENDING, "owner": "b"}],
)
def test_what_is_another_job_s_or_owner_s_is_taken(change: dict[str, Any]) -> None:
    """A job with other inputs, of another target, that may have run, or that another owner sends, is not sent."""
    entry = attrs.evolve(NEW, **change)
    assert decide(entry, claim(), Totals(), None) == Taken(entry)


def test_a_dearer_run_that_another_owner_saw_counts() -> None:
    """The largest cost on record is reserved, and held against the cap."""
    decided = decide(None, claim(cap=100), Totals(), 60)
    assert isinstance(decided, Written)
    assert decided.entry.reserved == 60
    assert decide(None, claim(cap=100), Totals(reserved=60), 60) == OverBudget(Totals(reserved=60), Fit.LATER, 60)
    assert decide(None, claim(cap=100), Totals(spent=60), 60) == OverBudget(Totals(spent=60), Fit.NEVER, 60)


def test_another_attempt_of_the_same_owner_counts_once() -> None:
    """What was refused and is sent again needs no further credits."""
    sent = advance(NEW, claim().sending)
    decided = decide(sent, claim(cap=12), Totals(reserved=12), None)
    assert isinstance(decided, Written)
    assert decided.totals == Totals(reserved=12)


def test_another_attempt_must_still_fit_under_the_cap() -> None:
    """What was refused is not sent again once what others cost leaves no room for it."""
    sent = advance(NEW, claim().sending)
    totals = Totals(spent=95, reserved=12)
    assert decide(sent, claim(cap=100), totals, None) == OverBudget(totals, Fit.NEVER, None)
    totals = Totals(spent=40, reserved=100)
    assert decide(attrs.evolve(sent, reserved=50), claim(cap=100), totals, 50) == OverBudget(totals, Fit.LATER, 50)


def test_a_receipt_of_another_job_is_none() -> None:
    """It leaves the job unknown, and names the other; one of no other job is let pass."""
    accepted = Accepted(owner="me", execution_id="run-1")
    assert held_against(accepted, None) is accepted
    lost = held_against(accepted, "b")
    assert isinstance(lost, Lost)
    assert "'run-1'" in lost.note
    assert "'b'" in lost.note


async def test_memory_keeps_what_is_in_flight_alone() -> None:
    """A finished job is forgotten, its credits are not; a dear run raises what is reserved for the others."""
    ledger = MemoryLedger()
    for key in ("a", "b", "c"):
        assert isinstance(await ledger.claim(claim(key=key)), Written)
    await ledger.record("c", 1, NoRun("me"))
    written = await ledger.record("a", 1, Ended(Ending(status="completed", cost=20)))
    assert written.totals == Totals(spent=20, reserved=20)
    assert written.highest_cost == 20
    assert [await ledger.look(key) is not None for key in ("a", "b", "c")] == [False, True, False]


async def test_memory_logs_what_it_leaves(caplog: pytest.LogCaptureFixture) -> None:
    """The ids of runs in flight stand in the log, for nothing else has them."""
    caplog.set_level(logging.WARNING, logger="knouds_async")
    ledger = MemoryLedger()
    owner = await ledger.join()
    await ledger.leave(owner)
    assert not caplog.text
    await ledger.claim(claim(owner))
    await ledger.record("a", 1, Accepted(owner=owner, execution_id="run-1"))
    await ledger.leave(owner)
    assert "run-1" in caplog.text
