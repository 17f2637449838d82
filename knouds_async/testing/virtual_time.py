"""Virtual time on both backends: a sleep of an hour returns at once, and every test run sees the same clock.

Nothing here imports Knouds. Threads and other processes are invisible to the jump, so tests
that use SQLite or real sockets run in real time instead.
"""

from __future__ import annotations

import asyncio
import selectors
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["VirtualTimeLoop", "clock_in_use", "is_virtual", "virtual_backend"]


class _JumpingSelector(selectors.DefaultSelector):  # type: ignore[valid-type,misc,unused-ignore]
    """A selector that jumps over a wait in which nothing is ready, instead of waiting."""

    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:  # no timer is set: only a thread or a socket can wake the loop
            return super().select(None)
        ready = super().select(0)
        if not ready and timeout > 0:
            self._jump(timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop whose clock stands still while code runs and jumps to the next timer when all wait.

    Use it as a loop factory: `asyncio.Runner(loop_factory=VirtualTimeLoop)`. Its clock starts at zero.
    """

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_JumpingSelector(self._jump))

    def time(self) -> float:
        """Return the virtual time, in seconds."""
        return self._now

    def _jump(self, seconds: float) -> None:
        self._now += seconds


BACKENDS: Final = ("asyncio", "trio")


def virtual_backend(name: str) -> tuple[str, dict[str, Any]]:
    """Return anyio's description of a backend ("asyncio" or "trio") in virtual time, for an `anyio_backend` fixture."""
    if name == "asyncio":
        return "asyncio", {"loop_factory": VirtualTimeLoop}
    from trio.testing import MockClock  # here, for trio is there only for those who use it

    return "trio", {"clock": MockClock(autojump_threshold=0)}


def is_virtual() -> bool:
    """Return whether the running event loop's time is virtual."""
    clock = _clock()
    return isinstance(clock, VirtualTimeLoop) or type(clock).__name__ == "MockClock"


def clock_in_use() -> str:
    """Return the type name of the running event loop's clock."""
    kind = type(_clock())
    return f"{kind.__module__}.{kind.__qualname__}"


def _clock() -> object:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        trio = sys.modules["trio"]  # no loop of asyncio's runs, so that trio does, and need not be imported
        return trio.lowlevel.current_clock()
