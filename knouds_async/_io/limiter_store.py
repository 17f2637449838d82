"""The file of a SharedLimiter: an SQLite database with a row per account and route. The arithmetic is `rate_limit`.

A transaction is short and never waited for, and a file that fails never stops a request: the windows are then kept in
memory, and the file is tried again later.
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
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from knouds_async._sansio import rate_limit
from knouds_async._sansio.rate_limit import Lease, PermitReport, RetryAt, SharedWindow
from knouds_async.config import Secret
from knouds_async.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlite3

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
