"""Settings from JSON: for an emulator that is to be made, and for one that runs already.

Rule of the file: ValueError, and nothing is done, for what cannot be. Keys, workflows and models are Python's alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Final

import attrs

from knouds_async.testing.deliveries import Deliveries
from knouds_async.testing.settings import Settings

__all__ = ["change_settings", "settings_from"]

_NAMES: Final = frozenset(
    field.name for field in attrs.fields(Settings) if field.name not in ("api_key", "keys", "workflows", "models")
)
_TAKEN_UP_ONCE: Final = frozenset(
    {"seed", "epoch", "clock_skew", "window_phase", "usage_lag", "capabilities", "scope", "webhook_url"}
)


def settings_from(given: Mapping[str, object]) -> dict[str, Any]:
    """Give the settings of an emulator to be made; `deliveries` may be an object."""
    return {name: _read(name, value) for name, value in given.items()}


def change_settings(settings: Settings, given: Mapping[str, object]) -> None:
    """Set what is given, all of it or, for what cannot be, nothing."""
    if once := set(given) & _TAKEN_UP_ONCE:
        raise ValueError(f"{min(once)} is taken up when the emulator is made, and cannot be changed while it runs")
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


def _read(name: str, value: object) -> Any:
    if name not in _NAMES:
        near = difflib.get_close_matches(name, _NAMES, n=1)
        raise ValueError(f"there is no setting {name!r}{f'; did you mean {near[0]!r}?' if near else ''}")
    if name != "deliveries" or not isinstance(value, Mapping):
        return value
    known = {field.name for field in attrs.fields(Deliveries)}
    if unknown := set(value) - known:
        raise ValueError(f"deliveries have no {min(unknown)!r}; there are: {', '.join(sorted(known))}")
    return Deliveries(**value)
