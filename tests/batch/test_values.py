"""The values of a batch: jobs, outcomes, progress."""

import attrs
import pytest

from knouds_async import Completed, InvalidArgumentError, Job, NotRun, NotRunReason, Progress, RunResult


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
