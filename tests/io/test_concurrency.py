"""Work that no cancellation cuts: what it sees of its caller, and that a thread at work is waited for."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable

import anyio
import pytest
from anyio.lowlevel import checkpoint

from knouds_async._io.concurrency import FIFOLimiter, end_of_loop, from_thread, in_thread, uninterrupted
from knouds_async.testing import VirtualTimeLoop

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_end_of_a_loop_is_noticed(backend: str) -> None:
    """Other threads can tell that an event loop has ended; one that stands still has not."""

    async def main() -> None:
        found.append(end_of_loop())
        assert not found[0]()

    found: list[Callable[[], bool]] = []
    anyio.run(main, backend=backend)
    assert found[0]()
    loop = asyncio.new_event_loop()
    found.append(loop.run_until_complete(_end_of_this()))
    assert not found[1]()
    loop.close()
    assert found[1]()


async def _end_of_this() -> Callable[[], bool]:
    return end_of_loop()


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)
async def test_work_in_a_thread_is_waited_for() -> None:
    """A caller that is cancelled waits for the thread, and is cancelled when it has finished."""
    begun, may_end, is_over = anyio.Event(), threading.Event(), False
    call_in_loop = from_thread()

    def work() -> None:
        nonlocal is_over
        call_in_loop(begun.set)
        may_end.wait(10)
        is_over = True

    async def cancel() -> None:
        await begun.wait()
        scope.cancel()
        may_end.set()

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel)
            await in_thread(work)
            await checkpoint()
    assert scope.cancelled_caught
    assert is_over


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("times", [1, 3])
async def test_a_native_cancellation_waits_for_the_thread(times: int) -> None:
    """asyncio's own cancellations, however many, do not reach past the thread that is at work."""
    begun, may_end, seen = asyncio.Event(), threading.Event(), ""
    loop = asyncio.get_running_loop()

    def work() -> None:
        nonlocal seen
        loop.call_soon_threadsafe(begun.set)
        may_end.wait(10)
        seen += "thread "

    async def call() -> None:
        nonlocal seen
        try:
            await in_thread(work)
        finally:
            seen += "caller"

    task = asyncio.ensure_future(call())
    await begun.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    may_end.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert seen == "thread caller"


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_work_that_has_not_begun_is_given_up() -> None:
    """Work that is cancelled while it waits for a thread never begins."""
    busy, may_end, done = [], threading.Event(), []
    limit = int(anyio.to_thread.current_default_thread_limiter().total_tokens)
    busy = [asyncio.ensure_future(in_thread(lambda: may_end.wait(10))) for _ in range(limit)]
    task = asyncio.ensure_future(in_thread(lambda: done.append(1)))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    may_end.set()
    await asyncio.gather(*busy)
    assert task.cancelled()
    assert not done


async def test_uninterrupted_work_sees_what_its_caller_has_set() -> None:
    """Work that cannot be cut runs in a copy of its caller's context."""
    request_id.set("mine")

    async def work() -> tuple[str, contextvars.Context]:
        seen = request_id.get()
        request_id.set("the work's")
        return seen, contextvars.copy_context()

    finished = await uninterrupted(work)
    assert finished.value[0] == "mine"
    assert finished.value[1][request_id] == "the work's"
    assert request_id.get() == "mine"


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


async def test_slots_are_given_in_order_and_none_is_lost_by_a_cancellation() -> None:
    """A task that is cancelled in the very moment in which a slot is handed over passes it on."""
    slots, order = FIFOLimiter(1), list[int]()
    await slots.acquire()

    async def wait(number: int, scope: anyio.CancelScope) -> None:
        with scope:
            await slots.acquire()
            order.append(number)
            slots.release()

    async with anyio.create_task_group() as tasks:
        scopes = [anyio.CancelScope() for _ in range(4)]
        for number, scope in enumerate(scopes):
            tasks.start_soon(wait, number, scope)
            await anyio.wait_all_tasks_blocked()
        scopes[1].cancel()
        await anyio.wait_all_tasks_blocked()
        slots.release()
        scopes[0].cancel()
    assert order in ([2, 3], [0, 2, 3])
    assert slots.try_acquire()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_slot_that_is_handed_over_in_the_moment_of_a_native_cancellation_is_passed_on() -> None:
    """The same for a task that asyncio itself cancels."""
    slots = FIFOLimiter(1)
    await slots.acquire()
    waiting = [asyncio.ensure_future(slots.acquire()) for _ in range(2)]
    await anyio.wait_all_tasks_blocked()
    slots.release()
    waiting[0].cancel()
    _, pending = await asyncio.wait(waiting, timeout=5)
    assert not pending
    assert [task.cancelled() for task in waiting] == [True, False]
    assert slots.in_use == 1
