"""Counts of the demo's runs, and the figures of its summary. Pure."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from knouds_async import ExecutionState, Status

RESULTS_KEPT = 5  # results kept for the summary


@attrs.define
class DemoStats:
    """Counts the runs of one demo; `requested` holds the inputs of all, `results` the first finished with theirs."""

    requested: list[dict[str, Any]]
    submitted: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    unknown: int = 0
    results: list[tuple[dict[str, Any], ExecutionState]] = attrs.Factory(list)

    @property
    def total(self) -> int:
        """Runs requested."""
        return len(self.requested)

    @property
    def finished(self) -> int:
        """Runs that have finished."""
        return self.completed + self.failed + self.cancelled

    @property
    def running(self) -> int:
        """Runs that were submitted and have not finished."""
        return self.submitted - self.finished

    def record(self, inputs: dict[str, Any], state: ExecutionState) -> None:
        """Count a finished run."""
        self.completed += state.status == Status.COMPLETED
        self.failed += state.status == Status.FAILED
        self.cancelled += state.status == Status.CANCELLED
        if state.status == Status.COMPLETED and len(self.results) < RESULTS_KEPT:
            self.results.append((inputs, state))


def count_duplicates(requested: Iterable[Mapping[str, Any]], started: Iterable[Mapping[str, Any]]) -> int:
    """Return how many runs were started beyond those requested."""
    wanted, seen = (Counter(json.dumps(inputs, sort_keys=True) for inputs in each) for each in (requested, started))
    return (seen - wanted).total()


def per_minute(count: int, seconds: float) -> float:
    """Return a count per minute."""
    return 60 * count / seconds if seconds > 0 else 0.0


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that this share of the values does not exceed; nan for no values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
