"""The rate limiter's mathematics: a mirror of the server's fixed window, spent as soon as it is open (contract 6).

Rule of the file: whether and when to send, given what is believed; `lessons.py` draws the beliefs from the answers.
The tokens are what is left of the server's window, less what is in flight. One canary crosses an edge alone, and its
answer (or silence: refusals come at once) releases the rest, step by step where others use the quota too.
"""

from __future__ import annotations

import math
from typing import Final, TypeAlias

import attrs

from knouds_async._sansio.clock import ServerClock
from knouds_async._sansio.inflight import join, leave, sent_since, unawaited
from knouds_async._sansio.lessons import learn
from knouds_async._sansio.quota import GUARD, MINUTE, SETTLE, SURE, TRANSIT, Frame, Reply, Rules, Tally, Window

__all__ = [
    "MINUTE",
    "Go",
    "Reply",
    "Ticket",
    "Turn",
    "Wait",
    "Window",
    "answered",
    "held",
    "left",
    "lost",
    "resets_in",
    "returned",
    "take",
    "unknown",
]

GROWTH: Final = 16
"""Times as many requests that slow start lets be out after each such silence."""

CAUTION: Final = 0.5
"""Part of the presumed own share that is put in flight at once where others use the quota too."""

TELLING: Final = 3
"""Requests at the end of a window that may be put off to learn the server's clock; each halves what is unknown."""

LAG: Final = 0.02
"""Seconds after the best moment at which a request still tells about as much."""

TICK: Final = 1e-6
"""Seconds by which a timer may ring too soon: event loops do so by the resolution of their clock."""


@attrs.frozen
class Ticket:
    """A request that was let go, by the time it was."""

    sent: float


@attrs.frozen
class Go:
    """Send now, and report back with the ticket."""

    ticket: Ticket


@attrs.frozen
class Wait:
    """Ask again at `until`, or sooner when there is news: an answer, a returned or a lost ticket."""

    until: float


Turn: TypeAlias = Go | Wait


def unknown(limit: int | None, *, share: float = 1.0, unlimited: bool = False) -> Window:
    """Begin with a guess: the tier's limit (None: not known) in windows of 60 s, of which `share` (0 to 1) is ours."""
    rules = Rules(limit=limit, share=share, unlimited=unlimited)
    return Window(rules, Frame(), Tally(rules.tokens, cwnd=math.inf if unlimited else 1.0))


def take(window: Window, now: float, waiting: int = 1) -> tuple[Window, Turn]:
    """Decide whether a request may be sent `now`; with `Go` it counts as sent. `waiting`: how many are, with it."""
    soon = now + TICK
    window = _rolled(window, soon)
    at = _ready(window, soon)
    if at <= soon:
        at = _telling(window, now, waiting)
    if at > soon:
        return window, Wait(at)
    frame = window.frame
    if frame.edge == math.inf:
        frame = attrs.evolve(frame, soonest=now, edge=now + window.rules.length)
    flight = join(window.flight, now, frame.start, frame.oldest)
    return Window(window.rules, frame, window.tally, flight), Go(Ticket(now))


def answered(window: Window, now: float, ticket: Ticket, reply: Reply, clock: ServerClock) -> Window:
    """Learn from an answer that came `now`; `clock` has already heard its `Date`."""
    is_silent = reply.remaining is None and not (reply.succeeded or reply.refused)
    drop = unawaited if is_silent else leave  # an error may have been counted, and does not say
    flight = drop(window.flight, ticket.sent)
    return learn(Window(window.rules, window.frame, window.tally, flight), now, ticket.sent, reply, clock)


def returned(window: Window, ticket: Ticket) -> Window:
    """Take a token back: the request never left."""
    return Window(window.rules, window.frame, window.tally, leave(window.flight, ticket.sent))


def lost(window: Window, now: float, ticket: Ticket) -> Window:
    """Note that a request was sent and no answer will come: it counts as spent until the server shows otherwise."""
    window = _rolled(window, now)
    return Window(window.rules, window.frame, window.tally, unawaited(window.flight, ticket.sent))


def held(window: Window, now: float) -> float:
    """Give the seconds for which a refusal has asked that nothing be sent, beyond the rest of a used-up window."""
    left = max(0.0, window.rules.hold - now)
    is_quota = window.frame.reset is not None and window.rules.hold <= window.frame.edge and left <= MINUTE
    return 0.0 if is_quota else left


def left(window: Window, now: float) -> int | None:
    """Count the requests that may still be sent in this window; None when unlimited or the limit is not known."""
    window = _rolled(window, now)
    return None if window.rules.unlimited or window.rules.limit is None else max(0, window.room)


def resets_in(window: Window, now: float) -> float | None:
    """Give the seconds until the window's edge; None when unlimited or nothing was heard."""
    frame = _rolled(window, now).frame
    return None if window.rules.unlimited or frame.reset is None else max(0.0, frame.edge - now)


def _rolled(window: Window, now: float) -> Window:
    """Step into the window after the edge, once that has passed; nothing is known of it but the limit."""
    rules, frame = window.rules, window.frame
    if now < frame.edge + GUARD or rules.unlimited:
        return window
    start = frame.edge + max(0, math.floor((now - GUARD - frame.edge) / rules.length)) * rules.length
    soonest = frame.soonest + (start - frame.edge)
    rolled = Frame(
        reset=frame.reset,
        shown=frame.shown,
        oldest=soonest - TRANSIT,
        start=start,
        soonest=soonest + rules.length,
        edge=start + rules.length,
        rolled=True,
    )
    is_alone = now >= rules.shared_until and now >= frame.edge + SURE
    return Window(rules, rolled, Tally(rules.tokens, cwnd=math.inf if is_alone else 1.0), window.flight)


def _ready(window: Window, now: float) -> float:
    """Find the earliest moment from `now` on at which a request may go if nothing is heard until then."""
    rules, frame, tally = window.rules, window.frame, window.tally
    if now < rules.hold:
        return _ready(_rolled(window, rules.hold), rules.hold)
    if rules.unlimited:
        return _started(window, now, math.inf)
    room = window.room
    if room > 0:
        is_open = tally.cwnd == math.inf and now >= rules.shared_until
        at = now if is_open else _started(window, now, room)
    elif _may_probe(window, now):
        at = max(now, window.flight[-1].last + 2 * TRANSIT) if window.flight else now
    else:
        at = math.inf
    edge = frame.edge + GUARD
    return at if at < edge else _ready(_rolled(window, edge), edge)


def _telling(window: Window, now: float, waiting: int) -> float:
    """Put the last few of a window off by up to a second, to when their `Date` tells most of the server's clock.

    Only while more are waiting than may go, so that nobody loses by it; the next window can be met the sooner.
    """
    turn, room = window.rules.turn, window.room
    if turn is None or not 0 < room <= TELLING or waiting <= room or now + 1 + TRANSIT > window.frame.soonest:
        return now
    return turn + math.ceil(now - turn - LAG)


def _may_probe(window: Window, now: float) -> bool:
    """Tell whether a request may go though no token is surely left, as soon as the last sent would have been refused.

    That is the first of a window whose tokens those in flight may have used; alone, any that they probably did not.
    """
    rules, frame, tally = window.rules, window.frame, window.tally
    out = sent_since(window.flight, frame.start)
    if not out and (frame.rolled or frame.reset is None):
        return True
    return tally.left > 0 and now >= rules.shared_until and out + tally.own < rules.tokens - rules.reserve


def _started(window: Window, now: float, room: float) -> float:
    """Say when slow start lets one more go: when few enough of those in flight have been out for a short time only.

    There may be as many of these as there were answers, and seven for each that has been out for longer: a refusal
    would have come by then. Where others use the quota, it is at most a part of our presumable share of the `room`.
    """
    rules, frame, tally = window.rules, window.frame, window.tally
    sent = [slot for slot in window.flight if slot.first >= frame.start]
    most = (tally.cwnd + (GROWTH - 1) * sum(slot.requests for slot in sent)) / GROWTH
    is_shared = now < rules.shared_until
    if is_shared and room < math.inf:
        own = tally.own + 1
        most = min(most, max(1, int(room * CAUTION * own / (own + window.foreign))))
    young = [slot for slot in sent if now < slot.last + rules.settle]
    waiting, at = sum(slot.awaited for slot in young), now
    for slot in young:
        if waiting < most:
            break
        waiting, at = waiting - slot.awaited, slot.last + rules.settle
    if frame.rolled and not is_shared:  # alone as before: if the canary is not refused, the edge has passed
        at = min(at, max(now, min(frame.start + SURE, sent[0].last + SETTLE if sent else math.inf)))
    return at
