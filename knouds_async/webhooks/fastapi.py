"""The FastAPI and Starlette router of a receiver: `app.include_router(router(receiver))`."""

from __future__ import annotations

from knouds_async.webhooks.receiver import WebhookReceiver

try:
    from fastapi import APIRouter
except ImportError as error:
    raise ImportError("knouds_async.webhooks.fastapi needs FastAPI: pip install fastapi") from error

__all__ = ["router"]


def router(receiver: WebhookReceiver, path: str = "/webhooks/knouds") -> APIRouter:
    """Return a router that takes deliveries at `path`, with and without a slash at its end (no redirect).

    In Starlette, its `routes` can be used as they are.
    """
    made, stem = APIRouter(), path.rstrip("/")
    for spelling in dict.fromkeys((stem or "/", f"{stem}/")):
        # An endpoint that is an ASGI app itself: no body is read before the receiver reads it.
        made.add_route(spelling, receiver.asgi, methods=["POST"], include_in_schema=False)  # type: ignore[arg-type]
    return made
