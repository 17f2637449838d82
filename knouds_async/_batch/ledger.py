"""What a batch asks of a ledger, and the ledger of a batch that was given none."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

import attrs

from knouds_async._sansio.clock import Moment, Reading
from knouds_async._sansio.ledger import (
    OPEN,
    Accepted,
    Entry,
    Event,
    Fit,
    Lost,
    Payer,
    Sending,
    Stage,
    Totals,
    advance,
    amount,
    fit_under_cap,
    highest_known,
    repriced,
)
from knouds_async._sansio.reconcile import Doubt, KnownRun
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

    `said`: which ledger, and why. `runs`: gives the runs of an account that it has, with their execution ids where they
    are known, and "" for a request id that is not. `again`: gives what is in doubt at a moment, None when nothing is
    any more. `trust`: allows to send, unless something else is in doubt by now; it gives what is.
    """

    said: str
    doubt: Doubt
    runs: Callable[[str], Awaitable[Sequence[tuple[str | None, KnownRun]]]]
    again: Callable[[Moment], Awaitable[Doubted | None]]
    trust: Callable[[], Awaitable[Doubted | None]]


Claimed: TypeAlias = Written | Taken | OverBudget | Doubted


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Summary(Record):
    """What a ledger knows of a target's money: all credits, of how many runs of it the cost is known, the largest."""

    totals: Totals = attrs.Factory(Totals)
    runs: int = 0
    highest_cost: float | None = None


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
