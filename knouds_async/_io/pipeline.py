"""send(Call[T]) -> T: a permit, a connection, hooks, an attempt, a decision, maybe again."""

from __future__ import annotations

import logging
import random
import shlex
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar, overload

import anyio
import attrs

from knouds_async._io.concurrency import (
    CutShort,
    FIFOLimiter,
    Finished,
    HomeLoop,
    ServiceTime,
    Wakeup,
    checkpoint,
    is_cancelled,
    native_cancellation,
    read_clocks,
    uninterrupted,
)
from knouds_async._io.exchange import Exchange, SentTrace
from knouds_async._io.limiter import Limiter
from knouds_async._sansio import endpoints, responses, retry
from knouds_async._sansio.clock import UNDATED, Moment, Reading
from knouds_async._sansio.endpoints import Call, TimeoutKind
from knouds_async._sansio.rate_limit import Permit
from knouds_async._sansio.reconcile import KnownRun, LostSubmit, RecentRuns, Search, Wanted
from knouds_async._sansio.responses import Answer
from knouds_async._sansio.retry import Again, Decision, Done, Fail, Garbled, NotSent, Outcome, Requeue, Unanswered
from knouds_async.config import Retries
from knouds_async.errors import (
    APIError,
    ClientClosedError,
    InvalidResponseError,
    KnoudsError,
    NoAnswerError,
    SubmissionUnknownError,
)
from knouds_async.telemetry import CallSpan, SpanLink, Telemetry, fields
from knouds_async.types import RunResult, SubmissionSearch, Submitted

logger = logging.getLogger("knouds_async")

_CLAIM: Final = 30.0  # seconds from an intent on record to its first byte; then it is another owner's business as well

Withheld: TypeAlias = Literal["withheld"]
WITHHELD: Final = "withheld"


class SendHooks(Protocol):
    """Records what a paid request does; what it raises, `send` raises. `name`, if any, names the job."""

    async def before_send(self, sent_at: datetime) -> Reading | Withheld | None:
        """Record an attempt before its first byte leaves; what this raises keeps it from leaving.

        Return when what allows it was written down: 30 s later it must not leave, and this is called again. WITHHELD
        keeps it from leaving, too: `send` then returns None.
        """
        ...

    async def after_attempt(self, decision: Decision) -> None:
        """Record what became of an attempt, before the caller learns it and whatever happened to the caller."""
        ...


class StaleClaimError(Exception):
    """A claim is too old for its request to leave now: it is made anew."""


def _refuse_stale(sending: _Sending, claimed: Reading) -> None:
    """Raise when a claim is too old for the first byte of its request to leave, by whichever clock shows most."""
    age = read_clocks(anyio.current_time()).since(claimed)
    if age > _CLAIM:
        sending.is_stale = True
        raise StaleClaimError(f"its claim was {age:.0f} s old, and one older than {_CLAIM:.0f} s is made anew")


def _log(sending: _Sending, decision: Decision) -> None:
    """Log at WARNING what became of a submit that its caller may not learn of: the id must not be lost."""
    call, hooks = sending.call, sending.hooks
    if isinstance(decision, Done) and isinstance(decision.value, (Submitted, RunResult)):
        found = decision.value.execution_id
        logger.warning(
            "execution %s of %s was submitted although its caller was cancelled or failed; it runs and is charged: %s",
            found or "(a synchronous run, which has no id)",
            _paid_by(call, hooks),
            "its result is lost" if found is None else _advice(found, hooks),
            extra=fields(
                "submit_not_awaited",
                route=call.route,
                target=str(call.pays_for),
                job_key=getattr(hooks, "key", None),
                execution_id=found,
                request_id=getattr(decision.value, "request_id", None),
            ),
        )
    elif isinstance(decision, Fail) and decision.error.may_have_run:
        logger.warning(
            "a submit of %s at %s ended as unknown while its caller was cancelled or failed: %s",
            _paid_by(call, hooks),
            sending.sent_at.isoformat(),
            decision.error,
            extra=fields(
                "submit_unknown",
                route=call.route,
                target=str(call.pays_for),
                job_key=getattr(hooks, "key", None),
                execution_id=decision.error.execution_id,
                http_status=getattr(decision.error, "status", None),
            ),
        )


def _paid_by(call: Call[Any], hooks: SendHooks | None) -> str:
    """Name the target, and the job where there is one: `--resolve` takes its key and the id."""
    key = getattr(hooks, "key", None)
    return str(call.pays_for) if key is None else f"{call.pays_for} for job {key!r}"


def _advice(execution_id: str, hooks: SendHooks | None) -> str:
    advice = f"knouds.executions.attach({execution_id!r}) picks it up"
    if (key := getattr(hooks, "key", None)) is None:
        return advice
    command = f"knouds batch --resolve LEDGER {shlex.quote(key)} run={execution_id}"
    return f"{advice}; if the ledger says that the job is unknown, `{command}` enters the run"


T = TypeVar("T")

_STALE: Final = 1.0  # seconds: a turn that waited longer for its connection may belong to a window that has ended


class Send(Protocol):
    """What the resources are handed: a call in, its value out."""

    async def __call__(
        self, call: Call[T], /, *, total: float | None = None, serves: Sequence[SpanLink] | None = None
    ) -> T:
        """Send a call."""
        ...


@attrs.define(eq=False, repr=False)
class _Sending:
    """One call on its way: what was asked for, how it is reported, and what came of it so far."""

    call: Call[Any]
    total: float | None
    hooks: SendHooks | None
    span: CallSpan
    attempts: int = 0  # without those that were refused for the quota
    spent: float = 0.0  # seconds of attempts and pauses
    was_sent: bool = False  # an attempt may have left
    has_connection: bool = False
    # Of the last attempt:
    began: float = 0.0
    took: float = 0.0  # seconds
    sent: Reading | None = None
    since: Moment = UNDATED
    server_time: float | None = None  # when its answer came
    is_stale: bool = False  # its claim was too old
    decision: Decision | None = None
    failure: Exception | None = None  # why the decision could not be reported

    @property
    def sent_at(self) -> datetime:
        """When the last attempt was made, as well as that is known."""
        return datetime.fromtimestamp(self.since.middle, UTC)


class Pipeline:
    """Sends calls, each by its turn, as often as is safe."""

    def __init__(self, exchange: Exchange, limiter: Limiter, retries: Retries, telemetry: Telemetry) -> None:
        self.telemetry: Final = telemetry
        self._exchange = exchange
        self._limiter = limiter
        self._retries = retries
        self._connections = FIFOLimiter(exchange.connections)
        self._home = HomeLoop()
        self.time: Final = ServiceTime()
        self.recent: Final = RecentRuns()
        self._is_closed = False
        self._submits = 0  # under way, and not to be cut
        self._submit_ended: Final = Wakeup()
        self._waiting: set[anyio.CancelScope] = set()
        self._received_ids = retry.ReceivedIds()

    @overload
    async def send(
        self,
        call: Call[T],
        /,
        *,
        total: float | None = None,
        hooks: None = None,
        serves: Sequence[SpanLink] | None = None,
    ) -> T: ...

    @overload
    async def send(self, call: Call[T], /, *, total: float | None = None, hooks: SendHooks) -> T | None: ...

    async def send(
        self,
        call: Call[T],
        /,
        *,
        total: float | None = None,
        hooks: SendHooks | None = None,
        serves: Sequence[SpanLink] | None = None,
    ) -> T | None:
        """Send a call and return its value; `total` replaces the call's own timeout, in seconds.

        `hooks`: called before each attempt and after it; no cancellation cuts between the two. None: they withheld it.
        `serves`: the spans of the waits for which a poll or a listing is made.

        Cancelled while it waits for its turn or pauses: nothing was sent. Cancelled while a submit is under way: the
        submit is finished first, its id is logged at WARNING, and then the cancellation is raised.
        """
        job_key = getattr(hooks, "key", None)
        with native_cancellation(), self.telemetry.call(call, job_key=job_key, serves=serves) as span:
            try:
                value: T | None = await self._send(_Sending(call, total, hooks, span))
            except KnoudsError as error:
                error.execution_id = error.execution_id or call.execution_id
                raise
            return value

    async def _send(self, sending: _Sending) -> Any:
        while True:
            turn = await self._turn(sending)
            self._begin(sending, anyio.current_time())
            finished = await self._finish(sending, turn)
            _raise_what_came_meanwhile(sending, finished)
            match finished.value:
                case str():
                    return None
                case Done(value):
                    return value
                case Fail(error):
                    raise error
                case Requeue():  # nor does it spend the budget
                    sending.attempts -= 1
                case Again(after):
                    await anyio.sleep(after)
                    sending.spent += sending.took + after

    def _begin(self, sending: _Sending, now: float) -> None:
        """Date an attempt, by the service's clock where it is known."""
        sending.attempts += 1
        sending.began, sending.decision, sending.is_stale = now, None, False
        is_dated = sending.call.pays_for is not None or self.time.is_due(now)
        sending.sent = read_clocks(now) if is_dated else None
        sending.since = UNDATED if sending.sent is None else self.time.moment(sending.sent)

    async def _turn(self, sending: _Sending) -> Permit | NotSent:
        """Wait for a turn, and then for one of our connections; closing the client ends the wait."""
        if sending.call.pays_for is not None and is_cancelled():  # it must not pay for anything more
            await checkpoint()
        self._check_open()
        permit = self._limiter.try_acquire(sending.call.route)
        if permit is not None and self._connections.try_acquire():
            return permit
        with anyio.CancelScope() as scope:
            self._waiting.add(scope)
            try:
                permit = permit or await self._acquire(sending, front=sending.span.refusals > 0)
                return permit if self._connections.try_acquire() else await self._connection(sending, permit)
            finally:
                self._waiting.discard(scope)
        self._check_open()
        raise AssertionError("only closing cancels this scope")

    async def _acquire(self, sending: _Sending, *, front: bool) -> Permit:
        call, began = sending.call, anyio.current_time()
        try:
            return await self._limiter.acquire(call.route, call.priority, front=front, max_pause=self._retries.longest)
        finally:
            sending.span.waited += anyio.current_time() - began

    async def _connection(self, sending: _Sending, permit: Permit) -> Permit | NotSent:
        """Wait until one of our connections is free: a queue like the limiter's, that can be left at no cost.

        So it is no part of the exchange, which has a time of its own and, when it is paid, cannot be cut. Permits do
        not keep: when the wait was long, another is taken at the head of the line.
        """
        route = sending.call.route
        began, longest = anyio.current_time(), self._exchange.longest_queue(sending.call, sending.total)
        try:
            with anyio.fail_after(longest):
                await self._connections.acquire()
        except BaseException as stop:
            self._limiter.release(route, permit)
            if isinstance(stop, TimeoutError):
                return NotSent(f"no connection became free within {longest:g} s")
            raise
        if anyio.current_time() < began + _STALE:
            return permit
        self._limiter.release(route, permit)
        try:
            return await self._acquire(sending, front=True)
        except BaseException:
            self._connections.release()
            raise

    async def _finish(self, sending: _Sending, turn: Permit | NotSent) -> Finished[Decision | Withheld]:
        """Make one attempt and report it; what cuts the report is raised, and the log has what was to be reported."""
        try:
            if isinstance(turn, NotSent):
                return await self._reported(sending, turn)
            sending.has_connection = True
            if sending.call.timeout_kind is TimeoutKind.SUBMIT:
                return await self._uncut(sending, turn)
            outcome = await self._with_hooks(sending, turn)
            return Finished(outcome, None) if isinstance(outcome, str) else await self._reported(sending, outcome)
        except BaseException:
            if sending.decision is not None:
                _log(sending, sending.decision)
            raise

    async def _uncut(self, sending: _Sending, permit: Permit) -> Finished[Decision | Withheld]:
        """Make a submit in a task of its own, so that no cancellation cuts it before its id is read and reported."""
        self._submits += 1
        try:
            return await uninterrupted(lambda: self._submit(sending, permit))
        except CutShort:
            if sending.decision is not None:
                raise
            self._release_connection(sending)  # a task may be cut before its first step
            return await self._reported(sending, Unanswered("the request was cancelled from elsewhere"))
        finally:
            self._submits -= 1
            self._submit_ended.notify()

    async def _submit(self, sending: _Sending, permit: Permit) -> Decision | Withheld:
        outcome = await self._with_hooks(sending, permit)
        return outcome if isinstance(outcome, str) else await _report(sending, self._decide(sending, outcome))

    async def _reported(self, sending: _Sending, outcome: Outcome) -> Finished[Decision | Withheld]:
        """Decide what follows an attempt, and report that whatever happens to the caller."""
        decision = self._decide(sending, outcome)
        if sending.hooks is None:
            return Finished(decision, None)
        return await uninterrupted(lambda: _report(sending, decision))

    async def _with_hooks(self, sending: _Sending, permit: Permit) -> Outcome | Withheld:
        """Make one attempt, and free its connection."""
        trace = SentTrace()
        try:
            if sending.hooks is not None:
                try:
                    claimed = await sending.hooks.before_send(sending.sent_at)
                except BaseException:
                    self._limiter.release(sending.call.route, permit)
                    raise
                if isinstance(claimed, str):
                    self._limiter.release(sending.call.route, permit)
                    return claimed
                trace = SentTrace(None if claimed is None else partial(_refuse_stale, sending, claimed))
            return await self._attempt(sending, permit, trace)
        finally:
            self._release_connection(sending)

    def _release_connection(self, sending: _Sending) -> None:
        if sending.has_connection:
            sending.has_connection = False
            self._exchange.release(self._connections.release)

    async def _attempt(self, sending: _Sending, permit: Permit, trace: SentTrace) -> Outcome:
        call = sending.call
        try:
            outcome = await self._exchange.attempt(call, trace, total=sending.total)
        except BaseException:
            self._cut(sending, permit, trace)
            raise
        self._settle(sending, permit, outcome)
        return outcome

    def _cut(self, sending: _Sending, permit: Permit, trace: SentTrace) -> None:
        """Account for an attempt that was cancelled: a paid one that may have left is reported as unknown."""
        call = sending.call
        if not trace.may_have_been_sent(None, transport_is_known=True):
            self._limiter.release(call.route, permit)
            return
        self._limiter.mark_unanswered(call.route, permit)
        sending.span.cut()
        if call.pays_for is not None:
            logger.warning(
                "a run of %s was sent at %s and cancelled before its answer: it may have run and been charged; "
                "search for it with knouds.usage.find_submission",
                _paid_by(call, sending.hooks),
                sending.sent_at.isoformat(),
                extra=fields(
                    "submit_unknown",
                    route=call.route,
                    target=str(call.pays_for),
                    job_key=getattr(sending.hooks, "key", None),
                ),
            )

    def _settle(self, sending: _Sending, permit: Permit, outcome: Outcome) -> None:
        """Return the permit, with what the answer says of the quota; whatever a limiter raises costs no answer."""
        route, limiter = sending.call.route, self._limiter
        try:
            sending.server_time = limiter.server_time(anyio.current_time())
            if isinstance(outcome, NotSent):
                limiter.release(route, permit)
            elif isinstance(outcome, Unanswered):
                limiter.mark_unanswered(route, permit)
            else:
                answer = outcome if isinstance(outcome, Answer) else Answer(outcome.status, outcome.headers, b"")
                reply = responses.quota(answer, server_time=sending.server_time)
                limiter.on_response(route, permit, reply, responses.http_date(outcome.headers.get("date")))
        except Exception:
            extra = fields("limiter_failed", route=route)
            logger.warning("the limiter could not learn from the answer of %s", route, exc_info=True, extra=extra)
            with suppress(Exception):
                limiter.mark_unanswered(route, permit)

    def _decide(self, sending: _Sending, outcome: Outcome) -> Decision:
        """Decide what follows an attempt, and keep what it showed of the service's clock."""
        call, now = sending.call, anyio.current_time()
        sending.is_stale = sending.is_stale and isinstance(outcome, NotSent)
        sending.took = 0.0 if sending.is_stale else now - sending.began  # the process was stopped, or slept
        so_far = retry.SoFar(
            attempts=sending.attempts,
            spent=sending.spent + sending.took,
            sent_at=sending.sent_at,
            since=sending.since,
            until=self._until(sending),
            server_time=sending.server_time,
            was_sent=sending.was_sent,
        )
        decision = retry.decide(call, outcome, so_far, self._retries, roll=random.random())  # noqa: S311
        decision = self._received_ids.checked(call, decision, so_far, getattr(sending.hooks, "name", None))
        if sending.sent is not None:
            self._note_time(outcome, decision, sending.sent)
            self._remember(sending, decision, sending.sent)
        with suppress(Exception):  # a log handler or a meter of the caller's that fails must not cost an id
            _observe_attempt(sending, outcome, decision)
        if isinstance(decision, Again):
            sending.was_sent = sending.was_sent or not isinstance(outcome, NotSent)
        sending.decision = decision
        return decision

    def _note_time(self, outcome: Outcome, decision: object, sent: Reading) -> None:
        """Note the service's time, from an answer that is its own."""
        if isinstance(outcome, Answer) and (isinstance(decision, Done) or responses.service_error(outcome) is not None):
            self.time.update(responses.fresh_date(outcome), sent)

    def _until(self, sending: _Sending) -> Moment:
        """Return a moment after which an attempt begins no run any more: a synchronous one may still be on its way."""
        call, since = sending.call, sending.since
        if call.pays_for is None:
            return UNDATED
        until = self.time.moment()
        if call.timeout_kind is not TimeoutKind.RUN or until.latest is None or since.latest is None:
            return until
        return attrs.evolve(until, latest=max(until.latest, since.latest + self._exchange.limit(call, sending.total)))

    def _remember(self, sending: _Sending, decision: object, sent: Reading) -> None:
        """Remember what was lost, so that it can be dated also by what is learned later."""
        if isinstance(decision, Fail) and isinstance(error := decision.error, SubmissionUnknownError):
            is_run = sending.call.timeout_kind is TimeoutKind.RUN
            lasts = self._exchange.limit(sending.call, sending.total) if is_run else 0.0
            until = read_clocks(anyio.current_time())
            self.recent.lose(
                LostSubmit(target=error.target, sent_at=error.sent_at, since=sent, until=until, lasts=lasts)
            )

    async def ask_for_time(self) -> None:
        """Read the service's clock by a free request, if need be; ConnectionFailedError when nobody answers.

        An answer without a time, and an error of the service, are ignored.
        """
        if self.time.is_worth_asking():
            with suppress(APIError, NoAnswerError, InvalidResponseError):
                await self.send(endpoints.whoami())
            self.time.mark_asked()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClientClosedError(
                "this AsyncKnouds is closed: build a new one; runs in progress can be attached there"
            )
        self._home.enter()

    def close(self) -> None:
        """Refuse new calls; raises WrongEventLoopError in another loop than the client's."""
        self._home.check()
        self._is_closed = True
        for scope in self._waiting:
            scope.cancel()

    async def drain(self) -> None:
        """Wait for the submits under way: their ids must not be lost."""
        while self._submits:
            await self._submit_ended.wait()


async def search_usage(
    send: Send, wanted: Wanted, time: ServiceTime, known: Callable[[], Awaitable[Sequence[KnownRun]]]
) -> SubmissionSearch:
    """Walk through the usage rows of a target for a submit, and return what they prove.

    `known`: returns the runs that are known once the rows are read, which may show some that were not known before.
    """
    search, now = Search(wanted=wanted), time.moment()
    while search.next_offset is not None:
        page, written = await send(endpoints.search_usage(target=wanted.target, offset=search.next_offset))
        search = search.take(page, written)
    return search.result(now, await known())


async def _report(sending: _Sending, decision: Decision) -> Decision:
    """Report what became of an attempt to the hooks, if any; to be called where nothing cuts it."""
    if sending.hooks is not None:
        try:
            await sending.hooks.after_attempt(decision)
        except Exception as error:  # noqa: BLE001  (raised again, in the caller)
            sending.failure = error
    return decision


def _raise_what_came_meanwhile(sending: _Sending, finished: Finished[Decision | Withheld]) -> None:
    """Raise the cancellation that came during an attempt, or else what its report failed with.

    Without hooks, the log has what a cancelled caller does not learn; with them, only what they could not write.
    """
    decision, cancellation, failure = finished.value, finished.cancellation, sending.failure
    if sending.call.pays_for is not None and not isinstance(decision, str):
        is_cut = sending.hooks is None and (cancellation is not None or is_cancelled())
        if is_cut or failure is not None:
            _log(sending, decision)
    if (stop := cancellation or failure) is not None:
        raise stop


def _observe_attempt(sending: _Sending, outcome: Outcome, decision: Decision) -> None:
    """Count an attempt, and log it at DEBUG, one with an old claim at INFO; without inputs, results or headers."""
    call, span = sending.call, sending.span
    span.attempted(outcome, decision)
    if sending.is_stale:
        extra = fields("claim_stale", route=call.route, job_key=getattr(sending.hooks, "key", None))
        logger.info("a submit of %s was held back: %s", _paid_by(call, sending.hooks), _described(outcome), extra=extra)
    if not logger.isEnabledFor(logging.DEBUG):
        return
    again = f", again in {decision.after:.2f} s" if isinstance(decision, Again) else ""
    logger.debug(
        "%s%s: %s after %.3f s%s",
        call.route,
        f" (execution {span.execution_id})" if span.execution_id else "",
        _described(outcome),
        sending.took,
        again,
        extra=fields(
            "attempt",
            route=call.route,
            target=None if call.pays_for is None else str(call.pays_for),
            execution_id=span.execution_id,
            request_id=getattr(span.value, "request_id", None),
            status=getattr(span.value, "status", None),
            attempt=sending.attempts,
            duration=sending.took,
            wait=span.waited,
            http_status=outcome.status if isinstance(outcome, (Answer, Garbled)) else None,
        ),
    )


def _described(outcome: Outcome) -> str:
    """Return how an attempt ended, without inputs, results or headers."""
    if isinstance(outcome, (Answer, Garbled)):
        return f"answered {outcome.status}"
    return f"{'not sent' if isinstance(outcome, NotSent) else 'unanswered'}: {outcome.seen}"
