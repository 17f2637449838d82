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
from knouds_async.batch.books import LedgerSession
from knouds_async.batch.endings import outcome_of_entry
from knouds_async.batch.jobs import PreparedJob
from knouds_async.batch.outcomes import NotRun, NotRunReason, Outcome
from knouds_async.batch.sender import JobSubmitter
from knouds_async.batch.service import BatchClient
from knouds_async.types import SubmissionSearch, Target

_SPAN: Final = 1200.0  # seconds before a submit: runs of that time may account for rows that are near it
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 15.0


class JobRunner:
    """Sees each job of a batch through."""

    def __init__(self, client: BatchClient, target: Target, session: LedgerSession, submitter: JobSubmitter) -> None:
        """Run jobs of `target`; those that are new go through `sender`."""
        self._client = client
        self._target = target
        self._session = session
        self._submitter = submitter
        self._searching = anyio.Lock()
        self.waiting = 0  # jobs that only wait: for another batch, or for a search

    async def outcome(self, prepared: PreparedJob) -> Outcome:
        """Give how a job ended. Cancelled: its run goes on, and is on record if there is a ledger."""
        if prepared.is_repeated:
            again = errors.InvalidArgumentError(f"the key {prepared.job.key!r} came before in this batch")
            return NotRun(job=prepared.job, reason=NotRunReason.DUPLICATE, error=again)
        if prepared.error is not None:
            return NotRun(job=prepared.job, reason=NotRunReason.INVALID, error=prepared.error)
        found: Outcome | Entry | None = await self._session.ledger.look(prepared.job.key)
        while found is None or isinstance(found, Entry):
            if found is not None and (found.digest, found.target) != (prepared.digest, self._session.target):
                return _conflict(prepared, found)
            is_new = found is None or found.stage is Stage.NEW
            found = await (self._submitter.send(prepared) if found is None or is_new else self._go_on(prepared, found))
        return found

    async def _go_on(self, prepared: PreparedJob, entry: Entry) -> Outcome | Entry | None:
        match entry.stage:
            case Stage.SUBMITTED if entry.owner is None:
                return await self._pick_up(prepared, entry)
            case Stage.SUBMITTED | Stage.SENDING:
                return await self._leave_to_its_owner(prepared)
            case Stage.UNKNOWN:
                return await self._search(prepared, entry)
            case _:
                return outcome_of_entry(prepared.job, entry)

    async def _pick_up(self, prepared: PreparedJob, entry: Entry) -> Outcome | Entry | None:
        picked = await self._session.try_to_record(entry, PickedUp(self._session.owner))
        if picked is None or picked.execution_id is None:
            return await self._session.ledger.look(prepared.job.key)
        self._session.begin()
        try:
            return await self._submitter.wait(prepared, picked, self._client.attach(picked.execution_id, self._target))
        finally:
            self._session.end()

    async def _leave_to_its_owner(self, prepared: PreparedJob) -> Entry | None:
        """Wait until another batch is done with the job, or no more."""
        pause = _FIRST_PAUSE
        with self._counted_as_waiting():
            while True:
                await anyio.sleep(pause)
                entry = await self._session.ledger.look(prepared.job.key)
                is_theirs = entry is not None and entry.stage in (Stage.SENDING, Stage.SUBMITTED)
                if entry is None or not is_theirs or entry.owner is None:
                    return entry
                pause = min(_LONGEST_PAUSE, pause * 1.5)

    @contextmanager
    def _counted_as_waiting(self) -> Iterator[None]:
        """Make room for another job while this one only waits."""
        self.waiting += 1
        self._submitter.on_change()
        try:
            yield
        finally:
            self.waiting -= 1

    async def _search(self, prepared: PreparedJob, entry: Entry) -> Outcome | Entry:
        """Look whether an unknown submit certainly began no run; it never picks one of several that could be it."""
        with suppress(errors.ConnectionFailedError):
            await self._submitter.ask_for_time()
        entry = await self._dated(entry)
        bounds, reason = entry.may_have_begun, _not_provable(entry, self._session.payer)
        reasons = [reason] if reason is not None else []
        if bounds is not None and not reasons:
            with self._counted_as_waiting():
                async with self._searching:  # each may read many pages of rows
                    wanted = Wanted(target=self._target, earliest=bounds[0], latest=bounds[1])
                    found = await self._rows(wanted, entry.account or "")
            if isinstance(found, SubmissionSearch) and found.is_certainly_none:
                new = await self._session.try_to_record(entry, NoneFound(entry.sent_at))
                return new or await self._session.ledger.look(prepared.job.key) or entry
            reasons = _why(found) if isinstance(found, SubmissionSearch) else [found]
        self._submitter.met_unknown(prepared)
        return outcome_of_entry(prepared.job, entry, open_because=reasons)

    async def _dated(self, entry: Entry) -> Entry:
        """Bound a submit whose owner was found gone by somebody who did not know the time."""
        if entry.until is not None and entry.until.is_known:
            return entry
        return await self._session.try_to_record(entry, OwnerGone(self._session.moment())) or entry

    async def _rows(self, wanted: Wanted, account: str) -> SubmissionSearch | str:
        """Search the usage rows, or say why that would prove nothing."""
        if (too_early := wanted.not_yet(self._session.moment())) is not None:
            return too_early
        known = await self._session.ledger.known_runs(self._session.target, account, wanted.earliest - _SPAN)
        try:
            return await self._client.search(attrs.evolve(wanted, known=known))
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


def _conflict(prepared: PreparedJob, entry: Entry) -> NotRun:
    what = "other inputs" if entry.digest != prepared.digest else f"the target {entry.target}"
    error = errors.InvalidArgumentError(
        f"the ledger knows the key {prepared.job.key!r} with {what}: give the job another key, or use another ledger"
    )
    return NotRun(job=prepared.job, reason=NotRunReason.CONFLICT, error=error)
