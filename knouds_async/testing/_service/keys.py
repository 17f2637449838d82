"""Who is asking and what the key may do: capabilities and tiers, or scopes in the old generation (contract 2, 7)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

import attrs

__all__ = [
    "DEFAULT_KEY",
    "DEFAULT_USER",
    "SCOPE_LIMITS",
    "TIER_LIMITS",
    "ApiKey",
    "allows",
    "has_scope",
    "reaches_tier",
]

DEFAULT_USER: Final = "u_knouds"
DEFAULT_KEY: Final = "knouds_live_emulator_0123456789abcdef"

# None is unlimited; a custom tier gets the limit of pro unless the emulator is given another (contract 6).
TIER_LIMITS: Final[dict[str, int | None]] = {"free": 10, "pro": 100, "business": 1000, "enterprise": None}
SCOPE_LIMITS: Final[dict[str, int | None]] = {
    "free": 10,
    "deployment": 100,
    "admin": 1000,
    "super_admin": None,
}
_SCOPES: Final = tuple(SCOPE_LIMITS)
_TIER_RANKS: Final = {"free": 0, "creator": 1, "pro": 1, "business": 2, "enterprise": 3}
_CUSTOM_RANK: Final = 2


def _is_sendable(_: object, attribute: attrs.Attribute[Any], value: str) -> None:
    if not isinstance(value, str) or not value or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError(f"{attribute.name} must be printable ASCII without spaces (the value is not shown)")


_is_string_or_none: Final = attrs.validators.optional(attrs.validators.instance_of(str))


def _strings(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@attrs.frozen
class ApiKey:
    """One API key; `tier` and `role` default to the emulator's, `scope` counts in the old generation only."""

    text: str = attrs.field(repr=False, validator=_is_sendable)
    capabilities: tuple[str, ...] = attrs.field(default=("*",), converter=_strings, kw_only=True)
    scope: Literal["free", "deployment", "admin", "super_admin"] = attrs.field(
        default="deployment", kw_only=True, validator=attrs.validators.in_(_SCOPES)
    )
    state: Literal["live", "revoked", "legacy"] = attrs.field(
        default="live", kw_only=True, validator=attrs.validators.in_(("live", "revoked", "legacy"))
    )
    is_approved: bool = attrs.field(default=True, kw_only=True, validator=attrs.validators.instance_of(bool))
    user: str = attrs.field(
        default=DEFAULT_USER, kw_only=True, validator=[attrs.validators.instance_of(str), attrs.validators.min_len(1)]
    )
    tier: str | None = attrs.field(default=None, kw_only=True, validator=_is_string_or_none)
    role: Literal["user", "admin"] | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.in_(("user", "admin", None))
    )
    webhook_url: str | None = attrs.field(default=None, kw_only=True, validator=_is_string_or_none)


def _covers(granted: str, required: str) -> bool:
    if granted in ("*", required):
        return True
    return granted.endswith(":*") and required.startswith(granted[:-1])


def allows(capabilities: tuple[str, ...], *required: str) -> bool:
    """Return whether any of the required capabilities is granted, wildcards included."""
    return any(_covers(granted, one) for granted in capabilities for one in required)


def has_scope(actual: str, required: str) -> bool:
    """Return whether a scope of the old generation is at least the required one."""
    return _SCOPES.index(actual) >= _SCOPES.index(required)


def reaches_tier(tier: str, required: str) -> bool:
    """Return whether a tier is at least the required one; custom tiers rank with business."""
    return _TIER_RANKS.get(tier, _CUSTOM_RANK) >= _TIER_RANKS.get(required, _CUSTOM_RANK)
