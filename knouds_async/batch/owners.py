"""Who works on a job: a batch in a process, named so that any process of the machine can tell whether it still lives.

Rule of the file: a process id alone tells nothing, for ids are used again; with the time at which the process started
and the boot of the machine it names one process for ever. Nothing is judged by how much time has passed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_UNKNOWN: Final = "-"
_ended: Final[set[str]] = set()


def new_owner() -> str:
    """Name a new owner in this process: boot, process, start of the process, and a name of its own."""
    return " ".join((_boot(), str(os.getpid()), _started(os.getpid()) or _UNKNOWN, os.urandom(6).hex()))


def end(owner: str) -> None:
    """Take note that an owner of this process is no more, though no ledger could be told."""
    _ended.add(owner)


def is_alive(owner: str) -> bool:
    """Tell whether the process of an owner may still be there."""
    boot, process, started, *_ = [*owner.split(" "), "", ""]
    if owner in _ended:
        return False
    if boot != _boot() or not process.isdecimal():
        return False
    if started != _UNKNOWN:
        return _started(int(process)) == started
    return _is_running(int(process))


def _boot() -> str:
    """Name the boot of this machine; where there is no such name, the machine."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        import uuid  # it is slow to load, and rarely needed

        return f"{uuid.getnode():x}"


def _started(process: int) -> str | None:
    """Give when a process started, in ticks since the boot; None when it is not there, or the system does not say."""
    try:
        line = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    state, *_, started = line[line.rindex(")") + 2 :].split(" ")[:20]
    return None if state in ("Z", "X") else started  # a zombie has ended; its parent has not looked yet


def _is_running(process: int) -> bool:
    """Tell whether there is such a process, on a POSIX system without /proc; elsewhere only this one is known."""
    if os.name != "posix":
        return process == os.getpid()
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
