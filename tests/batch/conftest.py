"""Ledgers of batches; a file's thread is invisible to a clock that jumps, so what uses one says REAL_TIME."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from knouds_async.testing import Emulator
from tests.batch.in_loop import InLoopLedger, close_databases


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
def ledger(path: Path) -> InLoopLedger:
    """Return a ledger in the loop."""
    return InLoopLedger(path)


@pytest.fixture
def quick() -> Emulator:
    """Return a service without limits whose runs finish at once."""
    return Emulator(tier="enterprise", duration=0.05)
