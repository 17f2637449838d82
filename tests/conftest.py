"""Every async test runs on asyncio and on trio, in virtual time unless it asks for the real clock."""

import gc
import importlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest

from knouds_async import AsyncKnouds
from knouds_async.testing.emulator import Emulator
from knouds_async.testing.transport import EmulatorTransport
from knouds_async.testing.virtual_time import BACKENDS, virtual_backend

hypothesis.settings.register_profile("knouds", deadline=None)  # no test asserts how long something took
hypothesis.settings.load_profile("knouds")

MakeClient = Callable[..., AsyncKnouds]

gc.disable()  # until all tests are collected, which makes many objects and drops none

sys.dont_write_bytecode = False  # else each of the processes compiles all that it imports, which takes it 3 s
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Each client loads all authorities that are trusted, which takes it 16 ms: here they are one, which has signed nothing.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("authority.pem"))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return more processes than cores, for tests wait much of their time; each takes 4 s to begin."""
    halves = 5 if config.option.markexpr == "not slow" else 6
    return min(12, halves * (os.cpu_count() or 1) // 2)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Begin with another module in each process, if all run: then one compiles it, and the others read that."""
    worker: dict[str, Any] = getattr(session.config, "workerinput", {})
    if not worker or session.config.args != session.config.getini("testpaths"):
        return
    root = Path(__file__).parent
    paths = sorted(root.rglob("test_*.py"))
    first = len(paths) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
    for path in paths[first:] + paths[:first]:
        with suppress(Exception, pytest.skip.Exception):  # which its collection meets again, and reports
            importlib.import_module(".".join(path.relative_to(root.parent).with_suffix("").parts))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin in each process with a test that waits for leases of a minute: all would wait for one that has two."""
    longest = [item for item in items if item.path.match("postgres/test_examples.py")]
    count, total = getattr(config, "workerinput", {}).get("workercount", 1), len(items)
    items[:] = [item for item in items if item not in longest]
    for number, item in enumerate(longest[:count]):  # a process is given as many tests as the next one, or one less
        items.insert(number * (total // count) + max(0, number - count + total % count), item)
    items[:0] = longest[count:]


def pytest_collection_finish() -> None:
    """Freeze what lasts until the end, for the collector: it is called by many tests, and would cost each 0.3 s.

    It runs more rarely than it does by default, for it takes a twentieth of the time of the tests.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print at the end of a run without the slow tests that they were left out, and how to run them."""
    if config.option.markexpr == "not slow" and not config.option.collectonly:
        terminalreporter.section("left out")
        terminalreporter.write_line(
            "The slow tests (real processes, many sockets, fuzzing over HTTP, a browser, scenarios on trio): "
            'python -m pytest -q -m slow; all tests: python -m pytest -q -m ""'
        )


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run the test on both backends, in virtual time, or by the clock on the wall where its module says REAL_TIME."""
    return (request.param, {}) if getattr(request.module, "REAL_TIME", False) else virtual_backend(request.param)


@pytest.fixture
def emulator() -> Emulator:
    """Return a service in memory whose runs take 45 s to the second."""
    return Emulator(tier="business", duration=45.0)


@pytest.fixture
async def make_client() -> AsyncIterator[MakeClient]:
    """Return what builds a client on an emulator, with `latency` seconds each way; all are closed after the test."""
    async with AsyncExitStack() as stack:

        def make(emulator: Emulator, *, latency: float = 0.04, **options: Any) -> AsyncKnouds:
            http = httpx.AsyncClient(transport=EmulatorTransport(emulator, latency=latency))
            key = options.pop("api_key", emulator.api_key)
            knouds = AsyncKnouds(key, base_url="https://knouds.test", http_client=http, **options)
            stack.push_async_callback(http.aclose)
            stack.push_async_callback(knouds.aclose)
            return knouds

        yield make


@pytest.fixture
async def knouds(make_client: MakeClient, emulator: Emulator) -> AsyncKnouds:
    """Return a client on the `emulator` fixture."""
    return make_client(emulator)
