"""Names, inputs and bodies that may be sent, and inputs checked against a workflow's schema."""

from __future__ import annotations

import dataclasses
import enum
import io
import json
import math
import re
from array import array
from collections import ChainMap, OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn
from urllib.parse import quote
from uuid import UUID

import attrs
import httpx
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async._sansio import responses
from knouds_async._sansio.inputs import (
    checked_execution_id,
    checked_slug,
    input_errors,
    is_execution_id,
    json_body,
    plain_inputs,
    run_body,
)
from knouds_async._sansio.responses import Answer
from knouds_async.errors import InvalidArgumentError, InvalidInputsError, InvalidSlugError
from knouds_async.types import Inputs, Media, RunResult, SchemaField, WorkflowSchema


class Word(str, enum.Enum):  # noqa: UP042  (the older spelling, whose format is not its value)
    """A text that formats as something else."""

    VALUE = "my-pipeline"


class Sly(str):
    """A text whose words differ from what it holds."""

    __slots__ = ()

    def __str__(self) -> str:
        """Lie."""
        return "../../admin"

    def __format__(self, spec: str) -> str:
        """Lie."""
        return "../../admin"


class Rank(enum.IntEnum):
    """A number of a type of its own."""

    SECOND = 2


def nested(levels: int, core: Any = 0) -> Any:
    """Wrap a value in lists."""
    for _ in range(levels):
        core = [core]
    return core


HUGE = 10**5000
"""A number whose repr raises."""
UNSHOWABLE = [HUGE, [HUGE], {HUGE}, nested(100_000)]
ARABIC, WIDE, ACCENTED = "\u0661\u0662", "\uff41", "a\u0301"
NO_SLUGS = [
    "", " ", ".", "..", "../..", "-a", "_a", "a_b", "A", "a.b", "a/b", "a%2fb", "a b", "a\n", "\na", "a\r", "a\0",
    "x?async=false&", "x#y", "x;y", "x\\y", "\xe9", ARABIC, WIDE, ACCENTED, "a\x85", "\u202ea", "\ud800", "a" * 201,
]  # fmt: skip
NO_IDS = [
    "", ".", "..", "../..", "a/b", "a?b", "a#b", "a%2e", "a b", "a.b", "a~b", "a\n", "a\0", "\xe9", ARABIC, WIDE,
    ACCENTED, "\ud800", "a" * 201,
]  # fmt: skip


@pytest.mark.parametrize("text", ["a", "0", "my-thumbnail-pipeline", "gpt-image-2", "a--b", "a-", "a" * 200])
def test_a_slug_is_given_back(text: str) -> None:
    """Lowercase letters, digits and hyphens pass unchanged (contract 2)."""
    assert checked_slug(text) == text


@pytest.mark.parametrize("text", NO_SLUGS)
def test_what_is_no_slug_is_refused(text: str) -> None:
    """Whatever could change the path or is malformed raises InvalidSlugError, which names the value."""
    with pytest.raises(InvalidSlugError) as caught:
        checked_slug(text)
    assert repr(text)[:200] in str(caught.value)
    assert "nothing was sent" in str(caught.value)
    assert (caught.value.status, caught.value.code, caught.value.may_have_run) == (None, "INVALID_SLUG", False)


@pytest.mark.parametrize(
    "value", [None, 5, 1.5, True, b"my-pipeline", ["a"], ("a",), *UNSHOWABLE], ids=lambda value: type(value).__name__
)
@pytest.mark.parametrize(
    ("check", "error"), [(checked_slug, InvalidSlugError), (checked_execution_id, InvalidArgumentError)]
)
def test_what_is_no_text_is_refused(check: Callable[[object], str], error: type[Exception], value: object) -> None:
    """A name that is not a text is refused as a name, also when it cannot be shown."""
    with pytest.raises(error, match="nothing was sent"):
        check(value)


def test_a_refused_slug_says_what_it_was_meant_to_be() -> None:
    """A model's name is called a model name."""
    with pytest.raises(InvalidSlugError, match="'A' is not a model name"):
        checked_slug("A", "model name")


@given(st.text())
def test_a_slug_stands_in_a_path_as_it_is(text: str) -> None:
    """For any text: refused, or in need of no quoting and of no more than 200 characters."""
    try:
        passed = checked_slug(text)
    except InvalidSlugError:
        assert not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,199}", text)
    else:
        assert passed == text == quote(text, safe="")


@pytest.mark.parametrize("text", [Word.VALUE, Sly("my-pipeline")])
@pytest.mark.parametrize("check", [checked_slug, checked_execution_id])
def test_a_name_of_a_type_of_its_own_becomes_a_plain_text(check: Callable[[object], str], text: str) -> None:
    """What is given back formats as what was checked, whatever the type of the name says of itself."""
    passed = check(text)
    assert type(passed) is str
    assert f"{passed}" == "my-pipeline"


@pytest.mark.parametrize("text", ["550e8400-e29b-41d4-a716-446655440000", "kie_xyz789", "A", "-", "_", "a" * 200])
def test_an_execution_id_is_given_back(text: str) -> None:
    """Letters, digits, hyphens and underscores pass unchanged."""
    assert is_execution_id(text)
    assert checked_execution_id(text) == text


@pytest.mark.parametrize("text", NO_IDS)
def test_what_is_no_execution_id_is_refused(text: str) -> None:
    """Whatever could change the path raises InvalidArgumentError, which names the value."""
    assert not is_execution_id(text)
    with pytest.raises(InvalidArgumentError) as caught:
        checked_execution_id(text)
    assert repr(text)[:200] in str(caught.value)


def json_like(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values that JSON can say, in all the types that Python says them with."""
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(inner, max_size=4).map(tuple)
            | st.dictionaries(st.text(), inner, max_size=4)
            | st.dictionaries(st.text(), inner, max_size=4).map(MappingProxyType)
        ),
        max_leaves=20,
    )


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


def said(value: Any) -> Any:
    """Return what JSON makes of a value: lists for tuples, dicts for mappings."""
    if isinstance(value, Mapping):
        return {key: said(item) for key, item in value.items()}
    return [said(item) for item in value] if isinstance(value, (list, tuple)) else value


@given(st.dictionaries(st.text(), json_like(PLAIN), max_size=4))
def test_what_passes_is_what_arrives(inputs: dict[str, Any]) -> None:
    """Inputs that are accepted are exactly what JSON gives back on the other side."""
    assert json.loads(run_body(inputs)) == {"inputs": said(inputs)}
    assert json.loads(json_body(inputs)) == said(inputs)


@given(st.dictionaries(st.text(max_size=3), json_like(PLAIN | st.floats() | st.binary() | st.sets(st.integers()))))
def test_inputs_of_any_shape_are_sent_whole_or_refused(inputs: dict[str, Any]) -> None:
    """Whatever the inputs hold: the body says all of it, or InvalidInputsError is raised."""
    try:
        body = run_body(inputs)
    except InvalidInputsError:
        return
    assert json.loads(body, parse_constant=_not_json) == {"inputs": said(inputs)}


def _not_json(name: str) -> NoReturn:
    raise AssertionError(name)


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        OrderedDict(a=1),
        ChainMap({"a": 1}, {"b": 2}),
        MappingProxyType({"a": ()}),
        {"a": "\U0001f468 é \0"},
        {"": {}},
    ],
)
def test_any_mapping_is_an_object(inputs: Mapping[str, Any]) -> None:
    """Mappings of every type are sent as JSON objects."""
    assert json.loads(run_body(inputs)) == {"inputs": said(inputs)}


@pytest.mark.parametrize(
    ("inputs", "place"),
    [
        ({"a": "\ud800"}, "inputs['a'] is '\\ud800'"),
        ({"a": ["x", "b\udfff\ud800"]}, "inputs['a'][1]"),
        ({"a": {"\udc00": 1}}, "a key of inputs['a'] is '\\udc00'"),
        ({"\udc00": 1}, "a key of inputs"),
    ],
)
def test_half_a_surrogate_pair_is_refused(inputs: dict[str, Any], place: str) -> None:
    """JSON could say it, but it is no character: a service that stores UTF-8 would fail on it, after the charge."""
    with pytest.raises(InvalidInputsError, match="half a surrogate pair") as caught:
        run_body(inputs)
    assert place in str(caught.value)


def test_types_of_their_own_are_sent_as_what_they_hold() -> None:
    """Enumerations and subclasses of JSON's types are sent by value."""
    inputs: Inputs = {Word.VALUE: Word.VALUE, "rank": Rank.SECOND, "sly": Sly("honest"), Sly("key"): True}
    assert run_body(inputs) == b'{"inputs":{"my-pipeline":"my-pipeline","rank":2,"sly":"honest","key":true}}'


def test_one_object_may_stand_in_several_places() -> None:
    """A shared object is not a circle."""
    shared: dict[str, Any] = {"a": [1]}
    assert json.loads(run_body({"x": shared, "y": [shared, shared]}))["inputs"]["y"] == [shared, shared]


class Opaque:
    """Not JSON."""

    def __repr__(self) -> str:
        """Show nothing."""
        return "<Opaque>"


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"a": math.nan}, "inputs['a'] is nan"),
        ({"a": {"b": [1, math.inf]}}, "inputs['a']['b'][1] is inf"),
        ({"a": (0.5, -math.inf)}, "inputs['a'][1] is -inf"),
        ({"a": {1}}, "inputs['a'] is {1} of type set"),
        ({"a": b"raw"}, "inputs['a'] is b'raw' of type bytes"),
        ({"a": [Opaque()]}, "inputs['a'][0] is <Opaque> of type Opaque"),
        ({"a": {HUGE}}, "inputs['a'] is a value of type set"),
        ({"a": range(3)}, "inputs['a'] is range(0, 3) of type range"),
        ({"a": {1: "x"}}, "inputs['a'] has the key 1"),
        ({"a": [{None: "x"}]}, "inputs['a'][0] has the key None"),
        ({b"a": 1}, "inputs has the key b'a'"),
        ({(1, "x"): 1}, "inputs has the key (1, 'x')"),
        ({True: 1}, "inputs has the key True"),
        ({HUGE: 1}, "inputs has the key a value of type int"),
        ({"a": 2**10_000}, "inputs['a'] is an integer of more than 10000 bits"),
        ({"a": -(2**20_000)}, "inputs['a'] is an integer of more than 10000 bits"),
        ({"a": nested(200)}, "more than 200 levels deep"),
        ({"a": nested(100_000)}, "more than 200 levels deep"),
    ],
)
def test_a_refusal_names_the_place_and_the_value(inputs: dict[str, Any], words: str) -> None:
    """What JSON cannot say is refused before any request, by place and value."""
    with pytest.raises(InvalidInputsError) as caught:
        run_body(inputs)
    assert words in str(caught.value)
    assert "nothing was sent" in str(caught.value)
    assert (caught.value.status, caught.value.code) == (None, "INVALID_INPUTS")
    assert len(str(caught.value)) < 1000


class Style(enum.Enum):
    """An enumeration of plain values, and of one that is none."""

    BOLD = "bold"
    WHEN = date(2026, 11, 29)
    WHERE = PurePosixPath("/tmp")  # noqa: S108


class Model(pydantic.BaseModel):
    """A model with what JSON does not have."""

    style: Style = Style.BOLD
    picture: pydantic.HttpUrl = pydantic.HttpUrl("https://example.com/a.png")
    due: datetime | None = None
    more: Any = None


@dataclasses.dataclass
class Order:
    """A dataclass with a class variable, which is no field."""

    product_name: str
    when: Any = None
    kind: ClassVar[str] = "order"


@attrs.frozen
class Size:
    """An attrs class."""

    width: int
    more: Any = None


class Code(UUID):
    """A UUID of a type of its own, as database drivers have."""


PLAIN_FORMS: list[tuple[Any, Any]] = [
    (datetime(2026, 11, 29, 23, 30, tzinfo=UTC), "2026-11-29T23:30:00+00:00"),
    (datetime(2026, 11, 29, 23, 30), "2026-11-29T23:30:00"),  # noqa: DTZ001
    (date(2026, 11, 29), "2026-11-29"),
    (time(23, 30), "23:30:00"),
    (Decimal("0.10"), 0.1),
    (Decimal("19.99"), 19.99),
    (Decimal("5.00"), 5),
    (Decimal(2**60 + 1), 2**60 + 1),
    (Decimal(9 * 10**29 + 1), 9 * 10**29 + 1),
    (Decimal("1E+300"), 1e300),
    (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    (Code(int=5), "00000000-0000-0000-0000-000000000005"),
    (Style.BOLD, "bold"),
    (Style.WHEN, "2026-11-29"),
    (Model(), {"style": "bold", "picture": "https://example.com/a.png", "due": None, "more": None}),
    (Order("Cup", [Size(1)]), {"product_name": "Cup", "when": [{"width": 1, "more": None}]}),
    (Size(1, Order("Cup")), {"width": 1, "more": {"product_name": "Cup", "when": None}}),
    (httpx.URL("https://example.com/a.png"), "https://example.com/a.png"),
    (Media("image", "https://example.com/a.png", {"url": "..."}), "https://example.com/a.png"),
]


@pytest.mark.parametrize(("value", "sent"), PLAIN_FORMS, ids=lambda each: type(each).__name__)
def test_what_has_one_plain_form_is_sent_in_it(value: Any, sent: Any) -> None:
    """Dates, decimals, UUIDs, enumerations, URLs, records and files of results are converted, at any depth."""
    read = json.loads(run_body({"a": value, "b": [{"c": (value,)}]}))["inputs"]
    assert read == {"a": sent, "b": [{"c": [sent]}]}
    assert [type(each) for each in read.values()] == [type(sent), list]


@pytest.mark.parametrize("record", [Order("Cup"), Model(more=Size(1)), Size(2)], ids=lambda each: type(each).__name__)
def test_a_record_is_inputs_as_a_whole(record: Any) -> None:
    """A pydantic model, a dataclass or an attrs object stands for the mapping of its fields."""
    assert run_body(record) == run_body({"inputs": record})[len(b'{"inputs":') : -1]


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (PurePosixPath("cup.png"), "pass its https URL"),
        (b"\x89PNG", "pass its https URL"),
        (bytearray(b"x"), "pass its https URL"),
        (io.BytesIO(b"x"), "pass its https URL"),
        (Style.WHERE, "pass its https URL"),
        (Model(more=PurePosixPath("cup.png")), "pass its https URL"),
        ({1, 2}, "make it a list"),
        (iter([1]), "make it a list"),
        (timedelta(seconds=5), "total_seconds()"),
        (array("d", [1.0]), "pass its tolist()"),
        (Decimal(1) / 3, "pass a string or a float of it"),
        (Decimal("NaN"), "pass a string or a float of it"),
        (RunResult({"images": []}), "run.images[0].url"),
        (pydantic.SecretStr("s"), "pass default="),
        (Opaque(), "pass default="),
        (Order, "pass default="),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_has_no_plain_form_is_refused_with_the_line_that_helps(value: Any, advice: str) -> None:
    """The refusal gives one piece of advice, for this kind of value, and says once that nothing was sent."""
    with pytest.raises(InvalidInputsError) as caught:
        run_body({"a": value})
    said = str(caught.value)
    assert "inputs['a']" in said
    assert advice in said
    assert sum(said.count(each) for each in ("https URL", "default=", "tolist", "a list", "total_seconds")) <= 1
    assert said.endswith(": nothing was sent")
    assert "schema" not in said
    assert said.count("nothing was") == 1


def test_default_converts_the_rest() -> None:
    """`default` is called with what has no plain form, as that of json.dumps, and what it returns is converted."""
    seen: list[Any] = []

    def default(value: Any) -> Any:
        seen.append(value)
        return [str(value), date(2026, 1, 1)]

    inputs: Any = {"a": PurePosixPath("x"), "b": UUID(int=0), "c": Model(more=Opaque())}
    sent = json.loads(run_body(inputs, default))["inputs"]
    assert sent["a"] == ["x", "2026-01-01"]
    assert sent["c"]["more"] == ["<Opaque>", "2026-01-01"]
    assert [str(value) for value in seen] == ["x", "<Opaque>"]


def _refuse(value: Any) -> Any:
    raise TypeError(f"no {type(value).__name__}, please")


@pytest.mark.parametrize(
    ("default", "words"),
    [
        (_refuse, "converting it failed: no Opaque, please"),
        (lambda value: value, "inputs['a'] contains itself"),
        (lambda value: [value], "inputs['a'][0] contains itself"),
        (lambda value: math.nan, "inputs['a'] is nan"),
    ],
)
def test_a_default_that_does_not_help_is_an_error_of_the_inputs(default: Any, words: str) -> None:
    """What `default` raises or returns in vain is refused by its place in the inputs."""
    inputs: Any = {"a": Opaque()}
    with pytest.raises(InvalidInputsError, match=re.escape(words)):
        run_body(inputs, default)


def test_plain_inputs_are_a_copy() -> None:
    """What is changed after it was checked is not sent."""
    tags = ["a"]
    plain = plain_inputs({"tags": tags, "size": Size(1)})
    tags.append("b")
    assert plain == {"tags": ["a"], "size": {"width": 1, "more": None}}


def test_a_default_that_cannot_be_called_is_refused() -> None:
    """An encoder class, or a value, in place of a function is named before anything is sent."""
    with pytest.raises(InvalidArgumentError, match="default='str'"):
        run_body({}, "str")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "inputs",
    [
        None,
        "text",
        b"{}",
        5,
        Order,
        pydantic.RootModel[int](5),
        RunResult({}),
        HUGE,
        [("a", 1)],
        {"a"},
        nested(100_000),
    ],
    ids=lambda inputs: type(inputs).__name__,
)
def test_inputs_must_be_a_mapping(inputs: Any) -> None:
    """Inputs of another type are refused, also when they cannot be shown."""
    with pytest.raises(InvalidInputsError, match="inputs must be a mapping of names to JSON values"):
        run_body(inputs)


def test_circles_are_refused() -> None:
    """A container that holds itself, at whatever distance, is refused by its place."""
    ring: list[Any] = []
    ring.append({"again": (ring,)})
    with pytest.raises(InvalidInputsError, match=re.escape("inputs['a'][0]['again'][0] contains itself")):
        run_body({"a": ring})
    own: dict[str, Any] = {}
    own["self"] = own
    with pytest.raises(InvalidInputsError, match=re.escape("inputs['self'] contains itself")):
        run_body(own)


def test_the_largest_that_is_accepted_is_read_back() -> None:
    """The deepest inputs and the largest number that pass survive JSON's own bounds."""
    inputs = {"deep": nested(199), "wide": 2**10_000 - 1}
    assert json.loads(run_body(inputs)) == {"inputs": inputs}


def test_a_caller_deep_in_its_stack_gets_no_other_error() -> None:
    """With little stack left, inputs are sent or refused: no RecursionError comes out."""

    def from_below(frames: int) -> bytes:
        return run_body({"a": nested(199)}) if frames == 0 else from_below(frames - 1)

    sizes = set()
    for frames in range(0, 850, 50):
        try:
            sizes.add(len(from_below(frames)))
        except InvalidInputsError as error:
            sizes.add(0)
            assert "too deep" in str(error)  # noqa: PT017
    assert 0 in sizes
    assert len(sizes) == 2


def test_a_body_that_is_no_run_is_named_so() -> None:
    """Faults of other bodies are named from the body on."""
    with pytest.raises(InvalidInputsError, match=re.escape("body['nodes'][0]['x'] is nan")):
        json_body({"nodes": [{"x": math.nan}]})


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
        ({"type": "image"}, "http://x/y.png", "https URL, not"),
        ({"type": "image"}, "cup.png", "pass its https URL"),
        ({"type": "image"}, "data:image/png;base64,iVBO", "pass its https URL"),
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
    """A type that is not documented, and a bound that cannot be read, refuse nothing."""
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
    known = (SchemaField(name="f"),)
    assert "is no field" in input_errors(WorkflowSchema(fields=known), {"g": 1})[0]
    for raw in (None, "f", {"f": 1}):
        assert input_errors(WorkflowSchema(fields=known, raw={"fields": raw}), {"g": 1}) == ()


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
