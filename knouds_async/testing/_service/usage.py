"""The usage listing (contract 10), kept sorted for each filter in use so that many runs cost no more than few."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import defaultdict

from knouds_async.testing._service.lifecycle import Run

__all__ = ["Usage"]

_Filter = tuple[str, str | None, str | None, str | None]


class Usage:
    """Rows of all runs in the order they began; a row's status is as old as `lag` (seconds)."""

    def __init__(self, lag: float) -> None:
        """Start empty."""
        self._lag = lag
        self._runs: list[Run] = []
        self._shown: list[str] = []
        self._due: list[tuple[float, int]] = []
        self._ids: dict[_Filter, list[int]] = {}
        self._models: dict[str, set[str]] = defaultdict(set)

    def add(self, run: Run) -> int:
        """Take a new run in and give its place (from 0)."""
        place = len(self._runs)
        self._runs.append(run)
        self._shown.append("")
        heapq.heappush(self._due, (run.started + self._lag, place))
        heapq.heappush(self._due, (run.ends + self._lag, place))
        return place

    def reschedule(self, place: int) -> None:
        """Take note that a run's end has moved."""
        heapq.heappush(self._due, (self._runs[place].ends + self._lag, place))

    def settle(self, now: float) -> None:
        """Bring the rows up to a time: O(log n) for each run that began or ended since."""
        while self._due and self._due[0][0] <= now:
            at, place = heapq.heappop(self._due)
            run = self._runs[place]
            self._show(place, run.end if run.ends + self._lag <= at else "processing")

    def _show(self, place: int, status: str) -> None:
        run, before = self._runs[place], self._shown[place]
        if status == before:
            return
        self._shown[place] = status
        if not before:
            self._models[run.user].update(run.model_ids)
        for slug in {None, _slug(run)}:
            for model in (None, *run.model_ids):
                if before and (ids := self._ids.get((run.user, before, slug, model))):
                    ids.pop(bisect_left(ids, place))
                for one in (status,) if before else (status, None):
                    if (ids := self._ids.get((run.user, one, slug, model))) is not None:
                        insort(ids, place)

    def _matching(self, wanted: _Filter) -> list[int]:
        """Give the places that fit a filter; one that was asked for once is kept up to date from then on."""
        ids = self._ids.get(wanted)
        if ids is None:
            ids = self._ids[wanted] = [place for place in range(len(self._runs)) if self._fits(place, wanted)]
        return ids

    def _fits(self, place: int, wanted: _Filter) -> bool:
        user, status, slug, model = wanted
        run, shown = self._runs[place], self._shown[place]
        if not shown or run.user != user or status not in (None, shown):
            return False
        return slug in (None, _slug(run)) and (model is None or model in run.model_ids)

    def page(
        self, user: str, status: str | None, slug: str | None, model: str | None, *, limit: int, offset: int
    ) -> tuple[list[tuple[int, str, Run]], int]:
        """Give the newest rows that fit as (place, status shown, run), and how many fit in all."""
        ids = self._matching((user, status, slug, model))
        newest = ids[max(0, len(ids) - offset - limit) : max(0, len(ids) - offset)]
        rows = [(place, self._shown[place], self._runs[place]) for place in reversed(newest)]
        return rows, len(ids)

    def models(self, user: str) -> list[str]:
        """Give the distinct model ids in a user's rows, sorted."""
        return sorted(self._models.get(user, ()))


def _slug(run: Run) -> str | None:
    return run.target if run.kind == "workflow" else None
