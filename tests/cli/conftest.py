"""`knouds` as its users meet it: a process of its own, against an emulator on a port, in real time."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
from anyio.from_thread import start_blocking_portal

from knouds_async.cli.app import run
from knouds_async.testing import Emulator, serve

PROGRAM = [sys.executable, "-m", "knouds_async.cli"]


@attrs.frozen
class Ended:
    """How a process ended, and what it said."""

    code: int
    out: str
    err: str


@attrs.frozen
class Service:
    """An emulator on a port, and `knouds` pointed at it."""

    emulator: Emulator
    base_url: str

    @property
    def env(self) -> dict[str, str]:
        """The environment of a user who has a key and points at this service."""
        return environment(KNOUDS_KEY=self.emulator.api_key, KNOUDS_BASE_URL=self.base_url)

    def knouds(self, *args: str, stdin: str | None = None, **env: str) -> Ended:
        """Run `knouds` with these arguments to its end."""
        return run_knouds(*args, stdin=stdin, env=self.env | env)


def environment(**given: str) -> dict[str, str]:
    """This process's environment, without what would change how `knouds` behaves, and with what is given."""
    noise = ("KNOUDS_KEY", "KNOUDS_BASE_URL", "FORCE_COLOR", "TTY_COMPATIBLE", "PYTHONWARNINGS", "PYTHONUNBUFFERED")
    return {name: text for name, text in os.environ.items() if name not in noise} | {"COLUMNS": "100"} | given


def hurried(args: Sequence[str]) -> list[str]:
    """Tell a command that waits that the runs here are short, for it cannot know and would look late."""
    expected = ["--expected", "0.1"] if args[:1] in (("run",), ("batch",)) and "--expected" not in args else []
    return [*args[:1], *expected, *args[1:]]


def run_knouds(*args: str, stdin: str | None = None, env: Mapping[str, str] | None = None) -> Ended:
    """Run `knouds` to its end, without a terminal."""
    done = subprocess.run(  # noqa: S603
        [*PROGRAM, *hurried(args)],
        input=stdin if stdin is not None else "",
        env=environment() if env is None else env,
        capture_output=True,
        encoding="utf-8",
        timeout=90,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def put_up() -> Iterator[Callable[..., Service]]:
    """Give what puts an emulator with these settings on a port until the test is over."""
    with ExitStack() as stack:

        def up(**settings: Any) -> Service:
            quick: dict[str, Any] = {"tier": "business", "duration": 0.1}
            emulator = Emulator(**(quick | settings))
            portal = stack.enter_context(start_blocking_portal())
            base_url = stack.enter_context(portal.wrap_async_context_manager(serve(emulator)))
            return Service(emulator, base_url)

        yield up


@pytest.fixture
def service(put_up: Callable[..., Service]) -> Service:
    """Give a service whose runs take a tenth of a second."""
    return put_up()


@pytest.fixture
def knouds() -> Callable[..., Ended]:
    """Give what runs `knouds` to its end, without a key and with no service named."""
    return run_knouds


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Give what runs `knouds` in this process, which is quicker."""

    def run_here(service: Service, *args: str) -> Ended:
        monkeypatch.setenv("KNOUDS_KEY", service.emulator.api_key)
        monkeypatch.setenv("KNOUDS_BASE_URL", service.base_url)
        capsys.readouterr()
        code = run(hurried(args))
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return run_here


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Give what starts `knouds` and leaves it running; what is left of it is killed after the test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child would inherit that it is ignored
    with ExitStack() as stack:

        def started(*args: str, env: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
            process = subprocess.Popen(  # noqa: S603
                [*PROGRAM, *hurried(args)],
                env=environment() if env is None else env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield started
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def in_terminal() -> Callable[..., Ended]:
    """Give what runs `knouds` at a terminal of 100 columns; both streams come back as one."""
    return _run_in_terminal


def _run_in_terminal(*args: str, env: Mapping[str, str]) -> Ended:
    import pty  # not on Windows

    ours, theirs = pty.openpty()
    process = subprocess.Popen(  # noqa: S603
        [*PROGRAM, *hurried(args)], env={**env, "TERM": "xterm-256color"}, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = bytearray()
    with suppress(OSError):  # that is how the end of a terminal shows
        while part := os.read(ours, 65536):
            said += part
    os.close(ours)
    return Ended(process.wait(timeout=30), said.decode(), "")


@pytest.fixture
def checkout() -> Path:
    """Give the root of the repository."""
    return Path(__file__).parents[2]
