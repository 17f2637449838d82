"""What a batch will cost and how long it will take: the arithmetic."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async._sansio.estimate import (
    Estimate,
    Remaining,
    RunLengths,
    estimate,
    seconds_left,
    submitting,
)
from knouds_async._sansio.listings import Quota
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
        (0, Quota(100), (0, 0)),
        (100, Quota(100), (1, 0)),
        (101, Quota(100), (2, 30)),
        (300, Quota(100, resets_in=20), (3, 80)),
        (300, Quota(100, left=40, resets_in=20), (4, 140)),
        (300, Quota(100, left=0, resets_in=20), (3, 140)),
        (5, Quota(1000, left=2, resets_in=0), (2, 0)),
        (10**6, Quota(math.inf), (1, 0)),
        (10**6, Quota(None), (1, 0)),
    ],
)
def test_submits_take_as_many_windows_as_their_limit_needs(jobs: int, quota: Quota, taken: tuple[int, float]) -> None:
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
    windows, seconds = submitting(jobs, Quota(limit, left, resets_in))
    limit = max(1.0, limit)
    now = limit if left is None or math.isinf(limit) else min(limit, max(0.0, left))
    room = now + limit * (windows - (now >= 1)) if jobs > now else now
    assert room >= jobs
    assert seconds >= 0
    assert windows <= 1 or room - limit < jobs + 1e-9 * jobs  # limits that are no whole numbers are rounded


@pytest.mark.parametrize(
    ("price", "rows", "credits", "source"),
    [
        (12.0, ROWS, 72, "schema"),
        (0.0, ROWS, 0, "schema"),
        (1 / 7, ROWS, 0.857143, "schema"),
        (None, ROWS, 90, "usage"),
        (None, [UsageRow(credits_cost=1 / 7)], 0.857143, "usage"),
        (None, ROWS[2:], None, None),
    ],
)
def test_credits_are_by_the_schema_else_by_the_mean_of_the_rows(
    price: float | None, rows: list[UsageRow], credits: float | None, source: str | None
) -> None:
    """Only jobs that would be run cost anything, and rows of runs that are in flight say nothing."""
    counted = Estimate(jobs=10, invalid=1, already_done=3)
    found = estimate(counted, price=price, rows=rows, quota=Quota(100), max_in_flight=2000)
    assert (found.jobs, found.to_run, found.credits, found.credits_source) == (10, 6, credits, source)


@pytest.mark.parametrize(
    ("quota", "most", "expected", "windows", "seconds"),
    [
        (Quota(100), 2000, None, 1, 20),
        (Quota(2, resets_in=10), 2000, None, 3, 90),
        (Quota(100), 2, None, 1, 60),
        (Quota(100), 2000, 5.0, 1, 5),
        (Quota(100), 2000, 1 / 7, 1, 0.1),
        (Quota(None), 2000, None, None, None),
    ],
)
def test_the_time_is_that_of_the_slowest(
    quota: Quota, most: int, expected: float | None, windows: int | None, seconds: float | None
) -> None:
    """Runs last as long as the account's do, wait for windows, and for those in flight; without a limit it is open."""
    found = estimate(Estimate(jobs=6), price=1, rows=ROWS, quota=quota, max_in_flight=most, expected=expected)
    assert (found.to_run, found.windows, found.seconds) == (6, windows, seconds)


def test_nothing_to_run_takes_nothing() -> None:
    """A batch that is done costs no credits, no window and no time, whatever the limit."""
    for quota in (Quota(None), Quota(100)):
        found = estimate(Estimate(jobs=2, already_done=2), price=3, rows=ROWS, quota=quota, max_in_flight=1)
        assert (found.credits, found.windows, found.seconds) == (0, 0, 0)


def lengths_of(*seconds: float) -> RunLengths:
    """Return what is known after runs of so many seconds."""
    lengths = RunLengths()
    for each in seconds:
        lengths.add(each)
    return lengths


FREE = Quota(math.inf)


@pytest.mark.parametrize(
    ("remaining", "submits", "polls", "most", "left"),
    [
        (Remaining(to_submit=0, in_flight=0), Quota(100), FREE, 2000, 0),
        (Remaining(to_submit=0, in_flight=9, since_submit=4), Quota(100), FREE, 2000, 8),
        (Remaining(to_submit=0, in_flight=9, since_submit=40), Quota(100), FREE, 2000, 0),
        (Remaining(to_submit=0, in_flight=9, polls_needed=9), FREE, Quota(100, left=8, resets_in=46), 2000, 46),
        (Remaining(to_submit=0, in_flight=9, polls_needed=9), FREE, Quota(100, left=9, resets_in=46), 2000, 12),
        (Remaining(to_submit=0, in_flight=9, polls_needed=0), FREE, Quota(100, left=0, resets_in=46), 2000, 12),
        (Remaining(to_submit=1, in_flight=0), FREE, Quota(100, left=0, resets_in=46), 2000, 46),
        (Remaining(to_submit=200, in_flight=0), Quota(100, left=0, resets_in=46), FREE, 2000, 46 + 60 + 12),
        (Remaining(to_submit=200, in_flight=100), Quota(100, left=0, resets_in=8), FREE, 2000, 8 + 60 + 12),
        (Remaining(to_submit=50, in_flight=0, held_for=300), Quota(100, left=80), FREE, 2000, 300 + 12),
        (Remaining(to_submit=50, in_flight=50), FREE, FREE, 2000, 12),
        (Remaining(to_submit=50, in_flight=50), Quota(None), FREE, 2000, 12),
        (
            Remaining(to_submit=50, in_flight=50, polls_needed=50),
            FREE,
            Quota(40, left=0, resets_in=30),
            2000,
            30 + 2 * 60,
        ),
        (Remaining(to_submit=50, in_flight=50), FREE, FREE, 50, 12 + 12),
        (Remaining(to_submit=50, in_flight=50, since_submit=12), FREE, FREE, 50, 12),
        (Remaining(to_submit=25, in_flight=50), FREE, FREE, 50, 6 + 12),
        (Remaining(to_submit=100, in_flight=0), FREE, FREE, 10, 9 * 12 + 12),
        (Remaining(to_submit=1, in_flight=1), FREE, FREE, 1, 12 + 12),
    ],
)
def test_the_time_left_is_that_of_windows_turns_and_runs(
    remaining: Remaining, submits: Quota, polls: Quota, most: int, left: float
) -> None:
    """The last submit waits for its window, a pause, or other runs; its run takes as long as the others, and a poll."""
    found = seconds_left(remaining, submits=submits, polls=polls, lengths=lengths_of(12, 12), max_in_flight=most)
    assert found == pytest.approx(left)
    for open_ in (Remaining(to_submit=1, in_flight=0), Remaining(to_submit=0, in_flight=1)):
        assert seconds_left(open_, submits=submits, polls=polls, lengths=RunLengths(), max_in_flight=9) is None


def test_of_many_runs_the_longest_counts() -> None:
    """The longest of a few is about the median, of many about the longest that was seen, and ages are known."""
    lengths = lengths_of(*range(1, 101))
    assert (lengths.longest_of(1), lengths.longest_of(9), lengths.longest_of(10**6)) == (50, 90, 100)
    assert (lengths.longest_of(1, beyond=90), lengths.longest_of(9, beyond=200)) == (95, 200)


def test_the_runs_of_a_window_are_as_long_as_the_longest_of_them() -> None:
    """As many runs as the limit lets go at once count together, and not all that are still to be submitted."""
    todo, quota = Remaining(to_submit=100, in_flight=0), Quota(9, resets_in=0)
    left = seconds_left(todo, submits=quota, polls=FREE, lengths=lengths_of(*range(1, 101)), max_in_flight=2000)
    assert left == 600 + 90


@pytest.mark.parametrize("in_flight", [0, 9])
def test_the_last_run_takes_the_mean_at_least(in_flight: int) -> None:
    """However much room there is for it, and however short most runs are."""
    todo = Remaining(to_submit=1, in_flight=in_flight, since_submit=5)
    assert seconds_left(todo, submits=FREE, polls=FREE, lengths=lengths_of(1, 1, 1, 97), max_in_flight=10) == 25


def test_only_the_latest_runs_say_how_long_a_run_takes() -> None:
    """Two hundred runs later a long one is forgotten, and memory stays bounded."""
    assert lengths_of(1000, *[1] * 199).longest_of(10**6) == 1000
    forgot = lengths_of(1000, *[1] * 200)
    assert (forgot.longest_of(10**6), forgot.mean()) == (1, 1)


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=500), st.integers(1, 9000), st.integers(0, 9000))
def test_no_course_of_events_breaks_the_time_left(times: list[float], to_submit: int, in_flight: int) -> None:
    """However runs go, it is finite and not negative, and memory stays bounded."""
    lengths = lengths_of(*times)
    remaining = Remaining(to_submit=to_submit, in_flight=in_flight, since_submit=times[0])
    quota = Quota(100, 3, 30)
    left = seconds_left(remaining, submits=quota, polls=quota, lengths=lengths, max_in_flight=50)
    assert left is not None
    assert 0 <= left < math.inf
    assert min(times) <= (lengths.mean() or 0) * (1 + 1e-9)
    assert lengths.longest_of(5) in times[-200:]
