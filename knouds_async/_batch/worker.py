"""The jobs of one batch, each from its reading to its outcome: ledger, budget, submit with hooks, wait, ledger."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, TypeAlias

import anyio
import attrs

from knouds_async import errors
from knouds_async._batch.client import BatchClient
from knouds_async._batch.jobs import (
    Completed,
    Failed,
    JobOptions,
    LedgerLike,
    NotRun,
    NotRunReason,
    Outcome,
    PreparedJob,
    Unknown,
    ending_of,
    ending_of_result,
    outcome_of_entry,
    outcome_of_state,
    refusal,
    state_of_entry,
    utc,
)
from knouds_async._batch.ledger import Claim, Claimed, Doubted, Ledger, MemoryLedger, Taken, Written
from knouds_async._batch.sqlite import SQLiteLedger
from knouds_async._io.concurrency import Wakeup, read_clocks, uninterrupted
from knouds_async._io.pipeline import WITHHELD, Withheld
from knouds_async._sansio import endpoints
from knouds_async._sansio.clock import Moment, Reading
from knouds_async._sansio.estimate import RunLengths
from knouds_async._sansio.inputs import checked_execution_id
from knouds_async._sansio.ledger import (
    Accepted,
    Bounded,
    Ended,
    Ending,
    Entry,
    Event,
    Fit,
    IllegalStepError,
    Lost,
    NoneFound,
    NoRun,
    OwnerGone,
    Payer,
    PickedUp,
    Prices,
    Sending,
    Stage,
    Totals,
    fit_under_cap,
)
from knouds_async._sansio.reconcile import KnownRun, Wanted, inconclusive, may_be_of
from knouds_async._sansio.retry import Again, Decision, Done, Fail, Requeue
from knouds_async.config import Secret
from knouds_async.errors import KnoudsError
from knouds_async.execution import UNSEEN, Execution, with_timeout
from knouds_async.telemetry import fields
from knouds_async.types import ExecutionState, RunResult, SubmissionSearch, Submitted, Target, WorkflowSchema

logger = logging.getLogger("knouds_async")

Answer: TypeAlias = Submitted | RunResult | KnoudsError

_REREAD_INTERVAL: Final = 0.1  # seconds between two readings of a job that is being sent
UNREACHABLE: Final = 600.0  # seconds without a connection after which there is no hope
_LONGEST_REREAD: Final = 15.0  # seconds at most between two readings of what other batches on the ledger do
_LONGEST_PAUSE: Final = 60.0
_SHORT_PAUSE: Final = 5.0  # seconds: not worth a word
_GATEWAY_FAULTS: Final = 5  # answers of a proxy that got none itself (5xx, 408, 499), in a row
_SPAN: Final = 1200.0  # seconds before a submit: runs of that time may account for rows that are near it
_UNANSWERED: Final = (Stage.UNKNOWN, Stage.RESEND_APPROVED)  # nobody else has the job
_TARGET_WIDE: Final = (
    errors.AuthenticationError,
    errors.PermissionDeniedError,
    errors.NotFoundError,
    errors.InvalidSlugError,
)
"""Refusals that every further job would meet as well."""


def _ledger_of(ledger: LedgerLike | None) -> Ledger:
    if ledger is None:
        return MemoryLedger()
    if isinstance(ledger, Secret):
        from knouds_async._batch.postgres import Postgres  # it needs psycopg, which few have

        return Postgres(ledger)
    return SQLiteLedger(ledger) if isinstance(ledger, (str, os.PathLike)) else ledger


def _is_new_file(ledger: Ledger) -> bool:
    """Return whether a ledger is a file that is not there yet; it refuses itself a path that cannot be read."""
    with suppress(OSError):
        return isinstance(ledger, SQLiteLedger) and not ledger.path.exists()
    return False


class Worker:
    """Runs the jobs of one batch, each by `run_job`."""

    def __init__(self, client: BatchClient, target: Target, options: JobOptions) -> None:
        call, _ = with_timeout(endpoints.submit(target, {}, options.default), options.timeout)  # checks all three
        self.client, self.target, self.options, self.route = client, target, options, call.route
        self.ledger = _ledger_of(options.ledger)
        self.telemetry: Final = client.pipeline.telemetry
        self.on_change: Callable[[], None] = lambda: None
        self.owner = ""
        self.payer: Payer | None = None  # with a ledger
        self.schema: WorkflowSchema | None = None
        # The budget.
        self.totals, self.prices = Totals(), Prices()
        self._reserved = set[PreparedJob]()  # let through under the cap, and not on record yet
        self._in_flight = set[PreparedJob]()  # their runs are being sent or waited for
        self._unanswered = set[PreparedJob]()  # their submits are in flight, or what became of them is being written
        self._reserving = anyio.Lock()
        self._released = Wakeup()
        # Submitting.
        self.submitted = 0
        self.waiting = 0  # jobs that only wait: for another batch, or for a search
        self.stopped_by: tuple[NotRunReason, KnoudsError] | None = None
        self.is_stopped = False  # somebody asked for it: no further job is to be read either
        self._stopping = Wakeup()
        self.in_line = set[anyio.CancelScope]()  # of what `stop` may end: no paid request is in flight in them
        self.doubted: Doubted | None = None  # the ledger may lack runs: nothing is sent before that is settled
        self.last_sent = 0.0
        self._probing, self._is_probed = anyio.Lock(), False
        self._settling, self._searching = anyio.Lock(), anyio.Lock()
        self._away_since: float | None = None  # since when the service cannot be reached
        self._foreign_answers = 0  # in a row
        self._paused_until = -math.inf
        self.lengths = RunLengths()
        if options.expected is not None:
            self.lengths.add(options.expected)

    # Opening, closing, stopping.

    async def __aenter__(self) -> Worker:
        """Open it."""
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it, whatever happens to the caller."""
        finished = await uninterrupted(self.close)
        if finished.cancellation is not None:
            raise finished.cancellation

    async def open(self) -> None:
        """Learn what the inputs are to be, become an owner, and learn what was spent before; or close.

        For a new ledger all that the service may refuse comes first, so that no file is made for nothing.
        """
        self.last_sent = anyio.current_time()
        needs_schema = self.options.validate or self.options.max_credits is not None
        is_new = _is_new_file(self.ledger)
        try:
            if self.options.ledger is not None:
                self.payer = await self.client.payer()
            if needs_schema and is_new:
                await self.fetch_schema()
            await self._join()
            if needs_schema and not is_new:
                await self.fetch_schema()
        except BaseException as error:
            await self.__aexit__(type(error), error, None)
            raise

    async def _join(self) -> None:
        if self.payer is not None:
            await self.ledger.bind(self.payer)
        self.owner = await self.ledger.join()
        summary = await self.ledger.summary(str(self.target))
        self.totals = summary.totals
        self.prices = attrs.evolve(self.prices, ended=summary.runs, highest_cost=summary.highest_cost)

    async def fetch_schema(self) -> None:
        """Fetch what inputs are checked against, and the price of a run."""
        schema = await self.client.executions.schema(self.target, max_age=self.options.max_age)
        self.schema = schema if self.options.validate else None
        if schema is not None and (estimate := schema.estimated_credit_cost) is not None:
            self.prices = attrs.evolve(self.prices, estimate=max(0.0, float(estimate)))

    async def close(self) -> None:
        """Release every claim. What cannot be written is released by the end of the process."""
        try:
            if self.owner:
                owner, self.owner = self.owner, ""
                await self.ledger.leave(owner)
        except errors.LedgerError as error:
            logger.warning("%s", error, extra=fields("ledger_not_released", target=str(self.target)))
        finally:
            if isinstance(self.options.ledger, (str, os.PathLike)):  # a database's connection is its thread's to close
                await self.ledger.aclose()

    def stop(self, reason: NotRunReason, error: KnoudsError) -> None:
        """Submit nothing more: what is in line leaves it, what is in flight continues. The first reason counts.

        Idempotent: what it reports may ask for it again.
        """
        if self.stopped_by is not None and (self.is_stopped or reason is not NotRunReason.STOPPED):
            return
        self.stopped_by = self.stopped_by or (reason, error)
        self.is_stopped = self.is_stopped or reason is NotRunReason.STOPPED
        for scope in tuple(self.in_line):
            scope.cancel()
        self._released.notify()
        self._stopping.notify()
        self.on_change()

    def _stop_with_warning(self, reason: NotRunReason, error: KnoudsError) -> None:
        if self.stopped_by is None:
            extra = fields("batch_stopped", target=str(self.target), http_status=getattr(error, "status", None))
            logger.warning("a batch submits nothing more: %s", error, extra=extra)
            self.stop(reason, error)

    @contextmanager
    def _cancelled_by_stop(self) -> Iterator[anyio.CancelScope]:
        """Cancel what is done inside when the batch is stopped, or has been."""
        with anyio.CancelScope() as scope:
            self.in_line.add(scope)
            if self.stopped_by is not None:
                scope.cancel()
            try:
                yield scope
            finally:
                self.in_line.discard(scope)

    # One job, from where it stands to its outcome.

    async def run_job(self, prepared: PreparedJob) -> Outcome:
        """Return how a job ended. Cancelled: its run continues, and is on record if there is a ledger."""
        outcome: Outcome | None = None
        while outcome is None:
            entry = await self.ledger.look(prepared.job.key)
            outcome = refusal(prepared, entry, self.target, self.schema) or await self._continue(prepared, entry)
        return outcome

    async def _continue(self, prepared: PreparedJob, entry: Entry | None) -> Outcome | None:
        """Do what comes next for a job that stands so; None: it stands otherwise by now."""
        try:
            match entry:
                case None | Entry(stage=Stage.NEW):
                    return await self._run(prepared)
                case Entry(stage=Stage.SUBMITTED, owner=None):
                    return await self._pick_up(prepared, entry)
                case Entry(stage=Stage.SUBMITTED | Stage.SENDING):
                    return await self._leave_to_its_owner(prepared, entry)
                case Entry(stage=Stage.UNKNOWN):
                    return await self._search(prepared, entry)
                case _:
                    return outcome_of_entry(prepared.job, entry)
        finally:
            self._in_flight.discard(prepared)
            self._released.notify()

    # A job that never ran.

    async def _run(self, prepared: PreparedJob) -> Outcome | None:
        """Run a job that never ran: reserve credits, submit it, wait for its run."""
        submit, outcome = Submit(self, prepared), None
        if await self._reserve(prepared) and (answer := await self._send(submit)) is not None:
            outcome = await self._follow(submit, answer)
        is_new = submit.entry is None or submit.entry.stage is Stage.NEW
        if outcome is None and is_new and self.stopped_by is not None:
            reason, error = self.stopped_by
            outcome = NotRun(job=prepared.job, reason=reason, error=error)
        return outcome

    async def _reserve(self, prepared: PreparedJob) -> bool:
        """Wait until one more run fits under the cap, and reserve credits for it; False: the batch has stopped.

        First come, first served. It stops the batch when no further run can fit.
        """
        cap, is_fresh, pause = self.options.max_credits, False, 0.0
        if cap is None:
            return self.stopped_by is None
        async with self._reserving:
            while self.stopped_by is None:
                queued, ended = len(self._reserved), self.prices.ended
                begun = len(self._in_flight) + queued
                fit = fit_under_cap(self.totals, self.prices.price, cap, queued=queued, in_flight=begun, ended=ended)
                if fit is Fit.NOW:
                    self._reserved.add(prepared)
                    return True
                if fit is Fit.NEVER or (begun == 0 and is_fresh):
                    self.stop(NotRunReason.BUDGET, self._spent(cap))
                elif begun > 0:
                    is_fresh = False
                    await self._released.wait()
                else:  # others may have spent less than they reserved, or will; what was written came back late
                    with anyio.move_on_after(pause):
                        await self._released.wait()
                    summary = await self.ledger.summary(str(self.target))
                    self.totals, is_fresh = summary.totals, summary.in_flight == 0
                    pause = min(_LONGEST_REREAD, max(1.0, pause * 1.5))
        return False

    def _spent(self, cap: float) -> errors.BudgetExceededError:
        price = self.prices.price
        cost = "at a price that is not known" if price is None else f"of {price:.12g} credits"
        unpriced = f", and what {self.totals.unpriced} of the runs cost is not known" if self.totals.unpriced else ""
        return errors.BudgetExceededError(
            f"another run {cost} could pass max_credits={cap:.12g}: {self.totals.spent:.12g} credits are spent and "
            f"{self.totals.reserved:.12g} are reserved for runs in flight or unknown{unpriced}. Nothing more was "
            "submitted"
        )

    async def _send(self, submit: Submit) -> Answer | None:
        """Submit a job, the first one alone: should the target refuse it, no turn of the others is wasted.

        None: it was withheld, or it left the line; nothing of it is in flight. Of half a receipt the id is enough.
        """
        answer: Answer | None = None
        try:
            with self._cancelled_by_stop() as submit.scope:
                await self._prepare()
                answer = await self._send_in_turn(submit)
        except (errors.LedgerError, errors.ClientClosedError, errors.WrongEventLoopError):
            raise
        except errors.SubmissionUnknownError as error:
            execution_id = error.execution_id
            return error.with_traceback(None) if execution_id is None else Submitted(execution_id=execution_id)
        except KnoudsError as error:
            return error.with_traceback(None)
        finally:
            await submit.settle()
        return answer

    async def _send_in_turn(self, submit: Submit) -> Submitted | RunResult | None:
        if self._goes_alone:
            async with self._probing:
                if self._goes_alone:
                    return await self._send_once(submit)
        return await self._send_once(submit)

    @property
    def _goes_alone(self) -> bool:
        """Whether nobody knows yet if the target refuses all; others would wait for the whole of a synchronous run."""
        return not self._is_probed and self.target not in self.client.one_go

    async def _send_once(self, submit: Submit) -> Submitted | RunResult | None:
        self._log_pause()
        is_one_go = not submit.needs_id and self.target in self.client.one_go
        submit.lasts = self.client.timeouts.run if is_one_go else 0.0
        make: Callable[..., endpoints.Call[Any]] = endpoints.run if is_one_go else endpoints.submit
        call, total = with_timeout(make(self.target, submit.prepared.inputs), self.options.timeout)
        return await self.client.pipeline.send(call, total=total, hooks=submit)

    async def _follow(self, submit: Submit, answer: Answer) -> Outcome | None:
        """Follow a job to its end once its submit is answered; None: it began no run, or somebody else has the job."""
        prepared, entry = submit.prepared, submit.entry
        self._is_probed = self._is_probed or not isinstance(answer, errors.ConnectionFailedError)
        match answer:
            case Submitted() if entry is not None:
                return await self._begun(prepared, entry, answer)
            case RunResult() if entry is not None:
                self._count(answer.ms)
                if entry.ending == ending_of_result(answer):
                    return outcome_of_entry(prepared.job, entry, from_ledger=False)
                self._log_second_run(prepared, answer)
            case errors.ExecutionFailedError():
                self._count()
                return Failed(job=prepared.job, error=answer)
            case KnoudsError(may_have_run=True) if entry is None or entry.stage in _UNANSWERED:
                self._on_unknown(prepared)
                return Unknown(job=prepared.job, error=answer, sent_at=getattr(answer, "sent_at", submit.sent_at))
            case KnoudsError(may_have_run=True):
                self._log_unknown(prepared, answer)
            case KnoudsError() if entry is None or entry.stage is Stage.NEW:
                return await self._refused(submit, answer)
        return None

    async def _begun(self, prepared: PreparedJob, entry: Entry, receipt: Submitted) -> Outcome | None:
        """Follow a run to its end, unless the ledger says that it is another job's: answers are mixed up on their way.

        Or that another batch has the job: one whose ledger took this one for gone. Then the run is paid for nothing.
        """
        if entry.stage is Stage.UNKNOWN and entry.owner == self.owner:
            error = intercepted(self.target, entry.note or "an answer of another run")
            self._stop_with_warning(NotRunReason.INTERCEPTED, error)
            return outcome_of_entry(prepared.job, entry)
        self._count()
        if entry.execution_id != receipt.execution_id:
            self._log_second_run(prepared, receipt)
            return None
        execution = self.client.executions.from_receipt(receipt, self.target, self.options.expected, is_reported=True)
        began = anyio.current_time()
        outcome = await self._wait(prepared, entry, execution)
        if not isinstance(outcome, Unknown):
            self.lengths.add(anyio.current_time() - began)
        return outcome

    async def _wait(self, prepared: PreparedJob, entry: Entry, execution: Execution) -> Outcome:
        """Wait for a run to finish and record its end; polls that fail are repeated for as long as that may help."""
        try:
            state = await execution.wait(timeout=math.inf)
            if entry.note is not None:  # somebody named the run
                _refuse_run_of_another_target(state, self.target)
        except errors.ClientClosedError:
            raise
        except KnoudsError as error:
            if self.payer is not None:  # another batch that waits for this job, or the next one, may try
                await self.record(entry, OwnerGone(owner=self.owner))
            failure = error.with_traceback(None)
            return Unknown(job=prepared.job, error=failure, sent_at=utc(entry.sent_at), execution_id=execution.id)
        await self.record(entry, Ended(ending_of(state, is_kept=self.payer is not None)))
        return outcome_of_state(prepared.job, state)

    async def save(self, outcome: Completed) -> Completed:
        """Return an outcome with its files, which are in the folder then, or with what was in the way: no end of it."""
        if self.options.save is None:
            return outcome
        try:
            with self._counted_as_waiting():
                return attrs.evolve(outcome, files=await self.client.save(outcome.run, self.options.save))
        except Exception as error:  # noqa: BLE001  (the run is paid for, and completed: nothing else may lose it)
            run = f" (execution {outcome.execution_id})" if outcome.execution_id else ""
            message = "the files of job %r%s were not all saved, and its result has their addresses: %s"
            extra = fields("files_not_saved", job_key=outcome.job.key, execution_id=outcome.execution_id)
            logger.warning(message, outcome.job.key, run, error, extra=extra)
            return attrs.evolve(outcome, save_error=error.with_traceback(None))

    # A job that is on record.

    async def _pick_up(self, prepared: PreparedJob, entry: Entry) -> Outcome | None:
        """Wait for a run that nobody waits for; None: somebody else does by now."""
        if (picked := await self.record(entry, PickedUp(self.owner))) is None:
            return None
        self._in_flight.add(prepared)
        expected = self.options.expected
        execution = self.client.executions.attach(_unseen(picked), self.target, expected=expected, is_reported=True)
        return await self._wait(prepared, picked, execution)

    async def _leave_to_its_owner(self, prepared: PreparedJob, entry: Entry) -> Unknown | None:
        """Wait until another batch is done with the job, or no more; not once somebody has asked this one to stop."""
        pause = 1.0
        with self._counted_as_waiting():
            while not self.is_stopped:
                with anyio.move_on_after(pause):
                    await self._stopping.wait()
                found = await self.ledger.look(prepared.job.key)
                if found is None or found.stage not in (Stage.SENDING, Stage.SUBMITTED) or found.owner is None:
                    return None
                pause, entry = min(_LONGEST_REREAD, pause * 1.5), found
        error = KnoudsError(f"another batch has the job {prepared.job.key!r}, and this one was stopped before its end")
        error.may_have_run = True
        sent_at, execution_id = utc(entry.sent_at), entry.execution_id
        return Unknown(job=prepared.job, error=error, sent_at=sent_at, execution_id=execution_id, is_elsewhere=True)

    async def _search(self, prepared: PreparedJob, entry: Entry) -> Outcome | None:
        """Search for proof that an unknown submit began no run; it never picks one of several that could be it.

        None: it began none, or somebody has decided about it meanwhile.
        """
        with self._counted_as_waiting():
            async with self._searching:  # each may read many pages of rows
                with suppress(errors.ConnectionFailedError):
                    await self.client.pipeline.ask_for_time()
                if entry.until is None or not entry.until.is_known:  # its owner was found gone when no time was known
                    bounded = await self.record(entry, Bounded(entry.sent_at, self.moment()))
                    if bounded is None:
                        return None
                    entry = bounded
                found = await self._evidence(entry)
        if found.is_certainly_none:
            await self.record(entry, NoneFound(entry.sent_at))
            return None
        self._on_unknown(prepared)
        return outcome_of_entry(prepared.job, entry, open_because=_why(found))

    async def _evidence(self, entry: Entry) -> SubmissionSearch:
        """Return what usage rows prove of an unknown submit."""
        bounds, account = entry.may_have_begun, entry.account
        if bounds is None:
            return inconclusive("when it can have begun a run is not known by the service's clock")
        if account is None or account != self._account:
            return inconclusive("it is not known to be a submit of this account")
        wanted = Wanted(target=self.target, earliest=bounds[0], latest=bounds[1])
        if (too_early := wanted.not_yet(self.moment())) is not None:
            return inconclusive(too_early)

        async def known() -> Sequence[KnownRun]:
            await self._answers()
            return await self.ledger.known_runs(str(self.target), account, wanted.earliest - _SPAN)

        return await self.client.search(wanted, known)

    async def _answers(self) -> None:
        """Wait until the submits that are in flight are answered: rows may show their runs before they are known."""
        unanswered = set(self._unanswered)
        while unanswered & self._unanswered:
            await self._released.wait()

    # The run of a key.

    async def submit_job(self, prepared: PreparedJob) -> Execution:
        """Return the handle of a job's run: the one that its key has, or a new one; see `Workflows.submit`."""
        while True:
            entry = await self.ledger.look(prepared.job.key)
            if (refused := refusal(prepared, entry, self.target)) is not None:
                raise refused.error
            match entry:
                case None | Entry(stage=Stage.NEW):
                    if (execution := await self._submit(prepared)) is not None:
                        return execution
                case Entry(stage=Stage.SENDING):
                    await anyio.sleep(_REREAD_INTERVAL)
                case Entry(execution_id=str()):
                    return self.client.executions.attach(state_of_entry(entry) or _unseen(entry), self.target)
                case Entry(stage=Stage.UNKNOWN):
                    if (unknown := await self._search(prepared, entry)) is not None:
                        raise _error_of(unknown)
                case _:
                    raise _error_of(outcome_of_entry(prepared.job, entry))

    async def _submit(self, prepared: PreparedJob) -> Execution | None:
        """Submit a job that never ran; None: it was withheld, or another has it by now."""
        submit = Submit(self, prepared, needs_id=True)
        answer = await self._send(submit)
        has_run = submit.entry is not None and submit.entry.execution_id is not None  # another's, who took the job over
        if isinstance(answer, KnoudsError) and not has_run:
            raise answer
        if not isinstance(answer, Submitted) or submit.entry is None or submit.entry.stage is Stage.UNKNOWN:
            return None
        return self.client.executions.from_receipt(answer, self.target, self.options.expected)

    # What stands in the way of a submit.

    def on_attempt(self, decision: Decision) -> None:
        """Learn from an attempt, before the ledger does: what answers in the service's place ends the submitting.

        A gateway that finds the service away (5xx, 408, 499) is borne a few times; a page in between is not: each
        such answer leaves a job unknown.
        """
        match decision:
            case Fail(errors.SubmissionUnknownError(intermediary=str() as who, status=status)):
                self._foreign_answers += 1
                is_passing = status is not None and (status >= 500 or status in (408, 499))
                if not is_passing or self._foreign_answers >= _GATEWAY_FAULTS:
                    self._stop_with_warning(NotRunReason.INTERCEPTED, intercepted(self.target, who))
            case Done() | Requeue() | Fail(errors.APIError()):  # the service itself
                self._foreign_answers, self._away_since = 0, None
        if isinstance(decision, Fail) and isinstance(decision.error, errors.AsyncNotSupportedError):
            self.client.one_go.add(self.target)
        if isinstance(decision, Requeue):
            self._log_pause()

    async def _refused(self, submit: Submit, error: KnoudsError) -> NotRun | None:
        """Decide what follows from a submit that certainly began no run; None: it is sent again."""
        away_for = 0.0 if self._away_since is None else anyio.current_time() - self._away_since
        match error:
            case errors.AsyncNotSupportedError() if not submit.lasts:
                pass  # next time it is sent to run in one go
            case errors.RateLimitError() if error.is_pause:
                self._stop_with_warning(NotRunReason.RATE_LIMITED, error)
            case errors.RateLimitError():
                await self._pause(60.0 if error.retry_after is None else error.retry_after)
            case errors.ConnectionFailedError() if not error.is_lasting and away_for <= UNREACHABLE:
                if self._away_since is None:
                    self._away_since = anyio.current_time()
                    message = "a batch waits for up to %.0f s until the service can be reached: %s"
                    extra = fields("service_unreachable", target=str(self.target))
                    logger.warning(message, UNREACHABLE, error, extra=extra)
                await self._pause(min(_LONGEST_PAUSE, max(1.0, away_for)))
            case _:
                reason, is_for_all = _reason(error)
                if is_for_all:
                    self.stop(reason, error)
                return NotRun(job=submit.prepared.job, reason=reason, error=error)
        return None

    async def _pause(self, seconds: float) -> None:
        with self._cancelled_by_stop():
            await anyio.sleep(seconds)

    async def _prepare(self) -> None:
        """Learn the service's time, and settle whether the ledger lacks runs; LedgerError where that stays open."""
        if self.is_undated or self.doubted is not None:
            async with self._settling:
                await self.client.pipeline.ask_for_time()
                if self.doubted is not None:
                    await self.client.settle(self.doubted, self.target, self._account)
                    self.doubted = None

    @property
    def is_undated(self) -> bool:
        """Whether to ask the service for its time before anything is sent: only what is dated can be proven."""
        return self.payer is not None and self.client.pipeline.time.is_worth_asking()

    def moment(self) -> Moment:
        """Return this moment, dated by the service's clock as certainly as it can be."""
        return self.client.pipeline.time.moment()

    @property
    def _account(self) -> str | None:
        return None if self.payer is None else self.payer.account

    # The ledger.

    async def claim(self, submit: Submit, sent_at: float) -> Claimed:
        """Write the intent to send a job: from here on it is in flight."""
        prepared = submit.prepared
        sending = Sending(
            owner=self.owner,
            sent_at=sent_at,
            reserve=self.prices.price,
            since=self.moment(),
            lasts=submit.lasts,
            account=self._account,
        )
        claim = Claim(
            key=prepared.job.key,
            target=str(self.target),
            digest=prepared.digest,
            sending=sending,
            cap=self.options.max_credits,
        )
        claimed = await self.ledger.claim(claim)
        if isinstance(claimed, Doubted):
            self.doubted = claimed
        elif not isinstance(claimed, Taken):
            self.totals, self.prices = claimed.totals, self.prices.seen(claimed.highest_cost)
        if isinstance(claimed, Written):
            self.release(prepared)
            self._in_flight.add(prepared)
            self._unanswered.add(prepared)
        return claimed

    def release(self, prepared: PreparedJob) -> None:
        """Note that no request of a job is in flight, and that no credits are reserved for it but those on record."""
        self._reserved.discard(prepared)
        self._unanswered.discard(prepared)
        self._released.notify()

    async def record(self, entry: Entry, event: Event) -> Entry | None:
        """Write what has become of an entry, and learn its cost; None when another batch, or a person, was faster.

        An error says if it was of a run that may be paid.
        """
        try:
            written = await self.ledger.record(entry.key, entry.attempt, event)
        except IllegalStepError:
            return None
        except KnoudsError as error:  # one of the ledger's is no answer to a submit, which would be sent again
            failure = error if isinstance(error, errors.LedgerError) else errors.LedgerError(str(error))
            failure.may_have_run = failure.may_have_run or isinstance(event, (Accepted, Ended, Lost))
            raise failure.with_traceback(None) from None
        self.totals = written.totals
        if written.entry.ending is not None and entry.ending is None:
            self.prices = self.prices.paid(written.entry.ending.cost)
        self.prices = self.prices.seen(written.highest_cost)
        self._released.notify()
        return written.entry

    # What is counted and logged.

    @property
    def in_flight(self) -> int:
        """Runs of this batch that are being sent or waited for."""
        return len(self._in_flight)

    @property
    def held_for(self) -> float:
        """The seconds for which the service asked that nothing be submitted, beyond the rest of a used-up window."""
        stats = self.client.limiter.stats(self.route)
        return stats.held_for if stats.is_pause else 0.0

    @contextmanager
    def _counted_as_waiting(self) -> Iterator[None]:
        """Make room for another job while this one only waits."""
        self.waiting += 1
        self.on_change()
        try:
            yield
        finally:
            self.waiting -= 1

    def _count(self, ms: float | None = None) -> None:
        self.submitted += 1
        if ms is not None:
            self.lengths.add(ms / 1000)
        self.on_change()

    def _on_unknown(self, prepared: PreparedJob) -> None:
        """Stop at a job of which nobody knows whether it ran, if that was asked for."""
        if self.options.on_unknown == "stop":
            error = KnoudsError(
                f"whether the job {prepared.job.key!r} ran is not known, and on_unknown='stop' was asked for: nothing "
                "more was submitted"
            )
            self.stop(NotRunReason.STOPPED, error)

    def _log_pause(self) -> None:
        """Log once what is waited for when the service has asked for a pause."""
        if not _SHORT_PAUSE <= (held_for := self.held_for) <= self.client.retries.longest:
            return
        until = (now := self.moment().wall) + held_for
        if until < max(now, self._paused_until) + _SHORT_PAUSE:
            return
        self._paused_until = until
        message = "%s: the service asked for a pause: nothing is submitted for %.0f s, until %s"
        until_utc = f"{datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M:%S} UTC"
        extra = fields("service_paused", target=str(self.target), route=self.route, wait=held_for)
        logger.warning(message, self.target, held_for, until_utc, extra=extra)
        self.on_change()

    def _log_second_run(self, prepared: PreparedJob, run: Submitted | RunResult) -> None:
        """Log a run that was paid for beside the one that its job has on record."""
        if isinstance(run, Submitted):
            advice = f"knouds.executions.attach({run.execution_id!r}) picks it up"
        else:
            cost = "what it cost is not known" if run.cost is None else f"it cost {run.cost:.12g} credits"
            advice = f"{cost}, and its result is not kept"
        logger.error(
            "%s of %s was begun for job %r, which another batch has by now: it is charged as well, and %s",
            f"execution {run.execution_id}" if run.execution_id else "a synchronous run",
            self.target,
            prepared.job.key,
            advice,
            extra=fields(
                "paid_twice",
                target=str(self.target),
                execution_id=run.execution_id,
                request_id=getattr(run, "request_id", None),
                job_key=prepared.job.key,
            ),
        )

    def _log_unknown(self, prepared: PreparedJob, error: KnoudsError) -> None:
        """Log a submit that may have begun a run beside the one that its job has on record."""
        message = "job %r, which another batch has by now, or somebody has decided about, may have run as well: %s"
        extra = fields("submit_unknown", target=str(self.target), job_key=prepared.job.key)
        logger.warning(message, prepared.job.key, error, extra=extra)


class Submit:
    """The submit of one job, as hooks of its request: they record what it does before anybody else hears of it.

    `entry`: the job as it is on record, once the intent is, or as another owner has it. `scope`: of the wait for a
    turn, in the worker's `in_line` while no request is in flight. `lasts`: seconds within which a synchronous run may
    still end.
    """

    def __init__(self, worker: Worker, prepared: PreparedJob, *, needs_id: bool = False) -> None:
        self._worker = worker
        self._is_claiming = False  # its claim may be on record
        self._is_sent = False  # its request may have left, and is not answered
        self.prepared = prepared
        self.key: Final = prepared.job.key  # for its span
        self.name: Final = f"job {self.key!r:.100}"  # whose request it is
        self.needs_id = needs_id
        self.scope: anyio.CancelScope
        self.entry: Entry | None = None
        self.sent_at: datetime | None = None
        self.lasts = 0.0

    async def before_send(self, sent_at: datetime) -> Reading | Withheld:
        """Write the intent and return when that was.

        Withheld when the batch has stopped, the service's time is to be asked first, the ledger may lack runs, another
        owner has the job, or the credits do not suffice.
        """
        worker = self._worker
        if worker.stopped_by is not None or worker.is_undated or worker.doubted is not None:
            return WITHHELD
        self.sent_at, self._is_claiming, began = sent_at, True, read_clocks()
        claimed = await worker.claim(self, sent_at.timestamp())
        self._is_claiming = False
        if isinstance(claimed, (Taken, Written)):
            self.entry = claimed.entry
        if not isinstance(claimed, Written) or worker.stopped_by is not None:  # meanwhile; nothing checks again
            return WITHHELD
        worker.in_line.discard(self.scope)
        self._is_sent = True
        worker.last_sent = anyio.current_time()
        return attrs.evolve(claimed.committed or began, loop=worker.last_sent)

    async def after_attempt(self, decision: Decision) -> None:
        """Write what became of an attempt; one that is to be made again is still being sent, unless all has stopped."""
        worker = self._worker
        try:
            worker.on_attempt(decision)
        finally:  # a log handler of the caller's that fails must not cost an id
            if isinstance(decision, (Again, Requeue)):
                self._is_sent = False
                worker.in_line.add(self.scope)
                worker.release(self.prepared)
                if worker.stopped_by is not None:
                    self.scope.cancel()
            else:
                await self._write(self._event(decision))

    def _event(self, decision: Done[Any] | Fail) -> Event:
        owner, now = self._worker.owner, self._worker.moment
        match decision:
            case Done(Submitted() as receipt):
                found, request_id = receipt.execution_id, receipt.request_id
                return Accepted(owner=owner, execution_id=found, request_id=request_id, until=now())
            case Done(run):
                return Ended(ending_of_result(run))
            case Fail(errors.ExecutionFailedError() as failed):
                return Ended(Ending(status="failed", code=failed.code, message=failed.message))
            case Fail(errors.SubmissionUnknownError(execution_id=str() as found)):  # of the receipt, that much came
                return Accepted(owner=owner, execution_id=found, until=now())
            case Fail(error) if not error.may_have_run:
                return NoRun(owner)
            case Fail(error):
                return Lost(owner, str(getattr(error, "seen", None) or error), now())

    async def settle(self) -> None:
        """Write what became of a submit that left the line or was cut, whatever happens to the caller."""
        worker = self._worker
        try:
            with anyio.CancelScope(shield=True):
                if self._is_claiming:  # it was cut meanwhile
                    self.entry = await worker.ledger.look(self.key)
                if self.entry is not None and self.entry.stage is Stage.SENDING:  # of another owner it changes nothing
                    cut = Lost(worker.owner, "it was cut before its answer", worker.moment())
                    await self._write(cut if self._is_sent else NoRun(worker.owner))
        finally:
            worker.release(self.prepared)

    async def _write(self, event: Event) -> None:
        entry, self.entry = self.entry, None  # what cannot be written is not tried again
        if entry is not None:
            self.entry = await self._worker.record(entry, event) or entry


def intercepted(target: Target, who: str) -> errors.ConnectionFailedError:
    """Return the error of jobs that are not sent because somebody answers in the service's place."""
    return errors.ConnectionFailedError(
        f"{target}: not sent: something between here and the service answers in its place ({who}). Nothing more is "
        "submitted: look what stands in between (a proxy, a firewall, a login page), then run the rest"
    )


def _refuse_run_of_another_target(state: ExecutionState, target: Target) -> None:
    """Raise for a run that certainly is none of this target."""
    slug, models = state.workflow_slug, state.model_ids
    if not may_be_of(target, slug, models):
        what = ", ".join(f"models/{name}" for name in models) if slug is None else f"workflows/{slug}"
        message = f"execution {state.execution_id!r} is a run of {what}, not of {target}"
        advice = "its result was not taken: `resolve` the job to the run it was, or `abandon` it"
        error = KnoudsError(f"{message}; {advice}")
        error.may_have_run = True  # the job's own run, whichever it is
        raise error


def _reason(error: KnoudsError) -> tuple[NotRunReason, bool]:
    """Return why a job was not run, and whether every other job would meet the same."""
    match error:
        case errors.PaymentRequiredError():
            return NotRunReason.BUDGET, True
        case errors.ConnectionFailedError():
            return NotRunReason.UNREACHABLE, True
        case errors.InvalidInputsError():
            return NotRunReason.INVALID, False
        case _:
            return NotRunReason.REFUSED, isinstance(error, _TARGET_WIDE)


def _error_of(outcome: Outcome) -> KnoudsError:
    """Return why an outcome is no run that could be waited for."""
    error = getattr(outcome, "error", None)
    if isinstance(error, KnoudsError):
        return error
    return errors.InvalidArgumentError(f"job {outcome.job.key!r} was run without an id: there is no handle of it")


def _unseen(entry: Entry) -> ExecutionState:
    """Return the state of a run before its first poll."""
    return ExecutionState(execution_id=checked_execution_id(entry.execution_id or ""), status=UNSEEN)


def _why(search: SubmissionSearch) -> list[str]:
    rows = [f"usage row {row.id} ({row.status}, request {row.request_id}) could be it" for row in search.candidates[:3]]
    return [*rows, *search.reasons]
