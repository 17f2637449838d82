"""Jobs, outcomes and progress, and ends of runs, which come out of a ledger as they went in."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knouds_async import (
    Completed,
    ExecutionState,
    Failed,
    Failure,
    InvalidArgumentError,
    Job,
    LedgerEntry,
    NotRun,
    NotRunReason,
    Progress,
    RunResult,
    Status,
)
from knouds_async._batch.jobs import ending_of, ending_of_result, outcome_of_entry, outcome_of_state
from knouds_async._sansio.ledger import Stage


@pytest.mark.parametrize("key", ["", "x" * 201, "a\nb", "a\x00", None, 5])
def test_a_key_is_a_short_printable_text(key: object) -> None:
    """A key that could not name a job for ever is refused by its value."""
    with pytest.raises(InvalidArgumentError, match="key"):
        Job(key, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["a", "x" * 200, "Straße 5 / 日本", "renders/2026-01"])
def test_any_words_may_be_a_key(key: str) -> None:
    """A key may hold blanks, slashes and letters of any script."""
    assert Job(key, {"a": 1}).key == key


def test_values_are_frozen() -> None:
    """A job and an outcome stay what they are."""
    outcome = Completed(job=Job("a", {}), run=RunResult({}, 12, 1, "run-1"))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        outcome.job = Job("b", {})  # type: ignore[misc]
    assert outcome.execution_id == "run-1"


def test_a_reason_is_a_word() -> None:
    """The reason of a NotRun compares with plain texts."""
    outcome = NotRun(job=Job("a", {}), reason=NotRunReason.BUDGET, error=InvalidArgumentError("no"))
    assert outcome.reason == "budget"


def test_progress_counts_every_outcome() -> None:
    """The five kinds of outcome add up."""
    assert Progress(completed=1, failed=2, cancelled=4, not_run=8, unknown=16, from_ledger=5).outcomes == 31


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_texts = st.none() | st.text("abc", min_size=1, max_size=5)
_moments = st.none() | st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
_states = st.builds(
    ExecutionState,
    execution_id=st.just("run-1"),
    status=st.sampled_from([Status.COMPLETED, Status.FAILED, Status.CANCELLED]),
    request_id=_texts,
    workflow_slug=_texts,
    model_ids=st.lists(st.text("abc", min_size=1, max_size=5), max_size=2).map(tuple),
    result=_json,
    error=st.none() | st.builds(Failure, code=_texts, message=_texts),
    cost=st.none() | st.integers(0, 100).map(float),
    ms=st.none() | st.integers(0, 100).map(float),
    created_at=_moments,
    completed_at=_moments,
    raw=_json,
)
JOB = Job("a", {})
ENTRY = LedgerEntry(key="a", target="workflows/x", digest="d", stage=Stage.FINAL, execution_id="run-1")


@settings(max_examples=50)
@given(_states)
def test_a_state_comes_out_as_it_went_in(state: ExecutionState) -> None:
    """Whether a state came from a poll or a delivery, its outcome is the same when read from the ledger."""
    before: Any = outcome_of_state(JOB, state)
    after: Any = outcome_of_entry(JOB, attrs.evolve(ENTRY, ending=ending_of(state)))
    assert type(after) is type(before)
    assert after.from_ledger
    assert getattr(after, "run", None) == getattr(before, "run", None)
    assert str(getattr(after, "error", "")) == str(getattr(before, "error", ""))
    if isinstance(before, Failed):
        assert after.state == before.state


@given(_json, st.none() | st.integers(0, 100).map(float), st.none() | st.just({"success": True, "more": 1}))
def test_a_synchronous_result_comes_out_as_it_went_in(result: Any, cost: float | None, raw: Any) -> None:
    """A result without an id keeps its value, its cost and what came with it."""
    run = RunResult(result, cost, 5.0, None, raw)
    after = outcome_of_entry(JOB, attrs.evolve(ENTRY, execution_id=None, ending=ending_of_result(run)))
    assert isinstance(after, Completed)
    assert after.run == run
    assert after.run.raw["success"] is True


def test_a_synchronous_result_of_a_job_with_an_id_is_read_as_what_it_is() -> None:
    """One that came after somebody had named a run for the job ends neither this batch nor any later one."""
    run = RunResult({"text": "hello"}, 12.0, 5.0, None)
    after = outcome_of_entry(JOB, attrs.evolve(ENTRY, ending=ending_of_result(run)))
    assert isinstance(after, Completed)
    assert (after.run.result, after.run.cost) == (run.result, run.cost)
