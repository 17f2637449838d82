"""Every endpoint of the contract's table answers as documented."""

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


def test_whoami_tells_the_account(ask: Any) -> None:
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
    """A key with a webhook is told so."""
    answer = ask(Emulator(webhook_url="https://example.com/hook")).json(
        "POST /api/workflows/daily-picture/run?async=true", {"inputs": {}}
    )
    assert answer["webhookDelivery"] == {"configured": True, "url": "https://example.com/hook"}


def test_a_synchronous_run_answers_when_it_is_over() -> None:
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
