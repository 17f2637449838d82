"""A bounded number of slots, handed out first come, first served: who may use a connection.

Everything but the wait for a slot is synchronous, so no cancellation can leave the count wrong.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import anyio

__all__ = ["FIFOLimiter"]


class FIFOLimiter:
    """A bounded number of slots, handed out first come, first served.

    Unlike anyio's limiter it takes no step of the event loop when a slot is free, and keeps its count under native
    asyncio cancellation with every release of anyio.
    """

    def __init__(self, limit: float) -> None:
        self.limit: Final = limit
        self.in_use = 0
        self._queue: OrderedDict[anyio.Event, None] = OrderedDict()

    def try_acquire(self) -> bool:
        """Take a slot if one is free and nobody waits for it; return whether it was taken."""
        if self.in_use >= self.limit:  # so as long as somebody waits: a released slot goes to them
            return False
        self.in_use += 1
        return True

    async def acquire(self) -> None:
        """Wait in the queue for a slot; cancelled, none is taken."""
        granted = anyio.Event()
        self._queue[granted] = None
        try:
            await granted.wait()
        except BaseException:
            if granted.is_set():  # the slot was handed over in the very moment of the cancellation
                self.release()
            else:
                del self._queue[granted]
            raise

    def release(self) -> None:
        """Hand a slot to the first in the queue, or free it."""
        if self._queue:
            self._queue.popitem(last=False)[0].set()
        else:
            self.in_use -= 1
