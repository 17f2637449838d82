"""The models and workflows that an emulated account starts with (contract 2, 4, 8)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import attrs

__all__ = ["DEFAULT_MODELS", "DEFAULT_WORKFLOWS", "SLUG", "Model", "Workflow"]

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


def _strings(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@attrs.frozen
class Workflow:
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
    Workflow(
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
    Workflow(
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
    Workflow("jingle", ({"name": "mood", "type": "text", "default": "happy"},), ("suno-v5",), name="Jingle"),
    Workflow("daily-picture", name="Daily picture", description="Takes no inputs"),
    Workflow(
        "fast-sketch",
        ({"name": "prompt", "type": "text", "required": True},),
        ("nano-banana-2",),
        name="Fast sketch",
        description="Its model's provider cannot be polled",
    ),
    Workflow(
        "portrait-starter",
        ({"name": "photo", "type": "image", "required": True},),
        name="Portrait starter",
        user="u_templates",
        is_template=True,
    ),
)
