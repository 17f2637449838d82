"""What the service says, as frozen records; each keeps the JSON it was read from in `raw`.

Plain values. A field that the contract does not promise is None when it is missing or odd, so that additions to the
service never break reading (contract 1). Annotations are types, not strings, for the records are read by them.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias
from urllib.parse import urlsplit

import attrs

from knouds_async.errors import InvalidArgumentError, safe_repr

__all__ = [
    "EXTENSIONS",
    "JSON",
    "Account",
    "ExecutionState",
    "Failure",
    "Health",
    "Inputs",
    "Media",
    "MediaKind",
    "Pricing",
    "RunResult",
    "SchemaField",
    "Status",
    "SubmissionSearch",
    "Submitted",
    "Target",
    "UsagePage",
    "UsageRow",
    "Workflow",
    "WorkflowSchema",
    "WorkflowSummary",
]

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date, time
    from decimal import Decimal
    from enum import Enum
    from typing import ClassVar, Protocol
    from uuid import UUID

    class _Dataclass(Protocol):
        __dataclass_fields__: ClassVar[dict[str, Any]]

    class _AttrsClass(Protocol):
        __attrs_attrs__: ClassVar[Any]

    class _PydanticModel(Protocol):
        def model_dump(self) -> dict[str, Any]: ...

    class _TypedDict(Protocol):
        __required_keys__: ClassVar[frozenset[str]]

    JSON: TypeAlias = bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"] | None
    _Fields: TypeAlias = _Dataclass | _AttrsClass | _PydanticModel | _TypedDict
    _Value: TypeAlias = (
        JSON | date | time | UUID | Decimal | Enum | _Fields | Sequence["_Value"] | Mapping[str, "_Value"]
    )
    Inputs: TypeAlias = Mapping[str, _Value] | _Fields
else:  # as libraries that read annotations at run time understand them
    JSON = Any
    """What JSON can say: None, booleans, numbers, strings, and sequences and string-keyed mappings of them."""
    Inputs = Mapping[str, Any]
    """The inputs of a run: names to values that are JSON or have one plain form in it; also a record with such fields.

    A record: a TypedDict, a pydantic model, a dataclass, an attrs class. Values: dates and times, UUIDs, decimals and
    enumerations too. A file is none: an image field takes an https URL.
    """


class Record:
    """The base of frozen records: their repr, equality and hash, which attrs would generate more slowly at import."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return the fields by name, without those that are hidden."""
        shown = (f"{each.name}={getattr(self, each.name)!r}" for each in self._fields() if each.repr)
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        """Compare the fields that count; records of different classes are never equal."""
        return self._compared() == other._compared() if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        """Return the hash of the fields that count."""
        return hash(self._compared())

    def _fields(self) -> tuple["attrs.Attribute[Any]", ...]:
        kind: Any = type(self)
        fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(kind)
        return fields

    def _compared(self) -> tuple[Any, ...]:
        return type(self), *(getattr(self, each.name) for each in self._fields() if each.eq)


class Status(StrEnum):
    """Where an execution stands (contract 5). Values this library does not know stay plain strings."""

    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    CANCEL_REQUESTED = "cancel_requested"


_FINAL: Final = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})


def _known_kind(_: object, attribute: "attrs.Attribute[Any]", kind: object) -> None:
    if kind not in ("workflows", "models"):
        raise InvalidArgumentError(f"{attribute.name}={safe_repr(kind)}: must be 'workflows' or 'models'")


@attrs.frozen
class Target:
    """What a run runs: a workflow by its slug or a model by its internal name. Its text is `workflows/<slug>`."""

    kind: Literal["workflows", "models"] = attrs.field(validator=_known_kind)
    name: str

    def __str__(self) -> str:
        """Return `workflows/<slug>` or `models/<name>`."""
        return f"{self.kind}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `workflows/<slug>` or `models/<name>`; without kind and name it is an InvalidArgumentError.

        The name itself is checked when a run is sent, as every name is.
        """
        kind, _, name = text.partition("/")
        if not name or kind not in ("workflows", "models"):
            raise InvalidArgumentError(f"{safe_repr(text)} is not a target: write workflows/<slug> or models/<name>")
        return cls("workflows" if kind == "workflows" else "models", name)


def raw_field() -> Any:
    """Return the field of a record that keeps the JSON it was read from."""
    return attrs.field(default=None, repr=False, eq=False)


@attrs.frozen(eq=False, repr=False)
class Failure(Record):
    """Why a run failed: the service's code and message."""

    code: str | None = None
    message: str | None = None
    raw: Any = raw_field()


@attrs.frozen(kw_only=True, eq=False, repr=False)
class ExecutionState(Record):
    """An execution as it was last seen (contract 5).

    `status` is a `Status` for known values and the plain string for others. `cost` is in credits, `ms` in
    milliseconds. A cancelled execution may carry a `result`.
    """

    execution_id: str
    status: Status | str
    request_id: str | None = None
    workflow_slug: str | None = None
    model_ids: tuple[str, ...] = ()
    result: Any = None
    error: Failure | None = None
    cost: float | None = None
    ms: float | None = None
    created_at: datetime | None = None
    completed_at: datetime | None = None
    raw: Any = raw_field()

    @property
    def is_final(self) -> bool:
        """Whether the run is finished: completed, failed or cancelled."""
        return self.status in _FINAL


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Submitted(Record):
    """The service's receipt for a submit (contract 4)."""

    execution_id: str
    request_id: str | None = None
    status: Status | str = Status.PROCESSING
    webhook_configured: bool = False
    raw: Any = raw_field()


MediaKind: TypeAlias = Literal["image", "video", "audio"]

EXTENSIONS: Final[Mapping[MediaKind, tuple[str, ...]]] = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif"),
    "video": (".mp4", ".webm", ".mov", ".m4v", ".mkv"),
    "audio": (".mp3", ".wav", ".m4a", ".ogg", ".flac", ".aac", ".opus"),
}
"""The extensions that a file of each kind may get; the first one where nothing better is known."""


@attrs.frozen(eq=False, repr=False)
class Media(Record):
    """One file of a result: `await knouds.download(media, folder)` fetches it.

    `execution_id`, `number`: whose file, and its place among all of them from 1. Its host is another origin: the key is
    never sent there (contract 12).
    """

    kind: MediaKind
    url: str
    raw: Any = raw_field()
    execution_id: str | None = attrs.field(default=None, kw_only=True, eq=False)
    number: int = attrs.field(default=1, kw_only=True, eq=False)

    def _repr_html_(self) -> str:
        """Show the file itself in a notebook; an address that is not https is shown as text."""
        import html  # only notebooks need it

        address = html.escape(self.url)
        if not self.url.startswith("https://"):
            return f"<code>{address}</code>"
        if self.kind == "image":
            return f'<img src="{address}" alt="{address}" referrerpolicy="no-referrer" style="max-width: 100%">'
        return f'<{self.kind} src="{address}" controls preload="metadata" style="max-width: 100%"></{self.kind}>'

    @property
    def extension(self) -> str:
        """The extension that suits the file, dot included: its address's if a file of its kind may have it."""
        return self.url_extension or EXTENSIONS[self.kind][0]

    @property
    def url_extension(self) -> str | None:
        """The extension of the address, None when it has none that a file of this kind may get."""
        try:
            found = PurePosixPath(urlsplit(self.url).path).suffix.lower()
        except ValueError:
            return None
        return found if found in EXTENSIONS[self.kind] else None


_LISTS: Final[Mapping[str, MediaKind]] = {"images": "image", "videos": "video", "audios": "audio"}


def _media(result: Any, execution_id: str | None) -> tuple[Media, ...]:
    """Read the common lists of a result; what is not a list of `{url}` or of URLs gives nothing."""
    found: list[Media] = []
    for key, kind in _LISTS.items():
        items = result.get(key) if isinstance(result, dict) else None
        for item in items if isinstance(items, list) else []:
            url = item.get("url") if isinstance(item, dict) else item
            if isinstance(url, str):
                found.append(Media(kind, url, item, execution_id=execution_id, number=len(found) + 1))
    return tuple(found)


@attrs.frozen(eq=False, repr=False)
class RunResult(Record):
    """What a completed run gave.

    `result`: any JSON; its shape depends on the workflow or model. `cost`: credits (0: a trial grant paid), `ms`:
    time on the server in milliseconds. `execution_id` is None for a synchronous run. Contract 3.
    """

    result: Any
    cost: float | None = None
    ms: float | None = None
    execution_id: str | None = None
    raw: Any = raw_field()

    def _repr_html_(self) -> str | None:
        """Show the files in a notebook; a result without files shows as plain text does."""
        return "\n".join(one._repr_html_() for one in self.media) or None

    @property
    def media(self) -> tuple[Media, ...]:
        """All files of the result: images, then videos, then audio."""
        return _media(self.result, self.execution_id)

    @property
    def images(self) -> tuple[Media, ...]:
        """The images of the result; empty when there are none."""
        return tuple(one for one in self.media if one.kind == "image")

    @property
    def videos(self) -> tuple[Media, ...]:
        """The videos of the result; empty when there are none."""
        return tuple(one for one in self.media if one.kind == "video")

    @property
    def audios(self) -> tuple[Media, ...]:
        """The audio files of the result; empty when there are none."""
        return tuple(one for one in self.media if one.kind == "audio")

    @property
    def text(self) -> str | None:
        """The text of the result, None when there is none; several texts are joined by newlines."""
        found = self.result.get("text") if isinstance(self.result, dict) else self.result
        if isinstance(found, list):
            texts = [part for part in found if isinstance(part, str)]
            return "\n".join(texts) if texts else None
        return found if isinstance(found, str) else None


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Account(Record):
    """Whose key this is (contract 2): `role` and `tier` are open sets, so plain strings."""

    id: str | None = None
    email: str | None = None
    role: str | None = None
    tier: str | None = None
    approved: bool | None = None
    raw: Any = raw_field()


@attrs.frozen(kw_only=True, eq=False, repr=False)
class SchemaField(Record):
    """One input of a workflow (contract 8)."""

    name: str
    type: str | None = None
    required: bool | None = None
    default: Any = None
    options: tuple[Any, ...] = ()
    min: float | None = None
    max: float | None = None
    step: float | None = None
    helper_text: str | None = None
    raw: Any = raw_field()


@attrs.frozen(kw_only=True, eq=False, repr=False)
class WorkflowSchema(Record):
    """The inputs a workflow takes (contract 8). `estimated_credit_cost` is in credits, on the keyed endpoint only."""

    fields: tuple[SchemaField, ...] = ()
    values: Mapping[str, Any] = attrs.Factory(dict)
    name: str | None = None
    description: str | None = None
    estimated_credit_cost: float | None = None
    raw: Any = raw_field()


@attrs.frozen(kw_only=True, eq=False, repr=False)
class WorkflowSummary(Record):
    """A row of the list of workflows (contract 9)."""

    slug: str
    name: str | None = None
    description: str | None = None
    tags: tuple[str, ...] = ()
    updated_at: datetime | None = None
    estimated_credit_cost: float | None = None
    folder_id: str | None = None
    raw: Any = raw_field()


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Workflow(Record):
    """A whole workflow (contract 9): `nodes` and `edges` stay JSON objects, so that writing it back is safe."""

    slug: str | None = None
    name: str | None = None
    description: str | None = None
    tags: tuple[str, ...] = ()
    nodes: tuple[Mapping[str, Any], ...] = ()
    edges: tuple[Mapping[str, Any], ...] = ()
    viewport: Mapping[str, Any] | None = None
    public_playground: bool | None = None
    raw: Any = raw_field()


@attrs.frozen(
    kw_only=True, slots=False, eq=False, repr=False
)  # a page has 500 of them, and frozen slots take half as long again to fill
class UsageRow(Record):
    """One use of the API (contract 10).

    `cost` is the provider's USD, `user_cost` the USD paid, `credits_cost` the credits. `workflow_slug` is None for
    runs of a model. `source`: `api-slim` (model) or `api-workflow`.
    """

    id: int | str | None = None
    user_id: str | None = None
    workflow_slug: str | None = None
    model_ids: tuple[str, ...] = ()
    status: Status | str | None = None
    source: str | None = None
    cost: float | None = None
    user_cost: float | None = None
    credits_cost: float | None = None
    duration_ms: float | None = None
    error_code: str | None = None
    request_id: str | None = None
    created_at: datetime | None = None
    raw: Any = raw_field()


@attrs.frozen(kw_only=True, eq=False, repr=False)
class UsagePage(Record):
    """A page of usage rows, newest first; `total` counts all rows that match."""

    rows: tuple[UsageRow, ...] = ()
    page: int | None = None
    page_size: int | None = None
    total: int | None = None
    raw: Any = raw_field()


@attrs.frozen(kw_only=True, eq=False, repr=False)
class SubmissionSearch(Record):
    """What usage rows say of a submit whose outcome is unknown.

    `candidates`: every row that could be it; which one is for you to decide. `is_conclusive`: whether no other row can
    be it: it is known when the submit left, its row would be there by now, and the rows are all there. `reasons`: what
    keeps the search from being conclusive, in plain words.
    """

    candidates: tuple[UsageRow, ...]
    is_conclusive: bool
    reasons: tuple[str, ...] = ()

    @property
    def is_certainly_none(self) -> bool:
        """Whether it is proven that no run began: no row could be it, and none can come. It is safe to submit anew."""
        return self.is_conclusive and not self.candidates


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Pricing(Record):
    """The public prices and tiers. Their shape is not documented: read `raw`."""

    raw: Any = attrs.field(default=None, eq=False)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Health(Record):
    """The service's word on its own health; `status` where it says one."""

    status: str | None = None
    raw: Any = raw_field()
