"""Which executions to look at now, when to sweep, and when to ask again: the one place where that is decided. Pure.

Rule of the file: `now` is local monotonic seconds, `roll` is uniform in [0, 1); nothing here waits or sends. What a
run wants for itself is in `pace`, when listings pay in `sweeps`, how far they are believed in `trust`, what they say is
over in `hints`, who gets the requests in `grants`. O(log n) per event; what goes over all runs does so rarely.
"""

from __future__ import annotations

import math
from typing import Final

import attrs

from knouds_async._sansio.course import Course, Stage
from knouds_async._sansio.crowd import Outlook
from knouds_async._sansio.grants import Grants, Unseen
from knouds_async._sansio.hints import Hints
from knouds_async._sansio.learned import CANCELLED, Learned
from knouds_async._sansio.listing import Listing
from knouds_async._sansio.pace import Pace
from knouds_async._sansio.roster import Roster
from knouds_async._sansio.spending import Quota, price
from knouds_async._sansio.sweeps import FEWEST, Page, Sweeps
from knouds_async._sansio.trust import Trust
from knouds_async.config import Polling

_TICK: Final = 0.25  # seconds for which an outlook holds
_PER_RUN: Final = 0.002  # seconds between two counts of all runs, for each of them
_WAKE: Final = 1.0  # seconds after which what sweeps will find is looked at again
_PROVEN: Final = 2  # runs that have to be out for a sweep to pay once listings have proven themselves
_PLENTY: Final = 5  # looks for each run that have to be left, or listings are preferred
_SPECULATIVE: Final = 0.1  # the part of scarce requests that goes to runs which listings do not vouch for
_LATE: Final = 5.0  # seconds by which a listing may lag
_FIRST_PAUSE: Final = 2.0  # seconds after a look that failed
_LONGEST_PAUSE: Final = 10.0
_SOON: Final = 2.0  # seconds within which a look that was begun should come back
_FEW: Final = 10  # runs that may be looked at before the quota is known
_UNHEARD: Final = 2.0  # seconds for which that is waited for
_NO_QUOTA: Final = Quota()


@attrs.frozen
class Plan:
    """What to do now, and when to ask again (inf: when there is news)."""

    looks: list[str]
    page: Page | None
    at: float


class Agenda:
    """The looks and sweeps for all executions that somebody waits for."""

    def __init__(self, polling: Polling, learned: Learned) -> None:
        """Start with nothing to look at."""
        self._polling = polling
        self._learned = learned
        self._roster = Roster()
        self._grants = Grants()
        self._under_way: dict[str, float] = {}  # since when; also runs that were forgotten meanwhile
        self._sweeps = Sweeps(polling.cost_of_request)
        self._trust = Trust()
        self._pace = Pace(polling, learned, self._roster, self._sweeps, self._trust)
        self._hints = Hints(self._roster, self._grants, self._sweeps, self._trust)
        self._outlook = Outlook()
        self._outlook_until = self._count_at = -math.inf
        self._first_look_at = math.inf
        self._is_heard = False

    def __len__(self) -> int:
        """Count the executions that are watched."""
        return len(self._roster)

    def __contains__(self, execution_id: str) -> bool:
        """Tell whether an execution is watched."""
        return self._roster.get(execution_id) is not None

    def watch(self, course: Course, now: float, roll: float) -> None:
        """Begin to watch a run, where its course stands; one of unknown age is looked at at once."""
        course.begin(now)
        self._learned.law(course.law, course.expected)  # begins it, if it is new
        self._roster.add(course)
        if self._under_way.get(course.execution_id, -math.inf) > now - _SOON:  # an earlier wait began it
            course.stage = Stage.UNDER_WAY
        else:
            self._plan(course, now, roll)

    def forget(self, execution_id: str) -> None:
        """Stop watching a run; it can be watched again."""
        course = self._roster.remove(execution_id)
        if course is not None:
            self._grants.drop(course)
            self._hints.drop(execution_id)
            self._pace.forget(execution_id)

    def hurry(self, execution_id: str, deadline: float, now: float, roll: float) -> None:
        """Take note that somebody waits until `deadline` only."""
        course = self._roster.get(execution_id)
        if course is not None:
            course.hurry(deadline)
            if course.stage is Stage.PLANNED:
                self._plan(course, now, roll)

    def hint(self, execution_id: str) -> None:
        """Take note that a run is said to be over: a look at it goes before all others."""
        course = self._roster.get(execution_id)
        if course is not None and not course.is_hinted and course.stage is not Stage.UNDER_WAY:
            self._hints.add(course)

    def identify(self, course: Course, request_id: str) -> None:
        """Take note of the request that a run is listed by."""
        self._roster.identify(course, request_id)

    def date(self, course: Course, submitted: float) -> None:
        """Take note of when a run was submitted whose age was not known."""
        self._roster.relabel(course, course.law, submitted)

    def cancelling(self, course: Course, now: float, roll: float) -> None:
        """Take note that a run was asked to end: it will soon."""
        if course.law != CANCELLED:
            self._roster.relabel(course, CANCELLED, now)
            course.alive = now
            if course.stage is Stage.PLANNED:
                self._plan(course, now, roll)

    def plan(self, now: float, roll: float, *, polls: Quota = _NO_QUOTA, usage: Quota = _NO_QUOTA) -> Plan:
        """Say what to do now; the looks given are under way until `looked`, a page until `listed` or `not_listed`."""
        self._pace.is_scarce = polls.room <= _PLENTY * len(self._roster)
        was_sweeping, is_sweeping = self._pace.is_sweeping, self._is_sweeping(now)
        self._pace.is_sweeping = is_sweeping
        self._look_ahead(now, polls, is_sweeping=is_sweeping)
        if was_sweeping and not is_sweeping:
            for course in self._roster:
                if course.stage is Stage.PLANNED:
                    course.at = max(now, self._pace.at(course, now, roll))
            self._roster.rebuild()
        self._count_time(now)
        unheard_until = self._unheard_until(now, polls)
        while (now >= unheard_until or not self._has_begun()) and (due := self._roster.due(now)) is not None:
            self._think_of(due, now, roll)
        page, sweep_at = self._sweep(now, polls, usage) if is_sweeping else (None, math.inf)
        looks, more_at = self._grant(now, polls, is_sweeping=is_sweeping)
        return Plan(looks, page, min(max(self._roster.next_at(), unheard_until), more_at, sweep_at))

    def _is_sweeping(self, now: float) -> bool:
        if not self._polling.sweeps or self._polling.schedule is not None or not self._trust.is_on(now):
            return False
        fewest = FEWEST
        if self._trust.is_proven:
            fewest = 1 if self._pace.is_scarce else _PROVEN
        return len(self._roster) >= max(fewest, 2 * self._sweeps.pages - 1)

    def _look_ahead(self, now: float, polls: Quota, *, is_sweeping: bool) -> None:
        """Keep the outlook: what sweeps will find, and what a request is worth when requests are scarce."""
        if is_sweeping:
            self._sweeps.advance(now)
        else:
            self._sweeps.rest()
        is_priced = not is_sweeping and polls.limit is not None and len(self._roster) > 1
        if now < self._outlook_until or not (is_sweeping or is_priced) or self._polling.schedule is not None:
            return
        crowd = self._roster.crowd
        self._outlook = crowd.outlook(self._learned, now)
        self._outlook_until = now + max(_TICK, _PER_RUN / 20 * crowd.laws)
        self._sweeps.expect(self._outlook.ends)
        self._pace.cost = self._polling.cost_of_request
        if is_priced:
            self._pace.cost = price(self._pace.cost, self._outlook.looks, polls.limit)

    def _unheard_until(self, now: float, polls: Quota) -> float:
        """Say until when one look goes ahead alone: its answer tells what there is to spend on many."""
        if self._is_heard or polls.limit is not None or len(self._roster) <= _FEW:
            return -math.inf
        if self._first_look_at == math.inf and self._roster.next_at() <= now:
            self._first_look_at = now
        return now if self._first_look_at == math.inf else self._first_look_at + _UNHEARD

    def _has_begun(self) -> bool:
        return bool(self._under_way) or self._grants.has_ready

    def _think_of(self, course: Course, now: float, roll: float) -> None:
        is_plain = self._polling.schedule is not None  # its dice were rolled before
        if not is_plain and (at := self._pace.at(course, now, roll)) > now:
            self._roster.put(course, at)
        elif course.is_hinted:
            course.stage = Stage.HINTED
            self._grants.add_known(course)
        else:
            self._grants.add_ready(course)

    def _grant(self, now: float, polls: Quota, *, is_sweeping: bool) -> tuple[list[str], float]:
        """Give the looks that may be made now, and when there will be more."""
        room = polls.room if self._under_way else max(1, polls.room)  # one may always wait in line
        granted = self._grants.known(room)
        room -= len(granted)
        more_at = polls.next_at(now) if self._grants.has_known else math.inf
        if self._grants.has_ready:
            speculative, at = self._speculate(now, room, polls, is_sweeping=is_sweeping)
            granted, more_at = granted + speculative, min(more_at, at)
        self._under_way |= {course.execution_id: now for course in granted}
        return [course.execution_id for course in granted], more_at

    def _speculate(self, now: float, room: float, polls: Quota, *, is_sweeping: bool) -> tuple[list[Course], float]:
        """Give the looks at runs that may be over, and when there will be more."""
        grants = self._grants
        if self._polling.schedule is not None:
            return grants.all_ready(room), polls.next_at(now) if grants.has_ready else math.inf
        if is_sweeping and self._trust.is_proven and self._sweeps.is_expected(now):
            return [], self._sweeps.expected_until()
        if room <= 0:
            return [], polls.next_at(now)
        free = max(_SPECULATIVE * room, room - len(self._roster)) if is_sweeping else room
        if grants.count <= free and len(self._roster) <= room:
            return grants.all_ready(), math.inf
        looks = grants.likeliest(now, free, polls, self._unseen(now))
        return looks, grants.next_at(now, free, polls) if grants.has_ready else math.inf

    def _sweep(self, now: float, polls: Quota, usage: Quota) -> tuple[Page | None, float]:
        """Give the page to ask for now, or when to think of it again."""
        if self._grants.has_known and polls.room <= 0:
            return None, math.inf  # what is known to be over waits already
        at = self._sweeps.due_at(usage)
        if at > now:
            return None, min(at, now + _WAKE)
        return self._sweeps.begin(now, self._hints.listable()), math.inf

    def _plan(self, course: Course, now: float, roll: float) -> None:
        self._roster.put(course, max(now, self._pace.at(course, now, roll)))

    def _unseen(self, now: float) -> Unseen:
        def unseen(course: Course) -> float:
            return self._learned.law(course.law).unseen_wait(course.age(course.seen), course.age(now))[0]

        return unseen

    def looked(self, execution_id: str, now: float, roll: float, *, is_alive: bool = True) -> None:
        """Take note that a look has come back: of a run that is not `over` by now, it found it going or it failed."""
        self._under_way.pop(execution_id, None)
        self._is_heard = True
        course = self._roster.get(execution_id)
        if course is None or course.stage is not Stage.UNDER_WAY:
            return
        course.count, course.last = course.count + 1, now
        if is_alive:
            self._found_going(course, now)
        else:
            course.failures += 1
            course.not_before = now + min(_LONGEST_PAUSE, _FIRST_PAUSE * course.failures)
        self._plan(course, now, roll)

    def _found_going(self, course: Course, now: float) -> None:
        course.alive, course.not_before, course.failures = now, now, 0
        if course.is_hinted:
            self._hints.refuted(course, now)
        if len(self._roster) <= _FEW:
            self._learned.alive_all([course])

    def over(self, execution_id: str, now: float, *, lasted: float | None = None) -> None:
        """Take note that a run is over, and learn from it; `lasted`: seconds, by the service's word, if it gave it."""
        course = self._roster.get(execution_id)
        if course is None:
            return
        self._learned.over(course, now, lasted)
        if self._hints.is_listed(course):
            is_late = lasted is not None and course.age(course.shown) - lasted > max(_LATE, lasted / 8)
            self._trust.confirmed(now, is_late=is_late)
        elif course.request_id is not None and self._pace.is_sweeping and not course.is_hinted:
            self._trust.found_alone(course.request_id, now, was_shown=course.shown > -math.inf)
        self.forget(execution_id)

    def _count_time(self, now: float) -> None:
        """Count the time of all runs that go on, lest the fast ones of a batch make their law look fast."""
        if now >= self._count_at:
            self._learned.alive_all(self._roster)
            self._count_at = now + max(_WAKE, _PER_RUN * len(self._roster))

    def listed(self, page: Page, listing: Listing, now: float) -> Page | None:
        """Take in a page; give the next one of the sweep, None when it is over."""
        return self._hints.listed(page, listing, now)

    def not_listed(self, now: float, *, is_lasting: bool) -> None:
        """Take note of a page that failed: sweeps wait, or rest for long when no later page can do better."""
        self._sweeps.failed(now)
        self._hints.cut()
        if is_lasting:
            self._trust.lost(now)

    def dropped(self, now: float, roll: float) -> None:
        """Take note that the looks and the sweep under way were cut."""
        self._sweeps.dropped()
        self._hints.cut()
        self._under_way.clear()
        for course in self._roster:
            if course.stage is Stage.UNDER_WAY:
                self._plan(course, now, roll)
