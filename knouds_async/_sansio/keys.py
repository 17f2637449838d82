"""Which jobs are the same: a digest of inputs, keys made of digests, and a compact memory of keys. Pure."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping
from typing import Any, Final

from knouds_async._sansio.inputs import encode

_SHORT: Final = 20
_FIRST_SIZE: Final = 1024


def digest(plain: Mapping[str, Any]) -> str:
    """Return a digest of inputs as `plain_inputs` returned them, independent of the order of their names."""
    return hashlib.sha256(encode(plain, "inputs", sort_keys=True)).hexdigest()


class Seen:
    """A set of strings that can only grow, in about 16 bytes each, whatever they are.

    It keeps 64 bits of a hash of each; among a million strings, one in ten millions is taken for another.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * _FIRST_SIZE))
        self._count = 0

    def __len__(self) -> int:
        """Return how many different strings were added."""
        return self._count

    def add(self, text: str) -> bool:
        """Add a string; return whether it was new."""
        mark = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) or 1  # 0 is an empty slot
        if not _put(self._slots, mark):
            return False
        self._count += 1
        if 3 * self._count > 2 * len(self._slots):
            larger = array("Q", bytes(16 * len(self._slots)))
            for each in self._slots:
                if each:
                    _put(larger, each)
            self._slots = larger
        return True


def _put(slots: array[int], mark: int) -> bool:
    """Add a mark at the first free slot from its own on; return whether it was new."""
    at = mark & (len(slots) - 1)
    while slots[at]:
        if slots[at] == mark:
            return False
        at = (at + 1) & (len(slots) - 1)
    slots[at] = mark
    return True


class Keys:
    """Keys for inputs that came without one: their digest, and from the second time on a number as well.

    So a key stays when other jobs are added, left out or moved.
    """

    def __init__(self) -> None:
        self._seen = Seen()
        self._repeats: dict[str, int] = {}

    def of(self, digest: str) -> str:
        """Return the next key for inputs of this digest."""
        short = digest[:_SHORT]
        if self._seen.add(short):
            return short
        self._repeats[short] = number = self._repeats.get(short, 1) + 1
        return f"{short}-{number}"
