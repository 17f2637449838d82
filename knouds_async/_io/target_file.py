"""A file that is there whole or not at all: written under another name in the same folder, then moved into place.

Rule of the file: blocking; call it in a thread. Nothing is overwritten unless that was asked for.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


class TargetFile:
    """One file on its way into a folder."""

    def __init__(self, folder: Path) -> None:
        """Open an exclusive temporary in `folder`; OSError when that cannot be done."""
        self._folder = folder
        self._path = folder / f".knouds-{secrets.token_hex(8)}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._file = os.fdopen(os.open(self._path, flags, 0o666), "wb", buffering=0)

    def write(self, chunk: bytes) -> None:
        """Append bytes."""
        rest = memoryview(chunk)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]

    def restart(self) -> None:
        """Begin anew."""
        self._file.seek(0)
        self._file.truncate()

    def finish(self, path: Path, *, overwrite: bool) -> None:
        """Move the file to its place, durably; FileExistsError when there is one and it is not to be overwritten."""
        os.fsync(self._file.fileno())
        self._file.close()
        if overwrite:
            self._path.replace(path)
        else:
            self._link(path)
        _sync(self._folder)

    def _link(self, path: Path) -> None:
        """Move without overwriting, in one step where the file system has hard links."""
        try:
            os.link(self._path, path)
        except FileExistsError:
            raise
        except OSError:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))  # the name is ours from here on
            self._path.replace(path)
            return
        self._path.unlink()

    def discard(self) -> None:
        """Leave nothing behind; after `finish` there is nothing left to do."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Make a new name durable, where folders can be synced."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
