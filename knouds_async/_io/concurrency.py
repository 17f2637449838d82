"""Tasks that belong to no caller, work that no cancellation cuts, the loop this is, a line to wait in, the clocks."""

from __future__ import annotations

import contextvars
import math
import sys
import time
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

import anyio
import attrs

from knouds_async._sansio.clock import Moment, Reading, ServiceClock
from knouds_async.errors import WrongEventLoopError

_ADVICE: Final = (
    "its connections live there. Build one client per event loop (e.g. inside the function that asyncio.run runs). "
    "Runs in progress can be attached in the new client: knouds.executions.attach(execution)"
)


def spawn(
    work: Callable[[], Coroutine[Any, Any, None]],
    context: contextvars.Context,
    *,
    ended: Callable[[], object] | None = None,
) -> object:
    """Start `work` in a task of its own, in `context`; hold on to what is returned while it runs.

    An asyncio task or a trio system task: both outlive the caller and end with the loop. `work` must not raise.
    The task is also created from within (a copy of) `context`: tracing tools read the context that creates a task.
    `ended` is called once an asyncio task has finished: the end of the loop may keep it from its very first step.
    """
    outside = context.copy()  # an eager task enters `context` itself while it is created
    if _in_trio():
        import trio

        return outside.run(lambda: trio.lowlevel.spawn_system_task(work, context=context))
    import asyncio  # it is loaded where there is a loop

    loop = asyncio.get_running_loop()
    task = outside.run(lambda: loop.create_task(work(), context=context))
    if ended is not None:
        task.add_done_callback(lambda _: ended())
    return task


def _in_trio() -> bool:
    """Return whether the running task is trio's; trio is not imported for it."""
    if "trio" not in sys.modules:
        return False
    try:
        sys.modules["trio"].lowlevel.current_task()  # `in_trio_task` came with trio 0.29
    except RuntimeError:
        return False
    return True


def from_thread() -> Callable[[Callable[[], object]], object]:
    """Return what calls a function soon in the running event loop, from any thread; RuntimeError once it has ended."""
    loop: Any = running_loop()
    call: Callable[[Callable[[], object]], object] = loop.run_sync_soon if _in_trio() else loop.call_soon_threadsafe
    return call


def call_at(when: float, work: Callable[[float], object]) -> Callable[[], object]:
    """Call `work` with how late it is, at a time of the event loop's; what is returned prevents that."""
    if not _in_trio():
        import asyncio  # as above

        loop = asyncio.get_running_loop()
        return loop.call_at(when, lambda: work(loop.time() - when)).cancel
    scope = anyio.CancelScope()

    async def wait() -> None:
        with scope:
            await anyio.sleep_until(when)
            work(anyio.current_time() - when)

    spawn(wait, contextvars.Context())
    return scope.cancel


def running_loop() -> object:
    """Return what identifies the running event loop: asyncio's loop, or trio's entry token."""
    if _in_trio():
        import trio

        return trio.lowlevel.current_trio_token()
    import asyncio  # as above

    return asyncio.get_running_loop()


def end_of_loop() -> Callable[[], bool]:
    """Return what tells, from any thread, whether the running event loop has ended: what ran in it never continues."""
    if _in_trio():
        import trio

        token = trio.lowlevel.current_trio_token()

        def has_ended() -> bool:
            try:
                token.run_sync_soon(_nothing, idempotent=True)
            except trio.RunFinishedError:
                return True
            return False

        return has_ended
    import asyncio  # as above

    running = weakref.ref(asyncio.get_running_loop())
    return lambda: (loop := running()) is None or loop.is_closed()


def _nothing() -> None:
    pass


def is_in_task_of(loop: object | None) -> bool:
    """Return whether a task of an event loop is running here, of any one for None; a plain callback is no task."""
    if _in_trio():
        return loop is None or running_loop() is loop
    import asyncio  # as above

    try:
        return asyncio.current_task() is not None and (loop is None or running_loop() is loop)
    except RuntimeError:
        return False


class HomeLoop:
    """Remembers the loop of the first use and refuses any other: sockets and events cannot move between loops.

    `thing` and `advice` are for the error.
    """

    def __init__(self, thing: str = "AsyncKnouds", advice: str = _ADVICE) -> None:
        self._home: object | None = None
        self._thing, self._advice = thing, advice

    def enter(self) -> None:
        """Bind to the running loop, or raise WrongEventLoopError at once if home is another."""
        if self._home is None:
            self._home = running_loop()
        self.check()

    def check(self) -> None:
        """Raise WrongEventLoopError if home is another loop than the running one."""
        if self._home is not None and self._home is not running_loop():
            raise WrongEventLoopError(f"this {self._thing} was first used in another event loop; {self._advice}")


T = TypeVar("T")


@attrs.frozen(eq=False, repr=False)
class Finished(Generic[T]):
    """What the work gave, and the cancellation that came meanwhile: raise it once the value is safe."""

    value: T
    cancellation: BaseException | None


class CutShort(Exception):  # noqa: N818  (it never leaves `_io`)
    """The work was cancelled from elsewhere, and the caller was not."""


class OwnTask(Generic[T]):
    """Work in a task of its own, in a copy of the caller's context, with what came of it."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self.over: Final = anyio.Event()
        self._work = work
        self._values: list[T] = []
        self._errors: list[Exception] = []
        self._task = spawn(self._run, contextvars.copy_context(), ended=self.over.set)  # loops hold tasks weakly

    async def _run(self) -> None:
        try:
            self._values.append(await self._work())
        except Exception as error:  # noqa: BLE001  (raised again, in the caller)
            self._errors.append(error)
        finally:
            self.over.set()

    def result(self, cancellation: BaseException | None = None) -> T:
        """Return what the work returned or raise what it raised; cut itself, `cancellation` or CutShort."""
        if self._errors:
            raise self._errors[0]
        if not self._values:
            raise cancellation if cancellation is not None else CutShort
        return self._values[0]


async def uninterrupted(work: Callable[[], Awaitable[T]]) -> Finished[T]:
    """Run `work` to its end, whatever happens to the caller; bounded by the work's own deadline.

    It runs in a copy of the caller's context: traces, log fields and hooks find there what the caller has set.
    Only the end of the event loop, or a second KeyboardInterrupt, cuts it; `work` is then cancelled itself.
    """
    task = OwnTask(work)
    cancellation: BaseException | None = None
    while not task.over.is_set():
        try:
            with anyio.CancelScope(shield=True):
                await task.over.wait()
        except (anyio.get_cancelled_exc_class(), KeyboardInterrupt) as stop:
            if isinstance(stop, KeyboardInterrupt) and isinstance(cancellation, KeyboardInterrupt):
                raise
            cancellation = stop.with_traceback(None)
    return Finished(task.result(cancellation), cancellation)


async def in_own_task(work: Callable[[], Awaitable[T]]) -> T:
    """Return what `work` returns; cancelled, so is the work, and it is waited for.

    For work with tasks of its own: anyio's group would count what asyncio cancels in them for the caller's task.
    """
    scope = anyio.CancelScope()

    async def run() -> T:
        with scope:
            return await work()
        raise CutShort

    task = OwnTask(run)
    try:
        await task.over.wait()
    finally:
        scope.cancel()
        await wait_until_set(task.over)
    return task.result()


async def in_thread(work: Callable[[], T]) -> T:
    """Run blocking `work` in a thread and return its value.

    Cancelled before it begins, it never does; cancelled later, it is waited for, and then the cancellation is raised.
    """
    from concurrent.futures import Future  # as above

    from anyio import to_thread

    future, is_over, call_in_loop = Future[T](), anyio.Event(), from_thread()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  (raised again, in the caller)
            future.set_exception(error)
        with suppress(RuntimeError):  # the event loop has ended: nobody waits there any more
            call_in_loop(is_over.set)

    try:
        await to_thread.run_sync(run)
    except (anyio.get_cancelled_exc_class(), KeyboardInterrupt) as stop:
        if not future.cancel():
            await wait_until_set(is_over)
        raise stop.with_traceback(None) from None
    return future.result()


async def wait_until_set(event: anyio.Event) -> None:
    """Wait for an event that is certain to come, through any number of cancellations."""
    while not event.is_set():
        with suppress(anyio.get_cancelled_exc_class(), KeyboardInterrupt), anyio.CancelScope(shield=True):
            await event.wait()


async def checkpoint() -> None:
    """Yield to other tasks; raises the caller's cancellation."""
    from anyio.lowlevel import checkpoint  # as above

    await checkpoint()


def is_cancelled() -> bool:
    """Return whether the caller's scope is cancelled, so that its next await will raise."""
    return anyio.current_effective_deadline() == -math.inf


class native_cancellation:  # noqa: N801  (used like anyio's functions)
    """Keeps a cancellation by asyncio itself (`Task.cancel`, Ctrl-C) from being taken for one of anyio's.

    Where a scope or a task group of ours ends in the step in which its task is cancelled, the error bears that scope's
    mark: a task group of the caller's could swallow it. So this is around all that a caller awaits.
    """

    def __enter__(self) -> None:
        """Enter nothing."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Remove the mark, unless a scope of the caller's is cancelled."""
        if error is not None and isinstance(error, anyio.get_cancelled_exc_class()) and not is_cancelled():
            error.args, error.__context__ = (), None


class Wakeup:
    """Lets tasks wait until something changes; each change wakes all of them."""

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    async def wait(self) -> None:
        """Wait for the next change."""
        self._event = self._event or anyio.Event()
        await self._event.wait()

    def notify(self) -> None:
        """Wake all who wait."""
        if self._event is not None:
            self._event.set()
            self._event = None


class FIFOLimiter:
    """A bounded number of slots, handed out first come, first served.

    Unlike anyio's limiter it takes no step of the event loop when a slot is free, and keeps its count under native
    asyncio cancellation with every release of anyio.
    """

    def __init__(self, limit: float) -> None:
        self.limit: Final = limit
        self.in_use = 0
        self._queue: OrderedDict[anyio.Event, None] = OrderedDict()

    def try_acquire(self) -> bool:
        """Acquire a slot if one is free and nobody waits for it; return whether it was taken."""
        if self.in_use >= self.limit:  # so as long as somebody waits: a released slot goes to them
            return False
        self.in_use += 1
        return True

    async def acquire(self) -> None:
        """Acquire a slot, or wait in the queue for one; cancelled, none is taken."""
        if self.try_acquire():
            return
        granted = anyio.Event()
        self._queue[granted] = None
        try:
            await granted.wait()
        except BaseException:
            if granted.is_set():  # the slot was handed over in the very moment of the cancellation
                self.release()
            else:
                del self._queue[granted]
            raise

    def release(self) -> None:
        """Release a slot: the first in the queue gets it."""
        if self._queue:
            self._queue.popitem(last=False)[0].set()
        else:
            self.in_use -= 1


_BOOT: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)
_OFTEN: Final = 15.0  # seconds after which an answer dates the clock again; one to a paid request always does
_ASKED: Final = 60.0  # seconds after which a service whose answer had no time may be asked again


def read_clocks(loop: float | None = None) -> Reading:
    """Return what all clocks show now; `loop`: the event loop's time, where there is one. Callable from any thread."""
    boot = None if _BOOT is None else time.clock_gettime(_BOOT)
    return Reading(loop=loop, steady=time.monotonic(), boot=boot, wall=time.time())


class ServiceTime:
    """The service's clock as one client knows it, for what has to be proven by dates."""

    def __init__(self) -> None:
        self._clock = ServiceClock()
        self._asked: Reading | None = None
        self._is_wanted = False

    def update(self, date: float | None, sent: Reading) -> None:
        """Note the `Date` (epoch seconds) of an answer of the service's own; None where it has none to go by."""
        self._is_wanted = False
        if date is not None:
            self._clock = self._clock.update(date, sent, read_clocks(anyio.current_time()))

    def moment(self, at: Reading | None = None) -> Moment:
        """Return a moment, this one by default, dated as certainly as it can be by now."""
        return self._clock.moment(at or read_clocks(anyio.current_time()))

    def is_due(self, loop: float) -> bool:
        """Return whether any answer should date the service's clock again, at a time of the event loop's."""
        since = self._clock.updated_at
        return self._is_wanted or since is None or since.loop is None or loop - since.loop > _OFTEN

    def is_worth_asking(self) -> bool:
        """Return whether the service's clock is not known, and a request could tell it."""
        now, asked = read_clocks(anyio.current_time()), self._asked
        if self._clock.moment(now).is_known:
            return False
        self._is_wanted = True
        return asked is None or now.since(asked) > _ASKED or now.has_jumped_since(asked)

    def mark_asked(self) -> None:
        """Note that the service was asked for its time."""
        self._asked = read_clocks(anyio.current_time())
