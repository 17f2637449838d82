"""A job's way from its reading to its outcome: what the ledger says of it decides where it begins.

Rule of the file: what is on record decides, and nothing is on record of a job that may be sent; a failure is an
outcome. Only a ledger that fails and a client that was closed end the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final

import anyio

from knouds_async import errors
from knouds_async._sansio.entries import Entry, NoneFound, PickedUp, Stage
from knouds_async.batch.books import Books
from knouds_async.batch.endings import outcome_of_entry
from knouds_async.batch.jobs import Asked
from knouds_async.batch.outcomes import NotRun, NotRunReason, Outcome
from knouds_async.batch.sender import Sender
from knouds_async.batch.service import Service
from knouds_async.types import Target

_TOLERANCE: Final = 120.0
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 15.0


class Work:
    """Sees each job of a batch through."""

    def __init__(self, service: Service, target: Target, books: Books, sender: Sender) -> None:
        """Run jobs of `target`; those that are new go through `sender`."""
        self._service = service
        self._target = target
        self._books = books
        self._sender = sender
        self._searching = anyio.Lock()
        self.aside = 0  # jobs that only wait: for another batch, or for a search

    async def outcome(self, asked: Asked) -> Outcome:
        """Give how a job ended. Cancelled: its run goes on, and is on record if there is a ledger."""
        if asked.is_repeated:
            again = errors.InvalidArgumentError(f"the key {asked.job.key!r} came before in this batch")
            return NotRun(job=asked.job, reason=NotRunReason.DUPLICATE, error=again)
        if asked.error is not None:
            return NotRun(job=asked.job, reason=NotRunReason.INVALID, error=asked.error)
        found: Outcome | Entry | None = await self._books.ledger.look(asked.job.key)
        while found is None or isinstance(found, Entry):
            if found is not None and (found.digest, found.target) != (asked.digest, self._books.target):
                return _conflict(asked, found)
            is_new = found is None or found.stage is Stage.NEW
            found = await (self._sender.send(asked) if found is None or is_new else self._go_on(asked, found))
        return found

    async def _go_on(self, asked: Asked, entry: Entry) -> Outcome | Entry | None:
        match entry.stage:
            case Stage.SUBMITTED if entry.owner is None:
                return await self._pick_up(asked, entry)
            case Stage.SUBMITTED | Stage.SENDING:
                return await self._leave_to_its_owner(asked)
            case Stage.UNKNOWN:
                return await self._search(asked, entry)
            case _:
                return outcome_of_entry(asked.job, entry)

    async def _pick_up(self, asked: Asked, entry: Entry) -> Outcome | Entry | None:
        picked = await self._books.try_to_record(entry, PickedUp(self._books.owner))
        if picked is None or picked.execution_id is None:
            return await self._books.ledger.look(asked.job.key)
        self._books.begin()
        try:
            return await self._sender.wait(asked, picked, self._service.attach(picked.execution_id, self._target))
        finally:
            self._books.end()

    async def _leave_to_its_owner(self, asked: Asked) -> Entry | None:
        """Wait until another batch is done with the job, or no more."""
        pause = _FIRST_PAUSE
        with self._put_aside():
            while True:
                await anyio.sleep(pause)
                entry = await self._books.ledger.look(asked.job.key)
                is_theirs = entry is not None and entry.stage in (Stage.SENDING, Stage.SUBMITTED)
                if entry is None or not is_theirs or entry.owner is None:
                    return entry
                pause = min(_LONGEST_PAUSE, pause * 1.5)

    @contextmanager
    def _put_aside(self) -> Iterator[None]:
        """Make room for another job while this one only waits."""
        self.aside += 1
        self._sender.on_change()
        try:
            yield
        finally:
            self.aside -= 1

    async def _search(self, asked: Asked, entry: Entry) -> Outcome | Entry:
        """Look whether an unknown submit certainly began no run; it never picks one of several that could be it."""
        sent_at = datetime.fromtimestamp(entry.sent_at or 0.0, UTC)
        with self._put_aside():
            async with self._searching:  # each may read many pages of rows
                is_none = await self._is_certainly_none(sent_at)
        if is_none:
            new = await self._books.try_to_record(entry, NoneFound(entry.sent_at))
            return new or await self._books.ledger.look(asked.job.key) or entry
        self._sender.met_unknown(asked)
        return outcome_of_entry(asked.job, entry)

    async def _is_certainly_none(self, sent_at: datetime) -> bool:
        if self._service.now() - sent_at < timedelta(seconds=_TOLERANCE):
            return False
        moment, span = sent_at.timestamp(), 10 * _TOLERANCE
        known = await self._books.ledger.request_ids(self._books.target, moment - span, moment + span)
        try:
            search = await self._service.find_submission(self._target, sent_at, tolerance=_TOLERANCE, exclude=known)
        except errors.ClientClosedError:
            raise
        except errors.KnoudsError:
            return False
        return search.is_certainly_none


def _conflict(asked: Asked, entry: Entry) -> NotRun:
    what = "other inputs" if entry.digest != asked.digest else f"the target {entry.target}"
    error = errors.InvalidArgumentError(
        f"the ledger knows the key {asked.job.key!r} with {what}: give the job another key, or use another ledger"
    )
    return NotRun(job=asked.job, reason=NotRunReason.CONFLICT, error=error)
