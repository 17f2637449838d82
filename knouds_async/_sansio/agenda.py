"""Which executions to look at now, and when to look next: the one place where that is decided. Pure.

Rule of the file: `now` is local monotonic seconds, `roll` is uniform in [0, 1); nothing here waits or sends.
O(log n) per event.
"""

from __future__ import annotations

import heapq
import math
from enum import Enum
from typing import Final

import attrs

from knouds_async.config import Backoff
from knouds_async.errors import (
    APIError,
    ConnectionFailedError,
    InvalidResponseError,
    KnoudsError,
    NoAnswerError,
    NotFoundError,
    RateLimitError,
    ServiceError,
)

FRESH: Final = 5.0  # seconds for which a fresh id may answer 404 (contract 5, assumed)
PATIENCE: Final = 5  # looks that may fail in a row before a wait without a deadline ends

_PASSING: Final = (ConnectionFailedError, NoAnswerError, InvalidResponseError, ServiceError, RateLimitError)
_GAVE_UP: Final = (408, 499)  # a proxy's patience ended: that says nothing of the run


class Fault(Enum):
    """What a failed look means for those who wait."""

    NONE = "none"
    """As good as a look that found the run alive."""
    PASSING = "passing"
    """Of the way there, not of the run: `PATIENCE` in a row end a wait that has no deadline."""
    LASTING = "lasting"
    """No later look can do better: every wait ends."""


def fault(error: KnoudsError, *, age: float | None) -> Fault:
    """Judge a failed look; `age`: seconds since the submit, None when it is not known."""
    if isinstance(error, NotFoundError):
        return Fault.NONE if age is not None and age <= FRESH else Fault.LASTING
    gave_up = isinstance(error, APIError) and error.status in _GAVE_UP
    return Fault.PASSING if gave_up or isinstance(error, _PASSING) else Fault.LASTING


@attrs.frozen
class Looks:
    """What is remembered of the looks at one execution, also while nobody waits for it."""

    submitted: float | None = None
    count: int = 0
    last: float = -math.inf


class Agenda:
    """The looks that are due, for all executions that somebody waits for."""

    def __init__(self, schedule: Backoff) -> None:
        """Start with nothing to look at."""
        self._schedule = schedule
        self._watched: dict[str, Looks] = {}
        self._at: dict[str, float] = {}  # when the next look is due; absent while one is under way
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        """Count the executions that are watched."""
        return len(self._watched)

    def watch(self, execution_id: str, looks: Looks, now: float, roll: float) -> None:
        """Begin to watch an execution, where its schedule stands; one of unknown age is looked at at once."""
        self._watched[execution_id] = looks
        is_new = looks.submitted is None and looks.count == 0
        self._plan(execution_id, now if is_new else max(now, self._next(looks, roll)))

    def forget(self, execution_id: str) -> Looks:
        """Stop watching an execution; give back what `watch` takes."""
        self._at.pop(execution_id, None)
        return self._watched.pop(execution_id)

    def due(self, now: float) -> list[str]:
        """Give the executions to look at now; each is then under way until `looked`."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            at, execution_id = heapq.heappop(self._heap)
            if self._at.get(execution_id) == at:
                del self._at[execution_id]
                found.append(execution_id)
        return found

    def next_at(self) -> float:
        """Give when the next look is due; inf when none is planned."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def looked(self, execution_id: str, now: float, roll: float) -> None:
        """Take note of a look that did not find the end, and plan the next."""
        looks = self._watched.get(execution_id)
        if looks is not None:
            self._watched[execution_id] = looks = attrs.evolve(looks, count=looks.count + 1, last=now)
            self._plan(execution_id, self._next(looks, roll))

    def _next(self, looks: Looks, roll: float) -> float:
        pace = self._schedule
        try:
            pause = min(pace.longest, pace.first * float(pace.factor) ** looks.count)
        except OverflowError:
            pause = pace.longest
        since = looks.last if looks.count else (looks.submitted or 0.0)
        return since + pause * (1.0 + pace.jitter * (roll - 0.5) * (looks.count > 0))

    def _plan(self, execution_id: str, at: float) -> None:
        self._at[execution_id] = at
        heapq.heappush(self._heap, (at, execution_id))
