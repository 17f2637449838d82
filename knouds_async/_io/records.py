"""What is kept of a run that somebody holds a handle of, and the errors that end a wait for it."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import anyio
import attrs

from knouds_async._sansio.course import Course
from knouds_async._sansio.faults import PATIENCE
from knouds_async._sansio.learned import law_of
from knouds_async.errors import ClientClosedError, KnoudsError, NotFoundError
from knouds_async.types import ExecutionState, Target

T = TypeVar("T", bound=KnoudsError)


@attrs.define(eq=False, weakref_slot=True)
class Watched:
    """An execution and all who wait for it; every handle of one id in a client shares it.

    `is_promised`: whether the service said that it will deliver the end to a webhook.
    """

    execution_id: str
    target: Target | None
    state: ExecutionState
    course: Course
    is_promised: bool = False
    waiters: int = 0
    news: anyio.Event | None = None
    failures: float = 0  # looks that failed in a row; inf when no later look can do better
    error: KnoudsError | None = None

    @classmethod
    def of(
        cls,
        state: ExecutionState,
        target: Target | None,
        submitted: float | None = None,
        expected: float | None = None,
    ) -> Watched:
        """Begin a record from a state; `submitted`: when, in local monotonic seconds, None when not known."""
        course = Course(
            state.execution_id,
            law=law_of(target, expected),
            submitted=submitted,
            request_id=state.request_id,
            expected=expected,
        )
        return cls(state.execution_id, target, state, course)

    def wake(self) -> None:
        """Tell every waiter to look at `state` and `error` again."""
        if self.news is not None:
            self.news.set()
            self.news = anyio.Event()

    def raise_if_over(self, *, has_deadline: bool) -> None:
        """Raise the fault that ends a wait; each waiter its own copy, or their tracebacks would grow together."""
        if self.error is not None and self.failures >= (math.inf if has_deadline else PATIENCE):
            raise self._named_in(copy.copy(self.error))

    def closed(self) -> ClientClosedError:
        """Make the error that ends a wait when the client is closed."""
        error = ClientClosedError(
            f"the client was closed while execution {self.execution_id} was awaited; it runs on: "
            f"attach it in another client with knouds.executions.attach({self.execution_id!r})"
        )
        return self._named_in(error)

    def _named_in(self, error: T) -> T:
        """Say of an error that ends a wait which run was waited for, and that it exists: none may submit it again."""
        error.execution_id = self.execution_id
        if isinstance(error, NotFoundError) and self.course.submitted is None:
            return error  # attached by an id that may be none
        error.may_have_run = True
        error.add_note(
            f"execution {self.execution_id} was submitted and is charged; only the wait for it has ended: wait again, "
            f"or pick it up with knouds.executions.attach({self.execution_id!r})"
        )
        return error
