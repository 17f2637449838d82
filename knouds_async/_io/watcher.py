"""The poller: the records of the runs that somebody waits for, their waiters, and what is reported to them.

Every new state of a run comes through `update`, whoever brings it. One poll serves every waiter; a waiter that is
cancelled or times out disturbs no other. The requests themselves are sent in `looking`.
"""

from __future__ import annotations

import logging
import math
import random
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final

import anyio

from knouds_async._io.backend import HomeLoop
from knouds_async._io.looking import PollCallbacks, PollTask, RouteStats
from knouds_async._io.pipeline import Send
from knouds_async._io.records import RunRecord
from knouds_async._sansio import endpoints, faults
from knouds_async._sansio.agenda import PollScheduler
from knouds_async._sansio.durations import LearnedDurations
from knouds_async._sansio.faults import PollFailure
from knouds_async._sansio.webhooks import FallbackPolling, RecentDeliveries, is_complete, is_end
from knouds_async.config import Polling
from knouds_async.errors import ConflictError, KnoudsError
from knouds_async.types import ExecutionState, Status, Target

logger = logging.getLogger("knouds_async")

_MAX_RECENT: Final = 1000
"""Records that are kept though nobody holds a handle: web apps attach to them by id, one request after another."""

_MAX_AGE: Final = 600.0
"""Seconds of age up to which the date of a run is used: its date and the clock may be of different machines."""

_MAX_SKEW: Final = 2.0


class Poller:
    """Polls executions through `send`, as `polling` says, and learns how long they take into `learned`.

    `stats`: of a route's quota. `server_time`: the service's clock at a moment, in epoch seconds, None when unknown.
    """

    def __init__(
        self,
        send: Send,
        polling: Polling,
        learned: LearnedDurations,
        stats: RouteStats,
        server_time: Callable[[float], float | None],
    ) -> None:
        self._send = send
        self._durations = learned
        self._server_time = server_time
        self._scheduler = PollScheduler(polling, learned)
        self._records: weakref.WeakValueDictionary[str, RunRecord] = weakref.WeakValueDictionary()
        self._awaited: dict[str, RunRecord] = {}
        self._unknown_statuses: set[str] = set()
        self._is_closed = False
        self._home = HomeLoop()
        self._recent_deliveries = RecentDeliveries()
        self._fallback = FallbackPolling()
        self._recent_records: deque[RunRecord] = deque(maxlen=_MAX_RECENT)
        callbacks = PollCallbacks(self.update, self._poll_failed, self._still_running)
        self._task = PollTask(send, stats, self._scheduler, self._fallback, self._awaited, callbacks)

    def record(
        self,
        state: ExecutionState,
        target: Target | None,
        *,
        submitted_at: float | None = None,
        expected: float | None = None,
        expects_delivery: bool = False,
    ) -> RunRecord:
        """Return the record of an execution, the existing one or a new one; a delivery may have come before it."""
        known = self._records.get(state.execution_id)
        if known is None:
            known = self._records[state.execution_id] = RunRecord.of(state, target, submitted_at, expected)
            known.expects_delivery = expects_delivery
            if self._fallback.is_expected:
                self._recent_records.append(known)
            if (delivered := self._recent_deliveries.get(state.execution_id)) is not None:
                self._apply_delivery(known, delivered, is_first=expects_delivery)
        known.target = known.target or target
        return known

    def expect_deliveries(self) -> None:
        """Expect deliveries to be handed to `delivered`: while they come, there are few polls."""
        self._fallback.is_expected = True

    def delivered(self, state: ExecutionState) -> None:
        """Process a verified delivery: a complete end finishes the waits, any other end is polled once."""
        self._home.check()
        if not is_end(state):
            return
        is_first, record = self._recent_deliveries.add(state), self._records.get(state.execution_id)
        if record is not None:
            self._apply_delivery(record, state, is_first=is_first)

    def _apply_delivery(self, record: RunRecord, state: ExecutionState, *, is_first: bool) -> None:
        if is_first:
            since = None if record.state.is_final else record.tracked.submitted_at
            age = None if since is None else anyio.current_time() - since
            # Only completed runs say how long runs take: many fail at once.
            self._fallback.record_delivered(str(record.target), age=age if state.status == Status.COMPLETED else None)
            if age is not None and record.execution_id not in self._scheduler:
                self._durations.observe_end(record.tracked.duration_key, age, age)
            self._task.notify()  # other runs may be overdue sooner
        if is_complete(state):
            self.update(record, state)
        elif record.waiters and not record.state.is_final:
            self._poll_now(record)

    async def wait_for_change(
        self, record: RunRecord, seen: ExecutionState | None, *, deadline: float = math.inf
    ) -> ExecutionState:
        """Wait until the execution has finished or its status differs from `seen`; return the new state.

        `deadline`: when this wait will be cancelled, by the clock of the loop. Raises the failure that ends the wait
        (`faults.classify_poll_error`), with the id in it. Cancelled: only this wait ends.
        """
        self._join(record, deadline)
        try:
            while not record.state.is_final and (seen is None or record.state.status == seen.status):
                if self._is_closed:
                    raise record.closed_error()
                self._home.enter()
                self._task.ensure_running()
                assert record.changed is not None  # noqa: S101  (it is there while somebody waits)
                await record.changed.wait()
                record.raise_failure(has_deadline=deadline < math.inf)
            return record.state
        finally:
            self._leave(record)

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

    def update(self, record: RunRecord, state: ExecutionState) -> None:
        """Update a record with a state; a final one never changes again."""
        record.failures, record.error = 0, None
        if record.state.is_final:
            return
        if (
            not isinstance(state.status, Status)
            and state.status not in self._unknown_statuses
            and len(self._unknown_statuses) < 100
        ):
            self._unknown_statuses.add(state.status)
            logger.warning("execution %s has the unknown status %r: still waiting", state.execution_id, state.status)
        is_change = state.status != record.state.status
        record.state = state
        self._update_scheduler(record, state, is_change=is_change)
        if state.is_final and record.expects_delivery and self._recent_deliveries.get(state.execution_id) is None:
            self._fallback.record_missed()
        if is_change:
            record.notify()

    def _update_scheduler(self, record: RunRecord, state: ExecutionState, *, is_change: bool) -> None:
        now, tracked = anyio.current_time(), record.tracked
        if state.request_id is not None:
            self._scheduler.set_request_id(tracked, state.request_id)
        if (
            tracked.submitted_at is None
            and state.created_at is not None
            and (server := self._server_time(now)) is not None
        ):
            age = server - state.created_at.timestamp()
            if -_MAX_SKEW <= age <= _MAX_AGE:
                self._scheduler.set_submitted_at(tracked, now - max(0.0, age))
        if state.is_final:
            self._scheduler.finished(record.execution_id, now, duration=None if state.ms is None else state.ms / 1000)
        elif is_change and state.status == Status.CANCEL_REQUESTED:
            self._scheduler.cancel_requested(tracked, now, random.random())  # noqa: S311
            self._task.notify()

    def close(self) -> None:
        """End every wait with ClientClosedError; the runs continue."""
        self._is_closed = True
        for record in list(self._awaited.values()):
            record.notify()

    def _join(self, record: RunRecord, deadline: float) -> None:
        record.waiters += 1
        if record.waiters == 1:
            record.changed, record.failures, record.error = anyio.Event(), 0, None
            self._awaited[record.execution_id] = record
            if not self._delay(record, has_polled=False):
                self._schedule(record)
            if self._recent_deliveries.get(record.execution_id) is not None:
                self._poll_now(record)
            self._task.notify()
        if deadline < math.inf and record.execution_id in self._scheduler:
            self._scheduler.add_deadline(record.execution_id, deadline, anyio.current_time(), random.random())  # noqa: S311
            self._task.notify()

    def _leave(self, record: RunRecord) -> None:
        record.waiters -= 1
        if record.waiters == 0:
            record.changed = None
            self._fallback.release(record.execution_id)
            self._scheduler.remove(record.execution_id)
            del self._awaited[record.execution_id]
            if not self._awaited:
                self._task.notify()

    def _schedule(self, record: RunRecord) -> None:
        self._scheduler.add(record.tracked, anyio.current_time(), random.random())  # noqa: S311

    def _poll_now(self, record: RunRecord) -> None:
        """Poll immediately: the run was reported finished. Falls back to the schedule."""
        if self._fallback.release(record.execution_id):
            self._schedule(record)
        self._scheduler.report_finished(record.execution_id)
        self._task.notify()

    def _delay(self, record: RunRecord, *, has_polled: bool) -> bool:
        """Leave a run to the deliveries and the fallback polling, if they are reliable; return whether."""
        now, submitted_at = anyio.current_time(), record.tracked.submitted_at
        is_awaited = record.expects_delivery and submitted_at is not None
        if has_polled and self._recent_deliveries.get(record.execution_id) is not None:
            return False  # its end was delivered: a poll will show it any moment
        if not (self._fallback.is_reliable if is_awaited else has_polled and self._fallback.has_deliveries):
            return False
        self._fallback.delay(
            record.execution_id, str(record.target), submitted_at=now if submitted_at is None else submitted_at, now=now
        )
        return True

    def _still_running(self, record: RunRecord) -> None:
        """Leave a run that a poll found running to the deliveries, if they are reliable."""
        if (
            record.waiters
            and not self._fallback.is_delayed(record.execution_id)
            and self._delay(record, has_polled=True)
        ):
            self._scheduler.remove(record.execution_id)

    def _poll_failed(self, record: RunRecord, error: KnoudsError) -> bool:
        """Record a failed poll for the waiters, each decides whether it ends its wait; return if it is harmless."""
        if record.state.is_final:
            return True
        submitted_at = record.tracked.submitted_at
        age = None if submitted_at is None else anyio.current_time() - submitted_at
        logger.debug("a poll of execution %s failed: %s", record.execution_id, error)
        match faults.classify_poll_error(error, age=age):
            case PollFailure.IGNORABLE:
                return True
            case PollFailure.TRANSIENT:
                record.failures += 1
            case PollFailure.PERMANENT:
                record.failures = math.inf
        record.error = error.with_traceback(None)
        record.notify()
        return False
