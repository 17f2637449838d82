"""Where the jobs come from: a file, looked through before anything is run and then read again, or a stream."""

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
from knouds_async.cli.batch.entries import Entry, Form, read_entries
from knouds_async.cli.batch.lines import FaultyLineError
from knouds_async.cli.exits import UsageError
from knouds_async.cli.words import counted, one_line
from knouds_async.types import Inputs

_CSV: Final = (".csv", ".tsv")
_STDIN: Final = 0
_SHOWN: Final = 5  # how many further faulty lines are named


class Source:
    """The jobs of a file, or with `-` of stdin.

    `is_file`: whether it can be read twice. From stdin, what does not begin as JSON does is CSV.
    """

    def __init__(self, path: Path) -> None:
        """Look what it is; UsageError when it cannot be read."""
        self.is_stdin = str(path) == "-"
        self.name = "stdin" if self.is_stdin else one_line(str(path))
        self._path = path
        self._begin: int | None = None  # where a file begins: its first lines may have been read by somebody else
        try:
            mode = os.fstat(_STDIN).st_mode if self.is_stdin else path.stat().st_mode
            self.is_file = stat.S_ISREG(mode)
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(21, "Is a directory")
            if self.is_file:
                with self._opened() as stream:
                    self._begin = stream.tell()
        except OSError as error:
            raise UsageError(f"{self.name}: {error.strerror}") from None

    @property
    def may_be_csv(self) -> bool:
        """Whether it is CSV, or stdin, of which that is not known before it is read."""
        return self.is_stdin or self._path.suffix.lower() in _CSV

    def count(self) -> int:
        """Look through a file and count its jobs; UsageError for lines that are none and for a key that comes twice."""
        count, seen = 0, Seen()
        faults: list[FaultyLineError] = []
        again: set[str] = set()
        try:
            for entry in self._entries(()):
                if isinstance(entry, FaultyLineError):
                    faults.append(entry)
                    continue
                count += 1
                if entry.key is not None and not seen.add(entry.key):
                    again.add(entry.key)
        except FaultyLineError as error:
            faults.append(error)
        faults += self._repeated(again) if again else ()
        if faults:
            raise _summed_up(faults)
        return count

    def _repeated(self, wanted: set[str]) -> Iterator[FaultyLineError]:
        """Give each line whose key, one of those wanted, is that of a line before it."""
        first: dict[str, int] = {}
        for entry in self._entries(()):
            if isinstance(entry, Entry) and entry.key is not None and entry.key in wanted:
                line = first.setdefault(entry.key, entry.line)
                if line != entry.line:
                    yield FaultyLineError(self.name, entry.line, f"key {entry.key!r} is that of line {line} already")

    def jobs(self, texts: Collection[str] = (), most: int | None = None) -> Iterator[Job | Inputs]:
        """Give each job, or inputs that have no key, up to `most`; raises FaultyLineError.

        Cells under the inputs that `texts` names stay text.
        """
        for entry in islice(self._entries(texts), most):
            if isinstance(entry, FaultyLineError):
                raise entry
            yield entry.inputs if entry.key is None else Job(entry.key, entry.inputs)

    def _entries(self, texts: Collection[str]) -> Iterator[Entry | FaultyLineError]:
        with self._opened() as stream:
            is_csv = not _begins_as_json(stream) if self.is_stdin else self.may_be_csv
            yield from read_entries(stream, Form(self.name, is_csv, texts))

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        with open(_STDIN if self.is_stdin else self._path, "rb", closefd=not self.is_stdin) as stream:
            if self._begin is not None:
                stream.seek(self._begin)
            yield stream


def _begins_as_json(stream: BinaryIO) -> bool:
    peeked: bytes = stream.peek(64)  # type: ignore[attr-defined]  # every one that `open` gives is a BufferedReader
    return peeked.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[", b"")


def _summed_up(faults: list[FaultyLineError]) -> UsageError:
    """Say the first fault and where the others are, in one line."""
    first, *others = sorted(faults, key=lambda fault: fault.line)
    if not others:
        return first
    numbers = ", ".join(str(fault.line) for fault in others[:_SHOWN]) + (", ..." if len(others) > _SHOWN else "")
    return UsageError(f"{first}; {counted(len(others), 'more faulty line')}: {numbers}")


@attrs.frozen
class CountedJobs:
    """The jobs of a file that was looked through: their number is known, and they are read as they are wanted."""

    source: Source
    texts: Collection[str]
    total: int

    def __len__(self) -> int:
        """Give their number."""
        return self.total

    def __iter__(self) -> Iterator[Job | Inputs]:
        """Read them."""
        return self.source.jobs(self.texts, self.total)
