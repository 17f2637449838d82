"""The clocks of a machine, to be stepped, stopped and put to sleep, for all code of this process.

Rule of the file: nothing here knows of the library. `time.time`, `time.monotonic`, `time.clock_gettime` and
`datetime.now` all follow the same machine, so what one clock shows of a sleep the others show too.
"""

from __future__ import annotations

import datetime as dt
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

Real = dt.datetime
_MODULES: Final = ("knouds_async", "email")


class Machine(Protocol):
    """What the clocks of one machine show, in seconds; of a machine that is ours, or of one that is shared."""

    def monotonic(self) -> float:
        """Return the seconds that the machine has been awake."""
        ...

    def boot_time(self) -> float:
        """Return the seconds since it was started, asleep or not."""
        ...

    def wall(self) -> float:
        """Return the epoch seconds that it believes in."""
        ...


class _AnyDatetime(type):
    """Make every datetime an instance of the class that replaces it."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, Real)


def stand_in(machine: Machine) -> type[Real]:
    """Return a datetime class whose `now` is the machine's."""

    class Datetime(Real, metaclass=_AnyDatetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return Real.fromtimestamp(machine.wall(), tz)

        @classmethod
        def utcnow(cls) -> Any:
            return Real.fromtimestamp(machine.wall(), dt.UTC).replace(tzinfo=None)

    return Datetime


def readers(machine: Machine) -> dict[str, Callable[..., Any]]:
    """Return the functions of `time` as the machine has them; a clock that is not stepped stays as it is."""
    gettime = time.clock_gettime
    shown: dict[int, Callable[[], float]] = {
        time.CLOCK_REALTIME: machine.wall,
        time.CLOCK_MONOTONIC: machine.monotonic,
        getattr(time, "CLOCK_BOOTTIME", -1): machine.boot_time,
    }

    def clock_gettime(clock: int) -> float:
        return shown[clock]() if clock in shown else gettime(clock)

    return {
        "time": machine.wall,
        "time_ns": lambda: int(machine.wall() * 1e9),
        "monotonic": machine.monotonic,
        "monotonic_ns": lambda: int(machine.monotonic() * 1e9),
        "clock_gettime": clock_gettime,
        "clock_gettime_ns": lambda clock: int(clock_gettime(clock) * 1e9),
    }


def install(machine: Machine) -> None:
    """Make this process read the machine's clocks for good; to be called before the library is imported."""
    for name, reader in readers(machine).items():
        setattr(time, name, reader)
    dt.datetime = stand_in(machine)  # type: ignore[misc]


@contextmanager
def installed(machine: Machine) -> Iterator[None]:
    """Make this process read the machine's clocks while the block runs; the library is imported already."""
    before = {name: getattr(time, name) for name in readers(machine)}
    there = stand_in(machine)
    users = [module for name, module in sys.modules.items() if name.startswith(_MODULES)]
    users = [module for module in users if getattr(module, "datetime", None) is Real]
    for name, reader in readers(machine).items():
        setattr(time, name, reader)
    for module in users:
        module.datetime = there  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name, reader in before.items():
            setattr(time, name, reader)
        for module in users:
            module.datetime = Real  # type: ignore[attr-defined]
