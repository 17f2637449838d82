"""The inputs of a run: `-i key=value` over the JSON object in a file.

A value that is valid JSON is JSON (3, true, null, [1, 2], "3"), any other is a string.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from knouds_async.cli.exits import UsageError


def read_inputs(pairs: Sequence[str], file: Path | None) -> dict[str, Any]:
    """Return the inputs in a file updated with the pairs; raises UsageError when they cannot be read."""
    given = read_pairs(pairs)
    return ({} if file is None else _read_file(file)) | given


def read_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """Return the inputs in `key=value` strings; raises UsageError for a duplicate key."""
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
    """Return a value parsed as JSON, or the string itself."""
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
