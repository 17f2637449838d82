"""The demo's progress on stderr: a display that is redrawn at a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs

from knouds_async import AsyncKnouds
from knouds_async.cli import output
from knouds_async.cli.tally import Tally, per_minute
from knouds_async.cli.ticking import ticking
from knouds_async.testing import Emulator

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

RUN_ROUTE = "POST /api/workflows/:slug/run"
_BEAT = 5.0  # seconds between two lines where nothing can be redrawn
_FRAME = 0.1  # seconds between two pictures where it can


@attrs.frozen
class Scene:
    """All that the progress of a demo can be read from; `began` in monotonic seconds."""

    tally: Tally
    emulator: Emulator
    knouds: AsyncKnouds
    began: float = attrs.Factory(time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    def counts(self) -> str:
        """Say how many runs stand where."""
        tally = self.tally
        ends = f"{tally.finished} finished, {tally.failed} failed, {tally.unknown} unknown"
        return f"{tally.submitted} submitted, {tally.running} running, {ends}"

    def pace(self) -> str:
        """Say how many requests it takes and what it would cost."""
        requests = self.emulator.requests.count
        per = per_minute(requests, self.seconds)
        refused = len(self.emulator.refusals)
        return f"{per:,.0f} requests per minute, {refused} refused (429), {self.emulator.credits_spent:,} credits"

    def quota(self) -> str:
        """Say how the quota of the run route stands, while runs still wait for their turn at it."""
        stats = self.knouds.limiter.stats(RUN_ROUTE)
        if not stats.waiting or stats.resets_in is None:
            return ""
        return f"{stats.waiting} wait for their turn; the next window opens in {stats.resets_in:.0f} s"


@asynccontextmanager
async def shown(scene: Scene) -> AsyncIterator[None]:
    """Show the progress while the block runs, and how it stands at its end."""
    if output.is_live():
        with _display() as display:
            async with ticking(_FRAME, lambda: display.update(_drawn(scene), refresh=True)):
                yield
            display.update(_drawn(scene), refresh=True)
        return
    async with ticking(_BEAT, lambda: output.note(_line(scene))):
        yield
    output.note(_line(scene))


def _line(scene: Scene) -> str:
    parts = (f"{scene.seconds:5.1f} s  {scene.counts()}", scene.pace(), scene.quota())
    return "; ".join(part for part in parts if part)


def _display() -> Live:
    from rich.console import Console
    from rich.live import Live

    return Live(console=Console(stderr=True), auto_refresh=False)


def _drawn(scene: Scene) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    tally = scene.tally
    bars = Table.grid(padding=(0, 1))
    for name, count in (("submitted", tally.submitted), ("finished", tally.finished)):
        bars.add_row(name, ProgressBar(tally.total, count, width=40), f"{count}/{tally.total}")
    now = f"{tally.running} running, {tally.failed} failed, {tally.unknown} unknown, {scene.seconds:.0f} s"
    lines = (now, scene.pace(), scene.quota())
    return Group(bars, *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))
