"""SQLiteLedger: the ledger of the batches of one machine, in a file."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import shlex
import shutil
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
import attrs

from knouds_async._batch.ledger import (
    COLUMNS,
    IN_FLIGHT,
    LedgerCounts,
    LedgerOperations,
    TransactionalLedger,
    values_of,
)
from knouds_async._batch.owners import Owners, check_locks, end
from knouds_async._io.concurrency import end_of_loop
from knouds_async._io.worker_thread import CLOSE_TIMEOUT, ThreadRequest, WorkerThread, may_give_up
from knouds_async._sansio.ledger import Entry, Payer, Stage, Totals
from knouds_async.config import Secret, hide_url
from knouds_async.errors import InvalidArgumentError, LedgerError
from knouds_async.telemetry import fields

if TYPE_CHECKING:
    import sqlite3


T = TypeVar("T")

logger = logging.getLogger("knouds_async")

_APPLICATION_ID: Final = 0x4B_4E_4C_47  # SQLite's application id: this is a ledger of ours
_VERSION: Final = 4
_BUSY_TIMEOUT: Final = 0.5
_PATIENCE: Final = 300.0
_RETRY_INTERVAL: Final = 0.1
_WARN_AFTER: Final = 10.0  # seconds of waiting for a lock

_MOST_CHECKED: Final = 2**22  # bytes; a larger file is found to be damaged where it is read, which every claim does
_making = threading.Lock()
"""While a file is made, none is opened: POSIX drops all locks of a process when it closes any descriptor of a file."""

_PRICES: Final = "CREATE TABLE prices (target TEXT PRIMARY KEY, runs INTEGER NOT NULL, highest REAL)"
_BY_RUN: Final = "CREATE INDEX IF NOT EXISTS jobs_by_run ON jobs (execution_id) WHERE execution_id IS NOT NULL"
_TABLES: Final = (
    """CREATE TABLE jobs (
        key TEXT NOT NULL, attempt INTEGER NOT NULL, target TEXT NOT NULL, digest TEXT NOT NULL, stage TEXT NOT NULL,
        owner TEXT, reserved REAL, sent_at REAL, execution_id TEXT, request_id TEXT, note TEXT,
        status TEXT, cost REAL, reply TEXT, code TEXT, message TEXT,
        since TEXT, until TEXT, lasts REAL NOT NULL DEFAULT 0, account TEXT,
        PRIMARY KEY (key, attempt)
    )""",
    "CREATE INDEX jobs_by_stage ON jobs (stage, status)",
    "CREATE INDEX jobs_by_owner ON jobs (owner) WHERE owner IS NOT NULL",
    "CREATE INDEX jobs_by_time ON jobs (sent_at)",
    _BY_RUN,
    _PRICES,
    "CREATE TABLE credits (spent REAL NOT NULL, reserved REAL NOT NULL, unpriced INTEGER NOT NULL)",
    "INSERT INTO credits VALUES (0, 0, 0)",
    "CREATE TABLE payer (user TEXT, base_url TEXT NOT NULL)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_VERSION}",
)


_UPGRADES: Final = {  # from each earlier version to the next
    1: (
        "ALTER TABLE jobs ADD COLUMN since TEXT",
        "ALTER TABLE jobs ADD COLUMN until TEXT",
        "ALTER TABLE jobs ADD COLUMN lasts REAL NOT NULL DEFAULT 0",
        "ALTER TABLE jobs ADD COLUMN account TEXT",
        "CREATE TABLE payer (user TEXT, base_url TEXT NOT NULL)",
    ),
    2: (),  # whose owners were processes by their ids; none of them holds a lock
    3: (
        _BY_RUN,
        _PRICES,
        "INSERT INTO prices "
        "SELECT target, COUNT(*), NULLIF(MAX(cost), 0) FROM jobs WHERE cost IS NOT NULL GROUP BY target",
        "DROP INDEX IF EXISTS jobs_by_cost",
    ),
}


def _import_sqlite() -> None:
    """Import sqlite3, once there is a ledger in a file; LedgerError for an interpreter that was built without it."""
    global sqlite3  # noqa: PLW0603  (few batches need it)
    try:
        import sqlite3
    except ImportError as error:
        raise LedgerError(
            f"a ledger in a file needs Python's module sqlite3, which this interpreter was built without ({error}): "
            "use another interpreter, or build this one where SQLite's headers are installed (Debian: libsqlite3-dev; "
            "Fedora: sqlite-devel). Nothing was submitted; without `ledger=` a batch needs no such module"
        ) from None


def opened(path: Path, patience: float) -> sqlite3.Connection:
    """Open a ledger's file, or make it. OSError or sqlite3.Error for one that is damaged or something else."""
    check_locks(path.parent)
    if path.exists() and not path.is_file():  # to open a pipe would wait for its other end, with no way out
        raise OSError(errno.EINVAL, "it is a folder" if path.is_dir() else "it is a pipe or a device, not a file")
    with _making, suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    with closing(_connected(path, "ro")) as probe:  # which changes nothing of what is no ledger
        patiently(partial(_is_half_written, probe), patience, path)
    connection = _connected(path, "rw")
    try:
        patiently(partial(connection.execute, "BEGIN IMMEDIATE"), patience, path)
        if _is_new(connection):
            for statement in _TABLES:
                connection.execute(statement)
        elif path.stat().st_size <= _MOST_CHECKED and (found := _value(connection, "quick_check(1)")) != "ok":
            raise sqlite3.DatabaseError(f"it is damaged ({found})")
        else:
            for version in range(_value(connection, "user_version"), _VERSION):
                for statement in (*_UPGRADES[version], f"PRAGMA user_version = {version + 1}"):
                    connection.execute(statement)
        patiently(partial(connection.execute, "COMMIT"), patience, path)
        connection.execute("PRAGMA journal_mode = TRUNCATE")  # SQLite's WAL has a race with several connections
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA temp_store = MEMORY")  # a file would take a descriptor
    except BaseException:
        connection.close()
        raise
    return connection


def patiently(execute: Callable[[], object], patience: float, path: Path) -> None:
    """Execute a statement, waiting `patience` seconds while another process has the file locked."""
    began, has_warned = time.monotonic(), False
    while True:
        try:
            execute()
        except sqlite3.OperationalError as error:
            waited = time.monotonic() - began
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or waited > patience or may_give_up():
                raise
            if waited > _WARN_AFTER and not has_warned:
                has_warned = True
                message = "the ledger %r is locked by another process, and is waited for"
                logger.warning(message, str(path), extra=fields("ledger_locked"))
        else:
            return


def _connected(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_BUSY_TIMEOUT)


def _is_half_written(connection: sqlite3.Connection) -> bool:
    """Return whether a crash has left a file half written; sqlite3.DatabaseError for one that is no ledger."""
    try:
        _is_new(connection)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
            raise
        return True
    return False


@contextmanager
def _read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a file to read it and change nothing beside it; what a crash has left half written is read from a copy."""
    with ExitStack() as stack:
        connection = stack.enter_context(closing(_connected(path, "ro")))
        connection.execute("PRAGMA busy_timeout = 0")
        if _is_half_written(connection):
            folder = Path(stack.enter_context(TemporaryDirectory()))
            with paused():  # to close a file drops the locks of the process on it
                for name in (path.name, f"{path.name}-journal"):
                    shutil.copyfile(path.with_name(name), folder / name)
            connection = stack.enter_context(closing(_connected(folder / path.name, "rw")))
        yield connection


def _recorded(connection: sqlite3.Connection, key: str) -> Entry | None:
    """Return what a file of any form has on record of the last attempt of a job."""
    query = "SELECT attempt, target, digest, stage FROM jobs WHERE key = ? ORDER BY attempt DESC LIMIT 1"
    for attempt, target, digest, stage in connection.execute(query, (key,)):
        return Entry(key=key, attempt=attempt, target=target, digest=digest, stage=Stage(stage))
    return None


async def _when_unlocked(read: Callable[[], T]) -> T:
    """Return what a read gives, once no other process has the file locked for a moment."""
    until = anyio.current_time() + _PATIENCE
    while True:
        try:
            return read()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or anyio.current_time() > until:
                raise
        await anyio.sleep(_RETRY_INTERVAL)


def _is_new(connection: sqlite3.Connection) -> bool:
    """Return whether a file is empty still; sqlite3.DatabaseError when it is no ledger."""
    application, version, tables = connection.execute(  # one statement, as another process may be making them
        "SELECT application_id, user_version, (SELECT COUNT(*) FROM sqlite_master) "
        "FROM pragma_application_id, pragma_user_version"
    ).fetchone()
    if application == version == tables == 0:
        return True
    if application != _APPLICATION_ID:
        raise sqlite3.DatabaseError("it is an SQLite file of something else")
    if version not in (*_UPGRADES, _VERSION):
        raise sqlite3.DatabaseError(f"another version of knouds_async wrote it ({version}, not {_VERSION})")
    return False


def _value(connection: sqlite3.Connection, pragma: str) -> Any:
    return connection.execute(f"PRAGMA {pragma}").fetchone()[0]


_SPARE: Final = 4  # a journal and its folder, with some to spare
_FULL_DISK_PATIENCE: Final = 30.0


class _SpareDescriptors:
    """File descriptors in reserve: SQLite opens its journal anew each time, when connections may hold all others."""

    def __init__(self) -> None:
        self._held: list[int] = []
        self.take()

    def take(self) -> None:
        """Add as many as are missing and to be had."""
        with suppress(OSError):
            while len(self._held) < _SPARE:
                self._held += os.pipe()

    def release(self) -> bool:
        """Free them for a transaction; return whether there were any."""
        had_any = bool(self._held)
        while self._held:
            os.close(self._held.pop())
        return had_any


_UPSERT: Final = f"INSERT OR REPLACE INTO jobs ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608

_FORK_TIMEOUT: Final = 5.0  # seconds that a fork waits for a transaction
_databases: Final = weakref.WeakSet["LedgerDatabase"]()
_may_begin = threading.Event()
_may_begin.set()


class LedgerDatabase(LedgerOperations):
    """One process's connection to a ledger's file.

    The file is opened, or made; LedgerError for one that is no ledger. `patience`: seconds to wait for a lock.
    """

    _columns = ", ".join(COLUMNS)
    _is_last = "NOT EXISTS (SELECT 1 FROM jobs AS later WHERE later.key = job.key AND later.attempt > job.attempt)"

    def __init__(self, path: Path, patience: float) -> None:
        self._path = path
        self._named = f"the ledger {str(path)!r}"
        self._patience = patience
        self._totals = Totals()
        self._is_failing = False
        self._own = set[str]()
        self.in_use = threading.RLock()  # in a transaction: a fork waits for its end
        _databases.add(self)
        _import_sqlite()
        try:
            _may_begin.wait(_FORK_TIMEOUT)
            with self.in_use:
                self._connection = opened(path, patience)
            try:
                self._owners = Owners.open(path)
            except BaseException:
                self._connection.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise _unopened(path, error) from None
        self.spare: Final = _SpareDescriptors()

    def transact(self, operations: Sequence[Callable[[LedgerDatabase], Any]]) -> list[Any]:
        """Carry out operations in one transaction; give the value of each, or the error that it alone met.

        A shortage that may pass is waited out: money may hang on what is to be written. LedgerError when the file
        cannot be read or written: then none of them took place.
        """
        began, reason = time.monotonic(), ""
        while True:
            try:
                with self._transaction():
                    values = [self.carried_out(operation) for operation in operations]
            except (sqlite3.Error, MemoryError) as error:
                waited = time.monotonic() - began
                if waited >= (longest := self._longest_wait(error)) or may_give_up():
                    self._is_failing = True
                    raise _unusable(self._path, error) from None
                if self.spare.release():
                    continue  # at once, for connections take each descriptor that is free, and wait for what is written
                if reason != (reason := _reason(error)):
                    left, extra = longest - waited, fields("ledger_waits")
                    logger.warning("%s waits for up to %.0f s: %s", self._named, left, reason, extra=extra)
                time.sleep(_RETRY_INTERVAL)
            else:
                self._is_failing = False
                self.spare.take()
                return values

    def _longest_wait(self, error: Exception) -> float:
        """Return for how many seconds an error may last; once one has lasted that long, none is waited for."""
        if self._is_failing:
            return 0.0
        code = getattr(error, "sqlite_errorcode", 0)
        if isinstance(error, MemoryError) or code & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM):
            return self._patience
        is_full = code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_WRITE  # the latter: of a quota
        return min(_FULL_DISK_PATIENCE, self._patience) if is_full else 0.0

    def join(self, has_ended: Callable[[], bool] = lambda: False) -> str:
        """Return the name of a new owner, which lives until it is ended, its event loop has, or this is closed."""
        try:
            self._own.add(owner := self._owners.join(has_ended))
        except OSError as error:
            raise _unopened(self._path, error) from None
        return owner

    def close(self) -> None:
        """Close the connection, and end the owners that joined through it."""
        with self.in_use:
            self._connection.close()
        self.spare.release()
        for owner in self._own:
            self._owners.end(owner)
        self._owners.close()

    # Within a transaction.

    def counts(self) -> LedgerCounts:
        """Count the jobs by where they stand; it writes nothing."""
        rows = self._select("job.stage, job.status, COUNT(*)", f"{self._is_last} GROUP BY job.stage, job.status")
        found = Counter[str]({status or stage: count for stage, status, count in rows})
        orphans = len(self._orphans())
        found.update(unknown=orphans, sending=-orphans)
        return LedgerCounts(**found, credits_spent=self._totals.spent, credits_reserved=self._totals.reserved)

    def _of_dead_owners(self) -> Iterator[Entry]:
        for (owner,) in self._select("DISTINCT job.owner", "job.owner IS NOT NULL"):
            if not self._is_alive(owner):
                yield from self._where("job.owner = ?", owner)

    def _in_flight(self) -> int:
        rows = self._select("job.owner, COUNT(*)", f"{IN_FLIGHT} GROUP BY job.owner")
        return sum(count for owner, count in rows if self._is_alive(owner))

    def _is_alive(self, owner: str) -> bool:
        return self._owners.is_alive(owner)

    def _select(self, columns: str, condition: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(f"SELECT {columns} FROM jobs AS job WHERE {condition}", values).fetchall()  # noqa: S608

    def _save(self, entry: Entry) -> None:
        self._connection.execute(_UPSERT, tuple(values_of(entry).values()))

    def _price(self, target: str) -> tuple[int, float | None]:
        query = "SELECT runs, highest FROM prices WHERE target = ?"
        return self._connection.execute(query, (target,)).fetchone() or (0, None)

    def _set_price(self, target: str, runs: int, highest: float | None) -> None:
        self._connection.execute("INSERT OR REPLACE INTO prices VALUES (?, ?, ?)", (target, runs, highest))

    def _bound_to(self) -> Payer | None:
        row = self._connection.execute("SELECT user, base_url FROM payer").fetchone()
        return None if row is None else Payer(user=row[0], base_url=row[1])

    def _set_payer(self, payer: Payer | None) -> None:
        self._connection.execute("DELETE FROM payer")
        if payer is not None:
            self._connection.execute("INSERT INTO payer VALUES (?, ?)", (payer.user, payer.base_url))

    # The transaction.

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Do what is inside whole or not at all."""
        patiently(self._begin, self._patience, self._path)
        try:
            row = self._connection.execute("SELECT spent, reserved, unpriced FROM credits").fetchone()
            before = self._totals = Totals(spent=row[0], reserved=row[1], unpriced=row[2])
            yield
            if self._totals != before:
                values = attrs.astuple(self._totals)
                self._connection.execute("UPDATE credits SET spent = ?, reserved = ?, unpriced = ?", values)
            patiently(partial(self._connection.execute, "COMMIT"), self._patience, self._path)
        finally:
            with suppress(sqlite3.Error):  # what cannot be rolled back now is so when the file is opened next
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            self.in_use.release()

    def _begin(self) -> None:
        """Begin a transaction if the file is not locked: no fork can come in between from here on."""
        _may_begin.wait(_FORK_TIMEOUT)
        self.in_use.acquire()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except BaseException:
            self.in_use.release()
            raise


def _unopened(path: Path, why: Exception) -> LedgerError:
    words = (getattr(why, "strerror", None) or _reason(why)).rstrip(". ")  # the path is named already
    error = LedgerError(
        f"the ledger {str(path)!r} cannot be used: {words}. It was left as it is, and nothing was submitted; name a "
        "ledger, or a path where a new one can be made: a new one knows of no earlier run"
    )
    error.unopened = words
    return error


def _reason(error: Exception) -> str:
    """Return why a file cannot be used; SQLite's own words leave out what matters of some reasons."""
    code = getattr(error, "sqlite_errorcode", 0)
    if isinstance(error, MemoryError):
        return "the process has no memory left"
    if code in (sqlite3.SQLITE_IOERR_LOCK, sqlite3.SQLITE_IOERR_RDLOCK, sqlite3.SQLITE_IOERR_UNLOCK):
        return f"{error}: its file system has no locks; a ledger needs a local disk"
    if code & 0xFF == sqlite3.SQLITE_CANTOPEN:
        return f"{error}; if the process has used up its file descriptors, raise `ulimit -n`"
    return str(error)


def _unusable(path: Path, why: Exception) -> LedgerError:
    if getattr(why, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY_DBMOVED:
        return LedgerError(
            f"the ledger {str(path)!r} was moved, deleted or replaced while it was in use. Nothing more is submitted; "
            "put it back before you run the batch again: a new one knows of no earlier run, and all would be paid twice"
        )
    return LedgerError(
        f"the ledger {str(path)!r} cannot be used: {_reason(why)}. Nothing more is submitted; what is on record stays, "
        "and the same batch on the same ledger continues from there"
    )


_IDLE: Final = 0.5  # seconds after which a thread with nothing to do ends; the file stays open


class LedgerThread(WorkerThread):
    """The thread of this process that uses a ledger's file, which it opens for the first operation."""

    def __init__(self, path: Path) -> None:
        super().__init__("knouds-ledger", f"the ledger {str(path)!r}", idle=_IDLE)
        self._path = path
        self._database: LedgerDatabase | None = None

    def _carry_out(self, kind: Any, group: Sequence[ThreadRequest]) -> list[Any]:  # noqa: ARG002  (all are of one)
        if self._database is None:
            self._database = LedgerDatabase(self._path, _PATIENCE)
        return self._database.transact([request.operation for request in group])

    def close_database(self) -> None:
        """Close the file; to be called in the thread."""
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def begin_in_child(self) -> object:
        """Leave the file to the parent process; SQLite forbids to close the copy of its connection in a child."""
        super().begin_in_child()
        database, self._database = self._database, None
        if database is not None:
            database.spare.release()
        return database


class SQLiteLedger(TransactionalLedger[LedgerDatabase]):
    """A ledger in an SQLite file: batches continue from it after a crash, and several processes may share it.

    `path`: the file, made with mode 0600 when it is not there; the API key is never in it, inputs are kept as a digest
    only, results as they came. Every intent to send is safe on the disk before the request leaves, every id and every
    result before anybody has it. A file that is damaged or no ledger raises LedgerError when it is opened and is left
    as it is; one that another process has locked is waited for, 300 seconds at most, without holding up the event loop.
    Use it in `async with`, or give `map` its path; a forked child has a connection of its own. Who works on a job is a
    lock on the file `PATH-owners`, which ends with the program. Not for a network file system, whose locks do not hold.
    """

    _path = Path()  # as a report shows one that could not be made

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if isinstance(hide_url(path), Secret):
            path = ""  # so that no frame of ours shows a password
            raise InvalidArgumentError(
                "SQLiteLedger: must be the path of a file; a ledger in a database is a knouds_async.postgres.Postgres"
            )
        self._path = Path(path)
        self._is_closed = False
        _load()
        self._thread: Final = LedgerThread(self._path)

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def __repr__(self) -> str:
        """Show the file."""
        return f"<SQLiteLedger {str(self._path)!r}>"

    async def __aenter__(self) -> SQLiteLedger:
        """Open the file; LedgerError when it cannot be used."""
        await self._transact(lambda _: None, may_withdraw=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the file, once what was asked for is written; idempotent.

        While another process has it locked, what only reads is waited for a moment.
        """
        with anyio.CancelScope(shield=True):
            if not self._is_closed:
                self._is_closed = True
                await self._thread.flush(self._thread.close_database, timeout=CLOSE_TIMEOUT)

    # What somebody may want to know and decide.

    async def counts(self) -> LedgerCounts:
        """Count the jobs by where they stand."""
        return await self._transact(LedgerDatabase.counts, may_withdraw=True)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Callable[[str], Awaitable[Entry | None]]]:
        """Return inside a function that finds where a job stands, and writes nothing: not even a file is created."""
        _import_sqlite()
        with ExitStack() as stack:
            try:
                connection = None
                if self._path.exists():
                    connection = await _when_unlocked(lambda: stack.enter_context(_read_only(self._path)))
                    connection = None if await _when_unlocked(partial(_is_new, connection)) else connection
            except (OSError, sqlite3.Error) as error:
                raise _unopened(self._path, error) from None

            async def find(key: str) -> Entry | None:
                return None if connection is None else await _when_unlocked(partial(_recorded, connection, key))

            yield find

    async def join(self) -> str:
        """Return the name of a new owner."""
        has_ended = end_of_loop()
        return await self._transact(lambda database: database.join(has_ended), may_withdraw=True)

    async def leave(self, owner: str) -> None:
        """End an owner. Nothing is written, since the disk may be full: `look` and `claim` undo its claims."""
        try:
            with anyio.move_on_after(CLOSE_TIMEOUT):  # for what was asked before; what comes later is late news
                await self._thread.flush()
        finally:
            end(owner)

    def _names(self) -> tuple[str, str]:
        return f"the ledger {str(self._path)!r}", shlex.quote(str(self._path))

    async def _transact(
        self, operation: Callable[[LedgerDatabase], T], *, may_withdraw: bool = False, **_: str | None
    ) -> T:
        """Run an operation in the thread. Cancelled: it is carried out all the same, unless it may be withdrawn."""
        if self._is_closed:
            raise LedgerError(f"the ledger {str(self._path)!r} is closed")
        value: T = await self._thread.do(ThreadRequest(None, operation, may_withdraw=may_withdraw))
        return value


def _load() -> None:
    """Import what a ledger uses: a child that is forked while a thread imports a module gets it half made, for good."""
    with suppress(LedgerError):  # raised where the ledger is used
        _import_sqlite()
    for name in ("_backends._asyncio", "_core._synchronization", "_core._tasks"):
        importlib.import_module(f"anyio.{name}")
    _ = anyio.Event, anyio.CancelScope, anyio.current_time, anyio.sleep


_forking = threading.RLock()
_pausing: Final[list[list[LedgerDatabase]]] = []  # of each fork under way: a signal may begin another within it


def _pause() -> None:
    """Wait for transactions, and begin none: a child that is forked would take their locks for held."""
    _forking.acquire()  # another thread that forks meanwhile begins once this one is done
    _may_begin.clear()
    _pausing.append([database for database in list(_databases) if database.in_use.acquire(timeout=_FORK_TIMEOUT)])


def _continue() -> None:
    for database in _pausing.pop():
        database.in_use.release()
    if not _pausing:
        _may_begin.set()
    _forking.release()


def _begin_in_child() -> None:
    global _forking, _making, _may_begin
    _forking, _making, _may_begin = threading.RLock(), threading.Lock(), threading.Event()
    _may_begin.set()
    _pausing.clear()
    _databases.clear()


@contextmanager
def paused() -> Iterator[None]:
    """Keep the ledgers of this process out of transactions."""
    _pause()
    try:
        yield
    finally:
        _continue()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_pause, after_in_parent=_continue, after_in_child=_begin_in_child)
