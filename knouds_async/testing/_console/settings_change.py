"""Changes settings of a running emulator from JSON: all that are given or none."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Final

import attrs

from knouds_async.testing.deliveries import Deliveries
from knouds_async.testing.settings import Settings

__all__ = ["change_settings"]

_TAKEN_UP_ONCE: Final = frozenset(
    {"api_key", "keys", "workflows", "models", "seed", "epoch", "clock_skew", "window_phase", "usage_lag"}
)
_NAMES: Final = frozenset(field.name for field in attrs.fields(Settings))
_WHEN_MADE: Final = frozenset({"capabilities", "scope", "webhook_url"})  # they belong to the key, made with the rest


def change_settings(settings: Settings, given: Mapping[str, object]) -> None:
    """Set what is given; ValueError, and nothing is changed, for what cannot be."""
    before = {name: getattr(settings, name) for name in given if name in _NAMES}
    try:
        for name, value in given.items():
            setattr(settings, name, _read(name, value))
        settings.check_together()
    except (TypeError, ValueError) as error:
        for name, value in before.items():
            object.__setattr__(settings, name, value)
        raise ValueError(str(error)) from None


def _read(name: str, value: object) -> Any:
    if name not in _NAMES:
        near = difflib.get_close_matches(name, _NAMES, n=1)
        raise ValueError(f"there is no setting {name!r}{f'; did you mean {near[0]!r}?' if near else ''}")
    if name in _TAKEN_UP_ONCE | _WHEN_MADE:
        raise ValueError(f"{name} is taken up when the emulator is made, and cannot be changed while it runs")
    if name == "deliveries" and isinstance(value, Mapping):
        return Deliveries(**value)
    return value
