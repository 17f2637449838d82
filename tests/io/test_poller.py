"""The poller: one for all waiters, alive only while something waits, and the only source of results."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest
from opentelemetry.metrics import NoOpHistogram, NoOpMeter, NoOpMeterProvider

from knouds_async import AsyncKnouds, Execution, KnoudsError, Limiter, Polling, RunResult, Status, WaitTimeoutError
from knouds_async._io.poller import DeliveryInbox
from knouds_async.testing import Deliveries, Emulator
from knouds_async.types import ExecutionState
from knouds_async.webhooks import WebhookReceiver
from tests.scripted_client import scripted
from tests.webhooks.sending import into

SLUG = "my-thumbnail-pipeline"
INPUTS = {"product_name": "Knouds"}
POLL = "GET /api/executions/:id"


async def test_three_tasks_share_the_polls_of_one_handle(make_client: Any) -> None:
    """However many tasks await one handle, and however many handles one run has, it is polled as for one."""
    counts = []
    for waiters in (1, 3):
        emulator = Emulator(tier="business", duration=45.0)
        knouds = make_client(emulator, polling=Polling.every(5.0))
        execution = await knouds.workflows.submit(SLUG, INPUTS)
        same = knouds.executions.attach(execution.id)
        async with anyio.create_task_group() as tasks:
            for index in range(waiters):
                tasks.start_soon((execution, same)[index % 2].wait)
        counts.append(emulator.requests.by_route[POLL])
    assert counts == [9, 9]


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_the_poller_lives_only_while_somebody_waits(knouds: AsyncKnouds) -> None:
    """Before the first wait and after the last, no task of the library exists."""
    before = len(asyncio.all_tasks())
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    await anyio.lowlevel.checkpoint()
    assert len(asyncio.all_tasks()) == before
    await execution
    await anyio.sleep(0.1)
    assert len(asyncio.all_tasks()) == before


async def test_waiting_in_short_pieces_keeps_the_schedule(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """Many short waits poll no more often than one long one."""
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    while not execution.state.is_final:
        try:
            await execution.wait(timeout=0.5)
        except WaitTimeoutError:
            continue
    assert emulator.requests.by_route[POLL] <= 15


async def test_two_hundred_runs_are_each_awaited_by_three_tasks(make_client: Any) -> None:
    """200 concurrent runs, three waiters each, end without an error, each run once."""
    emulator = Emulator(tier="enterprise", duration=30.0)
    knouds = make_client(emulator)
    results: list[RunResult] = []

    async def waiter(execution: Execution) -> None:
        results.append(await execution)

    async def one(number: int) -> None:
        execution = await knouds.workflows.submit(SLUG, {"product_name": f"n{number}"})
        async with anyio.create_task_group() as waiters:
            for _ in range(3):
                waiters.start_soon(waiter, execution)

    async with anyio.create_task_group() as tasks:
        for number in range(200):
            tasks.start_soon(one, number)
    assert len(results) == 600
    emulator.assert_charged_once()
    emulator.assert_no_429()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_poller_that_is_cancelled_from_outside_is_started_again(knouds: AsyncKnouds) -> None:
    """When the poller's task is cancelled from outside, waits that continue still end."""
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    waiting = asyncio.create_task(execution.wait())
    await asyncio.sleep(5)
    for task in asyncio.all_tasks():
        if task is not waiting and "PollTask" in repr(task.get_coro()):
            task.cancel()
    assert (await waiting).status is Status.COMPLETED


class BrokenLimiter(Limiter):
    """Raises when it is asked for the quota, once it `is_broken`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_broken, self.calls = False, 0

    def stats(self, route: str) -> Any:
        """Return a route's quota."""
        self.calls += 1
        if self.is_broken:
            raise LookupError("the shelf is empty")
        return super().stats(route)


async def test_an_unexpected_error_of_the_poll_task_ends_each_wait_and_is_not_repeated(make_client: Any) -> None:
    """Each waiter gets it, with the run that continues and can be waited for again; the task is not restarted."""
    emulator, limiter, seen = Emulator(duration=30.0), BrokenLimiter(), list[KnoudsError]()
    knouds = make_client(emulator, limiter=limiter)
    executions = [await knouds.workflows.submit(SLUG, {"product_name": str(place)}) for place in range(2)]
    before = 0

    async def wait(execution: Execution, timeout: float | None) -> None:
        with pytest.raises(KnoudsError, match="LookupError: the shelf is empty") as caught:
            await execution.wait(timeout=timeout)
        seen.append(caught.value)

    async with anyio.create_task_group() as tasks:
        for place in range(6):
            tasks.start_soon(wait, executions[place % 2], None if place % 3 else 60.0)
        await anyio.sleep(1)
        limiter.is_broken = True
        before = limiter.calls
    assert limiter.calls - before <= 5
    assert len(set(map(id, seen))) == 6
    for error in seen:
        assert error.may_have_run
        assert f"knouds.executions.attach('{error.execution_id}')" in error.__notes__[0]
    assert {error.execution_id for error in seen} == {execution.id for execution in executions}
    limiter.is_broken = False
    assert [(await execution.wait()).status for execution in executions] == [Status.COMPLETED] * 2


class BrokenMeters(NoOpMeterProvider):
    """Makes a meter whose histograms raise."""

    class _Meter(NoOpMeter):
        def create_histogram(self, *names: Any, **options: Any) -> Any:
            class Broken(NoOpHistogram):
                def record(self, *_: Any, **__: Any) -> None:
                    raise LookupError("the shelf is empty")

            return Broken(names[0])

    def get_meter(self, name: str, *_: Any, **__: Any) -> Any:
        """Return a meter."""
        return self._Meter(name)


async def test_an_end_that_was_seen_ends_the_wait_whatever_fails_after_it(
    make_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What a meter raises is logged with its traceback, and keeps no wait from ending."""
    knouds = make_client(Emulator(duration=1.0), meter_provider=BrokenMeters())
    executions = [await knouds.workflows.submit(SLUG, {"product_name": str(place)}) for place in range(2)]
    assert [(await execution.wait(timeout=10)).status for execution in executions] == [Status.COMPLETED] * 2
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [LookupError] * 2


async def test_what_reports_an_end_loses_no_run(make_client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a meter raises, a submit whose run was delivered before returns its handle, and `refresh` a state."""
    emulator = Emulator(duration=0.0, webhook_url="http://app.test/hook", deliveries=Deliveries(latency=0.0))
    knouds = make_client(emulator, latency=1.0, meter_provider=BrokenMeters())
    receiver = WebhookReceiver(emulator.webhook_secret, client=knouds)
    async with emulator.delivering(into(receiver)):
        execution = await knouds.workflows.submit(SLUG, INPUTS)
    assert execution.state.status is Status.COMPLETED
    other = await make_client(emulator, meter_provider=BrokenMeters()).executions.attach(execution.id).refresh()
    assert other.status is Status.COMPLETED
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [LookupError] * 2


async def test_only_a_poll_finishes_a_run() -> None:
    """The answer to a submit or a cancel that says `completed` has no result: the run is polled for it."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"status": "completed", "result": {"text": "done"}})
        name = "run-2" if "run-2" in request.url.path else "run-1"
        return httpx.Response(200, json={"executionId": name, "status": "completed"})

    knouds = scripted(answer)
    assert (await (await knouds.workflows.submit("a", {}))).text == "done"
    state = await knouds.executions.attach("run-2").cancel()
    assert (state.status, state.result) == (Status.COMPLETED, {"text": "done"})


# The inbox of deliveries

STATE = ExecutionState(execution_id="5e0c9f10-3f41-4ce7-9b0f-2f6f8f1d2c3b", status=Status.COMPLETED)


class Bus:
    """Notes who listens."""

    def __init__(self) -> None:
        self.listening = 0
        self.calls: list[Callable[..., object]] = []

    def listen(self, *calls: Callable[..., object]) -> Callable[[], None]:
        """Begin to listen."""
        self.listening += 1
        self.calls = list(calls)

        def stop() -> None:
            self.listening -= 1

        return stop


def nothing(*_: Any) -> None:
    """Do nothing."""


async def test_a_task_of_the_event_loop_has_it_processed_at_once() -> None:
    """There is nothing to wait for where it may be processed."""
    taken: list[ExecutionState] = []
    DeliveryInbox(taken.append, nothing, nothing).put(STATE)
    assert taken == [STATE]


async def test_it_is_processed_in_a_task_of_its_event_loop() -> None:
    """What a thread brings is processed where the time of the event loop can be read."""
    taken: list[tuple[ExecutionState, float]] = []
    inbox = DeliveryInbox(lambda state: taken.append((state, anyio.current_time())), nothing, nothing)
    inbox.enter()
    thread = threading.Thread(target=inbox.put, args=(STATE,))
    thread.start()
    thread.join()
    assert taken == []
    await anyio.sleep(0.01)
    assert [state for state, _ in taken] == [STATE]


async def test_a_delivery_that_cannot_be_processed_ends_no_event_loop(caplog: pytest.LogCaptureFixture) -> None:
    """What goes wrong in the task that processes what a thread or a bus brings is logged, and the next is processed."""
    taken: list[ExecutionState] = []

    def process(state: ExecutionState) -> None:
        taken.append(state)
        if len(taken) == 1:
            raise LookupError("the shelf is empty")

    inbox = DeliveryInbox(process, nothing, nothing)
    inbox.enter()
    for _ in range(2):
        thread = threading.Thread(target=inbox.put, args=(STATE,))
        thread.start()
        thread.join()
        await anyio.sleep(0.01)
    assert taken == [STATE, STATE]
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [LookupError]


def test_an_event_loop_that_has_ended_hears_nothing() -> None:
    """What comes after its end is dropped, without an error for the one that brings it."""
    taken: list[ExecutionState] = []
    inbox = DeliveryInbox(taken.append, nothing, nothing)

    async def enter() -> None:
        inbox.enter()

    anyio.run(enter)
    inbox.put(STATE)
    assert taken == []


@pytest.mark.parametrize("place", [1, 2])
async def test_a_bus_is_listened_to_while_runs_are_waited_for(place: int) -> None:
    """From the first wait to the end of the last; what it says of itself is called in a task, too."""
    bus, called = Bus(), list[float]()
    notes: list[Callable[[], None]] = [nothing, nothing]
    notes[place - 1] = lambda: called.append(anyio.current_time())
    inbox = DeliveryInbox(nothing, *notes)
    inbox.set_bus(bus)
    assert bus.listening == 0
    for _ in range(2):
        inbox.awaited(is_any=True)
    assert bus.listening == 1
    bus.calls[place]()
    await anyio.sleep(0.01)
    assert len(called) == 1
    for _ in range(2):
        inbox.awaited(is_any=False)
    assert bus.listening == 0
