"""What is known of one run: when it started, when it was last seen running, when to poll it next."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from enum import Enum
from typing import Final

import attrs

ASSUMED_AGE: Final = 30.0
"""Seconds that a run of unknown age is assumed to have been running when it is first polled."""


class PollStage(Enum):
    """Where the scheduler has a run."""

    IDLE = "idle"
    """Nobody waits for it."""
    SCHEDULED = "scheduled"
    """Due at `due_at`."""
    READY = "ready"
    """Due for a poll; it waits for a request."""
    REPORTED = "reported"
    """Reported finished: it goes before all others."""
    IN_FLIGHT = "in flight"
    """Being polled."""


@attrs.define(eq=False)
class TrackedRun:
    """What is known of one run, also while nobody waits for it. Times are local monotonic seconds.

    `duration_key`: under which its duration is learned. `submitted_at`: None when unknown. `poll_count`: own polls so
    far, and `failures` those that failed in a row. `last_seen_at`: when such a poll last found it running;
    `last_listed_at`: when a listing last did; `counted_until`: up to when its time was counted towards its duration
    model. `not_before`: no poll before. `deadlines`: of those who wait, sorted.
    """

    execution_id: str
    duration_key: str = ""
    submitted_at: float | None = None
    request_id: str | None = None
    expected: float | None = None
    started_at: float = math.nan
    poll_count: int = 0
    failures: int = 0
    last_poll_at: float = -math.inf
    last_seen_at: float = -math.inf
    last_listed_at: float = -math.inf
    counted_until: float = -math.inf
    not_before: float = -math.inf
    ignore_until: float = -math.inf  # reports are ignored before: one was wrong
    is_reported: bool = False
    stage: PollStage = PollStage.IDLE
    due_at: float = math.inf
    deadlines: list[float] | None = None

    def settle_start(self, now: float) -> None:
        """Set when it started: when it was submitted, or else some time ago."""
        if math.isnan(self.started_at):
            self.started_at = now - ASSUMED_AGE if self.submitted_at is None else self.submitted_at
            self.counted_until = self.started_at

    @property
    def last_running_at(self) -> float:
        """When it was last seen running, by a poll or by a listing."""
        return self.last_seen_at if self.last_seen_at > self.last_listed_at else self.last_listed_at

    def age(self, at: float) -> float:
        """Return its age at a time; 0 for a time before its start."""
        return at - self.started_at if at > self.started_at else 0.0

    def add_deadline(self, deadline: float) -> None:
        """Add a deadline until which somebody waits."""
        if self.deadlines is None:
            self.deadlines = []
        insort(self.deadlines, deadline)

    def deadlines_after(self, now: float) -> list[float]:
        """Return the deadlines still to come."""
        deadlines = self.deadlines or []
        del deadlines[: bisect_right(deadlines, now)]
        return deadlines
