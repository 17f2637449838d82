"""From JSON to the records of `types`: strict in what the contract promises, forgiving in all else. Pure.

It owns the one cattrs converter. Names the
contract promises must be there; everything else is None when it is missing or odd, and unknown fields, statuses and
tiers pass (contract 1).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from datetime import datetime
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Final, TypeVar, Union, get_args, get_origin

import attrs

from knouds_async._sansio.values import (
    ExtendedBody,
    UnreadableError,
    boolean,
    integer,
    json_object,
    number,
    string,
    timestamp,
)
from knouds_async.types import Status

if TYPE_CHECKING:
    import cattrs

T = TypeVar("T")


def _status(value: Any, _: Any = None) -> Status | str:
    given = string(value)
    return Status(given) if given in _STATUSES else given


def _row_id(value: Any, _: Any = None) -> int | str:
    return value if isinstance(value, str) else integer(value)


_STATUSES: Final = frozenset(Status)
_ODD: Final = (ValueError, TypeError, KeyError, OverflowError)
_RAW: Final = "<source>"  # carries the source of a record to its `raw`; cattrs puts it into code that it compiles


def _is_optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)


def _optional(kind: Any) -> Callable[[Any, Any], Any]:
    """Return the hook of `X | None`."""
    inner: Any = Union[tuple(each for each in get_args(kind) if each is not NoneType)]  # noqa: UP007
    read = converter().get_structure_hook(inner)
    return lambda value, _: None if value is None else read(value, inner)


_AS_THEY_ARE: Final[dict[Any, type]] = {str | None: str, bool | None: bool}
"""Fields that JSON gives as they are to be, or nothing: what these take is what a page of 500 rows takes."""


def _forgiving(field: attrs.Attribute[Any]) -> Callable[[Any, Any], Any]:
    """Return the hook of a field that has a default: what cannot be read gives that."""
    if field.default is None and field.type in _AS_THEY_ARE:
        kind = _AS_THEY_ARE[field.type]
        return lambda value, _: value if type(value) is kind else None
    read = converter().get_structure_hook(field.type)
    make = getattr(field.default, "factory", lambda: field.default)

    def structure(value: Any, _: Any) -> Any:
        try:
            return read(value, field.type)
        except _ODD:
            return make()

    return structure


def _items(kind: Any) -> Callable[[Any, Any], Any]:
    """Return the hook of `tuple[X, ...]`: what is not a list gives nothing, items that are no X are left out."""
    (inner, _) = get_args(kind)
    read = converter().get_structure_hook(inner)

    def structure(value: Any, _: Any) -> tuple[Any, ...]:
        found = []
        for item in value if isinstance(value, list) else ():
            try:
                found.append(read(item, inner))
            except _ODD:
                continue
        return tuple(found)

    return structure


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.title() for part in rest)


def _record(kind: Any) -> Callable[[Any, Any], Any]:
    """Return the hook of a record: snake_case fields from camelCase keys, and the source kept in `raw`."""
    from cattrs.gen import make_dict_structure_fn, override

    fields = {
        field.name: override(
            rename=_RAW if field.name == "raw" else _camel(field.name),
            struct_hook=None if field.default is attrs.NOTHING else _forgiving(field),
        )
        for field in attrs.fields(attrs.resolve_types(kind))
    }
    read = make_dict_structure_fn(kind, converter(), _cattrs_detailed_validation=False, **fields)  # type: ignore[arg-type]

    def structure(value: Any, _: Any) -> Any:
        return read({**json_object(value), _RAW: value.body if isinstance(value, ExtendedBody) else value}, kind)

    return structure


@functools.cache
def converter() -> cattrs.Converter:
    """Return the one converter; cattrs is loaded with the first client, not with the package."""
    import cattrs

    made = cattrs.Converter(detailed_validation=False, prefer_attrib_converters=False)
    made.register_structure_hook_factory(attrs.has, _record)
    made.register_structure_hook_factory(_is_optional, _optional)
    made.register_structure_hook_factory(lambda kind: getattr(kind, "__origin__", None) is tuple, _items)
    made.register_structure_hook_func(lambda kind: kind == (Status | str), _status)
    made.register_structure_hook_func(lambda kind: getattr(kind, "__origin__", None) is Mapping, json_object)
    made.register_structure_hook_func(lambda kind: kind == (int | str), _row_id)
    for kind, hook in ((str, string), (float, number), (int, integer), (bool, boolean), (datetime, timestamp)):
        made.register_structure_hook(kind, hook)
    return made


def structured(value: Any, kind: type[T]) -> T:
    """Return the record that a value holds, or say why it holds none."""
    try:
        return converter().structure(value, kind)
    except KeyError as missing:
        raise UnreadableError(f"{missing} is missing") from None
    except _ODD as odd:
        raise UnreadableError(str(odd)) from None
