"""The ledger of a batch that was given none: it lives as long as the batch, and keeps only what is out."""

from __future__ import annotations

import logging

import attrs

from knouds_async._io.clocks import read_clocks
from knouds_async._sansio.budget import Totals, repriced
from knouds_async._sansio.entries import OPEN, Accepted, Entry, Event, Payer, advance
from knouds_async._sansio.reconcile import KnownRun
from knouds_async.batch.ledger import Claim, Claimed, Summary, Written, decide, held_against

logger = logging.getLogger("knouds_async")


class MemoryLedger:
    """A ledger for one batch, in memory; jobs that are over are forgotten, so that a million of them take no room."""

    lease: float | None = None

    def __init__(self) -> None:
        """Know of no job."""
        self._open: dict[str, Entry] = {}
        self._runs: dict[str, str] = {}
        self._totals = Totals()
        self._highest_cost: float | None = None

    async def bind(self, payer: Payer) -> None:
        """Do nothing: it outlives no client."""

    async def join(self) -> str:
        """Give the name of the only owner."""
        return "this batch"

    async def renew(self, owner: str) -> None:
        """Do nothing: the owner lives as long as this ledger."""

    async def leave(self, owner: str) -> None:
        """Log what is still out: nothing else will know of it."""
        left = [each for each in self._open.values() if each.owner == owner]
        if left:
            logger.warning(
                "a batch of %s was left with %d runs out; they go on and are charged, and there is no ledger to find "
                "them by; knouds.executions.attach picks them up: %s",
                left[0].target,
                len(left),
                ", ".join(f"{each.key}: {each.execution_id or 'unknown'}" for each in left),
            )

    async def look(self, key: str) -> Entry | None:
        """Give a job that is out."""
        return self._open.get(key)

    async def claim(self, claim: Claim) -> Claimed:
        """Take note that a job is being sent."""
        decided = decide(self._open.get(claim.key), claim, self._totals, self._highest_cost)
        if isinstance(decided, Written):
            self._totals = decided.totals
            self._open[claim.key] = decided.entry
            return attrs.evolve(decided, committed=read_clocks())
        return decided

    async def record(self, key: str, attempt: int, event: Event) -> Written:  # noqa: ARG002  (a job has one attempt)
        """Take note of an event."""
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
        """Give the job whose run this is, if it is another's; of those that are over the client remembers the ids."""
        job = self._runs.setdefault(execution_id, key)
        return None if job == key else job

    async def summary(self, target: str) -> Summary:  # noqa: ARG002  (a batch has one target)
        """Give the credits so far."""
        return Summary(totals=self._totals)

    async def known_runs(self, target: str, account: str, since: float) -> tuple[KnownRun, ...]:  # noqa: ARG002
        """Return nothing: a batch without a ledger never searches."""
        return ()

    async def aclose(self) -> None:
        """Do nothing: it goes with the batch."""
