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

import attrs

from knouds_async._batch.ledger import Claim, Claimed, Doubted, LedgerCounts, Summary, Written, decide, held_against
from knouds_async._io.concurrency import read_clocks
from knouds_async._io.database import READ, Database
from knouds_async._sansio.clock import Moment
from knouds_async._sansio.inputs import checked_execution_id
from knouds_async._sansio.ledger import (
    Abandoned,
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
    Totals,
    advance,
    remembered,
    repriced,
    restored,
    successor,
)
from knouds_async._sansio.reconcile import Doubt, KnownRun
from knouds_async.errors import InvalidArgumentError, LedgerError

T = TypeVar("T")

_COLUMNS: Final = (
    "key", "attempt", "target", "digest", "stage", "owner", "reserved", "sent_at", "execution_id", "request_id", "note",
    "lasts", "account", "status", "cost", "reply", "code", "message", "since", "until",
)  # fmt: skip
_PLAIN: Final = _COLUMNS[:13]  # of the same name in Entry
_SELECTED: Final = ", ".join(f"job.{name}" for name in _COLUMNS)
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
    INSERT INTO knouds_job (ledger, {", ".join(_COLUMNS)})
        SELECT ledger, {", ".join(_COLUMNS)} FROM json_populate_recordset(NULL::knouds_job, %s)
        ON CONFLICT (ledger, key, attempt)
        DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[2:])};
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

    def __call__(self, transaction: Any, operations: Sequence[Operation]) -> list[Any]:
        """Return the value of each operation, or the error that it alone met."""
        ledger = LedgerTransaction(transaction, self.name)
        ledger.load(operations)
        ledger.restore()
        gone = {(name, owner) for name, owner in transaction.gone if name == self.name}
        for _, owner in gone:
            ledger.leave(owner)
        values = [self._carried_out(operation, ledger) for operation in operations]
        transaction.commit(values, *ledger.unsaved(), written=(self.name, ledger.written))
        transaction.gone.difference_update(gone)
        transaction.lost.pop(self.name, None)
        return values

    @staticmethod
    def _carried_out(operation: Operation, ledger: LedgerTransaction) -> Any:
        try:
            return operation.run(ledger)
        except (ValueError, LedgerError) as error:  # nothing was written by it: it decides before it saves
            return error


class LedgerTransaction:
    """One transaction on a ledger: the entries that were loaded, and those that have changed."""

    def __init__(self, transaction: Any, name: str) -> None:
        self._transaction, self._name = transaction, name
        self._totals, self._payer, self._timeline = Totals(), _NOBODY, ""
        self._row: tuple[Any, ...] = ()
        self._entries: dict[str, Entry | None] = {}  # the last attempt of each key
        self._is_alive: dict[str, bool] = {}
        self._prices: dict[str, tuple[int, float | None]] = {}
        self._runs: dict[str, list[tuple[str, int]]] = {}
        self._unsaved: dict[tuple[str, int], Entry] = {}
        self.written: dict[tuple[str, int], Entry] = {}
        self._priced: set[str] = set()

    # Operations.

    def look(self, key: str) -> Entry | None:
        """Return the last attempt of a job, after the end of its owner has been noted."""
        entry = self._load(key)
        if entry is not None and entry.owner is not None and not self._is_alive[entry.owner]:
            return self._moved(entry, OwnerGone())
        return entry

    def claim(self, claim: Claim) -> Claimed | Doubt:
        """Note the intent to send a job, if it may be sent; nothing may while the ledger is in doubt."""
        if (doubt := self._doubt) is not None:
            return doubt
        decided = decide(self.look(claim.key), claim, self._totals, self._price(claim.target)[1])
        if isinstance(decided, Written):
            self._save(decided.entry)
            self._totals = decided.totals
            return attrs.evolve(decided, committed=read_clocks())
        return decided

    def record(self, key: str, attempt: int, event: Event) -> Written:
        """Note what follows from an event."""
        entry = self._load(key, attempt)
        if entry is None:
            raise self._no_such(key)
        if isinstance(event, Accepted):
            event = held_against(event, self._job_of(event.execution_id, key, attempt))
        highest = self._price(entry.target)[1]
        after = self._moved(entry, event)
        cost = after.ending.cost if after.ending is not None else None
        if cost and cost > (highest or 0.0):
            for each in list(self._in_doubt(entry.target)):
                self._changed(each, repriced(each, cost))
        return Written(after, self._totals, self._price(entry.target)[1])

    def decision(self, key: str, event: Event) -> Entry:
        """Note what somebody has decided about the last attempt of a job; an approved one begins anew."""
        entry = self.look(key)
        if entry is None:
            raise self._no_such(key)
        if isinstance(event, Resolved) and (other := self._job_of(event.execution_id, key)) is not None:
            said = f"execution {event.execution_id!r} is the run of job {other!r}, not of {key!r}: nothing was changed"
            raise InvalidArgumentError(said)
        try:
            decided = self._moved(entry, event)
        except IllegalStepError:
            said = f"job {key!r} is {entry.stage}: only one that is unknown is decided about, so nothing was changed"
            raise InvalidArgumentError(said) from None
        return self._begun_again(decided) if isinstance(event, ResendApproved) else decided

    def retry_failed(self) -> int:
        """Begin anew what failed or was cancelled."""
        failed = list(self._where(f"job.status IN ('failed', 'cancelled') AND job.stage = 'final' AND {_IS_LAST}"))
        for entry in failed:
            self._begun_again(entry)
        return len(failed)

    # After a failover.

    @property
    def _doubt(self) -> Doubt | None:
        return None if self._timeline == self._transaction.timeline else Doubt.read(self._timeline)

    def restore(self) -> None:
        """Note that runs may be missing, if they may, and write anew what this process had committed of the lost."""
        lost, known = self._transaction.lost.get(self._name), Doubt.read(self._timeline)
        timeline = self._transaction.timeline
        noticed = self._timeline if known is None else known.timeline
        if lost is None and timeline == noticed:
            return
        since = self._sure_until() if known is None else known.since  # before anything is restored
        self._timeline = str(Doubt(id=os.urandom(9).hex(), timeline=timeline, since=since))
        for (key, attempt), entry in (lost or {}).items():
            last = self._load(key)
            found = last if last is None or last.attempt <= attempt else self._load(key, attempt)
            after = restored(found, entry, self._transaction.process)
            if after is not None:
                self._changed(found or Entry(key=key, target=after.target, digest=after.digest, attempt=attempt), after)

    def _sure_until(self) -> float | None:
        """Return a moment by the service's clock before which nothing can be missing: that of the last intent."""
        if self._payer[1] is None:
            return None
        account = Payer(user=self._payer[0], base_url=self._payer[1]).account
        query = "SELECT max((since::json ->> 'earliest')::float8) FROM knouds_job WHERE ledger = %s AND account = %s"
        since: float | None = self._query(query, self._name, account)[0][0]
        return since

    def doubt_at(self, doubt: Doubt, now: Moment) -> Doubt | None:
        """Return what is in doubt, None for nothing: `doubt` since `now` at the latest, if it is still that."""
        found = self._doubt
        if found is not None and found.id == doubt.id and found.until is None and now.latest is not None:
            found = attrs.evolve(found, until=now.latest)
            self._timeline = str(found)
        return found

    def trust(self, doubt: Doubt | None = None) -> Doubt | None:
        """Trust the ledger as it is from now on, unless something else is in doubt than `doubt`, which is returned."""
        found = self._doubt
        if found is not None and doubt is not None and found.id != doubt.id:
            return found
        self._timeline = self._transaction.timeline
        return None

    def leave(self, owner: str) -> None:
        """End an owner."""
        for entry in list(self._where("job.owner = %s", owner)):
            self._moved(entry, OwnerGone())

    def release_dead_owners(self) -> None:
        """End every owner whose lease has run out."""
        for entry in list(self._where(f"job.owner IS NOT NULL AND NOT {_ALIVE}")):
            self._moved(entry, OwnerGone())

    def unknown(self) -> tuple[Entry, ...]:
        """Return the jobs of which nobody knows whether they ran."""
        self.release_dead_owners()
        in_doubt = "job.stage NOT IN ('new', 'final') AND job.stage = 'unknown'"  # as the index has it
        return tuple(self._where(f"{in_doubt} AND {_IS_LAST} ORDER BY job.sent_at"))

    def summary(self, target: str) -> Summary:
        """Return all credits, and the real costs of a target."""
        runs, highest = self._price(target)
        return Summary(totals=self._totals, runs=runs, highest_cost=highest)

    def bind(self, payer: Payer) -> Payer:
        """Return whose ledger this is: the first payer's who asks, as far as that one is known."""
        account, base_url = self._payer
        known = None if base_url is None else Payer(user=account, base_url=base_url)
        if known is None or (known.user is None and known.base_url == payer.base_url):
            self._payer = (payer.user, payer.base_url)
            return payer
        return known

    def rebind(self) -> None:
        """Forget whose ledger this is."""
        self._payer = _NOBODY

    def known_runs(self, target: str, account: str, since: float) -> tuple[KnownRun, ...]:
        """Return an account's runs that are known to have begun since then, and the last few before."""
        rows = self._query(
            "SELECT request_id, since, until FROM knouds_job WHERE ledger = %s AND target = %s AND account = %s "
            "AND request_id IS NOT NULL AND sent_at >= %s UNION ALL (SELECT request_id, since, until FROM knouds_job "
            "WHERE ledger = %s AND target = %s AND account = %s AND request_id IS NOT NULL AND sent_at < %s "
            "ORDER BY sent_at DESC LIMIT 50)",
            *(self._name, target, account, since) * 2,
        )
        return tuple(_known_run(*row) for row in rows)

    # What is loaded, and what is saved.

    def load(self, operations: Sequence[Operation]) -> None:
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
        self._payer = (payer[0], payer[1])
        self._entries = {**dict.fromkeys(keys), **{each.key: each for each in map(self._entry, entries)}}
        self._prices = {**dict.fromkeys(targets, (0, None)), **{row[0]: (row[1], row[2]) for row in prices}}
        self._runs = {run: [(key, attempt) for each, key, attempt in known if each == run] for run in runs}

    def _created(self) -> list[tuple[Any, ...]]:
        """Make the row of a new ledger, and lock it; who was faster made it of the same timeline."""
        made = "INSERT INTO knouds_ledger (name, timeline) VALUES (%s, %s) ON CONFLICT DO NOTHING;"
        rows: list[tuple[Any, ...]] = self._transaction.message(
            made + _LEDGER, (self._name, self._transaction.timeline, self._name)
        )[0]
        return rows

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
        row = (*attrs.astuple(self._totals), self._timeline, *self._payer)
        if row != self._row:
            statements.append(_TOTALLED)
            values += [*row, self._name]
        self._unsaved, self._priced, self._row = {}, set(), row
        return "".join(statements), values

    def _where(self, condition: str, *values: Any) -> Iterator[Entry]:
        query = f"SELECT {_SELECTED}, {_ALIVE} FROM knouds_job AS job {_OWNED} WHERE job.ledger = %s AND "  # noqa: S608
        return map(self._entry, self._query(query + condition, self._name, *values))

    def _in_doubt(self, target: str) -> Iterator[Entry]:
        return self._where("job.stage NOT IN ('new', 'final') AND job.target = %s", target)

    def _query(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return rows as they are after what was changed here."""
        statements, parameters = self.unsaved()
        rows: list[tuple[Any, ...]] = self._transaction.message(statements + query, (*parameters, *values))[-1]
        return rows

    def _load(self, key: str, attempt: int | None = None) -> Entry | None:
        if key not in self._entries:
            self._entries[key] = next(self._where("job.key = %s ORDER BY job.attempt DESC LIMIT 1", key), None)
        last = self._entries[key]
        if attempt is None or last is None or last.attempt == attempt:
            return last
        return next(self._where("job.key = %s AND job.attempt = %s", key, attempt), None)

    def _price(self, target: str) -> tuple[int, float | None]:
        if target not in self._prices:
            query = "SELECT runs, highest FROM knouds_price WHERE ledger = %s AND target = %s"
            self._prices[target] = next(((row[0], row[1]) for row in self._query(query, self._name, target)), (0, None))
        return self._prices[target]

    def _job_of(self, execution_id: str, key: str, attempt: int | None = None) -> str | None:
        """Return the job whose run this is, if it is another's, or that of another `attempt` where one is given."""
        if execution_id not in self._runs:
            query = "SELECT key, attempt FROM knouds_job WHERE ledger = %s AND execution_id = %s"
            self._runs[execution_id] = [(row[0], row[1]) for row in self._query(query, self._name, execution_id)]
        others = (each for each, number in self._runs[execution_id] if (each, number) != (key, attempt or number))
        return next(others, None)

    def _moved(self, entry: Entry, event: Event) -> Entry:
        return self._changed(entry, advance(entry, event))

    def _changed(self, entry: Entry, after: Entry) -> Entry:
        if after != entry:
            self._save(after)
            self._totals = self._totals.moved(entry, after)
            if entry.ending is None and after.ending is not None and after.ending.cost is not None:
                self._count(after.target, after.ending.cost)
        return after

    def _count(self, target: str, cost: float) -> None:
        runs, highest = self._price(target)
        self._prices[target] = (runs + 1, max(highest or 0.0, cost) or None)
        self._priced.add(target)

    def _begun_again(self, entry: Entry) -> Entry:
        following = successor(entry)
        self._save(following)
        return following

    def _save(self, entry: Entry) -> None:
        self._unsaved[entry.key, entry.attempt] = entry
        self.written[entry.key, entry.attempt] = remembered(entry)
        last = self._entries.get(entry.key)
        if last is None or last.attempt <= entry.attempt:
            self._entries[entry.key] = entry
        if entry.owner is not None:
            self._is_alive.setdefault(entry.owner, True)
        if entry.execution_id is not None:
            known = self._runs.setdefault(entry.execution_id, [])
            known += [] if (entry.key, entry.attempt) in known else [(entry.key, entry.attempt)]

    def _no_such(self, key: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"the ledger {self._name!r} in {self._transaction.place} has no job {key!r}")

    # Rows.

    def _as_row(self, entry: Entry) -> dict[str, Any]:
        values = {name: getattr(entry, name) for name in _PLAIN}
        if entry.ending is not None:
            values |= attrs.asdict(entry.ending)
        for name in ("since", "until"):
            moment = getattr(entry, name)
            values[name] = None if moment is None else json.dumps(attrs.asdict(moment))
        return {"ledger": self._name} | {
            name: _storable(value) if isinstance(value, str) else value for name, value in values.items()
        }

    def _entry(self, row: tuple[Any, ...]) -> Entry:
        values = dict(zip(_COLUMNS, row, strict=False))
        ending = {name: values.pop(name) for name in ("status", "cost", "reply", "code", "message")}
        since, until = _moment(values.pop("since")), _moment(values.pop("until"))
        if (owner := values["owner"]) is not None:
            self._is_alive[owner] = row[-1]
        stage, end = Stage(values.pop("stage")), Ending(**ending) if ending["status"] else None
        return Entry(**values, stage=stage, ending=end, since=since, until=until)


_NOBODY: Final[tuple[str | None, str | None]] = (None, None)


def _storable(text: str) -> str:
    """Return a string as PostgreSQL can hold it: the service's words may have half a surrogate pair, or a NUL."""
    return text.encode(errors="backslashreplace").decode().replace("\x00", "\\x00")


def _moment(text: str | None) -> Moment | None:
    return None if text is None else Moment(**json.loads(text))


def _known_run(request_id: str | None, since: str | None, until: str | None) -> KnownRun:
    return KnownRun(
        request_id=request_id or "",
        begun_by=None if (at := _moment(until)) is None else at.latest,
        begun_after=None if (at := _moment(since)) is None else at.earliest,
    )


class Postgres(Database):
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
        await self._transact(lambda ledger: ledger.release_dead_owners())
        query = (
            "SELECT job.stage, job.status, count(*) FROM knouds_job AS job WHERE job.ledger = %s AND "  # noqa: S608
            f"{_IS_LAST} GROUP BY job.stage, job.status"
        )
        rows = await self.do(READ, (query, (self._name,)), may_withdraw=True)
        totals = (await self._transact(lambda ledger: ledger.summary(""))).totals
        found = {status or stage: count for stage, status, count in rows}
        return LedgerCounts(**found, credits_spent=totals.spent, credits_reserved=totals.reserved)

    async def owners(self) -> tuple[LedgerOwner, ...]:
        """Return the batches that are sending or waiting for jobs of this ledger; a lease below 0 has run out."""
        rest = "coalesce(extract(epoch FROM owner.until - clock_timestamp()), -1)::double precision"
        query = (
            f"SELECT coalesce(owner.place, '?'), count(*), {rest} FROM knouds_job AS job {_OWNED} "  # noqa: S608
            "WHERE job.ledger = %s AND job.owner IS NOT NULL AND job.stage IN ('sending', 'submitted') "
            "GROUP BY job.owner, owner.place, owner.until ORDER BY 1"
        )
        rows = await self.do(READ, (query, (self._name,)), may_withdraw=True)
        return tuple(LedgerOwner(place, jobs, lease) for place, jobs, lease in rows)

    async def unknown(self) -> tuple[Entry, ...]:
        """Return the jobs of which nobody knows whether they ran, oldest first."""
        return await self._transact(lambda ledger: ledger.unknown())

    async def find(self, key: str) -> Entry | None:
        """Return where a job stands, None when it was never sent."""
        return await self.look(key)

    async def resolve(self, key: str, execution_id: str) -> Entry:
        """Return which run an unknown job began: the next batch picks it up. InvalidArgumentError if it is none.

        A wrong id can be corrected, once no batch waits for its run; a run of another workflow is never taken.
        """
        return await self._decide(key, Resolved(checked_execution_id(execution_id)))

    async def approve_resend(self, key: str) -> Entry:
        """Decide that an unknown job is sent once more by the next batch, at the risk of paying for it twice.

        What was reserved for it stays reserved. InvalidArgumentError if it is not unknown.
        """
        return await self._decide(key, ResendApproved())

    async def abandon(self, key: str) -> Entry:
        """Decide to leave an unknown job at that, or one whose run cannot be found any more.

        It is not sent again, and counts with what was reserved for it. InvalidArgumentError if it is neither.
        """
        return await self._decide(key, Abandoned())

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Callable[[str], Awaitable[Entry | None]]]:
        """Return inside a function that finds where a job stands, and writes nothing: not even tables are created."""
        yield self._recorded

    async def _recorded(self, key: str) -> Entry | None:
        query = "SELECT attempt, target, digest, stage FROM knouds_job WHERE ledger = %s AND key = %s"
        query += " ORDER BY attempt DESC LIMIT 1"
        for attempt, target, digest, stage in await self.do(READ, (query, (self._name, key)), may_withdraw=True):
            return Entry(key=key, attempt=attempt, target=target, digest=digest, stage=Stage(stage))
        return None

    async def rebind(self) -> None:
        """Allow the next batch to bind the ledger to its own account and service, whichever they are.

        A ledger is bound to those of its first batch, and refuses others. Of a submit that is unknown nothing is ever
        proven by the usage of an account that did not send it.
        """
        await self._transact(lambda ledger: ledger.rebind())

    async def retry_failed(self) -> int:
        """Make the next batch run what failed or was cancelled once more, and return how many jobs that are."""
        return await self._transact(lambda ledger: ledger.retry_failed())

    async def trust(self) -> None:
        """Allow batches to submit again after a failover or a restored backup, at the risk of paying twice.

        They allow it themselves once the usage rows since then are all those of runs on record, which takes two
        minutes. Their error names the rows that are not: look at those first.
        """
        await self._transact(lambda ledger: ledger.trust())

    async def _decide(self, key: str, event: Event) -> Entry:
        return await self._transact(lambda ledger: ledger.decision(key, event), key=key)

    # What a batch asks for: see `Ledger`.

    async def bind(self, payer: Payer) -> None:
        """Record the first payer as the ledger's, and refuse every other."""
        known = await self._transact(lambda ledger: ledger.bind(payer), may_withdraw=True)
        if known != payer:
            raise LedgerError(
                f"{self!r} is the ledger of {known}, and this is {payer}: what the usage of one does not show may have "
                "run on the other. Nothing was submitted. Use that account's key and base URL, or another ledger; to "
                "continue with this one all the same: `await ledger.rebind()`, or `knouds batch --rebind URL`"
            )

    async def join(self) -> str:
        """Return the name of a new owner."""
        thread = self._thread_of(self._url)
        owner = thread.new_owner()
        try:
            await self._transact(lambda _: None)
        except BaseException:
            thread.let_go(owner)
            raise
        return owner

    async def leave(self, owner: str) -> None:
        """End an owner. With the database away its claims are free once it is back, or the lease has run out."""
        thread = self._thread_of(self._url)
        try:
            await self._transact(lambda ledger: ledger.leave(owner))
        except BaseException:
            thread.let_go(owner, untold=self._name)
            raise
        thread.let_go(owner)

    async def look(self, key: str) -> Entry | None:
        """Return the last attempt of a job."""
        return await self._transact(lambda ledger: ledger.look(key), key=key, may_withdraw=True)

    async def claim(self, claim: Claim) -> Claimed:
        """Write the intent to send a job."""
        claimed = await self._transact(lambda ledger: ledger.claim(claim), key=claim.key, target=claim.target)
        return self._doubted(claimed) if isinstance(claimed, Doubt) else claimed

    def _doubted(self, doubt: Doubt) -> Doubted:
        said = (
            f"the ledger {self._name!r} in {self} may lack runs: it is on another database than it was (a replica was "
            "promoted, or a backup restored), or the database has lost what was committed"
        )

        async def again(now: Moment) -> Doubted | None:
            found = await self._transact(lambda ledger: ledger.doubt_at(doubt, now), may_withdraw=True)
            return None if found is None else self._doubted(found)

        async def trust() -> Doubted | None:
            found = await self._transact(lambda ledger: ledger.trust(doubt))
            return None if found is None else self._doubted(found)

        return Doubted(said, doubt, partial(self._runs, doubt.since or 0.0), again, trust)

    async def _runs(self, since: float, account: str) -> tuple[tuple[str | None, KnownRun], ...]:
        """Return an account's runs on record in this database, of whichever ledger, from some time before `since`."""
        begun = "SELECT execution_id, request_id, since, until FROM knouds_job WHERE account = %s"
        query = f"""
            {begun} AND request_id IS NOT NULL AND sent_at >= %s UNION ALL ({begun} AND request_id IS NOT NULL
            AND sent_at < %s ORDER BY sent_at DESC LIMIT 50) UNION ALL ({begun} AND request_id IS NULL
            AND execution_id IS NOT NULL AND sent_at >= %s ORDER BY sent_at DESC LIMIT {_MOST_UNNAMED})
        """
        before = since - _SPAN
        rows = await self.do(READ, (query, (account, before) * 3), may_withdraw=True)
        return tuple((run, _known_run(request_id, *bounds)) for run, request_id, *bounds in rows)

    async def record(self, key: str, attempt: int, event: Event) -> Written:
        """Write what follows from an event."""
        execution_id = event.execution_id if isinstance(event, Accepted) else None
        return await self._transact(
            lambda ledger: ledger.record(key, attempt, event), key=key, execution_id=execution_id
        )

    async def summary(self, target: str) -> Summary:
        """Return the credits of the ledger and the real costs of a target."""
        return await self._transact(lambda ledger: ledger.summary(target), target=target, may_withdraw=True)

    async def known_runs(self, target: str, account: str, since: float) -> tuple[KnownRun, ...]:
        """Return an account's runs of a target that are known to have begun since then, and some before."""
        return await self._transact(lambda ledger: ledger.known_runs(target, account, since), may_withdraw=True)

    async def _transact(
        self,
        run: Callable[[LedgerTransaction], T],
        *,
        key: str | None = None,
        target: str | None = None,
        execution_id: str | None = None,
        may_withdraw: bool = False,
    ) -> T:
        if key is not None and not key.isprintable():
            raise InvalidArgumentError(f"key={key!r:.80}: keys are printable characters")
        operation = Operation(run, key, target, execution_id)
        value: T = await self.do(LedgerTransactions(self._name), operation, may_withdraw=may_withdraw)
        return value
