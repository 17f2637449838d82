"""What is said to be over, by listings or by deliveries: hints that a look has to bear out. Pure.

Rule of the file: a hint never ends a run. One that a look refutes makes the run deaf to others for a while.
"""

from __future__ import annotations

import attrs

from knouds_async._sansio.course import Course, Stage
from knouds_async._sansio.grants import Grants
from knouds_async._sansio.listing import Listing
from knouds_async._sansio.pace import bound
from knouds_async._sansio.roster import Roster
from knouds_async._sansio.sweeps import Page, Sweeps
from knouds_async._sansio.trust import Trust


class Hints:
    """The runs that are said to be over and were not looked at since."""

    def __init__(self, roster: Roster, grants: Grants, sweeps: Sweeps, trust: Trust) -> None:
        """Begin with none."""
        self._roster = roster
        self._grants = grants
        self._sweeps = sweeps
        self._trust = trust
        self._said: dict[str, str | None] = {}  # the status by which a listing said so
        self._marks: dict[str, str] = {}

    def add(self, course: Course, status: str | None = None) -> None:
        """Have a run looked at before all others; `status`: by which a listing shows it, None for another source."""
        self._grants.drop(course)
        self._roster.hint(course)
        self._said[course.execution_id] = status
        self._grants.add_known(course)

    def drop(self, execution_id: str) -> None:
        """Take note that a run is watched no more."""
        self._said.pop(execution_id, None)

    def is_listed(self, course: Course) -> bool:
        """Tell whether it was a listing that said so."""
        return self._said.get(course.execution_id) is not None

    def refuted(self, course: Course, now: float) -> None:
        """Take note that a look found a run going that is said to be over."""
        self._roster.unhint(course)
        status = self._said.pop(course.execution_id)
        if status is not None and self._trust.refuted(now, status):
            course.deaf_until = now + bound(course.age(now))

    def listable(self) -> int:
        """Count the runs that a listing can still show something of."""
        return self._roster.listable() - len(self._said)

    def listed(self, page: Page, listing: Listing, now: float) -> Page | None:
        """Take in a page; give the next one of the sweep, None when it is over."""
        shown, deepest = page.shown, 0
        over: dict[str, tuple[Course, str]] = {}
        for row, (request, status) in enumerate(listing.marks, 1):
            course = self._roster.listed_as(request)
            if course is None:
                continue
            deepest = row
            if course.is_hinted:
                continue
            is_going = self._trust.says_going(status)
            self._trust.matched(is_going=is_going)
            if is_going:
                shown += course.shown != page.began
                self._shown_going(course, page.began, now)
            elif course.deaf_until > now or course.stage is Stage.UNDER_WAY:
                shown += 1
            else:
                over[course.execution_id] = course, status
        for course, status in sorted(over.values(), key=lambda one: one[0].born):
            self.add(course, status)
        self._marks |= self._trust.awaits(listing.marks)
        following = self._sweeps.next_page(attrs.evolve(page, shown=shown), listing, self.listable(), deepest)
        if following is None:
            self._trust.judge(page.began, now, self._marks, is_whole=listing.rows < page.limit)
            self._marks = {}
        return following

    def _shown_going(self, course: Course, began: float, now: float) -> None:
        course.shown = began
        if course.stage is Stage.READY:  # it waits for a request, and may need none any more
            self._grants.drop(course)
            self._roster.put(course, now)

    def cut(self) -> None:
        """Take note that a sweep has ended before its time."""
        self._marks = {}
