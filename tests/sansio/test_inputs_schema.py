"""Inputs against a schema: every error of a job at once, and what is not known is let through."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async._sansio import responses
from knouds_async._sansio.inputs import input_errors
from knouds_async._sansio.responses import Answer
from knouds_async.types import SchemaField, WorkflowSchema


def schema(*fields: dict[str, Any], **values: Any) -> WorkflowSchema:
    """Return a schema as it is read from the service."""
    read = responses.read(WorkflowSchema)
    return read(Answer(200, {}, json.dumps({"fields": list(fields), "values": values}).encode()))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ({"type": "text"}, 5, "a string"),
        ({"type": "textarea"}, ["x"], "a string"),
        ({"type": "number"}, "5", "a number"),
        ({"type": "number"}, True, "a number"),
        ({"type": "number", "min": 2}, 1.5, "at least 2"),
        ({"type": "slider", "min": 1, "max": 4}, 9, "at most 4"),
        ({"type": "toggle"}, 1, "true or false"),
        ({"type": "image"}, "http://x/y.png", "https"),
        ({"type": "video"}, "https://", "https"),
        ({"type": "image"}, {"url": "https://x"}, "https"),
        ({"type": "pills", "options": ["a", "b"]}, "c", "'a', 'b'"),
        ({"type": "pills", "options": ["a", "b"]}, ["a", "c"], "'a', 'b'"),
        ({"type": "pills", "options": [{"label": "A", "value": "a"}]}, "A", "'a'"),
        ({"type": "select", "options": [1, 2]}, True, "1, 2"),
        ({"type": "hologram", "max": 3}, 4, "at most 3"),
        ({"max": 3}, 4, "at most 3"),
    ],
)
def test_a_fault_is_named(field: dict[str, Any], value: Any, said: str) -> None:
    """The field, what it must be, and the value stand in the fault."""
    (found,) = input_errors(schema({"name": "f", **field}), {"f": value})
    assert said in found
    assert found.startswith("'f' must be")
    assert repr(value) in found


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ({"type": "text"}, ""),
        ({"type": "number", "min": 1, "max": 1}, 1),
        ({"type": "slider", "step": 2}, 1.5),
        ({"type": "toggle"}, False),
        ({"type": "image"}, "https://x/y.png"),
        ({"type": "pills", "options": ["a", "b"]}, "b"),
        ({"type": "pills", "options": ["a", "b"]}, ["a", "b"]),
        ({"type": "pills", "options": [{"label": "A", "value": "a"}]}, "a"),
        ({"type": "pills", "options": [{"name": "A"}]}, "whatever"),
        ({"type": "pills"}, "whatever"),
        ({"type": "hologram"}, {"any": "thing"}),
        ({"type": "hologram", "min": 3}, "a text"),
        ({}, 5),
        ({"type": "text"}, None),
        ({"type": 7, "min": "low", "options": "abc"}, 5),
    ],
)
def test_what_fits_or_is_not_known_is_let_through(field: dict[str, Any], value: Any) -> None:
    """A type that nobody has documented, and a bound that cannot be read, refuse nothing."""
    assert input_errors(schema({"name": "f", **field}), {"f": value}) == ()


def test_every_fault_is_found_at_once() -> None:
    """Wrong, unknown and missing fields come together."""
    fields = [
        {"name": "product_name", "type": "text", "required": True},
        {"name": "style", "type": "pills", "options": ["photo"], "required": True},
        {"name": "count", "type": "slider", "max": 4},
    ]
    found = input_errors(schema(*fields), {"count": 9, "colour": "red"})
    assert len(found) == 4
    assert [text.split()[0] for text in found] == ["'count'", "'colour'", "'product_name'", "'style'"]
    assert "the fields are 'product_name', 'style', 'count'" in found[1]


def test_a_field_with_a_default_may_be_left_out() -> None:
    """A default, of the field or among the schema's values, stands in for a required field."""
    assert input_errors(schema({"name": "f", "required": True, "default": "x"}), {}) == ()
    assert input_errors(schema({"name": "f", "required": True}, f="x"), {}) == ()
    assert input_errors(schema({"name": "f", "required": False}), {}) == ()
    assert input_errors(schema({"name": "f", "required": True}), {}) == ("'f' is required and missing",)


def test_a_workflow_without_fields_takes_no_inputs() -> None:
    """Its schema lists nothing, so every name is unknown."""
    assert input_errors(schema(), {}) == ()
    assert "takes no inputs" in input_errors(schema(), {"f": 1})[0]


def test_fields_that_cannot_be_read_make_no_name_unknown() -> None:
    """When the schema holds fields that cannot be read, a name may be one of them."""
    odd = schema({"name": "f"}, {"label": "no name"})
    assert input_errors(odd, {"g": 1}) == ()
    assert "is no field" in input_errors(WorkflowSchema(fields=(SchemaField(name="f"),)), {"g": 1})[0]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


_attributes = st.sampled_from(["name", "type", "options", "min", "max", "required"])


@given(
    st.lists(st.dictionaries(_attributes, _json), max_size=3),
    st.dictionaries(st.text(max_size=3), _json, max_size=3),
)
def test_no_schema_makes_it_fail(fields: list[dict[str, Any]], inputs: dict[str, Any]) -> None:
    """Whatever the service says of its fields and whatever the inputs are, the answer is a list of words."""
    assert all(isinstance(text, str) for text in input_errors(schema(*fields), inputs))
