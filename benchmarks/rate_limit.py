"""How fast a backlog passes a fixed-window rate limit, and how many requests are refused, by limiter.

    python benchmarks/rate_limit.py [--quick] [--seeds N] [--first-seed N] [--only WORDS] [--ours]

Everything runs in virtual time and is seeded: a server that counts in fixed windows of a random phase, `Reset` and
`Date` in whole seconds, round trips of about 80 ms. All contestants get the same work and the same server, and the
oracle, which sees the server's counter, is the measure. Exits with 1 when ours misses a figure it must reach.

late: makespan less the oracle's, mean and worst seed. pace: throughput until 99 % of the jobs were accepted, against
the oracle's. 429s: mean and worst seed, and per window. failed: jobs that were never accepted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import deque

from contestants import OURS, Make, Oracle
from rate_limit_scenarios import SCENARIOS, Scenario
from rate_limit_simulation import Outcome, compare, simulate
from rival_limiters import RIVALS

from knouds_async._sansio.rate_limit import Permit, QuotaHeaders, WindowLimiter

CONTESTANTS: dict[str, Make] = OURS | RIVALS


def row(scenario: Scenario, name: str, seeds: range, oracle: list[Outcome]) -> bool:
    """Simulate all seeds and print the figures; return whether they are what ours must reach."""
    began = time.process_time()
    outcomes = [simulate(scenario, CONTESTANTS[name], seed) for seed in seeds]
    spent = time.process_time() - began
    figures, missed = compare(outcomes, oracle), []
    if name == scenario.ours:
        missed = scenario.missed(figures)
    mark = "" if name != scenario.ours else f"  MISSED: {'; '.join(missed)}" if missed else "  reached"
    latest = max(mine.makespan - best.makespan for mine, best in zip(outcomes, oracle, strict=True))
    makespan = statistics.mean(outcome.makespan for outcome in outcomes)
    print(
        f"  {name:26}{makespan:10.1f}{figures.late:+9.2f}{latest:+8.2f}"
        f"{figures.pace:8.4f}{figures.refused:10.1f}{max(outcome.refused for outcome in outcomes):8}"
        f"{figures.refused_a_window:9.2f}{figures.failed:8}{spent:7.1f}{mark}",
        flush=True,
    )
    return not missed


def table(scenario: Scenario, names: tuple[str, ...], seeds: range) -> bool:
    """Print one scenario; return whether ours reached its figures."""
    oracle = [simulate(scenario, Oracle, seed) for seed in seeds]
    print(
        f"\n{scenario.name}: {scenario.jobs} jobs, {scenario.limit} per {scenario.length:.0f} s, {len(seeds)} seeds;"
        f" oracle {statistics.mean(outcome.makespan for outcome in oracle):.1f} s"
        f"\n  {'':26}{'makespan':>10}{'late':>9}{'worst':>8}{'pace':>8}{'429s':>10}{'worst':>8}{'/window':>9}"
        f"{'failed':>8}{'CPU s':>7}"
    )
    reached = [row(scenario, name, seeds, oracle) for name in names]
    return all(reached)


def cost(spread: float, in_flight: int = 2000, pairs: int = 20_000) -> float:
    """Measure the CPU microseconds of a permit and its response, with so many in flight, sent within `spread` s."""
    window = WindowLimiter(10**6)
    permits, now, began = deque([window.try_acquire(0.0)]), 0.1, 0.0
    for at in range(in_flight + pairs):
        if at == in_flight:
            began = time.process_time()
        now += spread / in_flight
        if at == 0 or at >= in_flight:
            permit = permits.popleft()
            assert isinstance(permit, Permit)
            headers = QuotaHeaders(limit=10**6, remaining=10**6 - max(0, at - in_flight), reset=9000.0)
            window.on_response(now, permit, headers, 1000.0 + now)
        permits.append(window.try_acquire(now))
    return (time.process_time() - began) / pairs * 1e6


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 seeds")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--only", default="", help="only scenarios whose name contains this")
    parser.add_argument("--ours", action="store_true", help="without the rivals")
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + (4 if args.quick else args.seeds))
    reached = [
        table(scenario, (scenario.ours, *(() if args.ours else scenario.rivals)), seeds)
        for scenario in SCENARIOS
        if args.only in scenario.name
    ]
    for spread in (0.5, 40.0):
        spent = min(cost(spread=spread) for _ in range(5))
        print(f"\npermit + response, 2000 in flight sent within {spread} s: {spent:.1f} microseconds of CPU")
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
