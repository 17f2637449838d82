"""The quota of an account in a database: permits come some at once, and a moment after they were asked for.

Windows are by the database's clock. Those who wait ask for what they all need in one transaction, which also carries
what was learned since the last. A database that fails never stops a request: the windows are then kept in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import attrs

from knouds_async._io.database import Database
from knouds_async._io.limiter import AGAIN, STUCK, Bucket, Outage, Report
from knouds_async._io.transactions import Transaction
from knouds_async._sansio.clock import ClockBounds
from knouds_async._sansio.rate_limit import Permit, WindowLimiter, from_text, to_text
from knouds_async.config import Secret

_MOST: Final = 20  # permits in one transaction: what a process that dies loses of a window
_FRESH: Final = 1.0  # seconds for which a permit may wait for its request
_GATHER: Final = 0.05  # seconds in which answers are gathered while others wait for what they tell

_READ: Final = """
    BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
    SELECT set_config('synchronous_commit', 'off', true), set_config('idle_in_transaction_session_timeout', '5s', true),
        set_config('lock_timeout', '3s', true), set_config('statement_timeout', '0', true);
"""
_LOCKED: Final = """
    SELECT name, state FROM knouds_window WHERE name = ANY(%s::text[]) ORDER BY name FOR UPDATE;
    SELECT extract(epoch FROM clock_timestamp())::double precision;
"""
_MADE: Final = """
    INSERT INTO knouds_window (name, state, at) SELECT name, '', 0 FROM unnest(%s::text[]) AS name ORDER BY name
        ON CONFLICT DO NOTHING;
"""
_WRITTEN: Final = """
    UPDATE knouds_window SET state = new.state, at = new.at FROM json_populate_recordset(NULL::knouds_window, %s) AS new
        WHERE knouds_window.name = new.name;
    COMMIT
"""


@attrs.frozen(kw_only=True)
class Changed:
    """What a transaction made of a window: the permits that it gave, and when to ask for more.

    `now`: by the database's clock, read between `sent` and `answered` of this process's.
    """

    window: WindowLimiter
    permits: list[Permit]
    until: float
    now: float
    sent: float
    answered: float


@attrs.define(eq=False)
class WindowChange:
    """Reports of what became of permits, and a wish for more; `reports` is the bucket's, and is read as late as may be.

    `taken`: those reports that were read; a transaction that is begun anew has them again.
    """

    name: str
    key: Secret
    guess: WindowLimiter
    reports: deque[Callable[[WindowLimiter], object]]
    wanted: int
    taken: list[Callable[[WindowLimiter], object]] = attrs.field(factory=list)

    def apply(self, window: WindowLimiter, now: float) -> tuple[list[Permit], float]:
        """Change a window; return the permits, and when to ask for more."""
        while self.reports:
            self.taken.append(self.reports.popleft())
        for report in self.taken:
            report(window)
        permits: list[Permit] = []
        while len(permits) < self.wanted:
            decision = window.try_acquire(now)
            if not isinstance(decision, Permit):
                is_used_up = window.left <= window.reserve  # so that no answer to another process changes anything
                return permits, decision if is_used_up else min(decision, window.next_read(now))
            permits.append(decision)
        return permits, -math.inf


def change_windows(transaction: Transaction, changes: Sequence[WindowChange]) -> list[Any]:
    """Carry out changes in one transaction; a window that is not there, or makes no sense, is begun with a guess."""
    transaction.prepare_tables()
    names, sent = sorted({change.name for change in changes}), time.monotonic()
    _, rows, ((now,),) = transaction.message(_READ + _LOCKED, (names,))
    if len(rows) < len(names):
        rows, ((now,),) = transaction.message(_MADE + _LOCKED, (names, names))
    answered, stored, values = time.monotonic(), dict[str, str](rows), []
    for change in changes:
        window = from_text(stored[change.name], change.name, change.key, now, change.guess.share) or change.guess.copy()
        permits, until = change.apply(window, now)
        stored[change.name] = to_text(window, change.name, change.key)
        times = {"now": now, "sent": sent, "answered": answered}
        values.append(Changed(window=window, permits=permits, until=until, **times))
    written = [{"name": name, "state": state, "at": now} for name, state in stored.items()]
    transaction.message(_WRITTEN, (json.dumps(written),))
    return values


class DatabaseClock:
    """The database's clock as this process knows it, in epoch seconds; its own wall clock until it has read one."""

    def __init__(self) -> None:
        self._bounds = ClockBounds()

    def now(self) -> float:
        """Return the time."""
        return self._bounds.server_time(time.monotonic()) or time.time()

    def update(self, changed: Changed) -> None:
        """Learn from a reading."""
        self._bounds = self._bounds.update(changed.now, changed.sent, changed.answered, resolution=0.0)


def bucket_maker(database: Database, key: Secret) -> Callable[[str, WindowLimiter], Bucket]:
    """Return what makes the buckets of a key's account, from a route and a first guess."""
    return partial(DatabaseBucket, database, DatabaseClock(), key)


class DatabaseBucket(Bucket):
    """A bucket whose window is in a database; `window` is as it was read last, `_permits` are granted and unused."""

    def __init__(
        self, database: Database, clock: DatabaseClock, key: Secret, route: str, first_guess: WindowLimiter
    ) -> None:
        super().__init__(route, first_guess, clock.now)
        account = hashlib.blake2b(key.reveal().encode(), digest_size=16, person=b"knouds limiter").hexdigest()
        self._database, self._database_clock, self._key, self._name = database, clock, key, f"{account} {route}"
        self._outage = Outage(AGAIN)
        self._reports: deque[Callable[[WindowLimiter], object]] = deque()
        self._permits: deque[Permit] = deque()
        self._asked_at: float | None = None
        self._is_reporting = False
        self._next_read = self._read_at = -math.inf

    def try_acquire(self, now: float) -> Permit | float:
        """Return a permit that was granted, or ask for one, which takes a moment."""
        here = self.here(now)
        while self._permits:
            permit = self._permits.popleft()
            if here < permit.sent + _FRESH:
                return Permit(now, shared=permit)
            self._reports.append(partial(WindowLimiter.release, permit=permit))
        if here >= self._outage.until:
            if self._asked_at is None:
                if here < self._next_read:
                    return now + (self._next_read - here)
                self._ask(max(1, self.waiting()))
            elif here > self._asked_at + STUCK:
                self._outage.begin(repr(self._database), f"no answer for {STUCK:g} s", here)
        if here >= self._outage.until:
            return now + STUCK
        decision = self.window.try_acquire(here)
        return Permit(now, shared=decision) if isinstance(decision, Permit) else now + min(decision - here, AGAIN)

    def update(self, now: float, permit: Permit, report: Report, *, is_refusal: bool) -> None:
        """Report what became of a permit: with the next transaction if requests wait, else soon; a refusal at once."""
        here, by = self.here(now), permit.shared or permit
        report(self.window, here, by)  # so that what is shown, and what is used without the database, is up to date
        self._reports.append(lambda window: report(window, here, by))
        self._next_read = min(self._next_read, self._read_at + _GATHER)
        if here < self._outage.until:
            self._reports.clear()
        elif is_refusal and self._asked_at is None:
            self._ask(0)
        elif not self.waiting():
            self._report_soon()

    def _report_soon(self) -> None:
        if not self._is_reporting:
            self._is_reporting = True
            change = WindowChange(self._name, self._key, self.window.copy(), self._reports, 0)
            self._database.ask(change_windows, change, self._reported, patience=0.0, is_lazy=True)

    def _reported(self, error: BaseException | None, changed: Any) -> None:
        self._is_reporting = False
        if error is None:
            self._read(changed)
        self._release_unused()

    def _release_unused(self) -> None:
        """Release permits that no waiter takes: those they were for were cancelled meanwhile."""
        while self._permits and not self.waiting():
            unused = self._permits.popleft()
            self.update(unused.sent, unused, lambda window, _, by: window.release(by), is_refusal=False)

    def _ask(self, wanted: int) -> None:
        self._asked_at = self._database_clock.now()
        change = WindowChange(self._name, self._key, self.window.copy(), self._reports, min(_MOST, wanted))
        self._database.ask(change_windows, change, self._answered, patience=STUCK)

    def _answered(self, error: BaseException | None, changed: Any) -> None:
        self._asked_at = None
        if error is not None:
            self._outage.begin(repr(self._database), error, self._database_clock.now())
        else:
            self._outage.until = -math.inf
            self._read(changed)
            self._permits.extend(changed.permits)
            self._release_unused()
            if self._permits:
                self._report_soon()
        self.notify()

    def _read(self, changed: Changed) -> None:
        self._database_clock.update(changed)
        self.window, self._next_read, self._read_at = changed.window, changed.until, changed.now
        for report in tuple(self._reports):
            report(self.window)
