"""The thread that carries out operations for event loops: in groups, in order, and for those who still wait."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from knouds_async._io.worker_thread import ThreadRequest, WorkerThread
from knouds_async.errors import LedgerError
from knouds_async.testing.virtual_time import BACKENDS


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run the test on both backends, by the clock on the wall: a thread is invisible to one that jumps."""
    return request.param, {}


class Adder(WorkerThread):
    """Adds one to what it is given, and keeps what it was given together."""

    def __init__(self) -> None:
        super().__init__("adder", "the adder", idle=0.0)
        self.groups: list[list[Any]] = []
        self.may_proceed, self.has_begun = threading.Event(), threading.Event()
        self.may_proceed.set()

    def _carry_out(self, kind: Any, group: Sequence[ThreadRequest]) -> list[Any]:
        self.groups.append([kind, *(request.operation for request in group)])
        self.has_begun.set()
        self.may_proceed.wait(20)
        return [self._added(request.operation) for request in group]

    def _added(self, operation: Any) -> Any:
        return operation + 1 if isinstance(operation, int) else ValueError(operation)


async def begun(adder: Adder) -> None:
    """Wait until a group is under way."""
    with anyio.fail_after(20):
        while not adder.has_begun.is_set():  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def test_what_waits_is_carried_out_together_by_kinds_and_in_order() -> None:
    """While one group is under way the next gathers; a flush comes alone, after all before it."""
    adder, order = Adder(), list[str]()

    async def ask(name: str, kind: str, number: int) -> None:
        assert await adder.do(ThreadRequest(kind, number)) == number + 1
        order.append(name)

    async def flush(name: str) -> None:
        await adder.flush(lambda: adder.groups.append([name]))

    adder.may_proceed.clear()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, "first", "a", 0)
        await begun(adder)
        for number, kind in enumerate("abab", 1):
            tasks.start_soon(ask, f"{number}", kind, number)
            await anyio.sleep(0.01)
        tasks.start_soon(flush, "flushed")
        await anyio.sleep(0.01)
        tasks.start_soon(ask, "last", "a", 9)
        await anyio.sleep(0.01)
        adder.may_proceed.set()
    assert adder.groups == [["a", 0], ["a", 1, 3], ["b", 2, 4], ["flushed"], ["a", 9]]
    assert sorted(order) == ["1", "2", "3", "4", "first", "last"]


@asynccontextmanager
async def hanging(*, may_withdraw: bool = True) -> AsyncIterator[Adder]:
    """Return a thread that is busy with one operation until the end of the block."""
    adder = Adder()
    adder.may_proceed.clear()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(adder.do, ThreadRequest("a", 1, may_withdraw=may_withdraw))
        await begun(adder)
        yield adder
        adder.may_proceed.set()


async def test_one_that_fails_spoils_no_other() -> None:
    """An error that an operation met alone is raised where it was asked for."""
    adder, values = Adder(), list[Any]()

    async def ask(operation: Any) -> None:
        try:
            values.append(await adder.do(ThreadRequest("a", operation)))
        except ValueError as error:
            values.append(f"raised: {error}")

    async with anyio.create_task_group() as tasks:
        for operation in (1, "wrong", 2):
            tasks.start_soon(ask, operation)
    assert sorted(map(str, values)) == ["2", "3", "raised: wrong"]


async def test_a_group_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits longest comes first, and the rest with the next group: nobody holds the database for long."""
    monkeypatch.setattr("knouds_async._io.worker_thread._AT_ONCE", 2)
    async with hanging() as adder, anyio.create_task_group() as tasks:
        for number in range(2, 7):
            tasks.start_soon(adder.do, ThreadRequest("a", number))
            await anyio.sleep(0.01)
        adder.may_proceed.set()
    assert adder.groups == [["a", 1], ["a", 2, 3], ["a", 4, 5], ["a", 6]]


async def test_what_nobody_waits_for_is_withdrawn_where_it_may_be() -> None:
    """A cancellation is answered at once; what must be done is done all the same, and waited for by who flushes."""
    async with hanging() as adder:
        for operation, may_withdraw in ((2, False), (3, True)):
            with anyio.move_on_after(0.05) as scope:
                await adder.do(ThreadRequest("a", operation, may_withdraw=may_withdraw))
            assert scope.cancelled_caught
        with anyio.move_on_after(0.3) as scope:
            await adder.flush(timeout=0.0)
        assert scope.cancelled_caught
    await adder.flush()
    assert adder.groups == [["a", 1], ["a", 2]]


async def test_what_must_be_done_is_waited_for_when_it_has_begun() -> None:
    """Who flushes with a timeout waits for an operation that must be done, also when nothing else is asked for."""
    async with hanging(may_withdraw=False) as adder:
        with anyio.move_on_after(0.3) as scope:
            await adder.flush(timeout=0.0)
        assert scope.cancelled_caught


async def test_nobody_is_waited_for_whose_operations_need_not_be_done() -> None:
    """Who flushes with a timeout leaves an operation that hangs, if that may be withdrawn."""
    async with hanging() as adder:
        with anyio.fail_after(15):
            await adder.flush(timeout=0.05)
        assert adder.groups == [["a", 1]]


async def test_what_waits_for_one_operation_and_fails_keeps_no_other_waiting(caplog: pytest.LogCaptureFixture) -> None:
    """What `on_done` raises is logged; the others of its group are woken, and the event loop continues."""

    def fail(*_: object) -> None:
        raise ValueError("odd")

    with anyio.fail_after(15):
        async with hanging() as adder, anyio.create_task_group() as tasks:
            adder.ask(ThreadRequest("a", 2, fail))
            tasks.start_soon(adder.do, ThreadRequest("a", 3))
            await anyio.sleep(0.01)
            adder.may_proceed.set()
    assert adder.groups == [["a", 1], ["a", 2, 3]]
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_it_ends_when_it_is_not_used_and_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread ends after a while with nothing to do; an error of its own ends it not."""
    adder, tended = Adder(), list[int]()

    def tend() -> None:
        tended.append(1)
        raise KeyError("nobody thought of it")

    monkeypatch.setattr(adder, "_tend", tend)
    for number in range(3):
        assert await adder.do(ThreadRequest("a", number)) == number + 1
        thread = adder._thread
        if thread is not None:
            await anyio.to_thread.run_sync(thread.join)
        assert adder._thread is None
    assert len(tended) == 3


async def test_a_system_that_gives_no_thread_is_an_error_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for is not carried out later; once there is a thread, all is as ever."""
    adder = Adder()

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("knouds_async._io.worker_thread._START_TIMEOUT", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(LedgerError, match="the adder cannot be used: the system has given no thread"):
            await adder.do(ThreadRequest("a", 1))
    assert await adder.do(ThreadRequest("a", 2)) == 3
    assert adder.groups == [["a", 2]]
