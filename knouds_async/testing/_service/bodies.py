"""How the service reads the body of a request: one JSON object, of numbers and a depth that it can keep."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, Final

from knouds_async.testing._service.replies import ErrorResponse

__all__ = ["json_object"]

_DEEPEST: Final = 200


def json_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object; 400 INVALID_BODY for anything else."""
    try:
        parsed: object = json.loads(body, parse_float=_float, parse_int=_int, parse_constant=_float)
    except (ValueError, RecursionError):
        raise ErrorResponse(400, "INVALID_BODY", "The body is not JSON") from None
    if not isinstance(parsed, dict):
        raise ErrorResponse(400, "INVALID_BODY", "The body must be a JSON object")
    if body.count(b"[") + body.count(b"{") > _DEEPEST and _is_too_deep(parsed):
        raise ErrorResponse(400, "INVALID_BODY", f"The body is nested more than {_DEEPEST} levels deep")
    return parsed


def _float(text: str) -> float:
    """Read a number that is none in JavaScript's eyes, such as NaN or 1e999, as the error it is."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a number")
    return number


def _int(text: str) -> int:
    _float(text)
    return int(text)


def _is_too_deep(value: object) -> bool:
    level: list[object] = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
