"""Which due runs get the next requests: those reported finished first, then the likeliest to have finished. Pure.

While there are plenty of requests, all due runs are polled. When there are more runs than requests left in the window,
the rest is spread over the rest of the window: one that is spent at once finds few ends.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final

from knouds_async._sansio.listings import Quota, QuotaSpreader
from knouds_async._sansio.tracked_run import PollStage, TrackedRun

_RANKING_HOLDS: Final = 0.25  # seconds for which a ranking holds
_RANKING_PER_RUN: Final = 0.001  # or for each run that was ranked

ExpectedDelay = Callable[[TrackedRun], float]
"""For how long a run's end is expected to have gone unnoticed, in seconds."""


class ReadyQueue:
    """The runs that are due for a poll and wait for a request."""

    def __init__(self) -> None:
        self._reported: deque[TrackedRun] = deque()
        self._candidates: dict[str, TrackedRun] = {}
        self._ranked: list[str] = []
        self._ranked_until = -math.inf
        self._spread = QuotaSpreader()

    @property
    def has_reported(self) -> bool:
        """Whether a run that was reported finished is waiting."""
        while self._reported and self._reported[0].stage is not PollStage.REPORTED:
            self._reported.popleft()
        return bool(self._reported)

    @property
    def candidate_count(self) -> int:
        """How many runs that may have finished are waiting."""
        return len(self._candidates)

    @property
    def has_candidates(self) -> bool:
        """Whether a run that may have finished is waiting."""
        return bool(self._candidates)

    def add_reported(self, run: TrackedRun) -> None:
        """Add a run that was reported finished."""
        self._reported.append(run)

    def add(self, run: TrackedRun) -> None:
        """Add a run that is due for a poll."""
        run.stage = PollStage.READY
        self._candidates[run.execution_id] = run

    def discard(self, run: TrackedRun) -> None:
        """Remove a run that is no longer due."""
        self._candidates.pop(run.execution_id, None)

    def take_reported(self, available: float) -> list[TrackedRun]:
        """Return runs that were reported finished, as many as may be polled now."""
        taken: list[TrackedRun] = []
        while len(taken) < available and self.has_reported:
            taken.append(self._reported.popleft())
            taken[-1].stage = PollStage.IN_FLIGHT
        return taken

    def take_all(self, available: float = math.inf) -> list[TrackedRun]:
        """Return all due runs, or the first of them."""
        taken = list(self._candidates.values())
        return self._sent(taken if len(taken) <= available else taken[: int(available)])

    def take_ranked(self, now: float, budget: float, quota: Quota, delay: ExpectedDelay) -> list[TrackedRun]:
        """Return the runs to poll now if `budget` requests are to last until the window ends."""
        taken: list[TrackedRun] = []
        for _ in range(min(self._spread.take(now, budget, quota.resets_in), len(self._candidates))):
            taken += self._sent([self._pop_ranked(now, delay)])
        return taken

    def _pop_ranked(self, now: float, delay: ExpectedDelay) -> TrackedRun:
        """Return the run whose end is expected to have gone unnoticed for longest."""
        while True:
            if not self._ranked or now >= self._ranked_until:
                self._ranked = sorted(self._candidates, key=lambda execution_id: delay(self._candidates[execution_id]))
                self._ranked_until = now + max(_RANKING_HOLDS, _RANKING_PER_RUN * len(self._ranked))
            run = self._candidates.get(self._ranked.pop())
            if run is not None:
                return run

    def next_ranked_at(self, now: float, budget: float, quota: Quota) -> float:
        """Return when `take_ranked` returns the next."""
        return self._spread.next_at(now, budget, quota.resets_in)

    def _sent(self, runs: list[TrackedRun]) -> list[TrackedRun]:
        for run in runs:
            run.stage = PollStage.IN_FLIGHT
            del self._candidates[run.execution_id]
        return runs
