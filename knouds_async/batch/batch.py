"""Batch: jobs in, outcomes out, while an `async with` block is open. What users hold.

Rule of the file: one task of its own reads jobs, starts a task for each, and keeps the outcomes until they are taken;
it begins when the block is entered and is over when the block is left.
"""

from __future__ import annotations

import contextvars
import logging
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import Final

import anyio
import attrs
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from knouds_async._io.backend import spawn
from knouds_async._io.uninterrupted import uninterrupted
from knouds_async.batch.books import Books
from knouds_async.batch.jobs import Asked, Job, Reader
from knouds_async.batch.memory import MemoryLedger
from knouds_async.batch.outcomes import Cancelled, Completed, Failed, NotRun, NotRunReason, Outcome, Unknown
from knouds_async.batch.progress import Progress
from knouds_async.batch.sender import Sender
from knouds_async.batch.work import Work
from knouds_async.errors import KnoudsError
from knouds_async.types import Inputs

logger = logging.getLogger("knouds_async")

Jobs = Iterable[Job | Inputs] | AsyncIterable[Job | Inputs]
OnProgress = Callable[[Progress], object]

_LEAST_AHEAD: Final = 100
_A_FEW: Final = 10  # jobs to be read before other tasks have their turn
_KINDS: Final = {
    Completed: "completed",
    Failed: "failed",
    Cancelled: "cancelled",
    NotRun: "not_run",
    Unknown: "unknown",
}


@attrs.frozen(kw_only=True)
class Plan:
    """How a batch is to be done."""

    jobs: Jobs
    is_ordered: bool
    max_in_flight: int
    on_progress: OnProgress | None

    @property
    def most_ahead(self) -> int:
        """How many jobs may be read whose outcomes were not taken yet."""
        return self.max_in_flight + max(self.max_in_flight, _LEAST_AHEAD)


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
        self, plan: Plan, work: Work, sender: Sender, books: Books, prepare: Callable[[], Awaitable[None]]
    ) -> None:
        """Made by `map`; `prepare` is awaited when the block is entered."""
        self._plan = plan
        self._work = work
        self._sender = sender
        self._books = books
        self._prepare = prepare
        sender.on_change = self._changed
        self._reader = Reader()
        self._counts = dict.fromkeys([*_KINDS.values(), "from_ledger"], 0)
        self._ready: deque[Outcome] = deque()
        self._waiting: dict[int, Outcome] = {}  # outcomes that are there before those of jobs ahead of them
        self._next = 0
        self._taken = 0
        self._active = 0
        self._began: float | None = None
        self._failure: BaseException | None = None
        self._scope: anyio.CancelScope | None = None
        self._task: object | None = None
        self._is_over = False

    @property
    def progress(self) -> Progress:
        """How the batch stands."""
        books = self._books
        return Progress(
            elapsed=0.0 if self._began is None else anyio.current_time() - self._began,
            total=len(self._plan.jobs) if isinstance(self._plan.jobs, Sized) else None,
            read=self._reader.count,
            submitted=self._sender.submitted,
            in_flight=books.out,
            credits_spent=books.totals.spent,
            credits_reserved=books.totals.reserved,
            max_credits=books.cap,
            **self._counts,
        )

    def stop(self) -> None:
        """Submit nothing more and read no further job; idempotent.

        Jobs that were read and are still in line come out as NotRun, what is out comes out when it ends.
        """
        self._sender.stop(NotRunReason.STOPPED, KnoudsError("the batch was stopped before it was this job's turn"))
        self._stir()

    async def __aenter__(self) -> Batch:
        """Open the ledger, fetch the schema, and begin. Raises LedgerError, or what the service refuses."""
        if self._began is not None:
            raise RuntimeError("a batch is entered once: call map again for another")
        self._began, self._scope = anyio.current_time(), anyio.CancelScope()
        self._outcome_news, self._room_news, self._ended = anyio.Event(), anyio.Event(), anyio.Event()
        try:
            await self._prepare()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._books.close()
            raise
        context = contextvars.copy_context()  # for the source of the jobs is the caller's
        self._task = spawn(self._run, context, ended=self._ended.set)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Submit nothing more and stop waiting; submits under way are finished and written down first."""
        finished = await uninterrupted(self._close)
        if finished.cancellation is not None:
            raise finished.cancellation

    async def _close(self) -> None:
        if self._scope is not None:
            self._scope.cancel()
        await self._ended.wait()
        await self._books.close()
        untaken = [outcome for outcome in (*self._ready, *self._waiting.values()) if _id_of(outcome) is not None]
        if untaken and isinstance(self._books.ledger, MemoryLedger):
            ids = ", ".join(f"{outcome.job.key}: {_id_of(outcome)}" for outcome in untaken)
            logger.warning("a batch without a ledger was left before the outcomes of these runs were taken: %s", ids)

    def __aiter__(self) -> AsyncIterator[Outcome]:
        """Iterate over itself; several tasks may, and each outcome goes to one of them."""
        return self

    async def __anext__(self) -> Outcome:
        """Give the next outcome. Cancelled: none is lost, the next step gives it."""
        if self._began is None:
            raise RuntimeError("a batch is entered before it is iterated: async with knouds.workflows.map(...) as ...")
        while not self._ready:
            if self._is_over:
                if self._failure is not None:
                    raise self._failure
                raise StopAsyncIteration
            await self._outcome_news.wait()
        self._taken += 1
        self._stir()
        return self._ready.popleft()

    # Its own task.

    async def _run(self) -> None:
        try:
            assert self._scope is not None  # noqa: S101  (it was made when the block was entered)
            with self._scope:
                async with anyio.create_task_group() as heart:
                    heart.start_soon(self._beat)
                    async with anyio.create_task_group() as tasks:
                        await self._read(tasks)
                    heart.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001  (raised again, by `__anext__`)
            self._failed(error)
        finally:
            self._is_over = True
            self._outcome_news.set()
            self._ended.set()

    async def _beat(self) -> None:
        try:
            await self._books.keep_alive()
        except Exception as error:  # noqa: BLE001  (raised again, by `__anext__`)
            self._failed(error)

    async def _read(self, tasks: TaskGroup) -> None:
        """Read jobs as there is room, and start a task for each; what the source raises comes after the outcomes."""
        source = _Source(self._plan.jobs, self._sender)
        while await self._has_room():
            try:
                asked = self._reader.read(await source.next())
            except StopAsyncIteration:
                return
            except Exception as error:  # noqa: BLE001  (raised again, by `__anext__`)
                self._failure = error
                return
            self._active += 1
            tasks.start_soon(self._work_on, asked)

    async def _has_room(self) -> bool:
        """Wait until another job may be read; False when none is to be read any more."""
        if self._reader.count % _A_FEW == 0:
            await checkpoint()
        while True:
            halt = self._books.halt
            if halt is not None and halt.reason is NotRunReason.STOPPED:
                return False
            is_full = self._active - self._work.aside >= self._plan.max_in_flight
            if not is_full and self._reader.count - self._taken < self._plan.most_ahead:
                return True
            await self._room_news.wait()

    async def _work_on(self, asked: Asked) -> None:
        try:
            self._deliver(asked, await self._work.outcome(asked))
        except Exception as error:  # noqa: BLE001  (raised again, by `__anext__`)
            self._failed(error)
        finally:
            self._active -= 1
            self._stir()

    def _deliver(self, asked: Asked, outcome: Outcome) -> None:
        self._counts[_KINDS[type(outcome)]] += 1
        self._counts["from_ledger"] += getattr(outcome, "from_ledger", False)
        if self._plan.is_ordered:
            self._waiting[asked.number] = outcome
            while self._next in self._waiting:
                self._ready.append(self._waiting.pop(self._next))
                self._next += 1
        else:
            self._ready.append(outcome)
        if self._ready:
            self._outcome_news.set()
            self._outcome_news = anyio.Event()
        self._tell()

    def _changed(self) -> None:
        self._stir()
        self._tell()

    def _tell(self) -> None:
        if self._plan.on_progress is not None:
            self._plan.on_progress(self.progress)

    def _failed(self, error: BaseException) -> None:
        """End the batch with an error: the waits end, submits under way are finished."""
        if self._failure is None:
            self._failure = error
        if self._scope is not None:
            self._scope.cancel()

    def _stir(self) -> None:
        """Have the reader look for room again."""
        if self._began is not None:
            self._room_news.set()
            self._room_news = anyio.Event()


def _id_of(outcome: Outcome) -> str | None:
    return None if isinstance(outcome, NotRun) else outcome.execution_id


class _Source:
    """Where the jobs come from: an iterable, or an async one."""

    def __init__(self, jobs: Jobs, sender: Sender) -> None:
        self._jobs: AsyncIterator[Job | Inputs] | Iterator[Job | Inputs]
        self._jobs = aiter(jobs) if isinstance(jobs, AsyncIterable) else iter(jobs)
        self._sender = sender

    async def next(self) -> Job | Inputs:
        """Give the next one, or raise StopAsyncIteration, also when the batch is stopped meanwhile."""
        if isinstance(self._jobs, AsyncIterator):
            with self._sender.reading():
                return await anext(self._jobs)
            raise StopAsyncIteration
        for item in self._jobs:
            return item
        raise StopAsyncIteration
