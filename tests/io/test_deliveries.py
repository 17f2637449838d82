"""The inbox of deliveries: where they are processed, and as long as what they are listened for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from knouds_async._io.deliveries import DeliveryInbox
from knouds_async.types import ExecutionState, Status

STATE = ExecutionState(execution_id="5e0c9f10-3f41-4ce7-9b0f-2f6f8f1d2c3b", status=Status.COMPLETED)


class Bus:
    """Notes who listens."""

    def __init__(self) -> None:
        self.listening = 0
        self.calls: list[Callable[..., object]] = []

    def listen(self, *calls: Callable[..., object]) -> Callable[[], None]:
        """Begin to listen."""
        self.listening += 1
        self.calls = list(calls)

        def stop() -> None:
            self.listening -= 1

        return stop


def nothing(*_: Any) -> None:
    """Do nothing."""


async def test_a_task_of_the_event_loop_has_it_processed_at_once() -> None:
    """There is nothing to wait for where it may be processed."""
    taken: list[ExecutionState] = []
    DeliveryInbox(taken.append, nothing, nothing).put(STATE)
    assert taken == [STATE]


async def test_it_is_processed_in_a_task_of_its_event_loop() -> None:
    """What a thread brings is processed where the time of the event loop can be read."""
    taken: list[tuple[ExecutionState, float]] = []
    inbox = DeliveryInbox(lambda state: taken.append((state, anyio.current_time())), nothing, nothing)
    inbox.enter()
    thread = threading.Thread(target=inbox.put, args=(STATE,))
    thread.start()
    thread.join()
    assert taken == []
    await anyio.sleep(0.01)
    assert [state for state, _ in taken] == [STATE]


def test_an_event_loop_that_has_ended_hears_nothing() -> None:
    """What comes after its end is dropped, without an error for the one that brings it."""
    taken: list[ExecutionState] = []
    inbox = DeliveryInbox(taken.append, nothing, nothing)

    async def enter() -> None:
        inbox.enter()

    anyio.run(enter)
    inbox.put(STATE)
    assert taken == []


@pytest.mark.parametrize("place", [1, 2])
async def test_a_bus_is_listened_to_while_runs_are_waited_for(place: int) -> None:
    """From the first wait to the end of the last; what it says of itself is called in a task, too."""
    bus, called = Bus(), list[float]()
    notes: list[Callable[[], None]] = [nothing, nothing]
    notes[place - 1] = lambda: called.append(anyio.current_time())
    inbox = DeliveryInbox(nothing, *notes)
    inbox.hear(bus)
    assert bus.listening == 0
    for _ in range(2):
        inbox.awaited(is_any=True)
    assert bus.listening == 1
    bus.calls[place]()
    await anyio.sleep(0.01)
    assert len(called) == 1
    for _ in range(2):
        inbox.awaited(is_any=False)
    assert bus.listening == 0
