"""Runs: the clock they are dated by, one run from start to finish, and the usage listing of all (contract 5, 10)."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Final, Literal

import attrs

__all__ = ["FAILURE", "EmulatedClock", "Run", "UsageListing"]


class EmulatedClock:
    """Turn the caller's monotonic seconds into the service's epoch time; it starts with the first time it is given.

    `epoch`: seconds since 1970, the clock's skew included.
    """

    def __init__(self, epoch: float) -> None:
        self.now = 0.0
        self._epoch = epoch
        self._first: float | None = None
        self._second, self._date = -1, ""

    def advance(self, now: float) -> None:
        """Advance the clock; a time before the last one seen changes nothing."""
        if self._first is None:
            self._first = self.now = now
        elif now > self.now:
            self.now = now

    def elapsed(self, now: float) -> float:
        """Return the seconds since the first time seen."""
        return now - (now if self._first is None else self._first)

    def epoch_of(self, now: float) -> float:
        """Return the service's epoch time at `now`."""
        return self._epoch + self.elapsed(now)

    def epoch_at(self, elapsed: float) -> float:
        """Return the service's epoch time `elapsed` seconds after the first time seen."""
        return self._epoch + elapsed

    def date(self, now: float) -> str:
        """Return the value of the `Date` header, truncated to seconds."""
        second = int(self.epoch_of(now) // 1)
        if second != self._second:
            self._second, self._date = second, formatdate(second, usegmt=True)
        return self._date

    def iso(self, now: float) -> str:
        """Return the time in ISO 8601 with milliseconds and `Z`, as the service writes it in bodies."""
        moment = datetime.fromtimestamp(self.epoch_of(now), UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


FAILURE: Final = "The provider could not complete the run"


@attrs.define(kw_only=True, eq=False)
class Run:
    """One run that the service started, and that was paid for.

    Times are on the clock of the caller, in seconds. `status` is as of the last request the emulator has seen;
    `polls` counts its polls, `seen_ended_at` is when its end was first seen: by a poll, an answer or a delivery.
    `cost` is what the service reports (0 when a trial grant paid). `error` is its message if it failed; `result` None
    is the usual one of its target.
    """

    execution_id: str
    request_id: str
    kind: Literal["workflow", "model"]
    target: str
    inputs: Mapping[str, object]
    model_ids: tuple[str, ...]
    makes: str
    user: str
    is_async: bool
    cost: int
    started: float
    ends: float
    end: Literal["completed", "failed", "cancelled"]
    has_result: bool
    polls: int = 0
    seen_ended_at: float | None = None
    cancel_requested_at: float | None = None
    error: str = FAILURE
    result: object = None
    _clock: EmulatedClock = attrs.field(alias="clock", repr=False)

    @property
    def status(self) -> str:
        """Return the status as of the last request seen."""
        return self.status_at(self._clock.now)

    def status_at(self, now: float) -> str:
        """Return the status at a time."""
        if now >= self.ends:
            return self.end
        return "processing" if self.cancel_requested_at is None else "cancel_requested"

    def finish_at(self, now: float, *, error: str | None, result: object) -> None:
        """Finish now: failed with a message, or completed, with another result than its usual one if given."""
        self.ends, self.result = now, result
        self.end, self.has_result = ("completed", True) if error is None else ("failed", False)
        self.error = error or FAILURE

    def mark_seen(self, now: float) -> None:
        """Record that a client saw the run's status."""
        if self.seen_ended_at is None and now >= self.ends:
            self.seen_ended_at = now

    def is_finished_at(self, now: float) -> bool:
        """Return whether the run has finished by a time."""
        return now >= self.ends

    def request_cancel(self, now: float, *, effective_at: float, late: Literal["completed", "cancelled"]) -> None:
        """Request cancellation; a run that finishes before it takes effect is reported as `late` says."""
        if self.cancel_requested_at is not None:
            return
        self.cancel_requested_at = now
        if effective_at < self.ends:
            self.ends, self.end, self.has_result = effective_at, "cancelled", False
        elif late == "cancelled":
            self.end = "cancelled"


_Filter = tuple[str, str | None, str | None, str | None]


class UsageListing:
    """Rows of all runs in the order they started; a row's status is as old as `lag` (seconds)."""

    def __init__(self, lag: float) -> None:
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
