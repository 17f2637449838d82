"""What may be written to a terminal."""

import logging
import unicodedata
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async._cli import output
from knouds_async._cli.output import draw_bar, fill_lines, one_line, printable, wrap_words

TEXTS = st.text(max_size=200)
STEERING = {chr(code) for code in range(0xA0) if unicodedata.category(chr(code)) == "Cc"} | {"\u202e", "\u2066"}


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


WORDS = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=9)


@given(st.lists(WORDS, max_size=30), st.integers(20, 60))
def test_no_word_is_broken(words: list[str], width: int) -> None:
    """What does not fit a line continues in the next one, between words."""
    lines = list(fill_lines([" ".join(words[n : n + 3]) for n in range(0, len(words), 3)], width))
    assert all(len(line) <= width for line in lines)
    assert " ".join(lines).replace(";", "").split() == words


def test_a_bar_is_as_long_as_its_share() -> None:
    """The longest takes all columns, the least a sliver, and nothing has none."""
    assert [draw_bar(share, 4) for share in (1, 0.5, 0.0001, 0)] == ["\u2588" * 4, "\u2588" * 2, "\u258f", ""]


def test_a_command_in_a_message_is_not_broken() -> None:
    """Words are kept whole, and so are commands, which are there to be copied; a line that fits stays as it is."""
    line = "knouds: Check with `knouds usage --workflow my-thumbnail-pipeline` before you run it again"
    assert wrap_words(line, 100) == [line]
    assert wrap_words(line, 30) == [
        "knouds: Check with",
        "  `knouds usage --workflow my-thumbnail-pipeline`",
        "  before you run it again",
    ]
    assert wrap_words("knouds: Resume with: knouds batch a b --out c", 20) == [
        "knouds: Resume with:",
        "  knouds batch a b --out c",
    ]
    assert wrap_words("", 20) == [""]


def test_results_come_before_the_messages_after_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both streams go to one file or pipe, which keeps results back, they are in the order of the command."""
    with (tmp_path / "both").open("a") as results, (tmp_path / "both").open("a") as messages:
        monkeypatch.setattr("sys.stdout", results)
        monkeypatch.setattr("sys.stderr", messages)
        output.print_result("rows")
        output.print_info("2 of 3 rows")
        output.print_table(["row"], [["more"]])
        output.print_error("a warning")
    assert (tmp_path / "both").read_text() == "rows\n2 of 3 rows\nmore\nknouds: a warning\n"


def test_a_warning_is_printed_unless_commands_say_it_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    """An id that must not be lost is printed; that runs are in flight is not, in the words of the library."""
    log = logging.getLogger("knouds_async")
    with output.safe_streams():
        for event in ("runs_in_flight", "batch_left", "files_not_saved", "submit_not_awaited"):
            log.warning("%s happened", event, extra={"event_name": event})
    assert capsys.readouterr().err == "knouds: submit_not_awaited happened\n"
