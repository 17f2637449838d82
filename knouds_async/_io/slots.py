"""Who may use a connection: slots in the order of asking.

Rule of the file: everything but the wait for a slot is synchronous, so no cancellation can interrupt the books.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import anyio

__all__ = ["Slots"]


class Slots:
    """A bounded number of slots, handed out first come, first served.

    Unlike anyio's limiter it costs no turn of the event loop when a slot is free, and keeps its count under native
    asyncio cancellation with every release of anyio.
    """

    def __init__(self, limit: float) -> None:
        """Allow `limit` slots to be in use at once; inf: any number."""
        self.limit: Final = limit
        self.in_use = 0
        self._queue: OrderedDict[anyio.Event, None] = OrderedDict()

    def take_now(self) -> bool:
        """Take a slot if one is free and nobody waits for it; say whether it was taken."""
        if self.in_use >= self.limit:  # as long as somebody waits: a slot given back goes to them, not free
            return False
        self.in_use += 1
        return True

    async def take(self) -> None:
        """Wait in line for a slot; cancelled, none is taken."""
        turn = anyio.Event()
        self._queue[turn] = None
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():  # the slot was handed over in the very moment of the cancellation
                self.give_back()
            else:
                del self._queue[turn]
            raise

    def give_back(self) -> None:
        """Hand a slot to the first in line, or free it."""
        if self._queue:
            self._queue.popitem(last=False)[0].set()
        else:
            self.in_use -= 1
