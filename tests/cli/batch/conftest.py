"""A folder that `knouds batch` is run in, and a terminal with keys to run it at."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest

PROGRAM = [sys.executable, "-m", "knouds_async"]
QUICK = ("--expected", "0.1")  # for the runs here are over at once, which a new process cannot know
PATIENCE = 60.0  # seconds: what a test waits for comes in one or never


@attrs.frozen
class Folder:
    """The folder that commands are run in."""

    path: Path

    def write_jobs(self, number: int, **more: Any) -> None:
        """Write so many jobs, keyed by their numbers, to `jobs.jsonl`."""
        jobs = ({"key": f"j{n}", "inputs": {"product_name": f"Mug {n}", **more}} for n in range(number))
        (self.path / "jobs.jsonl").write_text("".join(f"{json.dumps(job)}\n" for job in jobs))

    def lines(self, name: str = "out.jsonl") -> list[dict[str, Any]]:
        """Read a file of results, each line of which is whole."""
        text = (self.path / name).read_text()
        assert text == "" or text.endswith("\n")
        return [json.loads(line) for line in text.splitlines()]

    def results(self, name: str = "out.jsonl") -> dict[str, dict[str, Any]]:
        """Give the line of each key, which has one."""
        lines = self.lines(name)
        found = {line["key"]: line for line in lines}
        assert len(found) == len(lines)
        return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Give an empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return Folder(tmp_path)


class Terminal:
    """`knouds` at a terminal of 80 columns, whose keys can be pressed."""

    def __init__(self, *args: str, env: Mapping[str, str]) -> None:
        """Start it."""
        import fcntl  # not on Windows
        import pty
        import termios

        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, b"\x18\x00\x50\x00\x00\x00\x00\x00")  # 24 lines of 80 columns
        self.process = subprocess.Popen(  # noqa: S603
            [*PROGRAM, *args, *QUICK],
            env={**env, "TERM": "xterm-256color", "COLUMNS": "80"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  (no thread has begun in the child)
        )
        os.close(theirs)
        self._said = bytearray()
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # that is how the end of a terminal shows
            while part := os.read(self._ours, 65536):
                with self._news:
                    self._said += part
                    self._news.notify_all()

    @property
    def said(self) -> str:
        """All that was written so far."""
        return self._said.decode(errors="replace")

    def wait_for(self, words: str) -> None:
        """Wait until these words were written."""
        with self._news:
            assert self._news.wait_for(lambda: words in self.said, PATIENCE), self.said

    def press_ctrl_c(self) -> None:
        """Press Ctrl-C."""
        os.write(self._ours, b"\x03")

    def end(self) -> int:
        """Wait for the end and give the exit code."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def close(self) -> None:
        """End what is left of it."""
        self.process.kill()
        self.end()
        os.close(self._ours)


@pytest.fixture
def terminal(heeds_signals: None) -> Iterator[Callable[..., Terminal]]:
    """Give what starts `knouds` at a terminal; what is left of it is killed after the test."""
    with ExitStack() as stack:

        def started(*args: str, env: Mapping[str, str]) -> Terminal:
            terminal = Terminal(*args, env=env)
            stack.callback(terminal.close)
            return terminal

        yield started
