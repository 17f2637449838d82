"""The SQLite file of a ledger: opened with care, and read and written in transactions. Blocking: for one thread alone.

Rule of the file: load, have `entries` and `ledger.decide` decide, save. Nothing here knows of threads or event loops.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import attrs

from knouds_async._io.clocks import read_clocks
from knouds_async._sansio.budget import Totals, repriced
from knouds_async._sansio.clock import Moment
from knouds_async._sansio.entries import (
    OPEN,
    Accepted,
    Ending,
    Entry,
    Event,
    IllegalStepError,
    OwnerGone,
    Payer,
    ResendApproved,
    Resolved,
    Stage,
    advance,
    successor,
)
from knouds_async._sansio.reconcile import KnownRun
from knouds_async.batch.ledger import Claim, Claimed, LedgerCounts, Summary, Written, decide, held_against
from knouds_async.batch.ledger_file import opened, patiently
from knouds_async.batch.owners import is_alive
from knouds_async.errors import InvalidArgumentError, LedgerError

_COLUMNS: Final = (
    "key, attempt, target, digest, stage, owner, reserved, sent_at, execution_id, request_id, note, "
    "status, cost, reply, code, message, since, until, lasts, account"
)
_IN_DOUBT: Final = (*sorted(OPEN), Stage.RESEND_APPROVED, Stage.ABANDONED)
_IS_LAST: Final = "NOT EXISTS (SELECT 1 FROM jobs AS later WHERE later.key = jobs.key AND later.attempt > jobs.attempt)"

_A_FEW: Final = 50

Operation = Callable[["LedgerDatabase"], Any]


class LedgerDatabase:
    """One process's connection to a ledger's file."""

    def __init__(self, path: Path, patience: float) -> None:
        """Open the file, or make it; LedgerError for one that is no ledger. `patience`: seconds to wait for a lock."""
        self._path = path
        self._patience = patience
        self._totals = Totals()
        import sqlite3

        try:
            self._connection = opened(path, patience)
        except (OSError, sqlite3.Error) as error:
            raise _unopened(path, error) from None

    def transact(self, operations: Sequence[Operation]) -> list[Any]:
        """Carry out operations in one transaction; give the value of each, or the error that it alone met.

        LedgerError when the file cannot be read or written: then none of them took place.
        """
        with self._transaction():
            return [self._carried_out(operation) for operation in operations]

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _carried_out(self, operation: Operation) -> Any:
        try:
            return operation(self)
        except ValueError as error:  # nothing was written by it: what decides comes before what saves
            return error

    # Operations; each within a transaction.

    def look(self, key: str) -> Entry | None:
        """Give the last attempt of a job, after its owner's end has been taken note of."""
        entry = self._load(key)
        if entry is not None and entry.owner is not None and not is_alive(entry.owner):
            return self._moved(entry, OwnerGone())
        return entry

    def claim(self, claim: Claim) -> Claimed:
        """Write the intent to send a job, if it may be sent."""
        entry = self.look(claim.key)
        decided = decide(entry, claim, self._totals, self._highest_cost(claim.target))
        if isinstance(decided, Written):
            self._save(decided.entry)
            self._totals = decided.totals
            return attrs.evolve(decided, committed=read_clocks())
        return decided

    def record(self, key: str, attempt: int, event: Event) -> Written:
        """Write what follows from an event."""
        entry = self._load(key, attempt)
        if entry is None:
            raise InvalidArgumentError(f"the ledger {str(self._path)!r} has no job {key!r}")
        if isinstance(event, Accepted):
            event = held_against(event, self._job_of(event.execution_id, key, attempt))
        highest_cost = self._highest_cost(entry.target)
        after = self._moved(entry, event)
        cost = after.ending.cost if after.ending is not None else None
        if cost and cost > (highest_cost or 0.0):
            highest_cost = cost
            self._reprice(entry.target, cost)
        return Written(after, self._totals, highest_cost)

    def _reprice(self, target: str, cost: float) -> None:
        marks = ", ".join("?" * len(_IN_DOUBT))
        query = f"stage IN ({marks}) AND target = ? AND (reserved IS NULL OR reserved < ?)"
        for entry in list(self._entries(query, *_IN_DOUBT, target, cost)):
            self._changed(entry, repriced(entry, cost))

    def _job_of(self, execution_id: str, key: str, attempt: int | None = None) -> str | None:
        """Return the job whose run this is, if it is another's, or that of another `attempt` where one is given."""
        query = "SELECT key FROM jobs WHERE execution_id = ? AND (key <> ? OR attempt <> ?) LIMIT 1"
        mine = (execution_id, key, attempt)  # no attempt differs from NULL
        return next((row[0] for row in self._connection.execute(query, mine)), None)

    def decision(self, key: str, event: Event) -> Entry:
        """Write what somebody has decided about the last attempt of a job; an approved one begins anew."""
        entry = self.look(key)
        if entry is None:
            raise InvalidArgumentError(f"the ledger {str(self._path)!r} has no job {key!r}")
        if isinstance(event, Resolved):
            self._refuse_run_of_another(key, event.execution_id)
        try:
            decided = self._moved(entry, event)
        except IllegalStepError:
            said = f"job {key!r} is {entry.stage}: only one that is unknown is decided about, so nothing was changed"
            raise InvalidArgumentError(said) from None
        return self._begun_again(decided) if isinstance(event, ResendApproved) else decided

    def _refuse_run_of_another(self, key: str, execution_id: str) -> None:
        if (other := self._job_of(execution_id, key)) is not None:
            said = f"execution {execution_id!r} is the run of job {other!r}, not of {key!r}: nothing was changed"
            raise InvalidArgumentError(said)

    def retry_failed(self) -> int:
        """Begin anew what failed or was cancelled."""
        failed = list(self._entries(f"stage = ? AND status <> 'completed' AND {_IS_LAST}", Stage.FINAL))
        for entry in failed:
            self._begun_again(entry)
        return len(failed)

    def leave(self, owner: str) -> None:
        """End an owner."""
        for entry in list(self._entries("owner = ?", owner)):
            self._moved(entry, OwnerGone())

    def release_dead_owners(self) -> None:
        """End every owner whose process is no more."""
        for (owner,) in self._connection.execute("SELECT DISTINCT owner FROM jobs WHERE owner IS NOT NULL").fetchall():
            if not is_alive(owner):
                self.leave(owner)

    def unknown(self) -> tuple[Entry, ...]:
        """Give the jobs of which nobody knows whether they ran."""
        self.release_dead_owners()
        return tuple(self._entries(f"stage = ? AND {_IS_LAST} ORDER BY sent_at", Stage.UNKNOWN))

    def counts(self) -> LedgerCounts:
        """Count the jobs by where they stand."""
        self.release_dead_owners()
        rows = self._connection.execute(
            f"SELECT stage, status, COUNT(*) FROM jobs WHERE {_IS_LAST} GROUP BY stage, status"  # noqa: S608
        )
        found = {status or stage: count for stage, status, count in rows}
        return LedgerCounts(**found, credits_spent=self._totals.spent, credits_reserved=self._totals.reserved)

    def summary(self, target: str) -> Summary:
        """Give all credits, and the real costs of a target."""
        query = "SELECT COUNT(*) FROM jobs WHERE target = ? AND cost IS NOT NULL"
        (runs,) = self._connection.execute(query, (target,)).fetchone()
        return Summary(totals=self._totals, runs=runs, highest_cost=self._highest_cost(target))

    def _highest_cost(self, target: str) -> float | None:
        query = "SELECT MAX(cost) FROM jobs WHERE target = ? AND cost > 0"
        found: float | None = self._connection.execute(query, (target,)).fetchone()[0]
        return found

    def known_runs(self, target: str, account: str, since: float) -> tuple[KnownRun, ...]:
        """Return an account's runs that are known to have begun since then, and the last few before."""
        query = "SELECT request_id, since, until FROM jobs WHERE target = ? AND account = ? AND request_id IS NOT NULL"
        values = (target, account, since)
        rows = self._connection.execute(f"{query} AND sent_at >= ?", values).fetchall()
        few = self._connection.execute(f"{query} AND sent_at < ? ORDER BY sent_at DESC LIMIT {_A_FEW}", values)
        return tuple(
            KnownRun(
                request_id=request_id,
                begun_by=None if (at := _moment(until)) is None else at.latest,
                begun_after=None if (at := _moment(begin)) is None else at.earliest,
            )
            for request_id, begin, until in (*rows, *few)
        )

    def bind(self, payer: Payer) -> Payer:
        """Return whose ledger this is: the first payer's who asks, as far as that one is known."""
        row = self._connection.execute("SELECT user, base_url FROM payer").fetchone()
        known = None if row is None else Payer(user=row[0], base_url=row[1])
        if known is None or (known.user is None and known.base_url == payer.base_url):
            self.rebind()
            self._connection.execute("INSERT INTO payer VALUES (?, ?)", (payer.user, payer.base_url))
            return payer
        return known

    def rebind(self) -> None:
        """Forget whose ledger this is."""
        self._connection.execute("DELETE FROM payer")

    # Rows.

    def _load(self, key: str, attempt: int | None = None) -> Entry | None:
        if attempt is None:
            return next(self._entries("key = ? ORDER BY attempt DESC LIMIT 1", key), None)
        return next(self._entries("key = ? AND attempt = ?", key, attempt), None)

    def _entries(self, query: str, *values: Any) -> Iterator[Entry]:
        rows = self._connection.execute(f"SELECT {_COLUMNS} FROM jobs WHERE {query}", values)  # noqa: S608
        return map(_entry, rows)

    def _moved(self, entry: Entry, event: Event) -> Entry:
        return self._changed(entry, advance(entry, event))

    def _changed(self, entry: Entry, after: Entry) -> Entry:
        if after != entry:
            self._save(after)
            self._totals = self._totals.moved(entry, after)
        return after

    def _begun_again(self, entry: Entry) -> Entry:
        following = successor(entry)
        self._save(following)
        return following

    def _save(self, entry: Entry) -> None:
        marks = ", ".join("?" * 20)
        self._connection.execute(f"INSERT OR REPLACE INTO jobs ({_COLUMNS}) VALUES ({marks})", _row(entry))  # noqa: S608

    # The transaction.

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Do what is inside whole or not at all, and turn SQLite's errors into ours."""
        import sqlite3

        try:
            patiently(self._connection, "BEGIN IMMEDIATE", self._patience)
            row = self._connection.execute("SELECT spent, reserved, unpriced FROM credits").fetchone()
            before = self._totals = Totals(spent=row[0], reserved=row[1], unpriced=row[2])
            yield
            if self._totals != before:
                values = attrs.astuple(self._totals)
                self._connection.execute("UPDATE credits SET spent = ?, reserved = ?, unpriced = ?", values)
            patiently(self._connection, "COMMIT", self._patience)
        except sqlite3.Error as error:
            raise _unusable(self._path, error) from None
        finally:
            with suppress(sqlite3.Error):  # what cannot be rolled back now is so when the file is opened next
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")


def _unopened(path: Path, why: Exception) -> LedgerError:
    words = (getattr(why, "strerror", None) or str(why)).rstrip(". ")  # the path is named already
    return LedgerError(
        f"the ledger {str(path)!r} cannot be used: {words}. It was left as it is, and nothing was submitted; name a "
        "ledger, or a path where a new one can be made: a new one knows of no earlier run"
    )


def _unusable(path: Path, why: Exception) -> LedgerError:
    import sqlite3

    if getattr(why, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY_DBMOVED:
        return LedgerError(
            f"the ledger {str(path)!r} was moved, deleted or replaced while it was in use. Nothing more is submitted; "
            "put it back before you run the batch again: a new one knows of no earlier run, and all would be paid twice"
        )
    return LedgerError(
        f"the ledger {str(path)!r} cannot be used: {why}. Nothing more is submitted; what is on record stays, and the "
        "same batch on the same ledger goes on from there"
    )


def _row(entry: Entry) -> tuple[Any, ...]:
    ending = entry.ending
    end = (None,) * 5 if ending is None else (ending.status, ending.cost, ending.reply, ending.code, ending.message)
    values = (
        entry.key,
        entry.attempt,
        entry.target,
        entry.digest,
        entry.stage,
        entry.owner,
        entry.reserved,
        entry.sent_at,
        entry.execution_id,
        entry.request_id,
        entry.note,
        *end,
        _json(entry.since),
        _json(entry.until),
        entry.lasts,
        entry.account,
    )
    return tuple(_storable(value) if isinstance(value, str) else value for value in values)


def _storable(text: str) -> str:
    """Give a text as UTF-8 can say it: the service's words may hold half a surrogate pair."""
    return text.encode(errors="backslashreplace").decode()


def _entry(row: tuple[Any, ...]) -> Entry:
    status, cost, reply, code, message, since, until, lasts, account = row[11:]
    ending = Ending(status=status, cost=cost, reply=reply, code=code, message=message) if status else None
    return Entry(
        key=row[0],
        attempt=row[1],
        target=row[2],
        digest=row[3],
        stage=Stage(row[4]),
        owner=row[5],
        reserved=row[6],
        sent_at=row[7],
        execution_id=row[8],
        request_id=row[9],
        note=row[10],
        ending=ending,
        since=_moment(since),
        until=_moment(until),
        lasts=lasts,
        account=account,
    )


def _json(moment: Moment | None) -> str | None:
    return None if moment is None else json.dumps(attrs.asdict(moment))


def _moment(text: str | None) -> Moment | None:
    return None if text is None else Moment(**json.loads(text))
