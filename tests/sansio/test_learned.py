"""How long runs last, over all targets: what is learned of a run, what is forgotten, what is kept."""

import json
import math
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async._sansio.course import Course
from knouds_async._sansio.crowd import Crowd
from knouds_async._sansio.durations import Durations
from knouds_async._sansio.learned import Learned, check_expected, law_of
from knouds_async.errors import InvalidArgumentError
from knouds_async.types import Target


def run(submitted: float | None = 0.0, *, alive: float = -math.inf) -> Course:
    """Give a run that was last seen going at a time."""
    course = Course("x", law="a", submitted=submitted, alive=alive)
    course.begin(100.0)
    return course


@pytest.mark.parametrize(
    ("target", "expected", "law"),
    [
        (Target("workflows", "a"), None, "workflows/a"),
        (None, None, ""),
        (Target("models", "a"), 30.0, "models/a expected 30 s"),
        (Target("models", "a"), 31.0, "models/a expected 30 s"),
        (None, 1e8, "expected 6.9e+03 s"),
    ],
)
def test_runs_of_about_the_same_expected_length_share_a_law(
    target: Target | None, expected: float | None, law: str
) -> None:
    """A target has a law of its own, and one for each length that its runs are expected to have."""
    assert law_of(target, expected) == law


def test_a_new_law_begins_around_what_is_expected() -> None:
    """The first look comes the later the longer a run is expected to take; without a word it is that of 45 s."""
    learned = Learned()
    assert learned.law("a") == Durations()
    looks = []
    for expected in (5.0, 45.0, 600.0):
        learned.law(f"b {expected}", expected)
        looks.append(learned.next_look(f"b {expected}", 0.0, 0.25))
    assert looks == sorted(looks)
    assert looks[1] == learned.next_look("a", 0.0, 0.25)


def test_many_runs_ask_for_the_same_first_look() -> None:
    """It is worked out once, and anew when the law has changed; what is remembered is bounded."""
    learned = Learned(most=3)
    first = learned.next_look("a", 0.0, 0.25)
    assert learned.next_look("a", 0.0, 0.25) == first
    for _ in range(20):
        learned.ended("a", 300.0, 300.0)
    assert learned.next_look("a", 0.0, 0.25) > first
    for number in range(10):
        learned.next_look(f"b{number}", 0.0, 0.25)
    assert len(learned._first_looks) <= 3


def test_a_law_is_new_until_three_ends_were_seen() -> None:
    """Two ends are chance, three are a beginning."""
    learned = Learned()
    for expected in (True, True, True, False):
        assert learned.is_new("a") is expected
        learned.ended("a", 10.0, 12.0)


@pytest.mark.parametrize(
    ("course", "now", "lasted", "at"),
    [
        (run(alive=20.0), 30.0, None, (20.0, 30.0)),
        (run(alive=20.0), 30.0, 25.0, (25.0, 25.0)),
        (run(alive=20.0), 30.0, 40.0, (20.0, 30.0)),
        (run(), 200.0, 25.0, (25.0, 25.0)),
        (run(), 200.0, None, None),
        (run(None), 130.0, 25.0, None),
    ],
)
def test_an_end_is_learned_as_far_as_it_is_known(
    course: Course, now: float, lasted: float | None, at: tuple[float, float] | None
) -> None:
    """By the service's word where it fits, else between two looks; not when it may have been at almost any time."""
    learned = Learned()
    learned.over(course, now, lasted)
    if at is None:
        assert learned.to_dict() == {}
    else:
        assert learned.law("a") == Durations().observe_end(*at)


def test_the_time_of_runs_that_go_on_is_counted_once() -> None:
    """What was seen of each is exposure; what was counted before, or is not dated, is not counted again."""
    learned, course = Learned(), run(alive=20.0)
    for _ in range(3):
        learned.alive_all([course, run(None, alive=150.0)])
    assert sum(learned.law("a").exposure) == pytest.approx(20.0)
    course.shown = 30.0
    learned.alive_all([course])
    assert sum(learned.law("a").exposure) == pytest.approx(30.0)


def test_laws_are_bounded_and_the_latest_stay() -> None:
    """A thousand targets are remembered; of more the one that was seen longest ago goes."""
    learned = Learned(most=2)
    for name in ("a", "b", "a", "c"):
        learned.ended(name, 5.0, 5.0)
    assert sorted(learned.to_dict()) == ["a", "c"]


def test_what_was_learned_survives_json() -> None:
    """A copy that was loaded is as wise, the expected laws too."""
    learned, copy = Learned(), Learned()
    learned.law("b", 300.0)
    for name in ("a", "b"):
        learned.ended(name, 40.0, 42.0)
    copy.load(json.loads(json.dumps(learned.to_dict())))
    assert copy.to_dict() == learned.to_dict()
    assert copy.law("b").expected == 300.0


@pytest.mark.parametrize("saved", [None, [], "x", {1: {}}, {"a": None}, {"a": {"version": 2}}], ids=repr)
def test_what_cannot_be_read_is_refused(saved: Any) -> None:
    """The fault is named, and the law that has it."""
    with pytest.raises(ValueError, match=r"by target|saved durations"):
        Learned().load(saved)


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
    learned, crowd = Learned(), Crowd()
    ages = [1.5] * 20 + [900.0] * 20
    for age in ages:
        crowd.add("a", 1000.0 - age)
    assert crowd.outlook(learned, 1000.0).ends == pytest.approx(sum(learned.law("a").hazard(age) for age in ages))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(-8000, 10)), max_size=80), st.data())
def test_a_sum_over_many_runs_is_that_over_each(runs: list[tuple[str, float]], data: st.DataObject) -> None:
    """Counted by bins of age, the ends and looks expected are those of every run alone."""
    learned, crowd = Learned(), Crowd()
    learned.ended("a", 5.0, 8.0)
    for law, born in runs:
        crowd.add(law, born)
    for law, born in data.draw(st.lists(st.sampled_from(runs), unique=True)) if runs else []:
        crowd.remove(law, born)
        runs.remove((law, born))
    outlook = crowd.outlook(learned, 10.0)
    hazards = [learned.law(law).hazard(10.0 - born) for law, born in runs]
    assert outlook.ends == pytest.approx(sum(hazards))
    assert outlook.looks == pytest.approx(sum(math.sqrt(hazard / 2) for hazard in hazards))
    assert (len(crowd), crowd.laws) == (len(runs), len({law for law, _ in runs}))
