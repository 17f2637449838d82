"""The one place that polls: looks at every execution somebody waits for, and wakes the waiters.

Rule of the file: what is due is decided in `agenda`. One look serves every waiter; a waiter that is cancelled or times
out disturbs no other; the watcher's task lives only while somebody waits.
"""

from __future__ import annotations

import copy
import logging
import math
import random
import weakref
from collections import deque
from typing import Final

import anyio
import attrs

from knouds_async._io.backend import HomeLoop, spawn
from knouds_async._io.pipeline import Send
from knouds_async._sansio import agenda, calls
from knouds_async._sansio.agenda import Agenda, Fault, Looks
from knouds_async._sansio.deliveries import Early, Net, is_whole, tells_end
from knouds_async.config import Polling
from knouds_async.errors import ClientClosedError, ConflictError, KnoudsError
from knouds_async.types import ExecutionState, Status, Target

logger = logging.getLogger("knouds_async")

_RECENT: Final = 1000
"""Runs that are remembered though nobody holds a handle: web apps attach to them by id, one request after another."""


@attrs.define(eq=False, weakref_slot=True)
class Watched:
    """An execution and all who wait for it; every handle of one id in a client shares it.

    `is_promised`: whether the service said that it will deliver the end to a webhook.
    """

    execution_id: str
    target: Target | None
    state: ExecutionState
    looks: Looks
    is_promised: bool = False
    waiters: int = 0
    news: anyio.Event | None = None
    failures: float = 0  # looks that failed in a row; inf when no later look can do better
    error: KnoudsError | None = None

    @classmethod
    def of(cls, state: ExecutionState, target: Target | None, submitted: float | None = None) -> Watched:
        """Begin a record from a state; `submitted`: when, in local monotonic seconds, None when not known."""
        return cls(state.execution_id, target, state, Looks(submitted))

    def wake(self) -> None:
        """Tell every waiter to look at `state` and `error` again."""
        if self.news is not None:
            self.news.set()
            self.news = anyio.Event()


class Watcher:
    """Watches executions through `send`, at the pace of `polling`."""

    def __init__(self, send: Send, polling: Polling) -> None:
        """Watch nothing yet; no task is started before somebody waits."""
        self._send = send
        self._agenda = Agenda(polling.schedule)
        self._records: weakref.WeakValueDictionary[str, Watched] = weakref.WeakValueDictionary()
        self._waited_for: dict[str, Watched] = {}
        self._looking: dict[str, anyio.CancelScope] = {}
        self._task: object | None = None
        self._stir = anyio.Event()
        self._odd: set[str] = set()
        self._is_closed = False
        self._home = HomeLoop()
        self._early = Early()
        self._net = Net()
        self._announced: list[Watched] = []  # a delivery said that they are over, but not what they gave
        self._recent: deque[Watched] = deque(maxlen=_RECENT)

    def record(
        self,
        state: ExecutionState,
        target: Target | None,
        *,
        submitted: float | None = None,
        is_promised: bool = False,
    ) -> Watched:
        """Give the record of an execution, the one there is or a new one; a delivery may have come before it."""
        known = self._records.get(state.execution_id)
        if known is None:
            known = self._records[state.execution_id] = Watched.of(state, target, submitted)
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
            since = None if watched.state.is_final else watched.looks.submitted
            age = None if since is None else anyio.current_time() - since
            # Only completed runs say how long runs take: many fail at once.
            self._net.told(str(watched.target), age=age if state.status == Status.COMPLETED else None)
        if is_whole(state):
            self.saw(watched, state)
        elif watched.waiters and not watched.state.is_final:
            self._announced.append(watched)
            self._stir.set()

    async def changed(
        self, watched: Watched, seen: ExecutionState | None, *, has_deadline: bool = False
    ) -> ExecutionState:
        """Wait until the execution is over or its status is not the one of `seen`; give the new state.

        Raises the fault that ends the wait (`agenda.fault`), with the id in it. Cancelled: only this wait ends.
        """
        self._join(watched)
        try:
            while not watched.state.is_final and (seen is None or watched.state.status == seen.status):
                if self._is_closed:
                    raise _closed(watched)
                self._ensure_running()
                assert watched.news is not None  # noqa: S101  (it is there while somebody waits)
                await watched.news.wait()
                _raise_if_over(watched, has_deadline=has_deadline)
            return watched.state
        finally:
            self._leave(watched)

    async def refresh(self, watched: Watched) -> ExecutionState:
        """Look now, once, for the caller; every waiter learns of it."""
        self.saw(watched, await self._send(calls.get_execution(watched.execution_id)))
        return watched.state

    async def cancel(self, watched: Watched) -> ExecutionState:
        """Ask for the end of the run; one that is over already is looked at instead, for only a look has its result."""
        try:
            state = await self._send(calls.cancel_execution(watched.execution_id))
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
        if state.is_final and watched.is_promised and self._early.get(state.execution_id) is None:
            self._net.missed()
        if is_change:
            watched.wake()

    def close(self) -> None:
        """End every wait with ClientClosedError; the runs go on."""
        self._is_closed = True
        for watched in list(self._waited_for.values()):
            watched.wake()

    def _join(self, watched: Watched) -> None:
        watched.waiters += 1
        if watched.waiters == 1:
            watched.news, watched.failures, watched.error = anyio.Event(), 0, None
            self._waited_for[watched.execution_id] = watched
            if self._early.get(watched.execution_id) is not None:
                self._announced.append(watched)
            if not self._hold(watched, has_looked=False):
                self._put_on_agenda(watched)
            self._stir.set()

    def _leave(self, watched: Watched) -> None:
        watched.waiters -= 1
        if watched.waiters == 0:
            watched.news = None
            if not self._net.let_go(watched.execution_id):
                watched.looks = self._agenda.forget(watched.execution_id)
            del self._waited_for[watched.execution_id]
            if (look := self._looking.pop(watched.execution_id, None)) is not None:
                look.cancel()
            self._stir.set()

    def _put_on_agenda(self, watched: Watched) -> None:
        self._agenda.watch(watched.execution_id, watched.looks, anyio.current_time(), random.random())  # noqa: S311

    def _hold(self, watched: Watched, *, has_looked: bool) -> bool:
        """Leave a run to the deliveries and the net under them, if they can be relied on; say whether."""
        now, since = anyio.current_time(), watched.looks.submitted
        is_awaited = watched.is_promised and since is not None
        if has_looked and self._early.get(watched.execution_id) is not None:
            return False  # a delivery has told the end: it will show any moment
        if not (self._net.is_trusted if is_awaited else has_looked and self._net.has_caught):
            return False
        self._net.hold(watched.execution_id, str(watched.target), since=now if since is None else since, now=now)
        return True

    def _ensure_running(self) -> None:
        self._home.enter()
        if self._task is None:
            self._task = spawn(self._run)

    async def _run(self) -> None:
        is_done = False
        try:
            async with anyio.create_task_group() as looks:
                while self._waited_for:
                    for execution_id in self._net.due(anyio.current_time()):
                        self._put_on_agenda(self._waited_for[execution_id])
                    announced, self._announced = self._announced, []
                    for watched in announced:
                        looks.start_soon(self._fetch, watched)
                    for execution_id in self._agenda.due(anyio.current_time()):
                        looks.start_soon(self._look, self._waited_for[execution_id])
                    self._stir = anyio.Event()
                    with anyio.CancelScope(deadline=min(self._agenda.next_at(), self._net.next_at())):
                        await self._stir.wait()
                self._task, is_done = None, True  # whoever comes from here on starts anew
                looks.cancel_scope.cancel()
        finally:
            if not is_done:  # cancelled from outside: whoever still waits starts it anew
                self._task = None
                for watched in list(self._waited_for.values()):
                    watched.wake()

    async def _look(self, watched: Watched) -> None:
        is_wanted = False
        with anyio.CancelScope() as scope:
            self._looking[watched.execution_id] = scope
            try:
                state = await self._send(calls.get_execution(watched.execution_id))
            except KnoudsError as error:
                self._failed(watched, error)
            except Exception as error:  # noqa: BLE001  (one look's trouble must not end the looks at all others)
                self._failed(watched, KnoudsError(f"the look failed with {type(error).__name__}: {error}"))
            else:
                self.saw(watched, state)
            finally:
                is_wanted = self._looking.get(watched.execution_id) is scope  # else nobody waited: that was no look
                if is_wanted:
                    del self._looking[watched.execution_id]
                    if not watched.state.is_final:  # also when it was cut: else nobody would look again
                        self._agenda.looked(watched.execution_id, anyio.current_time(), random.random())  # noqa: S311
        if is_wanted and not watched.state.is_final:
            if watched.waiters and not self._net.holds(watched.execution_id) and self._hold(watched, has_looked=True):
                watched.looks = self._agenda.forget(watched.execution_id)
            self._stir.set()

    async def _fetch(self, watched: Watched) -> None:
        """Get what a delivery said is there; should that fail, looks at the usual pace take over."""
        with anyio.CancelScope() as scope:
            if not watched.waiters or watched.state.is_final:
                return
            self._looking[watched.execution_id] = scope
            try:
                self.saw(watched, await self._send(calls.get_execution(watched.execution_id)))
            except KnoudsError as error:
                logger.debug("a look at execution %s failed: %s", watched.execution_id, error)
            finally:
                if self._looking.get(watched.execution_id) is scope:
                    del self._looking[watched.execution_id]
        if not watched.state.is_final and self._net.let_go(watched.execution_id):
            self._put_on_agenda(watched)
            self._stir.set()

    def _failed(self, watched: Watched, error: KnoudsError) -> None:
        """Keep a failed look for the waiters: each decides whether it ends its wait."""
        if watched.state.is_final:
            return
        submitted = watched.looks.submitted
        age = None if submitted is None else anyio.current_time() - submitted
        logger.debug("a look at execution %s failed: %s", watched.execution_id, error)
        match agenda.fault(error, age=age):
            case Fault.NONE:
                return
            case Fault.PASSING:
                watched.failures += 1
            case Fault.LASTING:
                watched.failures = math.inf
        watched.error = error.with_traceback(None)
        watched.wake()


def _raise_if_over(watched: Watched, *, has_deadline: bool) -> None:
    """Raise the fault that ends this wait; each waiter its own copy, or their tracebacks would grow into each other."""
    if watched.error is not None and watched.failures >= (math.inf if has_deadline else agenda.PATIENCE):
        error = copy.copy(watched.error)
        error.execution_id = watched.execution_id
        raise error


def _closed(watched: Watched) -> ClientClosedError:
    error = ClientClosedError(
        f"the client was closed while execution {watched.execution_id} was awaited; it runs on: "
        f"attach it in another client with knouds.executions.attach({watched.execution_id!r})"
    )
    error.execution_id = watched.execution_id
    return error
