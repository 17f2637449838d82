"""`knouds run`: what it prints, where inputs come from, and `--save`."""

import io
import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from knouds_async._cli.run import show_spinner
from knouds_async.testing import faults, virtual_backend
from tests.cli.conftest import PROMPT

SLUG = "my-thumbnail-pipeline"
CLOSED = -1  # stdin
PutUp = Callable[..., Any]
Here = Callable[..., Any]


def test_the_result_is_addresses_on_stdout_and_words_on_stderr(service: Any) -> None:
    """A pipe gets one address a line and nothing else; id, status and cost are on stderr."""
    ended = service.knouds("run", SLUG, "-i", "product_name=Desk lamp", "-i", "count=2", "--input", "style=3d")
    run = service.emulator.runs[0]
    addresses = ended.out.splitlines()
    assert ended.code == 0
    assert len(addresses) == 2
    assert all(address.startswith("https://") for address in addresses)
    assert ended.err.splitlines()[0] == f"submitted execution {run.execution_id}"
    assert ended.err.splitlines()[-1].startswith("completed in ")
    assert "12 credits" in ended.err
    assert run.inputs == {"product_name": "Desk lamp", "count": 2, "style": "3d"}
    assert len(service.emulator.runs) == 1


def test_json_is_the_whole_execution(service: Any) -> None:
    """With --json stdout is one JSON object that any program can read."""
    ended = service.knouds("run", SLUG, "-i", "product_name=Lamp", "--json")
    given = json.loads(ended.out)
    run = service.emulator.runs[0]
    assert (given["execution_id"], given["status"], given["cost"]) == (run.execution_id, "completed", 12)
    assert given["result"]["images"][0]["url"].startswith("https://")
    assert given["created_at"].endswith("+00:00")
    assert "raw" not in given


@pytest.mark.parametrize("flag", [["--input-file", "-"], ["--input-file=-"]])
def test_inputs_come_from_stdin_and_pairs_win(prompt_service: Any, flag: list[str]) -> None:
    """A file of inputs, or stdin, is taken, and an -i with the same key wins."""
    ended = prompt_service.knouds(
        "run", SLUG, *flag, "-i", "count=3", stdin='{"product_name": "Näme \\u2603", "count": 1}'
    )
    assert ended.code == 0
    assert prompt_service.emulator.runs[0].inputs == {"product_name": "Näme ☃", "count": 3}


def test_pairs_need_no_option(prompt_service: Any) -> None:
    """Inputs stand behind the slug, with or without -i; one that comes twice, or is no pair, is wrong usage."""
    assert prompt_service.knouds("run", SLUG, "product_name=Mug", "count=2", "-i", "style=3d").code == 0
    assert prompt_service.emulator.runs[0].inputs == {"product_name": "Mug", "count": 2, "style": "3d"}
    for args, words in (
        (["a=1", "-i", "a=2"], "a=... is given twice"),
        (["Mug"], "'Mug' is not an input: write key=value"),
    ):
        ended = prompt_service.knouds("run", SLUG, *args)
        assert (ended.code, words in ended.err) == (2, True), ended
    assert len(prompt_service.emulator.runs) == 1


def test_a_value_is_what_the_schema_says(prompt_service: Any) -> None:
    """A number under a text input is its digits, as a cell of a batch is; a file of inputs is JSON and checked."""
    assert prompt_service.knouds("run", SLUG, "product_name=5", "count=1").code == 0
    assert prompt_service.emulator.runs[0].inputs == {"product_name": "5", "count": 1}
    ended = prompt_service.knouds("run", SLUG, "--input-file", "-", stdin='{"product_name": 5}')
    assert ended.code == 2
    assert "'product_name' must be a string, not 5" in ended.err


@pytest.mark.parametrize(
    ("args", "words"), [(["product_nam=Mug"], "'product_nam' is no field"), (["count=9"], "'product_name' is required")]
)
def test_inputs_are_checked_before_a_run_is_paid_for(service: Any, args: list[str], words: str) -> None:
    """A misspelt name, a missing input and a wrong value are wrong usage, and no submit is sent."""
    ended = service.knouds("run", SLUG, *args)
    assert ended.code == 2
    assert words in ended.err
    assert f"`knouds schema {SLUG}` shows what it takes" in ended.err
    assert not service.emulator.requests.by_route["POST /api/workflows/:slug/run?async=true"]


def test_a_key_that_may_not_read_a_schema_may_run(put_up: PutUp) -> None:
    """Without the capability to read workflows, inputs are read as JSON where they are JSON, and the service judges."""
    service = put_up(capabilities=("workflow:run", "execution:read"), **PROMPT)
    assert service.knouds("run", SLUG, "product_name=Mug", "count=2").code == 0
    assert service.emulator.runs[0].inputs == {"product_name": "Mug", "count": 2}


def test_stdin_is_utf_8_whatever_the_locale(prompt_service: Any) -> None:
    """Bytes on stdin are UTF-8, with or without a byte order mark; others are refused before anything is sent."""
    with tempfile.TemporaryFile() as file:
        for data, code in ((b'\xef\xbb\xbf{"product_name": "N\xc3\xa4me"}', 0), (b'{"product_name": "N\xe4me"}', 2)):
            file.seek(0)
            file.truncate()
            file.write(data)
            file.seek(0)
            assert prompt_service.knouds("run", SLUG, "--input-file", "-", stdin=file.fileno(), LC_ALL="C").code == code
    assert [run.inputs for run in prompt_service.emulator.runs] == [{"product_name": "Näme"}]


@pytest.mark.parametrize("args", [["run", SLUG, "--input-file", "-"], ["batch", SLUG, "-", "--ledger", "l.db"]])
def test_a_closed_stdin_is_an_error_in_one_line(service: Any, folder: Any, args: list[str]) -> None:
    """A command that is to read what is closed says so and ends in 2."""
    ended = service.knouds(*args, stdin=CLOSED)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("knouds: stdin is closed: ")
    assert ended.err.count("\n") == 1


def test_a_run_is_waited_for_by_its_id(put_up: PutUp, here: Here) -> None:
    """`knouds wait` gives what `knouds run` would have, and its exit codes: 6 after a timeout, 1 without such a run."""
    service = put_up(duration=2.0)
    begun = here(service, "run", SLUG, "product_name=Mug", "--timeout", "0.1")
    run = service.emulator.runs[0].execution_id
    assert begun.code == 6
    assert "not seen to finish" not in begun.err  # the library's words for it: one message says it, with commands
    short = service.knouds("wait", run, "--timeout", "0.7", "--json")
    assert (short.code, json.loads(short.out)["status"]) == (6, "processing")
    ended = service.knouds("wait", run, "--expected", "0.1")
    assert ended.code == 0
    assert ended.out.startswith("https://")
    assert ended.err.splitlines()[-1].startswith("completed in ")
    assert json.loads(service.knouds("wait", run, "--json").out)["execution_id"] == run
    nope = service.knouds("wait", "nope")
    assert (nope.code, nope.err.count("\n")) == (1, 1)
    assert service.knouds("wait", "../x").code == 2
    assert len(service.emulator.runs) == 1


def test_a_run_that_failed_ends_the_wait_with_1(put_up: PutUp) -> None:
    """A run that has failed is said to be, with its reason."""
    service = put_up(failure_rate=1.0, duration=0.0)
    ended = service.knouds("wait", service.submit("workflows/daily-picture"))
    assert ended.code == 1
    assert "EXECUTION_FAILED" in ended.err


@pytest.mark.slow
@pytest.mark.parametrize("command", ["wait", "status"])
def test_files_are_saved_later(media_service: Any, here: Here, tmp_path: Path, command: str) -> None:
    """A run whose files were not saved gets them by its id."""
    assert here(media_service, *run_args(2)).code == 0
    run = media_service.emulator.runs[0].execution_id
    done = here(media_service, command, run, "--save", str(tmp_path / "files"))
    paths = [str(tmp_path / "files" / f"{run}-{number}.png") for number in (1, 2)]
    assert (done.code, done.out.splitlines()[-2:]) == (0, paths)
    media_service.emulator.media_url = "https://evil.example/media"
    assert here(media_service, *run_args(1)).code == 0
    refused = here(media_service, command, media_service.emulator.runs[1].execution_id, "--save", str(tmp_path))
    assert refused.code == 1
    assert "https://evil.example/" in refused.out


@pytest.mark.slow
def test_a_run_is_polled_when_it_is_expected_to_end(put_up: Callable[..., Any]) -> None:
    """A run that should take a moment is polled again and again in its first seconds, one of an hour is not."""
    service = put_up(duration=60.0)
    assert service.knouds("run", "daily-picture", "--expected", "0.1", "--timeout", "1.2").code == 6
    often = service.emulator.requests.by_route["GET /api/executions/:id"]
    assert service.knouds("run", "daily-picture", "--expected", "3600", "--timeout", "1.2").code == 6
    assert service.emulator.requests.by_route["GET /api/executions/:id"] - often < often


def test_a_model_is_run_by_its_name(service: Any) -> None:
    """With --model the name is a model's."""
    assert service.knouds("run", "suno-v5", "--model", "-i", "mood=calm").code == 0
    assert (service.emulator.runs[0].kind, service.emulator.runs[0].is_async) == ("model", True)


def test_what_cannot_be_submitted_is_run_in_one_request(service: Any) -> None:
    """A provider that cannot be polled is run synchronously, once, and its result is given the same way."""
    human = service.knouds("run", "kling-3", "--model", "-i", "prompt=x")
    exact = service.knouds("run", "fast-sketch", "-i", "prompt=x", "--json")
    assert human.code == exact.code == 0
    assert human.out.startswith("https://")
    assert "in one request" in human.err
    assert json.loads(exact.out)["execution_id"] is None
    assert [(run.target, run.is_async) for run in service.emulator.runs] == [("kling-3", False), ("fast-sketch", False)]


def test_text_and_odd_results_are_shown(service: Any, knouds: Callable[..., Any]) -> None:
    """Text is printed as text, with nothing that could steer a terminal."""
    ended = service.knouds("run", "claude-sonnet", "--model", "-i", "prompt=x")
    assert ended.code == 0
    assert ended.out.strip()
    assert not ended.out.startswith("{")


@pytest.mark.slow
def test_a_terminal_shows_progress(put_up: Callable[..., Any], in_terminal: Callable[..., Any]) -> None:
    """At a terminal a line shows the status and the seconds while the run is in progress, and is removed at the end."""
    service = put_up(duration=1.2)
    ended = in_terminal("run", SLUG, "-i", "product_name=Lamp", env=service.env)
    assert ended.code == 0
    assert "processing, 0 s" in ended.out
    assert "\x1b[2K" in ended.out
    assert ended.out.rstrip().splitlines()[-1].startswith("completed in ")


@pytest.mark.parametrize("anyio_backend", [virtual_backend("asyncio")])
async def test_a_spinner_is_not_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves two columns: the ^C that a terminal writes would begin another line, and this one would stay."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "14")
    async with show_spinner(lambda: "processing"):
        await anyio.sleep(0.3)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) == 12


def test_a_poll_that_fails_for_a_moment_is_survived(service: Any) -> None:
    """A poll that meets an error of a proxy does not end the wait."""
    service.emulator.faults.add(faults.bad_gateway(), route="GET /api/executions/:id", nth=1)
    assert service.knouds("run", "daily-picture").code == 0


def run_args(count: int) -> list[str]:
    """Write the arguments of a run that makes so many images."""
    return ["run", "my-thumbnail-pipeline", "-i", "product_name=Mug", "-i", f"count={count}"]


def test_saves_the_files_and_prints_their_paths(media_service: Any, here: Here, tmp_path: Path) -> None:
    """The folder is made, each file is in it under the run's name, and stdout has their paths."""
    folder = tmp_path / "a" / "b"
    done = here(media_service, *run_args(1), "--save", str(folder))
    run = media_service.emulator.runs[0].execution_id
    assert (done.code, done.out.split()) == (0, [str(folder / f"{run}-1.png")])
    assert (folder / f"{run}-1.png").read_bytes().startswith(b"\x89PNG")


def test_json_names_the_files(media_service: Any, here: Here, tmp_path: Path) -> None:
    """With --json the paths stand beside the result."""
    done = here(media_service, *run_args(1), "--save", str(tmp_path), "--json")
    told = json.loads(done.out)
    assert told["files"] == [str(path) for path in sorted(tmp_path.iterdir())]
    assert told["result"]["images"]


def test_a_file_that_cannot_be_had_leaves_the_result(media_service: Any, here: Here, tmp_path: Path) -> None:
    """When the host refuses, the addresses are printed, a line says why, and the exit code is 1."""
    media_service.emulator.media_url = "https://evil.example/media"
    done = here(media_service, *run_args(1), "--save", str(tmp_path))
    assert done.code == 1
    assert done.out.startswith("https://evil.example/")
    assert "media_hosts" in done.err
    assert len(media_service.emulator.runs) == 1


def test_a_folder_that_cannot_be_made_runs_nothing(media_service: Any, here: Here, tmp_path: Path) -> None:
    """A file in the folder's place is wrong usage, found out before anything is paid for."""
    (tmp_path / "file").write_bytes(b"")
    assert here(media_service, *run_args(1), "--save", str(tmp_path / "file")).code == 2
    assert not media_service.emulator.runs
