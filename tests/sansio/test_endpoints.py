"""The endpoint list: every row of contract 2, to the letter, and nothing that a caller gives can bend it."""

import enum
import json
import math
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async import types
from knouds_async._sansio import endpoints
from knouds_async._sansio.endpoints import Call, Priority, TimeoutKind
from knouds_async._sansio.responses import Answer
from knouds_async.errors import InvalidArgumentError, InvalidInputsError, InvalidSlugError
from knouds_async.types import Status, Target

WORKFLOW = Target("workflows", "my-pipeline")
MODEL = Target("models", "gpt-image-2")
ID = "550e8400-e29b-41d4-a716-446655440000"
SCHEMA = {"fields": [{"name": "prompt", "type": "text"}]}
STATE = {"status": "processing"}
RUN = {"success": True, "result": {"text": "x"}, "cost": 1, "ms": 2}
RECEIPT = {"_async": True, "executionId": ID, "status": "processing"}

# call, method, path, route, body, a reply, the type it is read as
ENDPOINTS: list[tuple[Call[Any], str, str, str, Any, Any, type]] = [
    (endpoints.whoami(), "GET", "/api/whoami", "/api/whoami", None, {"user": {"id": "u"}}, types.Account),
    (endpoints.submit(WORKFLOW, {"a": 1}), "POST", "/api/workflows/my-pipeline/run?async=true",
     "/api/workflows/:slug/run", {"inputs": {"a": 1}}, RECEIPT, types.Submitted),
    (endpoints.run(WORKFLOW, {}), "POST", "/api/workflows/my-pipeline/run", "/api/workflows/:slug/run",
     {"inputs": {}}, RUN, types.RunResult),
    (endpoints.submit(MODEL, {"a": 1}), "POST", "/api/models/gpt-image-2/run?async=true",
     "/api/models/:internalName/run", {"inputs": {"a": 1}}, RECEIPT, types.Submitted),
    (endpoints.run(MODEL, {}), "POST", "/api/models/gpt-image-2/run", "/api/models/:internalName/run",
     {"inputs": {}}, RUN, types.RunResult),
    (endpoints.workflow_schema("a"), "GET", "/api/workflows/a/schema", "/api/workflows/:slug/schema",
     None, SCHEMA, types.WorkflowSchema),
    (endpoints.public_schema("a"), "GET", "/api/workflows/a/public-schema", "/api/workflows/:slug/public-schema",
     None, SCHEMA, types.WorkflowSchema),
    (endpoints.list_workflows(), "GET", "/api/workflows", "/api/workflows", None, [{"slug": "a"}], tuple),
    (endpoints.get_workflow("a"), "GET", "/api/workflows/a", "/api/workflows/:slug",
     None, {"slug": "a"}, types.Workflow),
    (endpoints.create_workflow({"name": "A"}), "POST", "/api/workflows", "/api/workflows",
     {"name": "A"}, {"slug": "a"}, types.Workflow),
    (endpoints.update_workflow("a", {"name": "B"}), "PUT", "/api/workflows/a", "/api/workflows/:slug",
     {"name": "B"}, {"slug": "a"}, types.Workflow),
    (endpoints.move_workflow("a", "f1"), "PUT", "/api/workflows/a/move", "/api/workflows/:slug/move",
     {"folderId": "f1"}, {}, type(None)),
    (endpoints.move_workflow("a", None), "PUT", "/api/workflows/a/move", "/api/workflows/:slug/move",
     {"folderId": None}, {}, type(None)),
    (endpoints.delete_workflow("a"), "DELETE", "/api/workflows/a", "/api/workflows/:slug", None, {}, type(None)),
    (endpoints.get_execution(ID), "GET", f"/api/executions/{ID}", "/api/executions/:id",
     None, STATE, types.ExecutionState),
    (endpoints.cancel_execution(ID), "POST", f"/api/executions/{ID}/cancel", "/api/executions/:id/cancel",
     None, STATE, types.ExecutionState),
    (endpoints.list_usage(), "GET", "/api/usage", "/api/usage", None, {"rows": []}, types.UsagePage),
    (endpoints.search_usage(target=WORKFLOW, offset=7), "GET",
     "/api/usage?workflowSlug=my-pipeline&limit=500&offset=7", "/api/usage", None, {"rows": []}, tuple),
    (endpoints.search_usage(target=MODEL, offset=0), "GET",
     "/api/usage?modelId=gpt-image-2&limit=500&offset=0", "/api/usage", None, {"rows": []}, tuple),
    (endpoints.list_usage_statuses(limit=5, offset=0), "GET",
     "/api/usage?limit=5&offset=0", "/api/usage", None, {"rows": []}, object),
    (endpoints.usage_models(), "GET", "/api/usage/models", "/api/usage/models", None, ["gpt-image-2"], tuple),
    (endpoints.pricing(), "GET", "/api/pricing/public", "/api/pricing/public", None, {"tiers": []}, types.Pricing),
    (endpoints.health(), "GET", "/api/health", "/api/health", None, {"status": "ok"}, types.Health),
]  # fmt: skip

ALL = [row[0] for row in ENDPOINTS]


@pytest.mark.parametrize(("call", "method", "path", "route", "body", "reply", "kind"), ENDPOINTS)
def test_an_endpoint_is_the_contract_s(
    call: Call[Any], method: str, path: str, route: str, body: object, reply: object, kind: type
) -> None:
    """Method, path, route and body are those of contract 2, and a documented reply is read as its record."""
    assert (call.method, call.path, call.route) == (method, path, f"{method} {route}")
    assert (None if call.body is None else json.loads(call.body)) == body
    assert isinstance(call.parse(Answer(200, {}, json.dumps(reply).encode())), kind)


def test_only_runs_cost_money_and_each_names_its_target() -> None:
    """A call pays for a target if, and only if, it starts a run."""
    assert {(call.path, call.pays_for) for call in ALL if call.pays_for is not None} == {
        ("/api/workflows/my-pipeline/run?async=true", WORKFLOW),
        ("/api/workflows/my-pipeline/run", WORKFLOW),
        ("/api/models/gpt-image-2/run?async=true", MODEL),
        ("/api/models/gpt-image-2/run", MODEL),
    }


def test_what_would_happen_twice_is_not_repeatable() -> None:
    """Runs and the creation of a workflow are never safe to send twice; everything else is."""
    once = {call.route for call in ALL if not call.repeatable}
    assert once == {"POST /api/workflows/:slug/run", "POST /api/models/:internalName/run", "POST /api/workflows"}


def test_the_key_stays_away_from_public_endpoints() -> None:
    """No key is sent where none is needed."""
    assert {call.path for call in ALL if not call.keyed} == {
        "/api/workflows/a/public-schema",
        "/api/pricing/public",
        "/api/health",
    }


def test_runs_have_a_lane_and_a_patience_of_their_own() -> None:
    """Submits and runs wait behind polls; a synchronous run has a timeout of its own."""
    assert {call.priority for call in ALL if call.pays_for} == {Priority.SUBMIT}
    assert {call.priority for call in ALL if not call.pays_for} == {Priority.STATUS}
    assert Priority.STATUS < Priority.SUBMIT
    assert {call.timeout_kind for call in ALL if not call.pays_for} == {TimeoutKind.TOTAL}
    assert endpoints.submit(MODEL, {}).timeout_kind is TimeoutKind.SUBMIT
    assert endpoints.run(MODEL, {}).timeout_kind is TimeoutKind.RUN


def test_a_call_does_not_show_its_inputs() -> None:
    """Inputs are the caller's own: they do not show in a repr, hence in no log."""
    assert "canary" not in repr(endpoints.submit(WORKFLOW, {"prompt": "canary"}))


BY_SLUG: list[Callable[[str], Call[Any]]] = [
    lambda slug: endpoints.submit(Target("workflows", slug), {}),
    lambda slug: endpoints.run(Target("workflows", slug), {}),
    lambda slug: endpoints.submit(Target("models", slug), {}),
    lambda slug: endpoints.run(Target("models", slug), {}),
    endpoints.workflow_schema,
    endpoints.public_schema,
    endpoints.get_workflow,
    lambda slug: endpoints.update_workflow(slug, {}),
    lambda slug: endpoints.move_workflow(slug, None),
    endpoints.delete_workflow,
]
BY_ID: list[Callable[[str], Call[Any]]] = [endpoints.get_execution, endpoints.cancel_execution]
HOSTILE = ["", "..", "../..", "a/b", "x?async=false&", "x#y", "a\n", "a b", "%2e%2e", "\u0661", "x" * 201]


@pytest.mark.parametrize("slug", [*HOSTILE, "A", "a_b"])
def test_no_slug_bends_a_path(slug: str) -> None:
    """A malformed slug is refused by every endpoint that has one."""
    for build in BY_SLUG:
        with pytest.raises(InvalidSlugError):
            build(slug)


def test_a_refused_name_is_called_what_it_is() -> None:
    """The error of a model's name speaks of a model, that of a workflow's of a slug."""
    with pytest.raises(InvalidSlugError, match="'A' is not a model name"):
        endpoints.submit(Target("models", "A"), {})
    with pytest.raises(InvalidSlugError, match="'A' is not a slug"):
        endpoints.submit(Target("workflows", "A"), {})


@pytest.mark.parametrize("execution_id", HOSTILE)
@pytest.mark.parametrize("build", BY_ID)
def test_no_id_bends_a_path(build: Callable[[str], Call[Any]], execution_id: str) -> None:
    """A malformed execution id is refused by every endpoint that has one."""
    with pytest.raises(InvalidArgumentError):
        build(execution_id)


class Odd(str, enum.Enum):  # noqa: UP042  (the older spelling, whose format is not its value)
    """Texts that format as something else."""

    NAME = "my-pipeline"
    KIND = "workflows"


@pytest.mark.parametrize("build", [*BY_SLUG, *BY_ID])
def test_a_name_of_a_type_of_its_own_stands_in_the_path_by_value(build: Callable[[str], Call[Any]]) -> None:
    """What was checked is what is sent, whatever the name's type says of itself."""
    assert "/my-pipeline" in build(Odd.NAME).path


def test_a_target_of_a_type_of_its_own_stands_in_the_path_by_value() -> None:
    """The kind of a target is sent by value too, and the run is paid for under that name."""
    call = endpoints.submit(Target(cast(Any, Odd.KIND), Odd.NAME), {})
    assert call.path == "/api/workflows/my-pipeline/run?async=true"
    assert str(call.pays_for) == "workflows/my-pipeline"


@pytest.mark.parametrize("build", [endpoints.submit, endpoints.run])
def test_bad_inputs_are_refused_with_their_place(build: Callable[[Target, Any], Call[Any]]) -> None:
    """What is not JSON never becomes a call."""
    with pytest.raises(InvalidInputsError, match=r"inputs.*nan"):
        build(WORKFLOW, {"a": math.nan})
    with pytest.raises(InvalidInputsError, match="must be a mapping"):
        build(WORKFLOW, None)


# Usage.


@given(
    status=st.none() | st.text(max_size=8),
    model_id=st.none() | st.text(max_size=8),
    workflow_slug=st.none() | st.text(max_size=8),
    limit=st.none() | st.integers(1, 500),
    offset=st.none() | st.integers(0, 10**9),
)
def test_filters_arrive_as_given(
    status: str | None, model_id: str | None, workflow_slug: str | None, limit: int | None, offset: int | None
) -> None:
    """Whatever the filters hold, the query says exactly them and nothing else."""
    path = endpoints.list_usage(
        status=status, model_id=model_id, workflow_slug=workflow_slug, limit=limit, offset=offset
    ).path
    given = {"status": status, "modelId": model_id, "workflowSlug": workflow_slug, "limit": limit, "offset": offset}
    parts = urlsplit(path)
    assert (parts.path, parts.fragment) == ("/api/usage", "")
    assert parse_qs(parts.query, keep_blank_values=True) == {
        key: [str(value)] for key, value in given.items() if value is not None
    }


def test_a_known_status_is_a_filter() -> None:
    """A Status is sent by its value."""
    assert endpoints.list_usage(status=Status.COMPLETED).path == "/api/usage?status=completed"
    assert endpoints.list_usage(status=Odd.NAME).path == "/api/usage?status=my-pipeline"


@pytest.mark.parametrize("limit", [0, -1, 501, 1.0, "50", True, math.nan, 10**5000], ids=lambda value: f"{type(value)}")
def test_a_page_has_1_to_500_rows(limit: Any) -> None:
    """A page size that the service would refuse is refused here, by name."""
    with pytest.raises(InvalidArgumentError, match=r"^limit=.*: must be an integer from 1 to 500$"):
        endpoints.list_usage(limit=limit)


@pytest.mark.parametrize("limit", [1, 500])
def test_the_bounds_of_a_page_are_allowed(limit: int) -> None:
    """One row and five hundred are fine."""
    assert endpoints.list_usage(limit=limit).path == f"/api/usage?limit={limit}"


@pytest.mark.parametrize(
    "offset", [-1, 1.5, "0", False, -(10**5000), 10**5000, 2**53], ids=lambda value: f"{type(value)}"
)
def test_an_offset_is_a_whole_number(offset: Any) -> None:
    """An offset that is no row's number is refused by name; 2^53 rows are more than JSON can count."""
    with pytest.raises(InvalidArgumentError, match=r"^offset=.*: must be an integer of at least 0"):
        endpoints.list_usage(offset=offset)


@pytest.mark.parametrize("offset", [0, 2**53 - 1])
def test_the_bounds_of_an_offset_are_allowed(offset: int) -> None:
    """The first row is number nought, and the last is one that JSON can count."""
    assert endpoints.list_usage(offset=offset).path == f"/api/usage?offset={offset}"


@pytest.mark.parametrize("value", [5, 1.5, True, b"x", ["completed"], "\ud800", "a\udfff"])
@pytest.mark.parametrize("name", ["status", "model_id", "workflow_slug"])
def test_a_filter_is_a_text(name: str, value: Any) -> None:
    """A filter of another type, or one that cannot be sent, is refused under the name the caller gave it."""
    filters: dict[str, Any] = {name: value}
    with pytest.raises(InvalidArgumentError, match=f"^{name}=.*: must be a string"):
        endpoints.list_usage(**filters)
