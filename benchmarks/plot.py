"""The plot of docs/benchmarks.md: what a poll and a fan-out cost other clients, as multiples of their cost here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["plot"]

WIDTH, ROW, LABEL, SCALE_TOP = 760, 22, 170, 34
COLOURS = {"knouds_async": "#0b7285"}
OTHER = "#adb5bd"


def _bars(title: str, bars: Sequence[tuple[str, float]], top: int) -> tuple[list[str], int]:
    """Draw one group of bars, as long as the multiple they show; return the SVG and where it ends."""
    longest = max(value for _, value in bars)
    drawn = [f'<text x="0" y="{top + 16}" font-weight="bold">{title}</text>']
    for place, (name, value) in enumerate(bars):
        y = top + SCALE_TOP + place * ROW
        length = max(2.0, (WIDTH - LABEL - 70) * value / longest)
        drawn += [
            f'<text x="{LABEL - 8}" y="{y + 13}" text-anchor="end">{name}</text>',
            f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{ROW - 6}" fill="{COLOURS.get(name, OTHER)}"/>',
            f'<text x="{LABEL + length + 6:.1f}" y="{y + 13}">{value:.{1 if value < 10 else 0}f} x</text>',
        ]
    return drawn, top + SCALE_TOP + len(bars) * ROW + 14


def _multiples(contestants: dict[str, Any]) -> list[tuple[str, float]]:
    return [(name, each["times_ours"]["median"]) for name, each in contestants.items()]


def plot(results: dict[str, Any]) -> str:
    """Return the plot of a full run as SVG."""
    groups = []
    if "per_call" in results:
        groups += [
            (f"CPU of a {title}", results["per_call"][title]) for title in ("poll, 100 at once", "poll, 1000 at once")
        ]
    if "fan_out" in results:
        groups += [(f"CPU of {runs}, submitted and awaited", each) for runs, each in results["fan_out"].items()]
    drawn, top = [], 0
    for title, contestants in groups:
        more, top = _bars(title, _multiples(contestants), top)
        drawn += more
    style = "font-family: sans-serif; font-size: 13px; background: white"
    body = "\n".join(drawn)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 0 {WIDTH + 16} {top}" style="{style}">\n{body}\n</svg>\n'
    )
