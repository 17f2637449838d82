"""A process is stopped, or killed, at each step of a claim and of a submit, and another takes over meanwhile.

The service counts the runs. Time passes for all clocks at once, the database's included: those of the processes are in
a file, those of the leases are moved in their table.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Final

import anyio
import attrs
import pytest
from anyio.abc import Process

from knouds_async.testing import ApiKey, Emulator, serve
from tests.postgres.conftest import database, folder, server, template
from tests.postgres.server import Server
from tests.scenarios.failing_process import steps
from tests.scenarios.process_history import ROOT, is_halted
from tests.scenarios.service import OddService, key_of
from tests.scenarios.shared_clocks import SharedClocks

__all__ = ["database", "folder", "server", "template"]

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)]
REAL_TIME = True

LEASE_IS_OUT: Final = 70.0  # seconds
IS_PROVABLE: Final = 200.0  # seconds, after which usage rows prove that an unknown submit began no run
JOBS: Final = 6
BEGUN: Final = {"left", "answered", "before the id is committed"}
"""Where a run has begun, and nobody who comes later can know its id."""


@attrs.define(eq=False)
class Life:
    """A process, and what it said: the kind of outcome of each job."""

    process: Process
    told: list[tuple[str, str]] = attrs.Factory(list)

    async def listen(self) -> None:
        """Collect what it says, until it ends."""
        assert self.process.stdout is not None
        said = b""
        async for chunk in self.process.stdout:
            said += chunk
        self.told = [(key, kind) for key, kind in map(json.loads, said.splitlines())]
        await self.process.wait()

    @property
    def completed(self) -> set[str]:
        """The jobs that it saw completed."""
        return {key for key, kind in self.told if kind == "Completed"}


class Scene:
    """A service, clocks for all processes, and for each step an account and a ledger.

    `leases`: the server of `database`, where the ledgers are in one.
    """

    def __init__(self, folder: Path, leases: Server | None, database: str) -> None:
        self._clocks_path = folder / "clocks"
        self._clocks = SharedClocks(self._clocks_path)
        self._leases, self._database = leases, database
        place = str(folder / "ledger") if leases is None else f"{leases.url(database)}#"
        self.steps = {step: f"{place}{number}" for number, step in enumerate(steps(place))}
        self.keys = {step: [f"{number}-{step}" for number in range(JOBS)] for step in self.steps}
        accounts = [
            ApiKey(f"knouds_live_failing_{number}_0123456789", user=f"u_{number}") for number in range(len(self.steps))
        ]
        self._api_keys = {step: account.text for step, account in zip(self.steps, accounts, strict=True)}
        workflows = [attrs.evolve(each, is_template=True) for each in Emulator().workflows]
        emulator = Emulator(tier="enterprise", duration=0.3, keys=accounts, workflows=workflows)
        self.service = OddService(emulator, frozenset(), Random(0), note=lambda _: None)
        self._url = ""
        self._lives: list[Life] = []

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """Serve, and leave no process behind."""
        try:
            async with serve(self.service) as self._url:  # type: ignore[arg-type]  # it is an emulator in all that counts
                yield
        finally:
            with anyio.CancelScope(shield=True):
                for life in self._lives:
                    if life.process.returncode is None:
                        os.kill(life.process.pid, signal.SIGKILL)
                    await life.process.aclose()
            self._clocks.close()

    async def start(self, *some: str, fails_by: signal.Signals | None = None) -> Life:
        """Start a process on the ledgers of some steps; it fails at the only one by a signal, if there is one."""
        order = {
            "url": self._url,
            "clocks": str(self._clocks_path),
            "work": [[self._api_keys[step], self.steps[step], self.keys[step]] for step in some],
            "step": None if fails_by is None else some[0],
            "signal": fails_by,
        }
        command = [sys.executable, "-m", "tests.scenarios.failing_process", json.dumps(order)]
        life = Life(await anyio.open_process(command, cwd=ROOT, stderr=None))
        self._lives.append(life)
        return life

    async def run(self) -> Life:
        """Run a process on all ledgers to its end."""
        life = await self.start(*self.steps)
        await life.listen()
        assert life.process.returncode == 0
        return life

    async def pass_time(self, seconds: float) -> None:
        """Advance the time at once, for all that is not at its end."""
        running = [life for life in self._lives if life.process.returncode is None and not is_halted(life.process.pid)]
        for life in running:
            with suppress(ProcessLookupError):
                os.kill(life.process.pid, signal.SIGSTOP)
        for life in running:
            await self.halted(life)
        self._clocks.move(awake=seconds)
        self.service.ahead += seconds
        self.service.settle(anyio.current_time())
        if self._leases is not None:
            older = "UPDATE knouds_owner SET until = until - make_interval(secs => %s)"
            await anyio.to_thread.run_sync(lambda: self._moved(older, seconds))
        for life in running:
            self.resume(life)

    def _moved(self, statement: str, seconds: float) -> None:
        assert self._leases is not None
        self._leases.execute(statement, database=self._database, values=(seconds,))

    @staticmethod
    def resume(life: Life) -> None:
        """Resume a process, if it has not ended."""
        with suppress(ProcessLookupError):
            os.kill(life.process.pid, signal.SIGCONT)

    async def halted(self, life: Life) -> None:
        """Wait until a process is stopped, or has ended."""
        with anyio.fail_after(60):
            while not is_halted(life.process.pid):  # noqa: ASYNC110  (nobody tells)
                await anyio.sleep(0.01)

    async def ended(self, lives: list[Life]) -> None:
        """Wait until processes have ended by themselves, and let time pass at once where they wait."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._hurry)
            with anyio.fail_after(60):
                async with anyio.create_task_group() as listening:
                    for life in lives:
                        listening.start_soon(life.listen)
            tasks.cancel_scope.cancel()

    async def _hurry(self) -> None:
        while True:
            await anyio.sleep(1.0)
            await self.pass_time(8.0)

    def paid_twice(self) -> list[str]:
        """Return the jobs that ran more than once, by the service's own account."""
        runs = Counter(key_of(run) for run in self.service.runs)
        return [key for key, count in runs.items() if count > 1]


@pytest.fixture(params=["sqlite", "postgres"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """Return a scene with ledgers of a kind."""
    if request.param == "sqlite":
        yield Scene(tmp_path, None, "")
    else:
        yield Scene(tmp_path, request.getfixturevalue("server"), request.getfixturevalue("database"))


async def fail_everywhere(scene: Scene, number: signal.Signals) -> dict[str, Life]:
    """Start a process for each step, and wait until each of them has failed there."""
    lives = {step: await scene.start(step, fails_by=number) for step in scene.steps}
    for life in lives.values():
        await scene.halted(life)
    return lives


async def test_killed_at_each_step(scene: Scene) -> None:
    """No job runs twice, all others are done by the next process, and one that may have run stays unknown."""
    async with scene.served():
        lives = await fail_everywhere(scene, signal.SIGKILL)
        for life in lives.values():
            await life.listen()
            assert life.process.returncode == -signal.SIGKILL
        await scene.pass_time(LEASE_IS_OUT)
        await scene.run()
        await scene.pass_time(IS_PROVABLE)
        last = await scene.run()
    assert scene.paid_twice() == []
    for step, keys in scene.keys.items():
        began = {key_of(run) for run in scene.service.runs}
        open_ = [(key, kind, key in began) for key, kind in last.told if key in keys and kind != "Completed"]
        assert len(open_) == (step in BEGUN), f"{step}: {open_}"


async def test_stopped_at_each_step(scene: Scene) -> None:
    """No job runs twice when another process takes over meanwhile, and the one that was stopped ends by itself."""
    is_shared = "://" in next(iter(scene.steps.values()))
    async with scene.served():
        lives = await fail_everywhere(scene, signal.SIGSTOP)
        await scene.pass_time(LEASE_IS_OUT)
        others = await scene.start(*scene.steps)
        if is_shared:
            await scene.ended([others])
            await scene.pass_time(IS_PROVABLE)
            await scene.run()
        else:  # who is stopped holds its jobs, and perhaps the ledger
            await anyio.sleep(2.0)
            await scene.pass_time(IS_PROVABLE)
        for life in lives.values():
            os.kill(life.process.pid, signal.SIGCONT)
        await scene.ended([*lives.values(), *([] if is_shared else [others])])
        last = await scene.run()
    assert scene.paid_twice() == []
    for step, life in lives.items():
        assert life.process.returncode == 0, step
        assert sorted(key for key, _ in life.told) == sorted(scene.keys[step]), step
        assert len(set(scene.keys[step]) - last.completed) <= 4, step
