"""The source of jobs: a file, checked before anything is run and then read again, or a stream."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

import attrs

from knouds_async._sansio.keys import Seen
from knouds_async.batch.jobs import Job
from knouds_async.cli.batch.entries import FileFormat, FileJob, read_jobs
from knouds_async.cli.batch.lines import InvalidLineError
from knouds_async.cli.exits import UsageError
from knouds_async.cli.words import one_line, plural
from knouds_async.types import Inputs

_CSV: Final = (".csv", ".tsv")
_STDIN: Final = 0
_MAX_LISTED: Final = 5  # further lines that are named


class JobSource:
    """The jobs in a file, or with `-` on stdin.

    `is_file`: whether it can be read twice. On stdin, what does not begin like JSON is CSV.
    """

    def __init__(self, path: Path) -> None:
        """Check that it can be read; raises UsageError otherwise."""
        self.is_stdin = str(path) == "-"
        self.name = "stdin" if self.is_stdin else one_line(str(path))
        self._path = path
        self._offset: int | None = None  # of stdin: its first lines may have been read already
        try:
            mode = os.fstat(_STDIN).st_mode if self.is_stdin else path.stat().st_mode
            self.is_file = stat.S_ISREG(mode)
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(21, "Is a directory")
            if self.is_file:
                with self._open() as stream:
                    self._offset = stream.tell()
        except OSError as error:
            raise UsageError(f"{self.name}: {error.strerror}") from None

    @property
    def may_be_csv(self) -> bool:
        """Whether it is CSV; True for stdin, as that is not known before it is read."""
        return self.is_stdin or self._path.suffix.lower() in _CSV

    def count(self) -> int:
        """Check a file and return the number of its jobs; raises UsageError for invalid lines and duplicate keys."""
        count, seen = 0, Seen()
        errors: list[InvalidLineError] = []
        duplicates: set[str] = set()
        try:
            for entry in self._read_jobs(()):
                if isinstance(entry, InvalidLineError):
                    errors.append(entry)
                    continue
                count += 1
                if entry.key is not None and not seen.add(entry.key):
                    duplicates.add(entry.key)
        except InvalidLineError as error:
            errors.append(error)
        errors += self._find_duplicates(duplicates) if duplicates else ()
        if errors:
            raise _combined(errors)
        return count

    def _find_duplicates(self, keys: set[str]) -> Iterator[InvalidLineError]:
        """Yield an error for each line whose key, one of `keys`, is that of an earlier line."""
        first: dict[str, int] = {}
        for entry in self._read_jobs(()):
            if isinstance(entry, FileJob) and entry.key is not None and entry.key in keys:
                line = first.setdefault(entry.key, entry.line)
                if line != entry.line:
                    yield InvalidLineError(self.name, entry.line, f"duplicate key {entry.key!r}, first in line {line}")

    def jobs(self, text_inputs: Collection[str] = (), limit: int | None = None) -> Iterator[Job | Inputs]:
        """Yield each job, or inputs without a key, up to `limit`; raises InvalidLineError.

        Cells of the inputs in `text_inputs` stay strings.
        """
        for entry in islice(self._read_jobs(text_inputs), limit):
            if isinstance(entry, InvalidLineError):
                raise entry
            yield entry.inputs if entry.key is None else Job(entry.key, entry.inputs)

    def _read_jobs(self, text_inputs: Collection[str]) -> Iterator[FileJob | InvalidLineError]:
        with self._open() as stream:
            is_csv = not _looks_like_json(stream) if self.is_stdin else self.may_be_csv
            yield from read_jobs(stream, FileFormat(self.name, is_csv, text_inputs))

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        with open(_STDIN if self.is_stdin else self._path, "rb", closefd=not self.is_stdin) as stream:
            if self._offset is not None:
                stream.seek(self._offset)
            yield stream


def _looks_like_json(stream: BinaryIO) -> bool:
    peeked: bytes = stream.peek(64)  # type: ignore[attr-defined]  # every one that `open` gives is a BufferedReader
    return peeked.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[", b"")


def _combined(errors: list[InvalidLineError]) -> UsageError:
    """Return one error: the first, and the line numbers of the others."""
    first, *others = sorted(errors, key=lambda error: error.line)
    if not others:
        return first
    numbers = ", ".join(str(error.line) for error in others[:_MAX_LISTED]) + (
        ", ..." if len(others) > _MAX_LISTED else ""
    )
    return UsageError(f"{first}; {plural(len(others), 'more invalid line')}: {numbers}")


@attrs.frozen
class CountedJobs:
    """The jobs of a file that was checked: their number is known, and they are read lazily."""

    source: JobSource
    text_inputs: Collection[str]
    total: int

    def __len__(self) -> int:
        """Return the number of jobs."""
        return self.total

    def __iter__(self) -> Iterator[Job | Inputs]:
        """Read the jobs."""
        return self.source.jobs(self.text_inputs, self.total)
