"""Owners of jobs: alive as long as their program, whatever its process id, and never longer."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from knouds_async import LedgerError, SQLiteLedger
from knouds_async._batch.owners import Owners, check_locks, end

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="its programs neither fork nor take the place of others"
)
REAL_TIME = True


def start(path: Path, code: str) -> subprocess.Popen[str]:
    """Start a program that may use `owners`, `Owners`, `os` and `sys`, and waits for the end of its input."""
    prelude = "import os, sys; from pathlib import Path; from knouds_async._batch.owners import Owners\n"
    prelude += "owners = Owners.open(Path(sys.argv[1]))\n"
    command = [sys.executable, "-c", f"{prelude}{code}\nsys.stdin.read()", str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603


def line(program: subprocess.Popen[str]) -> str:
    """Read a line that a program prints."""
    assert program.stdout is not None
    return program.stdout.readline().strip()


def test_an_owner_lives_as_long_as_its_program(path: Path) -> None:
    """Other processes find it alive until its process ends, and gone then."""
    owners = Owners.open(path)
    with start(path, "print(owners.join(), flush=True)") as program:
        theirs = line(program)
        assert owners.is_alive(theirs)
    assert not owners.is_alive(theirs)
    mine = owners.join()
    assert owners.is_alive(mine)
    end(mine)
    assert not owners.is_alive(mine)
    owners.close()


def test_an_owner_whose_event_loop_has_ended_is_gone(path: Path) -> None:
    """Nobody is left to end it, though its program lives, and who waits for it there need not wait for ever."""
    owners, ended = Owners.open(path), [False]
    mine, other = owners.join(lambda: ended[0]), owners.join()
    assert owners.is_alive(mine)
    ended[0] = True
    assert not owners.is_alive(mine)
    assert owners.is_alive(other)
    owners.close()


def test_a_program_that_executes_itself_anew_is_another(path: Path) -> None:
    """What takes the place of a program in its process, as reloaders do, finds the owners of the former gone."""
    code = """
if len(sys.argv) == 2:
    owner = owners.join()
    os.execv(sys.executable, [*sys.orig_argv, owner])
print(owners.is_alive(sys.argv[2]), flush=True)"""
    with start(path, code) as program:
        assert line(program) == "False"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_is_no_owner(path: Path) -> None:
    """It finds the parent's owners alive while the parent is, and has owners of its own that outlive it."""
    code = """
owner = owners.join()
if os.fork() == 0:
    mine = Owners.open(Path(sys.argv[1]))
    print(mine.is_alive(owner), owner, mine.join(), flush=True)"""
    owners = Owners.open(path)
    with start(path, code) as program:
        is_alive, parent, child = line(program).split()
        assert is_alive == "True"
        assert owners.is_alive(parent)
        assert owners.is_alive(child)
        program.kill()
        program.wait()
        assert not owners.is_alive(parent)
        assert owners.is_alive(child)
    owners.close()


def test_a_ledger_that_is_closed_takes_no_lock_of_another(path: Path) -> None:
    """Ledgers of a process on one file, by whatever path, share a descriptor: closing one would drop all locks."""
    link = path.with_name("link.db")
    path.touch()
    link.symlink_to(path)
    first, second = Owners.open(path), Owners.open(link)
    owner = first.join()
    second.close()
    with start(path, f"print(owners.is_alive({owner!r}), flush=True)") as program:
        assert line(program) == "True"
    first.close()


@pytest.mark.parametrize("name", ["", "nobody", "4f0b-boot 1 4711 0123456789ab"])
def test_owners_of_earlier_forms_are_gone(name: str, path: Path) -> None:
    """Names of processes by their ids say nothing about who lives."""
    owners = Owners.open(path)
    assert not owners.is_alive(name)
    owners.close()


def test_nobody_is_gone_where_the_system_does_not_say(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that cannot be tested leaves its owner alive: what it sends must not become unknown."""
    owners = Owners.open(path)
    _without_locks(monkeypatch)
    assert owners.is_alive("0123456789ab")
    owners.close()


async def test_a_file_system_without_locks_is_said_to_be_one_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger there is refused before SQLite takes it for locked by somebody else, and is not made."""
    _without_locks(monkeypatch)
    with pytest.raises(OSError, match="no locks"):
        check_locks(path.parent)
    with pytest.raises(LedgerError, match=r"its file system has no locks.*needs a local disk"):
        async with SQLiteLedger(path):
            pass
    assert list(path.parent.iterdir()) == []


def _without_locks(patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    patch.setattr("fcntl.lockf", refuse)
