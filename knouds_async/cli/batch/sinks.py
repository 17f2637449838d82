"""Write results to stdout: exact in a pipe, short at a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from knouds_async import RunResult
from knouds_async.cli import output
from knouds_async.cli.words import one_line


class StdoutResults:
    """Writes each line at once; `is_exact`: as JSON at a terminal too."""

    def __init__(self, *, is_exact: bool) -> None:
        """Write to the current stdout."""
        self._is_short = sys.stdout.isatty() and not is_exact

    def write(self, line: Mapping[str, Any]) -> None:
        """Write a line; raises OSError when the reader has closed the pipe."""
        try:
            print(_short_line(line) if self._is_short else json.dumps(line, default=str), flush=True)
        except OSError:
            output.discard_stdout()
            raise

    def close(self) -> None:
        """Leave stdout open."""


def _short_line(line: Mapping[str, Any]) -> str:
    """Return a line for people: key, status, cost, and the first file, the text or the error."""
    error = line["error"]
    run = RunResult(line["result"])
    outputs = line.get("files") or [one.url for one in run.media] or ([run.text] if run.text else [])
    last = error["message"] if error else " ".join(map(str, outputs[:1]))
    cost = "" if line["cost"] is None else f"{output.format_cell(line['cost'])} credits"
    return "  ".join(one_line(part) for part in (line["key"], line["status"], cost, last) if part)
