"""How many runs of each age are out, so that sums over all of them cost no more than sums over a few. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

import attrs

from knouds_async._sansio.durations import EDGES, Durations
from knouds_async._sansio.learned import Learned


@attrs.frozen
class Outlook:
    """What to expect of all runs that are out: ends per second, and the sum of the roots of half the hazards.

    The second is the rate of looks that costs least when a look costs a second of latency.
    """

    ends: float = 0.0
    looks: float = 0.0


class Crowd:
    """The times at which the runs that are out were born, by law."""

    def __init__(self) -> None:
        """Begin with nobody out."""
        self._born: dict[str, list[float]] = {}
        self._count = 0

    def __len__(self) -> int:
        """Count the runs."""
        return self._count

    @property
    def laws(self) -> int:
        """Count their laws."""
        return len(self._born)

    def add(self, law: str, born: float) -> None:
        """Count a run in."""
        insort(self._born.setdefault(law, []), born)
        self._count += 1

    def remove(self, law: str, born: float) -> None:
        """Count a run out that was counted in."""
        times = self._born[law]
        del times[bisect_left(times, born)]
        self._count -= 1
        if not times:
            del self._born[law]

    def outlook(self, learned: Learned, now: float) -> Outlook:
        """Say what to expect now; O(bins of age) for each law, however many runs it has."""
        ends = looks = 0.0
        for law, times in self._born.items():
            for runs, hazard in _by_hazard(learned.law(law), times, now):
                ends += runs * hazard
                looks += runs * math.sqrt(hazard / 2)
        return Outlook(ends, looks)


def _by_hazard(durations: Durations, times: list[float], now: float) -> Iterator[tuple[int, float]]:
    """Group runs by the bin of their age: how many, and the hazard there."""
    if len(times) <= len(EDGES) // 4:
        for born in times:
            yield 1, durations.hazard(now - born)
        return
    youngest, oldest = (bisect_right(EDGES, max(0.0, now - born)) - 1 for born in (times[-1], times[0]))
    older = len(times)
    for k in range(youngest, oldest + 1):
        above = bisect_right(times, now - (EDGES[k + 1] if k < oldest else math.inf))
        if older > above:
            yield older - above, durations.hazard(EDGES[k])
        older = above
