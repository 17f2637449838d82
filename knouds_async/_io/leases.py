"""The limiter of one account whose buckets are in a file: turns are leased from it in lots. The mathematics is `lease`.

Rule of the file: one short transaction per lot of turns, on the event loop's own thread: it takes a fraction of a
millisecond, and a file that another process holds at that moment is asked again a moment later instead of waited for.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from knouds_async._io.limiter import Bucket, Limiter
from knouds_async._io.limiter_store import Store
from knouds_async._sansio import window as windows
from knouds_async._sansio.clock import ServerClock
from knouds_async._sansio.lease import Lease, Mirror, Report
from knouds_async._sansio.window import Go, Reply, Ticket, Turn, Wait
from knouds_async.config import Secret

_PATIENT: Final = 0.003  # seconds until a file that is held by another process is asked again
_MOST_PENDING: Final = 20
_QUICK: Final = 2.0  # seconds within which an answer comes that others may be waiting for


class LeasedLimiter(Limiter):
    """The limiter of one account in one client: its own lines, and the buckets of the file."""

    def join(self, store: Store, key: Secret) -> None:
        self._store, self._key = store, key

    def _bucket(self, route: str) -> Bucket:
        return _Leases(self._store, self._key, route, self._guess, self._share)


class _Leases:
    """A bucket that leases its turns from the file, in lots."""

    def __init__(self, store: Store, key: Secret, route: str, limit: float | None, share: float) -> None:
        is_unlimited = limit == math.inf
        known = None if limit is None or is_unlimited else int(limit)
        self._store, self._key, self._route = store, key, route
        self._lot: deque[Ticket] = deque()
        self._until = -math.inf
        self._is_awaited = True
        self._look = -math.inf  # nothing can have changed before, unless we are told of it
        self._reports: list[Report] = []
        self._seen = Mirror(windows.unknown(known, share=share, unlimited=is_unlimited))

    def take(self, now: float, waiting: int) -> Turn:
        """Give a turn of the lot, or lease another lot."""
        here = self._store.now()
        if self._lot and here >= self._until:
            self._report_unused(here)
        if not self._lot:
            traded = self._trade(here, waiting) if here >= self._look else Wait(self._look)
            if isinstance(traded, Wait):
                return Wait(now + (traded.until - here))
            self._lot.extend(traded.tickets)
            self._until, self._is_awaited = traded.until, traded.is_awaited
        return Go(self._lot.popleft())

    def answered(self, now: float, ticket: Ticket, reply: Reply, date: float | None, clock: ServerClock) -> None:  # noqa: ARG002
        """Report an answer: at once when others wait for it, with the next lot or the next look otherwise."""
        at = self._store.now()
        self._reports.append(Report(ending="answered", ticket=ticket, at=at, reply=reply, date=date))
        is_awaited = (self._is_awaited and at < ticket.sent + _QUICK) or self._seen.window.frame.reset is None
        if reply.refused or is_awaited or len(self._reports) >= _MOST_PENDING:
            self._trade(at, 0)

    def returned(self, now: float, ticket: Ticket) -> None:  # noqa: ARG002
        """Report a turn that was not used."""
        self._tell("returned", ticket)

    def lost(self, now: float, ticket: Ticket) -> None:  # noqa: ARG002
        """Report a request without an answer."""
        self._tell("lost", ticket)

    def stands(self, now: float) -> tuple[int | None, int | None, float | None]:  # noqa: ARG002
        """Give limit, left and the seconds to the reset, as last seen in the file."""
        window, here = self._seen.window, self._store.now()
        limit = None if window.rules.unlimited else window.rules.limit
        return limit, windows.left(window, here), windows.resets_in(window, here)

    def held(self, now: float) -> float:  # noqa: ARG002
        """Give the seconds for which the service asked that nothing be sent, as last seen in the file."""
        return windows.held(self._seen.window, self._store.now())

    def _tell(self, ending: str, ticket: Ticket) -> None:
        at = self._store.now()
        self._reports.append(Report(ending="lost" if ending == "lost" else "returned", ticket=ticket, at=at))
        self._trade(at, 0)

    def _report_unused(self, at: float) -> None:
        self._reports += [Report(ending="returned", ticket=ticket, at=at) for ticket in self._lot]
        self._lot.clear()
        self._look = at

    def _trade(self, at: float, want: int) -> Lease | Wait:
        """Hand the reports in and lease a lot; a file that is held just now keeps them for the next time."""
        traded = self._store.trade(self._key, self._route, self._seen, at, self._reports, want)
        if traded is None:
            return Wait(at + _PATIENT)
        self._reports = []
        self._seen, lot = traded
        self._look = lot.until if isinstance(lot, Wait) else at
        return lot
