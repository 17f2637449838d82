"""A pause that the service asks for is logged; one that is longer than allowed ends a batch, which continues later."""

from __future__ import annotations

import json
import logging
from typing import Any

import anyio
import pytest

from knouds_async import Job, Limiter, NotRun, Outcome, Progress, RateLimitError, Retries
from knouds_async._sansio.ledger import Stage
from knouds_async.testing import Emulator, Fault, Response, faults

SLUG = "my-thumbnail-pipeline"
ROUTE = "POST /api/workflows/:slug/run"


def pause(seconds: int) -> Fault:
    """Make the service refuse, and ask for a pause."""
    body = json.dumps({"error": "Rate limit exceeded", "code": "RATE_LIMIT_EXCEEDED"}).encode()
    return Fault("pause", "before", lambda _: Response(429, {"retry-after": str(seconds)}, body))


def jobs(count: int) -> list[Job]:
    """Return jobs with keys of their own."""
    return [Job(f"job-{number}", {"product_name": f"Product {number}"}) for number in range(count)]


def reasons(outcomes: list[Outcome]) -> dict[str, int]:
    """Count outcomes by their kind, and those that were not run by their reason."""
    found = [each.reason if isinstance(each, NotRun) else type(each).__name__ for each in outcomes]
    return {kind: found.count(kind) for kind in found}


@pytest.mark.parametrize("nth", [1, 15])
async def test_a_day_is_not_slept_away(
    nth: int, make_client: Any, ledger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A batch that is asked for a pause of a day ends at once, says so once, and is done by the next after it."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    emulator.faults.add(pause(86_400), route=ROUTE, nth=nth)
    knouds, began = make_client(emulator), anyio.current_time()
    async with knouds.workflows.map(SLUG, jobs(40), ledger=ledger, max_in_flight=10) as outcomes:
        found = [outcome async for outcome in outcomes]
    assert anyio.current_time() - began < 60
    counted = reasons(found)
    assert counted["rate_limited"] >= 20
    assert counted.get("Completed", 0) + counted["rate_limited"] == 40
    for outcome in found:
        if isinstance(outcome, NotRun):
            assert isinstance(outcome.error, RateLimitError)
            assert outcome.error.retry_after == pytest.approx(86_400, abs=60)
            entry = await ledger.find(outcome.job.key)
            assert entry is None or entry.stage is Stage.NEW
    said = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len([record for record in said if "submits nothing more" in record.getMessage()]) == 1
    await anyio.sleep(86_400)
    async with knouds.workflows.map(SLUG, jobs(40), ledger=ledger) as outcomes:
        assert reasons([outcome async for outcome in outcomes]) == {"Completed": 40}
    emulator.assert_charged_once()


async def test_a_job_whose_next_attempt_would_wait_too_long_is_nobody_elses(make_client: Any, ledger: Any) -> None:
    """A refused submit whose pause is longer than the limiter's `max_wait` ends at once, and polls no ledger."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    emulator.faults.add(pause(100), route=ROUTE)
    knouds = make_client(emulator, latency=0.0, limiter=Limiter("enterprise", max_wait=10.0))
    looked, look = list[str](), ledger.look

    async def noted(key: str) -> Any:
        looked.append(key)
        return await look(key)

    ledger.look = noted
    began = anyio.current_time()
    assert reasons(await knouds.workflows.gather(SLUG, jobs(1), ledger=ledger)) == {"rate_limited": 1}
    assert anyio.current_time() - began < 1
    assert looked == ["job-0"]
    assert (await ledger.find("job-0")).stage is Stage.NEW


async def test_a_pause_that_is_borne_is_said(make_client: Any, ledger: Any, caplog: pytest.LogCaptureFixture) -> None:
    """While it lasts, the progress and one warning say for how long and until when nothing is submitted."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    emulator.faults.add(pause(100), route=ROUTE, nth=5)
    knouds, heard = make_client(emulator), list[Progress]()
    batch = knouds.workflows.map(SLUG, jobs(20), ledger=ledger, max_in_flight=2, on_progress=heard.append)
    async with batch as outcomes:
        await anyio.sleep(50)
        assert 40 < outcomes.progress.held_for < 100
        assert reasons([outcome async for outcome in outcomes]) == {"Completed": 20}
    assert any(progress.held_for > 90 for progress in heard)
    assert outcomes.progress.held_for == 0
    (said,) = [record.getMessage() for record in caplog.records if "asked for a pause" in record.getMessage()]
    assert "UTC" in said
    assert "100 s" in said or "99 s" in said


async def test_a_batch_that_begins_in_a_pause_says_so(make_client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Also where another call was refused before."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    emulator.faults.add(pause(100), route=ROUTE, nth=1)
    knouds = make_client(emulator)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(knouds.workflows.submit, SLUG, {"product_name": "x"})
        await anyio.sleep(20)
        async with knouds.workflows.map(SLUG, jobs(3)) as outcomes:
            assert reasons([outcome async for outcome in outcomes]) == {"Completed": 3}
    assert len([record for record in caplog.records if "asked for a pause" in record.getMessage()]) == 1


async def test_max_wait_bounds_the_pause_and_not_the_quota(make_client: Any) -> None:
    """A pause longer than the limiter's `max_wait` ends a batch; the line for the quota, however long, does not."""
    emulator = Emulator(tier="pro", limit=5, duration=1.0)
    knouds = make_client(emulator, limiter=Limiter("pro", max_wait=10.0))
    async with knouds.workflows.map(SLUG, jobs(12)) as outcomes:
        assert reasons([outcome async for outcome in outcomes]) == {"Completed": 12}
    emulator.faults.add(pause(100), route=ROUTE, nth=1)
    async with knouds.workflows.map(SLUG, jobs(12)) as outcomes:
        assert "rate_limited" in reasons([outcome async for outcome in outcomes])


async def test_a_service_that_is_away_is_said_once(make_client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A batch that waits for a connection says so once each time, however many jobs wait for it."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    emulator.faults.add(faults.refused(), route=ROUTE, nth=tuple(range(1, 30)))
    knouds = make_client(emulator)
    async with knouds.workflows.map(SLUG, jobs(20)) as outcomes:
        assert reasons([outcome async for outcome in outcomes]) == {"Completed": 20}
    assert len([record for record in caplog.records if "can be reached" in record.getMessage()]) == 1


async def test_a_longer_pause_may_be_allowed(make_client: Any) -> None:
    """With `Retries(longest=...)` a day is waited for."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    emulator.faults.add(pause(86_400), route=ROUTE, nth=1)
    knouds = make_client(emulator, retries=Retries(longest=100_000))
    began = anyio.current_time()
    async with knouds.workflows.map(SLUG, jobs(3)) as outcomes:
        assert reasons([outcome async for outcome in outcomes]) == {"Completed": 3}
    assert anyio.current_time() - began > 86_000
