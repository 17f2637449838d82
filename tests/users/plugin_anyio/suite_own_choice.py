"""A module whose fixture has parameters of its own, one of them with a clock."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from trio.testing import MockClock

from knouds_async import AsyncKnouds


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run on both, trio with a clock of the project's own."""
    if request.param == "trio":
        return "trio", {"clock": MockClock(autojump_threshold=0.001)}
    return "asyncio", {"debug": True}


async def test_options_are_kept(knouds: AsyncKnouds, anyio_backend: tuple[str, dict[str, Any]]) -> None:
    """Options of the project's stay, and a clock of its own wins."""
    name, options = anyio_backend
    assert (await (await knouds.workflows.submit("daily-picture", {}))).images
    assert anyio.current_time() < 1000
    if name == "trio":
        assert options["clock"].autojump_threshold == 0.001
    else:
        assert options["debug"] is True
