"""What an answer teaches about the quota: limit, window, its edge and length, other users, the rounding of Reset.

Rule of the file: an answer is matched to a window by its Reset alone, and Reset meets local time only through the
bounds that `Date` headers set (contract 6).
"""

from __future__ import annotations

import math
from typing import Final

import attrs

from knouds_async._sansio.clock import ServerClock
from knouds_async._sansio.quota import MINUTE, SETTLE, TRANSIT, Frame, Reply, Rules, Tally, Window

__all__ = ["learn"]

JITTER: Final = 1.0
"""Seconds by which Reset may differ within a window, and by which it may be off: it is rounded."""

LONGEST: Final = 86_400.0
"""Seconds; a Reset further away than this is not believed."""

REMEMBERED: Final = 300.0
"""Seconds for which care lasts after somebody else was seen using the quota."""

BACK: Final = 0.5
"""Seconds that the fastest of a few answers takes at most on its way back."""

QUICK: Final = 1.5
"""Seconds within which an answer comes that waits for no run: as quickly as a refusal would."""

FORGET: Final = 0.7
"""Part of the time that quick answers took which counts in the next window."""

MOVED: Final = 0.02
"""Seconds by which a better guess at when the server's seconds begin is worth taking over."""

STEP: Final = 0.5
"""Seconds to wait more when an edge is late although Reset is taken as rounded down."""


def learn(window: Window, now: float, sent: float, reply: Reply, clock: ServerClock) -> Window:
    """Correct what is believed by an answer come `now` to a request `sent` then, which is no longer in flight."""
    if reply.limit is None or reply.remaining is None or reply.reset is None:
        return _without_headers(window, now, reply)
    frame, reset, left = window.frame, reply.reset, max(0, reply.remaining)
    if frame.reset is not None and reset < frame.reset - JITTER and sent <= frame.shown + TRANSIT:
        return window  # late news of a window that is over
    rules = _settled(_rules(window, now, reply.limit, reset, clock), now - sent)
    edge = _edge(rules, now, sent, reply, reset, clock)
    tally = window.tally
    if frame.reset is None or abs(reset - frame.reset) > JITTER:
        frame = _opened(frame, rules, now, sent, reset, edge, clock)
        tally = Tally(left, sent, int(not reply.refused), tally.cwnd)
        if rules.settle > SETTLE:
            rules = attrs.evolve(rules, settle=max(SETTLE, FORGET * rules.settle))
    elif not frame.rolled:
        if edge < frame.edge:
            frame = attrs.evolve(frame, edge=max(edge, sent))
        tally = _counted(tally, left, sent, reply)
    elif sent > frame.start:
        rules, frame, tally = _early(rules, frame, now, sent, left, edge)
    else:
        return attrs.evolve(window, rules=rules)  # late news of the window just over
    if reply.refused:
        rules, tally = _refused(rules, tally, now, sent, reply)
    return _alone_or_not(Window(rules, frame, tally, window.flight), now)


def _without_headers(window: Window, now: float, reply: Reply) -> Window:
    """Take a success for an unlimited route's, and a refusal for a request to pause."""
    rules, tally = window.rules, window.tally
    if reply.refused:
        hold = max(rules.hold, now + _pause(reply, rules.length / 12))
        rules = attrs.evolve(rules, unlimited=False, hold=hold, shared_until=now + REMEMBERED)
        return attrs.evolve(window, rules=rules, tally=attrs.evolve(tally, cwnd=1.0))
    if not reply.succeeded:
        return window
    cwnd = math.inf if now >= rules.shared_until else tally.cwnd + 1
    if not rules.unlimited:
        rules = attrs.evolve(rules, unlimited=True)
    return Window(rules, window.frame, Tally(tally.left, tally.left_sent, tally.own, cwnd), window.flight)


def _rules(window: Window, now: float, limit: int, reset: float, clock: ServerClock) -> Rules:
    rules, length = window.rules, _length(window, now, reset, clock)
    if limit != rules.limit or length != rules.length or rules.unlimited:
        rules = attrs.evolve(rules, limit=max(0, limit), length=length, unlimited=False)
    turn = clock.turn
    if turn != rules.turn and (turn is None or rules.turn is None or abs(turn - rules.turn) > MOVED):
        rules = attrs.evolve(rules, turn=turn)
    return rules


def _settled(rules: Rules, took: float) -> Rules:
    """Learn how long a refusal may take: twice as long as an answer that was quick."""
    return attrs.evolve(rules, settle=2 * took) if rules.settle < 2 * took and took < QUICK else rules


def _length(window: Window, now: float, reset: float, clock: ServerClock) -> float:
    """Learn the window's length: at least the time it still lasts, at most about the distance of two Resets."""
    length, before = window.rules.length, window.frame.reset
    if not clock.known:
        return length
    if before is not None and before + JITTER < reset < before + length - JITTER and before <= now + clock.hi:
        length = reset - before
    if length < reset - JITTER - (now + clock.hi) <= LONGEST:
        length = float(math.ceil(reset - (now + clock.lo)))
    return length


def _edge(rules: Rules, now: float, sent: float, reply: Reply, reset: float, clock: ServerClock) -> float:
    """Say by when the window has ended; without a clock, or with a senseless Reset, it may have just begun."""
    edge = reset - clock.lo + rules.slack
    return edge if sent - TRANSIT <= edge <= now + LONGEST else now + _pause(reply, rules.length)


def _pause(reply: Reply, otherwise: float) -> float:
    return otherwise if reply.retry_after is None else min(reply.retry_after, LONGEST)


def _opened(
    frame: Frame, rules: Rules, now: float, sent: float, reset: float, edge: float, clock: ServerClock
) -> Frame:
    """Enter a window that had not been heard of: it was on between `sent` and `now`."""
    server = min(clock.hi, clock.lo + 1 + BACK)  # a Date is not much older than its answer, however late that is
    soonest = max(reset - JITTER - server, sent) if clock.known else sent
    begun = min(soonest - rules.length, sent)
    if rules.length <= MINUTE:  # it has begun by now; a longer length is but a guess
        edge = min(edge, now + rules.length)
    oldest = max(begun - TRANSIT, frame.oldest)
    start = frame.start if frame.rolled and sent >= frame.start else begun
    return Frame(reset=reset, shown=sent, oldest=oldest, start=start, soonest=soonest, edge=max(edge, sent))


def _counted(tally: Tally, left: int, sent: float, reply: Reply) -> Tally:
    """Count an answer of the window that is on; the lowest Remaining is the newest."""
    own = tally.own + (not reply.refused)
    if left < tally.left:
        return Tally(left, sent, own, tally.cwnd)
    return Tally(tally.left, tally.left_sent, own, tally.cwnd)


def _early(rules: Rules, frame: Frame, now: float, sent: float, left: int, edge: float) -> tuple[Rules, Frame, Tally]:
    """Step back: what was sent after the edge was counted before it. Wait longer, from now on.

    Either windows are longer than was thought, or Reset is not rounded up.
    """
    if frame.start + STEP < edge < now + rules.length:
        rules = attrs.evolve(rules, length=float(math.ceil(edge - frame.shown)))
    else:
        slack = JITTER if rules.slack < JITTER else min(rules.slack + STEP, max(JITTER + STEP, rules.length / 10))
        edge, rules = edge - rules.slack + slack, attrs.evolve(rules, slack=slack)
    frame = attrs.evolve(frame, soonest=sent, edge=max(edge, sent + STEP), rolled=False)
    return rules, frame, Tally(left, sent, rules.tokens - left)


def _refused(rules: Rules, tally: Tally, now: float, sent: float, reply: Reply) -> tuple[Rules, Tally]:
    """Send nothing more until the edge; if it was not the quota that ran out, for as long as is asked."""
    if tally.left == 0 or reply.retry_after is None:
        tally, hold = attrs.evolve(tally, left=0), sent + _pause(reply, 0.0) - 1  # it is rounded up
    else:
        tally, hold = attrs.evolve(tally, cwnd=1.0), now + _pause(reply, 0.0)
    return (attrs.evolve(rules, hold=hold) if hold > rules.hold else rules), tally


def _alone_or_not(window: Window, now: float) -> Window:
    """Take care for a while once somebody else is seen using the quota, and let slow start grow; alone, it is over."""
    rules, tally = window.rules, window.tally
    if window.foreign:
        cwnd = min(tally.cwnd + 1, 2.0 + tally.own)
        if rules.shared_until < now + REMEMBERED - 1:
            rules = attrs.evolve(rules, shared_until=now + REMEMBERED)
    else:
        cwnd = math.inf if now >= rules.shared_until else tally.cwnd + 1
    if cwnd == tally.cwnd and rules is window.rules:
        return window
    return Window(rules, window.frame, Tally(tally.left, tally.left_sent, tally.own, cwnd), window.flight)
