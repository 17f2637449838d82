"""What a caller passes in, checked before any request: slugs, ids, JSON bodies, inputs against a schema. Pure.

Source: contract 2 (slugs), 4 (ids), 7 (`INVALID_SLUG`, `INVALID_INPUTS`), 8 (schemas). Only names and a type of a field
of a schema are promised: what it does not say, or says in a way that is not known here, is let through for the service
to judge.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from datetime import date, time, timedelta
from enum import Enum
from pathlib import PurePath
from typing import Any, Final, TypeAlias, TypeGuard

import attrs

from knouds_async.config import is_number
from knouds_async.errors import KEY_BEGINNING, InvalidArgumentError, InvalidInputsError, InvalidSlugError, safe_repr
from knouds_async.types import Inputs, Media, SchemaField, Target, WorkflowSchema

Default: TypeAlias = Callable[[Any], Any]
"""Returns what stands in JSON for a value that has no plain form in it, as `json.dumps(default=...)` takes it."""

_SLUG: Final = re.compile(r"[a-z0-9][a-z0-9-]*\Z")
_ID: Final = re.compile(r"[A-Za-z0-9_-]+\Z")
_ENCODERS: Final = {
    is_sorted: json.JSONEncoder(allow_nan=False, separators=(",", ":"), sort_keys=is_sorted)
    for is_sorted in (False, True)
}
_MOST_LEVELS: Final = 200
_MOST_BITS: Final = 10_000


def checked_slug(name: object, what: str = "slug") -> str:
    """Return a slug or model name back if it is one; it can then stand in a path as it is."""
    if isinstance(name, str) and len(name) <= 200 and _SLUG.match(name):
        return str.__str__(name)
    advice = None if what == "slug" else f"A {what} is lowercase letters, digits and hyphens"
    why = f"{safe_repr(name, 200)} is not a {what}: nothing was sent"
    raise InvalidSlugError(why, code="INVALID_SLUG", advice=advice)


def is_execution_id(text: object) -> TypeGuard[str]:
    """Return whether a value can be an execution's id."""
    if not isinstance(text, str) or len(text) > 200 or _ID.match(text) is None:
        return False
    return not text.startswith(KEY_BEGINNING)  # a key in its place would be shown by errors and logs


def checked_execution_id(text: object) -> str:
    """Return an execution id back if it is one; it can then stand in a path as it is."""
    if is_execution_id(text):
        return str.__str__(text)
    why = f"{safe_repr(text, 200)} is not an execution id (letters, digits, - and _)"
    raise InvalidArgumentError(f"{why}: nothing was sent")


def run_body(inputs: Inputs, default: Default | None = None) -> bytes:
    """Return the body of a run; inputs that are not a JSON object are an InvalidInputsError that names the place."""
    return encode({"inputs": plain_inputs(inputs, default)}, "inputs")


def json_body(value: Mapping[str, Any]) -> bytes:
    """Return a JSON body; what JSON cannot say is an InvalidInputsError that names the place and the value."""
    return encode(_plain(value, "body", None), "body")


def plain_inputs(inputs: Inputs, default: Default | None = None) -> dict[str, Any]:
    """Return inputs as plain JSON types, so that what is sent is what was checked.

    `default`: converts a value that has no plain form, as of `json.dumps`.
    """
    if default is not None and not callable(default):
        raise InvalidArgumentError(f"default={safe_repr(default)}: must be a function of one value: nothing was sent")
    if not isinstance(inputs, Mapping) and not is_record(inputs):
        raise _invalid_inputs(f"inputs must be a mapping of names to JSON values, not {safe_repr(inputs, 200)}")
    plain = _plain(inputs, "inputs", default)
    if not isinstance(plain, dict):  # a pydantic model of another shape
        raise _invalid_inputs(f"inputs must be a mapping of names to JSON values, not {safe_repr(plain, 200)}")
    return plain


def _plain(value: Any, root: str, default: Default | None) -> Any:
    try:
        return _to_json(value, root, (), default)
    except RecursionError:
        raise _too_deep(root) from None


def encode(plain: Mapping[str, Any], root: str, *, sort_keys: bool = False) -> bytes:
    """Return plain JSON types as they are sent."""
    try:
        return _ENCODERS[sort_keys].encode(plain).encode()
    except RecursionError:
        raise _too_deep(root) from None


def _too_deep(root: str) -> InvalidInputsError:
    return _invalid_inputs(f"{root} is nested too deeply for the stack that is left here")


def _invalid_inputs(why: str) -> InvalidInputsError:
    return InvalidInputsError(f"{why}: nothing was sent", code="INVALID_INPUTS", advice="")


def _to_json(value: Any, path: str, parents: tuple[int, ...], default: Default | None) -> Any:
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
    if id(value) in parents:
        raise _invalid_inputs(f"{path} contains itself")
    if len(parents) >= _MOST_LEVELS:
        raise _invalid_inputs(f"{path:.80} lies more than {_MOST_LEVELS} levels deep")
    within = (*parents, id(value))
    if isinstance(value, (Mapping, list, tuple)):
        return _container_to_json(value, path, within, default)
    return _to_json(_converted(value, path, default), path, within, default)


def _checked_text(text: str, path: str) -> str:
    """Return a string that can be sent: half a surrogate pair is no character, and not every service survives it."""
    try:
        str.encode(text)
    except UnicodeEncodeError:
        raise _invalid_inputs(f"{path} is {safe_repr(text)}, which holds half a surrogate pair") from None
    return text


def _container_to_json(
    value: Mapping[Any, Any] | list[Any] | tuple[Any, ...],
    path: str,
    parents: tuple[int, ...],
    default: Default | None,
) -> Any:
    if not isinstance(value, Mapping):
        return [_to_json(item, f"{path}[{index}]", parents, default) for index, item in enumerate(value)]
    for key in value:
        if not isinstance(key, str):
            raise _invalid_inputs(f"{path} has the key {safe_repr(key)}, and JSON keys are strings")
        _checked_text(key, f"a key of {path}")
    return {key: _to_json(item, f"{path}[{key!r}]", parents, default) for key, item in value.items()}


# ---- What is no JSON, and has one plain form in it


def is_record(value: object) -> bool:
    """Return whether a value is an object whose fields are inputs: of pydantic, dataclasses or attrs."""
    kind = type(value)
    if _is_ours(kind) or isinstance(value, type):
        return False
    return any(hasattr(kind, name) for name in ("model_dump", "__dataclass_fields__", "__attrs_attrs__"))


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "knouds_async"


def _converted(value: Any, path: str, default: Default | None) -> Any:
    """Return what stands for a value in JSON: its one plain form, or else what `default` makes of it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (date, time)) and value == value:  # a datetime is a date; pandas' NaT is none
        return value.isoformat()
    try:
        if is_record(value):
            return _fields_of(value)
        if (plain := _of_library(value)) is not None:
            return plain
        if default is not None:
            return default(value)
    except (TypeError, ValueError) as error:
        raise _invalid_inputs(f"{path} is {safe_repr(value)}, and converting it failed: {error}") from error
    message = f"{path} is {safe_repr(value)} of type {type(value).__name__}, which is not JSON"
    raise _invalid_inputs(f"{message}; {_advice(value)}")


def _fields_of(record: Any) -> Mapping[str, Any]:
    """Return the fields of a record by their names; values inside are converted by the rules for all values.

    So of a pydantic model, too: its own JSON would turn a path or a masked secret into a string.
    """
    if hasattr(type(record), "model_dump"):
        fields: Mapping[str, Any] = record.model_dump()
        return fields
    if attrs.has(type(record)):
        return {field.name: getattr(record, field.name) for field in attrs.fields(type(record))}
    import dataclasses  # where there is such a value it is loaded already

    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _of_library(value: Any) -> str | int | float | None:
    """Return what stands for a file of a result, a UUID, a decimal, an integer of numpy or a URL; else None."""
    if isinstance(value, Media):
        return value.url
    for kind in type(value).__mro__:
        match kind.__module__.partition(".")[0], kind.__name__:
            case "uuid", "UUID":
                return str(value)
            case "decimal", "Decimal":
                return _of_decimal(value)
            case "numpy", "bool" | "bool_" | "integer":
                plain: int = value.item()
                return plain
            case "httpx" | "httpx2" | "yarl" | "pydantic" | "pydantic_core", name if name.lower().endswith("url"):
                return str(value)
    return None


def _of_decimal(value: Any) -> int | float | None:
    """Return the number that a decimal is, None when no float is written so."""
    number = float(value)
    if abs(number) < 1e30 and int(value) == value:
        return int(value)
    return number if math.isfinite(number) and type(value)(repr(number)) == value else None


_FILE_TYPES: Final = (bytes, bytearray, memoryview, PurePath, io.IOBase)
FILE_ADVICE: Final = (
    "files are not uploaded: put it where the service can fetch it, such as a bucket of yours, and pass its https URL "
    "(a presigned one will do)"
)


def _advice(value: object) -> str:
    """Return the line that helps with a value that is not converted."""
    if isinstance(value, _FILE_TYPES):
        return FILE_ADVICE
    if hasattr(value, "tolist"):
        return "pass its tolist()"
    if hasattr(value, "tobytes"):  # an image of Pillow
        return FILE_ADVICE
    if type(value).__name__ == "Decimal":
        return "no float is exactly that: pass a string or a float of it"
    if isinstance(value, (set, frozenset, range, Iterator)):
        return "make it a list"
    if isinstance(value, timedelta):
        return "pass its total_seconds(), or whatever the field counts in"
    if isinstance(value, Awaitable):
        return "await it, and pass what the result holds, as run.images[0].url"
    if _is_ours(type(value)):
        return "pass what it holds, as run.images[0].url of a RunResult"
    return "convert it, or pass default=..., which is called as that of json.dumps"


def invalid_inputs(target: Target, faults: Iterable[str]) -> InvalidInputsError:
    """Return the error of inputs that do not fit a schema."""
    message = f"{target}: {'; '.join(faults)}"
    return InvalidInputsError(message, code="INVALID_INPUTS", advice="Nothing was sent")


def input_errors(schema: WorkflowSchema, inputs: Mapping[str, Any]) -> tuple[str, ...]:
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
    return _wrong_type((field.type or "").lower(), value) or _out_of_bounds(field, value) or _not_offered(field, value)


def _out_of_bounds(field: SchemaField, value: Any) -> str | None:
    if not is_number(value):
        return None
    if field.min is not None and value < field.min:
        return f"must be at least {field.min:g}"
    if field.max is not None and value > field.max:
        return f"must be at most {field.max:g}"
    return None


def _not_offered(field: SchemaField, value: Any) -> str | None:
    """Return why a value is none of the options: a list chooses several; an option may be an object with a `value`."""
    offered = [option.get("value") if isinstance(option, Mapping) else option for option in field.options]
    if not offered or None in offered:
        return None
    chosen = value if isinstance(value, (list, tuple)) else [value]
    is_offered = all(any(_is_same(each, option) for option in offered) for each in chosen)
    return None if is_offered else f"must be one of {', '.join(map(safe_repr, offered))}"


def _is_same(value: Any, option: Any) -> bool:
    """Compare as JSON does: true is not 1."""
    return isinstance(value, bool) == isinstance(option, bool) and bool(value == option)


def _wrong_type(kind: str, value: Any) -> str | None:
    match kind:
        case "text" | "textarea":
            fits, what = isinstance(value, str), "a string"
        case "number" | "slider":
            fits, what = is_number(value), "a number"
        case "toggle":
            fits, what = isinstance(value, bool), "true or false"
        case "image" | "video":
            fits = isinstance(value, str) and value.startswith("https://") and len(value) > len("https://")
            is_web_address = isinstance(value, str) and value.startswith("http://")
            what = "an https URL" if is_web_address else f"an https URL ({FILE_ADVICE})"
        case _:
            return None
    return None if fits else f"must be {what}"
