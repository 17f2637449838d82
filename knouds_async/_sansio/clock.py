"""The service's clock, seen from here, as an interval: what a window needs of it, and what a proof needs of it. Pure.

Local times are monotonic seconds, the service's are epoch seconds; only an interval joins them. For a proof that a
submit began no run the bounds have to be honest also on a machine that slept or whose clock was set.
"""

from __future__ import annotations

import math
from typing import Final

import attrs

from knouds_async.types import Record

DRIFT: Final = 1e-4
"""Seconds by which two clocks can part in a second: about ten times what common crystals do."""


@attrs.frozen(eq=False, repr=False)
class ClockBounds(Record):
    """Bounds on (server epoch seconds - local monotonic seconds); a new value for every response (contract 6)."""

    lo: float = -math.inf
    hi: float = math.inf
    at: float = 0.0

    @property
    def known(self) -> bool:
        """Return whether any `Date` header has been received."""
        return self.lo > -math.inf

    def update(self, date: float, sent: float, answered: float, *, resolution: float = 1.0) -> ClockBounds:
        """Update from a server's time, cut to its `resolution`, in answer to a request `sent` and `answered` then.

        The server read it between those two local moments: the difference is in [date - answered, date + 1 - sent] for
        a `Date` header.
        What was known before counts too, a little widened for drift; when the two contradict each other,
        a clock was set and only the newest counts.
        """
        lo, hi = date - answered, date + resolution - sent
        drift = DRIFT * max(0.0, answered - self.at)
        both_lo, both_hi = max(lo, self.lo - drift), min(hi, self.hi + drift)
        if both_lo > both_hi:
            return ClockBounds(lo, hi, answered)
        return ClockBounds(both_lo, both_hi, answered)

    def server_time(self, now: float) -> float | None:
        """Estimate the server's epoch time at the local moment `now`; None before any `Date` was received."""
        return now + (self.lo + self.hi) / 2 if self.known else None


RECENT: Final = 600.0
"""Seconds for which a `Date` that was received still dates anything."""

JUMP: Final = 1.0
"""Seconds by which clocks of one machine may part before one of them was set, or stood still in a sleep."""


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Reading:
    """What the clocks of this machine showed at one moment, in seconds.

    `loop`: the event loop's, None outside of it; `steady`: monotonic, it stands still while a machine sleeps; `boot`:
    since the boot, sleep included, None where the system has none; `wall`: epoch seconds, which anybody may set.
    """

    loop: float | None
    steady: float
    boot: float | None
    wall: float

    def since(self, earlier: Reading) -> float:
        """Return the seconds since an earlier reading: the most that any clock shows."""
        passed = max(self.steady - earlier.steady, self.wall - earlier.wall)
        for now, then in ((self.loop, earlier.loop), (self.boot, earlier.boot)):
            if now is not None and then is not None:
                passed = max(passed, now - then)
        return passed

    def has_jumped_since(self, earlier: Reading) -> bool:
        """Return whether the machine slept, or its wall clock was set, since an earlier reading."""
        steady = self.steady - earlier.steady
        boot = steady if self.boot is None or earlier.boot is None else self.boot - earlier.boot
        return abs(boot - steady) > JUMP or abs(self.wall - earlier.wall - steady) > JUMP


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Moment(Record):
    """A moment, dated by the service's clock as far as it was known, and by this machine's.

    `earliest`, `latest`: epoch seconds of the service, None when its clock was not known; `wall`: epoch seconds of this
    machine; `known`: how the service's clock was known, in words.
    """

    wall: float
    earliest: float | None = None
    latest: float | None = None
    known: str = "the service's clock was not known"

    @property
    def is_known(self) -> bool:
        """Whether there are bounds by the service's clock."""
        return self.earliest is not None and self.latest is not None

    @property
    def middle(self) -> float:
        """The best guess, in epoch seconds: the middle of the bounds, else what this machine's clock showed."""
        if self.earliest is None or self.latest is None:
            return self.wall
        return (self.earliest + self.latest) / 2


UNDATED: Final = Moment(wall=0.0)
"""A moment of which nothing is known."""


@attrs.frozen(eq=False, repr=False)
class ServiceClock:
    """What is known of the service's clock, for proofs: nothing from caches, nothing old, nothing after a jump."""

    bounds: ClockBounds = ClockBounds()
    updated_at: Reading | None = None

    def update(self, date: float, sent: Reading, answered: Reading) -> ServiceClock:
        """Update from the `Date` (epoch seconds) of an answer of the service's own; after a jump it is worthless.

        A date that contradicts what is known may come from a cache, or what is known may: then both bound the clock.
        """
        if sent.loop is None or answered.loop is None or answered.has_jumped_since(sent):
            return ServiceClock()
        lo, hi = date - answered.loop, date + 1 - sent.loop
        if (known := self._bounds(answered)) is not None:
            agreed = max(lo, known.lo), min(hi, known.hi)
            lo, hi = agreed if agreed[0] <= agreed[1] else (min(lo, known.lo), max(hi, known.hi))
        return ServiceClock(ClockBounds(lo, hi, answered.loop), answered)

    def moment(self, now: Reading) -> Moment:
        """Return what is known of the moment `now`, which may lie before the clock was known."""
        known, at = self._bounds(now), self.updated_at
        if known is not None:
            earliest, latest = known.at + known.lo - JUMP, known.at + known.hi + JUMP
            return Moment(wall=now.wall, earliest=earliest, latest=latest, known="the service's clock was known")
        if at is None:
            return Moment(wall=now.wall)
        why = "this machine slept or its clock was set" if now.has_jumped_since(at) else "not within ten minutes"
        return Moment(wall=now.wall, known=f"the service's clock was known, but {why}")

    def _bounds(self, now: Reading) -> ClockBounds | None:
        """Return the bounds with the drift since they were learned; None when they date nothing any more."""
        at = self.updated_at
        if at is None or at.loop is None or now.loop is None or now.has_jumped_since(at):
            return None
        apart = max(now.since(at), at.since(now))
        if apart > RECENT:
            return None
        drift = DRIFT * apart
        return ClockBounds(self.bounds.lo - drift, self.bounds.hi + drift, now.loop)


def begun_between(since: Moment | None, until: Moment | None, lasts: float) -> tuple[float, float] | None:
    """Return between when a submit can have begun a run, epoch seconds by the service's clock; None: not known.

    It left after `since`, and begins none after `until`; a synchronous one may for `lasts` seconds after it left.
    """
    if since is None or until is None or since.earliest is None or since.latest is None or until.latest is None:
        return None
    return since.earliest, max(until.latest, since.latest + lasts)
