"""Execution: the awaitable handle of a run that is out. Thin: an id, a target and the watcher.

Waiting is never the run: whatever happens to a wait, the run goes on and is charged (contract 5).
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

import anyio

from knouds_async._io.records import Watched
from knouds_async._io.watcher import Watcher
from knouds_async.errors import (
    ClientClosedError,
    ExecutionCancelledError,
    ExecutionFailedError,
    InvalidArgumentError,
    KnoudsError,
    WaitTimeoutError,
)
from knouds_async.types import ExecutionState, RunResult, Status, Target


class Execution:
    """A run that was submitted: await it for its result.

    Any number of tasks may await one handle; they share its polls. It pickles to its id, target and base URL, and
    `knouds.executions.attach(execution)` takes it back in any process.
    """

    __slots__ = ("__weakref__", "_base_url", "_watched", "_watcher")

    def __init__(self, watched: Watched, watcher: Watcher | None, base_url: str) -> None:
        """Made by `submit` and `attach`; not by hand."""
        self._watched = watched
        self._watcher = watcher
        self._base_url = base_url

    @property
    def id(self) -> str:
        """The service's id of the run."""
        return self._watched.execution_id

    @property
    def target(self) -> Target | None:
        """What runs; None when it was attached without one."""
        return self._watched.target

    @property
    def state(self) -> ExecutionState:
        """The state last seen, without a request; `"unknown"` before the first look at an attached run."""
        return self._watched.state

    @property
    def base_url(self) -> str:
        """The service that runs it."""
        return self._base_url

    def __repr__(self) -> str:
        """Show id, target and status."""
        return f"<Execution {self.id} of {self.target or 'an unknown target'}: {self.state.status}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle to id, target, base URL and the state last seen; never the client or the key."""
        return _detached, (self._watched.state, self.target, self._base_url)

    def __await__(self) -> Generator[Any, None, RunResult]:
        """Wait for the run and give its RunResult.

        Raises ExecutionFailedError or ExecutionCancelledError for how it ended, and what `wait` raises. Cancelling the
        task that awaits stops the waiting, never the run.
        """
        return self._result().__await__()

    async def _result(self) -> RunResult:
        return result_of(await self.wait())

    async def wait(self, *, timeout: float | None = None) -> ExecutionState:
        """Wait until the run is over and give its final state, however it ended.

        `timeout`: seconds for the whole wait, a poll in flight included; then WaitTimeoutError, which carries this
        handle, and the run goes on. Without one, five looks that fail in a row end the wait with what they saw.
        Cancelled: only this wait ends.
        """
        if timeout is not None and not (isinstance(timeout, (int, float)) and timeout >= 0):
            raise InvalidArgumentError(f"timeout={timeout!r}: must be a number of seconds of at least 0, or None")
        if timeout is None:
            return await self._end(math.inf)
        deadline = anyio.current_time() + timeout
        with anyio.CancelScope(deadline=deadline):
            return await self._end(deadline)
        raise WaitTimeoutError(execution=self, execution_id=self.id, timeout=timeout)

    async def _end(self, deadline: float) -> ExecutionState:
        state = self.state
        while not state.is_final:
            state = await self._live().changed(self._watched, state, deadline=deadline)
        return state

    async def refresh(self) -> ExecutionState:
        """Look once, now, and give the state. Raises what any read raises."""
        return await self._live().refresh(self._watched)

    async def cancel(self) -> ExecutionState:
        """Ask the service to cancel the run and give the state then: often `cancel_requested`; wait for the end.

        The run is charged all the same. A run that is already over is not an error: its final state is given.
        """
        return await self._live().cancel(self._watched)

    def updates(self) -> Updates:
        """Give each change of status once, the present one first and the final one last.

        `async for state in execution.updates(): ...`. It raises what `wait` raises. Leaving the loop early is free.
        """
        return Updates(self._live(), self._watched)

    def _live(self) -> Watcher:
        if self._watcher is None:
            raise ClientClosedError(
                f"this handle of execution {self.id} was unpickled and belongs to no client: "
                "take it back with knouds.executions.attach(execution)"
            )
        return self._watcher


class Updates:
    """The changes of an execution's status, as an async iterator that holds nothing open between its steps."""

    def __init__(self, watcher: Watcher, watched: Watched) -> None:
        """Made by `Execution.updates`."""
        self._watcher = watcher
        self._watched = watched
        self._given: ExecutionState | None = None

    def __aiter__(self) -> Updates:
        """Iterate over itself."""
        return self

    async def __anext__(self) -> ExecutionState:
        """Wait for the next change. Cancelled: nothing is lost, the next step gives it."""
        if self._given is not None and self._given.is_final:
            raise StopAsyncIteration
        state = self._watched.state
        if self._given is not None or state.status == UNSEEN:
            state = await self._watcher.changed(self._watched, self._given or state)
        self._given = state
        return state


UNSEEN = "unknown"
"""The status of an attached run before the first look."""


def result_of(state: ExecutionState) -> RunResult:
    """Give what a final state gave, or raise how it ended."""
    if state.status == Status.COMPLETED:
        return RunResult(state.result, state.cost, state.ms, state.execution_id, state.raw)
    raise _ending(state)


def _ending(state: ExecutionState) -> KnoudsError:
    if state.status == Status.CANCELLED:
        return ExecutionCancelledError(execution_id=state.execution_id, state=state)
    failure = state.error
    message = (failure.message if failure else None) or "the service gave no reason"
    code = failure.code if failure else None
    return ExecutionFailedError(message, code=code, execution_id=state.execution_id, state=state)


def _detached(state: ExecutionState, target: Target | None, base_url: str) -> Execution:
    """Rebuild an unpickled handle: it knows its run, but no client."""
    return Execution(Watched.of(state, target), None, base_url)
