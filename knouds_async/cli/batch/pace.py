"""The throughput of a batch and its estimated time to finish. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

import attrs

from knouds_async.batch.progress import Progress

_SPAN: Final = 120.0  # seconds: two windows of the rate limit, which lets runs through in bursts
_MIN_STEP: Final = 1.0  # seconds between two points that are kept
_MIN_SPAN: Final = 2.0  # seconds before a rate is shown


@attrs.define
class Throughput:
    """Remembers how many jobs were done at which time, over the last two minutes."""

    _points: deque[tuple[float, int]] = attrs.field(factory=lambda: deque([(0.0, 0)]))

    def update(self, progress: Progress) -> None:
        """Record the progress at this moment."""
        now = progress.elapsed
        if now - self._points[-1][0] >= _MIN_STEP:
            self._points.append((now, _done(progress)))
        while len(self._points) > 1 and now - self._points[0][0] > _SPAN:
            self._points.popleft()

    def per_second(self, progress: Progress) -> float:
        """Return the jobs done per second; 0 while too little is known."""
        started, done = self._points[0]
        seconds = progress.elapsed - started
        return (_done(progress) - done) / seconds if seconds >= _MIN_SPAN else 0.0

    def eta(self, progress: Progress) -> float | None:
        """Return the seconds until all jobs are done at this rate; None when unknown."""
        rate = self.per_second(progress)
        if progress.total is None or not rate:
            return None
        return max(progress.total - progress.outcomes, 0) / rate


def _done(progress: Progress) -> int:
    """Return how many jobs this batch has done itself: those from the ledger took no time."""
    return progress.outcomes - progress.from_ledger


def format_duration(seconds: float) -> str:
    """Return seconds as on a clock: 0:07, 12:34, 1:02:03."""
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes}:{seconds_left:02}"
