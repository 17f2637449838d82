"""What goes on beside a batch: its progress is shown, and Ctrl-C is taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from knouds_async import AsyncKnouds, LimiterStats
from knouds_async._sansio import endpoints
from knouds_async.batch.batch import Batch
from knouds_async.cli import output
from knouds_async.cli.batch.display import Display, shown
from knouds_async.cli.batch.interrupts import taken
from knouds_async.cli.batch.state import Run
from knouds_async.cli.batch.stream import Stream
from knouds_async.cli.words import counted


@asynccontextmanager
async def watched(run: Run, batch: Batch, knouds: AsyncKnouds, stream: Stream | None) -> AsyncIterator[None]:
    """Show the progress and take Ctrl-C while the block runs."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  (for the type checker)

    def stop() -> None:
        display.is_stopping = True
        run.account.is_interrupted = True
        batch.stop()
        if stream is not None:
            stream.stop()
        out = counted(batch.progress.in_flight, "run")
        output.tell(f"nothing more is submitted; waiting for {out} still out; Ctrl-C again leaves at once")

    def leave() -> None:
        out = counted(batch.progress.in_flight, "run")
        output.tell(f"left at once; {out} still out, charged and in the ledger. To go on: {run.order.command}")
        task.cancel()

    def word() -> str:
        if run.account.is_interrupted:
            return "stopping: waiting for what is out; Ctrl-C again leaves at once"
        stats = knouds.limiter.stats(endpoints.submit(run.order.target, {}).route)
        return paused(stats, datetime.now().astimezone()) or quota(stats)

    display = Display(lambda: run.account.without_stopped(batch.progress), word)
    async with taken(stop, leave), shown(display):
        yield


def paused(stats: LimiterStats, now: datetime) -> str:
    """Say until when the service asked for a pause while jobs wait for its end."""
    if not stats.waiting or stats.held_for < 1:
        return ""
    until = now + timedelta(seconds=stats.held_for)
    day = "" if until.date() == now.date() else f"{until:%Y-%m-%d} "
    return f"{stats.waiting:,} wait: the service asked for a pause until {day}{until:%H:%M:%S}"


def quota(stats: LimiterStats) -> str:
    """Say how the quota stands while jobs wait for it."""
    if not stats.waiting or stats.resets_in is None:
        return ""
    return f"{stats.waiting:,} wait for their turn; the next window opens in {stats.resets_in:.0f} s"
