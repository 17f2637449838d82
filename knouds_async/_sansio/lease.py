"""One quota for several processes: they report what became of permits, and lease a few new ones. Pure.

`SharedWindow` is the state that all share; its times are one clock's, the same for every process. A lease is to be used
within `LEASE_TIME` seconds: its permits count as sent when they are given, so that nobody else spends them again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from knouds_async._sansio import window as windows
from knouds_async._sansio.clock import ClockBounds
from knouds_async._sansio.inflight import TimeBin
from knouds_async._sansio.window import Permit, QuotaHeaders, RetryAt, Window

if TYPE_CHECKING:
    import cattrs

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
        window, decision = windows.try_acquire(window, now, want - len(permits))
        if isinstance(decision, RetryAt):
            until = decision.until
            break
        permits.append(decision.permit)
    if want == 0:
        _, decision = windows.try_acquire(window, now)
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
    return max(IDLE_PAUSE, min(until - now, windows.MINUTE) / 2)


def _applied(shared: SharedWindow, report: PermitReport) -> SharedWindow:
    """Apply what became of one permit."""
    window, clock = shared.window, shared.clock
    if report.date is not None:
        clock = clock.update(report.date, report.permit.sent, report.at)
    if report.outcome == "answered" and report.reply is not None:
        window = windows.on_response(window, report.at, report.permit, report.reply, clock)
    elif report.outcome == "released":
        window = windows.release(window, report.permit)
    else:
        window = windows.mark_unanswered(window, report.at, report.permit)
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
