"""Ctrl-C in a batch: once to stop submitting and wait for what is out, twice to leave at once.

Rule of the file: leaving at once still gives the submits that are under way a moment to be answered, for an id that is
in the ledger is a run that can be picked up; a crash would leave an unknown one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from knouds_async.cli.exits import ExitCode
from knouds_async.cli.signals import TERMINATION_SIGNALS

EXIT_GRACE: Final = 3.0
"""Seconds until a batch that is left at once is left for certain."""

_SHOW_CURSOR: Final = "\x1b[?25h"


@asynccontextmanager
async def handle_interrupts(stop: Callable[[], None], abort: Callable[[], None]) -> AsyncIterator[None]:
    """While the block runs, call `stop` at the first Ctrl-C and `leave` at the second; a third ends the process.

    What asks the process to end counts as two.
    """
    loop, presses = asyncio.get_running_loop(), asyncio.Queue[int]()
    count = 0

    def on_signal(number: int, _: object) -> None:
        nonlocal count
        count = count + 1 if number == signal.SIGINT else max(2, count + 1)
        if count > 2:
            _exit_process()
        loop.call_soon_threadsafe(presses.put_nowait, count)

    # One that is ignored stays so: the keys of a terminal are not meant for a job in the background.
    numbers = [one for one in (signal.SIGINT, *TERMINATION_SIGNALS) if signal.getsignal(one) is not signal.SIG_IGN]
    previous = {one: signal.signal(one, on_signal) for one in numbers}
    dispatcher = asyncio.create_task(_dispatch(presses, stop, abort))
    try:
        yield
    finally:
        dispatcher.cancel()
        for one, handler in previous.items():
            signal.signal(one, handler)


async def _dispatch(presses: asyncio.Queue[int], stop: Callable[[], None], abort: Callable[[], None]) -> None:
    """Call what is to be called in a task: outside of one, half of what a batch does is not to be had."""
    while await presses.get() == 1:
        stop()
    timer = threading.Timer(EXIT_GRACE, _exit_process)
    timer.daemon = True
    timer.start()
    abort()


def _exit_process() -> None:
    """End the process, whatever it is waiting for: the ledger holds all that is needed."""
    screen = sys.__stderr__  # the progress may have put something of its own in the place of `sys.stderr`
    if screen is not None and screen.isatty():
        screen.write(_SHOW_CURSOR)  # which the progress has hidden
        screen.flush()
    os._exit(ExitCode.INTERRUPTED)
