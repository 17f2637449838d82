"""The runs of the benchmark of polling: how long they take, on what service, and the figures that ours must reach."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final, TypeAlias

import attrs

Law: TypeAlias = Callable[[random.Random], float]


def lognormal(median: float, sigma: float) -> Law:
    """Return a distribution of durations."""
    return lambda dice: dice.lognormvariate(math.log(median), sigma)


def bimodal(dice: random.Random) -> float:
    """Draw from 60 % of runs around 25 s and 40 % around 80 s."""
    return dice.lognormvariate(math.log(25 if dice.random() < 0.6 else 80), 0.15)


USUAL: Final = lognormal(45, 0.35)
SHORT: Final = lognormal(6, 0.35)
LONG: Final = lognormal(240, 0.4)


def even(dice: random.Random) -> float:
    """Draw from 5 to 120 s."""
    return dice.uniform(5, 120)


def memoryless(dice: random.Random) -> float:
    """Draw 3 s and an exponential wait of 40 s."""
    return 3 + dice.expovariate(1 / 40)


def heavy(dice: random.Random) -> float:
    """Draw 20 s and more, with a tail in which the mean is three times the least."""
    return 20 * dice.paretovariate(1.5)


OTHERS: Final[dict[str, Law]] = {
    "25/80 s": bimodal,
    "6 s": SHORT,
    "240 s": LONG,
    "5 to 120 s": even,
    "exponential": memoryless,
    "a heavy tail": heavy,
}


@attrs.frozen(kw_only=True)
class Scenario:
    """Runs and a service, and the figures that ours must reach; `limit` None: no route is limited.

    `alone`: one run after another. `trained`: runs of the same distribution seen before. `drift`: the factor by which
    durations have grown at the last run. `pause`: seconds within which all are submitted.
    """

    name: str
    law: Law = USUAL
    runs: int = 1
    limit: int | None = 100
    alone: bool = False
    trained: int = 0
    drift: float = 1.0
    is_pipeline: bool = False
    usage_lag: float = 0.0
    are_polls_limited: bool = True
    sweeps: bool = True
    seeds: int = 4
    rivals: bool = False
    requests: float = math.inf
    mean: float = math.inf
    p95: float = math.inf
    above_oracle: float = math.inf
    speed: float = 0.0
    refused: float = math.inf


ALONE: Final = Scenario(name="", alone=True, limit=None, p95=4.5)
PRO: Final = Scenario(name="", runs=1000, is_pipeline=True, refused=0, requests=1.5)


def other(name: str, runs: int, *, sweeps: bool) -> Scenario:
    """Return a scenario of runs of another distribution."""
    return Scenario(
        name=f"{runs} runs of {name}{'' if sweeps else ', no listings'}",
        law=OTHERS[name],
        runs=runs,
        limit=1000 if runs > 100 else 100,
        seeds=1 if runs > 100 else 10,
        sweeps=sweeps,
    )


SCENARIOS: Final = (
    attrs.evolve(ALONE, name="one run, learned", runs=100, trained=200, rivals=True, requests=8, mean=2.1),
    attrs.evolve(ALONE, name="one run, cold", seeds=400, requests=10, mean=2.8),
    Scenario(name="20 runs, 100/min", runs=20, seeds=20, rivals=True, requests=4, mean=1.1, p95=2.5, refused=0),
    Scenario(name="100 runs, 100/min", runs=100, seeds=5, rivals=True, requests=2.2, mean=0.7, p95=1.5, refused=0),
    Scenario(name="500 runs, 1000/min", runs=500, limit=1000, seeds=2, requests=1.3, mean=0.7, p95=1.2, refused=0),
    attrs.evolve(PRO, name="pipeline, 100/min", rivals=True, above_oracle=1.5, speed=0.98),
    attrs.evolve(PRO, name="pipeline, rows never match", usage_lag=1e8, speed=0.95),
    attrs.evolve(PRO, name="pipeline, rows 3 s late", usage_lag=3.0, speed=0.98),
    attrs.evolve(PRO, name="pipeline, polls not limited", are_polls_limited=False, mean=1.0, requests=2, speed=0.98),
    attrs.evolve(PRO, name="pipeline, no listings", sweeps=False, speed=0.95),
    *(other(name, runs, sweeps=sweeps) for name in OTHERS for runs in (20, 500) for sweeps in (True, False)),
    *(
        Scenario(name=f"one run of {name}, learning", law=OTHERS[name], runs=40, alone=True, limit=None)
        for name in OTHERS
    ),
    Scenario(name="one run, drifting 45 to 135 s", runs=300, alone=True, limit=None, drift=3.0, seeds=2),
    Scenario(name="3 runs", runs=3, seeds=40),
    Scenario(name="5 runs", runs=5, seeds=40),
    *(
        Scenario(name=f"{runs} runs, rows {lag} s late", runs=runs, usage_lag=lag)
        for runs in (20, 100)
        for lag in (2, 5, 20)
    ),
    *(Scenario(name=f"{runs} runs, rows never match", runs=runs, usage_lag=1e8, seeds=10) for runs in (20, 100)),
    *(Scenario(name=f"{runs} runs, no listings", runs=runs, sweeps=False, seeds=5) for runs in (20, 100)),
    Scenario(name="500 runs, no listings", runs=500, limit=1000, sweeps=False, seeds=2),
    Scenario(name="100 runs, no limit", runs=100, limit=None),
    Scenario(name="100 runs, no limit, rows never match", runs=100, usage_lag=1e8, limit=None),
)
