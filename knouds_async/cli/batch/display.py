"""The progress of a batch on stderr: redrawn lines at a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import attrs

from knouds_async.batch.progress import Progress
from knouds_async.cli import output
from knouds_async.cli.batch.pace import Throughput, format_duration
from knouds_async.cli.ticking import call_every

if TYPE_CHECKING:
    from rich.console import RenderableType

_REFRESH_INTERVAL: Final = 0.2  # seconds between two refreshes at a terminal
_LINE_INTERVAL: Final = 10.0  # seconds between two lines elsewhere
_BAR_WIDTH: Final = 34


@attrs.define
class BatchDisplay:
    """Formats the progress of a batch, and what jobs wait for if not for their runs alone."""

    progress: Callable[[], Progress]
    status_line: Callable[[], str] = str
    is_stopping: bool = False
    _throughput: Throughput = attrs.Factory(Throughput)

    def lines(self) -> tuple[str, ...]:
        """Return lines of at most 80 columns for any batch of less than a million jobs."""
        now = self.progress()
        self._throughput.update(now)
        return tuple(
            line
            for line in (
                _jobs_line(now),
                _outcomes_line(now),
                _credits_line(now),
                self._speed_line(now),
                self.status_line(),
            )
            if line
        )

    def _speed_line(self, now: Progress) -> str:
        eta = None if self.is_stopping else self._throughput.eta(now)
        remaining = f", about {format_duration(eta)} to go" if eta else ""
        return f"{format_duration(now.elapsed)}, {60 * self._throughput.per_second(now):,.0f} jobs a minute{remaining}"


def _jobs_line(now: Progress) -> str:
    of = "" if now.total is None else f" of {now.total:,}"
    return f"{now.outcomes:,}{of} done, {now.in_flight:,} in flight"


def _outcomes_line(now: Progress) -> str:
    """Return how many jobs had each outcome, without those that did not occur."""
    kinds = (
        (now.completed, "completed"),
        (now.failed, "failed"),
        (now.cancelled, "cancelled"),
        (now.not_run, "not run"),
        (now.unknown, "unknown"),
    )
    return ", ".join(f"{count:,} {kind}" for count, kind in kinds if count)


def _credits_line(now: Progress) -> str:
    """Return the credits spent, the limit if there is one, and what is reserved for runs in flight."""
    cap = "" if now.max_credits is None else f" of {format_credits(now.max_credits)}"
    reserved = f", {format_credits(now.credits_reserved)} reserved" if now.credits_reserved else ""
    return f"{format_credits(now.credits_spent)}{cap} credits spent{reserved}"


def format_credits(credits: float) -> str:
    """Return an amount of credits as text."""
    return f"{round(credits, 2):,.12g}"


@asynccontextmanager
async def show_display(display: BatchDisplay) -> AsyncIterator[None]:
    """Show the progress while the block runs."""
    if not output.is_live():
        async with call_every(_LINE_INTERVAL, lambda: output.print_info("; ".join(display.lines()))):
            yield
        return
    from rich.console import Console
    from rich.live import Live

    # Output to the same terminal is printed above the progress; output to a file or a pipe is not touched.
    live = Live(
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )
    with live:
        async with call_every(_REFRESH_INTERVAL, lambda: live.update(_render(display), refresh=True)):
            yield


def _render(display: BatchDisplay) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    now = display.progress()
    lines = [Text(line, no_wrap=True, overflow="ellipsis") for line in display.lines()]
    if not now.total:
        return Group(*lines)
    first = Table.grid(padding=(0, 1))
    first.add_row(ProgressBar(now.total, now.outcomes, width=_BAR_WIDTH), lines[0])
    return Group(first, *lines[1:])
