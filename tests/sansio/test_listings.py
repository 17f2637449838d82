"""How a page of a listing is read, how deep a listing goes, and how far listings are relied on."""

import math

import pytest

from knouds_async._sansio.listings import (
    MAX_ROWS,
    Listings,
    PageRequest,
    Quota,
    StatusPage,
    read_status_page,
)
from knouds_async._sansio.responses import Answer, UnreadableError

FREE = Quota()


def page_of(rows: int) -> StatusPage:
    """Return a page with so many rows."""
    return StatusPage((), rows)


def listed(listings: Listings, now: float, deepest: int = 1) -> None:
    """Make a listing that arrives at once."""
    assert listings.next_page(listings.start(now, 0), page_of(10), now, 0, deepest) is None


# When.


def test_a_listing_is_a_second_from_the_one_before() -> None:
    """The first may be made at once; while one is in flight there is no other."""
    listings = Listings()
    assert listings.next_at(0.0, FREE) <= 0.0
    listings.start(0.0, 5)
    assert listings.next_at(5.0, FREE) > 5.0
    listings.is_in_flight = False
    assert listings.next_at(0.5, FREE) == 1.0


def test_a_listing_waits_for_its_quota() -> None:
    """Few requests are made to last until the window ends; with none left, or too few, listings are not relied on."""
    listings = Listings()
    listed(listings, 0.0)
    few, fewer = Quota(limit=100, left=10, resets_in=50.0), Quota(limit=100, left=2, resets_in=50.0)
    assert (listings.next_at(0.0, few), listings.is_usable(0.0, few)) == (5.0, True)
    assert (listings.next_at(0.0, fewer), listings.is_usable(0.0, fewer)) == (25.0, False)
    assert listings.next_at(0.0, Quota(limit=100, left=0, resets_in=50.0)) == pytest.approx(50.06)
    assert listings.next_at(0.0, Quota(limit=100, left=0)) == 1.0


def test_after_a_failure_listings_are_tried_and_not_relied_on() -> None:
    """Each failure lengthens the pause, up to five minutes; the first that arrives ends that."""
    listings, pauses = Listings(), []
    for _ in range(12):
        listings.start(0.0, 5)
        listings.failed(0.0)
        pauses.append(listings.next_at(0.0, FREE))
        assert not listings.is_usable(1e9, FREE)
    assert pauses[:3] == [2.0, 4.0, 8.0]
    assert pauses[-1] == 300.0
    page = listings.start(300.0, 5)
    assert (listings.is_usable(300.0, FREE), listings.next_at(300.0, FREE)) == (False, math.inf)
    listings.next_page(page, page_of(10), 300.1, 0, 3)
    assert (listings.is_usable(300.1, FREE), listings.next_at(300.1, FREE)) == (True, 301.0)


def test_a_listing_that_keeps_waiting_is_not_relied_on() -> None:
    """For two seconds its answer is waited for, and for each page anew."""
    listings = Listings()
    page = listings.start(0.0, 600)
    assert (listings.is_usable(2.0, FREE), listings.is_usable(2.1, FREE)) == (True, False)
    assert listings.next_page(page, page_of(500), 1.5, 600, 3) is not None
    assert (listings.is_usable(3.5, FREE), listings.is_usable(3.6, FREE)) == (True, False)


# How deep.


def test_a_page_is_as_large_as_it_has_to_be() -> None:
    """The first is the largest there is; then it covers twice the depth at which ours were found."""
    listings = Listings()
    assert listings.start(0.0, 3).limit == MAX_ROWS
    listings.next_page(PageRequest(0.0), page_of(500), 0.0, 0, 40)
    assert listings.start(1.0, 3).limit == 83
    listings.next_page(PageRequest(1.0), page_of(103), 1.0, 0, 2)
    assert listings.start(2.0, 3).limit == 50


@pytest.mark.parametrize(
    ("rows", "matched", "deepest", "continues"),
    [
        (500, 3, 0, False),  # all runs were shown
        (499, 1, 9, False),  # the last page
        (0, 0, 0, False),
        (500, 1, 9, True),  # ours are here, and some are missing
        (500, 0, 0, True),  # none are here: perhaps others' rows are in front
    ],
)
def test_a_next_page_is_requested_while_it_is_useful(rows: int, matched: int, deepest: int, continues: bool) -> None:
    """A full page that lacks some of three runs is followed by the next."""
    listings = Listings()
    listings.start(0.0, 3)
    following = listings.next_page(PageRequest(0.0, matched=matched), page_of(rows), 0.0, 3, deepest)
    assert (following is not None) is continues
    assert listings.is_in_flight is continues
    if following is not None:
        assert (following.offset, following.limit, following.number, following.started_at) == (rows, MAX_ROWS, 2, 0.0)


def test_a_listing_goes_one_page_beyond_those_that_were_of_use() -> None:
    """Pages of others are passed over, one further each time that ours were found, and the gap grows with the pages."""
    listings = Listings()
    second = listings.next_page(listings.start(0.0, 3), page_of(500), 0.0, 3, 0)
    assert second is not None
    third = listings.next_page(second, page_of(500), 0.0, 3, 7)
    assert third is not None
    assert listings.next_page(third, page_of(500), 0.0, 3, 0) is None  # none of ours on the third
    second = listings.next_page(listings.start(1.0, 3), page_of(500), 1.0, 3, 0)
    assert second is not None
    assert listings.next_page(second, page_of(500), 1.0, 3, 0) is not None  # one beyond the second
    many = listings.start(2.0, 5000)
    for number in range(1, 10):
        following = listings.next_page(many, page_of(500), 2.0, 5000, 500)
        assert following is not None
        assert following.number == number + 1
        many = following
    assert listings.next_page(many, page_of(0), 2.0, 5000, 0) is None
    assert listings.next_at(2.0, FREE) == 2.0 + 9 / 4


# How far they are relied on.


def test_an_end_that_was_shown_in_time_is_no_miss() -> None:
    """It may be shown five seconds late, or an eighth of what the run took."""
    for duration, lag, is_late in ((10.0, 4.9, False), (10.0, 5.1, True), (200.0, 24.9, False), (200.0, 25.1, True)):
        listings = Listings()
        listed(listings, 0.0)
        listings.observe_end(0.0, duration, lag, is_shown=True)
        assert listings.is_usable(1.0, FREE) is not is_late


def test_the_lag_is_the_longest_seen_and_falls_where_ends_are_shown_sooner() -> None:
    """An end that a poll found first says nothing of how late the listing would have been."""
    listings = Listings()
    listings.observe_end(0.0, 45.0, -2.0, is_shown=True)
    assert listings.lag == 0
    listings.observe_end(0.0, 45.0, 5.0, is_shown=True)
    listings.observe_end(0.0, 45.0, 1.0, is_shown=False)
    assert listings.lag == 5
    listings.observe_end(0.0, 45.0, 1.0, is_shown=True)
    assert listings.lag == 4.5


def test_a_miss_before_any_hit_ends_listings_for_ten_minutes() -> None:
    """After that they are tried, and not relied on until one has arrived."""
    listings = Listings()
    listed(listings, 0.0)
    listings.count(1.0, is_hit=False)
    assert (listings.is_usable(2.0, FREE), listings.next_at(2.0, FREE)) == (False, 601.0)
    listed(listings, 601.0)
    assert listings.is_usable(601.0, FREE)


def test_three_misses_among_few_hits_end_listings() -> None:
    """Not two; and not three among fifteen hits."""
    for hits, is_over in ((1, True), (15, False)):
        listings = Listings()
        listed(listings, 0.0)
        for _ in range(hits):
            listings.count(0.0, is_hit=True)
        for _ in range(3):
            assert listings.is_usable(1.0, FREE)
            listings.count(1.0, is_hit=False)
        assert listings.is_usable(1.0, FREE) is not is_over


def test_a_listing_in_flight_does_not_close_an_open_breaker() -> None:
    """One that was begun before listings proved wrong changes nothing when it arrives."""
    listings = Listings()
    page = listings.start(0.0, 3)
    listings.refuted(0.1, "completed")
    listings.next_page(page, page_of(10), 0.2, 0, 5)
    assert not listings.is_usable(1.0, FREE)
    assert listings.next_at(1.0, FREE) == 600.1


def test_long_ago_counts_less() -> None:
    """After many hits some misses in a row end reliance all the same."""
    listings, misses = Listings(), 0
    for _ in range(10_000):
        listings.count(0.0, is_hit=True)
    while listings.is_usable(0.0, FREE):
        misses += listings.refuted(0.0, "completed")
    assert 10 <= misses <= 40


def test_unknown_statuses_are_learned_up_to_a_bound() -> None:
    """One that turned out to be of running runs is known from then on; a known end that is wrong is a miss."""
    listings = Listings()
    seen = [listings.is_running("odd"), listings.refuted(0.0, "odd"), listings.is_running("odd")]
    assert seen == [False, False, True]
    for number in range(200):
        listings.refuted(0.0, f"word {number}")
    assert not listings.is_running("word 199")


# What a page is read for.


def answer(body: bytes) -> Answer:
    """Return an answer with a body."""
    return Answer(200, {}, body)


def test_a_page_is_read_for_request_ids_and_statuses() -> None:
    """Rows that cannot be used are counted, and left out."""
    body = b'{"rows": [{"requestId": "a", "status": "completed"}, 7, {"requestId": 1, "status": "x"}, {}], "total": 9}'
    assert read_status_page(answer(body)) == StatusPage((("a", "completed"),), 4)
    assert read_status_page(answer(b'{"rows": [], "total": "many"}')) == StatusPage((), 0)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"rows": {}}', b"<html>", b"7"])
def test_what_is_no_page_is_unreadable(body: bytes) -> None:
    """A page without a list of rows is not an empty one."""
    with pytest.raises(UnreadableError):
        read_status_page(answer(body))


def test_a_quota_says_what_is_left_and_when_there_is_more() -> None:
    """Without a limit there is no end of requests; without a reset it is asked again in a second."""
    assert (Quota().available, Quota(limit=1, left=-2).available) == (math.inf, 0)
    assert Quota(limit=1, left=0, resets_in=9.0).next_at(1.0) == pytest.approx(10.06)
    assert Quota(limit=1, left=0).next_at(1.0) == 2.0
    assert Quota(limit=100, left=30, resets_in=15.0).per_second == 2.0


def test_a_listing_that_failed_is_no_longer_in_flight() -> None:
    """It is tried again after its pause."""
    listings = Listings()
    listings.start(0.0, 5)
    listings.failed(1.0)
    assert not listings.is_in_flight
    assert 1.0 < listings.next_at(1.0, FREE) < 1000.0
