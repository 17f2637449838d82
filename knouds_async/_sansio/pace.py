"""When one run wants a look of its own: on a plain schedule, or by what was learned of such runs. Pure.

Rule of the file: one run at a time. A run that listings vouch for is left to them until they have to be doubted; one
that they do not vouch for is looked at as if there were none, never later than `bound` after it was last seen.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Final

from knouds_async._sansio.course import Course
from knouds_async._sansio.durations import Durations
from knouds_async._sansio.learned import Learned
from knouds_async._sansio.roster import Roster
from knouds_async._sansio.sweeps import FEWEST, Sweeps
from knouds_async._sansio.trust import Trust
from knouds_async.config import Backoff, Polling

_LEAD: Final = 0.5  # seconds before a deadline at which a last look is made
_LIKELY: Final = 0.25  # the probability of an end that is worth one
_FIRST_STEP: Final = 600.0
_SETTLED: Final = 3.0  # seconds after its submit from which a run should be listed
_CAUTION: Final = 0.8  # the part of the cost that counts while a law is new: it may be wrong
_SCARCE: Final = 4.0  # times the doubt that listings meet when looks are scarce


def bound(age: float) -> float:
    """Give the longest step between two looks at a run of that age, in seconds."""
    return max(10.0, age / 4)


class Pace:
    """The wishes of the runs.

    `cost`: of a look now, in seconds of notice. `is_scarce`: whether there are few looks to spend. `is_sweeping`:
    whether there are listings.
    """

    def __init__(self, polling: Polling, learned: Learned, roster: Roster, sweeps: Sweeps, trust: Trust) -> None:
        """Begin with plenty of looks, and no listings."""
        self.cost = polling.cost_of_request
        self.is_scarce = self.is_sweeping = False
        self._schedule = polling.schedule
        self._learned = learned
        self._roster = roster
        self._sweeps = sweeps
        self._trust = trust
        self._scouts: set[str] = set()

    def forget(self, execution_id: str) -> None:
        """Take note that a run is watched no more."""
        self._scouts.discard(execution_id)

    def at(self, course: Course, now: float, roll: float) -> float:
        """Say when a run is to be looked at, or to be thought of again."""
        if self._schedule is not None:
            return max(course.not_before, _plain(course, self._schedule, roll))
        if course.is_hinted:
            return course.not_before
        at = self._swept(course, now) if self.is_sweeping else self._single(course, course.seen)
        if course.deadlines:
            at = _hurried(course, self._learned.law(course.law), now, at)
        return max(course.not_before, at)

    def _single(self, course: Course, seen: float) -> float:
        """Say when a run last seen going at a time is looked at: when its end may have gone unseen for the cost."""
        if course.submitted is None and course.count == 0:
            return -math.inf
        cost = self.cost * (_CAUTION if self._learned.is_new(course.law) else 1.0)
        return course.born + self._learned.next_look(course.law, course.age(seen), cost)

    def _swept(self, course: Course, now: float) -> float:
        """Say when a run is looked at although there are sweeps: when none vouches for it, or out of doubt."""
        is_listed = self._sweeps.last_good >= course.born + _SETTLED
        is_doubtful = is_listed and self._trust.is_doubtful
        if is_doubtful or not self._roster.can_be_listed(course) or self._is_scout(course):
            return self._single(course, course.alive)
        seen = course.shown if self._trust.shows_running else self._sweeps.last_good
        if not is_listed:
            seen = course.born + _SETTLED
        vouched_until = seen + bound(course.age(seen))
        if vouched_until > now:
            return min(vouched_until, self._doubted(course))
        return self._single(course, course.seen)

    def _doubted(self, course: Course) -> float:
        """Say when a run that listings vouch for is looked at all the same."""
        doubt = self._trust.doubt * (_SCARCE if self.is_scarce else 1.0)
        age = course.age(course.alive)
        if age <= 0:
            return course.born + self._learned.next_look(course.law, 0.0, doubt)
        return course.born + self._learned.law(course.law).next_look(age, doubt, longest=_FIRST_STEP)

    def _is_scout(self, course: Course) -> bool:
        """Tell whether a run is one of the few that are looked at until listings have proven themselves."""
        if self._trust.is_proven:
            self._scouts.clear()
            return False
        if len(self._scouts) < FEWEST:
            self._scouts.add(course.execution_id)
        return course.execution_id in self._scouts


def _plain(course: Course, schedule: Backoff, roll: float) -> float:
    """Say when a plain schedule has the next look."""
    if course.submitted is None and course.count == 0:
        return -math.inf
    try:
        pause = min(schedule.longest, schedule.first * float(schedule.factor) ** course.count)
    except OverflowError:
        pause = schedule.longest
    since = course.last if course.count else (course.submitted or 0.0)
    return since + pause * (1.0 + schedule.jitter * (roll - 0.5) * (course.count > 0))


def _hurried(course: Course, law: Durations, now: float, at: float) -> float:
    """Say when the look planned for `at` is to be, given who waits for how long.

    The first wait that ends before, and by whose end the run may well be over, gets a last look.
    """
    deadlines, seen = course.deadlines_after(now), course.age(course.seen)

    def over(deadline: float) -> float:
        return law.unseen_wait(seen, course.age(deadline - _LEAD))[1]

    first = bisect_left(deadlines, _LIKELY, key=over)
    return at if first == len(deadlines) else min(at, deadlines[first] - _LEAD)
