"""How a job of a batch ended: one of five frozen values. A failure is a value here, never an exception."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TypeAlias

import attrs

from knouds_async.batch.jobs import Job
from knouds_async.errors import ExecutionFailedError, KnoudsError
from knouds_async.types import ExecutionState, RunResult


class NotRunReason(StrEnum):
    """Why a job was certainly not run."""

    INVALID = "invalid"
    """Its inputs fail the workflow's schema, or the service refused them; `error` names every fault found."""
    BUDGET = "budget"
    """Its run could pass `max_credits`, or the account cannot pay (402); `error` says which."""
    REFUSED = "refused"
    """The service refuses this key, this account or this target: 401, 403, 404 or another 4xx."""
    UNREACHABLE = "unreachable"
    """The service could not be reached for minutes on end."""
    INTERCEPTED = "intercepted"
    """Something between here and the service answers in its place; `error` says what. Nothing more was sent."""
    RATE_LIMITED = "rate_limited"
    """The service asks for a longer wait than `Retries(longest=...)` allows; `error.retry_after` says how long."""
    DUPLICATE = "duplicate"
    """Its key came before in this batch; the first job of that key is the one that runs."""
    CONFLICT = "conflict"
    """The ledger knows its key with other inputs or another target."""
    STOPPED = "stopped"
    """The batch was stopped before it was its turn."""


@attrs.frozen(kw_only=True)
class Completed:
    """The run completed; `run` is its result, as awaiting an Execution gives it (`run.cost` in credits, `run.ms`).

    `from_ledger`: whether an earlier batch on the same ledger completed it; nothing was paid now.
    """

    job: Job
    run: RunResult
    from_ledger: bool = False

    @property
    def execution_id(self) -> str | None:
        """The service's id of the run; None for one that went through the synchronous endpoint."""
        return self.run.execution_id


@attrs.frozen(kw_only=True)
class Failed:
    """The run failed; whether it is charged is not documented (`state.cost` where the service says so).

    `error`: what awaiting the Execution would raise, with the service's `code` and `message`. `execution_id` and
    `state` are None for a run that went through the synchronous endpoint. `from_ledger`: as of Completed.
    """

    job: Job
    error: ExecutionFailedError
    execution_id: str | None = None
    state: ExecutionState | None = None
    from_ledger: bool = False


@attrs.frozen(kw_only=True)
class Cancelled:
    """The run was cancelled, by `executions.cancel` or elsewhere; it is charged all the same.

    `state`: its final state, whose `result` may hold something. `from_ledger`: as of Completed.
    """

    job: Job
    state: ExecutionState
    from_ledger: bool = False

    @property
    def execution_id(self) -> str:
        """The service's id of the run."""
        return self.state.execution_id


@attrs.frozen(kw_only=True)
class NotRun:
    """The job was certainly not run and cost nothing: a later batch may run it, also on the same ledger.

    `reason`: one of NotRunReason. `error`: the error that says why in words.
    """

    job: Job
    reason: NotRunReason
    error: KnoudsError


@attrs.frozen(kw_only=True)
class Unknown:
    """Whether the job ran, or how its run ended, is not known: it may have been charged; it is not sent again unasked.

    `error`: what came instead of an answer. `sent_at`: when it was sent, None where that is not known.
    `execution_id`: set when it did begin and only its end could not be seen; a later batch on the same ledger looks
    again. Without one, `knouds.usage.find_submission` looks for it, and a ledger takes your decision:
    `resolve`, `approve_resend` or `abandon`. `is_abandoned`: whether it was decided to leave it at that.
    """

    job: Job
    error: KnoudsError
    sent_at: datetime | None = None
    execution_id: str | None = None
    is_abandoned: bool = False


Outcome: TypeAlias = Completed | Failed | Cancelled | NotRun | Unknown
"""How a job ended; `match` over the five."""
