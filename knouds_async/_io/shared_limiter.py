"""SharedLimiter: one quota for several processes on one machine, in an SQLite file: a row for each account and route.

One short transaction for each permit and each response, on the event loop's own thread: it takes a fraction of a
millisecond. A file that fails never stops a request: the windows are then kept in memory, and the file is tried again.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from knouds_async._io.database import Database
from knouds_async._io.limiter import AGAIN, STUCK, Bucket, Limiter, Outage, Report
from knouds_async._sansio.rate_limit import Permit, WindowLimiter, from_text, to_text
from knouds_async.config import Secret, hide_url
from knouds_async.errors import ConfigurationError, safe_repr

if TYPE_CHECKING:
    import sqlite3

Change: TypeAlias = Callable[[WindowLimiter], Any]
Changed: TypeAlias = tuple[WindowLimiter, list[Any]]  # the window, and what each change returned

_LOCKED_RETRY: Final = 0.003  # seconds until a file that is held by another process is asked again
_OURS: Final = 0x4B_4E_4C_4D  # SQLite's application id: this is a limiter's file
_LEAP: Final = 5.0  # seconds by which the clocks may part before the machine counts as restarted
_STORED: Final = "SELECT state FROM quotas WHERE name = ? AND abs(boot - ?) <= ?"
_creating: Final = threading.Lock()


class SharedLimiter:
    """A rate limiter that every process of this machine may use at once, through one file; or of many, by a database.

    `path`: the file; it is created with mode 0600, and the API key is never in it. Or a `Postgres`, or its URL: then
    the windows are by the database's clock, and permits are asked for some at once. `tier`, `share`, `max_wait`: as of
    `Limiter`. `clock`: seconds that all of them agree on; only needed where time is virtual, instead of the machine's.
    Works across fork and spawn, threads and event loops; pickled, it opens the same file again.

    A file of something else raises ConfigurationError and is left as it is. One that is removed later is created anew;
    without one that cannot be used any more the limiter continues, with a warning, and tries it again.
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
        _check_place(shared)
        Limiter(tier, share=share, max_wait=max_wait)  # checks the options
        self._options: dict[str, Any] = {"tier": tier, "share": share, "max_wait": max_wait}
        self._clock = clock
        self._place = Database(shared) if isinstance(shared, Secret) else shared
        if not isinstance(self._place, Database):
            self._file = LimiterFile(Path(self._place), clock or time.monotonic, clock or time.time)

    def for_key(self, key: Secret) -> Limiter:
        """Return the limiter of a key's account."""
        if isinstance(self._place, Database):
            from knouds_async._io.database_limiter import bucket_maker  # few have one

            return _AccountLimiter(bucket_maker(self._place, key), **self._options)
        return _AccountLimiter(partial(_FileBucket, self._file, key), **self._options)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle as its options: what is unpickled opens the file, or connects, for itself."""
        return partial(SharedLimiter, self._place, clock=self._clock, **self._options), ()


def _check_place(place: object) -> None:
    if not isinstance(place, (str, os.PathLike, Secret, Database)):
        raise ConfigurationError(f"SharedLimiter({safe_repr(place)}): must be a path, a Postgres or the URL of one")


class _AccountLimiter(Limiter):
    """The limiter of one account in one client: its own wait queues, and windows that are stored elsewhere."""

    def __init__(self, make_bucket: Callable[[str, WindowLimiter], Bucket], **options: Any) -> None:
        super().__init__(**options)
        self._make_bucket = make_bucket


class _FileBucket(Bucket):
    """A bucket whose window is in the file; `window` is what was read last."""

    def __init__(self, file: LimiterFile, key: Secret, route: str, first_guess: WindowLimiter) -> None:
        super().__init__(route, first_guess, file.now)
        self._file, self._key = file, key
        self._reports: list[Change] = []  # what the file does not have yet: it was locked at that moment
        self._next_read = -math.inf  # nothing can have changed before, unless it is reported here

    def try_acquire(self, now: float) -> Permit | float:
        """Return a permit, or when to read the file again."""
        here = self.here(now)
        if here >= self._next_read:
            results = self._update(here, lambda window: window.try_acquire(here))
            if results is None:
                return now + _LOCKED_RETRY
            if isinstance(decision := results[-1], Permit):
                return Permit(now, shared=decision)
            self._next_read = min(decision, self.window.next_read(here))
        return now + (self._next_read - here)

    def update(self, now: float, permit: Permit, report: Report, *, is_refusal: bool) -> None:  # noqa: ARG002
        """Report what became of a permit, at the latest with the next wish for one."""
        here, by = self.here(now), permit.shared or permit
        self._reports.append(lambda window: report(window, here, by))
        self._next_read = -math.inf
        self._update(here)

    def _update(self, here: float, *changes: Change) -> list[Any] | None:
        """Report and change the window in one transaction; None while another process has the file locked."""
        reports, self._reports = self._reports, []  # one that raises is not made again
        updated = self._file.update(self._key, self.route, self.window, here, [*reports, *changes])
        if updated is None:
            self._reports = reports
            return None
        self.window, results = updated
        return results


class LimiterFile:
    """The file of a SharedLimiter in this process, for any number of threads. `clock`: the time that all share."""

    def __init__(self, path: Path, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        try:
            import sqlite3
        except ImportError as error:
            raise ConfigurationError(
                f"SharedLimiter needs Python's module sqlite3, which this interpreter was built without ({error}): use "
                "another one, or build it where SQLite's headers are (Debian: libsqlite3-dev; Fedora: sqlite-devel)"
            ) from None
        self.now, self._sqlite3, self._path, self._wall = clock, sqlite3, path, wall
        self._owner, self._lock = os.getpid(), threading.Lock()
        self._abandoned: list[object] = []  # of a parent process: closing them here would break its locks
        self._outage, self._locked_since = Outage(AGAIN), math.inf
        self._salt, self._inode = b"", _inode(path)
        self._connection: sqlite3.Connection | None = None
        try:
            self._open()
        except sqlite3.Error as error:
            self._outage.begin(path, error, self.now())

    def __del__(self) -> None:
        """Close the connection of this process; sqlite3 warns of one that is left to the garbage collector."""
        connection = getattr(self, "_connection", None)
        if connection is not None and self._owner == os.getpid():
            connection.close()

    def update(
        self, key: Secret, route: str, guess: WindowLimiter, now: float, changes: Sequence[Change]
    ) -> Changed | None:
        """Change the window of an account and route in one transaction, and return it.

        None when the file is locked at this moment. `guess` counts where it holds none that makes sense, or fails.
        """
        if self._owner != os.getpid():  # forked; the lock may have been held by a thread that is not there any more
            self._abandoned.append(self._connection)
            self._owner, self._lock, self._connection = os.getpid(), threading.Lock(), None
        updated: Changed | None = None
        with self._lock:
            if now >= self._outage.until:
                try:
                    updated = self._update(key, route, guess, now, changes)
                except (self._sqlite3.Error, OSError, ConfigurationError) as error:
                    self._locked_since = min(self._locked_since, now)
                    is_locked = getattr(error, "sqlite_errorcode", 0) & 0xFF == self._sqlite3.SQLITE_BUSY
                    if is_locked and now <= self._locked_since + STUCK:
                        return None
                    self._outage.begin(self._path, error, now)
                else:
                    self._outage.until = -math.inf
                self._locked_since = math.inf
        return updated or (guess, [change(guess) for change in changes])

    def _update(self, key: Secret, route: str, guess: WindowLimiter, now: float, changes: Sequence[Change]) -> Changed:
        connection = self._open()
        account = hashlib.blake2b(key.reveal().encode(), key=self._salt, digest_size=16).hexdigest()  # tells nothing
        name, boot = f"{account} {route}", self._wall() - now  # times of another boot mean nothing
        try:
            connection.execute("BEGIN IMMEDIATE")
            (stored,) = connection.execute(_STORED, (name, boot, _LEAP)).fetchone() or [None]
            window = from_text(stored, name, key, now, guess.share) or guess.copy()
            results = [change(window) for change in changes]
            connection.execute(
                "INSERT OR REPLACE INTO quotas VALUES (?, ?, ?)", (name, to_text(window, name, key), boot)
            )
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        return window, results

    def _open(self) -> sqlite3.Connection:
        """Return the connection to the file that is at the path now; ConfigurationError if it is something else's."""
        if self._connection is not None:
            if _inode(self._path) == self._inode:
                return self._connection
            self._connection.close()
        connection = self._connection = None
        try:
            with _creating, contextlib.suppress(FileExistsError):
                # Never open a file that exists: closing it drops all locks that this process has on it (POSIX), and
                # lets others into an open transaction. Nor may anybody here use a new one before it is closed.
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            if not self._path.is_file():  # to open a pipe would wait for its other end
                raise OSError("it is no file")
            connection = self._sqlite3.connect(self._path, timeout=STUCK, isolation_level=None, check_same_thread=False)
            self._salt = self._prepare(connection)
        except (OSError, self._sqlite3.Error) as error:
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
            connection.execute(f"PRAGMA user_version = {int.from_bytes(os.urandom(4), 'big', signed=True)}")
        connection.execute("CREATE TABLE IF NOT EXISTS quotas (name TEXT PRIMARY KEY, state TEXT, boot REAL)")
        connection.execute("COMMIT")
        connection.execute("PRAGMA busy_timeout = 0")
        return str(connection.execute("PRAGMA user_version").fetchone()[0]).encode()


def _inode(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None


if hasattr(os, "register_at_fork"):  # else a child could wait for a thread of its parent's for ever
    os.register_at_fork(before=_creating.acquire, after_in_parent=_creating.release, after_in_child=_creating.release)
