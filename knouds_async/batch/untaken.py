"""The outcomes of a batch that are there and were not taken yet, in the order in which they are given out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

import anyio

from knouds_async.batch.outcomes import Cancelled, Completed, Failed, NotRun, Outcome, Unknown
from knouds_async.errors import KnoudsError

_KINDS: Final = {
    Completed: "completed",
    Failed: "failed",
    Cancelled: "cancelled",
    NotRun: "not_run",
    Unknown: "unknown",
}


class OutcomeQueue:
    """Outcomes in line for whoever iterates: each goes to one taker, and what ends the batch comes after them."""

    def __init__(self, *, is_ordered: bool) -> None:
        """Hold nothing; `is_ordered`: give them in the order of their jobs."""
        self._is_ordered = is_ordered
        self._ready: deque[Outcome] = deque()
        self._early: dict[int, Outcome] = {}  # outcomes that are there before those of jobs ahead of them
        self._next = 0
        self._changed: anyio.Event | None = None
        self._failure: BaseException | None = None
        self._is_over = False
        self.counts = dict.fromkeys([*_KINDS.values(), "from_ledger"], 0)
        self.taken = 0

    def put(self, number: int, outcome: Outcome) -> None:
        """Put the outcome of a job in line; jobs are numbered from 0."""
        self.counts[_KINDS[type(outcome)]] += 1
        self.counts["from_ledger"] += getattr(outcome, "from_ledger", False)
        if self._is_ordered:
            self._early[number] = outcome
            while self._next in self._early:
                self._ready.append(self._early.pop(self._next))
                self._next += 1
        else:
            self._ready.append(outcome)
        if self._ready:
            self._notify()

    def fail(self, error: BaseException) -> None:
        """Take note of what ends the batch; the first error counts, and says of all if money may have been spent."""
        if self._failure is None:
            self._failure = error
        elif isinstance(self._failure, KnoudsError) and isinstance(error, KnoudsError) and error.may_have_run:
            self._failure.may_have_run = True

    def end(self) -> None:
        """Take note that no further outcome comes."""
        self._is_over = True
        self._notify()

    async def take(self) -> Outcome:
        """Wait for the next outcome; at the end raise what ended the batch, or StopAsyncIteration."""
        while not self._ready:
            if self._is_over:
                raise StopAsyncIteration if self._failure is None else self._failure
            self._changed = self._changed or anyio.Event()
            await self._changed.wait()
        self.taken += 1
        return self._ready.popleft()

    def __iter__(self) -> Iterator[Outcome]:
        """Give all that nobody has taken."""
        yield from self._ready
        yield from self._early.values()

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None
