"""A batch in virtual time, without a ledger: every job has one outcome, and no failure is raised."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import attrs
import httpx
import pytest

from knouds_async import (
    AsyncKnouds,
    AuthenticationError,
    Cancelled,
    ClientClosedError,
    Completed,
    Failed,
    InvalidArgumentError,
    Job,
    NotFoundError,
    NotRun,
    Outcome,
    PermissionDeniedError,
    Progress,
    Unknown,
)
from knouds_async.testing import Emulator, EmulatorTransport, Fault, Response, faults

SLUG = "my-thumbnail-pipeline"
ROUTE = "POST /api/workflows/:slug/run"
MODEL_ROUTE = "POST /api/models/:internalName/run"
MakeClient = Any


def inputs(number: int) -> dict[str, Any]:
    """Return the inputs of a job."""
    return {"product_name": f"Product {number}"}


def jobs(count: int) -> list[Job]:
    """Return jobs with keys of their own."""
    return [Job(f"job-{number}", inputs(number)) for number in range(count)]


def kinds(outcomes: list[Outcome]) -> Counter[str]:
    """Count outcomes by their kind."""
    return Counter(type(outcome).__name__ for outcome in outcomes)


async def test_every_job_completes_once(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """A hundred jobs give a hundred results, each paid for once, and the progress adds up."""
    async with knouds.workflows.map(SLUG, jobs(100)) as outcomes:
        found = [outcome async for outcome in outcomes]
    assert kinds(found) == {"Completed": 100}
    assert {outcome.job.key for outcome in found} == {f"job-{number}" for number in range(100)}
    assert all(isinstance(outcome, Completed) and outcome.run.images and outcome.execution_id for outcome in found)
    emulator.assert_charged_once()
    emulator.assert_no_429()
    progress = outcomes.progress
    assert (progress.total, progress.read, progress.submitted, progress.in_flight) == (100, 100, 100, 0)
    assert (progress.completed, progress.credits_spent, progress.credits_reserved) == (100, 1200, 0)


async def test_plain_inputs_will_do(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """Jobs without keys get keys of what they are: the same again on another day, and one each for equal inputs."""
    items = [inputs(1), inputs(2), inputs(1), inputs(1)]
    keys = []
    for _ in range(2):
        async with knouds.workflows.map(SLUG, items, ordered=True) as outcomes:
            keys.append([outcome.job.key async for outcome in outcomes])
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == 4
    assert keys[0][2:] == [f"{keys[0][0]}-2", f"{keys[0][0]}-3"]
    assert len(emulator.runs) == 8


async def test_order_is_kept_when_asked_for(make_client: MakeClient) -> None:
    """With `ordered` the outcomes come in the order of the jobs, however long each takes."""
    emulator = Emulator(tier="business", duration=lambda dice: dice.uniform(1, 100))
    async with make_client(emulator).workflows.map(SLUG, jobs(50), ordered=True) as outcomes:
        assert [outcome.job.key async for outcome in outcomes] == [f"job-{number}" for number in range(50)]


async def test_synchronous_runs_wait_for_no_first_one(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """One submit finds out that a target cannot be polled; then all that the quota allows run at once.

    It allows ten before an answer has told how many.
    """
    for refused, longest in ((1, 100), (0, 50)):
        began, before = anyio.current_time(), len(list(emulator.requests))
        found = await knouds.workflows.gather("fast-sketch", [{"prompt": str(number)} for number in range(20)])
        assert kinds(found) == {"Completed": 20}
        assert anyio.current_time() - began < longest
        sent = [request.status for request in list(emulator.requests)[before:] if request.method == "POST"]
        assert Counter(sent) == Counter({200: 20, 400: refused})


async def test_gather_gives_a_list_in_order(knouds: AsyncKnouds) -> None:
    """A small list of inputs becomes a list of outcomes; one that is wrong is an outcome as well."""
    found = await knouds.workflows.gather(SLUG, [inputs(1), {"colour": "red"}, inputs(2)])
    assert [type(outcome) for outcome in found] == [Completed, NotRun, Completed]
    assert found[2].job.inputs == inputs(2)
    assert await knouds.workflows.gather(SLUG, []) == []
    (one,) = await knouds.models.gather("gpt-image-2", [{"prompt": "a lighthouse"}])
    assert isinstance(one, Completed)


async def test_failures_are_values(make_client: MakeClient) -> None:
    """A run that fails is an outcome with the service's reason."""
    emulator = Emulator(tier="business", duration=5.0, failure_rate=1.0)
    async with make_client(emulator).workflows.map(SLUG, jobs(3)) as outcomes:
        found = [outcome async for outcome in outcomes]
    assert kinds(found) == {"Failed": 3}
    failed = found[0]
    assert isinstance(failed, Failed)
    assert failed.error.code
    assert failed.error.execution_id == failed.execution_id
    assert failed.state is not None


async def test_a_cancelled_run_is_a_value(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """A run that somebody cancels comes out as Cancelled."""
    async with knouds.workflows.map(SLUG, jobs(1)) as outcomes:
        await anyio.sleep(10)
        await knouds.executions.cancel(emulator.runs[0].execution_id)
        (found,) = [outcome async for outcome in outcomes]
    assert isinstance(found, Cancelled)
    assert found.execution_id == emulator.runs[0].execution_id


async def test_a_lost_answer_is_unknown_and_not_sent_again(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """A submit whose answer is lost is one Unknown; the others continue."""
    emulator.faults.add(faults.closed(after_run=True), route=ROUTE, nth=3)
    async with knouds.workflows.map(SLUG, jobs(10)) as outcomes:
        found = [outcome async for outcome in outcomes]
    assert kinds(found) == {"Completed": 9, "Unknown": 1}
    (unknown,) = [outcome for outcome in found if isinstance(outcome, Unknown)]
    assert unknown.sent_at is not None
    assert unknown.error.may_have_run
    assert len(emulator.runs) == 10
    emulator.assert_charged_once()
    assert outcomes.progress.credits_reserved == 12


async def test_an_unknown_can_stop_the_batch(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """With `on_unknown="stop"` nothing is submitted after it, and runs in flight still yield their outcomes."""
    emulator.faults.add(faults.closed(after_run=True), route=ROUTE, nth=3)
    async with knouds.workflows.map(SLUG, jobs(10), max_in_flight=2, on_unknown="stop") as outcomes:
        found = [outcome async for outcome in outcomes]
    assert kinds(found)["Unknown"] == 1
    assert len(emulator.runs) <= 4
    assert all(outcome.reason == "stopped" for outcome in found if isinstance(outcome, NotRun))


async def test_wrong_inputs_are_found_before_they_are_sent(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """All faults of a job come in one message, and nothing of it is sent."""
    wrong: dict[str, Any] = {"product_name": 5, "style": "oil", "count": 9, "colour": "red"}
    found = await knouds.workflows.gather(SLUG, [wrong, inputs(1)])
    refused = found[0]
    assert isinstance(refused, NotRun)
    assert refused.reason == "invalid"
    for name in wrong:
        assert repr(name) in str(refused.error)
    assert len(emulator.runs) == 1
    assert [row.route for row in emulator.requests].count(ROUTE) == 1


async def test_inputs_that_are_not_json_are_an_outcome(knouds: AsyncKnouds) -> None:
    """A job that cannot be sent at all is a NotRun that names the place."""
    wrong: list[Any] = [Job("a", dict[str, Any](product_name={1, 2})), {"x": object()}]
    async with knouds.workflows.map(SLUG, wrong, ordered=True) as outcomes:
        found = [outcome async for outcome in outcomes]
    assert [getattr(outcome, "reason", None) for outcome in found] == ["invalid", "invalid"]
    assert "product_name" in str(getattr(found[0], "error", ""))


async def run_all(knouds: AsyncKnouds, jobs: list[Any], **options: Any) -> list[Any]:
    """Return the outcomes of a batch."""
    async with knouds.workflows.map(SLUG, jobs, **options) as outcomes:
        return [outcome async for outcome in outcomes]


@attrs.frozen
class Thumbnail:
    """Inputs as a record, with a value that JSON does not have."""

    product_name: Any
    count: int = 1


async def test_records_are_jobs_and_a_ledger_knows_them_by_what_is_sent(
    knouds: AsyncKnouds, emulator: Emulator, tmp_path: Path
) -> None:
    """A record, its fields as a mapping, and what `default` makes of it are one job; the outcome has what was given."""
    id_, path = UUID(int=7), tmp_path / "a.db"
    first = await run_all(knouds, [Thumbnail(id_)], ledger=path)
    plain = [{"product_name": str(id_), "count": 1}]
    second = await run_all(knouds, plain, ledger=path)
    third = await run_all(knouds, [Thumbnail(Path(str(id_)))], ledger=path, default=str)
    assert kinds([*first, *second, *third]) == {"Completed": 3}
    assert first[0].job.inputs == Thumbnail(id_)
    assert len({outcome.job.key for outcome in (*first, *second, *third)}) == 1
    assert len(emulator.runs) == 1
    assert emulator.runs[0].inputs == plain[0]


async def test_inputs_the_service_refuses_are_an_outcome(knouds: AsyncKnouds) -> None:
    """Without the check the service's own refusal is the outcome, and the batch continues."""
    async with knouds.workflows.map(SLUG, [{}, inputs(1)], validate=False) as outcomes:
        found = [outcome async for outcome in outcomes]
    assert kinds(found) == {"NotRun": 1, "Completed": 1}


async def test_a_key_runs_once(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """The second job of a key is not run, whether its inputs are the same or not."""
    async with knouds.workflows.map(SLUG, [Job("a", inputs(1)), Job("a", inputs(1)), Job("a", inputs(2))]) as outcomes:
        found = [outcome async for outcome in outcomes]
    assert kinds(found) == {"Completed": 1, "NotRun": 2}
    assert {outcome.reason for outcome in found if isinstance(outcome, NotRun)} == {"duplicate"}
    assert len(emulator.runs) == 1


@pytest.mark.parametrize("target", ["fast-sketch"])
async def test_what_cannot_be_polled_runs_in_one_go(target: str, knouds: AsyncKnouds, emulator: Emulator) -> None:
    """A provider that cannot be polled is run synchronously; one refused submit decides it for all jobs."""
    submitted = []
    for _ in range(2):
        async with knouds.workflows.map(target, [{"prompt": str(number)} for number in range(20)]) as outcomes:
            found = [outcome async for outcome in outcomes]
        assert kinds(found) == {"Completed": 20}
        submitted.append(outcomes.progress.submitted)
        assert all(isinstance(outcome, Completed) and outcome.execution_id is None for outcome in found)
    sent = [row for row in emulator.requests if row.route == ROUTE]
    assert len(sent) == 41
    assert submitted == [20, 20]


async def test_a_synchronous_run_that_fails_is_a_value(make_client: MakeClient) -> None:
    """Its failure has the service's code and no id, and it counts as submitted."""
    emulator = Emulator(tier="business", duration=5.0, failure_rate=1.0)
    async with make_client(emulator).models.map("nano-banana-2", [{"prompt": "x"}]) as outcomes:
        (found,) = [outcome async for outcome in outcomes]
    assert outcomes.progress.submitted == len(emulator.runs) == 1
    assert isinstance(found, Failed)
    assert found.execution_id is None
    assert found.error.code == "EXECUTION_FAILED"


async def test_a_refusal_of_the_target_is_met_once(make_client: MakeClient) -> None:
    """When the key may not run the target, the first refusal answers for every job."""
    emulator = Emulator(tier="business", capabilities=("workflow:read", "execution:read"))
    async with make_client(emulator).workflows.map(SLUG, jobs(30)) as outcomes:
        found = [outcome async for outcome in outcomes]
    assert {outcome.reason for outcome in found if isinstance(outcome, NotRun)} == {"refused"}
    assert len(found) == 30
    assert [row.route for row in emulator.requests].count(ROUTE) == 1


async def test_what_the_service_refuses_at_the_start_is_raised(make_client: MakeClient, emulator: Emulator) -> None:
    """A wrong key and an unknown workflow are raised when the block is entered."""
    with pytest.raises(AuthenticationError):
        async with make_client(emulator, api_key="knouds_live_wrong").workflows.map(SLUG, jobs(1)):
            pass
    with pytest.raises(NotFoundError):
        async with make_client(emulator).workflows.map("no-such-workflow", jobs(1)):
            pass


async def test_a_key_that_cannot_read_schemas_goes_without(make_client: MakeClient) -> None:
    """A key that may only run the workflow runs it, unchecked."""
    emulator = Emulator(tier="business", duration=5.0, capabilities=("workflow:run", "execution:read"))
    async with make_client(emulator).workflows.map(SLUG, jobs(2)) as outcomes:
        assert kinds([outcome async for outcome in outcomes]) == {"Completed": 2}


async def test_a_page_in_the_place_of_the_schema_is_raised(make_client: MakeClient, emulator: Emulator) -> None:
    """A firewall's 403 is not a key that may not read schemas: nothing is sent through it."""
    page = Response(403, {"content-type": "text/html"}, b"<html>denied</html>")
    emulator.faults.add(Fault("page", "before", lambda _: page), route="GET /api/workflows/:slug/schema")
    batch = make_client(emulator).workflows.map(SLUG, jobs(3))
    with pytest.raises(PermissionDeniedError, match="firewall"):
        await batch.__aenter__()
    assert not emulator.runs


async def test_a_service_that_is_away_for_a_while_is_waited_for(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """Minutes without a connection cost no job: what was certainly not sent is sent later."""
    await knouds.whoami()
    emulator.faults.add(faults.refused(), route=ROUTE, nth=range(1, 40))
    async with knouds.workflows.map(SLUG, jobs(10)) as outcomes:
        assert kinds([outcome async for outcome in outcomes]) == {"Completed": 10}
    emulator.assert_charged_once()


async def test_a_service_that_stays_away_ends_the_batch(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """After ten minutes without a connection the jobs come out as not run."""
    emulator.faults.add(faults.refused(), route=ROUTE)
    async with knouds.workflows.map(SLUG, jobs(10)) as outcomes:
        found = [outcome async for outcome in outcomes]
    assert {outcome.reason for outcome in found if isinstance(outcome, NotRun)} == {"unreachable"}
    assert len(found) == 10
    assert anyio.current_time() < 3600


async def test_a_service_that_only_refuses_is_not_away(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """After an answer of any kind the ten minutes begin anew: a connection that fails later is waited for again."""

    async def slow() -> AsyncIterator[Job]:
        yield Job("refused", {"no_such_input": 1})
        await anyio.sleep(700)
        yield jobs(1)[0]

    emulator.faults.add(faults.refused(), route=ROUTE, nth=(*range(1, 5), *range(6, 10)))
    async with knouds.workflows.map(SLUG, slow(), validate=False) as outcomes:
        found = [outcome async for outcome in outcomes]
    assert [getattr(outcome, "reason", "completed") for outcome in found] == ["invalid", "completed"]


async def test_jobs_are_read_as_there_is_room(knouds: AsyncKnouds) -> None:
    """Of a source without end only as much is read as is under way or not taken yet."""
    read = 0

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal read
        while True:
            read += 1
            yield inputs(read)

    async with knouds.workflows.map(SLUG, endless(), max_in_flight=10) as outcomes:
        await anyio.sleep(300)
        assert read <= 121
        for _ in range(50):
            await anext(outcomes)
        await anyio.sleep(300)
        assert read <= 171


async def test_a_source_may_be_slow(knouds: AsyncKnouds) -> None:
    """Jobs of an async source are run as they come; `stop` does not wait for the next one."""

    async def slow() -> AsyncIterator[dict[str, Any]]:
        yield inputs(1)
        await anyio.sleep(100)
        yield inputs(2)
        await anyio.sleep_forever()

    async with knouds.workflows.map(SLUG, slow()) as outcomes:
        await anext(outcomes)
        assert anyio.current_time() < 60
        await anext(outcomes)
        outcomes.stop()
        assert [outcome async for outcome in outcomes] == []
    assert anyio.current_time() < 1e6


async def test_what_the_source_raises_comes_after_the_outcomes(knouds: AsyncKnouds) -> None:
    """An error of the caller's source ends the reading; what was read still has its outcome."""

    def broken() -> Iterator[dict[str, Any]]:
        yield inputs(1)
        raise OSError("the file is gone")

    found = []
    with pytest.raises(OSError, match="the file is gone"):
        async with knouds.workflows.map(SLUG, broken()) as outcomes:
            async for outcome in outcomes:
                found.append(outcome)  # noqa: PERF401  (the loop raises)
    assert kinds(found) == {"Completed": 1}


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_source_that_is_cancelled_has_not_come_to_its_end(knouds: AsyncKnouds) -> None:
    """When the source raises a cancellation of its own, asyncio's that is, the batch ends in an error."""

    async def source() -> AsyncIterator[Job]:
        for job in jobs(3):
            yield job
        raise asyncio.CancelledError  # as of a task that it waits for

    async def consume() -> None:
        async with knouds.workflows.map(SLUG, source()) as outcomes:
            async for _ in outcomes:
                pass

    with pytest.raises(RuntimeError, match="Not every job was read"):
        await consume()


async def test_stopping_loses_nothing(make_client: MakeClient) -> None:
    """After `stop` runs in flight yield their outcomes, jobs in the queue were not run, and the rest is not read."""
    emulator = Emulator(tier="pro", limit=10, window_phase=0.0, duration=45.0)
    async with make_client(emulator).workflows.map(SLUG, iter(jobs(1000)), max_in_flight=50) as outcomes:
        await anyio.sleep(20)
        outcomes.stop()
        outcomes.stop()
        found = [outcome async for outcome in outcomes]
        assert anyio.current_time() < 100
    out = kinds(found)
    assert out["Completed"] == len(emulator.runs) == 10
    assert out["Completed"] + out["NotRun"] == outcomes.progress.read <= 60


async def test_leaving_early_leaves_the_runs_alone(
    make_client: MakeClient, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Leaving the block waits for submits under way; every run is known by its id, in the log for want of a ledger."""
    caplog.set_level(logging.WARNING, logger="knouds_async")
    knouds = make_client(emulator, latency=1.0)
    async with knouds.workflows.map(SLUG, jobs(20)):
        await anyio.sleep(5.5)
    assert len(emulator.runs) == 20
    assert all(run.execution_id in caplog.text for run in emulator.runs)
    await anyio.sleep(100)
    assert len(emulator.runs) == 20


async def test_a_cancelled_consumer_loses_nothing(
    make_client: MakeClient, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """The same when the task that iterates is cancelled in the middle of the first submits."""
    caplog.set_level(logging.WARNING, logger="knouds_async")
    knouds = make_client(emulator, latency=1.0)
    with anyio.move_on_after(5.5) as scope:
        async with knouds.workflows.map(SLUG, jobs(20)) as outcomes:
            async for _ in outcomes:
                pass
    assert scope.cancelled_caught
    assert 1 <= len(emulator.runs) <= 20
    assert all(run.execution_id in caplog.text for run in emulator.runs)


async def test_outcomes_that_were_not_taken_are_known(
    knouds: AsyncKnouds, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a ledger the finished runs whose outcomes were not taken are logged."""
    caplog.set_level(logging.WARNING, logger="knouds_async")
    async with knouds.workflows.map(SLUG, jobs(5)) as outcomes:
        taken = await anext(outcomes)
        await anyio.sleep(100)
    left = {run.execution_id for run in emulator.runs} - {getattr(taken, "execution_id", None)}
    assert len(left) == 4
    assert all(execution_id in caplog.text for execution_id in left)


async def test_the_source_sees_the_caller_s_context(knouds: AsyncKnouds) -> None:
    """A context variable that is set where the block is entered is there when jobs are read."""
    tenant = contextvars.ContextVar("tenant", default="nobody")
    tenant.set("Knouds")

    def source() -> Iterator[dict[str, Any]]:
        yield {"product_name": tenant.get()}

    async with knouds.workflows.map(SLUG, source()) as outcomes:
        assert [outcome.job.inputs["product_name"] async for outcome in outcomes] == ["Knouds"]


async def test_an_outcome_is_not_lost_to_a_timeout(knouds: AsyncKnouds) -> None:
    """A step that is cancelled gives its outcome to the next."""
    async with knouds.workflows.map(SLUG, jobs(1)) as outcomes:
        with anyio.move_on_after(5):
            await anext(outcomes)
        assert isinstance(await anext(outcomes), Completed)


async def test_a_closed_client_ends_the_batch(knouds: AsyncKnouds) -> None:
    """Closing the client ends the iteration with its error."""
    with pytest.raises(ClientClosedError):
        async with knouds.workflows.map(SLUG, jobs(3)) as outcomes:
            await anyio.sleep(5)
            await knouds.aclose()
            async for _ in outcomes:
                pass


async def test_progress_is_reported(knouds: AsyncKnouds) -> None:
    """`on_progress` hears of every submit and every outcome, and ends with what `progress` says."""
    heard: list[Progress] = []
    async with knouds.workflows.map(SLUG, jobs(5), on_progress=heard.append) as outcomes:
        [outcome async for outcome in outcomes]
    assert len(heard) == 10
    assert max(each.in_flight for each in heard) == 5
    assert heard[-1].completed == 5
    assert heard[-1].elapsed > 40
    assert [each.submitted for each in heard] == sorted(each.submitted for each in heard)


@pytest.mark.parametrize(
    "options",
    [
        {"max_in_flight": 0},
        {"max_in_flight": 2.5},
        {"max_in_flight": True},
        {"max_credits": -1},
        {"max_credits": float("nan")},
        {"max_credits": "5"},
        {"on_unknown": "resend"},
        {"jobs": 5},
        {"jobs": "abc"},
        {"jobs": {"product_name": "one job's inputs, not a list of them"}},
    ],
)
async def test_wrong_arguments_are_refused_at_once(options: dict[str, Any], knouds: AsyncKnouds) -> None:
    """Each is named, before anything is sent."""
    (name,) = options
    with pytest.raises(InvalidArgumentError, match=name):
        knouds.workflows.map(SLUG, **{"jobs": jobs(1), **options})


async def test_a_wrong_slug_is_refused_at_once(knouds: AsyncKnouds) -> None:
    """A slug that is none is refused by `map` itself."""
    with pytest.raises(ValueError, match="slug"):
        knouds.workflows.map("../x", jobs(1))


async def test_something_that_is_no_job_ends_the_reading(knouds: AsyncKnouds) -> None:
    """An item that is neither a job nor inputs is raised after the outcomes."""
    found: list[Outcome] = []
    with pytest.raises(InvalidArgumentError, match="no job"):
        async with knouds.workflows.map(SLUG, [inputs(1), 5]) as outcomes:  # type: ignore[list-item]
            async for outcome in outcomes:
                found.append(outcome)  # noqa: PERF401  (the loop raises)
    assert len(found) == 1


async def test_a_batch_is_entered_before_it_is_iterated(knouds: AsyncKnouds) -> None:
    """Outside its block a batch says how it is used, and it is entered once."""
    batch = knouds.workflows.map(SLUG, [])
    with pytest.raises(RuntimeError, match="async with"):
        await anext(batch)
    async with batch as outcomes:
        assert [outcome async for outcome in outcomes] == []
    with pytest.raises(RuntimeError, match="once"):
        await batch.__aenter__()


def serve_files(emulator: Emulator, refused: set[str]) -> httpx.AsyncClient:
    """Return an HTTP client of an emulator and of a host of its files, which refuses those of some runs."""
    service = EmulatorTransport(emulator, latency=0.04)

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "knouds.test":
            return await service.handle_async_request(request)
        await anyio.sleep(3)
        asked.append(str(request.url))
        if refused and len(asked) % 3 == 0:
            refused.add(str(request.url))
            return httpx.Response(403)
        return httpx.Response(200, headers={"Content-Type": "image/png"}, content=b"\x89PNG")

    asked: list[str] = []
    return httpx.AsyncClient(transport=httpx.MockTransport(answer))


async def test_files_are_saved_as_jobs_complete(tmp_path: Path) -> None:
    """Each outcome has its files; what cannot be fetched is on the outcome, and comes the next time, unpaid."""
    emulator = Emulator(tier="business", duration=45.0)
    refused = {"some"}
    options: Any = {"ledger": tmp_path / "a.db", "save": tmp_path / "files", "max_in_flight": 4}
    async with serve_files(emulator, refused) as http:
        knouds = AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http)
        found = await run_all(knouds, jobs(9), **options)
        assert kinds(found) == {"Completed": 9}
        assert (
            sorted(type(outcome.save_error).__name__ for outcome in found) == ["DownloadError"] * 3 + ["NoneType"] * 6
        )
        assert all((outcome.files is None) is (outcome.save_error is not None) for outcome in found)
        refused.clear()
        again = await run_all(knouds, jobs(9), **options)
        await knouds.aclose()
    assert all(outcome.files and outcome.files[0].read_bytes() == b"\x89PNG" for outcome in again)
    assert {outcome.files[0].name for outcome in again} == {f"{outcome.execution_id}-1.png" for outcome in again}
    assert len(emulator.runs) == 9
    emulator.assert_charged_once()


async def test_leaving_a_batch_while_files_come_loses_no_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run that has completed is reported with its id, also when its files are cut off."""
    emulator = Emulator(tier="business", duration=45.0)
    async with serve_files(emulator, set()) as http:
        knouds = AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http)
        async with knouds.workflows.map(SLUG, jobs(1), save=tmp_path) as outcomes:
            while not outcomes.progress.submitted or outcomes.progress.in_flight:  # noqa: ASYNC110
                await anyio.sleep(0.1)
            await anyio.sleep(1)
        await knouds.aclose()
    assert emulator.runs[0].execution_id in caplog.text
    assert os.listdir(tmp_path) == []  # noqa: PTH208


@pytest.mark.parametrize("folder", [5, ["a"], b"a".decode])
async def test_a_folder_that_is_none_is_refused(knouds: AsyncKnouds, folder: Any) -> None:
    """`save` is checked at once, before anything is paid for."""
    with pytest.raises(InvalidArgumentError, match="save="):
        knouds.workflows.map(SLUG, [], save=folder)
