"""How many requests are in flight, by send time, in a few counts however many they are.

Rule of the file: a flight is a short tuple of slots, oldest first; each counts the requests sent between two moments.
Counts since a moment are never too low: a slot that reaches over the moment counts in full.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple, TypeAlias

__all__ = ["Flight", "Slot", "join", "leave", "sent_since", "unawaited"]

WIDTH: Final = 0.25
"""Seconds of send times that share a slot."""

MOST: Final = 12
"""Slots kept; beyond it the two neighbours that are closest for their age become one."""


class Slot(NamedTuple):
    """Unanswered requests sent from `first` to `last`, and how many of their answers are still awaited."""

    first: float
    last: float
    requests: int
    awaited: int


Flight: TypeAlias = tuple[Slot, ...]


def join(flight: Flight, now: float, since: float, floor: float) -> Flight:
    """Add a request sent `now`; no slot reaches over `since`, and those that ended before `floor` are forgotten."""
    if flight:
        first, last, requests, awaited = flight[-1]
        if now < first:
            return _inserted(flight, now, since)
        if now <= last or (now < first + WIDTH and first >= since):  # slots never overlap: `leave` looks in one
            return (*flight[:-1], Slot(first, max(last, now), requests + 1, awaited + 1))
        flight = tuple(slot for slot in flight if slot.last >= floor)
        if len(flight) >= MOST:
            flight = _merged(flight, now, since)
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
    for _, last, requests, _ in reversed(flight):
        if last < time:
            break
        total += requests
    return total


def _inserted(flight: Flight, now: float, since: float) -> Flight:
    """Add a request that is told of late, where `leave` will look for it."""
    at = len(flight) - 1
    while at >= 0 and flight[at].first > now:
        at -= 1
    if at < 0 or (flight[at].last < now and flight[at].first < since <= now):
        flight = (*flight[: at + 1], Slot(now, now, 1, 1), *flight[at + 1 :])
        return flight if len(flight) <= MOST else _merged(flight, flight[-1].last, since)
    first, last, requests, awaited = flight[at]
    return (*flight[:at], Slot(first, max(last, now), requests + 1, awaited + 1), *flight[at + 1 :])


def _change(flight: Flight, sent: float, gone: int) -> Flight:
    at = len(flight) - 1
    while at >= 0 and flight[at][0] > sent:
        at -= 1
    if at < 0 or flight[at][1] < sent:
        return flight
    first, last, requests, awaited = flight[at]
    if requests <= gone:
        return flight[:at] + flight[at + 1 :]
    return (*flight[:at], Slot(first, last, requests - gone, max(0, awaited - 1)), *flight[at + 1 :])


def _merged(flight: Flight, now: float, since: float) -> Flight:
    """Make one of the two neighbours that are together the shortest for their age, on one side of `since`."""

    def span(at: int) -> float:
        is_across = flight[at].last < since <= flight[at + 1].last
        return math.inf if is_across else (flight[at + 1].last - flight[at].first) / max(WIDTH, now - flight[at].first)

    at = min(range(len(flight) - 1), key=span)
    (first, _, one, awaited), (_, last, two, more) = flight[at : at + 2]
    return (*flight[:at], Slot(first, last, one + two, awaited + more), *flight[at + 2 :])
