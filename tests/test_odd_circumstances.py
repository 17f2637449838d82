"""Odd circumstances: money, waits and the key where callers, transports, clocks and answers misbehave."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import attrs
import httpx
import pytest

from knouds_async import (
    AsyncKnouds,
    ClientClosedError,
    InvalidResponseError,
    KnoudsError,
    Limiter,
    NoAnswerError,
    NotFoundError,
    Retries,
    Status,
    SubmissionUnknownError,
    Workflow,
)
from knouds_async._sansio.rate_limit import Permit, QuotaHeaders
from knouds_async.testing import Emulator, EmulatorTransport, faults

SLUG = "my-thumbnail-pipeline"
RUN = "POST /api/workflows/:slug/run"
INPUTS = {"product_name": "x"}


def scripted(answer: Callable[[httpx.Request], httpx.Response], **options: Any) -> AsyncKnouds:
    """Return a client whose every request is answered by `answer`."""
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return AsyncKnouds("knouds_live_CANARY", base_url="https://knouds.test", http_client=http, **options)


class _BrokenBooks(Limiter):
    """A limiter whose books cannot be kept."""

    def on_response(self, route: str, permit: Permit, reply: QuotaHeaders, date: float | None) -> None:
        raise OSError("disk full")


async def test_trouble_with_the_books_costs_no_id(make_client: Any, emulator: Emulator) -> None:
    """An answer that the limiter cannot take in is still the caller's."""
    knouds = make_client(emulator, limiter=_BrokenBooks("enterprise"))
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    assert execution.id == emulator.runs[0].execution_id


async def test_a_cancelled_scope_pays_for_nothing_more(make_client: Any, emulator: Emulator) -> None:
    """A loop of submits in a scope ends with the submit that was under way when the scope was cancelled."""
    knouds = make_client(emulator, latency=0.3)
    with anyio.move_on_after(1):
        for _ in range(50):
            await knouds.workflows.submit(SLUG, INPUTS)
    assert len(emulator.runs) <= 2
    with anyio.CancelScope() as scope:
        scope.cancel()
        await knouds.workflows.submit(SLUG, INPUTS)
    assert scope.cancelled_caught
    assert len(emulator.runs) <= 2


async def test_closing_ends_submits_that_wait_in_line(make_client: Any) -> None:
    """A submit that waits for its turn when the client closes ends at once and is never sent."""
    emulator = Emulator(tier="pro", limit=1, duration=5.0)
    knouds = make_client(emulator)
    await knouds.workflows.submit(SLUG, INPUTS)
    ended: list[float] = []

    async def late() -> None:
        with pytest.raises(ClientClosedError):
            await knouds.workflows.submit(SLUG, INPUTS)
        ended.append(anyio.current_time())

    closed = anyio.current_time() + 1
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(late)
        await anyio.sleep_until(closed)
        await knouds.aclose()
    assert ended == pytest.approx([closed], abs=0.1)
    await anyio.sleep(200)
    assert len(emulator.runs) == 1


@pytest.mark.parametrize(
    "body", [{}, {"rows": None, "total": 3}, {"rows": 7}, {"data": []}, {"error": "maintenance"}], ids=str
)
async def test_an_unreadable_usage_answer_is_not_certainty(body: Any) -> None:
    """What cannot be read never says that a run did not begin."""
    knouds = scripted(lambda request: httpx.Response(200, json=body), retries=Retries(attempts=1))
    with pytest.raises(InvalidResponseError):
        await knouds.usage.find_submission("workflows/a", datetime(2020, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("body", [{"rows": [7], "total": 1}, {"rows": [], "total": 3}], ids=str)
async def test_unread_rows_are_not_certainty(body: Any) -> None:
    """Rows that cannot be read, or that are promised and do not come, leave it open."""
    knouds = scripted(lambda request: httpx.Response(200, json=body))
    found = await knouds.usage.find_submission("workflows/a", datetime(2020, 1, 1, tzinfo=UTC))
    assert not found.is_certainly_none


@pytest.mark.parametrize("skew", [-180.0, 180.0])
async def test_a_wrong_local_clock_hides_no_run(make_client: Any, skew: float) -> None:
    """The very first submit is lost, the local clock is minutes off: the run is found all the same."""
    emulator = Emulator(tier="enterprise", duration=5.0, epoch=datetime.now(UTC).timestamp() + skew)
    emulator.faults.add(faults.reset(after_run=True), route=RUN, nth=1)
    knouds = make_client(emulator)
    with pytest.raises(SubmissionUnknownError) as caught:
        await knouds.workflows.submit(SLUG, INPUTS)
    found = await knouds.usage.find_submission(caught.value.target, caught.value.sent_at, tolerance=20)
    assert [row.request_id for row in found.candidates] == [run.request_id for run in emulator.runs]


def test_a_warning_that_names_a_run_is_seen_without_any_logging_set_up() -> None:
    """Warnings go to stderr where nobody set logging up, and nowhere twice where somebody did; the rest is silent."""
    code = """
import logging, sys
import knouds_async
log = logging.getLogger("knouds_async")
log.info("quiet")
log.warning("execution 1")
logging.basicConfig(stream=sys.stdout)
log.warning("execution 2")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stderr == "execution 1\n"
    assert done.stdout.count("execution 2") == 1


async def test_only_a_look_ends_a_run() -> None:
    """A receipt or a cancel that says `completed` holds no result: the run is looked at for it."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"status": "completed", "result": {"text": "done"}})
        name = "run-2" if "run-2" in request.url.path else "run-1"
        return httpx.Response(200, json={"executionId": name, "status": "completed"})

    knouds = scripted(answer)
    assert (await (await knouds.workflows.submit("a", {}))).text == "done"
    state = await knouds.executions.attach("run-2").cancel()
    assert (state.status, state.result) == (Status.COMPLETED, {"text": "done"})


async def test_default_parameters_of_a_callers_client_do_not_change_the_call(emulator: Emulator) -> None:
    """A caller's `params` must not turn a submit into a synchronous run."""
    http = httpx.AsyncClient(transport=EmulatorTransport(emulator), params={"tenant": "a"})
    async with http, AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http) as knouds:
        execution = await knouds.workflows.submit(SLUG, INPUTS)
        assert emulator.runs[0].is_async
        assert await execution.wait()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_watcher_that_is_cancelled_from_outside_is_started_anew(knouds: AsyncKnouds) -> None:
    """Somebody cancels every task but his own: waits that go on still end."""
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    waiting = asyncio.create_task(execution.wait())
    await asyncio.sleep(5)
    for task in asyncio.all_tasks():
        if task is not waiting and "PollTask" in repr(task.get_coro()):
            task.cancel()
    assert (await waiting).status is Status.COMPLETED


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_submit_cancelled_from_elsewhere_is_unknown() -> None:
    """A transport that raises CancelledError of its own does not make a paid submit vanish in a task group."""

    def answer(request: httpx.Request) -> httpx.Response:
        raise asyncio.CancelledError

    with pytest.raises(SubmissionUnknownError):
        await scripted(answer).workflows.submit("a", {})


async def test_an_absurd_clock_of_the_service_breaks_nothing() -> None:
    """A `Date` in the year 9999 is no time, and every later call works."""
    date = {"date": "Fri, 31 Dec 9999 23:59:59 GMT"}
    knouds = scripted(lambda request: httpx.Response(200, json={"user": {}}, headers=date))
    for _ in range(3):
        assert await knouds.whoami() is not None


async def test_a_refusal_that_asks_for_no_pause_is_not_hammered() -> None:
    """429 with `Retry-After: 0` is asked again at most once a second."""
    asked: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(anyio.current_time())
        if len(asked) < 10:
            return httpx.Response(429, json={"error": "slow down"}, headers={"retry-after": "0"})
        return httpx.Response(200, json={"user": {}})

    await scripted(answer).whoami()
    assert asked[-1] - asked[0] >= 9


async def test_an_answer_that_echoes_the_key_does_not_carry_it_into_errors() -> None:
    """Also in a 2xx the key is masked."""
    knouds = scripted(lambda request: httpx.Response(200, json={"executionId": [request.headers["x-api-key"]]}))
    with pytest.raises(KnoudsError) as caught:
        await knouds.workflows.submit("a", {})
    assert "CANARY" not in str(caught.value)


async def test_a_delete_that_was_never_sent_before_is_not_done_by_a_404(make_client: Any, emulator: Emulator) -> None:
    """A refused connection first, then a 404: there was nothing to delete."""
    emulator.faults.add(faults.refused(), route="DELETE /api/workflows/:slug", nth=1)
    with pytest.raises(NotFoundError):
        await make_client(emulator).workflows.delete("no-such-workflow")


async def test_an_update_that_was_sent_once_is_never_called_not_sent(make_client: Any, emulator: Emulator) -> None:
    """An answer lost first, then no connection: the update may have been made."""
    knouds = make_client(emulator, retries=Retries(attempts=3))
    await knouds.workflows.create("Poster")
    route = "PUT /api/workflows/:slug"
    emulator.faults.add(route=route, script=[faults.reset(after_run=True), faults.refused(), faults.refused()])
    with pytest.raises(NoAnswerError):
        await knouds.workflows.update("poster", description="new")


async def test_an_update_sends_what_was_changed_in_the_record() -> None:
    """The fields of the record win over the JSON it came from, which keeps what the library does not know."""
    sent: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.content)
        return httpx.Response(200, json={"slug": "a"})

    old = Workflow(slug="a", name="Old", raw={"slug": "a", "name": "Old", "futureField": 7})
    await scripted(answer).workflows.update("a", attrs.evolve(old, name="New"))
    assert b'"name":"New"' in sent[0]
    assert b'"futureField":7' in sent[0]
