"""Where things are printed: what a machine reads on stdout, words on stderr, each line free of control characters.

Rule of the file: people at a terminal get tables, pipes get tab-separated lines without a heading; `--json` is exact.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import attrs

from knouds_async.cli.words import one_line, printable


@contextmanager
def opened() -> Iterator[None]:
    """Make both streams fit to be written while the block runs, and let the library's warnings be seen.

    What stdout does not take at the end goes nowhere, so that the exit of the process does not complain of it again.
    """
    sys.stdout, sys.stderr = _ready(sys.stdout), _ready(sys.stderr)
    log, warnings = logging.getLogger("knouds_async"), _Warnings(logging.WARNING)
    log.addHandler(warnings)
    try:
        yield
    finally:
        log.removeHandler(warnings)
        try:
            sys.stdout.flush()
        except OSError:
            _silence(sys.stdout)


def _ready(stream: TextIO | None) -> TextIO:
    """Give a stream that never fails on a character; a closed one (`>&-`) swallows everything."""
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


class _Warnings(logging.Handler):
    """Says the library's warnings: ids of runs that must not get lost."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say one warning."""
        tell(record.getMessage())


def finish() -> None:
    """Write out what is buffered; BrokenPipeError when the reader of stdout has gone."""
    sys.stdout.flush()


def give_up() -> None:
    """Give nothing more: the reader of stdout has gone, and what is left for it goes nowhere."""
    _silence(sys.stdout)


def _silence(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _say(text: str) -> None:
    """Write on stderr; whoever closed it wants no words, and the command goes on without them."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)


def tell(words: str) -> None:
    """Say something in one line, on stderr."""
    _say(f"knouds: {one_line(words)}")


def note(words: str) -> None:
    """Say something beside the result, on stderr; more than one line is fine."""
    _say(printable(words))


def give(text: str) -> None:
    """Give a result as text, on stdout: exact in a pipe or a file, harmless at a terminal."""
    print(printable(text) if sys.stdout.isatty() else text)


def give_json(value: Any) -> None:
    """Give a value as JSON, on stdout: records by the names of their fields, without `raw`."""
    print(json.dumps(plain(value), indent=2, default=str))


def plain(value: Any) -> Any:
    """Give a value as what JSON can say."""
    if attrs.has(type(value)):
        return attrs.asdict(value, filter=lambda field, _: field.name != "raw", value_serializer=_serialised)
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _serialised(_: Any, __: Any, value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def give_table(heads: Sequence[str], rows: Iterable[Sequence[Any]], *, whole: str = "") -> None:
    """Give rows on stdout: a table at a terminal, else tab-separated lines; the column `whole` is never broken."""
    texts = [[cell(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        _draw(heads, texts, whole)
        return
    for row in texts:
        print("\t".join(one_line(text) for text in row))


def give_pairs(*pairs: tuple[str, Any]) -> None:
    """Give names and values on stdout, a line each; what is None is left out."""
    there = [(name, one_line(cell(value))) for name, value in pairs if value is not None and cell(value)]
    width = max((len(name) for name, _ in there), default=0)
    for name, text in there:
        print(f"{name:<{width}}  {text}")


def is_live() -> bool:
    """Tell whether stderr is a terminal that can redraw lines."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def _draw(heads: Sequence[str], rows: Sequence[Sequence[str]], whole: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, highlight=False)
    for head in heads:
        drawn.add_column(head, no_wrap=head == whole)
    for row in rows:
        drawn.add_row(*(Text(printable(text), overflow="fold") for text in row))
    Console(highlight=False).print(drawn)


def cell(value: Any) -> str:
    """Show a value in a table or a line: numbers without needless digits, times to the second, nothing for None."""
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
            return ", ".join(cell(item) for item in value)
        case dict():
            return json.dumps(value, default=str)
        case _:
            return str(value)
