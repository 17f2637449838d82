"""The file of results: JSON Lines, one line per job, appended; opening it repairs a line that a crash cut off.

The ledger is the record, this is a copy. A line is written completely or not at all, each job has at most one, and a
line lost here is restored from the ledger when the batch is run again.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from knouds_async._sansio.keys import Seen
from knouds_async.cli.batch.mending import KeepLine, lock, recover
from knouds_async.cli.exits import UsageError
from knouds_async.cli.words import one_line


class ResultsFile:
    """An open file of results."""

    def __init__(self, path: Path, keep: KeepLine) -> None:
        """Open or create a file to append to; lines that `keep` rejects are removed, to be written again.

        Raises UsageError, with the file unchanged, when it cannot be opened, holds something else, or is locked.
        """
        self._path = path.resolve()  # replace the target, not the link
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            self._is_regular = stat.S_ISREG(os.fstat(self._file).st_mode)
            self._keys = self._recover(keep) if self._is_regular else Seen()
        except OSError as error:
            raise UsageError(f"--out {one_line(str(path))}: {error.strerror}") from None

    def remove(self, keys: Collection[str]) -> None:
        """Remove the lines of jobs that were run again; raises UsageError when the file cannot be written."""
        try:
            self._file, self._keys = recover(self._file, self._path, lambda line: line["key"] not in keys)
            self._end = os.lseek(self._file, 0, os.SEEK_END)
        except OSError as error:
            raise UsageError(f"--out {one_line(str(self._path))}: {error.strerror}") from None

    def _recover(self, keep: KeepLine) -> Seen:
        try:
            lock(self._file, self._path)
            self._file, keys = recover(self._file, self._path, keep)
        except BaseException:
            os.close(self._file)
            raise
        self._end = os.lseek(self._file, 0, os.SEEK_END)
        return keys

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line, unless its job has one; raises OSError, with the file unchanged, when it cannot be written."""
        if not self._keys.add(line["key"]):
            return
        try:
            self._append(encode_line(line))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def _append(self, data: bytes) -> None:
        remaining = memoryview(data)
        try:
            while remaining:
                remaining = remaining[os.write(self._file, remaining) :]
        except OSError:
            if self._is_regular:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._end)
                    os.lseek(self._file, self._end, os.SEEK_SET)
            raise
        if self._is_regular:
            self._end += len(data)

    def close(self) -> None:
        """Flush the lines to the disk and release the lock."""
        with contextlib.suppress(OSError):  # the ledger has it all
            os.fsync(self._file)
        os.close(self._file)


def encode_line(line: Mapping[str, Any]) -> bytes:
    """Return a line as ASCII JSON, so that no reader sees a line end inside it."""
    return (json.dumps(line, default=str) + "\n").encode("ascii")
