"""What is shown of a batch: its throughput, its progress, its report."""

from datetime import UTC, datetime
from typing import Any

import anyio
import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async import Job, KnoudsError, LimiterStats, NotRun, NotRunReason, Progress
from knouds_async._cli.batch_display import (
    BatchDisplay,
    BatchReport,
    Throughput,
    format_duration,
    format_pause,
    format_quota,
    summarize,
)
from knouds_async.testing import Emulator, Lognormal, virtual_backend

JOB = Job("a", {"x": 1})
SLUG = "my-thumbnail-pipeline"


def at(elapsed: float, completed: int, **more: Any) -> Progress:
    """Return the progress at a moment."""
    return Progress(elapsed=elapsed, completed=completed, **more)


def test_the_pace_is_that_of_the_last_two_minutes() -> None:
    """A batch that has become faster soon shows it, and outcomes read from the ledger count as no time."""
    throughput, now = Throughput(), at(0, 0)
    for second in range(600):
        now = at(float(second), 1000 + second + 9 * max(0, second - 400), from_ledger=1000, total=5000)
        throughput.update(now)
    assert throughput.per_second(now) == pytest.approx(10)
    assert throughput.eta(now) == pytest.approx((5000 - now.outcomes) / 10)


@pytest.mark.parametrize("anyio_backend", [virtual_backend("asyncio")])
@pytest.mark.parametrize(
    ("seconds", "phase", "most"), [(6.0, 20.0, None), (6.0, 50.0, None), (45.0, 20.0, None), (20.0, 30.0, 20)]
)
async def test_the_time_to_go_knows_windows(make_client: Any, seconds: float, phase: float, most: int | None) -> None:
    """From a sixth of 300 jobs on it is within 35 % of the truth, or eight seconds, wherever in a window it began."""
    duration = Lognormal(seconds, 0.25)
    emulator = Emulator(tier="pro", duration=duration, window_phase=phase, seed=3, polls_limited=False)
    knouds = make_client(emulator)
    batch = knouds.workflows.map(SLUG, [{"product_name": f"{number}"} for number in range(300)], max_in_flight=most)
    throughput, said = Throughput(), list[tuple[float, float | None]]()

    async def watch() -> None:
        while True:
            await anyio.sleep(0.2)
            throughput.update(batch.progress)
            if batch.progress.outcomes >= 50:
                stats = knouds.limiter.stats("POST /api/workflows/:slug/run")
                said.append((batch.progress.elapsed, throughput.eta(batch.progress, stats)))

    async with anyio.create_task_group() as tasks, batch as outcomes:
        tasks.start_soon(watch)
        assert len([outcome async for outcome in outcomes]) == 300
        tasks.cancel_scope.cancel()
    end = batch.progress.elapsed
    truths = [(at, left, end - at) for at, left in said]
    off = [each for each in truths if each[1] is None or abs(each[1] - each[2]) > max(8, 0.35 * each[2])]
    assert len(said) > 100
    assert off == []


def test_no_pace_is_said_of_nothing() -> None:
    """Without a pace or a number of jobs there is no time left to be said."""
    throughput = Throughput()
    assert throughput.per_second(at(5, 0)) == 0
    throughput.update(at(0, 0))
    assert throughput.per_second(at(1, 5)) == 0
    assert throughput.eta(at(60, 0, total=9)) is None
    assert throughput.eta(at(60, 5)) is None
    assert throughput.eta(at(60, 6, total=6)) == 0


STEPS = st.lists(st.tuples(st.floats(0, 30), st.integers(0, 50), st.integers(0, 90)), min_size=1)
LIMITS = st.none() | st.builds(
    LimiterStats,
    limit=st.none() | st.integers(0, 100),
    left=st.none() | st.integers(-1, 100),
    resets_in=st.none() | st.floats(-1, 90),
    waiting=st.integers(0, 9),
    refusals=st.just(0),
)


@given(STEPS, LIMITS)
def test_no_course_of_events_breaks_the_pace(steps: list[tuple[float, int, int]], stats: LimiterStats | None) -> None:
    """However a batch proceeds, its pace is not negative, the time left is finite, and memory stays bounded."""
    throughput, elapsed, done = Throughput(), 0.0, 0
    for seconds, more, in_flight in steps:
        elapsed, done = elapsed + seconds, done + more
        now = at(elapsed, done, total=2000, in_flight=in_flight, submitted=done + in_flight)
        throughput.update(now)
        assert throughput.per_second(now) >= 0
        left = throughput.eta(now, stats)
        assert left is None or 0 <= left < float("inf")
    assert len(throughput._points) <= 122


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")]
)
def test_times_are_said_as_on_a_clock(seconds: float, said: str) -> None:
    """Minutes and seconds, and hours where there are some."""
    assert format_duration(seconds) == said


def test_the_progress_fits_a_terminal() -> None:
    """Every line has at most 80 columns, whatever the batch, and says what the batch is for."""
    now = Progress(
        elapsed=359_999.0,
        total=999_999,
        in_flight=1_000,
        completed=812_345,
        failed=12_345,
        cancelled=9,
        not_run=0,
        unknown=99,
        credits_spent=9_999_999.25,
        credits_reserved=12_000.5,
        max_credits=11_000_000.0,
    )
    display = BatchDisplay(lambda: now)
    assert display.lines() == (
        "824,798 of 999,999 done, 1,000 in flight",
        "812,345 completed, 12,345 failed, 9 cancelled, 99 unknown",
        "9,999,999.25 of 11,000,000 credits spent, 12,000.5 reserved",
        "99:59:59, 0 jobs a minute",
    )
    assert len(display.lines()[0]) + len(" ") + 34 <= 80


def test_a_wait_for_the_rate_limit_is_said() -> None:
    """While jobs wait for a turn, how many do and when the next window opens is said, and nothing otherwise."""
    stats = LimiterStats(limit=100, left=0, resets_in=31.6, waiting=1_234, refusals=0)
    assert format_quota(stats) == "1,234 wait for the rate limit; the next window opens in 32 s"
    assert format_quota(attrs.evolve(stats, waiting=0)) == format_quota(attrs.evolve(stats, resets_in=None)) == ""


def test_a_wait_of_polls_is_said() -> None:
    """When jobs wait for nothing but their runs, and the quota of polls is used up, that is what is waited for."""
    polls = LimiterStats(limit=100, left=0, resets_in=12.2, waiting=30, refusals=0)
    submits = LimiterStats(limit=100, left=3, resets_in=31.6, waiting=0, refusals=0)
    assert format_quota(submits, polls) == "30 polls wait for the rate limit; the next window opens in 12 s"
    assert format_quota(attrs.evolve(submits, waiting=2), polls).startswith("2 wait for")
    assert format_quota(submits, attrs.evolve(polls, waiting=0)) == ""


def test_a_pause_that_the_service_asked_for_is_said() -> None:
    """While jobs wait for the end of a pause, until when is said; the day too when it is another."""
    now = datetime(2026, 5, 8, 19, 29, 55, tzinfo=UTC)
    stats = LimiterStats(limit=100, left=0, resets_in=None, waiting=1_234, refusals=1, held_for=65.0, is_pause=True)
    assert format_pause(stats, now) == "1,234 wait: the service asked for a pause until 19:31:00"
    assert format_pause(attrs.evolve(stats, held_for=86_400.0), now).endswith("until 2026-05-09 19:29:55")
    assert (
        format_pause(attrs.evolve(stats, waiting=0), now) == format_pause(attrs.evolve(stats, held_for=0.0), now) == ""
    )


def test_what_can_be_run_later_says_how_to_continue() -> None:
    """A batch that was ended by a pause, or by somebody in between, is not over."""
    for reason in NotRunReason:
        report = BatchReport()
        report.record(NotRun(job=JOB, reason=reason, error=KnoudsError("no")))
        assert report.is_deferred is (reason in ("unreachable", "intercepted", "rate_limited"))


def test_jobs_that_wait_for_the_next_run_are_not_done() -> None:
    """After Ctrl-C the jobs that were read and not submitted count as left, in the progress and at the end."""
    report = BatchReport()
    for reason in (NotRunReason.STOPPED, NotRunReason.STOPPED, NotRunReason.INVALID):
        report.record(NotRun(job=JOB, reason=reason, error=KnoudsError("no")))
    now = report.excluding_stopped(Progress(elapsed=9.0, total=10, completed=4, not_run=3))
    assert summarize(now) == "5 of 10 jobs done: 4 completed, 1 not run; 0 credits spent; 0:09"
    display = BatchDisplay(lambda: now, is_stopping=True)
    assert display.lines()[0] == "5 of 10 done, 0 in flight"
    assert "to go" not in "".join(display.lines())
    assert [line.split(":")[0] for line in report.problems("l")] == ["1 job not run (invalid)"]


def test_what_did_not_occur_is_not_said() -> None:
    """A batch without a known number of jobs, a cap and odd outcomes says none of them."""
    display = BatchDisplay(lambda: Progress(elapsed=3.0, completed=3, in_flight=2, credits_spent=36.0))
    assert display.lines() == ("3 done, 2 in flight", "3 completed", "36 credits spent", "0:03, 60 jobs a minute")
