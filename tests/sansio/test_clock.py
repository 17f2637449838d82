"""The server's clock from Date headers: always an interval that holds the truth."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async._sansio.clock import DRIFT, ServerClock

exchanges = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 5), st.floats(0, 50)), min_size=1, max_size=30)


def test_nothing_is_known_before_the_first_date() -> None:
    """Without a Date there is no server time."""
    assert not ServerClock().known
    assert ServerClock().server_time(5.0) is None


def test_one_answer_bounds_the_offset_by_its_second_and_its_round_trip() -> None:
    """A Date of whole seconds leaves one second and the round trip open."""
    clock = ServerClock().heard(1000.0, sent=10.0, answered=10.5)
    assert clock.known
    assert (clock.lo, clock.hi) == (989.5, 991.0)
    assert clock.server_time(20.0) == 1010.25


@given(offset=st.floats(-1e9, 1e9), exchanges=exchanges)
def test_the_true_offset_is_always_inside(offset: float, exchanges: list[tuple[float, float, float]]) -> None:
    """Whatever the latencies, each way, the bounds hold the true offset and never need a restart."""
    clock, now = ServerClock(), 0.0
    for pause, up, down in exchanges:
        sent = now + pause
        now = sent + up + down
        clock = clock.heard(math.floor(sent + up + offset), sent, now)
        assert clock.lo - 1e-6 <= offset <= clock.hi + 1e-6


def test_many_answers_narrow_the_bounds() -> None:
    """Answers spread over a second tell the offset to about the round trip."""
    clock = ServerClock()
    for tenth in range(100):
        sent = tenth * 0.1037
        clock = clock.heard(math.floor(sent + 0.02 + 500.4), sent, sent + 0.04)
    assert clock.hi - clock.lo < 0.1
    assert clock.server_time(0.0) == pytest.approx(500.4, abs=0.05)


def test_a_clock_that_was_set_is_believed_at_once() -> None:
    """An answer that contradicts all before it counts alone."""
    clock = ServerClock().heard(1000.0, 0.0, 0.1).heard(5000.0, 1.0, 1.1)
    assert clock == ServerClock().heard(5000.0, 1.0, 1.1)


@given(rate=st.floats(-DRIFT, DRIFT))
def test_clocks_that_part_slowly_stay_inside_the_bounds(rate: float) -> None:
    """Over a day of one answer a minute, the bounds follow a drifting clock and stay within two seconds."""
    clock = ServerClock()
    for minute in range(1440):
        sent = minute * 60.0
        server = 1000.0 + (sent + 0.02) * (1 + rate)
        clock = clock.heard(math.floor(server), sent, sent + 0.04)
        assert clock.lo - 1e-6 <= server - sent - 0.02 <= clock.hi + 1e-6
        assert clock.hi - clock.lo < 2


def test_clocks_are_values() -> None:
    """Equal histories make equal, hashable clocks."""
    assert len({ServerClock().heard(1.0, 0.0, 0.1), ServerClock().heard(1.0, 0.0, 0.1)}) == 1
