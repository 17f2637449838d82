"""What a caller's cancellation cannot cut: a paid request, from its first byte to its reply, and work in a thread.

`CancelScope(shield=True)` alone does not hold against asyncio's own `Task.cancel`, so the work runs in a task of its
own and the caller waits through any number of cancellations; so does the caller of a thread, which nothing can stop:
else it would work on beside what cleans up after it. Design decision: traps, "Cancellation".
"""

from __future__ import annotations

import contextvars
import math
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Generic, TypeVar

import anyio
import attrs
from anyio import to_thread

from knouds_async._io.backend import from_thread, spawn

T = TypeVar("T")


@attrs.frozen
class Finished(Generic[T]):
    """What the work gave, and the cancellation that came meanwhile: raise it once the value is safe."""

    value: T
    cancellation: BaseException | None


class CutShort(Exception):  # noqa: N818  (it never leaves `_io`)
    """The work was cancelled from elsewhere, and the caller was not."""


class OwnTask(Generic[T]):
    """Work in a task of its own, in a copy of the caller's context, with what came of it."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        """Start the work."""
        self.over: Final = anyio.Event()
        self._work = work
        self._values: list[T] = []
        self._errors: list[Exception] = []
        self._task = spawn(self._run, contextvars.copy_context(), ended=self.over.set)  # loops hold tasks weakly

    async def _run(self) -> None:
        try:
            self._values.append(await self._work())
        except Exception as error:  # noqa: BLE001  (raised again, in the caller)
            self._errors.append(error)
        finally:
            self.over.set()

    def result(self, cancellation: BaseException | None = None) -> T:
        """Return what the work returned or raise what it raised; cut itself, `cancellation` or CutShort."""
        if self._errors:
            raise self._errors[0]
        if not self._values:
            raise cancellation if cancellation is not None else CutShort
        return self._values[0]


async def uninterrupted(work: Callable[[], Awaitable[T]]) -> Finished[T]:
    """Run `work` to its end, whatever happens to the caller; bounded by the work's own deadline.

    It runs in a copy of the caller's context: traces, log fields and hooks find there what the caller has set.
    Only the end of the event loop, or a second KeyboardInterrupt, cuts it; `work` is then cancelled itself.
    """
    task = OwnTask(work)
    cancellation: BaseException | None = None
    while not task.over.is_set():
        try:
            with anyio.CancelScope(shield=True):
                await task.over.wait()
        except (anyio.get_cancelled_exc_class(), KeyboardInterrupt) as stop:
            if isinstance(stop, KeyboardInterrupt) and isinstance(cancellation, KeyboardInterrupt):
                raise
            cancellation = stop.with_traceback(None)
    return Finished(task.result(cancellation), cancellation)


async def in_thread(work: Callable[[], T]) -> T:
    """Run blocking `work` in a thread and return its value.

    Cancelled before it begins, it never does; cancelled later, it is waited for, and then the cancellation is raised.
    """
    job = _ThreadJob(work)
    try:
        await to_thread.run_sync(job.run)
    except (anyio.get_cancelled_exc_class(), KeyboardInterrupt) as stop:
        if not job.withdraw():
            await _wait_for(job.is_over)
        raise stop.with_traceback(None) from None
    if job.error is not None:
        raise job.error
    return job.values[0]


async def _wait_for(event: anyio.Event) -> None:
    """Wait for an event that is certain to come, through any number of cancellations."""
    while not event.is_set():
        with suppress(anyio.get_cancelled_exc_class(), KeyboardInterrupt), anyio.CancelScope(shield=True):
            await event.wait()


class _ThreadJob(Generic[T]):
    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._call_in_loop = from_thread()
        self._lock = threading.Lock()
        self._is_begun = self._is_withdrawn = False
        self.is_over = anyio.Event()
        self.values: list[T] = []
        self.error: BaseException | None = None

    def withdraw(self) -> bool:
        """Keep the work from beginning; False when it has begun."""
        with self._lock:
            self._is_withdrawn = not self._is_begun
            return self._is_withdrawn

    def run(self) -> None:
        with self._lock:
            self._is_begun = not self._is_withdrawn
        try:
            if self._is_begun:
                self.values.append(self._work())
        except BaseException as error:  # noqa: BLE001  (raised again, in the caller)
            self.error = error
        finally:
            with suppress(RuntimeError):  # the event loop is over: nobody waits there any more
                self._call_in_loop(self.is_over.set)


def is_cancelled() -> bool:
    """Tell whether the caller's scope is cancelled, so that its next await will raise."""
    return anyio.current_effective_deadline() == -math.inf
