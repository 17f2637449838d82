"""From an answer to a value or an error: (status, headers, body) in, a record of `types` or a typed error out.

Rule of the file: it owns the one cattrs converter. Names the contract promises must be there; everything else is
None when it is missing or odd, and unknown fields, statuses and tiers pass (contract 1).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import NoneType, UnionType
from typing import Any, Final, TypeGuard, TypeVar, Union, get_args, get_origin

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, override

from knouds_async import types
from knouds_async._sansio import names
from knouds_async.types import Status

T = TypeVar("T")


@attrs.frozen
class Answer:
    """What came back: the HTTP status, the headers this library reads (lower case) and the decoded body."""

    status: int
    headers: Mapping[str, str]
    body: bytes = attrs.field(repr=False)


class UnreadableError(ValueError):
    """A body that is not what the contract promises; its text says how. Never leaves `_sansio`."""


def parsed(body: bytes) -> Any:
    """Give a body as JSON; what is not strict JSON is unreadable."""
    try:
        return json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise UnreadableError("its JSON is nested too deeply") from None
    except ValueError as error:
        what = "it is empty" if not body.strip() else f"it is not JSON ({error})"
        raise UnreadableError(f"{what:.200}") from None


def _no_constant(name: str) -> None:
    raise UnreadableError(f"it holds {name}, which is not JSON")


def own_words(answer: Answer) -> Mapping[str, Any] | None:
    """Give the body if it is the service's own JSON, `{"error": <text>, ...}`; a proxy's page is None."""
    try:
        body = parsed(answer.body)
    except UnreadableError:
        return None
    return body if isinstance(body, dict) and isinstance(body.get("error"), str) else None


# The converter: primitives are checked, never coerced; a field with a default takes it where its value is odd.


def _text(value: Any, _: Any = None) -> str:
    if isinstance(value, str):
        return value
    raise UnreadableError(f"{names.shown(value)} is not a text")


def _number(value: Any, _: Any = None) -> float:
    if _is_number(value):
        return value
    raise UnreadableError(f"{names.shown(value)} is not a number")


def _is_number(value: Any) -> TypeGuard[float]:
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


def _object(value: Any, _: Any = None) -> Mapping[str, Any]:
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
        return read({**_object(value), _RAW: value.body if isinstance(value, _Told) else value}, kind)

    return structure


class _Told(dict[str, Any]):
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
_converter.register_structure_hook_func(lambda kind: getattr(kind, "__origin__", None) is Mapping, _object)
_converter.register_structure_hook_func(lambda kind: kind == (int | str), _row_id)
for _kind, _hook in ((str, _text), (float, _number), (int, _whole), (bool, _truth), (datetime, _moment)):
    _converter.register_structure_hook(_kind, _hook)


def _structured(value: Any, kind: type[T]) -> T:
    try:
        return _converter.structure(value, kind)
    except KeyError as missing:
        raise UnreadableError(f"{missing} is missing") from None
    except _ODD as odd:
        raise UnreadableError(str(odd)) from None


# One reader per kind of reply.


def read(kind: type[T]) -> Callable[[Answer], T]:
    """Make the reader of a reply that is one record."""
    return lambda answer: _structured(parsed(answer.body), kind)


def account(answer: Answer) -> types.Account:
    """Read who the key belongs to; the record lies under `user` (contract 2)."""
    body = _object(parsed(answer.body))
    return attrs.evolve(_structured(body.get("user", body), types.Account), raw=body)


def nothing(answer: Answer) -> None:
    """Take any 2xx for done, whatever its body says."""


def workflows(answer: Answer) -> tuple[types.WorkflowSummary, ...]:
    """Read the list of workflows: a JSON array (contract 2)."""
    rows = parsed(answer.body)
    if not isinstance(rows, list):
        raise UnreadableError(f"{names.shown(rows)} is not a list")
    return tuple(_structured(row, types.WorkflowSummary) for row in rows)


def submitted(answer: Answer) -> types.Submitted:
    """Read the receipt of a submit: only the id must be there and usable, for a paid run hangs on it (contract 4)."""
    body = _object(parsed(answer.body))
    receipt = _structured({"executionId": None, **body}, types.Submitted)
    if not names.is_execution_id(receipt.execution_id):
        raise UnreadableError(f"executionId {names.shown(receipt.execution_id)} is not an id")
    webhook = body.get("webhookDelivery")
    return attrs.evolve(receipt, webhook_configured=isinstance(webhook, dict) and webhook.get("configured") is True)


def run_result(answer: Answer) -> types.RunResult:
    """Read the result of a synchronous run (contract 3)."""
    body = _object(parsed(answer.body))
    if body.get("success") is False:
        raise UnreadableError("'success' is false, and no error is named")
    if "result" not in body:
        raise UnreadableError("'result' is missing")
    return _structured(body, types.RunResult)


def execution(execution_id: str) -> Callable[[Answer], types.ExecutionState]:
    """Make the reader of an execution; only `status` must be there (contract 5)."""
    return lambda answer: execution_state(execution_id, _object(parsed(answer.body)))


def execution_state(execution_id: str, body: Mapping[str, Any]) -> types.ExecutionState:
    """Read an execution from its JSON; the id asked for is the id of the record."""
    ms = next((body[key] for key in ("ms", "durationMs") if _is_number(body.get(key))), None)
    return _structured(_Told(body, executionId=execution_id, ms=ms), types.ExecutionState)


def cancelled(execution_id: str) -> Callable[[Answer], types.ExecutionState]:
    """Make the reader of a cancel; a 2xx without a status means it was requested (contract 5, assumed)."""

    def reader(answer: Answer) -> types.ExecutionState:
        body = _object(parsed(answer.body)) if answer.body.strip() else {}
        is_told = isinstance(body.get("status"), str)
        told = body if is_told else {**body, "status": Status.CANCEL_REQUESTED}
        return attrs.evolve(execution_state(execution_id, told), raw=body)

    return reader


def usage_page(answer: Answer) -> types.UsagePage:
    """Read a page of usage rows (contract 10); a page without a list of rows is not an empty one."""
    body = _object(parsed(answer.body))
    if not isinstance(body.get("rows"), list):
        raise UnreadableError("'rows' is not a list")
    return _structured(body, types.UsagePage)


def usage_models(answer: Answer) -> tuple[str, ...]:
    """Read the distinct model ids: a list, or an object that holds one (contract 2; the shape is assumed)."""
    found = parsed(answer.body)
    if isinstance(found, dict):
        found = next((value for value in (found.get("models"), *found.values()) if isinstance(value, list)), [])
    if not isinstance(found, list):
        raise UnreadableError(f"{names.shown(found)} is not a list")
    return tuple(item for item in found if isinstance(item, str))


def pricing(answer: Answer) -> types.Pricing:
    """Keep the public prices as they are; their shape is not documented."""
    return types.Pricing(raw=parsed(answer.body))


def health(answer: Answer) -> types.Health:
    """Read the service's health from any 2xx."""
    try:
        return _structured(parsed(answer.body), types.Health)
    except UnreadableError:
        return types.Health(raw=answer.body[:1000].decode(errors="replace"))
