"""How far listings are relied on: trust is earned by ends they showed first, and lost by ends they did not show. Pure.

Rule of the file: a listing is a hint. A run that it does not vouch for is looked at as if there were no listings.
"""

from __future__ import annotations

import math
from typing import Final

from knouds_async._sansio.listing import Mark
from knouds_async.types import Status

_SOON: Final = 3.0  # seconds after which a listing has to show an end
_MANY: Final = 10  # hits that make trust firm
_JUDGED: Final = 100  # hits and misses beyond are halved, so that what was long ago counts less
_FEWEST: Final = 3  # misses that can end trust
_MOST: Final = 0.2  # the part of misses that is borne
_PAUSE: Final = 600.0
_LONGEST_PAUSE: Final = 3600.0
_MOST_WORDS: Final = 100
_OVER: Final = frozenset({Status.COMPLETED.value, Status.FAILED.value, Status.CANCELLED.value})


class Trust:
    """What was seen of the listings' word.

    `shows_running`: whether they list runs that go on; if so, a run that is missing is not vouched for.
    """

    def __init__(self) -> None:
        """Know nothing of them yet."""
        self.shows_running = False
        self._has_matched = False
        self._hits = 0.0
        self._misses = 0.0
        self._awaited: dict[str, tuple[float, bool]] = {}
        self._going = {Status.PROCESSING.value, Status.CANCEL_REQUESTED.value}
        self._off_until = -math.inf
        self._pause = _PAUSE

    @property
    def is_proven(self) -> bool:
        """Whether a listing has shown an end before a look found it."""
        return self._hits >= 1

    @property
    def is_doubtful(self) -> bool:
        """Whether listings have shown no end yet, and missed one or show no run of ours: they vouch for nothing."""
        return not self.is_proven and (self._misses > 0 or not self._has_matched)

    @property
    def doubt(self) -> float:
        """Seconds that an end may be expected to have gone unseen before listings that show a run going are doubted."""
        if self._misses >= 0.5:
            return 10.0
        return 30.0 + 0.3 * self._hits if self.is_proven else 20.0

    def is_on(self, now: float) -> bool:
        """Tell whether listings are worth asking for."""
        return now >= self._off_until

    def says_going(self, status: str) -> bool:
        """Tell whether a row with that status is of a run that goes on."""
        return status in self._going

    def matched(self, *, is_going: bool) -> None:
        """Take note of a row that was of a run of ours."""
        self._has_matched = True
        self.shows_running = self.shows_running or is_going

    def confirmed(self, now: float, *, is_late: bool) -> None:
        """Take note that a look found the end a listing had shown; `is_late`: long after it came."""
        self._count(now, hit=not is_late)

    def refuted(self, now: float, status: str) -> bool:
        """Take note that a look found a run going which a listing had shown as over; say if it was wrong in that.

        A status that is not known may be one of runs that go on: then that was learned.
        """
        if status not in _OVER and len(self._going) < _MOST_WORDS:
            self._going.add(status)
            return False
        self._count(now, hit=False)
        return True

    def found_alone(self, request_id: str, now: float, *, was_shown: bool) -> None:
        """Take note that a look found an end that no listing had shown: one will have to, soon."""
        self._awaited[request_id] = now, was_shown

    def judge(self, began: float, now: float, marks: dict[str, str], *, is_whole: bool) -> None:
        """Compare the ends that were found alone with what a sweep that began then has shown."""
        for request_id, (found, was_shown) in list(self._awaited.items()):
            status = marks.get(request_id)
            if status is not None and status not in self._going:
                self._count(now, hit=True)
            elif began < found + _SOON:
                continue
            elif status is not None or is_whole or not was_shown:
                self._count(now, hit=False)
            self._awaited.pop(request_id, None)  # a run that was shown before has sunk below the pages asked for

    def awaits(self, marks: tuple[Mark, ...]) -> dict[str, str]:
        """Give the marks that matter for `judge`."""
        return {request: status for request, status in marks if request in self._awaited} if self._awaited else {}

    def lost(self, now: float) -> None:
        """Ask for no listing for a while, longer each time, and begin to earn trust anew after that."""
        self._off_until = now + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._hits = self._misses = 0.0
        self._has_matched = self.shows_running = False
        self._awaited.clear()

    def _count(self, now: float, *, hit: bool) -> None:
        if hit:
            self._hits += 1
            self._has_matched = True
            self._pause = _PAUSE if self._hits >= _MANY else self._pause
        else:
            self._misses += 1
        if self._hits + self._misses > _JUDGED:
            self._hits, self._misses = self._hits / 2, self._misses / 2
        is_often = self._misses >= _FEWEST and self._misses > _MOST * (self._hits + self._misses)
        if is_often or (self._misses and not self._has_matched):
            self.lost(now)
