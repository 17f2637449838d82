"""A batch on a ledger: what is on record is not run again, and what is not is."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from knouds_async import AsyncKnouds, Completed, Failed, Job, NotRun, Outcome, Polling, SQLiteLedger, Unknown
from knouds_async.testing import Emulator, faults

REAL_TIME = True
SLUG = "my-thumbnail-pipeline"
ROUTE = "POST /api/workflows/:slug/run"


def jobs(count: int, first: int = 0) -> list[Job]:
    """Return jobs with keys of their own."""
    return [Job(f"job-{number}", {"product_name": f"Product {number}"}) for number in range(first, first + count)]


async def run(knouds: AsyncKnouds, path: Path, wanted: Any, **options: Any) -> list[Outcome]:
    """Run a batch to its end."""
    async with knouds.workflows.map(SLUG, wanted, ledger=path, **options) as outcomes:
        return [outcome async for outcome in outcomes]


@pytest.fixture
def make_client(make_client: Callable[..., AsyncKnouds]) -> Callable[..., AsyncKnouds]:
    """Build clients that poll often: a client that knows nothing of a workflow waits seconds before its first poll."""

    def make(emulator: Emulator, **options: Any) -> AsyncKnouds:
        return make_client(emulator, polling=Polling.every(0.02), **options)

    return make


@pytest.fixture
def knouds(make_client: Any, quick: Emulator) -> AsyncKnouds:
    """Return a client of the quick service."""
    client: AsyncKnouds = make_client(quick, latency=0.001)
    return client


async def test_a_second_run_takes_all_from_the_ledger(knouds: AsyncKnouds, quick: Emulator, path: Path) -> None:
    """What is final is not sent again: the second time every outcome comes out of the ledger, as it was."""
    first = await run(knouds, path, jobs(50), ordered=True)
    second = await run(knouds, path, jobs(50), ordered=True)
    assert all(isinstance(outcome, Completed) and not outcome.from_ledger for outcome in first)
    assert [attrs.evolve(outcome, from_ledger=False) for outcome in second if isinstance(outcome, Completed)] == first
    assert len(quick.runs) == 50
    quick.assert_charged_once()


async def test_more_jobs_may_come(knouds: AsyncKnouds, quick: Emulator, path: Path) -> None:
    """Jobs that are added to a batch are run, the others not; plain inputs keep their keys wherever they stand."""
    plain = [{"product_name": str(number)} for number in range(5)]
    await run(knouds, path, plain)
    found = await run(knouds, path, [{"product_name": "new"}, *reversed(plain)])
    assert sum(getattr(outcome, "from_ledger", False) for outcome in found) == 5
    assert len(quick.runs) == 6


async def test_the_file_is_private_and_holds_no_key(knouds: AsyncKnouds, quick: Emulator, path: Path) -> None:
    """The ledger is readable for its owner alone, and neither the API key nor the inputs are in it."""
    await run(knouds, path, jobs(3))
    assert stat.S_IMODE((await anyio.Path(path).stat()).st_mode) == 0o600
    content = await anyio.Path(path).read_bytes()
    assert quick.api_key.encode() not in content
    assert b"Product 1" not in content


async def test_the_same_key_with_other_inputs_is_refused(knouds: AsyncKnouds, quick: Emulator, path: Path) -> None:
    """A key names one job for ever."""
    await run(knouds, path, [Job("a", {"product_name": "x"})])
    (found,) = await run(knouds, path, [Job("a", {"product_name": "y"})])
    assert isinstance(found, NotRun)
    assert found.reason == "conflict"
    assert len(quick.runs) == 1


async def test_failed_runs_are_not_repeated_unasked(make_client: Any, path: Path) -> None:
    """A failed run comes out of the ledger as it was; `retry_failed` has it run once more, and keeps the first."""
    emulator = Emulator(tier="enterprise", duration=0.01, failure_rate=1.0)
    knouds = make_client(emulator, latency=0.001)
    (first,) = await run(knouds, path, jobs(1))
    (second,) = await run(knouds, path, jobs(1))
    assert isinstance(first, Failed)
    assert isinstance(second, Failed)
    assert (second.error.code, second.error.message, second.state) == (
        first.error.code,
        first.error.message,
        first.state,
    )
    emulator.failure_rate = 0.0
    async with SQLiteLedger(path) as ledger:
        assert await ledger.retry_failed() == 1
        assert (await ledger.counts()).new == 1
        (third,) = await run(knouds, path, jobs(1))
        assert isinstance(third, Completed)
        counts = await ledger.counts()
        assert (counts.completed, counts.failed) == (1, 0)
        assert counts.credits_spent == emulator.credits_spent == 24
        assert await ledger.retry_failed() == 0


async def test_an_unknown_waits_for_a_decision(make_client: Any, path: Path) -> None:
    """It comes out as Unknown each time, and is sent again only when that was approved; what may be paid is counted."""
    emulator = Emulator(tier="enterprise", duration=0.01)
    knouds = make_client(emulator, latency=0.001)
    emulator.faults.add(faults.closed(after_run=True), route=ROUTE, nth=(1, 2))
    found = await run(knouds, path, jobs(2))
    again = await run(knouds, path, jobs(2))
    assert all(isinstance(outcome, Unknown) and outcome.sent_at for outcome in [*found, *again])
    assert len(emulator.runs) == 2
    async with SQLiteLedger(path) as ledger:
        assert {entry.key for entry in await ledger.unknown()} == {"job-0", "job-1"}
        await ledger.approve_resend("job-0")
        await ledger.abandon("job-1")
        found = await run(knouds, path, jobs(2), ordered=True)
        assert isinstance(found[0], Completed)
        assert isinstance(found[1], Unknown)
        assert found[1].is_abandoned
        counts = await ledger.counts()
        assert (counts.completed, counts.unknown, counts.abandoned) == (1, 0, 1)
        assert (counts.credits_spent, counts.credits_reserved) == (12, 24)
        with pytest.raises(ValueError, match="job-0"):
            await ledger.approve_resend("job-0")
        with pytest.raises(ValueError, match="no job"):
            await ledger.abandon("job-9")
    assert len(emulator.runs) == 3


async def test_an_unknown_may_be_resolved(make_client: Any, path: Path) -> None:
    """When somebody knows the id, the next batch picks the run up."""
    emulator = Emulator(tier="enterprise", duration=0.01)
    knouds = make_client(emulator, latency=0.001)
    emulator.faults.add(faults.closed(after_run=True), route=ROUTE, nth=1)
    await run(knouds, path, jobs(1))
    async with SQLiteLedger(path) as ledger:
        await ledger.resolve("job-0", emulator.runs[0].execution_id)
    (found,) = await run(knouds, path, jobs(1))
    assert isinstance(found, Completed)
    assert found.execution_id == emulator.runs[0].execution_id
    assert len(emulator.runs) == 1


async def test_a_wrong_id_can_be_corrected(make_client: Any, path: Path) -> None:
    """A typing error loses no paid run: a job resolved with an id that does not exist can be resolved once more."""
    emulator = Emulator(tier="enterprise", duration=0.01)
    knouds = make_client(emulator, latency=0.001)
    emulator.faults.add(faults.closed(after_run=True), route=ROUTE, nth=1)
    await run(knouds, path, jobs(1))
    for named in ("a-slip", emulator.runs[0].execution_id):
        async with SQLiteLedger(path) as ledger:
            await ledger.resolve("job-0", named)
        (found,) = await run(knouds, path, jobs(1))
        assert isinstance(found, Unknown if named == "a-slip" else Completed)
    async with SQLiteLedger(path) as ledger:
        with pytest.raises(ValueError, match="nothing was changed"):
            await ledger.resolve("job-0", "a-slip")
    assert len(emulator.runs) == 1


async def test_the_run_of_another_workflow_is_no_answer(make_client: Any, path: Path) -> None:
    """The result of another workflow's run is not taken for a job's: the job is unknown until it gets the right id."""
    emulator = Emulator(tier="enterprise", duration=0.01)
    knouds = make_client(emulator, latency=0.001)
    emulator.faults.add(faults.closed(after_run=True), route=ROUTE, nth=1)
    await run(knouds, path, jobs(1))
    other = await knouds.workflows.submit("daily-picture", {})
    await other
    for named, kind in ((other.id, Unknown), (emulator.runs[0].execution_id, Completed)):
        async with SQLiteLedger(path) as ledger:
            await ledger.resolve("job-0", named)
        (found,) = await run(knouds, path, jobs(1))
        assert isinstance(found, kind)
    assert len(emulator.runs) == 2


async def test_the_run_of_another_model_is_no_answer(make_client: Any, path: Path) -> None:
    """The same for a job of a model: neither another model's run is taken for it, nor a workflow's that used it."""
    emulator = Emulator(tier="enterprise", duration=0.01)
    knouds = make_client(emulator, latency=0.001)
    emulator.faults.add(faults.closed(after_run=True), route="POST /api/models/:internalName/run", nth=1)
    job = Job("job-0", {"prompt": "x"})
    await knouds.models.gather("gpt-image-2", [job], ledger=path)
    others = [await knouds.models.submit("suno-v5", job.inputs), await knouds.workflows.submit(SLUG, jobs(1)[0].inputs)]
    wrong = [(other.id, "Unknown") for other in others]
    for named, kind in (*wrong, (emulator.runs[0].execution_id, "Completed")):
        async with SQLiteLedger(path) as ledger:
            await ledger.resolve("job-0", named)
        (found,) = await knouds.models.gather("gpt-image-2", [job], ledger=path)
        assert type(found).__name__ == kind
    assert len(emulator.runs) == 3


async def test_the_run_of_another_job_is_no_answer(make_client: Any, path: Path) -> None:
    """An unknown job is not given the result of another job by a slip: that run's id is refused, with whose it is."""
    emulator = Emulator(tier="enterprise", duration=0.01)
    emulator.faults.add(faults.closed(after_run=True), route=ROUTE, nth=1)
    await run(make_client(emulator, latency=0.001), path, jobs(2))
    async with SQLiteLedger(path) as ledger:
        (unknown,) = await ledger.unknown()
        other = await ledger.find("job-1" if unknown.key == "job-0" else "job-0")
        assert other is not None
        assert other.execution_id is not None
        with pytest.raises(ValueError, match=f"is the run of job '{other.key}'"):
            await ledger.resolve(unknown.key, other.execution_id)
        assert await ledger.unknown() == (unknown,)


async def test_runs_in_flight_are_picked_up(make_client: Any, path: Path) -> None:
    """A batch that was left is gone on with by the next one: nothing is sent twice, every run is awaited."""
    emulator = Emulator(tier="enterprise", duration=0.3)
    knouds = make_client(emulator, latency=0.01)
    async with knouds.workflows.map(SLUG, jobs(30), ledger=path) as outcomes:
        await anext(outcomes)
    assert len(emulator.runs) == 30
    found = await run(knouds, path, jobs(30))
    assert sum(isinstance(outcome, Completed) for outcome in found) == 30
    assert len(emulator.runs) == 30
    emulator.assert_charged_once()


async def test_synchronous_runs_are_on_record(make_client: Any, path: Path) -> None:
    """A run without an id is in the ledger by its key, with its result."""
    emulator = Emulator(tier="enterprise", duration=0.02)
    knouds = make_client(emulator, latency=0.001)
    wanted = [Job(str(number), {"prompt": str(number)}) for number in range(5)]
    found: list[Outcome] = []
    for _ in range(2):
        async with knouds.workflows.map("fast-sketch", wanted, ledger=path) as outcomes:
            found = [outcome async for outcome in outcomes]
        assert all(isinstance(outcome, Completed) and outcome.run.images for outcome in found)
    assert all(isinstance(outcome, Completed) and outcome.from_ledger for outcome in found)
    assert len(emulator.runs) == 5


async def test_one_ledger_serves_two_batches_at_once(make_client: Any, quick: Emulator, path: Path) -> None:
    """Two batches of one process share the jobs: each runs once, and each batch gives every outcome."""
    knouds = make_client(quick, latency=0.001)
    found: list[list[Outcome]] = []

    async def one() -> None:
        found.append(await run(knouds, path, jobs(40)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one)
        tasks.start_soon(one)
    assert [len(outcomes) for outcomes in found] == [40, 40]
    assert all(isinstance(outcome, Completed) for outcomes in found for outcome in outcomes)
    assert len(quick.runs) == 40
    quick.assert_charged_once()
