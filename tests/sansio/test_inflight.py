"""Counts of requests in flight: never too low, and few however many requests there are."""

from __future__ import annotations

import math

from hypothesis import example, given
from hypothesis import strategies as st

from knouds_async._sansio.inflight import MOST, WIDTH, Flight, join, leave, sent_since, unawaited

ANY = -math.inf


def flight_of(times: list[float]) -> Flight:
    """Send at each of these times."""
    flight: Flight = ()
    for time in times:
        flight = join(flight, time, ANY, ANY)
    return flight


@given(pauses=st.lists(st.floats(0, 20), max_size=200), gone=st.sets(st.integers(0, 199)), back=st.floats(0, 500))
def test_counts_are_never_too_low(pauses: list[float], gone: set[int], back: float) -> None:
    """Whatever was sent and answered, at least the requests in flight since a moment are counted."""
    times = [sum(pauses[: at + 1]) for at in range(len(pauses))]
    flight = flight_of(times)
    assert len(flight) <= MOST
    for at in gone & set(range(len(times))):
        flight = leave(flight, times[at])
    still = [time for at, time in enumerate(times) if at not in gone]
    moment = (times[-1] if times else 0.0) - back
    assert sent_since(flight, moment) >= sum(time >= moment for time in still)
    assert sent_since(flight, ANY) == len(still)


def test_recent_send_times_are_told_apart_to_a_quarter_second() -> None:
    """After a minute at ten a second, the last second is still counted to a slot."""
    flight = flight_of([at / 10 for at in range(600)])
    assert 10 <= sent_since(flight, 58.95) <= 10 + 10 * WIDTH * 2


def test_a_slot_does_not_reach_over_the_edge_of_a_window() -> None:
    """Requests before and after a given moment are counted apart, however close."""
    flight = join(join((), 9.99, ANY, ANY), 10.01, 10.0, ANY)
    assert sent_since(flight, 10.0) == 1


def test_slots_are_not_merged_over_the_edge_of_a_window() -> None:
    """However many are needed after it, what was sent before a moment stays apart from what was sent later."""
    flight = flight_of([0.0, 0.5, 1.0])
    for at in range(200):
        flight = join(flight, 17.0 + at / 4, 5.0, ANY)
    assert len(flight) <= MOST
    assert sent_since(flight, 5.0) == 200


def test_what_was_sent_too_long_ago_is_forgotten() -> None:
    """Slots that ended before the floor are dropped, and their late answers change nothing."""
    flight = join(flight_of([1.0, 2.0]), 50.0, ANY, 10.0)
    assert sent_since(flight, ANY) == 1
    assert leave(flight, 1.0) == flight
    assert leave(flight, 60.0) == flight


def test_a_request_that_will_not_be_answered_stays_counted() -> None:
    """It is no longer awaited, but it may have been counted by the server."""
    flight = unawaited(flight_of([1.0, 1.1]), 1.1)
    assert [(slot.requests, slot.awaited) for slot in flight] == [(2, 1)]
    assert sent_since(flight, ANY) == 2


@given(times=st.lists(st.floats(0, 20), min_size=1, max_size=60), since=st.floats(0, 20))
@example(times=[0.0, 0.0, 1.0, 0.5], since=1.0)
@example(times=[0.0, 0.0, 2.0, 1.0], since=2.0)
def test_what_is_told_out_of_order_is_found_again(times: list[float], since: float) -> None:
    """Processes that share a flight tell of their requests a little late: each still leaves it."""
    flight: Flight = ()
    for time in times:
        flight = join(flight, time, since, ANY)
        assert len(flight) <= MOST
    for time in times:
        flight = leave(flight, time)
    assert flight == ()


def test_a_clock_that_steps_back_does_no_harm() -> None:
    """Times out of order are counted all the same."""
    flight = flight_of([5.0 + at for at in range(2 * MOST)] + [3.0, 3.1, 2.0])
    assert sent_since(flight, ANY) == 2 * MOST + 3
