"""From an answer to a value or an error: (status, headers, body) in, a record of `types` or a typed error out. Pure.

JSON values are checked and never coerced; records are strict in what the contract promises, forgiving in all else:
names the contract promises must be there, everything else is None when it is missing or odd, and unknown fields,
statuses and tiers pass (contract 1). An odd header is as good as none (contract 6). What the beginning of a submit's
receipt still shows when the rest of it did not come is salvaged: the id of the run.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeGuard, TypeVar, Union, get_args, get_origin

import attrs

from knouds_async import types
from knouds_async._sansio.inputs import is_execution_id
from knouds_async._sansio.rate_limit import LONGEST_WINDOW, QuotaHeaders
from knouds_async.config import Secret, is_integer, is_number
from knouds_async.errors import safe_repr
from knouds_async.types import Record, Status

if TYPE_CHECKING:
    import cattrs


T = TypeVar("T")


@attrs.frozen(eq=False, repr=False)
class Answer(Record):
    """What came back: the HTTP status, the headers this library reads (lower case) and the decoded body."""

    status: int
    headers: Mapping[str, str]
    body: bytes = attrs.field(repr=False)


class InexactValueError(ValueError):
    """JSON that could only be read with a loss: a name that comes twice, or a number that Python does not hold."""


def strict_json(text: str | bytes, *, is_exact: bool = False) -> Any:
    """Return what JSON says; ValueError for what is none, such as NaN, and for what is nested too deeply.

    `is_exact`: what could only be read with a loss is an InexactValueError.
    """
    decoder = _EXACT if is_exact else _STRICT
    try:
        text = text if isinstance(text, str) else text.decode(json.detect_encoding(text), "surrogatepass")
        return decoder.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is not JSON")


def _exact_number(digits: str) -> float:
    number, mantissa = float(digits), digits.lower().partition("e")[0]
    if not math.isfinite(number):
        raise InexactValueError(f"{digits:.40} is too large a number")
    if number == 0 and mantissa.strip("-0."):
        raise InexactValueError(f"{digits:.40} is too small a number")
    return number if set(digits) & set(".eE") else int(digits)


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InexactValueError(f"the name {safe_repr(name)} comes twice in a JSON object")
        found[name] = value
    return found


_STRICT: Final = json.JSONDecoder(parse_constant=_no_constant)
_EXACT: Final = json.JSONDecoder(
    parse_constant=_no_constant, parse_float=_exact_number, parse_int=_exact_number, object_pairs_hook=_unique_names
)


def parsed(body: bytes) -> Any:
    """Return a body as JSON; what is not strict JSON is unreadable."""
    try:
        return strict_json(body)
    except ValueError as error:
        what = "it is empty" if not body.strip() else f"it is not JSON ({error})"
        raise UnreadableError(f"{what:.200}") from None


def service_error(answer: Answer) -> Mapping[str, Any] | None:
    """Return the body if it is the service's own JSON, `{"error": <text>, ...}`; a proxy's page is None."""
    try:
        body = parsed(answer.body)
    except UnreadableError:
        return None
    return body if isinstance(body, dict) and isinstance(body.get("error"), str) else None


# One reader per kind of reply.


def read(kind: type[T]) -> Callable[[Answer], T]:
    """Return the parser of a reply that is one record."""
    return lambda answer: structured(parsed(answer.body), kind)


def account(answer: Answer) -> types.Account:
    """Read who the key belongs to; the record lies under `user` (contract 2)."""
    body = json_object(parsed(answer.body))
    return attrs.evolve(structured(body.get("user", body), types.Account), raw=body)


def nothing(answer: Answer) -> None:
    """Accept any 2xx as done, whatever its body says, but for a web page: that is not the service's."""
    _reject_web_page(answer)


def _reject_web_page(answer: Answer) -> None:
    if answer.body.lstrip()[:1] == b"<":
        raise UnreadableError("it is a web page")


def workflows(answer: Answer) -> tuple[types.WorkflowSummary, ...]:
    """Read the list of workflows: a JSON array (contract 2)."""
    rows = parsed(answer.body)
    if not isinstance(rows, list):
        raise UnreadableError(f"{safe_repr(rows)} is not a list")
    return tuple(structured(row, types.WorkflowSummary) for row in rows)


def submitted(answer: Answer) -> types.Submitted:
    """Read the receipt of a submit: only the id must be there and usable, for a paid run hangs on it (contract 4).

    A body that describes a finished run is the response to a poll of some run, and no receipt.
    """
    body = json_object(parsed(answer.body))
    if is_finished_state(body):
        raise OtherAnswerError(f"it is no receipt but the end of execution {safe_repr(body.get('executionId'))}")
    receipt = structured(body, types.Submitted)
    if not is_execution_id(receipt.execution_id):
        raise UnreadableError(f"executionId {safe_repr(receipt.execution_id)} is not an id")
    webhook = body.get("webhookDelivery")
    return attrs.evolve(receipt, webhook_configured=isinstance(webhook, dict) and webhook.get("configured") is True)


_FINISHED_FIELDS: Final = ("result", "completedAt", "cost", "ms", "durationMs")


def is_finished_state(body: Mapping[str, Any]) -> bool:
    """Return whether a body is a poll's that found a run finished, in the place of a receipt (contract 4 and 5)."""
    is_failed = body.get("status") in (Status.FAILED, Status.CANCELLED)
    is_ended = is_failed or any(body.get(key) is not None for key in _FINISHED_FIELDS)
    return is_ended and body.get("_async") is not True


def run_result(answer: Answer) -> types.RunResult:
    """Read the result of a synchronous run (contract 3)."""
    body = json_object(parsed(answer.body))
    if body.get("success") is False:
        raise UnreadableError("'success' is false, and no error is named")
    if "success" not in body and isinstance(body.get("status"), str) and isinstance(body.get("executionId"), str):
        raise OtherAnswerError(f"it is what a poll finds of execution {safe_repr(body['executionId'])}")
    return structured(body, types.RunResult)


def execution(execution_id: str) -> Callable[[Answer], types.ExecutionState]:
    """Return the parser of an execution; only `status` must be there (contract 5), and it must be no other's."""
    return lambda answer: execution_state(execution_id, _own_body(execution_id, json_object(parsed(answer.body))))


def _own_body(execution_id: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse the body of another run; one that names none contradicts nothing."""
    named = body.get("executionId")
    if isinstance(named, str) and named.casefold() != execution_id.casefold():
        raise OtherAnswerError(f"it is of execution {safe_repr(named)}, not of {execution_id!r}")
    return body


def execution_state(execution_id: str, body: Mapping[str, Any]) -> types.ExecutionState:
    """Read an execution from its JSON; the id asked for is the id of the record."""
    ms = next((body[key] for key in ("ms", "durationMs") if fits_float(body.get(key))), None)
    return structured(ExtendedBody(body, executionId=execution_id, ms=ms), types.ExecutionState)


def cancelled(execution_id: str) -> Callable[[Answer], types.ExecutionState]:
    """Return the parser of a cancel; a 2xx without a status means it was requested (contract 5, assumed)."""

    def reader(answer: Answer) -> types.ExecutionState:
        body = _own_body(execution_id, json_object(parsed(answer.body))) if answer.body.strip() else {}
        has_status = isinstance(body.get("status"), str)
        given = body if has_status else {**body, "status": Status.CANCEL_REQUESTED}
        return attrs.evolve(execution_state(execution_id, given), raw=body)

    return reader


def usage_page(answer: Answer) -> types.UsagePage:
    """Read a page of usage rows (contract 10); a page without a list of rows is not an empty one."""
    body = json_object(parsed(answer.body))
    if not isinstance(body.get("rows"), list):
        raise UnreadableError("'rows' is not a list")
    return structured(body, types.UsagePage)


def usage_models(answer: Answer) -> tuple[str, ...]:
    """Read the distinct model ids: a list, or an object that holds one (contract 2; the shape is assumed)."""
    found = parsed(answer.body)
    if isinstance(found, dict):
        found = next((value for value in (found.get("models"), *found.values()) if isinstance(value, list)), [])
    if not isinstance(found, list):
        raise UnreadableError(f"{safe_repr(found)} is not a list")
    return tuple(item for item in found if isinstance(item, str))


def pricing(answer: Answer) -> types.Pricing:
    """Keep the public prices as they are; their shape is not documented."""
    return types.Pricing(raw=parsed(answer.body))


def health(answer: Answer) -> types.Health:
    """Read the service's health from any 2xx but a web page, which is not the service's."""
    _reject_web_page(answer)
    try:
        return structured(parsed(answer.body), types.Health)
    except UnreadableError:
        return types.Health(raw=answer.body[:1000].decode(errors="replace"))


_BEYOND: Final = 1e300  # JSON knows no bounds: 1e999 is read as infinity, and 400 digits fit no float


class UnreadableError(ValueError):
    """A body that is not what the contract promises; its text says how. Never leaves `_sansio`."""


class OtherAnswerError(UnreadableError):
    """A body that can be read, but answers something else than was asked."""


def fits_float(value: Any) -> TypeGuard[float]:
    """Return whether a value is a number that a float can hold."""
    return is_number(value) and abs(value) < _BEYOND


def _checked(fits: Callable[[Any], bool], what: str) -> Callable[..., Any]:
    """Return what gives back a JSON value that fits; another is unreadable."""

    def read(value: Any, _: Any = None) -> Any:
        if fits(value):
            return value
        raise UnreadableError(f"{safe_repr(value)} is not {what}")

    return read


string: Final[Callable[..., str]] = _checked(lambda value: isinstance(value, str), "a string")
json_object: Final[Callable[..., Mapping[str, Any]]] = _checked(lambda value: isinstance(value, dict), "an object")


def timestamp(value: Any, _: Any = None) -> datetime:
    """Read ISO 8601; a time without a zone is taken as UTC, as the service means it."""
    given = datetime.fromisoformat(value)
    return given if given.tzinfo else given.replace(tzinfo=UTC)


_STRICT_HOOKS: Final[Mapping[Any, Callable[..., Any]]] = {
    str: string,
    float: _checked(fits_float, "a number"),
    int: _checked(is_integer, "an integer"),
    bool: _checked(lambda value: isinstance(value, bool), "a boolean"),
    datetime: timestamp,
}


class ExtendedBody(dict[str, Any]):
    """The body of an answer, and what is known besides; a record's `raw` is the body alone."""

    __slots__ = ("body",)

    def __init__(self, body: Mapping[str, Any], **known: Any) -> None:
        super().__init__(body, **known)
        self.body = body


def _status(value: Any, _: Any = None) -> Status | str:
    given = string(value)
    return _STATUSES.get(given, given)


_STATUSES: Final[Mapping[str, Status]] = {status.value: status for status in Status}
_ODD: Final = (ValueError, TypeError, KeyError, OverflowError)
_RAW: Final = "<source>"  # carries the source of a record to its `raw`; cattrs puts it into code that it compiles


def _is_optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)


def _optional(kind: Any) -> Callable[[Any, Any], Any]:
    """Return the hook of `X | None`."""
    inner: Any = Union[tuple(each for each in get_args(kind) if each is not NoneType)]  # noqa: UP007
    read = converter().get_structure_hook(inner)
    return lambda value, _: None if value is None else read(value, inner)


def _string_or_none(value: Any, _: Any) -> str | None:
    return value if type(value) is str else None


def _boolean_or_none(value: Any, _: Any) -> bool | None:
    return value if type(value) is bool else None


def _number_or_none(value: Any, _: Any) -> float | None:
    return value if type(value) in (int, float) and -_BEYOND < value < _BEYOND else None


def _status_or_none(value: Any, _: Any) -> Status | str | None:
    return _STATUSES.get(value, value) if type(value) is str else None


def _row_id_or_none(value: Any, _: Any) -> int | str | None:
    return value if type(value) in (int, str) else None


def _timestamp_or_none(value: Any, _: Any) -> datetime | None:
    try:
        return timestamp(value)
    except _ODD:
        return None


_FORGIVING: Final[Mapping[Any, Callable[[Any, Any], Any]]] = {
    str | None: _string_or_none,
    bool | None: _boolean_or_none,
    float | None: _number_or_none,
    Status | str | None: _status_or_none,
    int | str | None: _row_id_or_none,
    datetime | None: _timestamp_or_none,
}
"""What most fields of a page of 500 rows are read by, each in one call."""


def _forgiving(field: attrs.Attribute[Any]) -> Callable[[Any, Any], Any]:
    """Return the hook of a field that has a default: what cannot be read gives that."""
    if field.default is None and field.type in _FORGIVING:
        return _FORGIVING[field.type]
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
        if type(value) is dict:
            return read({**value, _RAW: value}, kind)
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
    for kind, hook in _STRICT_HOOKS.items():
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


READ: Final = (
    "age",
    "content-type",
    "date",
    "location",
    "retry-after",
    "server",
    "via",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
)
"""The headers that are kept of an answer; no other is ever read."""

REFUSED: Final = 429

_FOREVER: Final = 1e9  # seconds; a body's number may be of any length
_END_OF_DATES: Final = 2.0**36  # the year 4147: what a clock that is ahead of this says is no time
_SHORTEST_PAUSE: Final = 1.0  # seconds after a refusal, however short a pause it asks for
_WHOLE: Final = re.compile(r"[0-9]{1,15}\Z")


@functools.lru_cache(maxsize=8)  # answers of the same second carry the same
def http_date(text: str | None) -> float | None:
    """Return an HTTP date as epoch seconds; what is none gives None."""
    if not text:
        return None
    from email.utils import parsedate_to_datetime  # loaded with the first answer, not with the package

    try:
        moment = parsedate_to_datetime(text)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return seconds if 0 <= seconds < _END_OF_DATES else None


def fresh_date(answer: Answer) -> float | None:
    """Return when the service wrote an answer, epoch seconds; None where a cache may have kept it (`Age`)."""
    return None if "age" in answer.headers else http_date(answer.headers.get("date"))


def retry_after(answer: Answer, server_time: float | None) -> float | None:
    """Return the seconds the service asks to wait: `Retry-After` in seconds or as a date, else the body's `retryAfter`.

    A refusal that says neither may still say when its window ends. A date is taken against the answer's own `Date`,
    else against `server_time` (epoch seconds); never the local clock.
    """
    text = answer.headers.get("retry-after", "").strip()
    if _WHOLE.match(text):
        return float(text)
    until = http_date(text)
    since = http_date(answer.headers.get("date")) or server_time
    if until is not None and since is not None:
        return max(0.0, until - since)
    asked = (service_error(answer) or {}).get("retryAfter")
    if is_number(asked) and asked >= 0:
        return float(min(asked, _FOREVER))
    reset = _whole(answer, "x-ratelimit-reset") if answer.status == REFUSED else None
    ahead = -1.0 if reset is None or since is None else reset - since
    return ahead if 0 < ahead <= LONGEST_WINDOW else None


def is_own_refusal(answer: Answer, *, is_cut: bool = False) -> bool:
    """Return whether a 429 is the service's own: by its JSON, or by the headers of the quota where that was cut short.

    Gateways have such headers too (contract 6), so a body that came whole has to be the service's.
    """
    named = ("x-ratelimit-limit", "x-ratelimit-remaining")
    may_be_json = "json" in answer.headers.get("content-type", "json")
    has_quota = all(_whole(answer, name) is not None for name in named)
    return service_error(answer) is not None or (is_cut and may_be_json and has_quota)


def quota(answer: Answer, *, server_time: float | None) -> QuotaHeaders:
    """Return what an answer says of its route's quota; only a refusal's wait counts, and a web page is no success."""
    is_refused = answer.status == REFUSED
    asked = retry_after(answer, server_time) if is_refused else None
    return QuotaHeaders(
        refused=is_refused,
        succeeded=200 <= answer.status < 300 and "html" not in answer.headers.get("content-type", ""),
        limit=_whole(answer, "x-ratelimit-limit"),
        remaining=_whole(answer, "x-ratelimit-remaining"),
        reset=_whole(answer, "x-ratelimit-reset"),
        retry_after=None if asked is None else max(asked, _SHORTEST_PAUSE),
    )


def _whole(answer: Answer, name: str) -> int | None:
    text = answer.headers.get(name, "").strip()
    return int(text) if _WHOLE.match(text) else None


_OPENS, _COLON, _COMMA = (re.compile(rf"\s*{sign}\s*") for sign in "{:,")


def salvage_execution_id(part: bytes) -> str | None:
    """Return the id in the beginning of a receipt; None unless it is whole, and the receipt's own."""
    found: dict[str, Any] = {}
    with contextlib.suppress(ValueError, RecursionError):  # here it was cut
        found.update(_pairs(part.decode(errors="replace")))
    execution_id = found.get("executionId")
    if is_finished_state(found) or not is_execution_id(execution_id):
        return None
    return execution_id


def _pairs(text: str) -> Iterator[tuple[str, Any]]:
    """Yield the members of the object that a string begins with, as far as they came whole."""
    decoder, at, sign = json.JSONDecoder(), 0, _OPENS
    while begin := sign.match(text, at):
        key, at = decoder.raw_decode(text, begin.end())
        if not isinstance(key, str) or (colon := _COLON.match(text, at)) is None:
            return
        value, at = decoder.raw_decode(text, colon.end())
        yield key, value
        sign = _COMMA


_MASK: Final = "***"


class Mask:
    """Hides one key. It shows nothing of it itself."""

    __slots__ = ("_key", "_patterns")

    def __init__(self, key: Secret) -> None:
        self._key = key
        self._patterns: tuple[re.Pattern[str], re.Pattern[bytes]] | None = None

    def text(self, text: str) -> str:
        """Return a string without the key."""
        if "\\" in text or "%" in text or "&#" in text:  # else nothing is spelled in another way
            return self._prepared()[0].sub(_MASK, text)
        return text.replace(self._key.reveal(), _MASK)

    def headers(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Return headers without the key: all are searched together, for hardly any holds it."""
        together = "\n".join(headers.values())
        return headers if self.text(together) == together else {name: self.text(each) for name, each in headers.items()}

    def body(self, body: bytes) -> bytes:
        """Return a body without the key, in UTF-8: JSON may come in UTF-16 and UTF-32 as well."""
        if b"\0" in body[:4] or body[:2] in (b"\xff\xfe", b"\xfe\xff"):
            body = _in_utf8(body)
        if b"\\" in body or b"%" in body or b"&#" in body:
            return self._prepared()[1].sub(_MASK.encode(), body)
        return body.replace(self._key.reveal().encode(), _MASK.encode())

    def _prepared(self) -> tuple[re.Pattern[str], re.Pattern[bytes]]:
        if self._patterns is None:
            pattern = "".join(map(_spellings, self._key.reveal()))
            self._patterns = re.compile(pattern), re.compile(pattern.encode())
        return self._patterns


def _in_utf8(body: bytes) -> bytes:
    try:
        return body.decode(json.detect_encoding(body), "surrogatepass").encode(errors="surrogatepass")
    except (ValueError, LookupError):
        return body


def _spellings(char: str) -> str:
    """Return a pattern of all spellings of a character; its repetitions are bounded, for bodies may be hostile."""
    code = "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in f"{ord(char):02x}")
    escaped = r"\\\\{0,7}"
    plain = rf"{escaped}{re.escape(char)}|{re.escape(char)}" if char in '/"' else re.escape(char)
    if char == "\\":
        plain = escaped
    return rf"(?:{plain}|{escaped}u00{code}|%(?:25){{0,4}}{code}|&#0{{0,6}}{ord(char)};|&#[xX]0{{0,6}}{code};)"
