"""What goes into a batch and what comes out: jobs, what is asked for them, and outcomes, also as a ledger has them."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast

import attrs

from knouds_async._batch.ledger import Ledger
from knouds_async._io.concurrency import checkpoint
from knouds_async._sansio import keys, responses
from knouds_async._sansio.durations import check_expected
from knouds_async._sansio.inputs import Default, input_errors, invalid_inputs, is_record, plain_inputs
from knouds_async._sansio.ledger import Ending, Entry, Stage
from knouds_async._sansio.responses import Answer, UnreadableError, json_object
from knouds_async.config import Secret, Timeouts, is_number
from knouds_async.errors import (
    ExecutionCancelledError,
    ExecutionFailedError,
    InvalidArgumentError,
    InvalidInputsError,
    KnoudsError,
    SubmissionUnknownError,
    safe_repr,
)
from knouds_async.execution import result_of
from knouds_async.types import ExecutionState, Inputs, Record, RunResult, Target, WorkflowSchema

LONGEST_KEY: Final = 200


def _is_key(_: object, attribute: attrs.Attribute[Any], key: object) -> None:
    if not isinstance(key, str) or not 0 < len(key) <= LONGEST_KEY or not key.isprintable():
        raise InvalidArgumentError(
            f"Job({attribute.name}={safe_repr(key)}): must be a text of 1 to {LONGEST_KEY} printable characters"
        )


def _as_given(inputs: Inputs) -> Any:
    """Return inputs as they are: type checkers check what is given, and let it be read as what it is."""
    return inputs


@attrs.frozen(eq=False, repr=False)
class Job(Record):
    """One run that is wanted: `key` names it, `inputs` are what it runs on.

    `key`: 1 to 200 printable characters, unique within a batch. In a ledger it names the run for ever: a job whose key
    is there is picked up where it stands and never run a second time, and the same key with other inputs is refused.
    `inputs`: as for `submit`; what they hold is copied when the job is taken from `jobs`, and not earlier.
    Raises InvalidArgumentError for a bad key; bad inputs come out as a NotRun.
    """

    key: str = attrs.field(validator=_is_key)
    inputs: Any = attrs.field(converter=_as_given)


Jobs: TypeAlias = Iterable[Job | Inputs] | AsyncIterable[Job | Inputs]
"""Where the jobs of a batch come from; plain inputs get a key made of them."""


OnUnknown: TypeAlias = Literal["park", "stop"]
LedgerLike: TypeAlias = Ledger | str | os.PathLike[str] | Secret
"""A ledger, the path of a file, or the URL of a database."""


def _checked_folder(save: object) -> str | None:
    """Return the folder of `save=` as text; InvalidArgumentError for what is none."""
    try:
        return None if save is None else os.fsdecode(save)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidArgumentError(f"save={safe_repr(save)}: must be the path of a folder, or None") from None


@attrs.frozen(kw_only=True, eq=False, repr=False)
class JobOptions:
    """What a caller asks for each job, as of `Workflows.map` and `submit`; InvalidArgumentError for what cannot be.

    `ledger`: with its URL hidden. `max_age`: seconds for which a schema that was fetched before will do.
    """

    ledger: LedgerLike | None = None
    max_credits: float | None = None
    on_unknown: OnUnknown = "park"
    validate: bool = True
    expected: float | None = None
    default: Default | None = None
    timeout: float | Timeouts | None = None
    save: str | None = attrs.field(default=None, converter=_checked_folder)
    max_age: float = 0.0

    def __attrs_post_init__(self) -> None:
        most = self.max_credits
        if most is not None and not (is_number(most) and 0 <= most < 1e15):
            raise InvalidArgumentError(f"max_credits={safe_repr(most)}: must be credits, zero or more, or None")
        if self.on_unknown not in ("park", "stop"):
            raise InvalidArgumentError(f"on_unknown={safe_repr(self.on_unknown)}: must be 'park' or 'stop'")
        check_expected(self.expected)


@attrs.frozen(eq=False, repr=False)
class PreparedJob:
    """A job as it was read: `number` counts from 0; `inputs` as JSON, their `digest`, or the `error` in their way."""

    number: int
    job: Job
    inputs: Mapping[str, Any] = attrs.field(factory=dict)
    digest: str = ""
    error: KnoudsError | None = None
    is_repeated: bool = False


_A_FEW: Final = 10  # jobs to be read before other tasks have their turn


class Reader:
    """Makes jobs of what a caller's iterable gives, one by one, and notices keys that came before.

    `default`: converts inputs that are not JSON. `count`: how many were read.
    """

    def __init__(self, jobs: Jobs = (), default: Default | None = None) -> None:
        self._jobs, self._default = jobs, default
        self._source: Iterator[Job | Inputs] | AsyncIterator[Job | Inputs] | None = None
        self._keys = keys.Keys()
        self._seen = keys.Seen()
        self.count = 0

    def __aiter__(self) -> Reader:
        """Return itself."""
        return self

    async def __anext__(self) -> PreparedJob:
        """Read the next job; raises what the source raises."""
        if self.count % _A_FEW == 0:
            await checkpoint()
        if self._source is None:
            self._source = aiter(self._jobs) if isinstance(self._jobs, AsyncIterable) else iter(self._jobs)
        if isinstance(self._source, AsyncIterator):
            return self.read(await anext(self._source))
        for item in self._source:
            return self.read(item)
        raise StopAsyncIteration

    def read(self, item: Job | Inputs) -> PreparedJob:
        """Read the next item; one that is neither a job nor inputs is an InvalidArgumentError."""
        if not isinstance(item, (Job, Mapping)) and not is_record(item):
            raise InvalidArgumentError(f"{safe_repr(item)} is no job: give Job(key, inputs) or a mapping of inputs")
        inputs = item.inputs if isinstance(item, Job) else item
        plain, digest, error = dict[str, Any](), "", None
        try:
            plain = plain_inputs(inputs, self._default)
            digest = keys.digest(plain)
        except InvalidInputsError as refused:
            error = refused.with_traceback(None)
        number, self.count = self.count, self.count + 1
        job = item if isinstance(item, Job) else Job(self._key(digest, number), inputs)
        return PreparedJob(number, job, plain, digest, error, is_repeated=not self._seen.add(job.key))

    def _key(self, digest: str, number: int) -> str:
        return self._keys.of(digest) if digest else f"job {number + 1}"


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


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Completed(Record):
    """The run completed; `run` is its result, as awaiting an Execution gives it (`run.cost` in credits, `run.ms`).

    `from_ledger`: whether an earlier batch on the same ledger completed it; nothing was paid now. `files`: with
    `map(..., save=...)`, the paths of its files in their order; None without, and where `save_error` says why not all
    of them could be saved.
    """

    job: Job
    run: RunResult
    from_ledger: bool = False
    files: tuple[Path, ...] | None = None
    save_error: Exception | None = None

    @property
    def execution_id(self) -> str | None:
        """The service's id of the run; None for one that went through the synchronous endpoint."""
        return self.run.execution_id


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Failed(Record):
    """The run failed; whether it is charged is not documented (`state.cost` where the service says so).

    `error`: what awaiting the Execution would raise, with the service's `code` and `message`. `execution_id` and
    `state` are None for a run that went through the synchronous endpoint. `from_ledger`: as of Completed.
    """

    job: Job
    error: ExecutionFailedError
    execution_id: str | None = None
    state: ExecutionState | None = None
    from_ledger: bool = False


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Cancelled(Record):
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


@attrs.frozen(kw_only=True, eq=False, repr=False)
class NotRun(Record):
    """The job was certainly not run and cost nothing: a later batch may run it, also on the same ledger.

    `reason`: one of NotRunReason. `error`: the error that says why in words.
    """

    job: Job
    reason: NotRunReason
    error: KnoudsError


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Unknown(Record):
    """Whether the job ran, or how its run ended, is not known: it may have been charged; it is not sent again unasked.

    `error`: what came instead of an answer. `sent_at`: when it was sent, None where that is not known.
    `execution_id`: set when it did begin and only its end could not be seen; a later batch on the same ledger polls
    again. Without one, `knouds.usage.find_submission` searches for it, and a ledger takes your decision:
    `resolve`, `approve_resend` or `abandon`. `is_abandoned`: whether it was decided to leave it at that.
    `is_elsewhere`: whether another batch on the same ledger has it in flight and records its end, for which this one,
    as it was stopped, did not wait; there is nothing to decide.
    """

    job: Job
    error: KnoudsError
    sent_at: datetime | None = None
    execution_id: str | None = None
    is_abandoned: bool = False
    is_elsewhere: bool = False


Outcome: TypeAlias = Completed | Failed | Cancelled | NotRun | Unknown
"""How a job ended; `match` over the five."""


def refusal(
    prepared: PreparedJob, entry: Entry | None, target: Target, schema: WorkflowSchema | None = None
) -> NotRun | None:
    """Return why a job is not run at all; `entry`: what the ledger has of its key."""
    error: KnoudsError
    if prepared.is_repeated:
        error = InvalidArgumentError(f"its key came before in this batch: {prepared.job.key!r}")
        return NotRun(job=prepared.job, reason=NotRunReason.DUPLICATE, error=error)
    if prepared.error is not None:
        return NotRun(job=prepared.job, reason=NotRunReason.INVALID, error=prepared.error)
    if entry is not None and (entry.digest, entry.target) != (prepared.digest, str(target)):
        what = "other inputs" if entry.digest != prepared.digest else f"the target {entry.target}"
        known = f"the ledger knows the key {prepared.job.key!r} with {what}"
        error = InvalidArgumentError(f"{known}: give the job another key, or use another ledger")
        return NotRun(job=prepared.job, reason=NotRunReason.CONFLICT, error=error)
    is_new = entry is None or entry.stage is Stage.NEW
    if is_new and schema is not None and (faults := input_errors(schema, prepared.inputs)):
        return NotRun(job=prepared.job, reason=NotRunReason.INVALID, error=invalid_inputs(target, faults))
    return None


# ---- How runs end, on their way into a ledger and out of it


def ending_of(state: ExecutionState, *, is_kept: bool = True) -> Ending:
    """Return the ending of a final state; one that nothing outside this batch reads goes without the reply."""
    failure, status = state.error, cast(Literal["completed", "failed", "cancelled"], str(state.status))
    return Ending(
        status=status,
        cost=_credits(state.cost),
        reply=_plain(state) if is_kept else None,
        code=failure.code if failure else None,
        message=failure.message if failure else None,
    )


def _plain(state: ExecutionState) -> str:
    """Return a state as the body of a poll (contract 5): as it came, if that is what it was read from."""
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
    """Return the ending of a synchronous run that completed."""
    raw = run.raw if isinstance(run.raw, dict) else {}
    body = {**raw, "success": True, "result": run.result, "cost": run.cost, "ms": run.ms}
    return Ending(status="completed", cost=_credits(run.cost), reply=json.dumps(body))


def _credits(cost: float | None) -> float | None:
    """Return a cost as it counts against a cap: a negative one, which nobody has documented, as nothing."""
    return None if cost is None else max(0.0, float(cost))


def outcome_of_state(job: Job, state: ExecutionState, *, from_ledger: bool = False) -> Outcome:
    """Return the outcome of a finished run."""
    try:
        return Completed(job=job, run=result_of(state), from_ledger=from_ledger)
    except ExecutionFailedError as error:
        failed = error.with_traceback(None)
        return Failed(job=job, error=failed, execution_id=state.execution_id, state=state, from_ledger=from_ledger)
    except ExecutionCancelledError:
        return Cancelled(job=job, state=state, from_ledger=from_ledger)


def outcome_of_entry(job: Job, entry: Entry, *, from_ledger: bool = True, open_because: Sequence[str] = ()) -> Outcome:
    """Return the outcome of an entry: of a job that is final, unknown or abandoned.

    `open_because`: why it could not be proven that an unknown one did not run.
    """
    ending = entry.ending
    if ending is None:
        return _unknown(job, entry, open_because)
    if (state := state_of_entry(entry)) is not None:
        return outcome_of_state(job, state, from_ledger=from_ledger)
    if ending.reply is None:
        error = ExecutionFailedError(ending.message or "the service gave no reason", code=ending.code)
        return Failed(job=job, error=error, from_ledger=from_ledger)
    return Completed(job=job, run=responses.run_result(Answer(200, {}, ending.reply.encode())), from_ledger=from_ledger)


def state_of_entry(entry: Entry) -> ExecutionState | None:
    """Return the final state of an entry's run; None where the service reported none, or the run has no id."""
    if entry.ending is None or entry.ending.reply is None or entry.execution_id is None:
        return None
    body = json_object(responses.parsed(entry.ending.reply.encode()))
    if "status" not in body:  # of a synchronous run that ended after somebody had named another run for the job
        return None
    return responses.execution_state(entry.execution_id, body)


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
        sent_after=utc(after),
        sent_before=utc(before),
    )
    return Unknown(job=job, error=error, sent_at=sent_at, execution_id=entry.execution_id, is_abandoned=is_abandoned)


def utc(seconds: float | None) -> datetime | None:
    """Return epoch seconds as a time, None for None."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
