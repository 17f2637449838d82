"""The delivery worker: sends the emulator's webhook deliveries over HTTP, or through a function of the caller's.

The emulator decides what is due, this waits and posts.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import anyio
import anyio.abc
import h11

from knouds_async.testing._service.webhooks import Webhooks
from knouds_async.testing.deliveries import Delivery

__all__ = ["delivering"]

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
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_deliver, webhooks, post or _post)
        yield
        tasks.cancel_scope.cancel()


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
