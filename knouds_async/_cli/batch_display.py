"""The progress and the report of `knouds batch`: redrawn lines at a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from knouds_async import (
    Cancelled,
    Estimate,
    Failed,
    KnoudsError,
    LimiterStats,
    NotRun,
    NotRunReason,
    Outcome,
    Progress,
    Unknown,
)
from knouds_async._cli import output
from knouds_async._cli.errors import ExitCode, exit_code_for, format_error
from knouds_async._cli.output import call_every, plural

if TYPE_CHECKING:
    from rich.console import RenderableType


_SPAN: Final = 120.0  # seconds: two windows of the rate limit, which lets runs through in bursts
_MIN_STEP: Final = 1.0  # seconds between two points that are kept
_MIN_SPAN: Final = 2.0  # seconds before a rate is shown


@attrs.define
class Throughput:
    """Remembers how many jobs were done at which time, over the last two minutes."""

    _points: deque[tuple[float, int]] = attrs.field(factory=lambda: deque([(0.0, 0)]))

    def update(self, progress: Progress) -> None:
        """Record the progress at this moment."""
        now = progress.elapsed
        if now - self._points[-1][0] >= _MIN_STEP:
            self._points.append((now, _done(progress)))
        while len(self._points) > 1 and now - self._points[0][0] > _SPAN:
            self._points.popleft()

    def per_second(self, progress: Progress) -> float:
        """Return the jobs done per second; 0 while too little is known."""
        started, done = self._points[0]
        seconds = progress.elapsed - started
        return (_done(progress) - done) / seconds if seconds >= _MIN_SPAN else 0.0

    def eta(self, progress: Progress) -> float | None:
        """Return the seconds until all jobs are done at this rate; None when unknown."""
        rate = self.per_second(progress)
        if progress.total is None or not rate:
            return None
        return max(progress.total - progress.outcomes, 0) / rate


def _done(progress: Progress) -> int:
    """Return how many jobs this batch has done itself: those from the ledger took no time."""
    return progress.outcomes - progress.from_ledger


def format_duration(seconds: float) -> str:
    """Return seconds as on a clock: 0:07, 12:34, 1:02:03."""
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes}:{seconds_left:02}"


_MAX_NAMED: Final = 5  # unknown runs that are named


@attrs.define
class BatchReport:
    """Counts outcomes, in memory that does not grow with their number."""

    not_run: dict[NotRunReason, tuple[int, str, KnoudsError]] = attrs.Factory(dict)
    unknown: list[str] = attrs.Factory(list)  # keys, the first few
    unknowns: int = 0
    others: int = 0  # failed or cancelled
    unsaved: int = 0
    is_interrupted: bool = False

    def record(self, outcome: Outcome) -> None:
        """Count one outcome."""
        match outcome:
            case NotRun(job=job, reason=reason, error=error):
                count, key, first = self.not_run.get(reason, (0, job.key, error))
                self.not_run[reason] = (count + 1, key, first)
            case Unknown(job=job, is_abandoned=False):
                self.unknowns += 1
                if len(self.unknown) < _MAX_NAMED:
                    self.unknown.append(job.key)
            case Failed() | Cancelled():
                self.others += 1

    def excluding_stopped(self, progress: Progress) -> Progress:
        """Return the progress without the jobs that were stopped before they were submitted."""
        stopped, _, _ = self.not_run.get(NotRunReason.STOPPED, (0, "", None))
        return attrs.evolve(progress, not_run=max(progress.not_run - stopped, 0))

    def exit_code(self, progress: Progress, failure: Exception | None = None) -> ExitCode:
        """Return the exit code: first what may have been charged, then what keeps other jobs from running."""
        if self.unknowns:
            return ExitCode.MAY_HAVE_RUN
        if self.is_interrupted and not self.is_complete(progress):
            return ExitCode.INTERRUPTED
        codes = {
            exit_code_for(error) for reason, (_, _, error) in self.not_run.items() if reason != NotRunReason.STOPPED
        }
        if failure is not None:
            codes.add(exit_code_for(failure))
        for code in (ExitCode.MAY_HAVE_RUN, ExitCode.KEY, ExitCode.CREDITS):
            if code in codes:
                return code
        if codes == {ExitCode.USAGE} and progress.outcomes == progress.not_run:
            return ExitCode.USAGE  # nothing was run
        return ExitCode.ERROR if codes or self.others or self.unsaved else ExitCode.OK

    def is_complete(self, progress: Progress) -> bool:
        """Return whether no job is left for another run."""
        return progress.total is not None and progress.outcomes == progress.total and not progress.not_run

    @property
    def is_deferred(self) -> bool:
        """Whether jobs are left that the same command may run later."""
        return not _DEFERRED.isdisjoint(self.not_run)

    def problems(self, ledger: str) -> Iterator[str]:
        """Yield one line for each kind of problem; `ledger` is quoted for a shell."""
        for reason, (count, key, error) in self.not_run.items():
            if reason != NotRunReason.STOPPED:
                first = f"{key}: " if reason not in _BATCH_WIDE else ""
                yield f"{plural(count, 'job')} not run ({reason}): {first}{format_error(error)}"
        if self.unsaved:
            yield f"the files of {plural(self.unsaved, 'run')} could not be downloaded; the same command tries again"
        if self.unknowns:
            named = ", ".join(self.unknown) + (" and others" if self.unknowns > len(self.unknown) else "")
            yield (
                f"{plural(self.unknowns, 'run')} unknown: {named}. They may have run and been charged, so they were "
                f"not sent again. The same command looks for them again; `knouds batch --status {ledger}` lists them, "
                f"`knouds batch --resolve {ledger} KEY resend|abandon|run=ID` decides"
            )


_BATCH_WIDE: Final = (
    NotRunReason.BUDGET,
    NotRunReason.REFUSED,
    NotRunReason.UNREACHABLE,
    NotRunReason.INTERCEPTED,
    NotRunReason.RATE_LIMITED,
)


_DEFERRED: Final = frozenset({NotRunReason.UNREACHABLE, NotRunReason.INTERCEPTED, NotRunReason.RATE_LIMITED})


def summarize(now: Progress) -> str:
    """Return one line that sums up a batch."""
    kinds = ("completed", "failed", "cancelled", "not_run", "unknown", "abandoned")
    outcomes = ", ".join(f"{getattr(now, kind):,} {kind.replace('_', ' ')}" for kind in kinds if getattr(now, kind))
    resumed = f" ({now.from_ledger:,} in earlier runs)" if now.from_ledger else ""
    jobs = plural(now.outcomes, "job")
    if now.total not in (None, now.outcomes):
        jobs = f"{now.outcomes:,} of {plural(now.total or 0, 'job')}"
    cap = "" if now.max_credits is None else f" of {format_credits(now.max_credits)}"
    credits = f"{format_credits(now.credits_spent)}{cap} credits spent"
    return f"{jobs} done{f': {outcomes}' if outcomes else ''}{resumed}; {credits}; {format_duration(now.elapsed)}"


def estimate_pairs(estimate: Estimate) -> Iterator[tuple[str, str | None]]:
    """Yield the names and values of an estimate, for people."""
    yield "jobs", f"{estimate.jobs:,}"
    yield "invalid", f"{estimate.invalid:,}" if estimate.invalid else None
    yield "already done", f"{estimate.already_done:,}" if estimate.already_done else None
    yield "to run", f"{estimate.to_run:,}"
    sources = {"schema": "by the workflow's estimate", "usage": "by the mean of your runs", None: ""}
    known = None if estimate.credits is None else f"about {format_credits(estimate.credits)}"
    yield "credits", f"{known}, {sources[estimate.credits_source]}" if known else "not known: no estimate and no runs"
    windows, seconds = estimate.windows, estimate.seconds
    yield "time", None if seconds is None else f"about {format_duration(seconds)}, {plural(windows or 0, 'window')}"


def to_record(now: Progress, ledger: Path, out: Path | None, code: ExitCode) -> dict[str, Any]:
    """Return the summary of a batch for programs."""
    record = attrs.asdict(now) | {"seconds": round(now.elapsed, 3), "exit_code": int(code)}
    del record["elapsed"], record["held_for"]
    return record | {"ledger": str(ledger), "out": None if out is None else str(out)}


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
        (now.abandoned, "abandoned"),
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


def format_pause(stats: LimiterStats, now: datetime) -> str:
    """Return until when jobs wait because the service asked for a pause; "" when none do."""
    if not stats.waiting or not stats.is_pause or stats.held_for < 1:
        return ""
    until = now + timedelta(seconds=stats.held_for)
    day = "" if until.date() == now.date() else f"{until:%Y-%m-%d} "
    return f"{stats.waiting:,} wait: the service asked for a pause until {day}{until:%H:%M:%S}"


def format_quota(stats: LimiterStats) -> str:
    """Return how long jobs wait for the rate limit; "" when none do."""
    if not stats.waiting or stats.resets_in is None:
        return ""
    return f"{stats.waiting:,} wait for the rate limit; the next window opens in {stats.resets_in:.0f} s"
