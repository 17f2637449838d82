"""The endpoint list: one function per row of contract 2, each returning a `Call` that says all there is to know of it.

A bad slug, id or input raises here, before any request. Paths are built from checked names only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, IntEnum
from typing import Any, Final, Generic, Literal, TypeVar
from urllib.parse import urlencode

import attrs

from knouds_async import types
from knouds_async._sansio import responses
from knouds_async._sansio.inputs import Default, checked_execution_id, checked_slug, json_body, run_body
from knouds_async._sansio.listings import StatusPage, read_status_page
from knouds_async._sansio.responses import Answer
from knouds_async.config import Timeouts, is_integer
from knouds_async.errors import InvalidArgumentError, safe_repr
from knouds_async.types import Inputs, Target

T = TypeVar("T")
Method = Literal["GET", "POST", "PUT", "DELETE"]


class Priority(IntEnum):
    """Which request goes first where a route is shared: polls and cancels free resources, submits take them."""

    STATUS = 0
    SUBMIT = 1


class TimeoutKind(Enum):
    """Which of the caller's `Timeouts` bounds the whole exchange."""

    TOTAL = "total"
    SUBMIT = "submit"
    RUN = "run"


@attrs.frozen(kw_only=True, eq=False)
class Call(Generic[T]):
    """One request to be sent, and how its reply is read.

    `path`: with the query; `route`: the pattern that the service counts requests by (contract 6). `repeatable`: safe to
    send twice. `pays_for`: the target of a paid run, None for everything that costs nothing. `keyed`: send the key.
    `timeouts`: instead of the client's. `execution_id`: the run that it is about, where there is one.
    """

    method: Method
    path: str
    route: str
    parse: Callable[[Answer], T] = attrs.field(repr=False)
    body: bytes | None = attrs.field(default=None, repr=False)
    repeatable: bool = True
    pays_for: Target | None = None
    keyed: bool = True
    priority: Priority = Priority.STATUS
    timeout_kind: TimeoutKind = TimeoutKind.TOTAL
    timeouts: Timeouts | None = None
    execution_id: str | None = None

    @property
    def request(self) -> str:
        """The method and the path without its query: what an error names, so that a wrong name in it is seen."""
        return f"{self.method} {self.path.partition('?')[0]}"


# The key's own account.


def whoami() -> Call[types.Account]:
    """GET /api/whoami: whose key this is."""
    return Call(method="GET", path="/api/whoami", route="GET /api/whoami", parse=responses.account)


# Runs. Sync and async share a route, hence a quota (contract 6).


def _run(
    target: Target, inputs: Inputs, default: Default | None, parse: Callable[[Answer], T], *, is_async: bool
) -> Call[T]:
    is_workflow = target.kind == "workflows"
    name = checked_slug(target.name, "slug" if is_workflow else "model name")
    checked = Target("workflows" if is_workflow else "models", name)
    return Call(
        method="POST",
        path=f"/api/{checked}/run{'?async=true' if is_async else ''}",
        route=f"POST /api/{checked.kind}/{':slug' if is_workflow else ':internalName'}/run",
        body=run_body(inputs, default),
        parse=parse,
        repeatable=False,
        pays_for=checked,
        priority=Priority.SUBMIT,
        timeout_kind=TimeoutKind.SUBMIT if is_async else TimeoutKind.RUN,
    )


def submit(target: Target, inputs: Inputs, default: Default | None = None) -> Call[types.Submitted]:
    """POST /api/workflows/:slug/run?async=true or the same of a model: submit a run (contract 4)."""
    return _run(target, inputs, default, responses.submitted, is_async=True)


def run(target: Target, inputs: Inputs, default: Default | None = None) -> Call[types.RunResult]:
    """POST /api/workflows/:slug/run or the same of a model: run and wait for the result (contract 3)."""
    return _run(target, inputs, default, responses.run_result, is_async=False)


# Workflows (contract 8 and 9).

_WORKFLOW: Final = "/api/workflows/:slug"


def workflow_schema(slug: str) -> Call[types.WorkflowSchema]:
    """GET /api/workflows/:slug/schema: the inputs it takes."""
    path = f"/api/workflows/{checked_slug(slug)}/schema"
    return Call(method="GET", path=path, route=f"GET {_WORKFLOW}/schema", parse=responses.read(types.WorkflowSchema))


def public_schema(slug: str) -> Call[types.WorkflowSchema]:
    """GET /api/workflows/:slug/public-schema: the same for a public playground, without a key."""
    path = f"/api/workflows/{checked_slug(slug)}/public-schema"
    parse = responses.read(types.WorkflowSchema)
    return Call(method="GET", path=path, route=f"GET {_WORKFLOW}/public-schema", parse=parse, keyed=False)


def list_workflows() -> Call[tuple[types.WorkflowSummary, ...]]:
    """GET /api/workflows: yours and the templates everyone sees."""
    return Call(method="GET", path="/api/workflows", route="GET /api/workflows", parse=responses.workflows)


def get_workflow(slug: str) -> Call[types.Workflow]:
    """GET /api/workflows/:slug: the whole workflow."""
    path = f"/api/workflows/{checked_slug(slug)}"
    return Call(method="GET", path=path, route=f"GET {_WORKFLOW}", parse=responses.read(types.Workflow))


def create_workflow(workflow: Mapping[str, Any]) -> Call[types.Workflow]:
    """POST /api/workflows: create. Not repeatable: sent twice it makes a second workflow with the slug `-2`."""
    return Call(
        method="POST",
        path="/api/workflows",
        route="POST /api/workflows",
        body=json_body(workflow),
        parse=responses.read(types.Workflow),
        repeatable=False,
    )


def update_workflow(slug: str, workflow: Mapping[str, Any]) -> Call[types.Workflow]:
    """PUT /api/workflows/:slug: update."""
    path, body = f"/api/workflows/{checked_slug(slug)}", json_body(workflow)
    return Call(method="PUT", path=path, route=f"PUT {_WORKFLOW}", body=body, parse=responses.read(types.Workflow))


def move_workflow(slug: str, folder_id: str | None) -> Call[None]:
    """PUT /api/workflows/:slug/move: into a folder, None for the root."""
    path, body = f"/api/workflows/{checked_slug(slug)}/move", json_body({"folderId": folder_id})
    return Call(method="PUT", path=path, route=f"PUT {_WORKFLOW}/move", body=body, parse=responses.nothing)


def delete_workflow(slug: str) -> Call[None]:
    """DELETE /api/workflows/:slug."""
    path = f"/api/workflows/{checked_slug(slug)}"
    return Call(method="DELETE", path=path, route=f"DELETE {_WORKFLOW}", parse=responses.nothing)


# Executions (contract 5).


def get_execution(execution_id: str) -> Call[types.ExecutionState]:
    """GET /api/executions/:id: where a run stands."""
    path = f"/api/executions/{checked_execution_id(execution_id)}"
    parse = responses.execution(execution_id)
    return Call(method="GET", path=path, route="GET /api/executions/:id", parse=parse, execution_id=execution_id)


def cancel_execution(execution_id: str) -> Call[types.ExecutionState]:
    """POST /api/executions/:id/cancel: ask for its end; it is charged all the same. Repeatable."""
    path = f"/api/executions/{checked_execution_id(execution_id)}/cancel"
    parse = responses.cancelled(execution_id)
    route = "POST /api/executions/:id/cancel"
    return Call(method="POST", path=path, route=route, parse=parse, execution_id=execution_id)


# Usage (contract 10).

LARGEST_PAGE: Final = 500
_LARGEST_OFFSET: Final = 2**53 - 1  # the last integer that JavaScript counts exactly


def list_usage(
    *,
    status: str | None = None,
    model_id: str | None = None,
    workflow_slug: str | None = None,
    limit: int | None = None,
    offset: int | None = None,
) -> Call[types.UsagePage]:
    """GET /api/usage: rows of the account's use of the API, newest first."""
    if limit is not None and not (is_integer(limit) and 1 <= limit <= LARGEST_PAGE):
        raise InvalidArgumentError(f"limit={safe_repr(limit)}: must be an integer from 1 to {LARGEST_PAGE}")
    if offset is not None and not (is_integer(offset) and 0 <= offset <= _LARGEST_OFFSET):
        raise InvalidArgumentError(f"offset={safe_repr(offset)}: must be an integer of at least 0, below 2**53")
    asked = {
        "status": _filter("status", status),
        "modelId": _filter("model_id", model_id),
        "workflowSlug": _filter("workflow_slug", workflow_slug),
        "limit": limit,
        "offset": offset,
    }
    query = urlencode({key: value for key, value in asked.items() if value is not None})
    path = f"/api/usage?{query}" if query else "/api/usage"
    return Call(method="GET", path=path, route="GET /api/usage", parse=responses.usage_page)


def search_usage(*, target: Target | None, offset: int) -> Call[tuple[types.UsagePage, float | None]]:
    """GET /api/usage, for the rows of a target, with when the service wrote them: a cache may have kept them."""
    kind, name = (None, None) if target is None else (target.kind, target.name)
    model, slug = (name if kind == "models" else None), (name if kind == "workflows" else None)
    page = list_usage(model_id=model, workflow_slug=slug, limit=LARGEST_PAGE, offset=offset)
    return Call(
        method="GET",
        path=page.path,
        route=page.route,
        parse=lambda answer: (responses.usage_page(answer), responses.http_date(answer.headers.get("date"))),
    )


def list_usage_statuses(*, limit: int, offset: int) -> Call[StatusPage]:
    """GET /api/usage, read only for which requests are finished."""
    page = list_usage(limit=limit, offset=offset)
    return Call(method=page.method, path=page.path, route=page.route, parse=read_status_page)


def _filter(name: str, value: object) -> str | None:
    """Return a filter as a plain string; what cannot stand in a query is refused by the argument's name."""
    if value is None:
        return None
    if isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value):
        return str.__str__(value)
    raise InvalidArgumentError(f"{name}={safe_repr(value)}: must be a string")


def usage_models() -> Call[tuple[str, ...]]:
    """GET /api/usage/models: the distinct models in the account's usage."""
    return Call(method="GET", path="/api/usage/models", route="GET /api/usage/models", parse=responses.usage_models)


# Public.


def pricing() -> Call[types.Pricing]:
    """GET /api/pricing/public: prices and tiers, without a key."""
    route = "GET /api/pricing/public"
    return Call(method="GET", path="/api/pricing/public", route=route, parse=responses.pricing, keyed=False)


def health() -> Call[types.Health]:
    """GET /api/health, without a key."""
    return Call(method="GET", path="/api/health", route="GET /api/health", parse=responses.health, keyed=False)
