"""Postgres: the ledger of the batches of many machines, in a PostgreSQL database.

A transaction loads all that its operations need in one message, has `decide` and `advance` decide, and saves what
changed in another. The lock on the row of the ledger, held between the two, lets one process at a time decide.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar

import anyio
import attrs

from knouds_async._batch.ledger import (
    COLUMNS,
    IN_FLIGHT,
    Claim,
    Claimed,
    Doubted,
    LedgerCounts,
    LedgerOperations,
    TransactionalLedger,
    entry_of,
    known_run_of,
    values_of,
)
from knouds_async._io.database import Database, read
from knouds_async._io.transactions import TIMELINE, Transaction
from knouds_async._io.worker_thread import CLOSE_TIMEOUT
from knouds_async._sansio.clock import Moment
from knouds_async._sansio.ledger import Entry, OwnerGone, Payer, Totals, remembered, restored
from knouds_async._sansio.reconcile import Doubt, KnownRun
from knouds_async.errors import LedgerError

T = TypeVar("T")

_SELECTED: Final = ", ".join(f"job.{name}" for name in COLUMNS)
_OWNED: Final = "LEFT JOIN knouds_owner AS owner ON owner.name = split_part(job.owner, '/', 1)"
_ALIVE: Final = "coalesce(owner.until > clock_timestamp(), false)"
_IS_LAST: Final = (
    "NOT EXISTS (SELECT FROM knouds_job AS later WHERE later.ledger = job.ledger AND later.key = job.key "
    "AND later.attempt > job.attempt)"
)

_LEDGER: Final = """
    SELECT spent, reserved, unpriced, timeline, account, base_url FROM knouds_ledger WHERE name = %s FOR UPDATE;
"""
_LOADED: Final = f"""
    SELECT DISTINCT ON (job.key) {_SELECTED}, {_ALIVE} FROM knouds_job AS job {_OWNED}
        WHERE job.ledger = %s AND job.key = ANY(%s::text[]) ORDER BY job.key, job.attempt DESC;
    SELECT target, runs, highest FROM knouds_price WHERE ledger = %s AND (target = ANY(%s::text[])
        OR target IN (SELECT target FROM knouds_job WHERE ledger = %s AND key = ANY(%s::text[])));
    SELECT execution_id, key, attempt FROM knouds_job WHERE ledger = %s AND execution_id = ANY(%s::text[])
"""  # noqa: S608  (composed of constants)
_SAVED: Final = f"""
    INSERT INTO knouds_job (ledger, {", ".join(COLUMNS)})
        SELECT ledger, {", ".join(COLUMNS)} FROM json_populate_recordset(NULL::knouds_job, %s)
        ON CONFLICT (ledger, key, attempt)
        DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in COLUMNS[2:])};
"""  # noqa: S608
_PRICED: Final = """
    INSERT INTO knouds_price SELECT * FROM json_populate_recordset(NULL::knouds_price, %s)
        ON CONFLICT (ledger, target) DO UPDATE SET runs = excluded.runs, highest = excluded.highest;
"""
_SPAN: Final = 1200.0  # seconds before what is in doubt: runs of that time may account for rows that are near it
_MOST_UNNAMED: Final = 100  # runs of which the ledger has no request id, to be polled for it
_TOTALLED: Final = """
    UPDATE knouds_ledger SET spent = %s, reserved = %s, unpriced = %s, timeline = %s, account = %s, base_url = %s
        WHERE name = %s;
"""


@attrs.frozen
class LedgerOwner:
    """A batch that has jobs of a ledger: `place` is the host and the process, `lease` the seconds until it is gone."""

    place: str
    jobs: int
    lease: float


@attrs.frozen
class Operation:
    """What is done in a transaction, and what it needs to know for certain; it may ask for more."""

    run: Callable[[LedgerTransaction], Any]
    key: str | None = None
    target: str | None = None
    execution_id: str | None = None


@attrs.frozen
class LedgerTransactions:
    """Carries out operations on the ledger of a name; those of equal ones share a transaction."""

    name: str

    def __call__(self, transaction: Transaction, operations: Sequence[Operation]) -> list[Any]:
        """Return the value of each operation, or the error that it alone met."""
        ledger = LedgerTransaction(transaction, self.name)
        ledger.begin(operations)
        ledger.restore()
        values = [ledger.carried_out(operation.run) for operation in operations]
        for owner in transaction.ended_owners:
            ledger.leave(owner)
        return transaction.commit(values, *ledger.unsaved(), written=ledger.written)


class LedgerTransaction(LedgerOperations):
    """One transaction on a ledger: the entries that were loaded, and those that have changed."""

    _columns = f"{_SELECTED}, {_ALIVE}"
    _is_last = _IS_LAST

    def __init__(self, transaction: Transaction, name: str) -> None:
        self._transaction, self._name = transaction, name
        self._named = f"the ledger {name!r} in {transaction.row.database}"
        self._totals = Totals()
        self._timeline = ""
        self._payer: Payer | None = None
        self._row: tuple[Any, ...] = ()
        self._entries: dict[str, Entry | None] = {}  # the last attempt of each key
        self._living: dict[str, bool] = {}  # whether each owner of an entry is
        self._prices: dict[str, tuple[int, float | None]] = {}
        self._runs: dict[str, list[tuple[Any, ...]]] = {}
        self._unsaved: dict[tuple[str, int], Entry] = {}
        self.written: dict[tuple[str, int], Entry] = {}
        self._priced: set[str] = set()

    # After a failover.

    @property
    def doubt(self) -> Doubt | None:
        """What runs may be missing; no job may be sent then."""
        return None if self._timeline == self._transaction.timeline else Doubt.read(self._timeline)

    def restore(self) -> None:
        """Note that runs may be missing, if they may, and write anew what this process had committed of the lost."""
        lost, known = self._transaction.lost, Doubt.read(self._timeline)
        timeline = self._transaction.timeline
        noticed = self._timeline if known is None else known.timeline
        if lost is None and timeline == noticed:
            return
        since = self._sure_until() if known is None else known.since  # before anything is restored
        self._timeline = str(Doubt(id=os.urandom(9).hex(), timeline=timeline, since=since))
        for (key, attempt), entry in (lost or {}).items():
            last = self._load(key)
            found = last if last is None or last.attempt <= attempt else self._load(key, attempt)
            after = restored(found, entry, self._transaction.row.name)
            if after is not None:
                self._changed(found or Entry(key=key, target=after.target, digest=after.digest, attempt=attempt), after)

    def _sure_until(self) -> float | None:
        """Return a moment by the service's clock before which nothing can be missing: that of the last intent."""
        if self._payer is None:
            return None
        query = "SELECT max((since::json ->> 'earliest')::float8) FROM knouds_job WHERE ledger = %s AND account = %s"
        since: float | None = self._query(query, self._name, self._payer.account)[0][0]
        return since

    def doubt_at(self, doubt: Doubt, now: Moment) -> Doubt | None:
        """Return what is in doubt, None for nothing: `doubt` since `now` at the latest, if it is still that."""
        found = self.doubt
        if found is not None and found.id == doubt.id and found.until is None and now.latest is not None:
            found = attrs.evolve(found, until=now.latest)
            self._timeline = str(found)
        return found

    def trust(self, doubt: Doubt | None = None) -> Doubt | None:
        """Trust the ledger as it is from now on, unless something else is in doubt than `doubt`, which is returned."""
        found = self.doubt
        if found is not None and doubt is not None and found.id != doubt.id:
            return found
        self._timeline = self._transaction.timeline
        return None

    def leave(self, owner: str) -> None:
        """End an owner."""
        for entry in list(self._where("job.owner = ?", owner)):
            self._moved(entry, OwnerGone())

    # As of LedgerOperations.

    def _of_dead_owners(self) -> Iterator[Entry]:
        return self._where(f"job.owner IS NOT NULL AND NOT {_ALIVE}")

    def _in_flight(self) -> int:
        return int(self._select("COUNT(*)", f"{IN_FLIGHT} AND {_ALIVE}")[0][0])

    def _is_alive(self, owner: str) -> bool:
        return self._living[owner]

    def _bound_to(self) -> Payer | None:
        return self._payer

    def _set_payer(self, payer: Payer | None) -> None:
        self._payer = payer

    # What is loaded, and what is saved.

    def begin(self, operations: Sequence[Operation]) -> None:
        """Begin the transaction with what the operations are known to need."""
        keys, targets, runs = (
            sorted({value for each in operations if (value := getattr(each, kind)) is not None})
            for kind in ("key", "target", "execution_id")
        )
        name = self._name
        values = (name, name, keys, name, targets, name, keys, name, runs)
        locked, entries, prices, known = self._transaction.begin(_LEDGER + _LOADED, values)
        self._row = (locked or self._created())[0]
        spent, reserved, unpriced, self._timeline, *payer = self._row
        self._totals = Totals(spent=spent, reserved=reserved, unpriced=unpriced)
        self._payer = None if payer[1] is None else Payer(user=payer[0], base_url=payer[1])
        self._entries = {**dict.fromkeys(keys), **{each.key: each for each in map(self._entry, entries)}}
        self._prices = {**dict.fromkeys(targets, (0, None)), **{row[0]: (row[1], row[2]) for row in prices}}
        self._runs = {run: [(key, attempt) for each, key, attempt in known if each == run] for run in runs}

    def _created(self) -> list[tuple[Any, ...]]:
        """Make the row of a new ledger, and lock it; who was faster made it of the same timeline."""
        made = "INSERT INTO knouds_ledger (name, timeline) VALUES (%s, %s) ON CONFLICT DO NOTHING;"
        return self._transaction.message(made + _LEDGER, (self._name, self._transaction.timeline, self._name))[0]

    def unsaved(self) -> tuple[str, list[Any]]:
        """Return the statements that save what has changed, and their parameters."""
        statements, values = [], list[Any]()
        if self._unsaved:
            statements.append(_SAVED)
            values.append(json.dumps([self._as_row(entry) for entry in self._unsaved.values()]))
        if self._priced:
            prices = [(target, *self._prices[target]) for target in sorted(self._priced)]
            rows = [{"ledger": self._name, "target": each, "runs": n, "highest": top} for each, n, top in prices]
            statements.append(_PRICED)
            values.append(json.dumps(rows))
        payer = (None, None) if self._payer is None else (self._payer.user, self._payer.base_url)
        row = (*attrs.astuple(self._totals), self._timeline, *payer)
        if row != self._row:
            statements.append(_TOTALLED)
            values += [*row, self._name]
        self._unsaved, self._priced, self._row = {}, set(), row
        return "".join(statements), values

    def _select(self, columns: str, condition: str, *values: Any) -> list[tuple[Any, ...]]:
        query = f"SELECT {columns} FROM knouds_job AS job {_OWNED} WHERE job.ledger = ? AND {condition}"  # noqa: S608
        return self._query(query.replace("?", "%s"), self._name, *values)

    def _query(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return rows as they are after what was changed here."""
        statements, parameters = self.unsaved()
        return self._transaction.message(statements + query, (*parameters, *values))[-1]

    def _load(self, key: str, attempt: int | None = None) -> Entry | None:
        if key not in self._entries:
            self._entries[key] = super()._load(key)
        last = self._entries[key]
        return last if attempt is None or last is None or last.attempt == attempt else super()._load(key, attempt)

    def _save(self, entry: Entry) -> None:
        self._unsaved[entry.key, entry.attempt] = entry
        self.written[entry.key, entry.attempt] = remembered(entry)
        last = self._entries.get(entry.key)
        if last is None or last.attempt <= entry.attempt:
            self._entries[entry.key] = entry
        if entry.owner is not None:
            self._living.setdefault(entry.owner, True)
        if entry.execution_id is not None:
            known = self._runs.setdefault(entry.execution_id, [])
            known += [] if (entry.key, entry.attempt) in known else [(entry.key, entry.attempt)]

    def _price(self, target: str) -> tuple[int, float | None]:
        if target not in self._prices:
            query = "SELECT runs, highest FROM knouds_price WHERE ledger = %s AND target = %s"
            self._prices[target] = next(((row[0], row[1]) for row in self._query(query, self._name, target)), (0, None))
        return self._prices[target]

    def _set_price(self, target: str, runs: int, highest: float | None) -> None:
        self._prices[target] = (runs, highest)
        self._priced.add(target)

    def _jobs_of(self, execution_id: str) -> list[tuple[Any, ...]]:
        if execution_id not in self._runs:
            self._runs[execution_id] = super()._jobs_of(execution_id)
        return self._runs[execution_id]

    def _entry(self, row: Sequence[Any]) -> Entry:
        entry = entry_of(row)
        if entry.owner is not None:
            self._living[entry.owner] = row[-1]
        return entry

    def _as_row(self, entry: Entry) -> dict[str, Any]:
        """Return an entry as a row; PostgreSQL takes no NUL."""
        values = {"ledger": self._name, **values_of(entry)}
        return {
            name: value.replace("\x00", "\\x00") if isinstance(value, str) else value for name, value in values.items()
        }


class Postgres(TransactionalLedger[LedgerTransaction], Database):
    """What processes on many machines share, in a PostgreSQL database: a ledger, the quota, and the news of ends.

    `url`: `postgresql://user:password@host/database`. `name`: of the ledger in it. It is taken as `ledger=` of a batch,
    by `SharedLimiter`, and as `bus=` of a WebhookReceiver. Nothing is opened before it is used; then each process has
    one connection, and a thread for it, whatever the number of these. The first use makes the tables (`knouds_...`) in
    the first schema of the search path. The URL shows in no repr, error or log; a pickle holds it, password included,
    so that what is unpickled in another process can connect. It may be used before and after a fork.

    The API key is never in it, inputs are kept as a digest only, results as they came. An intent to send is safe in the
    database before the request leaves, every id and every result before it is passed on. A database that is away is
    waited for, 60 seconds at least from the first failure; LedgerError after that. Whether a process is alive is what
    its lease says, by the database's clock: 60 seconds, renewed by the thread.
    """

    # What somebody may want to know and decide.

    async def counts(self) -> LedgerCounts:
        """Count the jobs by where they stand; it takes a while with millions."""
        totals = await self._read("SELECT spent, reserved FROM knouds_ledger WHERE name = %s", self._name)
        stage = f"CASE WHEN job.stage = 'sending' AND NOT {_ALIVE} THEN 'unknown' ELSE job.stage END"
        query = (
            f"SELECT {stage}, job.status, count(*) FROM knouds_job AS job {_OWNED} WHERE job.ledger = %s AND "  # noqa: S608
            f"{_IS_LAST} GROUP BY 1, 2"
        )
        found = {status or stage: count for stage, status, count in await self._read(query, self._name)}
        spent, reserved = totals[0] if totals else (0.0, 0.0)
        return LedgerCounts(**found, credits_spent=spent, credits_reserved=reserved)

    async def doubt(self) -> str | None:
        """Return why the ledger may lack runs, in which case batches submit nothing; None while it lacks none.

        It is so after a failover or with a restored backup, until a batch has settled it, or `trust` was called.
        """
        query = f"SELECT timeline <> {TIMELINE} FROM knouds_ledger WHERE name = %s"  # noqa: S608
        return self._may_lack_runs if await self._read(query, self._name) == [(True,)] else None

    @property
    def _may_lack_runs(self) -> str:
        return (
            f"the ledger {self._name!r} in {self} may lack runs: it is on another database than it was (a replica was "
            "promoted, or a backup restored), or the database has lost what was committed"
        )

    async def owners(self) -> tuple[LedgerOwner, ...]:
        """Return the batches that are sending or waiting for jobs of this ledger; a lease below 0 has run out."""
        rest = "coalesce(extract(epoch FROM owner.until - clock_timestamp()), -1)::double precision"
        query = (
            f"SELECT coalesce(owner.place, '?'), count(*), {rest} FROM knouds_job AS job {_OWNED} "  # noqa: S608
            "WHERE job.ledger = %s AND job.owner IS NOT NULL AND job.stage IN ('sending', 'submitted') "
            "GROUP BY job.owner, owner.place, owner.until ORDER BY 1"
        )
        return tuple(LedgerOwner(place, jobs, lease) for place, jobs, lease in await self._read(query, self._name))

    async def _read(self, query: str, *values: Any) -> list[Any]:
        rows: list[Any] = await self.do(read, (query, values), may_withdraw=True)
        return rows

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Callable[[str], Awaitable[Entry | None]]]:
        """Return inside a function that finds where a job stands, and writes nothing: not even tables are created."""
        yield self._recorded

    async def _recorded(self, key: str) -> Entry | None:
        its_last = "job.ledger = %s AND job.key = %s ORDER BY job.attempt DESC LIMIT 1"
        rows = await self._read(f"SELECT {_SELECTED} FROM knouds_job AS job WHERE {its_last}", self._name, key)  # noqa: S608
        return entry_of(rows[0]) if rows else None

    async def trust(self) -> None:
        """Allow batches to submit again after a failover or a restored backup, at the risk of paying twice.

        They allow it themselves once the usage rows since then are all those of runs on record, which takes two
        minutes. Their error names the rows that are not: look at those first.
        """
        await self._transact(lambda ledger: ledger.trust())

    # Its owners, and what is in doubt.

    async def join(self) -> str:
        """Return the name of a new owner."""
        await self._transact(lambda _: None, may_withdraw=True)
        return self._thread_of(self._url).row.new_owner(LedgerTransactions(self._name))

    async def leave(self, owner: str) -> None:
        """End an owner, and wait a moment until that is written.

        LedgerError when it is not: with the database away its claims are free once it is back, which the thread sees
        to, or once the lease has run out.
        """
        is_written, ending = False, Operation(lambda ledger: ledger.leave(owner))
        try:
            with anyio.fail_after(CLOSE_TIMEOUT):
                await self.do(LedgerTransactions(self._name), ending, may_withdraw=True, patience=CLOSE_TIMEOUT)
            is_written = True
        except TimeoutError:
            raise LedgerError(
                f"the database {self} has not answered for {CLOSE_TIMEOUT:g} s; the end of a batch is not written yet: "
                "its jobs are free for others as soon as it is, or within a minute"
            ) from None
        finally:
            self._thread_of(self._url).row.end_owner(owner, is_written=is_written)

    async def claim(self, claim: Claim) -> Claimed:
        """Write the intent to send a job; nothing may be sent while the ledger is in doubt."""
        claimed = await self._transact(
            lambda ledger: ledger.doubt or ledger.claim(claim), key=claim.key, target=claim.target
        )
        return self._doubted(claimed) if isinstance(claimed, Doubt) else claimed

    def _doubted(self, doubt: Doubt) -> Doubted:
        async def again(now: Moment) -> Doubted | None:
            found = await self._transact(lambda ledger: ledger.doubt_at(doubt, now), may_withdraw=True)
            return None if found is None else self._doubted(found)

        async def trust() -> Doubted | None:
            found = await self._transact(lambda ledger: ledger.trust(doubt))
            return None if found is None else self._doubted(found)

        return Doubted(self._may_lack_runs, doubt, partial(self._runs, doubt.since or 0.0), again, trust)

    async def _runs(self, since: float, account: str) -> tuple[tuple[str | None, KnownRun], ...]:
        """Return an account's runs on record in this database, of whichever ledger, from some time before `since`."""
        begun = "SELECT execution_id, request_id, since, until FROM knouds_job WHERE account = %s"
        query = f"""
            {begun} AND request_id IS NOT NULL AND sent_at >= %s UNION ALL ({begun} AND request_id IS NOT NULL
            AND sent_at < %s ORDER BY sent_at DESC LIMIT 50) UNION ALL ({begun} AND request_id IS NULL
            AND execution_id IS NOT NULL AND sent_at >= %s ORDER BY sent_at DESC LIMIT {_MOST_UNNAMED})
        """
        before = since - _SPAN
        rows = await self._read(query, *(account, before) * 3)
        return tuple((run, known_run_of(request_id, *bounds)) for run, request_id, *bounds in rows)

    def _names(self) -> tuple[str, str]:
        return f"the ledger {self._name!r} in {self}", "URL"

    async def _transact(
        self, operation: Callable[[LedgerTransaction], T], *, may_withdraw: bool = False, **needs: str | None
    ) -> T:
        value: T = await self.do(
            LedgerTransactions(self._name), Operation(operation, **needs), may_withdraw=may_withdraw
        )
        return value
