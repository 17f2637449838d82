"""What may become of paid runs, one or a batch of them, other than that they complete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from knouds_async.errors._base import KnoudsError

if TYPE_CHECKING:
    from datetime import datetime


class SubmissionUnknownError(KnoudsError):
    """A submit left, and whether it began a run is not known. It was not and will not be sent again.

    `target`: what was submitted, e.g. `workflows/my-pipeline`. `sent_at`: when, by the service's clock where known.
    `sent_after`, `sent_before`: certain bounds, by the service's clock, of when it may have begun a run; None where
    that clock was not known. `seen`: what came instead of the answer. `execution_id`: the id, when the part of the
    answer that came held it; the run most likely exists then, and `knouds.executions.attach(error.execution_id)` picks
    it up. `status`, `intermediary`: of an answer that is not known to be the service's own, its HTTP status and who it
    names itself. Else search for it with `await knouds.usage.find_submission(error)` before you decide.
    """

    may_have_run = True

    def __init__(
        self,
        *,
        target: str,
        sent_at: datetime,
        seen: str,
        execution_id: str | None = None,
        sent_after: datetime | None = None,
        sent_before: datetime | None = None,
        status: int | None = None,
        intermediary: str | None = None,
    ) -> None:
        advice = (
            "It may have run and been charged, so it was not sent again. Search for it with "
            "knouds.usage.find_submission(error) before you submit it anew"
            if execution_id is None
            else f"The part that came names execution {execution_id}, so it most likely runs and is charged: "
            f"knouds.executions.attach({execution_id!r}) picks it up; do not submit it anew"
        )
        super().__init__(
            f"{target} was submitted at {sent_at.isoformat()} and its outcome is unknown: {seen}. {advice}"
        )
        self.target = target
        self.sent_at = sent_at
        self.sent_after = sent_after
        self.sent_before = sent_before
        self.seen = seen
        self.execution_id = execution_id
        self.status = status
        self.intermediary = intermediary


class ExecutionFailedError(KnoudsError):
    """The run ended as failed. Whether a failed run is charged is not documented.

    `code`, `message`: the service's; `state`: the last `ExecutionState`, None for a synchronous run.
    """

    may_have_run = True

    def __init__(
        self, message: str, *, code: str | None = None, execution_id: str | None = None, state: Any = None
    ) -> None:
        run = f"execution {execution_id}" if execution_id else "the run"
        super().__init__(f"{run} failed{f' with {code}' if code else ''}: {message}")
        self.code = code
        self.message = message
        self.execution_id = execution_id
        self.state = state


class ExecutionCancelledError(KnoudsError):
    """The run ended as cancelled; it is charged all the same. `state.result` may still hold a result."""

    may_have_run = True

    def __init__(self, *, execution_id: str, state: Any = None) -> None:
        super().__init__(f"execution {execution_id} was cancelled; it is charged all the same")
        self.execution_id: str | None = execution_id
        self.state = state


class WaitTimeoutError(KnoudsError, TimeoutError):
    """The wait ended before the run did. The run continues: `execution` is its handle, wait on it again.

    `timeout`: the seconds that were waited.
    """

    may_have_run = True

    def __init__(self, *, execution: Any, execution_id: str, timeout: float) -> None:
        super().__init__(
            f"execution {execution_id} was not finished after {timeout:g} s; it continues: wait on error.execution "
            f"again, or pick it up anywhere with knouds.executions.attach({execution_id!r})"
        )
        self.execution = execution
        self.execution_id: str | None = execution_id
        self.timeout = timeout


class BudgetExceededError(KnoudsError):
    """The credits reserved for a batch do not cover the next run. Nothing more was submitted."""


class LedgerError(KnoudsError):
    """The ledger of a batch cannot be used: another kind of file, damaged, locked for too long, or the disk is full.

    The batch submits nothing more. What is on record stays; runs whose ids could not be written are logged at WARNING,
    and `may_have_run` tells whether there was anything of a run that could not be written.
    """
