"""Print results on stdout, messages on stderr, without control characters.

A terminal gets tables, a pipe gets tab-separated lines without a header; `--json` is exact.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final, TextIO

import attrs

from knouds_async import config


@contextmanager
def safe_streams() -> Iterator[None]:
    """Make both streams safe to write while the block runs, and print the library's warnings.

    What stdout cannot take at the end is discarded, so that the interpreter does not complain of it at exit.
    """
    sys.stdout, sys.stderr = _tolerant(sys.stdout), _tolerant(sys.stderr)
    log, warnings = logging.getLogger("knouds_async"), _WarningPrinter(logging.WARNING)
    log.addHandler(warnings)
    try:
        yield
    finally:
        log.removeHandler(warnings)
        try:
            sys.stdout.flush()
        except OSError:
            discard(sys.stdout)


def _tolerant(stream: TextIO | None) -> TextIO:
    """Return a stream that can write any character; a closed one (`>&-`) discards everything."""
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


_SAID_BY_COMMANDS: Final = frozenset({"runs_in_flight", "batch_left", "files_not_saved"})
"""Events that the commands report themselves: they name each run in flight, or its ledger, and each file missing."""


class _WarningPrinter(logging.Handler):
    """Prints the library's warnings: ids of runs that must not be lost."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one warning, unless the commands say it better."""
        if getattr(record, "event_name", None) not in _SAID_BY_COMMANDS:
            print_error(record.getMessage())


def discard(stream: TextIO) -> None:
    """Discard what is still to be written to a stream: its reader has closed the pipe."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)


def _write_stderr(text: str) -> None:
    """Write to stderr, after the results before it; at a terminal broken between words.

    When it is closed the command continues without messages. A reader of stdout that has gone is noticed at its end.
    """
    with suppress(OSError):
        sys.stdout.flush()
    try:
        if sys.stderr.isatty():
            columns = shutil.get_terminal_size().columns
            text = "\n".join(wrapped for line in text.split("\n") for wrapped in wrap_words(line, columns))
        print(text, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


_WORD: Final = re.compile(r"(?<=Resume with: ).*|`[^`]*`\S*|\S+")
"""A word of a message; a command is one, so that it can be copied."""


def wrap_words(line: str, columns: int) -> list[str]:
    """Return a line broken between words, each at most so long unless a word is longer."""
    found: list[str] = []
    for word in _WORD.findall(line):
        if found and len(found[-1]) + 1 + len(word) <= columns:
            found[-1] += f" {word}"
        else:
            found.append(f"  {word}" if found else word)
    return found if len(line) > columns else [line]


def print_error(words: str) -> None:
    """Print a message of one line on stderr."""
    _write_stderr(f"knouds: {one_line(words)}")


def print_info(words: str) -> None:
    """Print information beside the result on stderr; it may have several lines."""
    _write_stderr(printable(words))


def print_result(text: str) -> None:
    """Print a result on stdout: exact in a pipe or a file, harmless at a terminal."""
    print(printable(text) if sys.stdout.isatty() else text)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout: records by the names of their fields, without `raw`."""
    print(json.dumps(to_jsonable(value), indent=2, default=str))


def to_jsonable(value: Any) -> Any:
    """Return a value as JSON types."""
    if attrs.has(type(value)):
        return attrs.asdict(value, filter=lambda field, _: field.name != "raw", value_serializer=_serialize)
    return [to_jsonable(item) for item in value] if isinstance(value, (list, tuple)) else value


def _serialize(_: Any, __: Any, value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def print_table(
    heads: Sequence[str], rows: Iterable[Sequence[Any]], *, details: Sequence[str] = (), bars: Sequence[float] = ()
) -> None:
    """Print rows on stdout: a table at a terminal, else tab-separated lines.

    `details`: columns that stand on a line of their own below each row, the first of them first, where the terminal is
    too narrow for the table. At a terminal each row ends in a bar as long as its number in `bars`.
    """
    cells = [[format_cell(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        for row in cells:
            print("\t".join(one_line(text) for text in row))
        return
    shares = [number / (max(bars) or 1) for number in bars]
    _draw_table(heads, [[one_line(text) for text in row] for row in cells], details, shares)


_BAR_WIDTH: Final = 20  # columns
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"


def draw_bar(share: float, width: int) -> str:
    """Return a bar that is as long as this share of the longest; what is more than nothing is seen."""
    eighths = max(round(8 * max(width, 0) * share), 1 if share > 0 else 0)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def print_pairs(*pairs: tuple[str, Any]) -> None:
    """Print names and values on stdout, one pair per line, without those that are None."""
    shown = [(name, one_line(format_cell(value))) for name, value in pairs if value is not None and format_cell(value)]
    width = max((len(name) for name, _ in shown), default=0)
    for name, text in shown:
        print(f"{name:<{width}}  {text}")


def is_live() -> bool:
    """Return whether stderr is a terminal that can redraw lines."""
    return config.is_live(sys.stderr)


def _draw_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], details: Sequence[str], shares: Sequence[float]
) -> None:
    """Draw the columns that hold anything, as many of `details` below the rows as it takes to fit the terminal."""
    from rich.cells import cell_len, set_cell_size

    columns = shutil.get_terminal_size().columns
    by_head = {head: cells for head, *cells in zip(heads, *rows, strict=True) if any(cells)}
    widths = {head: max(map(cell_len, (head, *cells))) for head, cells in by_head.items()}
    beside, below = list(widths), list[str]()
    for head in details:
        if sum(widths[each] + 2 for each in beside) - 2 > columns and head in beside:
            beside.remove(head)
            below.insert(0, head)
    bar_width = min(columns - sum(widths[each] + 2 for each in beside), _BAR_WIDTH)
    bars = ["", *(draw_bar(share, bar_width) for share in shares)] if shares else [""] * (len(rows) + 1)
    for row, bar in zip((heads, *rows), bars, strict=True):
        cells = dict(zip(heads, row, strict=True))
        print("  ".join([*(set_cell_size(cells[head], widths[head]) for head in beside), bar]).rstrip())
        for line in fill_lines([cells[head] for head in below if cells[head]], columns - len(_INDENT)):
            print(f"{_INDENT}{line}")


_INDENT: Final = "    "


def fill_lines(items: Iterable[str], width: int) -> Iterator[str]:
    """Yield lines of items between semicolons, broken between words only."""
    line = ""
    for item in items:
        if line and len(line) + 2 + len(item) > width:
            yield line
            line = ""
        line = f"{line}; {item}" if line else item
        if len(line) > width:
            *full, line = textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
            yield from full
    if line:
        yield line


def format_cell(value: Any) -> str:
    """Return a value as text: numbers without needless digits, times to the second, "" for None."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.10g}"
        case datetime():
            return value.strftime("%Y-%m-%d %H:%M:%S")
        case list() | tuple():
            return ", ".join(format_cell(item) for item in value)
        case dict():
            return json.dumps(value, default=str)
        case _:
            return str(value)


@asynccontextmanager
async def call_every(period: float, tick: Callable[[], object]) -> AsyncIterator[None]:
    """Call `tick` every `period` seconds while the block runs, on the same event loop."""
    task = asyncio.create_task(_tick(period, tick))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _tick(period: float, tick: Callable[[], object]) -> None:
    while True:
        await asyncio.sleep(period)
        tick()


_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: str) -> str:
    """Return text as one line without control characters: servers write some of it."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """Return text with control and direction characters escaped; line ends and tabs stay."""
    return _CONTROLS.sub(lambda found: _escaped(found[0]), text)


def plural(number: int, what: str) -> str:
    """Return a count with its noun: `1 run`, `2 runs`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
