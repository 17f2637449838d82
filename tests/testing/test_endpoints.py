"""Every endpoint answers as documented, every error with its status, code and context, and odd bodies crash nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from knouds_async.testing import ApiKey, Emulator, Later, Model, Request, Response, Workflow

ALL_ROWS = {
    "GET /api/whoami",
    "POST /api/workflows/:slug/run",
    "GET /api/workflows/:slug/schema",
    "GET /api/workflows/:slug/public-schema",
    "GET /api/workflows",
    "GET /api/workflows/:slug",
    "POST /api/workflows",
    "PUT /api/workflows/:slug",
    "PUT /api/workflows/:slug/move",
    "DELETE /api/workflows/:slug",
    "POST /api/models/:internalName/run",
    "GET /api/executions/:id",
    "POST /api/executions/:id/cancel",
    "GET /api/usage",
    "GET /api/usage/models",
    "GET /api/pricing/public",
    "GET /api/health",
}


def test_whoami_returns_the_account(ask: Any) -> None:
    """whoami gives id, email, role, tier and approval in an object `user`."""
    user = ask(Emulator(tier="business", role="admin")).json("GET /api/whoami")["user"]
    assert user == {
        "id": "u_knouds",
        "email": "u_knouds@example.com",
        "role": "admin",
        "tier": "business",
        "approved": True,
    }


def test_a_submit_answers_as_documented(ask: Any) -> None:
    """A submit answers at once with the ids, the status, the webhook and the poll URL."""
    answer = ask(Emulator()).json("POST /api/workflows/daily-picture/run?async=true", {"inputs": {}})
    assert list(answer) == ["_async", "executionId", "requestId", "status", "webhookDelivery", "pollUrl"]
    assert answer["_async"] is True
    assert answer["status"] == "processing"
    assert answer["requestId"].startswith("kie_")
    assert answer["webhookDelivery"] == {"configured": False}
    assert answer["pollUrl"] == f"/api/executions/{answer['executionId']}"


def test_a_submit_names_the_keys_webhook(ask: Any) -> None:
    """The answer to a submit says whether the key has a webhook."""
    answer = ask(Emulator(webhook_url="https://example.com/hook")).json(
        "POST /api/workflows/daily-picture/run?async=true", {"inputs": {}}
    )
    assert answer["webhookDelivery"] == {"configured": True, "url": "https://example.com/hook"}


def test_a_synchronous_run_answers_when_it_has_finished() -> None:
    """The answer comes at the run's end, with success, result, cost and milliseconds; its `Date` is of then."""
    emulator = Emulator(duration=8.42, tier="business", media_url="https://media.test/m/")
    body = json.dumps({"inputs": {"prompt": "a cat"}}).encode()
    request = Request("POST", "/api/models/gpt-image-2/run", "", {"x-api-key": emulator.api_key}, body)
    later = emulator.handle(request, 100.0)
    assert isinstance(later, Later)
    assert later.at == pytest.approx(108.42)
    answered = emulator.resume(later, later.at)
    assert isinstance(answered, Response)
    assert answered.headers["date"] == "Thu, 28 May 2026 20:26:48 GMT"
    answer: Any = answered.json()
    assert {"success": True, "cost": 12, "ms": 8420}.items() <= answer.items()
    assert answer["result"]["images"][0]["url"].startswith("https://media.test/m/")


def test_a_synchronous_answer_cannot_be_had_early() -> None:
    """Asking before the time is a mistake of the caller."""
    emulator = Emulator(duration=10)
    body = b'{"inputs": {}}'
    later = emulator.handle(
        Request("POST", "/api/workflows/daily-picture/run", "", {"x-api-key": emulator.api_key}, body), 0.0
    )
    assert isinstance(later, Later)
    with pytest.raises(ValueError, match="resume it then"):
        emulator.resume(later, 9.0)


@pytest.mark.parametrize(
    ("model", "kind"),
    [("seedance-2", "videos"), ("suno-v5", "audios"), ("gpt-image-2", "images"), ("kling-3", "videos")],
)
def test_models_make_what_they_are_for(ask: Any, model: str, kind: str) -> None:
    """Video models give videos, music models audios, image models images."""
    answer = ask(Emulator(tier="business")).json(f"POST /api/models/{model}/run", {"inputs": {}})
    assert list(answer["result"]) == [kind]


def test_a_text_model_gives_text(ask: Any) -> None:
    """A text model's result is a text, no list of files."""
    answer = ask(Emulator(tier="business")).json("POST /api/models/claude-sonnet/run", {"inputs": {}})
    assert isinstance(answer["result"]["text"], str)


def test_the_input_count_says_how_many_files_come(ask: Any) -> None:
    """A run that is asked for three thumbnails gives three different URLs."""
    inputs = {"product_name": "Knouds", "count": 3}
    answer = ask(Emulator()).json("POST /api/workflows/my-thumbnail-pipeline/run", {"inputs": inputs})
    assert len({image["url"] for image in answer["result"]["images"]}) == 3


def test_a_poll_shows_the_run_from_start_to_end(ask: Any) -> None:
    """A poll shows `processing` until the run's end, then the result with cost, milliseconds and the end's time."""
    asker = ask(Emulator(duration=30))
    execution_id = asker.submit("workflows/product-video", {"prompt": "a boat"}, now=5.0)
    before, after = asker.poll(execution_id, now=34.9), asker.poll(execution_id, now=35.0)
    assert before["status"] == "processing"
    assert before["result"] is None
    assert after["status"] == "completed"
    assert after["executionId"] == execution_id
    assert after["workflowSlug"] == "product-video"
    assert after["modelIds"] == ["seedance-2"]
    assert (after["cost"], after["ms"], after["error"]) == (12, 30000, None)
    assert (after["createdAt"], after["completedAt"]) == ("2026-05-28T20:26:40.000Z", "2026-05-28T20:27:10.000Z")


def test_a_model_runs_asynchronously(ask: Any) -> None:
    """A model whose provider is polled can be submitted; its run has no workflow."""
    asker = ask(Emulator(tier="business", duration=1))
    state = asker.poll(asker.submit("models/suno-v5", {"prompt": "x"}), now=1.0)
    assert state["workflowSlug"] is None
    assert state["modelIds"] == ["suno-v5"]
    assert list(state["result"]) == ["audios"]


def test_a_workflow_without_models_runs(ask: Any) -> None:
    """A workflow of no model at all runs and gives text."""
    emulator = Emulator(duration=1, workflows=[Workflow("plain", models=())])
    state = ask(emulator).poll(ask(emulator).submit("workflows/plain"), now=1.0)
    assert list(state["result"]) == ["text"]


def test_the_listing_has_own_workflows_and_templates(ask: Any) -> None:
    """The listing has the user's own workflows and everyone's templates, not the workflows of others."""
    others = Workflow("secret", user="u_other")
    emulator = Emulator(workflows=[Workflow("mine"), others, Workflow("starter", user="u_x", is_template=True)])
    rows = ask(emulator).json("GET /api/workflows")
    assert [row["slug"] for row in rows] == ["mine", "starter"]
    assert set(rows[0]) == {
        "slug",
        "name",
        "description",
        "tags",
        "updatedAt",
        "estimatedCreditCost",
        "folderId",
    }
    assert rows[0]["updatedAt"].endswith("Z")


def test_a_schema_lists_fields_values_and_the_estimate(ask: Any) -> None:
    """The schema has the fields, their defaults as values, and the estimate; without Request Input node no fields."""
    asker = ask(Emulator(costs={"my-thumbnail-pipeline": 40}))
    schema = asker.json("GET /api/workflows/my-thumbnail-pipeline/schema")
    assert [(field["name"], field["type"]) for field in schema["fields"]] == [
        ("product_name", "text"),
        ("style", "pills"),
        ("count", "slider"),
    ]
    assert schema["values"] == {"style": "photo", "count": 1}
    assert schema["estimatedCreditCost"] == 40
    assert asker.json("GET /api/workflows/daily-picture/schema")["fields"] == []


def test_a_public_schema_needs_no_key_and_shows_no_estimate(ask: Any) -> None:
    """Only a public playground's schema is public, and without the estimate."""
    asker = ask(Emulator())
    schema = asker.json("GET /api/workflows/my-thumbnail-pipeline/public-schema", key=None)
    assert "estimatedCreditCost" not in schema
    assert asker("GET /api/workflows/jingle/public-schema", key=None).status == 404


def test_a_workflow_round_trips(ask: Any) -> None:
    """What GET gives can be created again as it is, under a slug of its own."""
    asker = ask(Emulator())
    full = asker.json("GET /api/workflows/my-thumbnail-pipeline")
    assert set(full["nodes"][0]) == {"id", "type", "position", "data"}
    assert set(full["edges"][0]) == {"id", "source", "target", "sourceHandle", "targetHandle"}
    again = asker.json("POST /api/workflows", full)
    assert again["slug"] == "my-thumbnail-pipeline-2"
    assert {**again, "slug": full["slug"]} == full


def test_a_created_workflow_runs_by_its_own_nodes(ask: Any) -> None:
    """Fields and models of a created workflow come from its nodes."""
    asker = ask(Emulator())
    nodes = [
        {
            "id": "1",
            "type": "request-input",
            "position": {},
            "data": {"fields": [{"name": "q", "type": "text", "required": True}]},
        },
        {"id": "2", "type": "model", "position": {}, "data": {"model": "kling-3"}},
    ]
    slug = asker.json("POST /api/workflows", {"name": "Film", "nodes": nodes})["slug"]
    run = f"POST /api/workflows/{slug}/run?async=true"
    assert asker(run, {"inputs": {}}).json()["code"] == "INVALID_INPUTS"
    assert asker(run, {"inputs": {"q": "x"}}).json()["code"] == "ASYNC_NOT_SUPPORTED"


def test_slugs_are_derived_and_numbered(ask: Any) -> None:
    """Slugs come from the name; a taken one gets -2, then -3; a blank name is "Untitled workflow"."""
    asker = ask(Emulator())
    names = ["Été à Paris!", "Ete a", "Ete a", "Ete a", "  ", "日本"]
    made = [asker.json("POST /api/workflows", {"name": name}) for name in names]
    assert [one["slug"] for one in made] == [
        "t-paris",
        "ete-a",
        "ete-a-2",
        "ete-a-3",
        "untitled-workflow",
        "workflow",
    ]
    assert made[4]["name"] == "Untitled workflow"


def test_a_create_answers_201_and_needs_no_name(ask: Any) -> None:
    """A workflow can be created from an empty body."""
    response = ask(Emulator())("POST /api/workflows", {})
    assert response.status == 201
    assert response.json()["name"] == "Untitled workflow"


def test_an_update_keeps_the_slug_and_moves_the_time(ask: Any) -> None:
    """An update changes what it names, keeps the slug, and shows in `updatedAt`."""
    asker = ask(Emulator())
    changed = asker.json("PUT /api/workflows/jingle", {"name": "Tune", "publicPlayground": True}, now=60.0)
    assert (changed["slug"], changed["name"], changed["publicPlayground"]) == ("jingle", "Tune", True)
    assert changed["nodes"]
    asker.json("PUT /api/workflows/jingle", {"tags": ["x"]}, now=120.0)
    row = next(one for one in asker.json("GET /api/workflows") if one["slug"] == "jingle")
    assert (row["updatedAt"], row["tags"]) == ("2026-05-28T20:27:40.000Z", ["x"])


def test_a_workflow_moves_to_a_folder_and_back(ask: Any) -> None:
    """A move sets the folder; null is the root."""
    asker = ask(Emulator())
    assert asker.json("PUT /api/workflows/jingle/move", {"folderId": "f_1"})["folderId"] == "f_1"
    assert asker.json("PUT /api/workflows/jingle/move", {"folderId": None})["folderId"] is None


def test_a_deleted_workflow_is_gone(ask: Any) -> None:
    """After a delete the workflow answers 404, and so does a second delete."""
    asker = ask(Emulator())
    asker.json("DELETE /api/workflows/jingle")
    assert asker("GET /api/workflows/jingle").status == 404
    assert asker("DELETE /api/workflows/jingle").status == 404


def test_pricing_and_health_need_no_key(ask: Any) -> None:
    """Anybody may ask for the pricing and the health."""
    asker = ask(Emulator(models=[Model("gpt-image-2")], workflows=[], costs={"gpt-image-2": 3}))
    pricing = asker.json("GET /api/pricing/public", key=None)
    assert {"id": "business", "requestsPerMinute": 1000} in pricing["tiers"]
    assert pricing["models"] == [{"id": "gpt-image-2", "credits": 3}]
    assert asker.json("GET /api/health", key=None) == {"status": "ok"}


def test_every_row_of_the_table_is_there(ask: Any) -> None:
    """The emulator knows every row of the contract's table, and its log names them as the contract does."""
    emulator = Emulator(keys=[ApiKey("other", user="u_2")])
    asker = ask(emulator)
    for row in sorted(ALL_ROWS):
        asker(row.replace(":slug", "s").replace(":internalName", "m").replace(":id", "e"), {"inputs": {}})
    assert set(emulator.requests.by_route) == ALL_ROWS
    assert {entry.route for entry in emulator.requests} == ALL_ROWS


def test_media_can_be_fetched_without_a_key_only(ask: Any) -> None:
    """With `media_url` pointing home, a result's files are there for who sends no key."""
    emulator = Emulator(duration=0, media_url="http://testserver/media")
    asker = ask(emulator)
    url = asker.json("POST /api/workflows/jingle/run", {"inputs": {}})["result"]["audios"][0]["url"]
    path = url.removeprefix("http://testserver")
    assert asker(f"GET {path}", key=None).headers["content-type"] == "audio/mpeg"
    assert asker(f"GET {path}").status == 400
    assert asker("GET /media/x.txt", key=None).status == 404


RUN = "POST /api/workflows/my-thumbnail-pipeline/run"
SUBMIT = f"{RUN}?async=true"
GOOD = {"inputs": {"product_name": "x"}}


def _refused(answer: Any, status: int, code: str | None, **context: object) -> None:
    assert answer.status == status
    body = answer.json()
    assert body.pop("error")
    assert body.pop("code", None) == code
    assert context.items() <= body.items()
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["date"].endswith(" GMT")
    assert "x-ratelimit-limit" not in answer.headers or status == 429


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (None, None),
        ("knouds_live_wrong", None),
        ("knouds_live_revoked", None),
        ("knouds_live_waiting", None),
        ("knouds_live_legacy", "LEGACY_KEY_RETIRED"),
    ],
)
def test_a_key_that_does_not_open_gets_401(ask: Any, key: str | None, code: str | None) -> None:
    """Missing, wrong, revoked and not yet approved keys get 401 without a code, a legacy key with one."""
    keys = [
        ApiKey("knouds_live_revoked", state="revoked"),
        ApiKey("knouds_live_waiting", is_approved=False),
        ApiKey("knouds_live_legacy", state="legacy"),
    ]
    for line in ("GET /api/whoami", SUBMIT, "GET /api/executions/x"):
        _refused(ask(Emulator(keys=keys))(line, GOOD, key=key), 401, code)


def test_a_legacy_key_opens_the_old_generation(ask: Any) -> None:
    """Keys from before May 2026 worked then."""
    emulator = Emulator(generation="old", keys=[ApiKey("knouds_live_legacy", state="legacy")])
    assert ask(emulator)("GET /api/whoami", key="knouds_live_legacy").status == 200


@pytest.mark.parametrize(
    ("capabilities", "line", "required"),
    [
        ([], SUBMIT, "workflow:run"),
        (["workflow:jingle:run"], SUBMIT, "workflow:run"),
        (["workflow:read"], "DELETE /api/workflows/jingle", "workflow:write"),
        (["model:*"], "GET /api/workflows", "workflow:read"),
        (["workflow:*"], "GET /api/executions/e", "execution:read"),
        (["execution:read"], "POST /api/executions/e/cancel", "execution:cancel"),
        (["workflow:*"], "POST /api/models/suno-v5/run", "model:run"),
    ],
)
def test_a_missing_capability_is_named(ask: Any, capabilities: list[str], line: str, required: str) -> None:
    """A key without the capability gets 403 that names it."""
    emulator = Emulator(tier="business", capabilities=capabilities)
    _refused(ask(emulator)(line, GOOD), 403, "CAPABILITY_DENIED", required=required)


@pytest.mark.parametrize(
    "capabilities",
    [["*"], ["workflow:*"], ["workflow:run"], ["workflow:my-thumbnail-pipeline:run"], ["x", "workflow:run"]],
)
def test_capabilities_and_wildcards_open(ask: Any, capabilities: list[str]) -> None:
    """The capability itself, one for the slug, and wildcards all let a run through."""
    assert ask(Emulator(capabilities=capabilities))(SUBMIT, GOOD).status == 200


def test_a_key_without_capabilities_may_ask_for_itself(ask: Any) -> None:
    """whoami and usage are open to any key."""
    asker = ask(Emulator(capabilities=[]))
    for path in ("/api/whoami", "/api/usage", "/api/usage/models"):
        assert asker(f"GET {path}").status == 200


def test_the_old_generation_has_scopes(ask: Any) -> None:
    """A key whose scope is too small gets SCOPE_DENIED with what it needs and has; capabilities do not count."""
    emulator = Emulator(generation="old", scope="free", capabilities=[])
    context = {"required": "deployment", "actual": "free"}
    _refused(ask(emulator)("DELETE /api/workflows/jingle"), 403, "SCOPE_DENIED", **context)
    assert ask(emulator)(SUBMIT, GOOD).status == 200
    assert ask(Emulator(generation="old", scope="admin"))("DELETE /api/workflows/jingle").status == 200


def test_the_free_tier_has_no_api_access(ask: Any) -> None:
    """A free account may only ask who it is; an administrator is let in on any tier."""
    asker = ask(Emulator(tier="free"))
    assert asker("GET /api/whoami").status == 200
    _refused(asker(SUBMIT, GOOD), 403, "API_KEY_ACCESS_DENIED")
    assert ask(Emulator(tier="free", role="admin"))(SUBMIT, GOOD).status == 200


def test_models_need_their_tier(ask: Any) -> None:
    """Models need Business, or more when they say so; enterprise, custom tiers and administrators pass."""
    models = [Model("suno-v5"), Model("grand-1", tier="enterprise")]
    line = "POST /api/models/suno-v5/run?async=true"
    for tier in ("pro", "creator"):
        emulator = Emulator(tier=tier, models=models, workflows=[])
        _refused(ask(emulator)(line, GOOD), 403, "MODEL_TIER_REQUIRED")
    for tier in ("business", "enterprise", "acme-custom"):
        assert ask(Emulator(tier=tier, models=models, workflows=[]))(line, GOOD).status == 200
    grand = "POST /api/models/grand-1/run?async=true"
    business = Emulator(tier="business", models=models, workflows=[])
    _refused(ask(business)(grand, GOOD), 403, "MODEL_TIER_REQUIRED")
    assert ask(Emulator(role="admin", models=models, workflows=[]))(grand, GOOD).status == 200


@pytest.mark.parametrize("slug", ["Bad", "-x", "x_y", "..", "x%2Fy", "%C3%A9", "x%0A"])
def test_a_malformed_slug_is_refused(ask: Any, slug: str) -> None:
    """Slugs and model names of other than lower-case letters, digits and hyphens get INVALID_SLUG."""
    asker = ask(Emulator(tier="business"))
    for line in (
        f"POST /api/workflows/{slug}/run",
        f"POST /api/models/{slug}/run",
        f"GET /api/workflows/{slug}/schema",
    ):
        _refused(asker(line, GOOD), 400, "INVALID_SLUG")


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b"[" * 100_000, b"\xff"])
def test_a_body_that_is_no_object_is_refused(ask: Any, raw: bytes) -> None:
    """A body that is not a JSON object gets INVALID_BODY."""
    asker = ask(Emulator())
    for line in (RUN, SUBMIT, "POST /api/workflows", "PUT /api/workflows/jingle"):
        _refused(asker(line, raw=raw), 400, "INVALID_BODY")


@pytest.mark.parametrize(
    "body",
    [
        {"nodes": {}},
        {"nodes": [{"id": "1"}]},
        {"nodes": ["x"]},
        {"edges": [{"id": "1", "source": "a"}]},
        {"name": 5},
        {"description": None},
        {"tags": "x"},
        {"tags": [1]},
        {"viewport": []},
        {"publicPlayground": "yes"},
    ],
)
def test_a_misshapen_workflow_is_refused_whole(ask: Any, body: dict[str, object]) -> None:
    """A create or update with one wrong part changes nothing."""
    asker = ask(Emulator())
    before = asker.json("GET /api/workflows")
    _refused(asker("POST /api/workflows", body), 400, "INVALID_BODY")
    _refused(asker("PUT /api/workflows/jingle", {"name": "Other", **body}), 400, "INVALID_BODY")
    assert asker.json("GET /api/workflows") == before


@pytest.mark.parametrize("body", [{}, {"folderId": 5}])
def test_a_move_needs_a_folder(ask: Any, body: dict[str, object]) -> None:
    """A move without a folder's id or null gets INVALID_BODY."""
    _refused(ask(Emulator())("PUT /api/workflows/jingle/move", body), 400, "INVALID_BODY")


@pytest.mark.parametrize("body", [{}, {"inputs": None}, {"inputs": []}, {"inputs": "x"}])
def test_inputs_must_be_an_object(ask: Any, body: dict[str, object]) -> None:
    """Missing inputs or inputs that are no object get INVALID_INPUTS, on workflows and models."""
    emulator = Emulator(tier="business")
    for line in (RUN, SUBMIT, "POST /api/models/suno-v5/run"):
        _refused(ask(emulator)(line, body), 400, "INVALID_INPUTS")
    assert not emulator.runs
    assert not emulator.charges


_SCHEMA = (
    {"name": "text", "type": "text"},
    {"name": "area", "type": "textarea"},
    {"name": "number", "type": "number"},
    {"name": "slider", "type": "slider", "min": 1, "max": 4, "step": 0.5},
    {"name": "free_slider", "type": "slider"},
    {"name": "pills", "type": "pills", "options": ["a", {"label": "B", "value": "b"}]},
    {"name": "open_pills", "type": "pills"},
    {"name": "toggle", "type": "toggle"},
    {"name": "image", "type": "image"},
    {"name": "video", "type": "video"},
    {"name": "odd", "type": "colour-wheel"},
)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("text", ["", "x"], [1, None, ["x"]]),
        ("area", ["x"], [True]),
        ("number", [1, 2.5, -3], ["1", True, None]),
        ("slider", [1, 1.5, 4], [0.5, 4.5, 1.3, "2", True]),
        ("free_slider", [-7.7], ["x"]),
        ("pills", ["a", "b"], ["c", "B", 1]),
        ("open_pills", ["anything"], []),
        ("toggle", [True, False], [0, "true"]),
        ("image", ["https://example.com/a.png"], ["http://example.com/a.png", "https://", 5]),
        ("video", ["https://example.com/a.mp4"], ["ftp://x"]),
        ("odd", ["x", 5, None], []),
        ("not_in_the_schema", [1], []),
    ],
)
def test_inputs_are_checked_by_field_type(ask: Any, name: str, good: list[object], bad: list[object]) -> None:
    """Each field type takes its own values and refuses others with INVALID_INPUTS; what no field names passes."""
    asker = ask(Emulator(workflows=[Workflow("checked", _SCHEMA)]))
    for value in good:
        assert asker("POST /api/workflows/checked/run?async=true", {"inputs": {name: value}}).status == 200
    for value in bad:
        answer = asker("POST /api/workflows/checked/run?async=true", {"inputs": {name: value}})
        _refused(answer, 400, "INVALID_INPUTS", field=name)


def test_a_required_field_may_have_a_default(ask: Any) -> None:
    """A required field is refused when missing, unless it has a default."""
    fields = [{"name": "a", "type": "text", "required": True}]
    defaulted = [{"name": "a", "type": "text", "required": True, "default": "x"}]
    asker = ask(Emulator(workflows=[Workflow("strict", fields), Workflow("kind", defaulted)]))
    _refused(asker("POST /api/workflows/strict/run?async=true", {"inputs": {}}), 400, "INVALID_INPUTS", field="a")
    assert asker("POST /api/workflows/kind/run?async=true", {"inputs": {}}).status == 200


@pytest.mark.parametrize("model", ["kling-3", "seedream-v5", "nano-banana-2", "claude-sonnet"])
def test_what_cannot_be_polled_cannot_be_submitted(ask: Any, model: str) -> None:
    """A submit of a model that cannot be polled, or of a workflow with one, is refused uncharged; a run works."""
    emulator = Emulator(tier="business")
    asker = ask(emulator)
    _refused(asker(f"POST /api/models/{model}/run?async=true", GOOD), 400, "ASYNC_NOT_SUPPORTED")
    sketch = "POST /api/workflows/fast-sketch/run"
    inputs = {"inputs": {"prompt": "x"}}
    _refused(asker(f"{sketch}?async=true", inputs), 400, "ASYNC_NOT_SUPPORTED")
    assert (len(emulator.charges), len(emulator.runs)) == (0, 0)
    assert asker(f"POST /api/models/{model}/run", GOOD).status == 200
    assert asker(sketch, inputs).status == 200


def test_only_async_true_submits(ask: Any) -> None:
    """Any other value of `async` is a synchronous run; other parameters do not matter."""
    asker = ask(Emulator(duration=1))
    assert "success" in asker.json(f"{RUN}?async=false", GOOD)
    assert "_async" in asker.json(f"{RUN}?x=1&async=true", GOOD)


def test_an_account_without_credits_gets_402(ask: Any) -> None:
    """A run that costs more than is left is refused and not charged; a top-up helps."""
    emulator = Emulator(credits=30, cost=12)
    asker = ask(emulator)
    assert [asker(SUBMIT, GOOD).status for _ in range(2)] == [200, 200]
    _refused(asker(SUBMIT, GOOD), 402, "INSUFFICIENT_CREDITS")
    assert (emulator.credits, emulator.credits_spent, len(emulator.runs)) == (6, 24, 2)
    emulator.credits = 12
    assert asker(SUBMIT, GOOD).status == 200


def test_a_trial_grant_pays_and_runs_out(ask: Any) -> None:
    """A trial run reports cost 0; when the grant is used up credits do not help."""
    emulator = Emulator(grant=12, cost=12, duration=0)
    asker = ask(emulator)
    assert asker.json(RUN, GOOD)["cost"] == 0
    _refused(asker(RUN, GOOD), 402, "grant_exhausted")
    assert emulator.credits_spent == 0
    assert [charge.paid_by for charge in emulator.charges] == ["grant"]


def test_unknown_things_get_404(ask: Any) -> None:
    """Unknown models have a code, unknown workflows and endpoints a message only."""
    asker = ask(Emulator(tier="business"))
    _refused(asker("POST /api/models/no-such/run", GOOD), 404, "MODEL_NOT_FOUND")
    _refused(asker("POST /api/workflows/no-such/run", GOOD), 404, None)
    _refused(asker("GET /api/workflows/no-such/schema"), 404, None)
    _refused(asker("GET /api/executions/no-such"), 404, "EXECUTION_NOT_FOUND")
    _refused(asker("POST /api/executions/no-such/cancel"), 404, "EXECUTION_NOT_FOUND")
    _refused(asker("GET /api/nothing"), 404, None)
    _refused(asker("PATCH /api/workflows/jingle"), 404, None)
    _refused(asker("GET /nowhere"), 404, None)


def test_endpoints_closed_by_design_stay_closed(ask: Any) -> None:
    """The dashboard's endpoints cannot be used with a key; without one they are not there."""
    asker = ask(Emulator())
    for path in ("/api/me", "/api/credits/balance", "/api/api-keys/1", "/api/business/admin/users"):
        _refused(asker(f"GET {path}"), 403, "API_KEY_ACCESS_DENIED")
        _refused(asker(f"GET {path}", key=None), 404, None)


def test_a_user_sees_only_own_things(ask: Any) -> None:
    """Another user's execution and workflow are not found; a template can be run but not changed."""
    asker = ask(Emulator(keys=[ApiKey("theirs", user="u_2")]))
    execution_id = asker.submit()
    _refused(asker(f"GET /api/executions/{execution_id}", key="theirs"), 404, "EXECUTION_NOT_FOUND")
    _refused(asker("GET /api/workflows/jingle", key="theirs"), 404, None)
    assert asker.json("GET /api/usage", key="theirs")["total"] == 0
    template = "/api/workflows/portrait-starter"
    assert asker(f"GET {template}", key="theirs").status == 200
    for line in (f"PUT {template}", f"DELETE {template}", f"PUT {template}/move"):
        answer = asker(line, {"folderId": None})
        _refused(answer, 403, "CAPABILITY_DENIED", required="workflow:portrait-starter:write")


def test_a_synchronous_runs_execution_cannot_be_polled(ask: Any) -> None:
    """A synchronous run has no execution to ask for."""
    emulator = Emulator(duration=0)
    ask(emulator).json(RUN, GOOD)
    answer = ask(emulator)(f"GET /api/executions/{emulator.runs[0].execution_id}")
    _refused(answer, 404, "EXECUTION_NOT_FOUND")


def test_a_failed_synchronous_run_is_charged(ask: Any) -> None:
    """A synchronous run that fails at the provider answers 500 EXECUTION_FAILED, and is charged."""
    emulator = Emulator(failure_rate=1.0)
    _refused(ask(emulator)(RUN, GOOD), 500, "EXECUTION_FAILED")
    assert emulator.credits_spent == 12


SLIDER = Workflow("slider", ({"name": "n", "type": "slider", "min": -1e308, "step": 5e-324},), ())


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"inputs": {"n": NaN}}', id="NaN"),
        pytest.param(b'{"inputs": {"n": -Infinity}}', id="Infinity"),
        pytest.param(b'{"inputs": {"n": 1e999}}', id="overflowing"),
        pytest.param(b'{"inputs": {"n": 1' + b"0" * 400 + b"}}", id="overflowing whole"),
        pytest.param(b'{"inputs": {"n": 1' + b"0" * 9000 + b"}}", id="of too many digits"),
    ],
)
def test_a_number_that_is_none_is_refused(ask: Any, body: bytes) -> None:
    """JSON has no such numbers, or they cannot be kept: INVALID_BODY, and nothing is run."""
    emulator = Emulator(workflows=[SLIDER])
    answer = ask(emulator)("POST /api/workflows/slider/run?async=true", raw=body)
    assert (answer.status, answer.json()["code"]) == (400, "INVALID_BODY")
    assert not emulator.runs


def test_a_slider_of_extremes_has_steps_all_the_same(ask: Any) -> None:
    """A value whose distance in steps cannot be counted is refused like any other that is off the steps."""
    answer = ask(Emulator(workflows=[SLIDER]))("POST /api/workflows/slider/run?async=true", {"inputs": {"n": 1e308}})
    assert (answer.status, answer.json()["code"]) == (400, "INVALID_INPUTS")


def test_half_a_surrogate_pair_comes_back_as_it_came(ask: Any) -> None:
    """A text that no UTF-8 can hold is written as the escape that it came as, as JavaScript does."""
    asker = ask(Emulator())
    created = asker("POST /api/workflows", {"name": "x\ud800", "description": "\udfff"})
    assert created.status == 201
    assert b'"name":"x\\ud800"' in created.body
    assert asker.json("GET /api/workflows/x")["description"] == "\udfff"


@pytest.mark.parametrize(
    "part",
    [
        {"viewport": {"x": "left"}},
        {"viewport": {"zoom": True}},
        {"nodes": [{"id": "n", "type": "t", "position": {"y": None}}]},
        {"nodes": [{"id": "n", "type": "t", "data": []}]},
        {"nodes": [{"id": "n", "type": "requestInput", "data": {"fields": {}}}]},
        {"nodes": [{"id": "n", "type": "requestInput", "data": {"fields": [{"name": "x"}]}}]},
        {"nodes": [{"id": "n", "type": "request_input", "data": {"fields": [{"name": "x", "type": "t", "min": ""}]}}]},
        {"edges": [{"id": "e", "source": "a", "target": "b", "sourceHandle": 1}]},
    ],
    ids=json.dumps,
)
def test_a_part_of_the_wrong_shape_is_refused(ask: Any, part: dict[str, object]) -> None:
    """What would come back against the description is not taken, at any depth, and the workflow stays as it was."""
    asker = ask(Emulator())
    before = asker.json("GET /api/workflows/jingle")
    answer = asker("PUT /api/workflows/jingle", part)
    assert (answer.status, answer.json()["code"]) == (400, "INVALID_BODY")
    assert asker.json("GET /api/workflows/jingle") == before


def test_what_is_not_named_is_kept(ask: Any) -> None:
    """Nodes and edges may hold more than the service knows, and come back whole."""
    asker = ask(Emulator())
    node = {"id": "n", "type": "mine", "position": {"x": 1, "y": 2.5, "z": []}, "data": {"fields": 7}, "more": None}
    edge = {"id": "e", "source": "n", "target": "n", "sourceHandle": None, "label": "loop"}
    asker.json("PUT /api/workflows/jingle", {"nodes": [node], "edges": [edge]})
    whole = asker.json("GET /api/workflows/jingle")
    assert (whole["nodes"], whole["edges"]) == ([node], [edge])


@pytest.mark.parametrize("depth", [10, 190, 210, 800, 100_000])
def test_a_deep_body_is_refused_or_can_be_read_back(ask: Any, depth: int) -> None:
    """What is nested too deeply to be written again is not taken."""
    asker = ask(Emulator())
    body = b'{"nodes": [{"id": "n", "type": "t", "data": {"deep": ' + b"[" * depth + b"]" * depth + b"}}]}"
    assert asker("PUT /api/workflows/jingle", raw=body).status == (200 if depth < 195 else 400)
    assert asker("GET /api/workflows/jingle").status == 200


def test_many_brackets_are_not_depth(ask: Any) -> None:
    """A long list of lists is no deep one."""
    node = {"id": "n", "type": "t", "data": {"rows": [[] for _ in range(1000)]}}
    assert ask(Emulator())("PUT /api/workflows/jingle", {"nodes": [node]}).status == 200
