"""How fast a backlog passes a rate limit, and how many requests are refused: the benchmark's rows, with its bounds."""

from __future__ import annotations

import pytest
from contestants import OURS, Oracle
from rate_limit_scenarios import FILE, SCENARIOS, Scenario
from rate_limit_simulation import compare, simulate

SMALL = 1200  # jobs that are simulated in a tenth of a second
QUICK = [each for each in SCENARIOS if each.jobs <= SMALL and each.ours != FILE]
ROWS = [pytest.param(each, id=each.name, marks=[] if each in QUICK else [pytest.mark.slow]) for each in SCENARIOS]


@pytest.mark.parametrize("scenario", ROWS)
def test_a_backlog_goes_at_the_full_rate(scenario: Scenario) -> None:
    """In virtual time, against a server that counts fixed windows: as soon as the oracle, but for a second or so."""
    seeds = [70_000]
    oracle = [simulate(scenario, Oracle, seed) for seed in seeds]
    ours = [simulate(scenario, OURS[scenario.ours], seed) for seed in seeds]
    assert scenario.missed(compare(ours, oracle)) == []
