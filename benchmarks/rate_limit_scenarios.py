"""What the benchmark of rate limits simulates: backlogs and servers, the rivals, and the figures ours must reach.

The tests simulate the same rows: `tests/scenarios/test_limits.py`.
"""

from __future__ import annotations

import math
from typing import Final

import attrs

__all__ = ["SCENARIOS", "Figures", "Scenario"]


@attrs.frozen(kw_only=True)
class Figures:
    """Means of some seeds: seconds after the oracle, pace against its, refusals; how many jobs were never accepted."""

    late: float
    pace: float
    refused: float
    refused_a_window: float
    failed: int


@attrs.frozen(kw_only=True)
class Scenario:
    """A workload, a server, the rivals, and the figures that ours must reach."""

    name: str
    jobs: int = 1000
    limit: int = 100
    length: float = 60.0
    processes: int = 1
    skew: float = 0.0
    step: float = 0.0
    rounding: str = "up"
    is_opened_by_hit: bool = False
    answer_after: float = 0.0
    neighbour: float = 0.0
    sigma: float = 0.5
    ours: str = "ours"
    rivals: tuple[str, ...] = ()
    late: float = math.inf
    pace: float = 0.0
    refused: float = math.inf
    refused_a_window: float = math.inf

    def missed(self, figures: Figures) -> list[str]:
        """Return the figures that are not as good as they must be."""
        late, pace, refused = figures.late, figures.pace, figures.refused
        return [
            *([f"{late:+.2f} s after the oracle, at most {self.late:+g}"] if late > self.late else []),
            *([f"{pace:.4f} of the oracle's pace, at least {self.pace:g}"] if pace < self.pace else []),
            *([f"{refused:.1f} refusals, at most {self.refused:g}"] if refused > self.refused else []),
            *([f"{figures.refused_a_window:.2f} refusals a window"] if self._is_refused_often(figures) else []),
            *([f"{figures.failed} jobs failed"] if figures.failed else []),
        ]

    def _is_refused_often(self, figures: Figures) -> bool:
        return figures.refused_a_window > self.refused_a_window


RIVALS: Final = ("no limiter", "token bucket", "aiolimiter", "pyrate-limiter", "limits, moving window")
LESS: Final = ("ours, 99 % of each window", "ours, 98 % of each window", "ours, 95 % of each window")
FILE: Final = "ours, SharedLimiter"
ALONE: Final = {"late": 1.5, "pace": 0.995, "refused": 0}


def one_process(name: str, **changes: object) -> Scenario:
    """Return a scenario of a single client with nothing unusual; `changes` add what is."""
    return Scenario(name=name, **(ALONE | changes))  # type: ignore[arg-type]


SCENARIOS: Final = (
    one_process("Pro, one process", rivals=RIVALS),
    one_process("Business, one process", jobs=10_000, limit=1000, rivals=RIVALS),
    one_process("Pro, window opens at the first hit", is_opened_by_hit=True),
    one_process("Pro, Reset rounded down", rounding="down", refused=3),
    one_process("Pro, Reset rounded to nearest", rounding="nearest", refused=3),
    one_process("Pro, limit not known", ours="ours, limit not known"),
    one_process("Pro, clock 137 s behind", skew=137.0),
    one_process("Pro, clock 137 s ahead", skew=-137.0),
    one_process("Pro, the server's clock is set 5 s ahead", step=5.0),
    one_process("Pro, the server's clock is set 137 s back", step=-137.0),
    one_process("Pro, latency heavy-tailed", sigma=1.2),
    Scenario(name="Pro, answers 45 s late", answer_after=45, rivals=RIVALS, late=6.8, pace=0.99, refused=10),
    Scenario(
        name="Business, answers 45 s late",
        jobs=10_000,
        limit=1000,
        answer_after=45,
        late=6.8,
        pace=0.99,
        refused=10,
    ),
    Scenario(name="Pro, 4 processes", processes=4, rivals=LESS + RIVALS, late=3.8, pace=0.99, refused_a_window=4),
    Scenario(
        name="Business, 4 processes",
        jobs=10_000,
        limit=1000,
        processes=4,
        rivals=LESS,
        late=3.8,
        pace=0.99,
        refused_a_window=4,
    ),
    Scenario(
        name="Pro, 4 processes, Reset rounded down, clock 137 s behind",
        processes=4,
        rounding="down",
        skew=137,
        late=3.8,
        pace=0.99,
        refused_a_window=4,
    ),
    Scenario(name="Pro, 4 processes, one SharedLimiter", processes=4, ours=FILE, late=1.5, pace=0.99, refused=0),
    Scenario(
        name="Business, 4 processes, one SharedLimiter",
        jobs=10_000,
        limit=1000,
        processes=4,
        ours=FILE,
        late=1.5,
        pace=0.99,
        refused=0,
    ),
    Scenario(
        name="Pro, 4 processes, one SharedLimiter, clock 137 s ahead",
        processes=4,
        ours=FILE,
        skew=-137,
        late=1.5,
        pace=0.99,
        refused=0,
    ),
    Scenario(
        name="Pro, 4 processes, one SharedLimiter, answers 45 s late",
        processes=4,
        ours=FILE,
        answer_after=45,
        late=6.8,
        pace=0.99,
        refused=10,
    ),
    Scenario(
        name="windows of 8 s, limit 20, 4 processes, one SharedLimiter",
        jobs=1200,
        limit=20,
        length=8.0,
        processes=4,
        ours=FILE,
        late=1.5,
        pace=0.99,
        refused=0,
    ),
    Scenario(
        name="Pro, a neighbour uses 30 %",
        jobs=930,
        neighbour=0.3,
        rivals=RIVALS,
        late=1.8,
        pace=0.99,
        refused_a_window=2,
    ),
    Scenario(name="Pro, 60 jobs at once, below the limit", jobs=60, rivals=RIVALS, late=0.2, refused=0),
    one_process("windows of 5 s, limit 20", jobs=2000, limit=20, length=5.0),
    one_process("windows of 8 s, limit 20", jobs=1200, limit=20, length=8.0),
    one_process("windows of 5 s, limit 100", jobs=10_000, limit=100, length=5.0),
    one_process("windows of 8 s, limit 100", jobs=6000, limit=100, length=8.0),
    one_process("windows of 1 h, limit 20", jobs=200, limit=20, length=3600.0, refused=0.1),
    one_process("windows of 1 h, limit 100", jobs=1000, limit=100, length=3600.0, refused=0.1),
)
