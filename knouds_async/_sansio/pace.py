"""When one run wants a look of its own: on a plain schedule, or by what was learned of such runs. Pure."""

from __future__ import annotations

import math
from typing import Final

from knouds_async._sansio.course import Course
from knouds_async._sansio.durations import Durations
from knouds_async._sansio.learned import Learned
from knouds_async.config import Backoff

_LEAD: Final = 0.5  # seconds before a deadline at which a last look is made
_LIKELY: Final = 0.25  # the probability of an end that is worth one
_FIRST_STEP: Final = 600.0


def bound(age: float) -> float:
    """Give the longest step between two looks at a run of that age, in seconds."""
    return max(10.0, age / 4)


def plain(course: Course, schedule: Backoff, roll: float) -> float:
    """Say when a plain schedule has the next look."""
    if course.submitted is None and course.count == 0:
        return -math.inf
    try:
        pause = min(schedule.longest, schedule.first * float(schedule.factor) ** course.count)
    except OverflowError:
        pause = schedule.longest
    since = course.last if course.count else (course.submitted or 0.0)
    return since + pause * (1.0 + schedule.jitter * (roll - 0.5) * (course.count > 0))


def single(course: Course, learned: Learned, cost: float, alive: float) -> float:
    """Say when a run last seen going at `alive` is looked at: when its end may have gone unseen for `cost` seconds."""
    if course.submitted is None and course.count == 0:
        return -math.inf
    return course.born + learned.next_look(course.law, course.age(alive), cost)


def doubted(course: Course, learned: Learned, doubt: float) -> float:
    """Say when a run that listings show going is looked at all the same."""
    age = course.age(course.alive)
    if age <= 0:
        return course.born + learned.next_look(course.law, 0.0, doubt)
    return course.born + learned.law(course.law).next_look(age, doubt, longest=_FIRST_STEP)


def hurried(course: Course, law: Durations, now: float, at: float, alive: float) -> float:
    """Say when the look planned for `at` is to be, given who waits for how long.

    A wait that ends before gets a last look, if the run may well be over by then.
    """
    last = course.next_deadline(now + _LEAD) - _LEAD
    if last >= at or law.unseen_wait(course.age(alive), course.age(last))[1] < _LIKELY:
        return at
    return last
