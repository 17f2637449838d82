"""The demo's summary: measured figures, and the first results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from knouds_async import ExecutionState, RunResult
from knouds_async.cli import output
from knouds_async.cli.tally import DemoStats, count_duplicates, per_minute, quantile
from knouds_async.testing import Emulator, Run


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
