"""The limiter of one account whose buckets are in a file: it leases a few permits at once. See `rate_limit`.

One short transaction for each lease, on the event loop's own thread: it takes a fraction of a
millisecond, and a file that another process holds at that moment is asked again a moment later instead of waited for.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from knouds_async._io.limiter import Bucket, Limiter
from knouds_async._io.limiter_store import LimiterFile
from knouds_async._sansio import rate_limit
from knouds_async._sansio.clock import ClockBounds
from knouds_async._sansio.rate_limit import (
    Decision,
    Granted,
    Lease,
    Permit,
    PermitReport,
    QuotaHeaders,
    RetryAt,
    SharedWindow,
)
from knouds_async.config import Secret

_LOCKED_RETRY: Final = 0.003  # seconds until a file that is held by another process is asked again
_MOST_PENDING: Final = 20
_QUICK: Final = 2.0  # seconds within which an answer comes that others may be waiting for


class LeasedLimiter(Limiter):
    """The limiter of one account in one client: its own wait queues, and the buckets of the file."""

    def join(self, file: LimiterFile, key: Secret) -> None:
        self._file, self._key = file, key

    def _bucket(self, route: str) -> Bucket:
        return LeasedBucket(self._file, self._key, route, self._guess, self._share)


class LeasedBucket:
    """A bucket that leases its permits from the file, a few at once."""

    def __init__(self, file: LimiterFile, key: Secret, route: str, limit: float | None, share: float) -> None:
        is_unlimited = limit == math.inf
        known = None if limit is None or is_unlimited else int(limit)
        self._file, self._key, self._route = file, key, route
        self._permits: deque[Permit] = deque()
        self._until = -math.inf
        self._is_awaited = True
        self._next_lease_at = -math.inf  # nothing can have changed before, unless it is reported here
        self._reports: list[PermitReport] = []
        self._last_read = SharedWindow(rate_limit.new_window(known, share=share, unlimited=is_unlimited))

    def try_acquire(self, now: float, waiting: int) -> Decision:
        """Return a permit of the lease, or lease more."""
        here = self._file.now()
        if self._permits and here >= self._until:
            self._report_unused(here)
        if not self._permits:
            leased = (
                self._report_and_lease(here, waiting) if here >= self._next_lease_at else RetryAt(self._next_lease_at)
            )
            if isinstance(leased, RetryAt):
                return RetryAt(now + (leased.until - here))
            self._permits.extend(leased.permits)
            self._until, self._is_awaited = leased.until, leased.is_awaited
        return Granted(self._permits.popleft())

    def on_response(
        self,
        now: float,  # noqa: ARG002
        permit: Permit,
        reply: QuotaHeaders,
        date: float | None,
        clock: ClockBounds,  # noqa: ARG002
    ) -> None:
        """Report a response: at once when others wait for it, with the next lease otherwise."""
        at = self._file.now()
        self._reports.append(PermitReport(outcome="answered", permit=permit, at=at, reply=reply, date=date))
        is_awaited = (self._is_awaited and at < permit.sent + _QUICK) or self._last_read.window.bounds.reset is None
        if reply.refused or is_awaited or len(self._reports) >= _MOST_PENDING:
            self._report_and_lease(at, 0)

    def release(self, now: float, permit: Permit) -> None:  # noqa: ARG002
        """Report a permit that was not used."""
        self._report("released", permit)

    def mark_unanswered(self, now: float, permit: Permit) -> None:  # noqa: ARG002
        """Report a request without a response."""
        self._report("unanswered", permit)

    def state(self, now: float) -> tuple[int | None, int | None, float | None]:  # noqa: ARG002
        """Return limit, remaining and the seconds to the reset, as last read from the file."""
        window, here = self._last_read.window, self._file.now()
        limit = None if window.limits.unlimited else window.limits.limit
        return limit, rate_limit.remaining(window, here), rate_limit.resets_in(window, here)

    def pause_left(self, now: float) -> float:  # noqa: ARG002
        """Return the seconds for which the service asked to send nothing, as last read from the file."""
        return rate_limit.pause_left(self._last_read.window, self._file.now())

    def _report(self, outcome: str, permit: Permit) -> None:
        at = self._file.now()
        self._reports.append(
            PermitReport(outcome="unanswered" if outcome == "unanswered" else "released", permit=permit, at=at)
        )
        self._report_and_lease(at, 0)

    def _report_unused(self, at: float) -> None:
        self._reports += [PermitReport(outcome="released", permit=permit, at=at) for permit in self._permits]
        self._permits.clear()
        self._next_lease_at = at

    def _report_and_lease(self, at: float, want: int) -> Lease | RetryAt:
        """Report and lease in one transaction; while the file is locked the reports are kept for the next time."""
        leased = self._file.report_and_lease(self._key, self._route, self._last_read, at, self._reports, want)
        if leased is None:
            return RetryAt(at + _LOCKED_RETRY)
        self._reports = []
        self._last_read, lease = leased
        self._next_lease_at = lease.until if isinstance(lease, RetryAt) else at
        return lease
