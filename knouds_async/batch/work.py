"""A job's way from its reading to its outcome: what the ledger says of it decides where it begins.

Rule of the file: what is on record decides, and nothing is on record of a job that may be sent; a failure is an
outcome. Only a ledger that fails and a client that was closed end the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import anyio
import attrs

from knouds_async import errors
from knouds_async._sansio.entries import Entry, NoneFound, OwnerGone, Payer, PickedUp, Stage
from knouds_async._sansio.reconcile import Wanted
from knouds_async.batch.books import Books
from knouds_async.batch.endings import outcome_of_entry
from knouds_async.batch.jobs import Asked
from knouds_async.batch.outcomes import NotRun, NotRunReason, Outcome
from knouds_async.batch.sender import Sender
from knouds_async.batch.service import Service
from knouds_async.types import SubmissionSearch, Target

_SPAN: Final = 1200.0  # seconds before a submit: runs of that time may account for rows that are near it
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
        with suppress(errors.ConnectionFailedError):
            await self._sender.ask_for_time()
        entry = await self._dated(entry)
        bounds, reason = entry.may_have_begun, _not_provable(entry, self._books.payer)
        reasons = [reason] if reason is not None else []
        if bounds is not None and not reasons:
            with self._put_aside():
                async with self._searching:  # each may read many pages of rows
                    wanted = Wanted(target=self._target, earliest=bounds[0], latest=bounds[1])
                    found = await self._rows(wanted, entry.account or "")
            if isinstance(found, SubmissionSearch) and found.is_certainly_none:
                new = await self._books.try_to_record(entry, NoneFound(entry.sent_at))
                return new or await self._books.ledger.look(asked.job.key) or entry
            reasons = _why(found) if isinstance(found, SubmissionSearch) else [found]
        self._sender.met_unknown(asked)
        return outcome_of_entry(asked.job, entry, open_because=reasons)

    async def _dated(self, entry: Entry) -> Entry:
        """Bound a submit whose owner was found gone by somebody who did not know the time."""
        if entry.until is not None and entry.until.is_known:
            return entry
        return await self._books.try_to_record(entry, OwnerGone(self._books.moment())) or entry

    async def _rows(self, wanted: Wanted, account: str) -> SubmissionSearch | str:
        """Search the usage rows, or say why that would prove nothing."""
        if (too_early := wanted.not_yet(self._books.moment())) is not None:
            return too_early
        known = await self._books.ledger.known_runs(self._books.target, account, wanted.earliest - _SPAN)
        try:
            return await self._service.search(attrs.evolve(wanted, known=known))
        except errors.ClientClosedError:
            raise
        except errors.KnoudsError as error:
            return f"the usage could not be read: {error}"


def _why(search: SubmissionSearch) -> list[str]:
    rows = [f"usage row {row.id} ({row.status}, request {row.request_id}) could be it" for row in search.candidates[:3]]
    return [*rows, *search.reasons]


def _not_provable(entry: Entry, payer: Payer | None) -> str | None:
    """Say why no usage rows can prove that a submit began no run."""
    if entry.may_have_begun is None:
        return "when it can have begun a run is not known by the service's clock"
    if entry.account is None or payer is None or entry.account != payer.account:
        return "it is not known to be a submit of this account"
    return None


def _conflict(asked: Asked, entry: Entry) -> NotRun:
    what = "other inputs" if entry.digest != asked.digest else f"the target {entry.target}"
    error = errors.InvalidArgumentError(
        f"the ledger knows the key {asked.job.key!r} with {what}: give the job another key, or use another ledger"
    )
    return NotRun(job=asked.job, reason=NotRunReason.CONFLICT, error=error)
