"""The thread that talks to PostgreSQL: one for each process and URL, with one connection, in psycopg 3.

What waits is carried out together, in one transaction of two messages for each ledger.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import selectors
import socket
import threading
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

import attrs
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from knouds_async._io.concurrency import from_thread
from knouds_async._io.transactions import CHANNEL, Committed, ProcessRow, Transact, Transaction
from knouds_async._io.worker_thread import CLOSE_TIMEOUT, TICK, ThreadRequest, WorkerThread, may_give_up
from knouds_async.config import Secret
from knouds_async.errors import LedgerError
from knouds_async.telemetry import fields

T = TypeVar("T")

logger = logging.getLogger("knouds_async")

_PATIENCE: Final = 60.0  # seconds from the first failure for which a database that is away is tried again
_FEWEST_TRIES: Final = 8  # a process that was frozen has not tried for long, whatever the clock says
_PAUSE: Final = 10.0  # seconds without a try, after which the patience begins anew
_SILENCE: Final = 30.0  # seconds without an answer after which a connection counts as lost
_IDLE: Final = 5.0  # seconds after which a thread that nobody needs ends
_PAUSES: Final = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
_WARN_AFTER: Final = 5.0  # seconds without the database

_TRANSIENT: Final = frozenset({"08", "0A", "25", "40", "53", "55", "57", "58"})  # classes of SQLSTATEs
_REFUSED: Final = re.compile(r" failed: \w+:  ")  # by the server, whose words are in its own language
_STATE: Final = re.compile(rb'\tErrorResponse\t.* C "(\w{5})"')
_ASKED: Final = 5.0  # seconds for another attempt, which tells why the first one was refused
_HOPELESS: Final = re.compile(
    "authentication failed|no password supplied|does not exist|permission denied|no pg_hba.conf entry|certificate|"
    "not permitted to log in"
)

# The URL.

_PLACE: Final = re.compile(r"postgresql://[\w.,:%/-]+(:[\d,]+)?/[^@/]*\Z")  # else a password was not percent-encoded
_PORTS: Final = re.compile(r"[0-9]{0,5}(,[0-9]{0,5})*\Z")  # else it is a password, of a URL without a host


def place_of(url: Secret) -> str | None:
    """Return what of a URL may be shown: hosts, ports and the database; None for one that is none."""
    parameters = _parameters(url)
    return None if parameters is None else parameters["shown"]


def _parameters(url: Secret) -> dict[str, str] | None:
    """Return the parameters of a connection, and what of them may be `shown`; None for what is no URL."""
    try:
        given = {name: str(value) for name, value in conninfo_to_dict(url.reveal()).items()}
    except (psycopg.Error, ValueError):
        return None
    host, port, name = given.get("host") or given.get("hostaddr") or "localhost", given.get("port"), given.get("dbname")
    place = f"postgresql://{host}{f':{port}' if port else ''}/{name or ''}"
    is_place = _PLACE.match(place) and _PORTS.match(port or "")
    return {**given, "shown": place} if is_place else None


def _connection_parameters(url: Secret) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "fallback_application_name": "knouds",
        "connect_timeout": "10",
        "tcp_user_timeout": "20000",
        "keepalives_idle": "10",
        "keepalives_interval": "5",
        "keepalives_count": "3",
        "client_encoding": "utf8",
        **(_parameters(url) or {}),
    }
    del parameters["shown"]
    if "," in parameters.get("host", "") and psycopg.pq.version() >= 140000:
        parameters.setdefault("target_session_attrs", "primary")
    return parameters


# One connection.


class _Unavailable(Exception):  # noqa: N818  (it never leaves this file)
    """The database cannot be used now, and may be soon."""


class _BoundedConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that gives up on a database that does not answer: what is lost is found out by `seq`."""

    @classmethod
    def _connect_gen(cls, *args: Any, **options: Any) -> Generator[Any, Any, Any]:
        return _bounded(super()._connect_gen(*args, **options), math.inf)  # psycopg has a limit of its own

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
        return super().wait(_bounded(gen, time.monotonic() + _SILENCE), *args, **options)


def _bounded(steps: Generator[Any, Any, T], deadline: float) -> Generator[Any, Any, T]:
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted  # nothing is ready each 0.1 s
            if not ready and may_give_up():
                deadline = min(deadline, time.monotonic() + CLOSE_TIMEOUT)
            if not ready and time.monotonic() > deadline:
                raise psycopg.OperationalError(f"no answer for {_SILENCE:g} s")
            wanted = steps.send(ready)
    except StopIteration as end:
        value: T = end.value
        return value


class Session:
    """A connection that is ready for use, and a bell that ends the wait for what others send through it."""

    def __init__(self, connection: _BoundedConnection) -> None:
        self.connection: Final = connection
        self._wake_up: Final = socket.socketpair()
        for end in self._wake_up:
            end.settimeout(0)
        self.is_pooled = self.is_listening = False

    def message(self, statements: str, values: Sequence[Any] = ()) -> list[list[tuple[Any, ...]]]:
        """Send statements in one message, and return the rows of those that have some."""
        found = []
        with psycopg.ClientCursor(self.connection) as cursor:
            cursor.execute(statements.encode(), values or None)
            while True:
                if cursor.description is not None:
                    found.append(cursor.fetchall())
                if not cursor.nextset():
                    return found

    def check(self, place: str) -> None:
        """Check where the connection leads; _Unavailable for a standby, LedgerError for what cannot hold a ledger."""
        ((process, is_standby, encoding, version),) = self.message(
            "SELECT pg_backend_pid(), pg_is_in_recovery(), current_setting('server_encoding'), "
            "current_setting('server_version_num')::int"
        )[0]
        self.is_pooled = process != self.connection.info.backend_pid
        if is_standby:
            raise _Unavailable("it is a standby that was not promoted yet")
        if encoding != "UTF8" or version < 120000:
            raise LedgerError(
                f"{place} cannot hold what knouds shares: PostgreSQL 12 or later with the encoding UTF8 is "
                f"needed, and this is {version // 10000} with {encoding}"
            )

    def wait(self, seconds: float) -> None:
        """Wait for a message of the database, or for the bell."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_up[0], selectors.EVENT_READ)
            selector.register(self.connection.fileno(), selectors.EVENT_READ)
            selector.select(seconds)
        with suppress(BlockingIOError):
            self._wake_up[0].recv(4096)

    def wake(self) -> None:
        """End a wait, from any thread."""
        with suppress(OSError):  # it has been rung often enough, or is closed
            self._wake_up[1].send(b"!")

    def close(self) -> None:
        """Close it."""
        self.connection.close()
        self._close_wake_up()

    def abandon(self) -> None:
        """Close the copy in a forked child, and send nothing to the database: the connection is the parent's."""
        if not self.connection.closed:
            os.close(self.connection.fileno())
        self._close_wake_up()

    def _close_wake_up(self) -> None:
        for end in self._wake_up:
            end.close()


def _connect(url: Secret) -> Session | str:
    """Return a new connection, or why there is none; psycopg's errors would show the password among their locals."""
    try:
        connection = _BoundedConnection.connect(**_connection_parameters(url), autocommit=True, prepare_threshold=None)
        try:
            return Session(connection)
        except OSError:
            connection.close()
            raise
    except (psycopg.Error, OSError) as error:
        return _first_line(error)


def _is_hopeless(url: Secret, failure: str) -> bool:
    """Return whether a connection that was never made is refused for good: by the words, or else by the SQLSTATE."""
    if _HOPELESS.search(failure) or not _REFUSED.search(failure):
        return _HOPELESS.search(failure) is not None
    states = _states_of_refusal(url)
    return bool(states) and all(state[:2].decode() not in _TRANSIENT for state in states)


def _states_of_refusal(url: Secret) -> list[bytes]:
    """Return the SQLSTATEs with which another attempt is refused: libpq shows them in a trace alone, where it can."""
    reading, writing = os.pipe()
    try:
        connection = psycopg.pq.PGconn.connect_start(make_conninfo("", **_connection_parameters(url)).encode())
        try:
            connection.trace(writing)
            _wait_to_connect(connection)
            connection.untrace()
        finally:
            connection.finish()
        os.set_blocking(reading, False)
        return _STATE.findall(os.read(reading, 1 << 16))
    except (psycopg.Error, OSError):
        return []
    finally:
        os.close(reading)
        os.close(writing)


def _wait_to_connect(connection: psycopg.pq.abc.PGconn) -> None:
    events = {
        psycopg.pq.PollingStatus.READING: selectors.EVENT_READ,
        psycopg.pq.PollingStatus.WRITING: selectors.EVENT_WRITE,
    }
    until = time.monotonic() + _ASKED
    while (event := events.get(psycopg.pq.PollingStatus(connection.connect_poll()))) and time.monotonic() < until:
        with selectors.DefaultSelector() as selector:
            selector.register(connection.socket, event)
            selector.select(_ASKED)


def _first_line(error: Exception) -> str:
    """Return the first line of a database's error: the others may quote what was written."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(". ")


def _refusal(place: str, failure: str, state: str | None) -> str:
    advice = {
        "42501": "To make or upgrade its tables, run `knouds ledger migrate URL` as a role that may create tables, and "
        "grant SELECT, INSERT, UPDATE and DELETE on them to this one",
        "42P01": "To make or upgrade its tables, run `knouds ledger migrate URL`",
    }.get(state or "", "It was left as it is")
    return f"the database {place} cannot be used: {failure}. {advice}; batches on it submit nothing more"


# The thread.


@attrs.frozen(eq=False)
class Listener:
    """Callbacks of one who listens, in its event loop: `on_message` is called with each message.

    `on_gap`: called when messages may have been missed. `on_unavailable`: called when none can ever be heard.
    """

    on_message: Callable[[str], object]
    on_gap: Callable[[], object]
    on_unavailable: Callable[[], object]
    call_in_loop: Callable[[Callable[[], object]], object] = attrs.field(factory=from_thread)

    def call(self, function: Callable[[], object]) -> None:
        """Call a function in the event loop, unless that has ended."""
        with suppress(RuntimeError):
            self.call_in_loop(function)


class DatabaseThread(WorkerThread):
    """The only user of a database in this process; its requests are of a kind `Transact`."""

    def __init__(self, url: Secret) -> None:
        self._url, self._place = url, place_of(url) or ""
        super().__init__("knouds-postgres", f"the database {self._place}", idle=_IDLE)

    def _begin(self) -> None:
        super()._begin()
        self._users: weakref.WeakSet[object] = weakref.WeakSet()
        self._listeners: list[Listener] = []
        self._session: Session | None = None
        self.row = ProcessRow(self._place)
        self._failures = 0
        self._failed_at = self._last_failed_at = 0.0
        self._has_connected = self._has_listened = False
        self._warned: set[str] = set()  # of what, by events

    # Called in event loops.

    def use(self, user: object) -> None:
        """Keep the connection for a user who may come again."""
        with self._lock:
            self._users.add(user)

    async def leave(self, user: object, timeout: float) -> None:
        """End a user; return once all requests are carried out. The end of the last one closes the connection."""
        with self._lock:
            if user not in self._users:
                return
            self._users.discard(user)
        await self.flush(self._disconnect_unused, timeout=timeout)

    def listen(
        self, on_message: Callable[[str], object], on_gap: Callable[[], object], on_unavailable: Callable[[], object]
    ) -> Callable[[], None]:
        """Begin to pass to a listener each message; return what ends that."""
        listener = Listener(on_message, on_gap, on_unavailable)
        with self._lock:
            self._listeners.append(listener)
            self._start_or_wake()

        def stop() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return stop

    def begin_in_child(self) -> object:
        """Close the copy of the connection; psycopg warns of one that is left to the collector."""
        if (session := self._session) is not None:
            session.abandon()
        super().begin_in_child()
        return session

    # Called in the thread.

    def _is_held(self) -> bool:
        is_wanted = bool(self._listeners) or self.row.is_wanted()
        return super()._is_held() or (bool(self._users) and is_wanted)

    def _wake(self) -> None:
        super()._wake()
        session = self._session  # the thread may close it at any moment
        if session is not None and session.is_listening:
            session.wake()

    def _sleep(self) -> None:
        session = self._session
        if session is None or session.connection.closed or not session.is_listening:
            super()._sleep()
        elif not self._requests:
            session.wait(TICK)

    def _tend(self) -> None:
        """Renew the lease and write ends, without patience: it is tried again in a moment, long before it runs out."""
        for transact in self.row.due():
            with suppress(LedgerError):
                self._tried(transact, [])
        self._listen()

    def _disconnect_unused(self) -> None:
        if not self._users:
            self._disconnect()

    def _carry_out(self, kind: Transact, group: Sequence[ThreadRequest]) -> list[Any]:
        patience = max(_PATIENCE if each.patience is None else each.patience for each in group)
        return self._carried_out(kind, [request.operation for request in group], patience)

    def _carried_out(self, transact: Transact, operations: list[Any], patience: float) -> list[Any]:
        """Return the values of operations, once the database can be used; LedgerError when it is away for long."""
        while isinstance(values := self._tried(transact, operations), str):
            waited = time.monotonic() - self._failed_at
            is_over = waited >= patience and (self._failures >= _FEWEST_TRIES or patience < _PATIENCE)
            if is_over or may_give_up():
                raise LedgerError(
                    f"the database {self._place} cannot be used: {values}. It was tried for {waited:.0f} s. Nothing "
                    "more is submitted; what is on record stays, and the same batch continues from there"
                )
            self._warn_of_absence(values)
            threading.Event().wait(_PAUSES[min(self._failures, len(_PAUSES)) - 1])
        return values

    def _tried(self, transact: Transact, operations: list[Any]) -> list[Any] | str:
        """Return the values of operations, or why the database cannot be used at this moment."""
        if time.monotonic() > self._last_failed_at + _PAUSE:
            self._failures = 0
        try:
            transaction = Transaction(self._connected().message, self.row, transact, operations)
            values = self._values(transaction)
        except _Unavailable as unavailable:
            return self._failed(str(unavailable))
        except psycopg.Error as error:
            failure, state = self._failed(_first_line(error)), error.sqlstate
            is_data = isinstance(error, psycopg.DataError)  # what psycopg itself finds wrong with it has no state
            if (state is None and not is_data) or (state or "")[:2] in _TRANSIENT:
                return failure
        except Exception as error:
            self._disconnect()  # the next transaction must not begin within this one
            if isinstance(error, LedgerError):
                raise
            raise LedgerError(_refusal(self._place, f"{type(error).__name__}: {_first_line(error)}", None)) from error
        else:
            self._failures = 0
            self._warned.discard("database_away")
            return values
        raise LedgerError(_refusal(self._place, failure, state))

    def _warn_of_absence(self, failure: str) -> None:
        has_lasted = time.monotonic() > self._failed_at + _WARN_AFTER
        if has_lasted or not self._has_connected:
            message = "the database %s is away, and is tried again: %s"
            self._warn(fields("database_away"), message, self._place, failure)

    def _warn(self, extra: dict[str, Any], message: str, *values: object) -> None:
        """Log an event once."""
        if (event := extra["event_name"]) not in self._warned:
            self._warned.add(event)
            logger.warning(message, *values, extra=extra)

    def _values(self, transaction: Transaction) -> list[Any]:
        try:
            return transaction.transact(transaction, transaction.operations)
        except Committed as committed:
            self._disconnect()  # the transaction in which that was found out
            return committed.values

    def _failed(self, failure: str) -> str:
        if not self._failures:
            self._failed_at = time.monotonic()
        self._failures += 1
        self._disconnect()
        self._last_failed_at = time.monotonic()
        return failure

    def _disconnect(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _connected(self) -> Session:
        """Return the connection, or make it; _Unavailable when that cannot be done now, LedgerError when never."""
        if self._session is None or self._session.connection.closed:
            self._disconnect()
            session = "the process ends" if may_give_up() else _connect(self._url)
            if isinstance(session, str):
                if not self._has_connected and _is_hopeless(self._url, session):
                    raise LedgerError(_refusal(self._place, session, None))
                raise _Unavailable(session)
            self._session, self.row.has_tables = session, False
            session.check(self._place)
        self._has_connected = True
        return self._session

    def _listen(self) -> None:
        """Begin or end to listen as there are listeners, and pass on what was heard."""
        with self._lock:
            listeners = list(self._listeners)
        if not listeners and (self._session is None or not self._session.is_listening):
            return
        try:
            heard = self._tried(self._listened if listeners else self._unlisten, listeners)
        except LedgerError as error:  # refused, and each attempt would be another login
            self._end_listening()
            message = "what other processes say cannot be heard, and finished runs are noticed by polling: %s"
            self._warn(fields("database_refused"), message, error)
            return
        if isinstance(heard, str):
            self._warn_of_absence(heard)
            return
        for message in heard:
            for listener in listeners:
                listener.call(partial(listener.on_message, message))

    def _listened(self, _: Transaction, listeners: Sequence[Any]) -> list[Any]:
        session = self._connected()
        if session.is_pooled:
            self._end_listening()
            self._warn(
                fields("database_pooled"),
                "a pooler stands before the database %s, and what other processes say cannot be heard through it: "
                "finished runs are noticed by polling. Name the database itself, not the pooler, to hear them at once",
                self._place,
            )
            return []
        if not session.is_listening:
            session.message(f"LISTEN {CHANNEL}")
            session.is_listening = True
            for listener in listeners if self._has_listened or self._failures else ():
                listener.call(listener.on_gap)
            self._has_listened = True
        return [message.payload for message in session.connection.notifies(timeout=0)]

    def _unlisten(self, transaction: Transaction, _: Sequence[Any]) -> list[Any]:
        transaction.message("UNLISTEN *")
        self._connected().is_listening = False
        return []

    def _end_listening(self) -> None:
        """End what listens, for nothing can be heard."""
        with self._lock:
            listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.call(listener.on_unavailable)


_threads: Final = dict[bytes, DatabaseThread]()


def thread_of(url: Secret) -> DatabaseThread:
    """Return this process's thread for a database."""
    key = hashlib.sha256(url.reveal().encode()).digest()
    return _threads.get(key) or _threads.setdefault(key, DatabaseThread(url))
