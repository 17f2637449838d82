"""Exchanges over a lent client's pool, in tasks of their own, where no cancellation of a caller reaches them.

httpcore's pool loses a connection's place for good when a request is cancelled while it waits or connects. Once the
request is on its connection it can be cut, for then the connection closes itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import anyio

from knouds_async._io.sent import SentTrace
from knouds_async._io.uninterrupted import OwnTask

T = TypeVar("T")

_LINGERING: Final = 120.0
"""Seconds that a request whose caller has left may still wait and connect; the client's own time-outs end it sooner."""


class Apart:
    """Runs exchanges in tasks of their own."""

    def __init__(self) -> None:
        """Run nothing yet."""
        self._running: dict[anyio.CancelScope, OwnTask[Any]] = {}  # held here, for loops hold tasks weakly
        self._left: set[anyio.CancelScope] = set()
        self._owed: deque[Callable[[], None]] = deque()

    async def run(self, work: Callable[[], Awaitable[T]], trace: SentTrace, limit: float) -> T | None:
        """Return what `work` returns or raise what it raises; None after `limit` seconds.

        Cancelled, or after the limit, the caller leaves at once: work that has begun sending is cut, other work never
        begins to.
        """
        scope = anyio.CancelScope()

        async def exchange() -> T | None:
            try:
                with scope:
                    return await work()
                return None
            finally:
                self._ended(scope)

        task = OwnTask(exchange)
        if not task.over.is_set():
            self._running[scope] = task
        try:
            with anyio.move_on_after(limit):
                await task.over.wait()
        finally:
            if not task.over.is_set():
                self._left.add(scope)
                _leave(trace, scope)
        return task.result() if task.over.is_set() else None

    def release(self, give_back: Callable[[], None]) -> None:
        """Give back a caller's place in the line: at once, or when an exchange that was left has let go of the pool."""
        if len(self._left) > len(self._owed):
            self._owed.append(give_back)
        else:
            give_back()

    def _ended(self, scope: anyio.CancelScope) -> None:
        self._running.pop(scope, None)
        self._left.discard(scope)
        while len(self._owed) > len(self._left):
            self._owed.popleft()()


def _leave(trace: SentTrace, scope: anyio.CancelScope) -> None:
    trace.withdraw()
    if trace.has_begun_sending:
        scope.cancel()
    else:
        scope.deadline = anyio.current_time() + _LINGERING
