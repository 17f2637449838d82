"""Reading replies: what the contract promises is read, what it does not is forgiven, and nothing else comes out."""

import contextlib
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async import types
from knouds_async._sansio import endpoints, responses
from knouds_async._sansio.responses import Answer, UnreadableError
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


# Nothing but a value or UnreadableError.


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
    "", "  \n", "<html>502 Bad Gateway</html>", "{", "[1,]", "{'a': 1}", "nul", "\ufeff", b"\xff\xfe\x00", b"\x80abc",
    b'{"a": "\xff"}', "NaN", '{"result": NaN, "status": NaN}', '{"a": Infinity}', '[{"b": [-Infinity]}]',
    "9" * 5000, '{"cost": ' + "9" * 5000 + "}", "[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000,
]  # fmt: skip


@each_reader
def test_what_is_not_strict_json_is_unreadable(name: str) -> None:
    """No page, half a body, NaN, endless number or endless nesting is taken for a reply."""
    for body in BROKEN:
        if name in ("move", "delete", "health") and str(body).startswith("<"):
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


# Additions never break reading, and the source is kept.


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


# The documented replies, read.


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
    """The id is the one asked for where the body leaves it out, and the body of another is refused."""
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


# Cancel: what it answers is assumed.


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


# What is promised and what is not.


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
    """A page that does not list its rows is not an empty one: money is looked for in it."""
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
    """A row's id can be looked up in a set, or it is None."""
    assert read("usage", {"rows": [{"id": value}]}).rows == (types.UsageRow(),)
    assert [row.id for row in read("usage", {"rows": [{"id": 188}, {"id": "r-9"}]}).rows] == [188, "r-9"]


def test_odd_rows_are_left_out() -> None:
    """A list gives the items that can be read."""
    assert len(read("usage", {"rows": [1, None, {"id": 1}, [], "x"]}).rows) == 1
    assert len(read("schema", {"fields": [{"type": "text"}, {"name": 5}, {"name": "a"}, None]}).fields) == 1
    assert read("execution", {"status": "failed", "modelIds": ["a", 5, None]}).model_ids == ("a",)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400, "1" * 4000])
def test_a_number_beyond_all_bounds_is_none(number: str) -> None:
    """No infinite cost is ever told."""
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


# Whose words they are.


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
