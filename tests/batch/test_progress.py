"""The progress of a batch: reported to `on_progress`, in lines, and as a bar in a terminal or a notebook."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from types import ModuleType
from typing import Any

import anyio
import attrs
import pytest

from knouds_async import (
    AsyncKnouds,
    Completed,
    ConfigurationError,
    InvalidArgumentError,
    Job,
    LimiterStats,
    Outcome,
    Progress,
)
from knouds_async._batch.progress import (
    Display,
    describe_waits,
    format_duration,
    format_pause,
    format_quota,
    terminal_bar,
)
from knouds_async.testing import Emulator

SLUG = "my-thumbnail-pipeline"
ROUTE = "POST /api/workflows/:slug/run"
MakeClient = Any


def jobs(count: int) -> list[Job]:
    """Return jobs with keys of their own."""
    return [Job(f"job-{number}", {"product_name": f"Product {number}"}) for number in range(count)]


# on_progress


class Listener:
    """Hears of progress as an object with an async `__call__`."""

    def __init__(self, pause: float = 0.0) -> None:
        self.heard: list[Progress] = []
        self.pause = pause
        self.awaited = 0

    async def __call__(self, progress: Progress) -> None:
        """Process it, and take some time."""
        assert self.awaited == len(self.heard)  # one after the other
        self.heard.append(progress)
        await anyio.sleep(self.pause)
        self.awaited += 1

    async def method(self, progress: Progress) -> None:
        """Process it by a method."""
        await self(progress)


@pytest.mark.parametrize(
    "kind",
    [
        lambda listener: listener,
        lambda listener: listener.method,
        lambda listener: partial(listener.method),
        lambda listener: lambda progress: listener.method(attrs.evolve(progress)),
    ],
)
async def test_an_async_on_progress_is_awaited_in_order(
    knouds: AsyncKnouds, kind: Callable[[Listener], Callable[[Progress], Awaitable[None]]]
) -> None:
    """However it is written, it hears what only grows, one call at a time, and the end before the outcomes end."""
    listener = Listener()
    async with knouds.workflows.map(SLUG, jobs(20), on_progress=kind(listener)) as outcomes:
        assert len([outcome async for outcome in outcomes]) == 20
        assert listener.heard[-1].completed == 20
    assert listener.awaited == len(listener.heard) >= 2
    assert [each.outcomes for each in listener.heard] == sorted(each.outcomes for each in listener.heard)


async def test_a_slow_on_progress_delays_no_job(make_client: MakeClient) -> None:
    """Jobs that are submitted while it takes its time are not held up, and it is called with the newest then."""
    took = []
    for pause in (0.0, 7.0):
        batch = make_client(Emulator(tier="business", duration=45.0)).workflows.map(
            SLUG, jobs(50), on_progress=Listener(pause)
        )
        async with batch as outcomes:
            for _ in range(50):
                await anext(outcomes)
            took.append(batch.progress.elapsed)
    assert took[1] == pytest.approx(took[0], abs=0.5)


@pytest.mark.parametrize("is_async", [True, False])
async def test_what_on_progress_raises_ends_the_batch(
    knouds: AsyncKnouds, emulator: Emulator, *, is_async: bool
) -> None:
    """The outcomes end with its error, be it async or not, and no further job is submitted."""

    def fail(progress: Progress) -> None:
        if progress.submitted >= 3:
            raise ZeroDivisionError

    async def fail_later(progress: Progress) -> None:
        fail(progress)

    with pytest.raises(ZeroDivisionError):
        async with knouds.workflows.map(
            SLUG, jobs(40), max_in_flight=3, on_progress=fail_later if is_async else fail
        ) as outcomes:
            [outcome async for outcome in outcomes]
    assert len(emulator.runs) <= 6


async def test_leaving_the_block_ends_what_on_progress_awaits(knouds: AsyncKnouds) -> None:
    """A call that never ends is cancelled with the batch, and nothing is left that nobody awaits."""
    listener = Listener(pause=1e9)
    async with knouds.workflows.map(SLUG, jobs(3), on_progress=listener) as outcomes:
        async for _ in outcomes:
            break
    assert len(listener.heard) == 1
    assert listener.awaited == 0


@pytest.mark.parametrize("wrong", [{"on_progress": "print"}, {"on_progress": 3}, {"progress": "yes"}, {"progress": 1}])
async def test_what_is_no_callable_is_refused_at_once(knouds: AsyncKnouds, wrong: dict[str, Any]) -> None:
    """The error names what was given, before anything is sent."""
    with pytest.raises(InvalidArgumentError, match="must be"):
        knouds.workflows.map(SLUG, [], **wrong)
    with pytest.raises(InvalidArgumentError, match="must be"):
        await knouds.models.gather("gpt-image-2", [], **wrong)


async def test_progress_counts_what_waits_for_quota(make_client: MakeClient) -> None:
    """The jobs that a window has no room for are counted, and the time left is by the windows that they need."""
    heard: list[Progress] = []
    knouds = make_client(Emulator(tier="pro", duration=5.0, window_phase=30.0), tier="pro")
    async with knouds.workflows.map(SLUG, jobs(150), on_progress=heard.append) as outcomes:
        [outcome async for outcome in outcomes]
    assert max(each.waiting_for_quota for each in heard) == 50
    assert heard[-1].waiting_for_quota == 0
    assert heard[-1].seconds_left == 0


async def test_gather_takes_what_map_takes(make_client: MakeClient) -> None:
    """A ledger's keys, a cap, how many are in flight, who hears of it: all as of `map`, for workflows and models."""
    knouds, heard = make_client(Emulator(tier="business", duration=5.0)), list[Progress]()
    found: list[Outcome] = await knouds.workflows.gather(
        SLUG, jobs(4), max_credits=30.0, max_in_flight=1, expected=5.0, on_unknown="stop", on_progress=heard.append
    )
    assert [type(outcome).__name__ for outcome in found] == ["Completed", "Completed", "NotRun", "NotRun"]
    assert max(each.in_flight for each in heard) == 1
    (one,) = await knouds.models.gather(
        "gpt-image-2", [{"prompt": "a pier"}], max_in_flight=1, on_progress=heard.append
    )
    assert isinstance(one, Completed)


# Lines


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")]
)
def test_times_are_said_as_on_a_clock(seconds: float, said: str) -> None:
    """Minutes and seconds, and hours where there are some."""
    assert format_duration(seconds) == said


def test_the_progress_fits_a_terminal() -> None:
    """Every line has at most 80 columns, whatever the batch, and says what the batch is for."""
    now = Progress(
        elapsed=359_999.0,
        total=999_999,
        in_flight=1_000,
        completed=812_345,
        failed=12_345,
        cancelled=9,
        not_run=0,
        unknown=99,
        credits_spent=9_999_999.25,
        credits_reserved=12_000.5,
        max_credits=11_000_000.0,
        seconds_left=100_000.0,
    )
    display = Display(lambda: now)
    assert display.lines() == (
        "824,798 of 999,999 done, 1,000 in flight",
        "812,345 completed, 12,345 failed, 9 cancelled, 99 unknown",
        "9,999,999.25 of 11,000,000 credits spent, 12,000.5 reserved",
        "99:59:59, about 27:46:40 to go",
    )
    assert len(display.lines()[0]) + len(" ") + 34 <= 80


def test_what_did_not_occur_is_not_said() -> None:
    """A batch without a known number of jobs, a cap and odd outcomes says none; its pace once that means something."""
    now = Progress(elapsed=3.0, completed=3, in_flight=2, credits_spent=36.0)
    assert Display(lambda: now).lines() == ("3 done, 2 in flight", "3 completed", "36 credits spent", "0:03")
    now = attrs.evolve(now, elapsed=90.0, from_ledger=0)
    assert Display(lambda: now).lines()[-1] == "1:30, 2 jobs a minute"


def test_a_wait_for_the_rate_limit_is_said() -> None:
    """While jobs wait for a turn, how many do and when the next window opens is said, and nothing otherwise."""
    stats = LimiterStats(limit=100, left=0, resets_in=31.6, waiting=1_234, refusals=0)
    assert format_quota(stats) == "1,234 wait for the rate limit; the next window opens in 32 s"
    assert format_quota(attrs.evolve(stats, waiting=0)) == format_quota(attrs.evolve(stats, resets_in=None)) == ""
    assert format_quota(attrs.evolve(stats, left=99)) == ""  # a new window has opened, and a probe crosses its edge


def test_a_pause_that_the_service_asked_for_is_said() -> None:
    """While jobs wait for the end of a pause, until when is said; the day too when it is another."""
    now = datetime(2026, 5, 8, 19, 29, 55, tzinfo=UTC)
    stats = LimiterStats(limit=100, left=0, resets_in=None, waiting=1_234, refusals=1, held_for=65.0, is_pause=True)
    assert format_pause(stats, now) == "1,234 wait: the service asked for a pause until 19:31:00"
    assert format_pause(attrs.evolve(stats, held_for=86_400.0), now).endswith("until 2026-05-09 19:29:55")
    assert (
        format_pause(attrs.evolve(stats, waiting=0), now) == format_pause(attrs.evolve(stats, held_for=0.0), now) == ""
    )


def test_a_wait_for_polls_is_said() -> None:
    """Runs in flight whose ends nobody can see before a window opens say so, unless a listing shows them all."""
    now = datetime(2026, 5, 8, tzinfo=UTC)
    used, free = LimiterStats(limit=100, left=0, resets_in=31.6), LimiterStats(limit=100, left=9, resets_in=31.6)

    def said(in_flight: int, *, polls: LimiterStats, listings: LimiterStats) -> list[str]:
        stats = {ROUTE: free, "GET /api/executions/:id": polls, "GET /api/usage": listings}
        return list(describe_waits(stats.__getitem__, ROUTE, in_flight, now))

    line = "{} in flight: the quota of polls is used up; the next window opens in 32 s"
    assert said(100, polls=used, listings=used) == [line.format(100)]
    assert said(2, polls=used, listings=free) == [line.format(2)]
    assert said(3, polls=attrs.evolve(used, waiting=1), listings=free) == [line.format(3)]
    assert said(3, polls=used, listings=free) == said(0, polls=used, listings=used) == []
    assert said(3, polls=free, listings=used) == []


# The bar


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Return that it is one."""
        return True


def in_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make stderr a terminal of 100 columns; in the test itself, for pytest sets it before."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return stream


async def test_a_bar_is_drawn_in_a_terminal(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows what is done, in flight, waiting, spent and left, it ends as the batch does, and stderr is as before."""
    terminal = in_terminal(monkeypatch)
    knouds = make_client(Emulator(tier="pro", duration=10.0, window_phase=30.0), tier="pro")
    assert len(await knouds.workflows.gather(SLUG, jobs(150), progress=True)) == 150
    assert sys.stderr is terminal
    drawn = terminal.getvalue()
    for part in (
        "━",
        "0 of 150 done, 100 in flight",
        "50 wait for the rate limit; the next window opens in ",
        "100 completed",
        "1,200 credits spent",
        " to go",
        "150 of 150 done, 0 in flight",
        "\x1b[?25h",  # the cursor is shown again
    ):
        assert part in drawn, part


def test_no_drawn_line_is_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each leaves two columns: the ^C that a terminal writes would begin another line, and one would stay for good."""
    terminal = in_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "40")
    now, waits = Progress(total=60, in_flight=4), ["stopping: waiting for runs in flight; press Ctrl-C again"]
    with terminal_bar(Display(lambda: now, lambda: iter(waits))) as draw:
        draw()
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).replace("\r", "\n").splitlines()
    assert any("stopping: waiting" in line for line in lines)
    assert max(map(len, lines)) == 38


async def test_no_bar_is_drawn_elsewhere(knouds: AsyncKnouds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stderr is no terminal, or one that cannot redraw, nothing is drawn, and rich is not needed."""
    monkeypatch.setitem(sys.modules, "rich.live", None)
    for stream, kind in ((io.StringIO(), "xterm"), (Terminal(), "dumb")):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", kind)
        assert len(await knouds.workflows.gather(SLUG, jobs(1), progress=True)) == 1
        assert stream.getvalue() == ""


async def test_without_rich_the_extra_is_named_before_anything_is_paid(
    knouds: AsyncKnouds, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`map` and `gather` raise before a request is made."""
    terminal = in_terminal(monkeypatch)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(ConfigurationError, match=r"knouds-async\[progress\]"):
        knouds.workflows.map(SLUG, jobs(2), progress=True)
    with pytest.raises(ConfigurationError, match=r"knouds-async\[progress\]"):
        await knouds.models.gather("gpt-image-2", [{"prompt": "a pier"}], progress=True)
    assert emulator.requests.count == 0
    assert terminal.getvalue() == ""


async def test_a_terminal_that_goes_away_ends_no_batch(
    knouds: AsyncKnouds, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bar that can no longer be drawn is given up with a warning, and every job has its outcome."""
    terminal = in_terminal(monkeypatch)
    async with knouds.workflows.map(SLUG, jobs(5), progress=True) as outcomes:
        await anyio.sleep(1)
        terminal.close()
        assert len([outcome async for outcome in outcomes]) == 5
    assert "can no longer be drawn" in caplog.text


async def test_a_bar_is_drawn_in_a_notebook(knouds: AsyncKnouds, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook's kernel the bar is one output of the cell, which changes until the batch has ended."""
    shown: list[Any] = []

    class ZMQInteractiveShell:
        """The shell of a kernel, by its name."""

    class Handle:
        """What IPython returns for an output that may change."""

        def update(self, table: Any) -> None:
            """Change the output."""
            shown.append(table._repr_mimebundle_([], [])["text/plain"])

    def display(table: Any, *, display_id: bool) -> Handle:
        assert display_id
        assert table is not None
        return Handle()

    ipython, in_cells = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = ZMQInteractiveShell  # type: ignore[attr-defined]
    in_cells.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", in_cells)
    assert len(await knouds.workflows.gather(SLUG, jobs(3), progress=True)) == 3
    assert "0 of 3 done" in shown[0]
    assert "3 of 3 done" in shown[-1]
