"""How a batch stands: a frozen count of its jobs and credits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import attrs


@attrs.frozen(kw_only=True)
class Progress:
    """How a batch stands at a moment.

    `elapsed`: seconds since the batch was entered. `total`: how many jobs there are, None when `jobs` has no length.
    `read`: jobs taken from `jobs` so far. `submitted`: runs that this batch has started, so `submitted / elapsed` is
    its rate. `in_flight`: runs that are out just now, those of an earlier batch included.
    `completed`, `failed`, `cancelled`, `not_run`, `unknown`: outcomes so far, those out of the ledger included;
    `from_ledger`: how many of them an earlier batch had finished. `outcomes`: all of them.
    `credits_spent`: what ended runs have cost, over the life of the ledger if there is one; where the service did not
    say the cost, the estimate counts. `credits_reserved`: estimates of what is out or unknown. `max_credits`: the cap.
    `held_for`: seconds for which nothing is submitted because the service asked for a pause.
    """

    elapsed: float = 0.0
    total: int | None = None
    read: int = 0
    submitted: int = 0
    in_flight: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    not_run: int = 0
    unknown: int = 0
    from_ledger: int = 0
    credits_spent: float = 0.0
    credits_reserved: float = 0.0
    max_credits: float | None = None
    held_for: float = 0.0

    @property
    def outcomes(self) -> int:
        """The jobs that have an outcome."""
        return self.completed + self.failed + self.cancelled + self.not_run + self.unknown


OnProgress: TypeAlias = Callable[[Progress], object]
"""Told whenever something has changed."""
