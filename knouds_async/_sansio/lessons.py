"""Updates of a window from the headers of a response: limit, window, its edge and length, others' usage, reset skew.

A response is matched to a window by its Reset alone, and Reset meets local time only through the
bounds that `Date` headers set (contract 6).
"""

from __future__ import annotations

import math
from typing import Final

import attrs

from knouds_async._sansio.clock import ClockBounds
from knouds_async._sansio.quota import MINUTE, SETTLE, TRANSIT, Counters, Limits, QuotaHeaders, Window, WindowBounds

__all__ = ["update_from_headers"]

ROUNDING: Final = 1.0
"""Seconds by which Reset may differ within a window, and by which it may be off: it is rounded."""

LONGEST_WINDOW: Final = 86_400.0
"""Seconds; a Reset further away than this is not believed."""

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
