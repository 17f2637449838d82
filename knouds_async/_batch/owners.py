"""The owners of jobs in a ledger's file: each is a lock on one byte of a file beside it, held by a process for life.

Only the end of the program ends it: a process id, its start and the boot are also those of the program that `execve`
puts in its place, and of others in containers that share the volume. A forked child inherits no such lock.

Rule of the file: POSIX drops all locks that a process holds on a file when it closes any descriptor of it, so a process
has one descriptor of each file, however many ledgers share it.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_LOCKED: Final = (PermissionError, BlockingIOError)
_NAME: Final = re.compile(r"[0-9a-f]{12}")
_registry = threading.Lock()


class Owners:
    """The owners of one ledger, of this process and of others."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.users = 0
        self._own: dict[str, Callable[[], bool]] = {}

    @classmethod
    def open(cls, ledger: Path) -> Owners:
        """Open the file beside a ledger, or create it; it is to be closed as often."""
        file = ledger.resolve()  # like SQLite's journal, beside what a symbolic link leads to
        path = file.with_name(f"{file.name}-owners")
        with _registry:
            owners = _opened.get(_identity(path.stat())) if path.exists() else None
            if owners is None:
                owners = cls(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
                owners = _opened.setdefault(_identity(os.fstat(owners.descriptor)), owners)
            owners.users += 1
            return owners

    def close(self) -> None:
        """Close the file, unless another ledger uses it."""
        with _registry:
            self.users -= 1
            if self.users == 0:
                del _opened[_identity(os.fstat(self.descriptor))]
                os.close(self.descriptor)

    def join(self, has_ended: Callable[[], bool] = lambda: False) -> str:
        """Return the name of a new owner, which lives until it or this program ends.

        `has_ended`: tells whether the owner's event loop has, so that nobody is there to end it.
        """
        while not _try_lock(self.descriptor, _place(owner := os.urandom(6).hex())):
            pass
        self._own[owner] = has_ended
        return owner

    def end(self, owner: str) -> None:
        """End an owner of this process; of any other nothing happens."""
        if self._own.pop(owner, None) is not None:  # one of several threads that meet the end of a loop
            _unlock(self.descriptor, _place(owner))

    def is_alive(self, owner: str) -> bool:
        """Return whether an owner may still work; to be called within a transaction: a test holds the lock a moment."""
        if (has_ended := self._own.get(owner)) is not None:  # its own lock does not keep a process out
            if has_ended():
                self.end(owner)
            return owner in self._own
        if _NAME.fullmatch(owner) is None:  # of an earlier form of ledgers
            return False
        try:
            if not _try_lock(self.descriptor, _place(owner)):
                return True
        except OSError:  # the system does not say
            return True
        _unlock(self.descriptor, _place(owner))
        return False


_opened: Final[dict[tuple[int, int], Owners]] = {}


def end(owner: str) -> None:
    """End an owner of this process, whichever ledger it is of."""
    for owners in list(_opened.values()):
        owners.end(owner)


def check_locks(folder: Path) -> None:
    """Raise OSError for a folder whose file system has no locks: SQLite would take each file for locked."""
    import tempfile  # rarely needed

    with tempfile.TemporaryFile(dir=folder) as file:
        _try_lock(file.fileno(), 0)


def _identity(file: os.stat_result) -> tuple[int, int]:
    return file.st_dev, file.st_ino


def _place(owner: str) -> int:
    return int(owner, 16) & 0x7FFF_FFFF if sys.platform == "win32" else int(owner, 16)


def _try_lock(descriptor: int, place: int) -> bool:
    """Lock a byte, and return whether no other process has it; OSError where there are no locks."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, place, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
    except _LOCKED:
        return False
    except OSError as error:
        message = f"its file system has no locks ({error.strerror}): a ledger needs a local disk"
        raise OSError(error.errno, message) from None
    return True


def _unlock(descriptor: int, place: int) -> None:
    if sys.platform == "win32":
        os.lseek(descriptor, place, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, place)


def _forget() -> None:
    """Begin anew in a forked child, where no lock of the parent's is held."""
    global _registry  # noqa: PLW0603  (a thread of the parent's may have held it)
    _registry = threading.Lock()
    while _opened:
        _, owners = _opened.popitem()
        os.close(owners.descriptor)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
