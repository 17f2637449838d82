"""What an earlier run left in a file of results: taken up, mended at its end, rid of what is to be made anew.

Rule of the file: what is not a file of results is a UsageError, and not a byte of it is changed.
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

Line: TypeAlias = Mapping[str, Any]
Keep: TypeAlias = Callable[[Line], bool]

_BEGINNING: Final = b'{"key": "'  # of every line


def lock(file: int, path: Path) -> None:
    """Keep other processes out for as long as the file is open; where there are no such locks, go without."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        why = "another `knouds batch` writes it; give this one a file of its own"
        raise UsageError(f"--out {one_line(str(path))}: {why}") from None
    except OSError:
        return  # a file system without locks


@attrs.define
class _Found:
    """What is in a file: the keys that stay, the length of its whole lines, what follows, whether a line must go."""

    keys: Seen = attrs.Factory(Seen)
    whole: int = 0
    rest: bytes = b""
    has_stale: bool = False


def take_over(file: int, path: Path, keep: Keep) -> tuple[int, Seen]:
    """Mend a file and take out each line that `keep` refuses; give the descriptor to go on with, and the keys in it."""
    found = _look(file, path, keep)
    _mend_end(file, path, found)
    return _rewritten(file, path, keep) if found.has_stale else (file, found.keys)


def _look(file: int, path: Path, keep: Keep, copy: BinaryIO | None = None) -> _Found:
    """Read the whole lines and copy those that stay; a job's second line and one that a crash left holes in go."""
    os.lseek(file, 0, os.SEEK_SET)
    with open(file, "rb", closefd=False) as stream:
        return _look_through(stream, path, keep, copy)


def _look_through(stream: BinaryIO, path: Path, keep: Keep, copy: BinaryIO | None) -> _Found:
    found, number = _Found(), 0
    while (raw := stream.readline()).endswith(b"\n"):
        number += 1
        line = _read(raw)
        if line is None and (number == 1 or b"\0" not in raw):
            raise UsageError(f"--out {one_line(str(path))} line {number} is no result; the file was left as it is")
        if line is None or not keep(line) or not found.keys.add(line["key"]):
            found.has_stale = True
        elif copy is not None:
            copy.write(raw)
        found.whole += len(raw)
    found.rest = raw
    return found


def _read(raw: bytes) -> Line | None:
    """Read a line; None when it is no result."""
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    is_result = isinstance(line, dict) and isinstance(line.get("key"), str) and isinstance(line.get("status"), str)
    return line if is_result else None


def _mend_end(file: int, path: Path, found: _Found) -> None:
    """Cut off the beginning of a line; a line that lacks nothing but its end gets it."""
    if not found.rest:
        return
    line = _read(found.rest)
    if not (line or found.whole or found.rest.startswith(_BEGINNING) or _BEGINNING.startswith(found.rest)):
        raise UsageError(f"--out {one_line(str(path))} is no file of results; it was left as it is")
    if line is None:
        os.ftruncate(file, found.whole)
        return
    os.lseek(file, 0, os.SEEK_END)
    os.write(file, b"\n")
    found.has_stale = True  # it was not looked at: look again


def _rewritten(file: int, path: Path, keep: Keep) -> tuple[int, Seen]:
    """Put a file with the lines that stay in the place of this one; a crash leaves the one or the other."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    new = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    try:
        lock(new, path)
        with open(new, "wb", closefd=False) as copy:
            found = _look(file, path, keep, copy)
        part.chmod(stat.S_IMODE(os.fstat(file).st_mode))
        os.fsync(new)
        if os.name == "nt":
            os.close(file)  # nothing that is open can be replaced there
        part.replace(path)
    except BaseException:
        os.close(new)
        part.unlink(missing_ok=True)
        raise
    if os.name != "nt":
        os.close(file)  # not before: it keeps others out
    return new, found.keys
