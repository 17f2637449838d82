"""A history in virtual time: hours in milliseconds, with processes that are none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio

from knouds_async import Job, KnoudsError
from tests.scenarios import kinds as what
from tests.scenarios.history import History, Order, as_told
from tests.scenarios.judge import Told, ViolationError
from tests.scenarios.mortal import Machine, Mortal
from tests.scenarios.service import SLUG

URL: Final = "https://knouds.test"
ELSEWHERE: Final = "https://staging.test"
LONGEST: Final = 6 * 3600.0  # seconds that a pass may take


class VirtualHistory(History):
    """One history."""

    def __init__(self, seed: int, kinds: frozenset[str], path: Path) -> None:
        super().__init__(seed, kinds, path)
        self.machine = Machine(self.main.emulator.epoch + self.skew)

    @property
    def path_of_next(self) -> Path:
        """The ledger of the next process: they share one."""
        return self.path

    async def pass_time(self, seconds: float) -> None:
        """Sleep."""
        await anyio.sleep(seconds)

    async def work_through(self, order: Order) -> Sequence[Told]:
        """Run all that work, and disturb them."""
        told: list[list[Told]] = [[] for _ in order.accounts]
        processes = [self._process(place, order) for place in range(len(order.accounts))]
        with anyio.move_on_after(LONGEST) as scope:
            async with anyio.create_task_group() as tasks:
                if not order.is_last:
                    tasks.start_soon(self._disturb, processes)
                async with anyio.create_task_group() as work:
                    for process, mine in zip(processes, told, strict=True):
                        is_checked = self.dice.random() < 0.5
                        options = {"max_credits": order.cap, "max_in_flight": order.in_flight, "validate": is_checked}
                        work.start_soon(self._work, process, mine, options)
                tasks.cancel_scope.cancel()
        if scope.cancelled_caught and order.is_last:
            raise ViolationError("the last pass, in which nothing goes wrong, does not end")
        return told[0]

    def _process(self, place: int, order: Order) -> Mortal:
        key, service = order.accounts[place], order.service
        name = f"p{place}" if key == service.emulator.api_key else f"p{place} (with another account)"
        url = URL if service is self.main else ELSEWHERE
        return Mortal(name, service, self.path_of_next, self.machine, self.dice, key=key, url=url)

    async def _work(self, process: Mortal, mine: list[Told], options: dict[str, Any]) -> None:
        jobs = [Job(key, {"product_name": key}) for key in self.keys]
        is_whole = False
        try:
            with process.scope:
                async with process.knouds.workflows.map(SLUG, jobs, ledger=process.ledger, **options) as outcomes:
                    process.batch = outcomes
                    async for outcome in outcomes:
                        mine.append(as_told(outcome))  # noqa: PERF401  (what was told before it is cut counts)
                is_whole = not process.is_stopped
        except KnoudsError as error:
            self.note(f"{process.name} ends: {type(error).__name__}: {str(error)[:150]}")
        finally:
            await process.aclose()
        if process.is_dead:
            return
        self.note(f"{process.name} was told {', '.join(f'{one.key} {one.kind}' for one in mine)}")
        self.judge.check()
        self.judge.check_told(mine, self.keys, is_whole=is_whole)

    async def _disturb(self, processes: list[Mortal]) -> None:
        can = [kind for kind in what.TO_PROCESSES if kind in self.kinds]
        for _ in range(self.dice.randint(0, 4) if can else 0):
            process, kind = self.dice.choice(processes), self.dice.choice(can)
            process.gate.plan(self.dice.randint(1, self.dice.choice((25, 80))), partial(self._befall, kind, process))
        for _ in range(self.dice.randint(0, 3)):
            await anyio.sleep(self.dice.choice((0.05, 0.2, 0.5, 2.0, 50.0)) * self.dice.random())
            if can:
                self._befall(self.dice.choice(can), self.dice.choice(processes))
            self.judge.check()

    def _befall(self, kind: str, process: Mortal) -> None:
        dice = self.dice
        match kind:
            case "kill":
                self.note(f"{process.name} is killed")
                process.kill()
            case "pause":
                seconds = dice.choice((1.0, 35.0, 130.0, 200.0, 400.0))
                self.note(f"{process.name} is stopped for {seconds:g} s")
                process.gate.stop(seconds)
            case "stop":
                self.note(f"{process.name} is asked to submit nothing more")
                process.stop()
            case "interrupt":
                self.note(f"{process.name} is interrupted")
                process.interrupt()
            case "lock":
                seconds = dice.choice((5.0, 40.0, 130.0, 200.0, 290.0, 310.0))
                self.note(f"the ledger is locked for {seconds:g} s")
                self.machine.locked_until = anyio.current_time() + seconds
            case "sleep":
                self._sleep(self.sleep_of())
            case _:
                self.step(self.step_of())

    def _sleep(self, seconds: float) -> None:
        self.machine.slept += seconds
        for service in self.services:
            service.ahead += seconds

    def step(self, seconds: float) -> None:
        """Set the machine's clock."""
        self.machine.stepped += seconds
