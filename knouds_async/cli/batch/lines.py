"""Read the lines of a file of jobs, one at a time: numbered, decoded, and of bounded length.

Undecodable or overlong lines raise InvalidLineError; at most one line is held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

import attrs

from knouds_async.cli.exits import UsageError
from knouds_async.cli.words import one_line

MAX_LINE_BYTES: Final = 32 * 1024**2
"""Most bytes of a line; a file without line ends is not a file of jobs."""

_BOM: Final = b"\xef\xbb\xbf"
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")


class InvalidLineError(UsageError):
    """A line is not a job; `line` counts from 1, `why` says what is wrong with it."""

    def __init__(self, name: str, line: int, why: str) -> None:
        """Name the file, the line and the fault."""
        super().__init__(one_line(f"{name} line {line}: {why}"))
        self.line = line


@attrs.frozen
class NumberedLine:
    """A line of text with its line end, and its number from 1."""

    number: int
    text: str


def read_lines(stream: BinaryIO, name: str) -> Iterator[NumberedLine]:
    """Yield each line of a UTF-8 stream, with or without a byte order mark."""
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            raise InvalidLineError(name, number, f"longer than {MAX_LINE_BYTES // 1024**2} MiB")
        if number == 1:
            if raw.startswith(_UTF_16):
                raise InvalidLineError(name, number, "the file is UTF-16; save it as UTF-8")
            raw = raw.removeprefix(_BOM)
        try:
            yield NumberedLine(number, raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            why = f"byte {error.start + 1} (0x{raw[error.start]:02x}) is not UTF-8; save the file as UTF-8"
            raise InvalidLineError(name, number, why) from None
