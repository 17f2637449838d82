"""How long runs last, of all targets: what was learned of each, bounded, and as a plain dict to keep. Pure.

Rule of the file: a law is one target's `Durations`, or those of its runs of about one expected length.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final

from knouds_async._sansio.course import Course
from knouds_async._sansio.durations import EDGES, Durations, Span
from knouds_async.errors import InvalidArgumentError
from knouds_async.types import Target

CANCELLED: Final = "(a cancel)"
"""The law of runs that were asked to end: how long a cancel takes."""

_CANCEL: Final = 3.0  # seconds that one is expected to take
_MOST: Final = 1000
_LIFE: Final = 1e9  # seconds
_VAGUE: Final = 30.0  # seconds within which an end has to be known
_LONGEST: Final = 60.0
_FEW: Final = 3


def law_of(target: Target | None, expected: float | None) -> str:
    """Name the law of a run; runs of about the same expected length (12 %) share one."""
    name = "" if target is None else str(target)
    if expected is None:
        return name
    around = EDGES[bisect_right(EDGES, expected) - 1]
    return f"{name} expected {around:.3g} s".lstrip()


class Learned:
    """The durations of the latest thousand laws."""

    def __init__(self, most: int = _MOST) -> None:
        """Know nothing yet."""
        self._most = most
        self._cold = Durations()
        self._laws: OrderedDict[str, Durations] = OrderedDict()
        self._first_looks: dict[tuple[str, float], tuple[Durations, float]] = {}

    def law(self, name: str, expected: float | None = None) -> Durations:
        """Give the durations of a law; one that is new begins around `expected` seconds."""
        known = self._laws.get(name)
        if known is None:
            if name == CANCELLED:
                expected = _CANCEL
            if expected is None:
                return self._cold
            known = Durations(expected=expected)
            self._keep(name, known)
        return known

    def is_new(self, name: str) -> bool:
        """Tell whether hardly any run of a law was seen to end."""
        return sum(self.law(name).ends) < _FEW

    def next_look(self, name: str, age: float, cost: float) -> float:
        """Give the age at which to look at a run of a law that was last seen going at `age`, 0: not yet."""
        law = self.law(name)
        if age > 0:
            return law.next_look(age, cost, longest=min(_LONGEST, max(10.0, age / 4)))
        known = self._first_looks.get((name, cost))
        if known is None or known[0] is not law:  # many runs ask for the same
            if len(self._first_looks) >= self._most:
                self._first_looks.clear()
            known = self._first_looks[name, cost] = law, law.next_look(0.0, cost)
        return known[1]

    def alive_all(self, courses: Iterable[Course]) -> None:
        """Count the time of runs that are still going, as far as it was seen and not counted yet."""
        spans: dict[str, list[Span]] = {}
        for course in courses:
            seen = course.seen
            if seen > course.counted and course.submitted is not None:
                spans.setdefault(course.law, []).append((course.age(course.counted), course.age(seen)))
                course.counted = seen
        for name, of_law in spans.items():
            self._keep(name, self.law(name).observe_all_alive(of_law))

    def over(self, course: Course, now: float, lasted: float | None) -> None:
        """Learn from a run that is over by now; `lasted`: seconds, by the service's word.

        That is taken if it fits what was seen. An end that may have been at almost any time teaches nothing.
        """
        if course.submitted is None:
            return
        hi = course.age(now)
        lo = min(course.age(course.seen), hi)
        if lasted is not None and lo <= lasted <= hi:
            lo = hi = lasted
        if hi - lo <= max(_VAGUE, hi / 2):
            self.ended(course.law, lo, hi, seen_from=course.age(course.counted))

    def ended(self, name: str, lo: float, hi: float, *, seen_from: float = 0.0) -> None:
        """Count a run that was alive at age `lo` and over at `hi`; its time up to `seen_from` was counted before."""
        self._keep(name, self.law(name).observe_end(lo, hi, seen_from=seen_from))

    def _keep(self, name: str, durations: Durations) -> None:
        self._laws[name] = durations
        self._laws.move_to_end(name)
        if len(self._laws) > self._most:
            self._laws.popitem(last=False)

    def to_dict(self) -> dict[str, object]:
        """Give plain JSON that `load` reads."""
        return {name: durations.to_dict() for name, durations in self._laws.items()}

    def load(self, saved: object) -> None:
        """Take up what `to_dict` gave; a ValueError names the fault."""
        for name, durations in _items(saved):
            try:
                self._keep(name, Durations.from_dict(durations))
            except ValueError as fault:
                raise ValueError(f"{name!r:.80}: {fault}") from None


def _items(saved: object) -> Iterator[tuple[str, object]]:
    match saved:
        case {**laws}:
            for name, law in laws.items():
                if not isinstance(name, str):
                    break
                yield name, law
            else:
                return
    raise ValueError(f"must be a dict by target, as `knouds.durations` gives it, not {saved!r:.80}")


def check_expected(expected: object) -> None:
    """Raise InvalidArgumentError for what is no expected duration: a number of seconds above 0, and below a life's."""
    is_number = isinstance(expected, (int, float)) and not isinstance(expected, bool)
    if expected is not None and not (is_number and 0 < expected < _LIFE):  # type: ignore[operator]
        raise InvalidArgumentError(
            f"expected={expected!r:.80}: must be a number of seconds above 0 and below 1e9, or None"
        )
