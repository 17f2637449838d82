"""The thread and its one connection: what it survives, whom it answers, and what it never shows."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import anyio
import pytest

from knouds_async._io import postgres as thread_module
from knouds_async._io import transactions
from knouds_async._io.database import Database
from knouds_async.errors import ConfigurationError, LedgerError
from knouds_async.postgres import Postgres
from tests.postgres.relay import Relay
from tests.postgres.server import PASSWORD, Pooler, Server, shown, until

pytestmark = pytest.mark.slow


def begin_and_commit(transaction: Any, operations: Sequence[Any]) -> list[Any]:
    """Carry out operations that are their own values, as a ledger's are: in a numbered transaction."""
    transaction.begin()
    return transaction.commit(list(operations))  # type: ignore[no-any-return]


def connections(server: Server, database: str) -> int:
    """Return how many connections of ours there are to a database."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name = 'knouds'"
    return int(server.execute(query, values=(database,))[0][0])


@pytest.fixture
def relay(server: Server) -> Iterator[Relay]:
    """Return a relay before the server."""
    made = Relay(server.port)
    yield made
    made.close()


# How many there are, and for how long.


async def test_it_opens_nothing_before_it_is_used(server: Server, database: str, url: str) -> None:
    """A Postgres is only a name until something is asked of it; then there is one connection, for all of that URL."""
    one, other = Postgres(url), Postgres(url, name="other")
    assert connections(server, database) == 0
    async with one, other, anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon((one if number % 2 else other).find, f"key-{number}")
        await one.find("key")
        assert connections(server, database) == 1
    await until(lambda: connections(server, database) == 0)


async def test_the_last_one_closes_the_connection(server: Server, database: str, url: str) -> None:
    """One that is closed is closed for good, and the others of its URL still work."""
    one, other = Postgres(url), Postgres(url)
    await one.find("key")
    await other.find("key")
    await one.aclose()
    await one.aclose()
    with pytest.raises(LedgerError, match="closed"):
        await one.find("key")
    await other.find("key")
    assert connections(server, database) == 1
    await other.aclose()
    await until(lambda: connections(server, database) == 0)


async def test_one_that_nobody_closes_closes_by_itself(
    server: Server, database: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `async with` and `aclose` the connection goes after its last use, and comes back with the next."""
    monkeypatch.setattr(thread_module, "_IDLE", 0.2)
    shared = Postgres(url)
    await shared.find("key")
    await until(lambda: connections(server, database) == 0)
    await shared.find("key")
    assert connections(server, database) == 1
    del shared
    gc.collect()
    await until(lambda: connections(server, database) == 0)


SCRIPT = """
import sys, anyio
from knouds_async.postgres import Postgres
shared = Postgres(sys.argv[1])
async def main():
    await shared.join()
    print(await shared.find("key"))
anyio.run(main)
"""


def test_a_process_ends_though_nothing_was_closed(url: str) -> None:
    """A process that leaves an owner behind ends by itself, and warns of nothing."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "error", "-X", "dev", "-c", SCRIPT, url],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")


LEAVES = """
import sys, anyio
from knouds_async.postgres import Postgres

async def main():
    shared = Postgres(sys.argv[1])
    if "connected" in sys.argv:
        await shared.join()
    print("begins", flush=True)
    sys.stdin.readline()
    with anyio.move_on_after(0.3):
        await shared.find("key")
    print("ends", flush=True)

anyio.run(main)
"""


@pytest.mark.parametrize("state", ["connected", "connecting"])
def test_a_process_that_ends_waits_for_no_database_that_is_silent(
    server: Server, database: str, relay: Relay, state: str
) -> None:
    """Nothing that must be done is under way, so it ends in a moment, in the middle of a statement or of connecting."""
    url = f"{server.url(database, port=relay.port)}?connect_timeout=100"
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", LEAVES, url, state], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as ending:
        assert ending.stdout is not None
        assert ending.stdin is not None
        assert ending.stdout.readline() == "begins\n"
        relay.hold()
        ending.stdin.write("\n")
        ending.stdin.flush()
        assert ending.stdout.readline() == "ends\n"
        assert ending.wait(20) == 0


STAYS = """
import sys, threading, time, anyio, psycopg
from knouds_async._io import transactions
from knouds_async.postgres import Postgres
transactions.LEASE, transactions._RENEW = 2.0, 0.2

async def work():
    async with Postgres(sys.argv[1]) as shared:
        await shared.join()
        await anyio.sleep(4)
        with psycopg.connect(sys.argv[1]) as connection:
            print(connection.execute("SELECT until > clock_timestamp() FROM knouds_owner").fetchone())

threading.Thread(target=anyio.run, args=(work,)).start()
"""


def test_a_batch_in_a_thread_keeps_its_lease_after_the_end_of_the_main_thread(url: str) -> None:
    """A process ends with the last of its threads, and until then its jobs are its own."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", STAYS, url], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.returncode) == ("(True,)\n", 0), done.stderr


FORK = """
import os, sys, anyio
from knouds_async.postgres import Postgres
shared = Postgres(sys.argv[1])
async def main():
    owner = await shared.join()
    await shared.find("key")
    return owner
async def more():
    for _ in range(20):
        await shared.find("key")
owner = anyio.run(main)
child = os.fork()
if child == 0:
    mine = anyio.run(main)
    anyio.run(more)
    print("different" if mine.split("/")[0] != owner.split("/")[0] else "the same", flush=True)
    os._exit(0)
anyio.run(more)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_it_survives_a_fork(url: str) -> None:
    """A forked child has a connection and an identity of its own, and the parent keeps its own."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", FORK, url], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.split()) == (0, ["different", "0"]), done.stderr


def test_two_event_loops_at_once(server: Server, database: str, url: str) -> None:
    """Threads with event loops of their own, on different backends, share the connection."""
    shared, found = Postgres(url), []

    async def ask() -> None:
        found.extend([await shared.find(f"key-{number}") for number in range(50)])

    threads = [
        threading.Thread(target=anyio.run, args=(ask,), kwargs={"backend": backend}) for backend in ("asyncio", "trio")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [None] * 100
    assert connections(server, database) == 1
    anyio.run(shared.aclose)


async def test_a_system_that_has_no_thread_to_give_is_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations wait until there is one, and fail with LedgerError where there is none for long."""
    start, refused = threading.Thread.start, [True, True]

    def starting(thread: threading.Thread) -> None:
        if thread.name == "knouds-postgres" and refused:
            if len(refused) < 10:
                refused.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", starting)
    shared = Postgres(url)
    assert await shared.find("key") is None
    await shared.aclose()
    refused += [True] * 10
    monkeypatch.setattr("knouds_async._io.worker_thread._START_TIMEOUT", 0.6)
    other = Postgres(f"{url}?connect_timeout=9")
    with pytest.raises(LedgerError, match="no thread"):
        await other.find("key")


async def test_the_thread_survives_what_it_does_not_know(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in what it does by itself is logged, and operations are carried out all the same."""
    calls: list[int] = []

    def broken(_: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyError("nobody thought of it")

    monkeypatch.setattr(thread_module.DatabaseThread, "_tend", broken)
    async with Postgres(url) as shared:
        assert await shared.find("key") is None
        await until(lambda: len(calls) > 1)
        assert await shared.find("key") is None
    assert [each.levelno for each in caplog.records] == [logging.ERROR]


# What is together, and what is cancelled.


async def test_what_waits_is_committed_together(server: Server, database: str, url: str) -> None:
    """A hundred operations that are asked for at once take a few transactions, and each has its own value."""
    values = []
    async with Database(url) as shared:

        async def ask(number: int) -> None:
            values.append((number, await shared.do(begin_and_commit, number)))

        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(ask, number)
        assert sorted(values) == [(number, number) for number in range(100)]
        assert server.execute("SELECT seq FROM knouds_owner", database=database)[0][0] < 10


async def test_one_operation_that_fails_spoils_no_other(url: str) -> None:
    """An error that an operation meets is raised where it was asked for, and the rest of its transaction stands."""

    def carry_out(transaction: Any, operations: Sequence[Any]) -> list[Any]:
        transaction.begin()
        return transaction.commit(  # type: ignore[no-any-return]
            [ValueError(f"{number}") if number == 7 else number for number in operations]
        )

    failed = []
    async with Database(url) as shared:

        async def ask(number: int) -> None:
            try:
                assert await shared.do(carry_out, number) == number
            except ValueError as error:
                failed.append(str(error))

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(ask, number)
    assert failed == ["7"]


async def test_what_fails_in_a_transaction_leaves_none_open(server: Server, database: str, url: str) -> None:
    """Whatever it is, it is a LedgerError at once, frees the locks, and makes no later commit look like a lost one."""

    def carry_out(transaction: Any, operations: Sequence[Any]) -> list[Any]:
        transaction.begin("SELECT %s::text", operations[:1] if isinstance(operations[0], str) else [""])
        lost.append(transaction.lost)
        if isinstance(operations[0], Exception):
            raise operations[0]
        return transaction.commit(list(operations), written=dict.fromkeys(operations, 1))  # type: ignore[no-any-return]

    lost: list[Any] = []
    open_ones = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND state LIKE 'idle in %%'"
    async with Database(url) as shared:
        await shared.do(carry_out, 1)
        for unknown in (ValueError("'odd' is not a valid Stage"), "a NUL: \0", "half a pair: \ud800"):
            with anyio.fail_after(20), pytest.raises(LedgerError, match=r"odd|NUL|surrogates"):
                await shared.do(carry_out, unknown)
            await until(lambda: server.execute(open_ones, values=(database,)) == [(0,)])
            await shared.do(carry_out, 2)
    assert lost == [None] * len(lost)


async def test_a_cancelled_operation(url: str, relay: Relay, server: Server, database: str) -> None:
    """A cancellation is answered at once, whatever the database does; a write is carried out all the same."""
    carried_out: list[str] = []

    def carry_out(transaction: Any, operations: Sequence[Any]) -> list[Any]:
        carried_out.extend(operations)
        return begin_and_commit(transaction, operations)

    async with Database(server.url(database, port=relay.port)) as shared:
        relay.hold()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shared.do, carry_out, "under way")
            await until(lambda: bool(carried_out))
            with anyio.move_on_after(0.1) as writing:
                await shared.do(carry_out, "a write")
            with anyio.move_on_after(0.1) as reading:
                await shared.do(begin_and_commit, "a read", may_withdraw=True)
            assert writing.cancelled_caught
            assert reading.cancelled_caught
            assert [request.operation for request in shared._thread_of(shared._url)._requests] == ["a write"]
            relay.flow()
    assert carried_out == ["under way", "a write"]


async def test_a_connection_that_goes_while_something_is_asked_costs_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread may close its connection while an event loop wakes it: what was asked for is carried out."""
    reads: list[bool] = []

    def session(thread: Any) -> Any:
        if threading.current_thread() is not loop:
            return thread.__dict__["_session"]
        reads.append(True)
        return thread.__dict__["_session"] if len(reads) == 1 else None

    loop, hearing = threading.current_thread(), Hearing()
    async with Database(url) as shared:
        thread = shared._thread_of(shared._url)
        stop = hearing.listen(shared)
        await until(lambda: thread._session is not None and thread._session.is_listening)
        with monkeypatch.context() as patch:
            setting = property(session, lambda thread, value: thread.__dict__.update(_session=value))
            patch.setattr(thread_module.DatabaseThread, "_session", setting, raising=False)
            assert await shared.do(begin_and_commit, 1) == 1
        stop()
    assert reads


async def test_an_owner_that_ends_while_ends_are_collected_is_ended() -> None:
    """Event loops end owners while the thread collects which ends are to be written."""

    class Ending:
        def __hash__(self) -> int:
            row.end_owner(owners.pop(), is_written=False) if owners else None
            return 1

        __call__ = staticmethod(begin_and_commit)

    row, transact = transactions.ProcessRow("the database"), Ending()
    owners = [row.new_owner(transact) for _ in range(9)]
    row.end_owner(owners.pop(), is_written=False)
    assert row.due() == {transact}


# A database that is away.


@pytest.mark.parametrize("how", [2, 3], ids=["fast", "immediate"])
async def test_a_database_that_restarts_is_waited_for(own_server: Server, how: int) -> None:
    """Operations continue while the database is restarted below them; each is carried out once."""
    done = []
    async with Database(own_server.url()) as shared:

        async def ask() -> None:
            for number in range(50):
                done.append(await shared.do(begin_and_commit, number))
                await anyio.sleep(0.01)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await until(lambda: len(done) > 10)
            await anyio.to_thread.run_sync(own_server.stop, how)
            await anyio.to_thread.run_sync(own_server.start)
        assert done == list(range(50))
        assert own_server.execute("SELECT seq FROM knouds_owner") == [(50,)]


@pytest.mark.parametrize("is_passed_on", [False, True])
async def test_a_commit_in_doubt_is_found_out(
    server: Server, database: str, relay: Relay, *, is_passed_on: bool
) -> None:
    """Whether the commit took place when its answer was lost is known, and it takes place exactly once."""
    written: list[int] = []

    def carry_out(transaction: Any, operations: Sequence[Any]) -> list[Any]:
        written.append(1)
        transaction.begin()
        return transaction.commit([len(written)], "INSERT INTO noted VALUES (1)")  # type: ignore[no-any-return]

    server.execute("CREATE TABLE noted (number integer)", database=database)
    async with Database(server.url(database, port=relay.port)) as shared:
        await shared.do(begin_and_commit, 0)
        relay.cut_at(b"INSERT INTO noted", is_passed_on=is_passed_on)
        assert await shared.do(carry_out, None) == (1 if is_passed_on else 2)
        assert relay.cuts == 1
        assert await shared.do(begin_and_commit, "next") == "next"
    assert server.execute("SELECT count(*) FROM noted", database=database) == [(1,)]


async def test_a_commit_in_doubt_whose_operation_was_given_up_is_not_lost(
    server: Server, database: str, relay: Relay
) -> None:
    """The next transaction, of another operation, finds that it took place, and keeps it; nothing counts as lost."""
    lost: list[Any] = []

    def carry_out(transaction: Any, operations: Sequence[Any]) -> list[Any]:
        transaction.begin()
        lost.append(transaction.lost)
        return transaction.commit(list(operations), "INSERT INTO noted VALUES (1)", written=dict.fromkeys(operations))  # type: ignore[no-any-return]

    server.execute("CREATE TABLE noted (number integer)", database=database)
    async with Database(server.url(database, port=relay.port)) as shared:
        await shared.do(carry_out, "first")
        relay.cut_at(b"INSERT INTO noted", is_passed_on=True)
        with pytest.raises(LedgerError, match="cannot be used"):
            await shared.do(carry_out, "given up", patience=0.0)
        for operation in ("next", "last"):
            assert await shared.do(carry_out, operation) == operation
        kept = shared._thread_of(shared._url).row._written
    assert relay.cuts == 1
    assert lost == [None] * 4
    assert [operation for _, operation in kept] == ["first", "given up", "next", "last"]
    assert server.execute("SELECT count(*) FROM noted", database=database) == [(4,)]


def test_what_is_kept_of_commits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many jobs that a process has written the latest are kept, to be written again should a failover lose them."""
    monkeypatch.setattr(transactions, "_REMEMBERED", 3)
    row = transactions.ProcessRow("the database")
    for number in range(9):
        transaction = transactions.Transaction(lambda *_: [], row, begin_and_commit, [])
        transaction.seq = number + 1
        transaction.commit([], written={f"key-{number}": number})
    first = transactions.Transaction(lambda *_: [], row, begin_and_commit, [])
    first.seq = 1  # of all these commits none is there any more
    row.settle(first)
    assert first.lost == {f"key-{number}": number for number in (6, 7, 8)}


async def test_patience_ends(
    anyio_backend_name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A database that cannot be reached is tried for a while, which is said; then the operation fails, and says so."""
    monkeypatch.setattr(thread_module, "_PATIENCE", 0.5)
    monkeypatch.setattr(thread_module, "_FEWEST_TRIES", 3)
    shared = Postgres(f"postgresql://{anyio_backend_name}:{PASSWORD}@127.0.0.1:9/app")
    with pytest.raises(LedgerError, match=r"postgresql://127.0.0.1:9/app cannot be used: .*Nothing more is submitted"):
        await shared.find("key")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert PASSWORD not in caplog.text
    await shared.aclose()


async def test_a_silent_database_counts_as_lost(
    server: Server, database: str, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that answers nothing is left after a while for a new connection, on which the operation is carried out."""
    monkeypatch.setattr(thread_module, "_SILENCE", 0.3)
    async with Database(server.url(database, port=relay.port)) as shared:
        relay.hold()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shared.do, begin_and_commit, 1)
            await until(lambda: shared._thread_of(shared._url)._failures > 0)
            relay.flow()
        assert await shared.do(begin_and_commit, 2) == 2


async def test_a_process_that_is_frozen_in_a_transaction_holds_up_nobody(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database frees its lock after a while; once it continues, its transaction is begun anew."""
    monkeypatch.setattr(transactions, "_IN_TRANSACTION", 1)
    frozen, tries = threading.Event(), []

    def freeze(transaction: Any, operations: Sequence[Any]) -> list[Any]:
        transaction.begin("SELECT name FROM knouds_ledger WHERE name = 'default' FOR UPDATE")
        tries.append(1)
        if len(tries) == 1:
            frozen.wait(20)
        return transaction.commit(list(operations))  # type: ignore[no-any-return]

    async with Postgres(url) as one, Postgres(f"{url}?connect_timeout=9") as other, anyio.create_task_group() as tasks:
        await one.find("key")
        tasks.start_soon(one.do, freeze, None)
        await until(lambda: bool(tries))
        with anyio.fail_after(10):
            await other.find("key")
        frozen.set()
    assert len(tries) == 2


# What the database says of itself.


async def test_settings_of_a_role_that_would_lose_commits(server: Server, database: str, url: str) -> None:
    """Defaults of a database that lose commits, end statements or refuse to write do not count in a transaction."""
    for setting in (
        "synchronous_commit = off",
        "statement_timeout = 50",
        "default_transaction_read_only = on",
        "default_transaction_isolation = serializable",
    ):
        server.execute(f"ALTER DATABASE {database} SET {setting}")
    seen = []

    def show(transaction: Any, operations: Sequence[Any]) -> list[Any]:
        names = "synchronous_commit", "statement_timeout", "transaction_read_only", "transaction_isolation"
        shown = ", ".join(f"current_setting('{name}')" for name in names)
        seen.extend(transaction.begin(f"SELECT {shown}")[0])
        return transaction.commit(list(operations))  # type: ignore[no-any-return]

    async with Database(url) as shared:
        await shared.do(show, None)
    assert seen == [("on", "0", "off", "read committed")]


async def test_a_role_that_may_not_make_tables(server: Server, database: str, url: str) -> None:
    """Its error names the command that makes them; once its owner has run that, it works with them."""
    role = f"role_{database}"
    server.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    theirs = f"postgresql://{role}:{PASSWORD}@127.0.0.1:{server.port}/{database}"
    refused = Postgres(theirs)
    with pytest.raises(LedgerError, match="knouds ledger migrate URL"):
        await refused.find("key")
    await refused.aclose()
    async with Postgres(url) as shared:
        await shared.migrate()
        await shared.migrate()
    server.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}", database=database)
    async with Postgres(theirs) as shared:
        assert await shared.find("key") is None


async def test_a_refusal_says_nothing_of_what_was_submitted_before(server: Server, database: str, url: str) -> None:
    """What a database refuses in the middle of a batch says only that nothing more is submitted."""
    async with Postgres(url) as shared:
        assert await shared.retry_failed() == 0
        server.execute("DROP TABLE knouds_job", database=database)
        with pytest.raises(LedgerError, match=r"knouds ledger migrate URL`; batches on it submit nothing more"):
            await shared.retry_failed()


async def test_tables_of_another_version_are_left_alone(server: Server, database: str, url: str) -> None:
    """A schema that is not known is refused, also by the command, and stays as it is."""
    server.execute(
        "CREATE TABLE knouds_schema (version integer); INSERT INTO knouds_schema VALUES (99)", database=database
    )
    for call in ("__aenter__", "migrate"):
        shared = Postgres(url)
        with pytest.raises(LedgerError, match="99, not 1"):
            await getattr(shared, call)()
        await shared.aclose()
    tables = "SELECT count(*) FROM pg_class WHERE starts_with(relname, 'knouds')"
    assert server.execute(tables, database=database) == [(1,)]


async def test_many_processes_make_the_tables_at_once(url: str) -> None:
    """Those that come first at the same moment make them once."""
    made = [Postgres(f"{url}?connect_timeout={number}") for number in range(20, 28)]
    async with anyio.create_task_group() as tasks:
        for each in made:
            tasks.start_soon(each.find, "key")
    for each in made:
        await each.aclose()


# What is shown.

URL = f"postgresql://somebody:{PASSWORD}@db.internal:5433/app?sslpassword={PASSWORD}"


def test_it_pickles_with_its_url() -> None:
    """What is unpickled connects by itself, so that a pickle holds the password; nothing else shows it."""
    shared = Postgres(URL, name="renders")
    assert repr(shared) == "<Postgres 'postgresql://db.internal:5433/app' name='renders'>"
    copied = pickle.loads(pickle.dumps(shared))  # noqa: S301
    assert repr(copied) == repr(shared)
    assert PASSWORD.encode() in pickle.dumps(shared)
    assert PASSWORD not in str(vars(shared))


def test_both_schemes_are_taken() -> None:
    """`postgres://` names the same as `postgresql://`."""
    assert repr(Postgres("postgres://h/d")) == repr(Postgres("postgresql://h/d"))


SECRETS = f"{PASSWORD}@b@h/d", f"{PASSWORD}/b@h/d", f"{PASSWORD}/d", "123456789/d"


@pytest.mark.parametrize(
    "given",
    [*(f"postgresql://u:{each}" for each in SECRETS), f"https://u:{PASSWORD}@h", f"password={PASSWORD}", 7, None],
)
def test_what_is_no_url_is_not_shown(given: Any) -> None:
    """Whatever is wrong with it, the error names what is expected, and no frame of ours shows what was given."""
    with pytest.raises(ConfigurationError, match="postgresql://user:password@host:5432/database") as caught:
        Postgres(given)
    assert PASSWORD not in shown(caught.value)


async def test_a_wrong_password_shows_in_no_error(
    server: Server, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """That the database refuses is said at once; neither the error, its pickle, its frames nor the log show it."""
    caplog.set_level(logging.DEBUG)
    shared = Postgres(f"postgresql://owner:wrong-{PASSWORD}@127.0.0.1:{server.port}/{database}")
    with pytest.raises(LedgerError, match="password authentication failed") as caught:
        await shared.find("key")
    assert PASSWORD not in shown(caught.value) + caplog.text
    await shared.aclose()


@pytest.mark.parametrize(
    ("state", "words", "advice"),
    [
        ("28P01", "Passwort-Authentifizierung für Benutzer »owner« fehlgeschlagen", "It was left as it is"),
        ("3D000", "Datenbank »app« existiert nicht", "It was left as it is"),
        ("53300", "zu viele Verbindungen für Rolle »owner«", "It was tried for"),
        ("57P03", "das Datenbanksystem startet", "It was tried for"),
    ],
)
async def test_a_refusal_in_another_language_is_understood(
    state: str, words: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server says of a login may be in any language: whether it will ever be granted is in its SQLSTATE."""
    monkeypatch.setattr(thread_module, "_PATIENCE", 0.5)
    monkeypatch.setattr(thread_module, "_FEWEST_TRIES", 3)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=refuse_all, args=(listening, state, words), daemon=True).start()
        shared = Postgres(f"postgresql://owner:{PASSWORD}@127.0.0.1:{listening.getsockname()[1]}/app")
        with pytest.raises(LedgerError, match=f"{words}.*{advice}") as caught:
            await shared.find("key")
        await shared.aclose()
        listening.shutdown(socket.SHUT_RDWR)
    assert PASSWORD not in shown(caught.value)


def refuse_all(listening: socket.socket, state: str, words: str) -> None:
    """Refuse each connection as a server does that speaks no English."""
    fields = "".join(f"{name}{value}\0" for name, value in zip("SVCM", ("FATAL", "FATAL", state, words), strict=True))
    body = f"{fields}\0".encode()
    with suppress(OSError):  # it is closed
        while True:
            client, _ = listening.accept()
            with client:
                while len(client.recv(4096)) == 8:  # it asks for encryption
                    client.sendall(b"N")
                client.sendall(b"E" + (len(body) + 4).to_bytes(4, "big") + body)


async def test_a_role_that_may_not_connect_is_refused_at_once(server: Server, database: str) -> None:
    """What no waiting changes is said at once, whatever PostgreSQL calls it; as a failed login and a missing one."""
    server.execute(f"CREATE ROLE {database} LOGIN PASSWORD 'p'; REVOKE CONNECT ON DATABASE {database} FROM PUBLIC")
    async with AsyncExitStack() as stack:
        for user, place in ((database, database), (f"{database}x", database), (database, f"{database}x")):
            shared = Postgres(f"postgresql://{user}:p@127.0.0.1:{server.port}/{place}")
            stack.push_async_callback(shared.aclose)
            with anyio.fail_after(20), pytest.raises(LedgerError, match=r"permission denied|does not exist|failed"):
                await shared.find("key")


# Who hears what is said.


class Hearing:
    """Notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.resumed = self.deaf = 0

    def listen(self, database: Database) -> Callable[[], None]:
        """Listen in the running event loop, and return what ends that."""
        return database.listen(self.heard.append, lambda: self._add("resumed"), lambda: self._add("deaf"))

    def _add(self, name: str) -> None:
        setattr(self, name, getattr(self, name) + 1)


async def test_what_is_said_is_heard_by_all_who_listen(server: Server, database: str, url: str) -> None:
    """On the one connection, by each process, as long as somebody listens; after a lost connection that is said."""
    hearing = Hearing()
    async with Database(url) as one, Database(f"{url}?connect_timeout=9") as other:
        thread = one._thread_of(one._url)
        stop = hearing.listen(one)
        await until(lambda: thread._session is not None and thread._session.is_listening)
        await other.notify("first")
        await until(lambda: hearing.heard == ["first"])
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
        server.execute(query, values=(database,))
        await until(lambda: hearing.resumed == 1)
        await other.notify("second")
        await until(lambda: hearing.heard == ["first", "second"])
        stop()
        await until(lambda: thread._session is not None and not thread._session.is_listening)
        await other.notify("third")
        await one.do(begin_and_commit, None)
    assert (hearing.heard, hearing.resumed, hearing.deaf) == (["first", "second"], 1, 0)


async def test_a_listener_that_the_database_refuses_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """It is not tried again and again with a wrong password: that nothing can be heard is one warning, with why."""
    hearing = Hearing()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=refuse_all, args=(listening, "28P01", "Passwort falsch"), daemon=True).start()
        async with AsyncExitStack() as stack:
            shared = Database(f"postgresql://owner:{PASSWORD}@127.0.0.1:{listening.getsockname()[1]}/app")
            stack.push_async_callback(shared.aclose)
            for number in (1, 2):
                hearing.listen(shared)
                await until(lambda number=number: hearing.deaf == number)  # type: ignore[misc]
            assert shared._thread_of(shared._url)._listeners == []
        listening.shutdown(socket.SHUT_RDWR)
    (warning,) = caplog.records
    assert "Passwort falsch" in warning.getMessage()
    assert PASSWORD not in warning.getMessage()


async def test_what_was_said_while_a_listener_waited_for_the_database_may_be_missed(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """That the database is away is said once, and when it is back its listener hears that it may have missed some."""
    hearing = Hearing()
    async with AsyncExitStack() as stack:
        shared = Database(own_server.url())
        stack.push_async_callback(shared.aclose)
        await anyio.to_thread.run_sync(own_server.stop)
        stack.callback(hearing.listen(shared))
        await until(lambda: shared._thread_of(shared._url)._failures > 2)
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        await anyio.to_thread.run_sync(own_server.start)
        await until(lambda: hearing.resumed == 1)


async def test_behind_a_pooler_nothing_is_heard_and_that_is_said(
    server: Server, database: str, pooler: Pooler, caplog: pytest.LogCaptureFixture
) -> None:
    """The ledger works through a pooler of transactions; that nothing can be heard is one warning."""
    hearing = Hearing()
    async with Postgres(server.url(database, port=pooler.port)) as shared:
        for number in (1, 2):
            hearing.listen(shared)
            await until(lambda number=number: hearing.deaf == number)  # type: ignore[misc]
        for number in range(20):
            assert await shared.find(f"key-{number}") is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "pooler" in caplog.text


async def test_a_lease_is_renewed_while_the_event_loop_is_blocked(
    server: Server, database: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process is alive as long as its thread says so, whatever its event loop does."""
    monkeypatch.setattr(transactions, "LEASE", 2.0)
    monkeypatch.setattr(transactions, "_RENEW", 0.2)
    alive = "SELECT until > clock_timestamp() FROM knouds_owner"
    async with Postgres(url) as shared:
        owner = await shared.join()
        time.sleep(4)  # noqa: ASYNC251  (the point of the test)
        assert server.execute(alive, database=database) == [(True,)]
        await shared.leave(owner)
        await until(lambda: server.execute(alive, database=database) == [(False,)])
