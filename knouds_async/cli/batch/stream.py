"""Jobs from a pipe or a terminal, read in a thread of their own, each when it is requested.

A blocking read cannot be interrupted, so the thread is a daemon, and `stop` wakes whoever waits for a job.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator

from knouds_async.batch.jobs import Job
from knouds_async.types import Inputs


class JobStream(AsyncIterator[Job | Inputs]):
    """Iterates asynchronously over an iterator that may block; raises what it raises."""

    def __init__(self, jobs: Iterator[Job | Inputs]) -> None:
        """Read nothing before the first job is requested."""
        self._jobs = jobs
        self._requests = threading.Semaphore(0)
        self._results: asyncio.Queue[Job | Inputs | BaseException] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._read_loop, name="knouds batch reads jobs", daemon=True)

    async def __anext__(self) -> Job | Inputs:
        """Return the next job."""
        if not self._thread.is_alive() and self._thread.ident is None:
            self._thread.start()
        self._requests.release()
        item = await self._results.get()
        if isinstance(item, BaseException):
            self._results.put_nowait(item)  # for the next call
            raise item
        return item

    def stop(self) -> None:
        """End the iteration: jobs that were not read yet stay unread."""
        self._results.put_nowait(StopAsyncIteration())

    def _read_loop(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            while self._requests.acquire():
                self._loop.call_soon_threadsafe(self._results.put_nowait, self._next())

    def _next(self) -> Job | Inputs | BaseException:
        try:
            return next(self._jobs)
        except StopIteration:
            return StopAsyncIteration()
        except Exception as error:  # noqa: BLE001  (raised by `__anext__`)
            return error
