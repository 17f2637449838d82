"""How a batch stands, what it costs and how long it takes; and how people see that: `on_progress`, lines, a bar."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

import anyio
import attrs

from knouds_async._batch.jobs import Reader, refusal
from knouds_async._batch.worker import Worker
from knouds_async._io.concurrency import Wakeup
from knouds_async._sansio import endpoints
from knouds_async._sansio.estimate import Estimate, Remaining, estimate, seconds_left
from knouds_async._sansio.ledger import Entry, Stage, amount
from knouds_async._sansio.listings import Quota
from knouds_async._sansio.rate_limit import LimiterStats
from knouds_async.config import TIERS, is_live
from knouds_async.errors import ConfigurationError
from knouds_async.types import Account, Record

if TYPE_CHECKING:
    from rich.console import RenderableType

REFRESH_INTERVAL: Final = 0.2  # seconds between two drawings
_BAR_WIDTH: Final = 34
_WINDOW: Final = 60.0  # seconds before which a pace says nothing: runs are submitted in bursts
_LEAST_OF_A_LISTING: Final = 3  # runs from which on usage listings take the place of polls
_POLLS: Final = endpoints.get_execution("x").route
_LISTINGS: Final = endpoints.list_usage_statuses(limit=1, offset=0).route


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Progress(Record):
    """How a batch stands at a moment.

    `elapsed`: seconds since the batch was entered. `total`: how many jobs there are, None when `jobs` has no length.
    `read`: jobs taken from `jobs` so far. `submitted`: runs that this batch has started, so `submitted / elapsed` is
    its rate. `in_flight`: runs that are running now, those of an earlier batch included.
    `completed`, `failed`, `cancelled`, `not_run`, `unknown`, `abandoned`, `elsewhere`: outcomes so far, those out of
    the ledger included; an `Unknown` that somebody decided to leave at that counts as abandoned alone, and one that
    another batch has in flight as elsewhere alone. `from_ledger`: how many of them an earlier batch had finished.
    `outcomes`: all of them.
    `credits_spent`: what ended runs have cost, over the life of the ledger if there is one; where the service did not
    say the cost, the estimate counts. `credits_reserved`: for what is in flight or unknown. `max_credits`: the cap.
    `held_for`: seconds for which nothing is submitted because the service asked for a pause.
    `waiting_for_quota`: jobs that wait for the rate limit. `seconds_left`: until all jobs have finished, by the windows
    that their submits need and by how long runs took so far; None while that is not known.
    """

    elapsed: float = 0.0
    total: int | None = None
    read: int = 0
    submitted: int = 0
    in_flight: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    not_run: int = 0
    unknown: int = 0
    abandoned: int = 0
    elsewhere: int = 0
    from_ledger: int = 0
    credits_spent: float = attrs.field(default=0, converter=amount)
    credits_reserved: float = attrs.field(default=0, converter=amount)
    max_credits: float | None = attrs.field(default=None, converter=attrs.converters.optional(amount))
    held_for: float = 0.0
    waiting_for_quota: int = 0
    seconds_left: float | None = None

    @property
    def outcomes(self) -> int:
        """The jobs that have an outcome."""
        settled = self.completed + self.failed + self.cancelled + self.abandoned
        return settled + self.not_run + self.unknown + self.elsewhere


OnProgress: TypeAlias = Callable[[Progress], object] | Callable[[Progress], Awaitable[object]]
"""Called whenever something has changed; an async one is awaited, and then called with the newest progress."""


# ---- What a batch waits for, what it costs, and how long it takes

Find: TypeAlias = Callable[[str], Awaitable[Entry | None]]

_FAULTS_NAMED: Final = 10


def time_left(worker: Worker, unfinished: int, max_in_flight: int) -> float | None:
    """Return the seconds until so many jobs have finished, None when unknown."""
    limiter = worker.client.limiter
    submits, polls = limiter.stats(worker.route), limiter.stats(_POLLS)
    remaining = Remaining(
        to_submit=0 if worker.stopped_by is not None else max(0, unfinished - worker.in_flight),
        in_flight=worker.in_flight,
        since_submit=anyio.current_time() - worker.last_sent if worker.in_flight else 0.0,
        held_for=submits.held_for,
        polls_needed=worker.client.executions.polls_needed,
    )
    return seconds_left(
        remaining,
        submits=_quota(submits, limiter.share),
        polls=_quota(polls, limiter.share),
        lengths=worker.lengths,
        max_in_flight=max_in_flight,
    )


def _quota(stats: LimiterStats, share: float = 1.0) -> Quota:
    return Quota(None if stats.limit is None else stats.limit * share, stats.left, stats.resets_in)


async def estimate_jobs(worker: Worker, jobs: Reader, find: Find, max_in_flight: int) -> Estimate:
    """Return what jobs would cost and how long they would take; see `Batch.estimate`."""
    client, target = worker.client, worker.target
    await worker.fetch_schema()
    counted = await _count_jobs(worker, jobs, find)
    is_workflow = target.kind == "workflows"
    rows = endpoints.list_usage(
        workflow_slug=target.name if is_workflow else None,
        model_id=None if is_workflow else target.name,
        limit=endpoints.LARGEST_PAGE,
    )
    page, account = await client.pipeline.send(rows), await client.pipeline.send(endpoints.whoami())
    return estimate(
        counted,
        price=worker.prices.estimate,
        rows=page.rows,
        quota=_known_quota(client.limiter.stats, (worker.route, rows.route, endpoints.whoami().route), account),
        max_in_flight=max_in_flight,
        expected=worker.options.expected,
    )


def _known_quota(stats: Callable[[str], LimiterStats], routes: Sequence[str], account: Account) -> Quota:
    """Return the quota of the first route, or what those of others or the tier say of it."""
    own, *others = (_quota(stats(route)) for route in routes)
    if own.limit is not None:
        return own
    tier = Quota(math.inf if account.role == "admin" else TIERS.get(account.tier or ""))
    known = next((quota for quota in others if quota.limit is not None), tier)
    return attrs.evolve(known, left=None)


async def _count_jobs(worker: Worker, jobs: Reader, find: Find) -> Estimate:
    """Read all jobs, and count those that would not be run."""
    invalid, done, faults = 0, 0, list[str]()
    async for prepared in jobs:
        entry = await find(prepared.job.key)
        if (refused := refusal(prepared, entry, worker.target, worker.schema)) is None:
            done += entry is not None and entry.stage is not Stage.NEW
            continue
        invalid += 1
        if len(faults) < _FAULTS_NAMED:
            fault = str(getattr(refused.error, "message", refused.error)).removeprefix(f"{worker.target}: ")
            faults.append(f"{prepared.job.key}: {fault}")
    return Estimate(jobs=jobs.count, invalid=invalid, already_done=done, faults=tuple(faults))


# ---- on_progress


class Reporter:
    """Calls `on_progress`; what it returns is awaited in `run`, which then calls it with the newest progress.

    So an async one is called in order and never delays a job, and hears of the last change.
    """

    def __init__(self, on_progress: OnProgress, progress: Callable[[], Progress]) -> None:
        self._on_progress, self._progress = on_progress, progress
        self._awaited: Awaitable[object] | None = None
        self._is_async = self._is_due = self._is_over = False
        self._changed = Wakeup()

    def report(self) -> None:
        """Report a change: at once, or when what was called before is done."""
        if self._is_async:
            self._is_due = True
        elif inspect.isawaitable(answer := self._on_progress(self._progress())):
            self._is_async, self._awaited = True, answer
        self._changed.notify()

    def end(self) -> None:
        """End `run` once all is reported."""
        self._is_over = True
        self._changed.notify()

    async def run(self) -> None:
        """Await what `on_progress` returns, until all is reported; raises what it raises."""
        try:
            while await self._has_more():
                if self._awaited is None:
                    self._is_due = False
                    answer = self._on_progress(self._progress())
                    self._awaited = answer if inspect.isawaitable(answer) else None
                if self._awaited is not None:
                    awaited, self._awaited = self._awaited, None
                    await awaited
        finally:
            if inspect.iscoroutine(self._awaited):
                self._awaited.close()

    async def _has_more(self) -> bool:
        while not (self._is_due or self._awaited is not None):
            if self._is_over:
                return False
            await self._changed.wait()
        return True


# ---- Lines


@attrs.define
class Display:
    """Describes how a batch stands; `waits`: lines about what it waits for beside the runs themselves."""

    progress: Callable[[], Progress]
    waits: Callable[[], Iterator[str]] = lambda: iter(())

    def lines(self) -> tuple[str, ...]:
        """Return lines of at most 80 columns for any batch of less than a million jobs."""
        now = self.progress()
        lines = (_jobs_line(now), outcomes_line(now), _credits_line(now), _time_line(now), *self.waits())
        return tuple(line for line in lines if line)

    def render(self) -> RenderableType:
        """Return the lines for rich, with a bar where the number of jobs is known."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        now, table = self.progress(), Table.grid()
        first, *others = (Text(line, no_wrap=True, overflow="ellipsis") for line in self.lines())
        if now.total:
            row = Table.grid(padding=(0, 1))
            row.add_row(ProgressBar(now.total, now.outcomes, width=_BAR_WIDTH), first)
            table.add_row(row)
        else:
            table.add_row(first)
        for line in others:
            table.add_row(line)
        return table


def _jobs_line(now: Progress) -> str:
    of = "" if now.total is None else f" of {now.total:,}"
    return f"{now.outcomes - now.elsewhere:,}{of} done, {now.in_flight:,} in flight"


def outcomes_line(now: Progress) -> str:
    """Return how many jobs had each outcome, without those that did not occur."""
    kinds = (
        (now.completed, "completed"),
        (now.failed, "failed"),
        (now.cancelled, "cancelled"),
        (now.not_run, "not run"),
        (now.unknown, "unknown"),
        (now.abandoned, "abandoned"),
        (now.elsewhere, "in flight elsewhere"),
    )
    return ", ".join(f"{count:,} {kind}" for count, kind in kinds if count)


def _credits_line(now: Progress) -> str:
    """Return the credits spent, the limit if there is one, and what is reserved for runs in flight."""
    cap = "" if now.max_credits is None else f" of {format_credits(now.max_credits)}"
    reserved = f", {format_credits(now.credits_reserved)} reserved" if now.credits_reserved else ""
    return f"{format_credits(now.credits_spent)}{cap} credits spent{reserved}"


def _time_line(now: Progress) -> str:
    """Return the time that has passed and the time that is left; where that cannot be known, the mean pace."""
    elapsed = format_duration(now.elapsed)
    if now.total is None and now.elapsed >= _WINDOW:
        return f"{elapsed}, {_WINDOW * (now.outcomes - now.from_ledger) / now.elapsed:,.0f} jobs a minute"
    return f"{elapsed}, about {format_duration(now.seconds_left)} to go" if now.seconds_left else elapsed


def describe_waits(stats: Callable[[str], LimiterStats], route: str, in_flight: int, now: datetime) -> Iterator[str]:
    """Yield what a batch waits for beside its runs: a pause, or a window of its submits or of its polls."""
    submits = stats(route)
    if line := format_pause(submits, now) or format_quota(submits):
        yield line
    polls, listings = stats(_POLLS), stats(_LISTINGS)
    is_listed = in_flight >= _LEAST_OF_A_LISTING and listings.left != 0
    if in_flight and polls.left == 0 and polls.resets_in is not None and (polls.waiting or not is_listed):
        opens = f"the next window opens in {polls.resets_in:.0f} s"
        yield f"{in_flight:,} in flight: the quota of polls is used up; {opens}"


def format_pause(stats: LimiterStats, now: datetime) -> str:
    """Return until when jobs wait because the service asked for a pause; "" when none do."""
    if not stats.waiting or not stats.is_pause or stats.held_for < 1:
        return ""
    until = now + timedelta(seconds=stats.held_for)
    day = "" if until.date() == now.date() else f"{until:%Y-%m-%d} "
    return f"{stats.waiting:,} wait: the service asked for a pause until {day}{until:%H:%M:%S}"


def format_quota(stats: LimiterStats) -> str:
    """Return how long jobs wait for the rate limit; "" when none do, or only for a probe's answer."""
    if not stats.waiting or stats.resets_in is None or stats.left:
        return ""
    return f"{stats.waiting:,} wait for the rate limit; the next window opens in {stats.resets_in:.0f} s"


def format_duration(seconds: float) -> str:
    """Return seconds as on a clock: 0:07, 12:34, 1:02:03."""
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes}:{seconds_left:02}"


def format_credits(credits: float) -> str:
    """Return an amount of credits as text."""
    return f"{round(credits, 2):,.12g}"


# ---- Where they are drawn

ROOM_FOR_CTRL_C: Final = 2
"""Columns that drawn lines leave: the ^C that a terminal writes would begin a line that nobody removes."""

Bar: TypeAlias = AbstractContextManager[Callable[[], object]]
"""What draws a display as long as it is entered."""


@contextmanager
def terminal_bar(display: Display, *, transient: bool = False) -> Iterator[Callable[[], object]]:
    """Yield what draws a display on stderr, below what is printed meanwhile; `transient`: and remove it at the end."""
    from rich.console import Console
    from rich.constrain import Constrain
    from rich.live import Live

    console = Console(stderr=True)
    live = Live(
        console=console,
        auto_refresh=False,
        transient=transient,
        redirect_stdout=sys.stdout.isatty(),  # output to a file or a pipe is not touched
    )

    def draw() -> None:
        live.update(Constrain(display.render(), console.width - ROOM_FOR_CTRL_C), refresh=True)

    with live:
        yield draw


@contextmanager
def _notebook_bar(display: Display) -> Iterator[Callable[[], object]]:
    """Yield what draws a display in the output of a notebook's cell, where it stays."""
    from IPython.display import display as show  # type: ignore[import-not-found,unused-ignore]

    handle = show(display.render(), display_id=True)
    yield lambda: handle.update(display.render())


def bar_for(display: Display) -> Bar | None:
    """Return the bar of a terminal or a notebook, None where there is neither; ConfigurationError without rich."""
    is_notebook = _is_notebook()
    if not is_notebook and not is_live(sys.stderr):
        return None
    try:
        import rich.console  # noqa: F401  (before anything is paid)
    except ImportError:
        raise ConfigurationError("progress=True: rich is not installed; pip install 'knouds-async[progress]'") from None
    return _notebook_bar(display) if is_notebook else terminal_bar(display)


def _is_notebook() -> bool:
    """Return whether this is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)
