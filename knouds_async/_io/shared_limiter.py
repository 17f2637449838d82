"""SharedLimiter: one quota for several processes on one machine, kept in an SQLite file.

`SharedLimiter` is what users create, `_FileBucket` the window of one account and route as one client sees it, and
`LimiterFile` the store: a row for each account and route. The arithmetic is `rate_limit`.

One short transaction for each permit and each response, on the event loop's own thread: it takes a fraction of a
millisecond. A file that fails never stops a request: the windows are then kept in memory, and the file is tried again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from knouds_async._io.database import Database
from knouds_async._io.limiter import Bucket, Limiter, Report
from knouds_async._sansio.rate_limit import (
    LimiterStats,
    Permit,
    RetryAt,
    WindowLimiter,
    from_text,
    to_text,
)
from knouds_async.config import Secret, hide_url
from knouds_async.errors import ConfigurationError
from knouds_async.telemetry import fields

if TYPE_CHECKING:
    import sqlite3

T = TypeVar("T")
Change: TypeAlias = Callable[[WindowLimiter], T]

logger = logging.getLogger("knouds_async")

_LOCKED_RETRY: Final = 0.003  # seconds until a file that is held by another process is asked again
_OURS: Final = 0x4B_4E_4C_4D  # SQLite's application id: this is a limiter's file
_SALT: Final = 16  # bytes
_LEAP: Final = 5.0  # seconds by which the clocks may part before the machine counts as restarted
_STUCK: Final = 3.0  # seconds for which another process may hold the file before it counts as unusable
_AGAIN: Final = 10.0  # seconds until an unusable file is tried again
_STORED: Final = "SELECT state FROM windows WHERE name = ? AND abs(boot - ?) <= ?"
_creating: Final = threading.Lock()


class SharedLimiter:
    """A rate limiter that every process of this machine may use at once, through one file; or of many, by a database.

    `path`: the file; it is created with mode 0600, and the API key is never in it. Or a `Postgres`, or its URL: then
    the windows are by the database's clock, and permits are asked for some at once. `tier`, `share`, `max_wait`: as of
    `Limiter`. `clock`: seconds that all of them agree on; only needed where time is virtual, instead of the machine's.
    Each permit and each response is one transaction of a fraction of a millisecond. Works across fork and spawn,
    threads and event loops; pickled, it opens the same file again.

    A file that is not one of ours raises ConfigurationError and is left as it is. One that is removed later is
    created anew; without one that cannot be used any more the limiter continues, with a warning, and tries it again.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Database,
        tier: str | None = None,
        *,
        share: float = 1.0,
        max_wait: float | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        shared = hide_url(path)
        path = ""  # so that no frame of ours shows a password
        Limiter(tier, share=share, max_wait=max_wait)  # checks the options
        self._options: dict[str, Any] = {"tier": tier, "share": share, "max_wait": max_wait}
        self._clock = clock
        self._place = Database(shared) if isinstance(shared, Secret) else shared
        if not isinstance(self._place, Database):
            self._file = LimiterFile(Path(self._place), clock or time.monotonic, clock or time.time)

    def for_key(self, key: Secret) -> Limiter:
        """Return the limiter of a key's account."""
        if isinstance(self._place, Database):
            from knouds_async._io.database_limiter import DatabaseLimiter  # few have one

            return DatabaseLimiter(self._place, key, **self._options)
        return _AccountLimiter(self._file, key, **self._options)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle as its options: what is unpickled opens the file, or connects, for itself."""
        return partial(SharedLimiter, self._place, clock=self._clock, **self._options), ()


class _AccountLimiter(Limiter):
    """The limiter of one account in one client: its own wait queues, and the buckets of the file."""

    def __init__(self, file: LimiterFile, key: Secret, **options: Any) -> None:
        super().__init__(**options)
        self._file, self._key = file, key

    def _bucket(self, route: str) -> Bucket:
        return _FileBucket(self._file, self._key, route, self._first_guess())


class _FileBucket(Bucket):
    """A bucket whose window is in the file; `window` is what was read last."""

    def __init__(self, file: LimiterFile, key: Secret, route: str, first_guess: WindowLimiter) -> None:
        super().__init__(first_guess)
        self._file, self._key, self._route = file, key, route
        self._reports: list[Change[None]] = []  # what the file does not have yet: it was locked at that moment
        self._next_read = -math.inf  # nothing can have changed before, unless it is reported here

    def try_acquire(self, now: float) -> Permit | RetryAt:
        """Return a permit, or when to read the file again."""
        here = self._file.now()
        if here >= self._next_read:
            decision = self._update(here, lambda window: window.try_acquire(here))
            if decision is None:
                return RetryAt(now + _LOCKED_RETRY)
            if isinstance(decision, Permit):
                return Permit(now, shared=decision)
            self._next_read = min(decision.until, self.window.next_read(here))
        return RetryAt(now + (self._next_read - here))

    def report(self, now: float, permit: Permit, report: Report, *, is_refusal: bool = False) -> None:  # noqa: ARG002
        """Report what became of a permit, at the latest with the next wish for one."""
        here, by = self._file.now(), permit.shared or permit
        self._reports.append(lambda window: report(window, here, by))
        self._next_read = -math.inf
        self._update(here, lambda window: window)

    def stats(self, now: float) -> LimiterStats:  # noqa: ARG002
        """Return how the quota stands, as last read from the file."""
        return self.window.stats(self._file.now())

    def _update(self, here: float, change: Change[T]) -> T | None:
        """Report and change the window in one transaction; None while another process has the file locked."""

        def report_and_change(window: WindowLimiter) -> T:
            for report in self._reports:
                report(window)
            return change(window)

        updated = self._file.update(self._key, self._route, self.window, here, report_and_change)
        if updated is None:
            return None
        self._reports = []
        self.window, result = updated
        return result


class LimiterFile:
    """The file of one SharedLimiter in this process. Works in any number of threads, and in a forked child.

    It is created where there is none; ConfigurationError if it is not one of ours. `clock`: the time that all share.
    """

    def __init__(self, path: Path, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        try:
            import sqlite3
        except ImportError as error:
            raise ConfigurationError(
                "SharedLimiter with a file needs Python's module sqlite3, which this interpreter was built without "
                f"({error}): use another interpreter, or build this one where SQLite's headers are installed (Debian: "
                "libsqlite3-dev; Fedora: sqlite-devel)"
            ) from None
        self.now: Final = clock
        self._sqlite3, self._path, self._wall = sqlite3, path, wall
        self._owner, self._lock = os.getpid(), threading.Lock()
        self._abandoned: list[object] = []  # of a parent process: closing them here would break its locks
        self._unusable_until, self._locked_since = -math.inf, math.inf
        self._salt, self._inode = b"", _inode(path)
        self._connection: sqlite3.Connection | None = None
        try:
            self._open()
        except sqlite3.Error as error:
            self._give_up(error, self.now())

    def __del__(self) -> None:
        """Close the connection of this process; sqlite3 warns of one that is left to the garbage collector."""
        connection = getattr(self, "_connection", None)
        if connection is not None and self._owner == os.getpid():
            connection.close()

    def update(
        self, key: Secret, route: str, fallback: WindowLimiter, now: float, change: Change[T]
    ) -> tuple[WindowLimiter, T] | None:
        """Change the window of an account and route in one transaction; return it, and what `change` returned.

        None when another process has the file locked at this moment; `change` may then have been called in vain.
        `fallback` counts where the file holds nothing, or nothing that makes sense, or cannot be used.
        """
        if self._owner != os.getpid():  # forked; the lock may have been held by a thread that is not there any more
            self._abandoned.append(self._connection)
            self._owner, self._lock, self._connection = os.getpid(), threading.Lock(), None
        with self._lock:
            if now >= self._unusable_until:
                try:
                    updated = self._update(key, route, fallback, now, change)
                except (self._sqlite3.Error, OSError, ConfigurationError) as error:
                    self._locked_since = min(self._locked_since, now)
                    if "locked" in str(error) and now <= self._locked_since + _STUCK:
                        return None
                    self._give_up(error, now)
                else:
                    self._unusable_until, self._locked_since = -math.inf, math.inf
                    return updated
        return fallback, change(fallback)

    def _update(
        self, key: Secret, route: str, fallback: WindowLimiter, now: float, change: Change[T]
    ) -> tuple[WindowLimiter, T]:
        connection = self._open()
        account = hashlib.blake2b(key.reveal().encode(), key=self._salt, digest_size=16).hexdigest()  # tells nothing
        name, boot = f"{account} {route}", self._wall() - now  # times of another boot mean nothing
        try:
            connection.execute("BEGIN IMMEDIATE")
            (stored,) = connection.execute(_STORED, (name, boot, _LEAP)).fetchone() or [None]
            window = from_text(stored, now, fallback.share) or fallback.copy()
            result = change(window)
            connection.execute("INSERT OR REPLACE INTO windows VALUES (?, ?, ?)", (name, to_text(window), boot))
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        return window, result

    def _give_up(self, error: Exception, now: float) -> None:
        """Continue without the file for a while: the quota is then shared blindly, which costs some 429s at most."""
        if self._unusable_until == -math.inf:
            said = "the limiter's file %s cannot be used, continuing without it: %s"
            logger.warning(said, self._path, error, extra=fields("quota_not_shared"))
        self._unusable_until, self._locked_since = now + _AGAIN, math.inf

    def _open(self) -> sqlite3.Connection:
        """Return the connection to the file that is at the path now: it may have been removed, and created anew.

        ConfigurationError for a file of something else, or none at all.
        """
        connection = self._connection
        if connection is not None and _inode(self._path) == self._inode:
            return connection
        try:
            if connection is not None:
                connection.close()
            with _creating, contextlib.suppress(FileExistsError):
                # Never open a file that exists: closing it drops all locks that this process has on it (POSIX), and
                # lets others into an open transaction. Nor may anybody here use a new one before it is closed.
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            connection = self._sqlite3.connect(
                self._path, timeout=_STUCK, isolation_level=None, check_same_thread=False
            )
            self._salt = self._prepare(connection)
        except (OSError, self._sqlite3.Error) as error:
            self._connection = None
            if connection is not None:
                connection.close()
            code = getattr(error, "sqlite_errorcode", self._sqlite3.SQLITE_CANTOPEN) & 0xFF
            if code not in (self._sqlite3.SQLITE_CANTOPEN, self._sqlite3.SQLITE_NOTADB):
                raise  # it is, or may have been, ours: torn, locked, on a full disk
            raise ConfigurationError(f"{str(self._path)!r} cannot be used as a limiter's file: {error}") from None
        self._connection, self._inode = connection, _inode(self._path)
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> bytes:
        """Create whatever is missing, and return the salt; refuse a file with anything else in it."""
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute("PRAGMA synchronous = OFF")  # it need not survive a power cut: all is soon learned anew
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("PRAGMA application_id").fetchone()[0] != _OURS:
            if connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
                raise self._sqlite3.DatabaseError("it holds something else")
            connection.execute(f"PRAGMA application_id = {_OURS}")
        connection.execute("CREATE TABLE IF NOT EXISTS limiter (salt BLOB)")
        connection.execute("CREATE TABLE IF NOT EXISTS windows (name TEXT PRIMARY KEY, state TEXT, boot REAL)")
        (salt,) = connection.execute("SELECT salt FROM limiter").fetchone() or [None]
        if not (isinstance(salt, bytes) and len(salt) == _SALT):
            salt = secrets.token_bytes(_SALT)
            connection.execute("DELETE FROM limiter")
            connection.execute("INSERT INTO limiter VALUES (?)", (salt,))
        connection.execute("COMMIT")
        connection.execute("PRAGMA busy_timeout = 0")
        return salt


def _inode(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None
