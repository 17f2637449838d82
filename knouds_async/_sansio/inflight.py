"""In-flight counter: how many requests are in flight, by send time, in a few bins however many they are.

The counter is a short tuple of time bins, oldest first; each counts the requests sent between two moments.
Counts since a moment are never too low: a bin that reaches over the moment counts in full.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple, TypeAlias

__all__ = ["InFlight", "TimeBin", "add_sent", "drop_awaited", "remove_sent", "sent_since"]

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
    """Add a request that is reported late, where `remove_sent` will look for it."""
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
