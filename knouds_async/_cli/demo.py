"""`knouds demo`: many runs at once against the emulator on this machine, over a real socket."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from knouds_async import AsyncKnouds, ExecutionState, KnoudsError, RunResult, Status, SubmissionUnknownError
from knouds_async._cli import output
from knouds_async._cli.emulator import serving
from knouds_async._cli.errors import ServingError
from knouds_async._cli.output import call_every
from knouds_async.testing import Emulator, Lognormal, Run

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live


_WORKFLOW = "my-thumbnail-pipeline"


async def run_demo(prompts: list[dict[str, Any]], seed: int) -> None:
    """Serve the emulator, run all prompts on it, and print the summary."""
    emulator, stats = make_demo_emulator(len(prompts), seed), DemoStats(prompts)
    async with serving(emulator) as base_url, AsyncKnouds(emulator.api_key, base_url=base_url) as knouds:
        output.print_info(
            f"{stats.total} runs of {_WORKFLOW} on an emulator at {base_url}; nothing is paid.\n"
            f"Tier {emulator.tier}: {LIMITS[emulator.tier]:,} submits a minute. A run takes about {RUN_SECONDS:g} s."
        )
        progress = DemoProgress(stats, emulator, knouds)
        async with show_progress(progress):
            await run_all(knouds, prompts, stats)
        seconds = progress.seconds
    print_summary(stats, emulator, seconds)


async def run_all(knouds: AsyncKnouds, prompts: list[dict[str, Any]], stats: DemoStats) -> None:
    """Run all prompts at once; the first error that concerns more than one run ends the demo."""
    error: Exception | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            for inputs in prompts:
                tasks.create_task(_run_one(knouds, inputs, stats))
    except* KnoudsError as errors:
        error = errors.exceptions[0]
    if error is not None:
        raise error  # here: Python 3.11.0 to 3.11.3 wrap what is raised in `except*` in a group


async def _run_one(knouds: AsyncKnouds, inputs: dict[str, Any], stats: DemoStats) -> None:
    try:
        execution = await knouds.workflows.submit(_WORKFLOW, inputs)
    except SubmissionUnknownError:
        stats.unknown += 1
        return
    stats.submitted += 1
    stats.record(inputs, await execution.wait())


_PROMPTS_FILE = "prompts.jsonl"


def read_prompts() -> list[dict[str, Any]]:
    """Return the inputs on each line; raises ServingError when the file is missing."""
    packed = files("knouds_async._cli").joinpath(_PROMPTS_FILE)
    checkout = Path(__file__).parents[2] / "examples" / _PROMPTS_FILE
    found = next((place for place in (packed, checkout) if place.is_file()), None)
    if found is None:
        raise ServingError(f"{_PROMPTS_FILE} is missing from this installation: reinstall knouds-async[cli]")
    return [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines() if line.strip()]


LIMITS: Final = {"pro": 100, "business": 1000}  # requests per minute and route (contract 6)
RUN_SECONDS: Final = 6.0  # median length of a run
_FIRST_WINDOW = 12.0  # seconds until the first window ends: early, so that the limit is reached
_FAILURE_RATE = 0.03


def make_demo_emulator(runs: int, seed: int) -> Emulator:
    """Return the emulator for this many runs."""
    return Emulator(
        tier="pro" if runs <= 2 * LIMITS["pro"] else "business",
        duration=Lognormal(RUN_SECONDS, 0.25),
        failure_rate=_FAILURE_RATE,
        window_phase=_FIRST_WINDOW,
        polls_limited=False,  # whether the service limits them is not documented (contract 6)
        seed=seed,
        epoch=time.time(),
    )


RESULTS_KEPT = 5  # results kept for the summary


@attrs.define
class DemoStats:
    """Counts the runs of one demo; `requested` holds the inputs of all, `results` the first finished with theirs."""

    requested: list[dict[str, Any]]
    submitted: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    unknown: int = 0
    results: list[tuple[dict[str, Any], ExecutionState]] = attrs.Factory(list)

    @property
    def total(self) -> int:
        """Runs requested."""
        return len(self.requested)

    @property
    def finished(self) -> int:
        """Runs that have finished."""
        return self.completed + self.failed + self.cancelled

    @property
    def running(self) -> int:
        """Runs that were submitted and have not finished."""
        return self.submitted - self.finished

    def record(self, inputs: dict[str, Any], state: ExecutionState) -> None:
        """Count a finished run."""
        self.completed += state.status == Status.COMPLETED
        self.failed += state.status == Status.FAILED
        self.cancelled += state.status == Status.CANCELLED
        if state.status == Status.COMPLETED and len(self.results) < RESULTS_KEPT:
            self.results.append((inputs, state))


def count_duplicates(requested: Iterable[Mapping[str, Any]], started: Iterable[Mapping[str, Any]]) -> int:
    """Return how many runs were started beyond those requested."""
    wanted, seen = (Counter(json.dumps(inputs, sort_keys=True) for inputs in each) for each in (requested, started))
    return (seen - wanted).total()


def per_minute(count: int, seconds: float) -> float:
    """Return a count per minute."""
    return 60 * count / seconds if seconds > 0 else 0.0


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that this share of the values does not exceed; nan for no values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


RUN_ROUTE = "POST /api/workflows/:slug/run"
_LINE_INTERVAL = 5.0  # seconds between two lines elsewhere
_REFRESH_INTERVAL = 0.1  # seconds between two refreshes at a terminal


@attrs.frozen
class DemoProgress:
    """What the progress of a demo is read from; `started` in monotonic seconds."""

    stats: DemoStats
    emulator: Emulator
    knouds: AsyncKnouds
    started: float = attrs.Factory(time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def counts(self) -> str:
        """Return how many runs are in each state."""
        stats = self.stats
        ends = f"{stats.finished} finished, {stats.failed} failed, {stats.unknown} unknown"
        return f"{stats.submitted} submitted, {stats.running} running, {ends}"

    def rates(self) -> str:
        """Return the rate of requests, and the credits they would cost."""
        requests = self.emulator.requests.count
        rate = per_minute(requests, self.seconds)
        refused = len(self.emulator.refusals)
        return f"{rate:,.0f} requests per minute, {refused} refused (429), {self.emulator.credits_spent:,} credits"

    def quota(self) -> str:
        """Return how long runs wait for the rate limit; "" when none do."""
        limiter = self.knouds.limiter.stats(RUN_ROUTE)
        if not limiter.waiting or limiter.resets_in is None:
            return ""
        return f"{limiter.waiting} wait for the rate limit; the next window opens in {limiter.resets_in:.0f} s"


@asynccontextmanager
async def show_progress(progress: DemoProgress) -> AsyncIterator[None]:
    """Show the progress while the block runs, and once more at its end."""
    if output.is_live():
        with _live_display() as display:
            async with call_every(_REFRESH_INTERVAL, lambda: display.update(_render(progress), refresh=True)):
                yield
            display.update(_render(progress), refresh=True)
        return
    async with call_every(_LINE_INTERVAL, lambda: output.print_info(_progress_line(progress))):
        yield
    output.print_info(_progress_line(progress))


def _progress_line(progress: DemoProgress) -> str:
    parts = (f"{progress.seconds:5.1f} s  {progress.counts()}", progress.rates(), progress.quota())
    return "; ".join(part for part in parts if part)


def _live_display() -> Live:
    from rich.console import Console
    from rich.live import Live

    return Live(console=Console(stderr=True), auto_refresh=False)


def _render(progress: DemoProgress) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    stats = progress.stats
    bars = Table.grid(padding=(0, 1))
    for name, count in (("submitted", stats.submitted), ("finished", stats.finished)):
        bars.add_row(name, ProgressBar(stats.total, count, width=40), f"{count}/{stats.total}")
    summary = f"{stats.running} running, {stats.failed} failed, {stats.unknown} unknown, {progress.seconds:.0f} s"
    lines = (summary, progress.rates(), progress.quota())
    return Group(bars, *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))


def print_summary(stats: DemoStats, emulator: Emulator, seconds: float) -> None:
    """Print the figures of a demo that took this many seconds, and the first results."""
    output.print_result("")
    output.print_pairs(*_figures(stats, emulator, seconds))
    output.print_result("\nFirst results (addresses made up by the emulator):")
    for inputs, state in stats.results:
        output.print_result(f"  {inputs['product_name']}: {_images(state)}")


def _figures(stats: DemoStats, emulator: Emulator, seconds: float) -> tuple[tuple[str, Any], ...]:
    requests = emulator.requests.count
    twice = count_duplicates(stats.requested, (run.inputs for run in emulator.runs))
    return (
        ("runs", f"{stats.total}: {stats.completed} completed, {stats.failed} failed"),
        ("run twice", str(twice)),
        ("unknown outcomes", str(stats.unknown)),
        ("wall time", f"{seconds:.1f} s"),
        ("speed", f"{per_minute(stats.finished, seconds):,.0f} runs per minute"),
        ("requests", f"{requests:,}, {requests / stats.total:.1f} per run"),
        ("refused (429)", str(len(emulator.refusals))),
        ("finish detected after", _detection_delay(emulator.runs)),
        ("credits", f"{emulator.credits_spent:,} (nothing was paid)"),
    )


def _detection_delay(runs: Sequence[Run]) -> str | None:
    """Return the time from the end of a run to its detection: median, 95th percentile, longest."""
    delays = [run.seen_ended_at - run.ends for run in runs if run.seen_ended_at is not None]
    if not delays:
        return None
    median, percentile_95 = quantile(delays, 0.5), quantile(delays, 0.95)
    return f"{median:.2f} s (median), {percentile_95:.2f} s (95th percentile), {max(delays):.2f} s (longest)"


def _images(state: ExecutionState) -> str:
    images = RunResult(state.result).images
    more = f" and {len(images) - 1} more" if len(images) > 1 else ""
    return f"{images[0].url}{more}" if images else "no image"
