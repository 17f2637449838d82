"""One run's course as far as it was seen: when it began, when it was last seen going, when to think of it next."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from enum import Enum
from typing import Final

import attrs

ASSUMED: Final = 30.0
"""Seconds that a run of unknown age is taken to have been going when it is first watched."""


class Stage(Enum):
    """Where the agenda has a run."""

    IDLE = "idle"
    """Not on it: nobody waits."""
    PLANNED = "planned"
    """To be thought of at `at`."""
    READY = "ready"
    """Due for a look; it waits for a request to spend."""
    HINTED = "hinted"
    """A listing says that it is over: it goes before all others."""
    UNDER_WAY = "under way"
    """Being looked at."""


@attrs.define(eq=False)
class Course:
    """What is known of one run, also while nobody waits for it. Times are local monotonic seconds.

    `law`: under which the time it takes is learned. `submitted`: None when not known. `count`: own looks so far, and
    `failures` those that failed in a row. `alive`: when such a look last found it going; `shown`: when a listing last
    did; `counted`: up to when its time was counted towards its law. `not_before`: no look before. `deadlines`: of those
    who wait, sorted.
    """

    execution_id: str
    law: str = ""
    submitted: float | None = None
    request_id: str | None = None
    expected: float | None = None
    born: float = math.nan
    count: int = 0
    failures: int = 0
    last: float = -math.inf
    alive: float = -math.inf
    shown: float = -math.inf
    counted: float = -math.inf
    not_before: float = -math.inf
    deaf_until: float = -math.inf  # hints are not believed before: one was wrong
    is_hinted: bool = False
    stage: Stage = Stage.IDLE
    at: float = math.inf
    deadlines: list[float] | None = None

    def begin(self, now: float) -> None:
        """Settle when it was born: when it was submitted, or else some time ago."""
        if math.isnan(self.born):
            self.born = now - ASSUMED if self.submitted is None else self.submitted
            self.counted = self.born

    @property
    def seen(self) -> float:
        """When it was last seen going, by a look or by a listing."""
        return self.alive if self.alive > self.shown else self.shown

    def age(self, at: float) -> float:
        """Give its age at a time; 0 for one before it was born."""
        return at - self.born if at > self.born else 0.0

    def hurry(self, deadline: float) -> None:
        """Take note that somebody waits until then only."""
        if self.deadlines is None:
            self.deadlines = []
        insort(self.deadlines, deadline)

    def deadlines_after(self, now: float) -> list[float]:
        """Give the deadlines that are still to come."""
        deadlines = self.deadlines or []
        del deadlines[: bisect_right(deadlines, now)]
        return deadlines
