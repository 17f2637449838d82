"""Rate limits: per user and route, in fixed windows (contract 6).

Time is `elapsed`, seconds since the emulator's first request; `clock` only turns an end into
the epoch second that the headers show.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import attrs

from knouds_async.testing._service.clock import EmulatedClock
from knouds_async.testing.settings import Settings

__all__ = ["QuotaDecision", "WindowStatus", "Windows"]

_ROUNDINGS: dict[str, Callable[[float], int]] = {"up": math.ceil, "down": math.floor, "nearest": round}


@attrs.frozen
class QuotaDecision:
    """Whether a request was admitted, and what its answer says about the quota."""

    is_granted: bool
    limit: int
    remaining: int
    reset: int
    retry_after: int

    def headers(self) -> dict[str, str]:
        """Return the three quota headers."""
        return {
            "x-ratelimit-limit": str(self.limit),
            "x-ratelimit-remaining": str(self.remaining),
            "x-ratelimit-reset": str(self.reset),
        }


@attrs.frozen
class WindowStatus:
    """The state of one user's window on a route; `resets_in` is in seconds."""

    user: str
    route: str
    limit: int
    used: int
    resets_in: float


@attrs.define(eq=False)
class _Window:
    """One window of one user on one route; `others` are the times of other users' requests, latest first."""

    number: int
    end: float
    reset: int
    limit: int
    others: list[float]
    used: int = 0

    def settle(self, elapsed: float) -> None:
        """Count the requests of others up to a time."""
        while self.others and self.others[-1] <= elapsed:
            self.others.pop()
            self.used = min(self.limit, self.used + 1)


class Windows:
    """The windows of all users and routes."""

    def __init__(self, settings: Settings, clock: EmulatedClock) -> None:
        """Start with no window; the phase comes from the settings or the seed."""
        self._settings = settings
        self._clock = clock
        self._open: dict[tuple[str, str], _Window] = {}
        self._others_rng = Random(f"{settings.seed}:others")
        phase = settings.window_phase
        drawn = Random(f"{settings.seed}:phase").random() * settings.window_length
        self._phase = drawn if phase is None else phase

    def count(self, user: str, route: str, limit: int, elapsed: float) -> QuotaDecision:
        """Count one request of a user on a route against its window."""
        number = math.floor((elapsed - self._phase) / self._settings.window_length)
        window = self._open.get((user, route))
        if window is None or self._is_past(window, number, elapsed):
            window = self._open[(user, route)] = self._new(number, elapsed, limit)
        window.limit = limit
        window.settle(elapsed)
        is_granted = window.used < limit
        window.used += is_granted
        retry_after = max(1, math.ceil(window.end - elapsed))
        return QuotaDecision(is_granted, limit, max(0, limit - window.used), window.reset, retry_after)

    def open_at(self, elapsed: float) -> list[WindowStatus]:
        """Return the windows that are open at a time, in the order they were first used."""
        found = []
        for (user, route), window in self._open.items():
            if elapsed < window.end:
                window.settle(elapsed)
                found.append(WindowStatus(user, route, window.limit, window.used, window.end - elapsed))
        return found

    def _is_past(self, window: _Window, number: int, elapsed: float) -> bool:
        # By number, not by time: an end that rounding puts a hair too early must not open the window twice.
        if self._settings.window_opens == "on_the_clock":
            return number > window.number
        return elapsed >= window.end

    def _new(self, number: int, elapsed: float, limit: int) -> _Window:
        length = self._settings.window_length
        start = elapsed
        if self._settings.window_opens == "on_the_clock":
            start = number * length + self._phase
        end = start + length
        reset = _ROUNDINGS[self._settings.reset_rounding](self._clock.epoch_at(end))
        return _Window(number, end, reset, limit, self._others(start, length, limit))

    def _others(self, start: float, length: float, limit: int) -> list[float]:
        others, rng = self._settings.others, self._others_rng
        number = others(rng) if callable(others) else round(others * limit)
        return sorted((start + rng.random() * length for _ in range(number)), reverse=True)
