"""The ledger in PostgreSQL: the same as the one in SQLite, on many machines, and after a failover."""

from __future__ import annotations

import asyncio
import pickle
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import attrs
import httpx
import psycopg
import pytest

from knouds_async import (
    AsyncKnouds,
    Completed,
    InvalidArgumentError,
    Job,
    KnoudsError,
    LedgerError,
    Outcome,
    SharedLimiter,
    SQLiteLedger,
)
from knouds_async._batch.postgres import LedgerTransactions
from knouds_async._io import postgres as thread_module
from knouds_async._io import transactions
from knouds_async._sansio.clock import Moment
from knouds_async._sansio.ledger import (
    Ended,
    Ending,
    Lost,
    NoneFound,
    NoRun,
    PickedUp,
    Sending,
)
from knouds_async.ledgers import Accepted, Claim, Doubted, Ledger, OwnerGone, Payer, Stage, Taken, Written
from knouds_async.postgres import Postgres
from knouds_async.testing import Emulator, faults
from knouds_async.testing.transport import EmulatorTransport
from knouds_async.webhooks import WebhookReceiver
from tests.postgres.frames import frames_that_show
from tests.postgres.relay import Relay
from tests.postgres.server import PASSWORD, Pooler, Server, shown, until

pytestmark = pytest.mark.slow

SLUG = "my-thumbnail-pipeline"
TARGET, DIGEST = "workflows/w", "0" * 64

Lag: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
Failover: TypeAlias = Callable[..., Coroutine[Any, Any, None]]


def claim(key: str, owner: str, *, reserve: float | None = 1.0, cap: float | None = None) -> Claim:
    """Return a claim on a job."""
    sending = Sending(owner=owner, sent_at=1000.0, reserve=reserve, account="u https://k")
    return Claim(key=key, target=TARGET, digest=DIGEST, sending=sending, cap=cap)


def ended(cost: float | None = 1.0, status: Any = "completed") -> Ended:
    """Return the end of a run."""
    return Ended(Ending(status=status, cost=cost, reply='{"a": "\\u0000 %s \\ud800 \' \\\\"}', message="half \ud800"))


# As the one in SQLite.

Step = Callable[[Ledger, str], Any]


def step(dice: random.Random) -> Step:
    """Return a random operation, for a ledger and one of its owners."""
    key, run = f"key-{dice.randrange(4)}", f"run-{dice.randrange(6)}"
    cost = dice.choice([None, 0.0, 1.0, dice.uniform(1, 50)])
    status = dice.choice(["completed", "completed", "failed", "cancelled"])
    reserve, cap = dice.choice([None, 1.0, 5.0]), dice.choice([None, None, 40.0])
    events: list[Callable[[str], Any]] = [
        lambda owner: Accepted(owner=owner, execution_id=run, request_id=f"kie_{run}"),
        lambda owner: Accepted(owner=owner, execution_id=run, request_id=f"kie_{run}"),
        NoRun,
        lambda owner: Lost(owner, "no answer"),
        lambda _: ended(cost, status),
        lambda _: ended(cost, status),
        lambda _: OwnerGone(),
        lambda owner: OwnerGone(owner=owner),
        PickedUp,
        lambda _: NoneFound(1000.0),
    ]
    event, attempt = dice.choice(events), dice.choice([1, 1, 1, 2])
    steps: list[Step] = [
        lambda ledger, owner: ledger.claim(claim(key, owner, reserve=reserve, cap=cap)),
        lambda ledger, owner: ledger.claim(claim(key, owner, reserve=reserve, cap=cap)),
        *[lambda ledger, owner: ledger.record(key, attempt, event(owner))] * 4,
        lambda ledger, _: ledger.look(key),
        lambda ledger, _: ledger.summary(TARGET),
        lambda ledger, _: ledger.known_runs(TARGET, "u https://k", dice.choice([0.0, 2000.0])),
        lambda ledger, _: getattr(ledger, dice.choice(["approve_resend", "abandon"]))(key),
        lambda ledger, _: ledger.resolve(key, "5e0c9f10-3f41-4ce7-9b0f-2f6f8f1d2c3b"),  # type: ignore[attr-defined]
        lambda ledger, _: ledger.counts(),  # type: ignore[attr-defined]
        lambda ledger, _: ledger.unknown(),  # type: ignore[attr-defined]
        lambda ledger, _: ledger.retry_failed(),  # type: ignore[attr-defined]
    ]
    return dice.choice(steps)


async def result(ledger: Ledger, owners: list[str], number: int, seed: str) -> str:
    """Return what a random operation gave, with the names of owners and of the ledger made the same."""
    operation = step(random.Random(seed))
    try:
        value = await operation(ledger, owners[number % len(owners)])
    except ValueError as error:
        value = type(error).__name__
    if isinstance(value, Written):
        value = attrs.evolve(value, committed=None)
    if isinstance(value, tuple):
        value = sorted(value, key=repr)  # those of one moment come in any order
    shown = repr(value)
    for place, owner in enumerate(owners):
        shown = shown.replace(owner, f"owner {place}")
    return shown


@pytest.mark.parametrize("seed", range(4))
async def test_it_does_what_the_one_in_sqlite_does(url: str, tmp_path: Path, seed: int) -> None:
    """Any sequence of operations has the same results in both, and leaves the same entries and credits."""
    async with Postgres(url, name="a 'name' with %s") as postgres, SQLiteLedger(tmp_path / "jobs.db") as sqlite:
        owners = [([await ledger.join() for _ in range(3)]) for ledger in (postgres, sqlite)]
        for number in range(200):
            ours = await result(postgres, owners[0], number, f"{seed} {number}")
            theirs = await result(sqlite, owners[1], number, f"{seed} {number}")
            assert ours == theirs, number


async def test_what_no_text_of_postgres_can_hold_is_escaped(url: str) -> None:
    """A NUL and half a surrogate pair in the words of the service are kept as an escape, and spoil no transaction."""
    async with Postgres(url) as ledger:
        owner = await ledger.join()
        await ledger.claim(claim("key", owner))
        await ledger.record("key", 1, Lost(owner, "a \x00 and \ud800"))
        (entry,) = await ledger.unknown()
        assert entry.note == "a \\x00 and \\ud800"
        with pytest.raises(InvalidArgumentError, match="printable"):
            await ledger.find("a\x00b")


async def test_a_row_that_makes_no_sense_is_an_error_of_the_ledger(server: Server, database: str, url: str) -> None:
    """Whatever somebody has written into the table, the error is a LedgerError, wherever the row is read."""
    async with Postgres(url) as ledger:
        owner = await ledger.join()
        await ledger.claim(claim("key", owner))
        await ledger.record("key", 1, Lost(owner, "no answer"))
        server.execute("UPDATE knouds_job SET since = '{'", database=database)
        for call in (ledger.unknown, partial(ledger.look, "key")):
            with pytest.raises(LedgerError, match="JSONDecodeError: "):
                await call()


async def test_ledgers_of_a_database_know_nothing_of_each_other(url: str) -> None:
    """Each name has its own jobs, credits and payer."""
    payers = [Payer(user=user, base_url="https://knouds.ai") for user in ("one", "other")]
    async with Postgres(url, name="one") as one, Postgres(url, name="other") as other:
        for ledger, payer in ((one, payers[0]), (other, payers[1])):
            await ledger.bind(payer)
            assert isinstance(await ledger.claim(claim("key", await ledger.join())), Written)
        assert (await one.counts()).credits_reserved == (await other.counts()).credits_reserved == 1.0
        with pytest.raises(LedgerError, match="account one"):
            await one.bind(payers[1])
        await one.rebind()
        await one.bind(payers[1])


# On many machines.


def machines(url: str, count: int) -> list[Postgres]:
    """Return what so many machines hold of one ledger: each with a thread, a connection and a lease of its own."""
    return [Postgres(f"{url}?application_name=machine{number}") for number in range(count)]


async def run_out(server: Server, database: str) -> None:
    """Make all leases run out."""
    await anyio.to_thread.run_sync(
        lambda: server.execute("UPDATE knouds_owner SET until = now() - interval '1 s'", database=database)
    )


async def test_a_machine_that_is_gone_loses_its_claims(server: Server, database: str, url: str) -> None:
    """While its lease holds, its jobs are its own; after that what it was sending is unknown."""
    one, other = machines(url, 2)
    async with one, other:
        theirs, mine = await one.join(), await other.join()
        for key in ("sending", "running"):
            await one.claim(claim(key, theirs))
        await one.record("running", 1, Accepted(owner=theirs, execution_id="run-1"))
        assert [(await other.look(key)).owner for key in ("sending", "running")] == [theirs] * 2  # type: ignore[union-attr]
        assert await other.unknown() == ()
        await run_out(server, database)
        assert [entry.key for entry in await other.unknown()] == ["sending"]
        assert (await other.look("running")).owner is None  # type: ignore[union-attr]
        picked_up = await other.record("running", 1, PickedUp(mine))
        assert picked_up.entry.owner == mine
        late = await one.record("sending", 1, Accepted(owner=theirs, execution_id="run-2"))
        assert (late.entry.stage, late.entry.execution_id) == (Stage.SUBMITTED, "run-2")


async def test_a_lease_that_ran_out_unnoticed_goes_on(server: Server, database: str, url: str) -> None:
    """A machine that was asleep keeps its jobs where nobody has acted on its end meanwhile."""
    one, other = machines(url, 2)
    async with one, other:
        owner = await one.join()
        await one.claim(claim("key", owner))
        await run_out(server, database)
        await one.record("key", 1, Accepted(owner=owner, execution_id="run-1"))
        found = await other.look("key")
        assert found is not None
        assert (found.stage, found.owner) == (Stage.SUBMITTED, owner)


async def test_a_batch_whose_event_loop_was_closed_is_gone(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process lives and keeps the lease for others: machines that wait for its jobs would do so for ever."""
    monkeypatch.setattr(transactions, "_RENEW", 0.2)
    one, other = machines(url, 2)

    def abandon() -> None:
        loop = asyncio.new_event_loop()
        owner = loop.run_until_complete(one.join())
        loop.run_until_complete(one.claim(claim("key", owner)))
        loop.close()

    async with one, other:
        await anyio.to_thread.run_sync(abandon)
        owner = await one.join()
        await one.claim(claim("another", owner))
        with anyio.fail_after(20):
            while (found := await other.look("key")) is None or found.stage is Stage.SENDING:
                await one.claim(claim("another", owner))
                await anyio.sleep(0.1)
        assert found.stage is Stage.UNKNOWN
        still = await other.look("another")
        assert still is not None
        assert (still.stage, still.owner) == (Stage.SENDING, owner)


async def test_rows_of_processes_that_are_gone_for_long_are_removed(server: Server, database: str, url: str) -> None:
    """Each process that comes removes them, but none that is back, has a job, or was there within the last days."""
    names = "SELECT name FROM knouds_owner WHERE length(name) < 9 ORDER BY 1"
    gone, comes = machines(url, 2)
    async with gone:
        await gone.claim(claim("key", await gone.join()))
        server.execute(GONE_FOR_LONG, database=database)
        with psycopg.connect(server.url(database)) as back:
            back.execute("UPDATE knouds_owner SET until = now() WHERE name = 'back'")
            async with comes:
                assert await comes.find("another") is None
                await until(lambda: len(server.execute(names, database=database)) == 3)
    assert server.execute(names, database=database) == [("back",), ("recent",), ("working",)]


GONE_FOR_LONG = """
    UPDATE knouds_owner SET name = 'working', until = now() - interval '9 days';
    UPDATE knouds_job SET owner = 'working/1';
    INSERT INTO knouds_owner (name, seq, place, until) SELECT name, 9, '?', now() - make_interval(days => days)
        FROM (VALUES ('old', 8), ('older', 80), ('recent', 6), ('back', 8)) AS process (name, days)
"""


async def test_a_process_whose_row_was_removed_is_not_in_doubt(
    server: Server, database: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had nothing to do for days, and its row is made anew; where a row goes sooner, a failover has lost commits."""
    async with Postgres(url) as ledger:
        owner = await ledger.join()
        await ledger.claim(claim("key", owner))
        with monkeypatch.context() as patch:
            patch.setattr(transactions, "_LONG_SILENCE", 0.0)
            server.execute("DELETE FROM knouds_owner", database=database)
            assert isinstance(await ledger.claim(claim("another", owner)), Written)
        assert await ledger.doubt() is None
        server.execute("DELETE FROM knouds_owner", database=database)
        assert isinstance(await ledger.claim(claim("next", owner)), Doubted)


async def test_an_id_that_waits_for_the_database_is_recorded_when_it_is_back(server: Server, database: str) -> None:
    """Cut off after its submit has left, a machine is gone for others, which do not send its job."""
    relay = Relay(server.port)
    one, other = Postgres(server.url(database, port=relay.port)), Postgres(server.url(database))
    try:
        async with one, other, anyio.create_task_group() as tasks:
            owner = await one.join()
            await one.claim(claim("key", owner))
            relay.hold()
            tasks.start_soon(one.record, "key", 1, Accepted(owner=owner, execution_id="run-1"))
            await run_out(server, database)
            assert [entry.key for entry in await other.unknown()] == ["key"]
            assert isinstance(await other.claim(claim("key", await other.join())), Taken)
            relay.flow()
        found = await Postgres(server.url(database)).find("key")
        assert found is not None
        assert (found.stage, found.execution_id) == (Stage.SUBMITTED, "run-1")
    finally:
        relay.close()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_connections_that_have_run_out_are_waited_for(server: Server, database: str) -> None:
    """A process that gets none waits until another gives one back, and its operation is carried out."""
    role = f"limited_{database}"
    server.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 1")
    server.execute(f"GRANT ALL ON SCHEMA public TO {role}", database=database)
    one, other = machines(f"postgresql://{role}:{PASSWORD}@127.0.0.1:{server.port}/{database}", 2)
    async with other, anyio.create_task_group() as tasks, one:
        await one.join()
        tasks.start_soon(other.find, "key")
        await anyio.sleep(0.5)
        assert other._thread_of(other._url)._failures > 0


async def test_clocks_of_machines_do_not_count(
    server: Server, database: str, url: str, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease is as long as the database's clock says, and a submit is dated by the service's, months from here."""
    wall = time.time
    for offset in (-600.0, 600.0):
        monkeypatch.setattr(time, "time", lambda offset=offset: wall() + offset)
        job = Job(f"at {offset:+}", {"product_name": f"{offset}"})
        async with Postgres(url) as ledger, machine(emulator) as knouds:
            async with knouds.workflows.map(SLUG, [job], ledger=ledger) as outcomes:
                assert [type(outcome) async for outcome in outcomes] == [Completed]
                query = "SELECT extract(epoch FROM max(until) - clock_timestamp())::float8 FROM knouds_owner"
                assert 30 < server.execute(query, database=database)[0][0] <= 60
            entry, row = await ledger.find(job.key), (await knouds.usage.list()).rows[0]
        assert entry is not None
        assert entry.since is not None
        assert row.created_at is not None
        assert abs(row.created_at.timestamp() - entry.since.middle) < 10


async def test_only_one_machine_gets_a_job(url: str) -> None:
    """Of claims on the same job that come at once from everywhere, one is granted."""
    shared = machines(url, 4)
    granted: list[str] = []

    async def try_each(ledger: Postgres) -> None:
        owner = await ledger.join()

        async def one(key: str) -> None:
            if isinstance(await ledger.claim(claim(key, owner)), Written):
                granted.append(key)

        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(one, f"key-{number}")

    async with AsyncExitStack() as stack:
        for each in shared:
            await stack.enter_async_context(each)
        async with anyio.create_task_group() as tasks:
            for each in shared:
                tasks.start_soon(try_each, each)
        assert sorted(granted) == sorted(f"key-{number}" for number in range(50))
        assert (await shared[0].counts()).sending == 50


async def test_a_budget_holds_over_machines(url: str) -> None:
    """Claims of several machines together stay within the cap of the ledger."""
    one, other = machines(url, 2)
    async with one, other:
        owners = [(ledger, await ledger.join()) for ledger in (one, other)]
        claims = [
            isinstance(await ledger.claim(claim(f"{owner} {number}", owner, cap=7.0)), Written)
            for number in range(5)
            for ledger, owner in owners
        ]
        assert claims.count(True) == 7


async def test_an_end_that_could_not_be_written_is_written_later(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner that left while the database was away is gone with the next transaction of its process, once."""
    one, other = machines(url, 2)
    async with one, other:
        owner, stays = await one.join(), await one.join()
        await one.claim(claim("key", owner))
        with monkeypatch.context() as patch:
            patch.setattr(LedgerTransactions, "__call__", _away)
            with pytest.raises(LedgerError):
                await one.leave(owner)
            assert await reading(other, "key") is Stage.SENDING
        await one.claim(claim("another", stays))
        assert await reading(other, "key") is Stage.UNKNOWN
        await one.leave(stays)
        assert not one._thread_of(one._url).row.is_wanted()


async def reading(ledger: Postgres, key: str) -> Stage | None:
    """Return where a job stands in the tables."""
    async with ledger.reading() as find:
        entry = await find(key)
    return None if entry is None else entry.stage


def _away(*_: Any) -> list[Any]:
    raise LedgerError("away")


@pytest.mark.parametrize("is_silent", [False, True])
async def test_to_leave_waits_for_no_database_that_is_away(
    own_server: Server, *, is_silent: bool, emulator: Emulator
) -> None:
    """A batch that is cancelled while the database is stopped, or silent, ends and closes its ledger in a moment.

    Once the database is back its jobs are free, though its process lives and asks for nothing.
    """
    relay = Relay(own_server.port)
    url = own_server.url(port=relay.port)
    emulator.duration = 3600.0
    try:
        async with Postgres(url, name="of another batch") as stays, machine(emulator) as knouds:
            await stays.join()
            with anyio.fail_after(25):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(partial(run, knouds, url, 2))
                    await until(lambda: _submitted(own_server) == 2)
                    relay.hold() if is_silent else await anyio.to_thread.run_sync(own_server.stop)
                    tasks.cancel_scope.cancel()
            assert len(emulator.runs) == 2
            relay.flow() if is_silent else await anyio.to_thread.run_sync(own_server.start)
            await until(lambda: _owned(own_server) == 0)
    finally:
        relay.close()


def _submitted(server: Server) -> int:
    if not server.execute("SELECT to_regclass('knouds_job') IS NOT NULL")[0][0]:
        return 0
    return int(server.execute("SELECT count(*) FROM knouds_job WHERE stage = 'submitted'")[0][0])


def _owned(server: Server) -> int:
    return int(server.execute("SELECT count(*) FROM knouds_job WHERE owner IS NOT NULL")[0][0])


async def test_a_pooler_in_between(server: Server, database: str, pooler: Pooler) -> None:
    """The ledger is the same behind a pooler that gives each transaction another connection."""
    url = server.url(database, port=pooler.port)
    one, other = machines(url, 2)
    async with one, other:
        owners = [(ledger, await ledger.join()) for ledger in (one, other)]
        for number in range(40):
            ledger, owner = owners[number % 2]
            assert isinstance(await ledger.claim(claim(f"key-{number}", owner)), Written)
            await ledger.record(f"key-{number}", 1, Accepted(owner=owner, execution_id=f"run-{number}"))
        assert (await one.counts()).submitted == 40


# After a failover.


@asynccontextmanager
async def failed_over(folder: Path, primary: Server) -> AsyncIterator[tuple[str, Lag, Failover]]:
    """Return the URL of a primary with a standby, what makes the standby fall behind, and what promotes it then."""
    standby = Server(folder / f"standby{primary.port}" / "data")
    standby.copy_of(primary)
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"

    async def lag() -> None:
        await until_replicated(primary)
        await anyio.to_thread.run_sync(standby.stop)

    async def fail_over(*, waits: float = 0.0) -> None:
        await anyio.to_thread.run_sync(primary.stop)
        await anyio.to_thread.run_sync(standby.start)
        await anyio.sleep(waits)
        await anyio.to_thread.run_sync(standby.promote)

    try:
        await anyio.to_thread.run_sync(standby.start)
        yield primary.url().replace(f"127.0.0.1:{primary.port}", hosts), lag, fail_over
    finally:
        standby.stop()


async def test_a_failover_to_a_replica_that_is_behind(folder: Path, own_server: Server) -> None:
    """Who was there finds commits missing, who comes later finds another database; both claim nothing.

    Who was there writes what it knows once more. After a person has allowed it, both continue.
    """
    async with failed_over(folder, own_server) as (url, lag, fail_over):
        survivor, newcomer = machines(url, 2)
        async with survivor:
            owner = await survivor.join()
            await survivor.claim(claim("replicated", owner))
            await lag()
            for number in range(10):
                await survivor.claim(claim(f"lost-{number}", owner))
            await survivor.record("lost-1", 1, Accepted(owner=owner, execution_id="run-1"))
            await survivor.record("lost-2", 1, NoRun(owner))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(fail_over, waits=1.0))
                await anyio.sleep(0.5)
                assert isinstance(await survivor.claim(claim("next", owner)), Doubted)
            async with newcomer:
                theirs = await newcomer.join()
                assert isinstance(await newcomer.claim(claim("next", theirs)), Doubted)
                known = [await newcomer.find(f"lost-{number}") for number in range(4)]
                assert [each and each.stage for each in known] == ["sending", "submitted", None, "sending"]
                assert (await newcomer.counts()).credits_reserved == 10.0
                await newcomer.trust()
                assert isinstance(await newcomer.claim(claim("lost-2", theirs)), Written)
            assert isinstance(await survivor.claim(claim("next", owner)), Written)
            late = await survivor.record("lost-0", 1, Accepted(owner=owner, execution_id="run-0"))
            assert late.entry.stage is Stage.SUBMITTED


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_failover_that_lost_nothing_is_settled_by_the_usage_rows(
    folder: Path, own_server: Server, knouds: AsyncKnouds, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch waits until rows of all runs would be there, finds each on record, and continues without a person."""
    monkeypatch.setattr("knouds_async._sansio.reconcile.LAG", 3.0)
    async with failed_over(folder, own_server) as (url, lag, fail_over), Postgres(url) as ledger:
        assert {type(outcome) for outcome in await run(knouds, ledger, 5)} == {Completed}
        await lag()
        await fail_over()
        found = await run(knouds, ledger, 20)
        assert [type(outcome) for outcome in found] == [Completed] * 20
    assert len(emulator.runs) == 20
    emulator.assert_charged_once()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_run_that_a_failover_lost_stops_the_batch(
    folder: Path, own_server: Server, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """The process that sent it is gone, and its row is nobody's: the batch submits nothing, and names the row."""
    monkeypatch.setattr("knouds_async._sansio.reconcile.LAG", 3.0)
    async with failed_over(folder, own_server) as (url, lag, fail_over):
        async with machine(emulator) as knouds, Postgres(url) as ledger:
            await run(knouds, ledger, 3)
            await lag()
            await run(knouds, ledger, 4)
        await fail_over()
        forget_processes()
        async with machine(emulator) as knouds, Postgres(url) as ledger:
            lost = emulator.runs[-1].request_id
            with pytest.raises(LedgerError, match=rf"no job on record accounts for usage row .*request {lost}\)"):
                await run(knouds, ledger, 8)
            with pytest.raises(LedgerError, match=f"request {lost}"):
                await knouds.workflows.once(SLUG, Job("job-3", {"product_name": "3"}), ledger=ledger)
            assert len(emulator.runs) == 4
            warned = [each for each in caplog.records if getattr(each, "event_name", "") == "ledger_in_doubt"]
            assert len(warned) == 1
            await ledger.trust()
            assert len(await run(knouds, ledger, 8)) == 8


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_processes_that_live_restore_what_a_failover_lost(
    folder: Path, own_server: Server, knouds: AsyncKnouds, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch under way writes its lost commits once more, so that it continues and pays for nothing twice."""
    monkeypatch.setattr("knouds_async._sansio.reconcile.LAG", 3.0)
    emulator.duration = 0.3
    found: list[Outcome] = []
    async with failed_over(folder, own_server) as (url, lag, fail_over), Postgres(url) as ledger:
        await run(knouds, ledger, 3)
        await lag()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_run_all, found, knouds, ledger, 60)
            while len(emulator.runs) < 25:  # noqa: ASYNC110
                await anyio.sleep(0.02)
            await fail_over()
        assert (await ledger.counts()).completed == 60
    assert len(emulator.runs) == 60
    emulator.assert_charged_once()


async def _run_all(found: list[Outcome], knouds: AsyncKnouds, ledger: Postgres, count: int) -> None:
    found += await run(knouds, ledger, count, max_in_flight=10)


async def until_replicated(server: Server) -> None:
    """Wait until a standby has all there is."""
    query = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_lsn()"
    with anyio.fail_after(30):
        while not (await anyio.to_thread.run_sync(server.execute, query))[0][0]:  # noqa: ASYNC110
            await anyio.sleep(0.05)


def forget_processes() -> None:
    """Forget what this process is in its databases, as if it were another."""
    thread_module._threads.clear()


async def test_a_backup_that_was_restored(server: Server, database: str, url: str) -> None:
    """A ledger on another timeline than its own sends nothing before a person says so."""
    async with Postgres(url) as ledger:
        assert await ledger.doubt() is None
        owner = await ledger.join()
        assert await ledger.doubt() is None
        server.execute("UPDATE knouds_ledger SET timeline = '1/00000001'", database=database)
        before = _all_rows(server, database)
        assert "another database" in (await ledger.doubt() or "")
        assert (await ledger.counts()).new == 0
        assert _all_rows(server, database) == before
        doubted = await ledger.claim(claim("key", owner))
        assert isinstance(doubted, Doubted)
        assert "another database" in doubted.message
        assert await ledger.unknown() == ()
        assert await ledger.doubt() == doubted.message
        await ledger.trust()
        assert await ledger.doubt() is None
        assert isinstance(await ledger.claim(claim("key", owner)), Written)


FORGOTTEN = "UPDATE knouds_ledger SET timeline = '1/00000001'"


async def test_what_was_proven_of_one_failover_settles_no_other(server: Server, database: str, url: str) -> None:
    """Trust holds for the doubt that was checked: one that was noticed meanwhile is another, since the same moment."""
    async with Postgres(url) as ledger:
        await ledger.bind(Payer(user="u", base_url="https://k"))
        owner = await ledger.join()
        since = Moment(wall=0.0, earliest=7.0, latest=8.0)
        first = claim("first", owner)
        await ledger.claim(attrs.evolve(first, sending=attrs.evolve(first.sending, since=since)))
        server.execute(FORGOTTEN, database=database)
        doubted = await ledger.claim(claim("key", owner))
        assert isinstance(doubted, Doubted)
        assert (doubted.doubt.since, doubted.doubt.until) == (7.0, None)
        dated = await doubted.again(Moment(wall=0.0, earliest=90.0, latest=91.0))
        assert dated is not None
        assert (dated.doubt.id, dated.doubt.until) == (doubted.doubt.id, 91.0)
        server.execute(FORGOTTEN, database=database)
        other = await dated.trust()
        assert other is not None
        assert (other.doubt.id == doubted.doubt.id, other.doubt.since) == (False, 7.0)
        later = await dated.again(Moment(wall=0.0, earliest=99.0, latest=99.0))
        assert later is not None
        assert later.doubt.until is None
        assert isinstance(await ledger.claim(claim("key", owner)), Doubted)
        assert await other.trust() is None
        assert isinstance(await ledger.claim(claim("key", owner)), Written)
        assert await other.again(since) is None


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_run_that_somebody_named_is_accounted_for(
    server: Server,
    database: str,
    url: str,
    knouds: AsyncKnouds,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The row of a job that is unknown keeps a ledger in doubt until it is resolved: then the run is asked for it."""
    monkeypatch.setattr("knouds_async._sansio.reconcile.LAG", 3.0)
    emulator.faults.add(faults.closed(after_run=True), route="POST /api/workflows/:slug/run", nth=3)
    async with Postgres(url) as ledger:
        await run(knouds, ledger, 5)
        (unknown,) = await ledger.unknown()
        (theirs,) = (each for each in emulator.runs if f"job-{each.inputs['product_name']}" == unknown.key)
        server.execute(FORGOTTEN, database=database)
        with pytest.raises(LedgerError, match="no job on record accounts for"):
            await run(knouds, ledger, 8)
        await ledger.resolve(unknown.key, theirs.execution_id)
        assert [type(outcome) for outcome in await run(knouds, ledger, 8)] == [Completed] * 8
    assert len(emulator.runs) == 8


# In a batch.


@pytest.fixture
async def knouds(emulator: Emulator) -> AsyncIterator[AsyncKnouds]:
    """Return a client on the emulator, by the clock on the wall."""
    async with machine(emulator) as client:
        yield client


@asynccontextmanager
async def machine(emulator: Emulator) -> AsyncIterator[AsyncKnouds]:
    """Run a client on the emulator, by the clock on the wall."""
    async with (
        httpx.AsyncClient(transport=EmulatorTransport(emulator)) as http,
        AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http) as client,
    ):
        yield client


@pytest.fixture
def emulator() -> Emulator:
    """Return a service without limits whose runs are over at once."""
    return Emulator(tier="enterprise", duration=0.05)


async def run(knouds: AsyncKnouds, ledger: Ledger | str, count: int, **options: Any) -> list[Outcome]:
    """Run a batch to its end."""
    jobs = [Job(f"job-{number}", {"product_name": f"{number}"}) for number in range(count)]
    async with knouds.workflows.map(SLUG, jobs, ledger=ledger, **options) as outcomes:
        return [outcome async for outcome in outcomes]


async def test_batches_of_two_machines_share_the_jobs(knouds: AsyncKnouds, emulator: Emulator, url: str) -> None:
    """Batches of the same jobs on two machines at once pay for each of them once, and both have all outcomes."""
    one, other = machines(url, 2)
    found: list[Outcome] = []

    async def batch(ledger: Postgres) -> None:
        found.extend(await run(knouds, ledger, 40))

    async with one, other:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(batch, one)
            tasks.start_soon(batch, other)
        assert (await one.counts()).completed == 40
    assert len(emulator.runs) == 40
    assert sum(isinstance(outcome, Completed) for outcome in found) >= 40


async def test_a_batch_while_the_database_restarts(knouds: AsyncKnouds, emulator: Emulator, own_server: Server) -> None:
    """Every job is paid for once and has its outcome."""

    async def restart() -> None:
        await anyio.sleep(0.3)
        for _ in range(2):
            await anyio.to_thread.run_sync(own_server.stop, 3)
            await anyio.to_thread.run_sync(own_server.start)

    found: list[Outcome] = []
    async with Postgres(own_server.url()) as ledger, anyio.create_task_group() as tasks:
        tasks.start_soon(restart)
        found += await run(knouds, ledger, 150)
    assert sum(isinstance(outcome, Completed) for outcome in found) == 150
    emulator.assert_charged_once()


async def test_a_url_is_taken_wherever_a_path_is(knouds: AsyncKnouds, emulator: Emulator, url: str) -> None:
    """A batch given the URL as a string uses the ledger of the name `default`, and runs no job twice."""
    jobs = [Job(f"job-{number}", {"product_name": f"{number}"}) for number in range(5)]
    for _ in range(2):
        async with knouds.workflows.map(SLUG, jobs, ledger=url) as outcomes:
            assert [type(outcome) async for outcome in outcomes] == [Completed] * 5
    assert len(emulator.runs) == 5


async def test_an_estimate_writes_nothing(
    server: Server, database: str, url: str, knouds: AsyncKnouds, emulator: Emulator
) -> None:
    """Neither tables nor a row, not even the end of an owner whose lease has run out."""
    batch = partial(knouds.workflows.map, SLUG, [Job(f"job-{n}", {"product_name": f"{n}"}) for n in range(3)])
    assert (await batch(ledger=url).estimate()).to_run == 3
    shared = Postgres(url)
    assert (await batch(ledger=shared).estimate()).to_run == 3
    assert _all_rows(server, database) == []
    async with shared:
        assert len(await run(knouds, shared, 2)) == 2
        await shared.claim(claim("of another", await shared.join()))
        await run_out(server, database)
        before = _all_rows(server, database)
        estimate = await batch(ledger=shared).estimate()
        assert (estimate.already_done, _all_rows(server, database)) == (2, before)
    assert len(emulator.runs) == 2


def _all_rows(server: Server, database: str) -> list[Any]:
    query = "SELECT relname FROM pg_class WHERE starts_with(relname, 'knouds') AND relkind = 'r'"
    names = sorted(name for (name,) in server.execute(query, database=database))
    return [server.execute(f"SELECT * FROM {name} ORDER BY 1", database=database) for name in names]  # noqa: S608


async def test_an_estimate_refuses_tables_of_another_version(url: str, server: Server, database: str) -> None:
    """What cannot be read is no empty ledger."""
    server.execute("CREATE TABLE knouds_schema (version integer)", database=database)
    async with Postgres(url).reading() as find:
        with pytest.raises(LedgerError, match="none, not 1"):
            await find("key")


async def test_a_batch_shows_no_password(knouds: AsyncKnouds) -> None:
    """Neither an error of an argument nor one of the URL shows it, whatever a report shows of our frames."""
    malformed: list[tuple[str, int | None]] = [
        (f"postgresql://u:{PASSWORD}@h/d", 0),
        (f"postgresql://{PASSWORD}@b@h", 1),
    ]
    for url, most in malformed:
        with pytest.raises(ValueError, match=r"max_in_flight|postgresql://user") as caught:
            knouds.workflows.map(SLUG, [], ledger=url, max_in_flight=most)
        assert PASSWORD not in shown(caught.value)


async def test_a_call_that_fails_shows_no_password(
    knouds: AsyncKnouds, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for a database holds its URL for long: no frame of ours shows it when that fails."""
    monkeypatch.setattr(thread_module, "_PATIENCE", 0.2)
    monkeypatch.setattr(thread_module, "_FEWEST_TRIES", 2)
    url, inputs = f"postgresql://u:{PASSWORD}@127.0.0.1:9/d", {"product_name": "Lamp"}
    for call in (
        lambda: knouds.workflows.once(SLUG, Job("key", inputs), ledger=url),
        lambda: knouds.workflows.submit(SLUG, inputs, key="key", ledger=url),
        lambda: run(knouds, url, 1),
    ):
        with pytest.raises(LedgerError) as caught:
            await call()
        assert PASSWORD not in shown(caught.value)
    assert len(emulator.runs) == 0


async def test_what_was_meant_as_a_url_is_no_path(knouds: AsyncKnouds) -> None:
    """Misspelled it is refused, not taken for the path of a file, which every message would show."""
    for url in MISSPELLED:
        for call in (partial(knouds.workflows.map, SLUG, [], ledger=url), partial(SQLiteLedger, url)):
            with pytest.raises(ValueError, match=r"postgresql://user|knouds_async\.postgres") as caught:
                call()
            assert PASSWORD not in shown(caught.value)


async def test_no_frame_of_ours_holds_a_password(knouds: AsyncKnouds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever takes a URL hides it before it calls anything, so that no traceback with locals can show it."""
    monkeypatch.setattr(thread_module, "_PATIENCE", 0.2)
    monkeypatch.setattr(thread_module, "_FEWEST_TRIES", 2)
    calls = [call for url in UNUSABLE for call in _calls_with_a_url(knouds, url)]
    with frames_that_show(PASSWORD) as found:
        for call in calls:
            with suppress(KnoudsError):
                if isinstance(waiting := call(), Coroutine):
                    await waiting
    assert found == set()


MISSPELLED = tuple(
    f"{scheme}u:{PASSWORD}@h/d"
    for scheme in (
        " postgresql://",
        "POSTGRESQL://",
        "postgresql+psycopg://",
        "postgresql:",
        "postgresql//",
        "mysql://",
        "mysql://a/",
        "mysql//",
        "//",
        "",
    )
)
UNUSABLE = (
    f"postgresql://u:{PASSWORD}@127.0.0.1:9/d",
    f"postgresql://u:{PASSWORD}@b@h/d",
    f"postgresql://u:{PASSWORD}/d",
    *MISSPELLED,
    f"host=h password={PASSWORD}",
)


def _calls_with_a_url(knouds: AsyncKnouds, url: Any) -> Iterator[Callable[[], Any]]:
    """Return every call that takes one."""
    inputs = {"product_name": "Lamp"}
    yield lambda: Postgres(url).__aenter__()
    yield lambda: pickle.loads(pickle.dumps(Postgres(url))).migrate()  # noqa: S301
    yield lambda: SQLiteLedger(url).counts()
    yield lambda: SharedLimiter(url)
    yield lambda: WebhookReceiver("s" * 16, bus=url)
    yield lambda: WebhookReceiver("s" * 16, seen=url)
    yield lambda: WebhookReceiver("s" * 3, bus=url, seen=url)
    for runs in (knouds.workflows, knouds.models):
        yield partial(_once, runs, url)
        yield partial(runs.submit, "w", inputs, key="key", ledger=url)
        yield partial(_estimate, runs, url)
        yield partial(runs.gather, "w", [inputs], ledger=url)
        yield partial(runs.gather, "w", [inputs], ledger=url, max_in_flight=0)


async def _estimate(runs: Any, url: str) -> None:
    await runs.map("w", [{}], ledger=url).estimate()


async def _once(runs: Any, url: str) -> Outcome:
    outcome: Outcome = await runs.once("w", Job("key", {}), ledger=url)
    return outcome


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_database_that_is_away_for_too_long_ends_the_batch(
    knouds: AsyncKnouds, emulator: Emulator, own_server: Server, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """The batch ends with LedgerError and submits nothing more; the same batch continues once it is back.

    An id that could not be recorded is in the log.
    """
    monkeypatch.setattr(thread_module, "_PATIENCE", 0.5)
    monkeypatch.setattr(thread_module, "_FEWEST_TRIES", 3)
    emulator.duration = 1.0
    async with Postgres(own_server.url()) as ledger:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_stop_soon, emulator, own_server)
            with pytest.raises(LedgerError, match="cannot be used"):
                await run(knouds, ledger, 300, max_in_flight=20)
        sent = len(emulator.runs)
        assert 0 < sent < 300
        await anyio.to_thread.run_sync(own_server.start)
        recorded = {row[0] for row in own_server.execute("SELECT execution_id FROM knouds_job")}
        assert [run for run in emulator.runs if run.execution_id not in recorded | set(caplog.text.split())] == []
        emulator.duration = 0.05
        found = await run(knouds, ledger, 300)
    kinds = [type(outcome).__name__ for outcome in found]
    assert kinds.count("Completed") + kinds.count("Unknown") == 300
    assert kinds.count("Unknown") <= 20
    assert len(emulator.runs) <= 300
    emulator.assert_charged_once()


async def _stop_soon(emulator: Emulator, server: Server) -> None:
    while len(emulator.runs) < 40:  # noqa: ASYNC110
        await anyio.sleep(0.02)
    await anyio.to_thread.run_sync(server.stop)
