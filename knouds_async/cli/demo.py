"""`knouds demo`: many runs at once against the emulator on this machine, through a real socket."""

from __future__ import annotations

import asyncio
from itertools import cycle, islice
from typing import Annotated, Any

from cyclopts import Parameter

from knouds_async import AsyncKnouds, KnoudsError, SubmissionUnknownError
from knouds_async.cli import output
from knouds_async.cli.exits import UsageError
from knouds_async.cli.prompts import read_prompts
from knouds_async.cli.tally import Tally

_WORKFLOW = "my-thumbnail-pipeline"
_MOST = 1000

Runs = Annotated[int, Parameter(help=f"How many runs, 1 to {_MOST}. Above 200 the account is of the tier business.")]
Seed = Annotated[int, Parameter(help="The same seed gives the same durations and failures.")]


def demo(*, runs: Runs = 200, seed: Seed = 1) -> None:
    """See 200 runs at once, on an emulator; nothing is paid.

    It needs no key and no network and takes about half a minute. The emulator serves on a free port of this machine,
    with the rate limit of a real account; a few runs fail, as runs do.
    """
    if not 1 <= runs <= _MOST:
        raise UsageError(f"--runs {runs}: must be 1 to {_MOST}")
    asyncio.run(_demo(list(islice(cycle(read_prompts()), runs)), seed))


async def _demo(prompts: list[dict[str, Any]], seed: int) -> None:
    from knouds_async.cli.progress import Scene, shown
    from knouds_async.cli.serving import served
    from knouds_async.cli.stage import LIMITS, SECONDS, demo_emulator
    from knouds_async.cli.summary import give_summary

    emulator, tally = demo_emulator(len(prompts), seed), Tally(prompts)
    async with served(emulator) as base_url, AsyncKnouds(emulator.api_key, base_url=base_url) as knouds:
        output.note(
            f"{tally.total} runs of {_WORKFLOW} on an emulator at {base_url}; nothing is paid.\n"
            f"Tier {emulator.tier}: {LIMITS[emulator.tier]:,} submits a minute. A run takes about {SECONDS:g} s."
        )
        scene = Scene(tally, emulator, knouds)
        async with shown(scene):
            await fan_out(knouds, prompts, tally)
        seconds = scene.seconds
    give_summary(tally, emulator, seconds)


async def fan_out(knouds: AsyncKnouds, prompts: list[dict[str, Any]], tally: Tally) -> None:
    """Run every prompt at once; the first error that is not of a single run ends the demo."""
    first: Exception | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            for inputs in prompts:
                tasks.create_task(_run_one(knouds, inputs, tally))
    except* KnoudsError as errors:
        first = errors.exceptions[0]
    if first is not None:
        raise first  # out here: Python 3.11.0 to 3.11.3 put what is raised in `except*` into a group


async def _run_one(knouds: AsyncKnouds, inputs: dict[str, Any], tally: Tally) -> None:
    try:
        execution = await knouds.workflows.submit(_WORKFLOW, inputs)
    except SubmissionUnknownError:
        tally.unknown += 1
        return
    tally.submitted += 1
    tally.ended(inputs, await execution.wait())
