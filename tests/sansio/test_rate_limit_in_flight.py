"""Counts of requests in flight: never too low, and few however many requests there are."""

from __future__ import annotations

import math

from hypothesis import example, given
from hypothesis import strategies as st

from knouds_async._sansio.rate_limit import (
    BIN_WIDTH,
    MOST_BINS,
    InFlight,
    add_sent,
    drop_awaited,
    remove_sent,
    sent_since,
)

ANY = -math.inf


def in_flight_of(times: list[float]) -> InFlight:
    """Send at each of these times."""
    in_flight: InFlight = ()
    for time in times:
        in_flight = add_sent(in_flight, time, ANY, ANY)
    return in_flight


@given(pauses=st.lists(st.floats(0, 20), max_size=200), gone=st.sets(st.integers(0, 199)), back=st.floats(0, 500))
def test_counts_are_never_too_low(pauses: list[float], gone: set[int], back: float) -> None:
    """Whatever was sent and answered, at least the requests in flight since a moment are counted."""
    times = [sum(pauses[: at + 1]) for at in range(len(pauses))]
    in_flight = in_flight_of(times)
    assert len(in_flight) <= MOST_BINS
    for at in gone & set(range(len(times))):
        in_flight = remove_sent(in_flight, times[at])
    still = [time for at, time in enumerate(times) if at not in gone]
    moment = (times[-1] if times else 0.0) - back
    assert sent_since(in_flight, moment) >= sum(time >= moment for time in still)
    assert sent_since(in_flight, ANY) == len(still)


def test_recent_send_times_are_told_apart_to_a_quarter_second() -> None:
    """After a minute at ten a second, the last second is still counted to a each."""
    in_flight = in_flight_of([at / 10 for at in range(600)])
    assert 10 <= sent_since(in_flight, 58.95) <= 10 + 10 * BIN_WIDTH * 2


def test_a_slot_does_not_reach_over_the_edge_of_a_window() -> None:
    """Requests before and after a given moment are counted apart, however close."""
    in_flight = add_sent(add_sent((), 9.99, ANY, ANY), 10.01, 10.0, ANY)
    assert sent_since(in_flight, 10.0) == 1


def test_slots_are_not_merged_over_the_edge_of_a_window() -> None:
    """However many are needed after it, what was sent before a moment stays apart from what was sent later."""
    in_flight = in_flight_of([0.0, 0.5, 1.0])
    for at in range(200):
        in_flight = add_sent(in_flight, 17.0 + at / 4, 5.0, ANY)
    assert len(in_flight) <= MOST_BINS
    assert sent_since(in_flight, 5.0) == 200


def test_what_was_sent_too_long_ago_is_forgotten() -> None:
    """Slots that ended before the floor are dropped, and their late answers change nothing."""
    in_flight = add_sent(in_flight_of([1.0, 2.0]), 50.0, ANY, 10.0)
    assert sent_since(in_flight, ANY) == 1
    assert remove_sent(in_flight, 1.0) == in_flight
    assert remove_sent(in_flight, 60.0) == in_flight


def test_a_request_that_will_not_be_answered_stays_counted() -> None:
    """It is no longer awaited, but it may have been counted by the server."""
    in_flight = drop_awaited(in_flight_of([1.0, 1.1]), 1.1)
    assert [(each.requests, each.awaited) for each in in_flight] == [(2, 1)]
    assert sent_since(in_flight, ANY) == 2


@given(times=st.lists(st.floats(0, 20), min_size=1, max_size=60), since=st.floats(0, 20))
@example(times=[0.0, 0.0, 1.0, 0.5], since=1.0)
@example(times=[0.0, 0.0, 2.0, 1.0], since=2.0)
def test_what_is_reported_out_of_order_is_found_again(times: list[float], since: float) -> None:
    """Processes that share a in_flight tell of their requests a little late: each still leaves it."""
    in_flight: InFlight = ()
    for time in times:
        in_flight = add_sent(in_flight, time, since, ANY)
        assert len(in_flight) <= MOST_BINS
    for time in times:
        in_flight = remove_sent(in_flight, time)
    assert in_flight == ()


def test_a_clock_that_steps_back_does_no_harm() -> None:
    """Times out of order are counted all the same."""
    in_flight = in_flight_of([5.0 + at for at in range(2 * MOST_BINS)] + [3.0, 3.1, 2.0])
    assert sent_since(in_flight, ANY) == 2 * MOST_BINS + 3
