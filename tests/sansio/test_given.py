"""One run is one job's: an id that comes twice is no receipt."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from knouds_async._sansio import endpoints
from knouds_async._sansio.retry import Again, Done, Fail, Given, Requeue, SoFar
from knouds_async.errors import ServiceError, SubmissionUnknownError
from knouds_async.types import RunResult, Submitted, Target

SUBMIT = endpoints.submit(Target("workflows", "a"), {})
WHERE = SoFar(attempts=1, spent=1.0, sent_at=datetime(2026, 5, 8, tzinfo=UTC))


def unknown(found: str | None) -> Fail:
    """Return the end of a submit of whose receipt only a part came."""
    return Fail(SubmissionUnknownError(target="workflows/a", sent_at=WHERE.sent_at, seen="cut", execution_id=found))


@pytest.mark.parametrize("first", [Done(Submitted(execution_id="run-1")), unknown("run-1")])
@pytest.mark.parametrize("second", [Done(Submitted(execution_id="run-1")), unknown("run-1")])
def test_an_id_is_given_once(first: Any, second: Any) -> None:
    """Whole receipts and parts of them alike: the second is unknown, has no id, and names the first."""
    given = Given()
    assert given.checked(SUBMIT, first, WHERE, "job 'a'") is first
    decided = given.checked(SUBMIT, second, WHERE, "job 'b'")
    assert isinstance(decided, Fail)
    assert isinstance(decided.error, SubmissionUnknownError)
    assert decided.error.execution_id is None
    assert "'run-1'" in decided.error.seen
    assert "job 'a'" in decided.error.seen
    assert decided.error.intermediary is not None


@pytest.mark.parametrize(
    "decision", [Again(1.0), Requeue(), Fail(ServiceError("x", status=500)), Done(RunResult(1)), unknown(None)], ids=str
)
def test_what_has_no_id_passes(decision: Any) -> None:
    """Nothing else is looked at, however often it comes."""
    given = Given()
    for _ in range(3):
        assert given.checked(SUBMIT, decision, WHERE, None) is decision


def test_memory_is_bounded() -> None:
    """Only the latest ids are remembered."""
    given = Given(most=3)
    for number in range(10):
        receipt = Done(Submitted(execution_id=f"run-{number}"))
        assert given.checked(SUBMIT, receipt, WHERE, f"job {number}") is receipt
    assert len(given._whose) == 3
    assert isinstance(given.checked(SUBMIT, Done(Submitted(execution_id="run-9")), WHERE, "job x"), Fail)


def test_submits_outside_of_batches_pass() -> None:
    """A test's service that gives every submit the same receipt is nobody's loss."""
    given, receipt = Given(), Done(Submitted(execution_id="run-1"))
    for _ in range(3):
        assert given.checked(SUBMIT, receipt, WHERE, None) is receipt
