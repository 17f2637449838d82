"""The inputs of a run from the command line: `-i key=value` over the JSON object of a file.

Rule of the file: a value that reads as JSON is JSON (3, true, null, [1, 2], "3"), any other is text as it stands.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from knouds_async.cli.exits import UsageError


def read_inputs(pairs: Sequence[str], file: Path | None) -> dict[str, Any]:
    """Give the inputs: what the file holds, with each pair over it; UsageError says what cannot be read."""
    given = read_pairs(pairs)
    return ({} if file is None else _read_file(file)) | given


def read_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` texts; a key may come once."""
    inputs: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"-i {pair!r}: write key=value")
        if key in inputs:
            raise UsageError(f"-i {key}=... is given twice")
        inputs[key] = read_value(text)
    return inputs


def read_value(text: str) -> Any:
    """Read a value: JSON when it is JSON, else the text itself."""
    try:
        return json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        return text


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _read_file(file: Path) -> dict[str, Any]:
    name = "stdin" if str(file) == "-" else str(file)
    try:
        text = sys.stdin.read() if name == "stdin" else file.read_text(encoding="utf-8-sig")
        inputs = json.loads(text, parse_constant=_reject_constant)
    except OSError as error:
        raise UsageError(f"--input-file {name}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--input-file {name} is not JSON: {error}") from None
    if not isinstance(inputs, dict):
        raise UsageError(f"--input-file {name} must hold a JSON object, from input names to values")
    return inputs
