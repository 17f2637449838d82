"""What is said of an error, and what may be written to a terminal."""

import pickle
import unicodedata
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async import ExecutionState, Failure, errors
from knouds_async._cli import output
from knouds_async._cli.client import print_run_result, print_state
from knouds_async._cli.errors import format_error
from knouds_async._cli.output import one_line, printable

TEXTS = st.text(max_size=200)
STEERING = {chr(code) for code in range(0xA0) if unicodedata.category(chr(code)) == "Cc"} | {"\u202e", "\u2066"}


@given(TEXTS)
def test_no_error_takes_two_lines_or_steers_a_terminal(text: str) -> None:
    """Whatever a service says, it is shown in one line of printable characters."""
    for error in (
        errors.ServiceError(text, status=500, code=text),
        errors.ExecutionFailedError(text, code=text, execution_id="x"),
        errors.InvalidInputsError(text, status=400),
        OSError(5, text),
    ):
        assert STEERING.isdisjoint(format_error(error))


@given(TEXTS)
def test_what_is_printed_keeps_its_lines_and_loses_its_controls(text: str) -> None:
    """Line ends and tabs stay in a text; escape sequences become visible."""
    shown = printable(text)
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert shown.count("\n") == text.count("\n")
    assert STEERING.isdisjoint(one_line(text))


@pytest.mark.parametrize("text", ["2 500\u00a0km", "\u3000東京", "\U0001f468\u200d\U0001f469", "naïve", "\t1\n2"])
def test_the_world_s_texts_are_left_alone(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Spaces, joiners and letters of any language are no controls."""
    assert printable(text) == text
    output.print_result(text)
    assert capsys.readouterr().out == f"{text}\n"


@pytest.mark.parametrize(
    ("error", "has", "lacks"),
    [
        (errors.InvalidInputsError("no", status=400), "`knouds schema SLUG`", "await"),
        (errors.InvalidSlugError("no"), "`knouds workflows`", "await"),
        (errors.RateLimitError("no", status=429), "wait", "Retries"),
        (errors.UnexpectedRedirectError("no", status=307), "--base-url", "base_url"),
        (errors.ServiceError("no", status=500, may_have_run=True), "`knouds usage`", "Try again later"),
        (
            errors.SubmissionUnknownError(target="models/suno-v5", sent_at=datetime(2026, 5, 1, tzinfo=UTC), seen="-"),
            "`knouds usage --model suno-v5`",
            "find_submission",
        ),
        (
            errors.SubmissionUnknownError(
                target="models/suno-v5", sent_at=datetime(2026, 5, 1, tzinfo=UTC), seen="-", execution_id="a1"
            ),
            "`knouds status a1`",
            "attach",
        ),
        (
            errors.InvalidArgumentError("max_credits=-3.0: must be credits, zero or more, or None"),
            "--max-credits -3.0: must be credits, zero or more",
            "None",
        ),
        (errors.InvalidArgumentError("limit=900: must be less"), "--limit 900: must be less", "limit="),
        (errors.InvalidArgumentError("jobs='a': must be jobs"), "jobs='a': must be jobs", "--"),
        (KeyboardInterrupt(), "interrupted", "Keyboard"),
    ],
)
def test_advice_is_a_command_and_not_python(error: BaseException, has: str, lacks: str) -> None:
    """Where the library advises a call, the command line advises a command."""
    assert has in format_error(error)
    assert lacks not in format_error(error)
    assert pickle.loads(pickle.dumps(error)).args == error.args  # noqa: S301


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


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "yes"),
        (12.0, "12"),
        (0.255, "0.255"),
        (("a", "b"), "a, b"),
        ({"a": 1}, '{"a": 1}'),
        (datetime(2026, 5, 8, 19, 29, 55, tzinfo=UTC), "2026-05-08 19:29:55"),
    ],
)
def test_a_cell_is_short(value: object, text: str) -> None:
    """Values in tables have no needless digits, and nothing where there is nothing."""
    assert output.format_cell(value) == text
