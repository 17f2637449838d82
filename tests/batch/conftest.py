"""Batches: in virtual time, but for those on a ledger's file, whose thread is invisible to a clock that jumps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from knouds_async.testing import Emulator, virtual_backend
from knouds_async.testing.virtual_time import BACKENDS
from tests.batch.in_loop import close_databases


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run the test on both backends; by the clock on the wall where the test's module says so."""
    return (request.param, {}) if getattr(request.module, "REAL_TIME", False) else virtual_backend(request.param)


@pytest.fixture(autouse=True)
def closed_databases() -> Iterator[None]:
    """Close the files of ledgers that a test leaves open."""
    yield
    close_databases()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a ledger that is not there yet."""
    return tmp_path / "renders.db"


@pytest.fixture
def quick() -> Emulator:
    """Return a service without limits whose runs finish at once."""
    return Emulator(tier="enterprise", duration=0.05)
