"""The poller: the records of the runs that somebody waits for, their waiters, and the task that polls meanwhile.

What is due is decided in `_sansio.polling`. Every new state of a run, from any source, comes through `Poller.update`.
One poll serves every waiter; a waiter that is cancelled or times out disturbs no other. A few workers share the polls,
so that a poll is no task of its own; one poll's trouble ends no other. When nobody waits, the task ends, and what is in
flight is cancelled.
"""

from __future__ import annotations

import contextvars
import copy
import logging
import math
import random
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import anyio
import attrs

from knouds_async._io.concurrency import HomeLoop, checkpoint, from_thread, is_in_task_of, running_loop, spawn
from knouds_async._io.limiter import Limiter
from knouds_async._io.pipeline import Send
from knouds_async._sansio import endpoints
from knouds_async._sansio.durations import LearnedDurations, duration_key
from knouds_async._sansio.listings import PageRequest, Quota
from knouds_async._sansio.polling import PollScheduler, TrackedRun, failures_of
from knouds_async._sansio.webhooks import RecentDeliveries, is_complete, is_end
from knouds_async.config import Polling
from knouds_async.errors import ClientClosedError, ConflictError, KnoudsError, NotFoundError
from knouds_async.telemetry import SpanLink, Telemetry, fields
from knouds_async.types import ExecutionState, Status, Target

if TYPE_CHECKING:
    from anyio.lowlevel import RunVar

# ---- The record of a run


@attrs.define(eq=False, weakref_slot=True, repr=False)
class RunRecord:
    """An execution and all who wait for it; every handle of one id in a client shares it.

    `serves`: the spans of the waits. `is_reported`: a batch reports it where nobody sees it finish.
    """

    execution_id: str
    target: Target | None
    state: ExecutionState
    tracked: TrackedRun
    waiters: int = 0
    changed: anyio.Event | None = None
    failures: float = 0  # polls that failed in a row; inf when no later poll can do better
    error: KnoudsError | None = None
    serves: list[SpanLink] = attrs.field(factory=list)
    is_reported: bool = False

    @classmethod
    def of(
        cls,
        state: ExecutionState,
        target: Target | None,
        submitted_at: float | None = None,
        expected: float | None = None,
        *,
        expects_delivery: bool = False,
    ) -> RunRecord:
        """Create a record from a state; `submitted_at`: in local monotonic seconds, None when unknown."""
        tracked = TrackedRun(
            state.execution_id,
            duration_key=duration_key(target, expected),
            submitted_at=submitted_at,
            request_id=state.request_id,
            expected=expected,
            expects_delivery=expects_delivery or None,
        )
        return cls(state.execution_id, target, state, tracked)

    def notify(self) -> None:
        """Wake every waiter to check `state` and `error` again."""
        if self.changed is not None:
            self.changed.set()
            self.changed = anyio.Event()

    def raise_failure(self, max_failures: float) -> None:
        """Raise the failure that ends a wait; each waiter its own copy, or their tracebacks would grow together."""
        if self.error is not None and self.failures >= max_failures:
            raise copy.copy(self.error)

    def add_run_id(self, error: KnoudsError) -> None:
        """Add to an error that ends a wait which run it was, and that the run exists: nobody may submit it again."""
        error.execution_id = self.execution_id
        if not self.may_not_exist(error):
            error.may_have_run = True
            error.add_note(
                f"execution {self.execution_id} was submitted and is charged; only the wait for it has ended: "
                f"wait again, or attach it with knouds.executions.attach({self.execution_id!r})"
            )

    def may_not_exist(self, error: KnoudsError) -> bool:
        """Return whether by an error of a poll there is no such run: it was attached, and never seen."""
        was_seen = self.tracked.submitted_at is not None or self.tracked.last_seen_at > -math.inf
        return isinstance(error, NotFoundError) and not was_seen


# ---- The poller

InFlight: TypeAlias = dict[str, RunRecord]

logger = logging.getLogger("knouds_async")

_MAX_WORKERS: Final = 100
_POLL_ROUTE: Final = endpoints.get_execution("x").route
_USAGE_ROUTE: Final = endpoints.list_usage_statuses(limit=1, offset=0).route

_MAX_RECENT: Final = 1000
"""Records that are kept though nobody holds a handle: web apps attach to them by id, one request after another."""

_MAX_AGE: Final = 600.0
"""Seconds of age up to which the date of a run is used: its date and the clock may be of different machines."""

_MAX_SKEW: Final = 2.0
_MAX_LISTED: Final = 20  # ids in a warning


@cache
def _unfinished() -> RunVar[tuple[list[InFlight], AsyncGenerator[None, None]]]:
    """Return what holds what the clients of an event loop have in flight, and the generator that warns of it."""
    from anyio.lowlevel import RunVar  # it is loaded where there is a loop

    return RunVar("knouds_async.unfinished")


async def _warn_at_loop_end(in_flight: InFlight) -> None:
    """Warn of the runs in flight when the event loop ends, also at Ctrl-C: it closes its asynchronous generators."""
    unfinished, generator = _unfinished().get(None) or ([], None)
    if generator is None:
        generator = _until_loop_ends(unfinished)
        await anext(generator)
        _unfinished().set((unfinished, generator))
    unfinished[:] = [each for each in unfinished if each and each is not in_flight] + [in_flight]


async def _until_loop_ends(unfinished: list[InFlight]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        for in_flight in unfinished:
            _warn_of_runs_in_flight(in_flight)


def _warn_of_runs_in_flight(in_flight: InFlight) -> None:
    """Warn once of the runs that nobody else reports, and forget them all."""
    ids = [record.execution_id for record in in_flight.values() if not record.is_reported]
    in_flight.clear()
    if ids:
        logger.warning(
            "%d %s not seen to finish; %s and %s charged. knouds.executions.attach(id) picks one up: %s%s",
            len(ids),
            "run was" if len(ids) == 1 else "runs were",
            "it continues" if len(ids) == 1 else "they continue",
            "is" if len(ids) == 1 else "are",
            ", ".join(ids[:_MAX_LISTED]),
            f" and {len(ids) - _MAX_LISTED} more" if len(ids) > _MAX_LISTED else "",
            extra=fields("runs_in_flight", count=len(ids)),
        )


def _unexpected(what: str, error: Exception) -> KnoudsError:
    """Log an error that nobody expects with its traceback; return the error that ends the waits for it."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    logger.error("%s failed unexpectedly", what, exc_info=error, extra=fields("polling_failed"))
    return KnoudsError(f"{what} failed unexpectedly with {type(error).__name__}: {error}")


class DeliveryInbox:
    """Passes what is delivered to `process`, in a task of the client's event loop, wherever it comes from.

    `poll_all`: polls each run that is waited for, once. `distrust`: expects no deliveries any more.
    """

    def __init__(
        self,
        process: Callable[[ExecutionState], None],
        poll_all: Callable[[], None],
        distrust: Callable[[], None],
    ) -> None:
        self._process, self._poll_all, self._distrust = process, poll_all, distrust
        self._waiting: deque[ExecutionState] = deque()
        self._home: object | None = None
        self._call_in_loop: Callable[[Callable[[], object]], object] | None = None
        self._bus: Any = None
        self._stop: Callable[[], None] | None = None

    def put(self, state: ExecutionState) -> None:
        """Process a delivery: at once in a task of the client's event loop, else there in a moment.

        Before the client has been used in one, it waits until then; after the end of the loop it is dropped.
        """
        self.enter()
        if self._home is not None and is_in_task_of(self._home):
            self._process(state)
            return
        self._waiting.append(state)
        if self._call_in_loop is not None:
            try:
                self._call_in_loop(self._in_task(self._process_all))
            except RuntimeError:  # the event loop has ended
                self._waiting.clear()

    def enter(self) -> None:
        """Bind to the event loop of the running task, if any, and process what came before."""
        if self._home is None and is_in_task_of(None):
            self._home, self._call_in_loop = running_loop(), from_thread()
            self._process_all()

    def set_bus(self, bus: Any) -> None:
        """Listen for ends on a bus, as long as somebody waits."""
        self._bus = bus

    def awaited(self, *, is_any: bool) -> None:
        """Begin or end to listen, as runs are waited for or not."""
        if is_any and self._bus is not None and self._stop is None:
            self._stop = self._bus.listen(self.put, self._in_task(self._poll_all), self._in_task(self._distrust))
        elif not is_any and self._stop is not None:
            self._stop()
            self._stop = None

    def _in_task(self, function: Callable[[], None]) -> Callable[[], object]:
        async def call() -> None:
            try:
                function()
            except Exception as error:  # noqa: BLE001  (it would end a trio loop)
                _unexpected("a delivery", error)

        return lambda: spawn(call, contextvars.Context())

    def _process_all(self) -> None:
        while self._waiting:
            self._process(self._waiting.popleft())


class Poller:
    """Polls executions through `send`, as `polling` says, and learns how long they take into `learned`."""

    def __init__(
        self, send: Send, polling: Polling, learned: LearnedDurations, limiter: Limiter, telemetry: Telemetry
    ) -> None:
        self.telemetry: Final = telemetry
        self.in_flight: Final[InFlight] = {}  # awaited at some time, and not seen to finish
        self._send = send
        self._max_failures = polling.max_failures
        self._learned = learned
        self._limiter = limiter
        self._scheduler = PollScheduler(polling, learned)
        self._records: weakref.WeakValueDictionary[str, RunRecord] = weakref.WeakValueDictionary()
        self._recent_records: deque[RunRecord] = deque(maxlen=_MAX_RECENT)
        self._recent_deliveries = RecentDeliveries()
        self._inbox = DeliveryInbox(self._take_delivery, self._poll_all, self._distrust)
        self._awaited: dict[str, RunRecord] = {}
        self._unknown_statuses: set[str] = set()
        self._is_closed = False
        self._home = HomeLoop()
        self._task: object | None = None
        self._changed = anyio.Event()
        self._jobs: deque[Callable[[], Awaitable[None]]] = deque()
        self._workers = 0

    # The records.

    def record(self, new: RunRecord) -> RunRecord:
        """Return the record of an execution, the existing one or this new one; a delivery may have come before it."""
        self._inbox.enter()
        known = self._records.setdefault(new.execution_id, new)
        if known is new:
            if self._scheduler.deliveries.is_expected:
                self._recent_records.append(new)
            if (delivered := self._recent_deliveries.get(new.execution_id)) is not None:
                self._apply_delivery(new, delivered, is_first=new.tracked.expects_delivery is True)
        known.target = known.target or new.target
        return known

    def update(self, record: RunRecord, state: ExecutionState, *, is_delivered: bool = False) -> None:
        """Update a record with a state, from a poll or a delivery; a final one never changes again."""
        record.failures, record.error = 0, None
        if record.state.is_final:
            return
        self._warn_of_unknown(state)
        is_change = state.status != record.state.status
        record.state = state
        if is_change:
            record.notify()
        now, tracked = anyio.current_time(), record.tracked
        if state.request_id is not None:
            self._scheduler.set_request_id(tracked, state.request_id)
        self._date(tracked, state, now)
        if state.is_final:
            self._report_end(record, now)
            duration = None if state.ms is None else state.ms / 1000
            self._scheduler.finished(
                record.execution_id,
                now,
                duration=duration,
                is_polled=not is_delivered,
                is_typical=not is_delivered or state.status == Status.COMPLETED,  # many fail at once
            )
            if tracked.expects_delivery and self._recent_deliveries.get(state.execution_id) is None:
                self._scheduler.deliveries.add(state.execution_id, was_delivered=False)
        elif is_change and state.status == Status.CANCEL_REQUESTED:
            self._scheduler.cancel_requested(tracked, now)
            self._changed.set()

    def _report_end(self, record: RunRecord, now: float) -> None:
        """Report that a run was seen to finish, and how late that is where the service says when it finished."""
        state, since, delay = record.state, record.tracked.submitted_at, None
        server = self._limiter.server_time(now)
        if state.completed_at is not None and server is not None:
            delay = server - state.completed_at.timestamp()
        elif since is not None and state.ms is not None:
            delay = now - since - state.ms / 1000
        was_awaited = self._take_out_of_flight(record)
        try:
            self.telemetry.finished(state, record.target, noticed_after=delay if was_awaited else None)
        except Exception as error:  # noqa: BLE001  (the state may be of a run whose submit is being answered)
            _unexpected("the report of an end", error)

    def _take_out_of_flight(self, record: RunRecord) -> bool:
        was_in_flight = self.in_flight.pop(record.execution_id, None) is not None
        self.telemetry.count_in_flight(-was_in_flight)
        return was_in_flight

    def _warn_of_unknown(self, state: ExecutionState) -> None:
        is_new = not isinstance(state.status, Status) and state.status not in self._unknown_statuses
        if is_new and len(self._unknown_statuses) < 100:
            self._unknown_statuses.add(state.status)
            extra = fields("unknown_status", execution_id=state.execution_id, status=state.status)
            message = "execution %s has the unknown status %r: still waiting"
            logger.warning(message, state.execution_id, state.status, extra=extra)

    def _date(self, tracked: TrackedRun, state: ExecutionState, now: float) -> None:
        """Set the age of an attached run by its date."""
        server = self._limiter.server_time(now)
        if tracked.submitted_at is None and state.created_at is not None and server is not None:
            age = server - state.created_at.timestamp()
            if -_MAX_SKEW <= age <= _MAX_AGE:
                tracked.start(now - max(0.0, age), submitted_at=now - max(0.0, age))

    # Deliveries.

    def expect_deliveries(self, bus: object = None) -> None:
        """Expect deliveries to be handed to `delivered`, or to be heard over a bus: while they come, few polls do."""
        self._scheduler.deliveries.is_expected = True
        self._scheduler.deliveries.has_bus = bus is not None
        self._inbox.set_bus(bus)

    def delivered(self, state: ExecutionState) -> None:
        """Process a verified delivery, which may come from any thread: an end finishes the waits, or is polled once."""
        self._inbox.put(state)

    def _poll_all(self) -> None:
        """Poll each run that is waited for: deliveries may have been missed."""
        for record in list(self._awaited.values()):
            self._scheduler.report_finished(record.execution_id)
        self._changed.set()

    def _distrust(self) -> None:
        self._scheduler.deliveries.is_expected = False
        self._changed.set()

    def _take_delivery(self, state: ExecutionState) -> None:
        if not is_end(state):
            return
        is_first, record = self._recent_deliveries.add(state), self._records.get(state.execution_id)
        if record is not None:
            self._apply_delivery(record, state, is_first=is_first)

    def _apply_delivery(self, record: RunRecord, state: ExecutionState, *, is_first: bool) -> None:
        if is_first:
            if record.tracked.expects_delivery or self._scheduler.deliveries.has_bus:  # else a miss would not count
                self._scheduler.deliveries.add(state.execution_id, was_delivered=True)
            since = record.tracked.submitted_at
            is_news = state.status == Status.COMPLETED and not record.state.is_final
            if is_news and since is not None and not record.waiters:
                age = anyio.current_time() - since
                self._learned.durations_for(record.tracked.duration_key, record.tracked.expected).observe_end(age, age)
        if is_complete(state):
            self.update(record, state, is_delivered=True)
        elif record.waiters and not record.state.is_final:
            self._scheduler.report_finished(record.execution_id)
        self._changed.set()

    # What callers ask for.

    @property
    def polls_needed(self) -> int:
        """How many polls show the ends of all runs that are waited for, beside those in flight."""
        return self._scheduler.polls_needed

    async def wait_for_change(
        self, record: RunRecord, seen: ExecutionState | None, *, deadline: float = math.inf
    ) -> ExecutionState:
        """Wait until the execution has finished or its status differs from `seen`; return the new state.

        `deadline`: when this wait will be cancelled, by the clock of the loop. Raises the failure that ends the wait
        (`failures_of`), with the id in it. Cancelled: only this wait ends.
        """
        if not self.in_flight:
            await _warn_at_loop_end(self.in_flight)
        link = self._join(record, deadline)
        try:
            while not record.state.is_final and (seen is None or record.state.status == seen.status):
                if self._is_closed:
                    raise ClientClosedError(
                        f"the client was closed while execution {record.execution_id} was awaited; the run continues: "
                        "attach it in another client"
                    )
                self._home.enter()
                if self._task is None:  # in an empty context: it serves all waiters and belongs to none
                    self._task = spawn(self._run, contextvars.Context())
                assert record.changed is not None  # noqa: S101  (it is there while somebody waits)
                await record.changed.wait()
                record.raise_failure(self._max_failures if deadline == math.inf else math.inf)
        except KnoudsError as error:
            record.add_run_id(error)
            raise
        else:
            return record.state
        finally:
            self._leave(record, link)

    async def refresh(self, record: RunRecord) -> ExecutionState:
        """Poll now, once, for the caller; every waiter is notified."""
        self.update(record, await self._send(endpoints.get_execution(record.execution_id)))
        return record.state

    async def cancel(self, record: RunRecord) -> ExecutionState:
        """Cancel the run; one that has finished already is polled instead, for only a poll has its result."""
        try:
            state = await self._send(endpoints.cancel_execution(record.execution_id))
        except ConflictError:
            return await self.refresh(record)
        if state.is_final:
            return await self.refresh(record)
        self.update(record, state)
        return record.state

    def close(self) -> None:
        """End every wait with ClientClosedError; the runs continue, and one WARNING lists them."""
        self._is_closed = True
        for record in list(self._awaited.values()):
            record.notify()
        self.telemetry.count_in_flight(-len(self.in_flight))
        _warn_of_runs_in_flight(self.in_flight)

    def _join(self, record: RunRecord, deadline: float) -> SpanLink:
        """Count a wait; return its span."""
        self._inbox.enter()
        record.waiters += 1
        if (link := self.telemetry.current()) is not None:
            record.serves.append(link)
        if record.execution_id not in self.in_flight and not record.state.is_final and not self._is_closed:
            self.in_flight[record.execution_id] = record
            self.telemetry.count_in_flight(1)
        if record.waiters == 1:
            record.changed, record.failures, record.error = anyio.Event(), 0, None
            self._awaited[record.execution_id] = record
            self._inbox.awaited(is_any=True)
            self._scheduler.add(record.tracked, anyio.current_time())
            if self._recent_deliveries.get(record.execution_id) is not None:
                self._scheduler.report_finished(record.execution_id)
            self._changed.set()
        if deadline < math.inf:
            self._scheduler.add_deadline(record.execution_id, deadline, anyio.current_time())
            self._changed.set()
        return link

    def _leave(self, record: RunRecord, link: SpanLink) -> None:
        record.waiters -= 1
        if link is not None:
            record.serves.remove(link)
        if record.waiters == 0:
            record.changed = None
            self._scheduler.remove(record.execution_id)
            del self._awaited[record.execution_id]
            if not self._awaited:
                self._inbox.awaited(is_any=False)
                self._changed.set()

    # The task that polls.

    async def _run(self) -> None:
        try:
            await checkpoint()  # an eager task would run before it is known as the poller's
            while self._awaited:
                await self._while_awaited()
        except Exception as error:  # noqa: BLE001  (the waiters would restart at once what fails at once)
            for record in self._awaited.values():
                record.failures, record.error = math.inf, _unexpected("polling", error)
        finally:
            self._task = None
            for record in list(self._awaited.values()):  # cancelled from outside: the waiters restart it
                record.notify()

    async def _while_awaited(self) -> None:
        try:
            async with anyio.create_task_group() as workers:
                while self._awaited:
                    if self._changed.is_set():
                        self._changed = anyio.Event()
                    at = self._queue_due()
                    for _ in range(min(len(self._jobs), _MAX_WORKERS - self._workers)):
                        self._workers += 1
                        workers.start_soon(self._work)
                    with anyio.CancelScope(deadline=at):
                        await self._changed.wait()
                workers.cancel_scope.cancel()
        finally:
            self._jobs.clear()
            self._workers = 0
            self._scheduler.requests_cancelled(anyio.current_time())

    def _queue_due(self) -> float:
        """Queue the requests that are due now; return when to plan again."""
        polls, usage = self._quota(_POLL_ROUTE, queued=len(self._jobs)), self._quota(_USAGE_ROUTE)
        plan = self._scheduler.plan(anyio.current_time(), poll_quota=polls, usage_quota=usage)
        self._jobs.extend(partial(self._poll, self._awaited[execution_id]) for execution_id in plan.polls)
        if plan.page is not None:
            self._jobs.appendleft(partial(self._fetch_statuses, plan.page))
        return plan.next_at

    def _quota(self, route: str, *, queued: int = 0) -> Quota:
        """Return what a route has left for requests that are neither queued nor waiting at the rate limit yet."""
        stats = self._limiter.stats(route)
        left = None if stats.left is None else stats.left - stats.waiting - queued
        return Quota(stats.limit, left, stats.resets_in)

    async def _work(self) -> None:
        try:
            while self._jobs:
                await self._jobs.popleft()()
        finally:
            self._workers -= 1

    async def _poll(self, record: RunRecord) -> None:
        try:
            call = endpoints.get_execution(record.execution_id)
            self.update(record, await self._send(call, serves=tuple(record.serves)))
        except KnoudsError as error:
            self._poll_failed(record, error)
        except Exception as error:  # noqa: BLE001  (one poll's trouble must not end all others)
            self._poll_failed(record, _unexpected("a poll", error))
        now = anyio.current_time()
        self._scheduler.polled(record.execution_id, now, random.random(), failures=record.failures)  # noqa: S311
        self._changed.set()

    def _poll_failed(self, record: RunRecord, error: KnoudsError) -> None:
        """Record a failed poll for the waiters: each decides whether it ends its wait."""
        if record.state.is_final:
            return
        submitted_at = record.tracked.submitted_at
        age = None if submitted_at is None else anyio.current_time() - submitted_at
        extra = fields("poll_failed", execution_id=record.execution_id, http_status=getattr(error, "status", None))
        logger.debug("a poll of execution %s failed: %s", record.execution_id, error, extra=extra)
        failures = failures_of(error, age=age)
        record.failures = record.failures + failures if failures else 0
        record.error = error.with_traceback(None) if failures else None
        if record.failures == math.inf and record.may_not_exist(error):
            self._take_out_of_flight(record)
        record.notify()

    async def _fetch_statuses(self, page: PageRequest | None) -> None:
        try:
            while page is not None:
                serves = tuple(link for record in self._awaited.values() for link in record.serves)
                call = endpoints.list_usage_statuses(limit=page.limit, offset=page.offset)
                status_page = await self._send(call, serves=serves)
                page = self._scheduler.page_received(page, status_page, anyio.current_time())
                self._changed.set()
        except Exception as error:  # noqa: BLE001  (without listings there are polls)
            extra = fields("listing_failed", route=_USAGE_ROUTE, http_status=getattr(error, "status", None))
            logger.debug("a usage listing failed: %s", error, extra=extra)
            self._scheduler.page_failed(anyio.current_time())
        self._changed.set()
