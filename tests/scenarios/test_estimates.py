"""An estimate against what the batch then costs and takes, in virtual time: nothing is paid for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from knouds_async import AuthenticationError, Job, SQLiteLedger
from knouds_async.testing import Emulator, faults

SLUG = "my-thumbnail-pipeline"
MakeClient = Any


def jobs(number: int, **more: Any) -> list[Job]:
    """Return jobs with keys of their own."""
    return [Job(f"job-{each}", {"product_name": f"Product {each}", **more}) for each in range(number)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tier", "count", "phase"), [("pro", 40, 30.0), ("pro", 250, 5.0), ("pro", 250, 55.0), ("enterprise", 120, 30.0)]
)
async def test_it_comes_near_what_the_batch_costs_and_takes(
    make_client: MakeClient, tier: str, count: int, phase: float
) -> None:
    """The credits are those that are charged, and the time is within 15 % of the truth, or five seconds."""
    emulator = Emulator(tier=tier, duration=45.0, window_phase=phase)
    knouds = make_client(emulator)
    before = emulator.credits_spent
    estimate = await knouds.workflows.map(SLUG, jobs(count), expected=45.0).estimate()
    assert (emulator.credits_spent, len(emulator.runs)) == (before, 0)
    batch = knouds.workflows.map(SLUG, jobs(count), expected=45.0)
    async with batch as outcomes:
        assert len([outcome async for outcome in outcomes]) == count
    assert estimate.credits == emulator.credits_spent
    assert estimate.credits_source == "schema"
    assert estimate.seconds == pytest.approx(batch.progress.elapsed, rel=0.15, abs=5.0)


async def test_a_model_costs_what_it_has_cost(make_client: MakeClient) -> None:
    """Without a schema the mean of the account's runs counts, and before there are any nothing is claimed."""
    emulator = Emulator(tier="business", duration=20.0)
    knouds = make_client(emulator)
    inputs = [{"mood": str(number)} for number in range(7)]
    assert (await knouds.models.map("suno-v5", inputs).estimate()).credits is None
    await knouds.models.gather("suno-v5", inputs[:2])
    await anyio.sleep(60)  # rows are late
    estimate = await knouds.models.map("suno-v5", inputs).estimate()
    assert (estimate.credits, estimate.credits_source, estimate.windows) == (84, "usage", 1)
    assert estimate.seconds == pytest.approx(20.0, abs=1.0)


async def test_reads_leave_the_quota_of_submits_as_it_is(make_client: MakeClient) -> None:
    """What was read before is counted on other routes; what was submitted leaves less of this window."""
    emulator = Emulator(tier="pro", duration=5.0, window_phase=50.0)
    knouds = make_client(emulator)
    for _ in range(30):
        await knouds.usage.list()
    assert (await knouds.workflows.map(SLUG, jobs(100)).estimate()).windows == 1
    for job in jobs(10):
        await knouds.workflows.submit(SLUG, job.inputs)
    assert (await knouds.workflows.map(SLUG, jobs(100)).estimate()).windows == 2


async def test_what_would_not_be_run_is_told_apart(make_client: MakeClient) -> None:
    """Inputs that do not fit, keys that come twice and what is no JSON are invalid, and the first of them are named."""
    knouds = make_client(Emulator(tier="pro"))
    odd: Any = {"product_name": object()}
    wrong = [Job("job-0", {"product_name": "again"}), Job("bad", {"count": 99}), Job("odd", odd)]
    estimate = await knouds.workflows.map(SLUG, [*jobs(5), *wrong]).estimate()
    assert (estimate.jobs, estimate.invalid, estimate.already_done, estimate.to_run) == (8, 3, 0, 5)
    assert [fault.split(":")[0] for fault in estimate.faults] == ["job-0", "bad", "odd"]
    assert "'count' must be at most 4" in estimate.faults[1]


async def test_jobs_may_come_from_anywhere(make_client: MakeClient) -> None:
    """An async iterable is read as well, and so is one without an end that is known."""

    async def stream() -> AsyncIterator[Job]:
        for job in jobs(3):
            yield job

    knouds = make_client(Emulator(tier="pro"))
    assert (await knouds.workflows.map(SLUG, stream()).estimate()).jobs == 3
    assert (await knouds.workflows.map(SLUG, iter(jobs(4))).estimate()).jobs == 4


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])  # in real time, as a ledger's thread is
async def test_a_ledger_says_what_is_done_and_none_is_made(make_client: MakeClient, tmp_path: Path) -> None:
    """Jobs of the ledger are not paid for again, those with other inputs are invalid, and nothing is written."""
    emulator = Emulator(tier="business", duration=0.05)
    knouds = make_client(emulator, latency=0.0)
    path = tmp_path / "ledger.db"
    for ledger in (path, SQLiteLedger(path)):
        assert (await knouds.workflows.map(SLUG, jobs(3), ledger=ledger).estimate()).to_run == 3
        assert [each async for each in anyio.Path(tmp_path).iterdir()] == []
    async with knouds.workflows.map(SLUG, jobs(2), ledger=path, expected=0.1) as outcomes:
        assert len([outcome async for outcome in outcomes]) == 2
    data = path.read_bytes()
    estimate = await knouds.workflows.map(SLUG, [*jobs(3), *jobs(1, count=2)], ledger=path).estimate()
    assert (estimate.jobs, estimate.invalid, estimate.already_done, estimate.credits) == (4, 1, 2, 12)
    assert path.read_bytes() == data
    async with SQLiteLedger(path) as ledger:
        batch = knouds.workflows.map(SLUG, jobs(3), ledger=ledger, expected=0.1)
        assert (await batch.estimate()).already_done == 2
        async with batch as outcomes:
            assert len([outcome async for outcome in outcomes]) == 3
        with pytest.raises(RuntimeError, match="before it is entered"):
            await batch.estimate()
    assert len(emulator.runs) == 3


async def test_what_the_service_refuses_is_raised(make_client: MakeClient) -> None:
    """A key that is refused is no estimate; a key that may not read the schema goes without it."""
    emulator = Emulator(tier="pro", capabilities=("workflow:run", "execution:read"))
    knouds = make_client(emulator)
    estimate = await knouds.workflows.map(SLUG, jobs(2)).estimate()
    assert (estimate.invalid, estimate.credits, estimate.windows) == (0, None, 1)
    emulator.faults.add(faults.unknown_error(401, "REVOKED"), route="GET /api/whoami")
    with pytest.raises(AuthenticationError):
        await knouds.workflows.map(SLUG, jobs(2)).estimate()
