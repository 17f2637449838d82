"""What a batch will cost and how long it will take: the arithmetic."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async._sansio.estimate import Estimate, RouteQuota, Submitting, estimate, submitting
from knouds_async.types import UsageRow

ROWS = [
    UsageRow(status="completed", credits_cost=10, duration_ms=30_000),
    UsageRow(status="failed", credits_cost=20, duration_ms=10_000),
    UsageRow(status="processing", credits_cost=900, duration_ms=None),
    UsageRow(status="completed"),
]


@pytest.mark.parametrize(
    ("jobs", "quota", "taken"),
    [
        (0, RouteQuota(100), Submitting(0, 0)),
        (100, RouteQuota(100), Submitting(1, 0)),
        (101, RouteQuota(100), Submitting(2, 30)),
        (300, RouteQuota(100, resets_in=20), Submitting(3, 80)),
        (300, RouteQuota(100, left=40, resets_in=20), Submitting(4, 140)),
        (300, RouteQuota(100, left=0, resets_in=20), Submitting(3, 140)),
        (5, RouteQuota(1000, left=2, resets_in=0), Submitting(2, 0)),
        (10**6, RouteQuota(math.inf), Submitting(1, 0)),
        (10**6, RouteQuota(None), Submitting(1, 0)),
    ],
)
def test_submits_take_as_many_windows_as_their_limit_needs(jobs: int, quota: RouteQuota, taken: Submitting) -> None:
    """What is left of this window goes at once, and each further window begins a minute after the last."""
    assert submitting(jobs, quota) == taken


@given(
    st.integers(0, 10**6),
    st.floats(0, 2000) | st.just(math.inf),
    st.none() | st.floats(-5, 5000),
    st.none() | st.floats(-5, 90),
)
def test_windows_hold_all_jobs_and_none_is_needless(
    jobs: int, limit: float, left: float | None, resets_in: float | None
) -> None:
    """So many windows have room for all jobs, one fewer has not, and time does not run backwards."""
    taken = submitting(jobs, RouteQuota(limit, left, resets_in))
    limit = max(1.0, limit)
    now = limit if left is None or math.isinf(limit) else min(limit, max(0.0, left))
    room = now + limit * (taken.windows - (now >= 1)) if jobs > now else now
    assert room >= jobs
    assert taken.seconds >= 0
    assert taken.windows <= 1 or room - limit < jobs


@pytest.mark.parametrize(
    ("price", "rows", "credits", "source"),
    [(12.0, ROWS, 72, "schema"), (0.0, ROWS, 0, "schema"), (None, ROWS, 90, "usage"), (None, ROWS[2:], None, None)],
)
def test_credits_are_by_the_schema_else_by_the_mean_of_the_rows(
    price: float | None, rows: list[UsageRow], credits: float | None, source: str | None
) -> None:
    """Only jobs that would be run cost anything, and rows of runs that are in flight say nothing."""
    counted = Estimate(jobs=10, invalid=1, already_done=3)
    found = estimate(counted, price=price, rows=rows, quota=RouteQuota(100), max_in_flight=2000)
    assert (found.jobs, found.to_run, found.credits, found.credits_source) == (10, 6, credits, source)


@pytest.mark.parametrize(
    ("quota", "most", "expected", "windows", "seconds"),
    [
        (RouteQuota(100), 2000, None, 1, 20),
        (RouteQuota(2, resets_in=10), 2000, None, 3, 90),
        (RouteQuota(100), 2, None, 1, 60),
        (RouteQuota(100), 2000, 5.0, 1, 5),
        (RouteQuota(None), 2000, None, None, None),
    ],
)
def test_the_time_is_that_of_the_slowest(
    quota: RouteQuota, most: int, expected: float | None, windows: int | None, seconds: float | None
) -> None:
    """Runs last as long as the account's do, wait for windows, and for those in flight; without a limit it is open."""
    found = estimate(Estimate(jobs=6), price=1, rows=ROWS, quota=quota, max_in_flight=most, expected=expected)
    assert (found.windows, found.seconds) == (windows, seconds)


def test_nothing_to_run_takes_nothing() -> None:
    """A batch that is done costs no credits, no window and no time, whatever the limit."""
    for quota in (RouteQuota(None), RouteQuota(100)):
        found = estimate(Estimate(jobs=2, already_done=2), price=3, rows=ROWS, quota=quota, max_in_flight=1)
        assert (found.credits, found.windows, found.seconds) == (0, 0, 0)
