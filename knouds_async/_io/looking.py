"""The task that looks at runs while somebody waits: it does what the agenda says, and reports what it saw.

Rule of the file: what is due is decided in `agenda`. A few workers share the looks, so that a look is no task of its
own; one look's trouble ends no other. When nobody waits, the task ends, and what is under way is cut.
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
from knouds_async._io.records import Watched
from knouds_async._sansio import endpoints, faults
from knouds_async._sansio.agenda import Agenda
from knouds_async._sansio.deliveries import Net
from knouds_async._sansio.faults import Fault
from knouds_async._sansio.spending import Quota
from knouds_async._sansio.sweeps import Page
from knouds_async.errors import KnoudsError
from knouds_async.types import ExecutionState

logger = logging.getLogger("knouds_async")

_WORKERS: Final = 100
_POLLS: Final = endpoints.get_execution("x").route
_USAGE: Final = endpoints.list_usage_statuses(limit=1, offset=0).route

Job: TypeAlias = Callable[[], Awaitable[None]]
Stats: TypeAlias = Callable[[str], LimiterStats]


@attrs.frozen(eq=False, repr=False)
class Reports:
    """Whom to tell of a look: the state it saw, the error it met, and that it did not find the end.

    `failed` says whether the error is as good as a look that found the run going.
    """

    saw: Callable[[Watched, ExecutionState], None]
    failed: Callable[[Watched, KnoudsError], bool]
    goes_on: Callable[[Watched], None]


class Looking:
    """Looks at the runs in `waited_for` through `send`."""

    def __init__(
        self,
        send: Send,
        stats: Stats,
        agenda: Agenda,
        net: Net,
        waited_for: Mapping[str, Watched],
        reports: Reports,
    ) -> None:
        """Start no task yet."""
        self._send = send
        self._stats = stats
        self._agenda = agenda
        self._net = net
        self._waited_for = waited_for
        self._reports = reports
        self._task: object | None = None
        self._stir = anyio.Event()
        self._jobs: deque[Job] = deque()
        self._workers = 0

    def ensure_running(self) -> None:
        """Start the task if there is none, in an empty context: it serves all who wait, and belongs to none of them."""
        if self._task is None:
            self._task = spawn(self._run, contextvars.Context())

    def stir(self) -> None:
        """Have the agenda asked again: something has changed."""
        self._stir.set()

    async def _run(self) -> None:
        try:
            while self._waited_for:
                await self._while_waited_for()
        finally:
            self._task = None
            for watched in list(self._waited_for.values()):  # cancelled from outside: they start it anew
                watched.wake()

    async def _while_waited_for(self) -> None:
        try:
            async with anyio.create_task_group() as workers:
                while self._waited_for:
                    if self._stir.is_set():
                        self._stir = anyio.Event()
                    at = self._take_orders()
                    for _ in range(min(len(self._jobs), _WORKERS - self._workers)):
                        self._workers += 1
                        workers.start_soon(self._work)
                    with anyio.CancelScope(deadline=at):
                        await self._stir.wait()
                workers.cancel_scope.cancel()
        finally:
            self._jobs.clear()
            self._workers = 0
            self._agenda.dropped(anyio.current_time(), random.random())  # noqa: S311

    def _take_orders(self) -> float:
        """Queue what is to be done now; give when to ask again."""
        now = anyio.current_time()
        for execution_id in self._net.due(now):
            self._agenda.watch(self._waited_for[execution_id].course, now, random.random())  # noqa: S311
        polls, usage = self._quota(_POLLS, queued=len(self._jobs)), self._quota(_USAGE)
        plan = self._agenda.plan(now, random.random(), polls=polls, usage=usage)  # noqa: S311
        self._jobs.extend(partial(self._look, self._waited_for[execution_id]) for execution_id in plan.looks)
        if plan.page is not None:
            self._jobs.appendleft(partial(self._sweep, plan.page))
        return min(plan.at, self._net.next_at())

    def _quota(self, route: str, *, queued: int = 0) -> Quota:
        """Give what a route has left for requests that are neither queued nor in line for their turn yet."""
        stats = self._stats(route)
        left = None if stats.left is None else stats.left - stats.waiting - queued
        return Quota(limit=stats.limit, left=left, resets_in=stats.resets_in)

    async def _work(self) -> None:
        try:
            while self._jobs:
                await self._jobs.popleft()()
        finally:
            self._workers -= 1

    async def _look(self, watched: Watched) -> None:
        is_answered = False
        try:
            state = await self._send(endpoints.get_execution(watched.execution_id))
        except KnoudsError as error:
            is_answered = self._reports.failed(watched, error)
        except Exception as error:  # noqa: BLE001  (one look's trouble must not end the looks at all others)
            self._reports.failed(watched, KnoudsError(f"the look failed with {type(error).__name__}: {error}"))
        else:
            is_answered = True
            self._reports.saw(watched, state)
        now = anyio.current_time()
        self._agenda.looked(watched.execution_id, now, random.random(), is_alive=is_answered)  # noqa: S311
        if not watched.state.is_final:
            self._reports.goes_on(watched)
        self._stir.set()

    async def _sweep(self, page: Page | None) -> None:
        try:
            while page is not None:
                listing = await self._send(endpoints.list_usage_statuses(limit=page.limit, offset=page.offset))
                page = self._agenda.listed(page, listing, anyio.current_time())
                self._stir.set()
        except Exception as error:  # noqa: BLE001  (without sweeps there are looks)
            is_lasting = isinstance(error, KnoudsError) and faults.fault(error, age=None) is Fault.LASTING
            logger.debug("a usage listing failed: %s", error)
            self._agenda.not_listed(anyio.current_time(), is_lasting=is_lasting)
        self._stir.set()
