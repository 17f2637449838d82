"""The books of one batch: what it writes into its ledger as one owner, what it may still spend, why it has stopped."""

from __future__ import annotations

import logging

import anyio
import attrs

from knouds_async._io.clocks import ServiceTime
from knouds_async._sansio import budget
from knouds_async._sansio.budget import Prices, Totals, Verdict
from knouds_async._sansio.clock import Moment
from knouds_async._sansio.entries import Entry, Event, IllegalStepError, NotSent, Payer, Sending
from knouds_async.batch.jobs import PreparedJob
from knouds_async.batch.ledger import Claim, Claimed, Ledger, OverBudget, Written
from knouds_async.batch.outcomes import NotRunReason
from knouds_async.errors import BudgetExceededError, KnoudsError, LedgerError

logger = logging.getLogger("knouds_async")


@attrs.frozen
class StopReason:
    """Why nothing more is submitted."""

    reason: NotRunReason
    error: KnoudsError


@attrs.frozen
class Reservation:
    """Credits that are set aside for a run, None: its price is not known."""

    credits: float | None


class LedgerSession:
    """What one batch has on record."""

    def __init__(self, ledger: Ledger, target: str, cap: float | None, time: ServiceTime, *, is_own: bool) -> None:
        """Keep the books of a batch of runs of `target`, with at most `cap` credits; `is_own`: close the ledger."""
        self._is_own = is_own
        self._time = time
        self.payer: Payer | None = None  # whose they are, where the ledger outlives the batch
        self.ledger = ledger
        self.target = target
        self.cap = cap
        self.owner = ""
        self.totals = Totals()
        self.prices = Prices()
        self.out = 0  # runs of this batch that are being sent or waited for
        self.stopped_by: StopReason | None = None
        self._queued = 0  # jobs that were let through and are not on record yet
        self._purse: anyio.Lock | None = None
        self._changed: anyio.Event | None = None

    async def open(self, payer: Payer | None = None) -> None:
        """Become an owner, and learn what was spent before; `payer`: None for a ledger that goes with the batch."""
        self._purse, self._changed = anyio.Lock(), anyio.Event()
        if payer is not None:
            await self.ledger.bind(payer)
        self.payer = payer
        self.owner = await self.ledger.join()
        summary = await self.ledger.summary(self.target)
        self.totals = summary.totals
        self.prices = attrs.evolve(self.prices, ended=summary.runs, highest_cost=summary.highest_cost)

    async def keep_alive(self) -> None:
        """Renew the lease for as long as this runs; at once when the ledger needs none."""
        while (lease := self.ledger.lease) is not None:
            await anyio.sleep(lease / 3)
            await self.ledger.renew(self.owner)

    async def close(self) -> None:
        """Let go of every claim. What cannot be written is let go of by the end of the process."""
        try:
            if self.owner:
                owner, self.owner = self.owner, ""
                await self.ledger.leave(owner)
        except LedgerError as error:
            logger.warning("%s", error)
        finally:
            if self._is_own:
                await self.ledger.aclose()

    def expect(self, estimate: float | None) -> None:
        """Take the workflow's own estimate of a run's cost, in credits."""
        self.prices = attrs.evolve(self.prices, estimate=None if estimate is None else max(0.0, float(estimate)))

    def stop(self, reason: NotRunReason, error: KnoudsError) -> None:
        """Submit nothing more; the first reason counts."""
        if self.stopped_by is None:
            self.stopped_by = StopReason(reason, error)
        self.notify()

    def begin(self) -> None:
        """Count a run that is out."""
        self.out += 1

    def end(self) -> None:
        """Count it no more."""
        self.out -= 1
        self.notify()

    def notify(self) -> None:
        """Have those who wait for credits look again."""
        if self._changed is not None:
            self._changed.set()
            self._changed = anyio.Event()

    def moment(self) -> Moment:
        """Return this moment, dated by the service's clock as certainly as it can be."""
        return self._time.moment()

    @property
    def needs_time(self) -> bool:
        """Whether to ask the service for its time before anything is sent: only what is dated can be proven."""
        return self.payer is not None and self._time.is_worth_asking()

    async def claim(
        self, prepared: PreparedJob, sent_at: float, since: Moment, reservation: Reservation, lasts: float
    ) -> Claimed:
        """Write the intent to send a job; `since`: a moment before, `lasts`: seconds a synchronous run may take."""
        sending = Sending(
            owner=self.owner,
            sent_at=sent_at,
            reserve=budget.larger(reservation.credits, self.prices.price),
            since=since,
            lasts=lasts,
            account=None if self.payer is None else self.payer.account,
        )
        claim = Claim(key=prepared.job.key, target=self.target, digest=prepared.digest, sending=sending, cap=self.cap)
        claimed = await self.ledger.claim(claim)
        if isinstance(claimed, (Written, OverBudget)):
            self.totals, self.prices = claimed.totals, self.prices.seen(claimed.highest_cost)
        return claimed

    async def record(self, entry: Entry, event: Event) -> Entry:
        """Write what has become of an entry, and learn its cost; the error says if it was of a run that may be paid."""
        try:
            return await self._record(entry, event)
        except IllegalStepError as error:
            failure = LedgerError(f"{error}: another batch has decided otherwise meanwhile")
        except LedgerError as error:
            failure = error.with_traceback(None)
        failure.may_have_run = failure.may_have_run or not isinstance(event, NotSent)
        raise failure from None

    async def _record(self, entry: Entry, event: Event) -> Entry:
        written = await self.ledger.record(entry.key, entry.attempt, event)
        self.totals = written.totals
        if written.entry.ending is not None and entry.ending is None:
            self.prices = self.prices.paid(written.entry.ending.cost)
        self.prices = self.prices.seen(written.highest_cost)
        self.notify()
        return written.entry

    async def try_to_record(self, entry: Entry, event: Event) -> Entry | None:
        """Write what has become of an entry; None when another batch, or a person, was faster."""
        try:
            return await self._record(entry, event)
        except IllegalStepError:
            return None

    async def reserve(self) -> Reservation | None:
        """Wait until one more run fits under the cap, and set credits aside for it; None when the batch has stopped.

        It stops the batch when no further run can fit.

        First come, first served. To be given back with `let_go`, when it is on record or was not sent.
        """
        if self.cap is None:
            return Reservation(self.prices.price)
        assert self._purse is not None  # noqa: S101  (it is there once the books are open)
        async with self._purse:
            while self.stopped_by is None:
                price = self.prices.price
                said = budget.verdict(self.totals, price, self.cap, queued=self._queued)
                if said is Verdict.GO and not self._is_bold(price, self.cap):
                    self._queued += 1
                    return Reservation(price)
                if said is Verdict.NEVER or not (self.out or self._queued):
                    self.stop(NotRunReason.BUDGET, self._spent(price))
                    break
                assert self._changed is not None  # noqa: S101
                await self._changed.wait()
        return None

    def release(self) -> None:
        """Take back what was set aside."""
        if self.cap is not None:
            self._queued -= 1
            self.notify()

    def _is_bold(self, price: float | None, cap: float) -> bool:
        in_flight = self.out + self._queued
        return price is not None and budget.is_bold(
            self.totals, price, cap, queued=self._queued, in_flight=in_flight, ended=self.prices.ended
        )

    def _spent(self, price: float | None) -> BudgetExceededError:
        cost = "at a price that is not known" if price is None else f"of {price:g} credits"
        unpriced = f", and what {self.totals.unpriced} of the runs cost is not known" if self.totals.unpriced else ""
        return BudgetExceededError(
            f"another run {cost} could pass max_credits={self.cap:g}: {self.totals.spent:g} credits are spent and "
            f"{self.totals.reserved:g} are set aside for runs that are out or unknown{unpriced}. Nothing more was "
            "submitted"
        )
