"""Ctrl-C in a batch: the first stops submitting and waits for runs in flight, the second exits at once.

Even then submits in flight get a moment to be answered: a run whose id is in the ledger can be resumed, while a crash
would leave an unknown one.
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
"""Seconds after the second Ctrl-C until the process is ended."""

_SHOW_CURSOR: Final = "\x1b[?25h"


@asynccontextmanager
async def handle_interrupts(stop: Callable[[], None], abort: Callable[[], None]) -> AsyncIterator[None]:
    """Call `stop` at the first Ctrl-C and `abort` at the second while the block runs; a third ends the process.

    SIGTERM and SIGHUP count as two.
    """
    loop, presses = asyncio.get_running_loop(), asyncio.Queue[int]()
    count = 0

    def on_signal(number: int, _: object) -> None:
        nonlocal count
        count = count + 1 if number == signal.SIGINT else max(2, count + 1)
        if count > 2:
            _exit_process()
        loop.call_soon_threadsafe(presses.put_nowait, count)

    # An ignored signal stays ignored: Ctrl-C is not meant for a background job.
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
    """Call `stop` and `abort` in a task: the batch cannot be stopped from a signal handler."""
    while await presses.get() == 1:
        stop()
    timer = threading.Timer(EXIT_GRACE, _exit_process)
    timer.daemon = True
    timer.start()
    abort()


def _exit_process() -> None:
    """End the process at once: the ledger holds all that is needed to resume."""
    screen = sys.__stderr__  # rich may have replaced `sys.stderr`
    if screen is not None and screen.isatty():
        screen.write(_SHOW_CURSOR)  # rich has hidden it
        screen.flush()
    os._exit(ExitCode.INTERRUPTED)
