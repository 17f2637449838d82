"""How long runs last, learned: the model against a plain one written here, and the schedule against its definition."""

import json
import math
import re
from contextlib import nullcontext
from itertools import pairwise, product
from statistics import NormalDist, fmean
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knouds_async._sansio.durations import (
    CANCEL_DURATION,
    CANCEL_KEY,
    EDGES,
    MAX_ENDS,
    Durations,
    LearnedDurations,
    check_expected,
    duration_key,
)
from knouds_async.errors import InvalidArgumentError
from knouds_async.types import Target

NAN, INF = math.nan, math.inf
TOPS = (*EDGES[1:], INF)
MIDDLES = [(low + min(top, 8000.0)) / 2 for low, top in zip(EDGES, TOPS, strict=True)]
ROUND_TRIP = 0.08

property_test = settings(deadline=None, max_examples=60)


@attrs.frozen
class Seen:
    """One observation: running at `lo` and finished at `hi`, or still running at `lo` when `hi` is None."""

    counted_until: float
    lo: float
    hi: float | None


def ages(longest: float = 20_000.0) -> st.SearchStrategy[float]:
    """Ages from nothing to hours, as many short as long ones."""
    return st.one_of(st.just(0.0), st.floats(-3, math.log(longest)).map(math.exp), st.sampled_from(EDGES))


@st.composite
def observations(draw: st.DrawFn) -> Seen:
    """Make an observation whose three ages are in order."""
    counted_until, lo, hi = sorted((draw(ages()), draw(ages()), draw(ages())))
    return Seen(counted_until, lo, draw(st.sampled_from([None, lo, hi])))


histories = st.lists(observations(), max_size=30)
costs = st.floats(-5, 4).map(math.exp)


def observed(history: list[Seen], expected: float | None = None) -> Durations:
    """Feed a history to the model."""
    durations = Durations(expected=expected)
    for seen in history:
        if seen.hi is None:
            durations.observe_running(seen.counted_until, seen.lo)
        else:
            durations.observe_end(seen.lo, seen.hi, counted_until=seen.counted_until)
    return durations


def overlap(start: float, end: float, low: float, top: float) -> float:
    """Return the seconds that two spans share."""
    return max(0.0, min(end, top) - max(start, low))


def plain_counts(history: list[Seen]) -> tuple[list[float], list[float]]:
    """Count ends and exposure bin by bin, from the definition."""
    ends, exposure = [0.0] * len(EDGES), [0.0] * len(EDGES)
    for seen in history:
        hi = seen.lo if seen.hi is None else seen.hi
        for k, (low, top) in enumerate(zip(EDGES, TOPS, strict=True)):
            exposure[k] += overlap(seen.counted_until, (seen.lo + hi) / 2, low, top)
            if seen.hi is not None:
                until = max(hi, seen.lo + 1e-8)  # an end whose time is known takes an instant
                ends[k] += overlap(seen.lo, until, low, top) / (until - seen.lo)
    return ends, exposure


def plain_hazards(history: list[Seen], median: float) -> list[float]:
    """Work out every hazard from the definition: a log-logistic prior worth three runs, and what was seen.

    Beyond the longest of three ends or more it is at least 1.5 divided by the age.
    """
    ends, exposure = plain_counts(history)
    middles = [(seen.lo + seen.hi) / 2 for seen in history if seen.hi is not None]

    def survival(age: float) -> float:
        return 1 / (1 + (age / median) ** 4)

    hazards = []
    for k, (low, top) in enumerate(zip(EDGES, (*EDGES[1:], EDGES[-1] * 1.3), strict=True)):
        at_risk = 1.5 * (survival(low) + survival(top)) * (top - low)
        died = max(3 * (survival(low) - survival(top)), 0.004 * 50 / median * at_risk)
        hazard = (ends[k] + died + 1e-6) / (exposure[k] + at_risk + 1e-5)
        is_outlived = len(middles) >= 3 and low > max(middles)
        hazards.append(max(hazard, 1.5 / TOPS[k]) if is_outlived else hazard)
    return hazards


def plain_wait(durations: Durations, seen_at: float, age: float, steps: int = 20_000) -> tuple[float, float]:
    """Sum the expected delay and the probability of an end by small steps."""
    step, survival, delay = (age - seen_at) / steps, 1.0, 0.0
    for i in range(steps):
        hazard = durations.hazard(seen_at + (i + 0.5) * step)
        delay += step * (1 - survival * math.exp(-hazard * step / 2))
        survival *= math.exp(-hazard * step)
    return delay, 1 - survival


def quantiles(median: float, sigma: float, count: int) -> list[float]:
    """Return durations spread as a lognormal, mixed up, the same on every run."""
    distribution = NormalDist(math.log(median), sigma)
    return [math.exp(distribution.inv_cdf((i * 617 % count + 0.5) / count)) for i in range(count)]


def learned(runs: list[float]) -> Durations:
    """Show each run's end exactly."""
    durations = Durations()
    for run in runs:
        durations.observe_end(run, run)
    return durations


def next_poll(durations: Durations, age: float, cost: float) -> float:
    """Return when to poll a run last seen running at an age, with the steps that are allowed."""
    return durations.next_poll(age, cost, longest=max(10.0, age / 4) if age else 600.0)


def follow(durations: Durations, run: float, cost: float = 0.25) -> tuple[int, float]:
    """Follow one run by the schedule: how many polls it took, and how late its end was known."""
    polls, age = 1, next_poll(durations, 0.0, cost) + ROUND_TRIP
    while age < run:
        polls, age = polls + 1, next_poll(durations, age, cost) + ROUND_TRIP
    return polls, age + ROUND_TRIP / 2 - run


def follow_all(durations: Durations, runs: list[float]) -> tuple[float, float]:
    """Return the mean number of polls and the mean latency over many runs, without learning from them."""
    polls, latencies = zip(*(follow(durations, run) for run in runs), strict=True)
    return fmean(polls), fmean(latencies)


# ---- what is counted


def test_the_bins_go_from_a_second_to_two_hours() -> None:
    """There are 35 bins, in order, each 30 % wider than the one before, and the last begins short of 2 h."""
    assert len(EDGES) == 35
    assert EDGES[:2] == (0.0, 1.0)
    assert all(high / low == pytest.approx(1.3) for low, high in pairwise(EDGES[1:]))
    assert EDGES[-1] < 7200 < EDGES[-1] * 1.3


@property_test
@given(histories, st.sampled_from([None, 6.0, 45.0, 900.0]))
def test_counts_and_hazards_follow_the_definition(history: list[Seen], expected: float | None) -> None:
    """Ends, exposure and hazards are those of a model that works everything out from the whole history."""
    durations, prior = observed(history, expected), Durations(expected)
    ends, exposure = plain_counts(history)
    assert [now - before for now, before in zip(durations.ends, prior.ends, strict=True)] == pytest.approx(ends)
    assert [now - before for now, before in zip(durations.exposure, prior.exposure, strict=True)] == pytest.approx(
        exposure, abs=1e-6
    )
    hazards = [durations.hazard(age) for age in MIDDLES]
    assert hazards == pytest.approx(plain_hazards(history, expected or 50.0), rel=1e-6)


@property_test
@given(histories)
def test_every_end_counts_once(history: list[Seen]) -> None:
    """The ends of all bins together are the ends observed, however they were spread."""
    durations, number = observed(history), sum(seen.hi is not None for seen in history)
    assert durations.end_count == number
    assert sum(durations.ends) - sum(Durations().ends) == pytest.approx(number)


@property_test
@given(histories)
def test_exposure_is_the_time_at_risk(history: list[Seen]) -> None:
    """The exposure of all bins together is the seconds from where each run was counted to its poll or its end."""
    at_risk = sum((seen.lo + (seen.lo if seen.hi is None else seen.hi)) / 2 - seen.counted_until for seen in history)
    assert sum(observed(history).exposure) - sum(Durations().exposure) == pytest.approx(at_risk, abs=1e-6)


def test_polls_in_between_change_nothing_but_where_time_is_counted_from() -> None:
    """A run seen running twice and then finished has the exposure of one whose whole life is counted at its end."""
    twice, at_once = Durations(), Durations()
    twice.observe_running(0.0, 26.0)
    twice.observe_running(26.0, 31.0)
    twice.observe_end(31.0, 36.0, counted_until=31.0)
    at_once.observe_end(31.0, 36.0)
    assert twice.ends == at_once.ends
    assert twice.exposure == pytest.approx(at_once.exposure)


def test_runs_still_running_keep_fast_finishers_from_misleading() -> None:
    """Ten of a hundred runs ending at 10 s make a low hazard once the ninety still running are counted."""
    fast = learned([10.0] * 10)
    before = fast.hazard(10.0)
    for _ in range(90):
        fast.observe_running(0.0, 10.5)
    assert fast.hazard(10.0) < before / 5


def test_above_five_hundred_ends_all_that_was_seen_is_halved() -> None:
    """The 501st end halves what was seen, not what was imagined, and leaves the hazards where much was seen."""
    durations = learned([40.0, 50.0] * 250)
    assert durations.end_count == MAX_ENDS
    exposure, hazard = sum(durations.exposure), durations.hazard(50.0)
    durations.observe_end(45.0, 45.0)
    assert durations.end_count == (MAX_ENDS + 1) / 2
    assert sum(durations.exposure) == pytest.approx((exposure + 45 + sum(Durations().exposure)) / 2)
    assert durations.hazard(50.0) == pytest.approx(hazard, rel=0.05)


def test_a_target_of_millions_of_runs_still_has_hazards() -> None:
    """Halved two thousand times, counts do not become zero, which would divide by it, and save what cannot be read."""
    durations = learned([40.0])
    for _ in range(2000):
        durations.end_count = MAX_ENDS
        durations.observe_end(45.0, 45.0)
    assert min(durations.hazard(edge) for edge in EDGES) > 0
    assert 40 < durations.median < 50
    assert 0 < durations.next_poll(0.0, 0.25, longest=600.0) < 60
    assert Durations.from_dict(durations.to_dict()).to_dict() == durations.to_dict()


@pytest.mark.parametrize("row", [[1e-9, 1e12], [1e12, 1e-9], [1e-9, 1e-9]])
def test_saved_counts_next_to_nothing_can_be_read(row: list[float]) -> None:
    """Counts that somebody wrote, as small as can be, still make a time for the next poll."""
    durations = Durations.from_dict(Durations().to_dict() | {"bins": [row] * len(EDGES)})
    assert 0 < durations.next_poll(0.0, 0.25, longest=600.0) <= 600
    assert durations.median > 0


def test_a_target_that_changed_is_learned_again() -> None:
    """After 2000 runs of 20 s, 600 of 120 s are enough to be polled late and without many polls."""
    durations = learned(quantiles(20.0, 0.2, 2000))
    before, _ = follow_all(durations, quantiles(120.0, 0.2, 100))
    for run in quantiles(120.0, 0.2, 600):
        durations.observe_end(run, run)
    after, latency = follow_all(durations, quantiles(120.0, 0.2, 100))
    assert after < 0.8 * before
    assert latency < 4.0


# ---- what is asked for


@settings(deadline=None, max_examples=30)
@given(histories, ages(2000.0), costs, st.floats(0.5, 600.0))
def test_a_poll_is_due_when_the_expected_delay_reaches_the_cost(
    history: list[Seen], age: float, cost: float, longest: float
) -> None:
    """At the next poll the expected delay is the cost, or less when the longest step ends first."""
    durations = observed(history)
    poll = durations.next_poll(age, cost, longest=longest)
    assert age < poll <= age + longest
    assert poll >= age + min(cost, longest) * (1 - 1e-9)
    delay, _ = plain_wait(durations, age, poll, 4000)
    if poll < age + longest:
        assert delay == pytest.approx(cost, rel=0.05, abs=1e-3)
    else:
        assert delay <= cost * 1.05 + 1e-3


@pytest.mark.parametrize("cost", [5e-324, 1e-30, 1e-6, 0.25, 1e6, 1e300])
def test_extreme_costs_still_give_a_poll_ahead(cost: float) -> None:
    """However small or large the cost and the hazards, the poll is later than the age and not too late."""
    for age, ends in product((0.0, 1e-9, 45.0, 1e5, 1e9), ([], [1e-9] * 400, [45.0] * 400)):
        assert age < learned(ends).next_poll(age, cost, longest=600.0) <= age + 600.0, (age, ends[:1])


@property_test
@given(histories)
def test_half_of_the_runs_have_finished_by_the_median(history: list[Seen]) -> None:
    """The median is the age by which an end is as probable as not."""
    durations = observed(history)
    ages = [*(edge for edge in EDGES if edge < durations.median), durations.median]  # it may be months
    risk = sum(durations.hazard((lo + hi) / 2) * (hi - lo) for lo, hi in pairwise(ages))
    assert math.exp(-risk) == pytest.approx(0.5, rel=1e-6)


def test_the_longest_run_is_remembered() -> None:
    """By the middle of where it may have finished, also in what was saved."""
    durations = learned([3.0, 8.0])
    durations.observe_end(4.0, 6.0)
    assert (Durations().longest, durations.longest) == (0.0, 8.0)
    assert Durations.from_dict(durations.to_dict()).longest == 8.0


def test_a_learned_target_takes_few_polls() -> None:
    """A lone run of a learned target of 45 s takes at most 8 polls and is known within 2.1 s on average."""
    polls, latency = follow_all(learned(quantiles(45.0, 0.35, 200)), quantiles(45.0, 0.35, 999))
    assert polls <= 8
    assert latency <= 2.1


@pytest.mark.parametrize(("median", "most_polls", "latency_at_most"), [(6.0, 3.5, 1.2), (240.0, 22.0, 5.0)])
def test_other_lengths_are_learned_too(median: float, most_polls: float, latency_at_most: float) -> None:
    """Short and long targets are learned as well as those the prior has in mind."""
    polls, latency = follow_all(learned(quantiles(median, 0.35, 200)), quantiles(median, 0.35, 999))
    assert polls <= most_polls
    assert latency <= latency_at_most


# ---- a median that the caller knows


@pytest.mark.parametrize("median", [6.0, 240.0, 900.0])
def test_an_expected_median_makes_a_cold_target_cheaper(median: float) -> None:
    """Polls and latency together cost less at once when the caller knows the median."""
    runs = quantiles(median, 0.35, 199)
    polls, latency = follow_all(Durations(), runs)
    informed_polls, informed_latency = follow_all(Durations(expected=median), runs)
    assert informed_latency + 0.25 * informed_polls < 0.8 * (latency + 0.25 * polls)


@pytest.mark.parametrize("expected", [1e-300, 1e-9, 1, 1e9, 10**400])
def test_a_median_outside_the_bins_counts_as_the_nearest(expected: float) -> None:
    """Any number of seconds above zero is a median; the hazards stay usable."""
    durations = Durations(expected=expected)
    assert all(0 < durations.hazard(age) < INF for age in MIDDLES)


# ---- any age


@property_test
@given(st.lists(st.tuples(*[st.floats(0, 1e7)] * 3, st.booleans()), max_size=10), st.floats(0, 1e7))
def test_no_age_breaks_the_model(seen: list[tuple[float, float, float, bool]], age: float) -> None:
    """Whatever ages are observed, hazards stay finite and above zero and each end counts once."""
    durations = Durations()
    for counted_until, lo, hi, is_end in seen:
        if is_end:
            durations.observe_end(lo, max(lo, hi), counted_until=counted_until)
        else:
            durations.observe_running(counted_until, lo)
    assert durations.end_count == sum(is_end for *_, is_end in seen)
    assert all(0 <= seconds < INF for seconds in durations.exposure)
    assert 0 < durations.hazard(age) < INF
    assert durations.next_poll(age, 0.25, longest=600.0) > age


# ---- saved


@property_test
@given(histories, st.sampled_from([None, 45.0, 240]))
def test_what_was_saved_gives_the_same_polls(history: list[Seen], expected: float | None) -> None:
    """By way of JSON, counts and hazards come back as they were."""
    durations = observed(history, expected)
    loaded = Durations.from_dict(json.loads(json.dumps(durations.to_dict())))
    assert loaded.to_dict() == durations.to_dict()
    assert [loaded.hazard(age) for age in MIDDLES] == [durations.hazard(age) for age in MIDDLES]


BINS = [[1, 2.5]] * 35


def saved(**changed: Any) -> dict[str, Any]:
    """Return a save with something changed."""
    return {"version": 2, "end_count": 3, "longest": 9.5, "bins": BINS, **changed}


def spoilt(*counts: object) -> dict[str, Any]:
    """Return a save one of whose bins is changed."""
    return saved(bins=[*BINS[1:], list(counts)])


@pytest.mark.parametrize(
    ("rubbish", "fault"),
    [
        (None, "None is not an object"),
        ({"version": 2}, "is not an object of version 2"),
        (saved(version=1), "{'version': 1"),
        (saved(version=None), "{'version': None"),
        (saved(bins="x" * 35), "{'version': 2"),
        (saved(bins=BINS[1:]), "with 35 bins"),
        (spoilt(-1, 1), "[-1, 1]"),
        (spoilt(0, 1), "[0, 1]"),
        (spoilt(1, 0), "[1, 0]"),
        (spoilt(5e-324, 1), "[5e-324, 1]"),  # too small to divide by
        (spoilt(1, NAN), "nan"),
        (spoilt(1, 2e12), "2000000000000.0"),
        (spoilt(1), "[1]"),
        *[(saved(end_count=count), f"end_count {count!r}") for count in (-1.0, NAN, INF, True, "45", [45.0])],
        *[(saved(longest=longest), f"longest {longest!r}") for longest in (-1.0, NAN, INF, True, "45", None)],
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_spoilt_save_is_refused_by_name(rubbish: object, fault: str) -> None:
    """What cannot be read raises ValueError that says what is wrong."""
    with pytest.raises(ValueError, match=re.escape(fault)):
        Durations.from_dict(rubbish)


# ---- the models of all targets


@pytest.mark.parametrize(
    ("target", "expected", "key"),
    [
        (Target("models", "a"), None, "models/a"),
        (None, None, ""),
        (None, 30, "expected 23.3 s"),
        (Target("models", "a"), 300.0, "models/a expected 247 s"),
        (Target("models", "a"), 250, "models/a expected 247 s"),
        (Target("models", "a"), 1e9, "models/a expected 5.76e+03 s"),
    ],
)
def test_runs_of_about_the_same_expected_length_share_a_key(
    target: Target | None, expected: float | None, key: str
) -> None:
    """Thirty per cent are no difference; without an expectation the target is the key."""
    assert duration_key(target, expected) == key


def test_a_new_key_begins_around_what_is_expected() -> None:
    """Until its runs are seen, and a cancel takes seconds; what is expected of a key that is known changes nothing."""
    models = LearnedDurations()
    models.durations_for("a", 300.0)
    models.durations_for(CANCEL_KEY, CANCEL_DURATION)
    medians = [models.durations_for(key, 45.0 if key == "a" else None).median for key in ("a", CANCEL_KEY, "b")]
    assert medians == pytest.approx([300.0, 3.0, 50.0], rel=0.1)
    models.durations_for("b").observe_end(5.0, 5.0)
    assert [models.durations_for(key).end_count for key in "abc"] == [0, 1, 0]


def test_keys_are_bounded_and_the_latest_stay() -> None:
    """The key that was learned of longest ago goes first."""
    models = LearnedDurations(max_keys=2)
    for key in "abac":
        models.durations_for(key).observe_end(5.0, 5.0)
    assert sorted(models.to_dict()) == ["a", "c"]


def test_what_was_learned_survives_json() -> None:
    """A client that begins with it knows as much."""
    models, loaded = LearnedDurations(), LearnedDurations()
    models.durations_for("a").observe_end(20.0, 25.0)
    models.durations_for("b").observe_running(0.0, 9.0)
    loaded.load(json.loads(json.dumps(models.to_dict())))
    assert loaded.to_dict() == models.to_dict()


@pytest.mark.parametrize("saved", [None, [], "x", {1: {}}, {"a": None}, {"a": {"version": 2}}], ids=repr)
def test_what_cannot_be_read_is_refused(saved: Any) -> None:
    """The error names the target, or what is no dict of targets."""
    with pytest.raises(ValueError, match=r"'a'|must be a dict"):
        LearnedDurations().load(saved)


@pytest.mark.parametrize(
    ("value", "fits"),
    [(None, True), (1, True), (1e-9, True), (1e9, False), (0, False), (-1, False), (NAN, False), (True, False)],
)
def test_what_can_be_expected(value: object, fits: bool) -> None:
    """A number of seconds above 0 and below 1e9, or nothing."""
    with nullcontext() if fits else pytest.raises(InvalidArgumentError, match="expected="):
        check_expected(value)


def test_what_is_saved_says_what_was_learned_beyond_the_most_ends_that_count() -> None:
    """When old ends are halved, every age is worked out anew, the oldest too."""
    learned = Durations(None)
    for number in range(MAX_ENDS + 1):
        took = 1000.0 if number < 5 else 2.0
        learned.observe_end(took, took)
    read = Durations.from_dict(learned.to_dict())
    assert read.to_dict() == learned.to_dict()
    assert [learned.hazard(age) for age in EDGES] == pytest.approx([read.hazard(age) for age in EDGES], rel=1e-9)
