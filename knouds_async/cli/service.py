"""The client of a command: the key from $KNOUDS_KEY only, checked before any request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from knouds_async import AsyncKnouds, ConfigurationError, Secret
from knouds_async.cli.exits import KeyMissingError, UsageError

T = TypeVar("T")

_NO_KEY = Secret("no-key-is-sent")


def connect(base_url: str | None, *, needs_key: bool = True) -> AsyncKnouds:
    """Return the client; raises UsageError for an invalid address, KeyMissingError for a missing or invalid key."""
    if not needs_key:
        return _keyless(base_url)
    try:
        return AsyncKnouds(base_url=base_url)
    except ConfigurationError as error:
        _keyless(base_url)  # raises when the address is invalid
        raise KeyMissingError(str(error).replace(" or pass AsyncKnouds(api_key=...)", "")) from None


def _keyless(base_url: str | None) -> AsyncKnouds:
    try:
        return AsyncKnouds(_NO_KEY, base_url=base_url)
    except ConfigurationError as error:
        raise UsageError(str(error).replace(", or pass allow_insecure_http=True", "")) from None


def query(base_url: str | None, request: Callable[[AsyncKnouds], Awaitable[T]], *, needs_key: bool = True) -> T:
    """Send one request and return its result."""

    async def send() -> T:
        async with connect(base_url, needs_key=needs_key) as knouds:
            return await request(knouds)

    return asyncio.run(send())
