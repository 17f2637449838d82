"""A project on anyio's plugin as it comes: every test on asyncio and on trio."""

from __future__ import annotations

import time

import anyio
import pytest

from knouds_async import AsyncKnouds, RunResult
from knouds_async.testing import Emulator

SLUG = "my-thumbnail-pipeline"
ran: list[tuple[str, float]] = []


@pytest.fixture
async def made(knouds: AsyncKnouds) -> RunResult:
    """Return the result of a run that is waited for in the fixture."""
    return await (await knouds.workflows.submit(SLUG, {"product_name": "of the fixture"}))


@pytest.mark.knouds(duration=600.0)
async def test_minutes_pass_at_once(
    knouds: AsyncKnouds, knouds_emulator: Emulator, anyio_backend_name: str, request: pytest.FixtureRequest
) -> None:
    """Ten minutes pass in less than one, on each backend, and the clock of each test starts anew."""
    began, real = anyio.current_time(), time.monotonic()
    assert request.node.name == f"test_minutes_pass_at_once[{anyio_backend_name}]"
    assert (await (await knouds.workflows.submit(SLUG, {"product_name": "x"}))).images
    assert 600 <= anyio.current_time() - began < 700
    assert time.monotonic() - real < 60
    knouds_emulator.assert_charged_once()
    ran.append((anyio_backend_name, began))


async def test_fixtures_are_in_virtual_time_too(made: RunResult) -> None:
    """A fixture of the project's may wait for a run."""
    assert made.images


async def test_a_test_without_the_fixture_has_the_real_clock() -> None:
    """A test that does not request the emulator is not changed."""
    began = anyio.current_time()
    await anyio.sleep(0.01)
    time.sleep(0.02)  # noqa: ASYNC251
    assert anyio.current_time() - began >= 0.03


async def test_a_port_is_in_real_time(knouds_url: str, knouds_emulator: Emulator) -> None:
    """An application that reads the environment talks to the emulator, whose runs are short without a marker."""
    async with AsyncKnouds() as knouds:
        assert (
            (await (await knouds.workflows.submit(SLUG, {"product_name": "x"}, expected=0.05)))
            .images[0]
            .url.startswith("http://")
        )
    assert knouds_url in repr(knouds)
    knouds_emulator.assert_charged_once()


def test_both_backends_ran() -> None:
    """Neither was left out, and both clocks began near zero."""
    assert {name for name, _ in ran} == {"asyncio", "trio"}
    assert all(began < 1 for _, began in ran)
