"""A critical section that a caller's cancellation cannot cut: a paid request, from its first byte to its reply.

`CancelScope(shield=True)` alone does not hold against asyncio's own `Task.cancel`, so the work runs in a task of its
own and the caller waits through any number of cancellations. Design decision: traps, "Cancellation".
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio
import attrs

from knouds_async._io.backend import spawn

T = TypeVar("T")


@attrs.frozen
class Finished(Generic[T]):
    """What the work gave, and the cancellation that came meanwhile: raise it once the value is safe."""

    value: T
    cancellation: BaseException | None


class CutShort(Exception):  # noqa: N818  (it never leaves `_io`)
    """The work was cancelled from elsewhere, and the caller was not."""


async def uninterrupted(work: Callable[[], Awaitable[T]]) -> Finished[T]:
    """Run `work` to its end, whatever happens to the caller; bounded by the work's own deadline.

    Only the end of the event loop, or a second KeyboardInterrupt, cuts it; `work` is then cancelled itself.
    """
    values: list[T] = []
    errors: list[Exception] = []
    over = anyio.Event()

    async def run() -> None:
        try:
            values.append(await work())
        except Exception as error:  # noqa: BLE001  (raised again, in the caller)
            errors.append(error)
        finally:
            over.set()

    task = spawn(run, ended=over.set)
    cancellation: BaseException | None = None
    while not over.is_set():
        try:
            with anyio.CancelScope(shield=True):
                await over.wait()
        except (anyio.get_cancelled_exc_class(), KeyboardInterrupt) as stop:
            if isinstance(stop, KeyboardInterrupt) and isinstance(cancellation, KeyboardInterrupt):
                raise
            cancellation = stop.with_traceback(None)
    del task  # the loop holds tasks weakly: it had to be held here until now
    if errors:
        raise errors[0]
    if not values:
        raise cancellation if cancellation is not None else CutShort
    return Finished(values[0], cancellation)


def is_cancelled() -> bool:
    """Tell whether the caller's scope is cancelled, so that its next await will raise."""
    return anyio.current_effective_deadline() == -math.inf
