"""A PostgreSQL database that processes share, as an event loop sees it: what is asked of the one thread that uses it.

Nothing here imports psycopg; the thread does (`_io/postgres.py`), when a database is named for the first time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import anyio

from knouds_async._io.transactions import Transact, Transaction, notify
from knouds_async._io.worker_thread import CLOSE_TIMEOUT, ThreadRequest
from knouds_async._sansio.inputs import is_execution_id
from knouds_async.config import Secret, is_database_url
from knouds_async.errors import ConfigurationError, LedgerError, safe_repr
from knouds_async.types import ExecutionState

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


LONGEST_NAME: Final = 200


def read(transaction: Transaction, operations: Sequence[tuple[str, tuple[Any, ...]]]) -> list[Any]:
    """Return the rows of queries with their parameters, each in a transaction that changes nothing.

    There are none where there are no tables.
    """
    if not transaction.has_tables():
        return [[] for _ in operations]
    return [transaction.message(query, values)[-1] for query, values in operations]


class Database:
    """A database by its URL, and a name within it. It opens nothing; each process has one thread and one connection.

    The URL is shown nowhere but in a pickle, which holds it whole, password included, so that what is unpickled can
    connect.
    """

    _place: str | None = None

    def __init__(self, url: str | Secret, *, name: str = "default") -> None:
        secret = url if isinstance(url, Secret) else Secret(url)
        url = ""  # no frame of ours shows it
        self._name: Final = name
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise ConfigurationError(
                f"name={safe_repr(name)}: must be a string of 1 to {LONGEST_NAME} printable characters"
            )
        try:
            from knouds_async._io import postgres
        except ImportError as error:
            missing = f"PostgreSQL needs psycopg: pip install 'knouds-async[postgres]' ({error})"
            raise ConfigurationError(missing) from None
        self._place = postgres.place_of(secret) if is_database_url(secret.reveal()) else None
        if self._place is None:
            raise ConfigurationError(
                "the database must be named as postgresql://user:password@host:5432/database, with what is special in "
                "the password percent-encoded (what was given is not shown)"
            )
        self._url: Final = secret
        self._thread_of: Final = postgres.thread_of
        self._is_closed = False

    def __repr__(self) -> str:
        """Show the place and the name; neither user nor password."""
        return f"<{type(self).__name__} {self._place!r} name={self._name!r}>"

    def __str__(self) -> str:
        """Return the place alone, as messages and shells show it."""
        return str(self._place)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the URL, password included, and the name."""
        return _unpickled, (type(self), self._url.reveal(), self._name)

    async def __aenter__(self) -> Self:
        """Connect; LedgerError when that cannot be done."""
        await self.do(_prepare_tables, None, may_withdraw=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close it, once what was asked for is written; idempotent.

        The connection closes with the last `Postgres` of the same URL in this process. Without a call of this it
        closes by itself some seconds after its last use, or with the process.
        """
        with anyio.CancelScope(shield=True):
            if not self._is_closed:
                self._is_closed = True
                await self._thread_of(self._url).leave(self, CLOSE_TIMEOUT)

    async def migrate(self) -> None:
        """Make the tables, or bring older ones up to date, in one transaction; LedgerError when that is not allowed."""
        await self.do(_prepare_tables, None)

    def ask(
        self,
        transact: Transact,
        operation: Any,
        on_done: Callable[[BaseException | None, Any], object],
        *,
        patience: float,
        is_lazy: bool = False,
    ) -> None:
        """Pass an operation to the thread, which calls `on_done` with its error or value in this event loop.

        `patience`: seconds to try a database that is away. `is_lazy`: within a second will do.
        """
        request = ThreadRequest(transact, operation, on_done, patience=patience, may_withdraw=True)
        self._thread().ask(request, is_lazy=is_lazy)

    def _thread(self) -> Any:
        """Return the thread of this process."""
        thread = self._thread_of(self._url)
        thread.use(self)
        return thread

    async def notify(self, message: str) -> None:
        """Send a message to every process that listens."""
        await self.do(notify, message)

    def listen(
        self, on_message: Callable[[str], object], on_gap: Callable[[], object], on_unavailable: Callable[[], object]
    ) -> Callable[[], None]:
        """Call `on_message` in this event loop with each message, until what is returned is called.

        `on_gap`: called when messages may have been missed. `on_unavailable`: called when none can ever be heard.
        """
        stop: Callable[[], None] = self._thread().listen(on_message, on_gap, on_unavailable)
        return stop

    async def do(
        self, transact: Transact, operation: Any, *, may_withdraw: bool = False, patience: float | None = None
    ) -> Any:
        """Return the value of an operation that the thread carries out.

        Cancelled: it is carried out all the same; with `may_withdraw` it is not, unless it has begun.
        `patience`: seconds to try a database that is away, instead of the usual.
        """
        if self._is_closed:
            raise LedgerError(f"{self!r} is closed")
        request = ThreadRequest(transact, operation, patience=patience, may_withdraw=may_withdraw)
        return await self._thread().do(request)


def _unpickled(kind: type[Database], url: str, name: str) -> Database:
    secret, url = Secret(url), ""
    return kind(secret, name=name)


def _prepare_tables(transaction: Transaction, operations: Sequence[None]) -> list[Any]:
    transaction.prepare_tables()
    return [None for _ in operations]


# What a database tells all processes: which runs have finished, and which deliveries of webhooks were taken.

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
        on_message: Callable[[ExecutionState], object],
        on_gap: Callable[[], object],
        on_unavailable: Callable[[], object],
    ) -> Callable[[], None]:
        """Call `on_message` in this event loop with what was sent, until what is returned is called.

        `on_gap`: called when some may have been missed. `on_unavailable`: called when nothing can be heard at all.
        """

        def read(message: str) -> None:
            if (state := _state(message)) is not None:
                on_message(state)

        return self._database.listen(read, on_gap, on_unavailable)


def _state(message: str) -> ExecutionState | None:
    """Return what a message says of a run; None for one that is not ours, for anybody may send to a channel."""
    try:
        fields = json.loads(message)
        execution_id, status = fields["executionId"], fields["status"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not (is_execution_id(execution_id) and isinstance(status, str)):
        return None
    return ExecutionState(execution_id=execution_id, status=status)


def _claim(transaction: Transaction, keys: Sequence[str]) -> list[Any]:
    """Store keys; a commit that was in doubt is found out, else a delivery that was taken here would count as seen."""
    (rows,) = transaction.begin(_TAKEN, (sorted(set(keys)),))
    new, values = {row[0] for row in rows}, []
    for key in keys:
        values.append(key in new)
        new.discard(key)
    return transaction.commit(values)


def _release(transaction: Transaction, keys: Sequence[str]) -> list[Any]:
    transaction.prepare_tables()
    transaction.message("DELETE FROM knouds_seen WHERE key = ANY(%s::text[])", (list(keys),))
    return [None for _ in keys]


def _prune(transaction: Transaction, operations: Sequence[None]) -> list[Any]:
    transaction.prepare_tables()
    transaction.message("DELETE FROM knouds_seen WHERE at < clock_timestamp() - %s::interval", (_REMEMBERED,))
    return [None for _ in operations]
