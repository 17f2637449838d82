"""A batch that is killed, left, stopped, halted or whose ledger fails, at each step that it takes, in virtual time.

A step is a passage of the gate between a process and the world: before and after each transaction of the ledger, each
connection, each request and each answer.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

import anyio
import pytest

from knouds_async import Completed, Job, LedgerEntry, LedgerError, NotRun, Outcome
from knouds_async.errors import NoAnswerError
from knouds_async.testing import Emulator, faults
from tests.batch.in_loop import InLoopLedger
from tests.scenarios.mortal import Machine, Mortal

POLLED: Final = "my-thumbnail-pipeline"
IN_ONE_GO: Final = "fast-sketch"
SUBMIT: Final = "POST /api/workflows/:slug/run"
COST: Final = 12
COUNT: Final = 4
MORE: Final = [pytest.param(*each, marks=pytest.mark.slow) for each in (("trio", 2), ("asyncio", 3), ("trio", 4))]
EACH_STEP: Final = pytest.mark.parametrize(
    ("anyio_backend", "first"), [("asyncio", 1), *MORE], indirect=["anyio_backend"]
)
"""Four tests share the steps of one kind of trouble; all but the first run with the slow tests."""


class World:
    """A service, a ledger's file, and processes that use both, each with a plan of what befalls it."""

    def __init__(self, path: Path, slug: str = POLLED) -> None:
        self.emulator = Emulator(tier="enterprise", duration=5.0, cost=COST)
        self.path, self.slug = path, slug
        self.name = "prompt" if slug == IN_ONE_GO else "product_name"
        self.has_come = False
        self._machine = Machine(self.emulator.epoch)

    def process(self, step: int = 0, trouble: Callable[[Mortal], None] = Mortal.kill) -> Mortal:
        """Return a process which `trouble` befalls at a step."""
        url, key = "https://knouds.test", self.emulator.api_key
        process = Mortal("p", self.emulator, self.path, self._machine, Random(0), key=key, url=url)

        def come() -> None:
            self.has_come = True
            trouble(process)

        process.gate.plan(step, come)
        do = process.ledger._transact

        async def slowly(operation: Any, **options: Any) -> Any:
            value = await do(operation, **options)
            await anyio.sleep(0.001)  # so that it can be cut when the transaction is done and nobody was told yet
            return value

        process.ledger._transact = slowly  # type: ignore[method-assign]
        return process

    async def live(self, process: Mortal, count: int = COUNT, **options: Any) -> list[Outcome]:
        """Work through `count` jobs in a process; return the outcomes that it got before its end."""
        told: list[Outcome] = []
        jobs = [Job(f"job-{number}", {self.name: f"job-{number}"}) for number in range(count)]
        options = {"ledger": process.ledger, "max_in_flight": 2, **options}
        try:
            with anyio.fail_after(30_000), process.scope:
                async with process.knouds.workflows.map(self.slug, jobs, **options) as outcomes:
                    process.batch = outcomes
                    async for outcome in outcomes:
                        told.append(outcome)  # noqa: PERF401  (what was told before the end counts)
        finally:
            await process.aclose()
        return told

    async def live_on(self, count: int = COUNT, **options: Any) -> Counter[str]:
        """Work to the end in another process, and count the kinds of its outcomes, one for each job."""
        told = await self.live(self.process(), count, **options)
        assert sorted(outcome.job.key for outcome in told) == sorted(f"job-{number}" for number in range(count))
        self.emulator.assert_charged_once()
        return kinds(told)

    def ledger(self) -> InLoopLedger:
        """Return the ledger, to see what is on record."""
        return InLoopLedger(self.path)

    async def entries(self) -> dict[str, LedgerEntry]:
        """Return what is on record of each job that was begun."""
        ledger = self.ledger()
        found = [await ledger.find(f"job-{number}") for number in range(COUNT)]
        return {entry.key: entry for entry in found if entry is not None}

    async def check_ids(self) -> None:
        """Check that each run is on record by its id, or its job as one that may have run."""
        entries = await self.entries()
        for run in self.emulator.runs:
            entry = entries[str(run.inputs[self.name])]
            assert entry.execution_id == run.execution_id or entry.stage in ("sending", "unknown", "final"), entry


def kinds(outcomes: list[Outcome]) -> Counter[str]:
    """Count outcomes by their kind and reason."""
    return Counter(str(getattr(outcome, "reason", type(outcome).__name__)) for outcome in outcomes)


Attempt = Callable[[int, Path], Any]


async def at_each_step(first: int, tmp_path: Path, attempt: Attempt) -> int:
    """Make an attempt with trouble at each fourth step, until the batch has no such step; return how many there were.

    An attempt returns whether the trouble has come.
    """
    for number, step in enumerate(range(first, 1000, 4)):
        if not await attempt(step, tmp_path / f"{step}.db"):
            assert number >= 3
            return number
    raise AssertionError("a batch of few jobs takes few steps")


@EACH_STEP
@pytest.mark.parametrize("slug", [POLLED, pytest.param(IN_ONE_GO, marks=pytest.mark.slow)])
async def test_killed_at_any_step(slug: str, first: int, tmp_path: Path) -> None:
    """The next process has an outcome for each job, runs none twice, and in the end only what ran may be unknown."""
    stayed = 0

    async def attempt(step: int, path: Path) -> bool:
        nonlocal stayed
        world = World(path, slug)
        doomed = world.process(step)
        try:
            await world.live(doomed)
        except LedgerError:
            assert doomed.is_dead
        await world.check_ids()
        found = await world.live_on()
        assert found["Completed"] + found["Unknown"] == COUNT
        assert found["Unknown"] <= 2
        await anyio.sleep(2000)
        found = await world.live_on()
        assert found["Completed"] + found["Unknown"] == COUNT
        ids = {entry.execution_id for entry in (await world.entries()).values()}
        lost = [run for run in world.emulator.runs if run.execution_id not in ids]
        if slug == POLLED:
            assert found["Unknown"] in (len(lost), len(lost) + (len(world.emulator.runs) < COUNT))
        stayed += found["Unknown"]
        return world.has_come

    steps = await at_each_step(first, tmp_path, attempt)
    assert stayed <= steps  # in_flight is 2: of most kills nothing stays


@EACH_STEP
@pytest.mark.parametrize("slug", [POLLED, pytest.param(IN_ONE_GO, marks=pytest.mark.slow)])
async def test_left_at_any_step(slug: str, first: int, tmp_path: Path) -> None:
    """When the block is left nothing is `sending`; what has an id is on record, what was not sent is as new."""

    async def attempt(step: int, path: Path) -> bool:
        world = World(path, slug)
        process = world.process(step, Mortal.interrupt)
        await world.live(process)
        ledger = world.ledger()
        counts = await ledger.counts()
        assert counts.sending == 0
        assert all(entry.owner is None for entry in (await world.entries()).values() if entry.stage != "unknown")
        assert counts.unknown <= (0 if slug == POLLED else 2)
        may_have_run = counts.submitted + counts.completed + counts.unknown
        assert len(world.emulator.runs) <= may_have_run <= len(world.emulator.runs) + counts.unknown
        assert counts.credits_spent + counts.credits_reserved == COST * may_have_run
        found = await world.live_on()
        assert found == Counter(Completed=COUNT - counts.unknown, Unknown=counts.unknown)
        return world.has_come

    await at_each_step(first, tmp_path, attempt)


@EACH_STEP
@pytest.mark.parametrize("slug", [POLLED, pytest.param(IN_ONE_GO, marks=pytest.mark.slow)])
async def test_stopped_at_any_step(slug: str, first: int, tmp_path: Path) -> None:
    """Jobs that were sent complete, jobs that were read and not sent are as new, and nothing stays reserved."""

    async def attempt(step: int, path: Path) -> bool:
        world = World(path, slug)
        process = world.process(step, Mortal.stop)
        told = await world.live(process)
        found = kinds(told)
        assert set(found) <= {"Completed", "stopped"}
        assert found["Completed"] == len(world.emulator.runs)
        ledger = world.ledger()
        counts = await ledger.counts()
        assert (counts.completed, counts.sending, counts.submitted, counts.unknown) == (found["Completed"], 0, 0, 0)
        assert counts.credits_reserved == 0
        assert await world.live_on() == {"Completed": COUNT}
        return world.has_come

    await at_each_step(first, tmp_path, attempt)


@EACH_STEP
async def test_killed_at_any_step_under_a_cap(first: int, tmp_path: Path) -> None:
    """However a process ends, the cap holds over all of them, and what it allows is used."""
    cap = 2 * COST

    async def attempt(step: int, path: Path) -> bool:
        world = World(path)
        doomed = world.process(step)
        try:
            await world.live(doomed, max_credits=cap)
        except LedgerError:
            assert doomed.is_dead
        assert world.emulator.credits_spent <= cap
        found = Counter[str]()
        for _ in range(3):  # a job that is searched for while others ask for its credits is sent by the next
            found = await world.live_on(max_credits=cap)
            await anyio.sleep(2000)
        assert world.emulator.credits_spent <= cap
        assert found["Completed"] + found["Unknown"] == 2
        assert found["budget"] == COUNT - 2
        return world.has_come

    await at_each_step(first, tmp_path, attempt)


@EACH_STEP
@pytest.mark.parametrize("seconds", [35.0, pytest.param(400.0, marks=pytest.mark.slow)])
async def test_halted_at_any_step_beside_another(seconds: float, first: int, tmp_path: Path) -> None:
    """A process that halts and continues, beside one that does not: both get all outcomes, and none runs twice.

    One that halts for minutes may lose the answer to what it was sending, or to a question before its first submit.
    """

    async def attempt(step: int, path: Path) -> bool:
        world, told = World(path), dict[str, list[Outcome]]()

        async def live(name: str, process: Mortal) -> None:
            try:
                told[name] = await world.live(process)
            except NoAnswerError:
                assert (name, seconds) == ("halts", 400.0)

        with anyio.fail_after(7200):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(live, "halts", world.process(step, lambda process: process.gate.stop(seconds)))
                tasks.start_soon(live, "other", world.process())
        world.emulator.assert_charged_once()
        for found in (kinds(each) for each in told.values()):
            assert found["Completed"] + found["Unknown"] == COUNT
            assert found["Unknown"] <= (0 if seconds == 35.0 else 2)
        return world.has_come

    await at_each_step(first, tmp_path, attempt)


@EACH_STEP
@pytest.mark.parametrize("slug", [POLLED, pytest.param(IN_ONE_GO, marks=pytest.mark.slow)])
async def test_taken_for_gone_at_any_step(slug: str, first: int, tmp_path: Path) -> None:
    """A process that halts is taken for gone, as by a lease that ran out, and then continues: none runs twice.

    Its late news ends no batch; each batch that comes to its end has an outcome for each job.
    """

    async def attempt(step: int, path: Path) -> bool:
        world, told = World(path, slug), dict[str, list[Outcome]]()

        def halt(process: Mortal) -> None:
            process.gate.stop(200.0)
            process.end_owners()

        async def live(name: str, process: Mortal) -> None:
            try:
                told[name] = await world.live(process)
            except NoAnswerError:
                assert name == "halts"

        with anyio.fail_after(20_000):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(live, "halts", world.process(step, halt))
                await anyio.sleep(1.0)
                tasks.start_soon(live, "other", world.process())
        world.emulator.assert_charged_once()
        assert all(len(each) == COUNT for each in told.values())
        assert set(kinds(told["other"])) <= {"Completed", "Unknown"}
        await anyio.sleep(2000)
        found = await world.live_on()
        assert found["Completed"] + found["Unknown"] == COUNT
        assert found["Unknown"] <= 2
        return world.has_come

    await at_each_step(first, tmp_path, attempt)


@EACH_STEP
async def test_a_ledger_that_fails_at_any_transaction(
    first: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The batch ends with its error, which says if a run may be paid; a run whose id is not on record is in the log."""
    caplog.set_level(logging.WARNING, logger="knouds_async")

    async def attempt(step: int, path: Path) -> bool:
        world = World(path)
        process = world.process()
        transactions, do = 0, process.ledger._transact

        async def fail(operation: Any, **options: Any) -> Any:
            nonlocal transactions
            transactions += 1
            if transactions >= step:  # from then on: a disk that is full stays so
                raise LedgerError("the disk is full")
            return await do(operation, **options)

        process.ledger._transact = fail  # type: ignore[method-assign]
        error = None
        try:
            await world.live(process)
        except LedgerError as raised:
            error = raised
        ids = {entry.execution_id for entry in (await world.entries()).values()}
        lost = [run for run in world.emulator.runs if run.execution_id not in ids]
        assert all(run.execution_id in caplog.text for run in lost)
        if lost:
            assert error is not None
            assert error.may_have_run
        if not world.emulator.runs and error is not None:
            assert not error.may_have_run
        found = await world.live_on()
        assert found["Completed"] + found["Unknown"] == COUNT
        return error is not None

    await at_each_step(first, tmp_path, attempt)


@pytest.mark.parametrize("slug", [POLLED, pytest.param(IN_ONE_GO, marks=pytest.mark.slow)])
async def test_left_at_any_step_without_a_ledger(slug: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each run is reported by its id, or logged by it or by its job."""
    caplog.set_level(logging.WARNING, logger="knouds_async")
    step = 0
    for step in range(1, 200):
        caplog.clear()
        world = World(tmp_path / "none.db", slug)
        process = world.process(step, Mortal.interrupt)
        outcomes = await world.live(process, ledger=None)
        known = {outcome.execution_id for outcome in outcomes if not isinstance(outcome, NotRun)}
        told = {outcome.job.key for outcome in outcomes}
        for run in world.emulator.runs if slug == POLLED else ():  # one that ended in one go has no id
            key = str(run.inputs[world.name])
            assert run.execution_id in known or key in told or run.execution_id in caplog.text or key in caplog.text
        world.emulator.assert_charged_once()
        if not world.has_come:
            break
    assert 5 < step < 199


@pytest.mark.parametrize("nth", range(1, 7))
@pytest.mark.parametrize("fault", [faults.closed(after_run=True), faults.closed(), faults.bad_gateway(after_run=True)])
async def test_a_lost_answer_stops_what_comes_after_it(nth: int, fault: Any, tmp_path: Path) -> None:
    """With `on_unknown="stop"` nothing is submitted after the nth answer was lost; without, all the others run."""
    for on_unknown in ("stop", "park"):
        world = World(tmp_path / f"{on_unknown}.db")
        world.emulator.faults.add(fault, route=SUBMIT, nth=nth)
        told = await world.live(world.process(), 6, on_unknown=on_unknown, max_in_flight=1)
        found = kinds(told)
        if on_unknown == "park":
            assert found == Counter(Completed=5, Unknown=1)
        else:
            assert (found["Completed"], found["Unknown"]) == (nth - 1, 1)
            assert found.total() - nth == found["stopped"] <= 1  # no further one is read
        submits = [row for row in world.emulator.requests if row.route.startswith("POST")]
        assert len(submits) == (nth if on_unknown == "stop" else 6)
        assert sum(isinstance(outcome, Completed) for outcome in told) <= len(world.emulator.runs)
