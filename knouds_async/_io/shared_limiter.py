"""SharedLimiter: one quota for several processes on one machine, kept in an SQLite file.

`SharedLimiter` is what users create, `LeasedLimiter` the limiter of one account in one client, and `LimiterFile` the
file: a row for each account and route. The arithmetic is `rate_limit`.

One short transaction for each lease, on the event loop's own thread: it takes a fraction of a millisecond, and a file
that another process has locked at that moment is tried again a moment later instead of waited for. A file that fails
never stops a request: the windows are then kept in memory, and the file is tried again later.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from knouds_async._io.limiter import Bucket, Limiter
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
from knouds_async.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlite3


class SharedLimiter:
    """A rate limiter that every process of this machine may use at once, through one file.

    `path`: the file; it is created with mode 0600, and the API key is never in it. `tier`, `share`, `max_wait`: as of
    `Limiter`. `clock`: seconds that all of them agree on; only needed where time is virtual, instead of the machine's.
    Permits are leased a few at once, so that ten requests cost about one transaction; a process that crashes loses one
    lease at most. Works across fork and spawn, threads and event loops; pickled, it opens the same file again.

    A file that is not one of ours raises ConfigurationError and is left as it is. One that is removed later is
    created anew; without one that cannot be used any more the limiter continues, with a warning, and tries it again.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tier: str | None = None,
        *,
        share: float = 1.0,
        max_wait: float | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        Limiter(tier, share=share, max_wait=max_wait)  # checks
        self._tier, self._share, self._max_wait = tier, share, max_wait
        self._path, self._virtual = Path(path), clock
        self._file = LimiterFile(self._path, clock or time.monotonic, clock or time.time)

    def for_key(self, key: Secret) -> Limiter:
        """Return the limiter of a key's account."""
        limiter = LeasedLimiter(self._tier, share=self._share, max_wait=self._max_wait)
        limiter.join(self._file, key)
        return limiter

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle as its options: what is unpickled opens the file for itself."""
        return _opened, (self._path, self._tier, self._share, self._max_wait, self._virtual)


def _opened(
    path: Path, tier: str | None, share: float, max_wait: float | None, clock: Callable[[], float] | None
) -> SharedLimiter:
    return SharedLimiter(path, tier, share=share, max_wait=max_wait, clock=clock)


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


_SCHEMA: Final = 1
_LEAP: Final = 5.0  # seconds by which the clocks may part before the machine counts as restarted
_STUCK: Final = 3.0  # seconds for which another process may hold the file before it counts as unusable
_AGAIN: Final = 10.0  # seconds until an unusable file is tried again
logger = logging.getLogger("knouds_async")


class LimiterFile:
    """The file of one SharedLimiter in this process. Works in any number of threads, and in a forked child.

    It is created where there is none; ConfigurationError if it is not one of ours. `clock`: the time that all share.
    """

    def __init__(self, path: Path, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self.now: Final = clock
        self._wall, self._path = wall, path
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._abandoned: list[sqlite3.Connection] = []  # of a parent process: closing them here would break its locks
        self._in_memory: dict[str, SharedWindow] = {}
        self._unusable_until = self._locked_since = -math.inf
        self._salt = b""
        self._inode: tuple[int, int] | None = None
        self._connection: sqlite3.Connection | None = None
        self._connect()

    def __del__(self) -> None:
        """Close the connection of this process; sqlite3 warns of one that is left to the garbage collector."""
        connection = getattr(self, "_connection", None)
        if connection is not None and self._owner == os.getpid():
            connection.close()

    def report_and_lease(
        self, key: Secret, route: str, fallback: SharedWindow, now: float, reports: Sequence[PermitReport], want: int
    ) -> tuple[SharedWindow, Lease | RetryAt] | None:
        """Report and lease in one transaction; None when another process has the file locked at this moment.

        `fallback` counts where the file holds nothing for that account and route, or cannot be used.
        """
        import sqlite3

        self._reset_after_fork()
        with self._lock:
            if now >= self._unusable_until:
                try:
                    leased = self._report_and_lease(key, route, fallback, now, reports, want)
                except (sqlite3.Error, OSError, ConfigurationError) as error:
                    if _is_locked(error) and not self._is_stuck(now):
                        return None
                    self._give_up(error, now)
                else:
                    self._in_memory.clear()
                    self._unusable_until = self._locked_since = -math.inf
                    return leased
            name = self._name(key, route)
            shared, lease = rate_limit.report_and_lease(self._in_memory.get(name, fallback), now, reports, want)
            self._in_memory[name] = shared
            return shared, lease

    def _report_and_lease(
        self, key: Secret, route: str, fallback: SharedWindow, now: float, reports: Sequence[PermitReport], want: int
    ) -> tuple[SharedWindow, Lease | RetryAt]:
        connection = self._open()
        name = self._name(key, route)
        try:
            connection.execute("BEGIN IMMEDIATE")
            shared, lease = rate_limit.report_and_lease(
                self._read(connection, name, now) or fallback, now, reports, want
            )
            row = (name, json.dumps(rate_limit.to_plain(shared)), now, self._wall())
            connection.execute("INSERT OR REPLACE INTO mirror VALUES (?, ?, ?, ?)", row)
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        return shared, lease

    def _read(self, connection: sqlite3.Connection, name: str, now: float) -> SharedWindow | None:
        """Return a shared window; None for one from before the machine restarted, whose times mean nothing."""
        found = connection.execute("SELECT state, at, wall FROM mirror WHERE name = ?", (name,)).fetchone()
        if found is None or abs((self._wall() - found[2]) - (now - found[1])) > _LEAP:
            return None
        return rate_limit.from_plain(json.loads(found[0]))

    def _name(self, key: Secret, route: str) -> str:
        """Return the name of a route of a key's account; it tells nothing of the key."""
        return f"{hmac.new(self._salt, key.reveal().encode(), hashlib.sha256).hexdigest()[:32]} {route}"

    def _reset_after_fork(self) -> None:
        """Start anew in a forked child: the lock may have been held by a thread that is not there any more."""
        if self._owner != os.getpid():
            self._owner, self._lock = os.getpid(), threading.Lock()
            if self._connection is not None:
                self._abandoned.append(self._connection)
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        """Return the connection to the file that is at the path now: it may have been removed, and created anew."""
        if self._connection is not None and _inode(self._path) == self._inode:
            return self._connection
        return self._connect()

    def _connect(self) -> sqlite3.Connection:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        connection, self._salt = _connected(self._path)
        self._connection, self._inode = connection, _inode(self._path)
        return connection

    def _is_stuck(self, now: float) -> bool:
        """Return whether the file has been locked for so long that its holder will hardly continue."""
        if self._locked_since == -math.inf:
            self._locked_since = now
        return now > self._locked_since + _STUCK

    def _give_up(self, error: Exception, now: float) -> None:
        """Continue without the file for a while: the quota is then shared blindly, which costs some 429s at most."""
        if self._unusable_until == -math.inf:
            logger.warning("the limiter's file %s cannot be used, continuing without it: %s", self._path, error)
        self._unusable_until, self._locked_since = now + _AGAIN, -math.inf


def _is_locked(error: Exception) -> bool:
    return "locked" in str(error)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _connected(path: Path) -> tuple[sqlite3.Connection, bytes]:
    """Open or create the file, and return its salt. It need not survive a power cut: it is soon learned anew."""
    import sqlite3

    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(path, timeout=_STUCK, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise ConfigurationError(f"{str(path)!r} cannot be used as a limiter's file: {error}") from None
    try:
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute("PRAGMA synchronous = OFF")
        salt = _prepared(connection)
        connection.execute("PRAGMA busy_timeout = 0")
    except sqlite3.Error as error:
        connection.close()
        raise ConfigurationError(f"{str(path)!r} cannot be used as a limiter's file: {error}") from None
    return connection, salt


def _prepared(connection: sqlite3.Connection) -> bytes:
    """Create the tables in an empty file, and return the salt; refuse one with anything else in it."""
    import sqlite3

    connection.execute("BEGIN IMMEDIATE")
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and (version != _SCHEMA or tables != {"limiter", "mirror"}):
            raise sqlite3.DatabaseError("it holds something else")
        if not tables:
            connection.execute("CREATE TABLE limiter (salt BLOB NOT NULL)")
            connection.execute("INSERT INTO limiter VALUES (?)", (secrets.token_bytes(16),))
            connection.execute("CREATE TABLE mirror (name TEXT PRIMARY KEY, state TEXT, at REAL, wall REAL)")
            connection.execute(f"PRAGMA user_version = {_SCHEMA}")
        found: tuple[bytes] | None = connection.execute("SELECT salt FROM limiter").fetchone()
        if found is None:
            raise sqlite3.DatabaseError("its salt is gone")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
    return found[0]
