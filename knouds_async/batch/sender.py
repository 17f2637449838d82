"""Sends the jobs of a batch, each at most once: in line, by a keeper, again only when it certainly was not sent.

Rule of the file: a job leaves the line only as an outcome, or with what the ledger says of it instead.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, Literal

import anyio

from knouds_async import errors
from knouds_async._io.witness import Decision
from knouds_async._sansio import endpoints
from knouds_async._sansio.entries import Ended, Entry, OwnerGone, Stage
from knouds_async._sansio.inputs import input_errors
from knouds_async._sansio.retry import Done, Requeue
from knouds_async.batch.books import LedgerSession
from knouds_async.batch.endings import ending_of, outcome_of_entry, outcome_of_state
from knouds_async.batch.jobs import PreparedJob
from knouds_async.batch.keeper import SubmitRecorder, SubmitWithheldError
from knouds_async.batch.obstacles import UNREACHABLE, ForeignAnswers, HoldNotices, Outage, intercepted
from knouds_async.batch.outcomes import Failed, NotRun, NotRunReason, Outcome, Unknown
from knouds_async.batch.service import BatchClient
from knouds_async.execution import Execution
from knouds_async.types import ExecutionState, RunResult, Submitted, Target, WorkflowSchema

logger = logging.getLogger("knouds_async")

OnUnknown = Literal["park", "stop"]

_TARGET_WIDE: Final = (
    errors.AuthenticationError,
    errors.PermissionDeniedError,
    errors.NotFoundError,
    errors.InvalidSlugError,
)
"""Refusals that every further job would meet as well."""


class JobSubmitter:
    """Sends jobs, and waits for their runs."""

    def __init__(self, client: BatchClient, target: Target, session: LedgerSession, on_unknown: OnUnknown) -> None:
        """Send jobs of `target` through `service`, with `books`."""
        self._client = client
        self._target = target
        self._session = session
        self._on_unknown = on_unknown
        self._first = anyio.Lock()
        self._asking = anyio.Lock()
        self._has_answered = False
        self._foreign_answers = ForeignAnswers()
        self._hold_notices = HoldNotices()
        self._is_away = False
        self._route = endpoints.submit(target, {}).route
        self._in_line: dict[anyio.CancelScope, SubmitRecorder | None] = {}
        self._reading: anyio.CancelScope | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.schema: WorkflowSchema | None = None
        self.submitted = 0
        self.is_stopped = False  # somebody asked for it: no further job is to be read either

    def stop(self, reason: NotRunReason, error: errors.KnoudsError) -> None:
        """Submit nothing more: what is in line leaves it, what is out goes on."""
        self._session.stop(reason, error)
        self.is_stopped = self.is_stopped or reason is NotRunReason.STOPPED
        for scope, recorder in self._in_line.items():
            if recorder is None or not recorder.has_left:
                scope.cancel()
        if reason is NotRunReason.STOPPED and self._reading is not None:
            self._reading.cancel()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let the end of the submitting end the wait for another job."""
        with anyio.CancelScope() as self._reading:
            yield
        self._reading = None

    async def send(self, prepared: PreparedJob) -> Outcome | Entry | None:
        """Send a job that never ran, unless it cannot be."""
        wrong = input_errors(self.schema, prepared.job.inputs) if self.schema is not None else ()
        if wrong:
            said = f"{self._target}: {'; '.join(wrong)}"
            refused = errors.InvalidInputsError(said, code="INVALID_INPUTS")
            return NotRun(job=prepared.job, reason=NotRunReason.INVALID, error=refused)
        outage = Outage()
        while (stopped_by := self._session.stopped_by) is None:
            reservation = await self._session.reserve()
            found = (
                await self._try(prepared, SubmitRecorder(self._session, prepared, reservation, self._saw), outage)
                if reservation
                else _AGAIN
            )
            if not isinstance(found, _Again):
                return found
        return NotRun(job=prepared.job, reason=stopped_by.reason, error=stopped_by.error)

    async def _try(
        self, prepared: PreparedJob, recorder: SubmitRecorder, outage: Outage
    ) -> Outcome | Entry | _Again | None:
        """Submit once and, when that began a run, see it to its end."""
        try:
            await self.ask_for_time()
            value = await self._submit(prepared, recorder)
            if isinstance(value, RunResult) and recorder.entry is not None:
                self._count()
                return outcome_of_entry(prepared.job, recorder.entry, from_ledger=False)
            if isinstance(value, Submitted) and recorder.entry is not None:
                return await self._begun(prepared, recorder.entry, value)
        except SubmitWithheldError as refusal:
            return refusal.taken or _AGAIN
        except errors.KnoudsError as error:
            return await self._refused(prepared, recorder, error.with_traceback(None), outage)
        finally:
            with anyio.CancelScope(shield=True):
                await recorder.close()
        return _AGAIN

    async def ask_for_time(self) -> None:
        """Have the service tell its time, if need be, before an intent is written or a lost one is looked for."""
        if self._session.needs_time:
            with self._leaving_line():
                async with self._asking:
                    if self._session.needs_time:
                        await self._client.pipeline.ask_for_time()

    def _count(self) -> None:
        self.submitted += 1
        self.on_change()

    async def _submit(self, prepared: PreparedJob, recorder: SubmitRecorder) -> Submitted | RunResult | None:
        """Submit, the first job alone: should the target refuse it, no turn of the others is wasted."""
        value = None
        with self._leaving_line(recorder):
            if not self._has_answered:
                async with self._first:
                    if not self._has_answered:
                        value = await self._send_once(prepared, recorder)
            if value is None:
                value = await self._send_once(prepared, recorder)
        return value

    async def _send_once(self, prepared: PreparedJob, recorder: SubmitRecorder) -> Submitted | RunResult:
        self._say_pause()
        is_one_go = self._target in self._client.one_go
        recorder.lasts = self._client.run_lasts if is_one_go else 0.0
        call: endpoints.Call[Any] = (endpoints.run if is_one_go else endpoints.submit)(
            self._target, prepared.job.inputs
        )
        try:
            value: Submitted | RunResult = await self._client.pipeline.send(call, hooks=recorder)
        except (errors.APIError, errors.SubmissionUnknownError, errors.ExecutionFailedError):
            self._has_answered = True
            raise
        self._has_answered = True
        return value

    @contextmanager
    def _leaving_line(self, recorder: SubmitRecorder | None = None) -> Iterator[None]:
        """Let `stop` end what is done inside, unless the keeper says that a request is out: it is paid for."""
        with anyio.CancelScope() as scope:
            self._in_line[scope] = recorder
            try:
                yield
            finally:
                del self._in_line[scope]

    async def wait(self, prepared: PreparedJob, entry: Entry, execution: Execution) -> Outcome:
        """Wait for the end of a run and write it down; looks that fail are made again for as long as they may help."""
        try:
            state = await execution.wait(timeout=math.inf)
            if entry.note is not None:  # somebody named the run
                _refuse_run_of_another_target(state, self._target)
        except errors.ClientClosedError:
            raise
        except errors.KnoudsError as error:
            if self._session.payer is not None:  # whoever else waits for this job, or the next batch, may try
                await self._session.try_to_record(entry, OwnerGone())
            sent_at = None if entry.sent_at is None else datetime.fromtimestamp(entry.sent_at, UTC)
            return Unknown(
                job=prepared.job, error=error.with_traceback(None), sent_at=sent_at, execution_id=execution.id
            )
        await self._session.record(entry, Ended(ending_of(state)))
        return outcome_of_state(prepared.job, state)

    async def _refused(
        self, prepared: PreparedJob, recorder: SubmitRecorder, error: errors.KnoudsError, outage: Outage
    ) -> Outcome | _Again:
        """Decide what follows from a submit that began no run for certain, or perhaps did."""
        match error:
            case errors.LedgerError() | errors.ClientClosedError() | errors.WrongEventLoopError():
                raise error
            case errors.ExecutionFailedError():
                self._count()
                return Failed(job=prepared.job, error=error)
            case errors.AsyncNotSupportedError() if self._target not in self._client.one_go:
                self._client.one_go.add(self._target)
                return _AGAIN
            case errors.RateLimitError():
                return await self._limited(error)
            case errors.ConnectionFailedError() if not (error.is_lasting or outage.is_too_long(anyio.current_time())):
                return await self._unreachable(error, outage)
            case errors.SubmissionUnknownError(execution_id=str() as found) if recorder.entry is not None:
                return await self._begun(prepared, recorder.entry, Submitted(execution_id=found))
            case _ if error.may_have_run:
                self.met_unknown(prepared)
                sent_at = getattr(error, "sent_at", recorder.sent_at)
                return Unknown(job=prepared.job, error=error, sent_at=sent_at)
        reason, is_for_all = _reason(error)
        if is_for_all:
            self.stop(reason, error)
        return NotRun(job=prepared.job, reason=reason, error=error)

    def _saw(self, decision: Decision) -> None:
        """Take note of an attempt: what answers in the service's place ends the submitting at once."""
        if (who := self._foreign_answers.saw(decision)) is not None:
            self._stop_with(NotRunReason.INTERCEPTED, intercepted(self._target, who))
        if isinstance(decision, Requeue):
            self._say_pause()
        if isinstance(decision, (Done, Requeue)):
            self._is_away = False

    def _stop_with(self, reason: NotRunReason, error: errors.KnoudsError) -> None:
        if self._session.stopped_by is None:
            logger.warning("a batch submits nothing more: %s", error)
            self.stop(reason, error)

    @property
    def held_for(self) -> float:
        """The seconds for which the service asked that nothing be submitted."""
        return self._client.stats(self._route).held_for

    def _say_pause(self) -> None:
        """Say once what is waited for when the service has asked for a pause."""
        held_for = self.held_for
        now = datetime.fromtimestamp(self._session.moment().wall, UTC)
        if held_for > self._client.longest or not (until := self._hold_notices.news(now, held_for)):
            return
        said = "%s: the service asked for a pause: nothing is submitted for %.0f s, until %s"
        logger.warning(said, self._target, held_for, f"{until:%Y-%m-%d %H:%M:%S} UTC")
        self.on_change()

    async def _begun(self, prepared: PreparedJob, entry: Entry, receipt: Submitted) -> Outcome:
        """See a run to its end, unless the ledger says that it is another job's: answers are mixed up on their way."""
        if entry.stage is Stage.UNKNOWN:
            self.met_unknown(prepared)
            error = intercepted(self._target, entry.note or "an answer of another run")
            self._stop_with(NotRunReason.INTERCEPTED, error)
            return outcome_of_entry(prepared.job, entry)
        self._count()
        return await self.wait(prepared, entry, self._client.begun(receipt, self._target))

    async def _unreachable(self, error: errors.ConnectionFailedError, outage: Outage) -> _Again:
        """Pause until the service can be reached again, and say so once."""
        if not self._is_away:
            self._is_away = True
            logger.warning("a batch waits for up to %.0f s until the service can be reached: %s", UNREACHABLE, error)
        return await self._pause(outage.pause())

    async def _limited(self, error: errors.RateLimitError) -> _Again:
        """Wait for the quota; a pause that is longer than is allowed ends the submitting instead."""
        if not error.is_pause:
            return await self._pause(60.0 if error.retry_after is None else error.retry_after)
        self._stop_with(NotRunReason.RATE_LIMITED, error)
        return _AGAIN

    async def _pause(self, seconds: float) -> _Again:
        if self._session.stopped_by is None:
            with self._leaving_line():
                await anyio.sleep(seconds)
        return _AGAIN

    def met_unknown(self, prepared: PreparedJob) -> None:
        """Take note of a job of which nobody knows whether it ran: stop, if that was asked for."""
        if self._on_unknown != "stop":
            return
        error = errors.KnoudsError(
            f"whether the job {prepared.job.key!r} ran is not known, and on_unknown='stop' was asked for: nothing more "
            "was submitted"
        )
        self.stop(NotRunReason.STOPPED, error)


class _Again:
    """The job is to be looked at anew."""


_AGAIN: Final = _Again()


def _refuse_run_of_another_target(state: ExecutionState, target: Target) -> None:
    """Raise for a run that certainly is none of this target; what the service does not say rules nothing out."""
    slug = state.workflow_slug
    if slug is not None and (target.kind != "workflows" or slug != target.name):
        said = f"execution {state.execution_id!r} is a run of workflows/{slug}, not of {target}"
        advice = "its result was not taken: `resolve` the job to the run it was, or `abandon` it"
        error = errors.KnoudsError(f"{said}; {advice}")
        error.may_have_run = True  # the job's own run, whichever it is
        raise error


def _reason(error: errors.KnoudsError) -> tuple[NotRunReason, bool]:
    """Give why a job was not run, and whether every other job would meet the same."""
    match error:
        case errors.PaymentRequiredError():
            return NotRunReason.BUDGET, True
        case errors.ConnectionFailedError():
            return NotRunReason.UNREACHABLE, True
        case errors.InvalidInputsError():
            return NotRunReason.INVALID, False
        case _:
            return NotRunReason.REFUSED, isinstance(error, _TARGET_WIDE)
