"""A process that is no process: a client and a ledger of its own, which can be killed and stopped in virtual time.

Rule of the file: whatever it does to the world outside goes through a gate. A gate that is closed for good is a
`kill -9`: what its code still does reaches nobody. One that is closed for a while is a SIGSTOP.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import anyio
import attrs
import httpx

from knouds_async import AsyncKnouds, Batch, LedgerError
from knouds_async._batch.owners import end
from knouds_async._batch.sqlite import LedgerDatabase
from knouds_async.testing import Emulator
from knouds_async.testing.transport import EmulatorTransport
from tests.batch.in_loop import InLoopLedger
from tests.scenarios.service import OddService

T = TypeVar("T")

_PATIENCE = 300.0  # seconds that a real ledger waits for a lock


@attrs.define
class Machine:
    """The clocks of the machine that all processes of a history run on; its loop's clock stands still in a sleep."""

    epoch: float
    seen: float = 0.0
    slept: float = 0.0
    stepped: float = 0.0
    locked_until: float = 0.0

    def monotonic(self) -> float:
        """Return the seconds that it has been awake."""
        return 1_000.0 + self._awake()

    def boot_time(self) -> float:
        """Return the seconds since its start."""
        return 2_000.0 + self._awake() + self.slept

    def wall(self) -> float:
        """Return what it believes to be the time."""
        return self.epoch + self._awake() + self.slept + self.stepped

    def _awake(self) -> float:
        with suppress(RuntimeError):  # where no loop runs, it stands still
            self.seen = anyio.current_time()
        return self.seen


def _nothing() -> None:
    pass


class Gate:
    """Between a process and the world."""

    def __init__(self) -> None:
        self.is_dead = False
        self._stopped_until = 0.0
        self._passed = 0
        self._planned: dict[int, Callable[[], None]] = {}

    def plan(self, passage: int, action: Callable[[], None]) -> None:
        """Plan what happens when it is passed for the nth time."""
        self._planned[passage] = action

    def stop(self, seconds: float) -> None:
        """Close it for a while."""
        self._stopped_until = anyio.current_time() + seconds

    async def is_passed(self) -> bool:
        """Wait while it is stopped; False: it is dead."""
        self._passed += 1
        self._planned.pop(self._passed, _nothing)()
        while not self.is_dead and (until := self._stopped_until) > anyio.current_time():  # noqa: ASYNC110  (it may move)
            await anyio.sleep_until(until)
        return not self.is_dead


class _Transport(EmulatorTransport):
    """The way to the service, gated before a connection, before the first byte, and before the answer is read."""

    def __init__(self, service: OddService | Emulator, gate: Gate, *, latency: float, seed: int) -> None:
        super().__init__(service, latency=latency, seed=seed)  # type: ignore[arg-type]  # it is one in all that counts
        self._gate = gate

    async def _connect(self, sent: Any, timeout: float | None, trace: Any) -> Any:
        await self._pass()
        met = await super()._connect(sent, timeout, trace)
        await self._pass()
        return met

    async def _exchange(self, sent: Any) -> Any:
        if not await self._gate.is_passed():
            raise httpx.ReadError("the process is dead")
        outcome = await super()._exchange(sent)
        await self._pass()
        return outcome

    async def _pass(self) -> None:
        if not await self._gate.is_passed():
            raise httpx.ReadError("the process is dead")


class _Ledger(InLoopLedger):
    """The ledger of a process, gated before and after each transaction, which takes a moment."""

    def __init__(self, path: Path, gate: Gate, machine: Machine, dice: Random) -> None:
        super().__init__(path)
        self._gate, self._machine, self._dice = gate, machine, dice
        self.owners: list[str] = []

    async def join(self) -> str:
        """Note each owner: its end is to be known when the process dies."""
        owner = await super().join()
        self.owners.append(owner)
        return owner

    async def _transact(
        self, operation: Callable[[LedgerDatabase], T], *, may_withdraw: bool = False, **_: str | None
    ) -> T:
        await self._pass()
        await self._wait_for_the_lock()
        value = await super()._transact(operation)
        await self._pass()
        return value

    async def _wait_for_the_lock(self) -> None:
        await anyio.sleep(self._dice.choice((0.0, 0.01, 0.2)))
        asked = anyio.current_time()
        while (until := self._machine.locked_until) > anyio.current_time():
            await anyio.sleep_until(min(until, asked + _PATIENCE))
            if anyio.current_time() >= asked + _PATIENCE:
                raise LedgerError("the ledger cannot be used: database is locked")
        await self._pass()

    async def _pass(self) -> None:
        if not await self._gate.is_passed():
            raise LedgerError("the process is dead")

    async def aclose(self) -> None:
        """Close the connection."""
        if self._database is not None:
            self._database.close()
            self._database = None


class Mortal:
    """One process, until it is done or killed."""

    def __init__(
        self,
        name: str,
        service: OddService | Emulator,
        path: Path,
        machine: Machine,
        dice: Random,
        *,
        key: str,
        url: str,
    ) -> None:
        self.name = name
        self.gate = Gate()
        self.ledger = _Ledger(path, self.gate, machine, dice)
        transport = _Transport(service, self.gate, latency=dice.choice((0.01, 0.05, 1.0)), seed=dice.randrange(2**32))
        self._http = httpx.AsyncClient(transport=transport)
        self.knouds = AsyncKnouds(key, base_url=url, http_client=self._http)
        self.scope = anyio.CancelScope()
        self.batch: Batch | None = None
        self.is_stopped = False  # asked to end before all is done

    @property
    def is_dead(self) -> bool:
        """Whether it was killed."""
        return self.gate.is_dead

    def stop(self) -> None:
        """Stop its submitting."""
        if self.batch is not None:
            self.is_stopped = True
            self.batch.stop()

    def kill(self) -> None:
        """Kill it: nothing that it has begun continues."""
        self.gate.is_dead = True
        self.end_owners()
        self.scope.cancel()

    def end_owners(self) -> None:
        """Treat it as gone, though it may continue."""
        for owner in self.ledger.owners:
            end(owner)

    def interrupt(self) -> None:
        """Press Ctrl-C: its block is left, and what it has begun to send is finished."""
        self.is_stopped = True
        self.scope.cancel()

    async def aclose(self) -> None:
        """Close everything."""
        with anyio.CancelScope(shield=True):
            await self.knouds.aclose()
            await self._http.aclose()
            await self.ledger.aclose()
