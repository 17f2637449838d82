"""As users write their tests: pytest-asyncio fixtures, asyncio.TaskGroup, timeouts; nothing of ours breaks them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from knouds_async import AsyncKnouds, RunResult, WaitTimeoutError
from knouds_async.testing import Emulator, EmulatorTransport

SLUG = "my-thumbnail-pipeline"


@pytest.fixture
def service() -> Emulator:
    """Return a service whose runs finish in a moment of real time."""
    return Emulator(tier="enterprise", duration=0.02)


@pytest_asyncio.fixture
async def client(service: Emulator) -> AsyncIterator[AsyncKnouds]:
    """Return a client from a `yield` inside `async with`, entered and left in different tasks by pytest-asyncio."""
    http = httpx.AsyncClient(transport=EmulatorTransport(service))
    async with http, AsyncKnouds(service.api_key, base_url="https://knouds.test", http_client=http) as knouds:
        yield knouds


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared() -> AsyncIterator[AsyncKnouds]:
    """Return one client to all tests of the module, on the module's loop."""
    service = Emulator(tier="enterprise", duration=0.02)
    http = httpx.AsyncClient(transport=EmulatorTransport(service))
    async with http, AsyncKnouds(service.api_key, base_url="https://knouds.test", http_client=http) as knouds:
        yield knouds


@pytest.mark.asyncio
async def test_a_fixture_client_runs(client: AsyncKnouds) -> None:
    """A client from a yield fixture submits and awaits."""
    assert (await (await client.workflows.submit(SLUG, {"product_name": "x"}, expected=0.05))).cost == 12


@pytest.mark.asyncio
async def test_a_fixture_client_with_runs_in_flight_is_torn_down(client: AsyncKnouds, service: Emulator) -> None:
    """A test may end with a wait abandoned half way; the fixture still closes."""
    service.duration = 60.0
    execution = await client.workflows.submit(SLUG, {"product_name": "x"}, expected=0.05)
    with pytest.raises(WaitTimeoutError):
        await execution.wait(timeout=0.01)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await execution


@pytest.mark.asyncio
async def test_a_task_group_fans_out(client: AsyncKnouds) -> None:
    """asyncio.TaskGroup submits and awaits many at once."""

    async def one(number: int) -> RunResult:
        return await (await client.workflows.submit(SLUG, {"product_name": str(number)}, expected=0.05))

    async with asyncio.TaskGroup() as tasks:
        ends = [tasks.create_task(one(number)) for number in range(20)]
    assert len({end.result().execution_id for end in ends}) == 20


@pytest.mark.asyncio
async def test_a_failing_sibling_ends_a_wait_and_not_the_client(client: AsyncKnouds) -> None:
    """After a TaskGroup that failed, the same client works."""
    execution = await client.workflows.submit(SLUG, {"product_name": "x"}, expected=0.05)

    async def fail() -> None:
        raise LookupError

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(execution.wait())
            tasks.create_task(fail())
    assert (await execution).images


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("turn", [1, 2])
async def test_a_module_scoped_client_is_shared(shared: AsyncKnouds, turn: int) -> None:
    """A client of a wider scope serves test after test."""
    assert (await (await shared.workflows.submit(SLUG, {"product_name": str(turn)}, expected=0.05))).images
