"""A project on pytest-asyncio in auto mode, with an application that builds its own client."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from knouds_async import AsyncKnouds, SubmissionUnknownError
from knouds_async.testing import Emulator, VirtualTimeLoop, faults

SLUG = "my-thumbnail-pipeline"
pytestmark = pytest.mark.knouds(duration=120.0)


class Shop:
    """An application that has a client of its own."""

    def __init__(self, http_client: httpx.AsyncClient, key: str) -> None:
        self.knouds = AsyncKnouds(key, http_client=http_client)

    async def thumbnail(self, product: str) -> str:
        """Make a thumbnail."""
        return (await (await self.knouds.workflows.submit(SLUG, {"product_name": product}))).images[0].url


@pytest.fixture
async def shop(knouds_http_client: httpx.AsyncClient, knouds_emulator: Emulator) -> AsyncIterator[Shop]:
    """Return the application."""
    shop = Shop(knouds_http_client, knouds_emulator.api_key)
    yield shop
    await shop.knouds.aclose()


async def test_an_application_uses_the_http_client(shop: Shop, knouds_emulator: Emulator) -> None:
    """A client that the application builds itself talks to the emulator."""
    assert await shop.thumbnail("x")
    assert [charge.amount for charge in knouds_emulator.charges] == [knouds_emulator.cost]
    assert knouds_emulator.runs[0].ends - knouds_emulator.runs[0].started == 120.0


@pytest.mark.knouds(faults=faults.closed(after_run=True), latency=0.5)
async def test_markers_add_up(knouds: AsyncKnouds, knouds_emulator: Emulator) -> None:
    """A test's marker adds to its module's; a fault alone strikes every request."""
    with pytest.raises(SubmissionUnknownError):
        await knouds.workflows.submit(SLUG, {"product_name": "x"})
    assert (len(knouds_emulator.runs), knouds_emulator.duration) == (1, 120.0)
    assert asyncio.get_running_loop().time() >= 0.5


@pytest.mark.knouds(
    faults=[
        "stalled seconds=3 after_run on submit nth=1",
        {"script": [faults.bad_gateway()], "route": "GET /api/executions/:id"},
    ]
)
async def test_faults_in_words(knouds: AsyncKnouds, knouds_emulator: Emulator) -> None:
    """Faults can be words, and what `faults.add` takes."""
    await (await knouds.workflows.submit(SLUG, {"product_name": "x"}))
    assert set(knouds_emulator.faults.struck) == {"stalled", "bad_gateway"}


async def an_application_that_nobody_can_hand_a_client() -> str:
    """Make a thumbnail as the environment says."""
    async with AsyncKnouds() as knouds:
        return (await (await knouds.workflows.submit(SLUG, {"product_name": "x"}, expected=0.05))).images[0].url


@pytest.mark.knouds(duration=0.02)
async def test_an_application_is_pointed_at_a_port(knouds_url: str, knouds_emulator: Emulator) -> None:
    """What reads the environment talks to the emulator, in real time."""
    assert not isinstance(asyncio.get_running_loop(), VirtualTimeLoop)
    assert knouds_url.startswith("http://127.0.0.1:")
    assert (await an_application_that_nobody_can_hand_a_client()).startswith("http://127.0.0.1:")
    knouds_emulator.assert_charged_once()


@pytest.mark.knouds(duration=0.02)
def test_a_child_process_is_pointed_at_it_too(knouds_url: str, knouds_emulator: Emulator) -> None:
    """And so is what the test starts."""
    code = "import asyncio, suite; print(asyncio.run(suite.an_application_that_nobody_can_hand_a_client()))"
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.startswith("http")
    assert [run.status for run in knouds_emulator.runs] == ["completed"]


class TestClass:
    """A class of tests."""

    async def test_in_a_class(self, knouds: AsyncKnouds) -> None:
        """Methods are tests like all others."""
        assert isinstance(asyncio.get_running_loop(), VirtualTimeLoop)
        assert (await knouds.whoami()).tier == "pro"
