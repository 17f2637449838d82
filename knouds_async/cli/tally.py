"""What has become of the demo's runs so far, and the figures that sum it up. Pure."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from knouds_async import ExecutionState, Status

RESULTS_KEPT = 5  # first results that are kept to be shown


@attrs.define
class DemoStats:
    """Counts of the runs of one demo; `asked` holds the inputs of all, `results` the first ends with theirs."""

    requested: list[dict[str, Any]]
    submitted: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    unknown: int = 0
    results: list[tuple[dict[str, Any], ExecutionState]] = attrs.Factory(list)

    @property
    def total(self) -> int:
        """Runs asked for."""
        return len(self.requested)

    @property
    def finished(self) -> int:
        """Runs that are over."""
        return self.completed + self.failed + self.cancelled

    @property
    def running(self) -> int:
        """Runs that are out."""
        return self.submitted - self.finished

    def record(self, inputs: dict[str, Any], state: ExecutionState) -> None:
        """Count the end of a run."""
        self.completed += state.status == Status.COMPLETED
        self.failed += state.status == Status.FAILED
        self.cancelled += state.status == Status.CANCELLED
        if state.status == Status.COMPLETED and len(self.results) < RESULTS_KEPT:
            self.results.append((inputs, state))


def count_duplicates(requested: Iterable[Mapping[str, Any]], started: Iterable[Mapping[str, Any]]) -> int:
    """Count the runs that began more often than they were asked for."""
    wanted, seen = (Counter(json.dumps(inputs, sort_keys=True) for inputs in each) for each in (requested, started))
    return (seen - wanted).total()


def per_minute(count: int, seconds: float) -> float:
    """Give a pace."""
    return 60 * count / seconds if seconds > 0 else 0.0


def quantile(values: Sequence[float], share: float) -> float:
    """Give the smallest value that so large a share of the values does not exceed; nan of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
