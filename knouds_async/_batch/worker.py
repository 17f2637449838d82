"""One job of a batch, from its reading to its outcome: ledger, budget, submit, wait, ledger."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import partial
from typing import Any, Final, Literal

import anyio
import attrs

from knouds_async import errors
from knouds_async._batch.jobs import (
    Failed,
    NotRun,
    NotRunReason,
    Outcome,
    PreparedJob,
    Unknown,
    ending_of,
    ending_of_failure,
    ending_of_result,
    outcome_of_entry,
    outcome_of_state,
)
from knouds_async._batch.ledger import Claim, Claimed, Ledger, OverBudget, Taken, Written
from knouds_async._io.concurrency import ServiceTime, read_clocks
from knouds_async._io.limiter import LimiterStats
from knouds_async._io.pipeline import Decision, Pipeline
from knouds_async._sansio import endpoints
from knouds_async._sansio.clock import Moment, Reading
from knouds_async._sansio.inputs import input_errors
from knouds_async._sansio.ledger import (
    Accepted,
    Ended,
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
    exceeds_experience,
    fit_under_cap,
    highest_known,
)
from knouds_async._sansio.reconcile import Wanted
from knouds_async._sansio.retry import Again, Done, Fail, Requeue
from knouds_async.errors import (
    APIError,
    BudgetExceededError,
    ConnectionFailedError,
    ExecutionFailedError,
    KnoudsError,
    LedgerError,
    NotFoundError,
    PermissionDeniedError,
    SubmissionUnknownError,
)
from knouds_async.execution import Execution
from knouds_async.types import ExecutionState, RunResult, SubmissionSearch, Submitted, Target, WorkflowSchema


@attrs.frozen(eq=False, repr=False)
class BatchClient:
    """Send calls, get the handle of a run, search the usage rows, ask for time and quotas and whose key this is.

    `begun` takes a receipt and its target, `attach` an id and its target. `run_lasts`: seconds that a synchronous run
    may take. `longest`: seconds of the longest pause that calls bear. `one_go`: the targets whose provider cannot be
    polled, as far as this client has learned.
    """

    pipeline: Pipeline
    begun: Callable[..., Execution]
    attach: Callable[..., Execution]
    search: Callable[[Wanted], Awaitable[SubmissionSearch]]
    base_url: str
    run_lasts: float
    stats: Callable[[str], LimiterStats]
    longest: float
    one_go: set[Target] = attrs.field(factory=set)
    _payers: list[Payer] = attrs.field(factory=list)  # the one, once it is known

    def expecting(self, seconds: float | None) -> BatchClient:
        """Return the same service, whose runs should take so long."""
        begun, attach = partial(self.begun, expected=seconds), partial(self.attach, expected=seconds)
        return attrs.evolve(self, begun=begun, attach=attach)

    async def payer(self) -> Payer:
        """Return whose key this is, and of which service; asked once. A service that does not say leaves it open."""
        if not self._payers:
            try:
                user = (await self.pipeline.send(endpoints.whoami())).id
            except (NotFoundError, PermissionDeniedError) as error:
                if error.status == 403 and not error.from_service:  # what stands in between would answer the runs too
                    raise
                user = None
            self._payers.append(Payer(user=user, base_url=self.base_url))
        return self._payers[0]


UNREACHABLE: Final = 600.0  # seconds
_FIRST_PAUSE: Final = 1.0
_SHORT_PAUSE: Final = 5.0
_GATEWAY_FAULTS: Final = 5  # answers of a proxy that got none itself (5xx, 408, 499), in a row


class Outage:
    """A service that cannot be reached: since when, and how long to pause."""

    def __init__(self) -> None:
        """Know of none yet."""
        self._since: float | None = None
        self._pause = _FIRST_PAUSE

    def is_too_long(self, now: float) -> bool:
        """Return whether it has lasted for so long that there is no hope."""
        self._since = now if self._since is None else self._since
        return now - self._since > UNREACHABLE

    def pause(self) -> float:
        """Return the next pause, each longer than the last."""
        now, self._pause = self._pause, min(60.0, self._pause * 2)
        return now


class ForeignAnswers:
    """Answers to submits that are not the service's own: each leaves a job unknown, so few are borne."""

    def __init__(self) -> None:
        """Start without any."""
        self._in_a_row = 0

    def saw(self, decision: Decision) -> str | None:
        """Note an attempt; give who answered where nothing more should be submitted.

        A gateway that finds the service away (5xx, 408, 499) is borne a few times; a page in between is not.
        """
        match decision:
            case Fail(SubmissionUnknownError(intermediary=str() as who, status=status)):
                self._in_a_row += 1
                is_passing = status is not None and (status >= 500 or status in (408, 499))
                return who if not is_passing or self._in_a_row >= _GATEWAY_FAULTS else None
            case Done() | Requeue() | Fail(APIError()):
                self._in_a_row = 0
        return None


class HoldNotices:
    """Pauses that the service asked for: each is worth a word once."""

    def __init__(self) -> None:
        """Know of none yet."""
        self._until: datetime | None = None

    def news(self, now: datetime, held_for: float) -> datetime | None:
        """Return until when a pause lasts, if it is longer than what is known; a short one is not worth a word."""
        until = now + timedelta(seconds=held_for)
        known = now if self._until is None else max(now, self._until)
        if until < known + timedelta(seconds=_SHORT_PAUSE):
            return None
        self._until = until
        return until


def intercepted(target: Target, who: str) -> ConnectionFailedError:
    """Make the error of jobs that are not sent because somebody answers in the service's place."""
    return ConnectionFailedError(
        f"{target}: not sent: something between here and the service answers in its place ({who}). Nothing more is "
        "submitted: look what stands in between (a proxy, a firewall, a login page), then run the rest"
    )


logger = logging.getLogger("knouds_async")


@attrs.frozen
class StopReason:
    """Why nothing more is submitted."""

    reason: NotRunReason
    error: KnoudsError


@attrs.frozen
class Reservation:
    """Credits that are reserved for a run, None: its price is not known."""

    credits: float | None


class LedgerSession:
    """What one batch has on record."""

    def __init__(self, ledger: Ledger, target: str, cap: float | None, time: ServiceTime, *, is_own: bool) -> None:
        """Keep the record of a batch of runs of `target`, with at most `cap` credits; `is_own`: close the ledger."""
        self._is_own = is_own
        self._time = time
        self.payer: Payer | None = None  # whose they are, where the ledger outlives the batch
        self.ledger = ledger
        self.target = target
        self.cap = cap
        self.owner = ""
        self.totals = Totals()
        self.prices = Prices()
        self.out = 0  # runs of this batch that are being sent or waited for
        self.stopped_by: StopReason | None = None
        self._queued = 0  # jobs that were let through and are not on record yet
        self._reserving: anyio.Lock | None = None
        self._changed: anyio.Event | None = None

    async def open(self, payer: Payer | None = None) -> None:
        """Become an owner, and learn what was spent before; `payer`: None for a ledger that goes with the batch."""
        self._reserving, self._changed = anyio.Lock(), anyio.Event()
        if payer is not None:
            await self.ledger.bind(payer)
        self.payer = payer
        self.owner = await self.ledger.join()
        summary = await self.ledger.summary(self.target)
        self.totals = summary.totals
        self.prices = attrs.evolve(self.prices, ended=summary.runs, highest_cost=summary.highest_cost)

    async def close(self) -> None:
        """Release every claim. What cannot be written is released by the end of the process."""
        try:
            if self.owner:
                owner, self.owner = self.owner, ""
                await self.ledger.leave(owner)
        except LedgerError as error:
            logger.warning("%s", error)
        finally:
            if self._is_own:
                await self.ledger.aclose()

    def expect(self, estimate: float | None) -> None:
        """Take the workflow's own estimate of a run's cost, in credits."""
        self.prices = attrs.evolve(self.prices, estimate=None if estimate is None else max(0.0, float(estimate)))

    def stop(self, reason: NotRunReason, error: KnoudsError) -> None:
        """Submit nothing more; the first reason counts."""
        if self.stopped_by is None:
            self.stopped_by = StopReason(reason, error)
        self.notify()

    def begin(self) -> None:
        """Count a run that is out."""
        self.out += 1

    def end(self) -> None:
        """Count it no more."""
        self.out -= 1
        self.notify()

    def notify(self) -> None:
        """Wake those who wait for credits."""
        if self._changed is not None:
            self._changed.set()
            self._changed = anyio.Event()

    def moment(self) -> Moment:
        """Return this moment, dated by the service's clock as certainly as it can be."""
        return self._time.moment()

    @property
    def needs_time(self) -> bool:
        """Whether to ask the service for its time before anything is sent: only what is dated can be proven."""
        return self.payer is not None and self._time.is_worth_asking()

    async def claim(
        self, prepared: PreparedJob, sent_at: float, since: Moment, reservation: Reservation, lasts: float
    ) -> Claimed:
        """Write the intent to send a job; `since`: a moment before, `lasts`: seconds a synchronous run may take."""
        sending = Sending(
            owner=self.owner,
            sent_at=sent_at,
            reserve=highest_known(reservation.credits, self.prices.price),
            since=since,
            lasts=lasts,
            account=None if self.payer is None else self.payer.account,
        )
        claim = Claim(key=prepared.job.key, target=self.target, digest=prepared.digest, sending=sending, cap=self.cap)
        claimed = await self.ledger.claim(claim)
        if isinstance(claimed, (Written, OverBudget)):
            self.totals, self.prices = claimed.totals, self.prices.seen(claimed.highest_cost)
        return claimed

    async def record(self, entry: Entry, event: Event) -> Entry:
        """Write what has become of an entry, and learn its cost; the error says if it was of a run that may be paid."""
        try:
            return await self._record(entry, event)
        except IllegalStepError as error:
            failure = LedgerError(f"{error}: another batch has decided otherwise meanwhile")
        except LedgerError as error:
            failure = error.with_traceback(None)
        failure.may_have_run = failure.may_have_run or not isinstance(event, NoRun)
        raise failure from None

    async def _record(self, entry: Entry, event: Event) -> Entry:
        written = await self.ledger.record(entry.key, entry.attempt, event)
        self.totals = written.totals
        if written.entry.ending is not None and entry.ending is None:
            self.prices = self.prices.paid(written.entry.ending.cost)
        self.prices = self.prices.seen(written.highest_cost)
        self.notify()
        return written.entry

    async def try_to_record(self, entry: Entry, event: Event) -> Entry | None:
        """Write what has become of an entry; None when another batch, or a person, was faster."""
        try:
            return await self._record(entry, event)
        except IllegalStepError:
            return None

    async def reserve(self) -> Reservation | None:
        """Wait until one more run fits under the cap, and reserve credits for it; None when the batch has stopped.

        It stops the batch when no further run can fit.

        First come, first served. To be given back with `let_go`, when it is on record or was not sent.
        """
        if self.cap is None:
            return Reservation(self.prices.price)
        assert self._reserving is not None  # noqa: S101  (it is there once the session is open)
        async with self._reserving:
            while self.stopped_by is None:
                price = self.prices.price
                said = fit_under_cap(self.totals, price, self.cap, queued=self._queued)
                if said is Fit.NOW and not self._is_bold(price, self.cap):
                    self._queued += 1
                    return Reservation(price)
                if said is Fit.NEVER or not (self.out or self._queued):
                    self.stop(NotRunReason.BUDGET, self._spent(price))
                    break
                assert self._changed is not None  # noqa: S101
                await self._changed.wait()
        return None

    def release(self) -> None:
        """Release what was reserved."""
        if self.cap is not None:
            self._queued -= 1
            self.notify()

    def _is_bold(self, price: float | None, cap: float) -> bool:
        in_flight = self.out + self._queued
        return price is not None and exceeds_experience(
            self.totals, price, cap, queued=self._queued, in_flight=in_flight, ended=self.prices.ended
        )

    def _spent(self, price: float | None) -> BudgetExceededError:
        cost = "at a price that is not known" if price is None else f"of {price:g} credits"
        unpriced = f", and what {self.totals.unpriced} of the runs cost is not known" if self.totals.unpriced else ""
        return BudgetExceededError(
            f"another run {cost} could pass max_credits={self.cap:g}: {self.totals.spent:g} credits are spent and "
            f"{self.totals.reserved:g} are reserved for runs in flight or unknown{unpriced}. Nothing more was "
            "submitted"
        )


class SubmitWithheldError(Exception):
    """The ledger or the batch itself kept a submit from leaving; `taken`: what the ledger says of the job instead."""

    def __init__(self, taken: Entry | None = None) -> None:
        """Keep the entry."""
        super().__init__()
        self.taken = taken


class _Phase(Enum):
    """Where the submit stands."""

    IDLE = "idle"
    """Nothing of it is on its way; an attempt may have been refused."""
    CLAIMING = "claiming"
    """Its intent is being written."""
    OUT = "out"
    """It may have left."""
    OVER = "over"
    """What became of it is on record."""


class SubmitRecorder:
    """Records what one submit does in the ledger."""

    def __init__(
        self, session: LedgerSession, prepared: PreparedJob, reservation: Reservation, saw: Callable[[Decision], None]
    ) -> None:
        """Send `prepared`, with the credits that are reserved for it; `saw` hears of each attempt before the ledger."""
        self._session = session
        self._prepared = prepared
        self._reservation = reservation
        self._saw = saw
        self._is_reserved = True
        self._is_out = False
        self._phase = _Phase.IDLE
        self.entry: Entry | None = None
        self.sent_at: datetime | None = None
        self.lasts = 0.0  # seconds within which a synchronous run may still end

    @property
    def name(self) -> str:
        """Whose request it is."""
        return f"job {self._prepared.job.key!r:.100}"

    @property
    def has_left(self) -> bool:
        """Whether a request is in flight, or its answer is being recorded: what cuts it now may lose a paid run."""
        return self._phase in (_Phase.OUT, _Phase.OVER)

    async def before_send(self, sent_at: datetime) -> Reading:
        """Write the intent and return when that was.

        SubmitWithheldError when the batch has stopped, the service's time is to be asked first, another owner has the
        job, or the credits do not suffice.
        """
        if (self._session.stopped_by is not None and self.entry is None) or self._session.needs_time:
            raise SubmitWithheldError
        self._phase, self.sent_at = _Phase.CLAIMING, sent_at
        since, began = self._session.moment(), read_clocks()
        claimed = await self._session.claim(self._prepared, sent_at.timestamp(), since, self._reservation, self.lasts)
        if not isinstance(claimed, Written):
            self._phase = _Phase.IDLE
            raise SubmitWithheldError(claimed.entry if isinstance(claimed, Taken) else None)
        if self.entry is None:
            self._session.begin()
            self._is_out = True
        self.entry, self._phase = claimed.entry, _Phase.IDLE
        self._release()
        if self._session.stopped_by is not None:  # meanwhile; from here to the first byte nothing checks again
            raise SubmitWithheldError
        self._phase = _Phase.OUT
        return attrs.evolve(claimed.committed or began, loop=anyio.current_time())

    async def after_attempt(self, decision: Decision) -> None:
        """Write what became of an attempt; one that is to be made again is still being sent, unless all has stopped."""
        self._saw(decision)
        if isinstance(decision, (Done, Fail)) and self.entry is not None:
            await self._write(self._event(decision))
            return
        self._phase = _Phase.IDLE
        if isinstance(decision, (Again, Requeue)) and self._session.stopped_by is not None:
            raise SubmitWithheldError

    def _event(self, decision: Done[Any] | Fail) -> Event:
        match decision:
            case Done(Submitted() as receipt):
                return Accepted(
                    owner=self._session.owner,
                    execution_id=receipt.execution_id,
                    request_id=receipt.request_id,
                    until=self._session.moment(),
                )
            case Done(run):
                return Ended(ending_of_result(run))
            case Fail(ExecutionFailedError() as failed):
                return Ended(ending_of_failure(failed))
            case Fail(SubmissionUnknownError(execution_id=str() as found)):  # of the receipt, that much came
                return Accepted(owner=self._session.owner, execution_id=found, until=self._session.moment())
            case Fail(error) if not error.may_have_run:
                return NoRun(self._session.owner)
            case Fail(error):
                return Lost(self._session.owner, str(getattr(error, "seen", None) or error), self._session.moment())

    async def close(self) -> None:
        """Account for a submit that was cut, and count the run no more; to be called shielded."""
        self._release()
        try:
            await self._account_for_cut()
        finally:
            if self._is_out:
                self._session.end()

    async def _account_for_cut(self) -> None:
        if self._phase is _Phase.CLAIMING and self.entry is None:  # the claim may be on record; nothing left after it
            found = await self._session.ledger.look(self._prepared.job.key)
            self.entry = found if found is not None and found.owner == self._session.owner else None
        if self.entry is not None and self._phase is not _Phase.OVER:
            is_out, owner = self._phase is _Phase.OUT, self._session.owner
            cut = Lost(owner, "it was cut before its answer", self._session.moment())
            await self._write(cut if is_out else NoRun(owner))

    async def _write(self, event: Event) -> None:
        assert self.entry is not None  # noqa: S101
        self._phase = _Phase.OVER  # also when it cannot be written: what is not on record is unknown to the next batch
        self.entry = await self._session.record(self.entry, event)

    def _release(self) -> None:
        if self._is_reserved:
            self._is_reserved = False
            self._session.release()


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
        """Send jobs of `target` through `client`, on record in `session`."""
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
        """End the wait for another job when the submitting ends."""
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
        """Ask the service for its time, if need be, before an intent is written or a lost one is looked for."""
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
        """Allow `stop` to end what is done inside, unless a paid request is in flight."""
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
        """Note an attempt: what answers in the service's place ends the submitting at once."""
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
        """Log once what is waited for when the service has asked for a pause."""
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
        """Note a job of which nobody knows whether it ran: stop, if that was asked for."""
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


_SPAN: Final = 1200.0  # seconds before a submit: runs of that time may account for rows that are near it
_LONGEST_PAUSE: Final = 15.0


class JobRunner:
    """Sees each job of a batch through."""

    def __init__(self, client: BatchClient, target: Target, session: LedgerSession, submitter: JobSubmitter) -> None:
        """Run jobs of `target`; those that are new go through `submitter`."""
        self._client = client
        self._target = target
        self._session = session
        self._submitter = submitter
        self._searching = anyio.Lock()
        self.waiting = 0  # jobs that only wait: for another batch, or for a search

    async def outcome(self, prepared: PreparedJob) -> Outcome:
        """Return how a job ended. Cancelled: its run goes on, and is on record if there is a ledger."""
        if prepared.is_repeated:
            again = errors.InvalidArgumentError(f"the key {prepared.job.key!r} came before in this batch")
            return NotRun(job=prepared.job, reason=NotRunReason.DUPLICATE, error=again)
        if prepared.error is not None:
            return NotRun(job=prepared.job, reason=NotRunReason.INVALID, error=prepared.error)
        found: Outcome | Entry | None = await self._session.ledger.look(prepared.job.key)
        while found is None or isinstance(found, Entry):
            if found is not None and (found.digest, found.target) != (prepared.digest, self._session.target):
                return _conflict(prepared, found)
            is_new = found is None or found.stage is Stage.NEW
            found = await (self._submitter.send(prepared) if found is None or is_new else self._go_on(prepared, found))
        return found

    async def _go_on(self, prepared: PreparedJob, entry: Entry) -> Outcome | Entry | None:
        match entry.stage:
            case Stage.SUBMITTED if entry.owner is None:
                return await self._pick_up(prepared, entry)
            case Stage.SUBMITTED | Stage.SENDING:
                return await self._leave_to_its_owner(prepared)
            case Stage.UNKNOWN:
                return await self._search(prepared, entry)
            case _:
                return outcome_of_entry(prepared.job, entry)

    async def _pick_up(self, prepared: PreparedJob, entry: Entry) -> Outcome | Entry | None:
        picked = await self._session.try_to_record(entry, PickedUp(self._session.owner))
        if picked is None or picked.execution_id is None:
            return await self._session.ledger.look(prepared.job.key)
        self._session.begin()
        try:
            return await self._submitter.wait(prepared, picked, self._client.attach(picked.execution_id, self._target))
        finally:
            self._session.end()

    async def _leave_to_its_owner(self, prepared: PreparedJob) -> Entry | None:
        """Wait until another batch is done with the job, or no more."""
        pause = _FIRST_PAUSE
        with self._counted_as_waiting():
            while True:
                await anyio.sleep(pause)
                entry = await self._session.ledger.look(prepared.job.key)
                is_theirs = entry is not None and entry.stage in (Stage.SENDING, Stage.SUBMITTED)
                if entry is None or not is_theirs or entry.owner is None:
                    return entry
                pause = min(_LONGEST_PAUSE, pause * 1.5)

    @contextmanager
    def _counted_as_waiting(self) -> Iterator[None]:
        """Make room for another job while this one only waits."""
        self.waiting += 1
        self._submitter.on_change()
        try:
            yield
        finally:
            self.waiting -= 1

    async def _search(self, prepared: PreparedJob, entry: Entry) -> Outcome | Entry:
        """Search for proof that an unknown submit began no run; it never picks one of several that could be it."""
        with suppress(errors.ConnectionFailedError):
            await self._submitter.ask_for_time()
        entry = await self._dated(entry)
        bounds, reason = entry.may_have_begun, _not_provable(entry, self._session.payer)
        reasons = [reason] if reason is not None else []
        if bounds is not None and not reasons:
            with self._counted_as_waiting():
                async with self._searching:  # each may read many pages of rows
                    wanted = Wanted(target=self._target, earliest=bounds[0], latest=bounds[1])
                    found = await self._rows(wanted, entry.account or "")
            if isinstance(found, SubmissionSearch) and found.is_certainly_none:
                new = await self._session.try_to_record(entry, NoneFound(entry.sent_at))
                return new or await self._session.ledger.look(prepared.job.key) or entry
            reasons = _why(found) if isinstance(found, SubmissionSearch) else [found]
        self._submitter.met_unknown(prepared)
        return outcome_of_entry(prepared.job, entry, open_because=reasons)

    async def _dated(self, entry: Entry) -> Entry:
        """Bound a submit whose owner was found gone by somebody who did not know the time."""
        if entry.until is not None and entry.until.is_known:
            return entry
        return await self._session.try_to_record(entry, OwnerGone(self._session.moment())) or entry

    async def _rows(self, wanted: Wanted, account: str) -> SubmissionSearch | str:
        """Search the usage rows, or say why that would prove nothing."""
        if (too_early := wanted.not_yet(self._session.moment())) is not None:
            return too_early
        known = await self._session.ledger.known_runs(self._session.target, account, wanted.earliest - _SPAN)
        try:
            return await self._client.search(attrs.evolve(wanted, known=known))
        except errors.ClientClosedError:
            raise
        except errors.KnoudsError as error:
            return f"the usage could not be read: {error}"


def _why(search: SubmissionSearch) -> list[str]:
    rows = [f"usage row {row.id} ({row.status}, request {row.request_id}) could be it" for row in search.candidates[:3]]
    return [*rows, *search.reasons]


def _not_provable(entry: Entry, payer: Payer | None) -> str | None:
    """Return why no usage rows can prove that a submit began no run."""
    if entry.may_have_begun is None:
        return "when it can have begun a run is not known by the service's clock"
    if entry.account is None or payer is None or entry.account != payer.account:
        return "it is not known to be a submit of this account"
    return None


def _conflict(prepared: PreparedJob, entry: Entry) -> NotRun:
    what = "other inputs" if entry.digest != prepared.digest else f"the target {entry.target}"
    error = errors.InvalidArgumentError(
        f"the ledger knows the key {prepared.job.key!r} with {what}: give the job another key, or use another ledger"
    )
    return NotRun(job=prepared.job, reason=NotRunReason.CONFLICT, error=error)
