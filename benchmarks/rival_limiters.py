"""What ours is compared with: no limiter, the usual homemade one, and real libraries, each used as it says."""

from __future__ import annotations

import asyncio

import aiolimiter
import limits
import limits.storage
import limits.strategies
import pyrate_limiter
from contestants import Contestant, Make, Shared

__all__ = ["RIVALS"]


class TokenBucket(Contestant):
    """A plain token bucket: `limit` tokens at first, refilled evenly."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.full_at = 0.0

    async def acquire(self) -> None:
        """Acquire a token; the bucket is kept as the time at which it is full."""
        loop, each = asyncio.get_running_loop(), self.length / self.limit
        self.full_at = max(self.full_at, loop.time()) + each
        await asyncio.sleep(self.full_at - self.length - loop.time())


class Aiolimiter(Contestant):
    """`aiolimiter.AsyncLimiter`."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.limiter = aiolimiter.AsyncLimiter(self.limit, self.length)

    async def acquire(self) -> None:
        """Wait in it."""
        await self.limiter.acquire()


class _LoopClock(pyrate_limiter.AbstractClock):
    def now(self) -> int:
        return round(asyncio.get_running_loop().time() * 1000)


class _Bucket(pyrate_limiter.InMemoryBucket):
    _clock = _LoopClock()


class Pyrate(Contestant):
    """`pyrate_limiter.Limiter` over its bucket in memory (a sliding log)."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        bucket = _Bucket([pyrate_limiter.Rate(self.limit, round(self.length * 1000))])
        self.limiter = pyrate_limiter.Limiter(pyrate_limiter.SingleBucketFactory(bucket, schedule_leak=False))

    async def acquire(self) -> None:
        """Wait in it."""
        await self.limiter.try_acquire_async("run")


class LimitsMovingWindow(Contestant):
    """`limits`' moving window in memory; it reads `time.time`, which the simulation turns to the virtual clock."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.item = limits.RateLimitItemPerSecond(self.limit, round(self.length))
        self.strategy = limits.strategies.MovingWindowRateLimiter(limits.storage.MemoryStorage())

    async def acquire(self) -> None:
        """Hit, or wait until the window has moved on."""
        while not self.strategy.hit(self.item, "run"):
            moved = self.strategy.get_window_stats(self.item, "run").reset_time
            await asyncio.sleep(max(0.001, moved + 0.001 - asyncio.get_running_loop().time()))


RIVALS: dict[str, Make] = {
    "no limiter": Contestant,
    "token bucket": TokenBucket,
    "aiolimiter": Aiolimiter,
    "pyrate-limiter": Pyrate,
    "limits, moving window": LimitsMovingWindow,
}
