"""Jobs that come one by one from a pipe or a terminal, read in a thread of its own, each when it is asked for.

Rule of the file: nothing here may hold up the end of the process: a read that waits for more cannot be interrupted, so
the thread is a daemon, and who waits for a job can be told that there are no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator

from knouds_async.batch.jobs import Job
from knouds_async.types import Inputs


class JobStream(AsyncIterator[Job | Inputs]):
    """The jobs of an iterator that may block, on the event loop that is running; raises what it raises."""

    def __init__(self, jobs: Iterator[Job | Inputs]) -> None:
        """Read nothing before the first job is asked for."""
        self._jobs = jobs
        self._requests = threading.Semaphore(0)
        self._results: asyncio.Queue[Job | Inputs | BaseException] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._read_loop, name="knouds batch reads jobs", daemon=True)

    async def __anext__(self) -> Job | Inputs:
        """Give the next job."""
        if not self._thread.is_alive() and self._thread.ident is None:
            self._thread.start()
        self._requests.release()
        item = await self._results.get()
        if isinstance(item, BaseException):
            self._results.put_nowait(item)  # for who asks again
            raise item
        return item

    def stop(self) -> None:
        """Give no more jobs: what is read from now on stays unread."""
        self._results.put_nowait(StopAsyncIteration())

    def _read_loop(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            while self._requests.acquire():
                self._loop.call_soon_threadsafe(self._results.put_nowait, self._next())

    def _next(self) -> Job | Inputs | BaseException:
        try:
            return next(self._jobs)
        except StopIteration:
            return StopAsyncIteration()
        except Exception as error:  # noqa: BLE001  (raised where the job is waited for)
            return error
