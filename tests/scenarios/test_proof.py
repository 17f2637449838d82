"""When a lost submit may be sent again: only where it is proven that it began no run. In virtual time."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import attrs
import httpx
import pytest

from knouds_async import AsyncKnouds, Job, LedgerError, Outcome, SubmissionUnknownError, Timeouts, Unknown
from knouds_async._sansio.ledger import Accepted, Ended, Ending, Entry, NoneFound, Sending, Stage
from knouds_async.ledgers import Claim, Claimed
from knouds_async.testing import ApiKey, Emulator, faults
from knouds_async.testing.transport import EmulatorTransport
from tests.batch.in_loop import InLoopLedger

SLUG = "my-thumbnail-pipeline"
ROUTE = "POST /api/workflows/:slug/run"


class _Machine:
    """The clocks of a machine that can sleep, and be set; the event loop's stands still meanwhile."""

    CLOCK_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", 7)

    def __init__(self) -> None:
        self.frozen = self.slept = self.stepped = 0.0  # seconds

    def monotonic(self) -> float:
        return time.monotonic() + self.frozen

    def clock_gettime(self, clock: int) -> float:
        return time.monotonic() + self.frozen + self.slept

    def time(self) -> float:
        return time.time() + self.frozen + self.slept + self.stepped


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> _Machine:
    """Return the machine that the library runs on."""
    machine = _Machine()
    monkeypatch.setattr("knouds_async._io.concurrency.time", machine)
    return machine


@pytest.fixture
def emulator() -> Emulator:
    """Return a service without limits."""
    return Emulator(tier="enterprise", duration=5.0)


@pytest.fixture
def knouds(make_client: Any, emulator: Emulator) -> AsyncKnouds:
    """Return a client of it."""
    client: AsyncKnouds = make_client(emulator)
    return client


async def run(knouds: AsyncKnouds, ledger: Any, count: int, **options: Any) -> list[Outcome]:
    """Run jobs one after the other."""
    jobs = [Job(f"job-{number}", {"product_name": f"job-{number}"}) for number in range(count)]
    options = {"ordered": True, "max_in_flight": 1, **options}
    async with knouds.workflows.map(SLUG, jobs, ledger=ledger, **options) as outcomes:
        return [outcome async for outcome in outcomes]


def kinds(outcomes: list[Outcome]) -> Counter[str]:
    """Count outcomes by their kind."""
    return Counter(type(outcome).__name__ for outcome in outcomes)


def why(outcome: Outcome) -> str:
    """Return what an unknown outcome says."""
    assert isinstance(outcome, Unknown)
    return str(outcome.error)


async def sent(ledger: Any, key: str) -> Entry:
    """Return a job's entry."""
    entry: Entry = await ledger.find(key)
    return entry


class _Locked(InLoopLedger):
    """A ledger that another process holds locked for a while when the second job's intent is to be written."""

    async def claim(self, claim: Claim) -> Claimed:
        if claim.key == "job-1":
            await anyio.sleep(130.0)
        return await super().claim(claim)


async def test_an_intent_that_waited_for_a_lock_is_searched_from_before_the_wait(
    knouds: AsyncKnouds, emulator: Emulator, path: Path
) -> None:
    """The ledger is locked for minutes while the intent is written and the answer is lost: the run is found."""
    ledger = _Locked(path)
    emulator.faults.add(faults.closed(after_run=True), route=ROUTE, nth=2)
    assert kinds(await run(knouds, ledger, 2)) == {"Completed": 1, "Unknown": 1}
    await anyio.sleep(400)
    found = await run(knouds, ledger, 2)
    assert "could be it" in why(found[1])
    assert len(emulator.runs) == 2


@pytest.mark.parametrize("what", ["frozen", "slept", "stepped"])
async def test_an_old_intent_sends_nothing(
    what: str, knouds: AsyncKnouds, emulator: Emulator, path: Path, machine: _Machine
) -> None:
    """A process that stops or sleeps between intent and first byte writes its intent anew; one run comes of it."""

    class Late(InLoopLedger):
        claims = 0

        async def claim(self, claim: Claim) -> Claimed:
            claimed = await super().claim(claim)
            self.claims += 1
            if self.claims == 2:
                setattr(machine, what, 31.0)
            return claimed

    ledger = Late(path)
    assert kinds(await run(knouds, ledger, 2, max_in_flight=1)) == {"Completed": 2}
    assert ledger.claims == 3
    emulator.assert_charged_once()


async def test_a_freeze_is_not_reported_as_a_service_that_is_away(
    emulator: Emulator, ledger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A submit whose claim grew old before its first byte is claimed anew at once, and the log says so."""
    caplog.set_level("INFO", "knouds_async")

    async def freeze(request: httpx.Request) -> None:
        if request.method == "POST":
            submits.append(request)
            await anyio.sleep(130.0 if len(submits) == 1 else 0.0)

    submits, timeouts = list[httpx.Request](), Timeouts(submit=200.0)
    async with (
        httpx.AsyncClient(transport=EmulatorTransport(emulator), event_hooks={"request": [freeze]}) as http,
        AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http, timeouts=timeouts) as knouds,
    ):
        assert kinds(await run(knouds, ledger, 1)) == {"Completed": 1}
    assert len(submits) == 2
    (said,) = [record for record in caplog.records if record.levelname in ("INFO", "WARNING")]
    assert "its claim was 130 s old, and one older than 30 s is made anew" in said.getMessage()
    emulator.assert_charged_once()


async def test_after_a_sleep_the_service_is_asked_for_its_time(
    knouds: AsyncKnouds, emulator: Emulator, ledger: Any, machine: _Machine
) -> None:
    """A laptop sleeps for eight hours, and the first submit after it loses its answer: its run is found."""
    assert kinds(await run(knouds, ledger, 1)) == {"Completed": 1}
    machine.slept = 8 * 3600.0
    emulator._service.clock._epoch += 8 * 3600.0
    emulator.faults.add(faults.closed(after_run=True), route=ROUTE)
    asked = sum(each.path == "/api/whoami" for each in emulator.requests)
    assert kinds(await run(knouds, ledger, 2, validate=False)) == {"Completed": 1, "Unknown": 1}
    assert sum(each.path == "/api/whoami" for each in emulator.requests) == asked + 1
    await anyio.sleep(400)
    assert "could be it" in why((await run(knouds, ledger, 2))[1])
    assert len(emulator.runs) == 2


@pytest.mark.parametrize("what", ["no date", "a cache's date"])
async def test_a_submit_that_nothing_dates_is_never_sent_again(what: str, emulator: Emulator, ledger: Any) -> None:
    """Where no answer has a date, or only a cache's do, a lost submit stays unknown, and the outcome says why."""

    async def keep(response: httpx.Response) -> None:
        if what == "no date":
            response.headers.pop("date", None)
        else:
            response.headers["age"] = "3000"

    hooks = {"response": [keep]}
    async with (
        httpx.AsyncClient(transport=EmulatorTransport(emulator), event_hooks=hooks) as http,
        AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http) as knouds,
    ):
        emulator.faults.add(faults.closed(), route=ROUTE, nth=2)
        assert kinds(await run(knouds, ledger, 2)) == {"Completed": 1, "Unknown": 1}
        await anyio.sleep(400)
        assert "is not known by the service's clock" in why((await run(knouds, ledger, 2))[1])
    assert len(emulator.runs) == 1


async def test_another_account_proves_nothing(make_client: Any, ledger: Any) -> None:
    """A pass with the key of another account is refused before anything is sent, and proves nothing once allowed."""
    other = ApiKey("knouds_live_other_0123456789", user="u_other")
    emulator = Emulator(tier="enterprise", duration=5.0, keys=[*Emulator().keys, other])
    emulator.faults.add(faults.closed(after_run=True), route=ROUTE, nth=2)
    assert kinds(await run(make_client(emulator), ledger, 2)) == {"Completed": 1, "Unknown": 1}
    await anyio.sleep(400)
    stranger = make_client(emulator, api_key=other.text)
    requests = len(emulator.requests)
    with pytest.raises(LedgerError, match=r"account u_other .*rebind"):
        await run(stranger, ledger, 3, validate=False)
    assert [each.path for each in list(emulator.requests)[requests:]] == ["/api/whoami"]
    await ledger.rebind()
    found = await run(stranger, ledger, 2, validate=False)
    assert kinds(found) == {"Completed": 1, "Unknown": 1}
    assert "not known to be a submit of this account" in why(found[1])
    assert len(emulator.runs) == 2


async def test_what_one_service_ran_is_not_run_for_the_other(emulator: Emulator, ledger: Any) -> None:
    """What an emulator completed is never taken for a run of the service: another base URL is refused."""
    async with httpx.AsyncClient(transport=EmulatorTransport(emulator)) as http:
        for url in ("https://one.test", "https://two.test"):
            async with AsyncKnouds(emulator.api_key, base_url=url, http_client=http) as knouds:
                if url == "https://one.test":
                    assert kinds(await run(knouds, ledger, 1)) == {"Completed": 1}
                    continue
                with pytest.raises(LedgerError, match=r"at https://one.test, and this is .* at https://two.test"):
                    await run(knouds, ledger, 2)
    assert len(emulator.runs) == 1


async def test_a_search_asks_for_the_time_where_nothing_else_has_told_it(make_client: Any, ledger: Any) -> None:
    """A pass that sends nothing new, hours later on the same client, proves as much as one of a new client."""
    emulator = Emulator(tier="business", duration=5.0)
    emulator.faults.add(faults.reset(), route="POST /api/models/:internalName/run", nth=2)
    knouds = make_client(emulator)
    for number, expected in enumerate(({"Completed": 1, "Unknown": 1}, {"Completed": 2})):
        jobs = [Job(f"job-{each}", {"prompt": str(each)}) for each in range(2)]
        async with knouds.models.map("suno-v5", jobs, ledger=ledger, max_in_flight=1) as outcomes:
            assert kinds([outcome async for outcome in outcomes]) == expected
        await anyio.sleep(7200.0 * (number + 1))
    assert len(emulator.runs) == 2


class _Cache(EmulatorTransport):
    """A cache in between that keeps the listing as it was once."""

    kept: httpx.Response | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/usage" and self.kept is not None:
            return httpx.Response(200, headers=self.kept.headers, content=self.kept.content)
        return await super().handle_async_request(request)


async def test_rows_that_a_cache_has_kept_prove_nothing(emulator: Emulator, ledger: Any) -> None:
    """A listing from before the submit, which shows a known run, is no proof of its absence minutes later."""
    emulator.faults.add(faults.closed(after_run=True), route=ROUTE, nth=2)
    async with (
        httpx.AsyncClient(transport=(cache := _Cache(emulator))) as http,
        AsyncKnouds(emulator.api_key, base_url="https://one.test", http_client=http) as knouds,
    ):
        assert kinds(await run(knouds, ledger, 1)) == {"Completed": 1}
        cache.kept = await http.get("https://one.test/api/usage", headers={"x-api-key": emulator.api_key})
        await anyio.sleep(60)
        assert kinds(await run(knouds, ledger, 2)) == {"Completed": 1, "Unknown": 1}
        await anyio.sleep(400)
        found = await run(knouds, ledger, 2)
    assert "may be 120 s late" in why(found[1])
    assert len(emulator.runs) == 2


async def test_the_same_service_in_another_spelling_is_not_refused(emulator: Emulator, ledger: Any) -> None:
    """A slash, the usual port or capitals make no other service: the batch continues, and proofs are made."""
    emulator.faults.add(faults.reset(), route=ROUTE, nth=2)
    async with httpx.AsyncClient(transport=EmulatorTransport(emulator)) as http:
        for url in ("https://one.test", "HTTPS://One.test:443/"):
            async with AsyncKnouds(emulator.api_key, base_url=url, http_client=http) as knouds:
                found = await run(knouds, ledger, 2)
            await anyio.sleep(400)
    assert kinds(found) == {"Completed": 2}
    assert len(emulator.runs) == 2


async def test_the_run_of_an_earlier_attempt_is_no_receipt(make_client: Any, ledger: Any) -> None:
    """An answer that names the run of the same job's first attempt, which failed, is not that of the second."""
    emulator = Emulator(tier="enterprise", duration=5.0, failure_rate=1.0)
    knouds = make_client(emulator)
    assert kinds(await run(knouds, ledger, 1)) == {"Failed": 1}
    assert await ledger.retry_failed() == 1
    first = emulator.runs[0].execution_id
    entry = await sent(ledger, "job-0")
    owner = await ledger.join()
    claim = Claim(key="job-0", target=entry.target, digest=entry.digest, sending=Sending(owner=owner, sent_at=1.0))
    await ledger.claim(claim)
    written = await ledger.record("job-0", 2, Accepted(owner=owner, execution_id=first))
    assert (written.entry.stage, written.entry.execution_id) == (Stage.UNKNOWN, None)
    assert first in (written.entry.note or "")
    again = await ledger.record("job-0", 2, Accepted(owner=owner, execution_id="another"))
    assert again.entry.stage is Stage.SUBMITTED


async def test_a_listing_that_shows_no_known_run_proves_nothing(
    knouds: AsyncKnouds, emulator: Emulator, ledger: Any
) -> None:
    """The very first job of an account is lost: an empty listing could be of any account, and proves nothing."""
    emulator.faults.add(faults.closed(), route=ROUTE, nth=1)
    await run(knouds, ledger, 1)
    await anyio.sleep(400)
    found = await run(knouds, ledger, 1)
    assert "no run of workflows/my-thumbnail-pipeline that is known" in why(found[0])
    assert not emulator.runs


async def test_one_whose_owner_is_gone_is_bounded_when_that_is_found_out(
    knouds: AsyncKnouds, emulator: Emulator, ledger: Any
) -> None:
    """Rows have two minutes from then on, for it is not known how long the request was under way."""
    await run(knouds, ledger, 1)
    emulator.faults.add(faults.stalled(), route=ROUTE)
    with anyio.move_on_after(3.0):
        await run(knouds, ledger, 2)
    entry = await sent(ledger, "job-1")
    assert entry.stage is Stage.UNKNOWN
    store = ledger._database
    store.transact([lambda opened: opened._save(_gone(entry))])
    await anyio.sleep(1000)
    emulator.faults.clear()
    assert "may still come for 12" in why((await run(knouds, ledger, 2))[1])
    await anyio.sleep(60)
    assert "may still come for 6" in why((await run(knouds, ledger, 2))[1])
    await anyio.sleep(70)
    assert kinds(await run(knouds, ledger, 2)) == {"Completed": 2}
    emulator.assert_charged_once()


async def test_a_search_leaves_what_another_batch_is_sending_by_now(emulator: Emulator, ledger: Any) -> None:
    """While a batch asks for the time, another proves that there was no run and sends: the job is that one's."""

    async def keep(response: httpx.Response) -> None:
        response.headers.pop("date", None)

    hooks = {"response": [keep]}
    async with (
        httpx.AsyncClient(transport=EmulatorTransport(emulator), event_hooks=hooks) as http,
        AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http) as knouds,
    ):
        emulator.faults.add(faults.closed(), route=ROUTE, nth=1)
        assert kinds(await run(knouds, ledger, 1)) == {"Unknown": 1}
        emulator.faults.add(faults.stalled(300.0), route="GET /api/whoami", nth=1)
        await anyio.sleep(400)
        found, other = list[Outcome](), await ledger.join()
        async with anyio.create_task_group() as tasks:

            async def consume() -> None:
                found.extend(await run(knouds, ledger, 1))

            tasks.start_soon(consume)
            await anyio.sleep(5)
            lost = await sent(ledger, "job-0")
            await ledger.record("job-0", 1, NoneFound(lost.sent_at))
            sending = Sending(owner=other, sent_at=1e9, reserve=12)
            await ledger.claim(Claim(key="job-0", target=lost.target, digest=lost.digest, sending=sending))
            await anyio.sleep(600)
            assert not found
            assert (await sent(ledger, "job-0")).stage is Stage.SENDING
            await ledger.record("job-0", 1, Ended(Ending(status="failed", code="X", message="said so")))
    assert kinds(found) == {"Failed": 1}
    assert not emulator.runs


def _gone(entry: Entry) -> Entry:
    """Return an entry as it is when its process was found dead by somebody who knew no time."""
    return attrs.evolve(entry, until=None, owner=None, note="its process ended before the answer")


async def test_a_synchronous_run_has_the_time_that_it_may_take(make_client: Any, ledger: Any) -> None:
    """Nothing is proven of a synchronous run before its timeout has passed, for its row may come with its end."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    knouds = make_client(emulator, timeouts=Timeouts(run=600.0))
    emulator.faults.add(faults.closed(), route=ROUTE, nth=3)  # the first finds out that it cannot be polled
    jobs = [Job(f"job-{number}", {"prompt": f"job-{number}"}) for number in range(2)]
    async with knouds.workflows.map("fast-sketch", jobs, ledger=ledger, max_in_flight=1) as outcomes:
        found = [outcome async for outcome in outcomes]
    assert kinds(found)["Unknown"] == 1
    (entry,) = await ledger.unknown()
    assert entry.lasts == 600.0
    assert entry.may_have_begun is not None
    assert entry.may_have_begun[1] - entry.may_have_begun[0] >= 600.0


@pytest.mark.parametrize(("latency", "stalled"), [(0.04, 0.0), (1.0, 0.0), (5.0, 0.0), (0.04, 20.0)])
async def test_a_search_beside_submits_is_settled_in_the_same_batch(
    latency: float, stalled: float, make_client: Any, ledger: Any
) -> None:
    """Its rows show runs that were not known when it began, and some whose answers are on their way: all are known."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    knouds = make_client(emulator, latency=latency)
    emulator.faults.add(faults.closed(), route=ROUTE, nth=(2, 3, 4))
    assert kinds(await run(knouds, ledger, 60, max_in_flight=20)) == {"Completed": 57, "Unknown": 3}
    await anyio.sleep(400)
    emulator.faults.add(faults.stalled(stalled, after_run=True), route=ROUTE)
    found = await run(knouds, ledger, 200, max_in_flight=20)
    assert [why(outcome) for outcome in found if isinstance(outcome, Unknown)] == []
    assert len(emulator.runs) == 200


async def test_a_search_for_a_submission_beside_others_knows_those(make_client: Any, emulator: Emulator) -> None:
    """What this client submits while the rows are read accounts for the rows of it that they show."""
    knouds = make_client(emulator, latency=2.0)
    emulator.faults.add(faults.closed(), route=ROUTE, nth=31)
    for number in range(30):
        await knouds.workflows.submit(SLUG, {"product_name": f"{number}"})
    with pytest.raises(SubmissionUnknownError) as caught:
        await knouds.workflows.submit(SLUG, {"product_name": "lost"})
    await anyio.sleep(400)
    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(knouds.workflows.submit, SLUG, {"product_name": f"{number}"})
        await anyio.sleep(1)
        search = await knouds.usage.find_submission(caught.value)
        assert search.reasons == ()
        assert search.is_certainly_none
