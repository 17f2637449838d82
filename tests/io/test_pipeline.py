"""What waiting costs a call: nothing. The line for a connection, and what refusals spend of a retry's budget."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import httpx
import pytest

from knouds_async import AsyncKnouds, ClientClosedError, ConnectionFailedError, Limiter, Retries, Timeouts
from knouds_async._io.exchange import Exchange
from knouds_async._io.pipeline import Pipeline
from knouds_async._sansio import endpoints
from knouds_async.config import Secret
from knouds_async.testing import Emulator, faults
from knouds_async.testing.transport import EmulatorTransport
from knouds_async.types import Target

RUN = "POST /api/workflows/:slug/run"
ME = "GET /api/whoami"
TARGET = Target("workflows", "my-thumbnail-pipeline")
INPUTS = {"product_name": "x"}
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
                agent="test",
                is_known=True,
            )
            limiter = options.get("limiter") or Limiter(emulator.tier)
            return Pipeline(exchange, limiter, options.get("retries", ONCE), connections=connections)

        yield make


async def test_the_line_for_a_connection_does_not_eat_the_exchange(make_pipeline: MakePipeline) -> None:
    """Twenty submits of 1 s over one connection: each has its 1.5 s for itself, none is unknown or fails."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    patience = Timeouts(submit=1.5, total=1.5)
    pipeline = make_pipeline(emulator, connections=1, latency=0.5, timeouts=patience)
    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(pipeline.send, endpoints.submit(TARGET, INPUTS))
    assert len(emulator.runs) == 20
    assert anyio.current_time() - began == pytest.approx(20, abs=0.5)


@pytest.mark.parametrize("is_paid", [False, True])
async def test_the_line_for_a_connection_has_a_time_of_its_own(make_pipeline: MakePipeline, is_paid: bool) -> None:
    """`Timeouts.pool` ends that wait, a paid request's not before its exchange's own time; nothing was sent."""
    emulator = Emulator(tier="enterprise", duration=500.0)
    pipeline = make_pipeline(emulator, connections=1, timeouts=Timeouts(pool=7, total=9, submit=9))
    call: Any = endpoints.submit(TARGET, INPUTS) if is_paid else endpoints.whoami()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pipeline.send, endpoints.run(TARGET, INPUTS))
        await anyio.sleep(1)
        began = anyio.current_time()
        with pytest.raises(ConnectionFailedError, match="no connection became free within") as caught:
            await pipeline.send(call)
        assert anyio.current_time() - began == pytest.approx(9 if is_paid else 7, abs=0.01)
        assert not caught.value.may_have_run
    assert len(emulator.runs) == 1
    await pipeline.send(call)


async def test_a_call_cancelled_in_line_for_a_connection_sends_nothing(make_pipeline: MakePipeline) -> None:
    """It leaves at once though it is paid, gives its turn back, and the next in line gets the connection."""
    emulator = Emulator(tier="pro", duration=20.0)
    limiter = Limiter("pro")
    pipeline = make_pipeline(emulator, connections=1, limiter=limiter)
    await pipeline.send(endpoints.submit(TARGET, INPUTS))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pipeline.send, endpoints.run(TARGET, INPUTS))
        await anyio.sleep(1)
        left, began = limiter.stats(RUN).left, anyio.current_time()
        with anyio.move_on_after(0.5) as scope:
            await pipeline.send(endpoints.submit(TARGET, INPUTS))
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
            tasks.start_soon(pipeline.send, endpoints.run(TARGET, INPUTS))
    assert len(emulator.runs) == 12
    emulator.assert_no_429()


async def test_a_call_cancelled_with_a_connection_in_hand_frees_it(make_pipeline: MakePipeline) -> None:
    """Who got a connection late and waits for another turn gives the connection back when it is cancelled."""
    emulator = Emulator(tier="pro", duration=10.0)
    emulator.faults.add(faults.rate_limited(), route=RUN, nth=3)
    limiter = Limiter("pro")
    one, many = (make_pipeline(emulator, connections=number, limiter=limiter) for number in (1, math.inf))
    await many.send(endpoints.submit(TARGET, INPUTS))
    async with anyio.create_task_group() as tasks:
        began = anyio.current_time()
        tasks.start_soon(one.send, endpoints.run(TARGET, INPUTS))
        await anyio.sleep(1)
        late = anyio.CancelScope()

        async def wait() -> None:
            with late:
                await one.send(endpoints.submit(TARGET, INPUTS))

        tasks.start_soon(wait)
        await anyio.sleep_until(began + 9)
        tasks.start_soon(many.send, endpoints.submit(TARGET, INPUTS))  # refused: nobody may send for 5 s
        await anyio.sleep_until(began + 12)
        late.cancel()
        await anyio.sleep(0.01)
        assert late.cancelled_caught
        before = anyio.current_time()
        await one.send(endpoints.whoami())
        assert anyio.current_time() - before < 1
    assert len(emulator.runs) == 3


async def test_closing_ends_the_line_for_a_connection(make_pipeline: MakePipeline) -> None:
    """Who waits for a connection, or for a new turn with one in hand, is told that the client is closed."""
    emulator = Emulator(tier="pro", limit=2, duration=10.0, window_phase=-1.0)
    pipeline = make_pipeline(emulator, connections=1)
    told: list[int] = []

    async def late(number: int) -> None:
        with pytest.raises(ClientClosedError):
            await pipeline.send(endpoints.submit(TARGET, INPUTS))
        told.append(number)

    await pipeline.send(endpoints.whoami())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pipeline.send, endpoints.run(TARGET, INPUTS))
        await anyio.sleep(1)
        for number in range(3):
            tasks.start_soon(late, number)
        await anyio.sleep(2)
        pipeline.close()
    assert sorted(told) == [0, 1, 2]
    assert len(emulator.runs) == 1


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
