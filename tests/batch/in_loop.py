"""A ledger on a file that is written in the event loop itself, so that the clock can jump while it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from knouds_async import SQLiteLedger
from knouds_async._batch.sqlite import LedgerDatabase

T = TypeVar("T")
_opened: list[LedgerDatabase] = []


def close_databases() -> None:
    """Close every file that was opened: one that is left to the garbage collector is a ResourceWarning."""
    while _opened:
        _opened.pop().close()


class InLoopLedger(SQLiteLedger):
    """The same ledger without its thread."""

    _database: LedgerDatabase | None = None

    async def _transact(
        self, operation: Callable[[LedgerDatabase], T], *, may_withdraw: bool = False, **_: str | None
    ) -> T:
        if self._database is None:
            self._database = LedgerDatabase(self._path, 1.0)
            _opened.append(self._database)
            self._database._connection.execute("PRAGMA synchronous = OFF")  # nothing here outlives its process
        (value,) = self._database.transact([operation])
        if isinstance(value, Exception):
            raise value
        result: T = value
        return result
