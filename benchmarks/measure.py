"""How the benchmarks measure: contestants take turns, in rounds, and ratios are taken within each round.

Rule of the file: a time in seconds says little about a library on a busy machine; the ratio of two times measured next
to each other says more, and the median of several such ratios most.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import multiprocessing.connection
import resource
import statistics
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import attrs

__all__ = [
    "OURS",
    "Options",
    "Ratio",
    "all_at_once",
    "apart",
    "in_turns",
    "most_resident",
    "ratio",
    "requests_seen",
    "resident",
    "show",
]

OURS = "knouds_async"


@attrs.frozen(kw_only=True)
class Options:
    """The options of the command line: `quick` is for checking that everything runs."""

    quick: bool

    def pick(self, full: int, quick: int) -> int:
        """Choose a size."""
        return quick if self.quick else full


@attrs.frozen
class Ratio:
    """A median and the range around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Show it with its range."""
        return f"{self.median:.3g} ({self.low:.3g}-{self.high:.3g})"


def in_turns(contestants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """Return everyone a turn in each round, another one first each time; return what each turn returned."""
    found: dict[str, list[Any]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            gc.collect()
            found[name].append(contestants[name]())
    return found


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Compare what was measured in the same rounds."""
    ratios = sorted(one / max(other, 1e-9) for one, other in zip(above, below, strict=True))
    return Ratio(statistics.median(ratios), ratios[0], ratios[-1])


async def all_at_once(concurrent: int, work: Callable[[], Awaitable[object]], each: int) -> tuple[float, float]:
    """Do `work` in so many tasks, `each` times in each; return CPU seconds and the median latency in seconds."""
    taken: list[float] = []

    async def repeat(times: int) -> None:
        for _ in range(times):
            began = time.perf_counter()
            await work()
            taken.append(time.perf_counter() - began)

    await _tasks(concurrent, repeat, 1)  # connections are opened here
    taken.clear()
    gc.collect()
    began = time.process_time()
    await _tasks(concurrent, repeat, each)
    return (time.process_time() - began) / (concurrent * each), statistics.median(taken)


async def _tasks(count: int, work: Callable[[int], Coroutine[Any, Any, None]], times: int) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(work, times)


def _apart(there: multiprocessing.connection.Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    there.send(work(*arguments))


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run `work` in a process of its own, so that its memory and CPU time are its own."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_apart, args=(there, work, arguments))
    process.start()
    there.close()
    try:
        return here.recv()
    finally:
        process.join()


def resident() -> float:
    """Return the memory of this process in MiB: now, where the system reports it, otherwise the peak so far."""
    now = Path("/proc/self/statm")
    if now.exists():
        return int(now.read_text().split()[1]) * resource.getpagesize() / 2**20
    return most_resident()


def most_resident() -> float:
    """Return the peak memory of this process, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would hold what the parent process had
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def requests_seen(url: str) -> int:
    """Return how many requests the server has had since it was last asked."""
    with urllib.request.urlopen(f"{url}/seen") as answer:  # noqa: S310  (the server of this benchmark)
        seen: dict[str, int] = json.load(answer)
    return sum(count for what, count in seen.items() if what != "seen")


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table."""
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in [list(header), *cells]) for at in range(len(header))]
    print(f"\n{title}")
    for first, *others in [list(header), *cells]:
        columns = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *columns]))
    sys.stdout.flush()
