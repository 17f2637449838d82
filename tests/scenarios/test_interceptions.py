"""Answers that are not the service's own: one unknown and not thousands, and no run is taken for another job's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest

from knouds_async import (
    AsyncKnouds,
    Completed,
    Job,
    NotRun,
    Outcome,
    Unknown,
)
from knouds_async._sansio.ledger import Stage
from knouds_async.errors import PermissionDeniedError
from knouds_async.testing import Emulator, EmulatorTransport, Fault, Response, faults

SLUG = "my-thumbnail-pipeline"
ROUTE = "POST /api/workflows/:slug/run"
PAGE = {"content-type": "text/html", "server": "squid/6.1"}

Alter = Callable[[httpx.Request, httpx.Response], httpx.Response | None]


def kinds(outcomes: list[Outcome]) -> Counter[str]:
    """Count outcomes by their kind, and those that were not run by their reason."""
    return Counter(each.reason if isinstance(each, NotRun) else type(each).__name__ for each in outcomes)


def jobs(count: int) -> list[Job]:
    """Return jobs with keys of their own."""
    return [Job(f"job-{number}", {"product_name": f"Product {number}"}) for number in range(count)]


async def run(knouds: AsyncKnouds, ledger: Any, count: int = 200) -> list[Outcome]:
    """Run a batch to its end."""
    async with knouds.workflows.map(SLUG, jobs(count), ledger=ledger, validate=False) as outcomes:
        return [outcome async for outcome in outcomes]


STRANGERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "firewall": (403, PAGE, b"<html>denied</html>"),
    "see other": (303, {"location": "https://login.test/"}, b""),
    "cache": (304, {"via": "1.1 cache"}, b""),
    "load balancer": (460, {"server": "awselb/2.0"}, b""),
    "portal": (200, PAGE, b"<html>Welcome</html>"),
    "gateway": (403, {"content-type": "application/json"}, b'{"message": "Forbidden"}'),
    "teapot": (418, {}, b'{"error": "I am a teapot"}'),
    "limit of a cdn": (429, {"content-type": "text/html"}, b"<html>slow down</html>"),
}


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("nth", [1, 20])
async def test_a_stranger_costs_one_unknown(
    stranger: str, nth: int, make_client: Any, ledger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The first answer of somebody else ends the submitting; the rest is not run, says who answered, and stays new."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    status, headers, body = STRANGERS[stranger]
    fault = Fault("stranger", "after", lambda _: Response(status, headers, body))
    emulator.faults.add(fault, route=ROUTE, nth=nth)
    knouds = make_client(emulator)
    async with knouds.workflows.map(SLUG, jobs(60), ledger=ledger, validate=False, max_in_flight=20) as outcomes:
        found = [outcome async for outcome in outcomes]
    counted = kinds(found)
    assert counted["Unknown"] == 1
    assert counted["Completed"] + counted["intercepted"] == 59
    assert counted["intercepted"] >= 20
    (unknown,) = [outcome for outcome in found if isinstance(outcome, Unknown)]
    assert unknown.error.may_have_run
    for outcome in found:
        if isinstance(outcome, NotRun):
            assert str(status) in str(outcome.error)
            assert "firewall" in str(outcome.error)
            entry = await ledger.find(outcome.job.key)
            assert entry is None or entry.stage is Stage.NEW
    assert len([record for record in caplog.records if "in its place" in record.getMessage()]) == 1
    assert kinds(await run(knouds, ledger, 60)) == {"Completed": 59, "Unknown": 1}
    emulator.assert_charged_once()


async def test_a_ledger_is_not_bound_by_the_word_of_somebody_in_between(make_client: Any, ledger: Any) -> None:
    """A firewall's page in answer to whose key it is ends the batch before anything is sent, and binds nothing."""
    emulator = Emulator(tier="enterprise", duration=1.0)
    page = Fault("firewall", "before", lambda _: Response(403, PAGE, b"<html>denied</html>"))
    emulator.faults.add(page, route="GET /api/whoami")
    knouds = make_client(emulator)
    with pytest.raises(PermissionDeniedError, match="Check what stands in between"):
        await run(knouds, ledger, 2)
    assert not emulator.runs
    emulator.faults.clear()
    assert kinds(await run(knouds, ledger, 2)) == {"Completed": 2}
    assert (await ledger.find("job-0")).account == "u_knouds https://knouds.test"


async def test_a_gateway_that_finds_the_service_away_is_borne_a_few_times(make_client: Any, ledger: Any) -> None:
    """A 502 now and then costs its own job alone; one after the other end the submitting."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    emulator.faults.add(faults.bad_gateway(), route=ROUTE, nth=(5, 10, 15))
    knouds = make_client(emulator)
    async with knouds.workflows.map(SLUG, jobs(60), ledger=ledger, max_in_flight=1) as outcomes:
        assert kinds([outcome async for outcome in outcomes]) == {"Completed": 57, "Unknown": 3}
    emulator.faults.add(faults.bad_gateway(), route=ROUTE)
    later = [Job(f"later-{number}", {"product_name": "x"}) for number in range(60)]
    async with knouds.workflows.map(SLUG, later, ledger=ledger, max_in_flight=1) as outcomes:
        assert kinds([outcome async for outcome in outcomes]) == {"Unknown": 5, "intercepted": 55}


class Altered(httpx.AsyncBaseTransport):
    """An emulator whose answers may be others by the time they arrive."""

    def __init__(self, emulator: Emulator, alter: Alter) -> None:
        self._inner = EmulatorTransport(emulator, latency=0.04)
        self._alter = alter

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Carry a request, and give its answer or another."""
        answer = await self._inner.handle_async_request(request)
        await answer.aread()
        return self._alter(request, answer) or answer


def client(emulator: Emulator, alter: Alter) -> AsyncKnouds:
    """Make a client whose answers are altered."""
    http = httpx.AsyncClient(transport=Altered(emulator, alter))
    return AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http)


def an_earlier_receipt(number: int) -> Alter:
    """Answer submit `number` with the receipt of the first."""
    receipts: list[bytes] = []

    def alter(request: httpx.Request, answer: httpx.Response) -> httpx.Response | None:
        if request.method != "POST" or "/run" not in request.url.path:
            return None
        receipts.append(answer.content)
        stray = len(receipts) == number
        return httpx.Response(200, content=receipts[0], headers={"content-type": "application/json"}) if stray else None

    return alter


async def test_one_run_is_not_two_jobs(ledger: Any) -> None:
    """A receipt that another job was given leaves the job unknown, names the other, and ends the submitting."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    knouds = client(emulator, an_earlier_receipt(3))
    async with knouds.workflows.map(SLUG, jobs(10), ledger=ledger, max_in_flight=1, validate=False) as outcomes:
        found = [outcome async for outcome in outcomes]
    assert kinds(found) == {"Completed": 2, "Unknown": 1, "intercepted": 7}
    entry = await ledger.find("job-2")
    assert entry is not None
    assert (entry.stage, entry.execution_id) == (Stage.UNKNOWN, None)
    assert entry.note is not None
    assert "'job-0'" in entry.note
    runs = [outcome.execution_id for outcome in found if isinstance(outcome, Completed)]
    assert len(set(runs)) == 2


async def test_a_ledger_refuses_the_run_of_another_job(ledger: Any) -> None:
    """The same in another process that knows nothing of the first: the ledger knows whose run it is."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    kept: list[bytes] = []

    def alter(request: httpx.Request, answer: httpx.Response) -> httpx.Response | None:
        if request.method != "POST" or "/run" not in request.url.path:
            return None
        kept.append(answer.content)
        return httpx.Response(200, content=kept[0], headers={"content-type": "application/json"})

    assert kinds(await run(client(emulator, alter), ledger, 1)) == {"Completed": 1}
    found = await run(client(emulator, alter), ledger, 3)
    assert kinds(found) == {"Completed": 1, "Unknown": 1, "intercepted": 1}
    (unknown,) = [outcome for outcome in found if isinstance(outcome, Unknown)]
    assert "'job-0'" in str(unknown.error)
    assert unknown.execution_id is None


async def test_no_job_completes_with_the_result_of_another() -> None:
    """A poll that is answered with another run's body is repeated, and each job gets the result of its own run."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    ends: list[bytes] = []

    def alter(request: httpx.Request, answer: httpx.Response) -> httpx.Response | None:
        if request.method != "GET" or "/executions/" not in request.url.path:
            return None
        if json.loads(answer.content).get("status") == "completed":
            ends.append(answer.content)
        is_stray = bool(ends) and len(ends) % 3 == 2 and ends[0] not in (answer.content,)
        if is_stray:
            ends.append(b"")
            return httpx.Response(200, content=ends[0], headers={"content-type": "application/json"})
        return None

    knouds = client(emulator, alter)
    async with knouds.workflows.map(SLUG, jobs(20)) as outcomes:
        found = [outcome async for outcome in outcomes]
    assert kinds(found) == {"Completed": 20}
    assert b"" in ends
    made = {run.execution_id: run.inputs["product_name"] for run in emulator.runs}
    for outcome in found:
        assert isinstance(outcome, Completed)
        assert outcome.run.raw["executionId"] == outcome.execution_id
        assert made[str(outcome.execution_id)] == outcome.job.inputs["product_name"]


async def test_a_stop_while_an_answer_is_written_does_not_deny_the_run(make_client: Any, ledger: Any) -> None:
    """A job whose receipt is being written when the batch is stopped is not reported as not run."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    knouds, record = make_client(emulator), ledger.record

    async def slow(*event: Any) -> Any:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1.0)
        return await record(*event)

    ledger.record = slow
    async with knouds.workflows.map(SLUG, jobs(1), ledger=ledger, validate=False) as outcomes:
        await anyio.sleep(0.6)
        assert len(emulator.runs) == 1
        outcomes.stop()
        assert kinds([outcome async for outcome in outcomes]) == {"Completed": 1}
