"""One quota for many machines, in a database."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

from knouds_async import AsyncKnouds, SharedLimiter
from knouds_async._io import database_limiter
from knouds_async.postgres import Postgres
from knouds_async.testing import Emulator
from knouds_async.testing.transport import EmulatorTransport
from tests.postgres.relay import Relay
from tests.postgres.server import PASSWORD, Pooler, Server

pytestmark = pytest.mark.slow

SLUG, ROUTE = "my-thumbnail-pipeline", "POST /api/workflows/:slug/run"


@asynccontextmanager
async def machine(emulator: Emulator, limiter: Any, key: str | None = None) -> AsyncIterator[AsyncKnouds]:
    """Run a client on the emulator by the clock on the wall, with 20 ms each way."""
    async with (
        httpx.AsyncClient(transport=EmulatorTransport(emulator, latency=0.02)) as http,
        AsyncKnouds(
            key or emulator.api_key, base_url="https://knouds.test", http_client=http, limiter=limiter
        ) as client,
    ):
        yield client


async def submit(knouds: AsyncKnouds, count: int) -> None:
    """Submit so many runs at once."""
    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(knouds.workflows.submit, SLUG, {"product_name": f"{number}"})


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return what grows with each transaction on windows."""
    found: list[int] = []
    change_windows = database_limiter.change_windows

    def counted(transaction: Any, changes: Sequence[Any]) -> list[Any]:
        found.append(len(changes))
        return change_windows(transaction, changes)

    monkeypatch.setattr(database_limiter, "change_windows", counted)
    return found


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_machines_share_one_quota(url: str, transactions: list[int]) -> None:
    """Four machines use up every window together, without a 429, for less than 0.6 transactions a request."""
    emulator = Emulator(tier="pro", limit=40, window_length=4.0, window_phase=0.7, duration=1.0, clock_skew=137.0)

    async def one(number: int) -> None:
        async with machine(emulator, SharedLimiter(f"{url}?application_name=machine{number}")) as knouds:
            await submit(knouds, 50)

    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(one, number)
    assert len(emulator.runs) == 200
    emulator.assert_no_429()
    began = [run.started for run in emulator.runs]
    assert began[-1] - began[0] < 6 * 4.0
    assert len(transactions) < 0.6 * 200


async def test_machines_share_one_quota_behind_a_pooler(server: Server, database: str, pooler: Pooler) -> None:
    """It needs nothing that a pooler of transactions takes away."""
    emulator = Emulator(tier="pro", limit=20, window_length=3.0, window_phase=0.7, duration=1.0)
    url = server.url(database, port=pooler.port)

    async def one(number: int) -> None:
        async with machine(emulator, SharedLimiter(f"{url}?application_name=machine{number}")) as knouds:
            await submit(knouds, 20)

    async with anyio.create_task_group() as tasks:
        for number in range(2):
            tasks.start_soon(one, number)
    assert len(emulator.runs) == 40
    emulator.assert_no_429()


async def test_accounts_have_quotas_of_their_own(server: Server, database: str, url: str) -> None:
    """Windows are by account and route; what names them tells nothing of the key."""
    for number in range(2):
        emulator = Emulator(tier="pro", api_key=f"knouds_live_{number}{PASSWORD}")
        async with machine(emulator, SharedLimiter(Postgres(url))) as knouds:
            await submit(knouds, 3)
            assert knouds.limiter.stats(ROUTE).limit == 100
    rows = server.execute("SELECT name, state FROM knouds_window WHERE name LIKE '%%/run'", database=database)
    assert len({name for name, _ in rows}) == 2
    assert PASSWORD not in str(rows)


async def test_a_database_that_is_away_stops_no_request(
    server: Server, database: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are sent without it after a moment, which is one warning; once it is back it is used again."""
    monkeypatch.setattr(database_limiter, "STUCK", 0.5)
    monkeypatch.setattr(database_limiter, "AGAIN", 1.0)
    relay, emulator = Relay(server.port), Emulator(tier="pro", limit=1000)
    try:
        relay.hold()
        async with machine(emulator, SharedLimiter(server.url(database, port=relay.port))) as knouds:
            with anyio.fail_after(20):
                await submit(knouds, 5)
                assert len([each for each in caplog.records if "cannot be shared" in each.message]) == 1
                relay.flow()
                await anyio.sleep(2.0)
                await submit(knouds, 5)
        rows = server.execute("SELECT count(*) FROM knouds_window", database=database)
        assert rows[0][0] > 0
    finally:
        relay.close()


async def test_a_crash_of_the_database_forgets_the_windows_only(own_server: Server) -> None:
    """The table is unlogged, so empty after a crash: the quota is learned anew, and no request fails."""
    emulator = Emulator(tier="pro", limit=1000)
    async with machine(emulator, SharedLimiter(own_server.url())) as knouds:
        await submit(knouds, 5)
        await anyio.to_thread.run_sync(own_server.stop, 3)
        await anyio.to_thread.run_sync(own_server.start)
        assert own_server.execute("SELECT count(*) FROM knouds_window") == [(0,)]
        await submit(knouds, 5)
    assert len(emulator.runs) == 10


async def test_a_permit_that_nobody_takes_is_released(server: Server, database: str, url: str) -> None:
    """Requests that were cancelled while their permits were on the way use nothing of the window."""
    emulator = Emulator(tier="pro", limit=10, window_phase=0.0)
    async with machine(emulator, SharedLimiter(url)) as knouds:
        await submit(knouds, 1)
        for _ in range(8):
            with anyio.move_on_after(0.0005):
                await submit(knouds, 3)
        with anyio.fail_after(20):
            while knouds.limiter.stats(ROUTE).left != 10 - len(emulator.runs):  # noqa: ASYNC110  (a thread ends it)
                await anyio.sleep(0.05)


def test_it_pickles_and_shows_no_password() -> None:
    """What is unpickled connects for itself; neither its repr nor that of its limiters shows the password."""
    shared = pickle.loads(pickle.dumps(SharedLimiter(f"postgresql://u:{PASSWORD}@h/d", "pro", share=0.5)))  # noqa: S301
    assert PASSWORD not in repr(shared) + str(vars(shared))
