"""The commands that ask one question: what they print for people, for pipes and for programs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import attrs
import pytest

from knouds_async import UsageRow
from knouds_async._cli.commands import parse_since, sum_usage
from knouds_async.testing import Fault, Response, faults

SLUG = "my-thumbnail-pipeline"
COMMANDS = (
    "demo",
    "run",
    "batch",
    "status",
    "wait",
    "cancel",
    "workflows",
    "schema",
    "usage",
    "whoami",
    "login",
    "emulator",
)


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


def test_no_workflows_are_said_to_be_none(put_up: Callable[..., Any]) -> None:
    """That an account has no workflows is said on stderr, beside the empty list of the JSON too."""
    service = put_up(workflows=())
    for options, out in (((), ""), (("--json",), "[]\n")):
        listed = service.knouds("workflows", *options)
        assert (listed.code, listed.out, listed.err) == (0, out, "no workflows\n")


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
    for target in (*["workflows/daily-picture"] * 3, "models/suno-v5"):
        service.submit(target)
    rows = [line.split("\t") for line in service.knouds("usage").out.splitlines()]
    assert [row[1:4] for row in rows] == [["suno-v5", "completed", "12"], *[["daily-picture", "completed", "12"]] * 3]
    few = here(service, "usage", "--limit", "1", "--workflow", "daily-picture", "--status", "completed")
    assert len(few.out.splitlines()) == 1
    assert few.err.startswith("1 of 3 rows")
    every = json.loads(here(service, "usage", "--all", "--model", "suno-v5", "--json").out)
    assert [row["source"] for row in every] == ["api-slim"]


def test_usage_without_a_row_says_so(service: Any, here: Callable[..., Any]) -> None:
    """A filter without matches prints nothing on stdout and a message on stderr; as JSON it is an empty list."""
    ended = here(service, "usage", "--status", "failed")
    assert (ended.code, ended.out, ended.err) == (0, "", "no such runs\n")
    assert here(service, "usage", "--status", "failed", "--json").out == "[]\n"
    assert here(service, "usage", "--status", "failed", "--by", "day").err == "no such runs\n"


@pytest.mark.parametrize("form", [[], ["--json"], ["--by", "target"]])
def test_a_status_that_is_not_documented_is_asked_for_and_named(
    service: Any, here: Callable[..., Any], form: list[str]
) -> None:
    """The service may add a status, so it decides; where it knows no run of it, the message lists those it has."""
    ended = here(service, "usage", "--status", "complete", *form)
    assert ended.code == 0
    assert ended.err == "no such runs: --status complete is not processing, completed or failed\n"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["usage", "workflows", "schema"])
def test_no_word_is_cut_at_a_narrow_terminal(service: Any, in_terminal: Callable[..., Any], command: str) -> None:
    """What does not fit 80 columns stands below its row: ids and names are there to be copied."""
    assert service.knouds("run", SLUG, "-i", "product_name=Lamp").code == 0
    args = (command, SLUG) if command == "schema" else (command,)
    cells = {cell for line in service.knouds(*args).out.splitlines() for cell in line.split("\t")}
    shown = in_terminal(*args, env=service.env | {"COLUMNS": "80"}).out
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert {cell for cell in cells if cell not in " ".join(shown.split())} == set()


def make_rows() -> list[UsageRow]:
    """Return rows of two targets, two days and three statuses."""
    first, second = datetime(2026, 5, 1, 23, 59, tzinfo=UTC), datetime(2026, 5, 2, tzinfo=UTC)
    return [
        UsageRow(workflow_slug="a", status="completed", credits_cost=0.1, created_at=second),
        UsageRow(workflow_slug="a", status="failed", credits_cost=0.2, created_at=second),
        UsageRow(model_ids=("suno-v5",), status="completed", credits_cost=7, created_at=first),
        UsageRow(model_ids=("suno-v5",), status="processing", created_at=None),
    ]


@pytest.mark.parametrize(
    ("by", "sums"),
    [
        ("target", [("models/suno-v5", 2, 1, 0, 7), ("workflows/a", 2, 1, 1, 0.3)]),
        ("day", [("", 1, 0, 0, 0), ("2026-05-01", 1, 1, 0, 7), ("2026-05-02", 2, 1, 1, 0.3)]),
        ("status", [("completed", 2, 2, 0, 7.1), ("failed", 1, 0, 1, 0.2), ("processing", 1, 0, 0, 0)]),
    ],
)
def test_rows_are_summed(by: str, sums: list[tuple[Any, ...]]) -> None:
    """Runs, completed and failed ones and credits add up, for each target, day of UTC, or status."""
    assert [attrs.astuple(each) for each in sum_usage(make_rows(), by)] == sums


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("7d", datetime(2026, 5, 1, 12, tzinfo=UTC)),
        ("2w", datetime(2026, 4, 24, 12, tzinfo=UTC)),
        ("12h", datetime(2026, 5, 8, tzinfo=UTC)),
        ("30m", datetime(2026, 5, 8, 11, 30, tzinfo=UTC)),
        ("2026-05-01", datetime(2026, 5, 1, tzinfo=UTC)),
        ("2026-05-01T10:00+02:00", datetime(2026, 5, 1, 8, tzinfo=UTC)),
    ],
)
def test_a_span_or_a_date_is_a_start(text: str, start: datetime) -> None:
    """A span counts back from now, a date is of UTC unless it says otherwise."""
    assert parse_since(text, datetime(2026, 5, 8, 12, tzinfo=UTC)) == start


@pytest.mark.parametrize(
    "text", ["", "7", "7x", "-7d", "0d", "7 d", "\u0667d", "999999w", "2026-13-01", "2999-01-01", "d"]
)
def test_what_is_neither_is_wrong_usage(service: Any, text: str) -> None:
    """A `--since` that is no span and no past date ends in 2 before anything is asked."""
    ended = service.knouds("usage", f"--since={text}")
    assert (ended.code, ended.out) == (2, "")
    assert "such as 7d" in ended.err
    assert not service.emulator.requests.count


def test_usage_is_summed(put_up: Callable[..., Any], in_terminal: Callable[..., Any]) -> None:
    """Sums are lines for a pipe, objects for programs, and bars at a terminal; the rows of all pages count."""
    service = put_up(duration=0.0, epoch=time.time())
    for target in (*["workflows/daily-picture"] * 2, "models/suno-v5"):
        service.submit(target)
    ended = service.knouds("usage", "--by", "target", "--since", "1d")
    assert ended.out.splitlines() == ["workflows/daily-picture\t2\t2\t0\t24", "models/suno-v5\t1\t1\t0\t12"]
    assert ended.err == "3 runs, 0 failures, 36 credits\n"
    (sums,) = json.loads(service.knouds("usage", "--by", "status", "--json").out)
    assert sums == {"key": "completed", "runs": 3, "completed": 3, "failed": 0, "credits": 36}
    drawn = in_terminal("usage", "--by", "target", env=service.env).out.splitlines()
    assert [line.count("\u2588") for line in drawn[1:3]] == [20, 10]
    assert json.loads(service.knouds("usage", "--by", "day", "--status", "failed", "--json").out) == []


def test_older_rows_are_left_out(put_up: Callable[..., Any]) -> None:
    """A span leaves out what began before it, in the list and in the sums."""
    service = put_up(duration=0.0, epoch=time.time() - 48 * 3600)
    service.submit("workflows/daily-picture")
    assert service.knouds("usage", "--since", "1d").err == "no such runs\n"
    assert len(service.knouds("usage", "--since", "3d").out.splitlines()) == 1
    assert json.loads(service.knouds("usage", "--by", "day", "--since", "1d", "--json").out) == []


@pytest.mark.parametrize("option", [["--all"], ["--since", "1d"], ["--by", "day"]])
def test_a_limit_is_of_a_list(service: Any, option: list[str]) -> None:
    """A number of rows beside what takes every row is wrong usage."""
    ended = service.knouds("usage", "--limit", "5", *option)
    assert ended.code == 2
    assert f"--limit and {option[0]} exclude each other" in ended.err
    assert service.knouds("usage", "--by", "moon").code == 2


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


def test_a_finished_run_shows_its_result(put_up: Callable[..., Any], here: Callable[..., Any]) -> None:
    """The state of a completed run ends with the addresses of its files, one per line, as a wait for it prints them."""
    service = put_up(duration=0.0)
    execution_id = service.submit("workflows/daily-picture")
    ran = here(service, "wait", execution_id)
    assert ran.out.startswith("https://")
    shown = here(service, "status", execution_id)
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


HOSTILE = "\x1b[2J\x1b]0;pwn\x07\x9b31m\u202e\r\n\x00x"
EXECUTION = {"executionId": "e1", "requestId": HOSTILE, "status": "completed", "workflowSlug": HOSTILE}
ANSWERS: dict[str, Any] = {
    "GET /api/whoami": {"user": {"id": HOSTILE, "email": HOSTILE, "role": HOSTILE, "tier": HOSTILE, "approved": True}},
    "GET /api/workflows": [{"slug": HOSTILE, "name": HOSTILE, "updatedAt": HOSTILE}],
    "GET /api/workflows/:slug/schema": {
        "name": HOSTILE,
        "description": HOSTILE,
        "fields": [{"name": HOSTILE, "type": HOSTILE, "options": [HOSTILE], "helperText": HOSTILE, "default": HOSTILE}],
    },
    "GET /api/usage": {
        "rows": [{"id": 1, "workflowSlug": HOSTILE, "status": HOSTILE, "requestId": HOSTILE, "errorCode": HOSTILE}],
        "total": 1,
    },
    "GET /api/executions/:id": EXECUTION | {"result": {"text": HOSTILE, "images": [{"url": f"https://a/{HOSTILE}"}]}},
    "POST /api/executions/:id/cancel": EXECUTION | {"status": "failed", "error": {"code": HOSTILE, "message": HOSTILE}},
}


def _answer(response: Response, _: object) -> Response:
    return response


@pytest.mark.parametrize("is_error", [False, True])
def test_nothing_that_the_service_says_steers_a_terminal(
    service: Any, in_terminal: Callable[..., Any], is_error: bool
) -> None:
    """Escape sequences in names, results and errors are shown, not executed, by every command."""
    for route, answer in ANSWERS.items():
        body = {"error": HOSTILE, "code": HOSTILE} if is_error else answer
        response = Response(418 if is_error else 200, {}, json.dumps(body).encode())
        service.emulator.faults.add(Fault("hostile", "before", partial(_answer, response)), route=route)
    for args in (
        ("whoami",),
        ("workflows",),
        ("schema", "x"),
        ("usage",),
        ("usage", "--by", "target"),
        ("usage", "--by", "status"),
        ("status", "e1"),
        ("wait", "e1", "--expected", "0.1"),
        ("cancel", "e1"),
        ("run", "x", "y=1"),
    ):
        shown = in_terminal(*args, env=service.env | {"TERM": "dumb"}).out
        assert not set(shown) & {"\x1b", "\x07", "\x9b", "\u202e", "\x00"}, args
        assert "\\x1b[2J" in shown, args
        assert shown.count("\r") == shown.count("\r\n"), args
        exact = service.knouds(*args, "--json").out
        assert not set(exact) & set(HOSTILE) - {"\n", *"2J]0;pwn31mx["}, args


def test_completion_is_installed(knouds: Callable[..., Any], tmp_path: Path) -> None:
    """`--install-completion` writes what the shell reads, which knows the commands."""
    env = {name: text for name, text in os.environ.items() if name not in ("ZSH_VERSION", "FISH_VERSION")}
    ended = knouds("--install-completion", env=env | {"HOME": str(tmp_path), "BASH_VERSION": "5"})
    assert ended.code == 0, ended
    (script,) = [path for path in tmp_path.rglob("*") if path.is_file() and path.name == "knouds"]
    assert all(command in script.read_text() for command in COMMANDS)


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
