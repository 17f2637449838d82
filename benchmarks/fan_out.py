"""Many runs at once, without a rate limit: submitted, awaited, and noticed when they finish.

Rule of the file: ours goes first in each round, and the others poll as often as it takes to notice as soon. Each turn
is a process of its own, whose CPU time and memory are counted from after its imports.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import anyio
import attrs
from clients import CLIENTS, PEERS, Open, ours
from measure import OURS, Options, apart, in_turns, most_resident, ratio, requests_seen, resident, show

__all__ = ["run"]

SHORTEST, LONGEST = 2.0, 5.0  # seconds that a run takes
SOONEST = 0.2  # seconds between polls, at least: nobody would poll more often


@attrs.frozen(kw_only=True)
class Turn:
    """What a turn took: seconds of wall and CPU, peak MiB, requests, and seconds until a finished run was noticed."""

    wall: float
    cpu: float
    memory: float
    requests: int
    noticed: float


def contestants() -> dict[str, Open]:
    """Return ours without the headers of a limit, a loop over httpx, and the SDKs."""
    return {OURS: ours, "httpx loop": CLIENTS["httpx"], "aiohttp loop": CLIENTS["aiohttp"], **PEERS}


def _alone(name: str, url: str, durations: Sequence[float], interval: float) -> Turn:
    return anyio.run(_turn, contestants()[name], url, durations, interval)


async def _turn(make: Open, url: str, durations: Sequence[float], interval: float) -> Turn:
    late: list[float] = []

    async def one(client: Any, seconds: float) -> None:
        ended = await client.run(seconds, interval)
        late.append(time.time() - ended)

    requests_seen(url)  # counts from here on
    before, wall, cpu = resident(), time.perf_counter(), time.process_time()
    async with make(url) as client, anyio.create_task_group() as tasks:
        for seconds in durations:
            tasks.start_soon(one, client, seconds)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Turn(
        wall=wall, cpu=cpu, memory=most_resident() - before, requests=requests_seen(url), noticed=statistics.fmean(late)
    )


def _compared(measured: Mapping[str, Sequence[Turn]], runs: int) -> dict[str, Any]:
    rows, found = [], dict[str, Any]()
    mine = [turn.cpu for turn in measured[OURS]]
    for name, turns in measured.items():
        middle = {
            field.name: statistics.median(getattr(turn, field.name) for turn in turns) for field in attrs.fields(Turn)
        }
        times = ratio([turn.cpu for turn in turns], mine)
        found[name] = {**middle, "times_ours": times}
        per_run = (middle["requests"] / runs, middle["cpu"] / runs * 1e3)
        rows.append((name, middle["wall"], middle["cpu"], *per_run, middle["memory"], middle["noticed"], times))
    header = ("", "wall s", "CPU s", "requests/run", "CPU ms/run", "MiB", "noticed s", "CPU / ours")
    show(f"{runs} runs of {SHORTEST:g} to {LONGEST:g} s, submitted and awaited", header, rows)
    return found


def _measured(url: str, names: Sequence[str], runs: int, rounds: int) -> dict[str, list[Turn]]:
    measured: dict[str, list[Turn]] = {name: [] for name in names}
    for number in range(rounds):
        dice = random.Random(number)
        durations = [dice.uniform(SHORTEST, LONGEST) for _ in range(runs)]
        own: Turn = apart(_alone, OURS, url, durations, 0.0)
        measured[OURS].append(own)
        interval = max(SOONEST, 2 * own.noticed)
        others = {name: partial(apart, _alone, name, url, durations, interval) for name in names if name != OURS}
        for name, turns in in_turns(others, 1).items():
            measured[name] += turns
    return measured


def run(url: str, options: Options) -> dict[str, Any]:
    """Run everyone, print the tables, and return the figures.

    For thousands at once the SDKs take minutes each, because httpx's pool goes through all queued requests for each
    that starts or finishes; there they have one round.
    """
    few, many, rounds = options.pick(500, 50), options.pick(2000, 100), options.pick(2, 1)
    loops = [name for name in contestants() if name not in PEERS]
    found = dict[str, Any]()
    for title, runs, names, times in (
        (f"{few} runs", few, list(contestants()), rounds),
        (f"{many} runs", many, loops, rounds),
        (f"{many} runs, the SDKs", many, [OURS, *PEERS], 1),
    ):
        found[title] = _compared(_measured(url, names, runs, times), runs)
    return found
