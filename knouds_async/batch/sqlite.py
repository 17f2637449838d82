"""SQLiteLedger: the ledger of the batches of one machine, in a file.

Rule of the file: one thread talks to the file, and the event loop never waits for it. What is asked for while a
transaction is written goes into the next one together, so that thousands of jobs take few writes.
"""

from __future__ import annotations

import os
import shlex
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

import anyio
import attrs

from knouds_async._io.backend import from_thread
from knouds_async._sansio.entries import (
    Abandoned,
    Entry,
    Event,
    Payer,
    ResendApproved,
    Resolved,
)
from knouds_async._sansio.inputs import checked_execution_id
from knouds_async._sansio.reconcile import KnownRun
from knouds_async.batch.ledger import Claim, Claimed, LedgerCounts, Summary, Written
from knouds_async.batch.owners import end, new_owner
from knouds_async.batch.store import LedgerDatabase, Operation
from knouds_async.errors import LedgerError

T = TypeVar("T")

_PATIENCE: Final = 300.0
_AT_ONCE: Final = 500
_IDLE: Final = 0.5  # seconds after which a thread with nothing to do ends


@attrs.define(eq=False)
class _Request:
    """An operation, and who is to be told of its end."""

    operation: Operation
    call_in_loop: Callable[[Callable[[], object]], object]
    done: anyio.Event
    value: Any = None
    error: BaseException | None = None


class SQLiteLedger:
    """A ledger in an SQLite file: batches go on from it after a crash, and several processes may share it.

    `path`: the file, made with mode 0600 when it is not there; the API key is never in it, inputs are kept as a digest
    only, results as they came. Every intent to send is safe on the disk before the request leaves, every id and every
    result before anybody is told. A file that is damaged or no ledger raises LedgerError when it is opened and is left
    as it is; one that another process has locked is waited for, 300 seconds at most, without holding up the event loop.
    Use it in `async with`, or give `map` its path. Not for a network file system: SQLite's locks do not hold there.
    """

    lease: float | None = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open nothing yet."""
        self._path = Path(path)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._requests: deque[_Request] = deque()
        self._thread: threading.Thread | None = None
        self._database: LedgerDatabase | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        """Show the file."""
        return f"<SQLiteLedger {str(self._path)!r}>"

    async def __aenter__(self) -> SQLiteLedger:
        """Open the file; LedgerError when it cannot be used."""
        await self._do(lambda _: None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the file, once what was asked for is written; idempotent."""
        with anyio.CancelScope(shield=True):
            if not self._is_closed:
                self._is_closed = True
                await self._ask(_Request(LedgerDatabase.close, from_thread(), anyio.Event()))

    # What somebody may want to know and decide.

    async def counts(self) -> LedgerCounts:
        """Count the jobs by where they stand."""
        return await self._do(LedgerDatabase.counts)

    async def unknown(self) -> tuple[Entry, ...]:
        """Give the jobs of which nobody knows whether they ran, oldest first."""
        return await self._do(LedgerDatabase.unknown)

    async def find(self, key: str) -> Entry | None:
        """Give where a job stands, None when it was never sent."""
        return await self.look(key)

    async def resolve(self, key: str, execution_id: str) -> Entry:
        """Tell which run an unknown job began: the next batch picks it up. InvalidArgumentError if it is none.

        A wrong id can be told anew, once no batch waits for its run; a run of another workflow is never taken.
        """
        return await self._decide(key, Resolved(checked_execution_id(execution_id)))

    async def approve_resend(self, key: str) -> Entry:
        """Decide that an unknown job is sent once more by the next batch, at the risk of paying for it twice.

        What was set aside for it stays set aside. InvalidArgumentError if it is not unknown.
        """
        return await self._decide(key, ResendApproved())

    async def abandon(self, key: str) -> Entry:
        """Decide to leave an unknown job at that, or one whose run cannot be found any more.

        It is not sent again, and counts with what was set aside for it. InvalidArgumentError if it is neither.
        """
        return await self._decide(key, Abandoned())

    async def rebind(self) -> None:
        """Let the next batch bind the ledger to its own account and service, whichever they are.

        A ledger is bound to those of its first batch, and refuses others. Of a submit that is unknown nothing is ever
        proven by the usage of an account that did not send it.
        """
        await self._do(LedgerDatabase.rebind)

    async def retry_failed(self) -> int:
        """Have the next batch run what failed or was cancelled once more; give how many jobs that are."""
        return await self._do(LedgerDatabase.retry_failed)

    async def _decide(self, key: str, event: Event) -> Entry:
        return await self._do(lambda database: database.decision(key, event))

    # What a batch asks for: see `Ledger`.

    async def bind(self, payer: Payer) -> None:
        """Take the first payer for the ledger's, and refuse every other."""
        known = await self._do(lambda database: database.bind(payer))
        if known != payer:
            raise LedgerError(
                f"the ledger {str(self._path)!r} is that of {known}, and this is {payer}: what the usage of one does "
                "not show may have run on the other. Nothing was submitted. Use that account's key and base URL, or "
                "another ledger; to go on with this one all the same: `await ledger.rebind()`, or `knouds batch "
                f"--rebind {shlex.quote(str(self._path))}`"
            )

    async def join(self) -> str:
        """Give the name of a new owner."""
        await self._do(lambda _: None)
        return new_owner()

    async def renew(self, owner: str) -> None:
        """Do nothing: an owner lives as long as its process."""

    async def leave(self, owner: str) -> None:
        """End an owner."""
        try:
            await self._do(lambda database: database.leave(owner))
        except LedgerError:
            end(owner)
            raise

    async def look(self, key: str) -> Entry | None:
        """Give the last attempt of a job."""
        return await self._do(lambda database: database.look(key))

    async def claim(self, claim: Claim) -> Claimed:
        """Write the intent to send a job."""
        return await self._do(lambda database: database.claim(claim))

    async def record(self, key: str, attempt: int, event: Event) -> Written:
        """Write what follows from an event."""
        return await self._do(lambda database: database.record(key, attempt, event))

    async def summary(self, target: str) -> Summary:
        """Give the credits of the ledger and the real costs of a target."""
        return await self._do(lambda database: database.summary(target))

    async def known_runs(self, target: str, account: str, since: float) -> tuple[KnownRun, ...]:
        """Return an account's runs of a target that are known to have begun since then, and some before."""
        return await self._do(lambda database: database.known_runs(target, account, since))

    # The thread.

    async def _do(self, operation: Callable[[LedgerDatabase], T]) -> T:
        """Have an operation carried out. Cancelled: it is carried out all the same."""
        if self._is_closed:
            raise LedgerError(f"the ledger {str(self._path)!r} is closed")
        value: T = await self._ask(_Request(operation, from_thread(), anyio.Event()))
        return value

    async def _ask(self, request: _Request) -> Any:
        with self._lock:
            self._requests.append(request)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="knouds-ledger")
                self._thread.start()
        await request.done.wait()
        if request.error is not None:
            raise request.error
        return request.value

    def _serve(self) -> None:
        while requests := self._next():
            try:
                self._carry_out(requests)
            except BaseException as error:  # noqa: BLE001  (each who asked is told)
                for request in requests:
                    request.error = error
            _tell(requests)

    def _next(self) -> list[_Request]:
        """Wait for requests and take all that are there; nothing when none came for a while."""
        with self._lock:
            if not self._requests:
                self._changed.wait(0.0 if self._is_closed else _IDLE)
            if not self._requests:
                self._thread = None  # whoever asks from here on starts another
            return [self._requests.popleft() for _ in range(min(_AT_ONCE, len(self._requests)))]

    def _carry_out(self, requests: list[_Request]) -> None:
        is_last = requests[-1].operation is LedgerDatabase.close
        if self._database is None and not (is_last and len(requests) == 1):
            self._database = LedgerDatabase(self._path, _PATIENCE)
        if is_last:
            *requests, _ = requests
        try:
            if self._database is not None and requests:
                values = self._database.transact([request.operation for request in requests])
                for request, value in zip(requests, values, strict=True):
                    request.value, request.error = (None, value) if isinstance(value, Exception) else (value, None)
        finally:
            if is_last and self._database is not None:
                self._database.close()
                self._database = None


def _tell(requests: list[_Request]) -> None:
    """Wake those who wait, each in its own event loop, with one call per loop."""
    for call_in_loop in {request.call_in_loop for request in requests}:
        theirs = [request.done for request in requests if request.call_in_loop == call_in_loop]
        try:
            call_in_loop(lambda events=theirs: [event.set() for event in events])  # type: ignore[misc]
        except RuntimeError:  # their event loop is over: nobody waits there any more
            continue
