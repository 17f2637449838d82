"""`knouds demo`: many runs at once against the emulator on this machine, over a real socket."""

from __future__ import annotations

import asyncio
from itertools import cycle, islice
from typing import Annotated, Any

from cyclopts import Parameter

from knouds_async import AsyncKnouds, KnoudsError, SubmissionUnknownError
from knouds_async.cli import output
from knouds_async.cli.exits import UsageError
from knouds_async.cli.prompts import read_prompts
from knouds_async.cli.tally import DemoStats

_WORKFLOW = "my-thumbnail-pipeline"
_MAX_RUNS = 1000

Runs = Annotated[
    int, Parameter(help=f"How many runs, 1 to {_MAX_RUNS}. Above 200 the account is of the tier business.")
]
Seed = Annotated[int, Parameter(help="The same seed gives the same durations and failures.")]


def demo(*, runs: Runs = 200, seed: Seed = 1) -> None:
    """Run 200 runs at once on an emulator; nothing is paid.

    It needs no key and no network and takes about half a minute. The emulator listens on a free port of this machine
    and has the rate limit of a real account; a few runs fail, as some do.
    """
    if not 1 <= runs <= _MAX_RUNS:
        raise UsageError(f"--runs {runs}: must be an integer from 1 to {_MAX_RUNS}")
    asyncio.run(run_demo(list(islice(cycle(read_prompts()), runs)), seed))


async def run_demo(prompts: list[dict[str, Any]], seed: int) -> None:
    """Serve the emulator, run all prompts on it, and print the summary."""
    from knouds_async.cli.progress import DemoProgress, show_progress
    from knouds_async.cli.serving import serving
    from knouds_async.cli.stage import LIMITS, RUN_SECONDS, make_demo_emulator
    from knouds_async.cli.summary import print_summary

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
