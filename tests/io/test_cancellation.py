"""A submit that cannot be cut: whatever ends its caller, every run on the server is known by id or reported unknown."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from typing import Any

import anyio
import httpx
import pytest
import trio
from trio.testing import MockClock

from knouds_async import AsyncKnouds, KnoudsError, SubmissionUnknownError
from knouds_async._io.concurrency import uninterrupted
from knouds_async.testing.emulator import Emulator
from knouds_async.testing.transport import EmulatorTransport
from knouds_async.testing.virtual_time import VirtualTimeLoop

SLUG = "my-thumbnail-pipeline"
INPUTS = {"product_name": "Knouds"}

# One way takes 1 s: the request leaves at 0, runs at 1, and its reply is read at 2.
MOMENTS = {"before it was sent": 0.0, "under way": 0.5, "as it runs": 1.0, "its reply under way": 1.5, "replied": 2.0}

Submit = Callable[[], Coroutine[Any, Any, None]]
Way = Callable[[AsyncKnouds, Submit, float], Awaitable[None]]
Main = Callable[[], Coroutine[Any, Any, None]]


class _SiblingError(Exception):
    """What a sibling task fails with."""


async def _asyncio_timeout(knouds: AsyncKnouds, submit: Submit, at: float) -> None:
    async with asyncio.timeout(at):
        await submit()


async def _wait_for(knouds: AsyncKnouds, submit: Submit, at: float) -> None:
    await asyncio.wait_for(asyncio.ensure_future(submit()), at)


async def _sibling_error(knouds: AsyncKnouds, submit: Submit, at: float) -> None:
    async def sibling() -> None:
        await asyncio.sleep(at)
        raise _SiblingError

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(submit())
        tasks.create_task(sibling())


async def _two_cancels(knouds: AsyncKnouds, submit: Submit, at: float) -> None:
    task = asyncio.create_task(submit())
    await asyncio.sleep(at)
    task.cancel()
    await asyncio.sleep(0.1)
    task.cancel()
    await task


async def _scope(knouds: AsyncKnouds, submit: Submit, at: float) -> None:
    with anyio.move_on_after(at):
        await submit()


async def _group_error(knouds: AsyncKnouds, submit: Submit, at: float) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(submit)
        await anyio.sleep(at)
        tasks.cancel_scope.cancel()


async def _closed(knouds: AsyncKnouds, submit: Submit, at: float) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(submit)
        await anyio.sleep(at)
        await knouds.aclose()


ON_ASYNCIO: list[Way] = [_asyncio_timeout, _wait_for, _sibling_error, _two_cancels]
ON_BOTH: list[Way] = [_scope, _group_error, _closed]


class Books:
    """What the caller can know of its submits: ids it was given or that were logged, and reports of unknowns."""

    def __init__(self, log: pytest.LogCaptureFixture) -> None:
        self.given: set[str] = set()
        self.unknown = 0
        self._log = log

    async def submit(self, knouds: AsyncKnouds) -> None:
        try:
            self.given.add((await knouds.workflows.submit(SLUG, INPUTS)).id)
        except SubmissionUnknownError:
            self.unknown += 1
        except KnoudsError:
            pass

    def known(self) -> set[str]:
        logged = (re.search(r"execution (\S+) of", record.getMessage()) for record in self._log.records)
        return self.given | {match.group(1) for match in logged if match}

    def reported(self) -> int:
        return self.unknown + sum("may have run" in record.getMessage() for record in self._log.records)


async def _cut(way: Way, at: float, knouds: AsyncKnouds, books: Books) -> None:
    with suppress(TimeoutError, asyncio.CancelledError, BaseExceptionGroup):
        await way(knouds, lambda: books.submit(knouds), at)


def _warn(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="knouds_async")


async def _settle(emulator: Emulator) -> None:
    await anyio.sleep(10)
    emulator.settle(anyio.current_time())


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("way", ON_BOTH)
async def test_every_run_is_known_whatever_ends_its_caller(
    way: Way, moment: str, make_client: Any, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Runs on the server are the ids known and the unknowns reported, on asyncio and trio."""
    _warn(caplog)
    knouds, books = make_client(emulator, latency=1.0), Books(caplog)
    await _cut(way, MOMENTS[moment], knouds, books)
    await _settle(emulator)
    assert {run.execution_id for run in emulator.runs} == books.known()
    assert books.reported() == 0


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("way", ON_ASYNCIO)
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_every_run_is_known_under_asyncios_own_cancellation(
    way: Way, moment: str, make_client: Any, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Timeouts, `wait_for`, a failing sibling and repeated `Task.cancel` lose no run."""
    _warn(caplog)
    knouds, books = make_client(emulator, latency=1.0), Books(caplog)
    await _cut(way, MOMENTS[moment], knouds, books)
    await _settle(emulator)
    assert {run.execution_id for run in emulator.runs} == books.known()
    assert books.reported() == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_the_cancellation_is_raised_after_the_id_was_read(
    make_client: Any, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio.timeout still ends in TimeoutError, once the submit is over, and the id stands in the log."""
    _warn(caplog)
    knouds = make_client(emulator, latency=1.0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await knouds.workflows.submit(SLUG, INPUTS)
    assert anyio.current_time() >= 2.0
    assert emulator.runs[0].execution_id in caplog.text


async def test_a_scope_that_was_cancelled_meanwhile_still_gives_the_handle(
    make_client: Any, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Under a cancel scope the finished submit gives its handle, and the id is logged in case the caller drops it."""
    _warn(caplog)
    knouds = make_client(emulator, latency=1.0)
    execution = None
    with anyio.move_on_after(0.5):
        execution = await knouds.workflows.submit(SLUG, INPUTS)
    assert execution is not None
    assert execution.id == emulator.runs[0].execution_id
    assert execution.id in caplog.text


async def test_a_submit_cancelled_in_line_sends_nothing(make_client: Any) -> None:
    """A submit that waits for its turn at the limit can be cancelled freely: nothing is sent, nothing is charged."""
    emulator = Emulator(tier="pro", limit=1, duration=5.0)
    knouds = make_client(emulator)
    await knouds.workflows.submit(SLUG, INPUTS)
    with anyio.move_on_after(1) as scope:
        await knouds.workflows.submit(SLUG, INPUTS)
    assert scope.cancelled_caught
    await _settle(emulator)
    assert len(emulator.runs) == 1


async def test_a_cut_synchronous_run_is_reported(
    make_client: Any, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """A synchronous run is not waited out when its caller is cancelled, but it is reported with target and time."""
    _warn(caplog)
    knouds = make_client(emulator)
    with anyio.move_on_after(5) as scope:
        await knouds.workflows.run(SLUG, INPUTS)
    assert scope.cancelled_caught
    assert len(emulator.runs) == 1
    assert f"workflows/{SLUG}" in caplog.text
    assert "may have run" in caplog.text


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_the_end_of_the_loop_reports_a_submit_it_cuts(
    make_client: Any, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """When the loop itself ends and cancels every task, the submit under way is reported as one that may have run."""
    _warn(caplog)
    knouds = make_client(emulator, latency=1.0)
    mine = asyncio.current_task()
    task = asyncio.create_task(knouds.workflows.submit(SLUG, INPUTS))
    await asyncio.sleep(0.5)
    for other in asyncio.all_tasks() - {mine}:  # as asyncio.Runner does when it closes
        if "runner" not in str(other.get_coro()):
            other.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "may have run" in caplog.text


@pytest.mark.parametrize("turns", [0, 1])
def test_the_end_of_the_loop_waits_for_nothing_that_never_began(turns: int) -> None:
    """A loop may end before the task of a submit takes its first step: then its caller ends too."""
    ended: list[int] = []

    async def work() -> None:
        await anyio.sleep(1.0)

    async def caller() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        try:
            await uninterrupted(work)
        finally:
            ended.append(turns)

    async def main() -> None:
        tasks.append(asyncio.create_task(caller()))
        await asyncio.sleep(0)

    tasks: list[object] = []
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())
    assert ended == [turns]


def _on_asyncio(main: Main, presses: Sequence[float]) -> None:
    """Run `main`, and press Ctrl-C at the virtual times `presses`, as a terminal would."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        loop = runner.get_loop()
        for at in presses:
            loop.call_at(at, signal.raise_signal, signal.SIGINT)
        runner.run(main())


def _on_trio(main: Main, presses: Sequence[float]) -> None:
    async def press(at: float) -> None:  # in a system task, which is guarded: the main task gets the interrupt
        await trio.sleep(at)
        signal.raise_signal(signal.SIGINT)

    async def run() -> None:
        for at in presses:
            trio.lowlevel.spawn_system_task(press, at)
        await main()

    trio.run(run, clock=MockClock(autojump_threshold=0))


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Have Ctrl-C raise, as in a terminal: a program that is started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("run", [_on_asyncio, _on_trio])
def test_every_run_is_known_after_ctrl_c(
    run: Callable[[Main, Sequence[float]], None],
    moment: str,
    presses: int,
    emulator: Emulator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After Ctrl-C, pressed once or twice, runs on the server are the ids known and the unknowns reported."""
    _warn(caplog)
    books, at = Books(caplog), MOMENTS[moment] + 1e-3

    async def main() -> None:
        async with (
            httpx.AsyncClient(transport=EmulatorTransport(emulator, latency=1.0)) as http,
            AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http) as knouds,
        ):
            await books.submit(knouds)
            await anyio.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        run(main, [at + 0.2 * press for press in range(presses)])
    emulator.settle(60.0)
    ran = {run.execution_id for run in emulator.runs}
    assert books.known() <= ran
    assert len(ran - books.known()) <= books.reported() <= presses - 1
