"""Execution handles: awaited, shared, cancelled, picked up again; waiting is never the run."""

from __future__ import annotations

import asyncio
import logging
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from knouds_async import (
    APIError,
    AsyncKnouds,
    ClientClosedError,
    Execution,
    ExecutionCancelledError,
    ExecutionFailedError,
    ExecutionState,
    InvalidArgumentError,
    KnoudsError,
    NoAnswerError,
    NotFoundError,
    RunResult,
    ServiceError,
    Status,
    Target,
    WaitTimeoutError,
    WrongEventLoopError,
)
from knouds_async.testing import Emulator, EmulatorTransport, faults
from tests.scripted_client import scripted

SLUG = "my-thumbnail-pipeline"
INPUTS = {"product_name": "Knouds"}
POLL = "GET /api/executions/:id"

Answers = Callable[[httpx.Request], httpx.Response]


def polls(*answers: httpx.Response | Exception | dict[str, Any]) -> Answers:
    """Answer the n-th request with the n-th of `answers`, the last for ever."""
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        now = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(now, Exception):
            raise now
        return now if isinstance(now, httpx.Response) else httpx.Response(200, json=now)

    return answer


async def test_awaiting_gives_the_result(knouds: AsyncKnouds) -> None:
    """A submitted run is awaited for its result, its cost and its id."""
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    run = await execution
    assert isinstance(run, RunResult)
    assert run.images[0].url.startswith("https://")
    assert (run.cost, run.execution_id) == (12, execution.id)
    assert execution.target == Target("workflows", SLUG)


async def test_a_timeout_ends_the_wait_and_not_the_run(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """WaitTimeoutError carries the handle, and waiting on it again gives the result."""
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    began = anyio.current_time()
    with pytest.raises(WaitTimeoutError, match=execution.id) as caught:
        await execution.wait(timeout=10)
    assert anyio.current_time() - began == pytest.approx(10)
    assert caught.value.execution is execution
    assert caught.value.may_have_run
    assert isinstance(caught.value, TimeoutError)
    assert (await caught.value.execution.wait()).status is Status.COMPLETED


@pytest.mark.parametrize("timeout", [-1, float("nan"), "3", True, 10**400])
async def test_an_impossible_timeout_is_refused(knouds: AsyncKnouds, emulator: Emulator, timeout: Any) -> None:
    """A timeout that is no number of seconds is named and refused, before a request that would cost anything."""
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    with pytest.raises(InvalidArgumentError, match="timeout"):
        await execution.wait(timeout=timeout)
    with pytest.raises(InvalidArgumentError, match="timeout"):
        await knouds.workflows.submit(SLUG, INPUTS, timeout=timeout)
    assert len(emulator.runs) == 1


async def test_a_cancelled_waiter_disturbs_no_other(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """One waiter leaves, the other still gets the result, and the run was neither cancelled nor run again."""
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    got: list[RunResult] = []

    async def waiter() -> None:
        got.append(await execution)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waiter)
        with anyio.move_on_after(7):
            await execution
    assert len(got) == 1
    assert len(emulator.runs) == 1


async def test_a_failed_run_says_why(make_client: Any) -> None:
    """Awaiting a failed run raises with the service's code; waiting gives the state and raises nothing."""
    knouds = make_client(Emulator(tier="business", duration=5.0, failure_rate=1.0))
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    with pytest.raises(ExecutionFailedError, match=execution.id) as caught:
        await execution
    assert caught.value.code
    assert caught.value.may_have_run
    assert (await execution.wait()).status is Status.FAILED


async def test_a_cancelled_run_ends_as_cancelled_and_is_charged(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """Cancel asks for the end; awaiting then raises ExecutionCancelledError, and the run was paid for."""
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    assert (await execution.cancel()).status is Status.CANCEL_REQUESTED
    with pytest.raises(ExecutionCancelledError) as caught:
        await execution
    assert caught.value.execution_id == execution.id
    assert emulator.credits_spent == 12


async def test_cancelling_what_has_finished_gives_its_final_state(knouds: AsyncKnouds) -> None:
    """A 409 means that the run had finished: its final state is returned, by handle and by id."""
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    await execution
    assert (await execution.cancel()).status is Status.COMPLETED
    assert (await knouds.executions.cancel(execution.id)).status is Status.COMPLETED


async def test_updates_give_each_status_once(knouds: AsyncKnouds) -> None:
    """The present status comes first, each change once, the final one last."""
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    seen: list[Any] = []
    async for state in execution.updates():
        seen.append(state.status)
        if len(seen) == 1:
            await execution.cancel()
    assert seen == [Status.PROCESSING, Status.CANCEL_REQUESTED, Status.CANCELLED]
    assert [state.status async for state in execution.updates()] == [Status.CANCELLED]


async def test_leaving_updates_early_leaves_nothing_behind(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """After a `break` nothing is polled any more."""
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    async for _ in execution.updates():
        break
    await anyio.sleep(100)
    assert emulator.requests.by_route[POLL] == 0


async def test_a_run_is_attached_by_its_id(knouds: AsyncKnouds, make_client: Any, emulator: Emulator) -> None:
    """Any client of the account picks a run up by its id, without a request."""
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    before = emulator.requests.count
    attached = make_client(emulator).executions.attach(execution.id, f"workflows/{SLUG}")
    assert emulator.requests.count == before
    assert attached.state.status == "unknown"
    assert (await attached).execution_id == execution.id
    assert attached.target == Target("workflows", SLUG)


async def test_a_handle_pickles_to_what_attach_takes(knouds: AsyncKnouds, make_client: Any, emulator: Emulator) -> None:
    """A pickled handle holds no client and no key; attached, it is awaited again."""
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    data = pickle.dumps(execution)
    assert emulator.api_key.encode() not in data
    thawed = pickle.loads(data)  # noqa: S301
    assert (thawed.id, thawed.target, thawed.base_url) == (execution.id, execution.target, "https://knouds.test")
    with pytest.raises(ClientClosedError, match="attach"):
        await thawed
    assert (await make_client(emulator).executions.attach(thawed)).execution_id == execution.id


async def test_a_handle_of_another_service_is_refused(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """A run of one service is not polled at another."""
    other = scripted(polls({}))
    with pytest.raises(InvalidArgumentError, match=r"knouds\.test"):
        AsyncKnouds("k", base_url="https://other.test").executions.attach(other.executions.attach("id"))


@pytest.mark.parametrize("bad", ["a/b", "", "x y", "ü", 7, "a?b"])
async def test_attach_refuses_what_is_no_id(knouds: AsyncKnouds, bad: Any) -> None:
    """A malformed id is named and refused before any request."""
    with pytest.raises(InvalidArgumentError, match="not an execution id"):
        knouds.executions.attach(bad)


async def test_an_unknown_id_ends_the_wait_at_once(knouds: AsyncKnouds) -> None:
    """An attached id that the service does not know raises NotFoundError with the id."""
    with pytest.raises(NotFoundError) as caught:
        await knouds.executions.attach("no-such-run")
    assert caught.value.execution_id == "no-such-run"


async def test_an_id_that_is_none_is_not_in_flight(make_client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """An attached id that the service does not know is no run, so `close` warns of none; one that it refuses may be."""
    emulator = Emulator(tier="business")
    knouds = make_client(emulator)
    run = await make_client(emulator).workflows.submit(SLUG, INPUTS)
    emulator.faults.add(faults.unknown_error(403), route="GET /api/executions/:id", nth=1)
    for execution_id in (run.id, "no-such-run"):
        with pytest.raises(APIError):
            await knouds.executions.attach(execution_id)
    assert [execution.id for execution in knouds.executions.in_flight] == [run.id]
    await knouds.aclose()
    assert "1 run was not seen to finish" in caplog.text


@pytest.mark.parametrize("is_first", [True, False])
def test_a_wait_in_another_event_loop_says_of_which_run(emulator: Emulator, is_first: bool) -> None:
    """WrongEventLoopError of a wait carries the id, and that the run continues."""

    async def submit() -> tuple[AsyncKnouds, Execution]:
        http = httpx.AsyncClient(transport=EmulatorTransport(emulator))
        knouds = AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http)
        execution = await knouds.workflows.submit(SLUG, INPUTS)
        if not is_first:
            with anyio.move_on_after(0.01):
                await execution
        return knouds, execution

    _, execution = asyncio.run(submit())
    with pytest.raises(WrongEventLoopError) as caught:
        asyncio.run(execution.wait())
    assert (caught.value.execution_id, caught.value.may_have_run) == (execution.id, True)


async def test_a_fresh_id_may_be_unknown_for_a_moment(make_client: Any) -> None:
    """A 404 within a few seconds of the submit is not the end of the wait."""
    knouds = make_client(Emulator(tier="business", duration=20.0, not_found_after_submit=4.0))
    assert await (await knouds.workflows.submit(SLUG, INPUTS))


async def test_an_unknown_status_neither_ends_the_wait_nor_raises(caplog: pytest.LogCaptureFixture) -> None:
    """New statuses of the service are waited through, and said once in the log."""
    caplog.set_level(logging.WARNING, logger="knouds_async")
    new, done = {"status": "reticulating"}, {"status": "completed", "result": 1}
    knouds = scripted(polls(new, new, {"status": "processing"}, new, done))
    execution = knouds.executions.attach("x")
    assert (await execution).result == 1
    assert caplog.text.count("reticulating") == 1


@pytest.mark.parametrize(
    "fault",
    [
        httpx.ReadError("reset"),
        httpx.ConnectError("down"),
        httpx.RemoteProtocolError("Server disconnected"),
        httpx.Response(502, html="<h1>Bad gateway</h1>"),
        httpx.Response(200, text=""),
        httpx.Response(200, html="<p>sign in</p>"),
        httpx.Response(500, json={"error": "oops"}),
        httpx.Response(200, json={"status": None}),
    ],
    ids=repr,
)
async def test_polls_that_fail_do_not_end_a_wait(fault: httpx.Response | Exception) -> None:
    """A few failed polls in a row are waited through: the run itself did not fail."""
    fine = {"status": "processing"}
    knouds = scripted(polls(fine, fault, fault, fine, fault, fault, {"status": "completed", "result": 7}))
    assert (await knouds.executions.attach("x")).result == 7


async def test_without_a_deadline_lasting_faults_end_the_wait_with_the_id() -> None:
    """Five failed polls in a row end a wait that has no deadline; the error carries the id, and says that it ran."""
    knouds = scripted(polls(httpx.Response(500, json={"error": "oops"})))
    with pytest.raises(ServiceError) as caught:
        await knouds.executions.attach("run-1")
    assert caught.value.execution_id == "run-1"
    assert caught.value.may_have_run
    told = "".join(traceback.format_exception(pickle.loads(pickle.dumps(caught.value))))  # noqa: S301
    assert "knouds.executions.attach('run-1')" in told


async def test_an_id_that_is_none_is_not_called_a_run() -> None:
    """A wait for an attached id that the service does not know says nothing of money."""
    knouds = scripted(polls(httpx.Response(404, json={"error": "Not found"})))
    with pytest.raises(NotFoundError) as caught:
        await knouds.executions.attach("run-1")
    assert not caught.value.may_have_run


async def test_with_a_deadline_lasting_faults_are_waited_through() -> None:
    """With a timeout, faults of the way only end in WaitTimeoutError; another waiter without one gives up by itself."""
    knouds = scripted(polls(httpx.ReadError("reset")))
    execution = knouds.executions.attach("run-1")
    ends: list[type[BaseException]] = []

    async def wait(timeout: float | None) -> None:
        try:
            await execution.wait(timeout=timeout)
        except (WaitTimeoutError, NoAnswerError) as error:
            ends.append(type(error))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, None)
        tasks.start_soon(wait, 500.0)
    assert ends == [NoAnswerError, WaitTimeoutError]


PAGES = {
    **{str(status): httpx.Response(status, html="<html>no</html>") for status in (400, 401, 403, 404, 418, 425, 502)},
    "login": httpx.Response(303, headers={"location": "https://login.test/"}),
    "cache": httpx.Response(304, headers={"via": "1.1 cache"}),
    "portal": httpx.Response(200, html="<html>Welcome</html>"),
    "gateway": httpx.Response(403, json={"message": "Forbidden"}),
    "another run": httpx.Response(200, json={"executionId": "run-2", "status": "completed", "result": 2}),
    "other JSON": httpx.Response(200, json={"success": True}),
}


@pytest.mark.parametrize("page", PAGES)
async def test_a_page_in_between_ends_no_wait(page: str) -> None:
    """Whatever its status, what is not the service's answer to this poll is ignored, also by a single poll."""
    end = {"executionId": "run-1", "status": "completed", "result": 1}
    knouds = scripted(polls(*[PAGES[page]] * 6, end))
    assert (await knouds.executions.attach("run-1")).result == 1
    knouds = scripted(polls(*[PAGES[page]] * 3, end))
    assert (await knouds.executions.get("run-1")).result == 1


@pytest.mark.parametrize("page", PAGES)
async def test_a_page_that_stays_ends_the_wait_with_the_run_s_id(page: str) -> None:
    """Five polls in a row end a wait: the error has the id, and never says that nothing was run."""
    knouds = scripted(polls(PAGES[page]))
    with pytest.raises(KnoudsError) as caught:
        await knouds.executions.attach("run-1").wait()
    assert caught.value.execution_id == "run-1"
    assert "nothing was run" not in str(caught.value).lower()


async def test_a_refusal_ends_the_wait_at_once() -> None:
    """A revoked key is not polled with on and on."""
    knouds = scripted(polls(httpx.Response(401, json={"error": "Unauthorized"})))
    began = anyio.current_time()
    with pytest.raises(Exception, match="Unauthorized"):
        await knouds.executions.attach("x").wait(timeout=100)
    assert anyio.current_time() - began < 5


async def test_a_client_that_is_closed_ends_the_waits(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """Closing the client ends every wait with an error that names the run, which keeps running."""
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    async with anyio.create_task_group() as tasks:

        async def waiter() -> None:
            with pytest.raises(ClientClosedError, match=execution.id) as caught:
                await execution
            assert caught.value.may_have_run

        tasks.start_soon(waiter)
        await anyio.sleep(3)
        await knouds.aclose()


def test_the_repr_of_a_handle_is_short() -> None:
    """A handle shows its id, target and status."""
    execution = AsyncKnouds("k", base_url="http://localhost").executions.attach("run-1", Target("models", "suno-v5"))
    assert repr(execution) == "<Execution run-1 of models/suno-v5: unknown>"
    assert isinstance(execution.state, ExecutionState)


async def test_a_final_state_never_goes_back() -> None:
    """A late poll that still says `processing` does not reopen a run that has finished."""
    knouds = scripted(polls({"status": "completed", "result": 1}, {"status": "processing"}))
    execution = knouds.executions.attach("x")
    await execution
    assert (await execution.refresh()).status is Status.COMPLETED
    assert (await execution).result == 1


@pytest.mark.parametrize("target", [5, "my-slug", "folders/x", b"workflows/x"], ids=repr)
def test_a_handle_is_of_a_target(emulator: Emulator, target: Any) -> None:
    """What is no target is refused when a run is attached, not when its waiting fails."""
    with pytest.raises(InvalidArgumentError, match="target"):
        AsyncKnouds(emulator.api_key, base_url="https://knouds.test").executions.attach("abc", target)
