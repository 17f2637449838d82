"""Batch: jobs in, outcomes out, while an `async with` block is open. What users hold.

Rule of the file: nothing is done here. The batch's own task begins when the block is entered and is over when the block
is left.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sized
from types import TracebackType

import anyio

from knouds_async._io.uninterrupted import uninterrupted
from knouds_async.batch.books import LedgerSession
from knouds_async.batch.memory import MemoryLedger
from knouds_async.batch.outcomes import NotRun, NotRunReason, Outcome
from knouds_async.batch.progress import Progress
from knouds_async.batch.runner import BatchPlan, Runner
from knouds_async.batch.sender import JobSubmitter
from knouds_async.batch.untaken import OutcomeQueue
from knouds_async.batch.work import JobRunner
from knouds_async.errors import KnoudsError

logger = logging.getLogger("knouds_async")


class Batch:
    """The outcomes of a batch as they come: `async with ... as outcomes: async for outcome in outcomes: ...`.

    Made by `knouds.workflows.map` and `knouds.models.map`. Jobs are read as there is room, so a million of them, or a
    source that never ends, takes no more memory than those under way. The outcomes end when the jobs do and each has
    its outcome. `stop()` ends the submitting; the outcomes of what is out still come. Leaving the block early ends it
    too, waits for the answers of submits under way, and leaves the runs alone: they are charged, and a ledger picks
    them up in the next batch. Without one, their ids are logged at WARNING.
    Iterating raises what ends a batch: LedgerError, ClientClosedError, or whatever the source of the jobs raises; the
    outcomes that are there come first.
    """

    def __init__(
        self,
        plan: BatchPlan,
        job_runner: JobRunner,
        submitter: JobSubmitter,
        session: LedgerSession,
        prepare: Callable[[], Awaitable[None]],
    ) -> None:
        """Made by `map`; `prepare` is awaited when the block is entered."""
        self._plan = plan
        self._submitter = submitter
        self._session = session
        self._prepare = prepare
        self._outcomes = OutcomeQueue(is_ordered=plan.is_ordered)
        self._runner = Runner(plan, job_runner, submitter, session, self._outcomes, self._tell)
        self._began: float | None = None
        submitter.on_change = self._changed

    @property
    def progress(self) -> Progress:
        """How the batch stands."""
        session = self._session
        return Progress(
            elapsed=0.0 if self._began is None else anyio.current_time() - self._began,
            total=len(self._plan.jobs) if isinstance(self._plan.jobs, Sized) else None,
            read=self._runner.read,
            submitted=self._submitter.submitted,
            in_flight=session.out,
            credits_spent=session.totals.spent,
            credits_reserved=session.totals.reserved,
            max_credits=session.cap,
            held_for=self._submitter.held_for,
            **self._outcomes.counts,
        )

    def stop(self) -> None:
        """Submit nothing more and read no further job; idempotent.

        Jobs that were read and are still in line come out as NotRun, what is out comes out when it ends.
        """
        self._submitter.stop(NotRunReason.STOPPED, KnoudsError("the batch was stopped before it was this job's turn"))
        self._runner.notify()

    async def __aenter__(self) -> Batch:
        """Open the ledger, fetch the schema, and begin. Raises LedgerError, or what the service refuses."""
        if self._began is not None:
            raise RuntimeError("a batch is entered once: call map again for another")
        self._began = anyio.current_time()
        try:
            await self._prepare()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._session.close()
            raise
        self._runner.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Submit nothing more and stop waiting; submits under way are finished and written down first."""
        finished = await uninterrupted(self._close)
        if finished.cancellation is not None:
            raise finished.cancellation

    async def _close(self) -> None:
        await self._runner.end()
        await self._session.close()
        ids = [f"{outcome.job.key}: {run}" for outcome in self._outcomes if (run := _id_of(outcome)) is not None]
        if ids and isinstance(self._session.ledger, MemoryLedger):
            said = "a batch without a ledger was left before the outcomes of these runs were taken: %s"
            logger.warning(said, ", ".join(ids))

    def __aiter__(self) -> AsyncIterator[Outcome]:
        """Iterate over itself; several tasks may, and each outcome goes to one of them."""
        return self

    async def __anext__(self) -> Outcome:
        """Give the next outcome. Cancelled: none is lost, the next step gives it."""
        if self._began is None:
            raise RuntimeError("a batch is entered before it is iterated: async with knouds.workflows.map(...) as ...")
        outcome = await self._outcomes.take()
        self._runner.notify()
        return outcome

    def _changed(self) -> None:
        self._runner.notify()
        self._tell()

    def _tell(self) -> None:
        if self._plan.on_progress is not None:
            self._plan.on_progress(self.progress)


def _id_of(outcome: Outcome) -> str | None:
    return None if isinstance(outcome, NotRun) else outcome.execution_id
