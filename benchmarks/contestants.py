"""The limiters that are simulated: ours, alone and on one file, none at all, and an oracle that sees the server.

Rule of the file: a contestant admits one request per `acquire()`, and may read each answer.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fixed_window_server import Answer, FixedWindowServer

from knouds_async import Limiter, Secret, SharedLimiter
from knouds_async._sansio.rate_limit import Permit, QuotaHeaders

__all__ = ["OURS", "Contestant", "Make", "Oracle", "Ours", "OursShared", "Shared"]

ROUTE = "POST /api/workflows/:slug/run"
GUESSES = {100: "pro", 1000: "business"}


class Shared:
    """What the processes of one simulation have in common: the server, and how many requests are in flight to it."""

    def __init__(self, server: FixedWindowServer) -> None:
        self.server = server
        self.on_the_way = 0
        self.folder = tempfile.TemporaryDirectory()
        self.news: set[asyncio.Event] = set()


class Contestant:
    """No limiter at all; a refused job comes back after Retry-After."""

    pauses = True
    in_line = 1

    def __init__(self, shared: Shared) -> None:
        self.shared, self.limit, self.length = shared, shared.server.limit, shared.server.length

    async def acquire(self) -> Any:
        """Wait until one request may be sent."""

    def answered(self, permit: Any, answer: Answer) -> None:
        """Read an answer."""


class Ours(Contestant):
    """The limiter of this library: many wait in its queue, as in a client, and it sees every answer."""

    pauses = False
    in_line = 50

    def __init__(self, shared: Shared, *, share: float = 1.0, knows_limit: bool = True) -> None:
        super().__init__(shared)
        self.limiter = self.make(GUESSES.get(self.limit) if knows_limit else None, share)

    def make(self, tier: str | None, share: float) -> Limiter:
        """Return a limiter of this process alone."""
        return Limiter(tier, share=share)

    async def acquire(self) -> Permit:
        """Wait in the queue."""
        return await self.limiter.acquire(ROUTE)

    def answered(self, permit: Any, answer: Answer) -> None:
        """Learn."""
        reply = QuotaHeaders(
            refused=answer.refused,
            succeeded=not answer.refused,
            limit=answer.limit,
            remaining=answer.remaining,
            reset=answer.reset,
            retry_after=answer.retry_after,
        )
        self.limiter.on_response(ROUTE, permit, reply, answer.date)


class OursShared(Ours):
    """The same with one file for all processes; each has the file open for itself."""

    def make(self, tier: str | None, share: float) -> Limiter:
        """Return the limiter of an account in the file."""
        path = Path(self.shared.folder.name) / "quota.db"
        clock = asyncio.get_running_loop().time
        return SharedLimiter(path, tier, share=share, clock=clock).for_key(Secret("knouds_live_benchmark"))


class Oracle(Contestant):
    """Sees the server's counter and every request on its way: nothing can be faster."""

    pauses = False

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.arrival = asyncio.Event()
        shared.news.add(self.arrival)

    async def acquire(self) -> None:
        """Return while there are tokens for all requests in flight; otherwise wait for an arrival or the edge."""
        loop, server = asyncio.get_running_loop(), self.shared.server
        while server.left(loop.time()) - self.shared.on_the_way <= 0:
            self.arrival.clear()
            edge = server.begins(loop.time()) + self.length + 1e-6
            alarm = loop.call_at(edge, self.arrival.set)
            await self.arrival.wait()
            alarm.cancel()


Make = Callable[[Shared], Contestant]

OURS: dict[str, Make] = {
    "ours": Ours,
    "ours, SharedLimiter": OursShared,
    "ours, limit not known": partial(Ours, knows_limit=False),
    "ours, 99 % of each window": partial(Ours, share=0.99),
    "ours, 98 % of each window": partial(Ours, share=0.98),
    "ours, 95 % of each window": partial(Ours, share=0.95),
}
