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

from knouds_async.cli.exits import Exit
from knouds_async.cli.signals import ASKED_TO_END

GRACE: Final = 3.0
"""Seconds until a batch that is left at once is left for certain."""

_SHOW_CURSOR: Final = "\x1b[?25h"


@asynccontextmanager
async def taken(stop: Callable[[], None], leave: Callable[[], None]) -> AsyncIterator[None]:
    """While the block runs, call `stop` at the first Ctrl-C and `leave` at the second; a third ends the process.

    What asks the process to end counts as two.
    """
    loop, news = asyncio.get_running_loop(), asyncio.Queue[int]()
    count = 0

    def take(number: int, _: object) -> None:
        nonlocal count
        count = count + 1 if number == signal.SIGINT else max(2, count + 1)
        if count > 2:
            _end()
        loop.call_soon_threadsafe(news.put_nowait, count)

    # One that is ignored stays so: the keys of a terminal are not meant for a job in the background.
    numbers = [one for one in (signal.SIGINT, *ASKED_TO_END) if signal.getsignal(one) is not signal.SIG_IGN]
    before = {one: signal.signal(one, take) for one in numbers}
    listening = asyncio.create_task(_listen(news, stop, leave))
    try:
        yield
    finally:
        listening.cancel()
        for one, handler in before.items():
            signal.signal(one, handler)


async def _listen(news: asyncio.Queue[int], stop: Callable[[], None], leave: Callable[[], None]) -> None:
    """Call what is to be called in a task: outside of one, half of what a batch does is not to be had."""
    while await news.get() == 1:
        stop()
    timer = threading.Timer(GRACE, _end)
    timer.daemon = True
    timer.start()
    leave()


def _end() -> None:
    """End the process, whatever it is waiting for: the ledger holds all that is needed."""
    screen = sys.__stderr__  # the progress may have put something of its own in the place of `sys.stderr`
    if screen is not None and screen.isatty():
        screen.write(_SHOW_CURSOR)  # which the progress has hidden
        screen.flush()
    os._exit(Exit.INTERRUPTED)
