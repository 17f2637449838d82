"""What a batch will cost and how long it will take, before anything is paid for and while it runs. Pure.

Source: contract 6 (a route's requests are counted in fixed windows), 8 (`estimatedCreditCost`), 10 (usage rows).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Sequence
from typing import Final, Literal

import attrs

from knouds_async._sansio.ledger import amount
from knouds_async._sansio.listings import Quota
from knouds_async.types import Record, UsageRow

WINDOW: Final = 60.0  # seconds
_PROCESSING: Final = "processing"
_MOST_LENGTHS: Final = 200


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Estimate(Record):
    """What a batch would cost and how long it would take, as far as that can be known before it.

    `jobs`: all jobs that were read; `invalid`: those that would not be run, for their inputs or their keys, the first
    of them in `faults`; `already_done`: those that the ledger keeps from being run again, as they have finished, are
    running, or may have run. `credits` of the others together: by the workflow's own estimate (`credits_source` is
    "schema"), else by the mean of the account's runs of the target ("usage"), else None. `windows`: windows of the rate
    limit in which submits are made; `seconds` until the last run has finished, by the mean duration of the account's
    runs; None: the limit is not known.
    """

    jobs: int
    invalid: int = 0
    already_done: int = 0
    credits: float | None = attrs.field(default=None, converter=attrs.converters.optional(amount))
    credits_source: Literal["schema", "usage"] | None = None
    windows: int | None = None
    seconds: float | None = None
    faults: tuple[str, ...] = ()

    @property
    def to_run(self) -> int:
        """How many jobs would be run."""
        return self.jobs - self.invalid - self.already_done


def estimate(
    counted: Estimate,
    *,
    price: float | None,
    rows: Sequence[UsageRow],
    quota: Quota,
    max_in_flight: int,
    expected: float | None = None,
) -> Estimate:
    """Return an estimate of jobs that were counted.

    `price`: the workflow's own estimate. `rows`: the account's runs of the target. `expected`: seconds that a run
    takes, if the caller knows.
    """
    lengths = [row.duration_ms / 1000 for row in rows if row.status != _PROCESSING and row.duration_ms is not None]
    length = expected if expected is not None else _mean(lengths) if lengths else 0.0
    counted = _priced(counted, price, rows)
    if quota.limit is None and counted.to_run:
        return counted
    windows, seconds = submitting(counted.to_run, quota)
    rounds = math.ceil(counted.to_run / max_in_flight)
    seconds = max(seconds + length, rounds * length) if counted.to_run else 0.0
    return attrs.evolve(counted, windows=windows, seconds=round(seconds, 1))


def _mean(values: Collection[float]) -> float:
    return math.fsum(values) / len(values)


def _priced(counted: Estimate, price: float | None, rows: Sequence[UsageRow]) -> Estimate:
    if price is not None:
        return attrs.evolve(counted, credits=round(price * counted.to_run, 6), credits_source="schema")
    costs = [row.credits_cost for row in rows if row.status != _PROCESSING and row.credits_cost is not None]
    if not costs:
        return counted
    return attrs.evolve(counted, credits=round(_mean(costs) * counted.to_run, 6), credits_source="usage")


def submitting(jobs: int, quota: Quota) -> tuple[int, float]:
    """Return in how many windows so many jobs are submitted, and the seconds until the last; 0 of an unknown limit."""
    limit = math.inf if quota.limit is None else max(1.0, quota.limit)
    now = limit if quota.left is None or math.isinf(limit) else min(limit, max(0.0, quota.left))
    if jobs <= now:
        return min(jobs, 1), 0.0
    more = math.ceil((jobs - now) / limit)
    until_reset = WINDOW / 2 if quota.resets_in is None else max(0.0, quota.resets_in)  # half: it may be any
    return more + (now >= 1), until_reset + (more - 1) * WINDOW


@attrs.define(eq=False, repr=False)
class RunLengths:
    """How many seconds the latest runs of a batch took, from the answer of the submit until their end was noticed."""

    _latest: deque[float] = attrs.field(factory=lambda: deque(maxlen=_MOST_LENGTHS))

    def add(self, seconds: float) -> None:
        """Add a run that has finished."""
        self._latest.append(seconds)

    def mean(self) -> float | None:
        """Return the mean, None before a run has finished."""
        return _mean(self._latest) if self._latest else None

    def longest_of(self, count: int, beyond: float = 0.0) -> float:
        """Return how long the longest of so many runs takes that are running for `beyond` seconds already."""
        longer = sorted(seconds for seconds in self._latest if seconds > beyond)
        return longer[math.ceil(count / (count + 1) * len(longer)) - 1] if longer else beyond


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Remaining(Record):
    """What a batch has still to do: jobs to submit, runs in flight, seconds since the last of these was sent.

    `held_for`: seconds for which nothing is submitted, because the service asked for a pause. `polls_needed`: by the
    runs that all the client's callers wait for, beside polls in flight.
    """

    to_submit: int
    in_flight: int
    since_submit: float = 0.0
    held_for: float = 0.0
    polls_needed: int = 0


def seconds_left(
    remaining: Remaining, *, submits: Quota, polls: Quota, lengths: RunLengths, max_in_flight: int
) -> float | None:
    """Return the seconds until the end of the last run is seen; None before it is known how long runs take.

    Submits wait for the quota of enough windows, or for the end of enough runs; whichever takes longer counts. Those of
    a window are sent at once, so the longest of them counts, those that wait for other runs one after another. The end
    of each run takes a poll, which waits for the quota of polls.
    """
    mean = lengths.mean()
    if not remaining.to_submit + remaining.in_flight:
        return 0.0
    if mean is None:
        return None
    _, seen = submitting(remaining.to_submit + remaining.polls_needed, polls)
    if not remaining.to_submit:
        ended = lengths.longest_of(remaining.in_flight, remaining.since_submit) - remaining.since_submit
        return max(seen, ended)
    limit = math.inf if submits.limit is None else max(1.0, submits.limit)
    burst = int(min(remaining.to_submit, max_in_flight, limit))
    submitted = max(submitting(remaining.to_submit, submits)[1], remaining.held_for)
    return max(seen, submitted + lengths.longest_of(burst), _last_turn(remaining, mean, max_in_flight) + mean)


def _last_turn(remaining: Remaining, mean: float, max_in_flight: int) -> float:
    """Return in how many seconds enough runs have finished for the last submit."""
    behind = remaining.to_submit - max(0, max_in_flight - remaining.in_flight)
    if behind <= 0:
        return 0.0
    one_by_one = behind / max_in_flight * mean
    in_bursts = max(0.0, mean - remaining.since_submit) + (math.ceil(behind / max_in_flight) - 1) * mean
    return min(one_by_one, in_bursts)
