"""What a batch asks of a ledger, the ledger of a batch that was given none, and what those in a database share."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, ClassVar, Final, Generic, Protocol, Self, TypeAlias, TypeVar

import attrs

from knouds_async._io.concurrency import read_clocks
from knouds_async._sansio.clock import Moment, Reading
from knouds_async._sansio.inputs import checked_execution_id
from knouds_async._sansio.ledger import (
    OPEN,
    Abandoned,
    Accepted,
    Ending,
    Entry,
    Event,
    Fit,
    IllegalStepError,
    Lost,
    OwnerGone,
    Payer,
    ResendApproved,
    Resolved,
    Sending,
    Stage,
    Totals,
    advance,
    amount,
    fit_under_cap,
    highest_known,
    repriced,
    successor,
)
from knouds_async._sansio.reconcile import Doubt, KnownRun
from knouds_async.errors import InvalidArgumentError, LedgerError, safe_repr
from knouds_async.telemetry import fields
from knouds_async.types import Record


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Claim(Record):
    """An owner wants to send a job now: at once its claim on the job and its intent. `cap`: the batch's credits."""

    key: str
    target: str
    digest: str
    sending: Sending
    cap: float | None = None


@attrs.frozen(eq=False, repr=False)
class Written(Record):
    """The entry as it is now on record, the credits of the whole ledger, the largest cost of a run of the target.

    `committed`: the clocks of this machine just before it was safe, with a claim; None where the ledger does not say.
    """

    entry: Entry
    totals: Totals
    highest_cost: float | None = None
    committed: Reading | None = None


@attrs.frozen(eq=False, repr=False)
class Taken(Record):
    """The job is not to be sent: another owner was faster, or it has finished. Nothing was written."""

    entry: Entry


@attrs.frozen(eq=False, repr=False)
class OverBudget(Record):
    """The run could pass the cap. Nothing was written."""

    totals: Totals
    fit: Fit
    highest_cost: float | None = None


@attrs.frozen(eq=False)
class Doubted:
    """The ledger may lack runs: no job may be sent on its word before that is settled. Nothing was written.

    `message`: which ledger, and why. `runs`: returns the runs of an account that it has, with their execution ids where
    they are known, and "" for a request id that is not. `again`: returns what is in doubt at a moment, None when
    nothing is any more. `trust`: allows to send, unless something else is in doubt by now, which it returns.
    """

    message: str
    doubt: Doubt
    runs: Callable[[str], Awaitable[Sequence[tuple[str | None, KnownRun]]]]
    again: Callable[[Moment], Awaitable[Doubted | None]]
    trust: Callable[[], Awaitable[Doubted | None]]


Claimed: TypeAlias = Written | Taken | OverBudget | Doubted


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Summary(Record):
    """What a ledger knows of a target's money: all credits, of how many runs of it the cost is known, the largest.

    `in_flight`: how many runs of any target owners that may be alive are sending or waiting for.
    """

    totals: Totals = attrs.Factory(Totals)
    runs: int = 0
    highest_cost: float | None = None
    in_flight: int = 0


@attrs.frozen(kw_only=True, eq=False, repr=False)
class LedgerCounts(Record):
    """How many jobs of a ledger stand where, and its credits.

    `new`: certainly not run, to be sent by the next batch. `sending`, `submitted`: under way, or to be picked up.
    `completed`, `failed`, `cancelled`: over. `unknown`: they may have run, and wait for a decision. `abandoned`:
    somebody decided to leave it at that. `credits_spent`, `credits_reserved`: as of Progress.
    """

    new: int = 0
    sending: int = 0
    submitted: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    unknown: int = 0
    abandoned: int = 0
    credits_spent: float = attrs.field(default=0, converter=amount)
    credits_reserved: float = attrs.field(default=0, converter=amount)


class Ledger(Protocol):
    """Where jobs stand, for one process or for several that share it.

    Owners are batches. One that is gone loses its claims: its submitted runs may be picked up, and what it was sending
    becomes unknown. Whether an owner is gone is the ledger's to tell: because it left, because its process is certainly
    no more, or by a lease that the ledger renews itself. Since what is unknown is never sent again by itself, one that
    was judged gone too early pays for nothing twice.
    """

    async def bind(self, payer: Payer) -> None:
        """Open the ledger if need be and bind it to its first payer.

        LedgerError for another account or another service: what the usage rows of one account do not show may have run
        on the other.
        """
        ...

    async def join(self) -> str:
        """Open the ledger if need be and give the name of a new owner; LedgerError when it cannot be used."""
        ...

    async def leave(self, owner: str) -> None:
        """End an owner: its claims are free, what it was sending is unknown."""
        ...

    async def look(self, key: str) -> Entry | None:
        """Return the last attempt of a job, None when it was never sent; claims of owners that are gone are undone."""
        ...

    async def claim(self, claim: Claim) -> Claimed:
        """Write that a job is being sent (`decide`), unless it is taken or too dear."""
        ...

    async def record(self, key: str, attempt: int, event: Event) -> Written:
        """Write what follows from an event; IllegalStepError when nothing can.

        When it ends a run that cost more than every run of the target before it, all of them that may be in flight are
        `repriced` in the same transaction.
        An `Accepted` with the id of another job's run is no receipt: the job becomes unknown (`held_against`).
        """
        ...

    async def summary(self, target: str) -> Summary:
        """Return the credits of the ledger and the real costs of a target."""
        ...

    async def known_runs(self, target: str, account: str, since: float) -> tuple[KnownRun, ...]:
        """Return an account's runs of a target that are known to have begun since then, and a few before.

        `since`: epoch seconds. None of another account: the rows that show it would not be this one's.
        """
        ...

    async def aclose(self) -> None:
        """Close it; idempotent."""
        ...


def decide(entry: Entry | None, claim: Claim, totals: Totals, highest_cost: float | None) -> Claimed:
    """Decide about a claim on a job whose last attempt is `entry`. Pure; to be called within the transaction.

    `highest_cost`: the largest cost of a run of the target, which another owner may have seen.
    """
    known = entry or Entry(key=claim.key, target=claim.target, digest=claim.digest)
    is_ours = known.stage is Stage.SENDING and known.owner == claim.sending.owner
    is_same = known.target == claim.target and known.digest == claim.digest
    if not is_same or not (known.stage is Stage.NEW or is_ours):
        return Taken(known)
    sending = claim.sending
    if (reserve := highest_known(sending.reserve, highest_cost)) != sending.reserve:
        sending = attrs.evolve(sending, reserve=reserve)
    if claim.cap is not None:  # also of another attempt: a run may have turned out dearer meanwhile
        others = totals.moved(entry, attrs.evolve(known, stage=Stage.NEW))
        decided = fit_under_cap(others, reserve, claim.cap)
        if decided is not Fit.NOW:
            return OverBudget(totals, decided, highest_cost)
    sent = advance(known, sending)
    return Written(sent, totals.moved(entry, sent), highest_cost)


def held_against(event: Accepted, other: str | None) -> Accepted | Lost:
    """Remember that the run a receipt names is that of the job `other`, not of this one, whose end stays open."""
    if other is None:
        return event
    seen = f"the answer named execution {event.execution_id!r}, which is the run of job {other!r}"
    return Lost(event.owner, seen, event.until)


logger = logging.getLogger("knouds_async")


class MemoryLedger:
    """A ledger for one batch, in memory; jobs that are over are forgotten, so that a million of them take no room."""

    def __init__(self) -> None:
        self._open: dict[str, Entry] = {}
        self._runs: dict[str, str] = {}
        self._totals = Totals()
        self._highest_cost: float | None = None

    async def bind(self, payer: Payer) -> None:
        """Do nothing: it outlives no client."""

    async def join(self) -> str:
        """Return the name of the only owner."""
        return "this batch"

    async def leave(self, owner: str) -> None:
        """Log what is in flight: nothing else will know of it."""
        left = [each for each in self._open.values() if each.owner == owner]
        if left:
            logger.warning(
                "a batch of %s was left with %d runs in flight; they continue and are charged, and no ledger has them; "
                "knouds.executions.attach picks them up: %s",
                left[0].target,
                len(left),
                ", ".join(f"{each.key}: {each.execution_id or 'unknown'}" for each in left),
                extra=fields("batch_left", target=left[0].target, count=len(left)),
            )

    async def look(self, key: str) -> Entry | None:
        """Return a job that is out."""
        return self._open.get(key)

    async def claim(self, claim: Claim) -> Claimed:
        """Note that a job is being sent."""
        decided = decide(self._open.get(claim.key), claim, self._totals, self._highest_cost)
        if isinstance(decided, Written):
            self._totals = decided.totals
            self._open[claim.key] = decided.entry
        return decided

    async def record(self, key: str, attempt: int, event: Event) -> Written:  # noqa: ARG002  (a job has one attempt)
        """Note an event."""
        before = self._open[key]
        if isinstance(event, Accepted):
            event = held_against(event, self._job_of(event.execution_id, key))
        after = self._changed(before, advance(before, event))
        cost = after.ending.cost if after.ending is not None else None
        if cost and cost > (self._highest_cost or 0.0):
            self._highest_cost = cost
            for entry in list(self._open.values()):
                self._changed(entry, repriced(entry, cost))
        return Written(after, self._totals, self._highest_cost)

    def _changed(self, before: Entry, after: Entry) -> Entry:
        self._totals = self._totals.moved(before, after)
        self._open[after.key] = after
        if after.stage not in OPEN:
            del self._open[after.key]
            self._runs.pop(after.execution_id or "", None)
        return after

    def _job_of(self, execution_id: str, key: str) -> str | None:
        """Return the job whose run this is, if it is another's; of those that are over the client remembers the ids."""
        job = self._runs.setdefault(execution_id, key)
        return None if job == key else job

    async def summary(self, target: str) -> Summary:  # noqa: ARG002  (a batch has one target)
        """Return the credits so far."""
        return Summary(totals=self._totals)

    async def known_runs(self, target: str, account: str, since: float) -> tuple[KnownRun, ...]:  # noqa: ARG002
        """Return nothing: a batch without a ledger never searches."""
        return ()

    async def aclose(self) -> None:
        """Do nothing: it goes with the batch."""


# ---- Ledgers in a database

COLUMNS: Final = (
    "key", "attempt", "target", "digest", "stage", "owner", "reserved", "sent_at", "execution_id", "request_id", "note",
    "lasts", "account", "since", "until", "status", "cost", "reply", "code", "message",
)  # fmt: skip
_A_FEW: Final = 50  # runs before the time that is asked for: their rows may be among those of it
_OF_ENDING: Final = tuple(attrs.fields_dict(Ending))
_IN_DOUBT: Final = (
    "job.stage NOT IN ('new', 'final') "  # as an index has it
    "AND job.stage IN ('sending', 'submitted', 'unknown', 'resend_approved', 'abandoned')"
)
IN_FLIGHT: Final = f"{_IN_DOUBT} AND job.stage IN ('sending', 'submitted') AND job.owner IS NOT NULL"
"""The condition that an owner, who may be gone, is sending or waiting for the run of a row `job`."""


def values_of(entry: Entry) -> dict[str, Any]:
    """Return the values of an entry's columns; the service's words may hold half a surrogate pair, which none takes."""
    values = {name: getattr(entry.ending if name in _OF_ENDING else entry, name, None) for name in COLUMNS}
    for name, value in values.items():
        if isinstance(value, str):
            values[name] = value.encode(errors="backslashreplace").decode()
        elif isinstance(value, Moment):
            values[name] = json.dumps(attrs.asdict(value))
    return values


def entry_of(row: Sequence[Any]) -> Entry:
    """Return the entry of a row that begins with the columns."""
    values: dict[str, Any] = dict(zip(COLUMNS, row, strict=False))
    ending: dict[str, Any] = {name: values.pop(name) for name in _OF_ENDING}
    values["stage"] = Stage(values["stage"])
    values["since"], values["until"] = _moment(values["since"]), _moment(values["until"])
    return Entry(**values, ending=Ending(**ending) if ending["status"] else None)


def known_run_of(request_id: str | None, since: str | None, until: str | None) -> KnownRun:
    """Return a run that is known, of the columns that tell of it."""
    return KnownRun(
        request_id=request_id or "",
        begun_by=None if (at := _moment(until)) is None else at.latest,
        begun_after=None if (at := _moment(since)) is None else at.earliest,
    )


def _moment(text: str | None) -> Moment | None:
    return None if text is None else Moment(**json.loads(text))


class LedgerOperations(ABC):
    """What is done to a ledger within one transaction: load, have `decide` or `advance` decide, save.

    A subclass says how.
    """

    _columns: ClassVar[str]  # what `_entry` reads of a row `job`
    _is_last: ClassVar[str]  # the condition that a row `job` is the last attempt of its key
    _named: str  # the ledger, in messages
    _totals: Totals

    @abstractmethod
    def _select(self, columns: str, condition: str, *values: Any) -> Sequence[tuple[Any, ...]]:
        """Return columns of the rows `job` that meet a condition, in which each `?` stands for a value."""

    @abstractmethod
    def _save(self, entry: Entry) -> None: ...

    @abstractmethod
    def _is_alive(self, owner: str) -> bool:
        """Return whether the owner of an entry that was loaded may still work."""

    @abstractmethod
    def _of_dead_owners(self) -> Iterator[Entry]: ...

    @abstractmethod
    def _in_flight(self) -> int:
        """Return how many runs owners that may still work are sending or waiting for."""

    @abstractmethod
    def _price(self, target: str) -> tuple[int, float | None]:
        """Return of how many runs of a target the cost is known, and the largest."""

    @abstractmethod
    def _set_price(self, target: str, runs: int, highest: float | None) -> None: ...

    @abstractmethod
    def _bound_to(self) -> Payer | None:
        """Return whose ledger this is."""

    @abstractmethod
    def _set_payer(self, payer: Payer | None) -> None: ...

    def carried_out(self, operation: Callable[[Self], Any]) -> Any:
        """Return the value of an operation, or the error that it alone met: it decides before it saves."""
        try:
            return operation(self)
        except (IllegalStepError, InvalidArgumentError, LedgerError) as error:
            return error
        except (ValueError, TypeError, LookupError, AttributeError) as error:  # only of a row that somebody has changed
            why = f"{type(error).__name__}: {error}"
            return LedgerError(f"{self._named} has a row that makes no sense, and nothing is submitted for it: {why}")

    def _entry(self, row: Sequence[Any]) -> Entry:
        return entry_of(row)

    def _where(self, condition: str, *values: Any) -> Iterator[Entry]:
        """Return the entries whose rows `job` meet a condition."""
        return map(self._entry, self._select(self._columns, condition, *values))

    def _load(self, key: str, attempt: int | None = None) -> Entry | None:
        """Return an attempt of a job, the last one by default."""
        if attempt is None:
            return next(self._where("job.key = ? ORDER BY job.attempt DESC LIMIT 1", key), None)
        return next(self._where("job.key = ? AND job.attempt = ?", key, attempt), None)

    def _jobs_of(self, execution_id: str) -> list[tuple[Any, ...]]:
        """Return the keys and attempts that have a run."""
        return list(self._select("job.key, job.attempt", "job.execution_id = ?", execution_id))

    def known_runs(self, target: str, account: str, since: float) -> tuple[KnownRun, ...]:
        """Return an account's runs that are known to have begun since then, and the last few before."""
        theirs = "job.target = ? AND job.account = ? AND job.request_id IS NOT NULL AND "
        times = "job.sent_at >= ?", f"job.sent_at < ? ORDER BY job.sent_at DESC LIMIT {_A_FEW}"
        columns, values = "job.request_id, job.since, job.until", (target, account, since)
        return tuple(known_run_of(*row) for time in times for row in self._select(columns, theirs + time, *values))

    def look(self, key: str) -> Entry | None:
        """Return the last attempt of a job, after the end of its owner has been noted."""
        entry = self._load(key)
        if entry is not None and entry.owner is not None and not self._is_alive(entry.owner):
            return self._moved(entry, OwnerGone())
        return entry

    def claim(self, claim: Claim) -> Claimed:
        """Write the intent to send a job, if it may be sent."""
        decided = decide(self.look(claim.key), claim, self._totals, self._price(claim.target)[1])
        if isinstance(decided, Written):
            self._save(decided.entry)
            self._totals = decided.totals
            return attrs.evolve(decided, committed=read_clocks())
        return decided

    def record(self, key: str, attempt: int, event: Event) -> Written:
        """Write what follows from an event."""
        entry = self._load(key, attempt)
        if entry is None:
            raise InvalidArgumentError(f"{self._named} has no job {key!r}")
        if isinstance(event, Accepted):
            jobs = self._jobs_of(event.execution_id)
            event = held_against(event, next((each[0] for each in jobs if each != (key, attempt)), None))
        highest = self._price(entry.target)[1]
        after = self._moved(entry, event)
        cost = after.ending.cost if after.ending is not None else None
        if cost and cost > (highest or 0.0):
            for each in list(self._where(f"{_IN_DOUBT} AND job.target = ?", entry.target)):
                self._changed(each, repriced(each, cost))
        return Written(after, self._totals, self._price(entry.target)[1])

    def decision(self, key: str, event: Event) -> Entry:
        """Write what somebody has decided about the last attempt of a job; an approved one begins anew."""
        entry = self.look(key)
        if entry is None:
            raise InvalidArgumentError(f"{self._named} has no job {key!r}")
        if isinstance(event, Resolved):
            for other, _ in self._jobs_of(event.execution_id):
                if other != key:
                    reason = f"execution {event.execution_id!r} is the run of job {other!r}, not of {key!r}"
                    raise InvalidArgumentError(f"{reason}: nothing was changed")
        try:
            decided = self._moved(entry, event)
        except IllegalStepError:
            message = f"job {key!r} is {entry.stage}: only one that is unknown is decided about, so nothing was changed"
            raise InvalidArgumentError(message) from None
        return self._begun_again(decided) if isinstance(event, ResendApproved) else decided

    def retry_failed(self) -> int:
        """Begin anew what failed or was cancelled."""
        failed = list(self._where(f"job.status IN ('failed', 'cancelled') AND job.stage = 'final' AND {self._is_last}"))
        for entry in failed:
            self._begun_again(entry)
        return len(failed)

    def unknown(self) -> tuple[Entry, ...]:
        """Return the jobs of which nobody knows whether they ran, oldest first; nothing is written."""
        found = [*self._where(f"{_IN_DOUBT} AND job.stage = 'unknown' AND {self._is_last}"), *self._orphans()]
        return tuple(sorted(found, key=lambda entry: entry.sent_at or 0.0))

    def _orphans(self) -> list[Entry]:
        """Return the jobs that owners were sending who are no more, as they will be once somebody asks for them."""
        return [advance(entry, OwnerGone()) for entry in self._of_dead_owners() if entry.stage is Stage.SENDING]

    def summary(self, target: str) -> Summary:
        """Return all credits, the real costs of a target, and how many runs are in flight."""
        runs, highest = self._price(target)
        return Summary(totals=self._totals, runs=runs, highest_cost=highest, in_flight=self._in_flight())

    def bind(self, payer: Payer) -> Payer:
        """Return whose ledger this is: the first payer's who asks, as far as that one is known."""
        known = self._bound_to()
        if known is None or (known.user is None and known.base_url == payer.base_url):
            self._set_payer(payer)
            return payer
        return known

    def rebind(self) -> None:
        """Forget whose ledger this is."""
        self._set_payer(None)

    def _moved(self, entry: Entry, event: Event) -> Entry:
        return self._changed(entry, advance(entry, event))

    def _changed(self, entry: Entry, after: Entry) -> Entry:
        if after != entry:
            self._save(after)
            self._totals = self._totals.moved(entry, after)
            if entry.ending is None and after.ending is not None and after.ending.cost is not None:
                runs, highest = self._price(after.target)
                self._set_price(after.target, runs + 1, max(highest or 0.0, after.ending.cost) or None)
        return after

    def _begun_again(self, entry: Entry) -> Entry:
        following = successor(entry)
        self._save(following)
        return following


def _check_key(key: str) -> None:
    """Raise InvalidArgumentError for what is no key, and no database takes: it would fail for all that wait with it."""
    if not key.isprintable():
        raise InvalidArgumentError(f"key={safe_repr(key)}: keys are printable characters")


Operations = TypeVar("Operations", bound=LedgerOperations)
T = TypeVar("T")


class TransactionalLedger(ABC, Generic[Operations]):
    """A ledger whose every method is one transaction; a subclass says how those are carried out, and who owners are."""

    @abstractmethod
    async def _transact(
        self, operation: Callable[[Operations], T], *, may_withdraw: bool = False, **needs: str | None
    ) -> T:
        """Return the value of an operation, which is carried out whole or not at all.

        `may_withdraw`: whether that is without effect, so that it need not be carried out when nobody waits for it.
        `needs`: a `key`, a `target`, an `execution_id` to which it will come.
        """

    @abstractmethod
    def _names(self) -> tuple[str, str]:
        """Return the name of the ledger in messages, and in a command."""

    # What somebody may want to know and decide.

    async def unknown(self) -> tuple[Entry, ...]:
        """Return the jobs of which nobody knows whether they ran, oldest first."""
        return await self._transact(lambda ledger: ledger.unknown(), may_withdraw=True)

    async def find(self, key: str) -> Entry | None:
        """Return where a job stands, None when it was never sent."""
        return await self.look(key)

    async def resolve(self, key: str, execution_id: str) -> Entry:
        """Return which run an unknown job began: the next batch picks it up. InvalidArgumentError if it is none.

        A wrong id can be corrected, once no batch waits for its run; a run of another target is never taken.
        """
        return await self._decide(key, Resolved(checked_execution_id(execution_id)))

    async def approve_resend(self, key: str) -> Entry:
        """Decide that an unknown job is sent once more by the next batch, at the risk of paying for it twice.

        What was reserved for it stays reserved. InvalidArgumentError if it is not unknown.
        """
        return await self._decide(key, ResendApproved())

    async def abandon(self, key: str) -> Entry:
        """Decide to leave an unknown job at that, or one whose run cannot be found any more.

        It is not sent again, and counts with what was reserved for it, unless a batch still sees its run end.
        InvalidArgumentError if it is neither.
        """
        return await self._decide(key, Abandoned())

    async def rebind(self) -> None:
        """Allow the next batch to bind the ledger to its own account and service, whichever they are.

        A ledger is bound to those of its first batch, and refuses others. Of a submit that is unknown nothing is ever
        proven by the usage of an account that did not send it.
        """
        await self._transact(lambda ledger: ledger.rebind())

    async def retry_failed(self) -> int:
        """Make the next batch run what failed or was cancelled once more, and return how many jobs that are."""
        return await self._transact(lambda ledger: ledger.retry_failed())

    async def _decide(self, key: str, event: Event) -> Entry:
        _check_key(key)
        return await self._transact(lambda ledger: ledger.decision(key, event), key=key)

    # What a batch asks for: see `Ledger`.

    async def bind(self, payer: Payer) -> None:
        """Record the first payer as the ledger's, and refuse every other."""
        known = await self._transact(lambda ledger: ledger.bind(payer), may_withdraw=True)
        if known != payer:
            name, argument = self._names()
            raise LedgerError(
                f"{name} is that of {known}, and this is {payer}: what the usage of one does not show may have run on "
                "the other. Nothing was submitted. Use that account's key and base URL, or another ledger; to continue "
                f"with this one all the same: `await ledger.rebind()`, or `knouds batch --rebind {argument}`"
            )

    async def look(self, key: str) -> Entry | None:
        """Return the last attempt of a job."""
        _check_key(key)
        return await self._transact(lambda ledger: ledger.look(key), key=key, may_withdraw=True)

    async def claim(self, claim: Claim) -> Claimed:
        """Write the intent to send a job."""
        _check_key(claim.key)
        return await self._transact(lambda ledger: ledger.claim(claim), key=claim.key, target=claim.target)

    async def record(self, key: str, attempt: int, event: Event) -> Written:
        """Write what follows from an event."""
        _check_key(key)
        run = event.execution_id if isinstance(event, Accepted) else None
        return await self._transact(lambda ledger: ledger.record(key, attempt, event), key=key, execution_id=run)

    async def summary(self, target: str) -> Summary:
        """Return the credits of the ledger and the real costs of a target."""
        return await self._transact(lambda ledger: ledger.summary(target), target=target, may_withdraw=True)

    async def known_runs(self, target: str, account: str, since: float) -> tuple[KnownRun, ...]:
        """Return an account's runs of a target that are known to have begun since then, and some before."""
        return await self._transact(lambda ledger: ledger.known_runs(target, account, since), may_withdraw=True)
