"""When a listing pays and how deep it goes; how far it is believed; what requests are worth."""

import math

import pytest

from knouds_async._sansio.listings import (
    HIGHEST_COST,
    MAX_ROWS,
    ListingBreaker,
    ListingScheduler,
    PageRequest,
    Quota,
    QuotaSpreader,
    StatusPage,
    read_status_page,
    scarcity_cost,
)
from knouds_async._sansio.responses import Answer, UnreadableError

FREE = Quota()


def scheduler_expecting(rate: float, cost: float = 0.25) -> ListingScheduler:
    """Return listings at the time 0 that expect so many ends per second."""
    scheduler = ListingScheduler(cost)
    scheduler.advance(0.0)
    scheduler.set_rate(rate)
    return scheduler


def page_of(rows: int, total: int | None = None) -> StatusPage:
    """Return a page with so many rows."""
    return StatusPage((), rows, total)


# When.


@pytest.mark.parametrize(("rate", "at"), [(0.5, 1.0), (0.125, 2.0), (0.02, 5.0), (0.0, 7.5)])
def test_a_listing_is_due_when_ends_were_unseen_for_its_cost(rate: float, at: float) -> None:
    """It comes when rate x t²/2 has reached the cost, at the latest some seconds after the first runs."""
    assert scheduler_expecting(rate).due_at(FREE) == pytest.approx(at)


def test_time_that_passes_counts_and_a_listing_starts_again() -> None:
    """What was expected before adds up; after a listing nothing is unseen, and the next is a second away."""
    scheduler = scheduler_expecting(0.02)
    scheduler.advance(4.0)
    assert scheduler.due_at(FREE) == pytest.approx(5.0)
    scheduler.start(5.0, 10)
    assert scheduler.due_at(FREE) == math.inf
    scheduler.next_page(PageRequest(5.0), page_of(10), 10, 5)
    scheduler.advance(5.5)
    scheduler.set_rate(1000.0)
    assert scheduler.due_at(FREE) == 6.0


def test_a_listing_waits_for_its_quota() -> None:
    """Few requests are made to last until the window ends; with none left the next window is waited for."""
    scheduler = scheduler_expecting(1000.0)
    scheduler.start(0.0, 10)
    scheduler.next_page(PageRequest(0.0), page_of(10), 10, 5)
    assert scheduler.due_at(Quota(limit=100, remaining=10, resets_in=50.0)) == 5.0
    assert scheduler.due_at(Quota(limit=100, remaining=0, resets_in=50.0)) == pytest.approx(50.06)
    assert scheduler.due_at(Quota(limit=100, remaining=0)) == 1.0


def test_nothing_is_due_without_runs() -> None:
    """When there is nothing to list, time does not count."""
    scheduler = scheduler_expecting(1000.0)
    scheduler.pause()
    assert scheduler.due_at(FREE) == math.inf


def test_failures_and_cuts_end_a_listing() -> None:
    """After a failure the next waits longer each time, up to five minutes; a cut one may begin again."""
    scheduler, pauses = scheduler_expecting(1000.0), []
    for _ in range(12):
        scheduler.start(0.0, 5)
        scheduler.failed(0.0)
        pauses.append(scheduler.due_at(FREE))
    assert pauses[:3] == [2.0, 4.0, 8.0]
    assert pauses[-1] == 300.0
    scheduler.start(0.0, 5)
    assert scheduler.is_expected(1.0)
    assert not scheduler.is_expected(2.5)
    scheduler.cancelled()
    assert not scheduler.is_expected(1.0)


# How deep.


def test_a_page_is_as_large_as_it_has_to_be() -> None:
    """The first is the largest there is; then it covers twice the depth at which ours were found."""
    scheduler = scheduler_expecting(1.0)
    assert scheduler.start(0.0, 3).limit == MAX_ROWS
    scheduler.next_page(PageRequest(0.0), page_of(500), 0, 40)
    assert scheduler.start(1.0, 3).limit == 103
    scheduler.next_page(PageRequest(1.0), page_of(103), 0, 2)
    assert scheduler.start(2.0, 3).limit == 50


@pytest.mark.parametrize(
    ("rows", "matched", "deepest", "total", "continues"),
    [
        (500, 3, 0, None, False),  # all runs were shown
        (200, 1, 9, None, False),  # the last page
        (200, 1, 9, 200, False),
        (0, 0, 0, None, False),
        (500, 1, 9, None, True),  # ours are here, and some are missing
        (500, 0, 0, None, True),  # none are here: perhaps others' rows are in front
        (200, 1, 9, 900, True),  # it was not full, but there is said to be more
    ],
)
def test_a_next_page_is_asked_for_while_it_is_useful(
    rows: int, matched: int, deepest: int, total: int | None, continues: bool
) -> None:
    """A full page that lacks some of three runs is followed by the next."""
    scheduler = scheduler_expecting(1.0)
    scheduler.start(0.0, 3)
    following = scheduler.next_page(PageRequest(0.0, matched=matched), page_of(rows, total), 3, deepest)
    assert (following is not None) is continues
    if following is not None:
        assert (following.offset, following.limit, following.number, following.started_at) == (rows, MAX_ROWS, 1, 0.0)


def test_pages_without_ours_are_tried_now_and_then() -> None:
    """A page beyond those that were useful is asked for at ever longer intervals, until it shows some of ours."""
    scheduler, tried = scheduler_expecting(1.0), []
    for now in range(200):
        page = scheduler.start(float(now), 3)
        following = scheduler.next_page(page, page_of(page.limit), 3, 0)
        if following is not None:
            tried.append(now)
            assert scheduler.next_page(following, page_of(500), 3, 0) is None
    assert tried == [0, 15, 45, 105]
    second = scheduler.next_page(scheduler.start(300.0, 3), page_of(500), 3, 0)
    assert second is not None
    assert scheduler.next_page(second, page_of(400), 3, 7) is None
    assert scheduler.depth == 2
    assert scheduler.next_page(scheduler.start(301.0, 3), page_of(500), 3, 0) is not None  # as deep as last time


# How far to believe.


def test_confidence_is_earned_by_ends_that_were_shown_first() -> None:
    """Before that a listing is doubted soon, then ever later; a single miss makes it doubted at once."""
    breaker = ListingBreaker()
    before = breaker.is_unconfirmed, breaker.is_proven
    breaker.record_match(is_running=True)
    assert (before, breaker.is_unconfirmed) == ((True, False), False)
    delays = [breaker.recheck_after]
    for _ in range(30):
        breaker.record_hit(0.0, is_late=False)
        delays.append(breaker.recheck_after)
    assert breaker.is_proven
    assert delays == sorted(delays)
    breaker.record_hit(0.0, is_late=True)
    assert breaker.recheck_after == 10.0


def test_confidence_is_lost_by_ends_that_were_not_shown() -> None:
    """Three misses among few hits end it for ten minutes, and the next time for twenty."""
    breaker = ListingBreaker()
    for begun, over in ((0.0, 600.0), (700.0, 1900.0)):
        breaker.record_match(is_running=True)
        for number in range(3):
            breaker.record_unlisted_end(f"r{number}", begun, was_listed=True)
            breaker.check_unlisted_ends(begun + 4, begun, {f"r{number}": "processing"}, is_last_page=True)
        assert not breaker.allows_requests(begun)
        assert breaker.allows_requests(over)


def test_listings_that_show_nothing_of_ours_end_confidence_at_the_first_miss() -> None:
    """When no row was ever of a run of ours, one end that is not listed is enough."""
    breaker = ListingBreaker()
    breaker.record_unlisted_end("r0", 10.0, was_listed=False)
    stands = []
    for now in (12.0, 14.0):
        breaker.check_unlisted_ends(now, now, {}, is_last_page=False)
        stands.append(breaker.allows_requests(now))
    assert stands == [True, False]


def test_an_end_that_is_listed_in_time_is_a_hit_and_one_that_has_sunk_is_neither() -> None:
    """What a listing shows soon is to its credit; what it was not asked for counts for nothing."""
    breaker = ListingBreaker()
    breaker.record_match(is_running=True)
    breaker.record_unlisted_end("r0", 10.0, was_listed=True)
    assert breaker.relevant((("r0", "completed"), ("r1", "processing"))) == {"r0": "completed"}
    breaker.check_unlisted_ends(11.0, 11.0, {"r0": "completed"}, is_last_page=True)
    assert breaker.is_proven
    breaker.record_unlisted_end("r1", 10.0, was_listed=True)
    breaker.check_unlisted_ends(20.0, 20.0, {}, is_last_page=False)
    assert breaker.recheck_after == pytest.approx(30.3)
    assert breaker.relevant((("r1", "completed"),)) == {}


def test_long_ago_counts_less() -> None:
    """After many hits some misses in a row end trust all the same."""
    breaker, misses = ListingBreaker(), 0
    for _ in range(10_000):
        breaker.record_hit(0.0, is_late=False)
    while breaker.allows_requests(0.0):
        misses += breaker.record_wrong_end(0.0, "completed")
    assert 10 <= misses <= 40


def test_unknown_words_are_learned_up_to_a_bound() -> None:
    """A word that turned out to be of running runs is known from then on; a known end that is wrong is a miss."""
    breaker = ListingBreaker()
    assert [breaker.means_running("odd"), breaker.record_wrong_end(0.0, "odd"), breaker.means_running("odd")] == [
        False,
        False,
        True,
    ]
    for number in range(200):
        breaker.record_wrong_end(0.0, f"word {number}")
    assert not breaker.means_running("word 199")


# What a page is read for.


def answer(body: bytes) -> Answer:
    """Return an answer with a body."""
    return Answer(200, {}, body)


def test_a_page_is_read_for_its_marks() -> None:
    """Rows that cannot be used are counted, and left out."""
    body = b'{"rows": [{"requestId": "a", "status": "completed"}, 7, {"requestId": 1, "status": "x"}, {}], "total": 9}'
    assert read_status_page(answer(body)) == StatusPage((("a", "completed"),), 4, 9)
    assert read_status_page(answer(b'{"rows": [], "total": "many"}')) == StatusPage((), 0, None)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"rows": {}}', b"<html>", b"7"])
def test_what_is_no_page_is_unreadable(body: bytes) -> None:
    """A page without a list of rows is not an empty one."""
    with pytest.raises(UnreadableError):
        read_status_page(answer(body))


# What requests are worth.


@pytest.mark.parametrize(
    ("polls", "limit", "cost"), [(1.0, None, 0.25), (0.1, 100, 0.25), (2.0, 100, 2.25), (100.0, 100, HIGHEST_COST)]
)
def test_scarce_requests_are_dear(polls: float, limit: int | None, cost: float) -> None:
    """The price is what just spends four fifths of the quota, within bounds; without a limit it is the user's."""
    assert scarcity_cost(0.25, polls, limit) == pytest.approx(cost)


def test_what_is_left_lasts_until_the_reset() -> None:
    """Thirty requests over a minute are one each two seconds, and never more than there are."""
    spread, left, taken = QuotaSpreader(), 30, []
    for half in range(120):
        now = half / 2
        number = spread.take(now, left, 60 - now)
        left -= number
        taken.append(number)
    assert 28 <= sum(taken) <= 30
    assert max(taken) == 1
    assert spread.next_at(60.0, 0, 5.0) == 61.0
    assert QuotaSpreader().next_at(0.0, 100, None) == pytest.approx(0.6)
    assert QuotaSpreader().take(5.0, 10, None) == 0


def test_a_quota_says_what_is_left_and_when_there_is_more() -> None:
    """Without a limit there is no end of requests; without a reset it is asked again in a second."""
    assert (Quota().available, Quota(limit=1, remaining=-2).available) == (math.inf, 0)
    assert Quota(limit=1, remaining=0, resets_in=9.0).next_at(1.0) == pytest.approx(10.06)
    assert Quota(limit=1, remaining=0).next_at(1.0) == 2.0
