"""What one request costs: client CPU and latency of a poll and a submit, with 1 to 1000 of them at once."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import anyio
from clients import CLIENTS, Open, by_httpx_on_ours, ours_limited
from measure import OURS, Options, all_at_once, in_turns, ratio, show
from server import FOREVER

__all__ = ["run"]

CONCURRENT = (1, 10, 100, 1000)
LEAST_EACH = 3  # otherwise mostly the first call of each task is measured, before any goes back to the end of the queue

Turn = tuple[float, float]


async def _turn(make: Open, url: str, what: str, concurrent: int, each: int) -> Turn:
    async with make(url) as client:
        execution = await client.submit(FOREVER)
        work: Callable[[], Any] = partial(client.poll, execution) if what == "poll" else partial(client.submit, FOREVER)
        return await all_at_once(concurrent, work, each)


def _turns(contestants: Mapping[str, Open], url: str, what: str, concurrent: int, each: int, rounds: int) -> Any:
    turns: dict[str, Callable[[], Any]] = {
        name: partial(anyio.run, partial(_turn, make, url, what, concurrent, each))
        for name, make in contestants.items()
    }
    return in_turns(turns, rounds)


def _compared(title: str, measured: Mapping[str, Sequence[Turn]]) -> dict[str, Any]:
    """Print and return what everyone took, and how much more than ours."""
    found: dict[str, Any] = {}
    rows = []
    for name, turns in measured.items():
        times = ratio([cpu for cpu, _ in turns], [cpu for cpu, _ in measured[OURS]])
        cpu, latency = (statistics.median(column) * 1e3 for column in zip(*turns, strict=True))
        found[name] = {"cpu_ms": cpu, "latency_ms": latency, "times_ours": times}
        rows.append((name, cpu, latency, times))
    show(title, ("", "CPU ms", "latency ms", "CPU / ours"), rows)
    return found


def _flatness(url: str, options: Options) -> dict[str, Any]:
    """Compare ours with itself, 10 at once with 1000, on both backends."""
    requests = options.pick(4000, 1000)
    found: dict[str, Any] = {}
    for backend in ("asyncio", "trio"):
        turns = {}
        for name, make in (("ours", ours_limited), ("httpx on our transport", by_httpx_on_ours)):
            for wide in (10, 100, 1000):
                polls = partial(_turn, make, url, "poll", wide, requests // wide)
                turns[f"{name} at {wide}"] = partial(anyio.run, polls, backend=backend)
        measured = in_turns(turns, options.pick(5, 1))
        cpu = {name: [one for one, _ in turns] for name, turns in measured.items()}
        found[backend] = {
            "1000_over_10": ratio(cpu["ours at 1000"], cpu["ours at 10"]),
            "over_bare_at_100": ratio(cpu["ours at 100"], cpu["httpx on our transport at 100"]),
            "cpu_ms": {name: statistics.median(column) * 1e3 for name, column in cpu.items()},
        }
    header = ("", "ours, 1000 at once / 10", "ours / httpx on our transport, 100")
    rows = [(backend, each["1000_over_10"], each["over_bare_at_100"]) for backend, each in found.items()]
    show("a poll on both backends, CPU", header, rows)
    return found


def run(url: str, options: Options) -> dict[str, Any]:
    """Measure everyone at every width, print the tables, and return the figures."""
    requests, found = options.pick(600, 60), dict[str, Any]()
    for what in ("poll", "submit"):
        for concurrent in CONCURRENT[:3] if options.quick else CONCURRENT:
            rounds = options.pick(3 if concurrent < 1000 else 2, 1)
            title = f"{what}, {concurrent} at once"
            measured = _turns(CLIENTS, url, what, concurrent, max(LEAST_EACH, requests // concurrent), rounds)
            found[title] = _compared(title, measured)
    return {**found, "backends": _flatness(url, options)}
