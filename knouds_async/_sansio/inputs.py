"""What a caller passes in, checked before any request: slugs, ids, JSON bodies, inputs against a schema. Pure.

Source: contract 2 (slugs), 4 (ids), 7 (`INVALID_SLUG`, `INVALID_INPUTS`), 8 (schemas). Only names and a type of a field
of a schema are promised: what it does not say, or says in a way that is not known here, is let through for the service
to judge.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from knouds_async.config import KEY_BEGINNING, is_number
from knouds_async.errors import InvalidArgumentError, InvalidInputsError, InvalidSlugError
from knouds_async.types import Inputs, SchemaField, WorkflowSchema

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
    """Return a string that can be sent: half a surrogate pair is no character, and not every service survives it."""
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


def input_errors(schema: WorkflowSchema, inputs: Inputs) -> tuple[str, ...]:
    """Return every fault, in the order of the inputs and then of the fields; empty when the inputs fit."""
    fields = {field.name: field for field in schema.fields}
    found = []
    for name, value in inputs.items():
        if name in fields:
            error = _field_error(fields[name], value)
            found += [f"{name!r} {error}, not {safe_repr(value)}"] if error else []
        elif _lists_all(schema):
            known = f"the fields are {', '.join(map(repr, fields))}" if fields else "the workflow takes no inputs"
            found.append(f"{safe_repr(name)} is no field ({known})")
    missing = [field.name for field in schema.fields if field.name not in inputs and _must_be_given(field, schema)]
    return (*found, *(f"{name!r} is required and missing" for name in missing))


def _lists_all(schema: WorkflowSchema) -> bool:
    """Return whether every field of the answer could be read, so that other names are certainly no fields."""
    raw = schema.raw.get("fields") if isinstance(schema.raw, Mapping) else schema.fields
    return isinstance(raw, (list, tuple)) and len(raw) == len(schema.fields)


def _must_be_given(field: SchemaField, schema: WorkflowSchema) -> bool:
    has_default = field.default is not None or schema.values.get(field.name) is not None
    return field.required is True and not has_default


def _field_error(field: SchemaField, value: Any) -> str | None:
    if value is None:  # whether a null counts as left out is not documented
        return None
    wrong = _TYPES.get((field.type or "").lower(), _anything)(value)
    return wrong or _out_of_bounds(field, value) or _not_offered(field, value)


def _out_of_bounds(field: SchemaField, value: Any) -> str | None:
    if not is_number(value):
        return None
    if field.min is not None and value < field.min:
        return f"must be at least {field.min:g}"
    if field.max is not None and value > field.max:
        return f"must be at most {field.max:g}"
    return None


def _not_offered(field: SchemaField, value: Any) -> str | None:
    """Look among the options; several may be chosen as a list, and an option may be an object with a `value`."""
    offered = [option.get("value") if isinstance(option, Mapping) else option for option in field.options]
    if not offered or None in offered:
        return None
    chosen = value if isinstance(value, (list, tuple)) else [value]
    is_offered = all(any(_is_same(each, option) for option in offered) for each in chosen)
    return None if is_offered else f"must be one of {', '.join(map(safe_repr, offered))}"


def _is_same(value: Any, option: Any) -> bool:
    """Compare as JSON does: true is not 1."""
    return isinstance(value, bool) == isinstance(option, bool) and bool(value == option)


def _anything(_: Any) -> str | None:
    return None


def _string(value: Any) -> str | None:
    return None if isinstance(value, str) else "must be a string"


def _number(value: Any) -> str | None:
    return None if is_number(value) else "must be a number"


def _boolean(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _url(value: Any) -> str | None:
    is_url = isinstance(value, str) and value.startswith("https://") and len(value) > len("https://")
    return None if is_url else "must be an https URL"


_TYPES: Final[Mapping[str, Callable[[Any], str | None]]] = {
    "text": _string,
    "textarea": _string,
    "number": _number,
    "slider": _number,
    "toggle": _boolean,
    "image": _url,
    "video": _url,
}
