"""The demo's progress on stderr: redrawn at a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs

from knouds_async import AsyncKnouds
from knouds_async.cli import output
from knouds_async.cli.tally import DemoStats, per_minute
from knouds_async.cli.ticking import call_every
from knouds_async.testing import Emulator

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

RUN_ROUTE = "POST /api/workflows/:slug/run"
_LINE_INTERVAL = 5.0  # seconds between two lines elsewhere
_REFRESH_INTERVAL = 0.1  # seconds between two refreshes at a terminal


@attrs.frozen
class DemoProgress:
    """What the progress of a demo is read from; `started` in monotonic seconds."""

    stats: DemoStats
    emulator: Emulator
    knouds: AsyncKnouds
    started: float = attrs.Factory(time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def counts(self) -> str:
        """Return how many runs are in each state."""
        stats = self.stats
        ends = f"{stats.finished} finished, {stats.failed} failed, {stats.unknown} unknown"
        return f"{stats.submitted} submitted, {stats.running} running, {ends}"

    def rates(self) -> str:
        """Return the rate of requests, and the credits they would cost."""
        requests = self.emulator.requests.count
        rate = per_minute(requests, self.seconds)
        refused = len(self.emulator.refusals)
        return f"{rate:,.0f} requests per minute, {refused} refused (429), {self.emulator.credits_spent:,} credits"

    def quota(self) -> str:
        """Return how long runs wait for the rate limit; "" when none do."""
        limiter = self.knouds.limiter.stats(RUN_ROUTE)
        if not limiter.waiting or limiter.resets_in is None:
            return ""
        return f"{limiter.waiting} wait for the rate limit; the next window opens in {limiter.resets_in:.0f} s"


@asynccontextmanager
async def show_progress(progress: DemoProgress) -> AsyncIterator[None]:
    """Show the progress while the block runs, and once more at its end."""
    if output.is_live():
        with _live_display() as display:
            async with call_every(_REFRESH_INTERVAL, lambda: display.update(_render(progress), refresh=True)):
                yield
            display.update(_render(progress), refresh=True)
        return
    async with call_every(_LINE_INTERVAL, lambda: output.print_info(_progress_line(progress))):
        yield
    output.print_info(_progress_line(progress))


def _progress_line(progress: DemoProgress) -> str:
    parts = (f"{progress.seconds:5.1f} s  {progress.counts()}", progress.rates(), progress.quota())
    return "; ".join(part for part in parts if part)


def _live_display() -> Live:
    from rich.console import Console
    from rich.live import Live

    return Live(console=Console(stderr=True), auto_refresh=False)


def _render(progress: DemoProgress) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    stats = progress.stats
    bars = Table.grid(padding=(0, 1))
    for name, count in (("submitted", stats.submitted), ("finished", stats.finished)):
        bars.add_row(name, ProgressBar(stats.total, count, width=40), f"{count}/{stats.total}")
    summary = f"{stats.running} running, {stats.failed} failed, {stats.unknown} unknown, {progress.seconds:.0f} s"
    lines = (summary, progress.rates(), progress.quota())
    return Group(bars, *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))
