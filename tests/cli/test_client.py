"""The inputs of a run on the command line, and how its state and result are printed."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async import ExecutionState, Failure
from knouds_async._cli.client import print_run_result, print_state, read_inputs, read_pairs, read_value
from knouds_async._cli.errors import UsageError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-2.5", -2.5),
        ("true", True),
        ("null", None),
        ('"3"', "3"),
        ("[1, 2]", [1, 2]),
        ('{"a": 1}', {"a": 1}),
        ("photo", "photo"),
        ("", ""),
        ("a=b", "a=b"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_a_value_is_json_when_it_reads_as_json(text: str, value: object) -> None:
    """Numbers, switches, lists and objects are JSON; everything else is the text as it stands."""
    assert read_value(text) == value
    assert read_pairs([f"key={text}"]) == {"key": value}


@given(st.text())
def test_no_text_is_refused_as_a_value(text: str) -> None:
    """Whatever the text, a value comes of it that JSON can say."""
    json.dumps(read_value(text), allow_nan=False)


@pytest.mark.parametrize("text", ["[]", "3", "{", "NaN", "", "\x00"])
def test_a_file_that_holds_no_object_is_refused(tmp_path: Path, text: str) -> None:
    """A file of inputs must be a JSON object, and the file is named when it is not."""
    file = tmp_path / "inputs.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"inputs\.json"):
        read_inputs([], file)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """A file that an editor saved with a byte order mark is read."""
    file = tmp_path / "inputs.json"
    file.write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_inputs(["b=2"], file) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("result", "lines"),
    [
        (
            {"images": [{"url": "https://a/1.png"}], "videos": ["https://a/2.mp4"]},
            ["https://a/1.png", "https://a/2.mp4"],
        ),
        ({"text": ["one", "two"], "audios": [{"url": "https://a/3.mp3"}]}, ["one", "two", "https://a/3.mp3"]),
        ({"images": [{"url": "https://a/\n\x1b[2J"}]}, ["https://a/ \\x1b[2J"]),
        ("plain", ["plain"]),
        ({"odd": [1]}, ["{", '  "odd": [', "    1", "  ]", "}"]),
    ],
)
def test_a_result_is_text_and_addresses(capsys: pytest.CaptureFixture[str], result: object, lines: list[str]) -> None:
    """A result is shown as its text and one address a line, and as JSON where it has neither."""
    print_run_result(result)
    assert capsys.readouterr().out.splitlines() == lines


def test_a_failed_state_shows_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """The state of a failed run shows the code and the message, in one line."""
    print_state(ExecutionState(execution_id="x", status="failed", error=Failure("BAD", "went\nwrong")))
    assert "error      BAD went wrong" in capsys.readouterr().out.splitlines()
