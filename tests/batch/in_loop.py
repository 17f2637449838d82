"""A ledger on a file that is written in the event loop itself, so that the clock can jump while it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from knouds_async import SQLiteLedger
from knouds_async.batch.store import Store

T = TypeVar("T")


class InLoopLedger(SQLiteLedger):
    """The same ledger without its thread."""

    async def _do(self, operation: Callable[[Store], T]) -> T:
        if self._store is None:
            self._store = Store(self._path, 1.0)
            self._store._connection.execute("PRAGMA synchronous = OFF")  # nothing here outlives its process
        (value,) = self._store.transact([operation])
        if isinstance(value, Exception):
            raise value
        result: T = value
        return result
