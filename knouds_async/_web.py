"""What apps of all web frameworks need: errors as answers, server-sent events, and an end of waits at a signal."""

from __future__ import annotations

import contextvars
import json
import logging
import math
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from types import FrameType
from typing import Final

import anyio
import attrs

from knouds_async._io.concurrency import from_thread, native_cancellation, spawn
from knouds_async.client import AsyncKnouds
from knouds_async.config import is_number
from knouds_async.errors import (
    ClientClosedError,
    ConfigurationError,
    InvalidArgumentError,
    InvalidInputsError,
    KnoudsError,
    NotFoundError,
    RateLimitError,
    WaitTimeoutError,
    WrongEventLoopError,
    safe_repr,
)
from knouds_async.execution import Execution, Updates
from knouds_async.telemetry import fields
from knouds_async.types import ExecutionState

logger = logging.getLogger("knouds_async")

MakeClient = Callable[[], AsyncKnouds]
HEARTBEAT: Final = 15.0  # seconds: proxies cut a stream that is silent for long
EVENT_STREAM: Final = {"content-type": "text/event-stream", "cache-control": "no-store", "x-accel-buffering": "no"}
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@attrs.frozen
class ErrorAnswer:
    """What a visitor is answered when their request met an error."""

    status: int
    body: Mapping[str, object]
    headers: Mapping[str, str]


def answer_to(error: KnoudsError) -> ErrorAnswer:
    """Return the answer for an error, and log its message, which may be for nobody but the app's owner."""
    status = _status(error)
    level = logging.INFO if status < 500 else logging.WARNING
    extra = fields("request_failed", execution_id=error.execution_id, http_status=status)
    logger.log(level, "%s: %s", type(error).__name__, error, extra=extra)
    wait = error.retry_after if isinstance(error, RateLimitError) else None
    headers = {} if wait is None else {"retry-after": str(math.ceil(wait))}
    body = {"error": type(error).__name__, "may_have_run": error.may_have_run, "id": error.execution_id}
    return ErrorAnswer(status, body, headers)


def _status(error: KnoudsError) -> HTTPStatus:
    match error:
        case InvalidInputsError() | InvalidArgumentError():
            return HTTPStatus.UNPROCESSABLE_ENTITY
        case NotFoundError(from_service=True):
            return HTTPStatus.NOT_FOUND
        case RateLimitError() | ClientClosedError():
            return HTTPStatus.SERVICE_UNAVAILABLE
        case WaitTimeoutError():
            return HTTPStatus.GATEWAY_TIMEOUT
        case ConfigurationError() | WrongEventLoopError():
            return HTTPStatus.INTERNAL_SERVER_ERROR
        case _:
            return HTTPStatus.BAD_GATEWAY


async def server_sent_events(execution: Execution, heartbeat: float) -> AsyncGenerator[bytes, None]:
    """Return the changes of a run's status as server-sent events, once its present status is known.

    Raises what the first poll raises, so that an unknown id can still be answered with 404. An error later is the last
    event. The stream ends when the run has finished, or the client is closed.
    """
    if not (is_number(heartbeat) and heartbeat > 0):
        raise InvalidArgumentError(f"heartbeat={safe_repr(heartbeat)}: must be a number of seconds above 0")
    updates = execution.updates()
    return _events(await anext(updates), updates, heartbeat)


async def _events(state: ExecutionState | None, updates: Updates, heartbeat: float) -> AsyncGenerator[bytes, None]:
    while True:
        if state is None:
            yield b": still running\n\n"
        else:
            yield _event(" ".join(state.status.split()), {"id": state.execution_id, "status": state.status})
        state = None
        try:
            with native_cancellation(), anyio.move_on_after(heartbeat):
                state = await anext(updates)
        except (StopAsyncIteration, ClientClosedError):
            return
        except KnoudsError as error:
            yield _event("error", answer_to(error).body)
            return


def _event(name: str, data: Mapping[str, object]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


@contextmanager
def closing_at_signals(client: AsyncKnouds) -> Iterator[None]:
    """Close a client at SIGTERM and Ctrl-C while the block runs; the handlers that were there are called as well.

    Servers end an app's lifespan only after its last answer, so that waits and streams have to end before. Runs
    continue. Outside the main thread, where no signal arrives, nothing is done.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    found = {number: signal.getsignal(number) for number in _SIGNALS} if is_main_thread else {}
    handlers = {number: handler for number, handler in found.items() if callable(handler)}
    call_in_loop = from_thread()
    tasks: list[object] = []

    async def close() -> None:
        with suppress(Exception):  # the end of the lifespan closes it too, and raises
            await client.aclose()

    def on_signal(number: int, frame: FrameType | None) -> None:
        call_in_loop(lambda: tasks.append(spawn(close, contextvars.Context())))
        handlers[signal.Signals(number)](number, frame)

    for number in handlers:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
