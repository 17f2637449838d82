"""What the demo says at its end: its figures, each measured, and the first results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from knouds_async import ExecutionState, RunResult
from knouds_async.cli import output
from knouds_async.cli.tally import Tally, begun_twice, per_minute, quantile
from knouds_async.testing import Emulator, Run


def give_summary(tally: Tally, emulator: Emulator, seconds: float) -> None:
    """Give the figures of a demo that took so many seconds, and the first results."""
    output.give("")
    output.give_pairs(*_figures(tally, emulator, seconds))
    output.give("\nFirst results (addresses made up by the emulator):")
    for inputs, state in tally.results:
        output.give(f"  {inputs['product_name']}: {_images(state)}")


def _figures(tally: Tally, emulator: Emulator, seconds: float) -> tuple[tuple[str, Any], ...]:
    requests = emulator.requests.count
    twice = begun_twice(tally.asked, (run.inputs for run in emulator.runs))
    return (
        ("runs", f"{tally.total}: {tally.completed} completed, {tally.failed} failed"),
        ("run twice", str(twice)),
        ("unknown outcomes", str(tally.unknown)),
        ("wall time", f"{seconds:.1f} s"),
        ("speed", f"{per_minute(tally.finished, seconds):,.0f} runs per minute"),
        ("requests", f"{requests:,}, {requests / tally.total:.1f} per run"),
        ("refused (429)", str(len(emulator.refusals))),
        ("end noticed after", _noticed(emulator.runs)),
        ("credits", f"{emulator.credits_spent:,} (nothing was paid)"),
    )


def _noticed(runs: Sequence[Run]) -> str | None:
    """Say how long after a run's end it was seen: median, 95 of 100, longest."""
    waits = [run.seen_ended_at - run.ends for run in runs if run.seen_ended_at is not None]
    if not waits:
        return None
    typical, late = quantile(waits, 0.5), quantile(waits, 0.95)
    return f"{typical:.2f} s (median), {late:.2f} s (95 of 100), {max(waits):.2f} s (longest)"


def _images(state: ExecutionState) -> str:
    images = RunResult(state.result).images
    more = f" and {len(images) - 1} more" if len(images) > 1 else ""
    return f"{images[0].url}{more}" if images else "no image"
