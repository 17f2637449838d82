"""The lines that `knouds batch` writes, and the file they are appended to."""

import errno
import json
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async import (
    Cancelled,
    Completed,
    ExecutionFailedError,
    ExecutionState,
    Failed,
    InvalidInputsError,
    Job,
    NotRun,
    NotRunReason,
    Outcome,
    RunResult,
    Unknown,
    errors,
)
from knouds_async._cli.batch_results import ResultsFile, encode_line, has_line, is_kept, result_line

NAMES = ["key", "status", "execution_id", "result", "cost", "ms", "error"]
JOB = Job("a", {"x": 1})
STATE = ExecutionState(execution_id="e", status="cancelled", result=[1], cost=3, ms=50)
BROKE = ExecutionFailedError("it broke", code="BAD", execution_id="e")
NO_ANSWER = errors.NoAnswerError("no answer came")
OUTCOMES: list[tuple[Outcome, list[Any]]] = [
    (Completed(job=JOB, run=RunResult([1], 12, 40, "e")), ["a", "completed", "e", [1], 12, 40, None]),
    (Completed(job=JOB, run=RunResult(None)), ["a", "completed", None, None, None, None, None]),
    (
        Failed(job=JOB, error=BROKE, execution_id="e", state=STATE),
        ["a", "failed", "e", [1], 3, 50, {"code": "BAD", "message": "it broke"}],
    ),
    (Cancelled(job=JOB, state=STATE), ["a", "cancelled", "e", [1], 3, 50, None]),
    (
        NotRun(job=JOB, reason=NotRunReason.BUDGET, error=errors.BudgetExceededError("12 of 10")),
        ["a", "not_run", None, None, None, None, {"code": "budget", "message": "12 of 10"}],
    ),
    (
        Unknown(job=JOB, error=NO_ANSWER, execution_id="e"),
        ["a", "unknown", "e", None, None, None, {"code": None, "message": "no answer came"}],
    ),
    (
        Unknown(job=JOB, error=NO_ANSWER, is_abandoned=True),
        ["a", "abandoned", None, None, None, None, {"code": None, "message": "no answer came"}],
    ),
]


@pytest.mark.parametrize(("outcome", "values"), OUTCOMES)
def test_every_outcome_is_a_line_with_the_same_names(outcome: Outcome, values: list[Any]) -> None:
    """A line says key, status, id, result, cost, time and error, null where there is none, and is JSON."""
    assert result_line(outcome) == dict(zip(NAMES, values, strict=True))
    assert list(json.loads(json.dumps(result_line(outcome)))) == NAMES
    assert has_line(outcome)


def test_files_stand_in_the_line() -> None:
    """Where files were to be saved, their paths are in the line, or null when one could not be had."""
    completed, failed = Completed(job=JOB, run=RunResult([1], 12, 40, "e")), OUTCOMES[2][0]
    assert result_line(attrs.evolve(completed, files=(Path("x/e-1.png"),)), save=True)["files"] == [
        str(Path("x/e-1.png"))
    ]
    assert result_line(completed, save=True)["files"] is None
    assert "files" not in result_line(completed)
    assert "files" not in result_line(failed, save=True)


def test_the_line_of_a_key_is_that_of_the_job_that_runs() -> None:
    """A second job of a key, a job that was stopped before its turn, and one of another batch's have no line."""
    invalid = NotRun(job=JOB, reason=NotRunReason.INVALID, error=InvalidInputsError("no"))
    assert has_line(invalid)
    assert not has_line(attrs.evolve(invalid, reason=NotRunReason.DUPLICATE))
    assert not has_line(attrs.evolve(invalid, reason=NotRunReason.STOPPED))
    assert not has_line(Unknown(job=JOB, error=NO_ANSWER, is_elsewhere=True))


@pytest.mark.parametrize(
    ("line", "plain", "retrying", "saving"),
    [
        ({"status": "completed"}, True, True, False),
        ({"status": "completed", "files": None}, True, True, False),
        ({"status": "completed", "files": []}, True, True, True),
        ({"status": "failed"}, True, False, True),
        ({"status": "cancelled"}, True, False, True),
        ({"status": "abandoned"}, True, True, True),
        ({"status": "not_run"}, False, False, False),
        ({"status": "unknown"}, False, False, False),
        ({"status": "of another version"}, False, False, False),
    ],
)
def test_what_comes_anew_makes_room(line: dict[str, Any], plain: bool, retrying: bool, saving: bool) -> None:
    """Lines of finished runs stay, unless they are run again or their files are still to be saved."""
    assert is_kept(line, retry_failed=False, save=False) is plain
    assert is_kept(line, retry_failed=True, save=False) is retrying
    assert is_kept(line, retry_failed=False, save=True) is saving


def line(key: str, status: str = "completed", **more: Any) -> dict[str, Any]:
    """Make a line."""
    return {"key": key, "status": status, **more}


def final(given: Mapping[str, Any]) -> bool:
    """Keep the lines of finished runs."""
    return given["status"] in ("completed", "failed", "cancelled")


def write(path: Path, *lines: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Open a file, write lines, close it; give what is in it then."""
    results = ResultsFile(path, final)
    for one in lines:
        results.write(one)
    results.close()
    assert path.read_bytes() == b"" or path.read_bytes().endswith(b"\n")
    return [json.loads(text) for text in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a place for results."""
    return tmp_path / "results.jsonl"


def test_lines_are_appended_and_a_job_has_one(path: Path) -> None:
    """A rerun adds what is not there and repeats nothing."""
    assert write(path, line("a"), line("b")) == [line("a"), line("b")]
    assert write(path, line("a"), line("c"), line("c", "failed")) == [line("a"), line("b"), line("c")]


@given(st.text(), st.lists(st.text(), max_size=3))
def test_no_text_makes_two_lines(tmp_path_factory: pytest.TempPathFactory, key: str, texts: list[str]) -> None:
    """Whatever a result holds, it is one line to every reader, and comes out as it went in."""
    path = tmp_path_factory.mktemp("any") / "results.jsonl"
    given = line(key, result=[*texts, "\u2028\x85\r\x0b\ud800"])
    assert write(path, given) == [given]
    assert write(path, given) == [given]


def test_a_torn_last_line_is_repaired(path: Path) -> None:
    """Wherever a crash cut the last line, the others stay and its job gets a whole one."""
    for cut in range(1, len(encode_line(line("b", result="x" * 9)))):
        whole = [line("a"), line("b", result="x" * 9)]
        path.write_bytes(encode_line(whole[0]) + encode_line(whole[1])[:cut])
        assert write(path, *whole) == whole, cut


def test_a_torn_only_line_is_repaired(path: Path) -> None:
    """The first line that a crash cut is repaired too."""
    for cut in range(1, len(encode_line(line("a")))):
        path.write_bytes(encode_line(line("a"))[:cut])
        assert write(path, line("a")) == [line("a")], cut


def test_holes_that_a_crash_of_the_machine_left_are_repaired(path: Path) -> None:
    """Blocks of zeros at the end or before later lines are taken out."""
    path.write_bytes(encode_line(line("a")) + b"\0" * 50 + encode_line(line("b")) + encode_line(line("c")) + b"\0" * 9)
    assert write(path, line("b")) == [line("a"), line("c"), line("b")]


def test_a_line_that_lacks_its_end_gets_it(path: Path) -> None:
    """What an editor has cut is no loss, and what is to be made anew is taken out there too."""
    path.write_bytes(encode_line(line("a")) + encode_line(line("b"))[:-1])
    assert write(path) == [line("a"), line("b")]
    path.write_bytes(encode_line(line("a")) + encode_line(line("b", "unknown"))[:-1])
    assert write(path, line("b")) == [line("a"), line("b")]


def test_what_is_not_final_is_made_again(path: Path) -> None:
    """The lines of jobs that were not run or are unknown make room for what has become of them."""
    write(path, line("a"), line("b", "unknown"), line("c", "not_run"), line("d", "failed"))
    path.chmod(0o640)
    assert write(path, line("c"), line("d")) == [line("a"), line("d", "failed"), line("c")]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(path.parent.iterdir()) == [path]


def test_a_second_line_of_a_job_goes(path: Path) -> None:
    """A file in which a job has two lines keeps the first."""
    path.write_bytes(encode_line(line("a")) + encode_line(line("a", "failed")))
    assert write(path) == [line("a")]


def test_a_link_is_followed(path: Path) -> None:
    """What a link points to is written, and the link stays."""
    real = path.with_name("real.jsonl")
    real.write_bytes(encode_line(line("a")) + encode_line(line("b", "unknown")))
    path.symlink_to(real)
    assert write(path) == [line("a")]
    assert path.is_symlink()


@pytest.mark.parametrize(
    "data",
    [
        b'{"key": "a", "inputs": {}}\n',
        b"one\ntwo\n",
        b"SQLite format 3\0\n",
        b"\0\0\n",
        b"no line end",
        b"\0",
        b'{"product_name": "x"',
        encode_line(line("a")) + b"three\n",
        encode_line(line("a")) + b'{"key": 3, "status": "completed"}\n',
    ],
)
def test_what_is_no_file_of_results_is_left_as_it_is(path: Path, data: bytes) -> None:
    """Another file that was named by mistake is refused and keeps every byte."""
    path.write_bytes(data)
    with pytest.raises(Exception, match=r"--out .*results\.jsonl.* left unchanged"):
        ResultsFile(path, final)
    assert path.read_bytes() == data


def test_what_cannot_be_had_is_said(path: Path) -> None:
    """A folder, or a folder that is not there, is wrong usage in one line."""
    with pytest.raises(Exception, match="Is a directory"):
        ResultsFile(path.parent, final)
    with pytest.raises(Exception, match="No such file"):
        ResultsFile(path / "results.jsonl", final)


def test_two_batches_do_not_share_a_file(path: Path) -> None:
    """A file that another batch writes is refused until that one has ended, also when it was rewritten."""
    write(path, line("a"), line("b", "unknown"))
    for _ in range(2):  # the first time it is rewritten when it is opened
        results = ResultsFile(path, final)
        with pytest.raises(Exception, match="another `knouds batch` is writing to it"):
            ResultsFile(path, bool)
        results.close()
    assert write(path) == [line("a")]


def test_a_pipe_gets_every_line(path: Path) -> None:
    """What is no file, such as a pipe to a program, is written to as it is."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    results = ResultsFile(path, final)
    results.write(line("a"))
    results.close()
    assert os.read(reader, 1000) == encode_line(line("a"))
    os.close(reader)


def test_a_reader_of_a_pipe_that_has_gone_is_noticed(path: Path) -> None:
    """A pipe is not held open by its writer, or a batch would write to nobody for ever."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    results = ResultsFile(path, final)
    os.close(reader)
    with pytest.raises(BrokenPipeError, match="results"):
        results.write(line("a"))
    results.close()


def test_what_a_shell_opens_is_written_to(path: Path) -> None:
    """A path that leads to a pipe by way of /dev/fd is one, although its target has no name."""
    source, sink = os.pipe()
    results = ResultsFile(Path(f"/dev/fd/{sink}"), final)
    results.write(line("a"))
    results.close()
    assert os.read(source, 1000) == encode_line(line("a"))
    os.close(source)
    os.close(sink)


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("step", ["replace", "open"])
def test_a_file_that_cannot_be_replaced_is_overwritten(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    """A file that is mounted by itself, or in a folder that cannot be written, keeps its place and its other lines."""
    write(path, line("a"), line("b", "unknown"), line("c"))
    inode, open_file = path.stat().st_ino, os.open

    def refuse(*args: Any, **more: Any) -> Any:
        if step == "open" and not str(args[0]).endswith(".part"):
            return open_file(*args, **more)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*((Path, "replace", refuse) if step == "replace" else (os, "open", refuse)))
    assert write(path, line("b")) == [line("a"), line("c"), line("b")]
    assert path.stat().st_ino == inode
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no bound on the size of files")
def test_a_full_disk_leaves_whole_lines(path: Path) -> None:
    """A line that the disk does not take leaves no piece, is said with the file's name, and comes in the next run."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    results = ResultsFile(path, bool)
    results.write(line("a"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as full:
            results.write(line("b", result="x" * 100))
        results.write(line("c", "failed"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    results.close()
    assert full.value.filename == str(path)
    assert write(path, line("b")) == [line("a"), line("c", "failed"), line("b")]
