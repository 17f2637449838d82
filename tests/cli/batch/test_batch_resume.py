"""`knouds batch` given again: after its end, Ctrl-C, a kill at any moment, a decision about an unknown run."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from knouds_async import SQLiteLedger
from knouds_async.testing import ApiKey, faults

SLUG = "my-thumbnail-pipeline"
SUBMIT = "POST /api/workflows/:slug/run?async=true"
PROGRAM = [sys.executable, "-m", "knouds_async"]
QUICK = ("--expected", "0.1")
BATCH = ("batch", SLUG, "jobs.jsonl", "--out", "out.jsonl")
PutUp = Callable[..., Any]
Here = Callable[..., Any]


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


def test_lines_that_were_appended_are_run(service: Any, here: Here, folder: Any) -> None:
    """Jobs without keys are known again by their inputs, also when others have come before and after them."""
    Path("jobs.jsonl").write_text('{"product_name": "b"}\n{"product_name": "b"}\n')
    here(service, *BATCH)
    Path("jobs.jsonl").write_text('{"product_name": "a"}\n' + '{"product_name": "b"}\n' * 3)
    assert here(service, *BATCH).code == 0
    assert Counter(run.inputs["product_name"] for run in service.emulator.runs) == {"a": 1, "b": 3}
    assert len(folder.results()) == 4


def test_other_inputs_under_a_known_key_are_refused(service: Any, here: Here, folder: Any) -> None:
    """A key that the ledger knows with other inputs is not run, and the first result stays."""
    folder.write_jobs(1)
    here(service, *BATCH)
    before = folder.results()
    folder.write_jobs(1, count=2)
    done = here(service, *BATCH)
    assert done.code == 2
    assert "1 job not run (conflict): j0: the ledger knows the key 'j0' with other inputs" in done.err
    assert folder.results() == before
    assert len(service.emulator.runs) == 1


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


def test_a_line_that_another_ledger_wrote_stays(put_up: PutUp, here: Here, folder: Any) -> None:
    """Jobs of which this ledger knows nothing keep their lines, failed ones too."""
    broken, mended = put_up(failure_rate=1.0), put_up()
    folder.write_jobs(2)
    assert here(broken, *BATCH).code == 1
    lines = folder.lines()
    Path("other.jsonl").write_text('{"key": "x", "inputs": {"product_name": "x"}}\n')
    assert here(mended, "batch", SLUG, "other.jsonl", "--out", "out.jsonl").code == 0
    assert folder.lines()[:2] == lines


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


def test_a_decision_is_carried_out_by_the_next_run(put_up: PutUp, here: Here, folder: Any) -> None:
    """An unknown run is sent again only when that was decided; one that was abandoned is over, and no longer 5."""
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


def test_a_foreign_ledger_is_refused_and_left_as_it_is(service: Any, here: Here, folder: Any) -> None:
    """A file that is no ledger is said so in one line, keeps every byte, and nothing is run."""
    folder.write_jobs(1)
    Path("notes.txt").write_text("not a ledger\n" * 100)
    for args in ((*BATCH, "--ledger", "notes.txt"), ("batch", "--status", "notes.txt")):
        done = here(service, *args)
        assert done.code == 1
        assert "notes.txt" in done.err.splitlines()[-1]
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
def test_a_ledger_that_finds_no_room_stops_the_submitting(service: Any, folder: Any) -> None:
    """When the ledger cannot be written nothing more is submitted; with room again no job is run twice."""
    import resource

    folder.write_jobs(120)
    done = subprocess.run(  # noqa: S603
        [*PROGRAM, *BATCH, *QUICK, "--max-in-flight", "8"],
        env=service.env,
        capture_output=True,
        encoding="utf-8",
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    ran = len(service.emulator.runs)
    assert done.returncode in (1, 5), done  # by what could not be written: an intent, or an id or a result
    assert 0 < ran < 120
    assert "knouds: stopped: the ledger 'jobs.jsonl.ledger' cannot be used" in done.stderr
    assert "Resume with: knouds batch" in done.stderr
    assert service.knouds(*BATCH).code in (0, 5)
    assert_none_ran_twice(service)
    assert len(folder.results()) == 120


@pytest.mark.slow
def test_a_reader_that_leaves_stops_the_submitting(service: Any, folder: Any) -> None:
    """When the reader of stdout has gone, nothing more is submitted, and how to go on is said."""
    folder.write_jobs(30)
    command = [*PROGRAM, *BATCH[:-2], *QUICK, "--max-in-flight", "2"]
    with subprocess.Popen(command, env=service.env, stdout=-1, stderr=-1, encoding="utf-8") as process:  # noqa: S603
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 1
    assert "stopped: Broken pipe" in err
    assert "Traceback" not in err
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
    for _ in range(4):
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
def test_ctrl_c_waits_for_what_is_out(put_up: PutUp, terminal: Callable[..., Any], folder: Any) -> None:
    """The first Ctrl-C submits nothing more, waits for the runs that are out, and says the command that goes on."""
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
def test_a_second_ctrl_c_leaves_at_once(put_up: PutUp, terminal: Callable[..., Any], folder: Any) -> None:
    """The second Ctrl-C ends it with 130 although runs are out; the same command picks them up and none is unknown."""
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
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_what_asks_it_to_end_is_like_two(
    put_up: PutUp, start: Callable[..., "subprocess.Popen[str]"], folder: Any, name: str
) -> None:
    """Asked to end, or left by its terminal, a batch leaves at once as well, with each id in the ledger."""
    service = put_up(duration=20.0)
    folder.write_jobs(8)
    process = start(*BATCH, "--max-in-flight", "4", env=service.env)
    deadline = time.monotonic() + 30
    while len(service.emulator.runs) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(getattr(signal, name))
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
    service = put_up(keys=[other])
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
