"""Stopping a batch: runs in flight are paid for and yield outcomes, jobs in the queue were certainly not run."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import anyio
import httpx
import pytest

from knouds_async import AsyncKnouds, Job, Outcome, Progress, Retries
from knouds_async._sansio.ledger import Stage
from knouds_async.testing import Emulator, faults
from knouds_async.testing.messages import Fault, Response
from knouds_async.testing.transport import EmulatorTransport

SYNC = "fast-sketch"
ROUTE = "POST /api/workflows/:slug/run"


def jobs(count: int) -> list[Job]:
    """Return jobs of a workflow that cannot be polled."""
    return [Job(str(number), {"prompt": str(number)}) for number in range(count)]


def kinds(outcomes: list[Outcome]) -> Counter[str]:
    """Count outcomes by their kind and reason."""
    return Counter(str(getattr(outcome, "reason", type(outcome).__name__)) for outcome in outcomes)


async def test_stopping_cuts_no_synchronous_run(make_client: Any, ledger: Any) -> None:
    """Synchronous runs in flight when the batch is stopped complete, and none is called not run."""
    emulator = Emulator(tier="business", duration=45.0)
    async with make_client(emulator).workflows.map(SYNC, jobs(5), ledger=ledger) as outcomes:
        await anyio.sleep(20)
        outcomes.stop()
        found = [outcome async for outcome in outcomes]
    assert len(emulator.runs) == 5
    assert kinds(found) == {"Completed": 5}
    assert (await ledger.counts()).completed == 5


async def test_a_refusal_for_all_cuts_no_synchronous_run(make_client: Any, ledger: Any) -> None:
    """When the account can pay for no more, the synchronous runs it has paid for complete."""
    emulator = Emulator(tier="business", duration=45.0, credits=4 * 12)
    async with make_client(emulator).workflows.map(SYNC, jobs(8), ledger=ledger) as outcomes:
        found = [outcome async for outcome in outcomes]
    assert len(emulator.runs) == 4
    assert kinds(found) == {"Completed": 4, "budget": 4}


async def test_a_batch_that_had_stopped_by_itself_can_be_stopped(make_client: Any) -> None:
    """When no credits are left jobs are read on, each as not run; `stop` ends that too, with a source without end."""
    endless = ({"product_name": str(number)} for number in itertools.count())
    async with make_client(Emulator()).workflows.map("my-thumbnail-pipeline", endless, max_credits=0) as outcomes:
        found = []
        async for outcome in outcomes:
            found.append(outcome)
            if len(found) == 10:
                outcomes.stop()
            assert len(found) < 9000
    assert set(kinds(found)) == {"budget"}


async def test_what_is_refused_after_the_stop_is_not_sent_again(make_client: Any, ledger: Any) -> None:
    """A 429 that comes when the batch has stopped ends the job as not run, in the ledger too, without a wait."""
    emulator = Emulator(tier="business", duration=45.0)
    knouds = make_client(emulator, latency=2.0)
    await knouds.workflows.gather(SYNC, [{"prompt": "it is known then that this cannot be polled"}])
    emulator.faults.add(faults.rate_limited(), route=ROUTE)
    began = anyio.current_time()
    async with knouds.workflows.map(SYNC, jobs(1), ledger=ledger) as outcomes:
        await anyio.sleep(5.0)
        assert (await ledger.counts()).sending == 1
        outcomes.stop()
        found = [outcome async for outcome in outcomes]
    assert kinds(found) == {"stopped": 1}
    assert anyio.current_time() - began < 20
    assert len(emulator.runs) == 1
    assert (await ledger.find("0")).stage is Stage.NEW


async def test_on_progress_may_stop_the_batch(make_client: Any) -> None:
    """It may do so at each call, also at the one that reports the stop."""
    emulator, calls = Emulator(tier="business", duration=5.0), 0

    def stop_at_the_first(progress: Progress) -> None:
        nonlocal calls
        calls += 1
        if progress.completed:
            batch.stop()

    inputs = [{"product_name": str(number)} for number in range(9)]
    knouds, slug = make_client(emulator), "my-thumbnail-pipeline"
    batch = knouds.workflows.map(slug, inputs, on_progress=stop_at_the_first, max_in_flight=2)
    async with batch as outcomes:
        found = kinds([outcome async for outcome in outcomes])
    assert found["Completed"] == len(emulator.runs) < 9
    assert set(found) <= {"Completed", "stopped"}
    assert calls < 50


@pytest.mark.parametrize(
    "body", [b'{"error": "slow down"}', b'{"error": "Rate limit exceeded", "code": "RATE_LIMIT_EXCEEDED"}']
)
async def test_a_long_wait_that_the_service_asks_for_ends_with_the_stop(body: bytes, make_client: Any) -> None:
    """A job whose 429 asks for an hour, and comes when the batch has stopped, holds the batch up no longer."""
    emulator = Emulator(tier="business", duration=45.0)
    an_hour = Fault("an hour", "before", lambda _: Response(429, {"retry-after": "3600"}, body))
    emulator.faults.add(an_hour, route=ROUTE)
    knouds = make_client(emulator, latency=2.0, retries=Retries(longest=4000.0))
    began = anyio.current_time()
    async with knouds.workflows.map("my-thumbnail-pipeline", [{"product_name": "x"}]) as outcomes:
        await anyio.sleep(3.0)  # the answer comes in another second
        assert outcomes.progress.in_flight == 1
        outcomes.stop()
        found = [outcome async for outcome in outcomes]
    assert kinds(found) == {"stopped": 1}
    assert anyio.current_time() - began < 60


@pytest.mark.parametrize("max_credits", [None, 1000.0])
async def test_a_stop_while_the_service_is_asked_for_its_time_ends_at_once(
    max_credits: float | None, ledger: Any
) -> None:
    """A job that waits for the service's time when the batch is stopped does not wait for its turn as well."""

    async def keep(response: httpx.Response) -> None:
        response.headers.pop("date", None)

    emulator = Emulator(tier="pro", limit=3, duration=5.0)
    emulator.faults.add(faults.stalled(8.0), route="GET /api/whoami", nth=2)
    hooks, jobs = {"response": [keep]}, [Job("a", {"product_name": "x"})]
    async with (
        httpx.AsyncClient(transport=EmulatorTransport(emulator), event_hooks=hooks) as http,
        AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http) as knouds,
    ):
        for number in range(3):  # the window is used up
            await knouds.workflows.submit("my-thumbnail-pipeline", {"product_name": str(number)})
        began = anyio.current_time()
        batch = knouds.workflows.map("my-thumbnail-pipeline", jobs, ledger=ledger, max_credits=max_credits)
        async with batch as outcomes:
            await anyio.sleep(4.0)
            outcomes.stop()
            assert kinds([outcome async for outcome in outcomes]) == {"stopped": 1}
        assert anyio.current_time() - began < 10
    assert len(emulator.runs) == 3


async def test_a_stop_while_the_intent_is_written_keeps_the_job(make_client: Any, ledger: Any) -> None:
    """A job whose intent is being written when the batch is stopped is not sent, and is as new in the ledger."""
    emulator = Emulator(tier="business", duration=45.0)
    knouds = make_client(emulator)
    claim = ledger.claim

    async def slow(wanted: Any) -> Any:
        written = await claim(wanted)
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1.0)
        return written

    ledger.claim = slow
    for target, job in ((SYNC, jobs(1)[0]), ("my-thumbnail-pipeline", Job("a", {"product_name": "x"}))):
        await knouds.workflows.gather(SYNC, [{"prompt": "it is known then that this cannot be polled"}])
        before = len(emulator.runs)
        async with knouds.workflows.map(target, [job], ledger=ledger) as outcomes:
            await anyio.sleep(0.6)
            assert (await ledger.find(job.key)).stage is Stage.SENDING
            outcomes.stop()
            assert kinds([outcome async for outcome in outcomes]) == {"stopped": 1}
        assert len(emulator.runs) == before
        assert (await ledger.find(job.key)).stage is Stage.NEW
