"""A batch on a ledger over hours: searches, budgets, several owners; in virtual time, with the ledger in the loop."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import attrs
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knouds_async import (
    AsyncKnouds,
    AsyncNotSupportedError,
    Completed,
    InsufficientCreditsError,
    Job,
    KnoudsError,
    LedgerError,
    NotFoundError,
    NotRun,
    Outcome,
    Progress,
    Retries,
    SQLiteLedger,
    SubmissionUnknownError,
    Timeouts,
    Unknown,
)
from knouds_async._batch.ledger import Claim
from knouds_async._sansio.ledger import Accepted, Ended, Ending, NoRun, PickedUp, Sending, Stage
from knouds_async.testing import Emulator, Fault, Response, faults
from knouds_async.testing.transport import EmulatorTransport
from tests.batch.in_loop import InLoopLedger

SLUG = "my-thumbnail-pipeline"
ROUTE = "POST /api/workflows/:slug/run"


def jobs(count: int) -> list[Job]:
    """Return jobs with keys of their own."""
    return [Job(f"job-{number}", {"product_name": f"job-{number}"}) for number in range(count)]


async def run(knouds: AsyncKnouds, ledger: Any, count: int, **options: Any) -> list[Outcome]:
    """Run a batch to its end."""
    async with knouds.workflows.map(SLUG, jobs(count), ledger=ledger, **options) as outcomes:
        return [outcome async for outcome in outcomes]


def kinds(outcomes: list[Outcome]) -> Counter[str]:
    """Count outcomes by their kind and reason."""
    return Counter(str(getattr(outcome, "reason", type(outcome).__name__)) for outcome in outcomes)


# Unknown submits.


async def test_what_the_service_refuses_makes_no_ledger(knouds: Any, path: Path) -> None:
    """A workflow that nobody has leaves no file of a new ledger, with a path and with a ledger that was made for it."""
    for ledger in (path, SQLiteLedger(path)):
        with pytest.raises(NotFoundError):
            await knouds.workflows.gather("no-such", jobs(1), ledger=ledger)
    assert not list(path.parent.iterdir())


async def test_a_batch_that_cannot_begin_leaves_its_ledger(knouds: Any, ledger: Any) -> None:
    """An owner that has joined before the service refused is ended: none stays for as long as the process lives."""
    await run(knouds, ledger, 1)
    owners, join, leave = list[str](), ledger.join, ledger.leave

    async def join_noted() -> str:
        owners.append(await join())
        return owners[-1]

    async def leave_noted(owner: str) -> None:
        owners.remove(owner)
        await leave(owner)
        owners.append("gone")

    ledger.join, ledger.leave = join_noted, leave_noted
    with pytest.raises(NotFoundError):
        await knouds.workflows.gather("no-such", jobs(1), ledger=ledger)
    assert owners == ["gone"]


async def test_a_path_that_no_file_can_have_is_a_ledger_error(knouds: Any, emulator: Emulator, path: Path) -> None:
    """A name that is too long is refused as any ledger that cannot be used, and nothing is submitted."""
    with pytest.raises(LedgerError, match="cannot be used: File name too long"):
        await knouds.workflows.gather(SLUG, jobs(1), ledger=path.with_name("a" * 300))
    assert not emulator.runs


async def test_an_unknown_that_surely_began_no_run_is_sent(knouds: Any, emulator: Emulator, ledger: Any) -> None:
    """When the usage rows prove that there was none, the next batch sends it; before that can be known it stays."""
    emulator.faults.add(faults.closed(), route=ROUTE, nth=(2, 3))
    assert kinds(await run(knouds, ledger, 5)) == {"Completed": 3, "Unknown": 2}
    await anyio.sleep(10)
    assert kinds(await run(knouds, ledger, 5)) == {"Completed": 3, "Unknown": 2}
    await anyio.sleep(180)
    assert kinds(await run(knouds, ledger, 5)) == {"Completed": 5}
    emulator.assert_charged_once()


async def test_an_unknown_that_may_have_begun_one_stays(knouds: Any, emulator: Emulator, ledger: Any) -> None:
    """A usage row that could be it keeps it unknown for ever; rows of runs that are accounted for do not."""
    emulator.faults.add(faults.closed(after_run=True), route=ROUTE, nth=2)
    for _ in range(3):
        found = await run(knouds, ledger, 5)
        assert kinds(found) == {"Completed": 4, "Unknown": 1}
        await anyio.sleep(400)
    assert len(emulator.runs) == 5


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_whatever_goes_wrong_no_job_runs_twice(seed: int, make_client: Any, ledger: Any) -> None:
    """Lost answers, resets, 5xx and stalls on every route: each job ends or is unknown, and is paid for once."""
    emulator = Emulator(tier="business", duration=20.0, seed=seed)
    for fault in (
        faults.reset(after_run=True),
        faults.closed(),
        faults.bad_gateway(),
        faults.stalled(),
        faults.refused(),
    ):
        emulator.faults.add(fault, probability=0.03)
    emulator.faults.add(faults.service_error(), route=ROUTE, probability=0.05)
    emulator.faults.add(faults.rate_limited(), route=ROUTE, probability=0.05)
    emulator.faults.add(faults.truncated(), route=ROUTE, probability=0.05)
    knouds, found = make_client(emulator), list[Outcome]()
    for _ in range(4):
        with anyio.move_on_after(60.0):
            await run(knouds, ledger, 60, validate=False, max_in_flight=25)
        await anyio.sleep(200)
    found = await run(knouds, ledger, 60, validate=False)
    counted = kinds(found)
    assert counted["Completed"] + counted["Unknown"] == 60
    assert counted["Completed"] > 40
    counts = await ledger.counts()
    assert (counts.completed, counts.unknown, counts.sending) == (counted["Completed"], counted["Unknown"], 0)
    emulator.assert_charged_once()


async def test_a_run_whose_id_came_in_half_an_answer_is_waited_for(
    knouds: Any, emulator: Emulator, ledger: Any
) -> None:
    """The id is on record though the rest of the receipt did not come, and the run is picked up like any other."""
    emulator.faults.add(faults.truncated(), route=ROUTE, nth=(1, 3))
    with anyio.move_on_after(5.0):
        await run(knouds, ledger, 4)
    assert {run.execution_id for run in emulator.runs} == {
        entry.execution_id for number in range(4) if (entry := await ledger.find(f"job-{number}"))
    }
    assert kinds(await run(knouds, ledger, 4)) == {"Completed": 4}
    emulator.assert_charged_once()


async def test_a_submit_that_waited_long_is_dated_anew(make_client: Any, emulator: Emulator, ledger: Any) -> None:
    """The service's time is asked for again after a long wait in line: nothing proves a submit without a date."""
    knouds = make_client(emulator, retries=Retries(longest=1000.0))
    assert kinds(await run(knouds, ledger, 1)) == {"Completed": 1}
    pause = Response(429, {"retry-after": "900"}, b'{"error": "slow down", "code": "RATE_LIMIT_EXCEEDED"}')
    emulator.faults.add(Fault("a pause", "before", lambda _: pause), route=ROUTE, nth=1)
    emulator.faults.add(faults.closed(), route=ROUTE, nth=2)
    assert kinds(await run(knouds, ledger, 2)) == {"Completed": 1, "Unknown": 1}
    await anyio.sleep(180)
    assert kinds(await run(knouds, ledger, 2)) == {"Completed": 2}
    emulator.assert_charged_once()


async def test_a_search_proves_nothing_of_a_later_submit(make_client: Any, emulator: Emulator, ledger: Any) -> None:
    """Two batches search for one unknown; the first sends it, it is lost again, and the second leaves it unknown."""
    emulator.faults.add(faults.closed(), route=ROUTE, nth=2)
    emulator.faults.add(faults.closed(after_run=True), route=ROUTE, nth=3)
    quick, slow = make_client(emulator, latency=0.01), make_client(emulator, latency=5.0)
    for knouds in (quick, slow):
        await knouds.health()  # tells the service's clock
    assert kinds(await run(quick, ledger, 2, validate=False)) == {"Completed": 1, "Unknown": 1}
    await anyio.sleep(300)
    found: list[Outcome] = []

    async def search(knouds: AsyncKnouds) -> None:
        found.extend(await run(knouds, ledger, 2, validate=False))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(search, slow)
        await anyio.sleep(1)
        tasks.start_soon(search, quick)
    assert kinds(found) == {"Completed": 2, "Unknown": 2}
    assert len(emulator.runs) == 2


async def test_a_run_that_cannot_be_polled_keeps_no_other_batch_waiting(
    make_client: Any, emulator: Emulator, path: Path
) -> None:
    """Two batches take two jobs in opposite order and each gives one up: both end, with both unknown."""
    emulator.faults.add(faults.not_found(), route="GET /api/executions/:id")
    found: list[list[Outcome]] = []

    async def one(order: list[Job]) -> None:
        ledger = InLoopLedger(path)
        async with make_client(emulator).workflows.map(SLUG, order, ledger=ledger, max_in_flight=1) as outcomes:
            found.append([outcome async for outcome in outcomes])
        assert ledger._database is not None
        ledger._database.close()

    with anyio.fail_after(10_000):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, jobs(2))
            tasks.start_soon(one, jobs(2)[::-1])
    assert [kinds(each) for each in found] == [{"Unknown": 2}] * 2
    emulator.assert_charged_once()


async def test_a_search_that_fails_leaves_it_unknown(knouds: Any, emulator: Emulator, ledger: Any) -> None:
    """When usage cannot be read the job stays unknown, and the batch continues."""
    emulator.faults.add(faults.closed(), route=ROUTE, nth=1)
    await run(knouds, ledger, 2)
    await anyio.sleep(400)
    emulator.faults.add(faults.bad_gateway(), route="GET /api/usage")
    assert kinds(await run(knouds, ledger, 3)) == {"Completed": 2, "Unknown": 1}


async def test_a_submit_whose_end_cannot_be_written_keeps_no_search_waiting(
    knouds: Any, emulator: Emulator, ledger: Any
) -> None:
    """Where the ledger fails as a submit that left the line is settled, nothing of it is in flight for a search."""
    emulator.faults.add(faults.closed(after_run=True), route=ROUTE, nth=1)
    await run(knouds, ledger, 1)
    await anyio.sleep(400)
    batch, claim, record = knouds.workflows.map(SLUG, jobs(2), ledger=ledger), ledger.claim, ledger.record
    lost, withheld = [prepared async for prepared in batch._reader]

    async def claim_and_stop(wanted: Claim) -> Any:
        written = await claim(wanted)
        batch.stop()
        return written

    async def fail(key: str, attempt: int, event: Any) -> Any:
        if isinstance(event, NoRun):
            await anyio.sleep(60)
            raise LedgerError("the disk is full")
        return await record(key, attempt, event)

    async def send() -> None:
        with pytest.raises(LedgerError, match="the disk is full"):
            await batch._worker.run_job(withheld)

    ledger.claim, ledger.record = claim_and_stop, fail
    with anyio.fail_after(600):
        async with batch._worker as worker, anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await anyio.sleep(30)
            assert withheld in worker._unanswered
            assert isinstance(await worker.run_job(lost), Unknown)


async def test_a_ledger_that_fails_during_a_search_ends_the_batch(knouds: Any, emulator: Emulator, ledger: Any) -> None:
    """It is no fault of the usage rows: the error is the ledger's own, as of anything else that it is asked for."""
    emulator.faults.add(faults.closed(), route=ROUTE, nth=1)
    await run(knouds, ledger, 1)
    await anyio.sleep(400)

    async def fail(target: str, account: str, since: float) -> Any:
        raise LedgerError("the disk is gone")

    ledger.known_runs = fail
    with pytest.raises(LedgerError, match="the disk is gone"):
        await run(knouds, ledger, 1)
    assert len(await ledger.unknown()) == 1


async def test_a_parked_unknown_can_stop_the_next_batch(knouds: Any, emulator: Emulator, ledger: Any) -> None:
    """With `on_unknown="stop"` one that is found on record stops the submitting as well."""
    emulator.faults.add(faults.closed(after_run=True), route=ROUTE, nth=1)
    await run(knouds, ledger, 1)
    found = await run(knouds, ledger, 20, on_unknown="stop", max_in_flight=1)
    assert kinds(found)["Unknown"] == 1
    assert len(emulator.runs) == 1


# The budget.


async def test_the_cap_holds_over_the_life_of_a_ledger(make_client: Any, ledger: Any) -> None:
    """What earlier batches have spent counts: with room for five runs five are sent, in however many batches."""
    emulator = Emulator(tier="business", duration=5.0, cost=12)
    knouds = make_client(emulator)
    assert kinds(await run(knouds, ledger, 3, max_credits=60)) == {"Completed": 3}
    found = await run(knouds, ledger, 10, max_credits=60)
    assert kinds(found) == {"Completed": 5, "budget": 5}
    assert kinds(await run(knouds, ledger, 10, max_credits=60)) == {"Completed": 5, "budget": 5}
    assert emulator.credits_spent == 60
    assert kinds(await run(knouds, ledger, 10, max_credits=72)) == {"Completed": 6, "budget": 4}


async def test_an_estimate_beyond_all_measure_is_written_down(make_client: Any, ledger: Any) -> None:
    """A whole number that no column takes would undo the transaction, and with it the receipts of other jobs."""
    emulator = Emulator(tier="business", duration=45.0, cost=10**20, credits=10**21)
    async with make_client(emulator).workflows.map(SLUG, jobs(1), ledger=ledger):
        await anyio.sleep(10)
    assert (await ledger.find("job-0")).reserved == 1e20


async def test_an_unknown_counts_against_the_cap(make_client: Any, ledger: Any) -> None:
    """What may have run is set aside for good."""
    emulator = Emulator(tier="business", duration=5.0, cost=12)
    emulator.faults.add(faults.closed(after_run=True), route=ROUTE, nth=2)
    found = await run(make_client(emulator), ledger, 10, max_credits=60)
    assert kinds(found) == {"Completed": 4, "Unknown": 1, "budget": 5}
    assert emulator.credits_spent == 60


async def test_cheaper_runs_make_room(make_client: Any) -> None:
    """Credits that were set aside and not spent are used for further runs."""
    emulator = Emulator(tier="business", duration=5.0, cost=12)
    knouds = make_client(emulator)
    emulator.costs = {SLUG: 12}
    async with knouds.workflows.map(SLUG, jobs(30), max_credits=100) as outcomes:
        await anyio.sleep(2)
        emulator.costs = {SLUG: 5}
        found = [outcome async for outcome in outcomes]
    assert kinds(found)["Completed"] >= 8
    assert emulator.credits_spent <= 100


async def test_without_a_price_one_run_at_a_time_is_sent(make_client: Any) -> None:
    """A model has no estimate: the first run is alone until its cost is known, then the cap holds."""
    emulator = Emulator(tier="business", duration=30.0, costs={"gpt-image-2": 7})
    wanted = [{"prompt": str(number)} for number in range(30)]
    async with make_client(emulator).models.map("gpt-image-2", wanted, max_credits=50) as outcomes:
        await anyio.sleep(20)
        assert len(emulator.runs) == 1
        found = [outcome async for outcome in outcomes]
    assert kinds(found) == {"Completed": 7, "budget": 23}
    assert emulator.credits_spent == 49


async def test_where_no_cost_is_reported_the_cap_lets_one_run_through(emulator: Emulator, ledger: Any) -> None:
    """Without an estimate, and with costs that are never reported, a second run could exceed any cap."""
    service = EmulatorTransport(emulator, latency=0.04)

    class Costless(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            answer = await service.handle_async_request(request)
            body = json.loads(await answer.aread())
            return httpx.Response(answer.status_code, json={**body, "cost": None})

    async with httpx.AsyncClient(transport=Costless()) as http:
        knouds = AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http)
        for made in (1, 0):
            async with knouds.models.map("gpt-image-2", jobs(5)[1 - made :], ledger=ledger, max_credits=24) as outcomes:
                found = [outcome async for outcome in outcomes]
            assert kinds(found) == {"Completed": 1, "budget": 4} if made else {"budget": 4}
            assert "what 1 of the runs cost is not known" in str([o.error for o in found if isinstance(o, NotRun)])
    assert len(emulator.runs) == 1


async def test_an_account_that_cannot_pay_stops_the_batch(make_client: Any) -> None:
    """402 stops the submitting as the cap does, and the error is the service's."""
    emulator = Emulator(tier="business", duration=5.0, cost=12, credits=40)
    async with make_client(emulator).workflows.map(SLUG, jobs(50)) as outcomes:
        found = [outcome async for outcome in outcomes]
    assert kinds(found) == {"Completed": 3, "budget": 47}
    assert all(isinstance(outcome.error, InsufficientCreditsError) for outcome in found if isinstance(outcome, NotRun))


async def test_no_credits_at_all_sends_nothing(knouds: Any, emulator: Emulator) -> None:
    """With `max_credits=0` nothing is sent."""
    async with knouds.workflows.map(SLUG, jobs(5), max_credits=0) as outcomes:
        assert kinds([outcome async for outcome in outcomes]) == {"budget": 5}
    assert not emulator.runs


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cap=st.integers(0, 130), in_flight=st.integers(1, 12), lost=st.sets(st.integers(1, 10), max_size=3))
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_the_cap_is_never_passed(make_client: Any, cap: int, in_flight: int, lost: set[int]) -> None:
    """Whatever the cap, the number in flight and the answers that are lost: exactly the runs that fit are sent."""
    emulator = Emulator(tier="business", duration=5.0, cost=12)
    if lost:
        emulator.faults.add(faults.closed(after_run=True), route=ROUTE, nth=lost)
    async with make_client(emulator).workflows.map(
        SLUG, jobs(15), max_credits=cap, max_in_flight=in_flight
    ) as outcomes:
        found = [outcome async for outcome in outcomes]
    assert emulator.credits_spent <= cap
    assert len(emulator.runs) == min(15, cap // 12)
    assert len(found) == 15


# Several owners.


async def test_a_job_of_another_batch_is_left_to_it(knouds: Any, emulator: Emulator, ledger: Any) -> None:
    """A job that another owner is sending is waited for, and its outcome is read from the ledger."""
    other = await ledger.join()
    digest = _digest_of(0)
    sending = Sending(owner=other, sent_at=1.0, reserve=12)
    await ledger.claim(Claim(key="job-0", target=f"workflows/{SLUG}", digest=digest, sending=sending))
    found: list[Outcome] = []

    async def consume() -> None:
        found.extend(await run(knouds, ledger, 3, max_in_flight=1))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        await anyio.sleep(500)
        assert not found
        assert len(emulator.runs) == 2
        await ledger.record("job-0", 1, Ended(Ending(status="failed", code="X", message="said so")))
    assert kinds(found) == {"Completed": 2, "Failed": 1}
    assert len(emulator.runs) == 2


@pytest.mark.parametrize("is_submitted", [False, True])
async def test_a_batch_that_is_stopped_does_not_wait_for_jobs_of_others(
    is_submitted: bool, make_client: Any, emulator: Emulator, ledger: Any
) -> None:
    """Whether another batch is sending one or waits for its run: it is elsewhere, with its id, and stays that one's.

    Runs of its own are still waited for, and a job whose batch is gone is unknown all the same.
    """
    other, digest = await ledger.join(), _digest_of(0)
    sending = Sending(owner=other, sent_at=1.0, reserve=12)
    await ledger.claim(Claim(key="job-0", target=f"workflows/{SLUG}", digest=digest, sending=sending))
    if is_submitted:
        await ledger.record("job-0", 1, Accepted(owner=other, execution_id="theirs"))
    theirs, gone = await ledger.find("job-0"), await ledger.join()
    lost = attrs.evolve(sending, owner=gone)
    await ledger.claim(Claim(key="job-1", target=f"workflows/{SLUG}", digest=_digest_of(1), sending=lost))
    async with make_client(emulator).workflows.map(SLUG, jobs(3), ledger=ledger) as outcomes:
        await anyio.sleep(30)
        await ledger.leave(gone)
        outcomes.stop()
        with anyio.fail_after(60):
            found = {outcome.job.key: outcome async for outcome in outcomes}
        progress = outcomes.progress
    assert (progress.completed, progress.unknown, progress.elsewhere, progress.outcomes) == (1, 1, 1, 3)
    unknown, lost_one = found["job-0"], found["job-1"]
    assert isinstance(lost_one, Unknown)
    assert not lost_one.is_elsewhere
    assert isinstance(unknown, Unknown)
    assert unknown.is_elsewhere
    assert unknown.execution_id == ("theirs" if is_submitted else None)
    assert unknown.error.may_have_run
    assert "another batch has the job 'job-0'" in str(unknown.error)
    assert await ledger.find("job-0") == theirs


async def test_a_job_that_another_batch_takes_as_this_one_stops_may_have_run(
    knouds: Any, emulator: Emulator, ledger: Any
) -> None:
    """It is unknown here, and never called not run."""
    other, claim = await ledger.join(), ledger.claim
    batch = knouds.workflows.map(SLUG, jobs(1), ledger=ledger)

    async def second(wanted: Claim) -> Any:
        await claim(attrs.evolve(wanted, sending=attrs.evolve(wanted.sending, owner=other)))
        taken = await claim(wanted)
        batch.stop()
        return taken

    ledger.claim = second
    async with batch as outcomes:
        assert kinds([outcome async for outcome in outcomes]) == {"Unknown": 1}
    assert (await ledger.find("job-0")).owner == other
    assert not emulator.runs


async def test_a_submit_that_is_lost_after_a_resend_was_approved_is_not_sent_by_the_same_batch(
    make_client: Any, emulator: Emulator, ledger: Any
) -> None:
    """The person who approved it took this batch for gone; it says what it has seen, and the next batch sends it."""
    emulator.faults.add(faults.closed(after_run=True), route=ROUTE, nth=1)
    found, knouds = list[Outcome](), make_client(emulator, latency=1.0)

    async def consume() -> None:
        found.extend(await run(knouds, ledger, 1))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        while (entry := await ledger.find("job-0")) is None:  # noqa: ASYNC110
            await anyio.sleep(0.1)
        gone = attrs.evolve(entry, stage=Stage.UNKNOWN, note="its process ended before the answer")
        ledger._database.transact([lambda database: database._save(gone)])
        await ledger.approve_resend("job-0")
    assert kinds(found) == {"Unknown": 1}
    assert len(emulator.runs) == 1
    assert kinds(await run(knouds, ledger, 1)) == {"Completed": 1}
    assert len(emulator.runs) == 2


async def test_a_run_that_another_batch_picks_up_first_is_left_to_it(
    make_client: Any, emulator: Emulator, ledger: Any
) -> None:
    """Of two batches that find a run that nobody waits for, one does; the other has the outcome that it records."""
    async with make_client(emulator).workflows.map(SLUG, jobs(1), ledger=ledger) as outcomes:
        while not outcomes.progress.submitted:  # noqa: ASYNC110
            await anyio.sleep(0.1)
    other, record, found = await ledger.join(), ledger.record, list[Outcome]()

    async def second(key: str, attempt: int, event: Any) -> Any:
        if isinstance(event, PickedUp):
            await record(key, attempt, PickedUp(other))
        return await record(key, attempt, event)

    async def consume() -> None:
        found.extend(await run(make_client(emulator), ledger, 1))

    ledger.record = second
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        await anyio.sleep(100)
        assert (await ledger.find("job-0")).owner == other
        await record("job-0", 1, Ended(Ending(status="failed", code="X", message="said so")))
    assert kinds(found) == {"Failed": 1}
    assert len(emulator.runs) == 1


async def test_a_run_that_is_picked_up_is_in_flight(make_client: Any, emulator: Emulator, ledger: Any) -> None:
    """It counts in the progress as one that this batch has submitted, and the price of its end is learned."""
    async with make_client(emulator).workflows.map(SLUG, jobs(1), ledger=ledger) as outcomes:
        while not outcomes.progress.submitted:  # noqa: ASYNC110
            await anyio.sleep(0.1)
    async with make_client(emulator).workflows.map(SLUG, jobs(1), ledger=ledger) as outcomes:
        await anyio.sleep(1)
        assert (outcomes.progress.in_flight, outcomes.progress.submitted) == (1, 0)
        assert kinds([outcome async for outcome in outcomes]) == {"Completed": 1}
        assert (outcomes.progress.in_flight, outcomes.progress.credits_spent) == (0, 12)


async def test_a_job_whose_owner_has_gone_is_taken_over(knouds: Any, emulator: Emulator, ledger: Any) -> None:
    """When the other batch is left, what it was sending is unknown."""
    other = await ledger.join()
    sending = Sending(owner=other, sent_at=1.0, reserve=12)
    digest, found = _digest_of(0), list[Outcome]()
    await ledger.claim(Claim(key="job-0", target=f"workflows/{SLUG}", digest=digest, sending=sending))
    async with anyio.create_task_group() as tasks:

        async def leave() -> None:
            await anyio.sleep(100)
            await ledger.leave(other)

        tasks.start_soon(leave)
        found = await run(knouds, ledger, 2)
    assert kinds(found)["Completed"] >= 1
    assert len(emulator.runs) <= 2


async def test_a_run_beside_that_of_another_batch_is_known_and_ends_nothing(
    make_client: Any, emulator: Emulator, ledger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A receipt for a job that another batch has by now: its id is on record and logged; the batch continues."""
    other, found = await ledger.join(), list[Outcome]()

    async def consume() -> None:
        found.extend(await run(make_client(emulator, latency=1.0), ledger, 3, max_in_flight=1))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        while not emulator.runs:  # noqa: ASYNC110  (the receipt is on its way then)
            await anyio.sleep(0.1)
        entry = await ledger.find("job-0")
        ledger._database.transact([lambda database: database._save(attrs.evolve(entry, owner=other))])
        await anyio.sleep(100)
        entry = await ledger.find("job-0")
        assert (entry.stage, entry.owner) == (Stage.SENDING, other)
        assert emulator.runs[0].execution_id in entry.note
        await ledger.record("job-0", 1, Ended(Ending(status="failed", code="X", message="said so")))
    assert kinds(found) == {"Completed": 2, "Failed": 1}
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert emulator.runs[0].execution_id in said
    assert "charged" in said


@pytest.mark.parametrize("fault", [faults.closed(after_run=True), faults.service_error()])
async def test_what_fails_for_a_job_of_another_batch_is_left_to_that_one(
    fault: Any, make_client: Any, emulator: Emulator, ledger: Any
) -> None:
    """A submit that is lost or refused when another batch has the job: the outcome is what that one records."""
    emulator.faults.add(fault, route=ROUTE, nth=1)
    other, found = await ledger.join(), list[Outcome]()

    async def consume() -> None:
        found.extend(await run(make_client(emulator, latency=1.0), ledger, 2, max_in_flight=1))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        while (entry := await ledger.find("job-0")) is None:  # noqa: ASYNC110
            await anyio.sleep(0.1)
        ledger._database.transact([lambda database: database._save(attrs.evolve(entry, owner=other))])
        await anyio.sleep(100)
        assert not [outcome for outcome in found if outcome.job.key == "job-0"]
        assert await ledger.find("job-0") == attrs.evolve(entry, owner=other)
        await ledger.record("job-0", 1, Ended(Ending(status="failed", code="X", message="said so")))
    assert kinds(found) == {"Completed": 1, "Failed": 1}


@pytest.mark.parametrize("decision", ["abandon", "approve_resend"])
@pytest.mark.parametrize("slug", [SLUG, "fast-sketch"])
async def test_a_run_that_ends_after_a_decision_about_it_is_on_record(
    slug: str, decision: str, make_client: Any, emulator: Emulator, ledger: Any
) -> None:
    """Its batch was taken for gone, and somebody decided about its job: its result is an outcome, its cost is spent."""
    found: list[Outcome] = []

    async def consume() -> None:
        wanted = [Job("job-0", {"product_name": "x"} if slug == SLUG else {"prompt": "x"})]
        async with make_client(emulator).workflows.map(slug, wanted, ledger=ledger) as outcomes:
            found.extend([outcome async for outcome in outcomes])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        await anyio.sleep(20)
        entry = await ledger.find("job-0")
        gone = attrs.evolve(entry, stage=Stage.UNKNOWN, note="its process ended before the answer")
        ledger._database.transact([lambda database: database._save(gone)])
        await getattr(ledger, decision)("job-0")
    assert kinds(found) == {"Completed": 1}
    counts = await ledger.counts()
    assert (counts.credits_spent, counts.credits_reserved) == (12, 0)
    assert (counts.completed, counts.new) == ((1, 0) if decision == "abandon" else (0, 1))
    assert len(emulator.runs) == 1


async def test_a_synchronous_run_beside_that_of_another_batch_is_known(
    make_client: Any, emulator: Emulator, ledger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """When its job has ended otherwise meanwhile, that is the outcome, and its cost is logged as an error."""
    found: list[Outcome] = []

    async def consume() -> None:
        wanted = [Job("job-0", {"prompt": "x"})]
        async with make_client(emulator).workflows.map("fast-sketch", wanted, ledger=ledger) as outcomes:
            found.extend([outcome async for outcome in outcomes])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        await anyio.sleep(20)
        await ledger.record("job-0", 1, Ended(Ending(status="failed", code="X", message="said so")))
    assert kinds(found) == {"Failed": 1}
    (logged,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "'job-0'" in logged
    assert "it cost 12 credits" in logged


async def test_a_submit_that_is_lost_beside_that_of_another_batch_is_known(
    make_client: Any, emulator: Emulator, ledger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It may have begun a run, which no ledger has: the log says so."""
    emulator.faults.add(faults.closed(after_run=True), route=ROUTE, nth=1)

    async def consume() -> None:
        await run(make_client(emulator, latency=1.0), ledger, 1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        while (entry := await ledger.find("job-0")) is None:  # noqa: ASYNC110
            await anyio.sleep(0.1)
        await ledger.record(entry.key, 1, Ended(Ending(status="failed", code="X", message="said so")))
    (logged,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "'job-0'" in logged
    assert "may have run as well" in logged


def _digest_of(number: int) -> str:
    from knouds_async._sansio.keys import digest

    return digest(jobs(number + 1)[number].inputs)


@pytest.mark.parametrize("timeout", [None, 10, Timeouts(submit=10)])
async def test_a_handle_is_of_a_run_with_an_id(knouds: Any, emulator: Emulator, ledger: Any, timeout: Any) -> None:
    """A target that is known to run in one go gives none: a submit is refused as before, and pays for nothing."""
    inputs = {"prompt": "a"}
    assert isinstance(await knouds.models.once("claude-sonnet", Job("first", inputs), ledger=ledger), Completed)
    with pytest.raises(AsyncNotSupportedError, match="Nothing was run or charged"):
        await knouds.models.submit("claude-sonnet", inputs, key="second", ledger=ledger, timeout=timeout)
    assert len(emulator.runs) == 1
    entry = await ledger.look("second")
    assert entry.stage is Stage.NEW
    emulator.faults.add(
        faults.stalled(90), route=f"{ROUTE}?async=true".replace("workflows/:slug", "models/:internalName")
    )
    with pytest.raises(SubmissionUnknownError, match=f"within {10 if timeout else 60} s"):
        await knouds.models.submit("claude-sonnet", inputs, key="second", ledger=ledger, timeout=timeout)
    assert len(emulator.runs) == 1


async def test_a_run_that_is_cut_in_one_go_is_unknown(make_client: Any, ledger: Any) -> None:
    """Leaving the block cuts a synchronous run: it has no id, so it stays unknown in the ledger and is not repeated."""
    emulator = Emulator(tier="business", duration=45.0)
    knouds = make_client(emulator)
    wanted = [Job(str(number), {"prompt": str(number)}) for number in range(3)]
    async with knouds.workflows.map("fast-sketch", wanted, ledger=ledger):
        await anyio.sleep(20)
    entries = [await ledger.find(job.key) for job in wanted]
    assert [entry.stage for entry in entries] == [Stage.UNKNOWN] * 3
    async with knouds.workflows.map("fast-sketch", wanted, ledger=ledger) as outcomes:
        found = [outcome async for outcome in outcomes]
    assert all(isinstance(outcome, Unknown) for outcome in found)
    assert len(emulator.runs) == 3


@pytest.mark.parametrize("slug", [SLUG, "fast-sketch"])
async def test_a_claim_that_is_cut_is_undone(slug: str, make_client: Any, ledger: Any) -> None:
    """When the block is left while the intent is being written, the job is as new, or its run is on record."""
    emulator = Emulator(tier="business", duration=45.0)
    knouds = make_client(emulator)
    await knouds.workflows.gather("fast-sketch", [{"prompt": "it is known then that this cannot be polled"}])
    claim = ledger.claim

    async def slow(wanted: Claim) -> Any:
        written = await claim(wanted)
        await anyio.sleep(1.0)
        return written

    ledger.claim = slow
    wanted = [Job("a", {"product_name": "x"} if slug == SLUG else {"prompt": "x"})]
    with anyio.move_on_after(0.6):
        async with knouds.workflows.map(slug, wanted, ledger=ledger) as outcomes:
            async for _ in outcomes:
                pass
    entry = await ledger.find("a")
    assert entry.stage is (Stage.SUBMITTED if slug == SLUG else Stage.NEW)
    assert len(emulator.runs) == (2 if slug == SLUG else 1)
    assert (await ledger.counts()).credits_reserved == (12 if slug == SLUG else 0)


@pytest.mark.parametrize("at", [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 60.0])
async def test_leaving_at_any_moment_leaves_true_counts(at: float, make_client: Any, ledger: Any) -> None:
    """Whenever the block is left, each run is in the ledger by its id, and each job that was not sent is as new."""
    emulator = Emulator(tier="business", duration=45.0)
    knouds = make_client(emulator, latency=1.0)
    with anyio.move_on_after(at):
        async with knouds.workflows.map(SLUG, jobs(10), ledger=ledger) as outcomes:
            async for _ in outcomes:
                pass
    counts = await ledger.counts()
    assert counts.sending == counts.unknown == 0
    assert counts.submitted + counts.completed == len(emulator.runs)
    for sent in emulator.runs:
        entry = await ledger.find(sent.inputs["product_name"])
        assert entry.execution_id == sent.execution_id
        assert entry.owner is None
    assert kinds(await run(knouds, ledger, 10)) == {"Completed": 10}
    emulator.assert_charged_once()


async def _by_timeout(consume: Any, at: float) -> None:
    async with asyncio.timeout(at):
        await consume()


async def _by_two_cancels(consume: Any, at: float) -> None:
    task = asyncio.create_task(consume())
    await asyncio.sleep(at)
    task.cancel()
    await asyncio.sleep(0.1)
    task.cancel()
    await task


async def _by_a_sibling(consume: Any, at: float) -> None:
    async def fail() -> None:
        await asyncio.sleep(at)
        raise OSError("a sibling fails")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(consume())
        tasks.create_task(fail())


@pytest.mark.parametrize("way", [_by_timeout, _by_two_cancels, _by_a_sibling])
@pytest.mark.parametrize("at", [0.5, 2.5, 3.5, 4.5, 5.5, 60.0])
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_asyncios_own_cancellation_leaves_true_counts(at: float, way: Any, make_client: Any, ledger: Any) -> None:
    """The same under timeouts, repeated `Task.cancel` and a failing sibling: each run is in the ledger by its id."""
    emulator = Emulator(tier="business", duration=45.0)
    knouds = make_client(emulator, latency=1.0)

    async def consume() -> None:
        await run(knouds, ledger, 10)

    with suppress(TimeoutError, asyncio.CancelledError, BaseExceptionGroup):
        await way(consume, at)
    counts = await ledger.counts()
    assert counts.sending == counts.unknown == 0
    assert counts.submitted + counts.completed == len(emulator.runs)
    assert kinds(await run(knouds, ledger, 10)) == {"Completed": 10}
    emulator.assert_charged_once()


async def test_an_outcome_from_the_ledger_is_as_it_was(make_client: Any, ledger: Any) -> None:
    """Results, failures and cancellations come out of the ledger equal to what they were."""
    emulator = Emulator(tier="business", duration=20.0, failure_rate=0.5, seed=5)
    knouds = make_client(emulator)
    async with knouds.workflows.map(SLUG, jobs(10), ledger=ledger, ordered=True) as outcomes:
        await anyio.sleep(5)
        await knouds.executions.cancel(emulator.runs[0].execution_id)
        first = [outcome async for outcome in outcomes]
    second = await run(knouds, ledger, 10, ordered=True)
    assert len(kinds(first)) == 3
    for one, other in zip(first, second, strict=True):
        assert type(one) is type(other)
        assert str(getattr(one, "error", "")) == str(getattr(other, "error", ""))
        assert getattr(one, "state", None) == getattr(other, "state", None)
        if isinstance(one, Completed) and isinstance(other, Completed):
            assert attrs.evolve(other, from_ledger=False) == one
            assert other.run.raw == one.run.raw


# A ledger that fails.


async def test_a_job_that_vanished_from_the_ledger_is_not_sent_again(
    make_client: Any, emulator: Emulator, ledger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a submit is no longer on record as its answer comes, the batch ends: it may have run."""
    record = InLoopLedger.record

    async def forgetful(self: InLoopLedger, key: str, attempt: int, event: Any) -> Any:
        if len(emulator.runs) == 1:
            await self._transact(lambda database: database._connection.execute("DELETE FROM jobs"))
        return await record(self, key, attempt, event)

    monkeypatch.setattr(InLoopLedger, "record", forgetful)
    with pytest.raises(LedgerError, match="no job") as caught:
        await run(make_client(emulator), ledger, 1)
    assert caught.value.may_have_run
    assert len(emulator.runs) == 1


@pytest.mark.parametrize("error", [ValueError("no display"), KnoudsError("no display")])
async def test_what_on_progress_raises_ends_the_batch_and_keeps_the_id(
    error: Exception, emulator: Emulator, ledger: Any
) -> None:
    """It is raised where outcomes are taken, and what an answer tells of a run is on record all the same."""

    def shown(progress: Progress) -> None:
        if emulator.runs:
            raise error

    async with httpx.AsyncClient(transport=Conflicting(emulator)) as http:
        knouds = AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http)
        with pytest.raises(type(error), match="no display"):
            await run(knouds, ledger, 1, on_progress=shown)
    entry = await ledger.find("job-0")
    assert (entry.stage, entry.execution_id) == (Stage.SUBMITTED, emulator.runs[0].execution_id)


class Conflicting(EmulatorTransport):
    """Answers of submits are no receipts, though they name the run."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer as the emulator does, but for submits."""
        answer = await super().handle_async_request(request)
        if request.method == "GET":
            return answer
        body = {"error": "odd", "executionId": json.loads(await answer.aread())["executionId"]}
        return httpx.Response(409, json=body)


async def test_a_budget_goes_by_what_is_on_record(make_client: Any, path: Path) -> None:
    """What is written may come back in another order; before a batch gives up for want of credits, it is read again."""

    class Late(InLoopLedger):
        """Two ends are written, and the first comes back last."""

        written = 0

        async def record(self, key: str, attempt: int, event: Any) -> Any:
            """Write, and hold back the totals of the second end until those of the third are there."""
            result = await super().record(key, attempt, event)
            if isinstance(event, Ended):
                self.written += 1
                if self.written == 2:
                    await third.wait()
                if self.written == 3:
                    third.set()
            return result

    emulator, third, late = Emulator(tier="enterprise", duration=5.0, costs={SLUG: 12}), anyio.Event(), Late(path)
    knouds = make_client(emulator)
    batch = knouds.workflows.map(SLUG, jobs(4), ledger=late, max_credits=25)
    async with batch as outcomes:
        emulator.costs = {SLUG: 1}
        assert kinds([outcome async for outcome in outcomes]) == {"Completed": 4}


@pytest.mark.parametrize("level", ["DEBUG", "WARNING"])
async def test_a_log_handler_that_fails_costs_no_id(
    level: str, emulator: Emulator, ledger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What an answer tells of a run is on record, whatever the program's logging makes of it."""
    caplog.set_level(level, "knouds_async")

    def fail(record: logging.LogRecord) -> bool:
        if emulator.runs and record.levelname == level:
            raise OSError("the disk is full")
        return True

    caplog.handler.addFilter(fail)
    async with httpx.AsyncClient(transport=Conflicting(emulator)) as http:
        knouds = AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http)
        with suppress(OSError):
            await run(knouds, ledger, 1)
    caplog.handler.removeFilter(fail)
    assert [run.execution_id for run in emulator.runs] == [(await ledger.find("job-0")).execution_id]


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_batch_whose_job_is_cut_alone_does_not_look_finished(
    knouds: Any, ledger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When something cancels the task of one job, say a connection of its ledger, iterating raises."""
    look = InLoopLedger.look

    async def cut(self: InLoopLedger, key: str) -> Any:
        if key == "job-1":
            raise asyncio.CancelledError
        return await look(self, key)

    monkeypatch.setattr(InLoopLedger, "look", cut)
    with pytest.raises(RuntimeError, match="the batch was cancelled"):
        await run(knouds, ledger, 3)
