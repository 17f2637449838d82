"""The witness of one job's submit: its intent is on record before the first byte leaves, its id with the reply."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from enum import Enum
from typing import Any

import anyio
import attrs

from knouds_async._io.clocks import read_clocks
from knouds_async._io.witness import Decision
from knouds_async._sansio.clock import Reading
from knouds_async._sansio.entries import Accepted, Ended, Entry, Event, Lost, NotSent
from knouds_async._sansio.retry import Again, Done, Fail, Requeue
from knouds_async.batch.books import LedgerSession, Reservation
from knouds_async.batch.endings import ending_of_failure, ending_of_result
from knouds_async.batch.jobs import PreparedJob
from knouds_async.batch.ledger import Taken, Written
from knouds_async.errors import ExecutionFailedError, SubmissionUnknownError
from knouds_async.types import Submitted


class SubmitWithheldError(Exception):
    """The ledger or the batch itself kept a submit from leaving; `taken`: what the ledger says of the job instead."""

    def __init__(self, taken: Entry | None = None) -> None:
        """Keep the entry."""
        super().__init__()
        self.taken = taken


class _Phase(Enum):
    """Where the submit stands."""

    IDLE = "idle"
    """Nothing of it is on its way; an attempt may have been refused."""
    CLAIMING = "claiming"
    """Its intent is being written."""
    OUT = "out"
    """It may have left."""
    OVER = "over"
    """What became of it is on record."""


class SubmitRecorder:
    """Keeps the books of one submit."""

    def __init__(
        self, session: LedgerSession, prepared: PreparedJob, reservation: Reservation, saw: Callable[[Decision], None]
    ) -> None:
        """Send `asked`, with the credits that are set aside for it; `saw` hears of each attempt before the ledger."""
        self._session = session
        self._prepared = prepared
        self._reservation = reservation
        self._saw = saw
        self._is_reserved = True
        self._is_out = False
        self._phase = _Phase.IDLE
        self.entry: Entry | None = None
        self.sent_at: datetime | None = None
        self.lasts = 0.0  # seconds within which a synchronous run may still end

    @property
    def name(self) -> str:
        """Whose request it is."""
        return f"job {self._prepared.job.key!r:.100}"

    @property
    def has_left(self) -> bool:
        """Whether a request is out, or its answer is written down: what cuts it now loses that it may be paid for."""
        return self._phase in (_Phase.OUT, _Phase.OVER)

    async def before_send(self, sent_at: datetime) -> Reading:
        """Write the intent and return when that was.

        Refusal when the batch has stopped, the service's time is to be asked first, another is at the job, or the
        credits do not reach.
        """
        if (self._session.stopped_by is not None and self.entry is None) or self._session.needs_time:
            raise SubmitWithheldError
        self._phase, self.sent_at = _Phase.CLAIMING, sent_at
        since, began = self._session.moment(), read_clocks()
        claimed = await self._session.claim(self._prepared, sent_at.timestamp(), since, self._reservation, self.lasts)
        if not isinstance(claimed, Written):
            self._phase = _Phase.IDLE
            raise SubmitWithheldError(claimed.entry if isinstance(claimed, Taken) else None)
        if self.entry is None:
            self._session.begin()
            self._is_out = True
        self.entry, self._phase = claimed.entry, _Phase.IDLE
        self._release()
        if self._session.stopped_by is not None:  # meanwhile; from here to the first byte nothing looks again
            raise SubmitWithheldError
        self._phase = _Phase.OUT
        return attrs.evolve(claimed.committed or began, loop=anyio.current_time())

    async def after_attempt(self, decision: Decision) -> None:
        """Write what became of an attempt; one that is to be made again is still being sent, unless all has stopped."""
        self._saw(decision)
        if isinstance(decision, (Done, Fail)) and self.entry is not None:
            await self._write(self._event(decision))
            return
        self._phase = _Phase.IDLE
        if isinstance(decision, (Again, Requeue)) and self._session.stopped_by is not None:
            raise SubmitWithheldError

    def _event(self, decision: Done[Any] | Fail) -> Event:
        match decision:
            case Done(Submitted() as receipt):
                return Accepted(
                    owner=self._session.owner,
                    execution_id=receipt.execution_id,
                    request_id=receipt.request_id,
                    until=self._session.moment(),
                )
            case Done(run):
                return Ended(ending_of_result(run))
            case Fail(ExecutionFailedError() as failed):
                return Ended(ending_of_failure(failed))
            case Fail(SubmissionUnknownError(execution_id=str() as found)):  # of the receipt, that much came
                return Accepted(owner=self._session.owner, execution_id=found, until=self._session.moment())
            case Fail(error) if not error.may_have_run:
                return NotSent(self._session.owner)
            case Fail(error):
                return Lost(self._session.owner, str(getattr(error, "seen", None) or error), self._session.moment())

    async def close(self) -> None:
        """Account for a submit that was cut, and count the run no more; to be called shielded."""
        self._release()
        try:
            await self._account_for_cut()
        finally:
            if self._is_out:
                self._session.end()

    async def _account_for_cut(self) -> None:
        if self._phase is _Phase.CLAIMING and self.entry is None:  # the claim may be on record; nothing left after it
            found = await self._session.ledger.look(self._prepared.job.key)
            self.entry = found if found is not None and found.owner == self._session.owner else None
        if self.entry is not None and self._phase is not _Phase.OVER:
            is_out, owner = self._phase is _Phase.OUT, self._session.owner
            cut = Lost(owner, "it was cut before its answer", self._session.moment())
            await self._write(cut if is_out else NotSent(owner))

    async def _write(self, event: Event) -> None:
        assert self.entry is not None  # noqa: S101
        self._phase = _Phase.OVER  # also when it cannot be written: what is not on record is unknown to the next batch
        self.entry = await self._session.record(self.entry, event)

    def _release(self) -> None:
        if self._is_reserved:
            self._is_reserved = False
            self._session.release()
