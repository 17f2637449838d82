"""Who gets the requests that there are: ends that are known first, then the runs most likely over. Pure.

Rule of the file: as long as there is plenty, all who are due are looked at. When more runs are out than requests are
left in the window, what is left is spread over the rest of it: a window that is spent at once finds few ends.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final

from knouds_async._sansio.course import Course, Stage
from knouds_async._sansio.spending import Quota, Spread

_TICK: Final = 0.25  # seconds for which a ranking holds
_PER_RUN: Final = 0.001  # or for each run that was ranked

Unseen = Callable[[Course], float]
"""For how long a run's end is expected to have gone unseen, in seconds."""


class Grants:
    """The runs that are due for a look and wait for a request to spend."""

    def __init__(self) -> None:
        """Begin with none."""
        self._known: deque[Course] = deque()
        self._ready: dict[str, Course] = {}
        self._ranked: list[str] = []
        self._ranked_until = -math.inf
        self._spread = Spread()

    @property
    def has_known(self) -> bool:
        """Whether a run waits of which it is known that it is over."""
        while self._known and self._known[0].stage is not Stage.HINTED:
            self._known.popleft()
        return bool(self._known)

    @property
    def count(self) -> int:
        """How many runs wait that may be over."""
        return len(self._ready)

    @property
    def has_ready(self) -> bool:
        """Whether a run waits that may be over."""
        return bool(self._ready)

    def add_known(self, course: Course) -> None:
        """Take in a run that is known to be over."""
        self._known.append(course)

    def add_ready(self, course: Course) -> None:
        """Take in a run that is due for a look."""
        course.stage = Stage.READY
        self._ready[course.execution_id] = course

    def drop(self, course: Course) -> None:
        """Take a run out that is due no more."""
        self._ready.pop(course.execution_id, None)

    def known(self, room: float) -> list[Course]:
        """Give runs that are known to be over, as many as may be looked at now."""
        found: list[Course] = []
        while len(found) < room and self.has_known:
            found.append(self._known.popleft())
            found[-1].stage = Stage.UNDER_WAY
        return found

    def all_ready(self, room: float = math.inf) -> list[Course]:
        """Give all runs that are due, or the first of them."""
        found = list(self._ready.values())
        return self._granted(found if len(found) <= room else found[: int(room)])

    def likeliest(self, now: float, free: float, polls: Quota, unseen: Unseen) -> list[Course]:
        """Give the runs to look at now if `free` requests are to last until the window ends."""
        found: list[Course] = []
        for _ in range(min(self._spread.take(now, free, polls.resets_in), len(self._ready))):
            found += self._granted([self._likeliest(now, unseen)])
        return found

    def _likeliest(self, now: float, unseen: Unseen) -> Course:
        """Give the run whose end is expected to have gone unseen for longest."""
        while True:
            if not self._ranked or now >= self._ranked_until:
                self._ranked = sorted(self._ready, key=lambda execution_id: unseen(self._ready[execution_id]))
                self._ranked_until = now + max(_TICK, _PER_RUN * len(self._ranked))
            course = self._ready.get(self._ranked.pop())
            if course is not None:
                return course

    def next_at(self, now: float, free: float, polls: Quota) -> float:
        """Say when `likeliest` gives the next."""
        return self._spread.next_at(now, free, polls.resets_in)

    def _granted(self, courses: list[Course]) -> list[Course]:
        for course in courses:
            course.stage = Stage.UNDER_WAY
            del self._ready[course.execution_id]
        return courses
