"""How the state and the result of a run are printed."""

import pytest

from knouds_async import ExecutionState, Failure
from knouds_async._cli.client import print_run_result, print_state


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
