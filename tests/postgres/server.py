"""A PostgreSQL server of the tests' own, and a pgbouncer before it: on loopback, with a data folder of their own."""

from __future__ import annotations

import os
import pickle
import pwd
import shutil
import signal
import socket
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import psycopg

PASSWORD = "canary-5f1c9e"


def program(name: str) -> str | None:
    """Return the path of a program of PostgreSQL, or of pgbouncer; None where it is not installed."""
    newest = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    return str(newest[-1]) if newest else shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def missing(*names: str) -> str | None:
    """Return why the tests cannot run here; None when they can."""
    absent = [name for name in names if program(name) is None]
    return f"{', '.join(absent)} not installed (Debian: postgresql, pgbouncer)" if absent else None


def free_port() -> int:
    """Return a port of loopback that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def _unprivileged() -> dict[str, Any]:
    """Return how a program is started that refuses to run as root."""
    if os.getuid() != 0:
        return {}
    known = {each.pw_name: each for each in pwd.getpwall()}
    user = known.get("postgres") or known["nobody"]
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _own(folder: Path) -> None:
    """Make the user that the server runs as the owner of a folder."""
    as_user = _unprivileged()
    if as_user:
        os.chown(folder, as_user["user"], as_user["group"])


_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "shared_buffers": "16MB",
    "max_connections": "60",
    "autovacuum": "off",
    "log_min_messages": "fatal",
    "max_wal_senders": "4",
    "wal_level": "replica",
    "hot_standby": "on",
    "wal_keep_size": "64MB",
}


class Server:
    """A server; `settings` are those of postgresql.conf."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder, self.port = folder, free_port()
        self._settings = {**_SETTINGS, **settings}
        self._process: subprocess.Popen[Any] | None = None

    def url(self, database: str = "postgres", *, port: int | None = None) -> str:
        """Return the URL of a database, with the password."""
        return f"postgresql://owner:{PASSWORD}@127.0.0.1:{port or self.port}/{database}"

    def create(self) -> None:
        """Make the data folder."""
        self.folder.mkdir(parents=True)
        _own(self.folder)
        words = self.folder.parent / "password"
        words.write_text(PASSWORD)
        words.chmod(0o644)
        options = [
            "-U",
            "owner",
            "--auth=scram-sha-256",
            f"--pwfile={words}",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
            "--wal-segsize=4",
        ]
        self._run("initdb", "-D", str(self.folder), *options)
        with (self.folder / "pg_hba.conf").open("a") as rules:
            rules.write("\nhost replication all 127.0.0.1/32 scram-sha-256\n")

    def copy(self, template: Server) -> None:
        """Make the data folder as a copy of one that was made and never started, which is soon done."""
        self.folder.mkdir(parents=True)
        _own(self.folder)
        self.folder.chmod(0o700)
        subprocess.run(["cp", "-a", f"{template.folder}/.", str(self.folder)], check=True, **_unprivileged())  # noqa: S603, S607

    def copy_of(self, primary: Server) -> None:
        """Make the data folder as a standby of another server."""
        self.folder.mkdir(parents=True)
        _own(self.folder)
        self.folder.chmod(0o700)
        self._run("pg_basebackup", "-D", str(self.folder), "-d", primary.url(), "-R", "-c", "fast", "-X", "stream")

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        words = [f"-c{name}={value}" for name, value in self._settings.items()]
        command = [str(program("postgres")), "-D", str(self.folder), "-p", str(self.port), *words]
        started = self._process = subprocess.Popen(  # noqa: S603
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **_unprivileged()
        )
        until = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=2).close()
            except psycopg.OperationalError:
                if time.monotonic() > until or started.poll() is not None:
                    raise
                time.sleep(0.05)
            else:
                return

    def stop(self, how: int = signal.SIGINT) -> None:
        """Stop the server: SIGINT is a fast shutdown, SIGQUIT an immediate one."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def promote(self) -> None:
        """Make a standby the primary."""
        self._run("pg_ctl", "promote", "-w", "-D", str(self.folder))

    def execute(self, statements: str, *, database: str = "postgres", values: Sequence[Any] = ()) -> list[Any]:
        """Execute a statement on a connection of its own, and return its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statements.encode(), values)
            return cursor.fetchall() if cursor.description is not None else []

    def _run(self, name: str, *words: str) -> None:
        done = subprocess.run(  # noqa: S603
            [str(program(name)), *words], check=False, capture_output=True, text=True, **_unprivileged()
        )
        assert done.returncode == 0, done.stderr


class Pooler:
    """A pgbouncer with transaction pooling before a server."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.port = free_port()
        folder.mkdir()
        _own(folder)
        users, settings = folder / "users.txt", folder / "pgbouncer.ini"
        users.write_text(f'"owner" "{PASSWORD}"\n')
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\nunix_socket_dir =\nauth_type = plain\nauth_file = {users}\n"
            "pool_mode = transaction\ndefault_pool_size = 2\nserver_reset_query_always = 0\nlogfile =\n"
        )
        self._process = subprocess.Popen(  # noqa: S603
            [str(program("pgbouncer")), str(settings)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **_unprivileged(),
        )
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("pgbouncer does not listen")

    def stop(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait(20)


def shown(error: BaseException) -> str:
    """Return all that a report of an error could show: with the locals of each of its frames but the test's own."""
    trace = traceback.TracebackException.from_exception(error, capture_locals=True)
    found: list[str] = [repr(pickle.dumps(error))]
    each: traceback.TracebackException | None = trace
    while each is not None:
        found += [f"{frame.name}: {frame.locals}" for frame in each.stack if "/tests/" not in frame.filename]
        found += [str(each)]
        each = each.__context__
    return "\n".join(found)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens in a thread or a server."""
    with anyio.fail_after(30):
        while not await anyio.to_thread.run_sync(condition):  # noqa: ASYNC110  (nothing there sets an event)
            await anyio.sleep(0.05)
