"""`knouds demo`: a batch of many runs against the emulator on this machine, over a real socket."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import attrs

from knouds_async import AsyncKnouds, Completed, NotRun, Outcome, Progress
from knouds_async._batch.progress import Display, describe_waits, format_duration
from knouds_async._cli import output
from knouds_async._cli.batch_display import show_display, summarize
from knouds_async._cli.emulator import serving
from knouds_async._cli.errors import ServingError
from knouds_async._cli.output import plural
from knouds_async.testing import Emulator, Lognormal, Run

_WORKFLOW: Final = "my-thumbnail-pipeline"
_RUN_ROUTE: Final = "POST /api/workflows/:slug/run"
_LIMITS: Final = {"pro": 100, "business": 1000}  # requests per minute and route (contract 6)
_RUN_SECONDS: Final = 6.0  # median length of a run
_FIRST_WINDOW: Final = 12.0  # seconds until the first window ends: early, so that the limit is reached
_FAILURE_RATE: Final = 0.03
_RESULTS_SHOWN: Final = 5
_PROMPTS_FILE: Final = "prompts.jsonl"


async def run_demo(prompts: list[dict[str, Any]], seed: int) -> None:
    """Serve the emulator, run all prompts on it as a batch, and print the summary."""
    emulator = make_demo_emulator(len(prompts), seed)
    async with serving(emulator) as base_url, AsyncKnouds(emulator.api_key, base_url=base_url) as knouds:
        output.print_info(
            f"{len(prompts)} runs of {_WORKFLOW} on an emulator at {base_url}; nothing is paid.\n"
            f"Tier {emulator.tier}: {_LIMITS[emulator.tier]:,} submits in each window of a minute, the first of which "
            f"ends in {_FIRST_WINDOW:g} s. A run takes about {_RUN_SECONDS:g} s."
        )
        results = await run_prompts(knouds, prompts, emulator)
    output.print_info(summarize(results.progress))
    print_summary(results, prompts, emulator)


@attrs.define
class DemoResults:
    """The first results of a demo, and how its batch ended."""

    completed: list[Completed] = attrs.Factory(list)
    progress: Progress = attrs.Factory(Progress)

    def record(self, outcome: Outcome) -> None:
        """Keep one of the first results; raises the error of a job that was not run, as that concerns them all."""
        if isinstance(outcome, NotRun):
            raise outcome.error
        if isinstance(outcome, Completed) and len(self.completed) < _RESULTS_SHOWN:
            self.completed.append(outcome)


async def run_prompts(knouds: AsyncKnouds, prompts: Sequence[dict[str, Any]], emulator: Emulator) -> DemoResults:
    """Run all prompts as a batch, and show its progress meanwhile."""
    results = DemoResults()
    batch = knouds.workflows.map(_WORKFLOW, prompts)

    def waits() -> Iterator[str]:
        yield from describe_waits(
            knouds.limiter.stats, _RUN_ROUTE, batch.progress.in_flight, datetime.now().astimezone()
        )
        yield f"{plural(emulator.requests.count, 'request')}, {len(emulator.refusals):,} refused (429)"

    async with batch as outcomes, show_display(Display(lambda: batch.progress, waits)):
        async for outcome in outcomes:
            results.record(outcome)
    results.progress = batch.progress
    return results


def read_prompts() -> list[dict[str, Any]]:
    """Return the inputs on each line; raises ServingError when the file is missing."""
    packed = files("knouds_async._cli").joinpath(_PROMPTS_FILE)
    checkout = Path(__file__).parents[2] / "examples" / _PROMPTS_FILE
    found = next((place for place in (packed, checkout) if place.is_file()), None)
    if found is None:
        raise ServingError(f"{_PROMPTS_FILE} is missing from this installation: reinstall knouds-async[cli]")
    return [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines() if line.strip()]


def make_demo_emulator(runs: int, seed: int) -> Emulator:
    """Return the emulator for this many runs."""
    return Emulator(
        tier="pro" if runs <= 2 * _LIMITS["pro"] else "business",
        duration=Lognormal(_RUN_SECONDS, 0.25),
        failure_rate=_FAILURE_RATE,
        window_phase=_FIRST_WINDOW,
        polls_limited=False,  # whether the service limits them is not documented (contract 6)
        seed=seed,
        epoch=time.time(),
    )


def print_summary(results: DemoResults, prompts: Sequence[Mapping[str, Any]], emulator: Emulator) -> None:
    """Print the figures of a demo, as the emulator has counted them, and the first results."""
    output.print_result("")
    output.print_pairs(*_figures(results.progress, prompts, emulator))
    output.print_result("\nFirst results (addresses made up by the emulator):")
    for outcome in results.completed:
        images = outcome.run.images
        more = f" and {len(images) - 1} more" if len(images) > 1 else ""
        output.print_result(f"  {outcome.job.inputs['product_name']}: {images[0].url if images else 'no image'}{more}")


def _figures(
    now: Progress, prompts: Sequence[Mapping[str, Any]], emulator: Emulator
) -> tuple[tuple[str, str | None], ...]:
    requests = emulator.requests.count
    one_by_one = sum(run.ends - run.started for run in emulator.runs)
    return (
        ("runs", f"{now.outcomes}: {now.completed} completed, {now.failed} failed"),
        ("run twice", str(count_duplicates(prompts, (run.inputs for run in emulator.runs)))),
        ("unknown outcomes", str(now.unknown)),
        ("wall time", f"{format_duration(now.elapsed)}; one after another: {format_duration(one_by_one)}"),
        ("requests", f"{requests:,}, {requests / now.outcomes:.1f} per run"),
        ("refused (429)", str(len(emulator.refusals))),
        ("finish detected after", _detection_delay(emulator.runs)),
        ("credits", f"{emulator.credits_spent:,} (nothing was paid)"),
    )


def count_duplicates(requested: Iterable[Mapping[str, Any]], started: Iterable[Mapping[str, Any]]) -> int:
    """Return how many runs were started beyond those requested."""
    wanted, seen = (Counter(json.dumps(inputs, sort_keys=True) for inputs in each) for each in (requested, started))
    return (seen - wanted).total()


def _detection_delay(runs: Sequence[Run]) -> str | None:
    """Return the time from the end of a run to its detection: median, 95th percentile, longest."""
    delays = [run.seen_ended_at - run.ends for run in runs if run.seen_ended_at is not None]
    if not delays:
        return None
    median, percentile_95 = quantile(delays, 0.5), quantile(delays, 0.95)
    return f"{median:.2f} s (median), {percentile_95:.2f} s (95 %), {max(delays):.2f} s (longest)"


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that this share of the values does not exceed; nan for no values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
