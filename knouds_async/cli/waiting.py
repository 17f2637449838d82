"""Waiting for a run, with something to see: a line that changes at a terminal, a line for each change elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from knouds_async import Execution, ExecutionState, KnoudsError
from knouds_async.cli import output
from knouds_async.cli.ticking import ticking
from knouds_async.cli.words import one_line


async def wait(execution: Execution, *, timeout: float | None) -> ExecutionState:
    """Wait for the end and give the final state; raises what `Execution.wait` raises."""
    telling = None if output.is_live() else asyncio.create_task(_tell_changes(execution))
    try:
        async with on_show(lambda: f"{execution.state.status}"):
            return await execution.wait(timeout=timeout)
    finally:
        if telling is not None:
            telling.cancel()


@asynccontextmanager
async def on_show(words: Callable[[], str]) -> AsyncIterator[None]:
    """Keep words and the seconds so far on show at a terminal while the block runs; elsewhere nothing."""
    if not output.is_live():
        yield
        return
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text

    began = time.monotonic()
    spinner = Spinner("dots")

    def draw() -> None:
        now = f"{words()}, {time.monotonic() - began:.0f} s"
        spinner.update(text=Text(one_line(now), overflow="ellipsis", no_wrap=True))
        display.update(spinner, refresh=True)

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as display:
        async with ticking(0.1, draw):
            yield


async def _tell_changes(execution: Execution) -> None:
    with suppress(KnoudsError):  # the wait itself meets it too, and raises it
        async for state in execution.updates():
            if not state.is_final:
                output.note(one_line(state.status))
