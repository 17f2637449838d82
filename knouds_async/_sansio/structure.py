"""From JSON to the records of `types`: strict in what the contract promises, forgiving in all else. Pure.

Rule of the file: it owns the one cattrs converter. Primitives are checked, never coerced. Names the contract promises
must be there; everything else is None when it is missing or odd, and unknown fields, statuses and tiers pass
(contract 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import NoneType, UnionType
from typing import Any, Final, TypeGuard, TypeVar, Union, get_args, get_origin

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, override

from knouds_async._sansio import names
from knouds_async.types import Status

T = TypeVar("T")


class UnreadableError(ValueError):
    """A body that is not what the contract promises; its text says how. Never leaves `_sansio`."""


def _text(value: Any, _: Any = None) -> str:
    if isinstance(value, str):
        return value
    raise UnreadableError(f"{names.shown(value)} is not a text")


def _number(value: Any, _: Any = None) -> float:
    if is_number(value):
        return value
    raise UnreadableError(f"{names.shown(value)} is not a number")


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that a float can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _BEYOND


def _whole(value: Any, _: Any = None) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise UnreadableError(f"{names.shown(value)} is not a whole number")


def _truth(value: Any, _: Any = None) -> bool:
    if isinstance(value, bool):
        return value
    raise UnreadableError(f"{names.shown(value)} is neither true nor false")


def _moment(value: Any, _: Any = None) -> datetime:
    """Read ISO 8601; a time without a zone is taken as UTC, as the service means it."""
    moment = datetime.fromisoformat(_text(value))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def an_object(value: Any, _: Any = None) -> Mapping[str, Any]:
    """Give a value that is a JSON object; another is unreadable."""
    if isinstance(value, dict):
        return value
    raise UnreadableError(f"{names.shown(value)} is not an object")


def _status(value: Any, _: Any = None) -> Status | str:
    text = _text(value)
    return Status(text) if text in _STATUSES else text


def _row_id(value: Any, _: Any = None) -> int | str:
    return value if isinstance(value, str) else _whole(value)


_STATUSES: Final = frozenset(Status)
_ODD: Final = (ValueError, TypeError, KeyError, OverflowError)
_BEYOND: Final = 1e300  # JSON knows no bounds: 1e999 is read as infinity, and 400 digits fit no float
_RAW: Final = "\0raw"  # no JSON of the service has this key: it carries the source of a record to its `raw`


def _is_optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)


def _optional(kind: Any) -> Callable[[Any, Any], Any]:
    """Make the hook of `X | None`."""
    inner: Any = Union[tuple(each for each in get_args(kind) if each is not NoneType)]  # noqa: UP007
    read = _converter.get_structure_hook(inner)
    return lambda value, _: None if value is None else read(value, inner)


_AS_THEY_ARE: Final[dict[Any, type]] = {str | None: str, bool | None: bool}
"""Fields that JSON gives as they are to be, or nothing: what these take is what a page of 500 rows takes."""


def _forgiving(field: attrs.Attribute[Any]) -> Callable[[Any, Any], Any]:
    """Make the hook of a field that has a default: what cannot be read gives that."""
    if field.default is None and field.type in _AS_THEY_ARE:
        kind = _AS_THEY_ARE[field.type]
        return lambda value, _: value if type(value) is kind else None
    read = _converter.get_structure_hook(field.type)
    make = getattr(field.default, "factory", lambda: field.default)

    def structure(value: Any, _: Any) -> Any:
        try:
            return read(value, field.type)
        except _ODD:
            return make()

    return structure


def _items(kind: Any) -> Callable[[Any, Any], Any]:
    """Make the hook of `tuple[X, ...]`: what is not a list gives nothing, items that are no X are left out."""
    (inner, _) = get_args(kind)
    read = _converter.get_structure_hook(inner)

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
    """Make the hook of a record: snake_case fields from camelCase keys, and the source kept in `raw`."""
    fields = {
        field.name: override(
            rename=_RAW if field.name == "raw" else _camel(field.name),
            struct_hook=None if field.default is attrs.NOTHING else _forgiving(field),
        )
        for field in attrs.fields(attrs.resolve_types(kind))
    }
    read = make_dict_structure_fn(kind, _converter, _cattrs_detailed_validation=False, **fields)  # type: ignore[arg-type]

    def structure(value: Any, _: Any) -> Any:
        return read({**an_object(value), _RAW: value.body if isinstance(value, Told) else value}, kind)

    return structure


class Told(dict[str, Any]):
    """The body of an answer, and what is known besides; a record's `raw` is the body alone."""

    __slots__ = ("body",)

    def __init__(self, body: Mapping[str, Any], **known: Any) -> None:
        super().__init__(body, **known)
        self.body = body


_converter: Final = cattrs.Converter(detailed_validation=False, prefer_attrib_converters=False)
_converter.register_structure_hook_factory(attrs.has, _record)
_converter.register_structure_hook_factory(_is_optional, _optional)
_converter.register_structure_hook_factory(lambda kind: getattr(kind, "__origin__", None) is tuple, _items)
_converter.register_structure_hook_func(lambda kind: kind == (Status | str), _status)
_converter.register_structure_hook_func(lambda kind: getattr(kind, "__origin__", None) is Mapping, an_object)
_converter.register_structure_hook_func(lambda kind: kind == (int | str), _row_id)
for _kind, _hook in ((str, _text), (float, _number), (int, _whole), (bool, _truth), (datetime, _moment)):
    _converter.register_structure_hook(_kind, _hook)


def structured(value: Any, kind: type[T]) -> T:
    """Give the record that a value holds, or say why it holds none."""
    try:
        return _converter.structure(value, kind)
    except KeyError as missing:
        raise UnreadableError(f"{missing} is missing") from None
    except _ODD as odd:
        raise UnreadableError(str(odd)) from None
