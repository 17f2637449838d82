"""Bodies that are JSON to some and not to others: taken and readable ever after, or refused, and never a crash."""

from __future__ import annotations

import json
from typing import Any

import pytest

from knouds_async.testing import Emulator, Workflow

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
