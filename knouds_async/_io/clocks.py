"""Read the clocks of this machine, and date moments by the service's; what follows from them is in `_sansio/clock`."""

from __future__ import annotations

import time
from typing import Final

import anyio

from knouds_async._sansio.clock import Moment, Reading, ServiceClock

_BOOT: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)
_OFTEN: Final = 15.0  # seconds after which answers are heard again; those of paid requests always are
_ASKED: Final = 60.0  # seconds after which a service that told no time may be asked for it again


def read_clocks(loop: float | None = None) -> Reading:
    """Return what all clocks show now; `loop`: the event loop's time, where there is one. Callable from any thread."""
    boot = None if _BOOT is None else time.clock_gettime(_BOOT)
    return Reading(loop=loop, steady=time.monotonic(), boot=boot, wall=time.time())


class ServiceTime:
    """The service's clock as one client heard it, for what has to be proven by dates."""

    def __init__(self) -> None:
        self._clock = ServiceClock()
        self._asked: Reading | None = None
        self._is_wanted = False

    def hear(self, date: float | None, sent: Reading) -> None:
        """Take in the `Date` (epoch seconds) of an answer of the service's own; None where it has none to go by."""
        self._is_wanted = False
        if date is not None:
            self._clock = self._clock.update(date, sent, read_clocks(anyio.current_time()))

    def moment(self, at: Reading | None = None) -> Moment:
        """Return a moment, this one by default, dated as certainly as it can be by now."""
        return self._clock.moment(at or read_clocks(anyio.current_time()))

    def is_due(self, loop: float) -> bool:
        """Return whether the service's clock should be heard again at a time of the event loop's, by any answer."""
        heard = self._clock.heard_at
        return self._is_wanted or heard is None or heard.loop is None or loop - heard.loop > _OFTEN

    def is_worth_asking(self) -> bool:
        """Return whether the service's clock is not known, and a request could tell it."""
        now, asked = read_clocks(anyio.current_time()), self._asked
        if self._clock.moment(now).is_known:
            return False
        self._is_wanted = True
        return asked is None or now.since(asked) > _ASKED or now.has_jumped_since(asked)

    def asked(self) -> None:
        """Note that the service was asked for its time."""
        self._asked = read_clocks(anyio.current_time())
