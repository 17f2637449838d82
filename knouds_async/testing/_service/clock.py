"""The service's clock: its epoch time, made from whatever monotonic time the caller passes."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import formatdate

__all__ = ["EmulatedClock"]


class EmulatedClock:
    """Turn the caller's monotonic seconds into the service's epoch time; it starts with the first time it is given."""

    def __init__(self, epoch: float) -> None:
        """Start at `epoch` (seconds since 1970), the clock's skew included."""
        self.now = 0.0
        self._epoch = epoch
        self._first: float | None = None
        self._second, self._date = -1, ""

    def advance(self, now: float) -> None:
        """Advance the clock; a time before the last one seen changes nothing."""
        if self._first is None:
            self._first = self.now = now
        elif now > self.now:
            self.now = now

    def elapsed(self, now: float) -> float:
        """Return the seconds since the first time seen."""
        return now - (now if self._first is None else self._first)

    def epoch_of(self, now: float) -> float:
        """Return the service's epoch time at `now`."""
        return self._epoch + self.elapsed(now)

    def epoch_at(self, elapsed: float) -> float:
        """Return the service's epoch time `elapsed` seconds after the first time seen."""
        return self._epoch + elapsed

    def date(self, now: float) -> str:
        """Return the value of the `Date` header, truncated to seconds."""
        second = int(self.epoch_of(now) // 1)
        if second != self._second:
            self._second, self._date = second, formatdate(second, usegmt=True)
        return self._date

    def iso(self, now: float) -> str:
        """Return the time in ISO 8601 with milliseconds and `Z`, as the service writes it in bodies."""
        moment = datetime.fromtimestamp(self.epoch_of(now), UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
