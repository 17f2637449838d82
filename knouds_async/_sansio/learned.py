"""The durations learned of all targets: bounded, and as a plain dict to keep. Pure.

A duration key stands for one target, or for those of its runs with about the same expected duration.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final

from knouds_async._sansio.course import TrackedRun
from knouds_async._sansio.durations import EDGES, Durations, Span
from knouds_async.errors import InvalidArgumentError
from knouds_async.types import Target

CANCEL_KEY: Final = "(a cancel)"
"""The key of runs that were asked to cancel: how long a cancel takes."""

_CANCEL_DURATION: Final = 3.0  # seconds that one is expected to take
_MAX_KEYS: Final = 1000
_MAX_EXPECTED: Final = 1e9  # seconds
_VAGUE: Final = 30.0  # seconds within which an end has to be known
_LONGEST: Final = 60.0
_FEW: Final = 3


def duration_key(target: Target | None, expected: float | None) -> str:
    """Return the key of a run; runs of about the same expected duration (12 %) share one."""
    name = "" if target is None else str(target)
    if expected is None:
        return name
    around = EDGES[bisect_right(EDGES, expected) - 1]
    return f"{name} expected {around:.3g} s".lstrip()


class LearnedDurations:
    """The duration models of the latest thousand keys."""

    def __init__(self, max_keys: int = _MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._cold = Durations()
        self._by_key: OrderedDict[str, Durations] = OrderedDict()
        self._first_polls: dict[tuple[str, float], tuple[Durations, float]] = {}

    def durations_for(self, key: str, expected: float | None = None) -> Durations:
        """Return the durations of a key; a new one starts around `expected` seconds."""
        known = self._by_key.get(key)
        if known is None:
            if key == CANCEL_KEY:
                expected = _CANCEL_DURATION
            if expected is None:
                return self._cold
            known = Durations(expected=expected)
            self._keep(key, known)
        return known

    def is_new(self, key: str) -> bool:
        """Return whether hardly any run of a key was seen to finish."""
        return sum(self.durations_for(key).ends) < _FEW

    def next_poll(self, key: str, age: float, cost: float) -> float:
        """Return the age at which to poll a run of a key last seen running at `age`, 0: not yet."""
        durations = self.durations_for(key)
        if age > 0:
            return durations.next_poll(age, cost, longest=min(_LONGEST, max(10.0, age / 4)))
        known = self._first_polls.get((key, cost))
        if known is None or known[0] is not durations:  # many runs ask for the same
            if len(self._first_polls) >= self._max_keys:
                self._first_polls.clear()
            known = self._first_polls[key, cost] = durations, durations.next_poll(0.0, cost)
        return known[1]

    def observe_running(self, runs: Iterable[TrackedRun]) -> None:
        """Count the time of running runs, as far as it was seen and not counted yet."""
        spans: dict[str, list[Span]] = {}
        for run in runs:
            seen = run.last_running_at
            if seen > run.counted_until and run.submitted_at is not None:
                spans.setdefault(run.duration_key, []).append((run.age(run.counted_until), run.age(seen)))
                run.counted_until = seen
        for key, new_spans in spans.items():
            self._keep(key, self.durations_for(key).observe_all_running(new_spans))

    def observe_finished(self, run: TrackedRun, now: float, duration: float | None) -> None:
        """Learn from a run that has finished by now; `duration`: seconds, as the service gave them.

        That is used if it fits what was seen. An end that may have been at almost any time teaches nothing.
        """
        if run.submitted_at is None:
            return
        hi = run.age(now)
        lo = min(run.age(run.last_running_at), hi)
        if duration is not None and lo <= duration <= hi:
            lo = hi = duration
        if hi - lo <= max(_VAGUE, hi / 2):
            self.observe_end(run.duration_key, lo, hi, counted_until=run.age(run.counted_until))

    def observe_end(self, key: str, lo: float, hi: float, *, counted_until: float = 0.0) -> None:
        """Count a run that was running at age `lo` and finished at `hi`, counted before up to `counted_until`."""
        self._keep(key, self.durations_for(key).observe_end(lo, hi, counted_until=counted_until))

    def _keep(self, key: str, durations: Durations) -> None:
        self._by_key[key] = durations
        self._by_key.move_to_end(key)
        if len(self._by_key) > self._max_keys:
            self._by_key.popitem(last=False)

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON that `load` reads."""
        return {key: durations.to_dict() for key, durations in self._by_key.items()}

    def load(self, saved: object) -> None:
        """Load what `to_dict` returned; raise ValueError that names the fault."""
        for key, durations in _items(saved):
            try:
                self._keep(key, Durations.from_dict(durations))
            except ValueError as error:
                raise ValueError(f"{key!r:.80}: {error}") from None


def _items(saved: object) -> Iterator[tuple[str, object]]:
    match saved:
        case {**by_key}:
            for key, saved_durations in by_key.items():
                if not isinstance(key, str):
                    break
                yield key, saved_durations
            else:
                return
    raise ValueError(f"must be a dict by target, as `knouds.durations` gives it, not {saved!r:.80}")


def check_expected(expected: object) -> None:
    """Raise InvalidArgumentError unless `expected` is None or a number of seconds above 0 and below 1e9."""
    is_number = isinstance(expected, (int, float)) and not isinstance(expected, bool)
    if expected is not None and not (is_number and 0 < expected < _MAX_EXPECTED):  # type: ignore[operator]
        raise InvalidArgumentError(
            f"expected={expected!r:.80}: must be a number of seconds above 0 and below 1e9, or None"
        )
