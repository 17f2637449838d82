"""The rate limiter's arithmetic: a model of the server's fixed window, spent as soon as it is open (contract 6). Pure.

What may be sent is what is left of the server's window, less what is in flight. One probe crosses an edge alone, and
its response (or silence: refusals come at once) releases the rest, step by step where others use the quota too. Times
are local monotonic seconds; only `reset`, which names a window, is the server's: `Date` headers bound the difference.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_left, insort
from itertools import groupby
from typing import Final

import attrs

from knouds_async._sansio.clock import ClockBounds
from knouds_async.config import Secret
from knouds_async.types import Record

MINUTE: Final = 60.0  # seconds of a window, as documented: the first guess
SHORTEST_WINDOW: Final = 1.0  # seconds between which a window's length is learned, ...
LONGEST_WINDOW: Final = 86_400.0  # ... and beyond which no Reset or pause is believed
GUARD: Final = 0.05  # seconds after the predicted edge at which the next window counts as open
TRANSIT: Final = 2.0  # seconds within which a request reaches the server's counter; only its answer may take longer
SETTLE: Final = 0.5  # seconds after which an unanswered request holds no others back: a refusal would have come
SURE: Final = 1.25  # seconds after the predicted edge at which no probe is needed: Reset is rounded by one at most
FIRST_LIMIT: Final = 10  # requests in flight while the limit is not known: the lowest that any tier has had
FIRST_PAUSE: Final = 1.0  # seconds after a refusal that says nothing; twice as long after each that follows
ROUNDING: Final = 1.0  # seconds by which Reset may differ within a window, and by which it may be off
SKEW_STEP: Final = 0.5  # seconds to wait more when an edge is late although Reset is taken as rounded down
SHARED_FOR: Final = 300.0  # seconds for which care lasts after others were seen using the quota
RETURN_TRIP: Final = 0.5  # seconds that the fastest of a few answers takes at most on its way back
GROWTH: Final = 15  # requests more that slow start allows for each that was unanswered for longer than SETTLE
CAUTION: Final = 0.5  # part of the presumed own share that is in flight at once where others use the quota too
TICK: Final = 1e-6  # seconds by which a timer may ring too soon, by the resolution of the event loop's clock
FASTEST_READ: Final = 0.05  # seconds between which one who waits reads again ...
SLOWEST_READ: Final = 1.0  # ... what other processes have done
GRAIN: Final = 1 / 64  # seconds to which send times are rounded down, so that what is stored of a burst is short


@attrs.frozen(kw_only=True, eq=False, repr=False)
class QuotaHeaders(Record):
    """What an answer said about the quota; None for each header that it did not carry."""

    refused: bool = False  # it was a 429
    succeeded: bool = True  # it was a 2xx, so without the headers its route is not limited
    limit: int | None = None  # X-RateLimit-*
    remaining: int | None = None
    reset: float | None = None  # epoch seconds
    retry_after: float | None = None  # seconds


@attrs.frozen(eq=False, repr=False)
class Permit:
    """The right to send one request, by the time it was granted."""

    sent: float
    waited: float = 0.0  # seconds that it was waited for
    shared: Permit | None = None  # the same by the clock of all that share the window, if any do


@attrs.frozen(kw_only=True, eq=False, repr=False)
class LimiterStats(Record):
    """The estimated state of a route's quota: `limit` and `left` in requests, `resets_in` in seconds.

    `waiting`: requests in the queue, `refusals`: 429s seen. `held_for`: seconds for which a 429 allows nothing.
    `is_pause`: it asked for that (`Retry-After`), beyond the rest of a used-up window. None: not known, or not limited.
    """

    limit: int | None
    left: int | None
    resets_in: float | None
    waiting: int = 0
    refusals: int = 0
    held_for: float = 0.0
    is_pause: bool = False


@attrs.define(repr=False)
class WindowLimiter:
    """All that is known of one route's quota, and when to send. No I/O, no clock; it changes with every call."""

    limit: int | None  # a guess until a response shows it; None: not known
    share: float = 1.0  # the part of each window that is ours
    unlimited: bool = False
    length: float = MINUTE  # of a window
    skew: float = 0.0  # seconds by which edges turned out later than Reset
    shared_until: float = -math.inf  # others were seen using the quota
    paused_until: float = -math.inf  # nothing may be sent before, ...
    asked_until: float = -math.inf  # ... nor by the service's own word, beyond the rest of a used-up window
    pause: float = 0.0  # the last one that no refusal asked for
    pause_began: float = -math.inf
    reset: float | None = None  # names the window
    shown: float = -math.inf  # the first response that named it is of a request sent then
    oldest: float = -math.inf  # requests sent before were not counted in it
    start: float = -math.inf  # it has begun, by what is known
    edge: float = math.inf  # it ends, by what is known
    rolled_over: bool = False  # the edge of the window named has passed: the times are a guess at the one that is on
    left: int = attrs.field(default=attrs.Factory(lambda self: self.tokens, takes_self=True))  # lowest Remaining, ...
    left_sent: float = -math.inf  # ... which the answer to a request sent then carried
    own: int = 0  # our requests counted in it
    # slow start: how many may be in flight that were sent only just now
    cwnd: float = attrs.field(default=attrs.Factory(lambda self: math.inf if self.unlimited else 1.0, takes_self=True))
    clock: ClockBounds = attrs.field(factory=ClockBounds)
    awaited: list[float] = attrs.field(factory=list)  # sorted: when requests were sent whose answer may come, ...
    silent: list[float] = attrs.field(factory=list)  # ... and those that were answered without the headers, or never

    @property
    def tokens(self) -> int:
        """Requests to count on in a new window."""
        return FIRST_LIMIT if self.limit is None else self.limit

    @property
    def reserve(self) -> int:
        """Requests of each window that are left to others; at least one stays ours."""
        return max(0, self.tokens - max(1, round(self.share * self.tokens)))

    def try_acquire(self, now: float) -> Permit | float:
        """Return a permit if a request may be sent `now`, which then counts as sent, or when to ask again."""
        soon = now + TICK
        self.roll_over(soon)
        if self.edge == math.inf:
            self.edge = now + self.length
        at = self._earliest_send(soon)
        if at > soon:
            return at
        sent = math.floor(now / GRAIN) * GRAIN
        insort(self.awaited, sent)
        return Permit(sent)

    def on_response(self, now: float, permit: Permit, reply: QuotaHeaders, date: float | None) -> None:
        """Update from a response received `now`; `date`: its `Date` header in epoch seconds."""
        sent = permit.sent
        _remove(self.awaited, sent)
        if date is not None:
            self.clock = self.clock.update(date, min(sent, now), now)
        if not reply.refused and sent > self.pause_began:
            self.pause = 0.0
        if reply.limit is None or reply.remaining is None or reply.reset is None:
            self._update_without_headers(now, sent, reply)
        elif self.reset is None or reply.reset >= self.reset - ROUNDING or sent > self.shown + TRANSIT:
            self._update(now, sent, reply, max(0, reply.limit), reply.remaining, reply.reset)

    def release(self, permit: Permit) -> None:
        """Release a permit: the request was not sent."""
        _remove(self.awaited, permit.sent)

    def mark_unanswered(self, permit: Permit) -> None:
        """Stop awaiting the answer to a request that was sent: it may have been counted."""
        _remove(self.awaited, permit.sent)
        if not self.unlimited:
            insort(self.silent, permit.sent)

    def stats(self, now: float) -> LimiterStats:
        """Return how the quota stands, and change nothing; who waits for it is not known here."""
        if now >= self.edge + GUARD and not self.unlimited:
            ahead = self.copy()
            ahead.roll_over(now)
            return ahead.stats(now)
        limit = None if self.unlimited else self.limit
        return LimiterStats(
            limit=limit,
            left=None if limit is None else max(0, self._room()),
            resets_in=None if self.unlimited or self.reset is None else max(0.0, self.edge - now),
            held_for=max(0.0, self.paused_until - now),
            is_pause=now < self.asked_until,
        )

    def next_read(self, now: float) -> float:
        """Return when to read what other processes did, for one that waits: the later, the longer nothing was sent."""
        last = max(self.awaited[-1] if self.awaited else self.start, self.silent[-1] if self.silent else self.start)
        return now + min(SLOWEST_READ, max(FASTEST_READ, (now - last) / 2))

    def copy(self) -> WindowLimiter:
        """Return one that changes on its own."""
        return attrs.evolve(self, awaited=[*self.awaited], silent=[*self.silent])

    # When to send

    def roll_over(self, now: float) -> None:
        """Step into the window after the edge, once that has passed; nothing is known of it but the limit."""
        if now < self.edge + GUARD or self.unlimited:
            return
        self.cwnd = math.inf if now >= max(self.shared_until, self.edge + SURE) else 1.0  # alone, and surely past it
        start = self.edge + int((now - GUARD - self.edge) / self.length) * self.length
        self._begin(start)
        self.edge, self.rolled_over = start + self.length, True
        self.left, self.left_sent, self.own = self.tokens, -math.inf, 0
        for sent in (self.awaited, self.silent):
            del sent[: bisect_left(sent, self.oldest)]

    def _earliest_send(self, now: float) -> float:
        """Return the earliest time from `now` on at which it is worth asking, if nothing is received until then."""
        if now < self.paused_until:
            return self.paused_until
        if self.unlimited:
            return self._slow_start(now, math.inf)
        room = self._room()
        at = self._slow_start(now, room) if room > 0 else self._next_probe(now)
        return min(at, self.edge + GUARD)

    def _since(self, time: float) -> int:
        """Count the requests sent since then that the server may have counted without telling so far."""
        earlier = bisect_left(self.awaited, time) + bisect_left(self.silent, time)
        return len(self.awaited) + len(self.silent) - earlier

    def _room(self) -> int:
        """Return what was left in this window, less those in flight that Remaining may not include.

        Alone, our own count may tell more. While the limit is not known, only what is in flight counts.
        """
        free = self.left - self.reserve
        if self.limit is None:
            return free - _since(self.awaited, self.oldest)
        room = free - self._since(max(self.oldest, self.left_sent - TRANSIT))
        if room <= 0 < free and self.cwnd == math.inf:
            return max(room, self.tokens - self.reserve - self.own - self._since(self.oldest))
        return room

    def _next_probe(self, now: float) -> float:
        """Return when a probe may be sent though no token is surely left: when a refusal of the last sent had come.

        That is the first of a window, or one for tokens that silent requests, or alone those in flight, may have left.
        """
        awaited, silent = _since(self.awaited, self.start), _since(self.silent, self.start)
        is_first = awaited + silent == 0 and (self.rolled_over or self.reset is None)
        free = self.tokens - self.reserve - self.own - awaited
        if not is_first and (self.left == 0 or free <= 0 or (silent == 0 and now < self.shared_until)):
            return math.inf
        last = self.awaited[-1] + 2 * TRANSIT if self.awaited else now
        return max(now, last, self.silent[-1] + SETTLE if self.silent else now)

    def _slow_start(self, now: float, room: float) -> float:
        """Return when slow start allows one more: when few enough of those in flight were sent only just now.

        As many as there were answers, more for each sent longer ago; with others, a part of our share of the `room`.
        """
        is_shared = now < self.shared_until
        first = bisect_left(self.awaited, max(self.start, now - SETTLE))
        young = len(self.awaited) - first
        most = self.cwnd + GROWTH * (self._since(self.start) - young)
        if is_shared and room < math.inf:
            own = self.own + 1
            most = min(most, max(1, int(room * CAUTION * own / (own + self._others()))))
        if young < most:
            return now
        if self.rolled_over and not is_shared:  # alone as before: if the probe is not refused, the edge has passed
            probe = self.awaited[bisect_left(self.awaited, self.start)]
            return max(now, probe + SETTLE)
        return self.awaited[first] + SETTLE

    def _others(self) -> int:
        """Return how many requests counted in this window are surely not ours."""
        return max(0, self.tokens - self.left - self.own - self._since(self.oldest))

    # What responses tell

    def _update_without_headers(self, now: float, sent: float, reply: QuotaHeaders) -> None:
        """Treat a success as an unlimited route's, and a refusal as a request to pause; all else was let through."""
        if reply.refused:
            self.unlimited, self.shared_until = False, now + SHARED_FOR
            self._hold(now, sent, reply.retry_after)
            return
        if reply.succeeded:
            self.unlimited = True
        elif not self.unlimited:
            insort(self.silent, sent)
        is_alone = reply.succeeded and now >= self.shared_until
        self.cwnd = math.inf if is_alone else self.cwnd + 1

    def _hold(self, now: float, sent: float, asked: float | None, *, is_used_up: bool = False) -> None:
        """Send nothing for as long as is asked; else until the edge, or for a moment, longer while refusals repeat."""
        if asked is None:
            if sent > self.pause_began:  # not one of the same burst
                self.pause, self.pause_began = min(max(FIRST_PAUSE, 2 * self.pause), MINUTE), now
            until = self.pause_began + self.pause
        else:
            until = min(asked, LONGEST_WINDOW) + (sent - 1 if is_used_up else now)  # it is rounded up
            if not is_used_up or until > self.edge:
                self.asked_until = max(self.asked_until, until)
        self.paused_until = max(self.paused_until, until)
        self.cwnd = 1.0

    def _update(self, now: float, sent: float, reply: QuotaHeaders, limit: int, remaining: int, reset: float) -> None:
        """Update from a response that says how the window named `reset` stands."""
        self.limit, self.unlimited = limit, False
        left = min(max(0, remaining), self.limit)
        if self.clock.known:
            self._learn_length(now, reset)
        edge = reset - self.clock.lo + self.skew
        if not sent - TRANSIT <= edge <= now + LONGEST_WINDOW:  # no clock, or senseless: it may have just begun
            edge = now + (self.length if reply.retry_after is None else min(reply.retry_after, LONGEST_WINDOW))
        if self.reset is None or abs(reset - self.reset) > ROUNDING:
            self._new_window(now, sent, reset, edge)
            self.left, self.left_sent, self.own = left, sent, int(not reply.refused)
        elif not self.rolled_over:
            self.edge = min(self.edge, edge)
            self.own += not reply.refused
            if left < self.left:
                self.left, self.left_sent = left, sent
        elif sent > self.start:
            self._step_back(now, sent, edge)
            self.left, self.left_sent, self.own = left, sent, self.limit - left
        else:
            return  # a late response of the window before
        if reply.refused and (self.left > 0 or reply.retry_after is not None):  # else it ends with its window
            self._hold(now, sent, reply.retry_after, is_used_up=self.left == 0)
        if self._others():
            self.cwnd, self.shared_until = min(self.cwnd + 1, 2.0 + self.own), now + SHARED_FOR
        else:
            self.cwnd = math.inf if now >= self.shared_until else self.cwnd + 1

    def _learn_length(self, now: float, reset: float) -> None:
        """Learn the window's length: at least the time it still lasts, at most about the distance of two Resets."""
        lo, hi, before = now + self.clock.lo, now + self.clock.hi, self.reset
        if before is not None and before + ROUNDING < reset < before + self.length - ROUNDING and before <= hi:
            self.length = max(SHORTEST_WINDOW, reset - before)
        if self.length < reset - ROUNDING - hi <= LONGEST_WINDOW:
            self.length = float(min(math.ceil(reset - lo), LONGEST_WINDOW))

    def _new_window(self, now: float, sent: float, reset: float, edge: float) -> None:
        """Enter a window that no response had shown: it was on between `sent` and `now`."""
        if self.length <= MINUTE:  # it has begun by now; a longer length is but a guess
            edge = min(edge, now + self.length)
        if not (self.rolled_over and sent >= self.start):
            self._begin(min(edge - self.length, sent))
        self.reset, self.shown, self.edge, self.rolled_over = reset, sent, max(edge, sent), False

    def _begin(self, start: float) -> None:
        """Begin the window: sooner, perhaps, as Reset is rounded, and a Date not much older than its answer."""
        known = min(self.clock.hi - self.clock.lo, 1 + RETURN_TRIP)
        doubt = self.skew + ROUNDING + known if self.clock.known else self.length
        self.start, self.oldest = start, start - doubt - TRANSIT

    def _step_back(self, now: float, sent: float, edge: float) -> None:
        """Return into the window before: it counted what was sent after its edge. Either its length or Reset misled."""
        if self.start + SKEW_STEP < edge < now + self.length:
            self.length = float(min(max(SHORTEST_WINDOW, math.ceil(edge - self.shown)), LONGEST_WINDOW))
        else:
            most = max(ROUNDING + SKEW_STEP, self.length / 10)
            skew = ROUNDING if self.skew < ROUNDING else min(self.skew + SKEW_STEP, most)
            edge, self.skew = edge - self.skew + skew, skew
        self.edge, self.rolled_over = max(edge, sent + SKEW_STEP), False


def _since(sent: list[float], time: float) -> int:
    return len(sent) - bisect_left(sent, time)


def _remove(sent: list[float], time: float) -> None:
    """Remove a send time; one that was forgotten changes nothing."""
    at = bisect_left(sent, time)
    if at < len(sent) and sent[at] == time:
        del sent[at]


# For whatever stores it: several processes share what they know.


def to_text(window: WindowLimiter, name: str, key: Secret) -> str:
    """Return all of it as text, to be stored by a name; but not the share, which is each process's own."""
    plain = {field: getattr(window, field) for field in _STORED}
    plain |= {field: [[time, len([*same])] for time, same in groupby(plain[field])] for field in _SENT}
    state = json.dumps(plain | {"clock": attrs.astuple(window.clock)})
    return f"{_digest(state, name, key)} {state}"


def from_text(text: object, name: str, key: Secret, now: float, share: float) -> WindowLimiter | None:
    """Return the limiter that a text holds; None for all that nobody with the key has stored by that name.

    And for times to come. Others may write any numbers where it is stored, but not their digest.
    """
    digest, _, state = str(text).partition(" ")
    if digest != _digest(state, name, key):
        return None
    plain = json.loads(state)
    plain |= {field: [time for time, count in plain[field] for _ in range(count)] for field in _SENT}
    window = WindowLimiter(**plain | {"clock": ClockBounds(*plain["clock"])}, share=share)
    latest = max(window.shown, window.start, window.clock.at, *window.awaited, *window.silent)
    return window if latest <= now + 1 else None


def _digest(state: str, name: str, key: Secret) -> str:
    """Return what shows that a state is whole, of a version with the same fields, and written by who has the key."""
    by = hashlib.sha256(key.reveal().encode()).digest()
    return hashlib.blake2b(f"{name} {_STORED} {state}".encode(errors="replace"), key=by, digest_size=8).hexdigest()


_SENT: Final = ("awaited", "silent")
_STORED: Final = tuple(each.name for each in attrs.fields(WindowLimiter) if each.name not in ("share", "clock"))
