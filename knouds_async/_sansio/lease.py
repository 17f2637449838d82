"""Turns at one quota for several processes: what was learned is handed in, a small lot of turns is handed out. Pure.

Rule of the file: `Mirror` is the state that all share; its times are one clock's, the same for every process. A lot is
to be used within `FRESH` seconds: the mirror counts it as sent when it is given, so that nobody else spends it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final, Literal

import attrs
import cattrs

from knouds_async._sansio import window as windows
from knouds_async._sansio.clock import ServerClock
from knouds_async._sansio.inflight import Slot
from knouds_async._sansio.window import Reply, Ticket, Wait, Window

FRESH: Final = 0.5
LARGEST: Final = 10
GLANCE: Final = 0.05  # seconds between two looks for another process's answer, at first
STROLL: Final = 1.0  # seconds between two looks for anything else, at least
PATIENCE: Final = 5.0  # seconds between two looks for an answer that is late, at most


@attrs.frozen(kw_only=True)
class Report:
    """What became of a turn: answered, given back unused, or sent and lost; `at` when."""

    ending: Literal["answered", "returned", "lost"]
    ticket: Ticket
    at: float
    reply: Reply | None = None
    date: float | None = None


@attrs.frozen
class Mirror:
    """What all processes of one account believe of one route."""

    window: Window
    clock: ServerClock = attrs.field(factory=ServerClock)


@attrs.frozen(kw_only=True)
class Lease:
    """Turns that may be used until `until`. `is_awaited`: others wait for their answers, so report those at once."""

    tickets: tuple[Ticket, ...]
    until: float
    is_awaited: bool


def trade(mirror: Mirror, now: float, reports: Iterable[Report], want: int) -> tuple[Mirror, Lease | Wait]:
    """Take in the reports, then give up to `want` turns, or say when to ask again; 0: only say when."""
    for report in reports:
        mirror = _told(mirror, report)
    window, tickets = mirror.window, list[Ticket]()
    until = math.inf
    while len(tickets) < min(want, LARGEST):
        window, turn = windows.take(window, now, want - len(tickets))
        if isinstance(turn, Wait):
            until = turn.until
            break
        tickets.append(turn.ticket)
    if want == 0:
        _, turn = windows.take(window, now)
        until = turn.until if isinstance(turn, Wait) else now
    is_awaited = window.tally.cwnd < math.inf or window.frame.rolled or window.frame.reset is None
    mirror = attrs.evolve(mirror, window=window)
    if tickets:
        fresh = min(now + FRESH, max(now, window.frame.edge))
        return mirror, Lease(tickets=tuple(tickets), until=fresh, is_awaited=is_awaited)
    return mirror, Wait(min(until, now + _pause(window, now, until, is_awaited=is_awaited)))


def _pause(window: Window, now: float, until: float, *, is_awaited: bool) -> float:
    """Say in how many seconds to look again what the others have done, if nothing is to be expected before.

    The longer the answer that is awaited has been out, or the further away the edge is, the later.
    """
    if is_awaited and window.flight:
        return min(PATIENCE, max(GLANCE, (now - window.flight[-1].last) / 2))
    return max(STROLL, min(until - now, windows.MINUTE) / 2)


def _told(mirror: Mirror, report: Report) -> Mirror:
    """Let the mirror learn of one turn's end."""
    window, clock = mirror.window, mirror.clock
    if report.date is not None:
        clock = clock.heard(report.date, report.ticket.sent, report.at)
    if report.ending == "answered" and report.reply is not None:
        window = windows.answered(window, report.at, report.ticket, report.reply, clock)
    elif report.ending == "returned":
        window = windows.returned(window, report.ticket)
    else:
        window = windows.lost(window, report.at, report.ticket)
    return Mirror(window, clock)


# As plain JSON, for whatever stores it.

_converter: Final = cattrs.Converter(detailed_validation=False)
_converter.register_unstructure_hook(Slot, list)
_converter.register_structure_hook(Slot, lambda value, _: Slot(*value))


def to_plain(mirror: Mirror) -> Any:
    """Give a mirror as JSON values."""
    return _converter.unstructure(mirror)


def from_plain(value: Any) -> Mirror | None:
    """Read a mirror; what another version wrote, or rubbish, is None: it is learned anew within a window."""
    try:
        return _converter.structure(value, Mirror)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
