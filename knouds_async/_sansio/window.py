"""The rate limiter's arithmetic: a model of the server's fixed window, spent as soon as it is open (contract 6).

Whether and when to send, given what is known; `lessons.py` updates that from the headers of responses. The tokens are
what is left of the server's window, less what is in flight. One probe crosses an edge alone, and its response (or
silence: refusals come at once) releases the rest, step by step where others use the quota too.
"""

from __future__ import annotations

import math
from typing import Final, TypeAlias

import attrs

from knouds_async._sansio.clock import ClockBounds
from knouds_async._sansio.inflight import add_sent, drop_awaited, remove_sent, sent_since
from knouds_async._sansio.lessons import update_from_headers
from knouds_async._sansio.quota import (
    GUARD,
    MINUTE,
    SETTLE,
    SURE,
    TRANSIT,
    Counters,
    Limits,
    QuotaHeaders,
    Window,
    WindowBounds,
)

__all__ = [
    "MINUTE",
    "Decision",
    "Granted",
    "Permit",
    "QuotaHeaders",
    "RetryAt",
    "Window",
    "mark_unanswered",
    "new_window",
    "on_response",
    "pause_left",
    "release",
    "remaining",
    "resets_in",
    "try_acquire",
]

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
