"""Deliveries that reach a client from anywhere: any thread, any callback of its event loop, and over a bus."""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable
from typing import Any

from knouds_async._io.concurrency import from_thread, is_in_task_of, running_loop, spawn
from knouds_async.types import ExecutionState


class DeliveryInbox:
    """Passes what is delivered to `process`, in a task of the client's event loop, wherever it comes from.

    `poll_all`: polls each run that is waited for, once. `distrust`: expects no deliveries any more.
    """

    def __init__(
        self,
        process: Callable[[ExecutionState], None],
        poll_all: Callable[[], None],
        distrust: Callable[[], None],
    ) -> None:
        self._process, self._poll_all, self._distrust = process, poll_all, distrust
        self._waiting: deque[ExecutionState] = deque()
        self._home: object | None = None
        self._call_in_loop: Callable[[Callable[[], object]], object] | None = None
        self._bus: Any = None
        self._stop: Callable[[], None] | None = None

    def put(self, state: ExecutionState) -> None:
        """Process a delivery: at once in a task of the client's event loop, else there in a moment.

        Before the client has been used in one, it waits until then; one that has ended hears nothing any more.
        """
        self.enter()
        if self._home is not None and is_in_task_of(self._home):
            self._process(state)
            return
        self._waiting.append(state)
        if self._call_in_loop is not None:
            try:
                self._call_in_loop(self._begin)
            except RuntimeError:  # the event loop has ended
                self._waiting.clear()

    def enter(self) -> None:
        """Belong to the event loop of the running task, if any, and process what came before."""
        if self._home is None and is_in_task_of(None):
            self._home, self._call_in_loop = running_loop(), from_thread()
            self._process_all()

    def hear(self, bus: Any) -> None:
        """Hear of ends over a bus, as long as somebody waits."""
        self._bus = bus

    def awaited(self, *, is_any: bool) -> None:
        """Begin or end to listen, as runs are waited for or not."""
        if is_any and self._bus is not None and self._stop is None:
            self._stop = self._bus.listen(self.put, self._in_task(self._poll_all), self._in_task(self._distrust))
        elif not is_any and self._stop is not None:
            self._stop()
            self._stop = None

    def _in_task(self, function: Callable[[], None]) -> Callable[[], object]:
        async def call() -> None:
            function()

        return lambda: spawn(call, contextvars.Context())

    def _begin(self) -> None:
        spawn(self._drain, contextvars.Context())

    async def _drain(self) -> None:
        self._process_all()

    def _process_all(self) -> None:
        while self._waiting:
            self._process(self._waiting.popleft())
