"""The file of results: JSON Lines, one line a job, appended; a line that a crash tore is mended when it is opened.

Rule of the file: the ledger is the record, this is its copy. So a line is written whole or not at all, none is written
for a job that has one, and whatever is lost here comes out of the ledger when the batch is run again.
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
        """Open a file to append to it, made if need be; a line that `keep` refuses is taken out, to be made anew.

        UsageError, with the file left as it is, when it cannot be had, holds something else, or is another process's.
        """
        self._path = path.resolve()  # what a link points to is what is written and replaced
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            self._is_regular = stat.S_ISREG(os.fstat(self._file).st_mode)
            self._keys = self._recover(keep) if self._is_regular else Seen()
        except OSError as error:
            raise UsageError(f"--out {one_line(str(path))}: {error.strerror}") from None

    def remove(self, keys: Collection[str]) -> None:
        """Take out the lines of jobs that were run once more; UsageError when the file cannot be written."""
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
        """Append a line, unless its job has one; OSError, with the file as it was, when it is not taken whole."""
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
        """Make the lines durable and let other processes in."""
        with contextlib.suppress(OSError):  # what does not reach the disk is in the ledger
            os.fsync(self._file)
        os.close(self._file)


def encode_line(line: Mapping[str, Any]) -> bytes:
    """Give a line as it is written: JSON of ASCII alone, so that no reader sees a line end inside it."""
    return (json.dumps(line, default=str) + "\n").encode("ascii")
