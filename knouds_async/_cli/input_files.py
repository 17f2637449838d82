"""The inputs that people give: as key=value, in a JSON file, or the jobs of `knouds batch` in JSON Lines or CSV.

What is given is read once, and exactly, or it is refused. A value on the command line is a string where the schema says
text; any other is JSON where it is valid JSON (3, true, null, [1, 2], "3"), else a string. Of jobs at most one line is
in memory. An empty line is skipped; any other line that is not a job is an InvalidLineError. Where lines after it can
still be read, the error is yielded in place of the job, so that the whole file can be checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import os
import stat
import sys
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Final, ParamSpec, TypeVar

import attrs

from knouds_async import Job, SchemaField, WorkflowSchema
from knouds_async._batch.jobs import LONGEST_KEY
from knouds_async._cli.errors import UsageError
from knouds_async._cli.output import one_line, plural
from knouds_async._sansio.keys import Seen
from knouds_async._sansio.responses import InexactValueError, strict_json
from knouds_async.config import is_integer
from knouds_async.types import Inputs

_TEXT_TYPES: Final = ("text", "textarea", "image", "video")


def text_inputs(schema: WorkflowSchema) -> frozenset[str]:
    """Return the inputs that are strings according to a workflow's schema."""
    return frozenset(field.name for field in schema.fields if _takes_text(field))


def _takes_text(field: SchemaField) -> bool:
    has_text_options = bool(field.options) and all(isinstance(option, str) for option in field.options)
    return has_text_options or field.type in _TEXT_TYPES


@attrs.frozen
class GivenInputs:
    """The inputs of a run as they were given: those of a file, and strings for which the schema has the last word."""

    file: Mapping[str, Any]
    pairs: Mapping[str, str]

    def read(self, texts: Collection[str] = ()) -> dict[str, Any]:
        """Return all inputs; a pair wins over the file, and one named in `texts` is a string."""
        try:
            return {**self.file, **{name: self._read_pair(name, text, texts) for name, text in self.pairs.items()}}
        except InexactValueError as error:
            raise UsageError(str(error)) from None

    def _read_pair(self, name: str, text: str, texts: Collection[str]) -> Any:
        is_quoted = text.startswith('"')  # "3" is the string 3 everywhere
        return text if name in texts and not is_quoted else read_value(text)


def read_inputs(pairs: Sequence[str], file: Path | None) -> GivenInputs:
    """Return the inputs in a file and in `key=value` strings; raises UsageError when they cannot be read."""
    given: dict[str, str] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"{pair!r} is not an input: write key=value")
        if key in given:
            raise UsageError(f"{key}=... is given twice")
        given[key] = text
    return GivenInputs({} if file is None else _read_file(file), given)


def read_value(text: str) -> Any:
    """Return a value parsed as JSON, or the string itself; raises InexactValueError."""
    try:
        return strict_json(text, is_exact=True)
    except InexactValueError:
        raise
    except ValueError:
        return text


MAX_LINE_BYTES: Final = 32 * 1024**2
"""Most bytes of a line; a file without line ends is not a file of jobs."""

_BOM: Final = b"\xef\xbb\xbf"
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")
_STDIN: Final = 0


def _decode(data: bytes) -> str:
    """Return UTF-8 as text, with or without a byte order mark; raises ValueError."""
    if data.startswith(_UTF_16):
        raise ValueError("the file is UTF-16; save it as UTF-8")
    data = data.removeprefix(_BOM)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise ValueError(f"byte {error.start + 1} (0x{byte:02x}) is not UTF-8; save the file as UTF-8") from None


def _read_file(file: Path) -> dict[str, Any]:
    is_stdin = str(file) == "-"
    name = "stdin" if is_stdin else one_line(str(file))
    try:
        with open(check_stdin() if is_stdin else file, "rb", closefd=not is_stdin) as stream:
            data = stream.read(MAX_LINE_BYTES + 1)
        if len(data) > MAX_LINE_BYTES:
            raise UsageError(f"--input-file {name}: longer than {MAX_LINE_BYTES // 1024**2} MiB")
        inputs = _parse_json(_decode(data))
    except OSError as error:
        raise UsageError(f"--input-file {name}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"--input-file {name}: {error}") from None
    if not isinstance(inputs, dict):
        raise UsageError(f"--input-file {name} must hold a JSON object, from input names to values")
    return inputs


def check_stdin(advice: str = "pipe the inputs to it, or name a file") -> int:
    """Return the file descriptor of stdin; raises UsageError, with advice, when it is closed."""
    if sys.stdin is None:
        raise UsageError(f"stdin is closed: {advice}")
    return _STDIN


def _parse_json(text: str) -> Any:
    """Return JSON; raises ValueError with words for people."""
    try:
        return strict_json(text, is_exact=True)
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno} column {error.colno}"
        raise ValueError(f"not JSON: {error.msg} at {where}") from None


class InvalidLineError(UsageError):
    """A line is not a job; `line` counts from 1, `why` says what is wrong with it."""

    def __init__(self, name: str, line: int, why: str) -> None:
        super().__init__(one_line(f"{name} line {line}: {why}"))
        self.line = line


@attrs.frozen
class NumberedLine:
    """A line of text with its line end, and its number from 1."""

    number: int
    text: str


def read_lines(stream: BinaryIO, name: str) -> Iterator[NumberedLine]:
    """Yield each line of a UTF-8 stream, with or without a byte order mark."""
    for number, raw in enumerate(_split_lines(stream), 1):
        if len(raw) > MAX_LINE_BYTES:
            raise InvalidLineError(name, number, f"longer than {MAX_LINE_BYTES // 1024**2} MiB")
        try:
            text = _decode(raw) if number == 1 else raw.decode("utf-8")
        except UnicodeDecodeError as error:
            why = f"byte {error.start + 1} (0x{raw[error.start]:02x}) is not UTF-8; save the file as UTF-8"
            raise InvalidLineError(name, number, why) from None
        except ValueError as error:
            raise InvalidLineError(name, number, str(error)) from None
        yield NumberedLine(number, text)


def _split_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines with their ends; where the first ends in CR alone, as spreadsheets of the Mac write it, so do all."""
    ends_in_cr = None
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        if ends_in_cr is None:
            ends_in_cr = b"\r" in raw.removesuffix(b"\r\n")
        if ends_in_cr and len(raw) <= MAX_LINE_BYTES:
            yield from raw.splitlines(keepends=True)
        else:
            yield raw


P = ParamSpec("P")
T = TypeVar("T")

_SEPARATORS: Final = ",;\t|"
_ARRAY_ERROR: Final = "a JSON array; write each job on a line of its own, as `jq -c '.[]'` does"
_FORMAT_ERROR: Final = (
    'a job is {"key": ..., "inputs": {...}} with no other names, or the inputs alone with no "key" among them'
)


@attrs.frozen
class FileJob:
    """A job in a file: its line number, its key if it has one, its inputs."""

    line: int
    key: str | None
    inputs: dict[str, Any]


@attrs.frozen
class FileFormat:
    """How to read a file: its name in messages, whether it is CSV, and the inputs whose cells stay strings."""

    name: str
    is_csv: bool = False
    text_inputs: Collection[str] = frozenset()


def read_jobs(stream: BinaryIO, file_format: FileFormat) -> Iterator[FileJob | InvalidLineError]:
    """Yield each job in a stream, or the error of its line; raises InvalidLineError where no more can be read."""
    lines = read_lines(stream, file_format.name)
    return _read_csv(lines, file_format) if file_format.is_csv else _read_json_lines(lines, file_format.name)


def _read_json_lines(lines: Iterator[NumberedLine], name: str) -> Iterator[FileJob | InvalidLineError]:
    for line in lines:
        if line.text.strip():
            yield _caught(name, line.number, _read_object, line.number, line.text)


def _caught(name: str, number: int, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | InvalidLineError:
    """Call `read`; return its ValueError as an InvalidLineError."""
    try:
        return read(*args, **kwargs)
    except ValueError as error:
        return InvalidLineError(name, number, str(error))


def _read_object(number: int, text: str) -> FileJob:
    """Return a job from an object with a key, or from bare inputs; raises ValueError otherwise."""
    if text.lstrip().startswith("["):
        raise ValueError(_ARRAY_ERROR)
    value = _parse_json(text.rstrip())
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object: {_FORMAT_ERROR}")  # noqa: TRY004
    inputs = value.get("inputs")
    if not isinstance(inputs, dict):
        if "key" in value or set(value) == {"inputs"}:
            raise ValueError(_FORMAT_ERROR)
        return FileJob(number, None, value)
    if others := set(value) - {"key", "inputs"}:
        raise ValueError(f"{', '.join(map(repr, sorted(others)))} beside 'inputs', an object: {_FORMAT_ERROR}")
    return FileJob(number, _read_key(value.get("key")), inputs)


def _read_key(key: Any) -> str | None:
    """Return a key, an integer as its digits; None when there is none."""
    if key is None:
        return None
    if is_integer(key):
        key = str(key)
    if not isinstance(key, str) or not key.strip():
        raise ValueError(f"'key' must be a string or an integer, not {key!r:.80}")
    if len(key) > LONGEST_KEY or not key.isprintable():
        raise ValueError(f"'key' must be at most {LONGEST_KEY} printable characters, not {key!r:.80}")
    return key


class _LineTexts:
    """Iterates over the text of lines, for the csv module; remembers the number of the last line."""

    def __init__(self, lines: Iterator[NumberedLine], name: str) -> None:
        self._lines = lines
        self.name = name
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.number = line.number
            if "\0" in line.text:
                why = "a NUL byte: not text, or text in UTF-16; save the file as CSV in UTF-8"
                raise InvalidLineError(self.name, line.number, why)
            yield line.text


def _read_csv(lines: Iterator[NumberedLine], file_format: FileFormat) -> Iterator[FileJob | InvalidLineError]:
    csv.field_size_limit(MAX_LINE_BYTES)
    filled = (line for line in lines if line.text.strip())
    first = next(filled, None)
    separator = None if first is None else _named_separator(first, file_format.name)
    if separator is not None:
        first = next(filled, None)
    if first is None:
        return
    texts = _LineTexts(chain([first], lines), file_format.name)
    rows = _read_rows(texts, first.number, separator or max(_SEPARATORS, key=first.text.count))
    names = _caught(file_format.name, first.number, _read_header, next(rows)[1])
    if isinstance(names, InvalidLineError):
        raise names
    for number, cells in rows:
        if any(cell.strip(" \t\r\n") for cell in cells):  # spreadsheets leave rows of empty cells behind
            yield _caught(file_format.name, number, _read_row, number, names, cells, file_format.text_inputs)


def _named_separator(line: NumberedLine, name: str) -> str | None:
    """Return what a first line `sep=;`, which is for spreadsheets, says; None when it is no such line."""
    start, equals, separator = line.text.rstrip("\r\n").partition("=")
    if start.lower() != "sep" or not equals:
        return None
    if separator not in _SEPARATORS or not separator:
        raise InvalidLineError(name, line.number, f"sep={separator}: must be a comma, a semicolon, a tab or |")
    return separator


def _read_rows(texts: _LineTexts, number: int, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the number of its first line, beginning at `number`: a cell may contain line ends."""
    reader = csv.reader(texts, delimiter=separator, strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            is_cr = "new-line" in str(error)
            why = "a carriage return in a cell without quotes" if is_cr else f"not CSV: {error}"
            raise InvalidLineError(texts.name, number, why) from None
        yield number, cells
        number = texts.number + 1


def _read_header(cells: list[str]) -> list[str]:
    """Return the names of the columns, "" for one without a name, as spreadsheets leave behind."""
    names = [cell.strip() for cell in cells]
    for name in filter(None, names):
        if names.count(name) > 1:
            raise ValueError(f"two columns are named {name!r}")
    if not any(names):
        raise ValueError("no column has a name: the first line names the inputs")
    return names


def _read_row(number: int, names: list[str], cells: list[str], text_inputs: Collection[str]) -> FileJob:
    """Return a job; an empty cell is an input that is not given."""
    if len(cells) < len(names) or any(cells[len(names) :]):
        raise ValueError(f"{len(cells)} cells where the first line names {len(names)}")
    given = {name: cell for name, cell in zip(names, cells, strict=False) if cell}
    if "" in given:
        raise ValueError(f"{given['']!r:.80} is in a column without a name: name it in the first line, or empty it")
    key = _read_key(given.pop("key", None))
    return FileJob(
        number, key, {name: cell if name in text_inputs else read_value(cell) for name, cell in given.items()}
    )


_CSV: Final = (".csv", ".tsv")
_DEVICES: Final = {Path("/dev/stdin"), Path("/dev/fd"), Path("/proc")}
_MAX_LISTED: Final = 5  # further lines that are named


def has_a_place(path: Path) -> bool:
    """Return whether what a path names can be read again, as stdin, a pipe and `<(...)` cannot."""
    is_device = not _DEVICES.isdisjoint((path.absolute(), *path.absolute().parents))
    return str(path) != "-" and not is_device and (path.is_file() or path.is_dir() or not path.exists())


class JobSource:
    """The jobs in a file, in a pipe, or with `-` on stdin.

    `is_file`: whether it can be read twice. In a pipe, what does not begin like JSON is CSV.
    UsageError where it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.is_stdin = str(path) == "-"
        self.name = "stdin" if self.is_stdin else one_line(str(path))
        self._path = path
        self._offset: int | None = None  # of stdin: its first lines may have been read already
        try:
            mode = os.fstat(check_stdin()).st_mode if self.is_stdin else path.stat().st_mode
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
        """Whether it is CSV; True where that is not known before it is read."""
        return self._has_no_type or self._path.suffix.lower() in _CSV

    @property
    def _has_no_type(self) -> bool:
        """Whether nothing but its beginning says what it is."""
        return self.is_stdin or (not self.is_file and self._path.suffix.lower() not in _CSV)

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

    def jobs(
        self,
        text_inputs: Collection[str] = (),
        limit: int | None = None,
        *,
        on_invalid: Callable[[InvalidLineError], object] | None = None,
    ) -> Iterator[Job | Inputs]:
        """Yield each job, or inputs without a key, up to `limit`; raises InvalidLineError unless `on_invalid` takes it.

        Cells of the inputs in `text_inputs` stay strings.
        """
        entries = self._read_jobs(text_inputs)
        for entry in islice(entries if on_invalid is None else _until_unreadable(entries), limit):
            if not isinstance(entry, InvalidLineError):
                yield entry.inputs if entry.key is None else Job(entry.key, entry.inputs)
            elif on_invalid is None:
                raise entry
            else:
                on_invalid(entry)

    def _read_jobs(self, text_inputs: Collection[str]) -> Iterator[FileJob | InvalidLineError]:
        with self._open() as stream:
            is_csv = not _looks_like_json(stream) if self._has_no_type else self.may_be_csv
            yield from read_jobs(stream, FileFormat(self.name, is_csv, text_inputs))

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        with open(_STDIN if self.is_stdin else self._path, "rb", closefd=not self.is_stdin) as stream:
            if self._offset is not None:
                stream.seek(self._offset)
            yield stream


def _until_unreadable(entries: Iterator[FileJob | InvalidLineError]) -> Iterator[FileJob | InvalidLineError]:
    """Yield entries; the error after which nothing can be read is the last of them."""
    try:
        yield from entries
    except InvalidLineError as error:
        yield error


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


class JobStream(AsyncIterator[Job | Inputs]):
    """Iterates asynchronously over an iterator that may block; raises what it raises.

    It is read in a thread, one job at a time. A blocking read cannot be interrupted, so the thread is a daemon, and
    `stop` wakes the task that waits for a job.
    """

    def __init__(self, jobs: Iterator[Job | Inputs]) -> None:
        self._jobs = jobs
        self._requests = threading.Semaphore(0)
        self._results: asyncio.Queue[Job | Inputs | BaseException] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._read_loop, name="knouds batch reads jobs", daemon=True)

    async def __anext__(self) -> Job | Inputs:
        """Return the next job."""
        if not self._thread.is_alive() and self._thread.ident is None:
            self._thread.start()
        self._requests.release()
        item = await self._results.get()
        if isinstance(item, BaseException):
            self._results.put_nowait(item)  # for the next call
            raise item
        return item

    def stop(self) -> None:
        """End the iteration: jobs that were not read yet stay unread."""
        self._results.put_nowait(StopAsyncIteration())

    def _read_loop(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            while self._requests.acquire():
                self._loop.call_soon_threadsafe(self._results.put_nowait, self._next())

    def _next(self) -> Job | Inputs | BaseException:
        try:
            return next(self._jobs)
        except StopIteration:
            return StopAsyncIteration()
        except Exception as error:  # noqa: BLE001  (raised by `__anext__`)
            return error
