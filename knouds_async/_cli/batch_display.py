"""The progress and the report of `knouds batch`: redrawn lines at a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from itertools import islice
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
from knouds_async._sansio.estimate import RouteQuota, submitting

if TYPE_CHECKING:
    from rich.console import RenderableType


_SPAN: Final = 120.0  # seconds: two windows of the rate limit, which lets runs through in bursts
_MIN_STEP: Final = 1.0  # seconds between two points that are kept
_MIN_SPAN: Final = 2.0  # seconds before a rate is shown
_MOST_OTHERS: Final = 9.0  # runs in flight for each that is done, above which their number says nothing
_MOST_SPREAD: Final = 1.4  # how many times as long as those that are done the slowest run may take


@attrs.frozen
class Point:
    """How many jobs were done and how many runs were submitted at a moment of a batch."""

    elapsed: float
    done: int
    submitted: int


@attrs.define
class Throughput:
    """Remembers how many jobs were done, and how many submitted, at which time, over the last two minutes."""

    _points: deque[Point] = attrs.field(factory=lambda: deque([Point(0.0, 0, 0)]))
    _lags: tuple[float, float] | None = None  # the shortest and the longest time from so many submitted to so many done
    _done: int = 0

    def update(self, progress: Progress) -> None:
        """Record the progress at this moment."""
        now, done = progress.elapsed, _point(progress).done
        if done > self._done:
            lag, self._done = now - self._reached(done), done
            shortest, longest = self._lags or (lag, lag)
            self._lags = min(shortest, lag), max(longest, lag)
        if now - self._points[-1].elapsed >= _MIN_STEP:
            self._points.append(_point(progress))
        while len(self._points) > 1 and now - self._points[0].elapsed > _SPAN:
            self._points.popleft()

    def per_second(self, progress: Progress) -> float:
        """Return the jobs done per second; 0 while too little is known."""
        first = self._points[0]
        seconds = progress.elapsed - first.elapsed
        return (_point(progress).done - first.done) / seconds if seconds >= _MIN_SPAN else 0.0

    def eta(self, progress: Progress, stats: LimiterStats | None = None) -> float | None:
        """Return the seconds until all jobs are done, None when unknown.

        Where the rate limit is known, the last submit is made in the window that has room for it, or when a run in
        flight makes room, and its run then takes as long as the others; else jobs are done as fast as until now.
        """
        if progress.total is None:
            return None
        rate = self.per_second(progress)
        if stats is None or stats.limit is None:
            return max(progress.total - progress.outcomes, 0) / rate if rate else None
        if self._lags is None:
            return None
        left, longest = max(progress.total - progress.outcomes - progress.in_flight, 0), self._lags[1]
        if not left:
            return max(self._reached(progress.submitted) + longest - progress.elapsed, 0.0)
        for_room = 0.0 if stats.waiting or not rate else left / rate
        submits = submitting(left, RouteQuota(stats.limit, stats.left, stats.resets_in))
        return max(submits.seconds, for_room) + self._slowest(progress)

    def _slowest(self, progress: Progress) -> float:
        """Return how long the slowest run may take: longer than those that are done, while others are in flight."""
        shortest, longest = self._lags or (0.0, 0.0)
        old_enough = [point.submitted for point in self._points if point.elapsed <= progress.elapsed - shortest]
        in_time = max(old_enough[-1] if old_enough else 0, 1)
        others = min(max(in_time / max(self._done, 1) - 1, 0.0), _MOST_OTHERS)
        spread: float = (longest / max(shortest, _MIN_STEP)) ** others
        return longest * min(spread, _MOST_SPREAD)

    def _reached(self, submitted: int) -> float:
        """Return when this many runs had been submitted, as far as that is remembered."""
        steps = zip(self._points, islice(self._points, 1, None), strict=False)
        last = self._points[-1].elapsed
        return next((before.elapsed for before, after in steps if after.submitted >= submitted), last)


def _point(progress: Progress) -> Point:
    """Return how many jobs this batch has done itself: those from the ledger took no time."""
    return Point(progress.elapsed, progress.outcomes - progress.from_ledger, progress.submitted)


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


def to_record(now: Progress, ledger: object, out: Path | None, code: ExitCode) -> dict[str, Any]:
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
    stats: Callable[[], LimiterStats | None] = lambda: None
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
        eta = None if self.is_stopping else self._throughput.eta(now, self.stats())
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


def format_quota(submits: LimiterStats, polls: LimiterStats | None = None) -> str:
    """Return how long jobs, or the polls of runs in flight, wait for the rate limit; "" when none do."""
    for stats, what in ((submits, ""), (polls, " polls")):
        if stats is not None and stats.waiting and stats.resets_in is not None:
            return f"{stats.waiting:,}{what} wait for the rate limit; the next window opens in {stats.resets_in:.0f} s"
    return ""
