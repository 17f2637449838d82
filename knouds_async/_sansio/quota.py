"""What is known of one route's quota: its limits, the current window, and what has been counted in it.

Values only: `window.py` spends by them and `lessons.py` updates them. Times are local monotonic
seconds; only `WindowBounds.reset` is the server's (contract 6).
"""

from __future__ import annotations

import math
from typing import Final

import attrs

from knouds_async._sansio.inflight import InFlight, sent_since

__all__ = [
    "GUARD",
    "MINUTE",
    "SETTLE",
    "SURE",
    "TRANSIT",
    "Counters",
    "Limits",
    "QuotaHeaders",
    "Window",
    "WindowBounds",
]

MINUTE: Final = 60.0
"""Seconds of a window, as documented: the first guess."""

GUARD: Final = 0.05
"""Seconds after the predicted edge at which the next window counts as open."""

TRANSIT: Final = 2.0
"""Seconds within which a request reaches the server's counter; only its answer may take longer."""

SETTLE: Final = 0.5
"""Seconds after which an unanswered request no longer holds others back, while no quick answer has taken long."""

SURE: Final = 1.25
"""Seconds after the predicted edge at which no probe is needed: no rounding of Reset is off by more than one."""

FIRST_LIMIT: Final = 10
"""Requests to send in a window of unknown limit before anything is heard: the lowest limit any tier has had."""


@attrs.frozen(kw_only=True)
class QuotaHeaders:
    """What an answer said about the quota; None for each header that it did not carry.

    `refused`: it was a 429. `succeeded`: it was a 2xx, so without the headers its route is not limited.
    `limit`, `remaining`, `reset` (epoch seconds): X-RateLimit-*. `retry_after`: seconds.
    """

    refused: bool = False
    succeeded: bool = True
    limit: int | None = None
    remaining: int | None = None
    reset: float | None = None
    retry_after: float | None = None


@attrs.frozen(kw_only=True)
class Limits:
    """What outlives a window: the limit, the window's length, the rounding of Reset, and how much care is due.

    `reset_skew`: seconds by which edges have turned out later than Reset. `shared_until`: others were seen using the
    quota. `paused_until`: nothing may be sent before. `next_second`: a local time at which one of the server's seconds
    begins, while it is worth a probe when exactly (`ClockBounds.next_second`). `settle`: seconds after which an
    unanswered request no longer holds others back: a refusal would have come by then, only a grant's response may take
    long.
    """

    limit: int | None
    share: float = 1.0
    unlimited: bool = False
    length: float = MINUTE
    reset_skew: float = 0.0
    shared_until: float = -math.inf
    paused_until: float = -math.inf
    next_second: float | None = None
    settle: float = SETTLE

    @property
    def tokens(self) -> int:
        """Requests to count on in a new window."""
        return FIRST_LIMIT if self.limit is None else self.limit

    @property
    def reserve(self) -> int:
        """Requests of each window that are left to others; at least one stays ours."""
        return 0 if self.share == 1 else max(0, self.tokens - max(1, round(self.share * self.tokens)))


@attrs.frozen
class WindowBounds:
    """One window in time: the `reset` that names it, and the send time of the request that first `shown` it.

    `oldest`: requests sent before were not counted in it. `start`: it has surely begun.
    `soonest`: it has surely not ended. `edge`: it has ended, by what is known.
    `rolled_over`: the edge of the window named has passed; the times are a guess at the window that is on now.
    """

    reset: float | None = None
    shown: float = -math.inf
    oldest: float = -math.inf
    start: float = -math.inf
    soonest: float = -math.inf
    edge: float = math.inf
    rolled_over: bool = False


@attrs.frozen
class Counters:
    """What was counted in the window: lowest Remaining seen, who showed it (send time), own requests; slow start."""

    left: int
    left_sent: float = -math.inf
    own: int = 0
    cwnd: float = 1.0


@attrs.frozen
class Window:
    """All that one route's limiter knows; every step makes a new one."""

    limits: Limits
    bounds: WindowBounds
    counters: Counters
    in_flight: InFlight = ()

    @property
    def room(self) -> int:
        """Requests that may still be sent in this window.

        What was left, less those in flight that Remaining may not include. Alone, our own count may tell more.
        """
        bounds, counters, free = self.bounds, self.counters, self.counters.left - self.limits.reserve
        room = free - sent_since(self.in_flight, max(bounds.oldest, counters.left_sent - TRANSIT))
        if room <= 0 < free and counters.cwnd == math.inf:
            own = counters.own + sent_since(self.in_flight, bounds.oldest)
            return max(room, self.limits.tokens - self.limits.reserve - own)
        return room

    @property
    def others_usage(self) -> int:
        """Requests counted in this window that are surely not ours."""
        spent = self.limits.tokens - self.counters.left - self.counters.own
        return max(0, spent - sent_since(self.in_flight, self.bounds.oldest)) if spent > 0 else 0
