"""Webhooks: deliveries verified, taken once, and passed to the waiters. No web framework is imported here.

receiver = WebhookReceiver(os.environ["KNOUDS_WEBHOOK_SECRET"], client=knouds)
app.include_router(knouds_async.webhooks.fastapi.router(receiver))
"""

from knouds_async.errors import WebhookFault, WebhookVerificationError
from knouds_async.webhooks.receiver import (
    SIGNATURE_HEADER,
    Handler,
    SeenHere,
    SeenStore,
    WebhookEvent,
    WebhookReceiver,
    sign,
    verify,
)

__all__ = [
    "SIGNATURE_HEADER",
    "Handler",
    "SeenHere",
    "SeenStore",
    "WebhookEvent",
    "WebhookFault",
    "WebhookReceiver",
    "WebhookVerificationError",
    "sign",
    "verify",
]
