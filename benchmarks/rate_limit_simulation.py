"""One backlog, worked off by one limiter against one server, in virtual time and seeded: when it was done.

Rule of the file: a limiter learns only what it would learn in production; only the oracle looks into the server.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
from collections import deque
from typing import Final
from unittest import mock

import attrs
from contestants import Contestant, Make, Shared
from fixed_window_server import Answer, FixedWindowServer
from rate_limit_scenarios import Figures, Scenario

from knouds_async.testing.virtual_time import VirtualTimeLoop

__all__ = ["Outcome", "compare", "simulate"]

EPOCH: Final = 1.7e9
CONNECTIONS: Final = 4000
GIVE_UP: Final = 1e6
STEP_AT: Final = 200.0


@attrs.frozen
class Outcome:
    """One simulation: when the last job was accepted, and when 99 %; refusals; windows it took; jobs never accepted."""

    makespan: float
    most: float
    refused: int
    windows: int
    failed: int


class TickingLoop(VirtualTimeLoop):
    """Virtual time that advances a little with each reading, as real clocks do: else aiolimiter spins for ever."""

    def time(self) -> float:
        """Return the virtual time, in seconds."""
        self._now += 1e-9
        return self._now


class Simulation:
    """One seed of one scenario with one contestant."""

    def __init__(self, scenario: Scenario, make: Make, seed: int) -> None:
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
        """Run all processes until every job has been accepted and answered."""
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
        """Send a request to the server."""
        now = self.loop.time()
        self.shared.on_the_way -= 1
        answer = self.server.hit(now)
        for event in self.shared.news:
            event.set()
        if not answer.refused:
            self.accepted.append(now)
        return answer

    def windows_until(self, last: float) -> int:
        """Count the windows from the beginning until then."""
        phase, length = self.server.phase, self.server.length
        return math.floor((last - phase) / length) - math.floor(-phase / length) + 1

    def trip(self) -> float:
        """Draw the seconds of a one-way trip."""
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
        self.simulation, self.contestant = simulation, contestant
        self.waiting = deque(range(jobs))
        self.in_flight = 0
        self.news = asyncio.Event()

    async def work(self, start: float) -> None:
        """Send a job whenever the limiter admits one; as many wait in its queue as it is made for."""
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
            permit = await self.contestant.acquire()
            self.in_flight += 1
            self.simulation.shared.on_the_way += 1
            tasks.create_task(self._exchange(job, permit))

    async def _exchange(self, job: int, permit: object) -> None:
        """Make a round trip; a refused job returns to the front of the queue."""
        sim = self.simulation
        await asyncio.sleep(sim.trip())
        answer = sim.hit()
        service = 0.0 if answer.refused else sim.service()
        answer = attrs.evolve(answer, date=math.floor(sim.loop.time() + service + sim.server.epoch))
        await asyncio.sleep(service + sim.trip())
        self.in_flight -= 1
        self.contestant.answered(permit, answer)
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


def compare(outcomes: list[Outcome], oracle: list[Outcome]) -> Figures:
    """Return how outcomes stand against the oracle's with the same seeds."""
    pairs = list(zip(outcomes, oracle, strict=True))
    return Figures(
        late=statistics.mean(mine.makespan - best.makespan for mine, best in pairs),
        pace=statistics.mean(best.most / mine.most for mine, best in pairs),
        refused=statistics.mean(outcome.refused for outcome in outcomes),
        refused_a_window=statistics.mean(outcome.refused / outcome.windows for outcome in outcomes),
        failed=sum(outcome.failed for outcome in outcomes),
    )
