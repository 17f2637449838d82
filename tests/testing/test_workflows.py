"""Workflows that are listed, created, changed and deleted, and how their inputs are checked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from knouds_async.testing import EmulatedWorkflow, Emulator
from tests.testing.answers import SLIDER, check_refused

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


def test_the_listing_has_own_workflows_and_templates(ask: Any) -> None:
    """The listing has the user's own workflows and everyone's templates, not the workflows of others."""
    others = EmulatedWorkflow("secret", user="u_other")
    emulator = Emulator(
        workflows=[EmulatedWorkflow("mine"), others, EmulatedWorkflow("starter", user="u_x", is_template=True)]
    )
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
    check_refused(asker("POST /api/workflows", body), 400, "INVALID_BODY")
    check_refused(asker("PUT /api/workflows/jingle", {"name": "Other", **body}), 400, "INVALID_BODY")
    assert asker.json("GET /api/workflows") == before


@pytest.mark.parametrize("body", [{}, {"folderId": 5}])
def test_a_move_needs_a_folder(ask: Any, body: dict[str, object]) -> None:
    """A move without a folder's id or null gets INVALID_BODY."""
    check_refused(ask(Emulator())("PUT /api/workflows/jingle/move", body), 400, "INVALID_BODY")


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
    asker = ask(Emulator(workflows=[EmulatedWorkflow("checked", _SCHEMA)]))
    for value in good:
        assert asker("POST /api/workflows/checked/run?async=true", {"inputs": {name: value}}).status == 200
    for value in bad:
        answer = asker("POST /api/workflows/checked/run?async=true", {"inputs": {name: value}})
        check_refused(answer, 400, "INVALID_INPUTS", field=name)


def test_a_required_field_may_have_a_default(ask: Any) -> None:
    """A required field is refused when missing, unless it has a default."""
    fields = [{"name": "a", "type": "text", "required": True}]
    defaulted = [{"name": "a", "type": "text", "required": True, "default": "x"}]
    asker = ask(Emulator(workflows=[EmulatedWorkflow("strict", fields), EmulatedWorkflow("kind", defaulted)]))
    check_refused(asker("POST /api/workflows/strict/run?async=true", {"inputs": {}}), 400, "INVALID_INPUTS", field="a")
    assert asker("POST /api/workflows/kind/run?async=true", {"inputs": {}}).status == 200


def test_a_slider_of_extremes_has_steps_all_the_same(ask: Any) -> None:
    """A value whose distance in steps cannot be counted is refused like any other that is off the steps."""
    answer = ask(Emulator(workflows=[SLIDER]))("POST /api/workflows/slider/run?async=true", {"inputs": {"n": 1e308}})
    assert (answer.status, answer.json()["code"]) == (400, "INVALID_INPUTS")


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
