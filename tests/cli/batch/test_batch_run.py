"""`knouds batch`: a file of jobs in, a file of results out, each job once, in one run or in several."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from knouds_async.testing import Fault, Response, faults

SLUG = "my-thumbnail-pipeline"
SUBMIT = "POST /api/workflows/:slug/run?async=true"
PROGRAM = [sys.executable, "-m", "knouds_async"]
PutUp = Callable[..., Any]
Here = Callable[..., Any]


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
def test_a_terminal_gets_short_lines_and_sees_how_it_goes(
    put_up: PutUp, terminal: Callable[..., Any], folder: Any
) -> None:
    """Without --out a terminal gets a line for each job, above a picture of the whole that is gone at the end."""
    service = put_up(duration=1.0, failure_rate=0.3, seed=3)
    folder.write_jobs(12)
    batch = terminal("batch", SLUG, "jobs.jsonl", "--max-credits", "1000", env=service.env)
    assert batch.end() == 1, batch.said
    assert "of 12 done, " in batch.said
    assert "of 1,000 credits spent" in batch.said
    words = " ".join(batch.said.split())
    for run in service.emulator.runs:
        key = f"j{run.inputs['product_name'].split()[-1]}"
        assert f"{key} completed 12 credits https://" in words or f"{key} failed " in words
    assert "{" not in batch.said
    assert "\x1b[2K12 jobs done: " in batch.said.rstrip().splitlines()[-1]


def test_json_sums_it_up_for_programs(service: Any, here: Here, folder: Any) -> None:
    """With --out and --json stdout is one JSON object that counts the jobs by how they ended."""
    folder.write_jobs(4)
    done = here(service, "batch", SLUG, "jobs.jsonl", "--out", "out.jsonl", "--json", "--max-credits", "1000")
    told = json.loads(done.out)
    assert told["completed"] == told["total"] == told["submitted"] == 4
    assert told["failed"] == told["cancelled"] == told["not_run"] == told["unknown"] == told["in_flight"] == 0
    assert (told["credits_spent"], told["max_credits"], told["exit_code"]) == (48, 1000, 0)
    assert (told["ledger"], told["out"]) == ("jobs.jsonl.ledger", "out.jsonl")


def test_csv_is_read_by_the_workflow_s_types(service: Any, here: Here, folder: Any) -> None:
    """A cell under a text input is text even if it looks like a number, others are read as JSON."""
    Path("jobs.csv").write_text("product_name,count,key,style\n1984,2,a,\nMug,1,b,3d\n")
    assert here(service, "batch", SLUG, "jobs.csv", "--out", "out.jsonl").code == 0
    assert sorted(run.inputs["product_name"] for run in service.emulator.runs) == ["1984", "Mug"]
    assert {"product_name": "1984", "count": 2} in [run.inputs for run in service.emulator.runs]
    assert sorted(folder.results()) == ["a", "b"]


@pytest.mark.parametrize("text", ['{"product_name": "Mug"}\n', "product_name\nMug\n"])
def test_jobs_come_from_stdin(service: Any, folder: Any, text: str) -> None:
    """Jobs are read from a pipe, in JSON Lines or CSV; they get keys of their own."""
    ended = service.knouds("batch", SLUG, "-", "--ledger", "l.db", stdin=text)
    assert ended.code == 0, ended
    assert json.loads(ended.out)["status"] == "completed"
    assert [run.inputs for run in service.emulator.runs] == [{"product_name": "Mug"}]


def test_a_faulty_line_of_a_pipe_ends_what_was_begun(service: Any, folder: Any) -> None:
    """What comes through a pipe is run as it comes: a line that is no job ends that, and how to go on is said."""
    ended = service.knouds("batch", SLUG, "-", "--ledger", "l.db", "--out", "o", stdin='{"product_name": "x"}\n3\n')
    assert ended.code == 1, ended
    assert [line["status"] for line in folder.lines("o")] == ["completed"]
    assert "stopped: stdin line 2: not a JSON object" in ended.err
    assert f"Resume with: knouds batch {SLUG} - --ledger l.db --out o" in ended.err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a shell reads the first line")
def test_stdin_is_read_from_where_it_stands(service: Any, folder: Any) -> None:
    """Lines of a file on stdin that another command has taken are not jobs."""
    Path("jobs.jsonl").write_text('a note\n{"product_name": "Mug"}\n')
    command = f"(read line; exec {shlex.join(PROGRAM)} batch {SLUG} - --ledger l.db --expected 0.1) < jobs.jsonl"
    done = subprocess.run(["/bin/sh", "-c", command], env=service.env, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done
    assert len(service.emulator.runs) == 1


@pytest.mark.parametrize(("text", "code"), [('{"product_name": "x"}\n3\n', 2), ('{"product_name": "x"}\n', 0)])
def test_stdin_that_is_a_file_is_looked_through_first(service: Any, folder: Any, text: str, code: int) -> None:
    """A file on stdin is read twice, like one that is named: a faulty line is found before anything is run."""
    Path("jobs.jsonl").write_text(text)
    done = service.knouds("batch", SLUG, "-", "--ledger", "l.db", stdin=Path("jobs.jsonl"))
    assert done.code == code, done
    assert len(service.emulator.runs) == (code == 0)


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


def test_wrong_inputs_are_said_and_cost_nothing(service: Any, here: Here, folder: Any) -> None:
    """A job whose inputs do not fit is not run, its faults are in its line, and the others are run."""
    Path("jobs.jsonl").write_text('{"product_name": "x"}\n{"key": "bad", "inputs": {"count": 9, "colour": "red"}}\n')
    done = here(service, "batch", SLUG, "jobs.jsonl", "--out", "out.jsonl")
    said = folder.results()["bad"]["error"]["message"]
    assert done.code == 1
    assert all(words in said for words in ("at most 4", "'colour'", "'product_name' is required"))
    assert "1 job not run (invalid): bad: " in done.err
    assert len(service.emulator.runs) == 1


def test_nothing_but_wrong_inputs_is_2(service: Any, here: Here, folder: Any) -> None:
    """When no job could be run because of its inputs, that is wrong usage."""
    folder.write_jobs(2, count=9)
    assert here(service, "batch", SLUG, "jobs.jsonl", "--out", "out.jsonl").code == 2
    assert not service.emulator.runs


def test_the_cap_is_kept_and_is_4(put_up: PutUp, here: Here, folder: Any) -> None:
    """Runs that could pass --max-credits are not made; the code says that credits ended it."""
    service = put_up()
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
        (["batch", SLUG, "jobs.jsonl", "--status", "l"], "give SLUG JOBS, or"),
        (["batch", "--resolve", "none.ledger", "j0", "resend"], "none.ledger"),
        (["batch", "--resolve", "none.ledger", "j0", "forget"], "resend"),
    ],
)
def test_wrong_usage_is_one_line_and_2(service: Any, here: Here, folder: Any, args: list[str], words: str) -> None:
    """What is wrong with a command line is said in one line before any run begins, and no ledger is left behind."""
    folder.write_jobs(1)
    Path("bad.jsonl").write_text("{}\n{\n")
    done = here(service, *args)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done
    assert words in done.err
    assert not service.emulator.runs
    assert not Path("none.ledger").exists()


def test_a_page_in_between_costs_one_unknown_and_is_named(put_up: PutUp, here: Here, folder: Any) -> None:
    """A firewall's page ends the submitting: one job is unknown, who answered and how to go on is said."""
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


def test_a_day_s_pause_ends_a_batch_that_goes_on_later(put_up: PutUp, here: Here, folder: Any) -> None:
    """Nobody waits for a day in silence: how long the service asks to wait and how to go on is said."""
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
