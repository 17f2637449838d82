"""Transactions in PostgreSQL, and the row of this process there: its lease, and the number of its last commit.

Each transaction raises the number `seq` of this process, so that after a lost connection the next one finds out whether
a commit took place, and whether a failover has lost some: this process writes those of its own once more.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from knouds_async._io.concurrency import end_of_loop, read_clocks
from knouds_async.errors import LedgerError

LEASE: Final = 60.0
"""Seconds, by the database's clock, for which a process that says nothing counts as alive."""

_RENEW: Final = 20.0
_LOCK: Final = 10  # seconds for a lock, before the transaction is begun anew
_IN_TRANSACTION: Final = 5  # seconds after which the database frees the lock of a process that is frozen
_KEPT: Final = "7 days"  # for which the row of a process that is gone is kept, and longer while jobs are its own
_LONG_SILENCE: Final = 86400.0  # seconds without a commit, after which others may have removed the row of this process
_REMEMBERED: Final = 5000  # jobs that this process has written last: some minutes of a thousand a minute

TIMELINE: Final = """(SELECT system_identifier::text FROM pg_control_system()) || '/'
            || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"""
_OPENING: Final = f"""
    BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
    SELECT set_config('idle_in_transaction_session_timeout', %s, true), set_config('lock_timeout', %s, true),
        set_config('statement_timeout', '0', true),
        CASE WHEN current_setting('synchronous_commit') IN ('on', 'remote_apply') THEN NULL
        ELSE set_config('synchronous_commit', 'on', true) END;
    INSERT INTO knouds_owner AS mine (name, until, seq, place)
        VALUES (%s, clock_timestamp() + make_interval(secs => %s), 1, %s)
        ON CONFLICT (name) DO UPDATE SET until = excluded.until, seq = mine.seq + 1
        RETURNING seq, {TIMELINE};
"""  # noqa: S608  # a role or a database may have other settings by default; those of a transaction hold behind a pooler, too

_REMOVED: Final = """
    DELETE FROM knouds_owner WHERE name IN (
        SELECT name FROM knouds_owner WHERE until < clock_timestamp() - %s::interval AND NOT EXISTS (
            SELECT FROM knouds_job AS job WHERE job.owner IS NOT NULL AND split_part(job.owner, '/', 1) = name
        ) FOR UPDATE SKIP LOCKED
    )
"""

Transact: TypeAlias = Callable[["Transaction", Sequence[Any]], list[Any]]
"""Carry out operations in one transaction, and return the value of each, or the error that it alone met."""

Message: TypeAlias = Callable[..., list[list[tuple[Any, ...]]]]
"""Send statements in one message, with their values, and return the rows of those that have some."""


class Committed(Exception):  # noqa: N818  (never leaves the thread)
    """The commit that was in doubt took place after all."""

    def __init__(self, values: list[Any]) -> None:
        super().__init__()
        self.values = values


class Transaction:
    """One transaction, in which this process shows that it is alive, and `transact` carries out `operations`.

    From `begin` on it has the `timeline` of the database, what is `lost` of what `transact` had committed, by its keys,
    and the `ended_owners` whose end is to be written by it.
    """

    def __init__(self, message: Message, row: ProcessRow, transact: Transact, operations: Sequence[Any]) -> None:
        self.message: Final = message
        self.row: Final = row
        self.transact: Final = transact
        self.operations: Final = operations
        self.seq, self.timeline = 0, ""
        self.lost: dict[Any, Any] | None = None
        self.ended_owners: tuple[str, ...] = ()
        self.values: list[Any] = []
        self.written: dict[Any, Any] = {}

    def begin(self, statements: str = "", values: Sequence[Any] = ()) -> list[list[tuple[Any, ...]]]:
        """Begin, and return the rows of statements that come with the same message."""
        self.prepare_tables()
        row = self.row
        opening = f"{_IN_TRANSACTION}s", f"{_LOCK}s", row.name, LEASE, row.place
        _, ((self.seq, self.timeline),), *found = self.message(_OPENING + statements, (*opening, *values))
        row.settle(self)
        return found

    def commit(
        self,
        values: list[Any],
        statements: str = "",
        parameters: Sequence[Any] = (),
        *,
        written: dict[Any, Any] | None = None,
    ) -> list[Any]:
        """Write and commit in one message, and return the `values` that hold from then on.

        `written`: by its keys what is written, to be kept in case the database loses it.
        """
        self.values, self.written = values, written or {}
        self.row.in_doubt = self
        self.message(f"{statements}; COMMIT", parameters)
        self.row.committed(self)
        return values

    # The tables.

    def has_tables(self) -> bool:
        """Return whether the tables are there; LedgerError for those of another version."""
        row = self.row
        if not row.has_tables and self.message("SELECT to_regclass('knouds_schema') IS NOT NULL")[0][0][0]:
            self._check_version(self.message("SELECT version FROM knouds_schema")[0])
            row.has_tables = True
        return row.has_tables

    def prepare_tables(self) -> None:
        """Make the tables where there are none, in one transaction that no other process runs at the same time."""
        if self.row.has_tables:
            return
        *_, ((exists,),) = self.message(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT set_config('statement_timeout', '0', true); "
            f"SELECT pg_advisory_xact_lock({_MIGRATION}); SELECT to_regclass('knouds_schema') IS NOT NULL"
        )
        if not exists:
            self.message(f"{SCHEMA}; COMMIT")
        else:
            self._check_version(self.message("SELECT version FROM knouds_schema; COMMIT")[0])
        self.row.has_tables = True

    def _check_version(self, found: list[tuple[Any, ...]]) -> None:
        if found != [(_VERSION,)]:
            version = ", ".join(str(row[0]) for row in found) or "none"
            raise LedgerError(
                f"the tables of knouds in {self.row.database} are of a version that is not known here ({version}, not "
                f"{_VERSION}), and were left as they are. Use the version of knouds_async that wrote them, or another "
                "database"
            )


CHANNEL: Final = "knouds_finished"
"""On which processes hear which runs have finished."""


def notify(transaction: Transaction, operations: Sequence[str]) -> list[Any]:
    """Send strings to every process that listens."""
    transaction.message("SELECT pg_notify(%s, text) FROM unnest(%s::text[]) AS text", (CHANNEL, list(operations)))
    return [None for _ in operations]


def renew(transaction: Transaction, operations: Sequence[Any]) -> list[Any]:
    """Renew the lease of this process."""
    transaction.begin()
    return transaction.commit(list(operations))


def _remove_old(transaction: Transaction, operations: Sequence[Any]) -> list[Any]:  # noqa: ARG001
    """Remove the rows of processes that are gone for long, and of whose owners no job is; one that is in use stays."""
    transaction.message(_REMOVED, (_KEPT,))
    return []


class ProcessRow:
    """The row of this process in a database: what others see of it, and what became of what it has committed.

    `database`: its place, as messages show it. `name`: with it begin the names of the owners that live by this row.
    `has_tables`: whether the tables are known to be there. `in_doubt`: the transaction whose commit has no answer yet.
    """

    def __init__(self, database: str) -> None:
        self.database: Final = database
        self.name: Final = os.urandom(9).hex()
        self.place: Final = f"{socket.gethostname()}:{os.getpid()}"
        self.has_tables = False
        self.in_doubt: Transaction | None = None
        self._seq, self._committed_at, self._checked_at = 0, read_clocks(), 0.0
        self._has_removed_old = False
        self._written: dict[tuple[Transact, Any], tuple[int, Any]] = {}  # the oldest first
        self._lost: dict[Transact, dict[Any, Any]] = {}
        self._numbers = itertools.count(1)
        self._owners: dict[str, tuple[Transact, Callable[[], bool]]] = {}  # what writes their end; has their loop ended
        self._ended: dict[str, Transact] = {}  # owners whose end is not written yet

    # Its owners; called from any thread.

    def new_owner(self, transact: Transact) -> str:
        """Return the name of a new owner, for whom the lease is kept while its event loop is there.

        `transact`: what writes its end.
        """
        owner = f"{self.name}/{next(self._numbers)}"
        self._owners[owner] = transact, end_of_loop()
        return owner

    def end_owner(self, owner: str, *, is_written: bool) -> None:
        """Keep the lease for an owner no longer; its end is still to be written, unless it is."""
        transact, _ = self._owners.pop(owner, (None, None))
        if transact is not None and not is_written:
            self._ended[owner] = transact

    def is_wanted(self) -> bool:
        """Return whether an owner is alive, or has ended and counts as alive in the database."""
        return bool(self._owners) or (bool(self._ended) and time.monotonic() < self._committed_at.steady + LEASE)

    # Called in the thread.

    def due(self) -> set[Transact]:
        """Return what is to be carried out unasked, without operations: to write ends, or to renew the lease."""
        now = time.monotonic()
        if now > self._checked_at + _RENEW:
            self._checked_at = now
            self._end_orphans()
        ended = list(self._ended.values())  # a copy: event loops add to them while `set` hashes
        due = set(ended)
        if not due and self._owners and now > self._committed_at.steady + _RENEW:
            due.add(renew)
        if self._seq and not self._has_removed_old:  # each that adds a row does so once, so that they stay few
            self._has_removed_old = True
            due.add(_remove_old)
        return due

    def _end_orphans(self) -> None:
        """End owners whose event loop has ended without it: others would wait for them while this process lives."""
        for owner, (_, has_ended) in list(self._owners.items()):
            if has_ended():
                self.end_owner(owner, is_written=False)

    def settle(self, transaction: Transaction) -> None:
        """Find out from the number of a new transaction what became of the last, which may have been in doubt.

        Raises Committed for a commit of the same operations that took place after all.
        """
        doubt, self.in_doubt = self.in_doubt, None
        seq = transaction.seq
        if doubt is not None and seq == doubt.seq + 1:
            self.committed(doubt)
            if doubt.operations is transaction.operations:
                raise Committed(doubt.values)
        elif seq != self._seq + 1:
            if seq == 1 and read_clocks().since(self._committed_at) > _LONG_SILENCE:
                self._written.clear()  # others have removed the row: so long ago no replica was
            else:
                self._lose(seq - 1 if seq <= self._seq else 0)
            self._seq = seq - 1
        transaction.lost = self._lost.get(transaction.transact)
        transaction.ended_owners = tuple(each for each, by in list(self._ended.items()) if by == transaction.transact)

    def _lose(self, seq: int) -> None:
        """Note that of the commits of this process those up to this number are there."""
        for (transact, key), (number, value) in list(self._written.items()):
            if number > seq:
                self._lost.setdefault(transact, {})[key] = value
                del self._written[transact, key]

    def committed(self, transaction: Transaction) -> None:
        """Note that a transaction is on record, as the last one, with what it has written.

        That is kept until so much was written after it that no replica can be so far behind.
        """
        self.in_doubt = None
        self._seq, self._committed_at = transaction.seq, read_clocks()
        self._lost.pop(transaction.transact, None)
        for owner in transaction.ended_owners:
            self._ended.pop(owner, None)
        for key, value in transaction.written.items():
            self._written.pop((transaction.transact, key), None)
            self._written[transaction.transact, key] = (transaction.seq, value)
        while len(self._written) > _REMEMBERED:
            del self._written[next(iter(self._written))]


# The tables.

_VERSION: Final = 1
_MIGRATION: Final = 0x4B_4E_4C_47  # the key of the advisory lock under which tables are made

SCHEMA: Final = """
    CREATE TABLE knouds_schema (version integer NOT NULL);
    INSERT INTO knouds_schema VALUES (1);
    CREATE TABLE knouds_owner (
        name text PRIMARY KEY, until timestamptz NOT NULL, seq bigint NOT NULL, place text NOT NULL
    ) WITH (fillfactor = 50);
    CREATE TABLE knouds_ledger (
        name text PRIMARY KEY,
        spent double precision NOT NULL DEFAULT 0, reserved double precision NOT NULL DEFAULT 0,
        unpriced bigint NOT NULL DEFAULT 0, timeline text NOT NULL, account text, base_url text
    ) WITH (fillfactor = 50);
    CREATE TABLE knouds_price (
        ledger text, target text, runs bigint NOT NULL, highest double precision, PRIMARY KEY (ledger, target)
    ) WITH (fillfactor = 50);
    CREATE TABLE knouds_job (
        ledger text, key text, attempt integer, target text NOT NULL, digest text NOT NULL, stage text NOT NULL,
        owner text, reserved double precision, sent_at double precision, execution_id text, request_id text, note text,
        status text, cost double precision, reply text, code text, message text,
        since text, until text, lasts double precision NOT NULL DEFAULT 0, account text,
        PRIMARY KEY (ledger, key, attempt)
    ) WITH (fillfactor = 70);
    CREATE INDEX knouds_job_in_doubt ON knouds_job (ledger, target) WHERE stage NOT IN ('new', 'final');
    CREATE INDEX knouds_job_by_owner ON knouds_job (ledger, owner) WHERE owner IS NOT NULL;
    CREATE INDEX knouds_job_by_run ON knouds_job (ledger, execution_id) WHERE execution_id IS NOT NULL;
    CREATE INDEX knouds_job_by_time ON knouds_job (ledger, target, sent_at) WHERE request_id IS NOT NULL;
    CREATE INDEX knouds_job_failed ON knouds_job (ledger) WHERE status IN ('failed', 'cancelled');
    CREATE TABLE knouds_seen (key text PRIMARY KEY, at timestamptz NOT NULL);
    CREATE INDEX knouds_seen_by_time ON knouds_seen (at);
    CREATE UNLOGGED TABLE knouds_window (name text PRIMARY KEY, state text NOT NULL, at double precision NOT NULL)
        WITH (fillfactor = 50);
"""
