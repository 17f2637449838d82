"""The jobs that a file lists, in JSON Lines or CSV, one at a time.

Rule of the file: an empty line is no job; anything else that is no job is a FaultyLineError, never passed over. Where
the lines after it can still be read, it is given in the place of the job, so that a file can be looked through whole.
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
from knouds_async.cli.batch.lines import LONGEST, FaultyLineError, Line, read_lines
from knouds_async.cli.inputs import read_value

P = ParamSpec("P")
T = TypeVar("T")

_SEPARATORS: Final = ",;\t"
_NO_ARRAY: Final = "a JSON array; write each job on a line of its own, as `jq -c '.[]'` does"
_BESIDE: Final = (
    'a job is {"key": ..., "inputs": {...}} with no other names, or the inputs alone with no "key" among them'
)


@attrs.frozen
class Entry:
    """A job as a file lists it: the number of its line, its key if it has one, its inputs."""

    line: int
    key: str | None
    inputs: dict[str, Any]


@attrs.frozen
class Form:
    """How a file is to be read: its name in messages, whether it is CSV, the inputs whose cells stay text."""

    name: str
    is_csv: bool = False
    texts: Collection[str] = frozenset()


def read_entries(stream: BinaryIO, form: Form) -> Iterator[Entry | FaultyLineError]:
    """Give each job of a stream, or what is wrong with its line; FaultyLineError where no more can be read."""
    lines = read_lines(stream, form.name)
    return _of_csv(lines, form) if form.is_csv else _of_json(lines, form.name)


def _of_json(lines: Iterator[Line], name: str) -> Iterator[Entry | FaultyLineError]:
    for line in lines:
        if line.text.strip():
            yield _faultless(name, line.number, _read_object, line.number, line.text)


def _faultless(name: str, number: int, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | FaultyLineError:
    """Read something of a line, or give what is wrong with it, with its number."""
    try:
        return read(*args, **kwargs)
    except ValueError as error:
        return FaultyLineError(name, number, str(error))


def _load(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_json, parse_float=_finite)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("["):
            raise ValueError(_NO_ARRAY) from None
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None


def _no_json(word: str) -> Any:
    raise ValueError(f"not JSON: {word}")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits:.40} is too large a number")
    return number


def _read_object(number: int, text: str) -> Entry:
    """Read a job with a key, or bare inputs; ValueError says what it is instead."""
    value = _load(text)
    if isinstance(value, list):
        raise ValueError(_NO_ARRAY)  # noqa: TRY004
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object: {_BESIDE}")  # noqa: TRY004
    inputs = value.get("inputs")
    if not isinstance(inputs, dict):
        if "key" in value or set(value) == {"inputs"}:
            raise ValueError(_BESIDE)
        return Entry(number, None, value)
    if others := set(value) - {"key", "inputs"}:
        raise ValueError(f"{', '.join(map(repr, sorted(others)))} beside 'inputs', an object: {_BESIDE}")
    return Entry(number, _read_key(value.get("key")), inputs)


def _read_key(key: Any) -> str | None:
    """Read a key: a text, or a whole number that is taken as its text; None when there is none."""
    if key is None:
        return None
    if isinstance(key, int) and not isinstance(key, bool):
        key = str(key)
    if not isinstance(key, str) or not key.strip():
        raise ValueError(f"'key' must be a text or a whole number, not {key!r:.80}")
    if len(key) > LONGEST_KEY or not key.isprintable():
        raise ValueError(f"'key' must be at most {LONGEST_KEY} printable characters, not {key!r:.80}")
    return key


class _Texts:
    """The texts of lines, for the csv module; remembers the number of the last one it took."""

    def __init__(self, lines: Iterator[Line], number: int) -> None:
        self._lines = lines
        self.number = number

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.number = line.number
            yield line.text


def _of_csv(lines: Iterator[Line], form: Form) -> Iterator[Entry | FaultyLineError]:
    csv.field_size_limit(LONGEST)
    first = next((line for line in lines if line.text.strip()), None)
    if first is None:
        return
    texts = _Texts(chain([first], lines), first.number - 1)
    rows = _rows(texts, max(_SEPARATORS, key=first.text.count), form.name)
    names = _faultless(form.name, first.number, _read_head, next(rows)[1])
    if isinstance(names, FaultyLineError):
        raise names
    for number, cells in rows:
        if any(cells):  # spreadsheets leave rows of empty cells behind
            yield _faultless(form.name, number, _read_row, number, names, cells, form.texts)


def _rows(texts: _Texts, separator: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Give each row with the number of its first line: a cell may hold line ends."""
    reader = csv.reader(texts, delimiter=separator, strict=True)
    while True:
        begins = texts.number + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise FaultyLineError(name, begins, f"not CSV: {error}") from None
        yield begins, cells


def _read_head(cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    for name in names:
        if not name:
            raise ValueError("a column has no name: the first line names the inputs")
        if names.count(name) > 1:
            raise ValueError(f"two columns are named {name!r}")
    return names


def _read_row(number: int, names: list[str], cells: list[str], texts: Collection[str]) -> Entry:
    """Read a row: an empty cell is an input that is not given."""
    if len(cells) != len(names):
        raise ValueError(f"{len(cells)} cells where the first line names {len(names)}")
    given = {name: cell for name, cell in zip(names, cells, strict=True) if cell}
    key = _read_key(given.pop("key", None))
    return Entry(number, key, {name: cell if name in texts else read_value(cell) for name, cell in given.items()})
