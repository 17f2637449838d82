"""Every endpoint answers as documented, every error with its status, code and context, and odd bodies crash nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from knouds_async.testing import ApiKey, EmulatedWorkflow, Emulator, Later, Model, Request, Response
from knouds_async.testing._service.endpoints import ROUTES
from tests.testing.answers import GOOD, RUN, SUBMIT, check_refused

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
    emulator = Emulator(duration=1, workflows=[EmulatedWorkflow("plain", models=())])
    state = ask(emulator).poll(ask(emulator).submit("workflows/plain"), now=1.0)
    assert list(state["result"]) == ["text"]


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
    assert {route.label for route in ROUTES} == {*ALL_ROWS, "GET /media/:name"}


def test_media_can_be_fetched_without_a_key_only(ask: Any) -> None:
    """With `media_url` pointing home, a result's files are there for who sends no key."""
    emulator = Emulator(duration=0, media_url="http://testserver/media")
    asker = ask(emulator)
    url = asker.json("POST /api/workflows/jingle/run", {"inputs": {}})["result"]["audios"][0]["url"]
    path = url.removeprefix("http://testserver")
    assert asker(f"GET {path}", key=None).headers["content-type"] == "audio/mpeg"
    assert asker(f"GET {path}").status == 400
    assert asker("GET /media/x.txt", key=None).status == 404


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
        check_refused(ask(Emulator(keys=keys))(line, GOOD, key=key), 401, code)


def test_a_legacy_key_opens_the_old_generation(ask: Any) -> None:
    """Keys from before May 2026 worked then."""
    emulator = Emulator(generation="old", keys=[ApiKey("knouds_live_legacy", state="legacy")])
    assert ask(emulator)("GET /api/whoami", key="knouds_live_legacy").status == 200


def test_the_free_tier_has_no_api_access(ask: Any) -> None:
    """A free account may only ask who it is; an administrator is let in on any tier."""
    asker = ask(Emulator(tier="free"))
    assert asker("GET /api/whoami").status == 200
    check_refused(asker(SUBMIT, GOOD), 403, "API_KEY_ACCESS_DENIED")
    assert ask(Emulator(tier="free", role="admin"))(SUBMIT, GOOD).status == 200


@pytest.mark.parametrize("slug", ["Bad", "-x", "x_y", "..", "x%2Fy", "%C3%A9", "x%0A"])
def test_a_malformed_slug_is_refused(ask: Any, slug: str) -> None:
    """Slugs and model names of other than lower-case letters, digits and hyphens get INVALID_SLUG."""
    asker = ask(Emulator(tier="business"))
    for line in (
        f"POST /api/workflows/{slug}/run",
        f"POST /api/models/{slug}/run",
        f"GET /api/workflows/{slug}/schema",
    ):
        check_refused(asker(line, GOOD), 400, "INVALID_SLUG")


@pytest.mark.parametrize("body", [{}, {"inputs": None}, {"inputs": []}, {"inputs": "x"}])
def test_inputs_must_be_an_object(ask: Any, body: dict[str, object]) -> None:
    """Missing inputs or inputs that are no object get INVALID_INPUTS, on workflows and models."""
    emulator = Emulator(tier="business")
    for line in (RUN, SUBMIT, "POST /api/models/suno-v5/run"):
        check_refused(ask(emulator)(line, body), 400, "INVALID_INPUTS")
    assert not emulator.runs
    assert not emulator.charges


@pytest.mark.parametrize("model", ["kling-3", "seedream-v5", "nano-banana-2", "claude-sonnet"])
def test_what_cannot_be_polled_cannot_be_submitted(ask: Any, model: str) -> None:
    """A submit of a model that cannot be polled, or of a workflow with one, is refused uncharged; a run works."""
    emulator = Emulator(tier="business")
    asker = ask(emulator)
    check_refused(asker(f"POST /api/models/{model}/run?async=true", GOOD), 400, "ASYNC_NOT_SUPPORTED")
    sketch = "POST /api/workflows/fast-sketch/run"
    inputs = {"inputs": {"prompt": "x"}}
    check_refused(asker(f"{sketch}?async=true", inputs), 400, "ASYNC_NOT_SUPPORTED")
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
    check_refused(asker(SUBMIT, GOOD), 402, "INSUFFICIENT_CREDITS")
    assert (emulator.credits, emulator.credits_spent, len(emulator.runs)) == (6, 24, 2)
    emulator.credits = 12
    assert asker(SUBMIT, GOOD).status == 200


def test_a_trial_grant_pays_and_runs_out(ask: Any) -> None:
    """A trial run reports cost 0; when the grant is used up credits do not help."""
    emulator = Emulator(grant=12, cost=12, duration=0)
    asker = ask(emulator)
    assert asker.json(RUN, GOOD)["cost"] == 0
    check_refused(asker(RUN, GOOD), 402, "grant_exhausted")
    assert emulator.credits_spent == 0
    assert [charge.paid_by for charge in emulator.charges] == ["grant"]


def test_unknown_things_get_404(ask: Any) -> None:
    """Unknown models have a code, unknown workflows and endpoints a message only."""
    asker = ask(Emulator(tier="business"))
    check_refused(asker("POST /api/models/no-such/run", GOOD), 404, "MODEL_NOT_FOUND")
    check_refused(asker("POST /api/workflows/no-such/run", GOOD), 404, None)
    check_refused(asker("GET /api/workflows/no-such/schema"), 404, None)
    check_refused(asker("GET /api/executions/no-such"), 404, "EXECUTION_NOT_FOUND")
    check_refused(asker("POST /api/executions/no-such/cancel"), 404, "EXECUTION_NOT_FOUND")
    check_refused(asker("GET /api/nothing"), 404, None)
    check_refused(asker("PATCH /api/workflows/jingle"), 404, None)
    check_refused(asker("GET /nowhere"), 404, None)


def test_endpoints_closed_by_design_stay_closed(ask: Any) -> None:
    """The dashboard's endpoints cannot be used with a key; without one they are not there."""
    asker = ask(Emulator())
    for path in ("/api/me", "/api/credits/balance", "/api/api-keys/1", "/api/business/admin/users"):
        check_refused(asker(f"GET {path}"), 403, "API_KEY_ACCESS_DENIED")
        check_refused(asker(f"GET {path}", key=None), 404, None)


def test_a_user_sees_only_own_things(ask: Any) -> None:
    """Another user's execution and workflow are not found; a template can be run but not changed."""
    asker = ask(Emulator(keys=[ApiKey("theirs", user="u_2")]))
    execution_id = asker.submit()
    check_refused(asker(f"GET /api/executions/{execution_id}", key="theirs"), 404, "EXECUTION_NOT_FOUND")
    check_refused(asker("GET /api/workflows/jingle", key="theirs"), 404, None)
    assert asker.json("GET /api/usage", key="theirs")["total"] == 0
    template = "/api/workflows/portrait-starter"
    assert asker(f"GET {template}", key="theirs").status == 200
    for line in (f"PUT {template}", f"DELETE {template}", f"PUT {template}/move"):
        answer = asker(line, {"folderId": None})
        check_refused(answer, 403, "CAPABILITY_DENIED", required="workflow:portrait-starter:write")


def test_a_synchronous_runs_execution_cannot_be_polled(ask: Any) -> None:
    """A synchronous run has no execution to ask for."""
    emulator = Emulator(duration=0)
    ask(emulator).json(RUN, GOOD)
    answer = ask(emulator)(f"GET /api/executions/{emulator.runs[0].execution_id}")
    check_refused(answer, 404, "EXECUTION_NOT_FOUND")


def test_a_failed_synchronous_run_is_charged(ask: Any) -> None:
    """A synchronous run that fails at the provider answers 500 EXECUTION_FAILED, and is charged."""
    emulator = Emulator(failure_rate=1.0)
    check_refused(ask(emulator)(RUN, GOOD), 500, "EXECUTION_FAILED")
    assert emulator.credits_spent == 12
