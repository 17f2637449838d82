"""A process that dies, at any moment and any number of times: no job is started twice, and none is lost."""

from __future__ import annotations

import os
import random
import sqlite3
import sys
from collections import Counter
from pathlib import Path

import anyio
import attrs
import pytest

from knouds_async import SQLiteLedger
from knouds_async.testing import Emulator, faults, serve

pytestmark = pytest.mark.slow
REAL_TIME = True
WORKER = str(Path(__file__).with_name("crashing_process.py"))
ROUTE = "POST /api/workflows/:slug/run"
COUNT = 40


@attrs.define
class Life:
    """What a process said before it ended."""

    lines: list[str]

    @property
    def is_done(self) -> bool:
        """Whether it came to the end of its batch."""
        return self.lines[-1:] == ["done"]

    @property
    def outcomes(self) -> dict[str, str]:
        """The kind of outcome of each key."""
        return {line.split()[0]: line.split()[1] for line in self.lines if line.startswith("job-")}


async def live(url: str, path: Path, *, kill_after: float | None = None, step: str = "", count: int = COUNT) -> Life:
    """Run a process to its end, or kill it so many seconds after its batch has begun."""
    said = b""
    command = [sys.executable, WORKER, url, str(path), str(count), step]
    env = {**os.environ, "KNOUDS_KEY": Emulator().api_key}
    async with await anyio.open_process(command, stderr=None, env=env) as process:
        assert process.stdout is not None
        with anyio.move_on_after(60) as patience:
            async for chunk in process.stdout:
                said += chunk
                if kill_after is not None and b"begun" in said:
                    patience.deadline = min(patience.deadline, anyio.current_time() + kill_after)
                    kill_after = None
        if process.returncode is None and patience.cancelled_caught:
            process.kill()
    return Life(said.decode().splitlines())


def check_books(emulator: Emulator, path: Path) -> None:
    """Check what must hold at any moment: a run per key at most, and no id in the ledger that the service lacks."""
    runs = Counter(str(run.inputs["product_name"]) for run in emulator.runs)
    assert max(runs.values(), default=0) <= 1, runs
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT key, execution_id, stage FROM jobs").fetchall()
    connection.close()
    by_id = {run.execution_id: str(run.inputs["product_name"]) for run in emulator.runs}
    assert {(execution_id, key) for key, execution_id, _ in rows if execution_id} <= set(by_id.items())
    assert set(runs) <= {key for key, _, _ in rows}, "a run began without an intent on record"


def finals(path: Path) -> dict[str, tuple[object, ...]]:
    """Return every final row, whole."""
    if not path.exists():
        return {}
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT * FROM jobs WHERE stage = 'final'").fetchall()
    connection.close()
    return {row[0]: row for row in rows}


async def check_end(url: str, emulator: Emulator, path: Path, count: int = COUNT) -> Counter[str]:
    """Run to the end, and check that every job is final or reported unknown."""
    before = finals(path)
    last = await live(url, path, count=count)
    assert last.is_done, last.lines
    check_books(emulator, path)
    after = finals(path)
    assert {key: after[key] for key in before} == before, "a final row has changed"
    kinds = Counter(last.outcomes.values())
    assert len(last.outcomes) == count
    assert kinds["Completed"] == len(after)
    assert kinds["Completed"] + kinds["Unknown"] == count, kinds
    emulator.assert_charged_once()
    async with SQLiteLedger(path) as ledger:
        counts = await ledger.counts()
    assert (counts.completed, counts.unknown) == (kinds["Completed"], kinds["Unknown"])
    return kinds


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("seed", [1, 2])
async def test_killed_again_and_again(seed: int, path: Path) -> None:
    """After kills at random moments, with answers lost and connections reset, a last run finds everything."""
    dice = random.Random(seed)
    emulator = Emulator(tier="enterprise", duration=0.2, seed=seed)
    emulator.faults.add(faults.reset(after_run=True), route=ROUTE, probability=0.03)
    emulator.faults.add(faults.bad_gateway(), route=ROUTE, probability=0.03)
    emulator.faults.add(faults.bad_gateway(), route="GET /api/executions/:id", probability=0.1)
    async with serve(emulator) as url:
        for _ in range(4):
            before = finals(path)
            life = await live(url, path, kill_after=dice.uniform(0.0, 0.6))
            check_books(emulator, path)
            assert before.items() <= finals(path).items()
            if life.is_done:
                break
        await check_end(url, emulator, path)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize(
    ("step", "unknown"),
    [
        ("before look:3", 0),
        ("before claim:3", 0),
        ("after claim:3", 1),
        ("before Accepted:3", 1),
        ("after Accepted:3", 0),
        ("before Ended:3", 0),
        ("after Ended:3", 0),
        ("before leave:1", 0),
    ],
)
async def test_death_at_every_step(step: str, unknown: int, path: Path) -> None:
    """Wherever a process ends, the next one loses and repeats nothing; what was being sent is unknown, never resent."""
    emulator = Emulator(tier="enterprise", duration=0.1)
    async with serve(emulator) as url:
        life = await live(url, path, step=step, count=10)
        assert not life.is_done
        check_books(emulator, path)
        kinds = await check_end(url, emulator, path, count=10)
    assert kinds["Unknown"] >= unknown
    if not unknown:
        assert emulator.runs


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_three_processes_share_a_ledger(path: Path) -> None:
    """Each job is sent by one of them, one may die, and each of the others gives every outcome."""
    emulator = Emulator(tier="enterprise", duration=0.2)
    lives: list[Life] = []
    async with serve(emulator) as url:

        async def one(kill_after: float | None) -> None:
            lives.append(await live(url, path, kill_after=kill_after))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, 0.3)
            tasks.start_soon(one, None)
            tasks.start_soon(one, None)
        check_books(emulator, path)
        done = [life for life in lives if life.is_done]
        assert len(done) >= 2
        for life in done:
            assert len(life.outcomes) == COUNT
            assert set(life.outcomes.values()) <= {"Completed", "Unknown"}
            assert sum(line.endswith("Completed run") for line in life.lines) > 3, "it left all to the others"
        await check_end(url, emulator, path)
