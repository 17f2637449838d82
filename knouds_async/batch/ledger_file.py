"""The file of a SQLiteLedger: made, looked at before it is touched, opened, waited for while another has it locked.

Rule of the file: only SQLite itself opens it. Closing any other descriptor of it would drop the locks that another
connection of this process holds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import sqlite3

logger = logging.getLogger("knouds_async")

_MARK: Final = 0x4B_4E_4C_47  # SQLite's application id: this is a ledger of ours
_FORM: Final = 2
_POLL: Final = 0.5
_MUTTER: Final = 10.0  # seconds of waiting for a lock until it is worth a word

_BY_COST: Final = "CREATE INDEX IF NOT EXISTS jobs_by_cost ON jobs (target, cost) WHERE cost IS NOT NULL"
_TABLES: Final = (
    """CREATE TABLE jobs (
        key TEXT NOT NULL, attempt INTEGER NOT NULL, target TEXT NOT NULL, digest TEXT NOT NULL, stage TEXT NOT NULL,
        owner TEXT, reserved REAL, sent_at REAL, execution_id TEXT, request_id TEXT, note TEXT,
        status TEXT, cost REAL, reply TEXT, code TEXT, message TEXT,
        since TEXT, until TEXT, lasts REAL NOT NULL DEFAULT 0, account TEXT,
        PRIMARY KEY (key, attempt)
    )""",
    "CREATE INDEX jobs_by_stage ON jobs (stage, status)",
    "CREATE INDEX jobs_by_owner ON jobs (owner) WHERE owner IS NOT NULL",
    "CREATE INDEX jobs_by_time ON jobs (sent_at)",
    "CREATE TABLE credits (spent REAL NOT NULL, reserved REAL NOT NULL, unpriced INTEGER NOT NULL)",
    "INSERT INTO credits VALUES (0, 0, 0)",
    "CREATE TABLE payer (user TEXT, base_url TEXT NOT NULL)",
    f"PRAGMA application_id = {_MARK}",
    f"PRAGMA user_version = {_FORM}",
)


_UPGRADES: Final = (
    "ALTER TABLE jobs ADD COLUMN since TEXT",
    "ALTER TABLE jobs ADD COLUMN until TEXT",
    "ALTER TABLE jobs ADD COLUMN lasts REAL NOT NULL DEFAULT 0",
    "ALTER TABLE jobs ADD COLUMN account TEXT",
    "CREATE TABLE payer (user TEXT, base_url TEXT NOT NULL)",
    f"PRAGMA user_version = {_FORM}",
)
"""From form 1, which knew neither when a submit left for certain nor whose it was."""

_BY_RUN: Final = "CREATE INDEX IF NOT EXISTS jobs_by_run ON jobs (execution_id) WHERE execution_id IS NOT NULL"


def opened(path: Path, patience: float) -> sqlite3.Connection:
    """Open a ledger's file, or make it. OSError or sqlite3.Error for one that is damaged or something else."""
    import sqlite3

    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    _refuse_others(path, patience)
    connection = _connected(path, "rw")
    try:
        patiently(connection, "BEGIN IMMEDIATE", patience)
        if _is_new(connection):
            for statement in _TABLES:
                connection.execute(statement)
        elif (said := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(f"it is damaged ({said})")
        elif _number(connection, "PRAGMA user_version") < _FORM:
            for statement in _UPGRADES:
                connection.execute(statement)
        connection.execute(_BY_COST)  # ledgers that were made before have no such index
        connection.execute(_BY_RUN)
        patiently(connection, "COMMIT", patience)
        connection.execute("PRAGMA journal_mode = TRUNCATE")  # SQLite's WAL has a race with several connections
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def patiently(connection: sqlite3.Connection, statement: str, patience: float) -> sqlite3.Cursor:
    """Execute a statement, waiting `patience` seconds while another process has the file locked."""
    import sqlite3

    began, has_muttered = time.monotonic(), False
    while True:
        try:
            return connection.execute(statement)
        except sqlite3.OperationalError as error:
            waited = time.monotonic() - began
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or waited > patience:
                raise
            if waited > _MUTTER and not has_muttered:
                has_muttered = True
                logger.warning("a ledger is locked by another process: still waiting for it")


def _connected(path: Path, mode: str) -> sqlite3.Connection:
    import sqlite3

    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_POLL)


def _refuse_others(path: Path, patience: float) -> None:
    """Look at a file without changing it; a ledger that a crash left half written is looked at when it is opened."""
    import sqlite3

    probe = _connected(path, "ro")
    try:
        patiently(probe, "BEGIN", patience)
        patiently(probe, "SELECT COUNT(*) FROM sqlite_master", patience)
        _is_new(probe)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
            raise
    finally:
        probe.close()


def _is_new(connection: sqlite3.Connection) -> bool:
    """Tell whether a file is empty still; sqlite3.DatabaseError when it is no ledger."""
    import sqlite3

    mark, form = _number(connection, "PRAGMA application_id"), _number(connection, "PRAGMA user_version")
    if mark == form == 0 and _number(connection, "SELECT COUNT(*) FROM sqlite_master") == 0:
        return True
    if mark != _MARK:
        raise sqlite3.DatabaseError("it is an SQLite file of something else, and was left as it is")
    if form not in (1, _FORM):
        raise sqlite3.DatabaseError(f"another version of knouds_async wrote it (its form is {form}, not {_FORM})")
    return False


def _number(connection: sqlite3.Connection, query: str) -> Any:
    return connection.execute(query).fetchone()[0]
