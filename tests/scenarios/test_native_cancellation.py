"""Cancellation by asyncio itself (`Task.cancel`, Ctrl-C), at whatever step: it ends its task, and loses no run.

The step is the nth call of a function: in one that lies between two waits, a scope of anyio's may just have ended.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import anyio
import attrs
import httpx
import pytest

from knouds_async import AsyncKnouds, Job, Polling, Retries, SQLiteLedger, Timeouts
from knouds_async.errors import ClientClosedError, NoAnswerError, SubmissionUnknownError, WaitTimeoutError
from knouds_async.fastapi import stream_updates
from knouds_async.testing import Emulator, faults, serve, virtual_backend
from knouds_async.testing.transport import EmulatorTransport
from knouds_async.webhooks import WebhookReceiver

SLUG = "my-thumbnail-pipeline"
INPUTS = {"product_name": "x"}
ANYIO_SWALLOWS = tuple(map(int, version("anyio").split(".")[:2])) < (4, 16)  # where a scope ends in the same step
VIRTUAL = virtual_backend("asyncio")


@attrs.define
class Attempt:
    """One time that an operation is begun: `arm` counts the calls from there on, `done` has the ids it returned."""

    knouds: AsyncKnouds
    emulator: Emulator
    folder: Path
    arm: Callable[[], object]
    done: list[str | None] = attrs.field(factory=list)


Operation = Callable[[Attempt], Awaitable[None]]


async def _submit(it: Attempt) -> None:
    it.arm()
    it.done.append((await it.knouds.workflows.submit(SLUG, INPUTS)).id)


async def _wait(it: Attempt) -> None:
    execution = await it.knouds.workflows.submit(SLUG, INPUTS)
    it.done.append(execution.id)
    it.arm()
    await execution


async def _wait_too_long(it: Attempt) -> None:
    execution = await it.knouds.workflows.submit(SLUG, INPUTS)
    it.done.append(execution.id)
    it.arm()
    with suppress(WaitTimeoutError):
        await execution.wait(timeout=0.005)


async def _be_delivered(it: Attempt) -> None:
    it.knouds.executions.expect_deliveries()
    execution = await it.knouds.workflows.submit(SLUG, INPUTS)
    it.done.append(execution.id)
    state = attrs.evolve(execution.state, status="completed", result={})
    asyncio.get_running_loop().call_later(0.002, it.knouds.executions.delivered, state)
    it.arm()
    await execution


async def _stream_events(it: Attempt) -> None:
    execution = await it.knouds.workflows.submit(SLUG, INPUTS)
    it.done.append(execution.id)
    events: Any = (await stream_updates(execution, heartbeat=0.01)).body_iterator
    it.arm()
    for _ in range(3):
        await anext(events)
    await events.aclose()


async def _receive_in_vain(it: Attempt) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(50.0)

    it.arm()
    assert await WebhookReceiver("whsec_0123456789abcdef", client=it.knouds).take(stalled(), "t=1,v1=0") == 400


async def _read_in_vain(it: Attempt) -> None:
    it.emulator.faults.add(faults.stalled(50.0), route="GET /api/whoami")
    it.arm()
    with suppress(NoAnswerError):
        await it.knouds.whoami()


async def _submit_in_vain(it: Attempt) -> None:
    it.emulator.faults.add(faults.stalled(50.0), route="POST /api/workflows/:slug/run")
    it.arm()
    with suppress(SubmissionUnknownError):
        await it.knouds.workflows.submit(SLUG, INPUTS)


async def _wait_for_quota(it: Attempt) -> None:
    for _ in range(10):
        await it.knouds.usage.models()
    it.arm()
    await it.knouds.usage.models()


async def _wait_for_quota_of_a_closed_client(it: Attempt) -> None:
    for _ in range(10):
        await it.knouds.usage.models()
    closing = asyncio.ensure_future(_close_later(it.knouds))
    it.arm()
    with suppress(ClientClosedError):
        await it.knouds.usage.models()
    await closing


async def _close_later(knouds: AsyncKnouds) -> None:
    await asyncio.sleep(0.01)
    await knouds.aclose()


async def _close_in_vain(it: Attempt) -> None:
    it.emulator.faults.add(faults.stalled(50.0), route="POST /api/workflows/:slug/run")
    submitting = asyncio.ensure_future(it.knouds.workflows.submit(SLUG, INPUTS, timeout=20.0))
    await asyncio.sleep(0.01)
    it.arm()
    try:
        await it.knouds.aclose()
    finally:
        submitting.cancel()


async def _gather(it: Attempt) -> None:
    it.arm()
    outcomes = await it.knouds.workflows.gather(SLUG, [INPUTS, {"product_name": "y"}])
    it.done += [getattr(outcome, "execution_id", None) for outcome in outcomes]


async def _run_once(it: Attempt) -> None:
    it.arm()
    outcome = await it.knouds.workflows.once(SLUG, Job("a", INPUTS), ledger=it.folder / "ledger")
    it.done.append(getattr(outcome, "execution_id", None))


async def _map_on_a_file(it: Attempt) -> None:
    jobs = [Job("a", INPUTS), Job("b", {"product_name": "y"})]
    it.arm()
    async with it.knouds.workflows.map(SLUG, jobs, ledger=it.folder / "ledger") as outcomes:
        it.done += [getattr(outcome, "execution_id", None) async for outcome in outcomes]


async def _submit_with_a_key(it: Attempt) -> None:
    it.arm()
    ledger = it.folder / "ledger"
    it.done.append((await it.knouds.workflows.submit(SLUG, INPUTS, key="a", ledger=ledger)).id)


async def _ask(it: Attempt) -> None:
    it.arm()
    await it.knouds.whoami()


async def _download(it: Attempt) -> None:
    execution = await it.knouds.workflows.submit(SLUG, INPUTS)
    it.done.append(execution.id)
    it.emulator.finish(execution.id)
    run = await execution
    it.arm()
    await it.knouds.download(run.media[0], it.folder)


async def _download_all(it: Attempt) -> None:
    execution = await it.knouds.workflows.submit(SLUG, INPUTS)
    it.done.append(execution.id)
    it.emulator.finish(execution.id)
    run = await execution
    it.arm()
    await it.knouds.download_all(run, it.folder)


IN_MEMORY: Final[list[Operation]] = [
    _submit,
    _wait,
    _wait_too_long,
    _be_delivered,
    _stream_events,
    _receive_in_vain,
    _read_in_vain,
    _submit_in_vain,
    _wait_for_quota,
    _wait_for_quota_of_a_closed_client,
    _close_in_vain,
    _gather,
]
ON_FIRST_CONNECTIONS: Final[list[Operation]] = [_ask, _download, _download_all]
ON_SOCKETS: Final = [*ON_FIRST_CONNECTIONS, _run_once, _map_on_a_file, _submit_with_a_key]


@asynccontextmanager
async def in_memory(emulator: Emulator) -> AsyncIterator[AsyncKnouds]:
    """Yield a client that needs no socket, and waits a second for answers."""
    options: Any = {"timeouts": Timeouts(total=1.0, submit=1.0), "retries": Retries(attempts=1)}
    async with (
        httpx.AsyncClient(transport=EmulatorTransport(emulator, latency=0.001)) as http,
        AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http, **options) as knouds,
    ):
        yield knouds


@asynccontextmanager
async def on_sockets(emulator: Emulator) -> AsyncIterator[AsyncKnouds]:
    """Yield a client that has no connection yet."""
    async with (
        serve(emulator, serves_media=True) as base_url,
        AsyncKnouds(emulator.api_key, base_url=base_url, polling=Polling.every(0.03)) as knouds,
    ):
        yield knouds


class Sweep:
    """Cancels an operation at one step after the other, and lists what is wrong with how it ended."""

    def __init__(self, operation: Operation, folder: Path, log: pytest.LogCaptureFixture) -> None:
        self._operation, self._folder, self._log = operation, folder, log
        self.wrong: list[str] = []
        self.cancelled = 0

    async def __call__(self, clients: Any, times: int, *, by_timeout: bool) -> None:
        """Cancel at so many steps, from the first to the last; `by_timeout`: by one of asyncio's around it."""
        last = 0
        for _ in range(2):  # the first run loads and caches much
            last = sys.maxsize - await self._cancel_at(sys.maxsize, clients, by_timeout=by_timeout)
        for number in range(times):
            left = await self._cancel_at(last * number // times, clients, by_timeout=by_timeout)
            self.cancelled += left < 0

    async def _cancel_at(self, step: int, clients: Any, *, by_timeout: bool) -> int:
        folder = self._folder / str(len(list(self._folder.iterdir())))
        folder.mkdir()
        self._log.clear()
        emulator = Emulator(tier="pro", limit=10, duration=0.02)
        async with clients(emulator) as knouds:
            calls = _Calls(step)
            attempt = Attempt(knouds, emulator, folder, calls.arm)
            task = asyncio.ensure_future(
                self._in_timeout(attempt, calls) if by_timeout else self._alone(attempt, calls)
            )
            calls.cancel = calls.cancel or task.cancel
            await asyncio.wait([task])
            calls.disarm()
            await asyncio.sleep(3.0 if clients is in_memory else 0.0)  # for submits that are finished all the same
        self._check(f"step {step}", task, calls, by_timeout=by_timeout)
        on_record = await _on_record(folder / "ledger")
        lost = {run.execution_id for run in emulator.runs} - {*attempt.done, *on_record}
        self.wrong += [f"step {step}: {run} is lost" for run in lost if run not in self._log.text]
        return calls.left

    async def _alone(self, attempt: Attempt, calls: _Calls) -> None:
        try:
            await self._operation(attempt)
            calls.disarm()
        except asyncio.CancelledError as error:
            _check_unmarked(error)
            assert _cancelling() == 1, "the cancellation is not counted as it was"
            raise
        await asyncio.sleep(0)  # where one that came too late is raised

    async def _in_timeout(self, attempt: Attempt, calls: _Calls) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as scope:
                calls.cancel = scope._on_timeout  # type: ignore[attr-defined]  # what its timer calls
                await self._operation(attempt)
                calls.disarm()
                await asyncio.sleep(0)
        assert _cancelling() == 0, "the cancellation is still counted"

    def _check(self, name: str, task: asyncio.Task[None], calls: _Calls, *, by_timeout: bool) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.wrong.append(f"{name}: {error!r}")
        elif calls.came and not by_timeout and not task.cancelled() and not ANYIO_SWALLOWS:
            self.wrong.append(f"{name}: the cancellation was swallowed")


class _Calls:
    """Counts the calls of functions, and calls `cancel` at one of them."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.came = False
        self.cancel: Callable[[], object] | None = None

    def arm(self) -> None:
        sys.setprofile(self._count)

    def disarm(self) -> None:
        sys.setprofile(None)

    def _count(self, _: object, event: str, __: object) -> None:
        self.left -= event == "call"  # within those of C, asyncio and anyio finish what must not be cancelled
        if self.left < 0 and event == "call" and not self.came:
            self.came = True
            assert self.cancel is not None
            self.cancel()


def _cancelling() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _check_unmarked(error: BaseException | None) -> None:
    """Check that no task group of anyio's takes a cancellation for one of its own."""
    while isinstance(error, asyncio.CancelledError):
        assert not error.args, f"marked: {error}"
        error = error.__context__


async def _on_record(path: Path) -> set[str]:
    if not await anyio.Path(path).exists():
        return set()
    async with SQLiteLedger(path) as ledger:
        found = [await ledger.find(key) for key in "ab"]
    return {run for each in found if each is not None and (run := each.execution_id) is not None}


SLOW = pytest.mark.slow
CASES = [
    *(pytest.param(VIRTUAL, in_memory, each, 60, False) for each in IN_MEMORY),
    *(pytest.param(VIRTUAL, in_memory, each, 60, True, marks=SLOW) for each in IN_MEMORY),
    *(pytest.param(VIRTUAL, in_memory, each, 250, False, marks=SLOW) for each in IN_MEMORY),
    *(pytest.param("asyncio", on_sockets, each, 40, False) for each in ON_FIRST_CONNECTIONS),
    *(pytest.param("asyncio", on_sockets, each, 60, False, marks=SLOW) for each in ON_SOCKETS),
    *(pytest.param("asyncio", on_sockets, each, 60, True, marks=SLOW) for each in ON_SOCKETS),
]
LEAST = {in_memory: 0.88, on_sockets: 0.75}  # of the steps at which it is cancelled before it has ended


@pytest.mark.parametrize(("anyio_backend", "clients", "operation", "times", "by_timeout"), CASES)
async def test_a_cancelled_task_ends_at_whatever_step(
    clients: Any, operation: Operation, times: int, by_timeout: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends as cancelled, by an error that only its own canceller takes, and each run is returned or logged."""
    sweep = Sweep(operation, tmp_path, caplog)
    await sweep(clients, times, by_timeout=by_timeout)
    assert (sweep.wrong, sweep.cancelled > LEAST[clients] * times) == ([], True)
