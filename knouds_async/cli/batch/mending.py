"""Recover a file of results of an earlier run: repair its last line and remove lines that will be written again.

A file that holds anything but results raises UsageError and is left unchanged.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

import attrs

from knouds_async._sansio.keys import Seen
from knouds_async.cli.exits import UsageError
from knouds_async.cli.words import one_line

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
    """Replace the file atomically by one with the lines to keep."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    new = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    try:
        lock(new, path)
        with open(new, "wb", closefd=False) as copy:
            scan = _scan(file, path, keep, copy)
        temporary.chmod(stat.S_IMODE(os.fstat(file).st_mode))
        os.fsync(new)
        if os.name == "nt":
            os.close(file)  # an open file cannot be replaced there
        temporary.replace(path)
    except BaseException:
        os.close(new)
        temporary.unlink(missing_ok=True)
        raise
    if os.name != "nt":
        os.close(file)  # not before: it holds the lock
    return new, scan.keys
