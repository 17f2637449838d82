"""Names and inputs from the caller, checked before any request: slugs, execution ids, JSON.

Source: contract 2 (slugs), 4 (ids), 7 (`INVALID_SLUG`, `INVALID_INPUTS`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from knouds_async.config import KEY_BEGINNING
from knouds_async.errors import InvalidArgumentError, InvalidInputsError, InvalidSlugError

_SLUG: Final = re.compile(r"[a-z0-9][a-z0-9-]*\Z")
_ID: Final = re.compile(r"[A-Za-z0-9_-]+\Z")
_KEY: Final = re.compile(rf"{KEY_BEGINNING}\w+")
_MOST_LEVELS: Final = 200
_MOST_BITS: Final = 10_000


def checked_slug(name: object, what: str = "slug") -> str:
    """Return a slug or model name back if it is one; it can then stand in a path as it is."""
    if isinstance(name, str) and len(name) <= 200 and _SLUG.match(name):
        return str.__str__(name)
    raise InvalidSlugError(f"{safe_repr(name, 200)} is not a {what}: nothing was sent", code="INVALID_SLUG")


def is_execution_id(text: object) -> bool:
    """Return whether a value can be an execution's id."""
    fits = isinstance(text, str) and len(text) <= 200 and _ID.match(text) is not None
    return fits and not str(text).startswith(KEY_BEGINNING)  # a key in its place would be shown by errors and logs


def checked_execution_id(text: object) -> str:
    """Return an execution id back if it is one; it can then stand in a path as it is."""
    if isinstance(text, str) and is_execution_id(text):
        return str.__str__(text)
    why = f"{safe_repr(text, 200)} is not an execution id (letters, digits, - and _)"
    raise InvalidArgumentError(f"{why}: nothing was sent")


def safe_repr(value: object, most: int = 80) -> str:
    """Return the first `most` characters of a value's repr, for a message; what has none is named by its type.

    A key that somebody put in the place of a name is not shown.
    """
    try:
        return f"{_KEY.sub(f'{KEY_BEGINNING}***', repr(value)):.{most}}"
    except (ValueError, RecursionError):  # a number of thousands of digits, lists in lists in lists
        return f"a value of type {type(value).__name__}"


def run_body(inputs: Mapping[str, Any]) -> bytes:
    """Return the body of a run; inputs that are not a JSON object are an InvalidInputsError that names the place."""
    if not isinstance(inputs, Mapping):
        raise _invalid_inputs(f"inputs must be a mapping of names to JSON values, not {safe_repr(inputs, 200)}")
    return json_body({"inputs": inputs}, root="inputs")


def json_body(value: Mapping[str, Any], *, root: str | None = None) -> bytes:
    """Return a JSON body; what JSON cannot say is an InvalidInputsError that names the place and the value.

    `root`: the only key of `value`, when faults are to be named from there.
    """
    try:
        plain = {key: _to_json(item, key, ()) for key, item in value.items()} if root else _to_json(value, "body", ())
        return json.dumps(plain, allow_nan=False, separators=(",", ":")).encode()
    except RecursionError:
        raise _invalid_inputs(f"{root or 'body'} is nested too deeply for the stack that is left here") from None


def _invalid_inputs(why: str) -> InvalidInputsError:
    return InvalidInputsError(f"{why}: nothing was sent", code="INVALID_INPUTS")


def _to_json(value: Any, path: str, parents: tuple[int, ...]) -> Any:
    """Copy a value as plain JSON types, so that what is sent is what was checked."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise _invalid_inputs(f"{path} is an integer of more than {_MOST_BITS} bits")
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, str):
        return _checked_text(value, path)
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        raise _invalid_inputs(f"{path} is {value!r}, which JSON cannot say")
    if not isinstance(value, (Mapping, list, tuple)):
        raise _invalid_inputs(f"{path} is {safe_repr(value)} of type {type(value).__name__}, which is not JSON")
    if id(value) in parents:
        raise _invalid_inputs(f"{path} contains itself")
    if len(parents) >= _MOST_LEVELS:
        raise _invalid_inputs(f"{path:.80} lies more than {_MOST_LEVELS} levels deep")
    return _container_to_json(value, path, (*parents, id(value)))


def _checked_text(text: str, path: str) -> str:
    """Return a text that can be sent: half a surrogate pair is no character, and not every service survives it."""
    try:
        str.encode(text)
    except UnicodeEncodeError:
        raise _invalid_inputs(f"{path} is {safe_repr(text)}, which holds half a surrogate pair") from None
    return text


def _container_to_json(
    value: Mapping[Any, Any] | list[Any] | tuple[Any, ...], path: str, parents: tuple[int, ...]
) -> Any:
    if not isinstance(value, Mapping):
        return [_to_json(item, f"{path}[{index}]", parents) for index, item in enumerate(value)]
    for key in value:
        if not isinstance(key, str):
            raise _invalid_inputs(f"{path} has the key {safe_repr(key)}, and JSON keys are strings")
        _checked_text(key, f"a key of {path}")
    return {key: _to_json(item, f"{path}[{key!r}]", parents) for key, item in value.items()}
