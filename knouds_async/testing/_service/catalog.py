"""What an emulated account has: keys with their rights and limits, models, workflows (contract 2, 4, 7, 8)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import attrs

__all__ = [
    "DEFAULT_KEY",
    "DEFAULT_MODELS",
    "DEFAULT_USER",
    "DEFAULT_WORKFLOWS",
    "SCOPE_LIMITS",
    "SLUG",
    "TIER_LIMITS",
    "ApiKey",
    "EmulatedWorkflow",
    "Model",
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


SLUG: Final = re.compile(r"[a-z0-9][a-z0-9-]*\Z")

JsonObject = Mapping[str, object]


def _is_slug(_: object, attribute: attrs.Attribute[Any], value: str) -> None:
    if SLUG.match(value) is None:
        raise ValueError(
            f"{attribute.name} must be lower-case letters, digits and hyphens, as the service has them, not {value!r}"
        )


@attrs.frozen
class Model:
    """A registry model: what it makes, whether its provider can be polled, and the tier it needs."""

    name: str = attrs.field(validator=_is_slug)
    makes: Literal["images", "videos", "audios", "text"] = attrs.field(
        default="images", validator=attrs.validators.in_(("images", "videos", "audios", "text"))
    )
    is_async: bool = attrs.field(default=True, kw_only=True)
    tier: str = attrs.field(default="business", kw_only=True)


def _fields(values: Iterable[JsonObject]) -> tuple[JsonObject, ...]:
    return tuple(values)


@attrs.frozen
class EmulatedWorkflow:
    """A workflow of the account: its input fields (as the schema shows them) and the models it runs."""

    slug: str = attrs.field(validator=_is_slug)
    fields: tuple[JsonObject, ...] = attrs.field(default=(), converter=_fields)
    models: tuple[str, ...] = attrs.field(default=("gpt-image-2",), converter=_strings)
    name: str = attrs.field(default="", kw_only=True)
    description: str = attrs.field(default="", kw_only=True)
    tags: tuple[str, ...] = attrs.field(default=(), converter=_strings, kw_only=True)
    folder_id: str | None = attrs.field(default=None, kw_only=True)
    user: str = attrs.field(default="u_knouds", kw_only=True)
    is_template: bool = attrs.field(default=False, kw_only=True)
    public_playground: bool = attrs.field(default=False, kw_only=True)


DEFAULT_MODELS: Final = (
    Model("seedance-2", "videos"),
    Model("suno-v5", "audios"),
    Model("gpt-image-2", "images"),
    Model("kling-3", "videos", is_async=False),
    Model("seedream-v5", "images", is_async=False),
    Model("nano-banana-2", "images", is_async=False),
    Model("claude-sonnet", "text", is_async=False),
)

DEFAULT_WORKFLOWS: Final = (
    EmulatedWorkflow(
        "my-thumbnail-pipeline",
        (
            {"name": "product_name", "type": "text", "required": True, "helperText": "Shown on the thumbnail"},
            {
                "name": "style",
                "type": "pills",
                "options": ["photo", "illustration", "3d"],
                "default": "photo",
                "required": False,
            },
            {"name": "count", "type": "slider", "min": 1, "max": 4, "step": 1, "default": 1, "required": False},
        ),
        name="My thumbnail pipeline",
        description="Thumbnails for a product",
        tags=("images", "shop"),
        public_playground=True,
    ),
    EmulatedWorkflow(
        "product-video",
        (
            {"name": "prompt", "type": "textarea", "required": True},
            {"name": "image", "type": "image", "required": False},
            {"name": "seconds", "type": "number", "default": 5, "required": False},
            {"name": "loop", "type": "toggle", "default": False, "required": False},
        ),
        ("seedance-2",),
        name="Product video",
        tags=("video",),
    ),
    EmulatedWorkflow("jingle", ({"name": "mood", "type": "text", "default": "happy"},), ("suno-v5",), name="Jingle"),
    EmulatedWorkflow("daily-picture", name="Daily picture", description="Takes no inputs"),
    EmulatedWorkflow(
        "fast-sketch",
        ({"name": "prompt", "type": "text", "required": True},),
        ("nano-banana-2",),
        name="Fast sketch",
        description="Its model's provider cannot be polled",
    ),
    EmulatedWorkflow(
        "portrait-starter",
        ({"name": "photo", "type": "image", "required": True},),
        name="Portrait starter",
        user="u_templates",
        is_template=True,
    ),
)
