"""The clocks of a machine whose processes are real: three offsets in a file, which is read whenever a clock is."""

from __future__ import annotations

import mmap
import struct
import time
from pathlib import Path
from typing import Final

_FORM: Final = struct.Struct("ddd")


class SharedClocks:
    """Offsets from the true clocks, in seconds: of the time awake, the time since the start, and the epoch."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(_FORM.pack(0.0, 0.0, 0.0))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _FORM.size)
        self._monotonic, self._gettime = time.monotonic, time.clock_gettime  # before anybody replaces them
        self._boot_clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
        self._wall = time.time

    def close(self) -> None:
        """Close the file."""
        self._memory.close()

    def move(self, *, awake: float = 0.0, asleep: float = 0.0, wall: float = 0.0) -> None:
        """Advance the time, awake or asleep, and set the wall clock."""
        monotonic, boot, epoch = self._offsets()
        self._memory[:] = _FORM.pack(monotonic + awake, boot + awake + asleep, epoch + awake + asleep + wall)

    def monotonic(self) -> float:
        """Return the seconds awake."""
        return self._monotonic() + self._offsets()[0]

    def boot_time(self) -> float:
        """Return the seconds since the start."""
        return self._gettime(self._boot_clock) + self._offsets()[1]

    def wall(self) -> float:
        """Return the epoch seconds."""
        return self._wall() + self._offsets()[2]

    def _offsets(self) -> tuple[float, float, float]:
        monotonic, boot, epoch = _FORM.unpack(self._memory[:])
        return monotonic, boot, epoch
