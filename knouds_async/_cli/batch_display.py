"""The progress and the report of `knouds batch`: redrawn lines at a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs

from knouds_async import (
    Cancelled,
    Completed,
    Estimate,
    Failed,
    KnoudsError,
    NotRun,
    NotRunReason,
    Outcome,
    Progress,
    Unknown,
)
from knouds_async._batch.progress import (
    REFRESH_INTERVAL,
    Display,
    format_credits,
    format_duration,
    outcomes_line,
    terminal_bar,
)
from knouds_async._cli import output
from knouds_async._cli.errors import ExitCode, exit_code_for, format_error
from knouds_async._cli.output import call_every, plural

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
            case Unknown(job=job, is_abandoned=False, is_elsewhere=False):
                self.unknowns += 1
                if len(self.unknown) < _MAX_NAMED:
                    self.unknown.append(job.key)
            case Failed() | Cancelled():
                self.others += 1
            case Completed(save_error=Exception()):
                self.unsaved += 1

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
        is_all = progress.total is not None and progress.outcomes == progress.total
        return is_all and not progress.not_run and not progress.elsewhere

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
    outcomes, done = outcomes_line(now), now.outcomes - now.elsewhere
    resumed = f" ({now.from_ledger:,} in earlier runs)" if now.from_ledger else ""
    jobs = plural(done, "job")
    if now.total not in (None, done):
        jobs = f"{done:,} of {plural(now.total or 0, 'job')}"
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
    for name in ("elapsed", "held_for", "waiting_for_quota", "seconds_left"):
        del record[name]
    return record | {"ledger": str(ledger), "out": None if out is None else str(out)}


_LINE_INTERVAL: Final = 10.0  # seconds between two lines where there is no terminal


@asynccontextmanager
async def show_display(display: Display) -> AsyncIterator[None]:
    """Show the progress while the block runs."""
    if not output.is_live():
        async with call_every(_LINE_INTERVAL, lambda: output.print_info("; ".join(display.lines()))):
            yield
        return
    with terminal_bar(display, transient=True) as draw:
        async with call_every(REFRESH_INTERVAL, draw):
            yield
