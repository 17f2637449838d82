"""SharedLimiter: one quota for several processes on one machine, kept in an SQLite file. The mathematics is `lease`.

Rule of the file: one short transaction per lot of turns, on the event loop's own thread: it takes about a tenth of a
millisecond, and a file that another process holds at that moment is asked again a moment later instead of waited for.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from knouds_async._io.limiter import Bucket, Limiter
from knouds_async._sansio import lease as leases
from knouds_async._sansio import window as windows
from knouds_async._sansio.clock import ServerClock
from knouds_async._sansio.lease import Lease, Mirror, Report
from knouds_async._sansio.window import Go, Reply, Ticket, Turn, Wait
from knouds_async.config import Secret
from knouds_async.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlite3

_SCHEMA: Final = 1
_PATIENT: Final = 0.003  # seconds until a file that is held by another process is asked again
_MOST_PENDING: Final = 10
_LEAP: Final = 5.0  # seconds by which the clocks may part before the machine counts as restarted


class SharedLimiter:
    """A rate limiter that every process of this machine may use at once, through one file.

    `path`: the file; it is made with mode 0600, and the API key is never in it. `tier`, `share`, `max_wait`: as of
    `Limiter`. Turns are leased in small lots, so that ten requests cost about one transaction; a process that crashes
    loses its lot at most. Works across fork and spawn, threads and event loops. A file that is not one of ours
    raises ConfigurationError and is left as it is. `clock`: seconds that all of them agree on; only needed where time
    is virtual, instead of the machine's.
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
        """Open the file, or make it."""
        Limiter(tier, share=share, max_wait=max_wait)  # checks
        self._tier, self._share, self._max_wait = tier, share, max_wait
        self._store = _Store(Path(path), clock or time.monotonic, clock or time.time)

    def for_key(self, key: Secret) -> Limiter:
        """Give the limiter of a key's account."""
        limiter = _Account(self._tier, share=self._share, max_wait=self._max_wait)
        limiter.join(self._store, self._store.account(key))
        return limiter


class _Account(Limiter):
    """The limiter of one account in one client: its own lines, and the buckets of the file."""

    def join(self, store: _Store, account: str) -> None:
        self._store, self._account = store, account

    def _bucket(self, route: str) -> Bucket:
        return _Leases(self._store, f"{self._account} {route}", self._guess, self._share)


class _Leases:
    """A bucket that leases its turns from the file, in lots."""

    def __init__(self, store: _Store, name: str, limit: float | None, share: float) -> None:
        is_unlimited = limit == float("inf")
        known = None if limit is None or is_unlimited else int(limit)
        self._first = Mirror(windows.unknown(known, share=share, unlimited=is_unlimited))
        self._store, self._name = store, name
        self._lot: deque[Ticket] = deque()
        self._until = -float("inf")
        self._is_awaited = True
        self._reports: list[Report] = []
        self._seen = self._first

    def take(self, now: float, waiting: int) -> Turn:
        """Give a turn of the lot, or lease another lot."""
        here = self._store.now()
        if self._lot and here >= self._until:
            self._report_unused(here)
        if not self._lot:
            traded = self._trade(here, waiting)
            if isinstance(traded, Wait):
                return Wait(now + (traded.until - here))
            self._lot.extend(traded.tickets)
            self._until, self._is_awaited = traded.until, traded.is_awaited
        return Go(self._lot.popleft())

    def answered(self, now: float, ticket: Ticket, reply: Reply, date: float | None, clock: ServerClock) -> None:  # noqa: ARG002
        """Report an answer: at once when others wait for it, with the next lot otherwise."""
        at = self._store.now()
        self._reports.append(Report(ending="answered", ticket=ticket, at=at, reply=reply, date=date))
        if reply.refused or self._is_awaited or len(self._reports) >= _MOST_PENDING:
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

    def _tell(self, ending: str, ticket: Ticket) -> None:
        at = self._store.now()
        self._reports.append(Report(ending="lost" if ending == "lost" else "returned", ticket=ticket, at=at))
        self._trade(at, 0)

    def _report_unused(self, at: float) -> None:
        self._reports += [Report(ending="returned", ticket=ticket, at=at) for ticket in self._lot]
        self._lot.clear()

    def _trade(self, at: float, want: int) -> Lease | Wait:
        """Hand the reports in and lease a lot; a file that is held just now keeps them for the next time."""
        traded = self._store.trade(self._name, self._first, at, self._reports, want)
        if traded is None:
            return Wait(at + _PATIENT)
        self._reports = []
        self._seen, lot = traded
        return lot


class _Store:
    """The file: a row per account and route."""

    def __init__(self, path: Path, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self.now: Final = clock  # the time that all processes of the machine share: seconds since it started
        self._wall: Final = wall
        self._path = path
        self._lock = threading.Lock()
        self._owner = -1
        self._abandoned: list[sqlite3.Connection] = []  # of a parent process: closing them here would break its locks
        self._connection: sqlite3.Connection | None = None
        with self._lock:
            self._salt: bytes = self._open().execute("SELECT salt FROM limiter").fetchone()[0]

    def __del__(self) -> None:
        """Close the connection of this process; sqlite3 warns of one that is left to the garbage collector."""
        connection = getattr(self, "_connection", None)
        if connection is not None and self._owner == os.getpid():
            connection.close()

    def account(self, key: Secret) -> str:
        """Name the account of a key, so that the name tells nothing of it."""
        return hmac.new(self._salt, key.reveal().encode(), hashlib.sha256).hexdigest()[:32]

    def trade(
        self, name: str, first: Mirror, now: float, reports: Sequence[Report], want: int
    ) -> tuple[Mirror, Lease | Wait] | None:
        """Trade in one transaction; None when another process holds the file at this moment."""
        import sqlite3

        with self._lock:
            connection = self._open()
            try:
                connection.execute("BEGIN IMMEDIATE")
                mirror, lot = leases.trade(self._read(connection, name, now) or first, now, reports, want)
                plain = json.dumps(leases.to_plain(mirror))
                row = (name, plain, now, self._wall())
                connection.execute("INSERT OR REPLACE INTO mirror VALUES (?, ?, ?, ?)", row)
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                    return None
                raise ConfigurationError(f"the limiter's file {str(self._path)!r} cannot be used: {error}") from None
            return mirror, lot

    def _read(self, connection: sqlite3.Connection, name: str, now: float) -> Mirror | None:
        """Read a mirror; one that was written before the machine restarted is of no use, its times mean nothing."""
        found = connection.execute("SELECT state, at, wall FROM mirror WHERE name = ?", (name,)).fetchone()
        if found is None or abs((self._wall() - found[2]) - (now - found[1])) > _LEAP:
            return None
        return leases.from_plain(json.loads(found[0]))

    def _open(self) -> sqlite3.Connection:
        """Give this process's connection; a forked child opens its own."""
        if self._connection is not None and self._owner == os.getpid():
            return self._connection
        if self._connection is not None:
            self._abandoned.append(self._connection)
        self._connection, self._owner = _connected(self._path), os.getpid()
        return self._connection


def _connected(path: Path) -> sqlite3.Connection:
    """Open or make the file. It need not survive a power cut: what it holds is learned anew within a window."""
    import sqlite3

    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute("PRAGMA synchronous = OFF")
        _prepare(connection)
        connection.execute("PRAGMA busy_timeout = 0")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise ConfigurationError(f"{str(path)!r} cannot be used as a limiter's file: {error}") from None
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    """Make the tables in an empty file; refuse one with anything else in it."""
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
    finally:
        connection.execute("COMMIT" if connection.in_transaction else "SELECT 1")
