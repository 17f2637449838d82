"""Whatever happens to processes, machine, ledger, way and service, no job is paid for twice and no run is lost."""

from __future__ import annotations

import random
from pathlib import Path

import anyio
import pytest

from knouds_async.testing.virtual_time import BACKENDS, virtual_backend
from tests.scenarios import kinds
from tests.scenarios.clocks import installed
from tests.scenarios.history import Ended, cause_of
from tests.scenarios.process_history import ProcessHistory
from tests.scenarios.virtual_history import VirtualHistory


def happen(seed: int, chosen: frozenset[str], path: Path) -> Ended:
    """Let one history happen: every other on trio."""
    backend, options = virtual_backend(BACKENDS[seed % 2])

    async def run() -> Ended:
        history = VirtualHistory(seed, chosen, path)
        with installed(history.machine):
            return await history.run()

    random.seed(seed)
    return anyio.run(run, backend=backend, backend_options=options)


@pytest.mark.parametrize("seed", kinds.seeds(10))
def test_no_history_breaks_a_rule(seed: int, tmp_path: Path) -> None:
    """A random history ends without a job that ran twice, a run that is lost, or an outcome that is not true."""
    happen(seed, kinds.chosen(), tmp_path / "renders.db")


def happen_to_processes(seed: int, chosen: frozenset[str], path: Path) -> Ended:
    """Let one history happen to real processes."""

    async def run() -> Ended:
        history = ProcessHistory(seed, chosen, path)
        try:
            async with history.served():
                return await history.run()
        except BaseExceptionGroup as group:
            raise cause_of(group) from None

    return anyio.run(run)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="it is seen in /proc that a process has halted")
@pytest.mark.parametrize("seed", kinds.seeds(2))
def test_no_history_of_real_processes_breaks_a_rule(seed: int, tmp_path: Path) -> None:
    """The same with real processes, signals, sockets and locks."""
    happen_to_processes(seed, kinds.chosen(), tmp_path / "renders.db")


def test_where_nothing_goes_wrong_all_is_done(tmp_path: Path) -> None:
    """The histories themselves are no obstacle: with no fault among them each job completes."""
    ended = happen(0, frozenset(), tmp_path / "renders.db")
    assert set(ended.kinds) == {"Completed"}
