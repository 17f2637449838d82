"""Deliveries wake the waiters of a client: without a poll when they bring the result, and polls are few meanwhile."""

import json
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from knouds_async import (
    AsyncKnouds,
    ClientClosedError,
    Execution,
    ExecutionCancelledError,
    ExecutionFailedError,
    ExecutionState,
    Status,
)
from knouds_async._io.concurrency import from_thread
from knouds_async.testing import Deliveries, Delivery, Emulator, Lognormal
from knouds_async.webhooks import WebhookReceiver
from knouds_async.webhooks.receiver import read_event
from tests.webhooks.sending import SECRET, Sender, into, payload

HOOK = "http://app.test/webhooks/knouds"
End = Callable[..., dict[str, Any]]


@pytest.fixture
def sender() -> Callable[..., Sender]:
    """Return a function that makes a receiver with these options, and a sender to it."""
    return lambda **options: Sender(WebhookReceiver(SECRET, **options))


@pytest.fixture
def end() -> Callable[..., dict[str, Any]]:
    """Return a function that writes the event of a run's end."""
    return payload


def hooked(**settings: Any) -> Emulator:
    """Return a service whose key has a webhook, and whose runs take 45 s unless set otherwise."""
    return Emulator(**{"tier": "enterprise", "duration": 45.0, "webhook_url": HOOK, **settings})


async def rely(knouds: AsyncKnouds, emulator: Emulator) -> int:
    """Deliver 16 runs to a client, so that it relies on deliveries; return how many requests there were."""
    receiver = WebhookReceiver(emulator.webhook_secret, client=knouds)
    async with emulator.delivering(into(receiver)):
        await run_many(knouds, 16)
    return emulator.requests.count


@pytest.fixture
def emulator() -> Emulator:
    """Return a service whose key has a webhook."""
    return hooked()


async def test_a_delivery_with_the_result_ends_the_wait_without_a_poll(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """Once others were delivered, a run is awaited to its end 0.2 s after it, for the one request of the submit."""
    before = await rely(knouds, emulator)
    receiver = WebhookReceiver(emulator.webhook_secret, client=knouds)
    async with emulator.delivering(into(receiver)):
        began = anyio.current_time()
        run = await (await knouds.workflows.submit("daily-picture", {}))
        assert anyio.current_time() - began < 46
    assert run.images
    assert (run.cost, run.ms) == (emulator.cost, 45_000)
    assert emulator.requests.count == before + 1


async def test_a_delivery_without_the_result_takes_one_poll(make_client: Any) -> None:
    """An end whose result is not in the delivery is polled once, at once."""
    emulator = hooked(deliveries=Deliveries(has_result=False))
    knouds = make_client(emulator)
    before = await rely(knouds, emulator)
    receiver = WebhookReceiver(emulator.webhook_secret, client=knouds)
    async with emulator.delivering(into(receiver)):
        began = anyio.current_time()
        run = await (await knouds.workflows.submit("daily-picture", {}))
        assert anyio.current_time() - began < 46
    assert run.images
    assert emulator.requests.count == before + 2


@pytest.mark.parametrize("rate", [0.0, 1.0])
async def test_every_end_is_noticed(make_client: Any, rate: float) -> None:
    """A failed run raises its error, a cancelled one that it was cancelled, both without a poll."""
    emulator = hooked(failure_rate=rate)
    knouds = make_client(emulator)
    before = await rely(knouds, emulator)
    receiver = WebhookReceiver(emulator.webhook_secret, client=knouds)
    async with emulator.delivering(into(receiver)):
        execution = await knouds.workflows.submit("daily-picture", {})
        if not rate:
            await execution.cancel()
        with pytest.raises(ExecutionFailedError if rate else ExecutionCancelledError):
            await execution
    assert emulator.requests.count == before + (1 if rate else 2)


async def test_all_waiters_of_a_run_wake(knouds: AsyncKnouds, emulator: Emulator, sender: Any, end: End) -> None:
    """Fifty tasks that await one run, through several handles, get the same result from one delivery."""
    send, results = sender(client=knouds), []
    execution = await knouds.workflows.submit("daily-picture", {})

    async def wait(handle: Execution) -> None:
        results.append(await handle)

    async with anyio.create_task_group() as tasks:
        for place in range(50):
            handle = execution if place % 2 else knouds.executions.attach(execution.id)
            tasks.start_soon(wait, handle)
        await anyio.sleep(1)
        assert await send(end(execution.id)) == 200
    assert len(results) == 50
    assert {str(result) for result in results} == {str(results[0])}
    assert emulator.requests.count == 1


async def test_a_delivery_before_anybody_waits_is_remembered(knouds: AsyncKnouds, sender: Any, end: End) -> None:
    """A run that was delivered before it was attached has finished at once, without a request."""
    send = sender(client=knouds)
    await send(end("run-1"))
    assert (await knouds.executions.attach("run-1")).images
    assert (await knouds.executions.attach("run-1").wait()).status == Status.COMPLETED


async def test_a_delivery_before_the_submits_answer_is_remembered(make_client: Any) -> None:
    """A run that ends while its submit's answer is still on the way needs no poll."""
    emulator = hooked(duration=0.0, deliveries=Deliveries(latency=0.0))
    knouds = make_client(emulator, latency=3.0)
    receiver = WebhookReceiver(emulator.webhook_secret, client=knouds)
    async with emulator.delivering(into(receiver)):
        execution = await knouds.workflows.submit("daily-picture", {})
        assert execution.state.is_final
        await execution
    assert emulator.requests.count == 1


async def test_a_bare_end_before_anybody_waits_is_polled_once(
    knouds: AsyncKnouds, emulator: Emulator, sender: Any, end: End
) -> None:
    """Without its result an early delivery makes the first wait poll at once, and once."""
    execution = await knouds.workflows.submit("daily-picture", {})
    await anyio.sleep(46)
    await sender(client=knouds)(end(execution.id, result=None))
    began = anyio.current_time()
    assert (await execution).images
    assert anyio.current_time() - began < 1
    assert emulator.requests.count == 2


async def test_a_final_state_never_changes(knouds: AsyncKnouds, sender: Any, end: End) -> None:
    """The first end that is delivered stays, and so does one that was polled."""
    execution = await knouds.workflows.submit("daily-picture", {})
    send = sender(client=knouds)
    await send(end(execution.id, "failed"))
    await send(end(execution.id, "completed"))
    assert execution.state.status == Status.FAILED
    assert knouds.executions.attach(execution.id).state.status == Status.FAILED
    other = await knouds.workflows.submit("daily-picture", {"count": 2})
    await anyio.sleep(46)
    await other.refresh()
    knouds.executions.delivered(ExecutionState(execution_id=other.id, status=Status.CANCELLED))
    assert other.state.status == Status.COMPLETED


async def test_events_on_the_way_change_nothing(knouds: AsyncKnouds, emulator: Emulator, sender: Any, end: End) -> None:
    """An event of a run that is still running wakes no waiter and makes no request, also one of an unknown kind."""
    send = sender(client=knouds)
    execution = await knouds.workflows.submit("daily-picture", {})
    await execution.cancel()
    await send(end(execution.id, event="execution.progress", status="processing"))
    await send(end(execution.id, event="execution.odd", status="odd"))
    assert execution.state.status == Status.CANCEL_REQUESTED
    with anyio.move_on_after(0.5):
        await execution.wait()
    assert emulator.requests.count == 2


async def test_contradicting_deliveries_are_polled(
    knouds: AsyncKnouds, emulator: Emulator, sender: Any, end: End
) -> None:
    """An event that names two ends makes one poll, and what that shows counts."""
    before = await rely(knouds, emulator)
    send = sender(client=knouds)
    execution = await knouds.workflows.submit("daily-picture", {})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(execution.wait)
        await anyio.sleep(46)
        await send(end(execution.id, "completed", status="failed"))
    assert execution.state.status == Status.COMPLETED
    assert emulator.requests.count == before + 2


async def test_an_announced_end_that_is_not_there_yet_is_polled(
    knouds: AsyncKnouds, emulator: Emulator, sender: Any, end: End
) -> None:
    """When the poll after a delivery still finds the run running, polls at the usual pace find its end."""
    send = sender(client=knouds)
    execution = await knouds.workflows.submit("daily-picture", {})
    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(execution.wait)
        await anyio.sleep(40)
        await send(end(execution.id, result=None))
    assert anyio.current_time() - began < 52
    assert execution.state.status == Status.COMPLETED


async def test_lost_deliveries_are_noticed(make_client: Any) -> None:
    """With no delivery at all every run ends all the same, and as soon as without a webhook."""
    emulator = hooked(deliveries=Deliveries(dropped=1.0))
    knouds = make_client(emulator)
    WebhookReceiver(emulator.webhook_secret, client=knouds)
    took = []
    for _ in range(5):
        began = anyio.current_time()
        await (await knouds.workflows.submit("daily-picture", {}))
        took.append(anyio.current_time() - began)
    assert max(took) < 51


async def run_many(knouds: AsyncKnouds, number: int) -> list[float]:
    """Submit and await runs all at once; return how long each took."""
    took = []

    async def one(place: int) -> None:
        began = anyio.current_time()
        await (await knouds.workflows.submit("daily-picture", {"seed": place})).wait()
        took.append(anyio.current_time() - began)

    async with anyio.create_task_group() as tasks:
        for place in range(number):
            tasks.start_soon(one, place)
    return took


WILD = {
    "plain": Deliveries(),
    "wild": Deliveries(
        latency=lambda dice: dice.expovariate(1.0), late=0.1, repeated=0.3, forged=0.3, expired=0.2, stale=0.2
    ),
}


@pytest.mark.parametrize(("how", "most"), [("plain", 1.4), ("wild", 1.8)])
async def test_requests_are_few_when_deliveries_arrive(make_client: Any, how: str, most: float) -> None:
    """120 runs of a spread duration, deliveries in and out of order: each ends once, at few requests a run."""
    emulator = hooked(duration=lambda dice: dice.lognormvariate(3.8, 0.35), deliveries=WILD[how], tier="enterprise")
    knouds, events = make_client(emulator), []

    async def note(event: Any) -> None:
        events.append(event.execution_id)

    receiver = WebhookReceiver(emulator.webhook_secret, client=knouds, handler=note)
    async with emulator.delivering(into(receiver)):
        assert len(await run_many(knouds, 120)) == 120
        await anyio.sleep(60)
    assert emulator.requests.count <= most * 120
    assert sorted(set(events)) == sorted({run.execution_id for run in emulator.runs})
    emulator.assert_charged_once()


@pytest.mark.parametrize(("ends", "polls"), [("failed", 0), ("completed", 1)])
async def test_only_completed_runs_say_how_long_runs_take(
    knouds: AsyncKnouds, emulator: Emulator, sender: Any, end: End, ends: str, polls: int
) -> None:
    """Of runs submitted at once: when eight end at 3 s, the ninth is polled soon, but not when those had failed."""
    send = sender(client=knouds)
    runs = [await knouds.workflows.submit("daily-picture", {"n": number}) for number in range(9)]
    async with anyio.create_task_group() as tasks:
        for run in runs:
            tasks.start_soon(run.wait)
        await anyio.sleep(3)
        for run in runs[:8]:
            assert await send(end(run.id, ends)) == 200
        await anyio.sleep(15)
        assert emulator.requests.by_route["GET /api/executions/:id"] == polls
        assert await send(end(runs[8].id)) == 200


async def test_requests_are_few_when_a_third_is_lost(make_client: Any) -> None:
    """With 30 % of the deliveries dropped each run ends once, and only the lost ones cost a poll."""
    emulator = hooked(duration=lambda dice: dice.lognormvariate(3.8, 0.35), deliveries=Deliveries(dropped=0.3))
    knouds = make_client(emulator)
    receiver = WebhookReceiver(emulator.webhook_secret, client=knouds)
    async with emulator.delivering(into(receiver)):
        assert len(await run_many(knouds, 120)) == 120
    polls = emulator.requests.by_route["GET /api/executions/:id"]
    assert 0.15 * 120 < polls <= 0.55 * 120
    emulator.assert_charged_once()


async def test_without_a_receiver_nothing_changes(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """A key with a webhook whose deliveries go elsewhere is polled as ever."""
    began = anyio.current_time()
    await (await knouds.workflows.submit("daily-picture", {}))
    assert anyio.current_time() - began < 51


async def test_a_key_without_a_webhook_is_polled(make_client: Any) -> None:
    """A receiver alone does not slow the polls at runs for which nothing was promised."""
    emulator = hooked(webhook_url=None)
    knouds = make_client(emulator)
    WebhookReceiver(emulator.webhook_secret, client=knouds)
    began = anyio.current_time()
    await (await knouds.workflows.submit("daily-picture", {}))
    assert anyio.current_time() - began < 51


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0, 2.0, 20.0])
@pytest.mark.parametrize("duration", [45.0, Lognormal(45.0, 0.35)], ids=["even", "spread"])
async def test_ends_that_another_process_was_told_come_in_time(make_client: Any, duration: Any, pause: float) -> None:
    """Two processes behind one address, each told of half of the ends: all but few come within 5 s all the same."""
    emulator = hooked(duration=duration)
    workers = [make_client(emulator), make_client(emulator)]
    posts = [into(WebhookReceiver(emulator.webhook_secret, client=worker)) for worker in workers]
    turn, seen_at = 0, dict[str, float]()

    async def either(delivery: Delivery) -> int:
        nonlocal turn
        turn += 1
        return await posts[turn % 2](delivery)

    async def one(worker: AsyncKnouds, seed: int) -> None:
        await anyio.sleep(seed % 30 * pause)
        execution = await worker.workflows.submit("daily-picture", {"seed": seed})
        await execution
        seen_at[execution.id] = anyio.current_time()

    async with emulator.delivering(either), anyio.create_task_group() as tasks:
        for seed in range(60):
            tasks.start_soon(one, workers[seed // 30], seed)
    late = sorted(seen_at[run.execution_id] - run.ends for run in emulator.runs)
    assert len(late) == 60
    assert late[56] <= 5
    emulator.assert_charged_once()


async def test_only_deliveries_of_its_own_runs_make_a_process_rely_on_them(
    knouds: AsyncKnouds, sender: Any, end: End
) -> None:
    """Of runs that others submitted only the delivered ones would count, never those that went elsewhere."""
    send = sender(client=knouds)
    attached = [knouds.executions.attach(f"run-{number}") for number in range(9)]
    for run in attached:
        await send(end(run.id))
    assert not knouds._poller._scheduler.deliveries.is_reliable
    own = [await knouds.workflows.submit("daily-picture", {"n": number}) for number in range(3)]
    for run in own:
        await send(end(run.id))
    assert knouds._poller._scheduler.deliveries.is_reliable


async def test_waiters_that_leave_hold_nothing(knouds: AsyncKnouds, emulator: Emulator, sender: Any, end: End) -> None:
    """A wait that is cancelled while deliveries are awaited leaves no task and no hold; the next one is served."""
    send = sender(client=knouds)
    execution = await knouds.workflows.submit("daily-picture", {})
    for _ in range(3):
        with anyio.move_on_after(5):
            await execution
    await anyio.lowlevel.checkpoint()
    assert len(knouds._poller._scheduler) == 0
    await send(end(execution.id))
    assert (await execution).images


async def test_closing_ends_the_waits_under_a_webhook(knouds: AsyncKnouds, sender: Any) -> None:
    """A client that is closed while deliveries are awaited lets every waiter go."""
    sender(client=knouds)
    execution = await knouds.workflows.submit("daily-picture", {})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_close_soon, knouds)
        with pytest.raises(ClientClosedError):
            await execution


async def _close_soon(knouds: AsyncKnouds) -> None:
    await anyio.sleep(1)
    await knouds.aclose()


async def test_a_delivery_from_another_thread_ends_the_wait(make_client: Any, emulator: Emulator, end: End) -> None:
    """It may be passed on from anywhere: a thread without an event loop, or one with its own."""
    knouds = make_client(emulator)
    executions = [await knouds.workflows.submit("daily-picture", {}) for _ in range(2)]
    states = [read_event(json.dumps(end(each.id)).encode()).state for each in executions]

    async def elsewhere() -> None:
        knouds.executions.delivered(states[1])

    def deliver() -> None:
        knouds.executions.delivered(states[0])
        anyio.run(elsewhere)

    async with anyio.create_task_group() as tasks:
        for each in executions:
            tasks.start_soon(each.wait)
        await anyio.lowlevel.checkpoint()
        threading.Thread(target=deliver).start()
    assert [each.state.status for each in executions] == [Status.COMPLETED] * 2


async def test_a_delivery_from_a_callback_of_the_event_loop_ends_the_wait(
    make_client: Any, emulator: Emulator, end: End
) -> None:
    """Libraries of buses call plain functions, in which no task is running."""
    knouds = make_client(emulator)
    execution = await knouds.workflows.submit("daily-picture", {})
    state = read_event(json.dumps(end(execution.id)).encode()).state
    from_thread()(lambda: knouds.executions.delivered(state))
    began = anyio.current_time()
    await execution
    assert anyio.current_time() - began < 1


async def test_what_is_delivered_before_a_client_is_used_is_remembered(
    make_client: Any, emulator: Emulator, end: End, knouds: AsyncKnouds
) -> None:
    """A client that no event loop has used yet keeps what comes from a thread for its first wait."""
    execution = await knouds.workflows.submit("daily-picture", {})
    state = read_event(json.dumps(end(execution.id)).encode()).state
    other = make_client(emulator)
    thread = threading.Thread(target=other.executions.delivered, args=(state,))
    thread.start()
    thread.join()
    await other.executions.attach(execution.id)
    assert len(emulator.requests) == 1
