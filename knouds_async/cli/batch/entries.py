"""Read the jobs in a file, JSON Lines or CSV, one at a time.

An empty line is skipped; any other line that is not a job is an InvalidLineError. Where the lines after it can still be
read, the error is yielded in place of the job, so that the whole file can be checked.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Collection, Iterator
from itertools import chain
from typing import Any, BinaryIO, Final, ParamSpec, TypeVar

import attrs

from knouds_async.batch.jobs import LONGEST_KEY
from knouds_async.cli.batch.lines import MAX_LINE_BYTES, InvalidLineError, NumberedLine, read_lines
from knouds_async.cli.inputs import read_value

P = ParamSpec("P")
T = TypeVar("T")

_SEPARATORS: Final = ",;\t"
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


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_reject_constant, parse_float=_parse_finite)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("["):
            raise ValueError(_ARRAY_ERROR) from None
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None


def _reject_constant(word: str) -> Any:
    raise ValueError(f"not JSON: {word}")


def _parse_finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits:.40} is too large a number")
    return number


def _read_object(number: int, text: str) -> FileJob:
    """Return a job from an object with a key, or from bare inputs; raises ValueError otherwise."""
    value = _parse_json(text)
    if isinstance(value, list):
        raise ValueError(_ARRAY_ERROR)  # noqa: TRY004
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
    if isinstance(key, int) and not isinstance(key, bool):
        key = str(key)
    if not isinstance(key, str) or not key.strip():
        raise ValueError(f"'key' must be a string or an integer, not {key!r:.80}")
    if len(key) > LONGEST_KEY or not key.isprintable():
        raise ValueError(f"'key' must be at most {LONGEST_KEY} printable characters, not {key!r:.80}")
    return key


class _LineTexts:
    """Iterates over the text of lines, for the csv module; remembers the number of the last line."""

    def __init__(self, lines: Iterator[NumberedLine], number: int) -> None:
        self._lines = lines
        self.number = number

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.number = line.number
            yield line.text


def _read_csv(lines: Iterator[NumberedLine], file_format: FileFormat) -> Iterator[FileJob | InvalidLineError]:
    csv.field_size_limit(MAX_LINE_BYTES)
    first = next((line for line in lines if line.text.strip()), None)
    if first is None:
        return
    texts = _LineTexts(chain([first], lines), first.number - 1)
    rows = _read_rows(texts, max(_SEPARATORS, key=first.text.count), file_format.name)
    names = _caught(file_format.name, first.number, _read_header, next(rows)[1])
    if isinstance(names, InvalidLineError):
        raise names
    for number, cells in rows:
        if any(cells):  # spreadsheets leave rows of empty cells behind
            yield _caught(file_format.name, number, _read_row, number, names, cells, file_format.text_inputs)


def _read_rows(texts: _LineTexts, separator: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the number of its first line: a cell may contain line ends."""
    reader = csv.reader(texts, delimiter=separator, strict=True)
    while True:
        first_line = texts.number + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InvalidLineError(name, first_line, f"not CSV: {error}") from None
        yield first_line, cells


def _read_header(cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    for name in names:
        if not name:
            raise ValueError("a column has no name: the first line names the inputs")
        if names.count(name) > 1:
            raise ValueError(f"two columns are named {name!r}")
    return names


def _read_row(number: int, names: list[str], cells: list[str], text_inputs: Collection[str]) -> FileJob:
    """Return a job; an empty cell is an input that is not given."""
    if len(cells) != len(names):
        raise ValueError(f"{len(cells)} cells where the first line names {len(names)}")
    given = {name: cell for name, cell in zip(names, cells, strict=True) if cell}
    key = _read_key(given.pop("key", None))
    return FileJob(
        number, key, {name: cell if name in text_inputs else read_value(cell) for name, cell in given.items()}
    )
