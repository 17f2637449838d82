"""`knouds` as its users meet it, against an emulator on a port; in a process of its own only where that counts."""

import io
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from threading import Thread
from typing import Any, TextIO

import attrs
import pytest
from anyio.from_thread import start_blocking_portal

import knouds_async
from knouds_async.testing import Emulator, Request, Response, serve

PROGRAM = [sys.executable, "-m", "knouds_async"]
QUICK = ("--expected", "0.1")  # for the runs here are over at once, which a new process cannot know
HOME = {"COLUMNS": "100", "XDG_CONFIG_HOME": os.devnull}  # a terminal's width, and no file of keys
PROMPT: dict[str, Any] = {
    "duration": 0.0,
    "models": [attrs.evolve(model, is_async=False) for model in Emulator().models],
}
"""Settings of a service whose runs end with the request that starts them."""
PATIENCE = 60.0  # seconds: what a test waits for comes in one or never


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

    def submit(self, target: str) -> str:
        """Start a run without inputs, as another program of the account does, and return its id."""
        headers = {"x-api-key": self.emulator.api_key}
        request = Request("POST", f"/api/{target}/run", "async=true", headers, b'{"inputs": {}}')
        answer = self.emulator.handle(request, time.monotonic())  # the clock of the loop that serves it
        assert isinstance(answer, Response)
        return str(json.loads(answer.body)["executionId"])

    def knouds(
        self,
        *args: str,
        stdin: str | Path | int | None = None,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        **env: str,
    ) -> Ended:
        """Run `knouds` with these arguments to its end."""
        return run_knouds(*args, stdin=stdin, stdout=stdout, stderr=stderr, env=self.env | env)


def environment(**given: str) -> dict[str, str]:
    """This process's environment, without what would change how `knouds` behaves, and with what is given."""
    noise = (
        "KNOUDS_KEY",
        "KNOUDS_BASE_URL",
        "KNOUDS_PROFILE",
        "FORCE_COLOR",
        "TTY_COMPATIBLE",
        "PYTHONWARNINGS",
        "PYTHONUNBUFFERED",
    )
    return {name: text for name, text in os.environ.items() if name not in noise} | HOME | given


def hurried(args: Sequence[str]) -> list[str]:
    """Add to a command that waits that runs are short, since it cannot know and would poll late."""
    expected = ["--expected", "0.1"] if args[:1] in (("run",), ("batch",)) and "--expected" not in args else []
    return [*args[:1], *expected, *args[1:]]


def run_knouds(
    *args: str,
    stdin: str | Path | int | None = None,
    stdout: TextIO | None = None,
    stderr: TextIO | None = None,
    env: Mapping[str, str] | None = None,
) -> Ended:
    """Run `knouds` to its end in this process, without a terminal.

    `stdin`: a text, which a pipe gives, a file, or a file descriptor, -1 for one that is closed.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        _as_environment(environment() if env is None else env),
        _as_stdin(stdin or ""),
        redirect_stdout(stdout or out),
        redirect_stderr(stderr or err),
    ):
        code = _run_main(args)
    return Ended(code, out.getvalue(), err.getvalue())


def _run_main(args: Sequence[str]) -> int:
    """Run what `python -m knouds_async` runs."""
    with pytest.MonkeyPatch.context() as patch, _signals_put_back(), pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["knouds", *hurried(args)])
        runpy.run_path(knouds_async.__path__[0] + "/__main__.py", run_name="__main__")
    assert isinstance(ended.value.code, int)
    return ended.value.code


@contextmanager
def _signals_put_back() -> Iterator[None]:
    """Undo what the command changes of signals: for a process of its own there is nobody to put them back for."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, []) if hasattr(signal, "pthread_sigmask") else set()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextmanager
def _as_environment(env: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _as_stdin(given: str | Path | int) -> Iterator[None]:
    """Replace both `sys.stdin` and its file descriptor, which a batch reads."""
    if given == -1:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", None)
            yield
        return
    before, ours = sys.stdin, os.dup(0)
    match given:
        case str():
            source = _pipe_of(given)
        case int():
            source = os.dup(given)
        case _:
            source = os.open(given, os.O_RDONLY)
    os.dup2(source, 0)
    os.close(source)
    try:
        with open(0, encoding="utf-8", closefd=False) as sys.stdin:
            yield
    finally:
        sys.stdin = before
        os.dup2(ours, 0)
        os.close(ours)


def _pipe_of(text: str) -> int:
    source, sink = os.pipe()
    with open(sink, "w", encoding="utf-8") as stream:  # noqa: PTH123  (a pipe holds it all: it is short)
        stream.write(text)
    return source


@pytest.fixture
def put_up() -> Iterator[Callable[..., Service]]:
    """Return what serves an emulator with these settings on a port until the test ends."""
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
    """Return a service whose runs take a tenth of a second."""
    return put_up()


@pytest.fixture
def prompt_service(put_up: Callable[..., Service]) -> Service:
    """Return a service whose runs end with the request that starts them: none is polled, which takes a second."""
    return put_up(**PROMPT)


@pytest.fixture
def media_service(put_up: Callable[..., Service]) -> Service:
    """Return a service whose files lie on its own port."""
    up = put_up(duration=0.05)
    up.emulator.media_url = f"{up.base_url}/media"
    return up


@pytest.fixture
def knouds() -> Callable[..., Ended]:
    """Return what runs `knouds` to its end, without a key and with no service named."""
    return run_knouds


@pytest.fixture
def here() -> Callable[..., Ended]:
    """Return what runs `knouds` at a service."""

    def run_here(service: Service, *args: str) -> Ended:
        return service.knouds(*args)

    return run_here


@pytest.fixture
def heeds_signals() -> Iterator[None]:
    """Start children as a shell does: they would ignore what this process ignores, as it does SIGHUP under `nohup`."""
    handlers: dict[str, Any] = {
        "SIGINT": signal.default_int_handler,
        "SIGTERM": signal.SIG_DFL,
        "SIGHUP": signal.SIG_DFL,
    }
    numbers = {getattr(signal, name): handler for name, handler in handlers.items() if hasattr(signal, name)}
    before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def start(heeds_signals: None) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Return what starts `knouds` and leaves it running; what is left of it is killed after the test."""
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


@pytest.fixture
def when(heeds_signals: None) -> Iterator[Callable[[Callable[[], object], Callable[[], object]], None]]:
    """Return what does something, in another thread, as soon as something is true while a command runs."""
    is_over = threading.Event()

    def wait_and_do(condition: Callable[[], object], act: Callable[[], object]) -> None:
        while not condition():
            if is_over.wait(0.01):
                return
        act()

    with ExitStack() as stack:

        def start(condition: Callable[[], object], act: Callable[[], object]) -> None:
            thread = Thread(target=wait_and_do, args=(condition, act))
            stack.callback(thread.join)
            thread.start()

        yield start
        is_over.set()


@pytest.fixture
def send_signal() -> Callable[[str], Callable[[], None]]:
    """Return what makes a function that sends this process a signal."""
    return lambda name: lambda: os.kill(os.getpid(), getattr(signal, name))


@pytest.fixture
def deaf_pipe() -> Iterator[TextIO]:
    """Return a pipe whose reader has gone."""
    source, sink = os.pipe()
    os.close(source)
    with suppress(BrokenPipeError), open(sink, "w", encoding="utf-8") as stream:  # noqa: PTH123
        yield stream


@pytest.fixture
def in_terminal() -> Callable[..., Ended]:
    """Return what runs `knouds` at a terminal of 100 columns; both streams come back as one."""
    return _run_in_terminal


def _run_in_terminal(*args: str, env: Mapping[str, str]) -> Ended:
    import pty  # not on Windows

    ours, theirs = pty.openpty()
    said = bytearray()
    reader = Thread(target=_read_all, args=(ours, said), daemon=True)
    reader.start()
    with (
        _as_environment({"TERM": "xterm-256color", **env}),
        _as_stdin(Path(os.ttyname(theirs))),
        open(theirs, "w", encoding="utf-8") as screen,  # noqa: PTH123
        redirect_stdout(screen),
        redirect_stderr(screen),
    ):
        code = _run_main(args)
    reader.join(30)
    os.close(ours)
    return Ended(code, said.decode(), "")


def _read_all(source: int, said: bytearray) -> None:
    with suppress(OSError):  # that is how the end of a terminal shows
        while part := os.read(source, 65536):
            said += part


@pytest.fixture
def checkout() -> Path:
    """Return the root of the repository."""
    return Path(__file__).parents[2]


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
        """Return the line of each key, which has one."""
        lines = self.lines(name)
        found = {line["key"]: line for line in lines}
        assert len(found) == len(lines)
        return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Return an empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return Folder(tmp_path)


class Terminal:
    """`knouds` at a terminal of 80 columns, whose keys can be pressed."""

    def __init__(self, *args: str, env: Mapping[str, str]) -> None:
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
    """Return what starts `knouds` at a terminal; what is left of it is killed after the test."""
    with ExitStack() as stack:

        def started(*args: str, env: Mapping[str, str]) -> Terminal:
            terminal = Terminal(*args, env=env)
            stack.callback(terminal.close)
            return terminal

        yield started
