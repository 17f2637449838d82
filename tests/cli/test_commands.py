"""The commands that ask one question: what they print for people, for pipes and for programs."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, TextIO

import pytest

from knouds_async.testing import faults

SLUG = "my-thumbnail-pipeline"
COMMANDS = ("demo", "run", "batch", "status", "cancel", "workflows", "schema", "usage", "whoami", "emulator")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(knouds: Callable[..., Any], command: str) -> None:
    """Each command explains itself on stdout and ends with 0, key or no key."""
    ended = knouds(command, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"Usage: knouds {command}")


def test_the_help_names_every_command(knouds: Callable[..., Any]) -> None:
    """`knouds` alone shows the commands, as --help does."""
    ended = knouds()
    assert ended.code == 0
    assert all(f" {command} " in ended.out for command in COMMANDS)
    assert ended.out == knouds("--help").out


def test_the_version_is_the_package_s(knouds: Callable[..., Any]) -> None:
    """`knouds --version` says the version and nothing else."""
    assert knouds("--version").out.strip() == version("knouds-async")


def test_whoami(service: Any) -> None:
    """The account is shown as names and values, and as JSON."""
    assert "tier      business" in service.knouds("whoami").out.splitlines()
    assert json.loads(service.knouds("whoami", "--json").out)["tier"] == "business"


def test_workflows(service: Any, in_terminal: Callable[..., Any]) -> None:
    """A pipe gets tab-separated lines, a program JSON, a terminal a table with a heading."""
    rows = [line.split("\t") for line in service.knouds("workflows").out.splitlines()]
    listed = json.loads(service.knouds("workflows", "--json").out)
    assert rows[0][:3] == [SLUG, "My thumbnail pipeline", "12"]
    assert [row[0] for row in rows] == [one["slug"] for one in listed]
    drawn = in_terminal("workflows", env=service.env)
    assert "slug" in drawn.out
    assert SLUG in drawn.out
    assert "\t" not in drawn.out


def test_schema(service: Any, here: Callable[..., Any]) -> None:
    """The inputs are shown with what they take; the name and the cost are words beside them."""
    ended = service.knouds("schema", SLUG)
    assert ended.out.splitlines()[1] == "style\tpills\tno\tphoto\tphoto, illustration, 3d\t"
    assert ended.out.splitlines()[2].split("\t")[4] == "1 to 4 in steps of 1"
    assert ended.err == "My thumbnail pipeline: Thumbnails for a product; about 12 credits a run\n"
    assert json.loads(here(service, "schema", SLUG, "--json").out)["fields"][0]["name"] == "product_name"
    assert "takes no inputs" in here(service, "schema", "daily-picture").err


def test_a_public_schema_needs_no_key_and_sends_none(service: Any, knouds: Callable[..., Any]) -> None:
    """A public playground is shown without a key; one that is not public is not found."""
    env = {name: text for name, text in service.env.items() if name != "KNOUDS_KEY"}
    assert knouds("schema", SLUG, "--public", env=env).out.startswith("product_name\t")
    assert knouds("schema", "daily-picture", "--public", env=env).code == 2


def test_usage(put_up: Callable[..., Any], here: Callable[..., Any]) -> None:
    """Rows are newest first, filtered and limited, and the message says that there are more."""
    service = put_up(duration=0.0)
    for _ in range(3):
        assert here(service, "run", "daily-picture").code == 0
    assert here(service, "run", "suno-v5", "--model").code == 0
    rows = [line.split("\t") for line in service.knouds("usage").out.splitlines()]
    assert [row[1:4] for row in rows] == [["suno-v5", "completed", "12"], *[["daily-picture", "completed", "12"]] * 3]
    few = here(service, "usage", "--limit", "1", "--workflow", "daily-picture", "--status", "completed")
    assert len(few.out.splitlines()) == 1
    assert few.err.startswith("1 of 3 rows")
    every = json.loads(here(service, "usage", "--all", "--model", "suno-v5", "--json").out)
    assert [row["source"] for row in every] == ["api-slim"]


def test_usage_without_a_row_says_so(service: Any, here: Callable[..., Any]) -> None:
    """A filter without matches prints nothing on stdout and a message on stderr; as JSON it is an empty list."""
    ended = here(service, "usage", "--status", "complete")
    assert (ended.code, ended.out, ended.err) == (0, "", "no such runs\n")
    assert here(service, "usage", "--status", "complete", "--json").out == "[]\n"


def test_a_request_id_is_whole_at_a_narrow_terminal(service: Any, in_terminal: Callable[..., Any]) -> None:
    """It is there to be copied: other columns are broken before it is."""
    assert service.knouds("run", "my-thumbnail-pipeline", "-i", "product_name=Lamp").code == 0
    row = service.knouds("usage").out.split("\t")
    shown = in_terminal("usage", env=service.env | {"COLUMNS": "80"}).out
    assert row[-1].strip() in shown
    assert all(len(line) <= 80 for line in shown.splitlines() if "\x1b" not in line)  # all but the bold heading


def test_status_and_cancel(put_up: Callable[..., Any], here: Callable[..., Any]) -> None:
    """A run can be polled and cancelled by its id; a finished one is shown with its status and result."""
    service = put_up(duration=60.0, cancel_delay=0.0, late_cancel="completed")
    waited = here(service, "run", "daily-picture", "--timeout", "0.1", "--json")
    execution_id = json.loads(waited.out)["execution_id"]
    assert "status     processing" in service.knouds("status", execution_id).out
    cancelled = service.knouds("cancel", execution_id)
    assert cancelled.code == 0
    assert "ancel" in cancelled.out
    looked = json.loads(here(service, "status", execution_id, "--json").out)
    assert (looked["status"], looked["cost"]) == ("cancelled", 12)
    again = here(service, "cancel", execution_id, "--json")
    assert (again.code, json.loads(again.out)["status"]) == (0, "cancelled")


def test_a_finished_run_shows_its_result(service: Any, here: Callable[..., Any]) -> None:
    """The state of a completed run ends with the addresses of its files, one per line."""
    ran = here(service, "run", "daily-picture")
    shown = here(service, "status", service.emulator.runs[0].execution_id)
    assert "status     completed" in shown.out
    assert shown.out.endswith(ran.out)


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error(service: Any) -> None:
    """When the reader of a pipe has gone, the process ends with 0 and without a word."""
    with subprocess.Popen(
        [sys.executable, "-m", "knouds_async", "workflows"], env=service.env, stdout=-1, stderr=-1
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_help_that_nobody_reads_is_no_error(knouds: Callable[..., Any], deaf_pipe: TextIO) -> None:
    """The help too ends with 0 when its reader has gone."""
    ended = knouds("--help", stdout=deaf_pipe)
    assert (ended.code, ended.err) == (0, "")


def test_words_that_nobody_reads_stop_nothing(service: Any, deaf_pipe: TextIO) -> None:
    """A command whose stderr has been closed still gives its result and its code."""
    ended = service.knouds("run", "daily-picture", stderr=deaf_pipe)
    assert ended.code == 0
    assert ended.out.startswith("https://")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes the streams")
def test_streams_that_are_not_there_are_no_error(service: Any) -> None:
    """A command that was started without stdout and stderr ends as it would with them."""
    command = f"exec {sys.executable} -m knouds_async whoami >&- 2>&-"
    done = subprocess.run(["/bin/sh", "-c", command], env=service.env, timeout=60, check=False)  # noqa: S603
    assert done.returncode == 0


def test_a_cancel_may_take_a_moment(put_up: Callable[..., Any], here: Callable[..., Any]) -> None:
    """A cancel that has not landed yet says how to see when it has."""
    service = put_up(duration=600.0, cancel_delay=300.0)
    execution_id = json.loads(here(service, "run", "daily-picture", "--timeout", "0.1", "--json").out)["execution_id"]
    cancelled = here(service, "cancel", execution_id)
    assert "cancel_requested" in cancelled.out
    assert f"`knouds status {execution_id}`" in cancelled.err


def test_a_warning_of_the_library_is_seen(service: Any, here: Callable[..., Any]) -> None:
    """What the library logs as a warning is said on stderr, in one line."""
    service.emulator.faults.add(faults.unknown_status("resting"), route="GET /api/executions/:id", nth=1)
    ended = here(service, "run", "daily-picture")
    assert ended.code == 0
    assert any(line.startswith("knouds: execution ") and "resting" in line for line in ended.err.splitlines())


def test_without_the_extra_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, knouds: Callable[..., Any]
) -> None:
    """Without cyclopts one line names the extra, and the exit code is 1."""
    monkeypatch.setitem(sys.modules, "cyclopts", None)
    monkeypatch.delitem(sys.modules, "knouds_async._cli.commands", raising=False)
    ended = knouds("whoami")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "knouds: the command line is an optional extra: pip install 'knouds-async[cli]'\n"


@pytest.mark.slow
def test_help_imports_no_server() -> None:
    """Showing the help, or asking the service, loads neither the emulator nor its server, nor what runs a batch."""
    code = (
        "import sys; from knouds_async._cli.commands import run_knouds as run; "
        "run(['whoami', '--help']); run(['batch', '--help']); "
        "unwanted = ('uvicorn', 'starlette', 'knouds_async.testing', 'knouds_async._cli.batch'); "
        "print([name for name in unwanted if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)  # noqa: S603
    assert done.stdout.rstrip().endswith("[]")
