"""The server's clock from Date headers: always an interval that holds the truth."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async._sansio.clock import DRIFT, ClockBounds, Moment, Reading, ServiceClock

exchanges = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 5), st.floats(0, 50)), min_size=1, max_size=30)


def test_nothing_is_known_before_the_first_date() -> None:
    """Without a Date there is no server time."""
    assert not ClockBounds().known
    assert ClockBounds().server_time(5.0) is None


def test_one_answer_bounds_the_offset_by_its_second_and_its_round_trip() -> None:
    """A Date of whole seconds leaves one second and the round trip open."""
    clock = ClockBounds().update(1000.0, sent=10.0, answered=10.5)
    assert clock.known
    assert (clock.lo, clock.hi) == (989.5, 991.0)
    assert clock.server_time(20.0) == 1010.25


@given(offset=st.floats(-1e9, 1e9), exchanges=exchanges)
def test_the_true_offset_is_always_inside(offset: float, exchanges: list[tuple[float, float, float]]) -> None:
    """Whatever the latencies, each way, the bounds hold the true offset and never need a restart."""
    clock, now = ClockBounds(), 0.0
    for pause, up, down in exchanges:
        sent = now + pause
        now = sent + up + down
        clock = clock.update(math.floor(sent + up + offset), sent, now)
        assert clock.lo - 1e-6 <= offset <= clock.hi + 1e-6


def test_many_answers_narrow_the_bounds() -> None:
    """Answers spread over a second give the offset to about the round trip."""
    clock = ClockBounds()
    for tenth in range(100):
        sent = tenth * 0.1037
        clock = clock.update(math.floor(sent + 0.02 + 500.4), sent, sent + 0.04)
    assert clock.hi - clock.lo < 0.1
    assert clock.server_time(0.0) == pytest.approx(500.4, abs=0.05)


def test_a_clock_that_was_set_is_believed_at_once() -> None:
    """An answer that contradicts all before it counts alone."""
    clock = ClockBounds().update(1000.0, 0.0, 0.1).update(5000.0, 1.0, 1.1)
    assert clock == ClockBounds().update(5000.0, 1.0, 1.1)


@given(rate=st.floats(-DRIFT, DRIFT))
def test_clocks_that_part_slowly_stay_inside_the_bounds(rate: float) -> None:
    """Over a day of one answer a minute, the bounds follow a drifting clock and stay within two seconds."""
    clock = ClockBounds()
    for minute in range(1440):
        sent = minute * 60.0
        server = 1000.0 + (sent + 0.02) * (1 + rate)
        clock = clock.update(math.floor(server), sent, sent + 0.04)
        assert clock.lo - 1e-6 <= server - sent - 0.02 <= clock.hi + 1e-6
        assert clock.hi - clock.lo < 2


def test_clocks_are_values() -> None:
    """Equal histories make equal, hashable clocks."""
    assert len({ClockBounds().update(1.0, 0.0, 0.1), ClockBounds().update(1.0, 0.0, 0.1)}) == 1


def clocks(loop: float, *, slept: float = 0.0, stepped: float = 0.0, boot: bool = True) -> Reading:
    """Return what the clocks show at a moment of the loop's, after a sleep and a step of the wall clock."""
    since_boot = loop + 5000.0 + slept if boot else None
    return Reading(loop=loop, steady=loop + 7.0, boot=since_boot, wall=loop + 1e9 + slept + stepped)


DATE = 2e9
HEARD = ServiceClock().update(DATE, clocks(10.0), clocks(10.5))


def test_a_moment_is_dated_within_bounds_that_hold() -> None:
    """A `Date` of whole seconds, written between sending and answering, and a little for what clocks may part."""
    moment = HEARD.moment(clocks(10.5))
    assert moment.earliest == pytest.approx(DATE - 1, abs=1e-5)
    assert moment.latest == pytest.approx(DATE + 1.5 + 1, abs=1e-5)
    later = HEARD.moment(clocks(110.5))
    assert later.earliest == pytest.approx(DATE + 100 - 1 - 0.01, abs=1e-5)
    assert later.latest == pytest.approx(DATE + 100 + 1.5 + 1 + 0.01, abs=1e-5)
    assert later.middle == pytest.approx(DATE + 100.75, abs=0.1)


@given(st.floats(0, 500), st.floats(-1e-4, 1e-4), st.floats(0, 20), st.floats(0, 20), st.floats(0, 1))
def test_the_true_time_is_within_the_bounds(later: float, drift: float, out: float, back: float, part: float) -> None:
    """Whatever the way took, and however the clocks drift as crystals do."""
    written = 1e9 + 0.37
    sent, answered = clocks(100.0), clocks(100.0 + out + back)
    clock = ServiceClock().update(written // 1, sent, answered)
    truth = written + back + later * (1 + drift)
    moment = clock.moment(clocks(100.0 + out + back + later))
    assert moment.earliest is not None
    assert moment.latest is not None
    assert moment.earliest <= truth <= moment.latest


@pytest.mark.parametrize(
    ("now", "why"),
    [
        pytest.param(clocks(20.0, slept=8 * 3600), "slept or its clock was set", id="slept"),
        pytest.param(clocks(20.0, stepped=-90), "slept or its clock was set", id="clock set"),
        pytest.param(clocks(20.0, slept=90, boot=False), "slept or its clock was set", id="slept, no boot clock"),
        pytest.param(clocks(10.5 + 601), "not within ten minutes", id="too long ago"),
        pytest.param(clocks(10.5 - 601), "not within ten minutes", id="too long before"),
    ],
)
def test_what_was_heard_before_a_jump_or_long_ago_dates_nothing(now: Reading, why: str) -> None:
    """A monotonic clock stands still in a sleep, so what was added up since would be hours off; the reason is given."""
    moment = HEARD.moment(now)
    assert (moment.earliest, moment.latest, moment.middle) == (None, None, now.wall)
    assert "known, but" in moment.known
    assert moment.known.endswith(why)


@pytest.mark.parametrize("later", [-600.0, 0.5, 600.0])
def test_what_was_heard_within_ten_minutes_dates_a_moment(later: float) -> None:
    """A clock of the service that was heard recently, without a jump since, is known."""
    assert HEARD.moment(clocks(10.5 + later)).is_known


def test_a_jump_between_sending_and_answering_dates_nothing() -> None:
    """When the machine slept while the answer was on its way, it is not known when the answer was written."""
    assert not HEARD.update(DATE, clocks(20.0), clocks(21.0, slept=600)).moment(clocks(21.0, slept=600)).is_known
    assert ServiceClock().moment(clocks(1.0)) == Moment(wall=1e9 + 1.0)


@pytest.mark.parametrize("apart", [{"slept": 1.0}, {"slept": 1.0, "boot": False}, {"stepped": 1.0}, {"stepped": -1.0}])
def test_clocks_may_part_by_a_second(apart: dict[str, Any]) -> None:
    """That much is no jump, and anything more is one."""
    assert not clocks(20.0, **apart).has_jumped_since(clocks(10.0))
    more = {name: value * 1.5 if name != "boot" else value for name, value in apart.items()}
    assert clocks(20.0, **more).has_jumped_since(clocks(10.0))


def test_a_sleep_is_seen_though_the_wall_clock_was_set_back_by_as_much() -> None:
    """The clock that counts from the boot shows it."""
    assert clocks(20.0, slept=600, stepped=-600).has_jumped_since(clocks(10.0))


def test_an_answer_outside_of_an_event_loop_dates_nothing() -> None:
    """Without the loop's clock there is nothing to date by, whatever was heard before."""
    inside, outside = clocks(20.0), attrs.evolve(clocks(20.0), loop=None)
    for sent, answered in ((inside, outside), (outside, inside), (outside, outside)):
        assert not HEARD.update(DATE, sent, answered).moment(inside).is_known


def test_a_moment_bounded_on_one_side_has_no_middle() -> None:
    """This machine's clock is the best guess then."""
    for half in (Moment(wall=7.0, earliest=1.0), Moment(wall=7.0, latest=1.0)):
        assert (half.is_known, half.middle) == (False, 7.0)


@pytest.mark.parametrize("date", [DATE - 3600, DATE + 3600], ids=["behind", "ahead"])
def test_dates_that_contradict_each_other_both_count(date: float) -> None:
    """Either may be a cache's: the truth is between the one and the other, and the next that agrees narrows it."""
    both = HEARD.update(date, clocks(12.0), clocks(12.5)).moment(clocks(12.5))
    assert both.earliest is not None
    assert both.latest is not None
    assert both.earliest <= min(date, DATE) + 2
    assert both.latest >= max(date, DATE)
    third = HEARD.update(date, clocks(12.0), clocks(12.5)).update(DATE + 3, clocks(13.0), clocks(13.5))
    assert third.moment(clocks(13.5)).middle == pytest.approx(DATE + 3.75, abs=0.6)


def test_the_longest_time_that_any_clock_shows_has_passed() -> None:
    """A sleep shows in two clocks, a wait in virtual time in one; a wall clock that was set back in none."""
    assert clocks(20.0).since(clocks(10.0)) == 10
    assert clocks(20.0, slept=500).since(clocks(10.0)) == 510
    assert clocks(20.0, slept=500, boot=False).since(clocks(10.0)) == 510
    assert clocks(20.0, stepped=-300).since(clocks(10.0)) == 10
    assert attrs.evolve(clocks(20.0), loop=None).since(clocks(10.0)) == 10
    assert clocks(20.0).since(attrs.evolve(clocks(10.0), loop=None, boot=None)) == 10
