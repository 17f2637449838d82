"""A thread that carries out operations for event loops: those that wait are carried out together, as a group commit.

It starts when something is asked of it, and ends when nothing was for a while.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import takewhile
from typing import Any, Final

import anyio
import attrs

from knouds_async._io.concurrency import from_thread
from knouds_async.errors import LedgerError
from knouds_async.telemetry import fields

logger = logging.getLogger("knouds_async")

TICK: Final = 0.5
CLOSE_TIMEOUT: Final = 2.0
"""Seconds for which one who leaves waits for a database that is away, where nothing must be written."""

_AT_ONCE: Final = 500
_START_TIMEOUT: Final = 30.0  # seconds to wait for a thread, of which the system has only so many
_FLUSH: Final = object()
_serving: Final = weakref.WeakKeyDictionary[threading.Thread, "WorkerThread"]()


def may_give_up() -> bool:
    """Return whether the process ends, and nothing that this thread carries out must be done: it waits no longer."""
    worker = _serving.get(threading.current_thread())
    return worker is not None and not worker.must_be_done() and _process_ends()


def _process_ends() -> bool:
    """Return whether no thread is left but those that serve others."""
    return not threading.main_thread().is_alive() and not any(
        each.is_alive() and not each.daemon and each not in _serving for each in threading.enumerate()
    )


@attrs.define(eq=False)
class ThreadRequest:
    """An operation, and who waits for it: a task for `done`, or a function that is called in its event loop.

    Those of equal `kind` are carried out together. `patience`: seconds to try, instead of the usual; in a group the
    longest counts. `may_withdraw`: it need not be carried out once nobody waits for it.
    """

    kind: Any
    operation: Any
    on_done: Callable[[BaseException | None, Any], object] | None = None
    patience: float | None = None
    may_withdraw: bool = False
    value: Any = None
    error: BaseException | None = None
    call_in_loop: Callable[[Callable[[], object]], object] = attrs.field(factory=from_thread)
    done: anyio.Event = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.done = anyio.Event()  # no default of the class: anyio loads what is behind that name at its first use

    def finish(self) -> None:
        """Wake the one that waits, in its event loop."""
        self.done.set()
        if self.on_done is not None:
            self.on_done(self.error, self.value)


class WorkerThread(ABC):
    """The only user of a database in this process. `subject`: what it works on, in messages."""

    def __init__(self, name: str, subject: str, *, idle: float) -> None:
        self._name, self._subject, self._idle = name, subject, idle
        self._begin()
        _workers.add(self)

    def _begin(self) -> None:
        """Begin, also anew in a forked child: no thread runs there, and the lock may be held for good."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._requests: deque[ThreadRequest] = deque()
        self._under_way: Sequence[ThreadRequest] = ()
        self._thread: threading.Thread | None = None
        self._used_at = 0.0

    def begin_in_child(self) -> object:
        """Begin anew in a forked child; return what is the parent's, and is never closed here."""
        self._begin()
        return None

    # Called in event loops.

    def ask(self, request: ThreadRequest, *, is_lazy: bool = False) -> None:
        """Pass on a request, which is finished once it is carried out or has failed. `is_lazy`: a second will do."""
        with self._lock:
            self._requests.append(request)
            if self._thread is None or not is_lazy:
                self._start_or_wake()

    async def do(self, request: ThreadRequest) -> Any:
        """Return the value of an operation.

        Cancelled: it is carried out all the same; one that may be withdrawn is not, unless it has begun.
        """
        self.ask(request)
        try:
            await self._wait_for(request)
        finally:
            if request.may_withdraw:
                self._withdraw(request)
        if request.error is not None:
            raise request.error
        return request.value

    async def flush(self, then: Callable[[], None] = lambda: None, *, timeout: float = math.inf) -> None:
        """Return once all that was asked for is carried out, and `then` was called, in the thread if that runs.

        `timeout`: after which it returns all the same, if all of that may be withdrawn.
        """
        with self._lock:
            if self._thread is None and not self._requests:  # and none can start meanwhile
                then()
                return
            must_be_done = self.must_be_done() or not all(each.may_withdraw for each in self._requests)
        with anyio.move_on_after(math.inf if must_be_done else timeout):
            await self.do(ThreadRequest(_FLUSH, then))

    def _withdraw(self, request: ThreadRequest) -> None:
        with self._lock, suppress(ValueError):
            self._requests.remove(request)

    def _start_or_wake(self) -> None:
        """Start the thread, unless the system has none to give now: the requests wait for the next attempt."""
        if self._thread is not None:
            self._wake()
            return
        thread = threading.Thread(target=self._serve, name=self._name)
        self._used_at = time.monotonic()
        with suppress(RuntimeError):
            thread.start()
            self._thread = thread

    async def _wait_for(self, request: ThreadRequest) -> None:
        until = anyio.current_time() + _START_TIMEOUT
        while not self._is_served():
            if anyio.current_time() > until:
                self._withdraw(request)
                raise LedgerError(
                    f"{self._subject} cannot be used: the system has given no thread for {_START_TIMEOUT:.0f} s. "
                    "Nothing more is submitted; what is on record stays, and the same batch continues from there"
                )
            with anyio.move_on_after(TICK):
                await request.done.wait()
        await request.done.wait()

    def _is_served(self) -> bool:
        with self._lock:
            if self._thread is None and self._requests:
                self._start_or_wake()
            return self._thread is not None or not self._requests

    # Called in the thread.

    def must_be_done(self) -> bool:
        """Return whether something is under way that is to be carried out though nobody waits for it."""
        return not all(each.may_withdraw for each in self._under_way)

    def _serve(self) -> None:
        _serving[threading.current_thread()] = self
        while self._is_needed():
            try:
                self._sleep()
                if group := self._next_group():
                    self._answer(group)
                self._tend()
            except Exception:
                message = "the thread of %s met an error that nobody expected, and continues"
                logger.exception(message, self._subject, extra=fields("database_fault"))
                self._disconnect()
                threading.Event().wait(TICK)

    def _is_needed(self) -> bool:
        """Return whether there is, or will be, something to do; the next request after that starts another thread."""
        with self._lock:
            if process_ends := _process_ends():  # nobody waits any more
                self._requests = deque(each for each in self._requests if not each.may_withdraw)
            if self._requests or (self._is_held() and not process_ends):
                return True
            self._thread = None
            self._disconnect()
            return False

    def _next_group(self) -> list[ThreadRequest]:
        """Return what waits longest and all of its kind; a flush comes after all that was asked for before it."""
        with self._lock:
            waiting = list(takewhile(lambda each: each.kind is not _FLUSH, self._requests)) or [*self._requests][:1]
            group = [each for each in waiting if each.kind == waiting[0].kind][:_AT_ONCE]
            taken = set(group)
            self._requests = deque(each for each in self._requests if each not in taken)
            self._under_way = group
            return group

    def _answer(self, group: list[ThreadRequest]) -> None:
        try:
            kind = group[0].kind
            values = self._carry_out(kind, group) if kind is not _FLUSH else [each.operation() for each in group]
            for request, value in zip(group, values, strict=True):
                request.value, request.error = (None, value) if isinstance(value, Exception) else (value, None)
        except BaseException as error:  # noqa: BLE001  (raised in each that waits)
            for request in group:
                request.error = error
        self._used_at = time.monotonic()
        with self._lock:
            self._under_way = ()
        _wake_waiters(group)

    @abstractmethod
    def _carry_out(self, kind: Any, group: Sequence[ThreadRequest]) -> Sequence[Any]:
        """Return the value of each operation of a group, or the error that it alone met."""

    def _is_held(self) -> bool:
        """Return whether the thread stays though nothing waits; the lock is held."""
        return time.monotonic() < self._used_at + self._idle

    def _wake(self) -> None:
        """End the sleep of the thread; the lock is held."""
        self._changed.notify()

    def _sleep(self) -> None:
        """Wait for a request, or for a moment."""
        with self._lock:
            if not self._requests:
                self._changed.wait(TICK)

    def _tend(self) -> None:  # noqa: B027  (not every thread has something of its own to do)
        """Do what is to be done unasked."""

    def _disconnect(self) -> None:  # noqa: B027
        """Close what the next use opens again."""


def _wake_waiters(requests: Sequence[ThreadRequest]) -> None:
    """Wake those who wait, each in its own event loop, with one call for each loop."""
    for call_in_loop in {request.call_in_loop for request in requests}:
        theirs = [request for request in requests if request.call_in_loop == call_in_loop]
        with suppress(RuntimeError):  # their event loop has ended: nobody waits there any more
            call_in_loop(partial(_finish, theirs))


def _finish(requests: Sequence[ThreadRequest]) -> None:
    """Wake those who wait in one event loop: what one of them raises keeps no other waiting, and ends no loop."""
    for request in requests:
        try:
            request.finish()
        except Exception:
            logger.exception("what waits for an operation of a database failed", extra=fields("database_fault"))


# Forks.

_workers: Final = weakref.WeakSet[WorkerThread]()
_of_parents: Final = list[object]()


def _begin_in_child() -> None:
    for worker in list(_workers):
        _of_parents.append(worker.begin_in_child())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
