"""A receiver in a web app, and what it has taken."""

from __future__ import annotations

import pytest

from knouds_async.webhooks import WebhookEvent, WebhookReceiver
from tests.webhooks.sending import SECRET


@pytest.fixture
def taken() -> list[str]:
    """Return the list of runs whose deliveries were taken."""
    return []


@pytest.fixture
def receiver(taken: list[str]) -> WebhookReceiver:
    """Return a receiver that notes what it takes."""

    async def note(event: WebhookEvent) -> None:
        taken.append(str(event.execution_id))

    return WebhookReceiver(SECRET, handler=note)
