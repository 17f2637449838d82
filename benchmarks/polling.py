"""How soon the ends of runs are noticed, and with how many requests: ours and the schedules of well-known clients.

    python benchmarks/polling.py [--quick] [--seeds N] [--first-seed N] [--only WORDS] [--ours]

Everything runs in virtual time and is seeded: the real client against the emulated service, 40 ms each way. All
contestants get the same runs. Exits with 1 when ours misses a figure it must reach.

requests: polls and listings per run. mean, p95: seconds from the end of a run until its waiter knew. 429s: per seed.
speed: the time until all runs had finished, against the time until all were known to have finished.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Final

import anyio
import attrs
import httpx
from awaited_at_once import cost_of_scheduling, memory_of_waiting
from pollers import SCHEDULES, Schedule, poll
from runs_that_end import SCENARIOS, Law, Scenario

from knouds_async import AsyncKnouds, Limiter, Polling
from knouds_async._sansio.durations import LearnedDurations
from knouds_async.testing import Emulator, EmulatorTransport
from knouds_async.testing.virtual_time import VirtualTimeLoop

SLUG: Final = "daily-picture"
URL: Final = "https://knouds.test"
ONE_WAY: Final = 0.04
MOST_CPU: Final = 0.2  # milliseconds for each of 10 000 runs that are awaited at once
MOST_MEMORY: Final = 6.0  # KiB
POLLS: Final = ("GET /api/executions/:id", "GET /api/usage")


@attrs.frozen
class Outcome:
    """The result of one seed.

    `latencies`: seconds from each end until it was known. `ended`: when the last run finished. `known`: when that was
    known. `oracle`: the mean latency of one poll of each run as soon as it has finished and the quota allows it.
    """

    requests: int
    latencies: Sequence[float]
    refused: int
    ended: float
    known: float
    oracle: float


def service(scenario: Scenario, seed: int) -> Emulator:
    """Create the emulated service of a scenario."""
    dice, drawn = random.Random(f"{seed}:durations"), 0

    def duration(_: random.Random) -> float:
        nonlocal drawn
        drawn += 1
        return scenario.law(dice) * math.pow(scenario.drift, drawn / scenario.runs)

    return Emulator(
        tier="enterprise" if scenario.limit is None else "business",
        duration=duration,
        seed=seed,
        usage_lag=scenario.usage_lag,
        polls_limited=scenario.are_polls_limited,
        usage_limited=scenario.are_polls_limited,
        limit=scenario.limit,
    )


def trained(law: Law, runs: int) -> dict[str, object] | None:
    """Return the durations that a client has learned from so many runs of a distribution."""
    if not runs:
        return None
    learned, dice = LearnedDurations(), random.Random(77)
    for _ in range(runs):
        age = law(dice)
        learned.durations_for(f"workflows/{SLUG}").observe_end(age, age)
    return learned.to_dict()


class Simulation:
    """One seed of one scenario, with our way of polling or another's."""

    def __init__(self, scenario: Scenario, schedule: Schedule | None, seed: int) -> None:
        self.scenario, self.schedule, self.seed = scenario, schedule, seed
        self.emulator = service(scenario, seed)
        self.dice = random.Random(f"{seed}:pauses")
        self.known: dict[str, float] = {}

    async def run(self) -> Outcome:
        """Submit all runs and wait for all."""
        scenario = self.scenario
        transport = EmulatorTransport(self.emulator, latency=ONE_WAY, seed=self.seed)
        headers = {"x-api-key": self.emulator.api_key}
        async with httpx.AsyncClient(transport=transport, headers=headers, base_url=URL) as self.http:
            client = self._client()
            if scenario.alone:
                for number in range(scenario.runs):
                    await self._one(client, number)
            else:
                spread = 0.0 if scenario.is_pipeline else min(2.0, scenario.runs / 10)
                async with anyio.create_task_group() as tasks:
                    for number in range(scenario.runs):
                        tasks.start_soon(self._one, client, number, self.dice.uniform(0, spread))
            await client.aclose()
        return self._outcome()

    def _client(self) -> AsyncKnouds:
        scenario = self.scenario
        return AsyncKnouds(
            self.emulator.api_key,
            base_url=URL,
            http_client=self.http,
            limiter=Limiter("enterprise") if scenario.limit is None else Limiter(),
            polling=Polling(sweeps=scenario.sweeps),
            durations=trained(scenario.law, scenario.trained),
        )

    async def _one(self, client: AsyncKnouds, number: int, after: float = 0.0) -> None:
        await anyio.sleep(after)
        execution = await client.workflows.submit(SLUG, {"seed": number})
        if self.schedule is None:
            await execution.wait()
        else:
            await poll(self.http, f"/api/executions/{execution.id}", self.schedule, self.dice)
        self.known[execution.id] = anyio.current_time()

    def _outcome(self) -> Outcome:
        emulator = self.emulator
        ends = [run.ends for run in emulator.runs]
        return Outcome(
            sum(emulator.requests.by_route[route] for route in POLLS),
            [self.known[run.execution_id] - run.ends for run in emulator.runs],
            len(emulator.refusals),
            max(ends),
            max(self.known.values()),
            oracle(self.scenario, ends, self._edge()),
        )

    def _edge(self) -> float:
        """Return the time of an edge of the windows, by the answers' headers."""
        return self.emulator._service.windows._phase  # noqa: SLF001  (the oracle sees everything)


def oracle(scenario: Scenario, ends: Sequence[float], edge: float) -> float:
    """Return the mean latency of one poll of each run as soon as it has finished and the quota allows it."""
    late, now, window, used = 0.0, 0.0, -2, 0
    for end in sorted(ends):
        now = max(now, end)
        limit = scenario.limit if scenario.are_polls_limited else None
        if limit is not None:
            place = math.floor((now - edge) / 60)
            if place > window:
                window, used = place, 0
            if used >= limit:
                now = edge + 60 * (window + 1)
                window, used = window + 1, 0
            used += 1
        late += now - end + ONE_WAY
    return late / len(ends)


def simulate(scenario: Scenario, schedule: Schedule | None, seed: int) -> Outcome:
    """Run one simulation on a virtual clock of its own."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(Simulation(scenario, schedule, seed).run())


def row(scenario: Scenario, name: str, seeds: range) -> bool:
    """Simulate all seeds and print the figures; return whether they are what ours must reach."""
    schedule = SCHEDULES.get(name)
    began = time.process_time()
    outcomes = [simulate(scenario, schedule, seed) for seed in seeds]
    spent = time.process_time() - began
    latencies = sorted(latency for outcome in outcomes for latency in outcome.latencies)
    requests = statistics.mean(outcome.requests / scenario.runs for outcome in outcomes)
    mean, p95 = statistics.mean(latencies), latencies[math.ceil(0.95 * len(latencies)) - 1]
    refused = statistics.mean(outcome.refused for outcome in outcomes)
    speed = statistics.mean(outcome.ended / outcome.known for outcome in outcomes)
    best = statistics.mean(outcome.oracle for outcome in outcomes)
    is_reached = (
        requests <= scenario.requests
        and mean <= min(scenario.mean, best + scenario.above_oracle)
        and p95 <= scenario.p95
        and refused <= scenario.refused
        and speed >= scenario.speed
    )
    mark = "" if schedule is not None else "  reached" if is_reached else "  MISSED"
    print(
        f"  {name:28}{requests:9.2f}{mean:8.2f}{p95:8.2f}{latencies[-1]:8.1f}{refused:8.0f}{speed:8.3f}{best:8.2f}"
        f"{spent:7.1f}{mark}",
        flush=True,
    )
    return is_reached or schedule is not None


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, or a quarter of them where runs are few")
    parser.add_argument("--seeds", type=int, default=0, help="seeds of each scenario, instead of its own number")
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--only", default="", help="only scenarios whose name contains this")
    parser.add_argument("--ours", action="store_true", help="without the rivals")
    args = parser.parse_args()
    print(f"  {'':28}{'requests':>9}{'mean':>8}{'p95':>8}{'worst':>8}{'429s':>8}{'speed':>8}{'oracle':>8}{'CPU s':>7}")
    reached = []
    for scenario in SCENARIOS:
        if args.only not in scenario.name:
            continue
        number = args.seeds or (max(1, scenario.seeds // 4) if args.quick else scenario.seeds)
        seeds = range(args.first_seed, args.first_seed + number)
        print(f"{scenario.name}")
        names = ["ours", *(SCHEDULES if scenario.rivals and not args.ours else ())]
        reached += [row(scenario, name, seeds) for name in names]
    if not args.only:
        runs = 2000 if args.quick else 10_000
        spent = cost_of_scheduling(runs)
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            grown = runner.run(memory_of_waiting(runs))
        reached.append(spent <= MOST_CPU and grown <= MOST_MEMORY)
        print(f"{runs} runs awaited at once: {spent:.3f} ms of CPU in the scheduler and {grown:.1f} KiB for each")
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
