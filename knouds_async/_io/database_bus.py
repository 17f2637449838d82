"""What a database tells all processes: which runs have finished, and which deliveries of webhooks were taken."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from knouds_async._io.database import Database
from knouds_async._sansio.inputs import is_execution_id
from knouds_async.types import ExecutionState

_REMEMBERED: Final = "1 day"  # the service repeats a delivery for some hours
_PRUNE: Final = 3600.0
_TAKEN: Final = """
    INSERT INTO knouds_seen (key, at) SELECT key, clock_timestamp() FROM unnest(%s::text[]) AS key ORDER BY key
        ON CONFLICT DO NOTHING RETURNING key
"""


class DatabaseBus:
    """The bus, and the store of deliveries that were taken, of the processes that share a database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._prune_at = 0.0

    async def claim(self, key: str) -> bool:
        """Store a key, in one atomic step; return whether it was new. LedgerError when the database is away."""
        if time.monotonic() > self._prune_at:
            self._prune_at = time.monotonic() + _PRUNE
            await self._database.do(_prune, None)
        is_new: bool = await self._database.do(_claim, key)
        return is_new

    async def release(self, key: str) -> None:
        """Remove a key again."""
        await self._database.do(_release, key)

    async def send(self, state: ExecutionState) -> None:
        """Send to every process that a run has finished; each that waits for it polls it once."""
        await self._database.notify(json.dumps({"executionId": state.execution_id, "status": str(state.status)}))

    def listen(
        self,
        heard: Callable[[ExecutionState], object],
        resumed: Callable[[], object],
        deaf: Callable[[], object],
    ) -> Callable[[], None]:
        """Call `heard` in this event loop with what was sent, until what is returned is called.

        `resumed`: called when some may have been missed. `deaf`: called when nothing can be heard at all.
        """

        def read(message: str) -> None:
            if (state := _state(message)) is not None:
                heard(state)

        return self._database.listen(read, resumed, deaf)


def _state(message: str) -> ExecutionState | None:
    """Return what a message says of a run; None for one that is not ours, for anybody may send to a channel."""
    try:
        said = json.loads(message)
        execution_id, status = said["executionId"], said["status"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not (is_execution_id(execution_id) and isinstance(status, str)):
        return None
    return ExecutionState(execution_id=execution_id, status=status)


def _claim(transaction: Any, keys: Sequence[str]) -> list[Any]:
    """Store keys; a commit that was in doubt is found out, else a delivery that was taken here would count as seen."""
    (rows,) = transaction.begin(_TAKEN, (sorted(set(keys)),))
    new, values = {row[0] for row in rows}, []
    for key in keys:
        values.append(key in new)
        new.discard(key)
    return transaction.commit(values)  # type: ignore[no-any-return]


def _release(transaction: Any, keys: Sequence[str]) -> list[Any]:
    transaction.message("DELETE FROM knouds_seen WHERE key = ANY(%s::text[])", (list(keys),))
    return [None for _ in keys]


def _prune(transaction: Any, operations: Sequence[None]) -> list[Any]:
    transaction.message("DELETE FROM knouds_seen WHERE at < clock_timestamp() - %s::interval", (_REMEMBERED,))
    return [None for _ in operations]
