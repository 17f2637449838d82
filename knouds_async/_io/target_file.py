"""A file that is there whole or not at all: written under another name in the same folder, then moved into place.

Blocking; call it by `in_thread`. Nothing is overwritten unless that was asked for.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
from pathlib import Path
from typing import Final

_NO_LINKS: Final = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK)


class TargetFile:
    """One file on its way into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f".knouds-{secrets.token_hex(8)}.part"
        self._file: io.FileIO | None = None

    def open(self) -> None:
        """Open an exclusive temporary in the folder; OSError when that cannot be done."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._file = io.FileIO(os.open(self._path, flags, 0o666), "wb")

    def write(self, chunk: bytes) -> None:
        """Append bytes."""
        assert self._file is not None  # noqa: S101  (here and below: it was opened)
        rest = memoryview(chunk)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]

    def restart(self) -> None:
        """Start again with an empty file."""
        assert self._file is not None  # noqa: S101
        self._file.seek(0)
        self._file.truncate()

    def finish(self, path: Path, *, overwrite: bool) -> None:
        """Move the file to its place, durably; FileExistsError when there is one and it is not to be overwritten."""
        assert self._file is not None  # noqa: S101
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
        except OSError as error:
            if not _has_no_links(error):
                raise
            self._replace_reserved(path)
        else:
            self._path.unlink()

    def _replace_reserved(self, path: Path) -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))  # the name is ours from here on
        try:
            self._path.replace(path)
        except BaseException:
            path.unlink()
            raise

    def discard(self) -> None:
        """Remove the temporary file; after `finish` there is nothing left to do."""
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def _has_no_links(error: OSError) -> bool:
    """Return whether an error of `link` says that the file system has no hard links, or no more of them."""
    return error.errno in _NO_LINKS or getattr(error, "winerror", None) in (1, 50)  # invalid function, not supported


def _sync(folder: Path) -> None:
    """Sync a new name to disk, where folders can be synced."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
