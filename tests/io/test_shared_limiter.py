"""SharedLimiter: one quota for several processes, kept in a file that tells nothing of the key."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from knouds_async import AsyncKnouds, ConfigurationError, Secret, SharedLimiter
from knouds_async._io import shared_limiter
from knouds_async.testing import Emulator, serve

SLUG = "my-thumbnail-pipeline"
ROUTE = "POST /api/workflows/:slug/run"
KEY = Secret("knouds_live_CANARY")

CHILD = """
import sys
import anyio
from knouds_async import AsyncKnouds, SharedLimiter

async def main():
    url, path, key, name, jobs = sys.argv[1:]
    async with AsyncKnouds(key, base_url=url, limiter=SharedLimiter(path)) as knouds:
        async with anyio.create_task_group() as tasks:
            for number in range(int(jobs)):
                tasks.start_soon(knouds.workflows.submit, "my-thumbnail-pipeline", {"product_name": f"{name} {number}"})

anyio.run(main)
"""


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_three_processes_share_one_quota(tmp_path: Path, anyio_backend: str) -> None:
    """Processes that start together use up every window together, without a 429."""
    emulator = Emulator(tier="pro", limit=20, window_length=2.0, window_phase=0.7, duration=1.0, clock_skew=137.0)
    async with serve(emulator) as url:
        argv = [sys.executable, "-c", CHILD, url, str(tmp_path / "quota.db"), emulator.api_key]
        async with anyio.create_task_group() as tasks:
            for name in "abc":
                tasks.start_soon(anyio.run_process, [*argv, name, "20"])
    assert len(emulator.runs) == 60
    emulator.assert_no_429()
    emulator.assert_charged_once()


async def test_two_clients_with_one_file_provoke_no_429(
    make_client: Callable[..., AsyncKnouds], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In virtual time: two clients, each with the file open for itself, go through five windows without a 429."""
    trades: list[int] = []
    trade = shared_limiter._Store.trade

    def counted(*args: Any, **options: Any) -> Any:
        trades.append(1)
        return trade(*args, **options)

    monkeypatch.setattr(shared_limiter._Store, "trade", counted)
    emulator = Emulator(tier="pro", limit=100, duration=1.0)
    clients = [
        make_client(emulator, limiter=SharedLimiter(tmp_path / "q.db", "pro", clock=anyio.current_time))
        for _ in range(2)
    ]
    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for number in range(500):
            tasks.start_soon(clients[number % 2].workflows.submit, SLUG, {"product_name": str(number)})
    assert anyio.current_time() - began < 300
    assert len(emulator.runs) == 500
    emulator.assert_no_429()
    asleep = (anyio.current_time() - began) * 2  # a look a second of each client that waits for an edge
    assert len(trades) < 500 / 10 * 2 + 2 * asleep + 100
    assert clients[0].limiter.stats(ROUTE).limit == 100
    assert clients[0].limiter.stats(ROUTE).resets_in is not None


async def test_turns_are_given_back_and_lost_ones_are_spent(tmp_path: Path) -> None:
    """What becomes of a turn is known to the other processes at once."""
    mine = SharedLimiter(tmp_path / "q.db", "free").for_key(KEY)
    other = SharedLimiter(tmp_path / "q.db", "free").for_key(KEY)
    ticket = await mine.acquire(ROUTE)
    mine.returned(ROUTE, ticket)
    again = await other.acquire(ROUTE)
    other.lost(ROUTE, again)
    mine.stats(ROUTE)
    assert mine.stats(ROUTE).limit == 10
    ticket = await mine.acquire(ROUTE)
    assert mine.stats(ROUTE).left == 8


async def test_the_file_is_private_and_holds_no_key(tmp_path: Path) -> None:
    """Mode 0600; neither the key nor a plain hash of it is in the file; two files name one account differently."""
    paths = [tmp_path / "a.db", tmp_path / "b.db"]
    names = []
    for path in paths:
        limiter = SharedLimiter(path, "pro").for_key(KEY)
        limiter.lost(ROUTE, await limiter.acquire(ROUTE))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert b"CANARY" not in path.read_bytes()
        with closing(sqlite3.connect(path)) as connection:
            names.append(connection.execute("SELECT name FROM mirror").fetchone()[0])
    assert names[0] != names[1]
    assert names[0].endswith(ROUTE)


@pytest.mark.parametrize(
    "content",
    [b"this is no database, but a letter to a friend" * 50, None],
    ids=["a letter", "another database"],
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, content: bytes | None) -> None:
    """A file that is not ours is a ConfigurationError that names it, and not a byte of it changes."""
    path = tmp_path / "foreign.db"
    if content is None:
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE mirror (mine TEXT)")
        connection.commit()
        connection.close()
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=r"foreign\.db"):
        SharedLimiter(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_file_that_is_held_is_asked_again(tmp_path: Path, anyio_backend: str) -> None:
    """While another process holds the file, a request waits without blocking the loop, and then gets its turn."""
    path = tmp_path / "q.db"
    limiter = SharedLimiter(path, "pro").for_key(KEY)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    ticks = 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(limiter.acquire, ROUTE)
        for _ in range(5):
            await anyio.sleep(0.01)
            ticks += 1
        holder.execute("ROLLBACK")
    holder.close()
    assert ticks == 5
    assert limiter.stats(ROUTE).left == 99


async def test_a_mirror_from_before_a_restart_is_forgotten(tmp_path: Path) -> None:
    """Times of another boot, and states that cannot be read, mean nothing: the quota is learned anew."""
    path = tmp_path / "q.db"
    limiter = SharedLimiter(path, "free").for_key(KEY)
    limiter.lost(ROUTE, await limiter.acquire(ROUTE))
    connection = sqlite3.connect(path)
    for change in ("at = at + 1e9", f"state = '{json.dumps({'old': 1})}'"):
        connection.execute(f"UPDATE mirror SET {change}")  # noqa: S608
        connection.commit()
        again = SharedLimiter(path, "free").for_key(KEY)
        again.returned(ROUTE, await again.acquire(ROUTE))
        assert again.stats(ROUTE).left == 10
    connection.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_opens_the_file_for_itself(tmp_path: Path) -> None:
    """A limiter that was made before a fork works in the child and in the parent."""
    code = """
import os, sys, anyio
from knouds_async import Secret, SharedLimiter
limiter = SharedLimiter(sys.argv[1], "enterprise")
anyio.run(limiter.for_key(Secret("k")).acquire, "R")
child = os.fork()
anyio.run(limiter.for_key(Secret("k")).acquire, "R")
if child == 0:
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code, tmp_path / "q.db"], check=True, timeout=60)  # noqa: S603


def test_threads_with_loops_of_their_own_share_it(tmp_path: Path) -> None:
    """One SharedLimiter serves clients of several event loops in several threads."""
    shared = SharedLimiter(tmp_path / "q.db", "enterprise")
    taken: list[int] = []

    async def take() -> None:
        limiter = shared.for_key(KEY)
        for _ in range(50):
            limiter.lost(ROUTE, await limiter.acquire(ROUTE))
            taken.append(1)

    threads = [threading.Thread(target=anyio.run, args=(take,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(taken) == 200
