"""SharedLimiter: one quota for several processes on one machine, kept in an SQLite file. The class users create.

What reads and writes the file is loaded with the first SharedLimiter, not with the package.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from knouds_async._io.limiter import Limiter
from knouds_async.config import Secret


class SharedLimiter:
    """A rate limiter that every process of this machine may use at once, through one file.

    `path`: the file; it is created with mode 0600, and the API key is never in it. `tier`, `share`, `max_wait`: as of
    `Limiter`. `clock`: seconds that all of them agree on; only needed where time is virtual, instead of the machine's.
    Permits are leased a few at once, so that ten requests cost about one transaction; a process that crashes loses one
    lease at most. Works across fork and spawn, threads and event loops; pickled, it opens the same file again.

    A file that is not one of ours raises ConfigurationError and is left as it is. One that is removed later is
    created anew; without one that cannot be used any more the limiter continues, with a warning, and tries it again.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tier: str | None = None,
        *,
        share: float = 1.0,
        max_wait: float | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        from knouds_async._io.limiter_store import LimiterFile

        Limiter(tier, share=share, max_wait=max_wait)  # checks
        self._tier, self._share, self._max_wait = tier, share, max_wait
        self._path, self._virtual = Path(path), clock
        self._file = LimiterFile(self._path, clock or time.monotonic, clock or time.time)

    def for_key(self, key: Secret) -> Limiter:
        """Return the limiter of a key's account."""
        from knouds_async._io.leases import LeasedLimiter

        limiter = LeasedLimiter(self._tier, share=self._share, max_wait=self._max_wait)
        limiter.join(self._file, key)
        return limiter

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle as its options: what is unpickled opens the file for itself."""
        return _opened, (self._path, self._tier, self._share, self._max_wait, self._virtual)


def _opened(
    path: Path, tier: str | None, share: float, max_wait: float | None, clock: Callable[[], float] | None
) -> SharedLimiter:
    return SharedLimiter(path, tier, share=share, max_wait=max_wait, clock=clock)
