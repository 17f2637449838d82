"""The limiter's mathematics against a server that counts in fixed windows."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knouds_async._sansio.clock import ClockBounds
from knouds_async._sansio.rate_limit import (
    FIRST_LIMIT,
    FIRST_PAUSE,
    GRAIN,
    GUARD,
    LONGEST_WINDOW,
    SETTLE,
    SHORTEST_WINDOW,
    TRANSIT,
    Permit,
    QuotaHeaders,
    WindowLimiter,
    from_text,
    to_text,
)
from knouds_async.config import Secret

KEY = Secret("knouds_live_0123456789abcdef")
NAME = "account POST /api/workflows/:slug/run"
EPOCH = 1_700_000_000.0


@attrs.define(kw_only=True)
class Server:
    """Counts in fixed windows; `now` is the client's monotonic clock, `offset` the server's epoch less it."""

    limit: int
    length: float = 60.0
    phase: float = 0.0
    offset: float = EPOCH
    rounding: Callable[[float], int] = math.ceil
    is_opened_by_hit: bool = False
    opened: float = -math.inf
    granted: int = 0
    refusals: dict[float, int] = attrs.field(factory=dict)

    def hit(self, now: float) -> QuotaHeaders:
        """Count a request or refuse it."""
        if self.is_opened_by_hit:
            opened = self.opened if now < self.opened + self.length else now
        else:
            opened = math.floor((now - self.phase) / self.length) * self.length + self.phase
        if opened != self.opened:
            self.opened, self.granted = opened, 0
        refused = self.granted >= self.limit
        if refused:
            self.refusals[opened] = self.refusals.get(opened, 0) + 1
        self.granted += not refused
        edge = opened + self.length
        return QuotaHeaders(
            refused=refused,
            succeeded=not refused,
            limit=self.limit,
            remaining=self.limit - self.granted,
            reset=self.rounding(edge + self.offset),
            retry_after=max(1.0, math.ceil(edge - now)) if refused else None,
        )


@attrs.frozen
class Trip:
    """What becomes of one request: seconds to the server, seconds back, and its fate."""

    up: float = 0.04
    down: float = 0.04
    fate: str = "answered"


@attrs.define(eq=False)
class Client:
    """A backlog sent through one window; each request takes the next trip."""

    window: WindowLimiter
    trips: Iterator[Trip]
    waiting: int = 0
    refusals: int = 0
    granted: int = 0
    alarm: float = math.inf


class Play:
    """One server, some clients, and the order of what happens."""

    def __init__(self, server: Server, clients: list[Client], arrivals: list[float], foreign: Sequence[float]) -> None:
        self.server, self.now, self.number = server, 0.0, 0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.open_jobs = len(arrivals) * len(clients)
        for time in arrivals:
            for client in clients:
                self.at(time, partial(self.job, client))
        for time in foreign:
            self.at(time, self.disturb)

    def at(self, time: float, event: Callable[[], None]) -> None:
        """Schedule something for a time."""
        self.number += 1
        heapq.heappush(self.events, (time, self.number, event))

    def run(self) -> float:
        """Run until every job was granted; return the time."""
        while self.open_jobs:
            self.now, _, event = heapq.heappop(self.events)
            event()
        return self.now

    def job(self, client: Client) -> None:
        """Add a job."""
        client.waiting += 1
        self.dispatch(client)

    def disturb(self) -> None:
        """Send a request of somebody else's."""
        self.server.hit(self.now)

    def wake(self, client: Client, alarm: float) -> None:
        """End a wait."""
        if client.alarm == alarm:
            client.alarm = math.inf
        self.dispatch(client)

    def dispatch(self, client: Client) -> None:
        """Send what may be sent, or set an alarm."""
        while client.waiting:
            permit = client.window.try_acquire(self.now)
            if not isinstance(permit, Permit):
                assert self.now < permit < math.inf
                if permit != client.alarm:
                    client.alarm = permit
                    self.at(permit, partial(self.wake, client, permit))
                return
            trip = next(client.trips)
            if trip.fate == "returned":
                client.window.release(permit)
            else:
                client.waiting -= 1
                self.at(self.now + trip.up, partial(self.arrive, client, permit, trip))

    def arrive(self, client: Client, permit: Permit, trip: Trip) -> None:
        """Count a request on the server; only a grant's answer takes long, or is lost."""
        told = self.server.hit(self.now)
        down = min(trip.down, 1.9) if told.refused else trip.down
        date = math.floor(self.now + self.server.offset + (down if down > 5 else 0))
        heard = None if trip.fate == "lost" and not told.refused else date
        self.at(self.now + down, partial(self.answer, client, permit, told, heard))

    def answer(self, client: Client, permit: Permit, told: QuotaHeaders, date: int | None) -> None:
        """Deliver the answer, or the news that there will be none (no date)."""
        client.refusals += told.refused
        client.waiting += told.refused
        client.granted += not told.refused
        self.open_jobs -= not told.refused
        if date is None:
            client.window.mark_unanswered(permit)
        else:
            client.window.on_response(self.now, permit, told, date)
        self.dispatch(client)


def play(server: Server, clients: list[Client], arrivals: list[float], foreign: Sequence[float] = ()) -> float:
    """Run until every job was granted; give the time."""
    return Play(server, clients, arrivals, foreign).run()


CLOCK = ClockBounds(EPOCH, EPOCH)
NO_CLOCK = ClockBounds()


# Each step is made on a copy, so that a test can continue from one state in several ways.


def try_acquire(window: WindowLimiter, now: float) -> tuple[WindowLimiter, Permit | float]:
    """Ask for a permit."""
    window = window.copy()
    return window, window.try_acquire(now)


def on_response(
    window: WindowLimiter, now: float, permit: Permit, reply: QuotaHeaders, clock: ClockBounds
) -> WindowLimiter:
    """Receive a response when so much is known of the server's clock."""
    window = attrs.evolve(window.copy(), clock=clock)
    window.on_response(now, permit, reply, None)
    return window


def restored(window: WindowLimiter, now: float) -> WindowLimiter | None:
    """Store and read it."""
    return from_text(to_text(window, NAME, KEY), NAME, KEY, now, window.share)


def release(window: WindowLimiter, permit: Permit) -> WindowLimiter:
    """Return a permit."""
    window = window.copy()
    window.release(permit)
    return window


def mark_unanswered(window: WindowLimiter, permit: Permit) -> WindowLimiter:
    """Lose an answer."""
    window = window.copy()
    window.mark_unanswered(permit)
    return window


def remaining(window: WindowLimiter, now: float) -> int | None:
    """Return what a dashboard shows as left."""
    return window.copy().stats(now).left


def resets_in(window: WindowLimiter, now: float) -> float | None:
    """Return the seconds that a dashboard shows until the edge."""
    return window.copy().stats(now).resets_in


def reply(
    left: int, reset: float, *, limit: int = 100, refused: bool = False, after: float | None = None
) -> QuotaHeaders:
    """Return what a limited route says; `reset` is the local time at which the server's window ends."""
    return QuotaHeaders(
        refused=refused,
        succeeded=not refused,
        limit=limit,
        remaining=left,
        reset=EPOCH + reset,
        retry_after=after,
    )


def soonest(window: WindowLimiter, now: float) -> float:
    """Return when a permit is given, from `now` on, if nothing is heard until then."""
    window = window.copy()
    while not isinstance(decision := window.try_acquire(now), Permit):
        assert now < decision
        now = decision
    return now


def waits(window: WindowLimiter, now: float) -> float:
    """Return until when a permit that is refused says to wait."""
    assert not isinstance(try_acquire(window, now)[1], Permit)
    return soonest(window, now)


def burst(window: WindowLimiter, now: float) -> tuple[WindowLimiter, list[Permit], float]:
    """Acquire permits until it says wait; return them, and until when to wait."""
    permits: list[Permit] = []
    while True:
        window, decision = try_acquire(window, now)
        if not isinstance(decision, Permit):
            return window, permits, waits(window, now)
        permits.append(decision)


def one(window: WindowLimiter, now: float) -> tuple[WindowLimiter, Permit]:
    """Acquire one that must be granted."""
    window, decision = try_acquire(window, now)
    assert isinstance(decision, Permit)
    return window, decision


def opened(*, limit: int | None = 100, left: int = 99, reset: float = 30.0, share: float = 1.0) -> WindowLimiter:
    """Return a window that ends at `reset`: one request was sent at 0 and answered at 0.1."""
    window, permit = one(WindowLimiter(limit, share=share), 0.0)
    return on_response(window, 0.1, permit, reply(left, reset, limit=limit or 100), CLOCK)


# --- a window, its edge, the next


def test_one_probe_asks_and_its_answer_releases_what_is_left() -> None:
    """The first request goes alone; then all that the window has left goes at once, and the rest waits for the edge."""
    window, permits, until = burst(WindowLimiter(100), 0.0)
    assert len(permits) == 1
    assert until == 0.5
    window = on_response(window, 0.1, permits[0], reply(99, 30.0), CLOCK)
    window, permits, until = burst(window, 0.1)
    assert len(permits) == 99
    assert until == pytest.approx(30.05)
    assert remaining(window, 0.2) == 0


def test_one_probe_crosses_the_edge() -> None:
    """At the edge one request goes alone, and its answer releases the new window."""
    window, _, until = burst(opened(), 0.2)
    window, permits, _ = burst(window, until)
    assert len(permits) == 1
    window = on_response(window, until + 0.1, permits[0], reply(99, 90.0), CLOCK)
    assert len(burst(window, until + 0.1)[1]) == 99


def test_no_probe_is_needed_when_the_edge_is_surely_past() -> None:
    """Well after the edge the whole new window is there at once."""
    _, permits, until = burst(opened(), 31.5)
    assert len(permits) == 100
    assert until == pytest.approx(90.05)


def test_a_probe_that_is_not_answered_holds_the_rest_back_for_a_moment_only() -> None:
    """With answers minutes late, a probe that is not refused, as it would be at once, releases the new window."""
    window, _, until = burst(opened(), 0.2)
    window, permits, until = burst(window, until)
    assert len(permits) == 1
    assert until == pytest.approx(30.55, abs=GRAIN)
    assert len(burst(window, until)[1]) == 100 - 1


def test_the_first_window_of_all_is_released_by_silence_step_by_step() -> None:
    """With answers minutes late and nothing known but a guess, sixteen times as many may be out after each silence."""
    window, sizes, until = WindowLimiter(1000), list[int](), 0.0
    for _ in range(4):
        window, permits, until = burst(window, until)
        sizes.append(len(permits))
    assert sizes == [1, 16, 256, 727]
    assert until == pytest.approx(60.05)


def test_the_local_clock_need_not_agree_with_the_server() -> None:
    """The edge is Reset by the server's clock, whatever the local one says."""
    for offset in (EPOCH - 137, EPOCH, EPOCH + 137, 0.0):
        window, permit = one(WindowLimiter(100), 1000.0)
        told = QuotaHeaders(limit=100, remaining=0, reset=offset + 1030)
        window = on_response(window, 1000.1, permit, told, ClockBounds(offset, offset))
        assert waits(window, 1000.2) == pytest.approx(1030.05)


def test_without_dates_the_window_may_have_just_begun() -> None:
    """Reset is useless without the server's clock: the edge is a window's length, or Retry-After, away."""
    window, permit = one(WindowLimiter(100), 0.0)
    silent = on_response(window, 0.1, permit, reply(0, 5.0), NO_CLOCK)
    assert waits(silent, 0.2) == pytest.approx(60.15)
    refused = on_response(window, 0.1, permit, reply(0, 5.0, refused=True, after=7.0), NO_CLOCK)
    assert waits(refused, 0.2) == pytest.approx(7.15, abs=GRAIN)


def test_without_dates_a_long_window_is_asked_once_a_minute() -> None:
    """Where nothing shows how long the window lasts, one request a minute finds out when it has ended."""
    window, now = WindowLimiter(100), 0.0
    for _ in range(30):
        window, permit = one(window, now)
        window = on_response(window, now + 0.1, permit, reply(0, 3600.0, refused=True), NO_CLOCK)
        now = waits(window, now + 0.1)
    assert now == pytest.approx(30 * 60, rel=0.15)


@pytest.mark.parametrize("reset", [-EPOCH, -EPOCH + 12, -100.0, 1e7, 1e12])
def test_a_senseless_reset_is_not_believed(reset: float) -> None:
    """A Reset long past or days away counts as unknown: the window may have just begun."""
    window = opened(left=0, reset=reset)
    assert waits(window, 0.2) == pytest.approx(60.15)


def test_a_retry_after_past_reset_is_obeyed() -> None:
    """Where Retry-After and Reset differ, the later holds, within a day."""
    window, permit = one(opened(left=1), 1.0)
    later = on_response(window, 1.1, permit, reply(0, 30.0, refused=True, after=40.0), CLOCK)
    assert waits(later, 1.2) == pytest.approx(40.0)
    absurd = on_response(window, 1.1, permit, reply(0, 30.0, refused=True, after=1e9), CLOCK)
    assert waits(absurd, 1.2) == pytest.approx(86_400.0)


def test_late_news_of_windows_that_are_over_changes_nothing() -> None:
    """Answers that name an earlier window are only taken out of flight."""
    window, old = one(opened(), 1.0)
    window, older = one(window, 1.0)
    window, probe = one(window, 40.0)
    assert on_response(window, 40.1, old, reply(50, 30.0), CLOCK).stats(40.1) == window.stats(40.1)
    window = on_response(window, 40.2, probe, reply(99, 90.0), CLOCK)
    late = on_response(window, 41.0, older, reply(3, 30.0, refused=True), CLOCK)
    assert late.stats(41.0) == window.stats(41.0)


def test_late_news_of_what_was_sent_just_before_an_edge_changes_nothing() -> None:
    """Though the window after it is only presumed, or named by an answer that overtook it."""
    window, last = one(opened(), 29.9)
    window, probe = one(window, 30.2)
    late = on_response(window, 30.3, last, reply(3, 30.0), CLOCK)
    assert (late.edge, remaining(late, 30.3)) == (window.edge, 99)
    window, second = one(on_response(late, 30.4, probe, reply(99, 90.0), CLOCK), 30.5)
    late = on_response(window, 30.6, second, reply(3, 30.0), CLOCK)
    assert (late.reset, remaining(late, 30.6)) == (window.reset, 99)


def test_a_server_whose_clock_was_set_back_is_followed() -> None:
    """A newer request that shows an earlier Reset is not late news."""
    window, permit = one(opened(reset=50.0), 10.0)
    window = on_response(window, 10.1, permit, reply(0, 25.0), CLOCK)
    assert resets_in(window, 10.1) == pytest.approx(14.9)


def test_answers_out_of_order_keep_the_lowest_remaining() -> None:
    """A higher Remaining that comes later was shown earlier."""
    window, first = one(opened(), 1.0)
    window, second = one(window, 1.0)
    window = on_response(window, 1.1, second, reply(97, 30.0), CLOCK)
    window = on_response(window, 1.2, first, reply(98, 30.0), CLOCK)
    assert remaining(window, 1.2) == 97


def test_a_reset_that_is_rounded_to_either_side_names_one_window() -> None:
    """Answers that differ by the second of rounding are of the same window, whichever comes first."""
    for first, second in ((30.0, 29.0), (29.0, 30.0)):
        window, permit = one(opened(left=99, reset=first), 0.2)
        window = on_response(window, 0.3, permit, reply(40, second), CLOCK)
        assert remaining(window, 0.3) == 40


def test_the_edge_is_sharpened_by_later_answers() -> None:
    """A better bound on the server's clock brings the edge nearer; it never goes back."""
    window, permit = one(opened(), 1.0)
    window, second = one(window, 1.0)
    window = on_response(window, 1.1, permit, reply(98, 30.0), ClockBounds(EPOCH + 0.5, EPOCH + 0.6))
    assert resets_in(window, 1.1) == pytest.approx(28.4)
    window = on_response(window, 1.1, second, reply(97, 30.0), CLOCK)
    assert resets_in(window, 1.1) == pytest.approx(28.4)


# --- what is learned


def test_the_limit_is_learned_from_the_headers() -> None:
    """Until a header says more, an unknown limit is taken for the lowest there is."""
    window, permits, now = burst(WindowLimiter(None), 0.0)
    sent = len(permits)
    while now < 60:
        window, permits, now = burst(window, now)
        sent += len(permits)
    assert sent == 10
    assert remaining(window, 1.0) is None
    assert remaining(opened(limit=None), 0.2) == 99
    window, permit = one(opened(), 1.0)
    window = on_response(window, 1.1, permit, reply(248, 30.0, limit=250), CLOCK)
    assert remaining(window, 31.0) == 250


@pytest.mark.parametrize("length", [5.0, 8.0, 61.0, 90.0, 3600.0])
def test_the_length_of_the_window_is_learned(length: float) -> None:
    """From its second edge on, a server with other windows than a minute's is foreseen."""
    server = Server(limit=20, length=length, phase=length / 3)
    client = Client(WindowLimiter(20), cycle([Trip()]))
    play(server, [client], [0.0] * 20 * 6)
    assert client.window.length == pytest.approx(length, abs=1)
    assert client.refusals <= (length == 61)


def test_windows_that_open_with_their_first_request_lose_no_second_each() -> None:
    """A window has begun when its first answer comes, so it ends a length later at most: before a rounded Reset."""
    client = Client(WindowLimiter(20), cycle([Trip()]))
    ended = play(Server(limit=20, is_opened_by_hit=True), [client], [0.0] * 20 * 6)
    assert ended == pytest.approx(5 * 60, abs=5 * 0.2)
    assert client.refusals == 0


def test_a_reset_rounded_down_is_learned_by_one_refusal() -> None:
    """The first edge that turns out to be later than Reset teaches to wait a second more for all that follow."""
    server = Server(limit=20, rounding=math.floor, phase=7.7)
    client = Client(WindowLimiter(20), cycle([Trip()]))
    play(server, [client], [0.0] * 200)
    assert client.refusals == 1
    assert client.window.skew == 1
    assert client.window.shared_until == -math.inf


def test_an_edge_that_is_early_by_more_is_learned_too() -> None:
    """A Date that runs ahead of Reset costs a few refusals once, and the slack has a bound."""
    window = opened(left=0, reset=30.0)
    now, slacks = 30.05, []
    for _ in range(20):
        window, permit = one(window, now)
        window = on_response(window, now + 0.05, permit, reply(0, 30.0, refused=True, after=1.0), CLOCK)
        slacks.append(window.skew)
        decision = try_acquire(window, now + 0.1)[1]
        assert not isinstance(decision, Permit)
        now = decision
    assert slacks[:3] == [1.0, 1.5, 2.0]
    assert slacks[-1] == 6.0


def test_a_request_granted_before_the_edge_steps_back_too() -> None:
    """A probe that the old window had a token for shows that its edge is to come, and what is left until then."""
    window, probe = one(opened(left=40), 30.06)
    window = on_response(window, 30.1, probe, reply(39, 30.0), CLOCK)
    assert remaining(window, 30.1) == 39
    assert resets_in(window, 30.1) == pytest.approx(0.9)


# --- refusals


def test_a_refusal_ends_the_spending_of_the_window() -> None:
    """After a 429 nothing more goes until the edge."""
    window, permit = one(opened(), 1.0)
    window = on_response(window, 1.1, permit, reply(0, 30.0, refused=True, after=29.0), CLOCK)
    assert remaining(window, 1.1) == 0
    assert waits(window, 1.1) == pytest.approx(30.05)


def test_a_refusal_with_tokens_left_is_a_pause() -> None:
    """A 429 that was not for the quota is obeyed for as long as it asks; without a word on that, for a moment."""
    window, permit = one(opened(), 1.0)
    paused = on_response(window, 1.1, permit, reply(98, 30.0, refused=True, after=5.0), CLOCK)
    assert waits(paused, 1.1) == pytest.approx(6.1)
    assert remaining(paused, 6.1) == 98
    silent = on_response(window, 1.1, permit, reply(98, 30.0, refused=True), CLOCK)
    assert waits(silent, 1.1) == pytest.approx(2.1)


def test_a_refusal_without_headers_is_a_pause() -> None:
    """Retry-After alone is obeyed, or a second is; then one request asks again."""
    window, permit = one(WindowLimiter(100), 0.0)
    for after, until in ((12.0, 12.1), (None, 1.1)):
        paused = on_response(
            window, 0.1, permit, QuotaHeaders(refused=True, succeeded=False, retry_after=after), NO_CLOCK
        )
        assert waits(paused, 0.2) == pytest.approx(until)
        assert len(burst(paused, until)[1]) == 1


def test_a_longer_pause_is_not_cut_short_by_a_later_refusal() -> None:
    """The refusals of one burst may ask for different pauses: the longest counts, in any order."""
    window, permits = opened(), []
    for _ in range(2):
        window, permit = one(window, 1.0)
        permits.append(permit)
    for order in ((50.0, 3.0), (3.0, 50.0)):
        paused = window
        for permit, after in zip(permits, order, strict=True):
            paused = on_response(paused, 1.1, permit, QuotaHeaders(refused=True, retry_after=after), CLOCK)
        assert waits(paused, 1.1) == pytest.approx(51.1)
        assert paused.stats(50.0).is_pause


def test_a_pause_outlasts_the_edge() -> None:
    """A pause that ends after the edge ends with a probe in the new window."""
    window, permit = one(opened(), 1.0)
    window = on_response(window, 1.1, permit, QuotaHeaders(refused=True, retry_after=60.0), CLOCK)
    window, permits, _ = burst(window, 61.1)
    assert len(permits) == 1
    assert window.rolled_over


# --- unlimited routes


def test_a_success_without_the_headers_is_from_an_unlimited_route() -> None:
    """Nothing is held back any more, for hours, until headers come."""
    window, permit = one(WindowLimiter(100), 0.0)
    window = on_response(window, 0.1, permit, QuotaHeaders(), NO_CLOCK)
    for now in (0.2, 60.06, 100.0, 7200.0):
        for _ in range(500):
            window, permit = one(window, now)
    assert (remaining(window, 1.0), resets_in(window, 1.0)) == (None, None)
    window = on_response(window, 7200.1, permit, reply(0, 7230.0), CLOCK)
    assert not isinstance(try_acquire(window, 7200.2)[1], Permit)


def test_a_route_known_to_be_unlimited_needs_no_probe() -> None:
    """With such a tier everything goes from the start."""
    window, permit = one(WindowLimiter(None, unlimited=True), 0.0)
    for _ in range(100):
        window, _ = one(window, 0.0)
    assert on_response(window, 0.1, permit, QuotaHeaders(), NO_CLOCK).unlimited


def test_an_unlimited_route_that_refuses_is_approached_with_care() -> None:
    """After a 429 without headers, successes double what is sent instead of releasing all."""
    window, permit = one(WindowLimiter(None, unlimited=True), 0.0)
    window = on_response(window, 0.1, permit, QuotaHeaders(refused=True, succeeded=False, retry_after=2.0), NO_CLOCK)
    window, permits, _ = burst(window, 2.1)
    assert len(permits) == 1
    window = on_response(window, 2.2, permits[0], QuotaHeaders(), NO_CLOCK)
    assert window.unlimited
    assert len(burst(window, 2.2)[1]) == 2
    window = on_response(window, 400.0, Permit(0.0), QuotaHeaders(), NO_CLOCK)
    assert len([one(window, 400.0) for _ in range(50)]) == 50


def test_an_error_without_the_headers_says_nothing() -> None:
    """A 500 does not make a route unlimited, and its request stays spent."""
    window, permit = one(opened(left=2), 1.0)
    window = on_response(window, 1.1, permit, QuotaHeaders(succeeded=False), CLOCK)
    assert not window.unlimited
    assert remaining(window, 1.1) == 1
    assert window.stats(1.1).limit == 100
    unlimited = on_response(window, 1.1, permit, QuotaHeaders(), CLOCK).stats(1.1)
    assert (unlimited.limit, unlimited.left, unlimited.resets_in) == (None, None, None)


# --- others


def test_an_error_at_the_edge_is_no_proof_that_it_has_passed() -> None:
    """A proxy's 502 to the probe releases some, not all."""
    window, probe = one(opened(), 30.06)
    window = on_response(window, 30.1, probe, QuotaHeaders(succeeded=False), CLOCK)
    assert 1 <= len(burst(window, 30.2)[1]) < 20


def test_others_on_the_quota_are_met_with_slow_start() -> None:
    """A Remaining lower than our own requests explain means somebody else: few go at once, more with every answer."""
    window, permits, until = burst(opened(left=60), 0.1)
    assert len(permits) == 1
    assert until == pytest.approx(0.6, abs=GRAIN)
    sizes = []
    for round_ in range(4):
        now = 0.2 + round_ / 10
        for at, permit in enumerate(permits):
            left = remaining(window, now)
            assert left is not None
            window = on_response(window, now, permit, reply(left + len(permits) - at - 1, 30.0), CLOCK)
        window, permits, _ = burst(window, now)
        sizes.append(len(permits))
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] < 30


def test_others_are_remembered_for_five_minutes() -> None:
    """After somebody else was seen, no window is released at once; later it is again."""
    window = opened(left=60)
    assert len(burst(window, 200.0)[1]) == 1
    assert len(burst(window, 400.0)[1]) == 100
    for now, at_once in ((200.0, 2), (400.0, 99)):
        later, permit = one(window, now)
        later = on_response(later, now + 0.1, permit, reply(99, now + 30), CLOCK)
        assert len(burst(later, now + 0.1)[1]) == at_once


def test_a_share_leaves_the_rest_of_each_window_to_others() -> None:
    """With a share of 0.7, 30 of 100 stay unspent; however small the share, one request a window is ours."""
    assert len(burst(opened(share=0.7), 0.1)[1]) == 69
    assert len(burst(opened(share=0.7), 31.5)[1]) == 70
    assert len(burst(opened(share=0.001), 31.5)[1]) == 1


# --- permits


def test_a_returned_ticket_gives_its_token_back() -> None:
    """A request that never left is as if it had not been taken."""
    window = opened(left=1)
    taken, permit = one(window, 1.0)
    assert not isinstance(try_acquire(taken, 1.0)[1], Permit)
    back = release(taken, permit)
    assert back == window
    assert isinstance(try_acquire(back, 1.0)[1], Permit)


def test_a_lost_request_counts_as_spent_until_the_server_shows_otherwise() -> None:
    """It holds its token, but blocks no other request; a Remaining of a later request settles it."""
    window, permit = one(opened(left=50), 1.0)
    window = mark_unanswered(window, permit)
    assert remaining(window, 3.0) == 49
    window, permit = one(window, 8.0)
    window = on_response(window, 8.1, permit, reply(49, 30.0), CLOCK)
    assert remaining(window, 8.1) == 49


def test_what_is_lost_of_an_earlier_window_costs_this_one_nothing() -> None:
    """A request that times out after the edge was not counted in the window that is on."""
    window, old = one(opened(), 1.0)
    window, _ = one(window, 45.0)
    before = remaining(window, 46.0)
    assert remaining(mark_unanswered(window, old), 46.0) == before


def test_what_is_lost_on_an_unlimited_route_is_not_kept() -> None:
    """There is no edge after which it would be forgotten, so it would only fill the memory."""
    window, permit = one(WindowLimiter(None, unlimited=True), 0.0)
    assert mark_unanswered(window, permit).silent == []


def test_a_lost_probe_lets_the_next_go_at_once() -> None:
    """There is no answer to wait for."""
    window, permit = one(WindowLimiter(100), 0.0)
    assert try_acquire(window, 0.3)[1] == 0.5
    assert isinstance(try_acquire(mark_unanswered(window, permit), 0.3)[1], Permit)


def test_requests_that_may_have_arrived_late_are_waited_for() -> None:
    """A new window that those in flight could have used up is not asked before they should have been answered."""
    window, permit = one(opened(limit=1, left=0, reset=30.0), 30.5)
    window, decision = try_acquire(window, 90.06)
    assert isinstance(decision, Permit)
    window = WindowLimiter(1)
    window, permit = one(window, 0.0)
    window = on_response(window, 0.1, permit, reply(0, 5.0, limit=1), CLOCK)
    window, permit = one(window, 64.0)
    decision = try_acquire(window, 65.06)[1]
    assert decision == pytest.approx(68.0)
    assert isinstance(try_acquire(window, 68.0)[1], Permit)


def test_requests_of_the_last_seconds_count_in_the_next_window_too() -> None:
    """Reset is rounded and requests take time: what was sent three seconds before the edge may count after it."""
    late, _, _ = burst(opened(), 27.5)
    assert remaining(late, 31.5) == 1
    early, _, _ = burst(opened(), 26.5)
    assert remaining(early, 31.5) == 100


def test_alone_our_own_count_tells_what_is_left() -> None:
    """An answer out of a burst does not say which of the burst it includes, but no more than the burst is spent."""
    window, first = one(opened(), 1.0)
    for _ in range(49):
        window, _ = one(window, 1.0)
    window = on_response(window, 11.0, first, reply(60, 30.0), CLOCK)
    assert remaining(window, 11.0) == 11
    assert len(burst(window, 11.0)[1]) == 100 - 1 - 50


def test_doubt_about_requests_sent_before_the_edge_costs_no_tokens() -> None:
    """Alone, when a probe's answer leaves open whether those in flight are counted, one more asks after a while."""
    window, _, until = burst(opened(), 29.9)
    window, probe = one(window, until)
    window = on_response(window, until + 0.1, probe, reply(50, 90.0), CLOCK)
    window, permits, until = burst(window, until + 0.1)
    assert permits == []
    assert until == pytest.approx(33.9, abs=GRAIN)
    assert len(burst(window, until)[1]) == 1


def test_where_others_use_the_quota_doubt_is_no_reason_to_ask() -> None:
    """A token that a request of our own in flight may have used is not used again while others share the quota."""
    window, _ = one(opened(left=60), 29.9)
    window, probe = one(window, 30.06)
    window = on_response(window, 30.1, probe, reply(1, 90.0), CLOCK)
    assert waits(window, 30.1) == pytest.approx(90.05)


def test_late_answers_do_not_blur_the_edge() -> None:
    """However late an answer is, its Date is fresh: requests sent well before the edge are not counted after it."""
    window, permit = one(WindowLimiter(100), 0.0)
    window = on_response(window, 40.0, permit, reply(99, 70.0), ClockBounds(EPOCH, EPOCH + 40))
    window, _, _ = burst(window, 60.0)
    assert remaining(window, 71.5) == 100


def test_tokens_that_are_probably_there_are_asked_for_one_by_one() -> None:
    """Alone, with answers minutes late, doubt about those in flight costs no tokens; a refusal would be here."""
    window, _, until = burst(opened(left=99, reset=5.0), 3.0)
    window, permits, until = burst(window, 6.5)  # the 99 could have arrived after the edge
    assert (len(permits), until) == (1, 10.5)
    window, permits, until = burst(window, until)
    assert (len(permits), until) == (1, 14.5)
    window = on_response(window, 10.6, permits[0], reply(0, 65.0, refused=True, after=55.0), CLOCK)
    assert waits(window, 14.5) == pytest.approx(65.05)


def test_a_timer_that_rings_a_little_early_still_gets_its_turn() -> None:
    """Event loops ring by the resolution of their clock too soon; asking again would spin."""
    window, _, until = burst(opened(), 0.1)
    assert isinstance(try_acquire(window, until - 1e-9)[1], Permit)


def test_a_dashboard_sees_through_the_edge() -> None:
    """What is left, and when it resets, is given for the moment asked about; nothing before the first answer."""
    assert (remaining(WindowLimiter(100), 0.0), resets_in(WindowLimiter(100), 0.0)) == (100, None)
    window = opened(left=10)
    assert remaining(window, 10.0) == 10
    assert resets_in(window, 10.0) == pytest.approx(20.0)
    assert remaining(window, 40.0) == 100
    assert resets_in(window, 40.0) == pytest.approx(50.0)


def test_a_limit_of_nothing_is_asked_once_a_window() -> None:
    """Even then something is sent now and then: the limit may have been raised."""
    window, permit = one(WindowLimiter(0), 0.0)
    window = on_response(window, 0.1, permit, reply(0, 30.0, limit=0, refused=True, after=30.0), CLOCK)
    window, permits, until = burst(window, 30.06)
    assert len(permits) == 1
    assert until == pytest.approx(90.05)


def test_silence_does_not_block_for_ever() -> None:
    """When no request is ever answered, each window still gets some."""
    window, sent, now = WindowLimiter(100), 0, 0.0
    while now < 3600:
        window, permits, now = burst(window, now)
        sent += len(permits)
    assert sent >= 60


# --- properties

trips = st.builds(
    Trip,
    up=st.one_of(st.floats(0, 0.2), st.floats(0, 1.9)),
    down=st.one_of(st.floats(0, 0.2), st.floats(0, 1.9)),
    fate=st.sampled_from(["answered"] * 8 + ["returned"]),
)
late_trips = st.builds(
    Trip,
    up=st.one_of(st.floats(0, 0.2), st.floats(0, 1.9)),
    down=st.one_of(st.floats(0, 0.2), st.floats(20, 50)),
    fate=st.sampled_from(["answered"] * 8 + ["returned", "lost"]),
)
anchored = st.builds(
    Server,
    limit=st.integers(1, 30),
    length=st.sampled_from([5.0, 8.0, 20.0, 60.0]),
    phase=st.floats(0, 60),
    offset=st.floats(-137, 137).map(lambda skew: EPOCH + skew),
)
any_server = st.builds(
    lambda server, rounding, hit: attrs.evolve(server, rounding=rounding, is_opened_by_hit=hit),
    anchored,
    st.sampled_from([math.ceil, math.floor, round]),
    st.booleans(),
)
bursts = st.lists(st.tuples(st.floats(0, 300), st.integers(1, 60)), min_size=1, max_size=8).map(
    lambda some: [time for time, jobs in some for _ in range(jobs)]
)


def ways(some: list[Trip]) -> Iterator[Trip]:
    """Repeat these trips for ever, with one that is answered among them."""
    return cycle([*some, Trip()])


@settings(max_examples=100, deadline=None)
@given(server=anchored, hit=st.booleans(), some=st.lists(trips, max_size=20), jobs=bursts)
def test_alone_nothing_is_ever_refused(server: Server, hit: bool, some: list[Trip], jobs: list[float]) -> None:
    """Alone, with Reset rounded up, no request exceeds a window's limit, whatever phase, latencies and order."""
    server.is_opened_by_hit = hit
    client = Client(WindowLimiter(server.limit), ways(some))
    play(server, [client], jobs)
    assert client.granted == len(jobs)
    assert server.refusals == {}


@settings(max_examples=100, deadline=None)
@given(server=anchored, some=st.lists(late_trips, max_size=20), jobs=bursts)
def test_late_and_lost_answers_cost_a_probe_at_most(server: Server, some: list[Trip], jobs: list[float]) -> None:
    """With answers up to 50 s late, or lost, a window refuses at most one request: the probe."""
    play(server, [Client(WindowLimiter(server.limit), ways(some))], jobs)
    assert max(server.refusals.values(), default=0) <= 1


@settings(max_examples=100, deadline=None)
@given(
    server=any_server,
    some=st.lists(late_trips, max_size=20),
    jobs=st.lists(st.floats(0, 200), min_size=1, max_size=40),
    processes=st.integers(1, 3),
    foreign=st.lists(st.floats(0, 300), max_size=100),
)
def test_every_job_is_granted_in_the_end(
    server: Server, some: list[Trip], jobs: list[float], processes: int, foreign: list[float]
) -> None:
    """Whatever the rounding, the neighbours and the losses: progress, and each wait ends with a turn."""
    clients = [Client(WindowLimiter(server.limit), ways(some)) for _ in range(processes)]
    ended = play(server, clients, jobs, foreign)
    assert sum(client.granted for client in clients) == processes * len(jobs)
    assert ended < 300 + 120 * (2 + processes * len(jobs))


some_reply = st.builds(
    QuotaHeaders,
    refused=st.booleans(),
    succeeded=st.booleans(),
    limit=st.sampled_from([None, -1, 0, 1, 5, 100, 10**6, 10**15]),
    remaining=st.sampled_from([None, -1, 0, 1, 3, 50, 100, 101, 10**15]),
    reset=st.sampled_from([None, 0.0, 12.0, EPOCH - 1000, *(EPOCH + at for at in (0, 1, 2, 5, 60, 3600)), 1e12]),
    retry_after=st.sampled_from([None, 0.0, 1.0, 5.0, 60.0, 1e9]),
)
fate = st.sampled_from(["take", "take", "take", "answered", "answered", "lost", "returned", "sleep"])
steps = st.lists(
    st.tuples(fate, st.sampled_from([0.0, 1e-9, 0.01, 0.3, 1.0, 10.0, 61.0, 1e4]), some_reply), max_size=60
)


@settings(max_examples=300, deadline=None)
@given(
    steps=steps,
    limit=st.sampled_from([None, 0, 1, 5, 100]),
    share=st.sampled_from([1.0, 0.7, 0.01]),
    unlimited=st.booleans(),
)
def test_nothing_a_server_says_can_block_or_break_it(
    steps: list[tuple[str, float, QuotaHeaders]], limit: int | None, share: float, unlimited: bool
) -> None:
    """After any history a wait is finite, ends with a turn, and the state is a small value that equals its twin."""
    windows = [WindowLimiter(limit, share=share, unlimited=unlimited)] * 2
    out: list[Permit] = []
    now, clock = 0.0, NO_CLOCK
    for step, pause, told in steps:
        now += pause
        if step == "take":
            (windows[0], decision), (windows[1], _) = [try_acquire(window, now) for window in windows]
            if isinstance(decision, Permit):
                out.append(decision)
            else:
                assert now < decision < now + 2 * 86_400
                assert waits(windows[0], now) < now + 2 * 86_400
        elif step == "answered" and out:
            permit = out.pop(0)
            if told.reset is not None:
                clock = clock.update(math.floor(EPOCH + now), permit.sent, now)
            windows = [on_response(window, now, permit, told, clock) for window in windows]
        elif step == "lost" and out:
            permit = out.pop()
            windows = [mark_unanswered(window, permit) for window in windows]
        elif step == "returned" and out:
            permit = out.pop()
            windows = [release(window, permit) for window in windows]
        assert windows[0] == windows[1]
        assert windows[0].edge == math.inf or restored(windows[0], now) == windows[0]
        assert (remaining(windows[0], now) or 0) >= 0
        assert (resets_in(windows[0], now) or 0.0) >= 0


def test_every_refusal_that_holds_is_shown_and_only_what_was_asked_for_is_a_pause() -> None:
    """The rest of a used-up window is the quota's; what is asked for beyond it, or without the headers, is a pause."""
    window, permit = one(opened(), 5.0)
    used_up = on_response(window, 5.1, permit, reply(0, 30.0, refused=True, after=25.0), CLOCK).stats(6.0)
    assert used_up.held_for == pytest.approx(23, abs=0.1)
    assert not used_up.is_pause
    for after, is_pause in ((26.0, False), (27.0, True)):  # the edge is at 30, and a wait is rounded up
        told = on_response(window, 5.1, permit, reply(0, 30.0, refused=True, after=after), CLOCK)
        assert told.stats(6.0).is_pause is is_pause
    asked = on_response(window, 5.1, permit, reply(0, 30.0, refused=True, after=86_400.0), CLOCK)
    assert asked.stats(6.0).held_for == pytest.approx(86_400, abs=3)
    assert asked.stats(6.0).is_pause
    assert (asked.stats(90_000.0).held_for, asked.stats(90_000.0).is_pause) == (0.0, False)
    refusal = QuotaHeaders(refused=True, succeeded=False, retry_after=20.0)
    without = on_response(window, 5.1, permit, refusal, CLOCK).stats(6.0)
    assert without.held_for == pytest.approx(19.1)
    assert without.is_pause
    bare = on_response(window, 5.1, permit, QuotaHeaders(refused=True, succeeded=False), CLOCK).stats(5.6)
    assert bare.held_for == pytest.approx(0.5)
    assert not bare.is_pause


# --- refusals that say nothing, answers that say nothing


BARE = QuotaHeaders(refused=True, succeeded=False)
ERROR = QuotaHeaders(succeeded=False)


def test_a_bare_refusal_holds_for_a_second_and_each_that_follows_for_twice_as_long() -> None:
    """Refusals of one burst count once; an answer that is none ends the series; there is a longest."""
    window, now, pauses = WindowLimiter(None), 0.0, list[float]()
    for _ in range(8):
        window, permits, _ = burst(window, now)
        for permit in permits:
            window = on_response(window, now + 0.1, permit, BARE, NO_CLOCK)
        pauses.append(window.stats(now + 0.1).held_for)
        now = waits(window, now + 0.1)
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60])
    window, permit = one(window, now)
    window = on_response(window, now + 0.1, permit, ERROR, NO_CLOCK)
    window, permits, _ = burst(window, now + 0.1)
    assert len(permits) > 1
    for permit in permits:
        window = on_response(window, now + 0.2, permit, BARE, NO_CLOCK)
    assert window.stats(now + 0.2).held_for == pytest.approx(FIRST_PAUSE)


@pytest.mark.parametrize(("is_late", "pause"), [(True, 2 * FIRST_PAUSE), (False, FIRST_PAUSE)])
def test_a_late_answer_of_the_same_burst_does_not_end_the_doubling(is_late: bool, pause: float) -> None:
    """What was let through before a refusal says nothing of the next: pauses double until a later request passes."""
    window, probe = one(WindowLimiter(None), 0.0)
    window = on_response(window, 0.1, probe, ERROR, NO_CLOCK)
    window, permits, _ = burst(window, 0.1)
    window = on_response(window, 1.0, permits[1], BARE, NO_CLOCK)
    if is_late:
        window = on_response(window, 1.1, permits[0], ERROR, NO_CLOCK)
    else:
        window, later = one(window, waits(window, 1.1))
        window = on_response(window, 2.2, later, ERROR, NO_CLOCK)
    now = soonest(window, 2.3)
    window, again = one(window, now)
    window = on_response(window, now + 0.1, again, BARE, NO_CLOCK)
    assert window.stats(now + 0.1).held_for == pytest.approx(pause)


def test_errors_are_not_charged_to_a_limit_that_is_not_known() -> None:
    """What is no 429 was let through: a thousand bad requests one after the other wait for nothing."""
    window, now = WindowLimiter(None), 0.0
    for _ in range(1000):
        window, permit = one(window, now)
        window = on_response(window, now + 0.01, permit, ERROR, NO_CLOCK)
        now += 0.02
    assert len(burst(window, now)[1]) == FIRST_LIMIT


def test_lost_answers_are_not_charged_to_a_limit_that_is_not_known() -> None:
    """Nor are requests whose answers never came."""
    window = WindowLimiter(None)
    for _ in range(100):
        window, permit = one(window, 0.0)
        window = mark_unanswered(window, permit)
    assert isinstance(try_acquire(window, 0.0)[1], Permit)


def test_a_probe_soon_asks_for_tokens_that_silent_requests_may_have_used() -> None:
    """With a known limit, what was lost or failed counts; one request a moment later settles it, or stops them all."""
    window, permits, _ = burst(opened(limit=21, left=20), 0.2)
    for permit in permits[:10]:
        window = mark_unanswered(window, permit)
    for permit in permits[10:]:
        window = on_response(window, 0.3, permit, ERROR, CLOCK)
    assert waits(window, 0.4) == pytest.approx(0.2 + SETTLE, abs=GRAIN)
    window, probes, until = burst(window, 0.2 + SETTLE)
    assert len(probes) == 1
    assert until == pytest.approx(0.2 + SETTLE + 2 * TRANSIT, abs=2 * GRAIN)
    counted = on_response(window, 3.0, probes[0], reply(12, 30.0, limit=21), CLOCK)
    assert soonest(counted, 3.0) == 3.0
    refused = on_response(window, 1.0, probes[0], reply(0, 30.0, limit=21, refused=True, after=29.0), CLOCK)
    assert waits(refused, 1.0) == pytest.approx(30 + GUARD)


def test_more_left_than_the_limit_is_the_limit() -> None:
    """A server that promises more than it has is not believed, and nothing breaks at the edge either."""
    window, permit = one(WindowLimiter(5), 0.0)
    window = on_response(window, 0.1, permit, reply(500, 30.0, limit=5), CLOCK)
    assert remaining(window, 0.1) == 5
    for _ in range(5):
        window, permit = one(window, 0.1)
    window, permit = one(window, 40.0)
    window = on_response(window, 40.1, permit, reply(500, 30.0, limit=5), CLOCK)
    assert remaining(window, 40.1) == 5


def test_a_reset_that_does_not_move_stops_nobody() -> None:
    """A server that always names the same Reset still gets requests in each minute."""
    window, sent, now = WindowLimiter(None), 0, 0.0
    while now < 240:
        window, permits, until = burst(window, now)
        sent += len(permits)
        for permit in permits:
            window = on_response(window, now + 0.1, permit, reply(90, 30.0), CLOCK)
        now = max(now + 0.2, until if not permits else 0.0)
    assert sent > 240


@pytest.mark.parametrize("reset", [0.001, 1.01, 2.0, 86_000.0, 86_400.0 * 2, 1e12])
def test_a_windows_length_is_learned_within_bounds(reset: float) -> None:
    """Whatever distances of Resets are shown, a window has a second at least and a day at most."""
    window, now = WindowLimiter(100), 0.0
    for at in range(1, 20):
        window, permit = one(window, now)
        window = on_response(window, now + 0.1, permit, reply(0, reset * at), CLOCK)
        assert SHORTEST_WINDOW <= window.length <= LONGEST_WINDOW
        now = soonest(window, now + 0.1)


# --- in flight


def test_a_late_answer_of_a_request_that_was_forgotten_changes_no_count() -> None:
    """What was sent before the window is dropped at its edge."""
    window, old = one(opened(left=50), 1.0)
    window, permit = one(window, 45.0)
    assert len(window.awaited) == 1
    assert release(window, old) == window
    assert release(window, permit).awaited == []


# --- what several processes share


def test_a_share_is_each_processs_own() -> None:
    """It is not stored: who reads the window keeps what it was told to leave to others."""
    window = from_text(to_text(opened(left=100), NAME, KEY), NAME, KEY, 1.0, 0.5)
    assert window is not None
    assert remaining(window, 1.0) == 50


def test_all_of_a_window_is_stored() -> None:
    """Times without end too, and whether there is a limit."""
    for window in (WindowLimiter(100), WindowLimiter(100, unlimited=True), opened(left=3)):
        assert restored(window, 10.0) == window


def test_what_is_stored_of_a_burst_is_short() -> None:
    """It grows with the time in which a burst was sent, and not with the burst."""
    window = WindowLimiter(None, unlimited=True)
    for number in range(1000):
        window.try_acquire(1000 + number * 1e-5)
    assert len(to_text(window, NAME, KEY)) < 1000


def test_who_waits_reads_the_later_the_longer_nothing_was_sent() -> None:
    """Soon after a request that others wait for, and once a second when there is only an edge to come."""
    window, _ = one(WindowLimiter(100), 10.0)
    reads = [window.next_read(now) - now for now in (10.0, 10.4, 11.0, 12.0, 100.0)]
    assert reads == pytest.approx([0.05, 0.2, 0.5, 1.0, 1.0])
    assert window.next_read(10.0) > 10.0
    assert WindowLimiter(100).next_read(10.0) == 11.0


@pytest.mark.parametrize("rubbish", [None, 7, b"x", "", "x", "[]", "{}", [["limit", 7]]], ids=str)
def test_rubbish_is_no_window(rubbish: object) -> None:
    """Whatever stands in its place, and none of it raises."""
    assert from_text(rubbish, NAME, KEY, 0.0, 1.0) is None


@given(data=st.data())
def test_a_window_that_was_tampered_with_is_not_believed(data: st.DataObject) -> None:
    """Whatever text is put in the place of any part of it, and none of it raises."""
    stored = to_text(opened(left=3), NAME, KEY)
    at, to = sorted(data.draw(st.tuples(*[st.integers(0, len(stored))] * 2)))
    put = data.draw(st.text(max_size=5) | st.sampled_from(["1e308", "-1", "NaN", "null"]))
    changed = stored[:at] + put + stored[to:]
    assert (from_text(changed, NAME, KEY, 10.0, 1.0) is not None) == (changed == stored)


def test_a_window_that_another_key_wrote_or_for_another_route_is_not_believed() -> None:
    """Who may write where windows are stored, and knows how, but has no key of the account, can forge or move none."""
    stored = to_text(opened(left=3), NAME, KEY)
    assert from_text(stored, NAME, KEY, 10.0, 1.0) is not None
    assert from_text(stored, NAME, Secret(f"{KEY.reveal()}x"), 10.0, 1.0) is None
    assert from_text(stored, f"{NAME}/other", KEY, 10.0, 1.0) is None
    assert KEY.reveal() not in stored


def test_a_window_of_times_to_come_is_not_believed() -> None:
    """A clock that all share and that was set back makes the stored times worthless."""
    window, _ = one(opened(), 20.0)
    assert restored(window, 19.5) == window
    assert restored(window, 18.0) is None
