"""Bodies that the service reads and writes: JSON objects only, finite numbers, bounded depth, any text."""

from __future__ import annotations

from typing import Any

import pytest

from knouds_async.testing import Emulator
from tests.testing.answers import RUN, SLIDER, SUBMIT, check_refused


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b"[" * 100_000, b"\xff"])
def test_a_body_that_is_no_object_is_refused(ask: Any, raw: bytes) -> None:
    """A body that is not a JSON object gets INVALID_BODY."""
    asker = ask(Emulator())
    for line in (RUN, SUBMIT, "POST /api/workflows", "PUT /api/workflows/jingle"):
        check_refused(asker(line, raw=raw), 400, "INVALID_BODY")


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


def test_half_a_surrogate_pair_comes_back_as_it_came(ask: Any) -> None:
    """A text that no UTF-8 can hold is written as the escape that it came as, as JavaScript does."""
    asker = ask(Emulator())
    created = asker("POST /api/workflows", {"name": "x\ud800", "description": "\udfff"})
    assert created.status == 201
    assert b'"name":"x\\ud800"' in created.body
    assert asker.json("GET /api/workflows/x")["description"] == "\udfff"


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
