"""Whatever happens to processes, machine, ledger, way and service, no job is paid for twice and no run is lost."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from trio._core import _run as scheduler

from knouds_async.testing.virtual_time import BACKENDS, virtual_backend
from tests.scenarios import kinds
from tests.scenarios.clocks import installed
from tests.scenarios.history import Ended, cause_of
from tests.scenarios.judge import ViolationError
from tests.scenarios.process_history import ProcessHistory
from tests.scenarios.virtual_history import VirtualHistory


def happen(seed: int, chosen: frozenset[str], path: Path, kind: type[VirtualHistory] = VirtualHistory) -> Ended:
    """Run one history: every other on trio."""
    backend, options = virtual_backend(BACKENDS[seed % 2])

    async def run() -> Ended:
        history = kind(seed, chosen, path)
        with installed(history.machine):
            return await history.run()

    with deterministic(seed):
        return anyio.run(run, backend=backend, backend_options=options)


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Seed the library's random numbers and trio's order of tasks."""
    before = random.getstate(), scheduler._r.getstate()
    random.seed(seed)
    scheduler._r.seed(seed)
    setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True)  # noqa: B010  (trio has it for tests, and as final)
    try:
        yield
    finally:
        random.setstate(before[0])
        scheduler._r.setstate(before[1])
        setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", False)  # noqa: B010


def happen_to_processes(seed: int, chosen: frozenset[str], path: Path) -> Ended:
    """Run one history with real processes."""

    async def run() -> Ended:
        history = ProcessHistory(seed, chosen, path)
        try:
            async with history.served():
                return await history.run()
        except BaseExceptionGroup as group:
            raise cause_of(group) from None

    return anyio.run(run)


@pytest.mark.parametrize("seed", kinds.seeds(10))
def test_no_history_breaks_a_rule(seed: int, tmp_path: Path) -> None:
    """A random history ends without a job that ran twice, a run that is lost, or an outcome that is not true."""
    happen(seed, kinds.chosen(), tmp_path / "renders.db")


@pytest.mark.slow
@pytest.mark.parametrize("seed", kinds.seeds(120, start=1000))
def test_none_of_many_histories_breaks_a_rule(seed: int, tmp_path: Path) -> None:
    """The same, for as many as KNOUDS_HISTORIES says."""
    happen(seed, kinds.chosen(), tmp_path / "renders.db")


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(kinds.KINDS - {"lost"}))
def test_no_kind_of_trouble_alone_breaks_a_rule(kind: str, tmp_path: Path) -> None:
    """With one kind alone, and answers that are lost, it is not hidden by what others put an end to before."""
    for seed in range(10):
        happen(seed, frozenset({kind, "lost"}), tmp_path / f"{seed}.db")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="it is seen in /proc that a process has halted")
@pytest.mark.parametrize("seed", kinds.seeds(6))
def test_no_history_of_real_processes_breaks_a_rule(seed: int, tmp_path: Path) -> None:
    """The same with real processes, signals, sockets and locks."""
    happen_to_processes(seed, kinds.chosen(), tmp_path / "renders.db")


def test_where_nothing_goes_wrong_all_is_done(tmp_path: Path) -> None:
    """The histories themselves are no obstacle: with no fault among them each job completes."""
    ended = happen(0, frozenset(), tmp_path / "renders.db")
    assert set(ended.kinds) == {"Completed"}


def test_caution_does_not_stop_the_work(tmp_path: Path) -> None:
    """Where answers are lost and nothing else is odd, most jobs are done in the end: unknown is no way out."""
    ended = [happen(seed, frozenset({"lost"}), tmp_path / f"{seed}.db") for seed in range(10)]
    done = sum(one.kinds.get("Completed", 0) for one in ended)
    assert done >= 0.6 * sum(sum(one.kinds.values()) for one in ended)


def test_a_client_that_forgets_is_noticed(tmp_path: Path) -> None:
    """The judge sees it when jobs are paid for twice: here by processes each of which has a ledger of its own."""

    class Forgetful(VirtualHistory):
        @property
        def path_of_next(self) -> Path:
            return tmp_path / f"{next(numbers)}.db"

    numbers = itertools.count()
    with pytest.raises(ViolationError, match=r"job-. ran 2 times[^$]*once more: KNOUDS_HISTORY_SEED=1 "):
        happen(1, frozenset({"lost"}), tmp_path / "renders.db", Forgetful)
