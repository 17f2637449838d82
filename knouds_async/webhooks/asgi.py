"""The ASGI app of a receiver: reads the body, passes the header on, writes the status.

No framework; a sender that disconnects half way gets no answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, Final

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Take = Callable[[AsyncIterable[bytes], bytes | None], Awaitable[int]]

_SIGNATURE: Final = b"x-knouds-signature"


class _SenderDisconnected(Exception):  # noqa: N818  (no failure: there is just nobody to answer)
    """The sender disconnected before its body was complete."""


class _RequestBody:
    """The body of a request, chunk by chunk."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_read = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._is_read:
            raise StopAsyncIteration
        message = await self._receive()
        if message["type"] != "http.request":
            raise _SenderDisconnected
        self._is_read = not message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        return chunk


class ASGIReceiver:
    """An ASGI app of one receiver. A method would do, if servers did not recognise apps by their `__call__`."""

    def __init__(self, take: Take) -> None:
        self._take = take

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one scope: a delivery by `take`, any other request with 405, a lifespan by its own messages."""
        if scope["type"] == "lifespan":
            await _answer_lifespan(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": f"{scope['type']}.close"})

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        found = [value for name, value in scope["headers"] if name == _SIGNATURE]
        try:
            status = (
                await self._take(_RequestBody(receive), b",".join(found) or None) if scope["method"] == "POST" else 405
            )
        except _SenderDisconnected:
            return
        await send({"type": "http.response.start", "status": int(status), "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


async def _answer_lifespan(receive: Receive, send: Send) -> None:
    while True:
        phase = (await receive())["type"]
        await send({"type": f"{phase}.complete"})
        if phase == "lifespan.shutdown":
            return
