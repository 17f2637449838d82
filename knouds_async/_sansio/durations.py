"""How long runs take: what is known of one run, of a target, and of all; learned, saved, and asked for. Pure."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from itertools import accumulate, repeat
from operator import mul
from typing import Any, Final, TypeAlias

import attrs

from knouds_async.config import is_number
from knouds_async.errors import InvalidArgumentError
from knouds_async.types import Target

ASSUMED_AGE: Final = 30.0
"""Seconds that a run of unknown age is assumed to have been running when it is first polled."""


class PollStage(Enum):
    """Where the scheduler has a run."""

    IDLE = "idle"
    """Nobody waits for it."""
    SCHEDULED = "scheduled"
    """Due at `due_at`."""
    READY = "ready"
    """Due for a poll; it waits for a request."""
    REPORTED = "reported"
    """Reported finished: it goes before all others."""
    IN_FLIGHT = "in flight"
    """Being polled."""


@attrs.define(eq=False)
class TrackedRun:
    """What is known of one run, also while nobody waits for it. Times are local monotonic seconds.

    `duration_key`: under which its duration is learned. `submitted_at`: None when unknown. `poll_count`: own polls so
    far, and `failures` those that failed in a row. `last_seen_at`: when such a poll last found it running;
    `last_listed_at`: when a listing last did; `counted_until`: up to when its time was counted towards its duration
    model. `not_before`: no poll before. `deadlines`: of those who wait, sorted.
    """

    execution_id: str
    duration_key: str = ""
    submitted_at: float | None = None
    request_id: str | None = None
    expected: float | None = None
    started_at: float = math.nan
    poll_count: int = 0
    failures: int = 0
    last_poll_at: float = -math.inf
    last_seen_at: float = -math.inf
    last_listed_at: float = -math.inf
    counted_until: float = -math.inf
    not_before: float = -math.inf
    ignore_until: float = -math.inf  # reports are ignored before: one was wrong
    is_reported: bool = False
    stage: PollStage = PollStage.IDLE
    due_at: float = math.inf
    deadlines: list[float] | None = None

    def settle_start(self, now: float) -> None:
        """Set when it started: when it was submitted, or else some time ago."""
        if math.isnan(self.started_at):
            self.started_at = now - ASSUMED_AGE if self.submitted_at is None else self.submitted_at
            self.counted_until = self.started_at

    @property
    def last_running_at(self) -> float:
        """When it was last seen running, by a poll or by a listing."""
        return self.last_seen_at if self.last_seen_at > self.last_listed_at else self.last_listed_at

    def age(self, at: float) -> float:
        """Return its age at a time; 0 for a time before its start."""
        return at - self.started_at if at > self.started_at else 0.0

    def add_deadline(self, deadline: float) -> None:
        """Add a deadline until which somebody waits."""
        if self.deadlines is None:
            self.deadlines = []
        insort(self.deadlines, deadline)

    def deadlines_after(self, now: float) -> list[float]:
        """Return the deadlines still to come."""
        deadlines = self.deadlines or []
        del deadlines[: bisect_right(deadlines, now)]
        return deadlines


# ---- The model of one target

EDGES: Final = (0.0, *accumulate(repeat(1.12, 78), mul, initial=1.0))
"""Where each bin of age begins: 0, then 1 s to 2 h at a ratio of 1.12. The last bin has no end."""

MAX_ENDS: Final = 500
"""Above so many ends all that was seen is halved, so that a target that has changed is learned anew."""

_TOPS: Final = (*EDGES[1:], math.inf)
_WIDTHS: Final = tuple(top - start for start, top in zip(EDGES, _TOPS, strict=True))
_NOTHING: Final = (0.0,) * len(EDGES)
_OLDEST: Final = 86400.0
_MAX_STEP: Final = 600.0
_ROUNDING: Final = 1e-6
_MOST: Final = 1e12
_VERSION: Final = 1

_MEDIAN: Final = 45.0
_SHAPE: Final = 3
_FLOOR: Final = 0.01
# Also the weight of an expected median. The schedule of a cold target does not depend on the weight (ends and
# exposure both scale with it), so a heavier one only delays learning the spread: in simulation 4 to 16 runs
# cost as much or up to a quarter more over the first 40 runs, whether the median was right or five times off.
_RUNS: Final = 2.0

Span: TypeAlias = tuple[float, float]
"""From one age to a later one, in seconds."""


def _bin(age: float) -> int:
    return bisect_right(EDGES, age) - 1


def _countable(age: float) -> float:
    """Return an age that can be counted: negative or not a number is 0, more than a day is a day."""
    return min(age, _OLDEST) if age > 0 else 0.0


def _spread(counts: list[float], start: float, end: float, per_second: float) -> None:
    """Add `per_second` for each second from `start` to `end` to the bins that hold those seconds."""
    first, last = _bin(start), _bin(end)
    if first == last:
        counts[first] += (end - start) * per_second
        return
    counts[first] += (_TOPS[first] - start) * per_second
    for k in range(first + 1, last):
        counts[k] += _WIDTHS[k] * per_second
    counts[last] += (end - EDGES[last]) * per_second


def _smoothed(counts: Sequence[float], first: int, last: int) -> list[float]:
    """Weigh each bin from `first` up to `last` with two neighbours on either side, by 1, 1/2 and 1/4.

    Without it a bin that is empty by luck reads as safe, and the p95 latency of a cold target doubles.
    """
    padded = (0.0, 0.0, *counts, 0.0, 0.0)[first : last + 4]
    neighbours = zip(padded, padded[1:], padded[2:], padded[3:], padded[4:], strict=False)
    return [0.25 * (a + e) + 0.5 * (b + d) + c for a, b, c, d, e in neighbours]


@attrs.frozen
class _Prior:
    """What is believed before any run was seen, as the smoothed ends and exposure of each bin."""

    ends: tuple[float, ...]
    exposure: tuple[float, ...]

    @classmethod
    def around(cls, median: float) -> _Prior:
        """Return the log-logistic distribution of that median in seconds, worth as much as two runs.

        Its hazard has a floor, for a model may be wrong in its tails. The floor moves with the median, else a target
        known to be slow would be polled every 7 s all along.
        """
        ends, exposure = [], []
        for start, top in zip(EDGES, (*EDGES[1:], EDGES[-1] * 1.12), strict=True):
            survival, later = (1 / (1 + (age / median) ** _SHAPE) for age in (start, top))
            at_risk = _RUNS * (survival + later) / 2 * (top - start)
            ends.append(max(_RUNS * (survival - later), _FLOOR * _MEDIAN / median * at_risk) + 1e-6)
            exposure.append(at_risk + 1e-5)
        return cls(tuple(_smoothed(ends, 0, len(EDGES))), tuple(_smoothed(exposure, 0, len(EDGES))))

    def hazards(self, ends: Sequence[float], exposure: Sequence[float], first: int, last: int) -> list[float]:
        """Return the hazard of the bins from `first` up to `last`, given the ends and exposure seen."""
        seen = _smoothed(ends, first, last), _smoothed(exposure, first, last)
        believed = self.ends[first:last], self.exposure[first:last]
        return [(d + pd) / (e + pe) for d, e, pd, pe in zip(*seen, *believed, strict=True)]


def _median(expected: Any) -> float:
    """Return the median of the prior, within the bins; raise ValueError when what is expected is no duration."""
    if expected is None:
        return _MEDIAN
    if not (is_number(expected) and 0 < expected < math.inf):
        raise ValueError(f"expected={expected!r}: the median must be a number of seconds above 0, or None")
    return min(max(expected, EDGES[1]), EDGES[-1])


def _prior_of(durations: Durations) -> _Prior:
    return _Prior.around(_median(durations.expected))


def _hazards_of_all(durations: Durations) -> tuple[float, ...]:
    return tuple(durations._prior.hazards(durations.ends, durations.exposure, 0, len(EDGES)))  # noqa: SLF001


def _total(counts: tuple[float, ...]) -> str:
    return f"{sum(counts):g}"


@attrs.frozen(kw_only=True)
class Durations:
    """How long runs of one target take: an immutable value; each observation makes a new one.

    `expected`: the median in seconds, when the caller knows it (ValueError unless it is a number above 0);
    without it a target nobody has seen is taken for one of 45 s. What is seen soon counts for more.
    `ends` and `exposure`: how many runs finished in each bin of `EDGES`, and the seconds at risk there.
    Ages that are negative or not numbers count as 0; in an observation, ages above a day count as a day.
    `prior` and `hazards` follow from the others: leave them out.
    """

    expected: float | None = None
    ends: tuple[float, ...] = attrs.field(default=_NOTHING, repr=_total)
    exposure: tuple[float, ...] = attrs.field(default=_NOTHING, repr=_total)
    _prior: _Prior = attrs.field(default=attrs.Factory(_prior_of, takes_self=True), alias="prior", repr=False, eq=False)
    _hazards: tuple[float, ...] = attrs.field(
        default=attrs.Factory(_hazards_of_all, takes_self=True), alias="hazards", repr=False, eq=False
    )

    def hazard(self, age: float) -> float:
        """Return the ends per second at risk at that age; always above 0."""
        return self._hazards[bisect_right(EDGES, age) - 1 if age > 0 else 0]

    def observe_running(self, age: float, *, counted_until: float = 0.0) -> Durations:
        """Count a run that is still running at `age`; its time up to `counted_until` was counted before."""
        return self.observe_all_running([(counted_until, age)])

    def observe_all_running(self, spans: Iterable[Span]) -> Durations:
        """Count many runs that are still running, each by its span (counted_until, age); far faster than singly."""
        exposure = list(self.exposure)
        youngest, oldest = _OLDEST, 0.0
        for counted_until, age in spans:
            end = _countable(age)
            start = min(_countable(counted_until), end)
            _spread(exposure, start, end, 1.0)
            youngest, oldest = min(youngest, start), max(oldest, end)
        return self._with(self.ends, exposure, youngest, oldest)

    def observe_end(self, lo: float, hi: float, *, counted_until: float = 0.0) -> Durations:
        """Count a run that was running at `lo` and finished at `hi`; its time up to `counted_until` was counted before.

        The end is spread evenly over the ages between, and the run was at risk to the middle of them. An end
        before `lo` counts at `lo`. Above 500 ends all that was seen is halved.
        """
        ends, exposure = list(self.ends), list(self.exposure)
        lo = _countable(lo)
        hi = max(lo, _countable(hi))
        middle = (lo + hi) / 2
        start = min(_countable(counted_until), middle)
        _spread(exposure, start, middle, 1.0)
        if hi - lo > 1e-9:
            _spread(ends, lo, hi, 1 / (hi - lo))
        else:
            ends[_bin(lo)] += 1
        if sum(ends) <= MAX_ENDS + _ROUNDING:
            return self._with(ends, exposure, min(start, lo), hi)
        return self._with([d / 2 for d in ends], [e / 2 for e in exposure], 0.0, _OLDEST)

    def _with(self, ends: Sequence[float], exposure: Sequence[float], start: float, end: float) -> Durations:
        """Return the durations with these counts, which differ from ours from age `start` to `end` only."""
        first = max(0, _bin(start) - 2)
        last = max(first, min(len(EDGES), _bin(end) + 3))
        changed = self._prior.hazards(ends, exposure, first, last)
        return Durations(
            expected=self.expected,
            ends=tuple(ends),
            exposure=tuple(exposure),
            prior=self._prior,
            hazards=(*self._hazards[:first], *changed, *self._hazards[last:]),
        )

    def next_poll(self, age: float, cost: float, *, longest: float | None = None) -> float:
        """Return the age at which to poll a run last seen running at `age` (0: not seen yet).

        It is the first age by which the end is expected to have gone unnoticed for `cost` seconds: the price of
        a poll in seconds of latency. It is at most `longest` seconds after `age`; without that, a quarter of
        the age and at least 10 s (first poll: 10 min), 10 min at most. ValueError unless both are above 0.
        """
        if not (0 < cost < math.inf and (longest is None or longest > 0)):
            raise ValueError(f"cost={cost!r}, longest={longest!r}: must be seconds above 0, the cost finite")
        age = age if age > 0 else 0.0
        if longest is None:
            longest = min(_MAX_STEP, max(10.0, age / 4)) if age else _MAX_STEP
        return _age_of_cost(self._hazards, age, age + longest, max(cost, 1e-9))

    def expected_delay(self, seen_at: float, age: float) -> tuple[float, float]:
        """Return what to expect at `age` of a run last seen running at `seen_at`.

        It is the mean time in seconds that its end has gone unnoticed, and the probability that it has finished.
        """
        seen_at = seen_at if seen_at > 0 else 0.0
        delay = finished = 0.0
        k = _bin(seen_at)
        while seen_at < age:
            top = min(age, _TOPS[k])
            gone = (finished - 1) * math.expm1(-self._hazards[k] * (top - seen_at))
            delay += top - seen_at - gone / self._hazards[k]
            finished += gone
            seen_at = top
            k += 1
        return delay, finished

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON that `from_dict` reads: the bins in which something was seen."""
        seen = enumerate(zip(self.ends, self.exposure, strict=True))
        bins = [[k, ends, exposure] for k, (ends, exposure) in seen if ends or exposure]
        return {"version": _VERSION, "expected": self.expected, "bins": bins}

    @classmethod
    def from_dict(cls, saved: object) -> Durations:
        """Return the durations that `to_dict` saved, also by way of JSON; raise ValueError that names the fault."""
        match saved:
            case {"version": version} if version != _VERSION:
                raise ValueError(f"saved durations have version {version!r}, not {_VERSION}")
            case {"version": _, "expected": expected, "bins": [*rows]}:
                ends, exposure = _read_bins(rows)
                return cls(expected=expected, ends=ends, exposure=exposure)
        raise ValueError("saved durations must be an object with a version, expected and a list of bins")


def _age_of_cost(hazards: Sequence[float], age: float, stop: float, cost: float) -> float:
    """Return the first age up to `stop` by which the expected delay has reached `cost` seconds."""
    finished = 0.0
    k = _bin(age)
    while age < stop:
        hazard, top = hazards[k], min(stop, _TOPS[k])
        gone = (finished - 1) * math.expm1(-hazard * (top - age))
        delay = top - age - gone / hazard
        if delay >= cost:
            return min(age + _seconds_of_cost(hazard, finished, cost), top)
        cost -= delay
        finished += gone
        age = top
        k += 1
    return stop


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


def _read_bins(rows: Iterable[object]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the ends and exposure of saved bins; raise ValueError that names the wrong row."""
    ends, exposure = list(_NOTHING), list(_NOTHING)
    previous = -1
    for row in rows:
        k, d, e = _read_row(row)
        if k <= previous:
            raise ValueError(f"saved durations: bin {k} comes after bin {previous}")
        ends[k], exposure[k], previous = d, e, k
    if sum(ends) > MAX_ENDS + _ROUNDING:
        raise ValueError(f"saved durations: {sum(ends):g} ends are more than {MAX_ENDS}")
    return tuple(ends), tuple(exposure)


def _read_row(row: object) -> tuple[int, float, float]:
    match row:
        case [int(k), int() | float() as ends, int() | float() as exposure] if (
            0 <= k < len(EDGES) and 0 <= ends <= _MOST and 0 <= exposure <= _MOST
        ):
            return k, float(ends), float(exposure)
    raise ValueError(f"saved durations: {row!r} is not a bin of [index, ends, exposure]")


# ---- The models of all targets

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
    if expected is not None and not (is_number(expected) and 0 < expected < _MAX_EXPECTED):
        raise InvalidArgumentError(
            f"expected={expected!r:.80}: must be a number of seconds above 0 and below 1e9, or None"
        )
