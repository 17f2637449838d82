"""How long runs last, learned: the model against a plain one written here, and the schedule against its definition."""

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise, product
from statistics import NormalDist, fmean
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knouds_async._sansio.durations import (
    EDGES,
    MAX_ENDS,
    Durations,
    LearnedDurations,
    TrackedRun,
    check_expected,
    duration_key,
)
from knouds_async._sansio.polling import AgeHistogram
from knouds_async.errors import InvalidArgumentError
from knouds_async.types import Target

NAN, INF, DAY = math.nan, math.inf, 86400.0
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
            durations = durations.observe_running(seen.lo, counted_until=seen.counted_until)
        else:
            durations = durations.observe_end(seen.lo, seen.hi, counted_until=seen.counted_until)
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
            if hi > seen.lo:
                ends[k] += overlap(seen.lo, hi, low, top) / (hi - seen.lo)
            elif seen.hi is not None:
                ends[k] += low <= hi < top
    return ends, exposure


def plain_hazards(history: list[Seen], median: float) -> list[float]:
    """Work out every hazard from the definition: a log-logistic prior worth two runs, smoothed with what was seen."""
    ends, exposure = plain_counts(history)

    def survival(age: float) -> float:
        return 1 / (1 + (age / median) ** 3)

    for k, low in enumerate(EDGES):
        top = EDGES[k + 1] if k + 1 < len(EDGES) else low * 1.12
        at_risk = survival(low) + survival(top)
        probability = 2 * (survival(low) - survival(top))
        exposure[k] += at_risk * (top - low) + 1e-5
        ends[k] += max(probability, 0.01 * 45 / median * at_risk * (top - low)) + 1e-6
    weights = {-2: 0.25, -1: 0.5, 0: 1.0, 1: 0.5, 2: 0.25}

    def around(counts: list[float], k: int) -> float:
        return sum(w * counts[k + o] for o, w in weights.items() if 0 <= k + o < len(counts))

    return [around(ends, k) / around(exposure, k) for k in range(len(EDGES))]


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
        durations = durations.observe_end(run, run)
    return durations


def follow(durations: Durations, run: float, cost: float = 0.25) -> tuple[int, float]:
    """Follow one run by the schedule: how many polls it took, and how late its end was known."""
    polls, age = 1, durations.next_poll(0.0, cost) + ROUND_TRIP
    while age < run:
        polls, age = polls + 1, durations.next_poll(age, cost) + ROUND_TRIP
    return polls, age + ROUND_TRIP / 2 - run


def follow_all(durations: Durations, runs: list[float]) -> tuple[float, float]:
    """Return the mean number of polls and the mean latency over many runs, without learning from them."""
    polls, latencies = zip(*(follow(durations, run) for run in runs), strict=True)
    return fmean(polls), fmean(latencies)


# ---- what is counted


def test_the_bins_go_from_a_second_to_two_hours() -> None:
    """There are 80 bins, in order, each 12 % wider than the one before, and the last begins short of 2 h."""
    assert len(EDGES) == 80
    assert EDGES[:2] == (0.0, 1.0)
    assert all(high / low == pytest.approx(1.12) for low, high in pairwise(EDGES[1:]))
    assert EDGES[-1] < 7200 < EDGES[-1] * 1.12


@property_test
@given(histories, st.sampled_from([None, 6.0, 45.0, 900.0]))
def test_counts_and_hazards_follow_the_definition(history: list[Seen], expected: float | None) -> None:
    """Ends, exposure and hazards are those of a model that works everything out from the whole history."""
    durations = observed(history, expected)
    ends, exposure = plain_counts(history)
    assert durations.ends == pytest.approx(ends, abs=1e-9)
    assert durations.exposure == pytest.approx(exposure, abs=1e-6)
    hazards = [durations.hazard(age) for age in MIDDLES]
    assert hazards == pytest.approx(plain_hazards(history, expected or 45.0), rel=1e-6)


@property_test
@given(histories)
def test_every_end_counts_once(history: list[Seen]) -> None:
    """The ends of all bins together are the ends observed, however they were spread."""
    assert sum(observed(history).ends) == pytest.approx(sum(seen.hi is not None for seen in history))


@property_test
@given(histories)
def test_exposure_is_the_time_at_risk(history: list[Seen]) -> None:
    """The exposure of all bins together is the seconds from where each run was counted to its poll or its end."""
    at_risk = sum((seen.lo + (seen.lo if seen.hi is None else seen.hi)) / 2 - seen.counted_until for seen in history)
    assert sum(observed(history).exposure) == pytest.approx(at_risk, abs=1e-6)


@property_test
@given(histories)
def test_hazards_are_the_same_whether_kept_or_worked_out_anew(history: list[Seen]) -> None:
    """Updating only the bins that changed gives, to the last bit, what the counts alone give."""
    kept = observed(history)
    anew = Durations(ends=kept.ends, exposure=kept.exposure)
    assert [kept.hazard(age) for age in MIDDLES] == [anew.hazard(age) for age in MIDDLES]


def test_polls_in_between_change_nothing_but_where_time_is_counted_from() -> None:
    """A run seen running twice and then finished has the exposure of one whose whole life is counted at its end."""
    observed_twice = Durations().observe_running(26.0).observe_running(31.0, counted_until=26.0)
    observed_twice = observed_twice.observe_end(31.0, 36.0, counted_until=31.0)
    at_once = Durations().observe_end(31.0, 36.0)
    assert observed_twice.ends == at_once.ends
    assert observed_twice.exposure == pytest.approx(at_once.exposure)


def test_an_end_between_two_polls_is_spread_evenly() -> None:
    """Half of the time between two polls gets half of the end."""
    low, edge, top = EDGES[40], EDGES[41], EDGES[42]
    ends = Durations().observe_end(low, top).ends
    assert ends[40] == pytest.approx((edge - low) / (top - low))
    assert ends[41] == pytest.approx((top - edge) / (top - low))


def test_an_end_seen_exactly_falls_into_its_bin() -> None:
    """An end whose moment is known counts whole in one bin, also on the bin's lower edge."""
    assert Durations().observe_end(EDGES[40], EDGES[40]).ends[40] == 1


def test_runs_still_running_keep_fast_finishers_from_misleading() -> None:
    """Ten of a hundred runs ending at 10 s make a low hazard once the ninety still running are counted."""
    fast = Durations()
    for _ in range(10):
        fast = fast.observe_end(10.0, 10.0)
    counted = fast.observe_all_running([(0.0, 10.5)] * 90)
    assert counted.hazard(10.0) < fast.hazard(10.0) / 5


@property_test
@given(histories, st.lists(st.tuples(ages(), ages()), max_size=10))
def test_many_at_once_are_the_same_as_one_by_one(history: list[Seen], spans: list[tuple[float, float]]) -> None:
    """Counting many runs still running in one call is counting each of them."""
    singly = together = observed(history)
    for counted_until, age in spans:
        singly = singly.observe_running(age, counted_until=counted_until)
    together = together.observe_all_running(spans)
    assert together == singly
    assert [together.hazard(age) for age in MIDDLES] == [singly.hazard(age) for age in MIDDLES]


def test_an_observation_leaves_the_old_value_alone() -> None:
    """Durations are values: what was known before an observation can still be used."""
    cold = Durations()
    cold.observe_end(3.0, 5.0)
    cold.observe_running(7.0)
    assert cold == Durations()
    assert cold.hazard(4.0) == Durations().hazard(4.0)


# ---- forgetting


def test_above_five_hundred_ends_all_that_was_seen_is_halved() -> None:
    """The 501st end halves ends and exposure, and not before."""
    durations = learned([40.0, 50.0] * 250)
    assert sum(durations.ends) == pytest.approx(MAX_ENDS)
    exposure = sum(durations.exposure)
    durations = durations.observe_end(45.0, 45.0)
    assert sum(durations.ends) == pytest.approx((MAX_ENDS + 1) / 2)
    assert sum(durations.exposure) == pytest.approx((exposure + 45) / 2)


def test_five_hundred_ends_in_fractions_are_not_above_five_hundred() -> None:
    """Rounding in ends that were spread over bins does not halve early."""
    durations = Durations()
    for _ in range(MAX_ENDS):
        durations = durations.observe_end(33.3, 47.7)
    assert sum(durations.ends) == pytest.approx(MAX_ENDS)


def test_halving_keeps_the_hazard_where_much_was_seen() -> None:
    """Halving both counts leaves their ratio, but for the little weight that the prior regains."""
    before = learned([45.0] * MAX_ENDS)
    after = before.observe_end(45.0, 45.0)
    assert after.hazard(45.0) == pytest.approx(before.hazard(45.0), rel=0.02)


def test_a_target_that_changed_is_learned_again() -> None:
    """After 2000 runs of 20 s, 600 of 120 s are enough to be polled late and without many polls."""
    durations = learned(quantiles(20.0, 0.2, 2000))
    before, _ = follow_all(durations, quantiles(120.0, 0.2, 100))
    for run in quantiles(120.0, 0.2, 600):
        durations = durations.observe_end(run, run)
    after, latency = follow_all(durations, quantiles(120.0, 0.2, 100))
    assert after < 0.8 * before
    assert latency < 4.0


# ---- when to poll


@property_test
@given(histories, ages(), costs)
def test_a_poll_is_due_when_the_expected_delay_reaches_the_cost(history: list[Seen], age: float, cost: float) -> None:
    """At the next poll the expected delay is the cost, or less when the longest step ends first."""
    durations = observed(history)
    poll = durations.next_poll(age, cost)
    delay, _ = durations.expected_delay(age, poll)
    step = min(600.0, max(10.0, age / 4) if age else 600.0)
    assert age < poll <= age + step
    if poll < age + step:
        assert delay == pytest.approx(cost, rel=1e-9, abs=1e-9)
    else:
        assert delay <= cost * (1 + 1e-9)


@property_test
@given(histories, ages(), st.floats(0.5, 600.0))
def test_a_cost_reached_on_the_last_moment_is_not_overstepped(history: list[Seen], age: float, longest: float) -> None:
    """Where the expected delay reaches the cost just as the longest step ends, the poll comes no later."""
    durations = observed(history)
    cost, _ = durations.expected_delay(age, age + longest)
    assert durations.next_poll(age, max(cost, 1e-3), longest=longest) <= age + longest


@property_test
@given(histories, ages(), costs, st.floats(1.0, 5.0))
def test_a_dearer_poll_comes_no_sooner(history: list[Seen], age: float, cost: float, factor: float) -> None:
    """The next poll is monotone in its cost."""
    durations = observed(history)
    assert durations.next_poll(age, cost * factor) >= durations.next_poll(age, cost) - 1e-9


@property_test
@given(histories, ages(), costs)
def test_a_poll_never_comes_sooner_than_its_cost(history: list[Seen], age: float, cost: float) -> None:
    """An end cannot go unnoticed for longer than there was no poll, so that no schedule spins."""
    step = min(600.0, max(10.0, age / 4) if age else 600.0)
    assert observed(history).next_poll(age, cost) >= age + min(cost, step) * (1 - 1e-9)


@property_test
@given(histories, ages(), ages(600.0), costs)
def test_polls_move_on_with_the_age(history: list[Seen], age: float, later: float, cost: float) -> None:
    """Every poll leads to a later one: a run that never ends is polled for ever at growing ages."""
    durations = observed(history)
    seen = [age]
    for _ in range(5):
        seen.append(durations.next_poll(seen[-1], cost))
    assert all(low < high for low, high in pairwise(seen))
    assert durations.next_poll(age, cost, longest=later or 1.0) <= age + (later or 1.0)


@pytest.mark.parametrize("cost", [5e-324, 1e-30, 1e-6, 0.25, 1e6, 1e300])
def test_extreme_costs_still_give_a_poll_ahead(cost: float) -> None:
    """However small or large the cost and the hazards, the poll is later than the age and not too late."""
    for age, ends in product((0.0, 1e-9, 45.0, 1e5, 1e9), ([], [1e-9] * 400, [45.0] * 400)):
        durations = learned(ends)
        assert age < durations.next_poll(age, cost) <= age + max(600.0, 10.0), (age, ends[:1])
        assert age < durations.next_poll(age, cost, longest=INF), (age, ends[:1])


def test_an_unknown_target_is_first_polled_soon() -> None:
    """The first poll of a cold target comes at 7 s, so that short runs are found and long ones not forgotten."""
    assert Durations().next_poll(0.0, 0.25) == pytest.approx(7.0, abs=0.2)


def test_a_known_target_is_polled_where_its_runs_end() -> None:
    """Polls a learned target of 45 s begin at about 26 s and close up from 5 s to 3 s apart."""
    durations, polls = learned(quantiles(45.0, 0.35, 200)), [0.0]
    for _ in range(7):
        polls.append(durations.next_poll(polls[-1], 0.25))
    assert polls[1:] == pytest.approx([26, 31, 35, 39, 43, 46, 49], abs=1.0)
    steps = [high - low for low, high in pairwise(polls[1:])]
    assert steps == sorted(steps, reverse=True)
    assert 3 < steps[-1] < steps[0] < 6


def test_the_step_is_limited_by_the_age() -> None:
    """An old run is polled within a quarter of its age, a young one within 10 s, none later than 10 min."""
    quiet = Durations().observe_all_running([(0.0, DAY)] * 1000)
    assert quiet.next_poll(20.0, 4.0) == 30.0
    assert quiet.next_poll(400.0, 4.0) == 500.0
    assert quiet.next_poll(40_000.0, 4.0) == 40_600.0
    assert quiet.next_poll(0.0, 400.0) == 600.0


def test_a_longest_step_of_the_callers_own_replaces_the_rule() -> None:
    """A run tracked by other means may go unpolled for longer than a quarter of its age, or for less."""
    durations = Durations()
    assert durations.next_poll(20.0, 30.0) == 30.0
    assert durations.next_poll(20.0, 30.0, longest=600.0) > 60.0
    assert durations.next_poll(20.0, 30.0, longest=2.0) == 22.0


@pytest.mark.parametrize("cost", [0.0, -1.0, NAN, INF])
def test_a_cost_is_seconds_above_zero(cost: float) -> None:
    """A poll that costs nothing would be due at once for ever."""
    with pytest.raises(ValueError, match="cost="):
        Durations().next_poll(0.0, cost)


@pytest.mark.parametrize("longest", [0.0, -1.0, NAN])
def test_a_longest_step_is_seconds_above_zero(longest: float) -> None:
    """A step of no length would be due at once for ever."""
    with pytest.raises(ValueError, match="longest="):
        Durations().next_poll(0.0, 0.25, longest=longest)


# ---- what to expect of a run not polled


@settings(deadline=None, max_examples=8)
@given(histories, ages(2000.0), st.floats(0.1, 300.0))
def test_the_expected_delay_is_the_integral_it_claims(history: list[Seen], seen_at: float, span: float) -> None:
    """The closed form over bins is what adding up small steps gives."""
    durations = observed(history)
    delay, probability = durations.expected_delay(seen_at, seen_at + span)
    plain_delay, plain_probability = plain_wait(durations, seen_at, seen_at + span)
    assert probability == pytest.approx(plain_probability, rel=0.02, abs=1e-3)
    assert delay == pytest.approx(plain_delay, rel=0.02, abs=1e-3 * span)


@property_test
@given(histories, ages(), ages(), ages())
def test_the_expected_delay_grows_with_the_age(history: list[Seen], seen_at: float, one: float, other: float) -> None:
    """Later, more time went unnoticed and the end is more probable; neither leaves its bounds."""
    durations = observed(history)
    sooner, later = sorted((seen_at + one, seen_at + other))
    delay, probability = durations.expected_delay(seen_at, sooner)
    delay_later, probability_later = durations.expected_delay(seen_at, later)
    assert -1e-9 <= delay <= sooner - seen_at
    assert 0 <= probability <= 1
    assert delay <= delay_later + 1e-9
    assert probability <= probability_later + 1e-12


@pytest.mark.parametrize(("seen_at", "age"), [(45.0, 45.0), (45.0, 3.0), (45.0, NAN), (0.0, -1.0), (INF, INF)])
def test_nothing_went_unnoticed_since_a_poll_that_is_not_past(seen_at: float, age: float) -> None:
    """At or before the last poll nothing is unnoticed and the run has not finished."""
    assert Durations().expected_delay(seen_at, age) == (0.0, 0.0)


def test_in_the_long_run_the_end_is_certain() -> None:
    """Without limit the probability is one and the wait has no bound."""
    assert Durations().expected_delay(0.0, INF) == (INF, 1.0)


# ---- what the schedule achieves


def test_a_learned_target_takes_few_polls() -> None:
    """A lone run of a learned target of 45 s takes at most 8 polls and is known within 2.1 s on average."""
    polls, latency = follow_all(learned(quantiles(45.0, 0.35, 200)), quantiles(45.0, 0.35, 999))
    assert polls <= 8
    assert latency <= 2.1


def test_a_cold_target_takes_few_polls() -> None:
    """A lone run of 45 s of a target never seen takes at most 10 polls and is known within 2.8 s on average."""
    polls, latency = follow_all(Durations(), quantiles(45.0, 0.35, 999))
    assert polls <= 10
    assert latency <= 2.8


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


def test_a_wrong_median_is_overruled_by_what_is_seen() -> None:
    """Twenty runs undo a median five times off."""
    runs = quantiles(45.0, 0.35, 199)
    wrong = Durations(expected=225.0)
    for run in quantiles(45.0, 0.35, 20):
        wrong = wrong.observe_end(run, run)
    polls, latency = follow_all(wrong, runs)
    assert latency + 0.25 * polls < 4.6


def test_a_median_of_forty_five_seconds_is_the_default() -> None:
    """Expecting what is assumed anyway changes no poll."""
    assert Durations(expected=45.0).next_poll(0.0, 0.25) == Durations().next_poll(0.0, 0.25)


@pytest.mark.parametrize("expected", [1e-300, 1e-9, 1, 1e9, 10**400])
def test_a_median_outside_the_bins_counts_as_the_nearest(expected: float) -> None:
    """Any number of seconds above zero is a median; the hazards stay usable."""
    durations = Durations(expected=expected)
    assert all(0 < durations.hazard(age) < INF for age in MIDDLES)


@pytest.mark.parametrize("expected", [0, -1.0, NAN, INF, True, "45", [45.0]])
def test_a_median_that_is_no_duration_is_refused(expected: Any) -> None:
    """What is not a number of seconds above zero is named in the error."""
    with pytest.raises(ValueError, match="expected="):
        Durations(expected=expected)


# ---- rubbish


@property_test
@given(st.lists(st.tuples(st.floats(), st.floats(), st.floats(), st.booleans()), max_size=10), st.floats())
def test_no_float_breaks_the_model(rubbish: list[tuple[float, float, float, bool]], age: float) -> None:
    """Whatever ages are observed, hazards stay finite and above zero and each end counts once."""
    durations = Durations()
    for counted_until, lo, hi, is_end in rubbish:
        if is_end:
            durations = durations.observe_end(lo, hi, counted_until=counted_until)
        else:
            durations = durations.observe_running(lo, counted_until=counted_until)
    assert sum(durations.ends) == pytest.approx(sum(is_end for *_, is_end in rubbish))
    assert all(0 <= seconds < INF for seconds in durations.exposure)
    assert 0 < durations.hazard(age) < INF
    assert durations.next_poll(min(age, 1e9), 0.25) > (min(age, 1e9) if age > 0 else 0.0)


CLEANED: list[tuple[Callable[[Durations], Durations], Callable[[Durations], Durations]]] = [
    (lambda d: d.observe_running(NAN), lambda d: d.observe_running(0.0)),
    (lambda d: d.observe_running(-5.0), lambda d: d.observe_running(0.0)),
    (lambda d: d.observe_running(INF), lambda d: d.observe_running(DAY)),
    (lambda d: d.observe_running(9.0, counted_until=NAN), lambda d: d.observe_running(9.0)),
    (lambda d: d.observe_running(9.0, counted_until=12.0), lambda d: d),
    (lambda d: d.observe_end(NAN, 5.0), lambda d: d.observe_end(0.0, 5.0)),
    (lambda d: d.observe_end(5.0, NAN), lambda d: d.observe_end(5.0, 5.0)),
    (lambda d: d.observe_end(40.0, 30.0), lambda d: d.observe_end(40.0, 40.0)),
    (lambda d: d.observe_end(5.0, INF), lambda d: d.observe_end(5.0, DAY)),
    (lambda d: d.observe_end(0.0, 5e-324), lambda d: d.observe_end(0.0, 0.0)),
]


@pytest.mark.parametrize(("odd", "plain"), CLEANED)
def test_an_odd_age_counts_as_the_nearest_possible_one(
    odd: Callable[[Durations], Durations], plain: Callable[[Durations], Durations]
) -> None:
    """No number or a negative age is 0, more than a day is a day, and an end is no earlier than the last sight."""
    start = learned([20.0, 30.0])
    assert odd(start) == plain(start)


@pytest.mark.parametrize("age", [NAN, -1.0, -INF])
def test_an_odd_age_is_polled_as_a_new_run(age: float) -> None:
    """A run of no known age has the hazard and the next poll of one just submitted."""
    durations = learned([20.0, 30.0])
    assert durations.hazard(age) == durations.hazard(0.0)
    assert durations.next_poll(age, 0.25) == durations.next_poll(0.0, 0.25)
    assert durations.expected_delay(age, 20.0) == durations.expected_delay(0.0, 20.0)


def test_a_run_older_than_two_hours_is_still_polled() -> None:
    """The last bin has no end: its hazard is that of any older run."""
    durations = Durations().observe_running(3 * 7200.0)
    assert durations.hazard(3 * 7200.0) == durations.hazard(7200.0)
    assert 3 * 7200.0 < durations.next_poll(3 * 7200.0, 0.25) <= 3 * 7200.0 + 600.0


# ---- save and load


@property_test
@given(histories, st.sampled_from([None, 45.0, 240]), ages(), costs)
def test_what_was_saved_gives_the_same_polls(
    history: list[Seen], expected: float | None, age: float, cost: float
) -> None:
    """A process that loads what another saved as JSON polls at exactly the same ages."""
    durations = observed(history, expected)
    loaded = Durations.from_dict(json.loads(json.dumps(durations.to_dict())))
    assert loaded == durations
    assert loaded.next_poll(age, cost) == durations.next_poll(age, cost)


def test_what_is_saved_is_small() -> None:
    """A target never seen takes some bytes, and one seen hundreds of times about two thousand."""
    assert len(json.dumps(Durations().to_dict())) < 60
    assert len(json.dumps(learned(quantiles(45.0, 0.35, 1500)).to_dict())) < 2500


def saved(**changes: object) -> dict[str, object]:
    """Return what a good save polls like, but for some keys."""
    return {"version": 1, "expected": None, "bins": [[3, 1.0, 5.0], [4, 0, 2]], **changes}


def test_whole_numbers_are_read_as_numbers() -> None:
    """JSON written by another program may hold 2 for 2.0."""
    assert Durations.from_dict(saved()).exposure[4] == 2.0


@pytest.mark.parametrize(
    ("rubbish", "fault"),
    [
        (None, "must be an object"),
        ([], "must be an object"),
        ({}, "must be an object with a version"),
        ({"version": 1, "bins": []}, "must be an object with a version, expected"),
        (saved(version=2), "version 2, not 1"),
        (saved(version=None), "version None, not 1"),
        (saved(expected="45"), "expected='45'"),
        (saved(expected=-1), "expected=-1"),
        (saved(bins="[]"), "a list of bins"),
        (saved(bins={}), "a list of bins"),
        (saved(bins=[7]), "7 is not a bin"),
        (saved(bins=[[3, 1.0]]), "is not a bin"),
        (saved(bins=[["3", 1.0, 5.0]]), "is not a bin"),
        (saved(bins=[[80, 1.0, 5.0]]), "is not a bin"),
        (saved(bins=[[-1, 1.0, 5.0]]), "is not a bin"),
        (saved(bins=[[3, -1.0, 5.0]]), "is not a bin"),
        (saved(bins=[[3, NAN, 5.0]]), "is not a bin"),
        (saved(bins=[[3, 1.0, INF]]), "is not a bin"),
        (saved(bins=[[3, 1.0, 10**400]]), "is not a bin"),
        (saved(bins=[[3, 1.0, None]]), "is not a bin"),
        (saved(bins=[[4, 1.0, 5.0], [3, 1.0, 5.0]]), "bin 3 comes after bin 4"),
        (saved(bins=[[3, 1.0, 5.0], [3, 1.0, 5.0]]), "bin 3 comes after bin 3"),
        (saved(bins=[[3, 300.0, 5.0], [4, 300.0, 5.0]]), "600 ends are more than 500"),
    ],
)
def test_a_spoilt_save_is_refused_by_name(rubbish: object, fault: str) -> None:
    """What cannot be loaded is a ValueError that says what is wrong."""
    with pytest.raises(ValueError, match=fault):
        Durations.from_dict(rubbish)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
json_values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4), max_leaves=20)


@property_test
@given(st.builds(saved, version=st.just(1) | leaves, expected=leaves, bins=json_values))
def test_a_save_is_either_refused_or_usable(rubbish: dict[str, object]) -> None:
    """Nothing but ValueError comes out of loading, and what loads has hazards to work with."""
    try:
        durations = Durations.from_dict(rubbish)
    except ValueError:
        return
    assert all(0 < durations.hazard(age) < INF for age in MIDDLES)


def test_the_text_of_a_value_is_short() -> None:
    """In a log the counts show as totals."""
    assert repr(learned([40.0, 50.0])) == "Durations(expected=None, ends=2, exposure=90)"


# ---- The durations of all targets


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
def test_runs_of_about_the_same_expected_length_share_a_key(
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
    """A thousand targets are remembered; beyond that the one seen longest ago is forgotten."""
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
