"""How a batch tells people its progress: `on_progress`, the lines that describe it, and the bar that shows them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import attrs

from knouds_async._batch.jobs import OnProgress, Progress
from knouds_async._io.concurrency import Wakeup
from knouds_async._sansio import endpoints
from knouds_async._sansio.rate_limit import LimiterStats
from knouds_async.config import is_live
from knouds_async.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import RenderableType

REFRESH_INTERVAL: Final = 0.2  # seconds between two drawings
_BAR_WIDTH: Final = 34
_WINDOW: Final = 60.0  # seconds before which a pace says nothing: runs are submitted in bursts
_LEAST_OF_A_LISTING: Final = 3  # runs from which on usage listings take the place of polls
_POLLS: Final = endpoints.get_execution("x").route
_LISTINGS: Final = endpoints.list_usage_statuses(limit=1, offset=0).route


# ---- on_progress


class Reporter:
    """Calls `on_progress`; what it returns is awaited in `run`, which then calls it with the newest progress.

    So an async one is called in order and never delays a job, and hears of the last change.
    """

    def __init__(self, on_progress: OnProgress, progress: Callable[[], Progress]) -> None:
        self._on_progress, self._progress = on_progress, progress
        called = (on_progress, getattr(on_progress, "__call__", None))  # noqa: B004  (an object with an async __call__)
        self._is_async = any(map(inspect.iscoroutinefunction, called))
        self._awaited: Awaitable[object] | None = None
        self._is_due = self._is_over = False
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
        lines = (_jobs_line(now), _outcomes_line(now), _credits_line(now), _time_line(now), *self.waits())
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


class TerminalBar:
    """Draws a display on stderr, below what is printed meanwhile; `transient`: and removes it at the end."""

    def __init__(self, display: Display, *, transient: bool = False) -> None:
        from rich.console import Console
        from rich.live import Live

        self._display = display
        self._live = Live(
            console=Console(stderr=True),
            auto_refresh=False,
            transient=transient,
            redirect_stdout=sys.stdout.isatty(),  # output to a file or a pipe is not touched
        )

    def __enter__(self) -> TerminalBar:
        """Start drawing."""
        self._live.start()
        return self

    def draw(self) -> None:
        """Draw how the batch stands."""
        self._live.update(self._display.render(), refresh=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop drawing, and let others print as before."""
        self._live.stop()


class NotebookBar:
    """Draws a display in the output of a notebook's cell."""

    def __init__(self, display: Display) -> None:
        import rich.table  # noqa: F401  (what is drawn is rich's; an ImportError here is before anything is paid)
        from IPython.display import display as show  # type: ignore[import-not-found,unused-ignore]

        self._display, self._show = display, show
        self._handle: Any = None

    def __enter__(self) -> NotebookBar:
        """Show it in the cell that runs."""
        self._handle = self._show(self._display.render(), display_id=True)
        return self

    def draw(self) -> None:
        """Draw how the batch stands."""
        self._handle.update(self._display.render())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave it as it was drawn last."""


def bar_for(display: Display) -> TerminalBar | NotebookBar | None:
    """Return the bar of a terminal or a notebook, None where there is neither; ConfigurationError without rich."""
    is_notebook = _is_notebook()
    if not is_notebook and not is_live(sys.stderr):
        return None
    try:
        return NotebookBar(display) if is_notebook else TerminalBar(display)
    except ImportError:
        raise ConfigurationError("progress=True: rich is not installed; pip install 'knouds-async[progress]'") from None


def _is_notebook() -> bool:
    """Return whether this is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)
