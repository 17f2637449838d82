"""What an account has: its workflows and their inputs, its use of the API, and what the service says of itself."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import attrs

from knouds_async.types._runs import Status, raw_field


@attrs.frozen(kw_only=True)
class Account:
    """Whose key this is (contract 2): `role` and `tier` are open sets, so plain strings."""

    id: str | None = None
    email: str | None = None
    role: str | None = None
    tier: str | None = None
    approved: bool | None = None
    raw: Any = raw_field()


@attrs.frozen(kw_only=True)
class SchemaField:
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


@attrs.frozen(kw_only=True)
class WorkflowSchema:
    """The inputs a workflow takes (contract 8). `estimated_credit_cost` is in credits, on the keyed endpoint only."""

    fields: tuple[SchemaField, ...] = ()
    values: Mapping[str, Any] = attrs.Factory(dict)
    name: str | None = None
    description: str | None = None
    estimated_credit_cost: float | None = None
    raw: Any = raw_field()


@attrs.frozen(kw_only=True)
class WorkflowSummary:
    """A row of the list of workflows (contract 9)."""

    slug: str
    name: str | None = None
    description: str | None = None
    tags: tuple[str, ...] = ()
    updated_at: datetime | None = None
    estimated_credit_cost: float | None = None
    folder_id: str | None = None
    raw: Any = raw_field()


@attrs.frozen(kw_only=True)
class Workflow:
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


@attrs.frozen(kw_only=True)
class UsageRow:
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


@attrs.frozen(kw_only=True)
class UsagePage:
    """A page of usage rows, newest first; `total` counts all rows that match."""

    rows: tuple[UsageRow, ...] = ()
    page: int | None = None
    page_size: int | None = None
    total: int | None = None
    raw: Any = raw_field()


@attrs.frozen(kw_only=True)
class SubmissionSearch:
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


@attrs.frozen(kw_only=True)
class Pricing:
    """The public prices and tiers. Their shape is not documented: read `raw`."""

    raw: Any = attrs.field(default=None, eq=False)


@attrs.frozen(kw_only=True)
class Health:
    """The service's word on its own health; `status` where it says one."""

    status: str | None = None
    raw: Any = raw_field()
