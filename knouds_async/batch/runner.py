"""A batch's own task: it reads jobs as there is room, starts a task for each, and puts their outcomes in line.

Rule of the file: what fails here ends the batch, and is raised where the outcomes are taken.
"""

from __future__ import annotations

import contextvars
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Final

import anyio
import attrs
from anyio.lowlevel import checkpoint

from knouds_async._io.backend import spawn
from knouds_async.batch.books import LedgerSession
from knouds_async.batch.jobs import Job, Jobs, PreparedJob, Reader
from knouds_async.batch.progress import OnProgress
from knouds_async.batch.sender import JobSubmitter
from knouds_async.batch.untaken import OutcomeQueue
from knouds_async.batch.work import JobRunner
from knouds_async.types import Inputs

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

_LEAST_AHEAD: Final = 100
_CUT: Final = (
    "the batch was cancelled, but not by leaving its block: by what its jobs come from, by on_progress, or by the end "
    "of the event loop. Not every job was read, and not every run was waited for"
)
_A_FEW: Final = 10  # jobs to be read before other tasks have their turn


@attrs.frozen(kw_only=True, eq=False, repr=False)
class BatchPlan:
    """How a batch is to be done."""

    jobs: Jobs
    is_ordered: bool
    max_in_flight: int
    on_progress: OnProgress | None

    @property
    def most_ahead(self) -> int:
        """How many jobs may be read whose outcomes were not taken yet."""
        return self.max_in_flight + max(self.max_in_flight, _LEAST_AHEAD)


class Runner:
    """Runs the jobs of one batch, from `begin` to `end`."""

    def __init__(
        self,
        plan: BatchPlan,
        job_runner: JobRunner,
        submitter: JobSubmitter,
        session: LedgerSession,
        outcomes: OutcomeQueue,
        tell: Callable[[], None],
    ) -> None:
        """See jobs through by `job_runner` and put what comes of them into `outcomes`; `tell` is called after each."""
        self._plan = plan
        self._job_runner = job_runner
        self._submitter = submitter
        self._session = session
        self._outcomes = outcomes
        self._tell = tell
        self._reader = Reader()
        self._active = 0
        self._room_news: anyio.Event | None = None
        self._task: object | None = None

    @property
    def read(self) -> int:
        """How many jobs were read."""
        return self._reader.count

    def begin(self) -> None:
        """Start the task, in the context of the caller's: the source of the jobs is the caller's too."""
        self._scope, self._ended = anyio.CancelScope(), anyio.Event()
        self._task = spawn(self._run, contextvars.copy_context(), ended=self._ended.set)

    async def end(self) -> None:
        """Stop reading and waiting, and come back when submits under way are finished."""
        self._scope.cancel()
        await self._ended.wait()

    def notify(self) -> None:
        """Look for room again."""
        if self._room_news is not None:
            self._room_news.set()
            self._room_news = None

    async def _run(self) -> None:
        try:
            with self._scope:
                async with anyio.create_task_group() as heart:
                    heart.start_soon(self._beat)
                    async with anyio.create_task_group() as tasks:
                        await self._read(tasks)
                    heart.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001  (raised again, where outcomes are taken)
            self._failed(error)
        except BaseException:  # a batch that was cut must not look like one that is over
            self._outcomes.fail(RuntimeError(_CUT))
            raise
        finally:
            self._outcomes.end()
            self._ended.set()

    async def _beat(self) -> None:
        try:
            await self._session.keep_alive()
        except Exception as error:  # noqa: BLE001  (raised again, where outcomes are taken)
            self._failed(error)

    async def _read(self, tasks: TaskGroup) -> None:
        """Read jobs as there is room, and start a task for each; what the source raises comes after the outcomes."""
        source = _Source(self._plan.jobs, self._submitter)
        while await self._has_room():
            try:
                prepared = self._reader.read(await source.next())
            except StopAsyncIteration:
                return
            except Exception as error:  # noqa: BLE001  (raised again, where outcomes are taken)
                self._outcomes.fail(error)
                return
            self._active += 1
            tasks.start_soon(self._work_on, prepared)

    async def _has_room(self) -> bool:
        """Wait until another job may be read; False when none is to be read any more."""
        if self._reader.count % _A_FEW == 0:
            await checkpoint()
        while True:
            if self._submitter.is_stopped:
                return False
            is_full = self._active - self._job_runner.waiting >= self._plan.max_in_flight
            if not is_full and self._reader.count - self._outcomes.taken < self._plan.most_ahead:
                return True
            self._room_news = self._room_news or anyio.Event()
            await self._room_news.wait()

    async def _work_on(self, prepared: PreparedJob) -> None:
        try:
            self._outcomes.put(prepared.number, await self._job_runner.outcome(prepared))
            self._tell()
        except Exception as error:  # noqa: BLE001  (raised again, where outcomes are taken)
            self._failed(error)
        finally:
            self._active -= 1
            self.notify()

    def _failed(self, error: BaseException) -> None:
        """End the batch with an error: the waits end, submits under way are finished."""
        self._outcomes.fail(error)
        self._scope.cancel()


class _Source:
    """Where the jobs come from: an iterable, or an async one."""

    def __init__(self, jobs: Jobs, submitter: JobSubmitter) -> None:
        self._jobs: AsyncIterator[Job | Inputs] | Iterator[Job | Inputs]
        self._jobs = aiter(jobs) if isinstance(jobs, AsyncIterable) else iter(jobs)
        self._submitter = submitter

    async def next(self) -> Job | Inputs:
        """Give the next one, or raise StopAsyncIteration, also when the batch is stopped meanwhile."""
        if isinstance(self._jobs, AsyncIterator):
            with self._submitter.reading():
                return await anext(self._jobs)
            raise StopAsyncIteration
        for item in self._jobs:
            return item
        raise StopAsyncIteration
