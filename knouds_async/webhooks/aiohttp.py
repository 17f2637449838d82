"""The aiohttp routes of a receiver: `app.add_routes(routes(receiver))`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from knouds_async.webhooks.receiver import SIGNATURE_HEADER, WebhookReceiver

try:
    from aiohttp import web
except ImportError as error:
    raise ImportError("knouds_async.webhooks.aiohttp needs aiohttp: pip install aiohttp") from error

__all__ = ["handler", "routes"]

_CHUNK: Final = 65_536


def routes(receiver: WebhookReceiver, path: str = "/webhooks/knouds") -> list[web.RouteDef]:
    """Return routes that take deliveries at `path`, with and without a slash at its end (neither a 404 nor a redirect).

    In an app added as a subapp, `path` may be "/": the subapp's own prefix.
    """
    take, stem = handler(receiver), path.rstrip("/")
    return [web.post(stem, take), web.post(f"{stem}/", take)]


def handler(receiver: WebhookReceiver) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return the handler of a POST route that takes deliveries; prefer `routes`, which also accept a final slash."""

    async def webhook(request: web.Request) -> web.Response:
        signature = ",".join(request.headers.getall(SIGNATURE_HEADER, ())) or None
        return web.Response(status=await receiver.take(_body(request), signature))

    return webhook


async def _body(request: web.Request) -> AsyncIterator[bytes]:
    if request.can_read_body:
        async for chunk in request.content.iter_chunked(_CHUNK):
            yield chunk
    else:  # empty, or a middleware has read it, and then the request still holds it
        yield await request.read()
