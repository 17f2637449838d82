"""The file of a SharedLimiter: an SQLite database with a row per account and route. The mathematics is `lease`.

Rule of the file: a transaction is short and never waited for, and trouble with the file never stops a request: what is
believed is then kept in memory, and the file is tried again later.
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

from knouds_async._sansio import lease as leases
from knouds_async._sansio.lease import Lease, Mirror, Report
from knouds_async._sansio.window import Wait
from knouds_async.config import Secret
from knouds_async.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlite3

_SCHEMA: Final = 1
_LEAP: Final = 5.0  # seconds by which the clocks may part before the machine counts as restarted
_STUCK: Final = 3.0  # seconds for which another process may hold the file before it counts as unusable
_AGAIN: Final = 10.0  # seconds until an unusable file is tried again
logger = logging.getLogger("knouds_async")


class Store:
    """One file, as this process sees it. Works in any number of threads, and in a forked child."""

    def __init__(self, path: Path, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        """Open the file, or make it; ConfigurationError if it is not one of ours. `clock`: the time that all share."""
        self.now: Final = clock
        self._wall, self._path = wall, path
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._abandoned: list[sqlite3.Connection] = []  # of a parent process: closing them here would break its locks
        self._in_memory: dict[str, Mirror] = {}
        self._unusable_until = self._held_since = -math.inf
        self._salt = b""
        self._inode: tuple[int, int] | None = None
        self._connection: sqlite3.Connection | None = None
        self._connect()

    def __del__(self) -> None:
        """Close the connection of this process; sqlite3 warns of one that is left to the garbage collector."""
        connection = getattr(self, "_connection", None)
        if connection is not None and self._owner == os.getpid():
            connection.close()

    def trade(
        self, key: Secret, route: str, believed: Mirror, now: float, reports: Sequence[Report], want: int
    ) -> tuple[Mirror, Lease | Wait] | None:
        """Trade in one transaction; None when another process holds the file at this moment.

        `believed` counts where the file holds nothing for that account and route, or cannot be used.
        """
        import sqlite3

        self._notice_fork()
        with self._lock:
            if now >= self._unusable_until:
                try:
                    traded = self._trade(key, route, believed, now, reports, want)
                except (sqlite3.Error, OSError, ConfigurationError) as error:
                    if _is_held(error) and not self._is_stuck(now):
                        return None
                    self._give_up(error, now)
                else:
                    self._in_memory.clear()
                    self._unusable_until = self._held_since = -math.inf
                    return traded
            name = self._name(key, route)
            mirror, lot = leases.trade(self._in_memory.get(name, believed), now, reports, want)
            self._in_memory[name] = mirror
            return mirror, lot

    def _trade(
        self, key: Secret, route: str, believed: Mirror, now: float, reports: Sequence[Report], want: int
    ) -> tuple[Mirror, Lease | Wait]:
        connection = self._open()
        name = self._name(key, route)
        try:
            connection.execute("BEGIN IMMEDIATE")
            mirror, lot = leases.trade(self._read(connection, name, now) or believed, now, reports, want)
            row = (name, json.dumps(leases.to_plain(mirror)), now, self._wall())
            connection.execute("INSERT OR REPLACE INTO mirror VALUES (?, ?, ?, ?)", row)
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        return mirror, lot

    def _read(self, connection: sqlite3.Connection, name: str, now: float) -> Mirror | None:
        """Read a mirror; one that was written before the machine restarted is of no use, its times mean nothing."""
        found = connection.execute("SELECT state, at, wall FROM mirror WHERE name = ?", (name,)).fetchone()
        if found is None or abs((self._wall() - found[2]) - (now - found[1])) > _LEAP:
            return None
        return leases.from_plain(json.loads(found[0]))

    def _name(self, key: Secret, route: str) -> str:
        """Name a route of a key's account, so that the name tells nothing of the key."""
        return f"{hmac.new(self._salt, key.reveal().encode(), hashlib.sha256).hexdigest()[:32]} {route}"

    def _notice_fork(self) -> None:
        """Begin anew in a forked child: the lock may have been held by a thread that is not there any more."""
        if self._owner != os.getpid():
            self._owner, self._lock = os.getpid(), threading.Lock()
            if self._connection is not None:
                self._abandoned.append(self._connection)
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        """Give the connection to the file that is at the path now: it may have been removed, and made anew."""
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
        """Tell whether the file has been held for so long that its holder will hardly go on."""
        if self._held_since == -math.inf:
            self._held_since = now
        return now > self._held_since + _STUCK

    def _give_up(self, error: Exception, now: float) -> None:
        """Go on without the file for a while: the quota is then shared blindly, which costs no more than some 429s."""
        if self._unusable_until == -math.inf:
            logger.warning("the limiter's file %s cannot be used, going on without it: %s", self._path, error)
        self._unusable_until, self._held_since = now + _AGAIN, -math.inf


def _is_held(error: Exception) -> bool:
    return "locked" in str(error)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _connected(path: Path) -> tuple[sqlite3.Connection, bytes]:
    """Open or make the file, and give its salt. It need not survive a power cut: what it holds is soon learned anew."""
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
    """Make the tables in an empty file, and give the salt; refuse one with anything else in it."""
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
