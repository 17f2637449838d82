"""What was taken before: the memory by which a receiver knows a delivery that comes again (contract 11).

Rule of the file: bounded, and one step to claim, so that of two that come at once only one is handed on.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from knouds_async.errors import ConfigurationError


class SeenStore(Protocol):
    """A memory of deliveries that several processes may share, e.g. over Redis (`SET key 1 NX EX 86400`)."""

    async def claim(self, key: str) -> bool:
        """Note a key, in one atomic step; say whether it was new."""
        ...

    async def release(self, key: str) -> None:
        """Forget a key again: what it stands for was not taken after all."""
        ...


class SeenHere:
    """The memory of one process: the latest `most` keys."""

    def __init__(self, most: int = 10_000) -> None:
        """Remember nothing yet; a ConfigurationError for less than one key."""
        if most < 1:
            raise ConfigurationError(f"SeenHere(most={most}): must be at least 1")
        self._most = most
        self._keys: OrderedDict[str, None] = OrderedDict()

    async def claim(self, key: str) -> bool:
        """Note a key and say whether it was new; the oldest one makes room."""
        if key in self._keys:
            self._keys.move_to_end(key)
            return False
        self._keys[key] = None
        if len(self._keys) > self._most:
            self._keys.popitem(last=False)
        return True

    async def release(self, key: str) -> None:
        """Forget a key again."""
        self._keys.pop(key, None)
