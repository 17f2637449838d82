"""Deliveries as the service sends them, for the tests of what receives them."""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from knouds_async.testing import Delivery
from knouds_async.webhooks import WebhookReceiver, sign

SECRET = "whsec_emulator_0123456789abcdef"
Post = Callable[[Delivery], Awaitable[int]]


def payload(execution_id: str, status: str = "completed", /, **changes: Any) -> dict[str, Any]:
    """Write the event of a run's end."""
    result = (
        {"images": [{"url": "https://knouds-media.s3.amazonaws.com/media/1.png"}]} if status == "completed" else None
    )
    error = {"code": "EXECUTION_FAILED", "message": "no"} if status == "failed" else None
    event = {"event": f"execution.{status}", "executionId": execution_id, "status": status, "cost": 12, "ms": 45_000}
    return {**event, "result": result, "error": error, **changes}


async def chunks(body: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    """Return a body in parts."""
    for place in range(0, len(body), size):
        yield body[place : place + size]


def into(receiver: WebhookReceiver) -> Post:
    """Post the deliveries of an emulator to a receiver, without a network."""

    async def post(delivery: Delivery) -> int:
        return await receiver.take(chunks(delivery.body), delivery.headers["x-knouds-signature"])

    return post


class Sender:
    """Sends signed deliveries to a receiver, as the service would."""

    def __init__(self, receiver: WebhookReceiver) -> None:
        self.receiver = receiver

    async def __call__(self, event: dict[str, Any], *, secret: str = SECRET, age: float = 0.0) -> int:
        """Deliver an event and give the status of the answer."""
        body = json.dumps(event).encode()
        return await self.receiver.take(chunks(body), sign(body, secret, now=time.time() - age))
