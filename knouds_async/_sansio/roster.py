"""The runs that somebody waits for: by id, by the request they are listed by, and by when to think of each. Pure.

Rule of the file: books only; it decides nothing. O(log n) for each change.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

from knouds_async._sansio.course import Course, Stage
from knouds_async._sansio.crowd import Crowd


class Roster:
    """The courses of the runs that are watched; `crowd` has those of which nothing says that they are over."""

    def __init__(self) -> None:
        """Begin with none."""
        self.crowd = Crowd()
        self._courses: dict[str, Course] = {}
        self._by_request: dict[str, Course | None] = {}  # None: more than one run has it
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        """Count the runs."""
        return len(self._courses)

    def __iter__(self) -> Iterator[Course]:
        """Go through all runs."""
        return iter(self._courses.values())

    def get(self, execution_id: str) -> Course | None:
        """Give a run's course, None when it is not watched."""
        return self._courses.get(execution_id)

    def add(self, course: Course) -> None:
        """Take a run in."""
        self._courses[course.execution_id] = course
        self.crowd.add(course.law, course.born)
        self._index(course)

    def remove(self, execution_id: str) -> Course | None:
        """Take a run out; it can be taken in again."""
        course = self._courses.pop(execution_id, None)
        if course is None:
            return None
        if not course.is_hinted:
            self.crowd.remove(course.law, course.born)
        if course.request_id is not None and self._by_request.get(course.request_id) is course:
            del self._by_request[course.request_id]
        course.stage, course.is_hinted, course.deadlines = Stage.IDLE, False, None
        return course

    # The request that a run is listed by.

    def identify(self, course: Course, request_id: str) -> None:
        """Take note of it, if it is not known yet."""
        if course.request_id is None:
            course.request_id = request_id
            if course.execution_id in self._courses:
                self._index(course)

    def _index(self, course: Course) -> None:
        request = course.request_id
        if request is not None:
            known = self._by_request.get(request, course)
            self._by_request[request] = course if known is course else None

    def listed_as(self, request_id: str) -> Course | None:
        """Give the run that is listed by a request; None when there is none, or more than one."""
        return self._by_request.get(request_id)

    def can_be_listed(self, course: Course) -> bool:
        """Tell whether a listing can show this run and no other by its request."""
        return course.request_id is not None and self._by_request.get(course.request_id) is course

    def listable(self) -> int:
        """Count the requests that listings can show."""
        return len(self._by_request)

    # What is counted of it.

    def relabel(self, course: Course, law: str, submitted: float) -> None:
        """Change what a run's age is counted from, and under which law."""
        is_counted = course.execution_id in self._courses and not course.is_hinted
        if is_counted:
            self.crowd.remove(course.law, course.born)
        course.law = law
        course.submitted = course.born = course.counted = submitted
        if is_counted:
            self.crowd.add(course.law, course.born)

    def hint(self, course: Course) -> None:
        """Take note that a run is said to be over."""
        course.is_hinted, course.stage = True, Stage.HINTED
        self.crowd.remove(course.law, course.born)

    def unhint(self, course: Course) -> None:
        """Take note that it is not over after all."""
        course.is_hinted = False
        self.crowd.add(course.law, course.born)

    # When to think of it.

    def put(self, course: Course, at: float) -> None:
        """Plan to think of a run at a time; what was planned before does not hold."""
        course.stage, course.at = Stage.PLANNED, at
        heapq.heappush(self._heap, (at, course.execution_id))

    def rebuild(self) -> None:
        """Take note that the plans of many runs have changed at once."""
        self._heap = [(course.at, course.execution_id) for course in self if course.stage is Stage.PLANNED]
        heapq.heapify(self._heap)

    def next_at(self) -> float:
        """Say when to think of the next; inf when nothing is planned."""
        while self._heap:
            at, execution_id = self._heap[0]
            course = self._courses.get(execution_id)
            if course is not None and course.stage is Stage.PLANNED and course.at == at:
                return at
            heapq.heappop(self._heap)
        return math.inf

    def due(self, now: float) -> Course | None:
        """Give a run that is to be thought of now, None when there is none."""
        if self.next_at() > now or not self._heap:
            return None
        return self._courses[heapq.heappop(self._heap)[1]]
