"""The runs that somebody waits for: by id, by request id, and in a heap of due times. Pure.

O(log n) for each change.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

from knouds_async._sansio.crowd import AgeHistogram
from knouds_async._sansio.tracked_run import PollStage, TrackedRun


class RunIndex:
    """The tracked runs; `ages` counts those that nothing has reported finished."""

    def __init__(self) -> None:
        self.ages = AgeHistogram()
        self._runs: dict[str, TrackedRun] = {}
        self._by_request: dict[str, TrackedRun | None] = {}  # None: more than one run has it
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        """Return the number of runs."""
        return len(self._runs)

    def __iter__(self) -> Iterator[TrackedRun]:
        """Iterate over all runs."""
        return iter(self._runs.values())

    def get(self, execution_id: str) -> TrackedRun | None:
        """Return a run, None when it is not tracked."""
        return self._runs.get(execution_id)

    def add(self, run: TrackedRun) -> None:
        """Add a run."""
        self._runs[run.execution_id] = run
        self.ages.add(run.duration_key, run.started_at)
        self._index(run)

    def remove(self, execution_id: str) -> TrackedRun | None:
        """Remove a run; it can be added again."""
        run = self._runs.pop(execution_id, None)
        if run is None:
            return None
        if not run.is_reported:
            self.ages.remove(run.duration_key, run.started_at)
        if run.request_id is not None and self._by_request.get(run.request_id) is run:
            del self._by_request[run.request_id]
        run.stage, run.is_reported, run.deadlines = PollStage.IDLE, False, None
        return run

    # The request that a run is listed by.

    def set_request_id(self, run: TrackedRun, request_id: str) -> None:
        """Set it, unless it is known already."""
        if run.request_id is None:
            run.request_id = request_id
            if run.execution_id in self._runs:
                self._index(run)

    def _index(self, run: TrackedRun) -> None:
        request = run.request_id
        if request is not None:
            known = self._by_request.get(request, run)
            self._by_request[request] = run if known is run else None

    def by_request_id(self, request_id: str) -> TrackedRun | None:
        """Return the run listed under a request id; None when there is none, or more than one."""
        return self._by_request.get(request_id)

    def is_listable(self, run: TrackedRun) -> bool:
        """Return whether a listing can show this run and no other under its request id."""
        return run.request_id is not None and self._by_request.get(run.request_id) is run

    def listable_count(self) -> int:
        """Return the number of request ids that listings can show."""
        return len(self._by_request)

    # What is counted of it.

    def reset_start(self, run: TrackedRun, key: str, submitted_at: float) -> None:
        """Change from when a run's age is counted, and under which duration key."""
        is_counted = run.execution_id in self._runs and not run.is_reported
        if is_counted:
            self.ages.remove(run.duration_key, run.started_at)
        run.duration_key = key
        run.submitted_at = run.started_at = run.counted_until = submitted_at
        if is_counted:
            self.ages.add(run.duration_key, run.started_at)

    def mark_reported(self, run: TrackedRun) -> None:
        """Mark a run as reported finished."""
        run.is_reported, run.stage = True, PollStage.REPORTED
        self.ages.remove(run.duration_key, run.started_at)

    def unmark_reported(self, run: TrackedRun) -> None:
        """Mark a run as running after all."""
        run.is_reported = False
        self.ages.add(run.duration_key, run.started_at)

    # When to think of it.

    def schedule(self, run: TrackedRun, due_at: float) -> None:
        """Schedule a run; what was scheduled for it before is void."""
        run.stage, run.due_at = PollStage.SCHEDULED, due_at
        heapq.heappush(self._heap, (due_at, run.execution_id))

    def rebuild_heap(self) -> None:
        """Rebuild the heap after the due times of many runs have changed."""
        self._heap = [(run.due_at, run.execution_id) for run in self if run.stage is PollStage.SCHEDULED]
        heapq.heapify(self._heap)

    def next_due_at(self) -> float:
        """Return when the next run is due; inf when none is scheduled."""
        while self._heap:
            due_at, execution_id = self._heap[0]
            run = self._runs.get(execution_id)
            if run is not None and run.stage is PollStage.SCHEDULED and run.due_at == due_at:
                return due_at
            heapq.heappop(self._heap)
        return math.inf

    def pop_due(self, now: float) -> TrackedRun | None:
        """Return a run that is due now, None when there is none."""
        if self.next_due_at() > now or not self._heap:
            return None
        return self._runs[heapq.heappop(self._heap)[1]]
