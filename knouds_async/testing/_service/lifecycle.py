"""One run from its start to its end (contract 5): its status is a function of the time, nothing has to happen to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import attrs

from knouds_async.testing._service.clock import ServerClock

__all__ = ["FAILURE", "Run"]

FAILURE: Final = "The provider could not complete the run"


@attrs.define(kw_only=True, eq=False)
class Run:
    """One run that the service began, and was paid for.

    Times are on the clock of the caller, in seconds. `status` is as of the last request the emulator has seen;
    `polls` counts looks at it, `seen_ended_at` is when its end was first told: by a look, an answer, a delivery taken.
    `cost` is what the service reports (0 when a trial grant paid). `error` is told when it failed; `result` None: what
    its target makes.
    """

    execution_id: str
    request_id: str
    kind: Literal["workflow", "model"]
    target: str
    inputs: Mapping[str, object]
    model_ids: tuple[str, ...]
    makes: str
    user: str
    is_async: bool
    cost: int
    started: float
    ends: float
    end: Literal["completed", "failed", "cancelled"]
    has_result: bool
    polls: int = 0
    seen_ended_at: float | None = None
    cancel_requested_at: float | None = None
    error: str = FAILURE
    result: object = None
    _clock: ServerClock = attrs.field(alias="clock", repr=False)

    @property
    def status(self) -> str:
        """Say how the run stands as of the last request seen."""
        return self.status_at(self._clock.now)

    def status_at(self, now: float) -> str:
        """Say how the run stands at a time."""
        if now >= self.ends:
            return self.end
        return "processing" if self.cancel_requested_at is None else "cancel_requested"

    def end_at(self, now: float, *, error: str | None, result: object) -> None:
        """End now: failed with a message, or completed, with another result than its own where one is given."""
        self.ends, self.result = now, result
        self.end, self.has_result = ("completed", True) if error is None else ("failed", False)
        self.error = error or FAILURE

    def seen_at(self, now: float) -> None:
        """Take note that somebody was told how the run stands."""
        if self.seen_ended_at is None and now >= self.ends:
            self.seen_ended_at = now

    def is_over_at(self, now: float) -> bool:
        """Say whether the run has ended at a time."""
        return now >= self.ends

    def request_cancel(self, now: float, *, lands: float, late: Literal["completed", "cancelled"]) -> None:
        """Ask for the end; a run that ends before the cancel lands ends by itself, reported as `late` says."""
        if self.cancel_requested_at is not None:
            return
        self.cancel_requested_at = now
        if lands < self.ends:
            self.ends, self.end, self.has_result = lands, "cancelled", False
        elif late == "cancelled":
            self.end = "cancelled"
