"""Call a function periodically while something else runs: how progress is shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress


@asynccontextmanager
async def call_every(period: float, tick: Callable[[], object]) -> AsyncIterator[None]:
    """Call `tick` every `period` seconds while the block runs, on the same event loop."""
    task = asyncio.create_task(_tick(period, tick))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _tick(period: float, tick: Callable[[], object]) -> None:
    while True:
        await asyncio.sleep(period)
        tick()
