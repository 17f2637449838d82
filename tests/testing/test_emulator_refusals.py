"""Every documented refusal comes with its status, its code and its context, and costs nothing."""

from __future__ import annotations

from typing import Any

import pytest

from knouds_async.testing import ApiKey, Emulator, Model, Workflow

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
