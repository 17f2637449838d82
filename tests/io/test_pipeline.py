"""Calls through the pipeline: hooks, the caller's context, and a submit that no cancellation cuts."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import anyio
import httpx
import pytest
import trio
from trio.testing import MockClock

from knouds_async import (
    AsyncKnouds,
    ClientClosedError,
    ConnectionFailedError,
    ExecutionNotFoundError,
    Job,
    KnoudsError,
    Limiter,
    Retries,
    SubmissionUnknownError,
    Timeouts,
)
from knouds_async._io.exchange import Exchange
from knouds_async._io.pipeline import Pipeline
from knouds_async._sansio import endpoints
from knouds_async._sansio.endpoints import Call
from knouds_async._sansio.retry import Decision, Done, Fail, Requeue
from knouds_async.config import Secret
from knouds_async.telemetry import Telemetry
from knouds_async.testing import Emulator, EmulatorTransport, Fault, Response, faults
from knouds_async.testing.virtual_time import VirtualTimeLoop
from knouds_async.types import Submitted, Target

RUN = "POST /api/workflows/:slug/run"
ME = "GET /api/whoami"
TARGET = Target("workflows", "my-thumbnail-pipeline")
ANY_INPUTS = {"product_name": "x"}
ONCE = Retries(attempts=1)
MakePipeline = Callable[..., Pipeline]


@pytest.fixture
async def make_pipeline() -> AsyncIterator[MakePipeline]:
    """Return what builds a pipeline with so many `connections` to an emulator, `latency` seconds away."""
    async with AsyncExitStack() as stack:

        def make(emulator: Emulator, *, connections: float, latency: float = 0.04, **options: Any) -> Pipeline:
            http = httpx.AsyncClient(transport=EmulatorTransport(emulator, latency=latency))
            stack.push_async_callback(http.aclose)
            exchange = Exchange(
                http,
                base_url="https://knouds.test",
                key=Secret(emulator.api_key),
                timeouts=options.get("timeouts", Timeouts()),
                is_known=True,
                connections=connections,
            )
            limiter = options.get("limiter") or Limiter(emulator.tier)
            return Pipeline(exchange, limiter, options.get("retries", ONCE), Telemetry("https://knouds.test"))

        yield make


async def test_the_line_for_a_connection_does_not_eat_the_exchange(make_pipeline: MakePipeline) -> None:
    """Twenty submits of 1 s over one connection: each has its 1.5 s for itself, none is unknown or fails."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    patience = Timeouts(submit=1.5, total=1.5)
    pipeline = make_pipeline(emulator, connections=1, latency=0.5, timeouts=patience)
    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(pipeline.send, endpoints.submit(TARGET, ANY_INPUTS))
    assert len(emulator.runs) == 20
    assert anyio.current_time() - began == pytest.approx(20, abs=0.5)


@pytest.mark.parametrize("is_paid", [False, True])
async def test_the_line_for_a_connection_has_a_time_of_its_own(make_pipeline: MakePipeline, is_paid: bool) -> None:
    """`Timeouts.pool` ends that wait, a paid request's not before its exchange's own time; nothing was sent."""
    emulator = Emulator(tier="enterprise", duration=500.0)
    pipeline = make_pipeline(emulator, connections=1, timeouts=Timeouts(pool=7, total=9, submit=9))
    call: Any = endpoints.submit(TARGET, ANY_INPUTS) if is_paid else endpoints.whoami()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pipeline.send, endpoints.run(TARGET, ANY_INPUTS))
        await anyio.sleep(1)
        began = anyio.current_time()
        with pytest.raises(ConnectionFailedError, match="no connection became free within") as caught:
            await pipeline.send(call)
        assert anyio.current_time() - began == pytest.approx(9 if is_paid else 7, abs=0.01)
        assert not caught.value.may_have_run
    assert len(emulator.runs) == 1
    await pipeline.send(call)


class FailingLimiter(Limiter):
    """A limiter with a fault in what learns from answers."""

    def __init__(self, name: str) -> None:
        super().__init__("pro")
        setattr(self, name, self._fail)

    def _fail(self, *_: object) -> Any:
        raise ZeroDivisionError("of the limiter")


@pytest.mark.parametrize("name", ["server_time", "on_response"])
async def test_a_limiter_that_fails_costs_no_id_and_keeps_no_permit(
    name: str, make_pipeline: MakePipeline, caplog: pytest.LogCaptureFixture
) -> None:
    """Each answer is returned; requests whose permits are not returned would hold up others for a minute."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    pipeline = make_pipeline(emulator, connections=1, limiter=FailingLimiter(name))
    began = anyio.current_time()
    ids = [(await pipeline.send(endpoints.submit(TARGET, ANY_INPUTS))).execution_id for _ in range(150)]
    assert ids == [run.execution_id for run in emulator.runs]
    assert anyio.current_time() - began < 60
    assert {record.levelname for record in caplog.records} == {"WARNING"}


async def test_a_call_cancelled_in_line_for_a_connection_sends_nothing(make_pipeline: MakePipeline) -> None:
    """It leaves at once though it is paid, gives its turn back, and the next in line gets the connection."""
    emulator = Emulator(tier="pro", duration=20.0)
    limiter = Limiter("pro")
    pipeline = make_pipeline(emulator, connections=1, limiter=limiter)
    await pipeline.send(endpoints.submit(TARGET, ANY_INPUTS))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pipeline.send, endpoints.run(TARGET, ANY_INPUTS))
        await anyio.sleep(1)
        left, began = limiter.stats(RUN).left, anyio.current_time()
        with anyio.move_on_after(0.5) as scope:
            await pipeline.send(endpoints.submit(TARGET, ANY_INPUTS))
        assert scope.cancelled_caught
        assert anyio.current_time() - began == pytest.approx(0.5, abs=0.01)
        assert limiter.stats(RUN).left == left
        tasks.start_soon(pipeline.send, endpoints.whoami())
    assert len(emulator.runs) == 2


async def test_turns_do_not_keep_while_a_connection_is_waited_for(make_pipeline: MakePipeline) -> None:
    """Runs that hold their connections over the windows' edges: each request goes by the window it is sent in."""
    emulator = Emulator(tier="pro", limit=4, duration=25.0, window_phase=0.0)
    pipeline = make_pipeline(emulator, connections=2)
    async with anyio.create_task_group() as tasks:
        for _ in range(12):
            tasks.start_soon(pipeline.send, endpoints.run(TARGET, ANY_INPUTS))
    assert len(emulator.runs) == 12
    emulator.assert_no_429()


async def test_a_call_cancelled_with_a_connection_in_hand_frees_it(make_pipeline: MakePipeline) -> None:
    """Who got a connection late and waits for another turn gives the connection back when it is cancelled."""
    emulator = Emulator(tier="pro", duration=10.0)
    body = b'{"error": "Rate limit exceeded", "code": "RATE_LIMIT_EXCEEDED"}'
    pause = Fault("5 s", "before", lambda _: Response(429, {"retry-after": "5"}, body))
    emulator.faults.add(pause, route=RUN, nth=3)
    limiter = Limiter("pro")
    one, many = (make_pipeline(emulator, connections=number, limiter=limiter) for number in (1, math.inf))
    await many.send(endpoints.submit(TARGET, ANY_INPUTS))
    async with anyio.create_task_group() as tasks:
        began = anyio.current_time()
        tasks.start_soon(one.send, endpoints.run(TARGET, ANY_INPUTS))
        await anyio.sleep(1)
        late = anyio.CancelScope()

        async def wait() -> None:
            with late:
                await one.send(endpoints.submit(TARGET, ANY_INPUTS))

        tasks.start_soon(wait)
        await anyio.sleep_until(began + 9)
        tasks.start_soon(many.send, endpoints.submit(TARGET, ANY_INPUTS))  # refused: nobody may send for 5 s
        await anyio.sleep_until(began + 12)
        late.cancel()
        await anyio.sleep(0.01)
        assert late.cancelled_caught
        before = anyio.current_time()
        await one.send(endpoints.whoami())
        assert anyio.current_time() - before < 1
    assert len(emulator.runs) == 3


async def test_closing_ends_the_line_for_a_connection(make_pipeline: MakePipeline) -> None:
    """A call that waits for a connection, or for another slot while it holds one, gets ClientClosedError."""
    emulator = Emulator(tier="pro", limit=2, duration=10.0, window_phase=-1.0)
    pipeline = make_pipeline(emulator, connections=1)
    told: list[int] = []

    async def late(number: int) -> None:
        with pytest.raises(ClientClosedError):
            await pipeline.send(endpoints.submit(TARGET, ANY_INPUTS))
        told.append(number)

    await pipeline.send(endpoints.whoami())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pipeline.send, endpoints.run(TARGET, ANY_INPUTS))
        await anyio.sleep(1)
        for number in range(3):
            tasks.start_soon(late, number)
        await anyio.sleep(2)
        pipeline.close()
    assert sorted(told) == [0, 1, 2]
    assert len(emulator.runs) == 1


async def test_an_error_names_the_run_that_the_call_is_about(make_pipeline: MakePipeline) -> None:
    """A poll or a cancel that fails says of which run, refused by the service or not sent at all."""
    pipeline, failed = make_pipeline(Emulator(), connections=1), list[KnoudsError]()
    calls = endpoints.get_execution("run-1"), endpoints.cancel_execution("run-2")
    for _ in range(2):
        for call in calls:
            with pytest.raises(KnoudsError) as caught:
                await pipeline.send(call)
            failed.append(caught.value)
        pipeline.close()
    assert [error.execution_id for error in failed] == ["run-1", "run-2"] * 2
    assert [type(error) for error in failed] == [ExecutionNotFoundError] * 2 + [ClientClosedError] * 2


async def test_refusals_spend_nothing_of_the_retry_budget(make_pipeline: MakePipeline) -> None:
    """Five 429s that took 4 s each, then an error of the service: there is budget left to try again."""
    emulator = Emulator(tier="enterprise")
    for number in range(1, 6):
        emulator.faults.add(faults.rate_limited(), route=ME, nth=number)
    emulator.faults.add(faults.service_error(), route=ME, nth=6)
    pipeline = make_pipeline(emulator, connections=math.inf, latency=2.0, retries=Retries(attempts=2, budget=10.0))
    assert (await pipeline.send(endpoints.whoami())).role


async def test_every_call_queues_for_a_connection_with_us(emulator: Emulator) -> None:
    """The bound is `max_connections` or, with a lent client, its own, where that can be seen."""
    mock = httpx.AsyncClient(transport=EmulatorTransport(emulator))
    three = httpx.AsyncClient(limits=httpx.Limits(max_connections=3))
    for http_client, limit in ((None, 7), (three, 3), (mock, 7)):
        async with AsyncKnouds(emulator.api_key, http_client=http_client, max_connections=7) as knouds:
            assert knouds._pipeline._connections.limit == limit
    await three.aclose()
    await mock.aclose()


CALL: Call[Submitted] = endpoints.submit(Target("workflows", "my-thumbnail-pipeline"), {"product_name": "Knouds"})
ROUTE = "POST /api/workflows/:slug/run"


def pipeline(emulator: Emulator, latency: float = 1.0, connections: float = math.inf) -> Pipeline:
    """Build a pipeline on an emulator: one way takes `latency` seconds."""
    exchange = Exchange(
        httpx.AsyncClient(transport=EmulatorTransport(emulator, latency=latency)),
        base_url="https://knouds.test",
        key=Secret(emulator.api_key),
        timeouts=Timeouts(),
        is_known=True,
        connections=connections,
    )
    return Pipeline(exchange, Limiter(), Retries(), Telemetry("https://knouds.test"))


class Notes:
    """Hooks that take `slow` seconds each, and fail where they are set to."""

    def __init__(self, emulator: Emulator, slow: float = 0.0, fails: str = "") -> None:
        self.emulator = emulator
        self.slow, self.fails = slow, fails
        self.runs_when_leaving: list[int] = []
        self.decisions: list[Decision] = []
        self.key = "mug 7"

    async def before_send(self, sent_at: datetime) -> None:
        self.runs_when_leaving.append(self.emulator.requests.count)
        await anyio.sleep(self.slow)
        if self.fails == "leaving":
            raise KnoudsError("nothing can be written")

    async def after_attempt(self, decision: Decision) -> None:
        await anyio.sleep(self.slow)
        if self.fails == "ended":
            raise KnoudsError("nothing can be written")
        self.decisions.append(decision)


async def test_hooks_are_called_before_and_after(emulator: Emulator) -> None:
    """The intent is noted before the service sees the request, the receipt before the caller has it."""
    notes = Notes(emulator, slow=0.5)
    receipt = await pipeline(emulator).send(CALL, hooks=notes)
    (decision,) = notes.decisions
    assert notes.runs_when_leaving == [0]
    assert isinstance(decision, Done)
    assert decision.value is receipt


async def test_a_connection_is_free_while_a_receipt_is_noted(emulator: Emulator) -> None:
    """The next request takes the only connection as soon as the answer of the one before is read."""
    notes, sender = Notes(emulator, slow=5.0), pipeline(emulator, connections=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: sender.send(CALL, hooks=notes))
        await anyio.sleep(8)  # answered at 7, noted at 12
        await sender.send(endpoints.whoami())
        assert notes.decisions == []


async def test_what_cannot_be_noted_does_not_leave(emulator: Emulator) -> None:
    """A hook that fails before the request keeps it from being sent, and its slot goes to another."""
    sender = pipeline(Emulator(tier="pro", limit=1))
    with pytest.raises(KnoudsError, match="nothing can be written"):
        await sender.send(CALL, hooks=Notes(emulator, fails="leaving"))
    await sender.send(CALL)
    assert anyio.current_time() < 10


@pytest.mark.parametrize("at", [0.25, 0.75, 1.5, 2.25, 2.75])
async def test_a_cancelled_caller_cuts_nothing(at: float, emulator: Emulator) -> None:
    """From the first note on the submit is finished and its receipt noted, whenever the caller's scope is cancelled."""
    notes = Notes(emulator, slow=0.5)
    with anyio.move_on_after(at):
        await pipeline(emulator).send(CALL, hooks=notes)
    (decision,) = notes.decisions
    assert isinstance(decision, Done)
    assert [run.execution_id for run in emulator.runs] == [decision.value.execution_id]


@pytest.mark.parametrize("at", [0.25, 0.75, 1.5, 2.25, 2.75])
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_asyncios_own_cancellation_cuts_nothing(at: float, emulator: Emulator) -> None:
    """The receipt is noted, then the cancellation is raised."""
    notes = Notes(emulator, slow=0.5)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(at):
            await pipeline(emulator).send(CALL, hooks=notes)
    (decision,) = notes.decisions
    assert isinstance(decision, Done)
    assert [run.execution_id for run in emulator.runs] == [decision.value.execution_id]


async def test_an_id_that_cannot_be_noted_is_logged(emulator: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """When the receipt cannot be written down, the caller learns of it and the id stands in the log."""
    caplog.set_level(logging.WARNING, logger="knouds_async")
    with pytest.raises(KnoudsError, match="nothing can be written"):
        await pipeline(emulator).send(CALL, hooks=Notes(emulator, fails="ended"))
    found = emulator.runs[0].execution_id
    assert f"execution {found} of workflows/my-thumbnail-pipeline for job 'mug 7' was submitted" in caplog.text
    assert f"knouds batch --resolve LEDGER 'mug 7' run={found}" in caplog.text


async def test_a_synchronous_run_that_cannot_be_noted_is_logged(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """It has no id; that it was paid, and for which job, stands in the log."""
    call = endpoints.run(Target("workflows", SLUG), INPUTS)
    with pytest.raises(KnoudsError, match="nothing can be written"):
        await pipeline(emulator).send(call, hooks=Notes(emulator, fails="ended"))
    assert f"of workflows/{SLUG} for job 'mug 7' was submitted" in caplog.text
    assert "its result is lost" in caplog.text


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_an_id_whose_noting_the_end_of_the_loop_cuts_is_logged(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """When the loop ends while the receipt is being written down, the id stands in the log."""
    caplog.set_level(logging.WARNING, logger="knouds_async")
    sender: Any = pipeline(emulator)
    sending = asyncio.create_task(sender.send(CALL, hooks=Notes(emulator, slow=1.0)))
    before = asyncio.all_tasks() - {sending}
    await asyncio.sleep(3.5)  # noted, sent and answered by 3, noted again by 4
    for task in asyncio.all_tasks() - before:  # as asyncio.Runner does when it closes
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert emulator.runs[0].execution_id in caplog.text


@pytest.mark.parametrize("is_noted", [True, False])
async def test_what_is_noted_is_not_logged(
    is_noted: bool, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """The id of a submit whose caller was cancelled is logged only when no hook has recorded it."""
    caplog.set_level(logging.WARNING, logger="knouds_async")
    with anyio.move_on_after(1.5):
        await pipeline(emulator).send(CALL, hooks=Notes(emulator) if is_noted else None)
    assert (emulator.runs[0].execution_id in caplog.text) is not is_noted


async def test_every_attempt_is_reported(emulator: Emulator) -> None:
    """The hooks are called for a refused attempt and for the next, and for an unknown outcome."""
    notes: Any = Notes(emulator)
    emulator.faults.add(faults.rate_limited(), route=ROUTE, nth=1)
    await pipeline(emulator).send(CALL, hooks=notes)
    assert [type(decision) for decision in notes.decisions] == [Requeue, Done]
    emulator.faults.add(faults.closed(after_run=True), route=ROUTE, nth=1)
    with pytest.raises(SubmissionUnknownError):
        await pipeline(emulator).send(CALL, hooks=notes)
    assert isinstance(notes.decisions[-1], Fail)


SLUG = "my-thumbnail-pipeline"
INPUTS = {"product_name": "Knouds"}
NOBODY = "nobody"
request_id: ContextVar[str] = ContextVar("request_id")
Hook = Callable[[httpx.Request], Coroutine[Any, Any, None]]


def a_client(emulator: Emulator, hook: Hook) -> AsyncKnouds:
    """Return a client over a lent one that has a request hook."""
    http = httpx.AsyncClient(transport=EmulatorTransport(emulator, latency=0.1), event_hooks={"request": [hook]})
    return AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http)


class Requests:
    """A request hook that notes in whose context each request was made."""

    def __init__(self) -> None:
        self.submits: list[str] = []
        self.reads: list[str] = []
        self.polls: list[str] = []

    async def note(self, request: httpx.Request) -> None:
        is_poll = request.url.path.startswith(("/api/executions", "/api/usage"))
        seen = self.submits if request.method == "POST" else self.polls if is_poll else self.reads
        seen.append(request_id.get(NOBODY))


async def _for(caller: str, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
    request_id.set(caller)
    await work()


async def test_a_submit_is_made_in_its_callers_context(emulator: Emulator) -> None:
    """Each of several callers finds its own variables in the hooks of its own submit."""
    requests = Requests()
    async with a_client(emulator, requests.note) as knouds, anyio.create_task_group() as tasks:
        for caller in "abc":
            tasks.start_soon(_for, caller, lambda: knouds.workflows.submit(SLUG, INPUTS))
    assert sorted(requests.submits) == ["a", "b", "c"]


async def test_a_batch_submits_in_the_context_that_entered_it(emulator: Emulator) -> None:
    """The jobs of a map are sent in a copy of the context in which the batch was entered."""
    requests = Requests()
    request_id.set("batch")
    jobs = [Job(key, INPUTS) for key in "abc"]
    async with a_client(emulator, requests.note) as knouds, knouds.workflows.map(SLUG, jobs) as outcomes:
        assert [outcome.job.key async for outcome in outcomes]
    assert requests.submits == ["batch"] * 3
    assert set(requests.polls) == {NOBODY}


async def test_what_a_submit_sets_stays_with_it(emulator: Emulator) -> None:
    """The context is a copy: a variable that a hook sets does not show in the caller."""

    async def sets(request: httpx.Request) -> None:
        request_id.set("the hook's")

    request_id.set("mine")
    async with a_client(emulator, sets) as knouds:
        await knouds.workflows.submit(SLUG, INPUTS)
    assert request_id.get() == "mine"


async def test_polls_belong_to_no_caller(emulator: Emulator) -> None:
    """The polls, which all waiters share, see no context variable of the first waiter."""
    requests = Requests()
    async with a_client(emulator, requests.note) as knouds:
        first, second = [await knouds.workflows.submit(SLUG, INPUTS) for _ in range(2)]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_for, "first", first.wait)
            await anyio.sleep(1)
            tasks.start_soon(_for, "second", second.wait)
    assert len(requests.polls) >= 2
    assert set(requests.polls) == {NOBODY}


async def test_a_poll_that_a_caller_asks_for_is_its_own(emulator: Emulator) -> None:
    """`refresh`, like any call that is not shared, is made in its caller's context."""
    requests = Requests()
    async with a_client(emulator, requests.note) as knouds:
        execution = await knouds.workflows.submit(SLUG, INPUTS)
        request_id.set("mine")
        await execution.refresh()
        await knouds.whoami()
    assert requests.polls == requests.reads == ["mine"]


class Births(trio.abc.Instrument):
    """Notes the context that creates each task, as tracing tools read it."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def task_spawned(self, task: object) -> None:
        if "Poller._run" in repr(task):
            self.seen.append(request_id.get(NOBODY))

    def task_factory(self, loop: Any, work: Any, **options: Any) -> asyncio.Task[Any]:
        if "Poller._run" in repr(work):
            self.seen.append(request_id.get(NOBODY))
        return asyncio.Task(work, loop=loop, **options)


async def test_the_poller_is_created_from_within_an_empty_context(
    emulator: Emulator, anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    """Tools that read the context which creates a task find nothing of the caller that waits first."""
    births = Births()
    if anyio_backend[0] == "trio":
        trio.lowlevel.add_instrument(births)
    else:
        asyncio.get_running_loop().set_task_factory(births.task_factory)
    request_id.set("first")
    async with a_client(emulator, Requests().note) as knouds:
        await (await knouds.workflows.submit(SLUG, INPUTS)).wait()
    assert births.seen
    assert set(births.seen) == {NOBODY}


async def test_log_records_of_a_submit_can_name_its_caller(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """A filter that puts a context variable on log records finds the caller's in those of its submit."""

    def stamp(record: logging.LogRecord) -> bool:
        record.request_id = request_id.get(NOBODY)
        return True

    caplog.set_level(logging.DEBUG)
    caplog.handler.addFilter(stamp)
    request_id.set("mine")
    async with a_client(emulator, Requests().note) as knouds:
        await knouds.workflows.submit(SLUG, INPUTS)
    caplog.handler.removeFilter(stamp)
    records = [record for record in caplog.records if record.name in ("httpx", "knouds_async")]
    assert {getattr(record, "request_id", None) for record in records} == {"mine"}


# One way takes 1 s: the request leaves at 0, runs at 1, and its reply is read at 2.
MOMENTS = {"before it was sent": 0.0, "under way": 0.5, "as it runs": 1.0, "its reply under way": 1.5, "replied": 2.0}
Submit = Callable[[], Coroutine[Any, Any, None]]
Way = Callable[[AsyncKnouds, Submit, float], Awaitable[None]]
Main = Callable[[], Coroutine[Any, Any, None]]


class _SiblingError(Exception):
    """What a sibling task fails with."""


async def _asyncio_timeout(knouds: AsyncKnouds, submit: Submit, at: float) -> None:
    async with asyncio.timeout(at):
        await submit()


async def _wait_for(knouds: AsyncKnouds, submit: Submit, at: float) -> None:
    await asyncio.wait_for(asyncio.ensure_future(submit()), at)


async def _sibling_error(knouds: AsyncKnouds, submit: Submit, at: float) -> None:
    async def sibling() -> None:
        await asyncio.sleep(at)
        raise _SiblingError

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(submit())
        tasks.create_task(sibling())


async def _two_cancels(knouds: AsyncKnouds, submit: Submit, at: float) -> None:
    task = asyncio.create_task(submit())
    await asyncio.sleep(at)
    task.cancel()
    await asyncio.sleep(0.1)
    task.cancel()
    await task


async def _scope(knouds: AsyncKnouds, submit: Submit, at: float) -> None:
    with anyio.move_on_after(at):
        await submit()


async def _group_error(knouds: AsyncKnouds, submit: Submit, at: float) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(submit)
        await anyio.sleep(at)
        tasks.cancel_scope.cancel()


async def _closed(knouds: AsyncKnouds, submit: Submit, at: float) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(submit)
        await anyio.sleep(at)
        await knouds.aclose()


ON_ASYNCIO: list[Way] = [_asyncio_timeout, _wait_for, _sibling_error, _two_cancels]
ON_BOTH: list[Way] = [_scope, _group_error, _closed]


class Books:
    """What the caller can know of its submits: ids it was given or that were logged, and reports of unknowns."""

    def __init__(self, log: pytest.LogCaptureFixture) -> None:
        self.given: set[str] = set()
        self.unknown = 0
        self._log = log

    async def submit(self, knouds: AsyncKnouds) -> None:
        try:
            self.given.add((await knouds.workflows.submit(SLUG, INPUTS)).id)
        except SubmissionUnknownError:
            self.unknown += 1
        except KnoudsError:
            pass

    def known(self) -> set[str]:
        logged = (re.search(r"execution (\S+) of", record.getMessage()) for record in self._log.records)
        return self.given | {match.group(1) for match in logged if match}

    def reported(self) -> int:
        return self.unknown + sum("may have run" in record.getMessage() for record in self._log.records)


async def _cut(way: Way, at: float, knouds: AsyncKnouds, books: Books) -> None:
    with suppress(TimeoutError, asyncio.CancelledError, BaseExceptionGroup):
        await way(knouds, lambda: books.submit(knouds), at)


def _warn(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="knouds_async")


async def _settle(emulator: Emulator) -> None:
    await anyio.sleep(10)
    emulator.settle(anyio.current_time())


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("way", ON_BOTH)
async def test_every_run_is_known_whatever_ends_its_caller(
    way: Way, moment: str, make_client: Any, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Runs on the server are the ids known and the unknowns reported, on asyncio and trio."""
    _warn(caplog)
    knouds, books = make_client(emulator, latency=1.0), Books(caplog)
    await _cut(way, MOMENTS[moment], knouds, books)
    await _settle(emulator)
    assert {run.execution_id for run in emulator.runs} == books.known()
    assert books.reported() == 0


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("way", ON_ASYNCIO)
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_every_run_is_known_under_asyncios_own_cancellation(
    way: Way, moment: str, make_client: Any, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Timeouts, `wait_for`, a failing sibling and repeated `Task.cancel` lose no run."""
    _warn(caplog)
    knouds, books = make_client(emulator, latency=1.0), Books(caplog)
    await _cut(way, MOMENTS[moment], knouds, books)
    await _settle(emulator)
    assert {run.execution_id for run in emulator.runs} == books.known()
    assert books.reported() == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_the_cancellation_is_raised_after_the_id_was_read(
    make_client: Any, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio.timeout still ends in TimeoutError, once the submit has finished, and the id is in the log."""
    _warn(caplog)
    knouds = make_client(emulator, latency=1.0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await knouds.workflows.submit(SLUG, INPUTS)
    assert anyio.current_time() >= 2.0
    assert emulator.runs[0].execution_id in caplog.text


async def test_a_scope_that_was_cancelled_meanwhile_still_gives_the_handle(
    make_client: Any, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Under a cancel scope the finished submit gives its handle, and the id is logged in case the caller drops it."""
    _warn(caplog)
    knouds = make_client(emulator, latency=1.0)
    execution = None
    with anyio.move_on_after(0.5):
        execution = await knouds.workflows.submit(SLUG, INPUTS)
    assert execution is not None
    assert execution.id == emulator.runs[0].execution_id
    assert execution.id in caplog.text


async def test_a_submit_cancelled_in_line_sends_nothing(make_client: Any) -> None:
    """A submit that waits for its turn at the limit can be cancelled freely: nothing is sent, nothing is charged."""
    emulator = Emulator(tier="pro", limit=1, duration=5.0)
    knouds = make_client(emulator)
    await knouds.workflows.submit(SLUG, INPUTS)
    with anyio.move_on_after(1) as scope:
        await knouds.workflows.submit(SLUG, INPUTS)
    assert scope.cancelled_caught
    await _settle(emulator)
    assert len(emulator.runs) == 1


async def test_a_cut_synchronous_run_is_reported(
    make_client: Any, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """A synchronous run is not waited out when its caller is cancelled, but it is reported with target and time."""
    _warn(caplog)
    knouds = make_client(emulator)
    with anyio.move_on_after(5) as scope:
        await knouds.workflows.run(SLUG, INPUTS)
    assert scope.cancelled_caught
    assert len(emulator.runs) == 1
    assert f"workflows/{SLUG}" in caplog.text
    assert "may have run" in caplog.text


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_the_end_of_the_loop_reports_a_submit_it_cuts(
    make_client: Any, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """When the loop itself ends and cancels every task, the submit under way is reported as one that may have run."""
    _warn(caplog)
    knouds = make_client(emulator, latency=1.0)
    mine = asyncio.current_task()
    task = asyncio.create_task(knouds.workflows.submit(SLUG, INPUTS))
    await asyncio.sleep(0.5)
    for other in asyncio.all_tasks() - {mine}:  # as asyncio.Runner does when it closes
        if "runner" not in str(other.get_coro()):
            other.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "may have run" in caplog.text


def _on_asyncio(main: Main, presses: Sequence[float]) -> None:
    """Run `main`, and press Ctrl-C at the virtual times `presses`, as a terminal would."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        loop = runner.get_loop()
        for at in presses:
            loop.call_at(at, signal.raise_signal, signal.SIGINT)
        runner.run(main())


def _on_trio(main: Main, presses: Sequence[float]) -> None:
    async def press(at: float) -> None:  # in a system task, which is guarded: the main task gets the interrupt
        await trio.sleep(at)
        signal.raise_signal(signal.SIGINT)

    async def run() -> None:
        for at in presses:
            trio.lowlevel.spawn_system_task(press, at)
        await main()

    trio.run(run, clock=MockClock(autojump_threshold=0))


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Make Ctrl-C raise, as in a terminal: a program that is started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("run", [_on_asyncio, _on_trio])
def test_every_run_is_known_after_ctrl_c(
    run: Callable[[Main, Sequence[float]], None],
    moment: str,
    presses: int,
    emulator: Emulator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After Ctrl-C, pressed once or twice, runs on the server are the ids known and the unknowns reported."""
    _warn(caplog)
    books, at = Books(caplog), MOMENTS[moment] + 1e-3

    async def main() -> None:
        async with (
            httpx.AsyncClient(transport=EmulatorTransport(emulator, latency=1.0)) as http,
            AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http) as knouds,
        ):
            await books.submit(knouds)
            await anyio.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        run(main, [at + 0.2 * press for press in range(presses)])
    emulator.settle(60.0)
    ran = {run.execution_id for run in emulator.runs}
    assert books.known() <= ran
    assert len(ran - books.known()) <= books.reported() <= presses - 1


async def test_a_call_that_was_refused_goes_before_those_that_wait() -> None:
    """A 429 does not send it to the end of the line: it had its turn already."""
    paths: list[str] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        execution_id = request.url.path.rpartition("/")[2]
        paths.append(execution_id)
        if paths.count("refused") == 1 and execution_id == "refused":
            await anyio.sleep(0.2)  # the others wait to learn from this one what the quota is
            body = {"error": "Too many requests", "code": "RATE_LIMITED"}
            return httpx.Response(429, json=body, headers={"retry-after": "2"})
        return httpx.Response(200, json={"executionId": execution_id, "status": "processing"})

    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http,
        AsyncKnouds("knouds_live_test", base_url="https://knouds.test", tier="free", http_client=http) as knouds,
        anyio.create_task_group() as tasks,
    ):
        for name in ("refused", "waits-1", "waits-2"):
            tasks.start_soon(knouds.executions.get, name)
            await anyio.sleep(0.01)
    assert paths == ["refused", "refused", "waits-1", "waits-2"]
