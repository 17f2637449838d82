"""The task that polls while somebody waits: it sends what the scheduler plans, and reports what came back.

What is due is decided in `agenda`. A few workers share the polls, so that a poll is no task of its own; one poll's
trouble ends no other. When nobody waits, the task ends, and what is in flight is cancelled.
"""

from __future__ import annotations

import contextvars
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, TypeAlias

import anyio
import attrs

from knouds_async._io.backend import spawn
from knouds_async._io.limiter import LimiterStats
from knouds_async._io.pipeline import Send
from knouds_async._io.records import RunRecord
from knouds_async._sansio import endpoints, faults
from knouds_async._sansio.agenda import PollScheduler
from knouds_async._sansio.faults import PollFailure
from knouds_async._sansio.listings import PageRequest, Quota
from knouds_async._sansio.webhooks import FallbackPolling
from knouds_async.errors import KnoudsError
from knouds_async.types import ExecutionState

logger = logging.getLogger("knouds_async")

_MAX_WORKERS: Final = 100
_POLL_ROUTE: Final = endpoints.get_execution("x").route
_USAGE_ROUTE: Final = endpoints.list_usage_statuses(limit=1, offset=0).route

PollJob: TypeAlias = Callable[[], Awaitable[None]]
RouteStats: TypeAlias = Callable[[str], LimiterStats]


@attrs.frozen(eq=False, repr=False)
class PollCallbacks:
    """What is called after a poll: with the state it saw, the error it met, or when the run is still running.

    `on_error` returns whether the error is as good as a poll that found the run running.
    """

    on_state: Callable[[RunRecord, ExecutionState], None]
    on_error: Callable[[RunRecord, KnoudsError], bool]
    on_running: Callable[[RunRecord], None]


class PollTask:
    """Polls the runs in `awaited` through `send`."""

    def __init__(
        self,
        send: Send,
        stats: RouteStats,
        scheduler: PollScheduler,
        fallback: FallbackPolling,
        awaited: Mapping[str, RunRecord],
        callbacks: PollCallbacks,
    ) -> None:
        self._send = send
        self._stats = stats
        self._scheduler = scheduler
        self._fallback = fallback
        self._awaited = awaited
        self._callbacks = callbacks
        self._task: object | None = None
        self._changed = anyio.Event()
        self._jobs: deque[PollJob] = deque()
        self._workers = 0

    def ensure_running(self) -> None:
        """Start the task if there is none, in an empty context: it serves all waiters and belongs to none."""
        if self._task is None:
            self._task = spawn(self._run, contextvars.Context())

    def notify(self) -> None:
        """Plan again: something has changed."""
        self._changed.set()

    async def _run(self) -> None:
        try:
            while self._awaited:
                await self._while_awaited()
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
            self._scheduler.requests_cancelled(anyio.current_time(), random.random())  # noqa: S311

    def _queue_due(self) -> float:
        """Queue the requests that are due now; return when to plan again."""
        now = anyio.current_time()
        for execution_id in self._fallback.pop_due(now):
            self._scheduler.add(self._awaited[execution_id].tracked, now, random.random())  # noqa: S311
        polls, usage = self._quota(_POLL_ROUTE, queued=len(self._jobs)), self._quota(_USAGE_ROUTE)
        plan = self._scheduler.plan(now, random.random(), poll_quota=polls, usage_quota=usage)  # noqa: S311
        self._jobs.extend(partial(self._poll, self._awaited[execution_id]) for execution_id in plan.polls)
        if plan.page is not None:
            self._jobs.appendleft(partial(self._fetch_statuses, plan.page))
        return min(plan.next_at, self._fallback.next_due_at())

    def _quota(self, route: str, *, queued: int = 0) -> Quota:
        """Return what a route has left for requests that are neither queued nor waiting at the rate limit yet."""
        stats = self._stats(route)
        remaining = None if stats.left is None else stats.left - stats.waiting - queued
        return Quota(limit=stats.limit, remaining=remaining, resets_in=stats.resets_in)

    async def _work(self) -> None:
        try:
            while self._jobs:
                await self._jobs.popleft()()
        finally:
            self._workers -= 1

    async def _poll(self, record: RunRecord) -> None:
        is_answered = False
        try:
            state = await self._send(endpoints.get_execution(record.execution_id))
        except KnoudsError as error:
            is_answered = self._callbacks.on_error(record, error)
        except Exception as error:  # noqa: BLE001  (one poll's trouble must not end all others)
            self._callbacks.on_error(record, KnoudsError(f"the poll failed with {type(error).__name__}: {error}"))
        else:
            is_answered = True
            self._callbacks.on_state(record, state)
        now = anyio.current_time()
        self._scheduler.polled(record.execution_id, now, random.random(), is_answered=is_answered)  # noqa: S311
        if not record.state.is_final:
            self._callbacks.on_running(record)
        self._changed.set()

    async def _fetch_statuses(self, page: PageRequest | None) -> None:
        try:
            while page is not None:
                status_page = await self._send(endpoints.list_usage_statuses(limit=page.limit, offset=page.offset))
                page = self._scheduler.page_received(page, status_page, anyio.current_time())
                self._changed.set()
        except Exception as error:  # noqa: BLE001  (without listings there are polls)
            is_permanent = (
                isinstance(error, KnoudsError) and faults.classify_poll_error(error, age=None) is PollFailure.PERMANENT
            )
            logger.debug("a usage listing failed: %s", error)
            self._scheduler.page_failed(anyio.current_time(), is_permanent=is_permanent)
        self._changed.set()
