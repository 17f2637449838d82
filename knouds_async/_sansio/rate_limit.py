"""The rate limiter's arithmetic: a model of the server's fixed window, spent as soon as it is open (contract 6). Pure.

The tokens are what is left of the server's window, less what is in flight. One probe crosses an edge alone, and its
response (or silence: refusals come at once) releases the rest, step by step where others use the quota too. A response
is matched to a window by its Reset alone, and Reset meets local time only through the bounds that `Date` headers set.
Times are local monotonic seconds; only `WindowBounds.reset` is the server's.

Parts: what is known of a quota (`Window`), the in-flight counter, the updates from headers, when to send
(`try_acquire`), and the same for several processes (`SharedWindow`, `report_and_lease`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import attrs

from knouds_async._sansio.clock import ClockBounds

if TYPE_CHECKING:
    import cattrs

MINUTE: Final = 60.0
"""Seconds of a window, as documented: the first guess."""

GUARD: Final = 0.05
"""Seconds after the predicted edge at which the next window counts as open."""

TRANSIT: Final = 2.0
"""Seconds within which a request reaches the server's counter; only its answer may take longer."""

SETTLE: Final = 0.5
"""Seconds after which an unanswered request no longer holds others back, while no quick answer has taken long."""

SURE: Final = 1.25
"""Seconds after the predicted edge at which no probe is needed: no rounding of Reset is off by more than one."""

FIRST_LIMIT: Final = 10
"""Requests to send in a window of unknown limit before any response: the lowest limit any tier has had."""


@attrs.frozen(kw_only=True)
class QuotaHeaders:
    """What an answer said about the quota; None for each header that it did not carry.

    `refused`: it was a 429. `succeeded`: it was a 2xx, so without the headers its route is not limited.
    `limit`, `remaining`, `reset` (epoch seconds): X-RateLimit-*. `retry_after`: seconds.
    """

    refused: bool = False
    succeeded: bool = True
    limit: int | None = None
    remaining: int | None = None
    reset: float | None = None
    retry_after: float | None = None


@attrs.frozen(kw_only=True)
class Limits:
    """What outlives a window: the limit, the window's length, the rounding of Reset, and how much care is due.

    `reset_skew`: seconds by which edges have turned out later than Reset. `shared_until`: others were seen using the
    quota. `paused_until`: nothing may be sent before. `next_second`: a local time at which one of the server's seconds
    begins, while it is worth a probe when exactly (`ClockBounds.next_second`). `settle`: seconds after which an
    unanswered request no longer holds others back: a refusal would have come by then, only a grant's response may take
    long.
    """

    limit: int | None
    share: float = 1.0
    unlimited: bool = False
    length: float = MINUTE
    reset_skew: float = 0.0
    shared_until: float = -math.inf
    paused_until: float = -math.inf
    next_second: float | None = None
    settle: float = SETTLE

    @property
    def tokens(self) -> int:
        """Requests to count on in a new window."""
        return FIRST_LIMIT if self.limit is None else self.limit

    @property
    def reserve(self) -> int:
        """Requests of each window that are left to others; at least one stays ours."""
        return 0 if self.share == 1 else max(0, self.tokens - max(1, round(self.share * self.tokens)))


@attrs.frozen
class WindowBounds:
    """One window in time: the `reset` that names it, and the send time of the request that first `shown` it.

    `oldest`: requests sent before were not counted in it. `start`: it has surely begun.
    `soonest`: it has surely not ended. `edge`: it has ended, by what is known.
    `rolled_over`: the edge of the window named has passed; the times are a guess at the window that is on now.
    """

    reset: float | None = None
    shown: float = -math.inf
    oldest: float = -math.inf
    start: float = -math.inf
    soonest: float = -math.inf
    edge: float = math.inf
    rolled_over: bool = False


@attrs.frozen
class Counters:
    """What was counted in the window: lowest Remaining seen, who showed it (send time), own requests; slow start."""

    left: int
    left_sent: float = -math.inf
    own: int = 0
    cwnd: float = 1.0


@attrs.frozen
class Window:
    """All that one route's limiter knows; every step makes a new one."""

    limits: Limits
    bounds: WindowBounds
    counters: Counters
    in_flight: InFlight = ()

    @property
    def room(self) -> int:
        """Requests that may still be sent in this window.

        What was left, less those in flight that Remaining may not include. Alone, our own count may tell more.
        """
        bounds, counters, free = self.bounds, self.counters, self.counters.left - self.limits.reserve
        room = free - sent_since(self.in_flight, max(bounds.oldest, counters.left_sent - TRANSIT))
        if room <= 0 < free and counters.cwnd == math.inf:
            own = counters.own + sent_since(self.in_flight, bounds.oldest)
            return max(room, self.limits.tokens - self.limits.reserve - own)
        return room

    @property
    def others_usage(self) -> int:
        """Requests counted in this window that are surely not ours."""
        spent = self.limits.tokens - self.counters.left - self.counters.own
        return max(0, spent - sent_since(self.in_flight, self.bounds.oldest)) if spent > 0 else 0


BIN_WIDTH: Final = 0.25
"""Seconds of send times that share a bin."""

MOST_BINS: Final = 12
"""Bins kept; beyond it the two neighbours that are closest for their age become one."""


class TimeBin(NamedTuple):
    """Unanswered requests sent from `first` to `last`, and how many of their answers are still awaited."""

    first: float
    last: float
    requests: int
    awaited: int


InFlight: TypeAlias = tuple[TimeBin, ...]


def add_sent(in_flight: InFlight, now: float, since: float, floor: float) -> InFlight:
    """Add a request sent `now`; no bin reaches over `since`, and those that ended before `floor` are forgotten."""
    if in_flight:
        first, last, requests, awaited = in_flight[-1]
        if now < first:
            return _inserted(in_flight, now, since)
        if now <= last or (now < first + BIN_WIDTH and first >= since):  # bins never overlap: `_change` uses one
            return (*in_flight[:-1], TimeBin(first, max(last, now), requests + 1, awaited + 1))
        in_flight = tuple(each for each in in_flight if each.last >= floor)
        if len(in_flight) >= MOST_BINS:
            in_flight = _merged(in_flight, now, since)
    return (*in_flight, TimeBin(now, now, 1, 1))


def remove_sent(in_flight: InFlight, sent: float) -> InFlight:
    """Remove a request that was sent then; one that was forgotten changes nothing."""
    return _change(in_flight, sent, 1)


def drop_awaited(in_flight: InFlight, sent: float) -> InFlight:
    """Stop awaiting the answer to a request sent then; it stays counted, as the server may have counted it."""
    return _change(in_flight, sent, 0)


def sent_since(in_flight: InFlight, time: float) -> int:
    """Count the requests in flight that were, or could have been, sent at `time` or later."""
    total = 0
    for _, last, requests, _ in reversed(in_flight):
        if last < time:
            break
        total += requests
    return total


def _inserted(in_flight: InFlight, now: float, since: float) -> InFlight:
    """Add a request that is reported late, where `remove_sent` will find it."""
    at = len(in_flight) - 1
    while at >= 0 and in_flight[at].first > now:
        at -= 1
    if at < 0 or (in_flight[at].last < now and in_flight[at].first < since <= now):
        in_flight = (*in_flight[: at + 1], TimeBin(now, now, 1, 1), *in_flight[at + 1 :])
        return in_flight if len(in_flight) <= MOST_BINS else _merged(in_flight, in_flight[-1].last, since)
    first, last, requests, awaited = in_flight[at]
    return (*in_flight[:at], TimeBin(first, max(last, now), requests + 1, awaited + 1), *in_flight[at + 1 :])


def _change(in_flight: InFlight, sent: float, gone: int) -> InFlight:
    at = len(in_flight) - 1
    while at >= 0 and in_flight[at][0] > sent:
        at -= 1
    if at < 0 or in_flight[at][1] < sent:
        return in_flight
    first, last, requests, awaited = in_flight[at]
    if requests <= gone:
        return in_flight[:at] + in_flight[at + 1 :]
    return (*in_flight[:at], TimeBin(first, last, requests - gone, max(0, awaited - 1)), *in_flight[at + 1 :])


def _merged(in_flight: InFlight, now: float, since: float) -> InFlight:
    """Merge the two neighbours that are together the shortest for their age, on one side of `since`."""

    def span(at: int) -> float:
        is_across = in_flight[at].last < since <= in_flight[at + 1].last
        return (
            math.inf
            if is_across
            else (in_flight[at + 1].last - in_flight[at].first) / max(BIN_WIDTH, now - in_flight[at].first)
        )

    at = min(range(len(in_flight) - 1), key=span)
    (first, _, one, awaited), (_, last, two, more) = in_flight[at : at + 2]
    return (*in_flight[:at], TimeBin(first, last, one + two, awaited + more), *in_flight[at + 2 :])


ROUNDING: Final = 1.0
"""Seconds by which Reset may differ within a window, and by which it may be off: it is rounded."""

LONGEST_WINDOW: Final = 86_400.0
"""Seconds; a Reset further away than this is ignored."""

SHARED_FOR: Final = 300.0
"""Seconds for which care lasts after somebody else was seen using the quota."""

RETURN_TRIP: Final = 0.5
"""Seconds that the fastest of a few answers takes at most on its way back."""

QUICK: Final = 1.5
"""Seconds within which an answer comes that waits for no run: as quickly as a refusal would."""

DECAY: Final = 0.7
"""Part of the time that quick answers took which counts in the next window."""

SECOND_MOVED: Final = 0.02
"""Seconds by which a better guess at when the server's seconds begin is worth taking over."""

SKEW_STEP: Final = 0.5
"""Seconds to wait more when an edge is late although Reset is taken as rounded down."""


def update_from_headers(window: Window, now: float, sent: float, reply: QuotaHeaders, clock: ClockBounds) -> Window:
    """Update a window from a response received `now` to a request `sent` then, which is no longer in flight."""
    if reply.limit is None or reply.remaining is None or reply.reset is None:
        return _without_headers(window, now, reply)
    bounds, reset, left = window.bounds, reply.reset, max(0, reply.remaining)
    if bounds.reset is not None and reset < bounds.reset - ROUNDING and sent <= bounds.shown + TRANSIT:
        return window  # a late response of an earlier window
    limits = _learned_settle_time(_learned_limits(window, now, reply.limit, reset, clock), now - sent)
    edge = _window_edge(limits, now, sent, reply, reset, clock)
    counters = window.counters
    if bounds.reset is None or abs(reset - bounds.reset) > ROUNDING:
        bounds = _new_bounds(bounds, limits, now, sent, reset, edge, clock)
        counters = Counters(left, sent, int(not reply.refused), counters.cwnd)
        if limits.settle > SETTLE:
            limits = attrs.evolve(limits, settle=max(SETTLE, DECAY * limits.settle))
    elif not bounds.rolled_over:
        if edge < bounds.edge:
            bounds = attrs.evolve(bounds, edge=max(edge, sent))
        counters = _counted_response(counters, left, sent, reply)
    elif sent > bounds.start:
        limits, bounds, counters = _stepped_back(limits, bounds, now, sent, left, edge)
    else:
        return attrs.evolve(window, limits=limits)  # a late response of the window before
    if reply.refused:
        limits, counters = _after_refusal(limits, counters, now, sent, reply)
    return _noticed_others(Window(limits, bounds, counters, window.in_flight), now)


def _without_headers(window: Window, now: float, reply: QuotaHeaders) -> Window:
    """Treat a success as an unlimited route's, and a refusal as a request to pause."""
    limits, counters = window.limits, window.counters
    if reply.refused:
        paused_until = max(limits.paused_until, now + _asked_pause(reply, limits.length / 12))
        limits = attrs.evolve(limits, unlimited=False, paused_until=paused_until, shared_until=now + SHARED_FOR)
        return attrs.evolve(window, limits=limits, counters=attrs.evolve(counters, cwnd=1.0))
    if not reply.succeeded:
        return window
    cwnd = math.inf if now >= limits.shared_until else counters.cwnd + 1
    if not limits.unlimited:
        limits = attrs.evolve(limits, unlimited=True)
    return Window(
        limits, window.bounds, Counters(counters.left, counters.left_sent, counters.own, cwnd), window.in_flight
    )


def _learned_limits(window: Window, now: float, limit: int, reset: float, clock: ClockBounds) -> Limits:
    limits, length = window.limits, _learned_length(window, now, reset, clock)
    if limit != limits.limit or length != limits.length or limits.unlimited:
        limits = attrs.evolve(limits, limit=max(0, limit), length=length, unlimited=False)
    second, known = clock.next_second, limits.next_second
    if second != known and (second is None or known is None or abs(second - known) > SECOND_MOVED):
        limits = attrs.evolve(limits, next_second=second)
    return limits


def _learned_settle_time(limits: Limits, took: float) -> Limits:
    """Learn how long a refusal may take: twice as long as an answer that was quick."""
    return attrs.evolve(limits, settle=2 * took) if limits.settle < 2 * took and took < QUICK else limits


def _learned_length(window: Window, now: float, reset: float, clock: ClockBounds) -> float:
    """Learn the window's length: at least the time it still lasts, at most about the distance of two Resets."""
    length, before = window.limits.length, window.bounds.reset
    if not clock.known:
        return length
    if before is not None and before + ROUNDING < reset < before + length - ROUNDING and before <= now + clock.hi:
        length = reset - before
    if length < reset - ROUNDING - (now + clock.hi) <= LONGEST_WINDOW:
        length = float(math.ceil(reset - (now + clock.lo)))
    return length


def _window_edge(
    limits: Limits, now: float, sent: float, reply: QuotaHeaders, reset: float, clock: ClockBounds
) -> float:
    """Return by when the window has ended; without a clock, or with a senseless Reset, it may have just begun."""
    edge = reset - clock.lo + limits.reset_skew
    return edge if sent - TRANSIT <= edge <= now + LONGEST_WINDOW else now + _asked_pause(reply, limits.length)


def _asked_pause(reply: QuotaHeaders, otherwise: float) -> float:
    return otherwise if reply.retry_after is None else min(reply.retry_after, LONGEST_WINDOW)


def _new_bounds(
    bounds: WindowBounds, limits: Limits, now: float, sent: float, reset: float, edge: float, clock: ClockBounds
) -> WindowBounds:
    """Return the bounds of a window that no response had shown: it was on between `sent` and `now`."""
    server = min(clock.hi, clock.lo + 1 + RETURN_TRIP)  # a Date is not much older than its answer, however late that is
    soonest = max(reset - ROUNDING - server, sent) if clock.known else sent
    begun = min(soonest - limits.length, sent)
    if limits.length <= MINUTE:  # it has begun by now; a longer length is but a guess
        edge = min(edge, now + limits.length)
    oldest = max(begun - TRANSIT, bounds.oldest)
    start = bounds.start if bounds.rolled_over and sent >= bounds.start else begun
    return WindowBounds(reset=reset, shown=sent, oldest=oldest, start=start, soonest=soonest, edge=max(edge, sent))


def _counted_response(counters: Counters, left: int, sent: float, reply: QuotaHeaders) -> Counters:
    """Count an answer of the window that is on; the lowest Remaining is the newest."""
    own = counters.own + (not reply.refused)
    if left < counters.left:
        return Counters(left, sent, own, counters.cwnd)
    return Counters(counters.left, counters.left_sent, own, counters.cwnd)


def _stepped_back(
    limits: Limits, bounds: WindowBounds, now: float, sent: float, left: int, edge: float
) -> tuple[Limits, WindowBounds, Counters]:
    """Step back: what was sent after the edge was counted before it. Wait longer, from now on.

    Either windows are longer than was thought, or Reset is not rounded up.
    """
    if bounds.start + SKEW_STEP < edge < now + limits.length:
        limits = attrs.evolve(limits, length=float(math.ceil(edge - bounds.shown)))
    else:
        reset_skew = (
            ROUNDING
            if limits.reset_skew < ROUNDING
            else min(limits.reset_skew + SKEW_STEP, max(ROUNDING + SKEW_STEP, limits.length / 10))
        )
        edge, limits = edge - limits.reset_skew + reset_skew, attrs.evolve(limits, reset_skew=reset_skew)
    bounds = attrs.evolve(bounds, soonest=sent, edge=max(edge, sent + SKEW_STEP), rolled_over=False)
    return limits, bounds, Counters(left, sent, limits.tokens - left)


def _after_refusal(
    limits: Limits, counters: Counters, now: float, sent: float, reply: QuotaHeaders
) -> tuple[Limits, Counters]:
    """Send nothing more until the edge; if it was not the quota that ran out, for as long as is asked."""
    if counters.left == 0 or reply.retry_after is None:
        counters, paused_until = attrs.evolve(counters, left=0), sent + _asked_pause(reply, 0.0) - 1  # it is rounded up
    else:
        counters, paused_until = attrs.evolve(counters, cwnd=1.0), now + _asked_pause(reply, 0.0)
    return (attrs.evolve(limits, paused_until=paused_until) if paused_until > limits.paused_until else limits), counters


def _noticed_others(window: Window, now: float) -> Window:
    """Send with care for a while once others are seen using the quota, and let slow start grow; alone, end it."""
    limits, counters = window.limits, window.counters
    if window.others_usage:
        cwnd = min(counters.cwnd + 1, 2.0 + counters.own)
        if limits.shared_until < now + SHARED_FOR - 1:
            limits = attrs.evolve(limits, shared_until=now + SHARED_FOR)
    else:
        cwnd = math.inf if now >= limits.shared_until else counters.cwnd + 1
    if cwnd == counters.cwnd and limits is window.limits:
        return window
    return Window(
        limits, window.bounds, Counters(counters.left, counters.left_sent, counters.own, cwnd), window.in_flight
    )


GROWTH: Final = 16
"""Factor by which slow start lets more requests be in flight after each such silence."""

CAUTION: Final = 0.5
"""Part of the presumed own share that is put in flight at once where others use the quota too."""

CLOCK_PROBES: Final = 3
"""Requests at the end of a window that may be put off to learn the server's clock; each halves what is unknown."""

LAG: Final = 0.02
"""Seconds after the best moment at which a request still tells about as much."""

TICK: Final = 1e-6
"""Seconds by which a timer may ring too soon: event loops do so by the resolution of their clock."""


@attrs.frozen
class Permit:
    """The right to send one request, by the time it was granted."""

    sent: float


@attrs.frozen
class Granted:
    """Send now, and report back with the permit."""

    permit: Permit


@attrs.frozen
class RetryAt:
    """Ask again at `until`, or sooner after a change: a response, a released or an unanswered permit."""

    until: float


Decision: TypeAlias = Granted | RetryAt


def new_window(limit: int | None, *, share: float = 1.0, unlimited: bool = False) -> Window:
    """Create a window from a guess: the tier's limit (None: not known) in 60 s; `share` (0 to 1) of it is ours."""
    limits = Limits(limit=limit, share=share, unlimited=unlimited)
    return Window(limits, WindowBounds(), Counters(limits.tokens, cwnd=math.inf if unlimited else 1.0))


def try_acquire(window: Window, now: float, waiting: int = 1) -> tuple[Window, Decision]:
    """Decide whether a request may be sent `now`; `Granted` counts as sent. `waiting`: how many are, with it."""
    soon = now + TICK
    window = _rolled_over(window, soon)
    at = _earliest_send(window, soon)
    if at <= soon:
        at = _clock_probe(window, now, waiting)
    if at > soon:
        return window, RetryAt(at)
    bounds = window.bounds
    if bounds.edge == math.inf:
        bounds = attrs.evolve(bounds, soonest=now, edge=now + window.limits.length)
    in_flight = add_sent(window.in_flight, now, bounds.start, bounds.oldest)
    return Window(window.limits, bounds, window.counters, in_flight), Granted(Permit(now))


def on_response(window: Window, now: float, permit: Permit, reply: QuotaHeaders, clock: ClockBounds) -> Window:
    """Update the window from a response received `now`; `clock` has its `Date` already."""
    is_silent = reply.remaining is None and not (reply.succeeded or reply.refused)
    drop = drop_awaited if is_silent else remove_sent  # an error may have been counted, and does not say
    in_flight = drop(window.in_flight, permit.sent)
    return update_from_headers(
        Window(window.limits, window.bounds, window.counters, in_flight), now, permit.sent, reply, clock
    )


def release(window: Window, permit: Permit) -> Window:
    """Take a permit back: the request was not sent."""
    return Window(window.limits, window.bounds, window.counters, remove_sent(window.in_flight, permit.sent))


def mark_unanswered(window: Window, now: float, permit: Permit) -> Window:
    """Count a request that was sent and will get no answer as spent, until the server shows otherwise."""
    window = _rolled_over(window, now)
    return Window(window.limits, window.bounds, window.counters, drop_awaited(window.in_flight, permit.sent))


def pause_left(window: Window, now: float) -> float:
    """Return the seconds for which a refusal asked to send nothing, beyond the rest of a used-up window."""
    left = max(0.0, window.limits.paused_until - now)
    is_quota = window.bounds.reset is not None and window.limits.paused_until <= window.bounds.edge and left <= MINUTE
    return 0.0 if is_quota else left


def remaining(window: Window, now: float) -> int | None:
    """Return how many requests may still be sent in this window; None when unlimited or the limit is not known."""
    window = _rolled_over(window, now)
    return None if window.limits.unlimited or window.limits.limit is None else max(0, window.room)


def resets_in(window: Window, now: float) -> float | None:
    """Return the seconds until the window's edge; None when unlimited or no response has shown it."""
    bounds = _rolled_over(window, now).bounds
    return None if window.limits.unlimited or bounds.reset is None else max(0.0, bounds.edge - now)


def _rolled_over(window: Window, now: float) -> Window:
    """Step into the window after the edge, once that has passed; nothing is known of it but the limit."""
    limits, bounds = window.limits, window.bounds
    if now < bounds.edge + GUARD or limits.unlimited:
        return window
    start = bounds.edge + max(0, math.floor((now - GUARD - bounds.edge) / limits.length)) * limits.length
    soonest = bounds.soonest + (start - bounds.edge)
    following = WindowBounds(
        reset=bounds.reset,
        shown=bounds.shown,
        oldest=soonest - TRANSIT,
        start=start,
        soonest=soonest + limits.length,
        edge=start + limits.length,
        rolled_over=True,
    )
    is_alone = now >= limits.shared_until and now >= bounds.edge + SURE
    return Window(limits, following, Counters(limits.tokens, cwnd=math.inf if is_alone else 1.0), window.in_flight)


def _earliest_send(window: Window, now: float) -> float:
    """Return the earliest time from `now` on at which a request may be sent if nothing is received until then."""
    limits, bounds, counters = window.limits, window.bounds, window.counters
    if now < limits.paused_until:
        return _earliest_send(_rolled_over(window, limits.paused_until), limits.paused_until)
    if limits.unlimited:
        return _slow_start(window, now, math.inf)
    room = window.room
    if room > 0:
        is_open = counters.cwnd == math.inf and now >= limits.shared_until
        at = now if is_open else _slow_start(window, now, room)
    elif _may_probe(window, now):
        at = max(now, window.in_flight[-1].last + 2 * TRANSIT) if window.in_flight else now
    else:
        at = math.inf
    edge = bounds.edge + GUARD
    return at if at < edge else _earliest_send(_rolled_over(window, edge), edge)


def _clock_probe(window: Window, now: float, waiting: int) -> float:
    """Delay the last few of a window by up to a second, to when their `Date` narrows the server's clock most.

    Only while more are waiting than may go, so that nobody loses by it; the next window can be met the sooner.
    """
    second, room = window.limits.next_second, window.room
    if second is None or not 0 < room <= CLOCK_PROBES or waiting <= room or now + 1 + TRANSIT > window.bounds.soonest:
        return now
    return second + math.ceil(now - second - LAG)


def _may_probe(window: Window, now: float) -> bool:
    """Return whether a probe may be sent though no token is surely left, once the last sent would have been refused.

    That is the first of a window whose tokens those in flight may have used; alone, any that they probably did not.
    """
    limits, bounds, counters = window.limits, window.bounds, window.counters
    sent = sent_since(window.in_flight, bounds.start)
    if not sent and (bounds.rolled_over or bounds.reset is None):
        return True
    return counters.left > 0 and now >= limits.shared_until and sent + counters.own < limits.tokens - limits.reserve


def _slow_start(window: Window, now: float, room: float) -> float:
    """Return when slow start allows one more: when few enough of those in flight were sent only just now.

    There may be as many of these as there were answers, and more for each that was sent longer ago: a refusal
    would have come by then. Where others use the quota, it is at most a part of our presumable share of the `room`.
    """
    limits, bounds, counters = window.limits, window.bounds, window.counters
    sent = [each for each in window.in_flight if each.first >= bounds.start]
    most = (counters.cwnd + (GROWTH - 1) * sum(each.requests for each in sent)) / GROWTH
    is_shared = now < limits.shared_until
    if is_shared and room < math.inf:
        own = counters.own + 1
        most = min(most, max(1, int(room * CAUTION * own / (own + window.others_usage))))
    young = [each for each in sent if now < each.last + limits.settle]
    waiting, at = sum(each.awaited for each in young), now
    for each in young:
        if waiting < most:
            break
        waiting, at = waiting - each.awaited, each.last + limits.settle
    if bounds.rolled_over and not is_shared:  # alone as before: if the probe is not refused, the edge has passed
        at = min(at, max(now, min(bounds.start + SURE, sent[0].last + SETTLE if sent else math.inf)))
    return at


LEASE_TIME: Final = 0.5
MOST_PERMITS: Final = 10
FIRST_PAUSE: Final = 0.05  # seconds between two reads of the file for another process's response, at first
IDLE_PAUSE: Final = 1.0  # seconds between two reads for anything else, at least
LONGEST_PAUSE: Final = 5.0  # seconds between two reads for a response that is late, at most


@attrs.frozen(kw_only=True)
class PermitReport:
    """What became of a permit: answered, released unused, or sent and unanswered; `at` when."""

    outcome: Literal["answered", "released", "unanswered"]
    permit: Permit
    at: float
    reply: QuotaHeaders | None = None
    date: float | None = None


@attrs.frozen
class SharedWindow:
    """What all processes of one account know of one route."""

    window: Window
    clock: ClockBounds = attrs.field(factory=ClockBounds)


@attrs.frozen(kw_only=True)
class Lease:
    """Permits that may be used until `until`. `is_awaited`: others wait for their responses: report them at once."""

    permits: tuple[Permit, ...]
    until: float
    is_awaited: bool


def report_and_lease(
    shared: SharedWindow, now: float, reports: Iterable[PermitReport], want: int
) -> tuple[SharedWindow, Lease | RetryAt]:
    """Apply the reports, then return up to `want` permits, or when to ask again; 0: only when."""
    for report in reports:
        shared = _applied(shared, report)
    window, permits = shared.window, list[Permit]()
    until = math.inf
    while len(permits) < min(want, MOST_PERMITS):
        window, decision = try_acquire(window, now, want - len(permits))
        if isinstance(decision, RetryAt):
            until = decision.until
            break
        permits.append(decision.permit)
    if want == 0:
        _, decision = try_acquire(window, now)
        until = decision.until if isinstance(decision, RetryAt) else now
    is_awaited = window.counters.cwnd < math.inf or window.bounds.rolled_over or window.bounds.reset is None
    shared = attrs.evolve(shared, window=window)
    if permits:
        fresh = min(now + LEASE_TIME, max(now, window.bounds.edge))
        return shared, Lease(permits=tuple(permits), until=fresh, is_awaited=is_awaited)
    return shared, RetryAt(min(until, now + _pause(window, now, until, is_awaited=is_awaited)))


def _pause(window: Window, now: float, until: float, *, is_awaited: bool) -> float:
    """Return in how many seconds to read again what the others have done, if nothing is to be expected before.

    The longer the awaited response has been in flight, or the further away the edge is, the later.
    """
    if is_awaited and window.in_flight:
        return min(LONGEST_PAUSE, max(FIRST_PAUSE, (now - window.in_flight[-1].last) / 2))
    return max(IDLE_PAUSE, min(until - now, MINUTE) / 2)


def _applied(shared: SharedWindow, report: PermitReport) -> SharedWindow:
    """Apply what became of one permit."""
    window, clock = shared.window, shared.clock
    if report.date is not None:
        clock = clock.update(report.date, report.permit.sent, report.at)
    if report.outcome == "answered" and report.reply is not None:
        window = on_response(window, report.at, report.permit, report.reply, clock)
    elif report.outcome == "released":
        window = release(window, report.permit)
    else:
        window = mark_unanswered(window, report.at, report.permit)
    return SharedWindow(window, clock)


# As plain JSON, for whatever stores it.


@functools.cache
def _converter() -> cattrs.Converter:
    """Return the converter; cattrs is loaded with the first shared window that is stored."""
    import cattrs

    converter = cattrs.Converter(detailed_validation=False)
    converter.register_unstructure_hook(TimeBin, list)
    converter.register_structure_hook(TimeBin, lambda value, _: TimeBin(*value))
    return converter


def to_plain(shared: SharedWindow) -> Any:
    """Return a shared window as JSON values."""
    return _converter().unstructure(shared)


def from_plain(value: Any) -> SharedWindow | None:
    """Return the shared window that JSON values hold; None for another version's or rubbish: it is learned anew."""
    try:
        return _converter().structure(value, SharedWindow)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
