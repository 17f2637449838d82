"""What runs, and where it stands: targets, inputs, and a run as the service last told of it."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Literal, Self, TypeAlias

import attrs

from knouds_async.errors import InvalidArgumentError

Inputs: TypeAlias = Mapping[str, Any]
"""The inputs of a run: names to JSON values."""


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
        raise InvalidArgumentError(f"{attribute.name}={kind!r:.80}: must be 'workflows' or 'models'")


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
            raise InvalidArgumentError(f"{text!r} is not a target: write workflows/<slug> or models/<name>")
        return cls("workflows" if kind == "workflows" else "models", name)


def raw_field() -> Any:
    """Return the field of a record that keeps the JSON it was read from."""
    return attrs.field(default=None, repr=False, eq=False)


@attrs.frozen
class Failure:
    """Why a run failed: the service's code and message."""

    code: str | None = None
    message: str | None = None
    raw: Any = raw_field()


@attrs.frozen(kw_only=True)
class ExecutionState:
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


@attrs.frozen(kw_only=True)
class Submitted:
    """The service's receipt for a submit (contract 4)."""

    execution_id: str
    request_id: str | None = None
    status: Status | str = Status.PROCESSING
    webhook_configured: bool = False
    raw: Any = raw_field()
