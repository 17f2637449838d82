"""Show the progress of a batch and handle Ctrl-C while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from knouds_async import AsyncKnouds, LimiterStats
from knouds_async._sansio import endpoints
from knouds_async.batch.batch import Batch
from knouds_async.cli import output
from knouds_async.cli.batch.display import BatchDisplay, show_display
from knouds_async.cli.batch.interrupts import handle_interrupts
from knouds_async.cli.batch.state import BatchRun
from knouds_async.cli.batch.stream import JobStream
from knouds_async.cli.words import plural


@asynccontextmanager
async def supervised(run: BatchRun, batch: Batch, knouds: AsyncKnouds, stream: JobStream | None) -> AsyncIterator[None]:
    """Show the progress and handle Ctrl-C while the block runs."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  (for the type checker)

    def stop() -> None:
        display.is_stopping = True
        run.report.is_interrupted = True
        batch.stop()
        if stream is not None:
            stream.stop()
        in_flight = plural(batch.progress.in_flight, "run")
        output.print_error(f"submitting stopped; waiting for {in_flight} in flight; press Ctrl-C again to exit at once")

    def abort() -> None:
        in_flight = plural(batch.progress.in_flight, "run")
        output.print_error(
            f"exiting; {in_flight} still in progress (they will be charged). Resume with: {run.options.resume_command}"
        )
        task.cancel()

    def status_line() -> str:
        if run.report.is_interrupted:
            return "stopping: waiting for runs in flight; press Ctrl-C again to exit at once"
        stats = knouds.limiter.stats(endpoints.submit(run.options.target, {}).route)
        return format_pause(stats, datetime.now().astimezone()) or format_quota(stats)

    display = BatchDisplay(lambda: run.report.excluding_stopped(batch.progress), status_line)
    async with handle_interrupts(stop, abort), show_display(display):
        yield


def format_pause(stats: LimiterStats, now: datetime) -> str:
    """Return until when jobs wait because the service asked for a pause; "" when none do."""
    if not stats.waiting or stats.held_for < 1:
        return ""
    until = now + timedelta(seconds=stats.held_for)
    day = "" if until.date() == now.date() else f"{until:%Y-%m-%d} "
    return f"{stats.waiting:,} wait: the service asked for a pause until {day}{until:%H:%M:%S}"


def format_quota(stats: LimiterStats) -> str:
    """Return how long jobs wait for the rate limit; "" when none do."""
    if not stats.waiting or stats.resets_in is None:
        return ""
    return f"{stats.waiting:,} wait for the rate limit; the next window opens in {stats.resets_in:.0f} s"
