"""`knouds batch`: a file of jobs in, a file of results out, each job once, in one run or in several.

Given again after its end, Ctrl-C, a kill at any moment, or a decision about an unknown run; and with `--save`.
"""

import asyncio
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from knouds_async import ExecutionState, SQLiteLedger, Target
from knouds_async._cli.batch import BatchOptions, _why_not
from knouds_async.ledgers import Entry
from knouds_async.testing import ApiKey, Fault, Response, faults
from tests.cli.conftest import PROMPT

SLUG = "my-thumbnail-pipeline"
SUBMIT = "POST /api/workflows/:slug/run?async=true"
PROGRAM = [sys.executable, "-m", "knouds_async"]
PutUp = Callable[..., Any]
Here = Callable[..., Any]
QUICK = ("--expected", "0.1")
BATCH = ("batch", SLUG, "jobs.jsonl", "--out", "out.jsonl")
MEDIA = "GET /media/:name"
SAVING = ("batch", "my-thumbnail-pipeline", "jobs.jsonl", "--out", "out.jsonl", "--save", "files")


def test_each_job_is_run_and_has_a_line(service: Any, here: Here, folder: Any) -> None:
    """Every job is run once, its result is a line of the file, and one line on stderr sums it up."""
    folder.write_jobs(20)
    done = here(service, "batch", SLUG, "jobs.jsonl", "--out", "out.jsonl")
    lines = folder.results()
    assert (done.code, done.out) == (0, ""), done
    assert done.err.startswith("20 jobs done: 20 completed; 240 credits spent; 0:0")
    assert sorted(lines) == sorted(f"j{n}" for n in range(20))
    for run in service.emulator.runs:
        number = run.inputs["product_name"].split()[-1]
        line = lines[f"j{number}"]
        assert (line["status"], line["execution_id"], line["cost"]) == ("completed", run.execution_id, 12)
        assert line["result"]["images"][0]["url"].startswith("https://")
    assert len(service.emulator.runs) == 20


def test_without_out_the_lines_are_on_stdout(service: Any, here: Here, folder: Any) -> None:
    """Results go to stdout when no file is named, each as JSON in a pipe."""
    folder.write_jobs(3)
    done = here(service, "batch", SLUG, "jobs.jsonl")
    lines = {line["key"]: line for line in map(json.loads, done.out.splitlines())}
    assert sorted(lines) == ["j0", "j1", "j2"]


@pytest.mark.slow
def test_a_terminal_gets_short_lines_and_sees_how_it_goes(put_up: PutUp, in_terminal: Here, folder: Any) -> None:
    """Without --out a terminal gets a line for each job, above a picture of the whole that is gone at the end."""
    service = put_up(duration=1.0, failure_rate=0.3, seed=3)
    folder.write_jobs(12)
    env = service.env | {"COLUMNS": "80"}
    batch = in_terminal("batch", SLUG, "jobs.jsonl", "--max-credits", "1000", env=env)
    assert batch.code == 1, batch.out
    assert "of 12 done, " in batch.out
    assert "of 1,000 credits spent" in batch.out
    words = " ".join(batch.out.split())
    for run in service.emulator.runs:
        key = f"j{run.inputs['product_name'].split()[-1]}"
        assert f"{key} completed 12 credits https://" in words or f"{key} failed " in words
    assert "{" not in batch.out
    assert "\x1b[2K12 jobs done: " in batch.out.rstrip().splitlines()[-1]


def test_json_sums_it_up_for_programs(service: Any, here: Here, folder: Any) -> None:
    """With --out and --json stdout is one JSON object that counts the jobs by how they ended."""
    folder.write_jobs(4)
    done = here(service, "batch", SLUG, "jobs.jsonl", "--out", "out.jsonl", "--json", "--max-credits", "1000")
    told = json.loads(done.out)
    assert told["completed"] == told["total"] == told["submitted"] == 4
    assert told["failed"] == told["cancelled"] == told["not_run"] == told["unknown"] == told["in_flight"] == 0
    assert (told["credits_spent"], told["max_credits"], told["exit_code"]) == (48, 1000, 0)
    assert '"credits_spent": 48,' in done.out
    assert (told["ledger"], told["out"]) == ("jobs.jsonl.ledger", "out.jsonl")


def test_csv_is_read_by_the_workflow_s_types(prompt_service: Any, here: Here, folder: Any) -> None:
    """A cell under a text input is a string even if it is a number, others are read as JSON."""
    Path("jobs.csv").write_text("product_name,count,key,style\n1984,2,a,\nMug,1,b,3d\n")
    assert here(prompt_service, "batch", SLUG, "jobs.csv", "--out", "out.jsonl").code == 0
    assert sorted(run.inputs["product_name"] for run in prompt_service.emulator.runs) == ["1984", "Mug"]
    assert {"product_name": "1984", "count": 2} in [run.inputs for run in prompt_service.emulator.runs]
    assert sorted(folder.results()) == ["a", "b"]


@pytest.mark.parametrize("text", ['{"product_name": "Mug"}\n', "product_name\nMug\n"])
def test_jobs_come_from_stdin(prompt_service: Any, folder: Any, text: str) -> None:
    """Jobs are read from a pipe, in JSON Lines or CSV; they get keys of their own."""
    ended = prompt_service.knouds("batch", SLUG, "-", "--ledger", "l.db", stdin=text)
    assert ended.code == 0, ended
    assert json.loads(ended.out)["status"] == "completed"
    assert [run.inputs for run in prompt_service.emulator.runs] == [{"product_name": "Mug"}]


def test_pipes_of_a_shell_are_jobs_and_results(prompt_service: Any, folder: Any) -> None:
    """Jobs come from what a shell opens for `<(...)`, and results go to `>(...)`; a ledger has to be named."""
    source, sink = os.pipe()
    os.write(sink, b"product_name;count\nMug;2\n")
    os.close(sink)
    results, out = os.pipe()
    args = ("batch", SLUG, f"/dev/fd/{source}", "--out", f"/dev/fd/{out}")
    unnamed = prompt_service.knouds(*args)
    assert (unnamed.code, "need --ledger FILE" in unnamed.err) == (2, True)
    done = prompt_service.knouds(*args, "--ledger", "l.db")
    assert (done.code, done.out) == (0, ""), done
    assert json.loads(os.read(results, 65536))["status"] == "completed"
    assert [run.inputs for run in prompt_service.emulator.runs] == [{"product_name": "Mug", "count": 2}]
    for each in (source, results, out):
        os.close(each)


@pytest.mark.parametrize("out", ["-", "/dev/stdout", "/dev/fd/1"])
def test_stdout_has_many_names(prompt_service: Any, here: Here, folder: Any, out: str) -> None:
    """Results that are to go to stdout by one of its names go there as without --out."""
    folder.write_jobs(1)
    done = here(prompt_service, "batch", SLUG, "jobs.jsonl", "--out", out, "--json")
    assert (done.code, json.loads(done.out)["key"]) == (0, "j0")


@pytest.mark.parametrize("line", ['{"product_name": "a", "product_name": "b"}', '{"inputs": {"x": 1}, "inputs": {}}'])
def test_what_would_lose_an_input_is_not_paid_for(service: Any, here: Here, folder: Any, line: str) -> None:
    """A name that comes twice in an object is refused with its line before anything is run."""
    Path("jobs.jsonl").write_text(f'{{"product_name": "x"}}\n{line}\n')
    done = here(service, "batch", SLUG, "jobs.jsonl")
    assert done.code == 2
    assert "jobs.jsonl line 2: the name '" in done.err
    assert "comes twice" in done.err
    assert not service.emulator.runs


def test_a_faulty_line_of_a_pipe_ends_what_was_begun(prompt_service: Any, folder: Any) -> None:
    """Jobs from a pipe are run as they come: a line that is no job ends the batch, and it says how to continue."""
    ended = prompt_service.knouds(
        "batch", SLUG, "-", "--ledger", "l.db", "--out", "o", stdin='{"product_name": "x"}\n3\n'
    )
    assert ended.code == 1, ended
    assert [line["status"] for line in folder.lines("o")] == ["completed"]
    assert "stopped: stdin line 2: not a JSON object" in ended.err
    assert f"Resume with: knouds batch {SLUG} - --ledger l.db --out o" in ended.err


def test_stdin_is_read_from_where_it_stands(prompt_service: Any, folder: Any) -> None:
    """Lines of a file on stdin that another command has taken are not jobs."""
    Path("jobs.jsonl").write_text('a note\n{"product_name": "Mug"}\n')
    with Path("jobs.jsonl").open("rb", buffering=0) as stream:
        stream.seek(len("a note\n"))
        done = prompt_service.knouds("batch", SLUG, "-", "--ledger", "l.db", stdin=stream.fileno())
    assert done.code == 0, done
    assert len(prompt_service.emulator.runs) == 1


@pytest.mark.parametrize(("text", "code"), [('{"product_name": "x"}\n3\n', 2), ('{"product_name": "x"}\n', 0)])
def test_stdin_that_is_a_file_is_checked_first(prompt_service: Any, folder: Any, text: str, code: int) -> None:
    """A file on stdin is read twice, like one that is named: a faulty line is found before anything is run."""
    Path("jobs.jsonl").write_text(text)
    done = prompt_service.knouds("batch", SLUG, "-", "--ledger", "l.db", stdin=Path("jobs.jsonl"))
    assert done.code == code, done
    assert len(prompt_service.emulator.runs) == (code == 0)


def test_a_model_is_run_by_its_name(service: Any, here: Here, folder: Any) -> None:
    """With --model the name is a model's; one whose provider cannot be polled is run in one request each."""
    Path("jobs.jsonl").write_text('{"prompt": "x"}\n{"prompt": "y"}\n')
    done = here(service, "batch", "kling-3", "jobs.jsonl", "--model", "--out", "out.jsonl")
    assert done.code == 0, done
    assert [(run.target, run.is_async) for run in service.emulator.runs] == [("kling-3", False)] * 2
    assert [line["execution_id"] for line in folder.lines()] == [None, None]


def test_failures_are_lines_and_1(put_up: PutUp, here: Here, folder: Any) -> None:
    """A run that failed is a line with the service's code and words, and the exit code is 1."""
    service = put_up(failure_rate=1.0)
    folder.write_jobs(2)
    done = here(service, "batch", SLUG, "jobs.jsonl", "--out", "out.jsonl")
    assert (done.code, [line["status"] for line in folder.lines()]) == (1, ["failed", "failed"])
    assert all(line["error"]["message"] for line in folder.lines())
    assert "2 failed" in done.err


def test_wrong_inputs_are_said_and_cost_nothing(prompt_service: Any, here: Here, folder: Any) -> None:
    """A job whose inputs do not fit is not run, its faults are in its line, and the others are run."""
    Path("jobs.jsonl").write_text('{"product_name": "x"}\n{"key": "bad", "inputs": {"count": 9, "colour": "red"}}\n')
    done = here(prompt_service, "batch", SLUG, "jobs.jsonl", "--out", "out.jsonl")
    said = folder.results()["bad"]["error"]["message"]
    assert done.code == 1
    assert all(words in said for words in ("at most 4", "'colour'", "'product_name' is required"))
    assert "1 job not run (invalid): bad: " in done.err
    assert len(prompt_service.emulator.runs) == 1


def test_nothing_but_wrong_inputs_is_2(service: Any, here: Here, folder: Any) -> None:
    """When no job could be run because of its inputs, that is wrong usage."""
    folder.write_jobs(2, count=9)
    assert here(service, "batch", SLUG, "jobs.jsonl", "--out", "out.jsonl").code == 2
    assert not service.emulator.runs


def test_the_cap_is_kept_and_is_4(put_up: PutUp, here: Here, folder: Any) -> None:
    """Runs that could pass --max-credits are not made; the code says that credits ended it."""
    service = put_up(**PROMPT)
    folder.write_jobs(5)
    done = here(service, "batch", SLUG, "jobs.jsonl", "--out", "out.jsonl", "--max-credits", "30")
    assert done.code == 4
    assert len(service.emulator.runs) == 2
    assert "24 of 30 credits spent" in done.err
    assert "3 jobs not run (budget): another run of 12 credits could pass" in done.err
    assert sorted(line["status"] for line in folder.lines()) == ["completed"] * 2 + ["not_run"] * 3


@pytest.mark.parametrize(("settings", "code"), [({"credits": 0}, 4), ({"capabilities": ("workflow:read",)}, 3)])
def test_an_account_that_may_not_is_said(
    put_up: PutUp, here: Here, folder: Any, settings: dict[str, Any], code: int
) -> None:
    """An account without credits is 4, a key that may not run is 3; no job is run and none is lost."""
    service = put_up(**settings)
    folder.write_jobs(3)
    done = here(service, "batch", SLUG, "jobs.jsonl", "--out", "out.jsonl")
    assert done.code == code, done
    assert not service.emulator.runs
    assert "3 jobs not run" in done.err


def test_an_unknown_run_is_5_and_not_sent_again(put_up: PutUp, here: Here, folder: Any) -> None:
    """A submit whose answer was lost is a line, is named with what can be done, and makes the code 5."""
    service = put_up()
    service.emulator.faults.add(faults.closed(after_run=True), route=SUBMIT, nth=2)
    folder.write_jobs(3)
    done = here(service, "batch", SLUG, "jobs.jsonl", "--out", "out.jsonl")
    assert done.code == 5
    lost = [line["key"] for line in folder.lines() if line["status"] == "unknown"]
    assert len(lost) == 1
    assert f"1 run unknown: {lost[0]}." in done.err
    assert "`knouds batch --resolve jobs.jsonl.ledger KEY resend|abandon|run=ID`" in done.err
    assert len(service.emulator.runs) == 3


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["batch"], "give SLUG JOBS, or --status LEDGER"),
        (["batch", SLUG], "the file of jobs"),
        (["batch", SLUG, "none.jsonl"], "none.jsonl: No such file"),
        (["batch", SLUG, "."], "Is a directory"),
        (["batch", SLUG, "-"], "need --ledger FILE"),
        (["batch", SLUG, "bad.jsonl"], "bad.jsonl line 2: not JSON"),
        (["batch", SLUG, "jobs.jsonl", "--out", "jobs.jsonl"], "the same file"),
        (["batch", SLUG, "jobs.jsonl", "--out", "l", "--ledger", "l"], "the same file"),
        (["batch", SLUG, "jobs.jsonl", "--out", "bad.jsonl"], "left unchanged"),
        (["batch", SLUG, "jobs.jsonl", "--max-in-flight", "0"], "--max-in-flight 0"),
        (["batch", SLUG, "jobs.jsonl", "--max-credits", "-1"], "--max-credits -1"),
        (["batch", SLUG, "jobs.jsonl", "--max-credits", "nan"], "--max-credits nan"),
        (["batch", SLUG, "jobs.jsonl", "--expected", "-1"], "--expected -1"),
        (["batch", "Bad_Slug", "jobs.jsonl"], "`knouds workflows`"),
        (["batch", "--status", "none.ledger"], "none.ledger"),
        (["batch", "--status", "bad.jsonl"], "--status bad.jsonl: no ledger: file is not a database"),
        (["batch", "--status", "."], "--status .: no ledger: it is a folder"),
        (["batch", "--rebind", "bad.jsonl"], "--rebind bad.jsonl: no ledger"),
        (["batch", "--resolve", "bad.jsonl", "j0", "resend"], "--resolve bad.jsonl: no ledger"),
        (["batch", "--status", "other.db"], "--status other.db: no ledger: it is an SQLite file of something else"),
        (["batch", SLUG, "jobs.jsonl", "--ledger", "bad.jsonl"], "--ledger bad.jsonl: no ledger"),
        (["batch", SLUG, "jobs.jsonl", "--ledger", "other.db"], "--ledger other.db: no ledger"),
        (["batch", SLUG, "jobs.jsonl", "--ledger", "."], "--ledger .: no ledger: it is a folder"),
        (["batch", SLUG, "jobs.jsonl", "--ledger", "none/l"], "--ledger none/l: no ledger: No such file or directory"),
        (["batch", SLUG, "jobs.jsonl", "--dry-run", "--retry-failed"], "exclude each other"),
        (["batch", SLUG, "jobs.jsonl", "--status", "l"], "give SLUG JOBS, or"),
        (["batch", "--resolve", "none.ledger", "j0", "resend"], "none.ledger"),
        (["batch", "--resolve", "none.ledger", "j0", "forget"], "resend"),
    ],
)
def test_wrong_usage_is_one_line_and_2(service: Any, here: Here, folder: Any, args: list[str], words: str) -> None:
    """What is wrong with a command line is said in one line before any run begins, and no ledger is left behind."""
    folder.write_jobs(1)
    Path("bad.jsonl").write_text("{}\n{\n")
    with closing(sqlite3.connect("other.db")) as other:
        other.execute("CREATE TABLE notes (note)")
    done = here(service, *args)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done
    assert words in done.err
    assert not service.emulator.runs
    assert not Path("none.ledger").exists()


CANNOT_BEGIN: list[tuple[list[str], dict[str, str], int]] = [
    (["no-such"], {}, 2),
    (["Bad_Slug"], {}, 2),
    (["no-such", "--csv"], {}, 2),
    ([SLUG], {"KNOUDS_KEY": "knouds_live_other"}, 3),
    ([SLUG], {"KNOUDS_KEY": ""}, 3),
    ([SLUG, "--base-url", "nowhere"], {}, 2),
    ([SLUG, "--max-in-flight", "0"], {}, 2),
]
SAVE_ELSEWHERE = ("--save", "files", "--ledger", "new.db")
NO_SERVICE: dict[str, str] = {"KNOUDS_BASE_URL": "http://127.0.0.1:9"}  # where it is tried for seconds


@pytest.mark.parametrize(
    ("args", "env", "code", "more"),
    [
        *((*case, more) for case in CANNOT_BEGIN for more in ((), ("--retry-failed",), SAVE_ELSEWHERE)),
        ([SLUG], NO_SERVICE, 1, SAVE_ELSEWHERE),
    ],
)
def test_a_batch_that_cannot_begin_leaves_no_file(
    service: Any, folder: Any, args: list[str], env: dict[str, str], code: int, more: tuple[str, ...]
) -> None:
    """What is refused before the first job is one line that says that nothing was run, and makes no file or folder."""
    folder.write_jobs(1)
    Path("jobs.csv").write_text("product_name\nMug\n")
    slug, *options = args
    jobs = "jobs.csv" if "--csv" in options else "jobs.jsonl"
    options = [option for option in options if option != "--csv"]
    done = service.knouds("batch", slug, jobs, *options, "--out", "out.jsonl", *more, **env)
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1), done
    assert len(re.findall("nothing was (?:run|sent)", done.err.lower())) == 1
    assert sorted(path.name for path in folder.path.iterdir()) == ["jobs.csv", "jobs.jsonl"]


def test_a_file_of_results_that_was_there_stays(prompt_service: Any, here: Here, folder: Any) -> None:
    """A batch that cannot begin leaves the files of an earlier one as they are, an empty one too."""
    folder.write_jobs(1)
    Path("out.jsonl").touch()
    assert here(prompt_service, "batch", "no-such", "jobs.jsonl", "--out", "out.jsonl").code == 2
    assert Path("out.jsonl").read_bytes() == b""
    assert here(prompt_service, *BATCH).code == 0
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    assert here(prompt_service, "batch", "no-such", "jobs.jsonl", "--out", "out.jsonl").code == 2
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before


@pytest.mark.slow
def test_a_page_in_between_costs_one_unknown_and_is_named(put_up: PutUp, here: Here, folder: Any) -> None:
    """A firewall's page ends the submitting: one job is unknown; the message says who answered and how to continue."""
    service = put_up(duration=0.05)
    page = Response(403, {"content-type": "text/html", "server": "squid/6"}, b"<html>denied</html>")
    service.emulator.faults.add(Fault("page", "after", lambda _: page), route=SUBMIT, nth=5)
    folder.write_jobs(50)
    done = here(service, "batch", SLUG, "jobs.jsonl", "--out", "out.jsonl", "--max-in-flight", "2")
    assert done.code == 5
    for words in ("not run (intercepted)", "403 text/html (server: squid/6)", "Resume with:"):
        assert words in done.err
    assert len(service.emulator.runs) <= 7
    again = here(service, "batch", SLUG, "jobs.jsonl", "--out", "out.jsonl")
    assert again.code == 5
    assert len(service.emulator.runs) == 50


@pytest.mark.slow
def test_a_day_s_pause_ends_a_batch_that_continues_later(put_up: PutUp, here: Here, folder: Any) -> None:
    """A wait of a day is not silent: the message says how long the service asks to wait and how to continue."""
    service = put_up(duration=0.05)
    day = Response(429, {"retry-after": "86400"}, b'{"error": "Rate limit exceeded", "code": "RATE_LIMIT_EXCEEDED"}')
    service.emulator.faults.add(Fault("day", "before", lambda _: day), route=SUBMIT, nth=3)
    folder.write_jobs(20)
    done = here(service, "batch", SLUG, "jobs.jsonl", "--out", "out.jsonl", "--max-in-flight", "1")
    assert done.code == 1
    for words in ("18 jobs not run (rate_limited)", "wait 86,400 s", "Resume with:"):
        assert words in done.err
    again = here(service, "batch", SLUG, "jobs.jsonl", "--out", "out.jsonl")
    assert again.code == 0
    assert len(service.emulator.runs) == 20


def assert_none_ran_twice(service: Any) -> None:
    """Check that no job was started twice."""
    assert max(Counter(run.inputs["product_name"] for run in service.emulator.runs).values(), default=0) <= 1


def test_a_rerun_pays_for_nothing_and_writes_nothing_twice(service: Any, here: Here, folder: Any) -> None:
    """The same command again runs no job, leaves the results as they are, and says that they are of earlier runs."""
    folder.write_jobs(5)
    assert here(service, *BATCH).code == 0
    before = Path("out.jsonl").read_bytes()
    again = here(service, *BATCH)
    assert again.code == 0
    assert again.err.startswith("5 jobs done: 5 completed (5 in earlier runs); 60 credits spent")
    assert Path("out.jsonl").read_bytes() == before
    assert len(service.emulator.runs) == 5


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 1, 900, None])
def test_results_that_were_lost_come_out_of_the_ledger(service: Any, here: Here, folder: Any, left: int | None) -> None:
    """Whatever is left of the file of results, the rerun makes it whole, each line as it was, and runs nothing."""
    folder.write_jobs(5)
    here(service, *BATCH)
    before, data = folder.results(), Path("out.jsonl").read_bytes()
    if left is None:
        Path("out.jsonl").unlink()
    else:
        Path("out.jsonl").write_bytes(data[:left])
    assert here(service, *BATCH).code == 0
    assert folder.results() == before
    assert len(service.emulator.runs) == 5


def test_lines_that_were_appended_are_run(prompt_service: Any, here: Here, folder: Any) -> None:
    """Jobs without keys are known again by their inputs, also when others have come before and after them."""
    Path("jobs.jsonl").write_text('{"product_name": "b"}\n{"product_name": "b"}\n')
    here(prompt_service, *BATCH)
    Path("jobs.jsonl").write_text('{"product_name": "a"}\n' + '{"product_name": "b"}\n' * 3)
    assert here(prompt_service, *BATCH).code == 0
    assert Counter(run.inputs["product_name"] for run in prompt_service.emulator.runs) == {"a": 1, "b": 3}
    assert len(folder.results()) == 4


def test_other_inputs_under_a_known_key_are_refused(prompt_service: Any, here: Here, folder: Any) -> None:
    """A key that the ledger knows with other inputs is not run, and the first result stays."""
    folder.write_jobs(1)
    here(prompt_service, *BATCH)
    before = folder.results()
    folder.write_jobs(1, count=2)
    done = here(prompt_service, *BATCH)
    assert done.code == 2
    assert "1 job not run (conflict): j0: the ledger knows the key 'j0' with other inputs" in done.err
    assert folder.results() == before
    assert len(prompt_service.emulator.runs) == 1


def test_what_failed_is_run_once_more_when_asked(put_up: PutUp, here: Here, folder: Any) -> None:
    """A failed job is final, until --retry-failed runs it anew and its line is replaced."""
    service = put_up(failure_rate=1.0)
    folder.write_jobs(3)
    assert here(service, *BATCH).code == 1
    service.emulator.failure_rate = 0.0
    assert here(service, *BATCH).code == 1
    assert len(service.emulator.runs) == 3
    assert here(service, *BATCH, "--retry-failed").code == 0
    assert {line["status"] for line in folder.results().values()} == {"completed"}
    assert len(folder.results()) == 3
    assert len(service.emulator.runs) == 6


@pytest.mark.slow
@pytest.mark.parametrize("runs", [1, 2])
def test_a_job_that_was_run_once_more_has_the_line_of_that_run(
    put_up: PutUp, here: Here, folder: Any, runs: int
) -> None:
    """After `retry_failed` of a program the line of the failed run makes room for that of the last; others stay."""
    service = put_up(failure_rate=1.0)
    folder.write_jobs(3)
    assert here(service, *BATCH).code == 1
    service.emulator.failure_rate = 0.0 if runs == 1 else 1.0
    before = folder.results()

    async def retry() -> None:
        async with SQLiteLedger("jobs.jsonl.ledger") as ledger:
            assert await ledger.retry_failed() == 3

    asyncio.run(retry())
    assert here(service, *BATCH).code == (0 if runs == 1 else 1)
    after = folder.results()
    assert {line["status"] for line in after.values()} == {"completed" if runs == 1 else "failed"}
    assert {line["execution_id"] for line in after.values()} == {
        run.execution_id for run in list(service.emulator.runs)[3:]
    }
    assert len(before) == len(after) == 3
    text = Path("out.jsonl").read_bytes()
    here(service, *BATCH)
    assert Path("out.jsonl").read_bytes() == text


@pytest.mark.slow
def test_a_line_that_another_ledger_wrote_stays(put_up: PutUp, here: Here, folder: Any) -> None:
    """Jobs that are not in this ledger keep their lines, failed ones too."""
    broken, mended = put_up(failure_rate=1.0), put_up()
    folder.write_jobs(2)
    assert here(broken, *BATCH).code == 1
    lines = folder.lines()
    Path("other.jsonl").write_text('{"key": "x", "inputs": {"product_name": "x"}}\n')
    assert here(mended, "batch", SLUG, "other.jsonl", "--out", "out.jsonl").code == 0
    assert folder.lines()[:2] == lines


@pytest.mark.slow
def test_the_cap_holds_over_all_runs(service: Any, here: Here, folder: Any) -> None:
    """What earlier runs cost counts; with a higher cap the jobs that were left are run, and have one line each."""
    folder.write_jobs(5)
    for cap, runs, code in (("30", 2, 4), ("30", 2, 4), ("50", 4, 4), ("60", 5, 0)):
        assert here(service, *BATCH, "--max-credits", cap).code == code
        assert len(service.emulator.runs) == runs
        assert len(folder.results()) == 5
    assert {line["status"] for line in folder.results().values()} == {"completed"}


def test_status_shows_where_the_jobs_stand(put_up: PutUp, here: Here, knouds: Here, folder: Any) -> None:
    """Counts, credits and unknown runs are shown without a key, as words and as JSON; 5 while a run is unknown."""
    service = put_up()
    service.emulator.faults.add(faults.closed(after_run=True), route=SUBMIT, nth=2)
    folder.write_jobs(3)
    assert here(service, *BATCH).code == 5
    env = {name: text for name, text in service.env.items() if name != "KNOUDS_KEY"}
    shown = knouds("batch", "--status", "jobs.jsonl.ledger", env=env)
    rows = shown.out.splitlines()
    assert shown.code == 5
    assert rows[0].split() == ["completed", "2"]
    assert rows[1].split() == ["unknown", "1"]
    assert "`knouds batch --resolve jobs.jsonl.ledger KEY resend|abandon|run=ID`" in shown.err
    lost = next(line["key"] for line in folder.lines() if line["status"] == "unknown")
    assert rows[-1].startswith(f"{lost}\t")
    told = json.loads(here(service, "batch", "--status", "jobs.jsonl.ledger", "--json").out)
    assert (told["completed"], told["unknown"], told["credits_spent"]) == (2, 1, 24)
    assert [one["key"] for one in told["unknown_jobs"]] == [lost]


def test_status_says_that_there_are_no_jobs_yet(knouds: Here, folder: Any) -> None:
    """A ledger without jobs is said to have none, beside the zeros of the JSON too."""
    (folder.path / "new.ledger").touch()
    for options in ((), ("--json",)):
        shown = knouds("batch", "--status", "new.ledger", *options)
        assert (shown.code, shown.err) == (0, "new.ledger: no jobs yet\n")
        assert bool(shown.out) == bool(options)


def test_a_decision_is_carried_out_by_the_next_run(put_up: PutUp, here: Here, folder: Any) -> None:
    """An unknown job is sent again only on request; one that was abandoned is settled, and the code is no longer 5."""
    service = put_up()
    service.emulator.faults.add(faults.closed(after_run=True), route=SUBMIT, nth=2)
    service.emulator.faults.add(faults.closed(), route=SUBMIT, nth=3)
    folder.write_jobs(4)
    assert here(service, *BATCH).code == 5
    assert here(service, *BATCH).code == 5
    first, second = (line["key"] for line in folder.lines() if line["status"] == "unknown")
    ran = len(service.emulator.runs)
    resent = here(service, "batch", "--resolve", "jobs.jsonl.ledger", first, "resend")
    assert (resent.code, resent.err) == (0, f"{first}: the next batch runs it again; 1 run unknown\n")
    assert here(service, "batch", "--resolve", "jobs.jsonl.ledger", second, "abandon").code == 0
    assert here(service, "batch", "--status", "jobs.jsonl.ledger").code == 0
    assert here(service, *BATCH).code == 0
    assert len(service.emulator.runs) == ran + 1
    results = folder.results()
    assert (results[first]["status"], results[second]["status"]) == ("completed", "abandoned")
    told = here(service, *BATCH, "--json")
    assert (told.code, json.loads(told.out)["unknown"], json.loads(told.out)["abandoned"]) == (0, 0, 1)
    assert "3 completed, 1 abandoned" in told.err
    again = here(service, "batch", "--resolve", "jobs.jsonl.ledger", first, "resend")
    assert (again.code, again.err.count("only one that is unknown is decided about")) == (2, 1)
    assert len(service.emulator.runs) == ran + 1


def test_a_run_that_somebody_found_is_waited_for(put_up: PutUp, here: Here, folder: Any) -> None:
    """An unknown run whose id was found out is picked up by it; what is no id is refused, and nothing is run twice."""
    service = put_up()
    service.emulator.faults.add(faults.closed(after_run=True), route=SUBMIT, nth=1)
    folder.write_jobs(1)
    assert here(service, *BATCH).code == 5
    resolve = ("batch", "--resolve", "jobs.jsonl.ledger", "j0")
    assert "'no id' is not an execution id" in here(service, *resolve, "run=no id").err
    assert "run= and an execution's id" in here(service, *resolve, "runs").err
    (run,) = service.emulator.runs
    found = here(service, *resolve, f"run={run.execution_id}")
    assert found.err == f"j0: it is execution {run.execution_id}; the next batch waits for it; 0 runs unknown\n"
    assert found.code == 0
    assert here(service, *BATCH).code == 0
    assert len(service.emulator.runs) == 1
    assert folder.lines()[-1]["execution_id"] == run.execution_id


def test_an_id_is_looked_up_when_it_is_told(put_up: PutUp, here: Here, knouds: Here, folder: Any) -> None:
    """What is no execution, or one of another workflow, is refused with where ids are found; nothing is recorded."""
    service = put_up()
    service.emulator.faults.add(faults.closed(after_run=True), route=SUBMIT, nth=1)
    folder.write_jobs(1)
    assert here(service, *BATCH).code == 5
    assert here(service, "run", "daily-picture").code == 0
    lost, other = service.emulator.runs
    resolve = ("batch", "--resolve", "jobs.jsonl.ledger", "j0")
    for no_id in ("nonsense", lost.request_id):
        refused = here(service, *resolve, f"run={no_id}")
        assert refused.code == 2
        assert f"run={no_id}: the service knows no such execution" in refused.err
        assert "in a webhook delivery" in refused.err
    refused = here(service, *resolve, f"run={other.execution_id}")
    assert refused.code == 2
    assert f"is a run of workflows/daily-picture, and j0 of workflows/{SLUG}" in refused.err
    env = {name: text for name, text in service.env.items() if name != "KNOUDS_KEY"}
    assert knouds(*resolve, f"run={lost.execution_id}", env=env).code == 3
    assert json.loads(knouds("batch", "--status", "jobs.jsonl.ledger", "--json", env=env).out)["unknown"] == 1
    assert knouds(*resolve, f"run={lost.execution_id}", "--base-url", service.base_url, env=service.env).code == 0


@pytest.mark.parametrize(
    ("target", "state", "why"),
    [
        ("workflows/a", {"workflow_slug": "a"}, None),
        ("workflows/a", {"workflow_slug": "b"}, "is a run of workflows/b, and k of workflows/a"),
        ("models/a", {"workflow_slug": "a"}, "is a run of workflows/a, and k of models/a"),
        ("models/a", {"model_ids": ("a", "b")}, None),
        ("models/a", {"model_ids": ("b", "c")}, "is a run of models/b, models/c, and k of models/a"),
        ("workflows/a", {"model_ids": ("b",)}, None),
        ("workflows/a", {}, None),
    ],
)
def test_a_run_of_another_target_is_not_the_job_s(target: str, state: dict[str, Any], why: str | None) -> None:
    """What an execution says of itself is compared with the job, as far as it says it."""
    found = ExecutionState(execution_id="e", status="processing", **state)
    assert _why_not(Entry(key="k", target=target, digest="d"), found) == why


def test_a_run_of_another_time_is_not_the_job_s(put_up: PutUp, here: Here, folder: Any) -> None:
    """An execution that began before the submit is refused, with both times, and the job stays unknown."""
    service = put_up()
    service.emulator.faults.add(faults.closed(after_run=True), route=SUBMIT, nth=1)
    folder.write_jobs(1)
    assert here(service, *BATCH).code == 5
    (lost,) = service.emulator.runs
    body = {"executionId": "e1", "status": "processing", "workflowSlug": SLUG, "createdAt": "2020-01-01T00:00:00.000Z"}
    old = Response(200, {"content-type": "application/json"}, json.dumps(body).encode())
    service.emulator.faults.add(Fault("old", "after", lambda _: old), route="GET /api/executions/:id", nth=1)
    resolve = ("batch", "--resolve", "jobs.jsonl.ledger", "j0")
    refused = here(service, *resolve, "run=e1")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "run=e1 began at 2020-01-01 00:00:00 UTC, and j0 was submitted at 20" in refused.err
    assert here(service, *resolve, f"run={lost.execution_id}").code == 0


def test_status_searches_the_usage(put_up: PutUp, here: Here, knouds: Here, in_terminal: Here, folder: Any) -> None:
    """With a key, rows that no job claims are counted and named, and why a job is still unknown; else why not."""
    service = put_up()
    service.emulator.faults.add(faults.closed(after_run=True), route=SUBMIT, nth=2)
    service.emulator.faults.add(faults.closed(after_run=True), route=SUBMIT, nth=3)
    folder.write_jobs(4)
    assert here(service, *BATCH).code == 5
    done = {line["execution_id"] for line in folder.lines() if line["status"] == "completed"}
    unclaimed = sorted(run.request_id for run in service.emulator.runs if run.execution_id not in done)
    told = json.loads(here(service, "batch", "--status", "jobs.jsonl.ledger", "--json").out)
    assert told["unclaimed_rows"] == len(unclaimed) == 2
    for job in told["unknown_jobs"]:
        assert sorted(job["candidates"]) == unclaimed
        assert "Server disconnected" in job["why"]
    shown = here(service, "batch", "--status", "jobs.jsonl.ledger")
    assert shown.out.splitlines()[4].split() == ["unclaimed", "usage", "rows", "2"]
    assert all(request_id in shown.out for request_id in unclaimed)
    env = {name: text for name, text in service.env.items() if name != "KNOUDS_KEY"}
    assert "The usage was not searched for them: " in knouds("batch", "--status", "jobs.jsonl.ledger", env=env).err
    drawn = in_terminal("batch", "--status", "jobs.jsonl.ledger", env=service.env | {"COLUMNS": "80"}).out
    assert all(request_id in drawn for request_id in unclaimed)


def test_a_foreign_ledger_is_refused_and_left_as_it_is(service: Any, here: Here, folder: Any) -> None:
    """A file that is no ledger is said so in one line, keeps every byte, and nothing is run."""
    folder.write_jobs(1)
    Path("notes.txt").write_text("not a ledger\n" * 100)
    for args in ((*BATCH, "--ledger", "notes.txt"), ("batch", "--status", "notes.txt")):
        done = here(service, *args)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "notes.txt: no ledger" in done.err
        assert "submitted" not in done.err
    assert Path("notes.txt").read_text() == "not a ledger\n" * 100
    assert not service.emulator.runs


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_results_that_find_no_room_are_in_the_ledger(service: Any, here: Here, folder: Any) -> None:
    """A full disk stops the submitting and says so with the file's name; the results come out of the ledger later."""
    folder.write_jobs(30)
    done = here(service, *BATCH[:-1], "/dev/full", "--max-in-flight", "2")
    assert done.code == 1
    assert "knouds: stopped: No space left on device: /dev/full" in done.err
    assert "Resume with: knouds batch" in done.err
    assert len(service.emulator.runs) < 30
    assert here(service, *BATCH).code == 0
    assert len(folder.results()) == len(service.emulator.runs) == 30


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no bound on the size of files")
def test_a_ledger_that_finds_no_room_stops_the_submitting(
    service: Any, folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the ledger cannot be written nothing more is submitted; with room again no job is run twice."""
    import resource

    monkeypatch.setattr("knouds_async._batch.sqlite._FULL_DISK_PATIENCE", 1.0)  # seconds; half a minute by default
    folder.write_jobs(120)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        done = service.knouds(*BATCH, "--max-in-flight", "8")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    ran = len(service.emulator.runs)
    assert done.code in (1, 5), done  # by what could not be written: an intent, or an id or a result
    assert 0 < ran < 120
    assert "knouds: stopped: the ledger 'jobs.jsonl.ledger' cannot be used" in done.err
    assert "Resume with: knouds batch" in done.err
    assert service.knouds(*BATCH).code in (0, 5)
    assert_none_ran_twice(service)
    assert len(folder.results()) == 120


def test_a_reader_that_leaves_stops_the_submitting(service: Any, folder: Any) -> None:
    """When the reader of stdout has gone, nothing more is submitted, and the message says how to continue."""
    folder.write_jobs(30)
    source, sink = os.pipe()

    def read_a_line() -> None:
        with open(source, "rb") as reader:  # noqa: PTH123
            reader.readline()

    with open(sink, "w", encoding="utf-8") as stdout:  # noqa: PTH123
        leaving = Thread(target=read_a_line)
        leaving.start()
        done = service.knouds(*BATCH[:-2], "--max-in-flight", "2", stdout=stdout)
        leaving.join()
    assert done.code == 1
    assert "stopped: Broken pipe" in done.err
    assert "Traceback" not in done.err
    assert len(service.emulator.runs) < 30
    assert len(service.knouds(*BATCH[:-2]).out.splitlines()) == 30
    assert_none_ran_twice(service)


@pytest.mark.slow
def test_killed_again_and_again_it_comes_to_its_end(
    put_up: PutUp, start: Callable[..., "subprocess.Popen[str]"], folder: Any
) -> None:
    """After any number of kills each job has a result or is unknown, none was run twice, and the files agree."""
    service = put_up(duration=0.6)
    folder.write_jobs(60)
    dice = random.Random(7)
    for _ in range(2):
        before = len(service.emulator.runs)
        process = start(*BATCH, "--max-in-flight", "10", env=service.env)
        deadline = time.monotonic() + 30
        while len(service.emulator.runs) <= before + dice.randrange(12) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(dice.random() / 50)
        process.kill()
        process.communicate()
        assert_none_ran_twice(service)
    ended = service.knouds(*BATCH)
    results = folder.results()
    kinds = Counter(line["status"] for line in results.values())
    assert_none_ran_twice(service)
    assert len(results) == 60
    assert set(kinds) <= {"completed", "unknown"}
    assert ended.code == (5 if kinds["unknown"] else 0), ended
    told = json.loads(service.knouds("batch", "--status", "jobs.jsonl.ledger", "--json").out)
    assert (told["completed"], told["unknown"]) == (kinds["completed"], kinds["unknown"])
    ran = {run.execution_id for run in service.emulator.runs}
    assert {line["execution_id"] for line in results.values() if line["status"] == "completed"} <= ran


@pytest.mark.slow
def test_ctrl_c_waits_for_runs_in_flight(put_up: PutUp, terminal: Callable[..., Any], folder: Any) -> None:
    """After the first Ctrl-C nothing is submitted, runs in flight are awaited, and the command to continue is shown."""
    service = put_up(duration=2.0)
    folder.write_jobs(15)
    batch = terminal(*BATCH, "--max-in-flight", "4", env=service.env)
    batch.wait_for("4 in flight")
    batch.press_ctrl_c()
    assert batch.end() == 130, batch.said
    assert "submitting stopped; waiting for 4 runs in flight" in batch.said
    command = f"knouds batch {SLUG} jobs.jsonl --ledger jobs.jsonl.ledger --out out.jsonl --max-in-flight 4"
    assert f"knouds: Resume with: {command}" in " ".join(batch.said.replace("\r\n", " ").split())
    out = len(service.emulator.runs)
    assert 4 <= out <= 5  # one may have been on its way
    assert [line["status"] for line in folder.lines()] == ["completed"] * out
    ended = service.knouds(*BATCH)
    assert ended.code == 0
    assert_none_ran_twice(service)
    assert len(folder.results()) == len(service.emulator.runs) == 15


@pytest.mark.slow
def test_ctrl_c_leaves_the_jobs_of_another_batch_to_it(
    put_up: PutUp, terminal: Callable[..., Any], folder: Any
) -> None:
    """Beside another batch on the ledger it does not wait for the other's runs, and calls none of them unknown."""
    service = put_up(duration=8.0)
    folder.write_jobs(3)
    first = terminal(*BATCH, env=service.env)
    first.wait_for("3 in flight")
    second = terminal("batch", SLUG, "jobs.jsonl", "--out", "second.jsonl", env=service.env)
    second.wait_for("0 of 3 done")
    second.press_ctrl_c()
    assert second.end() == 130, second.said
    assert "0 of 3 jobs done: 3 in flight elsewhere" in " ".join(second.said.split())
    assert "unknown" not in second.said
    assert first.end() == 0, first.said
    assert_none_ran_twice(service)


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once(put_up: PutUp, terminal: Callable[..., Any], folder: Any) -> None:
    """The second Ctrl-C ends it with 130; the same command picks up the runs in flight, and none is unknown."""
    service = put_up(duration=5.0)
    folder.write_jobs(8)
    batch = terminal(*BATCH, "--max-in-flight", "4", env=service.env)
    batch.wait_for("4 in flight")
    batch.press_ctrl_c()
    batch.wait_for("Ctrl-C again")
    batch.press_ctrl_c()
    assert batch.end() == 130, batch.said
    assert "exiting; 4 runs still in progress (they will be charged)" in " ".join(batch.said.split())
    assert batch.said.count("\x1b[?25l") <= batch.said.count("\x1b[?25h")  # the cursor is there again
    ended = service.knouds(*BATCH)
    assert ended.code == 0, ended
    assert_none_ran_twice(service)
    assert len(folder.results()) == 8


@pytest.mark.slow
@pytest.mark.parametrize("presses", [2, 3])
def test_a_service_that_hangs_holds_nobody_up(
    put_up: PutUp, terminal: Callable[..., Any], folder: Any, presses: int
) -> None:
    """Two Ctrl-C leave although a submit is not answered, three even sooner; it is unknown then and not sent again."""
    service = put_up()
    service.emulator.faults.add(faults.stalled(), route=SUBMIT, nth=1)
    folder.write_jobs(3)
    batch = terminal(*BATCH, env=service.env)
    batch.wait_for("1 in flight")
    for words in ("submitting stopped", "exiting", "")[:presses]:
        batch.press_ctrl_c()
        batch.wait_for(words)
    assert batch.end() == 130, batch.said
    assert batch.said.count("\x1b[?25l") <= batch.said.count("\x1b[?25h")  # the cursor is there again
    ended = service.knouds(*BATCH)
    assert ended.code == 5, ended
    assert_none_ran_twice(service)
    assert sorted(line["status"] for line in folder.lines()) == ["completed", "completed", "unknown"]


@pytest.mark.slow
def test_ctrl_c_while_a_pipe_says_nothing(service: Any, folder: Any, heeds_signals: None) -> None:
    """A batch whose next job does not come can be stopped, and what came before is written."""
    command = [*PROGRAM, "batch", SLUG, "-", "--ledger", "l.db", *QUICK]
    with subprocess.Popen(  # noqa: S603
        command, env=service.env, stdin=-1, stdout=-1, stderr=-1, encoding="utf-8"
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write('{"product_name": "Mug"}\n')
        process.stdin.flush()
        line = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert line["status"] == "completed"
    assert len(service.emulator.runs) == 1


@pytest.mark.slow
def test_what_asks_it_to_end_is_like_two(
    put_up: PutUp, start: Callable[..., "subprocess.Popen[str]"], folder: Any
) -> None:
    """Left by its terminal, a batch leaves at once as well, with each id in the ledger."""
    service = put_up(duration=20.0)
    folder.write_jobs(8)
    process = start(*BATCH, "--max-in-flight", "4", env=service.env)
    deadline = time.monotonic() + 30
    while len(service.emulator.runs) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "exiting; " in err
    told = json.loads(service.knouds("batch", "--status", "jobs.jsonl.ledger", "--json").out)
    assert (told["submitted"], told["unknown"]) == (len(service.emulator.runs), 0)


def test_a_ledger_of_another_account_is_refused_until_somebody_says_so(
    put_up: PutUp, here: Here, knouds: Any, folder: Any
) -> None:
    """Another key's batch sends nothing, and the error names the command that takes the ledger over on purpose."""
    other = ApiKey("knouds_live_of_somebody_else_0123", user="u_else")
    service = put_up(keys=[other], **PROMPT)
    folder.write_jobs(1)
    assert here(service, *BATCH).code == 0
    folder.write_jobs(2)
    env = service.env | {"KNOUDS_KEY": other.text}
    refused = knouds(*BATCH, env=env)
    assert refused.code != 0
    assert "is that of account u_knouds" in refused.err
    assert "`knouds batch --rebind " in refused.err
    assert len(service.emulator.runs) == 1
    assert here(service, "batch", "--rebind", "jobs.jsonl.ledger").code == 0
    assert "is that of account" not in knouds(*BATCH, env=env).err
    assert "no such ledger" in here(service, "batch", "--rebind", "nothing").err


def fetches(media_service: Any) -> int:
    """Count the requests for files."""
    return sum(request.route == MEDIA for request in media_service.emulator.requests)


def test_each_result_names_its_files(media_service: Any, here: Here, folder: Any) -> None:
    """Every file is in the folder under its run's name, and its path in the line of its job."""
    folder.write_jobs(6, count=2)
    assert here(media_service, *SAVING).code == 0
    for line in folder.results().values():
        run = line["execution_id"]
        assert line["files"] == [str(Path("files") / f"{run}-{n}.png") for n in (1, 2)]
        assert all(Path(file).read_bytes().startswith(b"\x89PNG") for file in line["files"])
    assert len(list(Path("files").iterdir())) == 12


def test_a_rerun_fetches_what_is_missing(media_service: Any, here: Here, folder: Any) -> None:
    """A batch that ran without --save gets its files by a rerun with it, which runs nothing and fetches each once."""
    folder.write_jobs(3)
    assert here(media_service, *SAVING[:-2]).code == 0
    assert all("files" not in line for line in folder.lines())
    assert here(media_service, *SAVING).code == 0
    lines = folder.results()
    assert all(len(line["files"]) == 1 for line in lines.values())
    Path(lines["j1"]["files"][0]).unlink()
    kept = Path(lines["j0"]["files"][0])
    kept.write_bytes(b"cropped by hand")
    assert here(media_service, *SAVING).code == 0
    assert folder.results() == lines
    assert len(list(Path("files").iterdir())) == 3
    assert kept.read_bytes() == b"cropped by hand"
    assert fetches(media_service) == 4
    assert len(media_service.emulator.runs) == 3


@pytest.mark.slow
def test_a_file_that_cannot_be_had_is_tried_again(media_service: Any, here: Here, folder: Any) -> None:
    """When a host refuses, the result is kept with null for its files and the code is 1; the rerun fetches them."""
    for nth in (1, 2):
        media_service.emulator.faults.add(faults.not_found(), route=MEDIA, nth=nth)
    folder.write_jobs(2, count=2)
    done = here(media_service, *SAVING, "--max-in-flight", "1")
    assert done.code == 1
    assert [line["files"] for line in folder.lines()].count(None) >= 1
    assert all(line["result"]["images"] for line in folder.lines())
    assert "could not be downloaded; the same command tries again" in done.err
    assert "knouds: files of j" in done.err
    assert here(media_service, *SAVING).code == 0
    assert all(len(line["files"]) == 2 for line in folder.results().values())
    assert len(media_service.emulator.runs) == 2


def test_results_without_files_have_none(media_service: Any, here: Here, folder: Any) -> None:
    """A run that gave text alone has an empty list."""
    Path("jobs.jsonl").write_text('{"prompt": "x"}\n')
    done = here(media_service, "batch", "claude-sonnet", *SAVING[2:], "--model")
    assert (done.code, [line["files"] for line in folder.lines()]) == (0, [[]])


def test_the_lines_on_stdout_name_the_files(media_service: Any, here: Here, folder: Any) -> None:
    """Without --out the paths are in the lines on stdout."""
    folder.write_jobs(1)
    done = here(media_service, *SAVING[:3], "--save", "files")
    assert Path(json.loads(done.out)["files"][0]).exists()


DRY = ("batch", SLUG, "jobs.jsonl", "--dry-run")


def test_a_dry_run_submits_nothing(service: Any, here: Here, folder: Any) -> None:
    """What a batch would cost and take is shown for people and for programs; nothing is run, and no file is made."""
    folder.write_jobs(5)
    shown = here(service, *DRY, "--save", "files")
    assert shown.code == 0
    assert "credits  about 60, by the workflow's estimate" in shown.out.splitlines()
    told = json.loads(here(service, *DRY, "--json").out)
    assert told.pop("seconds") >= 0
    assert told == {
        "jobs": 5,
        "invalid": 0,
        "already_done": 0,
        "to_run": 5,
        "credits": 60,
        "credits_source": "schema",
        "windows": 1,
    }
    assert not service.emulator.runs
    assert [path.name for path in folder.path.iterdir()] == ["jobs.jsonl"]


def test_a_dry_run_finds_what_is_invalid(service: Any, here: Here, folder: Any) -> None:
    """Lines that are no jobs, inputs that do not fit and keys that come twice make the code 2, each with its reason."""
    folder.write_jobs(3)
    with Path("jobs.jsonl").open("a") as file:
        file.write('{\n{"key": "j1", "inputs": {}}\n{"key": "bad", "inputs": {"count": 9}}\n')
    done = here(service, *DRY, "--json")
    told = json.loads(done.out)
    assert (done.code, told["jobs"], told["invalid"], told["to_run"], told["credits"]) == (2, 6, 3, 3, 36)
    for words in ("jobs.jsonl line 4: not JSON", "j1: its key came before", "bad: 'count' must be at most 4"):
        assert words in done.err
    assert not service.emulator.runs


def test_a_dry_run_knows_what_is_done(prompt_service: Any, here: Here, folder: Any) -> None:
    """Jobs of the ledger are not paid for again; jobs from a pipe need none for a dry run."""
    folder.write_jobs(2)
    assert here(prompt_service, *BATCH).code == 0
    folder.write_jobs(5)
    ledger = Path("jobs.jsonl.ledger").read_bytes()
    told = json.loads(here(prompt_service, *DRY, "--json").out)
    assert (told["jobs"], told["already_done"], told["to_run"], told["credits"]) == (5, 2, 3, 36)
    assert Path("jobs.jsonl.ledger").read_bytes() == ledger
    piped = prompt_service.knouds("batch", SLUG, "-", "--dry-run", "--json", stdin='{"product_name": "Mug"}\n')
    assert (piped.code, json.loads(piped.out)["credits"]) == (0, 12)
    assert len(prompt_service.emulator.runs) == 2


def test_going_on_retries_nothing_once_more() -> None:
    """The command to continue is the one that was given, but for --retry-failed, which has had its effect."""
    order = BatchOptions(target=Target("models", "suno-v5"), jobs=Path("a b.csv"), ledger=Path("l"), retry_failed=True)
    assert order.resume_command == "knouds batch suno-v5 'a b.csv' --model --ledger l"
