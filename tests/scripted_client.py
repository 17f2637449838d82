"""A client whose every request is answered by a function, where a single odd answer is the point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from knouds_async import AsyncKnouds

KEY = "knouds_live_CANARY"


def scripted(answer: Callable[[httpx.Request], httpx.Response], **options: Any) -> AsyncKnouds:
    """Return a client whose every request is answered by `answer`."""
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return AsyncKnouds(KEY, base_url="https://knouds.test", http_client=http, **options)
