"""From bytes to records: JSON, headers, the quota, and what masks the key."""

from __future__ import annotations

import contextlib
import html
import json
import math
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async import types
from knouds_async._sansio import endpoints, responses
from knouds_async._sansio.rate_limit import QuotaHeaders
from knouds_async._sansio.responses import Answer, InexactValueError, Mask, UnreadableError, parsed, strict_json
from knouds_async.config import Secret
from knouds_async.types import Status, Target

ID = "550e8400-e29b-41d4-a716-446655440000"
TARGET = Target("workflows", "my-pipeline")
Reader = Callable[[Answer], Any]
RECEIPT = {
    "_async": True, "executionId": ID, "requestId": "kie_xyz789", "status": "processing",
    "webhookDelivery": {"configured": False}, "pollUrl": f"/api/executions/{ID}",
}  # fmt: skip
RESULT = {"success": True, "result": {"images": [{"url": "https://m.example/abc.png"}]}, "cost": 12, "ms": 8420}
STATE = {
    "executionId": ID, "requestId": "kie_xyz789", "status": "completed", "workflowSlug": "my-pipeline",
    "modelIds": ["gpt-image-2"], "result": {"text": "x"}, "error": None, "cost": 12, "ms": 47210,
    "createdAt": "2026-05-08T19:29:55.000Z", "completedAt": "2026-05-08T19:30:42.210Z",
}  # fmt: skip
FAILED = {"status": "failed", "error": {"code": "UPSTREAM", "message": "no"}}
ACCOUNT = {"user": {"id": "u", "email": "a@b.c", "role": "user", "tier": "pro", "approved": True}}
SCHEMA = {
    "fields": [{"name": "size", "type": "slider", "required": True, "default": 3, "options": [1, "2"], "min": 1,
                "max": 5.5, "step": 0.5, "helperText": "how big"}],
    "values": {"size": 3}, "name": "A", "description": "B", "estimatedCreditCost": 12,
}  # fmt: skip
SUMMARIES = [
    {"slug": "a", "name": "A", "description": "B", "tags": ["x", "y"], "updatedAt": "2026-05-08T19:29:55Z",
     "estimatedCreditCost": None, "folderId": "f"},
    {"slug": "b"},
]  # fmt: skip
WORKFLOW = {
    "slug": "a", "name": "A", "description": "B", "tags": ["x"], "viewport": {"x": 0, "y": 0, "zoom": 1},
    "nodes": [{"id": "1", "type": "t", "position": {"x": 0, "y": 0}, "data": {}}], "publicPlayground": False,
    "edges": [{"id": "e", "source": "1", "target": "1", "sourceHandle": None, "targetHandle": None}],
}  # fmt: skip
USAGE = {
    "rows": [{"id": 188, "userId": "u_abc", "workflowSlug": "my-pipeline", "modelIds": ["gpt-image-2"],
              "status": "completed", "source": "api-slim", "cost": 0.12, "userCost": 0.255, "creditsCost": 255,
              "durationMs": 47210, "errorCode": None, "requestId": "kie_xyz789",
              "createdAt": "2026-05-08T19:29:55.000Z"}],
    "page": 0, "pageSize": 50, "total": 312,
}  # fmt: skip
READERS: dict[str, tuple[Reader, Any]] = {
    "submit": (endpoints.submit(TARGET, {}).parse, RECEIPT),
    "run": (endpoints.run(TARGET, {}).parse, RESULT),
    "execution": (endpoints.get_execution(ID).parse, STATE),
    "failed execution": (endpoints.get_execution(ID).parse, FAILED),
    "cancel": (endpoints.cancel_execution(ID).parse, STATE),
    "whoami": (endpoints.whoami().parse, ACCOUNT),
    "schema": (endpoints.workflow_schema("a").parse, SCHEMA),
    "public schema": (endpoints.public_schema("a").parse, SCHEMA),
    "workflows": (endpoints.list_workflows().parse, SUMMARIES),
    "workflow": (endpoints.get_workflow("a").parse, WORKFLOW),
    "create": (endpoints.create_workflow({}).parse, WORKFLOW),
    "update": (endpoints.update_workflow("a", {}).parse, WORKFLOW),
    "move": (endpoints.move_workflow("a", None).parse, {}),
    "delete": (endpoints.delete_workflow("a").parse, {}),
    "usage": (endpoints.list_usage().parse, USAGE),
    "usage models": (endpoints.usage_models().parse, ["a", "b"]),
    "pricing": (endpoints.pricing().parse, {"tiers": []}),
    "health": (endpoints.health().parse, {"status": "ok"}),
}
each_reader = pytest.mark.parametrize("name", READERS)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def told(body: Any) -> Answer:
    """Return an answer that says this JSON."""
    return Answer(200, {}, json.dumps(body).encode())


def held(body: bytes | str) -> Answer:
    """Return an answer with this body."""
    return Answer(200, {}, body if isinstance(body, bytes) else body.encode())


def read(name: str, body: Any) -> Any:
    """Read a body with one of the readers."""
    return READERS[name][0](told(body))


@given(st.sampled_from(sorted(READERS)), JSON)
def test_any_json_is_read_or_unreadable(name: str, body: Any) -> None:
    """Whatever JSON comes, every reader gives a value or raises UnreadableError."""
    with contextlib.suppress(UnreadableError):
        read(name, body)


@given(st.sampled_from(sorted(READERS)), st.binary(max_size=40))
def test_any_bytes_are_read_or_unreadable(name: str, body: bytes) -> None:
    """Whatever bytes come, every reader gives a value or raises UnreadableError."""
    with contextlib.suppress(UnreadableError):
        READERS[name][0](held(body))


@given(st.data(), st.sampled_from(sorted(READERS)))
def test_a_documented_body_with_odd_parts_is_read_or_unreadable(data: st.DataObject, name: str) -> None:
    """A documented body in which anything at any depth is replaced is read, or it is unreadable."""
    body = json.loads(json.dumps(READERS[name][1]))
    spot: Any = body
    while isinstance(spot, (dict, list)) and spot:
        key = data.draw(st.sampled_from(sorted(spot) if isinstance(spot, dict) else range(len(spot))))
        if data.draw(st.booleans()):
            spot[key] = data.draw(JSON)
            break
        spot = spot[key]
    with contextlib.suppress(UnreadableError):
        read(name, body)


@each_reader
def test_a_documented_body_of_any_depth_is_read_or_unreadable(name: str) -> None:
    """Lists nested to any depth, in the place of any field, never run the reader out of stack."""
    documented = READERS[name][1]
    fields = documented if isinstance(documented, dict) else {}
    for levels in (5, 500, *range(800, 1000, 4), 100_000):
        deep = "[" * levels + "]" * levels
        for key in (None, *fields):
            rest = {other: value for other, value in fields.items() if other != key}
            body = deep if key is None else f'{{"{key}": {deep}, {json.dumps({**rest, "more": 1})[1:]}'
            with contextlib.suppress(UnreadableError):
                READERS[name][0](held(body))


BROKEN: list[bytes | str] = [
    "", "  \n", "<html>502 Bad Gateway</html>", "\r\n <html>",
    "{", "[1,]", "{'a': 1}", "nul", "\ufeff", b"\xff\xfe\x00", b"\x80abc",
    b'{"a": "\xff"}', "NaN", '{"result": NaN, "status": NaN}', '{"a": Infinity}', '[{"b": [-Infinity]}]',
    "9" * 5000, '{"cost": ' + "9" * 5000 + "}", "[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000,
]  # fmt: skip


@each_reader
def test_what_is_not_strict_json_is_unreadable(name: str) -> None:
    """No page, half a body, NaN, endless number or endless nesting is taken for a reply."""
    for body in BROKEN:
        if name in ("move", "delete", "health") and str(body).strip().startswith("<"):
            with pytest.raises(UnreadableError, match="web page"):
                READERS[name][0](held(body))
        elif name in ("move", "delete"):
            assert READERS[name][0](held(body)) is None, body
        elif name == "health":
            assert READERS[name][0](held(body)).status is None, body
        elif name == "cancel" and not body.strip():
            assert READERS[name][0](held(body)).status is Status.CANCEL_REQUESTED, body
        else:
            with pytest.raises(UnreadableError) as caught:
                READERS[name][0](held(body))
            assert 0 < len(str(caught.value)) <= 250, body


def test_an_empty_body_is_called_empty() -> None:
    """The reason says what is wrong with the body."""
    for body, words in (("", "it is empty"), ("<html>", "it is not JSON"), ("[" * 9**5, "nested too deeply")):
        with pytest.raises(UnreadableError, match=words):
            responses.parsed(held(body).body)
    with pytest.raises(UnreadableError, match="NaN"):
        responses.parsed(b"[NaN]")


def test_json_may_begin_with_a_byte_order_mark() -> None:
    """A mark in front of the JSON is no fault."""
    assert responses.parsed(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@given(
    st.sampled_from(sorted(READERS)), st.dictionaries(st.text(max_size=12).map(lambda key: f"x{key}"), JSON, max_size=3)
)
def test_unknown_fields_pass(name: str, more: dict[str, Any]) -> None:
    """A documented body with any further fields is read as the same value."""
    body = READERS[name][1]
    added = [{**item, **more} for item in body] if name == "workflows" else body
    added = {**body, **more} if isinstance(body, dict) else added
    try:
        sent = json.dumps(added, allow_nan=False)
    except ValueError:
        return
    known, told_more = read(name, body), READERS[name][0](held(sent))
    if name != "pricing":
        assert told_more == known


@pytest.mark.parametrize("name", [name for name, (_, body) in READERS.items() if isinstance(body, dict) and body])
def test_the_source_is_kept(name: str) -> None:
    """`raw` is the JSON that came, the fields this library does not know included."""
    body = {**READERS[name][1], "brandNew": [1]}
    assert read(name, body).raw == body


def test_the_source_of_each_row_is_kept() -> None:
    """Rows, fields and media keep their own JSON."""
    assert [row.raw for row in read("workflows", SUMMARIES)] == SUMMARIES
    assert [row.raw for row in read("usage", USAGE).rows] == USAGE["rows"]
    assert [field.raw for field in read("schema", SCHEMA).fields] == SCHEMA["fields"]
    assert read("failed execution", FAILED).error.raw == FAILED["error"]
    assert read("run", RESULT).images[0].raw == {"url": "https://m.example/abc.png"}


def test_a_receipt_is_read() -> None:
    """A submit's reply gives the id, the provider's id and the status (contract 4)."""
    assert read("submit", RECEIPT) == types.Submitted(
        execution_id=ID, request_id="kie_xyz789", status=Status.PROCESSING, webhook_configured=False
    )


@pytest.mark.parametrize(
    ("delivery", "is_configured"),
    [({"configured": True, "url": "https://x"}, True), ({"configured": 1}, False), ({}, False), (None, False),
     ("yes", False), ([True], False)],
)  # fmt: skip
def test_a_webhook_is_configured_only_when_said_so(delivery: object, is_configured: bool) -> None:
    """Only a plain true counts."""
    assert read("submit", {**RECEIPT, "webhookDelivery": delivery}).webhook_configured is is_configured


@given(
    st.dictionaries(st.sampled_from([*RECEIPT, "webhookConfigured", "raw", "error", "result", "x"]), JSON),
    st.from_regex(r"[A-Za-z0-9_-]{1,200}", fullmatch=True),
)
def test_a_usable_id_is_always_given(odd: dict[str, Any], execution_id: str) -> None:
    """A paid run's id is never lost for what else is odd in its receipt, unless it is the end of some run."""
    odd = json.loads(json.dumps(odd), parse_constant=str)
    if responses.is_finished_state(odd):
        odd["_async"] = True
    assert read("submit", {**odd, "executionId": execution_id}).execution_id == execution_id


@pytest.mark.parametrize("value", [None, "", 5, True, [], {}, ["x"], "a/b", "..", "a\n", "é", "x" * 201])
def test_a_receipt_without_a_usable_id_is_unreadable(value: object) -> None:
    """What could not stand in a path is no id, and without one there is no receipt."""
    with pytest.raises(UnreadableError):
        read("submit", {**RECEIPT, "executionId": value})
    with pytest.raises(UnreadableError):
        read("submit", {key: item for key, item in RECEIPT.items() if key != "executionId"})


@pytest.mark.parametrize(
    ("body", "is_finished"),
    [
        ({}, False),
        ({"status": "processing"}, False),
        ({"status": "completed"}, False),
        ({"status": "failed"}, True),
        ({"status": "cancelled"}, True),
        ({"status": ["failed"]}, False),
        *(({key: value}, value is not None) for value in (0, None) for key in ("result", "cost", "ms", "durationMs")),
        ({"completedAt": "2026-05-08T12:00:00Z"}, True),
        ({"status": "failed", "result": 1, "_async": True}, False),
        ({"status": "failed", "result": 1, "_async": 1}, True),
    ],
)
def test_the_end_of_a_run_is_told_from_a_receipt(body: dict[str, Any], is_finished: bool) -> None:
    """By a final status or anything that only a finished run has, unless it says that it is a receipt."""
    assert responses.is_finished_state(body) is is_finished


def test_a_synchronous_result_is_read() -> None:
    """A run's reply gives result, cost and time (contract 3)."""
    result = read("run", RESULT)
    assert result == types.RunResult({"images": [{"url": "https://m.example/abc.png"}]}, 12, 8420)
    assert [(media.kind, media.url) for media in result.images] == [("image", "https://m.example/abc.png")]


@given(JSON.filter(lambda value: json.dumps(value).find("NaN") < 0 and json.dumps(value).find("Infinity") < 0))
def test_a_result_may_be_any_json(result: Any) -> None:
    """Whatever the workflow's output node gives is the result, null included."""
    assert read("run", {"success": True, "result": result}).result == result
    assert read("execution", {"status": "completed", "result": result}).result == result


def test_a_run_without_a_result_is_unreadable() -> None:
    """A synchronous reply promises a result."""
    with pytest.raises(UnreadableError, match="'result' is missing"):
        read("run", {"success": True, "cost": 1})


def test_an_execution_is_read() -> None:
    """Every field of contract 5 is read."""
    assert read("execution", STATE) == types.ExecutionState(
        execution_id=ID,
        status=Status.COMPLETED,
        request_id="kie_xyz789",
        workflow_slug="my-pipeline",
        model_ids=("gpt-image-2",),
        result={"text": "x"},
        cost=12,
        ms=47210,
        created_at=datetime(2026, 5, 8, 19, 29, 55, tzinfo=UTC),
        completed_at=datetime(2026, 5, 8, 19, 30, 42, 210_000, tzinfo=UTC),
    )
    assert read("failed execution", FAILED).error == types.Failure("UPSTREAM", "no")


@pytest.mark.parametrize("status", [*Status, "queued", "COMPLETED", "", "\ud800"])
def test_any_status_passes(status: str) -> None:
    """A known status is a Status; an unknown one stays the text it is and is never final."""
    for name in ("execution", "submit", "cancel"):
        seen = read(name, {**RECEIPT, "status": status}).status
        assert seen == status
        assert isinstance(seen, Status) is (status in list(Status))
    assert read("usage", {"rows": [{"status": status}]}).rows[0].status == status


@pytest.mark.parametrize("tier", ["free", "pro", "creator", "acme-42"])
def test_any_tier_and_role_pass(tier: str) -> None:
    """Tiers and roles are open sets."""
    account = read("whoami", {"user": {"tier": tier, "role": tier}})
    assert (account.tier, account.role, account.approved) == (tier, tier, None)


def test_an_execution_is_the_one_that_was_asked_for() -> None:
    """A body without an id is of the run that was asked for, and the body of another run is refused."""
    assert read("execution", {"status": "processing"}).execution_id == ID
    assert read("execution", {"status": "processing", "executionId": None}).execution_id == ID
    for name in ("execution", "cancel"):
        with pytest.raises(UnreadableError, match="other"):
            read(name, {"status": "processing", "executionId": "other"})


@pytest.mark.parametrize(
    ("times", "ms"),
    [({"ms": 5}, 5), ({"durationMs": 6}, 6), ({"ms": 5, "durationMs": 6}, 5), ({"ms": None, "durationMs": 6}, 6),
     ({"ms": "5", "durationMs": 6}, 6), ({"ms": None}, None), ({}, None), ({"ms": 0, "durationMs": 6}, 0)],
)  # fmt: skip
def test_the_time_has_two_names(times: dict[str, Any], ms: float | None) -> None:
    """`ms`, or else `durationMs`, is the time on the server (contract 5)."""
    assert read("execution", {"status": "completed", **times}).ms == ms


def test_an_account_may_lie_at_the_top() -> None:
    """The record lies under `user`; without that the body itself is taken."""
    assert read("whoami", ACCOUNT) == read("whoami", ACCOUNT["user"])
    with pytest.raises(UnreadableError):
        read("whoami", {"user": None})


def test_a_schema_is_read() -> None:
    """Every field of contract 8 is read."""
    schema = read("schema", SCHEMA)
    assert schema == types.WorkflowSchema(
        fields=(
            types.SchemaField(
                name="size",
                type="slider",
                required=True,
                default=3,
                options=(1, "2"),
                min=1,
                max=5.5,
                step=0.5,
                helper_text="how big",
            ),
        ),
        values={"size": 3},
        name="A",
        description="B",
        estimated_credit_cost=12,
    )


def test_workflows_are_read() -> None:
    """Summaries and whole workflows give every field of contract 9."""
    first, second = read("workflows", SUMMARIES)
    assert first == types.WorkflowSummary(
        slug="a",
        name="A",
        description="B",
        tags=("x", "y"),
        updated_at=datetime(2026, 5, 8, 19, 29, 55, tzinfo=UTC),
        folder_id="f",
    )
    assert second == types.WorkflowSummary(slug="b")
    whole = read("workflow", WORKFLOW)
    assert (whole.slug, whole.tags, whole.public_playground) == ("a", ("x",), False)
    assert (list(whole.nodes), list(whole.edges)) == (WORKFLOW["nodes"], WORKFLOW["edges"])
    assert whole.viewport == WORKFLOW["viewport"]


def test_usage_is_read() -> None:
    """Every field of contract 10 is read."""
    page = read("usage", USAGE)
    assert (page.page, page.page_size, page.total) == (0, 50, 312)
    assert page.rows == (
        types.UsageRow(
            id=188,
            user_id="u_abc",
            workflow_slug="my-pipeline",
            model_ids=("gpt-image-2",),
            status=Status.COMPLETED,
            source="api-slim",
            cost=0.12,
            user_cost=0.255,
            credits_cost=255,
            duration_ms=47210,
            request_id="kie_xyz789",
            created_at=datetime(2026, 5, 8, 19, 29, 55, tzinfo=UTC),
        ),
    )


@pytest.mark.parametrize(
    ("body", "models"),
    [(["a", "b"], ("a", "b")), ([], ()), ([1, "a", None], ("a",)), ({"models": ["a"]}, ("a",)), ({}, ()),
     ({"total": 1, "models": ["a"]}, ("a",)), ({"rows": ["a"]}, ("a",)), ({"notes": [], "models": ["a"]}, ("a",))],
)  # fmt: skip
def test_the_models_of_the_usage_are_read(body: object, models: tuple[str, ...]) -> None:
    """A list of ids, or an object that holds one, gives the ids."""
    assert read("usage models", body) == models


@pytest.mark.parametrize("body", [None, 5, "gpt-image-2", True])
def test_models_are_a_list(body: object) -> None:
    """What is neither a list nor an object is no list of models."""
    with pytest.raises(UnreadableError):
        read("usage models", body)


def test_what_is_undocumented_is_kept_as_it_is() -> None:
    """Pricing is its JSON; health is its status where there is one, and its text where there is no JSON."""
    assert read("pricing", [1]).raw == [1]
    assert read("health", {"status": "ok", "x": 1}) == types.Health(status="ok")
    assert read("health", {"status": 5}) == types.Health()
    assert READERS["health"][0](held("fine \ufffd")).raw == "fine \ufffd"
    assert len(READERS["health"][0](held("x" * 9999)).raw) == 1000


@pytest.mark.parametrize("body", ["", " ", "{}", '{"success": true}', '{"status": null}', '{"status": 5}'])
def test_a_cancel_without_a_status_was_requested(body: str) -> None:
    """A 2xx that names no status means that the end was asked for."""
    state = READERS["cancel"][0](held(body))
    assert (state.status, state.execution_id) == (Status.CANCEL_REQUESTED, ID)
    assert state.raw == (json.loads(body) if body.strip() else {})


def test_a_cancel_tells_the_state() -> None:
    """The status it answers with is the status then, and its other fields are read."""
    state = read("cancel", {"status": "cancelled", "result": {"text": "x"}, "cost": 3})
    assert (state.status, state.is_final, state.result, state.cost) == (Status.CANCELLED, True, {"text": "x"}, 3)
    with pytest.raises(UnreadableError):
        read("cancel", ["cancelled"])


@pytest.mark.parametrize(
    ("name", "body"),
    [("execution", {}), ("execution", {"status": None}), ("execution", {"status": 5}), ("execution", {"status": {}}),
     ("workflows", [{}]), ("workflows", [{"slug": None}]), ("workflows", [{"slug": 5}]), ("workflows", ["a"]),
     ("workflows", {"workflows": []}), ("workflows", None)],
)  # fmt: skip
def test_a_promised_field_must_be_there(name: str, body: object) -> None:
    """A missing or odd status, slug or array is unreadable, and the reason says so."""
    with pytest.raises(UnreadableError, match=r"missing|is not a string|is not a list|is not an object"):
        read(name, body)


NO_TEXT: list[Any] = [None, 5, True, ["a"], {"a": 1}]
NO_NUMBER: list[Any] = [None, "5", True, [1], {}]
NO_WHOLE: list[Any] = [*NO_NUMBER, 1.5]
NO_TRUTH: list[Any] = [None, 0, 1, "true", []]
NO_LIST: list[Any] = [None, 5, "a", {"a": 1}, True]
NO_OBJECT: list[Any] = [None, 5, "a", [{}], True]
NO_MOMENT: list[Any] = [*NO_TEXT, "noon", "1715196595"]
UNPROMISED: list[tuple[str, list[str], list[Any]]] = [
    ("execution", ["requestId", "workflowSlug"], NO_TEXT),
    ("execution", ["cost", "ms"], NO_NUMBER),
    ("execution", ["createdAt", "completedAt"], NO_MOMENT),
    ("execution", ["modelIds"], NO_LIST),
    ("failed execution", ["error"], NO_OBJECT),
    ("submit", ["requestId", "status"], NO_TEXT),
    ("submit", ["webhookDelivery"], NO_OBJECT),
    ("run", ["cost", "ms"], NO_NUMBER),
    ("run", ["executionId"], NO_TEXT),
    ("schema", ["name", "description"], NO_TEXT),
    ("schema", ["estimatedCreditCost"], NO_NUMBER),
    ("schema", ["fields"], NO_LIST),
    ("schema", ["values"], NO_OBJECT),
    ("workflow", ["slug", "name", "description"], NO_TEXT),
    ("workflow", ["tags", "nodes", "edges"], NO_LIST),
    ("workflow", ["viewport"], NO_OBJECT),
    ("workflow", ["publicPlayground"], NO_TRUTH),
    ("usage", ["page", "pageSize", "total"], NO_WHOLE),
]


@pytest.mark.parametrize(("name", "keys", "odd"), UNPROMISED, ids=lambda value: value if isinstance(value, str) else "")
def test_an_unpromised_field_is_as_good_as_missing_when_it_is_odd(name: str, keys: list[str], odd: list[Any]) -> None:
    """A field of the wrong type is read as if it were not there, and the rest is read."""
    body = READERS[name][1]
    for key in keys:
        missing = read(name, {other: value for other, value in body.items() if other != key})
        assert [read(name, {**body, key: value}) for value in odd] == [missing] * len(odd), key


@pytest.mark.parametrize("body", [{}, {"rows": None}, {"rows": {}}, {"data": []}, {"error": "maintenance"}])
def test_a_usage_page_without_rows_is_unreadable(body: dict[str, Any]) -> None:
    """A page that does not list its rows is not an empty one: submits are searched for in it."""
    with pytest.raises(UnreadableError, match="rows"):
        read("usage", body)


def test_an_answer_does_not_show_its_body() -> None:
    """Results are the caller's own: they do not show in a repr, hence in no log."""
    assert "canary" not in repr(told({"result": "canary"}))


def test_a_run_that_says_it_failed_is_unreadable() -> None:
    """A synchronous 2xx that denies its success is no result."""
    with pytest.raises(UnreadableError, match="success"):
        read("run", {"success": False, "result": None})
    assert read("run", {"result": 5}).result == 5


def test_odd_parts_of_rows_are_none() -> None:
    """The same holds inside lists and below `user`."""
    row = {"workflowSlug": 5, "modelIds": {}, "status": 5, "cost": "1", "createdAt": 5, "durationMs": True}
    assert read("usage", {"rows": [row]}).rows == (types.UsageRow(),)
    field = {"name": "a", "type": 5, "required": "yes", "options": "abc", "min": "0", "helperText": []}
    assert read("schema", {"fields": [field]}).fields == (types.SchemaField(name="a"),)
    summary = {"slug": "a", "name": 5, "tags": "x", "updatedAt": "noon", "estimatedCreditCost": "12", "folderId": 5}
    assert read("workflows", [summary]) == (types.WorkflowSummary(slug="a"),)
    user = {"id": 5, "email": [], "role": 1, "tier": None, "approved": "yes"}
    assert read("whoami", {"user": user}) == types.Account()


@pytest.mark.parametrize("value", [None, True, 1.5, [], {}, {"a": 1}, [1]], ids=ascii)
def test_a_row_has_a_number_or_a_text_for_its_id(value: Any) -> None:
    """A row's id is hashable, or None."""
    assert read("usage", {"rows": [{"id": value}]}).rows == (types.UsageRow(),)
    assert [row.id for row in read("usage", {"rows": [{"id": 188}, {"id": "r-9"}]}).rows] == [188, "r-9"]


def test_odd_rows_are_left_out() -> None:
    """A list gives the items that can be read."""
    assert len(read("usage", {"rows": [1, None, {"id": 1}, [], "x"]}).rows) == 1
    assert len(read("schema", {"fields": [{"type": "text"}, {"name": 5}, {"name": "a"}, None]}).fields) == 1
    assert read("execution", {"status": "failed", "modelIds": ["a", 5, None]}).model_ids == ("a",)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400, "1" * 4000])
def test_a_number_beyond_all_bounds_is_none(number: str) -> None:
    """No infinite cost is ever returned."""
    state = READERS["execution"][0](held(f'{{"status": "completed", "cost": {number}, "ms": {number}}}'))
    assert state.cost is None or math.isfinite(state.cost)
    assert state.ms is None or math.isfinite(state.ms)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-05-08T19:29:55.000Z", datetime(2026, 5, 8, 19, 29, 55, tzinfo=UTC)),
        ("2026-05-08T19:29:55", datetime(2026, 5, 8, 19, 29, 55, tzinfo=UTC)),
        ("2026-05-08T21:29:55+02:00", datetime(2026, 5, 8, 21, 29, 55, tzinfo=timezone(timedelta(hours=2)))),
        ("2026-05-08", datetime(2026, 5, 8, tzinfo=UTC)),
        ("yesterday", None), ("", None), ("2026-13-01T00:00:00Z", None), ("2026-05-08T19:29:55+99:99", None),
    ],
)  # fmt: skip
def test_moments_have_a_zone(text: str, moment: datetime | None) -> None:
    """ISO 8601 is read, UTC where no zone is said; anything else is None."""
    seen = read("execution", {"status": "completed", "createdAt": text}).created_at
    assert seen == moment
    assert seen is None or seen.tzinfo is not None


@pytest.mark.parametrize(
    ("body", "is_own"),
    [(b'{"error": "no", "code": "X"}', True), (b'{"error": ""}', True), (b'{"error": null}', False),
     (b'{"error": {"message": "no"}}', False), (b'{"message": "no"}', False), (b"[]", False), (b'"error"', False),
     (b"<html>error</html>", False), (b"", False), (b"[" * 100_000, False), (b'{"error": NaN}', False)],
    ids=lambda value: ascii(value)[:30],
)  # fmt: skip
def test_the_service_s_own_words_are_told_from_a_proxy_s(body: bytes, is_own: bool) -> None:
    """Only an object with a text under `error` is the service's own (contract 1)."""
    words = responses.service_error(Answer(500, {}, body))
    assert words == (json.loads(body) if is_own else None)


@pytest.mark.parametrize("other", [True, False, "yes", None])
@pytest.mark.parametrize("configured", [True, False])
def test_a_webhook_is_told_of_by_its_delivery_alone(configured: bool, other: Any) -> None:
    """Whether deliveries are to be expected stands under `webhookDelivery`, whatever else a receipt holds."""
    receipt = {**RECEIPT, "webhookConfigured": other, "webhookDelivery": {"configured": configured}}
    assert responses.submitted(Answer(200, {}, json.dumps(receipt).encode())).webhook_configured is configured


DATE = "Fri, 08 May 2026 19:29:55 GMT"
EPOCH = 1778268595.0
LATER = "Fri, 08 May 2026 19:30:25 GMT"


def answer(given: dict[str, str] | None = None, body: Any = None, status: int = 429) -> Answer:
    """Return an answer with these headers and this JSON."""
    return Answer(status, given or {}, b"" if body is None else json.dumps(body).encode())


@pytest.mark.parametrize(
    "text", [DATE, "Friday, 08-May-26 19:29:55 GMT", "Fri May  8 19:29:55 2026", "Fri, 08 May 2026 21:29:55 +0200"]
)
def test_a_date_is_epoch_seconds(text: str) -> None:
    """All three forms of HTTP's date are read, in UTC."""
    assert responses.http_date(text) == EPOCH
    assert responses.http_date("Thu, 01 Jan 1970 00:00:00 GMT") == 0


def test_an_answer_that_a_cache_may_have_kept_is_not_dated() -> None:
    """Its `Date` is of when it was kept, so it proves nothing of the service's clock."""
    assert responses.fresh_date(answer({"date": DATE})) == EPOCH
    assert responses.fresh_date(answer({"date": DATE, "age": "0"})) is None


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the time zone cannot be set here")
def test_a_date_without_a_zone_is_not_of_this_machine_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in UTC, wherever the client runs."""
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "America/New_York")
            time.tzset()
            assert responses.http_date("Fri May  8 19:29:56 2026") == EPOCH + 1
    finally:
        time.tzset()


@pytest.mark.parametrize(
    "text",
    [None, "", " ", "now", "12", "-1", "Fri, 99 May 2026 19:29:55 GMT", "Fri, 08 May 99999 19:29:55 GMT",
     "Fri, 08 Foo 2026 19:29:55 GMT", "Fri, 08 May 2026 19:29:55 +9999", "Fri, 08 May 2026 25:61:61 GMT", ",", "::",
     "Wed, 31 Dec 1969 23:59:59 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "Fri, 01 Jan 4200 00:00:00 GMT"],
)  # fmt: skip
def test_what_is_no_date_is_none(text: str | None) -> None:
    """An odd date is no date, and neither is one that no clock shows."""
    assert responses.http_date(text) is None


DATELIKE = st.lists(
    st.sampled_from(["Fri,", "08", "May", "2026", "19:29:55", "GMT", "+9999", "-", ":", ",", "1e9", "٣", "99999"]),
    max_size=8,
).map(" ".join)


@given(st.text() | DATELIKE, st.text() | DATELIKE, st.none() | st.floats(allow_nan=False, allow_infinity=False))
def test_no_header_raises(text: str, date: str, server_time: float | None) -> None:
    """Whatever the headers hold, the time and the wait are finite and the wait is never negative, or they are None."""
    seen = responses.retry_after(answer({"retry-after": text, "date": date}), server_time)
    assert seen is None or 0 <= seen < float("inf")
    when = responses.http_date(text)
    assert when is None or abs(when) < float("inf")
    responses.quota(answer(dict.fromkeys(responses.READ, text)), server_time=server_time)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12", 12.0), ("0", 0.0), (" 12 ", 12.0), ("012", 12.0), ("999999999999999", 999999999999999.0), ("1.5", None),
     ("-5", None), ("+5", None), ("1_0", None), ("\u0661\u0662", None), ("12s", None), ("soon", None), ("", None),
     ("1" * 16, None), ("inf", None), ("nan", None), ("12\n", 12.0), ("0x10", None)],
)  # fmt: skip
def test_a_wait_in_seconds(text: str, seconds: float | None) -> None:
    """`Retry-After` in whole seconds is taken at its word; an odd one is none."""
    assert responses.retry_after(answer({"retry-after": text}), None) == seconds


@pytest.mark.parametrize(
    ("given", "server_time", "seconds"),
    [
        ({"retry-after": LATER, "date": DATE}, None, 30.0),
        ({"retry-after": LATER, "date": DATE}, EPOCH - 1000, 30.0),
        ({"retry-after": LATER}, EPOCH + 10.5, 19.5),
        ({"retry-after": LATER, "date": "odd"}, EPOCH, 30.0),
        ({"retry-after": DATE, "date": LATER}, None, 0.0),
        ({"retry-after": LATER}, None, None),
    ],
)
def test_a_wait_until_a_date(given: dict[str, str], server_time: float | None, seconds: float | None) -> None:
    """A date is taken against the answer's own `Date`, else the server's known time, never the local clock."""
    assert responses.retry_after(answer(given), server_time) == seconds


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [(12, 12.0), (0, 0.0), (0.5, 0.5), (-1, None), ("12", None), (True, None), (None, None), ([12], None),
     (10**400, None), (1e308, 1e9), (float("inf"), None), (float("nan"), None)],
    ids=lambda value: f"{value:.20}" if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_a_wait_in_the_body(asked: Any, seconds: float | None) -> None:
    """Without the header, the body's `retryAfter` is the wait (contract 6)."""
    body = {"error": "Rate limit exceeded", "retryAfter": asked}
    assert responses.retry_after(answer(body=body), None) == seconds
    assert responses.retry_after(answer({"retry-after": "soon"}, body), None) == seconds
    assert responses.retry_after(answer({"retry-after": LATER}, body), None) == seconds


@pytest.mark.parametrize(
    ("ahead", "seconds"), [(30, 30.0), (86_400, 86_400.0), (86_401, None), (1, 1.0), (0, None), (-5, None)]
)
def test_a_refusal_that_asks_for_no_wait_may_say_when_its_window_ends(ahead: int, seconds: float | None) -> None:
    """That is the wait, if the service's clock is known and it is ahead by no more than the longest window."""
    window = {"x-ratelimit-reset": f"{EPOCH + ahead:.0f}"}
    assert responses.retry_after(answer(window | {"date": DATE}), None) == seconds
    assert responses.retry_after(answer(window), EPOCH) == seconds
    assert responses.retry_after(answer(window), None) is None
    assert responses.retry_after(answer(window | {"date": DATE}, status=503), None) is None


def test_the_header_comes_before_the_body() -> None:
    """Where both say something, the header counts; a body that is not the service's says nothing."""
    assert responses.retry_after(answer({"retry-after": "3"}, {"error": "x", "retryAfter": 12}), None) == 3.0
    assert responses.retry_after(answer(body={"retryAfter": 12}), None) is None
    assert responses.retry_after(Answer(429, {}, b"<html>"), None) is None


QUOTA = {"x-ratelimit-limit": "100", "x-ratelimit-remaining": "42", "x-ratelimit-reset": "1778268600"}


def test_a_success_tells_the_quota() -> None:
    """The three headers are read from a success (contract 6)."""
    assert responses.quota(answer(QUOTA, status=200), server_time=None) == QuotaHeaders(
        refused=False, succeeded=True, limit=100, remaining=42, reset=1778268600
    )


def test_a_refusal_tells_the_wait_too() -> None:
    """A 429 says how long to wait."""
    told = answer({**QUOTA, "x-ratelimit-remaining": "0", "retry-after": "12"})
    assert responses.quota(told, server_time=None) == QuotaHeaders(
        refused=True, succeeded=False, limit=100, remaining=0, reset=1778268600, retry_after=12.0
    )


@pytest.mark.parametrize(("asked", "seconds"), [("0", 1.0), ("1", 1.0), ("2", 2.0), ("soon", None)])
def test_a_refusal_is_followed_by_a_pause(asked: str, seconds: float | None) -> None:
    """A service that refuses and asks for no pause is not asked again at once."""
    assert responses.quota(answer({"retry-after": asked}), server_time=None).retry_after == seconds


@pytest.mark.parametrize("status", [101, 300, 302, 400, 401, 404, 408, 500, 502, 503, 504])
def test_only_a_success_shows_that_a_route_is_not_limited(status: int) -> None:
    """The headers are missing on a proxy's page too, so only a 2xx without them counts; only a 429's wait does."""
    told = responses.quota(answer({"retry-after": "12"}, status=status), server_time=None)
    assert told == QuotaHeaders(refused=False, succeeded=False)


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_2xx_is_a_success(status: int) -> None:
    """Every 2xx is a success."""
    assert responses.quota(answer(status=status), server_time=None) == QuotaHeaders(refused=False, succeeded=True)


@pytest.mark.parametrize("text", ["", "-1", "1.5", "many", "\u0661", "1_0", "9" * 16, "nan"])
@pytest.mark.parametrize("name", ["limit", "remaining", "reset"])
def test_an_odd_quota_is_none(name: str, text: str) -> None:
    """A count that is no count is as good as missing; the others are read."""
    told = responses.quota(answer({**QUOTA, f"x-ratelimit-{name}": text}, status=200), server_time=None)
    assert getattr(told, name) is None
    assert sum(value is None for value in (told.limit, told.remaining, told.reset)) == 1


def test_every_header_that_is_read_is_kept() -> None:
    """Only headers in the list are kept of an answer, so all that are read must be in it, in lower case."""
    also = {"retry-after", "date", "content-type", "location", "server", "via", "age"}
    assert {*QUOTA, *also} == set(responses.READ)


def test_a_web_page_says_nothing_of_the_quota() -> None:
    """A login page with 200 is no sign that the route is unlimited; the service's JSON without headers is."""
    for kind, succeeded in (("text/html; charset=utf-8", False), ("application/json", True), (None, True)):
        told = answer({} if kind is None else {"content-type": kind}, status=200)
        assert responses.quota(told, server_time=None).succeeded is succeeded


KEY = 'knouds_live_aB3/"x\\Yz&%+0'
MASK = Mask(Secret(KEY))


def escaped(key: str, *, every: int = 1) -> str:
    """Spell a key as a JSON string may."""
    spelled = [
        f"\\u{ord(char):04x}" if place % every == 0 else json.dumps(char)[1:-1] for place, char in enumerate(key)
    ]
    return "".join(spelled)


SPELLINGS = {
    "as it is": KEY,
    "as JSON": json.dumps(KEY)[1:-1],
    "all escaped": escaped(KEY),
    "in capitals": escaped(KEY).upper().replace("\\U", "\\u"),
    "every third": escaped(KEY, every=3),
    "slashes": json.dumps(KEY)[1:-1].replace("/", "\\/"),
    "JSON in JSON": json.dumps(json.dumps(KEY)[1:-1])[1:-1],
    "escapes in JSON": json.dumps(escaped(KEY)),
    "percent": quote(KEY, safe=""),
    "percent, all": "".join(f"%{ord(char):02x}" for char in KEY),
    "percent twice": quote(quote(KEY, safe=""), safe=""),
    "HTML": html.escape(KEY).replace("&quot;", "&#34;").replace("&amp;", "&#38;"),
    "HTML, hexadecimal": "".join(f"&#x{ord(char):X};" for char in KEY),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_hidden(spelling: str) -> None:
    """In a body as in a header, with what stands around it left as it is."""
    text = f"before {SPELLINGS[spelling]} after"
    assert MASK.text(text).replace('"', "") == "before *** after"
    assert MASK.body(text.encode()).replace(b'"', b"") == b"before *** after"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_json_in_another_encoding_holds_no_key(encoding: str) -> None:
    """JSON is read in five encodings, so the key is hidden in all of them."""
    body = json.dumps({"error": f"bad key {KEY}", "half": "\ud800"}, ensure_ascii=False).encode(
        encoding, "surrogatepass"
    )
    assert parsed(MASK.body(body))["error"] == "bad key ***"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_text_that_says_its_encoding_holds_no_key(encoding: str) -> None:
    """What is no JSON may begin with any character, and its byte order mark names the encoding all the same."""
    assert MASK.body(f"鍵 {KEY}".encode(encoding)).decode().removeprefix("\ufeff") == "鍵 ***"


def spelled_anyhow(dice: random.Random, key: str) -> str:
    """Spell each character of a key in a way that JSON takes for it."""
    return "".join(dice.choice([json.dumps(char)[1:-1], f"\\u{ord(char):04x}", f"\\u{ord(char):04X}"]) for char in key)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=3, max_size=40), st.randoms())
def test_no_json_gives_the_key_when_it_is_parsed(key: str, dice: Any) -> None:
    """Whatever the key, and however each of its characters is spelled."""
    body = f'{{"x-api-key": "a {spelled_anyhow(dice, key)} b"}}'.encode()
    assert json.loads(body)["x-api-key"] == f"a {key} b"
    assert key not in MASK.text(repr(Mask(Secret(key)).body(body)))


@given(
    st.recursive(st.text() | st.integers() | st.none(), lambda more: st.lists(more) | st.dictionaries(st.text(), more))
)
def test_what_holds_no_key_is_left_as_it_is(value: Any) -> None:
    """No other body is changed."""
    body = json.dumps(value).encode()
    assert MASK.body(body) == body


def test_it_shows_nothing_itself() -> None:
    """Neither before nor after it was used."""
    mask = Mask(Secret(KEY))
    for _ in range(2):
        assert "live" not in repr(mask) + str(mask)
        mask.text("\\")


def test_headers_are_masked_one_by_one() -> None:
    """A header that holds the key is masked, in whatever spelling, and the others stay as they are."""
    mask = Mask(Secret("knouds_live_canary"))
    clean = {"date": "Sun, 29 Nov 2026 20:00:00 GMT", "server": "x"}
    assert mask.headers(clean) is clean
    assert mask.headers({**clean, "location": "/?key=knouds%5Flive_canary"}) == {**clean, "location": "/?key=***"}


OWN_REFUSAL = {"error": "Rate limit exceeded", "code": "RATE_LIMIT_EXCEEDED"}
WITH_QUOTA = {"x-ratelimit-limit": "100", "x-ratelimit-remaining": "0"}
AS_JSON = {"content-type": "application/json; charset=utf-8"}


@pytest.mark.parametrize(
    ("headers", "body", "is_cut", "is_own"),
    [
        pytest.param({}, json.dumps(OWN_REFUSAL), False, True, id="its JSON"),
        pytest.param(WITH_QUOTA | AS_JSON, "slow down", False, False, id="another body, whole"),
        pytest.param(WITH_QUOTA | AS_JSON, '{"err', True, True, id="cut JSON with a quota"),
        pytest.param(WITH_QUOTA, "", True, True, id="cut before any type"),
        pytest.param(WITH_QUOTA | {"content-type": "text/html"}, "<ht", True, False, id="a cut page"),
        pytest.param(AS_JSON, '{"err', True, False, id="cut JSON without a quota"),
        pytest.param({"x-ratelimit-limit": "100"} | AS_JSON, '{"err', True, False, id="cut JSON with half a quota"),
    ],
)
def test_a_429_is_the_service_s_own_by_its_body_or_where_cut_by_its_quota(
    headers: dict[str, str], body: str, is_cut: bool, is_own: bool
) -> None:
    """A gateway's refusal proves nothing of a submit, whatever headers it has (contract 6)."""
    assert responses.is_own_refusal(Answer(429, headers, body.encode()), is_cut=is_cut) is is_own


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"x": -Infinity}', "{", "", "[" * 100_000, b"\xff\xfe{"])
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    """Neither JavaScript's constants nor any depth of nesting gets past it."""
    with pytest.raises(ValueError, match=r"."):
        strict_json(text)


@pytest.mark.parametrize("digits", ["1e999", "-1e999", "9" * 400])
def test_a_number_that_no_float_holds_is_refused_where_that_is_asked(digits: str) -> None:
    """JavaScript would read it as infinity; without bounds it is read as Python does."""
    with pytest.raises(ValueError, match="is too large a number"):
        strict_json(digits, is_exact=True)
    assert strict_json(digits) == json.loads(digits)


def test_bounds_leave_numbers_as_they_are() -> None:
    """An integer stays one, and so does a float; an object is read with all its names."""
    assert strict_json('{"a": {"b": 1, "c": 2}, "d": 3}', is_exact=True) == {"a": {"b": 1, "c": 2}, "d": 3}
    assert repr(strict_json("[1, -2, 1.0, 1e3, 0]", is_exact=True)) == "[1, -2, 1.0, 1000.0, 0]"


@pytest.mark.parametrize("digits", ["1e-999", "-0.01e-400"])
def test_a_number_that_would_become_zero_is_refused_where_that_is_asked(digits: str) -> None:
    """What is more than nothing is not read as nothing; zero itself is, however it is written."""
    with pytest.raises(InexactValueError, match="is too small a number"):
        strict_json(digits, is_exact=True)
    assert strict_json("[0, 0.0, -0e-999, 0E5]", is_exact=True) == [0, 0, 0, 0]


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"x": {"a": 1, "b": 2, "a": 3}}]', '{"": 0, "": 1}'])
def test_a_name_that_comes_twice_is_no_json_that_is_read_exactly(text: str) -> None:
    """At any depth, for one of the two values would be lost; where that is not asked for, the last counts."""
    with pytest.raises(InexactValueError, match="comes twice in a JSON object"):
        strict_json(text, is_exact=True)
    assert strict_json(text)
