"""The emulator over ASGI, and the worker that delivers its webhooks over HTTP or through a function of the caller's.

The emulator decides, this waits, writes and posts. What ASGI cannot express (a reset connection, a close without an
answer) raises RuntimeError; `server.py` and `transport.py` do it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import anyio.abc
import attrs
import h11

from knouds_async.testing._service.webhooks import Webhooks
from knouds_async.testing.messages import Broken, Later, Outcome, Request, Response, Wire
from knouds_async.testing.settings import Delivery

__all__ = ["EmulatorApp", "background_tasks", "delivering"]

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class EmulatorApp:
    """The ASGI app of an emulator: every path goes to `handle`, and webhooks are delivered during its lifespan."""

    def __init__(
        self,
        handle: Callable[[Request, float], Outcome],
        resume: Callable[[Later, float], Outcome],
        delivering: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        self._handle = handle
        self._resume = resume
        self._delivering = delivering

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer one request, or deliver webhooks from the server's start to its end."""
        if scope["type"] == "lifespan":
            await receive()
            async with self._delivering():
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close"})

    async def _answer(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        request = _request(scope, await _body(receive))
        outcome = self._handle(request, anyio.current_time())
        while isinstance(outcome, Later):
            await anyio.sleep_until(outcome.at)
            # A virtual clock may stop the last bit of a float short of the time it was to reach.
            outcome = self._resume(outcome, max(outcome.at, anyio.current_time()))
        if isinstance(outcome, Response):
            await _start(outcome, send)
            await send({"type": "http.response.body", "body": outcome.body})
        else:
            await _apply_fault(outcome, receive, send)


async def _body(receive: _Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _request(scope: _Message, body: bytes) -> Request:
    path = scope.get("raw_path") or scope["path"].encode()
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    return Request(
        scope["method"],
        path.decode("ascii", "replace").removeprefix(scope.get("root_path", "")),
        scope["query_string"].decode("latin-1"),
        headers,
        body,
        hosts=(scope["server"][0],) if scope.get("server") else (),
    )


async def _start(response: Response, send: _Send) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
    headers.append((b"content-length", b"%d" % len(response.body)))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})


async def _apply_fault(broken: Broken, receive: _Receive, send: _Send) -> None:
    if broken.wire is Wire.STALLED:
        await receive()  # the body has been read: all that can come is that the client has gone
        return
    response = broken.response
    if response is None or broken.wire not in _SENDERS:
        raise RuntimeError(f"ASGI cannot express '{broken.wire.value}': use knouds_async.testing.serve instead")
    if broken.wire is Wire.DROPPED:
        response = attrs.evolve(response, headers={**response.headers, "connection": "close"})
    await anyio.sleep(broken.seconds if broken.wire is Wire.SLOW else 0)
    await _start(response, send)
    await _SENDERS[broken.wire](broken, response.body, send)


async def _send_whole(_: Broken, body: bytes, send: _Send) -> None:
    await send({"type": "http.response.body", "body": body})


async def _send_half(_: Broken, body: bytes, send: _Send) -> None:
    await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
    raise RuntimeError("a fault truncated the answer")


async def _drip(broken: Broken, body: bytes, send: _Send) -> None:
    for place in range(len(body)):
        await anyio.sleep(broken.seconds)
        await send({"type": "http.response.body", "body": body[place : place + 1], "more_body": True})
    await send({"type": "http.response.body", "body": b""})


_SENDERS = {
    Wire.SLOW: _send_whole,
    Wire.DROPPED: _send_whole,
    Wire.TRUNCATED: _send_half,
    Wire.DRIPPING: _drip,
}


Post = Callable[[Delivery], Awaitable[int]]
_ANSWER_TIMEOUT: Final = 10.0  # seconds for an answer
_CONNECTION_ERRORS: Final = (
    OSError,
    h11.ProtocolError,
    anyio.EndOfStream,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
)


@asynccontextmanager
async def delivering(webhooks: Webhooks, post: Post | None = None) -> AsyncIterator[None]:
    """Deliver webhooks while the block runs, signed by this machine's clock.

    `post` sends one delivery and returns the status of its answer; by default it goes to its `url`, plain http only.
    It is sent again after an OSError, ten seconds without an answer, or an answer other than 2xx.
    """
    async with background_tasks() as tasks:
        tasks.start_soon(_deliver, webhooks, post or _post)
        yield


@asynccontextmanager
async def background_tasks() -> AsyncIterator[anyio.abc.TaskGroup]:
    """Run tasks while the block runs, and cancel them at its end.

    An exception of the block, or of a task, comes out as it is: a task group alone would put it into a group, which a
    test does not expect around its own. There is a group only where several failed.
    """
    failures: list[BaseException] = []
    try:
        async with anyio.create_task_group() as tasks:
            try:
                yield tasks
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # noqa: BLE001 - raised again below
                failures.append(error)
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        failures += _leaves(group)
    if len(failures) > 1:
        raise BaseExceptionGroup("several failed at once", failures)
    if failures:
        raise failures[0]


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in _leaves(inner)]


async def _deliver(webhooks: Webhooks, post: Post) -> None:
    async with anyio.create_task_group() as tasks:
        while True:
            changed = anyio.Event()
            webhooks.wake = changed.set
            for delivery in webhooks.due(anyio.current_time(), time.time()):
                tasks.start_soon(_send, webhooks, post, delivery)
            with anyio.CancelScope(deadline=webhooks.next_at()):
                await changed.wait()


async def _send(webhooks: Webhooks, post: Post, delivery: Delivery) -> None:
    status: int | None = None
    with anyio.move_on_after(_ANSWER_TIMEOUT):
        try:
            status = await post(delivery)
        except _CONNECTION_ERRORS:
            status = None
    webhooks.answered(delivery, status, anyio.current_time())


async def _post(delivery: Delivery) -> int:
    url = urlsplit(delivery.url)
    if url.scheme != "http":
        raise OSError("only plain http is delivered here: give the webhook a loopback address")
    wire = h11.Connection(h11.CLIENT)
    host = url.hostname or ""
    head = [("host", url.netloc), ("connection", "close"), ("content-length", str(len(delivery.body)))]
    target = f"{url.path or '/'}{f'?{url.query}' if url.query else ''}"
    request = h11.Request(method="POST", target=target, headers=[*head, *delivery.headers.items()])
    events = (request, h11.Data(data=delivery.body), h11.EndOfMessage())
    async with await anyio.connect_tcp(host, url.port or 80) as stream:
        await stream.send(b"".join(wire.send(event) or b"" for event in events))
        while True:
            event = wire.next_event()
            if isinstance(event, h11.Response):
                return event.status_code
            if event is h11.NEED_DATA:
                wire.receive_data(await _received(stream))
            else:
                raise OSError("the receiver closed the connection without an answer")


async def _received(stream: anyio.abc.ByteReceiveStream) -> bytes:
    try:
        return await stream.receive()
    except anyio.EndOfStream:
        return b""
