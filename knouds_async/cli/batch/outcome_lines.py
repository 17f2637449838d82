"""Outcomes as lines of the file of results. Pure.

Every line has the same names. A finished run keeps its line for good; a job that was not run, or whose outcome is
unknown, gets a new line when the batch is run again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, assert_never

from knouds_async import ExecutionState, KnoudsError, Status
from knouds_async._sansio.entries import Entry, Stage
from knouds_async.batch.endings import outcome_of_entry
from knouds_async.batch.jobs import Job
from knouds_async.batch.outcomes import Cancelled, Completed, Failed, NotRun, NotRunReason, Outcome, Unknown
from knouds_async.cli.words import format_error

_RETRYABLE = (Status.FAILED, Status.CANCELLED)
_FINISHED = (Status.COMPLETED, *_RETRYABLE, "abandoned")
_NOT_WRITTEN = (NotRunReason.DUPLICATE, NotRunReason.STOPPED)  # the key's line is another job's, or comes later


def result_line(outcome: Outcome, files: Iterable[Path] | None = None, *, save: bool = False) -> dict[str, Any]:
    """Return the line of an outcome; with `save` it has `files`, None when one could not be downloaded."""
    line = _line_without_files(outcome)
    return line | {"files": None if files is None else [str(path) for path in files]} if save else line


def has_line(outcome: Outcome) -> bool:
    """Return whether a line is written for an outcome."""
    return not (isinstance(outcome, NotRun) and outcome.reason in _NOT_WRITTEN)


def is_kept(line: Mapping[str, Any], *, retry_failed: bool, save: bool) -> bool:
    """Return whether a line of an earlier run is kept: not when its job is run or its files are downloaded again."""
    status = line["status"]
    is_saved = not save or status != Status.COMPLETED or line.get("files") is not None
    return status in _FINISHED and is_saved and not (retry_failed and status in _RETRYABLE)


def is_retryable(line: Mapping[str, Any]) -> bool:
    """Return whether the job of a line may be run again."""
    return line["status"] in _RETRYABLE


def is_current(line: Mapping[str, Any], entry: Entry) -> bool:
    """Return whether a line is of the last run of its job in the ledger, not of an earlier one."""
    if entry.stage is not Stage.FINAL:
        return False
    current: dict[str, Any] = json.loads(
        json.dumps(result_line(outcome_of_entry(Job(entry.key, {}), entry)), default=str)
    )
    return current == line


def _line_without_files(outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case Completed(job=job, run=run):
            return _make_line(job.key, Status.COMPLETED, run.execution_id, result=run.result, cost=run.cost, ms=run.ms)
        case Failed(job=job, error=error, execution_id=execution_id, state=state):
            return _make_line(job.key, Status.FAILED, execution_id, state, error=_error_record(error, None))
        case Cancelled(job=job, state=state):
            return _make_line(job.key, Status.CANCELLED, state.execution_id, state)
        case NotRun(job=job, reason=reason, error=error):
            return _make_line(job.key, "not_run", error=_error_record(error, reason))
        case Unknown(job=job, error=error, execution_id=execution_id, is_abandoned=is_abandoned):
            return _make_line(
                job.key, "abandoned" if is_abandoned else "unknown", execution_id, error=_error_record(error, None)
            )
        case _:
            assert_never(outcome)


def _make_line(
    key: str,
    status: str,
    execution_id: str | None = None,
    state: ExecutionState | None = None,
    *,
    result: Any = None,
    cost: float | None = None,
    ms: float | None = None,
    error: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a line; a state, where there is one, provides the result, the cost and the time."""
    return {
        "key": key,
        "status": str(status),
        "execution_id": execution_id or None,
        "result": result if state is None else state.result,
        "cost": cost if state is None else state.cost,
        "ms": ms if state is None else state.ms,
        "error": error,
    }


def _error_record(error: KnoudsError, reason: str | None) -> dict[str, Any]:
    """Return an error's code, or the reason the job was not run, and the service's message, or ours."""
    return {
        "code": getattr(error, "code", None) or reason,
        "message": getattr(error, "message", "") or format_error(error),
    }
