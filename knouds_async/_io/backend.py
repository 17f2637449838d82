"""The one file that knows asyncio from trio: a task that belongs to no caller, and whose loop this is.

Rule of the file: as small as can be; everything else in `_io` is anyio.
"""

from __future__ import annotations

import contextvars
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final

from knouds_async.errors import WrongEventLoopError

_ADVICE: Final = (
    "its connections live there. Build one client per event loop (e.g. inside the function that asyncio.run runs). "
    "Runs that are out can be attached in the new client: knouds.executions.attach(execution)"
)


def spawn(
    work: Callable[[], Coroutine[Any, Any, None]],
    context: contextvars.Context,
    *,
    ended: Callable[[], object] | None = None,
) -> object:
    """Start `work` in a task of its own, in `context`; hold on to what is returned while it runs.

    An asyncio task or a trio system task: both outlive the caller and end with the loop. `work` must not raise.
    The task is also created from within (a copy of) `context`: tracing tools read the context that creates a task.
    `ended` is called once an asyncio task is over: the end of the loop may keep it from its very first step.
    """
    outside = context.copy()  # an eager task enters `context` itself while it is created
    if _in_trio():
        import trio

        return outside.run(lambda: trio.lowlevel.spawn_system_task(work, context=context))
    import asyncio  # whoever has a loop has loaded it

    loop = asyncio.get_running_loop()
    task = outside.run(lambda: loop.create_task(work(), context=context))
    if ended is not None:
        task.add_done_callback(lambda _: ended())
    return task


def _in_trio() -> bool:
    """Tell whether the running task is trio's; trio is not imported for it."""
    if "trio" not in sys.modules:
        return False
    try:
        sys.modules["trio"].lowlevel.current_task()  # `in_trio_task` came with trio 0.29
    except RuntimeError:
        return False
    return True


def from_thread() -> Callable[[Callable[[], object]], object]:
    """Give what has a function called soon in the running event loop, from any thread; RuntimeError once it is over."""
    if _in_trio():
        import trio

        return trio.lowlevel.current_trio_token().run_sync_soon
    import asyncio  # as above

    return asyncio.get_running_loop().call_soon_threadsafe


def running_loop() -> object:
    """Give what identifies the running event loop: asyncio's loop, or trio's entry token."""
    if _in_trio():
        import trio

        return trio.lowlevel.current_trio_token()
    import asyncio  # as above

    return asyncio.get_running_loop()


class HomeLoop:
    """Remembers the loop of the first use and refuses any other: sockets and events cannot move between loops."""

    def __init__(self, thing: str = "AsyncKnouds", advice: str = _ADVICE) -> None:
        """Belong to no loop yet; `thing` and `advice` are for the error."""
        self._home: object | None = None
        self._thing, self._advice = thing, advice

    def enter(self) -> None:
        """Take the running loop for home, or raise WrongEventLoopError at once if home is another."""
        if self._home is None:
            self._home = running_loop()
        self.check()

    def check(self) -> None:
        """Raise WrongEventLoopError if home is another loop than the running one."""
        if self._home is not None and self._home is not running_loop():
            raise WrongEventLoopError(f"this {self._thing} was first used in another event loop; {self._advice}")
