"""The ages of the running runs as histograms, so that sums over all of them cost no more than over a few. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

import attrs

from knouds_async._sansio.durations import EDGES, Durations, LearnedDurations


@attrs.frozen
class Forecast:
    """What to expect of all running runs: ends per second, and the sum of the roots of half the hazards.

    The second is the rate of polls that costs least when a poll costs a second of latency.
    """

    ends_per_second: float = 0.0
    polls_per_second: float = 0.0


class AgeHistogram:
    """The start times of the running runs, by duration key."""

    def __init__(self) -> None:
        self._starts: dict[str, list[float]] = {}
        self._count = 0

    def __len__(self) -> int:
        """Return the number of runs."""
        return self._count

    @property
    def key_count(self) -> int:
        """The number of duration keys."""
        return len(self._starts)

    def add(self, key: str, started_at: float) -> None:
        """Add a run."""
        insort(self._starts.setdefault(key, []), started_at)
        self._count += 1

    def remove(self, key: str, started_at: float) -> None:
        """Remove a run that was added."""
        times = self._starts[key]
        del times[bisect_left(times, started_at)]
        self._count -= 1
        if not times:
            del self._starts[key]

    def forecast(self, learned: LearnedDurations, now: float) -> Forecast:
        """Return what to expect now; O(bins of age) for each duration key, however many runs it has."""
        ends = polls = 0.0
        for key, times in self._starts.items():
            for count, hazard in _by_hazard(learned.durations_for(key), times, now):
                ends += count * hazard
                polls += count * math.sqrt(hazard / 2)
        return Forecast(ends, polls)


def _by_hazard(durations: Durations, times: list[float], now: float) -> Iterator[tuple[int, float]]:
    """Group runs by the bin of their age: how many, and the hazard there."""
    if len(times) <= len(EDGES) // 4:
        for started_at in times:
            yield 1, durations.hazard(now - started_at)
        return
    youngest, oldest = (bisect_right(EDGES, max(0.0, now - started_at)) - 1 for started_at in (times[-1], times[0]))
    older = len(times)
    for k in range(youngest, oldest + 1):
        above = bisect_right(times, now - (EDGES[k + 1] if k < oldest else math.inf))
        if older > above:
            yield older - above, durations.hazard(EDGES[k])
        older = above
