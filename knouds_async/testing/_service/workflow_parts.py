"""Which parts of a workflow a create or an update may bring, and the shape that each must have (contract 8, 9)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from knouds_async.testing._service.replies import ErrorResponse

__all__ = ["BLANK_NAME", "checked_parts", "is_request_input", "settings_of"]

JsonObject = Mapping[str, object]
Check = Callable[[object], bool]

BLANK_NAME = "Untitled workflow"


def checked_parts(body: JsonObject) -> dict[str, object]:
    """Return the parts present in a body, by attribute name; 400 INVALID_BODY when one has the wrong shape."""
    parts: dict[str, object] = {}
    for key, (attribute, is_valid) in _PARTS.items():
        if key in body:
            if not is_valid(body[key]):
                raise ErrorResponse(400, "INVALID_BODY", f"'{key}' has the wrong shape")
            parts[attribute] = body[key]
    if "name" in parts:
        parts["name"] = str(parts["name"]).strip() or BLANK_NAME
    return parts


def settings_of(node: JsonObject) -> JsonObject:
    """Return the settings of a node: its `data`."""
    settings = node.get("data")
    return settings if isinstance(settings, Mapping) else {}


def is_request_input(node: JsonObject) -> bool:
    """Return whether a node is a Request Input, whose fields are the workflow's inputs."""
    return re.sub(r"[^a-z]", "", str(node.get("type", "")).lower()) == "requestinput"


def _is_string(value: object) -> bool:
    return isinstance(value, str)


def _is_string_or_null(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _list_of(is_valid: Check) -> Check:
    return lambda value: isinstance(value, list) and all(is_valid(one) for one in value)


def _object_with(needed: Mapping[str, Check], optional: Mapping[str, Check]) -> Check:
    """Create the check of an object that may have further keys."""

    def is_valid(value: object) -> bool:
        if not isinstance(value, dict):
            return False
        return all(name in value and check(value[name]) for name, check in needed.items()) and all(
            check(value[name]) for name, check in optional.items() if name in value
        )

    return is_valid


_is_position = _object_with({}, {"x": _is_number, "y": _is_number})
_is_viewport = _object_with({}, {"x": _is_number, "y": _is_number, "zoom": _is_number})
_is_field = _object_with(
    {"name": _is_string, "type": _is_string},
    {
        "options": _is_list,
        "min": _is_number,
        "max": _is_number,
        "step": _is_number,
        "required": _is_bool,
        "helperText": _is_string,
    },
)
_has_fields = _object_with({}, {"fields": _list_of(_is_field)})
_is_plain_node = _object_with(
    {"id": _is_string, "type": _is_string}, {"position": _is_position, "data": _object_with({}, {})}
)
_is_edge = _object_with(
    {"id": _is_string, "source": _is_string, "target": _is_string},
    {"sourceHandle": _is_string_or_null, "targetHandle": _is_string_or_null},
)


def _is_node(value: object) -> bool:
    if not (isinstance(value, dict) and _is_plain_node(value)):
        return False
    return not is_request_input(value) or _has_fields(settings_of(value))


_PARTS: dict[str, tuple[str, Check]] = {
    "name": ("name", _is_string),
    "description": ("description", _is_string),
    "tags": ("tags", _list_of(_is_string)),
    "nodes": ("nodes", _list_of(_is_node)),
    "edges": ("edges", _list_of(_is_edge)),
    "viewport": ("viewport", _is_viewport),
    "publicPlayground": ("public_playground", _is_bool),
}
