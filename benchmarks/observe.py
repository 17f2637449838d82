"""Draw the pictures of docs/observability.md from what a client exports in virtual time: run it as a script."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import httpx
from opentelemetry.sdk import trace as sdk_trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from knouds_async import AsyncKnouds, Job
from knouds_async.testing import Emulator, EmulatorTransport, Lognormal, VirtualTimeLoop

SLUG = "my-thumbnail-pipeline"
FOLDER = Path(__file__).parents[1] / "docs" / "_static"
WIDTH, LEFT, RIGHT, ROW = 900, 190, 110, 17
COLOURS = {
    "knouds.batch": "#495057",
    "knouds.submit": "#e8590c",
    "knouds.wait": "#74c0fc",
    "knouds.poll": "#2f9e44",
    "knouds.sweep": "#9c36b5",
}
Point = tuple[float, float]


def in_virtual_time(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `main`, with the spans' times read from the clock of its loop."""
    loop = VirtualTimeLoop()
    sdk_trace.time_ns = lambda: int(loop.time() * 1e9)  # type: ignore[attr-defined]  # the SDK takes no clock
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())


def client(emulator: Emulator, **options: Any) -> AsyncKnouds:
    """Return a client on an emulator 40 ms away."""
    http = httpx.AsyncClient(transport=EmulatorTransport(emulator, latency=0.04))
    return AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http, tier="pro", **options)


async def run_batch(knouds: AsyncKnouds, jobs: int) -> None:
    """Run a batch to its end."""
    work = [Job(f"job-{number}", {"product_name": f"Number {number}"}) for number in range(1, jobs + 1)]
    async with knouds, knouds.workflows.map(SLUG, work) as outcomes:
        async for _ in outcomes:
            pass


# ---- A trace of ten


def trace_of_ten() -> str:
    """Return the spans of a batch of ten as SVG."""
    exporter, provider = InMemorySpanExporter(), sdk_trace.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def main() -> None:
        emulator = Emulator(tier="pro", duration=Lognormal(20.0, 0.35), seed=3)
        await run_batch(client(emulator, tracer_provider=provider), 10)

    in_virtual_time(main)
    return draw_spans(exporter.get_finished_spans())


def draw_spans(spans: Sequence[Any]) -> str:
    """Draw spans as bars: of the batch, of each job, then the polls and listings, each in a row of its own."""
    order = list(COLOURS)
    spans = sorted(spans, key=lambda span: (order.index(span.name) >= 3, span.start_time, order.index(span.name)))
    scale = (WIDTH - LEFT - RIGHT) / max(span.end_time for span in spans)
    drawn = []
    for place, span in enumerate(spans):
        y, x = 24 + place * ROW, LEFT + span.start_time * scale
        width = max(2.0, (span.end_time - span.start_time) * scale)
        key = span.attributes.get("knouds.job.key") or span.attributes.get("knouds.execution.id", "")[:8]
        links = f", {len(span.links)} links" if span.links else ""
        drawn += [
            f'<text x="{LEFT - 8}" y="{y + 11}" text-anchor="end">{span.name} {key}</text>',
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 5}" fill="{COLOURS[span.name]}"/>',
            f'<text x="{x + width + 5:.1f}" y="{y + 11}" fill="#868e96">'
            f"{(span.end_time - span.start_time) / 1e9:.2f} s{links}</text>",
        ]
    return as_svg(drawn, 24 + len(spans) * ROW + 10)


# ---- The metrics of a thousand

SUBMITS = {"knouds.route": "POST /api/workflows/:slug/run"}
PANELS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Runs in flight", "knouds.client.executions.in_flight", {}),
    ("Jobs completed", "knouds.batch.jobs", {}),
    ("Credits", "knouds.client.credits", {}),
    (
        "Submits left in the window",
        "knouds.client.rate_limit.remaining",
        {"knouds.route": "POST /api/workflows/:slug/run"},
    ),
    ("Requests in the queue for quota", "knouds.client.rate_limit.queue", {}),
    ("Requests sent", "knouds.client.requests", {}),
)


def metrics_of_a_thousand() -> str:
    """Return the metrics of a batch of a thousand on Pro as SVG."""
    reader = InMemoryMetricReader()
    lines: dict[str, list[Point]] = {title: [] for title, _, _ in PANELS}

    async def sample() -> None:
        while True:
            await asyncio.sleep(2)
            data = reader.get_metrics_data()
            for title, name, only in PANELS:
                lines[title].append((asyncio.get_running_loop().time(), total(data, name, only)))

    async def main() -> None:
        emulator = Emulator(tier="pro", duration=Lognormal(45.0, 0.35), seed=1)
        sampling = asyncio.ensure_future(sample())
        await run_batch(client(emulator, meter_provider=MeterProvider([reader])), 1000)
        sampling.cancel()

    in_virtual_time(main)
    return draw_panels(lines)


def total(data: Any, name: str, only: dict[str, str]) -> float:
    """Return the sum of a metric's data points that have these attributes."""
    metrics = [each for resource in data.resource_metrics for scope in resource.scope_metrics for each in scope.metrics]
    points = [point for metric in metrics if metric.name == name for point in metric.data.data_points]
    return float(sum(point.value for point in points if only.items() <= point.attributes.items()))


def draw_panels(lines: dict[str, list[Point]]) -> str:
    """Draw each line in a panel of its own, two in a row."""
    width, height, drawn = WIDTH / 2 - 30, 110, []
    for place, (title, points) in enumerate(lines.items()):
        left, top = 10 + (place % 2) * (width + 40), 30 + (place // 2) * (height + 50)
        last, most = max(x for x, _ in points), max(1.0, *(y for _, y in points))
        path = " ".join(f"{left + x / last * width:.1f},{top + height - y / most * height:.1f}" for x, y in points)
        drawn += [
            f'<text x="{left}" y="{top - 8}" font-weight="bold">{title}</text>',
            f'<text x="{left + width}" y="{top - 8}" text-anchor="end" fill="#868e96">at most {most:,.0f}</text>',
            f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="#f1f3f5"/>',
            f'<polyline points="{path}" fill="none" stroke="#0b7285" stroke-width="1.5"/>',
            f'<text x="{left + width}" y="{top + height + 14}" text-anchor="end" fill="#868e96">{last:.0f} s</text>',
        ]
    return as_svg(drawn, 30 + math.ceil(len(lines) / 2) * (height + 50))


def as_svg(drawn: Sequence[str], height: float) -> str:
    """Return a whole picture."""
    style = "font-family: sans-serif; font-size: 12px; background: white"
    body = "\n".join(drawn)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" style="{style}">\n{body}\n</svg>\n'


if __name__ == "__main__":
    (FOLDER / "trace-of-ten.svg").write_text(trace_of_ten(), encoding="utf-8")
    (FOLDER / "metrics-of-a-thousand.svg").write_text(metrics_of_a_thousand(), encoding="utf-8")
