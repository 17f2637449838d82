"""The record of a run that somebody holds a handle of, and the errors that end a wait for it."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import anyio
import attrs

from knouds_async._sansio.durations import duration_key
from knouds_async._sansio.faults import MAX_POLL_FAILURES
from knouds_async._sansio.tracked_run import TrackedRun
from knouds_async.errors import ClientClosedError, KnoudsError, NotFoundError
from knouds_async.types import ExecutionState, Target

T = TypeVar("T", bound=KnoudsError)


@attrs.define(eq=False, weakref_slot=True)
class RunRecord:
    """An execution and all who wait for it; every handle of one id in a client shares it.

    `expects_delivery`: whether the service said that it will deliver the end to a webhook.
    """

    execution_id: str
    target: Target | None
    state: ExecutionState
    tracked: TrackedRun
    expects_delivery: bool = False
    waiters: int = 0
    changed: anyio.Event | None = None
    failures: float = 0  # polls that failed in a row; inf when no later poll can do better
    error: KnoudsError | None = None

    @classmethod
    def of(
        cls,
        state: ExecutionState,
        target: Target | None,
        submitted_at: float | None = None,
        expected: float | None = None,
    ) -> RunRecord:
        """Create a record from a state; `submitted_at`: in local monotonic seconds, None when unknown."""
        tracked = TrackedRun(
            state.execution_id,
            duration_key=duration_key(target, expected),
            submitted_at=submitted_at,
            request_id=state.request_id,
            expected=expected,
        )
        return cls(state.execution_id, target, state, tracked)

    def notify(self) -> None:
        """Wake every waiter to check `state` and `error` again."""
        if self.changed is not None:
            self.changed.set()
            self.changed = anyio.Event()

    def raise_failure(self, *, has_deadline: bool) -> None:
        """Raise the failure that ends a wait; each waiter its own copy, or their tracebacks would grow together."""
        if self.error is not None and self.failures >= (math.inf if has_deadline else MAX_POLL_FAILURES):
            raise self._with_run_id(copy.copy(self.error))

    def closed_error(self) -> ClientClosedError:
        """Return the error that ends a wait when the client is closed."""
        error = ClientClosedError(
            f"the client was closed while execution {self.execution_id} was awaited; the run continues: "
            f"attach it in another client with knouds.executions.attach({self.execution_id!r})"
        )
        return self._with_run_id(error)

    def _with_run_id(self, error: T) -> T:
        """Add to an error that ends a wait which run it was, and that the run exists: nobody may submit it again."""
        error.execution_id = self.execution_id
        if isinstance(error, NotFoundError) and self.tracked.submitted_at is None:
            return error  # attached by an id that may be none
        error.may_have_run = True
        error.add_note(
            f"execution {self.execution_id} was submitted and is charged; only the wait for it has ended: wait again, "
            f"or attach it with knouds.executions.attach({self.execution_id!r})"
        )
        return error
