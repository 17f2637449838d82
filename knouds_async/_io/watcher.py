"""The watcher: the records of the runs that are out, who waits for them, and what is told of them.

Rule of the file: all news of a run comes through `saw`, whoever brings it. One look serves every waiter; a waiter
that is cancelled or times out disturbs no other. The looks themselves are in `looking`.
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
from knouds_async._io.looking import Looking, Reports, Stats
from knouds_async._io.pipeline import Send
from knouds_async._io.records import Watched
from knouds_async._sansio import endpoints, faults
from knouds_async._sansio.agenda import Agenda
from knouds_async._sansio.deliveries import Early, Net, is_whole, tells_end
from knouds_async._sansio.faults import Fault
from knouds_async._sansio.learned import Learned
from knouds_async.config import Polling
from knouds_async.errors import ConflictError, KnoudsError
from knouds_async.types import ExecutionState, Status, Target

logger = logging.getLogger("knouds_async")

_RECENT: Final = 1000
"""Runs that are remembered though nobody holds a handle: web apps attach to them by id, one request after another."""

_OLDEST: Final = 600.0
"""Seconds of age that the date of a run is believed for: its date and the clock may be of different machines."""

_SKEW: Final = 2.0


class Watcher:
    """Watches executions through `send`, at the pace of `polling`, and learns how long they take into `learned`.

    `stats`: of a route's quota. `server_time`: the service's clock at a moment, in epoch seconds, None when not known.
    """

    def __init__(
        self, send: Send, polling: Polling, learned: Learned, stats: Stats, server_time: Callable[[float], float | None]
    ) -> None:
        """Watch nothing yet; no task is started before somebody waits."""
        self._send = send
        self._learned = learned
        self._server_time = server_time
        self._agenda = Agenda(polling, learned)
        self._records: weakref.WeakValueDictionary[str, Watched] = weakref.WeakValueDictionary()
        self._waited_for: dict[str, Watched] = {}
        self._odd: set[str] = set()
        self._is_closed = False
        self._home = HomeLoop()
        self._early = Early()
        self._net = Net()
        self._recent: deque[Watched] = deque(maxlen=_RECENT)
        reports = Reports(self.saw, self._failed, self._goes_on)
        self._looking = Looking(send, stats, self._agenda, self._net, self._waited_for, reports)

    def record(
        self,
        state: ExecutionState,
        target: Target | None,
        *,
        submitted: float | None = None,
        expected: float | None = None,
        is_promised: bool = False,
    ) -> Watched:
        """Give the record of an execution, the one there is or a new one; a delivery may have come before it."""
        known = self._records.get(state.execution_id)
        if known is None:
            known = self._records[state.execution_id] = Watched.of(state, target, submitted, expected)
            known.is_promised = is_promised
            if self._net.is_expected:
                self._recent.append(known)
            if (early := self._early.get(state.execution_id)) is not None:
                self._believe(known, early, is_first=is_promised)
        known.target = known.target or target
        return known

    def expect_deliveries(self) -> None:
        """Take note that deliveries will be handed to `delivered`: while they come, looks are few."""
        self._net.is_expected = True

    def delivered(self, state: ExecutionState) -> None:
        """Take note of a verified delivery: one that says all ends the waits, any other end is looked up once."""
        self._home.check()
        if not tells_end(state):
            return
        is_first, watched = self._early.keep(state), self._records.get(state.execution_id)
        if watched is not None:
            self._believe(watched, state, is_first=is_first)

    def _believe(self, watched: Watched, state: ExecutionState, *, is_first: bool) -> None:
        if is_first:
            since = None if watched.state.is_final else watched.course.submitted
            age = None if since is None else anyio.current_time() - since
            # Only completed runs say how long runs take: many fail at once.
            self._net.told(str(watched.target), age=age if state.status == Status.COMPLETED else None)
            if age is not None and watched.execution_id not in self._agenda:
                self._learned.ended(watched.course.law, age, age)
            self._looking.stir()  # other runs may be overdue sooner
        if is_whole(state):
            self.saw(watched, state)
        elif watched.waiters and not watched.state.is_final:
            self._announce(watched)

    async def changed(
        self, watched: Watched, seen: ExecutionState | None, *, deadline: float = math.inf
    ) -> ExecutionState:
        """Wait until the execution is over or its status is not the one of `seen`; give the new state.

        `deadline`: when this wait will be cut, by the clock of the loop. Raises the fault that ends the wait
        (`faults.fault`), with the id in it. Cancelled: only this wait ends.
        """
        self._join(watched, deadline)
        try:
            while not watched.state.is_final and (seen is None or watched.state.status == seen.status):
                if self._is_closed:
                    raise watched.closed()
                self._home.enter()
                self._looking.ensure_running()
                assert watched.news is not None  # noqa: S101  (it is there while somebody waits)
                await watched.news.wait()
                watched.raise_if_over(has_deadline=deadline < math.inf)
            return watched.state
        finally:
            self._leave(watched)

    async def refresh(self, watched: Watched) -> ExecutionState:
        """Look now, once, for the caller; every waiter learns of it."""
        self.saw(watched, await self._send(endpoints.get_execution(watched.execution_id)))
        return watched.state

    async def cancel(self, watched: Watched) -> ExecutionState:
        """Ask for the end of the run; one that is over already is looked at instead, for only a look has its result."""
        try:
            state = await self._send(endpoints.cancel_execution(watched.execution_id))
        except ConflictError:
            return await self.refresh(watched)
        if state.is_final:
            return await self.refresh(watched)
        self.saw(watched, state)
        return watched.state

    def saw(self, watched: Watched, state: ExecutionState) -> None:
        """Take note of a state; a final one never changes again."""
        watched.failures, watched.error = 0, None
        if watched.state.is_final:
            return
        if not isinstance(state.status, Status) and state.status not in self._odd and len(self._odd) < 100:
            self._odd.add(state.status)
            logger.warning("execution %s has the unknown status %r: still waiting", state.execution_id, state.status)
        is_change = state.status != watched.state.status
        watched.state = state
        self._tell_agenda(watched, state, is_change=is_change)
        if state.is_final and watched.is_promised and self._early.get(state.execution_id) is None:
            self._net.missed()
        if is_change:
            watched.wake()

    def _tell_agenda(self, watched: Watched, state: ExecutionState, *, is_change: bool) -> None:
        now, course = anyio.current_time(), watched.course
        if state.request_id is not None:
            self._agenda.identify(course, state.request_id)
        if course.submitted is None and state.created_at is not None and (server := self._server_time(now)) is not None:
            age = server - state.created_at.timestamp()
            if -_SKEW <= age <= _OLDEST:
                self._agenda.date(course, now - max(0.0, age))
        if state.is_final:
            self._agenda.over(watched.execution_id, now, lasted=None if state.ms is None else state.ms / 1000)
        elif is_change and state.status == Status.CANCEL_REQUESTED:
            self._agenda.cancelling(course, now, random.random())  # noqa: S311
            self._looking.stir()

    def close(self) -> None:
        """End every wait with ClientClosedError; the runs go on."""
        self._is_closed = True
        for watched in list(self._waited_for.values()):
            watched.wake()

    def _join(self, watched: Watched, deadline: float) -> None:
        watched.waiters += 1
        if watched.waiters == 1:
            watched.news, watched.failures, watched.error = anyio.Event(), 0, None
            self._waited_for[watched.execution_id] = watched
            if not self._hold(watched, has_looked=False):
                self._watch(watched)
            if self._early.get(watched.execution_id) is not None:
                self._announce(watched)
            self._looking.stir()
        if deadline < math.inf and watched.execution_id in self._agenda:
            self._agenda.hurry(watched.execution_id, deadline, anyio.current_time(), random.random())  # noqa: S311
            self._looking.stir()

    def _leave(self, watched: Watched) -> None:
        watched.waiters -= 1
        if watched.waiters == 0:
            watched.news = None
            self._net.let_go(watched.execution_id)
            self._agenda.forget(watched.execution_id)
            del self._waited_for[watched.execution_id]
            if not self._waited_for:
                self._looking.stir()

    def _watch(self, watched: Watched) -> None:
        self._agenda.watch(watched.course, anyio.current_time(), random.random())  # noqa: S311

    def _announce(self, watched: Watched) -> None:
        """Have a run looked at now that is said to be over; should that fail, looks at the usual pace take over."""
        if self._net.let_go(watched.execution_id):
            self._watch(watched)
        self._agenda.hint(watched.execution_id)
        self._looking.stir()

    def _hold(self, watched: Watched, *, has_looked: bool) -> bool:
        """Leave a run to the deliveries and the net under them, if they can be relied on; say whether."""
        now, since = anyio.current_time(), watched.course.submitted
        is_awaited = watched.is_promised and since is not None
        if has_looked and self._early.get(watched.execution_id) is not None:
            return False  # a delivery has told the end: it will show any moment
        if not (self._net.is_trusted if is_awaited else has_looked and self._net.has_caught):
            return False
        self._net.hold(watched.execution_id, str(watched.target), since=now if since is None else since, now=now)
        return True

    def _goes_on(self, watched: Watched) -> None:
        """Leave a run that a look found going to the deliveries, if they can be relied on."""
        if watched.waiters and not self._net.holds(watched.execution_id) and self._hold(watched, has_looked=True):
            self._agenda.forget(watched.execution_id)

    def _failed(self, watched: Watched, error: KnoudsError) -> bool:
        """Keep a failed look for the waiters, each decides whether it ends its wait; say if it is as good as one."""
        if watched.state.is_final:
            return True
        submitted = watched.course.submitted
        age = None if submitted is None else anyio.current_time() - submitted
        logger.debug("a look at execution %s failed: %s", watched.execution_id, error)
        match faults.fault(error, age=age):
            case Fault.NONE:
                return True
            case Fault.PASSING:
                watched.failures += 1
            case Fault.LASTING:
                watched.failures = math.inf
        watched.error = error.with_traceback(None)
        watched.wake()
        return False
