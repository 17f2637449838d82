"""What webhook deliveries say, and how far to rely on them: early ones, and the net of looks under lost ones. Pure.

Rule of the file: `now` is local monotonic seconds. A run whose end a delivery is expected to tell is looked at only
once it is overdue, and then at ever longer steps; what is lost is noticed, later than by looking often (contract 11).
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from typing import Final

import attrs

from knouds_async.types import ExecutionState, Status

FIRST: Final = 90.0
"""Seconds after which a run of a target that was never seen to end is looked at."""

_OVERDUE: Final = 1.5  # times the longest of the ends seen lately, and the factor between two looks
_SHORTEST: Final = 10.0
_LONGEST: Final = 600.0
_LATELY: Final = 32  # ends that are remembered of each target
_JUDGED: Final = 50  # ends over which the deliveries are judged, and the fewest that make a judgement
_FEWEST: Final = 3
_TRUSTED: Final = 0.4  # the part of them that deliveries must have told
_ENOUGH: Final = 8  # ends of a target by which runs are judged that were out before any was known
_MOST_TARGETS: Final = 1000
_MOST_EARLY: Final = 1000


CONTRADICTORY: Final = "contradictory"
"""The status of a delivery whose event and status name different ends."""


def tells_end(state: ExecutionState) -> bool:
    """Tell whether a delivery says that a run is over, however much it says of that."""
    return state.is_final or state.status == CONTRADICTORY


def is_whole(state: ExecutionState) -> bool:
    """Tell whether a state says all there is to know of how a run ended, so that no look is needed."""
    match state.status:
        case Status.COMPLETED:
            return state.result is not None
        case Status.FAILED:
            return state.error is not None
        case _:
            return state.status == Status.CANCELLED


class Early:
    """The latest deliveries, for those who come to wait only later; bounded."""

    def __init__(self, most: int = _MOST_EARLY) -> None:
        """Remember nothing yet."""
        self._most = most
        self._states: OrderedDict[str, ExecutionState] = OrderedDict()

    def __len__(self) -> int:
        """Count the runs that are remembered."""
        return len(self._states)

    def get(self, execution_id: str) -> ExecutionState | None:
        """Give what was delivered of a run."""
        return self._states.get(execution_id)

    def keep(self, state: ExecutionState) -> bool:
        """Remember a delivery; a final state stays as it is. Say whether it told of an end for the first time."""
        known = self._states.get(state.execution_id)
        if known is not None and known.is_final and (is_whole(known) or not is_whole(state)):
            return False
        self._states[state.execution_id] = state
        self._states.move_to_end(state.execution_id)
        if len(self._states) > self._most:
            self._states.popitem(last=False)
        return state.is_final and (known is None or not known.is_final)


@attrs.frozen
class _Held:
    """A run that is held back, until `at`; `since`: when it was submitted, None once it has been overdue."""

    at: float
    target: str
    since: float | None


class Net:
    """When runs are looked at whose ends deliveries are expected to tell, and whether to expect that at all."""

    def __init__(self) -> None:
        """Expect no deliveries."""
        self.is_expected = False
        self._told: deque[bool] = deque(maxlen=_JUDGED)  # of each end: whether a delivery told it
        self._ages: OrderedDict[str, deque[float]] = OrderedDict()
        self._held: dict[str, _Held] = {}
        self._heap: list[tuple[float, str]] = []

    @property
    def is_trusted(self) -> bool:
        """Whether deliveries are expected and come, for the most part."""
        seen = len(self._told)
        return self.is_expected and (seen < _FEWEST or sum(self._told) >= _TRUSTED * seen)

    @property
    def has_caught(self) -> bool:
        """Whether deliveries were seen to come lately."""
        return self.is_trusted and any(self._told)

    def hold(self, execution_id: str, target: str, *, since: float, now: float) -> None:
        """Hold a run back until it is overdue; `since`: when it was submitted, or first seen."""
        age, usual = now - since, self._usual(target)
        at = since + usual if age < usual else now + max(_SHORTEST, (_OVERDUE - 1) * age)
        self._put(execution_id, _Held(min(at, now + _LONGEST), target, since if age < usual else None))

    def _usual(self, target: str) -> float:
        """Give the seconds after which a run of a target is overdue, by the ends seen lately."""
        ages = self._ages.get(target)
        return FIRST if ages is None else max(_SHORTEST, _OVERDUE * max(ages))

    def _put(self, execution_id: str, held: _Held) -> None:
        self._held[execution_id] = held
        heapq.heappush(self._heap, (held.at, execution_id))

    def holds(self, execution_id: str) -> bool:
        """Tell whether a run is held back."""
        return execution_id in self._held

    def let_go(self, execution_id: str) -> bool:
        """Hold a run no longer; say whether it was held."""
        return self._held.pop(execution_id, None) is not None

    def due(self, now: float) -> list[str]:
        """Give the runs that are overdue, all when deliveries fail to come; they are held no longer."""
        if not self.is_trusted:
            found = list(self._held)
            self._held.clear()
            return found
        found = []
        while self.next_at() <= now:
            _, execution_id = heapq.heappop(self._heap)
            held = self._held.pop(execution_id)
            if held.since is not None and (at := held.since + self._usual(held.target)) > now:
                self._put(execution_id, attrs.evolve(held, at=min(at, now + _LONGEST)))  # ends came later meanwhile
            else:
                found.append(execution_id)
        return found

    def next_at(self) -> float:
        """Give when the next run is overdue; inf when none is held."""
        while self._heap:
            at, execution_id = self._heap[0]
            held = self._held.get(execution_id)
            if held is not None and held.at == at:
                return at
            heapq.heappop(self._heap)
        return math.inf

    def told(self, target: str, *, age: float | None) -> None:
        """Take note that a delivery told an end; `age`: how many seconds such runs take, where it says that."""
        self._told.append(True)
        if age is None:
            return
        ages = self._ages.setdefault(target, deque(maxlen=_LATELY))
        ages.append(age)
        self._ages.move_to_end(target)
        if len(ages) == _ENOUGH:
            self._judge_anew(target)
        if len(self._ages) > _MOST_TARGETS:
            self._ages.popitem(last=False)

    def _judge_anew(self, target: str) -> None:
        """Hold runs no longer than such runs take that were held before it was known how long that is."""
        usual = self._usual(target)
        for execution_id, held in list(self._held.items()):
            if held.target == target and held.since is not None and held.since + usual < held.at:
                self._put(execution_id, attrs.evolve(held, at=held.since + usual))

    def missed(self) -> None:
        """Take note that a look found an end which no delivery had told."""
        self._told.append(False)
