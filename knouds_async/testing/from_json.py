"""Settings and keys from JSON: for a new emulator, and for one that is running.

ValueError for what is impossible, and nothing is changed. Workflows and models can be set in Python only.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Final

import attrs

from knouds_async.testing._service.catalog import ApiKey
from knouds_async.testing.deliveries import Deliveries
from knouds_async.testing.laws import Lognormal, is_number
from knouds_async.testing.settings import Settings

__all__ = ["change_settings", "key_from", "settings_from"]

_NAMES: Final = frozenset(
    field.name for field in attrs.fields(Settings) if field.name not in ("api_key", "keys", "workflows", "models")
)
_TAKEN_UP_ONCE: Final = frozenset(
    {"seed", "epoch", "clock_skew", "window_phase", "usage_lag", "capabilities", "scope", "webhook_url"}
)


def settings_from(given: Mapping[str, object]) -> dict[str, Any]:
    """Return the settings of an emulator to be created; `deliveries` may be an object."""
    return {name: _read(name, value) for name, value in given.items()}


def change_settings(settings: Settings, given: Mapping[str, object]) -> None:
    """Change settings, all of them or, if one is impossible, none."""
    if once := set(given) & _TAKEN_UP_ONCE:
        raise ValueError(f"{min(once)} is read when the emulator is created, and cannot be changed while it runs")
    values = settings_from(given)
    before = {name: getattr(settings, name) for name in values}
    try:
        for name, value in values.items():
            setattr(settings, name, value)
        settings.check_together()
    except (TypeError, ValueError) as error:
        for name, value in before.items():
            object.__setattr__(settings, name, value)
        raise ValueError(str(error)) from None


def key_from(given: Mapping[str, Any], text: str) -> ApiKey:
    """Create a key from its Python attribute names; its text is `text` unless it has one."""
    names = {field.name for field in attrs.fields(ApiKey)}
    if unknown := set(given) - names:
        raise ValueError(f"an API key has no {min(unknown)!r}; choose from: {', '.join(sorted(names))}")
    rights = given.get("capabilities", ())
    if isinstance(rights, str) or not all(isinstance(right, str) for right in rights):
        raise ValueError(f"capabilities must be a list of strings, not {rights!r}")
    return ApiKey(**{"text": text, **given})


def _read(name: str, value: object) -> Any:
    if name not in _NAMES:
        near = difflib.get_close_matches(name, _NAMES, n=1)
        there_are = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(_NAMES))}"
        raise ValueError(f"there is no setting {name!r}; {there_are}")
    match name, value:
        case (("duration" | "cancel_delay"), Mapping()):
            return _lognormal(name, value)
        case "durations", Mapping():
            return {target: _lognormal(name, one) if isinstance(one, Mapping) else one for target, one in value.items()}
        case "deliveries", Mapping():
            return _deliveries(value)
        case _:
            return value


def _lognormal(name: str, given: Mapping[str, Any]) -> Lognormal:
    if not {"median"} <= set(given) <= {"median", "sigma"} or not all(map(is_number, given.values())):
        raise ValueError(f'{name} is seconds, or {{"median": ..., "sigma": ...}}, not {dict(given)!r}')
    return Lognormal(**given)


def _deliveries(given: Mapping[str, Any]) -> Deliveries:
    known = {field.name for field in attrs.fields(Deliveries)}
    if unknown := set(given) - known:
        raise ValueError(f"deliveries have no {min(unknown)!r}; choose from: {', '.join(sorted(known))}")
    values: dict[str, Any] = {
        name: _lognormal(name, value) if isinstance(value, Mapping) else value for name, value in given.items()
    }
    return Deliveries(**values)
