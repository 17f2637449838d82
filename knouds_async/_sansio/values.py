"""The values of JSON, checked and never coerced: each comes back as it is, or is said to be unreadable. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeGuard

from knouds_async._sansio import names

_BEYOND: Final = 1e300  # JSON knows no bounds: 1e999 is read as infinity, and 400 digits fit no float


class UnreadableError(ValueError):
    """A body that is not what the contract promises; its text says how. Never leaves `_sansio`."""


class OtherAnswerError(UnreadableError):
    """A body that can be read, but answers something else than was asked."""


def string(value: Any, _: Any = None) -> str:
    """Return a value that is a string; another is unreadable."""
    if isinstance(value, str):
        return value
    raise UnreadableError(f"{names.safe_repr(value)} is not a string")


def number(value: Any, _: Any = None) -> float:
    """Return a value that is a number that a float can hold; another is unreadable."""
    if is_number(value):
        return value
    raise UnreadableError(f"{names.safe_repr(value)} is not a number")


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that a float can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _BEYOND


def integer(value: Any, _: Any = None) -> int:
    """Return a value that is an integer; another is unreadable."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise UnreadableError(f"{names.safe_repr(value)} is not an integer")


def boolean(value: Any, _: Any = None) -> bool:
    """Return a value that is true or false; another is unreadable."""
    if isinstance(value, bool):
        return value
    raise UnreadableError(f"{names.safe_repr(value)} is not a boolean")


def timestamp(value: Any, _: Any = None) -> datetime:
    """Read ISO 8601; a time without a zone is taken as UTC, as the service means it."""
    given = datetime.fromisoformat(string(value))
    return given if given.tzinfo else given.replace(tzinfo=UTC)


def json_object(value: Any, _: Any = None) -> Mapping[str, Any]:
    """Return a value that is a JSON object; another is unreadable."""
    if isinstance(value, dict):
        return value
    raise UnreadableError(f"{names.safe_repr(value)} is not an object")


class ExtendedBody(dict[str, Any]):
    """The body of an answer, and what is known besides; a record's `raw` is the body alone."""

    __slots__ = ("body",)

    def __init__(self, body: Mapping[str, Any], **known: Any) -> None:
        super().__init__(body, **known)
        self.body = body
