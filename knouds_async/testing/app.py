"""The emulator as an ASGI app: any ASGI server or in-process transport can put the emulator on a URL.

The emulator decides, this waits and writes. What ASGI cannot express (a reset connection, a close without an answer)
raises RuntimeError; `server.py` and `transport.py` do it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import attrs

from knouds_async.testing.messages import Broken, Later, Outcome, Request, Response, Wire

try:
    from starlette.applications import Starlette
    from starlette.routing import Mount
except ImportError as error:
    raise ImportError("emulator.app needs the extra 'testing': pip install 'knouds-async[testing]'") from error

__all__ = ["build_app"]

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


def build_app(
    handle: Callable[[Request, float], Outcome],
    resume: Callable[[Later, float], Outcome],
    delivering: Callable[[], AbstractAsyncContextManager[None]],
) -> Starlette:
    """Create the ASGI app of an emulator; every path goes to `handle`, webhooks are delivered during its lifespan."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with delivering():
            yield

    return Starlette(routes=[Mount("", app=_EmulatorApp(handle, resume))], lifespan=lifespan)


class _EmulatorApp:
    """One ASGI endpoint for every path, so that a request costs little."""

    def __init__(self, handle: Callable[[Request, float], Outcome], resume: Callable[[Later, float], Outcome]) -> None:
        self._handle = handle
        self._resume = resume

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
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
