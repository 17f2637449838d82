"""A module that has chosen a backend, as many projects do: one fixture of wide scope, without parameters."""

from __future__ import annotations

import time

import anyio
import pytest

from knouds_async import AsyncKnouds


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Run on asyncio only."""
    return "asyncio"


async def test_real_before() -> None:
    """The clock is real for a test that does not ask for the emulator."""
    assert anyio.current_time() > 100 or time.monotonic() < 100


async def test_virtual(knouds: AsyncKnouds, anyio_backend_name: str, request: pytest.FixtureRequest) -> None:
    """The backend is the project's, the clock is virtual, the id is as ever."""
    assert (anyio_backend_name, request.node.name) == ("asyncio", "test_virtual")
    assert anyio.current_time() < 100
    assert (await (await knouds.workflows.submit("daily-picture", {}))).images


async def test_real_after(anyio_backend: object) -> None:
    """And real again after it, the fixture's value as the project gave it."""
    assert anyio_backend == "asyncio"
    assert anyio.current_time() > 100 or time.monotonic() < 100
