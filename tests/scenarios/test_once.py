"""One job at a time, by its key: what a task of a queue calls, and what a web app calls for a click."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from knouds_async import (
    AsyncKnouds,
    Completed,
    Execution,
    ExecutionFailedError,
    InvalidArgumentError,
    Job,
    NotFoundError,
    NotRun,
    SubmissionUnknownError,
    Unknown,
)
from knouds_async.testing import Emulator, faults
from tests.batch.in_loop import InLoopLedger, close_databases

SLUG = "my-thumbnail-pipeline"
ROUTE = "POST /api/workflows/:slug/run"
JOB, OTHER = Job("order-1", {"product_name": "Lamp"}), Job("order-2", {"product_name": "Chair"})


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Callable[[], InLoopLedger]]:
    """Return what opens the same ledger anew, as another process would."""
    yield lambda: InLoopLedger(tmp_path / "renders.db")
    close_databases()


async def test_a_task_that_is_delivered_twice_runs_its_job_once(knouds: Any, emulator: Emulator, ledger: Any) -> None:
    """The second delivery has the outcome of the first, whether it comes later or at the same time, in any process."""
    outcomes = []

    async def deliver() -> None:
        outcomes.append(await knouds.workflows.once(SLUG, JOB, ledger=ledger()))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(deliver)
    await deliver()
    assert [type(outcome) for outcome in outcomes] == [Completed] * 4
    assert {outcome.execution_id for outcome in outcomes} == {emulator.runs[0].execution_id}
    assert len(emulator.runs) == 1


async def test_the_schema_is_fetched_once_for_many_tasks(knouds: Any, emulator: Emulator, ledger: Any) -> None:
    """Tasks that run one after another share it; inputs that do not fit it are not sent."""
    shared = ledger()
    for number in range(3):
        await knouds.workflows.once(SLUG, Job(f"order-{number}", {"product_name": "Lamp"}), ledger=shared)
    outcome = await knouds.workflows.once(SLUG, Job("bad", {"product_name": 7}), ledger=shared)
    assert isinstance(outcome, NotRun)
    fetched = [each for each in emulator.requests if each.path.endswith("/schema")]
    assert len(fetched) < 4


async def test_a_task_whose_submit_was_struck_is_run_once_that_is_proven(
    knouds: Any, emulator: Emulator, ledger: Any
) -> None:
    """Its outcome is unknown until the usage rows show that it began no run; the call after that sends it."""
    await knouds.workflows.once(SLUG, OTHER, ledger=ledger())  # its usage row shows that rows are there by then
    emulator.faults.add(faults.closed(), route=ROUTE, nth=1)
    assert isinstance(await knouds.workflows.once(SLUG, JOB, ledger=ledger()), Unknown)
    assert isinstance(await knouds.workflows.once(SLUG, JOB, ledger=ledger()), Unknown)
    await anyio.sleep(180)
    assert isinstance(await knouds.workflows.once(SLUG, JOB, ledger=ledger()), Completed)
    emulator.assert_charged_once()


async def test_a_task_that_is_cancelled_leaves_its_run_to_the_next(
    knouds: Any, emulator: Emulator, ledger: Any
) -> None:
    """The time limit of a queue ends the wait, not the run: the next delivery picks it up."""
    with anyio.move_on_after(5) as limit:
        await knouds.workflows.once(SLUG, JOB, ledger=ledger())
    assert limit.cancelled_caught
    assert isinstance(await knouds.workflows.once(SLUG, JOB, ledger=ledger()), Completed)
    assert len(emulator.runs) == 1


# A click.


async def click(knouds: AsyncKnouds, ledger: Any, inputs: Any = JOB.inputs) -> Execution:
    """Submit what a click asks for, under its key."""
    return await knouds.workflows.submit(SLUG, inputs, key=JOB.key, ledger=ledger())


async def test_a_second_click_gets_the_handle_of_the_first(make_client: Any, emulator: Emulator, ledger: Any) -> None:
    """At the same time through another pod, and after the end: one run, and a handle of it for each."""
    pods = [make_client(emulator), make_client(emulator)]
    handles: list[Execution] = []

    async def in_pod(knouds: AsyncKnouds) -> None:
        handles.append(await click(knouds, ledger))

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            for pod in pods:
                tasks.start_soon(in_pod, pod)
    for handle in handles:
        await handle
    handles.append(await click(pods[0], ledger))
    await handles[-1]
    assert {handle.id for handle in handles} == {emulator.runs[0].execution_id}
    assert len(emulator.runs) == 1


async def test_other_inputs_under_a_key_are_refused(knouds: Any, emulator: Emulator, ledger: Any) -> None:
    """The error names the key, and nothing is sent."""
    await click(knouds, ledger)
    with pytest.raises(InvalidArgumentError, match="order-1"):
        await click(knouds, ledger, {"product_name": "Chair"})
    assert len(emulator.runs) == 1


async def test_a_key_whose_submit_is_unknown(knouds: Any, emulator: Emulator, ledger: Any) -> None:
    """Each click is a SubmissionUnknownError, until it is proven that the first began no run; then one is sent."""
    await knouds.workflows.once(SLUG, OTHER, ledger=ledger())
    emulator.faults.add(faults.closed(), route=ROUTE, nth=1)
    for _ in range(2):
        with pytest.raises(SubmissionUnknownError):
            await click(knouds, ledger)
    await anyio.sleep(180)
    assert (await click(knouds, ledger)).id == emulator.runs[1].execution_id


async def test_a_key_whose_run_failed_gives_its_handle(make_client: Any, ledger: Any) -> None:
    """The failed run is what the key has: it is not run once more, and its handle raises how it failed."""
    emulator = Emulator(tier="business", duration=5.0, failure_rate=1.0)
    knouds = make_client(emulator)
    await knouds.workflows.once(SLUG, JOB, ledger=ledger())
    with pytest.raises(ExecutionFailedError):
        await (await click(knouds, ledger))
    assert len(emulator.runs) == 1


async def test_what_the_service_refuses_is_raised_and_leaves_the_key_free(
    knouds: Any, emulator: Emulator, ledger: Any
) -> None:
    """A refusal is the error of the call, as without a key, and the next click is sent."""
    emulator.faults.add(faults.not_found(), route=ROUTE, nth=1)
    with pytest.raises(NotFoundError):
        await click(knouds, ledger)
    assert (await click(knouds, ledger)).id == emulator.runs[0].execution_id


@pytest.mark.parametrize("half", ["key", "ledger"])
async def test_a_key_needs_a_ledger(knouds: Any, emulator: Emulator, ledger: Any, half: str) -> None:
    """One without the other would protect nothing: an InvalidArgumentError, and nothing is sent."""
    options = {"key": {"key": "order-1"}, "ledger": {"ledger": ledger()}}[half]
    with pytest.raises(InvalidArgumentError, match="key and a ledger"):
        await knouds.workflows.submit(SLUG, JOB.inputs, **options)
    assert len(emulator.runs) == 0
