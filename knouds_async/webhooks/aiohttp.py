"""The aiohttp handler of a receiver: `app.router.add_post("/webhooks/knouds", handler(receiver))`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from knouds_async.webhooks.receiver import SIGNATURE_HEADER, WebhookReceiver

try:
    from aiohttp import web
except ImportError as error:
    raise ImportError("knouds_async.webhooks.aiohttp needs aiohttp: pip install aiohttp") from error

__all__ = ["handler"]

_CHUNK: Final = 65_536


def handler(receiver: WebhookReceiver) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return the handler of a POST route that takes deliveries."""

    async def webhook(request: web.Request) -> web.Response:
        signature = ",".join(request.headers.getall(SIGNATURE_HEADER, ())) or None
        return web.Response(status=await receiver.take(request.content.iter_chunked(_CHUNK), signature))

    return webhook
