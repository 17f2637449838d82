"""The results of `knouds batch`: JSON Lines, one line per job, appended to a file or written to stdout.

The ledger is the record, this is a copy. A line is written completely or not at all, each job has at most one, and a
line lost here is restored from the ledger when the batch is run again. A finished run keeps its line for good; a job
that was not run, or whose outcome is unknown, gets a new line. A file that holds anything but results is not changed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias, assert_never

import attrs

from knouds_async import (
    Cancelled,
    Completed,
    ExecutionState,
    Failed,
    Job,
    KnoudsError,
    NotRun,
    NotRunReason,
    Outcome,
    RunResult,
    Status,
    Unknown,
)
from knouds_async._batch.jobs import outcome_of_entry
from knouds_async._batch.progress import format_credits
from knouds_async._cli import output
from knouds_async._cli.errors import UsageError, format_error
from knouds_async._cli.output import one_line
from knouds_async._sansio.keys import Seen
from knouds_async._sansio.ledger import Entry, Stage

_RETRYABLE = (Status.FAILED, Status.CANCELLED)
_FINISHED = (Status.COMPLETED, *_RETRYABLE, "abandoned")
_NOT_WRITTEN = (NotRunReason.DUPLICATE, NotRunReason.STOPPED)  # the key's line is another job's, or comes later


def result_line(outcome: Outcome, *, save: bool = False) -> dict[str, Any]:
    """Return the line of an outcome; with `save` that of a completed one has `files`, None where one is missing."""
    line = _line_without_files(outcome)
    if save and isinstance(outcome, Completed):
        line["files"] = None if outcome.files is None else [str(path) for path in outcome.files]
    return line


def has_line(outcome: Outcome) -> bool:
    """Return whether a line is written for an outcome."""
    match outcome:
        case NotRun(reason=reason):
            return reason not in _NOT_WRITTEN
        case Unknown(is_elsewhere=is_elsewhere):
            return not is_elsewhere  # it comes later, too
        case _:
            return True


def is_kept(line: Mapping[str, Any], *, retry_failed: bool, save: bool) -> bool:
    """Return whether a line of an earlier run is kept: not when its job is run or its files are downloaded again."""
    status = line["status"]
    is_saved = not save or status != Status.COMPLETED or line.get("files") is not None
    return status in _FINISHED and is_saved and not (retry_failed and status in _RETRYABLE)


def is_retryable(line: Mapping[str, Any]) -> bool:
    """Return whether the job of a line may be run again."""
    return line["status"] in _RETRYABLE


def is_current(line: Mapping[str, Any], entry: Entry) -> bool:
    """Return whether a line is of the last run of its job in the ledger, not of an earlier one."""
    if entry.stage is not Stage.FINAL:
        return False
    current: dict[str, Any] = json.loads(
        json.dumps(result_line(outcome_of_entry(Job(entry.key, {}), entry)), default=str)
    )
    return current == line


def _line_without_files(outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case Completed(job=job, run=run):
            return _make_line(job.key, Status.COMPLETED, run.execution_id, result=run.result, cost=run.cost, ms=run.ms)
        case Failed(job=job, error=error, execution_id=execution_id, state=state):
            return _make_line(job.key, Status.FAILED, execution_id, state, error=_error_record(error, None))
        case Cancelled(job=job, state=state):
            return _make_line(job.key, Status.CANCELLED, state.execution_id, state)
        case NotRun(job=job, reason=reason, error=error):
            return _make_line(job.key, "not_run", error=_error_record(error, reason))
        case Unknown(job=job, error=error, execution_id=execution_id, is_abandoned=is_abandoned):
            return _make_line(
                job.key, "abandoned" if is_abandoned else "unknown", execution_id, error=_error_record(error, None)
            )
        case _:
            assert_never(outcome)


def _make_line(
    key: str,
    status: str,
    execution_id: str | None = None,
    state: ExecutionState | None = None,
    *,
    result: Any = None,
    cost: float | None = None,
    ms: float | None = None,
    error: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a line; a state, where there is one, provides the result, the cost and the time."""
    return {
        "key": key,
        "status": str(status),
        "execution_id": execution_id or None,
        "result": result if state is None else state.result,
        "cost": cost if state is None else state.cost,
        "ms": ms if state is None else state.ms,
        "error": error,
    }


def _error_record(error: KnoudsError, reason: str | None) -> dict[str, Any]:
    """Return an error's code, or the reason the job was not run, and the service's message, or ours."""
    return {
        "code": getattr(error, "code", None) or reason,
        "message": getattr(error, "message", "") or format_error(error),
    }


class ResultsFile:
    """An open file of results.

    It is opened or created, to append to; lines that `keep` rejects are removed, to be written again. UsageError, with
    the file unchanged, when it cannot be opened, holds something else, or is locked.
    """

    def __init__(self, path: Path, keep: KeepLine) -> None:
        try:
            # A pipe is not opened for reading too, or nobody would notice that its reader has gone.
            self._is_new = not path.exists()
            access = os.O_RDWR | os.O_CREAT if self._is_new or path.is_file() else os.O_WRONLY
            self._file = os.open(path, access | getattr(os, "O_BINARY", 0), 0o666)
            self._is_regular = stat.S_ISREG(os.fstat(self._file).st_mode)
            self._path = path.resolve() if self._is_regular else path  # replace the target, not the link
            self._keys = self._recover(keep) if self._is_regular else Seen()
        except OSError as error:
            raise UsageError(f"--out {one_line(str(path))}: {error.strerror}") from None

    def remove(self, keys: Collection[str]) -> None:
        """Remove the lines of jobs that were run again; raises UsageError when the file cannot be written."""
        try:
            self._file, self._keys = recover(self._file, self._path, lambda line: line["key"] not in keys)
            self._end = os.lseek(self._file, 0, os.SEEK_END)
        except OSError as error:
            raise UsageError(f"--out {one_line(str(self._path))}: {error.strerror}") from None

    def _recover(self, keep: KeepLine) -> Seen:
        try:
            lock(self._file, self._path)
            self._file, keys = recover(self._file, self._path, keep)
        except BaseException:
            os.close(self._file)
            raise
        self._end = os.lseek(self._file, 0, os.SEEK_END)
        return keys

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line, unless its job has one; raises OSError, with the file unchanged, when it cannot be written."""
        if not self._keys.add(line["key"]):
            return
        try:
            self._append(encode_line(line))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def _append(self, data: bytes) -> None:
        remaining = memoryview(data)
        try:
            while remaining:
                remaining = remaining[os.write(self._file, remaining) :]
        except OSError:
            if self._is_regular:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._end)
                    os.lseek(self._file, self._end, os.SEEK_SET)
            raise
        if self._is_regular:
            self._end += len(data)

    def close(self, *, keeps_new: bool = True) -> None:
        """Flush the lines to the disk and release the lock; one that was made for nothing is removed."""
        with contextlib.suppress(OSError):  # the ledger has it all
            os.fsync(self._file)
            if self._is_new and not keeps_new:
                self._path.unlink()  # while it is locked: `lock` refuses one that was removed meanwhile
        os.close(self._file)


def encode_line(line: Mapping[str, Any]) -> bytes:
    """Return a line as ASCII JSON, so that no reader sees a line end inside it."""
    return (json.dumps(line, default=str) + "\n").encode("ascii")


ResultLine: TypeAlias = Mapping[str, Any]
KeepLine: TypeAlias = Callable[[ResultLine], bool]

_LINE_PREFIX: Final = b'{"key": "'  # of every line


def lock(file: int, path: Path) -> None:
    """Lock the file against other processes until it is closed, where the file system has locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file).st_nlink == 0:
            raise BlockingIOError
    except BlockingIOError:
        why = "another `knouds batch` is writing to it; use another file"
        raise UsageError(f"--out {one_line(str(path))}: {why}") from None
    except OSError:
        return  # a file system without locks


@attrs.define
class _ScanResult:
    """The keys to keep, the length of the complete lines, the incomplete rest, whether lines must be removed."""

    keys: Seen = attrs.Factory(Seen)
    complete_bytes: int = 0
    trailing: bytes = b""
    needs_rewrite: bool = False


def recover(file: int, path: Path, keep: KeepLine) -> tuple[int, Seen]:
    """Repair a file and remove lines that `keep` rejects; return its descriptor and the keys that remain."""
    scan = _scan(file, path, keep)
    _repair_last_line(file, path, scan)
    return _rewrite(file, path, keep) if scan.needs_rewrite else (file, scan.keys)


def _scan(file: int, path: Path, keep: KeepLine, copy: BinaryIO | None = None) -> _ScanResult:
    """Scan the complete lines and copy those to keep; drops duplicate keys and lines that a crash filled with NULs."""
    os.lseek(file, 0, os.SEEK_SET)
    with open(file, "rb", closefd=False) as stream:
        return _scan_stream(stream, path, keep, copy)


def _scan_stream(stream: BinaryIO, path: Path, keep: KeepLine, copy: BinaryIO | None) -> _ScanResult:
    scan, number = _ScanResult(), 0
    while (raw := stream.readline()).endswith(b"\n"):
        number += 1
        line = _parse_line(raw)
        if line is None and (number == 1 or b"\0" not in raw):
            raise UsageError(f"--out {one_line(str(path))} line {number} is not a result; the file was left unchanged")
        if line is None or not keep(line) or not scan.keys.add(line["key"]):
            scan.needs_rewrite = True
        elif copy is not None:
            copy.write(raw)
        scan.complete_bytes += len(raw)
    scan.trailing = raw
    return scan


def _parse_line(raw: bytes) -> ResultLine | None:
    """Return a line, or None when it is not a result."""
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    is_result = isinstance(line, dict) and isinstance(line.get("key"), str) and isinstance(line.get("status"), str)
    return line if is_result else None


def _repair_last_line(file: int, path: Path, scan: _ScanResult) -> None:
    """Truncate an incomplete line, or add the line end that a complete one lacks."""
    if not scan.trailing:
        return
    line = _parse_line(scan.trailing)
    if not (
        line or scan.complete_bytes or scan.trailing.startswith(_LINE_PREFIX) or _LINE_PREFIX.startswith(scan.trailing)
    ):
        raise UsageError(f"--out {one_line(str(path))} is not a file of results; it was left unchanged")
    if line is None:
        os.ftruncate(file, scan.complete_bytes)
        return
    os.lseek(file, 0, os.SEEK_END)
    os.write(file, b"\n")
    scan.needs_rewrite = True  # it was not checked against `keep`


def _rewrite(file: int, path: Path, keep: KeepLine) -> tuple[int, Seen]:
    """Replace the file atomically by one with the lines to keep; a mounted one is overwritten, as nothing replaces it.

    The ledger has what a crash in the middle of overwriting would lose.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        new = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    except OSError as error:
        if error.errno not in _NOT_REPLACEABLE:
            raise
        return _overwrite(file, path, keep)
    try:
        lock(new, path)
        keys = _copy(file, path, keep, new)
        temporary.chmod(stat.S_IMODE(os.fstat(file).st_mode))
        os.fsync(new)
        if os.name == "nt":
            os.close(file)  # an open file cannot be replaced there
        temporary.replace(path)
    except BaseException as error:
        os.close(new)
        temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError) or error.errno not in _NOT_REPLACEABLE:
            raise
        return _overwrite(file, path, keep)
    if os.name != "nt":
        os.close(file)  # not before: it holds the lock
    return new, keys


_NOT_REPLACEABLE: Final = {errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS}


def _copy(file: int, path: Path, keep: KeepLine, new: int) -> Seen:
    with open(new, "wb", closefd=False) as copy:
        return _scan(file, path, keep, copy).keys


def _overwrite(file: int, path: Path, keep: KeepLine) -> tuple[int, Seen]:
    """Overwrite the file with the lines to keep."""
    with tempfile.TemporaryFile() as kept:
        keys = _copy(file, path, keep, kept.fileno())
        kept.seek(0)
        os.lseek(file, 0, os.SEEK_SET)
        with open(file, "wb", closefd=False) as stream:
            shutil.copyfileobj(kept, stream)
        os.ftruncate(file, kept.tell())
    return file, keys


class StdoutResults:
    """Writes each line at once; `is_exact`: as JSON at a terminal too."""

    def __init__(self, *, is_exact: bool) -> None:
        self._is_short = sys.stdout.isatty() and not is_exact

    def write(self, line: Mapping[str, Any]) -> None:
        """Write a line; raises OSError when the reader has closed the pipe."""
        try:
            print(_short_line(line) if self._is_short else json.dumps(line, default=str), flush=True)
        except OSError:
            output.discard(sys.stdout)
            raise

    def close(self, *, keeps_new: bool = True) -> None:
        """Leave stdout open."""


def _short_line(line: Mapping[str, Any]) -> str:
    """Return a line for people: key, status, cost, and the first file, the text or the error."""
    error = line["error"]
    run = RunResult(line["result"])
    outputs = line.get("files") or [one.url for one in run.media] or ([run.text] if run.text else [])
    last = error["message"] if error else " ".join(map(str, outputs[:1]))
    cost = "" if line["cost"] is None else f"{format_credits(line['cost'])} credits"
    return "  ".join(one_line(part) for part in (line["key"], line["status"], cost, last) if part)
