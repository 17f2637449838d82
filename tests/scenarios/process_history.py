"""A history of real processes: killed, stopped and interrupted by signals, on a machine whose clocks can be moved.

Rule of the file: time is moved while every process is stopped, so that for them it passes at once, as in a pause of
a virtual machine. Waits end sooner for it, and what a clock says agrees with what the service says.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import anyio
import attrs
from anyio.abc import Process

from knouds_async.testing import serve
from tests.scenarios import kinds as what
from tests.scenarios.history import History, Order
from tests.scenarios.judge import Told, ViolationError
from tests.scenarios.service import SLUG
from tests.scenarios.shared_clocks import SharedClocks

ROOT: Final = Path(__file__).parents[2]
LONGEST: Final = 60.0  # real seconds that a pass may take
CALM: Final = 0.7  # real seconds after which waits are cut short
STRIDE: Final = 8.0  # seconds


@attrs.define(eq=False)
class Life:
    """One process."""

    name: str
    process: Process
    told: list[Told] = attrs.Factory(list)
    is_done: bool = False
    is_stopped: bool = False
    out: Path | None = None

    async def listen(self) -> str:
        """Record what it says until it ends, and return its last words, if it has failed."""
        said, last = b"", ""
        assert self.process.stdout is not None
        async for chunk in self.process.stdout:
            said += chunk
        for line in () if self.out else said.decode().splitlines():
            word = json.loads(line)
            self.is_done = self.is_done or "done" in word
            self.told += [Told(*word["told"])] if "told" in word else []
            last = word.get("ended", last)
        await self.process.wait()
        if self.out is not None and self.out.exists():
            self.told = [_as_told(line) for line in lines_of(self.out)]
        return last

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)  # `send_signal` would take its end from who waits for it


class ProcessHistory(History):
    """One history."""

    durations = (0.1, 0.3, 15.0)

    def __init__(self, seed: int, kinds: frozenset[str], path: Path) -> None:
        super().__init__(seed, kinds, path)
        clocks = path.with_suffix(".clocks")
        self.clocks = SharedClocks(clocks)
        self._clocks_path = clocks
        self._lives: list[Life] = []
        self._leaping = anyio.Lock()
        self._urls: list[str] = []

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """Serve the services on ports of their own while the block runs."""
        self.clocks.move(wall=self.main.emulator.epoch + self.skew - self.clocks.wall())
        async with AsyncExitStack() as stack:
            stack.callback(self.clocks.close)
            for service in self.services:
                self._urls.append(await stack.enter_async_context(serve(service)))  # type: ignore[arg-type]
            yield

    # Time.

    async def pass_time(self, seconds: float) -> None:
        """Advance the time while no process works."""
        await anyio.sleep(0.01)
        await self._leap(awake=seconds)

    def step(self, seconds: float) -> None:
        """Set the machine's clock."""
        self.clocks.move(wall=seconds)

    async def _leap(self, *, awake: float = 0.0, asleep: float = 0.0) -> None:
        async with self._leaping:  # else one would let processes continue that another waits to see halted
            halted = [life for life in self._lives if life.process.returncode is None and not life.is_stopped]
            for life in halted:
                life.signal(signal.SIGSTOP)
            for life in halted:
                while not is_halted(life.process.pid):  # noqa: ASYNC110  (nobody tells)
                    await anyio.sleep(0.001)
            self.clocks.move(awake=awake, asleep=asleep)
            for service in self.services:
                service.ahead += awake + asleep
                service.settle(anyio.current_time())
            for life in halted:
                if not life.is_stopped:
                    life.signal(signal.SIGCONT)

    async def _hurry(self) -> None:
        """Cut long waits short: some seconds pass at once, again and again."""
        await anyio.sleep(CALM)
        while True:
            await self._leap(awake=STRIDE)
            await anyio.sleep(0.06)

    # Processes.

    async def work_through(self, order: Order) -> Sequence[Told]:
        """Start all, disturb them, and wait for their end."""
        self._lives = []
        try:
            with anyio.fail_after(LONGEST):
                await self._live(order)
        except TimeoutError:
            raise ViolationError(f"a pass does not end within {LONGEST:g} s and all that was made to pass") from None
        finally:
            with anyio.CancelScope(shield=True):
                await self._end_all()
        first = self._lives[0]
        if order.is_last and first.out is not None:
            self._check_results(first)
        return first.told

    def _check_results(self, life: Life) -> None:
        """Hold the file of results against the ledger, after a last pass that came to its end."""
        if life.process.returncode in (0, 1, 5):
            assert life.out is not None
            self.judge.check_told(life.told, self.keys, is_whole=True)
            self.judge.check_results(lines_of(life.out))

    async def _live(self, order: Order) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._hurry)
            async with anyio.create_task_group() as work:
                for place in range(len(order.accounts)):
                    self._lives.append(await self._start(place, order))
                    work.start_soon(self._follow, self._lives[-1])
                if not order.is_last:
                    tasks.start_soon(self._disturb)
            tasks.cancel_scope.cancel()

    async def _start(self, place: int, order: Order) -> Life:
        key, service = order.accounts[place], order.service
        is_to_stop = not order.is_last and self.may("stop", 0.2)
        out = self.path.with_suffix(".results") if place == 0 and (order.is_last or self.dice.random() < 0.5) else None
        options = {"max_credits": order.cap, "max_in_flight": order.in_flight, "validate": self.dice.random() < 0.5}
        asked = {
            "api_key": key,
            "url": self._urls[self.services.index(service)],
            "ledger": str(self.path),
            "clocks": str(self._clocks_path),
            "slug": SLUG,
            "keys": self.keys,
            "options": options,
            "out": None if out is None else str(out),
            "stop_after": self.dice.randint(1, 3) if is_to_stop else 0,
        }
        command = [sys.executable, "-m", "tests.scenarios.driver", json.dumps(asked)]
        process = await anyio.open_process(command, cwd=ROOT, stderr=None)
        place_name = f"p{place}" if out is None else f"p{place} (knouds batch)"
        named = place_name if key == service.emulator.api_key else f"{place_name} (with another account)"
        return Life(f"{named}, to stop after {asked['stop_after']}" if is_to_stop else named, process, out=out)

    async def _follow(self, life: Life) -> None:
        last = await life.listen()
        told = ", ".join(f"{one.key} {one.kind}" for one in life.told)
        self.note(f"{life.name} ended ({life.process.returncode}) {last[:150]}; it was told {told}")
        if life.process.returncode == 1 and life.out is None:
            raise ViolationError(f"{life.name} failed with a traceback on stderr")
        await self._check()
        if life.out is None:
            self.judge.check_told(life.told, self.keys, is_whole=life.is_done and "to stop" not in life.name)

    async def _check(self) -> None:
        """Check while no process is halted: one may have the file locked, and the judge waits in the event loop."""
        while True:
            async with self._leaping:
                if not any(life.is_stopped for life in self._lives):
                    return self.judge.check()
            await anyio.sleep(0.01)

    async def _end_all(self) -> None:
        for life in self._lives:
            if life.process.returncode is None:
                life.signal(signal.SIGKILL)
            await life.process.aclose()

    # What happens meanwhile.

    async def _disturb(self) -> None:
        can = [kind for kind in what.TO_PROCESSES if kind in self.kinds and kind != "stop"]
        seen = self._requests()
        while self._requests() == seen:  # noqa: ASYNC110  (until the first process is there)
            await anyio.sleep(0.01)
        for _ in range(self.dice.randint(0, 4) if can else 0):
            await anyio.sleep(0.3 * self.dice.random() ** 2)
            await self._befall(self.dice.choice(can), self.dice.choice(self._lives))
            await self._check()

    def _requests(self) -> int:
        return sum(service.emulator.requests.count for service in self.services)

    async def _befall(self, kind: str, life: Life) -> None:
        match kind:
            case "kill" | "interrupt":
                self.note(f"{life.name} is sent {kind}")
                life.signal(signal.SIGKILL if kind == "kill" else signal.SIGINT)
            case "pause":
                await self._pause(life, self.dice.choice((1.0, 35.0, 130.0, 400.0)))
            case "lock":
                await self._lock(self.dice.choice((5.0, 40.0, 130.0, 290.0, 310.0)))
            case "sleep":
                await self._leap(asleep=self.sleep_of())
            case _:
                self.step(self.step_of())

    async def _pause(self, life: Life, seconds: float) -> None:
        self.note(f"{life.name} is stopped for {seconds:g} s")
        life.is_stopped = True
        life.signal(signal.SIGSTOP)
        try:
            await self._leap(awake=seconds)
            await anyio.sleep(0.1)
        finally:
            life.is_stopped = False
            life.signal(signal.SIGCONT)

    async def _lock(self, seconds: float) -> None:
        """Hold the ledger's lock as a tool would that somebody has open beside the batch."""
        if not self.path.exists():
            return
        other = sqlite3.connect(self.path, timeout=0.2, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            self.note(f"the ledger is locked for {seconds:g} s")
            await anyio.sleep(0.1)
            await self._leap(awake=seconds)
        except sqlite3.OperationalError:
            pass
        finally:
            other.close()


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of results; one that a process was killed at is no line."""
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


_KINDS: Final = {"not_run": "NotRun", "abandoned": "Unknown"}


def _as_told(line: dict[str, Any]) -> Told:
    status = str(line["status"])
    return Told(line["key"], _KINDS.get(status, status.capitalize()), line["execution_id"], str(line["result"]))


def is_halted(pid: int) -> bool:
    """Return whether a process has come to a halt, or to its end."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return line[line.rindex(")") + 2] in "TtZX"
