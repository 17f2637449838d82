"""Whether a run's inputs fit its workflow's schema (contract 8); what the schema does not name is let through."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from knouds_async.testing._service.replies import ErrorResponse

__all__ = ["check_inputs"]

Field = Mapping[str, object]


def check_inputs(fields: Sequence[Field], inputs: Mapping[str, object]) -> None:
    """Raise 400 INVALID_INPUTS for the first field that does not fit."""
    for field in fields:
        name = str(field.get("name"))
        if name in inputs:
            if problem := _problem(field, inputs[name]):
                raise ErrorResponse(400, "INVALID_INPUTS", f"Field '{name}' {problem}", {"field": name})
        elif field.get("required") and "default" not in field:
            raise ErrorResponse(400, "INVALID_INPUTS", f"Field '{name}' is required", {"field": name})


def _problem(field: Field, value: object) -> str | None:
    match field.get("type"):
        case "text" | "textarea":
            return None if isinstance(value, str) else "must be a string"
        case "number":
            return None if _is_number(value) else "must be a number"
        case "slider":
            return _slider_problem(field, value)
        case "pills":
            return _pills_problem(field, value)
        case "toggle":
            return None if isinstance(value, bool) else "must be true or false"
        case "image" | "video":
            is_url = isinstance(value, str) and value.startswith("https://") and len(value) > len("https://")
            return None if is_url else "must be an HTTPS URL"
        case _:
            return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _slider_problem(field: Field, value: object) -> str | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "must be a number"
    low, high, step = field.get("min"), field.get("max"), field.get("step")
    if isinstance(low, int | float) and value < low:
        return f"must be at least {low}"
    if isinstance(high, int | float) and value > high:
        return f"must be at most {high}"
    if isinstance(step, int | float) and step > 0:
        steps = (float(value) - (low if isinstance(low, int | float) else 0)) / step
        if not math.isfinite(steps) or abs(steps - round(steps)) > 1e-6:
            return f"must be in steps of {step}"
    return None


def _pills_problem(field: Field, value: object) -> str | None:
    options = field.get("options")
    if not isinstance(options, Sequence):
        return None
    allowed = [option.get("value") if isinstance(option, Mapping) else option for option in options]
    return None if value in allowed else f"must be one of {allowed}"
