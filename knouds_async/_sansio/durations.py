"""How long the runs of each target take: learned from runs that were seen, saved, and asked for. Pure.

A model counts, by age, how many runs finished and how many seconds runs were at risk; it begins with three imagined
runs around an expected median. The hazard is ends per second at risk. Runs still running count too, or else the fast
ones of a batch would make the target look fast; one that outlives all that were seen may finish at any time.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from itertools import accumulate, repeat
from operator import mul
from typing import Final

from knouds_async.config import is_number
from knouds_async.errors import InvalidArgumentError, safe_repr
from knouds_async.types import Target

_RATIO: Final = 1.3

EDGES: Final = (0.0, *accumulate(repeat(_RATIO, 33), mul, initial=1.0))
"""Where each bin of age begins: 0, then 1 s to 96 minutes at a ratio of 1.3. The last bin has no end."""

MAX_ENDS: Final = 500
"""Above so many ends all that was seen is halved, so that a target that has changed is learned anew."""

_TOPS: Final = (*EDGES[1:], math.inf)
_LEAST: Final = 1e-9  # that a bin may have counted, ...
_MOST: Final = 1e12  # ... and the most
_INSTANT: Final = 1e-8  # seconds over which an end is spread whose time is known

_MEDIAN: Final = 50.0  # of the imagined runs
_SHAPE: Final = 4
_FLOOR: Final = 0.004  # of their hazard at that median, for they may be wrong in their tails
_RUNS: Final = 3

NEW_ENDS: Final = 3  # from which the longest says something of those that outlive it
_TAIL: Final = 1.5  # times its age: how often a run that outlived all others finishes


def _bin(age: float) -> int:
    return bisect_right(EDGES, age) - 1


def _spread(counts: list[float], start: float, end: float, per_second: float) -> None:
    """Add `per_second` for each second from `start` to `end` to the bins that hold those seconds."""
    while start < end:
        k = _bin(start)
        top = min(end, _TOPS[k])
        counts[k] += (top - start) * per_second
        start = top


class Durations:
    """How long runs of one target take.

    `ends` and `exposure`: how many runs finished in each bin of `EDGES`, and the seconds at risk there, with those of
    imagined runs around a median. `end_count`: the ends that were seen, as far as they are not forgotten. `longest`:
    the age at which the longest run finished, 0 without any.
    """

    __slots__ = ("end_count", "ends", "exposure", "longest")

    def __init__(self, expected: float | None = None) -> None:
        self.longest = self.end_count = 0.0
        median = _MEDIAN if expected is None else min(max(expected, EDGES[1]), EDGES[-1])
        self.ends, self.exposure = _log_logistic(median)

    def hazard(self, age: float) -> float:
        """Return the ends per second at risk at that age; always above 0."""
        return self._hazard(_bin(age), _TAIL)

    def _hazard(self, k: int, tail: float) -> float:
        hazard = self.ends[k] / self.exposure[k]
        is_outlived = self.end_count >= NEW_ENDS and EDGES[k] > self.longest
        return max(hazard, tail / _TOPS[k]) if is_outlived else hazard

    @property
    def median(self) -> float:
        """The age by which half of the runs have finished."""
        age, left = 0.0, math.log(2)
        for k, top in enumerate(_TOPS):
            hazard = self._hazard(k, _TAIL)
            if hazard * (top - age) >= left:
                return age + left / hazard
            left -= hazard * (top - age)
            age = top
        raise AssertionError("the last bin has no end")

    def observe_running(self, counted_until: float, age: float) -> None:
        """Count a run that is still running, from the age up to which it was counted before."""
        _spread(self.exposure, counted_until, age, 1.0)

    def observe_end(self, lo: float, hi: float, *, counted_until: float = 0.0) -> None:
        """Count a run that was running at age `lo` and finished by `hi`; it was counted before up to `counted_until`.

        The end is spread evenly over the ages between, and the run was at risk to the middle of them.
        """
        middle = (lo + hi) / 2
        self.observe_running(counted_until, middle)
        hi = max(hi, lo + _INSTANT)
        _spread(self.ends, lo, hi, 1 / (hi - lo))
        self.end_count += 1
        self.longest = max(self.longest, middle)
        if self.end_count > MAX_ENDS:
            self._halve()

    def _halve(self) -> None:
        """Halve what was seen, but not the imagined runs: after hundreds of times some bins would have nothing."""
        self.end_count /= 2
        for counts, imagined in zip((self.ends, self.exposure), _log_logistic(_MEDIAN), strict=True):
            counts[:] = [(count + least) / 2 for count, least in zip(counts, imagined, strict=True)]

    def next_poll(self, age: float, cost: float, *, longest: float, tail: float = _TAIL) -> float:
        """Return the age at which to poll a run last seen running at `age`.

        It is the first age by which its end is expected to have gone unnoticed for `cost` seconds, and at most
        `longest` seconds after `age`.
        """
        stop, cost, finished, k = age + longest, max(cost, 1e-9), 0.0, _bin(age)
        while age < stop:
            hazard, top = self._hazard(k, tail), min(stop, _TOPS[k])
            gone = (finished - 1) * math.expm1(-hazard * (top - age))
            delay = top - age - gone / hazard
            if delay >= cost:
                return min(age + _seconds_of_cost(hazard, finished, cost), top)
            cost, finished, age, k = cost - delay, finished + gone, top, k + 1
        return stop

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON that `from_dict` reads."""
        bins = [list(counts) for counts in zip(self.ends, self.exposure, strict=True)]
        return {"version": 2, "end_count": self.end_count, "longest": self.longest, "bins": bins}

    @classmethod
    def from_dict(cls, saved: object) -> Durations:
        """Return the durations that `to_dict` saved, also by way of JSON; raise ValueError that names the fault."""
        match saved:
            case {"version": 2, "end_count": end_count, "longest": longest, "bins": [*bins]} if len(bins) == len(EDGES):
                loaded = cls()
            case _:
                raise ValueError(f"{safe_repr(saved)} is not an object of version 2 with {len(EDGES)} bins")
        if not (_is_count(end_count) and _is_count(longest)):
            raise ValueError(
                f"end_count {safe_repr(end_count)} and longest {safe_repr(longest)} must be numbers of at least 0"
            )
        loaded.end_count, loaded.longest = float(end_count), float(longest)
        for k, row in enumerate(bins):
            match row:
                case [ends, exposure] if _is_count(ends) and _is_count(exposure) and min(ends, exposure) >= _LEAST:
                    loaded.ends[k], loaded.exposure[k] = ends, exposure
                case _:
                    raise ValueError(f"{safe_repr(row)} is not a bin of [ends, exposure]")
        return loaded


def _is_count(value: object) -> bool:
    return is_number(value) and 0 <= value <= _MOST


def _log_logistic(median: float) -> tuple[list[float], list[float]]:
    """Return the ends and exposure of the imagined runs.

    The floor of the hazard moves with the median: a target known to be slow is polled rarely all along.
    """
    ends, exposure = [], []
    for start, top in zip(EDGES, (*EDGES[1:], EDGES[-1] * _RATIO), strict=True):
        survival, later = (1 / (1 + (age / median) ** _SHAPE) for age in (start, top))
        at_risk = _RUNS * (survival + later) / 2 * (top - start)
        ends.append(max(_RUNS * (survival - later), _FLOOR * _MEDIAN / median * at_risk) + 1e-6)
        exposure.append(at_risk + 1e-5)
    return ends, exposure


def _seconds_of_cost(hazard: float, finished: float, cost: float) -> float:
    """Solve m - (1 - finished)(1 - exp(-hazard m))/hazard = cost for m by Newton's method.

    The left side is convex and increasing, and the root of its quadratic bound lies below the solution: the
    first step lands above it and the others fall towards it. Four reach 1e-9 s, the fifth is for safety.
    """
    survival = 1 - finished
    m = 2 * cost / (finished + math.sqrt(finished * finished + 2 * survival * hazard * cost))
    for _ in range(5):
        gone = -survival * math.expm1(-hazard * m)
        m -= (m - gone / hazard - cost) / (finished + gone)
    return m


# ---- The models of all targets

CANCEL_KEY: Final = "(a cancel)"
"""The key of runs that were asked to cancel: how long a cancel takes."""

CANCEL_DURATION: Final = 3.0  # seconds that one is expected to take
_MAX_KEYS: Final = 1000
_MAX_EXPECTED: Final = 1e9  # seconds


def duration_key(target: Target | None, expected: float | None) -> str:
    """Return the key of a run; runs of about the same expected duration (30 %) share one."""
    name = "" if target is None else str(target)
    return name if expected is None else f"{name} expected {EDGES[_bin(expected)]:.3g} s".lstrip()


class LearnedDurations:
    """The duration models of the latest thousand keys."""

    def __init__(self, max_keys: int = _MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._by_key: OrderedDict[str, Durations] = OrderedDict()

    def durations_for(self, key: str, expected: float | None = None) -> Durations:
        """Return the durations of a key; those of a new one start around `expected` seconds."""
        return self._keep(key, self._by_key.get(key) or Durations(expected))

    def _keep(self, key: str, durations: Durations) -> Durations:
        self._by_key[key] = durations
        self._by_key.move_to_end(key)
        if len(self._by_key) > self._max_keys:
            self._by_key.popitem(last=False)
        return durations

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON that `load` reads."""
        return {key: durations.to_dict() for key, durations in self._by_key.items()}

    def load(self, saved: object) -> None:
        """Load what `to_dict` returned; raise ValueError that names the fault."""
        if not isinstance(saved, Mapping) or not all(isinstance(key, str) for key in saved):
            raise ValueError(f"must be a dict by target, as `knouds.durations` gives it, not {safe_repr(saved)}")
        for key, durations in saved.items():
            try:
                self._keep(key, Durations.from_dict(durations))
            except ValueError as error:
                raise ValueError(f"{safe_repr(key)}: {error}") from None


def check_expected(expected: object) -> None:
    """Raise InvalidArgumentError unless `expected` is None or a number of seconds above 0 and below 1e9."""
    if expected is not None and not (is_number(expected) and 0 < expected < _MAX_EXPECTED):
        raise InvalidArgumentError(
            f"expected={safe_repr(expected)}: must be a number of seconds above 0 and below 1e9, or None"
        )
