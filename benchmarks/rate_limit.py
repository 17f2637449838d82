"""How fast a backlog passes a fixed-window rate limit, and how many requests are refused, by limiter.

    python benchmarks/rate_limit.py [--quick] [--seeds N] [--first-seed N] [--only WORDS] [--ours]

Everything runs in virtual time and is seeded: a server that counts in fixed windows of a random phase, `Reset` and
`Date` in whole seconds, round trips of about 80 ms. All contestants get the same work and the same server, and the
oracle, which sees the server's counter, is the measure. Exits with 1 when ours misses a figure it must reach.

late: makespan less the oracle's, mean and worst seed. pace: throughput until 99 % of the jobs were accepted, against
the oracle's. 429s: mean and worst seed, and per window. failed: jobs that were never accepted.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import sys
import time
from collections import deque
from typing import Final
from unittest import mock

import attrs
from contestants import CONTESTANTS, Contestant, Make, Oracle, Shared
from fixed_window_server import Answer, FixedWindowServer

from knouds_async._sansio.clock import ServerClock
from knouds_async._sansio.window import Go, Reply, answered, take, unknown
from knouds_async.testing.virtual_time import VirtualTimeLoop

EPOCH: Final = 1.7e9
CONNECTIONS: Final = 4000
GIVE_UP: Final = 1e6
STEP_AT: Final = 200.0


@attrs.frozen(kw_only=True)
class Scenario:
    """A workload, a server, the rivals, and the figures that ours must reach."""

    name: str
    jobs: int = 1000
    limit: int = 100
    length: float = 60.0
    processes: int = 1
    skew: float = 0.0
    step: float = 0.0
    rounding: str = "up"
    is_opened_by_hit: bool = False
    answer_after: float = 0.0
    neighbour: float = 0.0
    sigma: float = 0.5
    ours: str = "ours"
    rivals: tuple[str, ...] = ()
    late: float = math.inf
    pace: float = 0.0
    refused: float = math.inf
    refused_a_window: float = math.inf


@attrs.frozen
class Outcome:
    """One simulation: when the last job was accepted, and when 99 %; refusals; windows it took; jobs never accepted."""

    makespan: float
    most: float
    refused: int
    windows: int
    failed: int


class TickingLoop(VirtualTimeLoop):
    """Virtual time that moves a hair whenever it is looked at, as real clocks do: aiolimiter spins for ever without."""

    def time(self) -> float:
        """Give the virtual time, in seconds."""
        self._now += 1e-9
        return self._now


class Simulation:
    """One seed of one scenario with one contestant."""

    def __init__(self, scenario: Scenario, make: Make, seed: int) -> None:
        """Draw the server; the network and the neighbour have dice of their own."""
        self.scenario, self.make = scenario, make
        dice = random.Random(seed)
        self.server = FixedWindowServer(
            limit=scenario.limit,
            length=scenario.length,
            phase=dice.uniform(0, scenario.length),
            epoch=EPOCH + scenario.skew + dice.random(),
            rounding=scenario.rounding,
            is_opened_by_hit=scenario.is_opened_by_hit,
        )
        self.shared = Shared(self.server)
        several = scenario.processes > 1
        self.starts = [dice.uniform(0, 5) if several else 0.0 for _ in range(scenario.processes)]
        self.network, self.neighbour = random.Random(dice.random()), random.Random(dice.random())
        self.accepted: list[float] = []
        self.refused = 0
        self.open_jobs = scenario.jobs
        self.done = asyncio.Event()

    async def run(self) -> Outcome:
        """Let all processes work until every job has been accepted and answered."""
        self.loop = asyncio.get_running_loop()
        each = self.scenario.jobs // self.scenario.processes
        processes = [Process(self, self.make(self.shared), each) for _ in self.starts]
        tasks = [asyncio.create_task(one.work(at)) for one, at in zip(processes, self.starts, strict=True)]
        if self.scenario.neighbour:
            self._disturb()
        if self.scenario.step:
            self.loop.call_later(STEP_AT, self._set_clock)
        async with asyncio.timeout(GIVE_UP):
            await self.done.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.accepted.sort()
        makespan, most = self.accepted[-1], self.accepted[math.ceil(len(self.accepted) * 0.99) - 1]
        return Outcome(makespan, most, self.refused, self.windows_until(makespan), self.open_jobs)

    def hit(self) -> Answer:
        """Let a request arrive at the server."""
        now = self.loop.time()
        self.shared.on_the_way -= 1
        answer = self.server.hit(now)
        for event in self.shared.news:
            event.set()
        if not answer.refused:
            self.accepted.append(now)
        return answer

    def windows_until(self, last: float) -> int:
        """Count the windows that were on from the beginning until then."""
        phase, length = self.server.phase, self.server.length
        return math.floor((last - phase) / length) - math.floor(-phase / length) + 1

    def trip(self) -> float:
        """Draw the seconds of one way."""
        return self.network.lognormvariate(math.log(0.04), self.scenario.sigma)

    def service(self) -> float:
        """Draw the seconds that an accepted request takes to be answered."""
        after = self.scenario.answer_after
        return self.network.lognormvariate(math.log(after), 0.35) if after else 0.0

    def _set_clock(self) -> None:
        self.server.epoch += self.scenario.step

    def _disturb(self) -> None:
        if self.loop.time() > 0:
            self.server.hit(self.loop.time())
        rate = self.scenario.neighbour * self.server.limit / self.server.length
        self.loop.call_later(self.neighbour.expovariate(rate), self._disturb)


class Process:
    """One process with a limiter of its own and a backlog."""

    def __init__(self, simulation: Simulation, contestant: Contestant, jobs: int) -> None:
        """Begin with all jobs waiting."""
        self.simulation, self.contestant = simulation, contestant
        self.waiting = deque(range(jobs))
        self.in_flight = 0
        self.news = asyncio.Event()

    async def work(self, start: float) -> None:
        """Send a job whenever the limiter lets one go; as many stand in its line as it is made for."""
        await asyncio.sleep(start)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self.contestant.in_line):
                tasks.create_task(self._send(tasks))

    async def _send(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            while not self.waiting or self.in_flight >= CONNECTIONS:
                self.news.clear()
                await self.news.wait()
            job = self.waiting.popleft()
            ticket = await self.contestant.acquire()
            self.in_flight += 1
            self.simulation.shared.on_the_way += 1
            tasks.create_task(self._exchange(job, ticket))

    async def _exchange(self, job: int, ticket: object) -> None:
        """Go there and back; a refused job returns to the head of the line."""
        sim = self.simulation
        await asyncio.sleep(sim.trip())
        answer = sim.hit()
        service = 0.0 if answer.refused else sim.service()
        answer = attrs.evolve(answer, date=math.floor(sim.loop.time() + service + sim.server.epoch))
        await asyncio.sleep(service + sim.trip())
        self.in_flight -= 1
        self.contestant.answered(ticket, answer)
        if answer.refused:
            sim.refused += 1
            if self.contestant.pauses:
                await asyncio.sleep(answer.retry_after or 0)
            self.waiting.appendleft(job)
        else:
            sim.open_jobs -= 1
            if not sim.open_jobs:
                sim.done.set()
        self.news.set()


def simulate(scenario: Scenario, make: Make, seed: int) -> Outcome:
    """Run one simulation on a virtual clock of its own."""

    async def run() -> Outcome:
        simulation = Simulation(scenario, make, seed)
        with mock.patch("time.time", asyncio.get_running_loop().time), simulation.shared.folder:
            return await simulation.run()

    with asyncio.Runner(loop_factory=TickingLoop) as runner:
        return runner.run(run())


RIVALS: Final = ("no limiter", "token bucket", "aiolimiter", "pyrate-limiter", "limits, moving window")
LESS: Final = ("ours, 99 % of each window", "ours, 98 % of each window", "ours, 95 % of each window")
FILE: Final = "ours, SharedLimiter"
ALONE: Final = {"late": 1.5, "pace": 0.995, "refused": 0}


def one_process(name: str, **changes: object) -> Scenario:
    """Make a scenario of a single client that meets nothing odd; `changes` say what it does meet."""
    return Scenario(name=name, **(ALONE | changes))  # type: ignore[arg-type]


SCENARIOS: Final = (
    one_process("Pro, one process", rivals=("ours, limit not known", *RIVALS)),
    one_process("Business, one process", jobs=10_000, limit=1000, rivals=RIVALS),
    one_process("Pro, window opens at the first hit", is_opened_by_hit=True),
    one_process("Pro, Reset rounded down", rounding="down", refused=3),
    one_process("Pro, Reset rounded to nearest", rounding="nearest", refused=3),
    one_process("Pro, clock 137 s behind", skew=137.0),
    one_process("Pro, clock 137 s ahead", skew=-137.0),
    one_process("Pro, the server's clock is set 5 s ahead", step=5.0),
    one_process("Pro, the server's clock is set 137 s back", step=-137.0),
    one_process("Pro, latency heavy-tailed", sigma=1.2),
    Scenario(name="Pro, answers 45 s late", answer_after=45, rivals=RIVALS, pace=0.99, refused=30),
    Scenario(name="Business, answers 45 s late", jobs=10_000, limit=1000, answer_after=45, pace=0.99, refused=300),
    Scenario(name="Pro, 4 processes", processes=4, rivals=LESS + RIVALS, pace=0.99, refused_a_window=4),
    Scenario(
        name="Business, 4 processes",
        jobs=10_000,
        limit=1000,
        processes=4,
        rivals=LESS,
        pace=0.99,
        refused_a_window=4,
    ),
    Scenario(
        name="Pro, 4 processes, Reset rounded down, clock 137 s behind",
        processes=4,
        rounding="down",
        skew=137,
        pace=0.99,
        refused_a_window=4,
    ),
    Scenario(name="Pro, 4 processes, one SharedLimiter", processes=4, ours=FILE, pace=0.99, refused=0),
    Scenario(
        name="Business, 4 processes, one SharedLimiter",
        jobs=10_000,
        limit=1000,
        processes=4,
        ours=FILE,
        pace=0.99,
        refused=0,
    ),
    Scenario(
        name="Pro, 4 processes, one SharedLimiter, clock 137 s ahead",
        processes=4,
        ours=FILE,
        skew=-137,
        pace=0.99,
        refused=0,
    ),
    Scenario(
        name="Pro, 4 processes, one SharedLimiter, answers 45 s late",
        processes=4,
        ours=FILE,
        answer_after=45,
        pace=0.99,
        refused=30,
    ),
    Scenario(
        name="windows of 8 s, limit 20, 4 processes, one SharedLimiter",
        jobs=1200,
        limit=20,
        length=8.0,
        processes=4,
        ours=FILE,
        pace=0.99,
        refused=0,
    ),
    Scenario(
        name="Pro, a neighbour uses 30 %",
        jobs=930,
        neighbour=0.3,
        rivals=RIVALS,
        pace=0.99,
        refused_a_window=2,
    ),
    Scenario(name="Pro, 60 jobs at once, below the limit", jobs=60, rivals=RIVALS, late=0.2, refused=0),
    one_process("windows of 5 s, limit 20", jobs=2000, limit=20, length=5.0),
    one_process("windows of 8 s, limit 20", jobs=1200, limit=20, length=8.0),
    one_process("windows of 5 s, limit 100", jobs=10_000, limit=100, length=5.0),
    one_process("windows of 8 s, limit 100", jobs=6000, limit=100, length=8.0),
    one_process("windows of 1 h, limit 20", jobs=200, limit=20, length=3600.0, refused=0.1),
    one_process("windows of 1 h, limit 100", jobs=1000, limit=100, length=3600.0, refused=0.1),
)


def row(scenario: Scenario, name: str, seeds: range, oracle: list[Outcome]) -> bool:
    """Simulate all seeds and print the figures; tell whether they are what ours must reach."""
    began = time.process_time()
    outcomes = [simulate(scenario, CONTESTANTS[name], seed) for seed in seeds]
    spent = time.process_time() - began
    lates = [mine.makespan - best.makespan for mine, best in zip(outcomes, oracle, strict=True)]
    late = statistics.mean(lates)
    pace = statistics.mean(best.most / mine.most for mine, best in zip(outcomes, oracle, strict=True))
    refused = statistics.mean(outcome.refused for outcome in outcomes)
    a_window = statistics.mean(outcome.refused / outcome.windows for outcome in outcomes)
    failed = sum(outcome.failed for outcome in outcomes)
    is_reached = (
        late <= scenario.late
        and pace >= scenario.pace
        and refused <= scenario.refused
        and a_window <= scenario.refused_a_window
        and not failed
    )
    mark = "" if name != scenario.ours else "  reached" if is_reached else "  MISSED"
    print(
        f"  {name:26}{statistics.mean(outcome.makespan for outcome in outcomes):10.1f}{late:+9.2f}{max(lates):+8.2f}"
        f"{pace:8.4f}{refused:10.1f}{max(outcome.refused for outcome in outcomes):8}{a_window:9.2f}{failed:8}"
        f"{spent:7.1f}{mark}",
        flush=True,
    )
    return is_reached or name != scenario.ours


def table(scenario: Scenario, names: tuple[str, ...], seeds: range) -> bool:
    """Print one scenario; tell whether ours reached its figures."""
    oracle = [simulate(scenario, Oracle, seed) for seed in seeds]
    print(
        f"\n{scenario.name}: {scenario.jobs} jobs, {scenario.limit} per {scenario.length:.0f} s, {len(seeds)} seeds;"
        f" oracle {statistics.mean(outcome.makespan for outcome in oracle):.1f} s"
        f"\n  {'':26}{'makespan':>10}{'late':>9}{'worst':>8}{'pace':>8}{'429s':>10}{'worst':>8}{'/window':>9}"
        f"{'failed':>8}{'CPU s':>7}"
    )
    reached = [row(scenario, name, seeds, oracle) for name in names]
    return all(reached)


def cost(spread: float, in_flight: int = 2000, pairs: int = 20_000) -> float:
    """Measure the CPU microseconds of a `take` and an `answered`, with so many in flight, sent within `spread` s."""
    clock = ServerClock().heard(1000.0, 0.0, 0.1)
    window, turn = take(unknown(10**6), 0.0)
    assert isinstance(turn, Go)
    window = answered(window, 0.1, turn.ticket, Reply(limit=10**6, remaining=10**6, reset=9000.0), clock)
    tickets, now, began = [], 0.1, 0.0
    for at in range(in_flight + pairs):
        if at == in_flight:
            began = time.process_time()
        now += spread / in_flight
        window, turn = take(window, now)
        assert isinstance(turn, Go)
        tickets.append(turn.ticket)
        if at >= in_flight:
            told = Reply(limit=10**6, remaining=10**6 - at + in_flight, reset=9000.0)
            window = answered(window, now, tickets[at - in_flight], told, clock)
    return (time.process_time() - began) / pairs * 1e6


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 seeds")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--only", default="", help="only scenarios whose name contains this")
    parser.add_argument("--ours", action="store_true", help="without the rivals")
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + (4 if args.quick else args.seeds))
    reached = [
        table(scenario, (scenario.ours, *(() if args.ours else scenario.rivals)), seeds)
        for scenario in SCENARIOS
        if args.only in scenario.name
    ]
    for spread in (0.5, 40.0):
        spent = min(cost(spread=spread) for _ in range(5))
        print(f"\ntake + answered, 2000 in flight sent within {spread} s: {spent:.1f} microseconds of CPU")
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
