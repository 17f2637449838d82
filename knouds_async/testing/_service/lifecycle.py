"""One run from start to finish (contract 5): its status is a function of time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import attrs

from knouds_async.testing._service.clock import EmulatedClock

__all__ = ["FAILURE", "Run"]

FAILURE: Final = "The provider could not complete the run"


@attrs.define(kw_only=True, eq=False)
class Run:
    """One run that the service started, and that was paid for.

    Times are on the clock of the caller, in seconds. `status` is as of the last request the emulator has seen;
    `polls` counts its polls, `seen_ended_at` is when its end was first seen: by a poll, an answer or a delivery.
    `cost` is what the service reports (0 when a trial grant paid). `error` is its message if it failed; `result` None
    is the usual one of its target.
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
    _clock: EmulatedClock = attrs.field(alias="clock", repr=False)

    @property
    def status(self) -> str:
        """Return the status as of the last request seen."""
        return self.status_at(self._clock.now)

    def status_at(self, now: float) -> str:
        """Return the status at a time."""
        if now >= self.ends:
            return self.end
        return "processing" if self.cancel_requested_at is None else "cancel_requested"

    def finish_at(self, now: float, *, error: str | None, result: object) -> None:
        """Finish now: failed with a message, or completed, with another result than its usual one if given."""
        self.ends, self.result = now, result
        self.end, self.has_result = ("completed", True) if error is None else ("failed", False)
        self.error = error or FAILURE

    def mark_seen(self, now: float) -> None:
        """Record that a client saw the run's status."""
        if self.seen_ended_at is None and now >= self.ends:
            self.seen_ended_at = now

    def is_finished_at(self, now: float) -> bool:
        """Return whether the run has finished by a time."""
        return now >= self.ends

    def request_cancel(self, now: float, *, effective_at: float, late: Literal["completed", "cancelled"]) -> None:
        """Request cancellation; a run that finishes before it takes effect is reported as `late` says."""
        if self.cancel_requested_at is not None:
            return
        self.cancel_requested_at = now
        if effective_at < self.ends:
            self.ends, self.end, self.has_result = effective_at, "cancelled", False
        elif late == "cancelled":
            self.end = "cancelled"
