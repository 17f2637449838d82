"""Wait for a run and show it: a redrawn line at a terminal, a line per change of status elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from knouds_async import Execution, ExecutionState, KnoudsError
from knouds_async.cli import output
from knouds_async.cli.ticking import call_every
from knouds_async.cli.words import one_line


async def wait(execution: Execution, *, timeout: float | None) -> ExecutionState:
    """Wait for the run to finish and return its final state; raises what `Execution.wait` raises."""
    printer = None if output.is_live() else asyncio.create_task(_print_changes(execution))
    try:
        async with show_spinner(lambda: f"{execution.state.status}"):
            return await execution.wait(timeout=timeout)
    finally:
        if printer is not None:
            printer.cancel()


@asynccontextmanager
async def show_spinner(status: Callable[[], str]) -> AsyncIterator[None]:
    """Show a status and the elapsed seconds at a terminal while the block runs; elsewhere nothing."""
    if not output.is_live():
        yield
        return
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text

    started = time.monotonic()
    spinner = Spinner("dots")

    def draw() -> None:
        line = f"{status()}, {time.monotonic() - started:.0f} s"
        spinner.update(text=Text(one_line(line), overflow="ellipsis", no_wrap=True))
        display.update(spinner, refresh=True)

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as display:
        async with call_every(0.1, draw):
            yield


async def _print_changes(execution: Execution) -> None:
    with suppress(KnoudsError):  # the wait raises it too
        async for state in execution.updates():
            if not state.is_final:
                output.print_info(one_line(state.status))
