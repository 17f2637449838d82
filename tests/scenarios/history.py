"""A random history of a ledger: some passes, each by some processes, in a world that goes wrong.

Rule of the file: it only lets things happen; whether they may have is the judge's.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Final

import anyio
import attrs

from knouds_async import Completed, NotRun, Outcome, SQLiteLedger
from knouds_async.testing import Emulator
from knouds_async.testing.messages import Request
from tests.batch.in_loop import InLoopLedger
from tests.scenarios import kinds as what
from tests.scenarios.judge import Judge, Told, ViolationError
from tests.scenarios.service import COST, DEAR, OTHER_USER, SLUG, STRANGER, Cache, OddService, Stray, key_of

HOURS: Final = 8 * 3600.0


@attrs.frozen
class Ended:
    """How a history ended, where it broke no rule."""

    kinds: dict[str, int]
    not_run_and_unknown: int


@attrs.frozen
class Order:
    """What one pass is to be: a process for each of the `accounts`, by their keys."""

    service: OddService
    accounts: list[str]
    cap: float | None
    in_flight: int
    is_last: bool


class History:
    """One history: the same seed and kinds give the same one. `durations`: of runs, in seconds."""

    durations = (2.0, 20.0, 60.0)

    def __init__(self, seed: int, kinds: frozenset[str], path: Path) -> None:
        self.seed, self.kinds, self.path = seed, kinds, path
        self.dice = dice = Random(f"history {seed}")
        self.log: list[str] = []
        self.keys = [f"job-{number}" for number in range(dice.randint(2, 7))]
        self.services = [OddService(self._emulator(), kinds, dice, self.note) for _ in range(2)]
        self.main, self.other = self.services
        self.skew = dice.choice((0.0, 1.5, -20.0, 90.0, -3600.0, HOURS)) if "clock" in kinds else 0.0
        self._stray = Stray(self._is_on_record)
        self._caches = [Cache(self.now) for _ in self.services]
        self.judge = Judge([one.emulator for one in self.services], path)

    def _emulator(self) -> Emulator:
        dice = self.dice
        return Emulator(
            tier=dice.choice(("business", "enterprise")),
            duration=dice.choice(self.durations),
            cost=COST,
            seed=dice.randrange(2**32),
            keys=(OTHER_USER,),
            workflows=[attrs.evolve(one, is_template=True) for one in Emulator().workflows],
            failure_rate=0.3 if "failures" in self.kinds else 0.0,
        )

    def note(self, text: str) -> None:
        """Write a line of the log, with the seconds of the service."""
        self.log.append(f"{self.now():10.2f}  {text}")

    async def run(self) -> Ended:
        """Run it; ViolationError, with its log, when a rule is broken."""
        try:
            for number in range(self.dice.randint(1, 4)):
                await self._pass(f"pass {number}", is_last=False)
                await self._between()
            await self._rest(400.0)
            await self._rebind()
            return await self._pass("last pass", is_last=True)
        except Exception as error:  # noqa: BLE001  (whatever it is goes into the report)
            cause = cause_of(error)
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

    def may(self, kind: str, probability: float = 0.5) -> bool:
        """Roll whether something of a kind is to be."""
        return kind in self.kinds and self.dice.random() < probability

    # One pass.

    async def _pass(self, name: str, *, is_last: bool) -> Ended:
        order = self._order(is_last=is_last)
        attached = self._attach(order)
        place = "" if order.service is self.main else " at another service"
        self.note(
            f"{name}: {len(order.accounts)} processes{place}, cap {order.cap}, in flight {order.in_flight}, "
            f"faults {attached}"
        )
        before = self._committed()
        told = await self.work_through(order)
        self.judge.check_charges(before, order.cap, self._surprise(order))
        self.judge.check_at_rest()
        return self._ended(told)

    def _order(self, *, is_last: bool) -> Order:
        dice = self.dice
        service = self.other if not is_last and self.may("service", 0.3) else self.main
        keys = [service.emulator.api_key for _ in range(dice.choice((1, 1, 2, 3)))]
        return Order(
            service=service,
            accounts=[OTHER_USER.text if not is_last and self.may("account", 0.3) else key for key in keys],
            cap=dice.choice((0, 12, 30, 36, 60, 200)) if not is_last and self.may("cap") else None,
            in_flight=dice.choice((1, 2, 8)),
            is_last=is_last,
        )

    def _attach(self, order: Order) -> list[str]:
        """Attach the faults of a pass; in the last one nothing goes wrong."""
        attached = order.service.emulator.faults
        if order.is_last:
            attached.clear()
            return []
        cache = self._caches[self.services.index(order.service)]
        return what.attach(attached, self.kinds, self.dice, self._stray, cache)

    def _is_on_record(self, execution_id: str) -> bool:
        return any(row["execution_id"] == execution_id for row in self.judge.rows())

    def _surprise(self, order: Order) -> float:
        """Return what runs may cost beyond a cap: those that turn out to be expensive before such a cost was known.

        They are in flight, or of those whose cost is not reported, or not yet.
        """
        if "costs" not in self.kinds:
            return 0.0
        stages = ("sending", "submitted", "unknown", "final")
        untold = sum(row["stage"] in stages and row["cost"] is None for row in self.judge.rows())
        return float((DEAR - COST) * (order.in_flight * len(order.accounts) + untold))

    def _committed(self) -> float:
        """Return the credits that may be charged for what is on record already."""
        price = float(DEAR) if "costs" in self.kinds else COST
        attempts = sum(bool(row["stage"] != "new") for row in self.judge.rows())
        return max(self.judge.charged(), price * attempts)

    def _ended(self, told: Sequence[Told]) -> Ended:
        counts: dict[str, int] = {}
        for one in told:
            counts[one.kind] = counts.get(one.kind, 0) + 1
        ran = {key_of(run) for run in self.judge.runs()}
        shy = sum(one.kind == "Unknown" and one.key not in ran for one in told)
        return Ended(counts, shy)

    async def work_through(self, order: Order) -> Sequence[Told]:
        """Wait for the processes of a pass to finish, judge the outcomes of all, and return those of the first."""
        raise NotImplementedError

    async def pass_time(self, seconds: float) -> None:
        """Advance the time while no process works."""
        raise NotImplementedError

    def now(self) -> float:
        """Return the seconds of the service."""
        return anyio.current_time() + self.main.ahead

    # What happens to the machine.

    def sleep_of(self) -> float:
        """Roll how long the machine sleeps."""
        seconds: float = self.dice.choice((20.0, 130.0, 200.0, HOURS))
        self.note(f"the machine sleeps for {seconds:g} s")
        return seconds

    def step_of(self) -> float:
        """Roll by how much the machine's clock is set."""
        seconds: float = self.dice.choice((5.0, -5.0, 130.0, -130.0, 3600.0, -3600.0, -HOURS, HOURS))
        self.note(f"the machine's clock is set by {seconds:+g} s")
        return seconds

    def step(self, seconds: float) -> None:
        """Set the machine's clock."""
        raise NotImplementedError

    # Between two passes.

    async def _rest(self, seconds: float) -> None:
        await self.pass_time(seconds)
        for service in self.services:
            service.settle(anyio.current_time())
        self.judge.check_at_rest()

    async def _between(self) -> None:
        await self._rest(self.dice.choice((0.0, 30.0, 125.0, 200.0, 400.0, 3600.0)))
        if self.may("clock", 0.3):
            self.step(self.step_of())
        if self.may("strangers"):
            self._meet_stranger()
        ledger = InLoopLedger(self.path)
        try:
            await self._decide(ledger)
        finally:
            if ledger._database is not None:
                ledger._database.close()

    async def _rebind(self) -> None:
        """Rebind the ledger for the last pass, whosever it is: it has to come to its end."""
        ledger = InLoopLedger(self.path)
        await ledger.rebind()
        assert ledger._database is not None
        ledger._database.close()

    def _meet_stranger(self) -> None:
        """Run the same workflow with the same account as another program would."""
        body = json.dumps({"inputs": {"product_name": STRANGER}}).encode()
        key = self.main.emulator.api_key
        self.main.emulator.faults.clear()
        asked = Request("POST", f"/api/workflows/{SLUG}/run", "async=true", {"x-api-key": key}, body)
        self.main.handle(asked, anyio.current_time())

    async def _decide(self, ledger: SQLiteLedger) -> None:
        if self.may("retry_failed"):
            last = {row["key"]: row for row in self.judge.rows()}
            failed = [key for key, row in last.items() if row["status"] in ("failed", "cancelled")]
            self.judge.approved.update(failed)
            self.note(f"what failed is to run once more: {failed}")
            await ledger.retry_failed()
        if self.may("rebind", 0.2):
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


def cause_of(error: BaseException) -> BaseException:
    """Return the first error of a group."""
    return cause_of(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def as_told(outcome: Outcome) -> Told:
    """Return what the judge wants to know of an outcome."""
    run = outcome.run if isinstance(outcome, Completed) else None
    found = None if isinstance(outcome, NotRun) else outcome.execution_id
    return Told(outcome.job.key, type(outcome).__name__, found, "" if run is None else str(run.result))
