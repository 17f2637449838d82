"""How many requests are in flight, by send time, in a few counts however many they are.

Rule of the file: a flight is a short tuple of slots, oldest first; each counts the requests sent between two moments.
Counts since a moment are never too low: a slot that reaches over the moment counts in full.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

__all__ = ["Flight", "Slot", "join", "leave", "sent_since", "unawaited"]

WIDTH: Final = 0.25
"""Seconds of send times that share a slot."""

MOST: Final = 12
"""Slots kept; beyond it the two neighbours that are closest for their age become one."""


class Slot(NamedTuple):
    """Requests sent from `first` to `last`: how many have not been answered, and how many answers are still awaited."""

    first: float
    last: float
    count: int
    awaited: int


Flight: TypeAlias = tuple[Slot, ...]


def join(flight: Flight, now: float, since: float, floor: float) -> Flight:
    """Add a request sent `now`; no slot joins times before and after `since`, and what ended before `floor` is forgotten."""
    if flight:
        first, last, count, awaited = flight[-1]
        if now < first + WIDTH and first >= since:
            return (*flight[:-1], Slot(first, max(last, now), count + 1, awaited + 1))
        if len(flight) >= MOST or flight[0].last < floor:
            flight = _fewer(tuple(slot for slot in flight if slot.last >= floor), now)
    return (*flight, Slot(now, now, 1, 1))


def leave(flight: Flight, sent: float) -> Flight:
    """Drop a request that was sent then; one that was forgotten changes nothing."""
    return _change(flight, sent, 1)


def unawaited(flight: Flight, sent: float) -> Flight:
    """Note that no answer will come to a request sent then; it stays counted, as the server may have counted it."""
    return _change(flight, sent, 0)


def sent_since(flight: Flight, time: float) -> int:
    """Count the requests in flight that were, or could have been, sent at `time` or later."""
    total = 0
    for _, last, count, _ in reversed(flight):
        if last < time:
            break
        total += count
    return total


def _change(flight: Flight, sent: float, gone: int) -> Flight:
    at = len(flight) - 1
    while at >= 0 and flight[at][0] > sent:
        at -= 1
    if at < 0 or flight[at][1] < sent:
        return flight
    first, last, count, awaited = flight[at]
    if count <= gone:
        return flight[:at] + flight[at + 1 :]
    return (*flight[:at], Slot(first, last, count - gone, max(0, awaited - 1)), *flight[at + 1 :])


def _fewer(flight: Flight, now: float) -> Flight:
    if len(flight) < MOST:
        return flight
    at = min(range(len(flight) - 1), key=lambda i: (flight[i + 1].last - flight[i].first) / (now - flight[i].first))
    one, two = flight[at], flight[at + 1]
    both = Slot(one.first, two.last, one.count + two.count, one.awaited + two.awaited)
    return (*flight[:at], both, *flight[at + 2 :])
