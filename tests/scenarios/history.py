"""A random history of a ledger in virtual time: some passes, each by some processes, in a world that goes wrong.

Rule of the file: it only lets things happen; whether they may have is the judge's.
"""

from __future__ import annotations

import traceback
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import anyio
import attrs

from knouds_async import Completed, Job, KnoudsError, NotRun, Outcome, SQLiteLedger
from knouds_async.testing import Emulator
from knouds_async.testing._service.catalog import DEFAULT_WORKFLOWS
from tests.batch.in_loop import InLoopLedger
from tests.scenarios import kinds as what
from tests.scenarios.judge import Judge, Told, ViolationError
from tests.scenarios.mortal import Machine, Mortal
from tests.scenarios.service import COST, DEAR, OTHER_USER, SLUG, STRANGER, OddService, key_of

URL: Final = "https://knouds.test"
ELSEWHERE: Final = "https://staging.test"
LONGEST: Final = 6 * 3600.0  # seconds that a pass may take
HOURS: Final = 8 * 3600.0


@attrs.frozen
class Ended:
    """How a history ended, where it broke no rule."""

    kinds: dict[str, int]
    not_run_and_unknown: int


class History:
    """One history: the same seed and kinds tell the same."""

    def __init__(self, seed: int, kinds: frozenset[str], path: Path) -> None:
        """Prepare it; the ledger will be at `path`."""
        self.seed, self.kinds, self.path = seed, kinds, path
        self.dice = dice = Random(f"history {seed}")
        self.log: list[str] = []
        self.keys = [f"job-{number}" for number in range(dice.randint(2, 7))]
        self.services = [OddService(self._emulator(), kinds, dice, self.note) for _ in range(2)]
        self.main, self.other = self.services
        skew = dice.choice((0.0, 1.5, -20.0, 90.0, -3600.0, HOURS)) if "clock" in kinds else 0.0
        self.machine = Machine(self.main.emulator.epoch + skew)
        self.judge = Judge([one.emulator for one in self.services], path)

    def _emulator(self) -> Emulator:
        dice = self.dice
        return Emulator(
            tier=dice.choice(("business", "enterprise")),
            duration=dice.choice((2.0, 20.0, 60.0)),
            cost=COST,
            seed=dice.randrange(2**32),
            keys=(OTHER_USER,),
            workflows=[attrs.evolve(one, is_template=True) for one in DEFAULT_WORKFLOWS],
            failure_rate=0.3 if "failures" in self.kinds else 0.0,
        )

    def note(self, text: str) -> None:
        """Write a line of the log, with the seconds of the service."""
        now = anyio.current_time()
        self.log.append(f"{now + self.main.ahead:10.2f}  {text}")

    async def run(self) -> Ended:
        """Let it happen; ViolationError, with its log, when a rule is broken."""
        try:
            for number in range(self.dice.randint(1, 4)):
                await self._pass(f"pass {number}", is_last=False)
                await self._between()
            await self._rest(400.0)
            return await self._pass("last pass", is_last=True)
        except Exception as error:  # noqa: BLE001  (whatever it is goes into the report)
            cause = _cause(error)
            if not isinstance(cause, ViolationError):
                self.log.append("".join(traceback.format_exception(cause)))
            raise ViolationError(self._report(cause)) from None

    def _report(self, error: BaseException) -> str:
        again = f"KNOUDS_HISTORY_SEED={self.seed}"
        if self.kinds != what.KINDS:
            again += f" KNOUDS_HISTORY_KINDS={','.join(sorted(self.kinds))}"
        stands = [f"{row['key']}#{row['attempt']} {row['stage']} {row['execution_id']}" for row in self.judge.rows()]
        lines = (*self.log, "the ledger:", *stands, "", f"{error}", f"once more: {again}")
        return "\n".join((f"history {self.seed}: {error}", *lines))

    def _may(self, kind: str, probability: float = 0.5) -> bool:
        return kind in self.kinds and self.dice.random() < probability

    # One pass.

    async def _pass(self, name: str, *, is_last: bool) -> Ended:
        dice, told = self.dice, dict[str, list[Told]]()
        service = self.other if not is_last and self._may("service", 0.3) else self.main
        cap = dice.choice((0, 12, 30, 36, 60, 200)) if not is_last and self._may("cap") else None
        in_flight = dice.choice((1, 2, 8))
        processes = [self._process(f"p{place}", service, is_last=is_last) for place in range(dice.choice((1, 1, 2, 3)))]
        attached = [] if is_last else what.attach(service.emulator.faults, self.kinds, dice)
        if is_last:
            service.emulator.faults.clear()
        others = "" if service is self.main else " at another service"
        self.note(f"{name}: {len(processes)} processes{others}, cap {cap}, in flight {in_flight}, faults {attached}")
        before = self._committed()
        with anyio.move_on_after(LONGEST) as scope:
            async with anyio.create_task_group() as tasks:
                if not is_last:
                    tasks.start_soon(self._disturb, processes, tasks.cancel_scope)
                async with anyio.create_task_group() as work:
                    for process in processes:
                        options = {"max_credits": cap, "max_in_flight": in_flight, "validate": dice.random() < 0.5}
                        work.start_soon(self._work, process, told, options)
                tasks.cancel_scope.cancel()
        if scope.cancelled_caught and is_last:
            raise ViolationError("the last pass, in which nothing goes wrong, does not end")
        dears = (DEAR - COST) * in_flight * len(processes) if "costs" in self.kinds else 0
        self.judge.check_charges(before, cap, dears)
        self.judge.check_at_rest()
        return self._ended(told)

    def _committed(self) -> float:
        """Give the credits that may be charged for what is on record already."""
        price = float(DEAR) if "costs" in self.kinds else COST
        attempts = sum(bool(row["stage"] != "new") for row in self.judge.rows())
        return max(self.judge.charged(), price * attempts)

    def _process(self, name: str, service: OddService, *, is_last: bool) -> Mortal:
        is_other = not is_last and self._may("account", 0.3)
        key = OTHER_USER.text if is_other else service.emulator.api_key
        url = URL if service is self.main else ELSEWHERE
        name = f"{name} with another account" if is_other else name
        return Mortal(name, service, self.path, self.machine, self.dice, key=key, url=url)

    async def _work(self, process: Mortal, told: dict[str, list[Told]], options: dict[str, Any]) -> None:
        mine = told[process.name] = []
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

    def _ended(self, told: dict[str, list[Told]]) -> Ended:
        counts: dict[str, int] = {}
        first = next(iter(told.values()), [])
        for one in first:
            counts[one.kind] = counts.get(one.kind, 0) + 1
        ran = {key_of(run) for run in self.judge.runs()}
        shy = sum(one.kind == "Unknown" and one.key not in ran for one in first)
        return Ended(counts, shy)

    # What happens meanwhile.

    async def _disturb(self, processes: list[Mortal], scope: anyio.CancelScope) -> None:
        can = [kind for kind in what.TO_PROCESSES if kind in self.kinds]
        for _ in range(self.dice.randint(0, 4) if can else 0):
            process, kind = self.dice.choice(processes), self.dice.choice(can)
            process.gate.plan(self.dice.randint(1, 80), partial(self._befall, kind, process))
        for _ in range(self.dice.randint(0, 3)):
            await anyio.sleep(self.dice.choice((0.05, 0.2, 0.5, 2.0, 50.0)) * self.dice.random())
            if can:
                self._befall(self.dice.choice(can), self.dice.choice(processes))
            self.judge.check()

    def _befall(self, kind: str, process: Mortal) -> None:
        dice = self.dice
        match kind:
            case "kill":
                self._tell(process, "is killed")
                process.kill()
            case "pause":
                seconds = dice.choice((1.0, 35.0, 130.0, 200.0, 400.0))
                self._tell(process, f"is stopped for {seconds:g} s")
                process.gate.stop(seconds)
            case "stop":
                self._tell(process, "is asked to submit nothing more")
                process.stop()
            case "interrupt":
                self._tell(process, "is interrupted")
                process.interrupt()
            case "lock":
                seconds = dice.choice((5.0, 40.0, 130.0, 200.0, 290.0, 310.0))
                self.note(f"the ledger is locked for {seconds:g} s")
                self.machine.locked_until = anyio.current_time() + seconds
            case "sleep":
                self._sleep(dice.choice((20.0, 130.0, 200.0, HOURS)))
            case _:
                self._step()

    def _tell(self, process: Mortal, text: str) -> None:
        self.note(f"{process.name} {text}")

    def _sleep(self, seconds: float) -> None:
        self.note(f"the machine sleeps for {seconds:g} s")
        self.machine.slept += seconds
        for service in self.services:
            service.ahead += seconds

    def _step(self) -> None:
        seconds = self.dice.choice((5.0, -5.0, 130.0, -130.0, 3600.0, -3600.0, -HOURS, HOURS))
        self.note(f"the machine's clock is set by {seconds:+g} s")
        self.machine.stepped += seconds

    # Between two passes.

    async def _rest(self, seconds: float) -> None:
        await anyio.sleep(seconds)
        for service in self.services:
            service.settle(anyio.current_time())
        self.judge.check_at_rest()

    async def _between(self) -> None:
        await self._rest(self.dice.choice((0.0, 30.0, 125.0, 200.0, 400.0, 3600.0)))
        if self._may("clock", 0.3):
            self._step()
        if self._may("strangers"):
            await self._stranger()
        ledger = InLoopLedger(self.path)
        try:
            await self._decide(ledger)
        finally:
            if ledger._store is not None:
                ledger._store.close()

    async def _stranger(self) -> None:
        """Have somebody else run the same workflow with the same account."""
        process = Mortal("stranger", self.main, self.path, self.machine, self.dice, key=self.main.api_key, url=URL)
        self.main.emulator.faults.clear()
        await process.knouds.workflows.submit(SLUG, {"product_name": STRANGER})
        await process.aclose()

    async def _decide(self, ledger: SQLiteLedger) -> None:
        if self._may("retry_failed"):
            last = {row["key"]: row for row in self.judge.rows()}
            failed = [key for key, row in last.items() if row["status"] in ("failed", "cancelled")]
            self.judge.approved.update(failed)
            self.note(f"what failed is to run once more: {failed}")
            await ledger.retry_failed()
        if self._may("rebind", 0.2) and hasattr(ledger, "rebind"):
            self.note("the ledger is to be bound anew")
            await ledger.rebind()
        for entry in await ledger.unknown() if "decisions" in self.kinds else ():
            await self._decide_about(ledger, entry.key)

    async def _decide_about(self, ledger: SQLiteLedger, key: str) -> None:
        known = {row["execution_id"] for row in self.judge.rows()}
        runs = [run for run in self.main.runs if key_of(run) == key and run.execution_id not in known]
        decision = self.dice.choice(("wait", "wait", "resolve", "resend", "abandon"))
        if decision == "resolve" and runs:
            self.note(f"{key} is resolved to {runs[0].execution_id[:8]}")
            await ledger.resolve(key, runs[0].execution_id)
        elif decision == "resend":
            self.note(f"{key} is to be sent again")
            self.judge.approved[key] += 1
            await ledger.approve_resend(key)
        elif decision == "abandon":
            self.note(f"{key} is abandoned")
            await ledger.abandon(key)


def _cause(error: BaseException) -> BaseException:
    """Give the first error of a group."""
    return _cause(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def as_told(outcome: Outcome) -> Told:
    """Give what the judge wants to know of an outcome."""
    run = outcome.run if isinstance(outcome, Completed) else None
    found = None if isinstance(outcome, NotRun) else outcome.execution_id
    return Told(outcome.job.key, type(outcome).__name__, found, "" if run is None else str(run.result))
