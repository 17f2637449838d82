"""Whether the inputs of a job fit a workflow's schema: every error at once, in words. Pure.

Only names and a type of a field are promised (contract 8): what the schema does not say, or says in a way that is not
known here, is let through for the service to judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeGuard

from knouds_async._sansio import names
from knouds_async.types import Inputs, SchemaField, WorkflowSchema


def input_errors(schema: WorkflowSchema, inputs: Inputs) -> tuple[str, ...]:
    """Return every fault, in the order of the inputs and then of the fields; empty when the inputs fit."""
    fields = {field.name: field for field in schema.fields}
    found = []
    for name, value in inputs.items():
        if name in fields:
            error = _field_error(fields[name], value)
            found += [f"{name!r} {error}, not {names.safe_repr(value)}"] if error else []
        elif _lists_all(schema):
            known = f"the fields are {', '.join(map(repr, fields))}" if fields else "the workflow takes no inputs"
            found.append(f"{names.safe_repr(name)} is no field ({known})")
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
    if not _is_number(value):
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
    return None if is_offered else f"must be one of {', '.join(map(names.safe_repr, offered))}"


def _is_same(value: Any, option: Any) -> bool:
    """Compare as JSON does: true is not 1."""
    return isinstance(value, bool) == isinstance(option, bool) and bool(value == option)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _anything(_: Any) -> str | None:
    return None


def _string(value: Any) -> str | None:
    return None if isinstance(value, str) else "must be a string"


def _number(value: Any) -> str | None:
    return None if _is_number(value) else "must be a number"


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
