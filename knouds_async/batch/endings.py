"""Ends of runs, between the three forms they have here: the service's state, a ledger's ending, a job's outcome.

Rule of the file: a reply is kept as the service's own JSON and read by the same reader as from the wire.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from knouds_async._sansio import responses
from knouds_async._sansio.entries import Ending, Entry, Stage
from knouds_async._sansio.responses import Answer, UnreadableError, json_object
from knouds_async.batch.jobs import Job
from knouds_async.batch.outcomes import Cancelled, Completed, Failed, Outcome, Unknown
from knouds_async.errors import ExecutionCancelledError, ExecutionFailedError, SubmissionUnknownError
from knouds_async.execution import result_of
from knouds_async.types import ExecutionState, RunResult, Status

Word = Literal["completed", "failed", "cancelled"]
_WORDS: dict[str, Word] = {
    Status.COMPLETED: "completed",
    Status.FAILED: "failed",
    Status.CANCELLED: "cancelled",
}


def ending_of(state: ExecutionState) -> Ending:
    """Give the ending of a final state."""
    failure = state.error
    return Ending(
        status=_WORDS[state.status],
        cost=_credits(state.cost),
        reply=_plain(state),
        code=failure.code if failure else None,
        message=failure.message if failure else None,
    )


def _plain(state: ExecutionState) -> str:
    """Write a state as the body of a look (contract 5): as it came, if that is what it was read from."""
    extra = state.raw if isinstance(state.raw, dict) else {}
    if _reads_as(extra, state):
        return json.dumps(extra)
    known: dict[str, Any] = {
        "executionId": state.execution_id,
        "requestId": state.request_id,
        "status": state.status,
        "workflowSlug": state.workflow_slug,
        "modelIds": list(state.model_ids),
        "result": state.result,
        "cost": state.cost,
        "ms": state.ms,
        "createdAt": state.created_at.isoformat() if state.created_at else None,
        "completedAt": state.completed_at.isoformat() if state.completed_at else None,
    }
    if state.error is not None:
        known["error"] = {"code": state.error.code, "message": state.error.message}
    others = {name: value for name, value in extra.items() if name not in ("error", "durationMs")}
    return json.dumps({**others, **known})


def _reads_as(body: dict[str, Any], state: ExecutionState) -> bool:
    try:
        return responses.execution_state(state.execution_id, body) == state
    except UnreadableError:
        return False


def ending_of_result(run: RunResult) -> Ending:
    """Give the ending of a synchronous run that completed."""
    raw = run.raw if isinstance(run.raw, dict) else {}
    body = {**raw, "success": True, "result": run.result, "cost": run.cost, "ms": run.ms}
    return Ending(status="completed", cost=_credits(run.cost), reply=json.dumps(body))


def _credits(cost: float | None) -> float | None:
    """Give a cost as it counts against a cap: a negative one, which nobody has documented, as nothing."""
    return None if cost is None else max(0.0, float(cost))


def ending_of_failure(error: ExecutionFailedError) -> Ending:
    """Give the ending of a synchronous run that failed."""
    return Ending(status="failed", code=error.code, message=error.message)


def outcome_of_state(job: Job, state: ExecutionState, *, from_ledger: bool = False) -> Outcome:
    """Give the outcome of a run that is over."""
    try:
        return Completed(job=job, run=result_of(state), from_ledger=from_ledger)
    except ExecutionFailedError as error:
        failed = error.with_traceback(None)
        return Failed(job=job, error=failed, execution_id=state.execution_id, state=state, from_ledger=from_ledger)
    except ExecutionCancelledError:
        return Cancelled(job=job, state=state, from_ledger=from_ledger)


def outcome_of_entry(job: Job, entry: Entry, *, from_ledger: bool = True, open_because: Sequence[str] = ()) -> Outcome:
    """Give the outcome of an entry: of a job that is final, unknown or abandoned.

    `open_because`: why it could not be proven that an unknown one did not run.
    """
    ending = entry.ending
    if ending is None:
        return _unknown(job, entry, open_because)
    if ending.reply is None:
        error = ExecutionFailedError(ending.message or "the service gave no reason", code=ending.code)
        return Failed(job=job, error=error, from_ledger=from_ledger)
    answer = Answer(200, {}, ending.reply.encode())
    if entry.execution_id is None:
        return Completed(job=job, run=responses.run_result(answer), from_ledger=from_ledger)
    state = responses.execution_state(entry.execution_id, json_object(responses.parsed(answer.body)))
    return outcome_of_state(job, state, from_ledger=from_ledger)


def _unknown(job: Job, entry: Entry, open_because: Sequence[str]) -> Unknown:
    is_abandoned = entry.stage is Stage.ABANDONED
    sent_at = datetime.fromtimestamp(entry.sent_at or 0.0, UTC)
    note = entry.note or "no answer is on record"
    if open_because:
        note += f"; that it did not run cannot be proven: {'; '.join(open_because)}"
    after, before = entry.may_have_begun or (None, None)
    error = SubmissionUnknownError(
        target=entry.target,
        sent_at=sent_at,
        seen=f"{note}; it was abandoned" if is_abandoned else note,
        execution_id=entry.execution_id,
        sent_after=_at(after),
        sent_before=_at(before),
    )
    return Unknown(job=job, error=error, sent_at=sent_at, execution_id=entry.execution_id, is_abandoned=is_abandoned)


def _at(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
