"""Batch: jobs in, outcomes out, while an async with block is open; its own task. And a single job without a batch."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Iterable,
    Iterator,
    Mapping,
    Sized,
)
from contextlib import asynccontextmanager, contextmanager, nullcontext
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Final

import anyio
import attrs

from knouds_async._batch.client import BatchClient
from knouds_async._batch.jobs import (
    Cancelled,
    Completed,
    Failed,
    Job,
    JobOptions,
    Jobs,
    NotRun,
    NotRunReason,
    Outcome,
    PreparedJob,
    Reader,
    Unknown,
)
from knouds_async._batch.ledger import MemoryLedger
from knouds_async._batch.progress import (
    REFRESH_INTERVAL,
    Bar,
    Display,
    OnProgress,
    Progress,
    Reporter,
    bar_for,
    describe_waits,
    estimate_jobs,
    time_left,
)
from knouds_async._batch.worker import Worker
from knouds_async._io.concurrency import Wakeup, spawn, uninterrupted, wait_until_set
from knouds_async._sansio.estimate import Estimate
from knouds_async.config import is_integer
from knouds_async.errors import InvalidArgumentError, KnoudsError, safe_repr
from knouds_async.execution import Execution
from knouds_async.telemetry import fields
from knouds_async.types import Inputs, Target

if TYPE_CHECKING:
    from anyio.abc import TaskGroup


_KINDS: Final = {
    Completed: "completed",
    Failed: "failed",
    Cancelled: "cancelled",
    NotRun: "not_run",
    Unknown: "unknown",
}


def _kind_of(outcome: Outcome) -> str:
    """Return as what an outcome is counted: as unknown only one that is nobody's, and that nobody has decided about."""
    if isinstance(outcome, Unknown) and (outcome.is_abandoned or outcome.is_elsewhere):
        return "abandoned" if outcome.is_abandoned else "elsewhere"
    return _KINDS[type(outcome)]


class OutcomeQueue:
    """Outcomes in line for those who iterate: each goes to one of them, and what ends the batch comes last.

    `is_ordered`: in the order of their jobs.
    """

    def __init__(self, *, is_ordered: bool) -> None:
        self._is_ordered = is_ordered
        self._outcomes: dict[int, Outcome] = {}  # by their places in the line
        self._changed = Wakeup()
        self._failure: BaseException | None = None
        self._is_over = False
        self.counts = dict.fromkeys([*_KINDS.values(), "abandoned", "elsewhere", "from_ledger"], 0)
        self.taken = 0

    def put(self, number: int, outcome: Outcome) -> None:
        """Put the outcome of a job in line; jobs are numbered from 0."""
        self._outcomes[number if self._is_ordered else self.taken + len(self._outcomes)] = outcome
        self.counts[_kind_of(outcome)] += 1
        self.counts["from_ledger"] += getattr(outcome, "from_ledger", False)
        self._changed.notify()

    def fail(self, error: BaseException) -> None:
        """Note what ends the batch; the first error counts, and says of all if money may have been spent."""
        if self._failure is None:
            self._failure = error
        elif isinstance(self._failure, KnoudsError) and isinstance(error, KnoudsError) and error.may_have_run:
            self._failure.may_have_run = True

    def end(self) -> None:
        """Note that no further outcome comes."""
        self._is_over = True
        self._changed.notify()

    async def take(self) -> Outcome:
        """Wait for the next outcome; at the end raise what ended the batch, or StopAsyncIteration."""
        while self.taken not in self._outcomes:
            if self._is_over:
                raise StopAsyncIteration if self._failure is None else self._failure
            await self._changed.wait()
        self.taken += 1
        return self._outcomes.pop(self.taken - 1)

    def __iter__(self) -> Iterator[Outcome]:
        """Return all that nobody has taken."""
        yield from self._outcomes.values()


_MOST_IN_FLIGHT: Final = 2000  # unless a caller says otherwise: 1000 a minute that take two minutes each
_LEAST_AHEAD: Final = 100
_CUT: Final = (
    "the batch was cancelled, but not by leaving its block: by what its jobs come from, by on_progress, by its ledger, "
    "or by the end of the event loop. Not every job was read, and not every run was waited for"
)

logger = logging.getLogger("knouds_async")


class Batch:
    """The outcomes of a batch as they come: `async with ... as outcomes: async for outcome in outcomes: ...`.

    Made by `knouds.workflows.map` and `knouds.models.map`. Jobs are read as there is room, so a million of them, or a
    source that never ends, takes no more memory than those under way. The outcomes end when the jobs do and each has
    its outcome. `stop()` ends the submitting; runs in flight still have their outcomes. Leaving the block early ends it
    too, waits for the answers of submits under way, and leaves the runs alone: they are charged, and a ledger picks
    them up in the next batch. Without one, their ids are logged at WARNING.
    Iterating raises what ends a batch: LedgerError, ClientClosedError, or whatever the source of the jobs raises; the
    outcomes that are there come first.
    """

    def __init__(
        self,
        worker: Worker,
        jobs: Jobs,
        *,
        ordered: bool,
        max_in_flight: int | None,
        on_progress: OnProgress | None,
        progress: bool,
    ) -> None:
        _check(jobs, max_in_flight, on_progress, progress)
        self._worker, self._jobs = worker, jobs
        self._reporter = None if on_progress is None else Reporter(on_progress, lambda: self.progress)
        self._bar = bar_for(Display(lambda: self.progress, self._waits)) if progress else None
        self._max_in_flight = _MOST_IN_FLIGHT if max_in_flight is None else max_in_flight
        self._most_ahead = self._max_in_flight + max(self._max_in_flight, _LEAST_AHEAD)  # read, and not taken yet
        self._reader = Reader(jobs, worker.options.default)
        self._outcomes = OutcomeQueue(is_ordered=ordered)
        self._active = 0  # jobs that have a task
        self._room = Wakeup()
        self._began: float | None = None
        worker.on_change = self._changed

    @property
    def progress(self) -> Progress:
        """How the batch stands."""
        worker = self._worker
        total = len(self._jobs) if isinstance(self._jobs, Sized) else None
        finished = sum(self._outcomes.counts.values()) - self._outcomes.counts["from_ledger"]
        left = None if total is None or self._began is None else total - finished
        return Progress(
            elapsed=0.0 if self._began is None else anyio.current_time() - self._began,
            total=total,
            read=self._reader.count,
            submitted=worker.submitted,
            in_flight=worker.in_flight,
            credits_spent=worker.totals.spent,
            credits_reserved=worker.totals.reserved,
            max_credits=worker.options.max_credits,
            held_for=worker.held_for,
            waiting_for_quota=min(len(worker.in_line), worker.client.limiter.stats(worker.route).waiting),
            seconds_left=None if left is None else time_left(worker, left, self._max_in_flight),
            **self._outcomes.counts,
        )

    def _waits(self) -> Iterator[str]:
        worker, now = self._worker, datetime.now().astimezone()
        return describe_waits(worker.client.limiter.stats, worker.route, worker.in_flight, now)

    def stop(self) -> None:
        """Submit nothing more and read no further job; idempotent.

        Jobs that were read and are still in line come out as NotRun, runs in flight as they finish.
        """
        self._worker.stop(NotRunReason.STOPPED, KnoudsError("the batch was stopped before it was this job's turn"))

    async def estimate(self) -> Estimate:
        """Return what the batch would cost and how long it would take; nothing is submitted, no ledger is written.

        Reads all jobs and a few free answers: the schema, the account, a page of usage rows. Before the batch is
        entered; jobs that can be read once only are used up. Raises what the service refuses.
        """
        if self._began is not None:
            raise RuntimeError("a batch is estimated before it is entered")
        ledger, options = self._worker.ledger, self._worker.options
        reading = getattr(ledger, "reading", None)
        async with nullcontext(ledger.look) if reading is None else reading() as find:
            return await estimate_jobs(self._worker, Reader(self._jobs, options.default), find, self._max_in_flight)

    async def __aenter__(self) -> Batch:
        """Open the ledger, fetch the schema, and begin. Raises LedgerError, or what the service refuses."""
        if self._began is not None:
            raise RuntimeError("a batch is entered once: call map again for another")
        self._began = anyio.current_time()
        self._scope, self._reading, self._ended = anyio.CancelScope(), anyio.CancelScope(), anyio.Event()
        await self._worker.open()
        # In the context of the caller's: the source of the jobs is the caller's too.
        self._task = spawn(self._run, contextvars.copy_context(), ended=self._ended.set)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Submit nothing more and stop waiting; submits under way are finished and written down first."""
        finished = await uninterrupted(self._close)
        if finished.cancellation is not None:
            raise finished.cancellation

    async def _close(self) -> None:
        self._scope.cancel()
        await wait_until_set(self._ended)  # also when the loop ends meanwhile: its jobs are cut then, and end soon
        await self._worker.close()
        self.log_not_taken(self._outcomes)

    def log_not_taken(self, outcomes: Iterable[Outcome]) -> None:
        """Log the runs of outcomes that nobody has, unless a ledger has them."""
        ids = [f"{outcome.job.key}: {run}" for outcome in outcomes if (run := getattr(outcome, "execution_id", None))]
        if ids and isinstance(self._worker.ledger, MemoryLedger):
            message = "a batch without a ledger was left before the outcomes of these runs were taken: %s"
            extra = fields("outcomes_not_taken", target=str(self._worker.target), count=len(ids))
            logger.warning(message, ", ".join(ids), extra=extra)

    def __aiter__(self) -> AsyncIterator[Outcome]:
        """Iterate over itself; several tasks may, and each outcome goes to one of them."""
        return self

    async def __anext__(self) -> Outcome:
        """Return the next outcome. Cancelled: none is lost, the next step gives it."""
        if self._began is None:
            raise RuntimeError("a batch is entered before it is iterated: async with knouds.workflows.map(...) as ...")
        outcome = await self._outcomes.take()
        self._room.notify()
        return outcome

    # Its own task.

    async def _run(self) -> None:
        try:
            with self._ending(), self._scope, self._worker.telemetry.batch(self._worker.target):
                async with self._reporting(), anyio.create_task_group() as tasks:
                    await self._read(tasks)
        finally:
            self._outcomes.end()
            self._ended.set()

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """End the batch with what is raised inside; outcomes are taken until then, and raise it in their turn.

        A cancellation that is not the batch's own would end its task group in silence, and look like its end.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001  (raised again, where outcomes are taken)
            self._fail(error)
        except BaseException:
            if not self._scope.cancel_called:
                self._outcomes.fail(RuntimeError(_CUT))
            raise

    @asynccontextmanager
    async def _reporting(self) -> AsyncIterator[None]:
        """Await what `on_progress` returns, and draw the bar, while the block runs and until all is reported."""
        drawing = anyio.CancelScope()
        async with anyio.create_task_group() as tasks:
            if self._reporter is not None:
                tasks.start_soon(self._await_reports, self._reporter)
            if self._bar is not None:
                tasks.start_soon(self._draw, self._bar, drawing)
            yield
            drawing.cancel()
            if self._reporter is not None:
                self._reporter.end()

    async def _await_reports(self, reporter: Reporter) -> None:
        with self._ending():
            await reporter.run()

    async def _draw(self, bar: Bar, scope: anyio.CancelScope) -> None:
        """Draw the bar until the scope is cancelled; one that cannot be drawn ends no batch."""
        try:
            with scope, bar as draw:
                try:
                    while True:
                        draw()
                        await anyio.sleep(REFRESH_INTERVAL)
                finally:
                    draw()
        except Exception as error:  # noqa: BLE001  (whatever a terminal or a notebook does)
            message = "the progress of a batch can no longer be drawn: %s"
            logger.warning(message, error, extra=fields("progress_not_drawn"))

    async def _read(self, tasks: TaskGroup) -> None:
        """Read jobs as there is room, and start a task for each; what the source raises comes after the outcomes."""
        with self._reading:
            while await self._has_room():
                try:
                    prepared = await anext(self._reader)
                except StopAsyncIteration:
                    return
                except Exception as error:  # noqa: BLE001  (raised again, where outcomes are taken)
                    self._outcomes.fail(error)
                    return
                self._active += 1
                tasks.start_soon(self._work_on, prepared)

    async def _has_room(self) -> bool:
        """Wait until another job may be read; False when none is to be read any more."""
        while not self._worker.is_stopped:
            is_full = self._active - self._worker.waiting >= self._max_in_flight
            if not is_full and self._reader.count - self._outcomes.taken < self._most_ahead:
                return True
            await self._room.wait()
        return False

    async def _work_on(self, prepared: PreparedJob) -> None:
        with self._ending():
            try:
                outcome = await self._worker.run_job(prepared)
                try:
                    self._worker.telemetry.job_finished(_kind_of(outcome))
                    if isinstance(outcome, Completed):
                        outcome = await self._worker.save(outcome)
                finally:  # cut while its files come, or with a meter that fails, it has ended all the same
                    self._outcomes.put(prepared.number, outcome)
                    self._report()
            finally:
                self._active -= 1
                self._room.notify()

    def _fail(self, error: BaseException) -> None:
        """End the batch with an error: the waits end, submits under way are finished."""
        self._outcomes.fail(error)
        self._scope.cancel()

    def _changed(self) -> None:
        if self._worker.is_stopped and self._began is not None:
            self._reading.cancel()
        self._room.notify()
        self._report()

    def _report(self) -> None:
        if self._reporter is not None and self._began is not None:
            with self._ending():  # what it raises is raised where outcomes are taken: here it could cost an id
                self._reporter.report()


_SCHEMA_AGE: Final = 60.0  # seconds for which the jobs that come one by one share a schema


async def run_once(client: BatchClient, target: Target, job: Job | Inputs, options: JobOptions) -> Outcome:
    """Return the outcome of one job; see `Workflows.once`."""
    prepared = Reader(default=options.default).read(job)
    async with Worker(client, target, attrs.evolve(options, max_age=_SCHEMA_AGE)) as worker:
        return await worker.run_job(prepared)


async def submit_once(client: BatchClient, target: Target, inputs: Inputs, key: str, options: JobOptions) -> Execution:
    """Return the handle of the run of a key; see `Workflows.submit`."""
    prepared = Reader(default=options.default).read(Job(key, inputs))
    async with Worker(client, target, attrs.evolve(options, validate=False)) as worker:
        return await worker.submit_job(prepared)


async def gathered(batch: Batch) -> list[Outcome]:
    """Return all outcomes of a batch, in line; failed or cancelled meanwhile, log the runs of those that came."""
    found: list[Outcome] = []
    try:
        async with batch as outcomes:
            async for outcome in outcomes:
                found.append(outcome)  # noqa: PERF401  (what was taken is needed where the rest fails)
    except BaseException:
        batch.log_not_taken(found)
        raise
    return found


def _check(jobs: object, max_in_flight: object, on_progress: object, progress: object) -> None:
    """Raise InvalidArgumentError for an argument that cannot be."""
    if isinstance(jobs, (str, bytes, Mapping)) or not isinstance(jobs, (Iterable, AsyncIterable)):
        raise InvalidArgumentError(f"jobs={safe_repr(jobs)}: must be an iterable or an async iterable of jobs")
    if max_in_flight is not None and not (is_integer(max_in_flight) and max_in_flight >= 1):
        raise InvalidArgumentError(f"max_in_flight={safe_repr(max_in_flight)}: must be an integer above 0, or None")
    if on_progress is not None and not callable(on_progress):
        raise InvalidArgumentError(f"on_progress={safe_repr(on_progress)}: must be a function, async or not, or None")
    if not isinstance(progress, bool):
        raise InvalidArgumentError(
            f"progress={safe_repr(progress)}: must be True or False; a function is `on_progress`"
        )
