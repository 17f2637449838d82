"""When a listing pays and how deep it goes; how far it is believed; what requests are worth."""

import math

import pytest

from knouds_async._sansio.listing import Listing, listing
from knouds_async._sansio.responses import Answer, UnreadableError
from knouds_async._sansio.spending import DEAREST, Quota, Spread, price
from knouds_async._sansio.sweeps import LARGEST, Page, Sweeps
from knouds_async._sansio.trust import Trust

FREE = Quota()


def sweeping(rate: float, cost: float = 0.25) -> Sweeps:
    """Give sweeps at the time 0 that expect so many ends per second."""
    sweeps = Sweeps(cost)
    sweeps.advance(0.0)
    sweeps.expect(rate)
    return sweeps


def page_of(rows: int, total: int | None = None) -> Listing:
    """Give a page with so many rows."""
    return Listing((), rows, total)


# When.


@pytest.mark.parametrize(("rate", "at"), [(0.5, 1.0), (0.125, 2.0), (0.02, 5.0), (0.0, 7.5)])
def test_a_sweep_is_due_when_ends_were_unseen_for_its_cost(rate: float, at: float) -> None:
    """It comes when rate x t²/2 has reached the cost, at the latest some seconds after the first runs."""
    assert sweeping(rate).due_at(FREE) == pytest.approx(at)


def test_time_that_passes_counts_and_a_sweep_begins_anew() -> None:
    """What was expected before adds up; after a sweep nothing is unseen, and the next is a second away."""
    sweeps = sweeping(0.02)
    sweeps.advance(4.0)
    assert sweeps.due_at(FREE) == pytest.approx(5.0)
    sweeps.begin(5.0, 10)
    assert sweeps.due_at(FREE) == math.inf
    sweeps.next_page(Page(5.0), page_of(10), 10, 5)
    sweeps.advance(5.5)
    sweeps.expect(1000.0)
    assert sweeps.due_at(FREE) == 6.0


def test_a_sweep_waits_for_its_quota() -> None:
    """Few requests are made to last until the window ends; with none left it is over by then."""
    sweeps = sweeping(1000.0)
    sweeps.begin(0.0, 10)
    sweeps.next_page(Page(0.0), page_of(10), 10, 5)
    assert sweeps.due_at(Quota(limit=100, left=10, resets_in=50.0)) == 5.0
    assert sweeps.due_at(Quota(limit=100, left=0, resets_in=50.0)) == pytest.approx(50.06)
    assert sweeps.due_at(Quota(limit=100, left=0)) == 1.0


def test_nothing_is_due_without_runs() -> None:
    """When there is nothing to sweep for, time does not count."""
    sweeps = sweeping(1000.0)
    sweeps.rest()
    assert sweeps.due_at(FREE) == math.inf


def test_failures_and_cuts_end_a_sweep() -> None:
    """After a failure the next waits longer each time, up to five minutes; a cut one may begin again."""
    sweeps, pauses = sweeping(1000.0), []
    for _ in range(12):
        sweeps.begin(0.0, 5)
        sweeps.failed(0.0)
        pauses.append(sweeps.due_at(FREE))
    assert pauses[:3] == [2.0, 4.0, 8.0]
    assert pauses[-1] == 300.0
    sweeps.begin(0.0, 5)
    assert sweeps.is_expected(1.0)
    assert not sweeps.is_expected(2.5)
    sweeps.dropped()
    assert not sweeps.is_expected(1.0)


# How deep.


def test_a_page_is_as_large_as_it_has_to_be() -> None:
    """The first is the largest there is; then it covers twice the depth at which ours were found."""
    sweeps = sweeping(1.0)
    assert sweeps.begin(0.0, 3).limit == LARGEST
    sweeps.next_page(Page(0.0), page_of(500), 0, 40)
    assert sweeps.begin(1.0, 3).limit == 103
    sweeps.next_page(Page(1.0), page_of(103), 0, 2)
    assert sweeps.begin(2.0, 3).limit == 50


@pytest.mark.parametrize(
    ("rows", "shown", "deepest", "total", "goes_on"),
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
    rows: int, shown: int, deepest: int, total: int | None, goes_on: bool
) -> None:
    """A full page that lacks some of three runs is followed by the next."""
    sweeps = sweeping(1.0)
    sweeps.begin(0.0, 3)
    following = sweeps.next_page(Page(0.0, shown=shown), page_of(rows, total), 3, deepest)
    assert (following is not None) is goes_on
    if following is not None:
        assert (following.offset, following.limit, following.number, following.began) == (rows, LARGEST, 1, 0.0)


def test_pages_without_ours_are_tried_now_and_then() -> None:
    """A page beyond those that were useful is asked for at ever longer intervals, until it shows some of ours."""
    sweeps, tried = sweeping(1.0), []
    for now in range(200):
        page = sweeps.begin(float(now), 3)
        following = sweeps.next_page(page, page_of(page.limit), 3, 0)
        if following is not None:
            tried.append(now)
            assert sweeps.next_page(following, page_of(500), 3, 0) is None
    assert tried == [0, 15, 45, 105]
    second = sweeps.next_page(sweeps.begin(300.0, 3), page_of(500), 3, 0)
    assert second is not None
    assert sweeps.next_page(second, page_of(400), 3, 7) is None
    assert sweeps.pages == 2
    assert sweeps.next_page(sweeps.begin(301.0, 3), page_of(500), 3, 0) is not None  # as deep as last time


# How far to believe.


def test_trust_is_earned_by_ends_that_were_shown_first() -> None:
    """Before that a listing is doubted soon, then ever later; a single miss makes it doubted at once."""
    trust = Trust()
    before = trust.is_doubtful, trust.is_proven
    trust.matched(is_going=True)
    assert (before, trust.is_doubtful) == ((True, False), False)
    doubts = [trust.doubt]
    for _ in range(30):
        trust.confirmed(0.0, is_late=False)
        doubts.append(trust.doubt)
    assert trust.is_proven
    assert doubts == sorted(doubts)
    trust.confirmed(0.0, is_late=True)
    assert trust.doubt == 10.0


def test_trust_is_lost_by_ends_that_were_not_shown() -> None:
    """Three misses among few hits end it for ten minutes, and the next time for twenty."""
    trust = Trust()
    for begun, over in ((0.0, 600.0), (700.0, 1900.0)):
        trust.matched(is_going=True)
        for number in range(3):
            trust.found_alone(f"r{number}", begun, was_shown=True)
            trust.judge(begun + 4, begun, {f"r{number}": "processing"}, is_whole=True)
        assert not trust.is_on(begun)
        assert trust.is_on(over)


def test_listings_that_show_nothing_of_ours_end_trust_at_the_first_miss() -> None:
    """When no row was ever of a run of ours, one end that is not listed is enough."""
    trust = Trust()
    trust.found_alone("r0", 10.0, was_shown=False)
    stands = []
    for now in (12.0, 14.0):
        trust.judge(now, now, {}, is_whole=False)
        stands.append(trust.is_on(now))
    assert stands == [True, False]


def test_an_end_that_is_listed_in_time_is_a_hit_and_one_that_has_sunk_is_neither() -> None:
    """What a sweep shows soon is to its credit; what it was not asked for counts for nothing."""
    trust = Trust()
    trust.matched(is_going=True)
    trust.found_alone("r0", 10.0, was_shown=True)
    assert trust.awaits((("r0", "completed"), ("r1", "processing"))) == {"r0": "completed"}
    trust.judge(11.0, 11.0, {"r0": "completed"}, is_whole=True)
    assert trust.is_proven
    trust.found_alone("r1", 10.0, was_shown=True)
    trust.judge(20.0, 20.0, {}, is_whole=False)
    assert trust.doubt == pytest.approx(30.3)
    assert trust.awaits((("r1", "completed"),)) == {}


def test_long_ago_counts_less() -> None:
    """After many hits some misses in a row end trust all the same."""
    trust, misses = Trust(), 0
    for _ in range(10_000):
        trust.confirmed(0.0, is_late=False)
    while trust.is_on(0.0):
        misses += trust.refuted(0.0, "completed")
    assert 10 <= misses <= 40


def test_unknown_words_are_learned_up_to_a_bound() -> None:
    """A word that turned out to be of runs that go on is known from then on; a known end that is wrong is a miss."""
    trust = Trust()
    assert [trust.says_going("odd"), trust.refuted(0.0, "odd"), trust.says_going("odd")] == [False, False, True]
    for number in range(200):
        trust.refuted(0.0, f"word {number}")
    assert not trust.says_going("word 199")


# What a page is read for.


def answer(body: bytes) -> Answer:
    """Give an answer with a body."""
    return Answer(200, {}, body)


def test_a_page_is_read_for_its_marks() -> None:
    """Rows that cannot be used are counted, and left out."""
    body = b'{"rows": [{"requestId": "a", "status": "completed"}, 7, {"requestId": 1, "status": "x"}, {}], "total": 9}'
    assert listing(answer(body)) == Listing((("a", "completed"),), 4, 9)
    assert listing(answer(b'{"rows": [], "total": "many"}')) == Listing((), 0, None)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"rows": {}}', b"<html>", b"7"])
def test_what_is_no_page_is_unreadable(body: bytes) -> None:
    """A page without a list of rows is not an empty one."""
    with pytest.raises(UnreadableError):
        listing(answer(body))


# What requests are worth.


@pytest.mark.parametrize(
    ("looks", "limit", "cost"), [(1.0, None, 0.25), (0.1, 100, 0.25), (2.0, 100, 2.25), (100.0, 100, DEAREST)]
)
def test_scarce_requests_are_dear(looks: float, limit: int | None, cost: float) -> None:
    """The price is what just spends four fifths of the quota, within bounds; without a limit it is the user's."""
    assert price(0.25, looks, limit) == pytest.approx(cost)


def test_what_is_left_lasts_until_the_reset() -> None:
    """Thirty requests over a minute are one each two seconds, and never more than there are."""
    spread, left, taken = Spread(), 30, []
    for half in range(120):
        now = half / 2
        number = spread.take(now, left, 60 - now)
        left -= number
        taken.append(number)
    assert 28 <= sum(taken) <= 30
    assert max(taken) == 1
    assert spread.next_at(60.0, 0, 5.0) == 61.0
    assert Spread().next_at(0.0, 100, None) == pytest.approx(0.6)
    assert Spread().take(5.0, 10, None) == 0


def test_a_quota_says_what_is_left_and_when_there_is_more() -> None:
    """Without a limit there is no end of requests; without a reset it is asked again in a second."""
    assert (Quota().room, Quota(limit=1, left=-2).room) == (math.inf, 0)
    assert Quota(limit=1, left=0, resets_in=9.0).next_at(1.0) == pytest.approx(10.06)
    assert Quota(limit=1, left=0).next_at(1.0) == 2.0
