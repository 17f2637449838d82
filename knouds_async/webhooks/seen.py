"""The store of deliveries taken before, by which a receiver recognises one that comes again (contract 11).

Bounded, and one step to claim, so that of two that come at once only one is passed on.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from knouds_async.errors import ConfigurationError


class SeenStore(Protocol):
    """A store of deliveries that several processes may share, e.g. over Redis (`SET key 1 NX EX 86400`)."""

    async def claim(self, key: str) -> bool:
        """Store a key, in one atomic step; return whether it was new."""
        ...

    async def release(self, key: str) -> None:
        """Remove a key again: its delivery was not taken after all."""
        ...


class SeenHere:
    """The store of one process: the latest `most` keys; ConfigurationError for less than one."""

    def __init__(self, most: int = 10_000) -> None:
        if most < 1:
            raise ConfigurationError(f"SeenHere(most={most}): must be at least 1")
        self._max_keys = most
        self._keys: OrderedDict[str, None] = OrderedDict()

    async def claim(self, key: str) -> bool:
        """Store a key and return whether it was new; the oldest one makes room."""
        if key in self._keys:
            self._keys.move_to_end(key)
            return False
        self._keys[key] = None
        if len(self._keys) > self._max_keys:
            self._keys.popitem(last=False)
        return True

    async def release(self, key: str) -> None:
        """Remove a key again."""
        self._keys.pop(key, None)
