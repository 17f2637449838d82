"""A project on pytest-trio: marked tests, a nursery, fixtures of its own, and a clock of its own for one of them."""

from __future__ import annotations

import time

import pytest
import trio
from trio.testing import MockClock

from knouds_async import AsyncKnouds, RunResult
from knouds_async.testing import Emulator

SLUG = "my-thumbnail-pipeline"


@pytest.fixture
async def made(knouds: AsyncKnouds) -> RunResult:
    """Return the result of a run that is waited for in the fixture."""
    return await (await knouds.workflows.submit(SLUG, {"product_name": "of the fixture"}))


@pytest.mark.trio
@pytest.mark.knouds(duration=600.0)
async def test_minutes_pass_at_once(knouds: AsyncKnouds, knouds_emulator: Emulator) -> None:
    """Ten minutes pass in less than one."""
    began = time.monotonic()
    async with trio.open_nursery() as nursery:
        for product in "abc":
            execution = await knouds.workflows.submit(SLUG, {"product_name": product})
            nursery.start_soon(execution.wait)
    assert time.monotonic() - began < 60
    assert trio.current_time() >= 600
    knouds_emulator.assert_charged_once()


@pytest.mark.trio
async def test_fixtures_are_in_virtual_time_too(made: RunResult) -> None:
    """A fixture of the project's may wait for a run."""
    assert made.images


@pytest.mark.trio
async def test_a_clock_of_the_test_wins(knouds: AsyncKnouds, autojump_clock: MockClock) -> None:
    """pytest-trio's own clock is used where a test asks for it."""
    assert trio.lowlevel.current_clock() is autojump_clock
    assert (await (await knouds.workflows.submit(SLUG, {"product_name": "x"}))).images


@pytest.mark.trio
async def test_a_test_without_the_fixture_has_the_real_clock() -> None:
    """A test that does not request the emulator is not changed."""
    assert not isinstance(trio.lowlevel.current_clock(), MockClock)
