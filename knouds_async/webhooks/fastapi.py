"""The FastAPI and Starlette face of a receiver: `app.include_router(router(receiver))`."""

from __future__ import annotations

from knouds_async.webhooks.asgi import Message, Receive, Send
from knouds_async.webhooks.receiver import WebhookReceiver

try:
    from fastapi import APIRouter
except ImportError as error:
    raise ImportError("knouds_async.webhooks.fastapi needs FastAPI: pip install fastapi") from error

__all__ = ["router"]


class _Endpoint:
    """A receiver as an endpoint that is an ASGI app itself, so that no body is read before the receiver does."""

    def __init__(self, receiver: WebhookReceiver) -> None:
        self._receiver = receiver

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await self._receiver.asgi(scope, receive, send)


def router(receiver: WebhookReceiver, path: str = "/webhooks/knouds") -> APIRouter:
    """Make a router that takes deliveries at `path`; in Starlette, its `routes` can be used as they are."""
    made = APIRouter()
    made.add_route(path, _Endpoint(receiver), methods=["POST"], include_in_schema=False)  # type: ignore[arg-type]
    return made
