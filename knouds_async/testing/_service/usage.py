"""The usage listing (contract 10), kept sorted for each filter in use so that many runs cost no more than few."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import defaultdict

from knouds_async.testing._service.lifecycle import Run

__all__ = ["UsageListing"]

_Filter = tuple[str, str | None, str | None, str | None]


class UsageListing:
    """Rows of all runs in the order they started; a row's status is as old as `lag` (seconds)."""

    def __init__(self, lag: float) -> None:
        """Start empty."""
        self._lag = lag
        self._runs: list[Run] = []
        self._shown: list[str] = []
        self._due: list[tuple[float, int]] = []
        self._ids: dict[_Filter, list[int]] = {}
        self._models: dict[str, set[str]] = defaultdict(set)

    def add(self, run: Run) -> int:
        """Add a new run and return its index."""
        index = len(self._runs)
        self._runs.append(run)
        self._shown.append("")
        heapq.heappush(self._due, (run.started + self._lag, index))
        heapq.heappush(self._due, (run.ends + self._lag, index))
        return index

    def reschedule(self, index: int) -> None:
        """Reschedule a run whose end has changed."""
        heapq.heappush(self._due, (self._runs[index].ends + self._lag, index))

    def settle(self, now: float) -> None:
        """Update the rows to a time: O(log n) for each run that started or finished since."""
        while self._due and self._due[0][0] <= now:
            at, index = heapq.heappop(self._due)
            run = self._runs[index]
            self._show(index, run.end if run.ends + self._lag <= at else "processing")

    def _show(self, index: int, status: str) -> None:
        run, before = self._runs[index], self._shown[index]
        if status == before:
            return
        self._shown[index] = status
        if not before:
            self._models[run.user].update(run.model_ids)
        for slug in {None, _slug(run)}:
            for model in (None, *run.model_ids):
                if before and (ids := self._ids.get((run.user, before, slug, model))):
                    ids.pop(bisect_left(ids, index))
                for one in (status,) if before else (status, None):
                    if (ids := self._ids.get((run.user, one, slug, model))) is not None:
                        insort(ids, index)

    def _matching(self, wanted: _Filter) -> list[int]:
        """Return the indexes that match a filter; once requested, it is kept up to date."""
        ids = self._ids.get(wanted)
        if ids is None:
            ids = self._ids[wanted] = [index for index in range(len(self._runs)) if self._fits(index, wanted)]
        return ids

    def _fits(self, index: int, wanted: _Filter) -> bool:
        user, status, slug, model = wanted
        run, shown = self._runs[index], self._shown[index]
        if not shown or run.user != user or status not in (None, shown):
            return False
        return slug in (None, _slug(run)) and (model is None or model in run.model_ids)

    def page(
        self, user: str, status: str | None, slug: str | None, model: str | None, *, limit: int, offset: int
    ) -> tuple[list[tuple[int, str, Run]], int]:
        """Return the newest matching rows as (index, status shown, run), and how many match in all."""
        ids = self._matching((user, status, slug, model))
        newest = ids[max(0, len(ids) - offset - limit) : max(0, len(ids) - offset)]
        rows = [(index, self._shown[index], self._runs[index]) for index in reversed(newest)]
        return rows, len(ids)

    def models(self, user: str) -> list[str]:
        """Return the distinct model ids in a user's rows, sorted."""
        return sorted(self._models.get(user, ()))


def _slug(run: Run) -> str | None:
    return run.target if run.kind == "workflow" else None
