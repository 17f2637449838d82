"""The poller: one for all waiters, alive only while something waits, and the only source of results."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import httpx
import pytest

from knouds_async import AsyncKnouds, Execution, Polling, RunResult, Status, WaitTimeoutError
from knouds_async.testing import Emulator
from tests.scripted_client import scripted

SLUG = "my-thumbnail-pipeline"
INPUTS = {"product_name": "Knouds"}
POLL = "GET /api/executions/:id"


async def test_three_tasks_share_the_polls_of_one_handle(make_client: Any) -> None:
    """However many tasks await one handle, and however many handles one run has, it is polled as for one."""
    counts = []
    for waiters in (1, 3):
        emulator = Emulator(tier="business", duration=45.0)
        knouds = make_client(emulator, polling=Polling.every(5.0))
        execution = await knouds.workflows.submit(SLUG, INPUTS)
        same = knouds.executions.attach(execution.id)
        async with anyio.create_task_group() as tasks:
            for index in range(waiters):
                tasks.start_soon((execution, same)[index % 2].wait)
        counts.append(emulator.requests.by_route[POLL])
    assert counts == [9, 9]


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_the_poller_lives_only_while_somebody_waits(knouds: AsyncKnouds) -> None:
    """Before the first wait and after the last, no task of the library exists."""
    before = len(asyncio.all_tasks())
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    await anyio.lowlevel.checkpoint()
    assert len(asyncio.all_tasks()) == before
    await execution
    await anyio.sleep(0.1)
    assert len(asyncio.all_tasks()) == before


async def test_waiting_in_short_pieces_keeps_the_schedule(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """Many short waits poll no more often than one long one."""
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    while not execution.state.is_final:
        try:
            await execution.wait(timeout=0.5)
        except WaitTimeoutError:
            continue
    assert emulator.requests.by_route[POLL] <= 15


async def test_two_hundred_runs_are_each_awaited_by_three_tasks(make_client: Any) -> None:
    """200 concurrent runs, three waiters each, end without an error, each run once."""
    emulator = Emulator(tier="enterprise", duration=30.0)
    knouds = make_client(emulator)
    results: list[RunResult] = []

    async def waiter(execution: Execution) -> None:
        results.append(await execution)

    async def one(number: int) -> None:
        execution = await knouds.workflows.submit(SLUG, {"product_name": f"n{number}"})
        async with anyio.create_task_group() as waiters:
            for _ in range(3):
                waiters.start_soon(waiter, execution)

    async with anyio.create_task_group() as tasks:
        for number in range(200):
            tasks.start_soon(one, number)
    assert len(results) == 600
    emulator.assert_charged_once()
    emulator.assert_no_429()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_poller_that_is_cancelled_from_outside_is_started_again(knouds: AsyncKnouds) -> None:
    """When the poller's task is cancelled from outside, waits that continue still end."""
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    waiting = asyncio.create_task(execution.wait())
    await asyncio.sleep(5)
    for task in asyncio.all_tasks():
        if task is not waiting and "PollTask" in repr(task.get_coro()):
            task.cancel()
    assert (await waiting).status is Status.COMPLETED


async def test_only_a_poll_finishes_a_run() -> None:
    """The answer to a submit or a cancel that says `completed` has no result: the run is polled for it."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"status": "completed", "result": {"text": "done"}})
        name = "run-2" if "run-2" in request.url.path else "run-1"
        return httpx.Response(200, json={"executionId": name, "status": "completed"})

    knouds = scripted(answer)
    assert (await (await knouds.workflows.submit("a", {}))).text == "done"
    state = await knouds.executions.attach("run-2").cancel()
    assert (state.status, state.result) == (Status.COMPLETED, {"text": "done"})
