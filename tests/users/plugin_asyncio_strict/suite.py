"""A project on pytest-asyncio in strict mode: marked tests, fixtures of its own on top of the plugin's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from knouds_async import AsyncKnouds, ExecutionFailedError, RunResult
from knouds_async.testing import Emulator, VirtualTimeLoop

SLUG = "my-thumbnail-pipeline"


@pytest.fixture(autouse=True)
def no_test_sits_it_out() -> Iterator[None]:
    """Fail a test that waited in real time: the shortest wait here is of 45 s."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 40


@pytest_asyncio.fixture
async def made(knouds: AsyncKnouds) -> AsyncIterator[RunResult]:
    """Return the result of a run that is waited for in the fixture."""
    yield await (await knouds.workflows.submit(SLUG, {"product_name": "of the fixture"}))


@pytest.mark.asyncio
async def test_minutes_pass_at_once(knouds: AsyncKnouds, knouds_emulator: Emulator) -> None:
    """A run of 45 s is awaited, charged once, and the clock says that it took its time."""
    began = asyncio.get_running_loop().time()
    run = await (await knouds.workflows.submit(SLUG, {"product_name": "x"}))
    assert run.images
    assert asyncio.get_running_loop().time() - began > 5
    knouds_emulator.assert_charged_once()
    knouds_emulator.assert_no_429()


@pytest.mark.asyncio
async def test_fixtures_are_in_virtual_time_too(made: RunResult) -> None:
    """A fixture of the project's may wait for a run."""
    assert made.images


@pytest.mark.asyncio
@pytest.mark.knouds(tier="business", duration=300.0, failure_rate=1.0)
async def test_a_marker_sets_the_service(knouds: AsyncKnouds, knouds_emulator: Emulator) -> None:
    """The marker's settings are those of the emulator."""
    execution = await knouds.workflows.submit(SLUG, {"product_name": "x"})
    with pytest.raises(ExecutionFailedError):
        await execution
    assert knouds_emulator.runs[0].ends - knouds_emulator.runs[0].started == 300.0


@pytest.mark.asyncio
async def test_a_test_without_the_fixture_has_the_real_clock() -> None:
    """A test that does not request the emulator is not changed."""
    assert not isinstance(asyncio.get_running_loop(), VirtualTimeLoop)


@pytest.mark.asyncio
@pytest.mark.knouds(virtual_time=False, duration=0.01)
async def test_the_clock_can_be_real(knouds: AsyncKnouds) -> None:
    """The marker can ask for real time."""
    assert not isinstance(asyncio.get_running_loop(), VirtualTimeLoop)
    assert (await (await knouds.workflows.submit(SLUG, {"product_name": "x"}, expected=0.05))).images


@pytest.mark.asyncio
@pytest.mark.parametrize("product", ["one", "two"])
async def test_parameters_stay(knouds: AsyncKnouds, product: str, request: pytest.FixtureRequest) -> None:
    """A test's id is what the project's own parameters make it."""
    assert request.node.name == f"test_parameters_stay[{product}]"
    assert (await (await knouds.workflows.submit(SLUG, {"product_name": product}))).images
