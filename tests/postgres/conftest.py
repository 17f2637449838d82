"""Tests on a real PostgreSQL: skipped with a reason where there is none, and never in CI."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from knouds_async.testing.virtual_time import BACKENDS
from tests.postgres.server import Pooler, Server, missing

_NUMBERS = itertools.count()


def require(*names: str) -> None:
    """Skip the test where a program is missing; fail where that must not be."""
    if (why := missing(*names)) is not None:
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run the test on both backends, by the clock on the wall: a thread is invisible to one that jumps."""
    return request.param, {}


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Return a folder that other users may enter, as those of pytest may not be: the server does not run as root."""
    memory = Path("/dev/shm")  # noqa: S108  (where there is one: to delete many files from a busy disk takes a minute)
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 2 << 30
    with tempfile.TemporaryDirectory(prefix="knouds-postgres-", dir=memory if has_room else None) as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture(scope="session")
def template(folder: Path) -> Server:
    """Return a server that is never started: the data folders of all others are copies of its."""
    require("postgres", "initdb")
    made = Server(folder / "template" / "data")
    made.create()
    return made


@pytest.fixture(scope="session")
def server(folder: Path, template: Server) -> Iterator[Server]:
    """Return a server that runs as long as the tests do."""
    made = Server(folder / "shared" / "data")
    made.copy(template)
    made.start()
    yield made
    made.stop(signal.SIGQUIT)


@pytest.fixture
def own_server(folder: Path, template: Server) -> Iterator[Server]:
    """Return a server that a test may stop."""
    made = Server(folder / f"own{next(_NUMBERS)}" / "data")
    made.copy(template)
    made.start()
    yield made
    made.stop(signal.SIGQUIT)


@pytest.fixture
def database(server: Server) -> str:
    """Return the name of a new, empty database."""
    name = f"test{next(_NUMBERS)}"
    server.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    return name


@pytest.fixture
def url(server: Server, database: str) -> str:
    """Return the URL of a new, empty database."""
    return server.url(database)


@pytest.fixture
def pooler(server: Server, folder: Path) -> Iterator[Pooler]:
    """Return a pgbouncer with transaction pooling."""
    require("pgbouncer")
    made = Pooler(folder / f"pooler{next(_NUMBERS)}", server)
    yield made
    made.stop()
