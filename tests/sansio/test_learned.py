"""How long runs last, over all targets: what is learned of a run, what is forgotten, what is kept."""

import json
import math
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async._sansio.course import TrackedRun
from knouds_async._sansio.crowd import AgeHistogram
from knouds_async._sansio.durations import Durations
from knouds_async._sansio.learned import LearnedDurations, check_expected, duration_key
from knouds_async.errors import InvalidArgumentError
from knouds_async.types import Target


def run(submitted_at: float | None = 0.0, *, last_seen_at: float = -math.inf) -> TrackedRun:
    """Return a run that was last seen running at a time."""
    tracked = TrackedRun("x", duration_key="a", submitted_at=submitted_at, last_seen_at=last_seen_at)
    tracked.settle_start(100.0)
    return tracked


@pytest.mark.parametrize(
    ("target", "expected", "key"),
    [
        (Target("workflows", "a"), None, "workflows/a"),
        (None, None, ""),
        (Target("models", "a"), 30.0, "models/a expected 30 s"),
        (Target("models", "a"), 31.0, "models/a expected 30 s"),
        (None, 1e8, "expected 6.9e+03 s"),
    ],
)
def test_runs_of_about_the_same_expected_length_share_a_law(
    target: Target | None, expected: float | None, key: str
) -> None:
    """A target has a key of its own, and one for each length that its runs are expected to have."""
    assert duration_key(target, expected) == key


def test_a_new_key_begins_around_what_is_expected() -> None:
    """The first poll comes the later the longer a run is expected to take; without a word it is that of 45 s."""
    learned = LearnedDurations()
    assert learned.durations_for("a") == Durations()
    polls = []
    for expected in (5.0, 45.0, 600.0):
        learned.durations_for(f"b {expected}", expected)
        polls.append(learned.next_poll(f"b {expected}", 0.0, 0.25))
    assert polls == sorted(polls)
    assert polls[1] == learned.next_poll("a", 0.0, 0.25)


def test_many_runs_ask_for_the_same_first_poll() -> None:
    """It is worked out once, and anew when the key has changed; what is remembered is bounded."""
    learned = LearnedDurations(max_keys=3)
    first = learned.next_poll("a", 0.0, 0.25)
    assert learned.next_poll("a", 0.0, 0.25) == first
    for _ in range(20):
        learned.observe_end("a", 300.0, 300.0)
    assert learned.next_poll("a", 0.0, 0.25) > first
    for number in range(10):
        learned.next_poll(f"b{number}", 0.0, 0.25)
    assert len(learned._first_polls) <= 3


def test_a_key_is_new_until_three_ends_were_seen() -> None:
    """Two ends are chance, three are a beginning."""
    learned = LearnedDurations()
    for expected in (True, True, True, False):
        assert learned.is_new("a") is expected
        learned.observe_end("a", 10.0, 12.0)


@pytest.mark.parametrize(
    ("tracked", "now", "duration", "at"),
    [
        (run(last_seen_at=20.0), 30.0, None, (20.0, 30.0)),
        (run(last_seen_at=20.0), 30.0, 25.0, (25.0, 25.0)),
        (run(last_seen_at=20.0), 30.0, 40.0, (20.0, 30.0)),
        (run(), 200.0, 25.0, (25.0, 25.0)),
        (run(), 200.0, None, None),
        (run(None), 130.0, 25.0, None),
    ],
)
def test_an_end_is_learned_as_far_as_it_is_known(
    tracked: TrackedRun, now: float, duration: float | None, at: tuple[float, float] | None
) -> None:
    """By the service's word where it fits, else between two polls; not when it may have been at almost any time."""
    learned = LearnedDurations()
    learned.observe_finished(tracked, now, duration)
    if at is None:
        assert learned.to_dict() == {}
    else:
        assert learned.durations_for("a") == Durations().observe_end(*at)


def test_the_time_of_runs_still_running_is_counted_once() -> None:
    """What was seen of each is exposure; what was counted before, or is not dated, is not counted again."""
    learned, tracked = LearnedDurations(), run(last_seen_at=20.0)
    for _ in range(3):
        learned.observe_running([tracked, run(None, last_seen_at=150.0)])
    assert sum(learned.durations_for("a").exposure) == pytest.approx(20.0)
    tracked.last_listed_at = 30.0
    learned.observe_running([tracked])
    assert sum(learned.durations_for("a").exposure) == pytest.approx(30.0)


def test_keys_are_bounded_and_the_latest_stay() -> None:
    """A thousand targets are remembered; of more the one that was seen longest ago goes."""
    learned = LearnedDurations(max_keys=2)
    for name in ("a", "b", "a", "c"):
        learned.observe_end(name, 5.0, 5.0)
    assert sorted(learned.to_dict()) == ["a", "c"]


def test_what_was_learned_survives_json() -> None:
    """A copy that was loaded is as wise, the expected keys too."""
    learned, copy = LearnedDurations(), LearnedDurations()
    learned.durations_for("b", 300.0)
    for name in ("a", "b"):
        learned.observe_end(name, 40.0, 42.0)
    copy.load(json.loads(json.dumps(learned.to_dict())))
    assert copy.to_dict() == learned.to_dict()
    assert copy.durations_for("b").expected == 300.0


@pytest.mark.parametrize("saved", [None, [], "x", {1: {}}, {"a": None}, {"a": {"version": 2}}], ids=repr)
def test_what_cannot_be_read_is_refused(saved: Any) -> None:
    """The fault is named, and the key that has it."""
    with pytest.raises(ValueError, match=r"by target|saved durations"):
        LearnedDurations().load(saved)


@pytest.mark.parametrize(
    ("value", "fits"),
    [(1, True), (0.5, True), (0, False), (-1, False), (math.nan, False), (math.inf, False), ("5", False),
     (True, False), (None, True), (10**400, False)],
)  # fmt: skip
def test_what_can_be_expected(value: object, fits: bool) -> None:
    """A number of seconds above 0, no truth value and no eternity; or nothing."""
    with nullcontext() if fits else pytest.raises(InvalidArgumentError, match="expected="):
        check_expected(value)


def test_ages_far_apart_are_counted_each_in_its_bin() -> None:
    """Between the young and the old of a crowd there may be nobody."""
    learned, ages = LearnedDurations(), AgeHistogram()
    all_ages = [1.5] * 20 + [900.0] * 20
    for age in all_ages:
        ages.add("a", 1000.0 - age)
    assert ages.forecast(learned, 1000.0).ends_per_second == pytest.approx(
        sum(learned.durations_for("a").hazard(age) for age in all_ages)
    )


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(-8000, 10)), max_size=80), st.data())
def test_a_sum_over_many_runs_is_that_over_each(runs: list[tuple[str, float]], data: st.DataObject) -> None:
    """Counted by bins of age, the ends and polls expected are those of every run alone."""
    learned, ages = LearnedDurations(), AgeHistogram()
    learned.observe_end("a", 5.0, 8.0)
    for key, started_at in runs:
        ages.add(key, started_at)
    for key, started_at in data.draw(st.lists(st.sampled_from(runs), unique=True)) if runs else []:
        ages.remove(key, started_at)
        runs.remove((key, started_at))
    forecast = ages.forecast(learned, 10.0)
    hazards = [learned.durations_for(key).hazard(10.0 - started_at) for key, started_at in runs]
    assert forecast.ends_per_second == pytest.approx(sum(hazards))
    assert forecast.polls_per_second == pytest.approx(sum(math.sqrt(hazard / 2) for hazard in hazards))
    assert (len(ages), ages.key_count) == (len(runs), len({key for key, _ in runs}))
