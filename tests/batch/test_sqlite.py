"""The ledger's file: refused when it is something else, waited for when it is locked, and never in the loop's way."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import attrs
import httpx
import pytest

from knouds_async import (
    AsyncKnouds,
    Completed,
    InvalidArgumentError,
    Job,
    LedgerError,
    Outcome,
    SQLiteLedger,
)
from knouds_async._batch.ledger import Claim, Taken, Written
from knouds_async._batch.sqlite import LedgerDatabase, _continue, _pause, opened
from knouds_async._sansio.clock import Moment
from knouds_async._sansio.ledger import Accepted, Ended, Ending, NoRun, Payer, Sending, Stage
from knouds_async._sansio.reconcile import KnownRun
from knouds_async.testing import Emulator
from knouds_async.testing.transport import EmulatorTransport

REAL_TIME = True
SLUG = "my-thumbnail-pipeline"


def claim(key: str, owner: str, **options: Any) -> Claim:
    """Return a claim on a job."""
    sending = Sending(owner=owner, sent_at=1.0, reserve=options.pop("reserve", 12), account="me")
    return Claim(key=key, target="workflows/x", digest="d", sending=sending, **options)


def jobs(count: int) -> list[Job]:
    """Return jobs with keys of their own."""
    return [Job(f"job-{number}", {"product_name": f"job-{number}"}) for number in range(count)]


def _words(path: Path) -> None:
    path.write_text("key,prompt\n1,hello\n")


def _noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 40)


def _foreign(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE songs (name TEXT)")
    connection.commit()
    connection.close()


def _other_version(path: Path) -> None:
    LedgerDatabase(path, 1.0).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.commit()
    connection.close()


def _damaged(path: Path) -> None:
    store = LedgerDatabase(path, 1.0)
    owner = store.join()
    for number in range(200):
        store.transact([partial(LedgerDatabase.claim, claim=claim(f"job-{number}", owner))])
    store.close()
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 8192)


def _cut_short(path: Path) -> None:
    _damaged(path)
    os.truncate(path, 5000)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_words, "not a database"),
        (_noise, "not a database"),
        (_foreign, "something else"),
        (_other_version, "another version"),
        (_damaged, "damaged|malformed"),
        (_cut_short, "damaged|malformed"),
    ],
)
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_what_is_no_ledger_is_refused_and_left_as_it_is(make: Any, said: str, path: Path, knouds: Any) -> None:
    """A foreign or damaged file is named in the error, and not a byte of it changes."""
    make(path)
    before = await anyio.Path(path).read_bytes()
    files = {each.name async for each in anyio.Path(path.parent).iterdir()}
    with pytest.raises(LedgerError, match=said) as caught:
        async with SQLiteLedger(path):
            pass
    assert str(path) in str(caught.value)
    assert "nothing was submitted" in str(caught.value)
    assert "continues from there" not in str(caught.value)
    with pytest.raises(LedgerError):
        async with knouds.workflows.map(SLUG, jobs(1), ledger=path):
            pass
    assert await anyio.Path(path).read_bytes() == before
    assert {each.name async for each in anyio.Path(path.parent).iterdir()} == files


def test_what_others_have_in_a_log_stays_there(path: Path) -> None:
    """The file of another program whose last writes are in its write-ahead log is refused without a checkpoint."""
    theirs = sqlite3.connect(path.with_name("theirs.db"), isolation_level=None)
    theirs.execute("PRAGMA journal_mode = WAL")
    theirs.execute("CREATE TABLE songs (name TEXT)")
    for end in ("", "-wal"):
        Path(f"{path}{end}").write_bytes(path.with_name(f"theirs.db{end}").read_bytes())
    before = [Path(f"{path}{end}").read_bytes() for end in ("", "-wal")]
    with pytest.raises(LedgerError, match="something else"):
        LedgerDatabase(path, 1.0)
    assert [Path(f"{path}{end}").read_bytes() for end in ("", "-wal")] == before
    theirs.close()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
@pytest.mark.parametrize(("make", "said"), [(os.mkfifo, "a pipe"), (Path.mkdir, "a folder")])
async def test_what_is_no_file_is_refused_and_not_waited_for(make: Any, said: str, path: Path, knouds: Any) -> None:
    """A named pipe would be waited for without an end, and no cancellation helps: it is refused, as a folder is."""
    make(path)
    with pytest.raises(LedgerError, match=f"cannot be used: it is {said}"):
        await knouds.workflows.gather(SLUG, jobs(1), ledger=path)
    assert [each.name async for each in anyio.Path(path.parent).iterdir()] == [path.name]


def _fill(path: Path, count: int) -> None:
    """Fill a new ledger with jobs that are finished."""
    LedgerDatabase(path, 1.0).close()
    connection = sqlite3.connect(path)
    rows = ((f"job-{number}", f"run-{number}", "x" * 400) for number in range(count))
    connection.executemany(
        "INSERT INTO jobs (key, attempt, target, digest, stage, execution_id, status, cost, reply) "
        "VALUES (?, 1, 'workflows/x', 'd', 'final', ?, 'completed', 12, ?)",
        rows,
    )
    connection.commit()
    connection.close()


def _steps(path: Path) -> list[int]:
    """Return how many steps SQLite takes to enter a batch, to claim a job and to end it."""
    store, steps = LedgerDatabase(path, 1.0), [0]

    def count() -> None:
        steps[-1] += 1

    store._connection.set_progress_handler(count, 1)
    owner = store.join()
    ending = Ended(Ending(status="completed", cost=12.0))
    for operation in (
        lambda opened: opened.summary("workflows/x"),
        lambda opened: opened.claim(claim("new", owner)),
        lambda opened: opened.record("new", 1, ending),
    ):
        store.transact([operation])
        steps.append(0)
    store.close()
    return steps[:-1]


def test_a_long_ledger_is_entered_in_the_same_steps_as_an_empty_one(path: Path, tmp_path: Path) -> None:
    """What a ledger holds already is neither read nor counted when a batch begins, sends a job, or ends one."""
    _fill(path, 12_000)
    for long, empty in zip(_steps(path), _steps(tmp_path / "empty.db"), strict=True):
        assert long <= 2 * empty


@pytest.mark.parametrize("page", [2, 3, 5, 40, 1000, 1300])
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_damage_of_a_long_ledger_makes_no_job_new(page: int, path: Path) -> None:
    """A ledger too long to be checked: a job on a page that is damaged is an error, never one that was not run."""
    _fill(path, 12_000)
    assert (await anyio.Path(path).stat()).st_size > 2**22
    with path.open("r+b") as file:
        file.seek(4096 * (page - 1))
        file.write(b"\xff" * 4096)
    damaged = 0
    try:
        async with SQLiteLedger(path) as ledger:
            for number in range(0, 12_000, 7):
                try:
                    assert await ledger.look(f"job-{number}") is not None
                except LedgerError:
                    damaged += 1
    except LedgerError:
        damaged += 1
    assert damaged or page > 3


async def test_another_ledger_of_the_process_drops_no_lock(path: Path) -> None:
    """POSIX drops all locks of a process when it closes a descriptor of the file: a transaction keeps its own."""
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=0)\n"
        "try: c.execute('BEGIN IMMEDIATE'); print('entered')\nexcept sqlite3.OperationalError: print('locked')"
    )
    async with SQLiteLedger(path) as ledger, SQLiteLedger(path) as other:
        owner = await other.join()
        said: list[str] = []

        def open_and_close(store: LedgerDatabase) -> None:
            store._save(_sending(owner))  # the file is locked from here on
            with suppress(sqlite3.Error):
                opened(path, 0.0).close()
            said.append(subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True).stdout)  # noqa: S603, PLW1510

        await ledger._transact(open_and_close)
        await other.look("a")
    assert said == ["locked\n"]


@pytest.mark.parametrize("where", ["missing/renders.db", "."])
async def test_where_no_file_can_be_made_it_says_so(where: str, tmp_path: Path) -> None:
    """A folder that is not there, or a folder in the file's place, is a LedgerError."""
    with pytest.raises(LedgerError, match="cannot be used") as caught:
        async with SQLiteLedger(tmp_path / where):
            pass
    assert str(caught.value).count(str(tmp_path)) == 1
    assert "name a ledger, or a path where a new one can be made" in str(caught.value)


async def test_a_batch_whose_event_loop_was_closed_is_gone(path: Path) -> None:
    """What it was sending is unknown for the next batch of the same program, which would wait for it for ever."""
    abandoned = SQLiteLedger(path)

    def abandon() -> None:
        loop = asyncio.new_event_loop()
        owner = loop.run_until_complete(abandoned.join())
        loop.run_until_complete(abandoned.claim(claim("a", owner)))
        loop.close()

    await anyio.to_thread.run_sync(abandon)
    async with SQLiteLedger(path) as ledger:
        found = await ledger.look("a")
        assert found is not None
        assert found.stage is Stage.UNKNOWN
    await abandoned.aclose()


async def test_a_locked_file_is_waited_for(path: Path) -> None:
    """While another process has it locked nothing is lost and the event loop is not blocked; then all is written."""
    code = (
        "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN EXCLUSIVE'); "
        "print('locked', flush=True); time.sleep(1.2); c.execute('COMMIT')"
    )
    async with SQLiteLedger(path) as ledger:
        owner = await ledger.join()
        async with await anyio.open_process([sys.executable, "-c", code, str(path)]) as other:
            assert other.stdout is not None
            await other.stdout.receive()
            written: list[object] = []
            steps = 0

            async def write() -> None:
                written.append(await ledger.claim(claim("a", owner)))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(write)
                while not written:
                    await anyio.sleep(0.01)
                    steps += 1
        assert steps > 10
        assert isinstance(written[0], Written)


async def test_to_leave_waits_for_no_lock(path: Path) -> None:
    """A batch ends, and its ledger is closed, while another process has the file locked: nothing is to be written."""
    async with SQLiteLedger(path) as ledger:
        owner = await ledger.join()
        await ledger.claim(claim("a", owner))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with anyio.fail_after(10):
            await ledger.leave(owner)
            await ledger.aclose()
        other.close()
    async with SQLiteLedger(path) as ledger:
        assert [entry.key for entry in await ledger.unknown()] == ["a"]


async def test_to_leave_waits_a_moment_for_what_was_asked_before(path: Path) -> None:
    """Others may have work of their own in the ledger while another process has the file locked; it is still done.

    What its own batch had written meanwhile is late news of an owner that is gone.
    """
    async with SQLiteLedger(path) as ledger:
        leaves, stays = await ledger.join(), await ledger.join()
        for key, owner in (("a", leaves), ("b", stays)):
            await ledger.claim(claim(key, owner))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        async with anyio.create_task_group() as tasks:
            for key, owner in (("a", leaves), ("b", stays)):
                tasks.start_soon(ledger.record, key, 1, Accepted(owner=owner, execution_id=f"run-{key}"))
            with anyio.fail_after(20):
                await ledger.leave(leaves)
            other.execute("COMMIT")
        found = [await ledger.find(key) for key in ("a", "b")]
        other.close()
    assert [each and (each.stage, each.owner) for each in found] == [("submitted", None), ("submitted", stays)]


async def test_what_only_reads_is_not_waited_for(path: Path) -> None:
    """A ledger is closed in a moment while another process has the file locked, though reads of it were cancelled."""
    ledger = SQLiteLedger(path)
    await ledger.find("a")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with anyio.fail_after(20):
        for read in (partial(ledger.find, "a"), ledger.unknown, ledger.counts):
            with anyio.move_on_after(0.1):
                await read()
        await ledger.aclose()
    other.close()


async def test_a_reader_does_not_undo_a_commit(path: Path) -> None:
    """A commit that has to wait for somebody who reads is made when they have read."""
    async with SQLiteLedger(path) as ledger:
        owner = await ledger.join()
        reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM jobs").fetchall()
        timer = threading.Timer(1.0, lambda: reader.execute("COMMIT"))
        timer.start()
        assert isinstance(await ledger.claim(claim("a", owner)), Written)
        await anyio.to_thread.run_sync(timer.join)
        assert reader.execute("SELECT key FROM jobs").fetchall() == [("a",)]
        reader.close()


@pytest.fixture
def short_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less long for a disk that is full."""
    monkeypatch.setattr("knouds_async._batch.sqlite._FULL_DISK_PATIENCE", 0.3)


class _Tight(SQLiteLedger):
    """A ledger on a disk that is about to be full."""

    async def join(self) -> str:
        owner = await super().join()
        await self._transact(lambda store: store._connection.execute("PRAGMA max_page_count = 12").fetchall())
        return owner


@pytest.mark.slow
@pytest.mark.usefixtures("short_moment")
async def test_a_full_disk_stops_the_submitting(make_client: Any, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When the ledger cannot be written nothing more is sent, the error says so, and no run is lost or repeated."""
    caplog.set_level(logging.WARNING, logger="knouds_async")
    emulator = Emulator(tier="enterprise", duration=0.01)
    knouds: AsyncKnouds = make_client(emulator, latency=0.001)
    found: list[Outcome] = []
    ledger = _Tight(path)
    with pytest.raises(LedgerError, match="full"):
        async with ledger, knouds.workflows.map(SLUG, jobs(200), ledger=ledger, max_in_flight=20) as outcomes:
            async for outcome in outcomes:
                found.append(outcome)  # noqa: PERF401  (the loop raises)
    assert 0 < len(emulator.runs) < 200
    assert all(isinstance(outcome, Completed) for outcome in found)
    sent = len(emulator.runs)
    await anyio.sleep(0.1)
    assert len(emulator.runs) == sent
    async with SQLiteLedger(path) as again:
        unknown = await again.unknown()
        lost = [run for run in emulator.runs if not await _is_on_record(again, run)]
        for run in lost:
            assert f"--resolve LEDGER {run.inputs['product_name']} run={run.execution_id}" in caplog.text
        assert {str(run.inputs["product_name"]) for run in lost} <= {entry.key for entry in unknown}
    async with knouds.workflows.map(SLUG, jobs(200), ledger=path) as outcomes:
        kinds = Counter([type(outcome).__name__ async for outcome in outcomes])
    assert kinds == Counter(Completed=200 - len(unknown), **({"Unknown": len(unknown)} if unknown else {}))
    emulator.assert_charged_once()


@pytest.mark.usefixtures("short_moment")
async def test_a_batch_on_a_full_disk_can_be_left(path: Path) -> None:
    """An owner that leaves needs no room on the disk, nor does a status, and its claims are free for the next."""
    resource = pytest.importorskip("resource")
    room = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with SQLiteLedger(path) as ledger:
        owner = await ledger.join()
        for key in ("sending", "submitted"):
            await ledger.claim(claim(key, owner))
        await ledger.record("submitted", 1, Accepted(owner=owner, execution_id="1"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, room[1]))
        try:
            await ledger.leave(owner)
            counts, unknown = await ledger.counts(), await ledger.unknown()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, room)
        assert (counts.unknown, counts.sending, counts.submitted) == (1, 0, 1)
        assert [(entry.key, entry.stage) for entry in unknown] == [("sending", Stage.UNKNOWN)]
        found = [await ledger.find(key) for key in ("sending", "submitted")]
    assert [entry.stage for entry in found if entry is not None] == [Stage.UNKNOWN, Stage.SUBMITTED]
    assert found[1] is not None
    assert found[1].owner is None


@pytest.mark.parametrize("what", ["claim", "record"])
async def test_an_error_of_the_ledger_says_whether_a_run_may_be_paid(what: str, make_client: Any, path: Path) -> None:
    """When an intent cannot be written nothing was sent; when the outcome cannot, money may have been spent."""
    emulator = Emulator(tier="enterprise", duration=0.01)
    ledger = SQLiteLedger(path)

    async def fail(*_: Any) -> Any:
        raise LedgerError("the disk is full")

    setattr(ledger, what, fail)
    with pytest.raises(LedgerError) as caught:
        async with ledger, make_client(emulator).workflows.map(SLUG, jobs(1), ledger=ledger) as outcomes:
            async for _ in outcomes:
                pass
    assert caught.value.may_have_run is (len(emulator.runs) == 1) is (what == "record")


async def test_what_comes_after_the_first_error_may_have_run_all_the_same(make_client: Any, path: Path) -> None:
    """An intent that cannot be written ends the batch; a run in flight that cannot be written is counted."""
    emulator = Emulator(tier="enterprise", duration=60.0)
    ledger = SQLiteLedger(path)
    claim, broken = ledger.claim, anyio.Event()

    async def once(wanted: Claim) -> Any:
        if wanted.key == "job-0":
            return await claim(wanted)
        broken.set()
        raise LedgerError("the disk is full")

    async def fail(*_: Any) -> Any:
        await broken.wait()
        raise LedgerError("the disk is full")

    for name, instead in (("claim", once), ("record", fail)):
        setattr(ledger, name, instead)
    knouds = make_client(emulator)
    await knouds.workflows.submit(SLUG, {"product_name": "it is known then that it answers"})
    with pytest.raises(LedgerError) as caught:
        async with ledger, knouds.workflows.map(SLUG, jobs(2), ledger=ledger) as outcomes:
            outcomes._worker._is_probed = True  # so that both leave at once
            async for _ in outcomes:
                pass
    assert caught.value.may_have_run


def _take_away(how: str, path: Path) -> None:
    if how != "deleted":
        path.with_name("other.db").write_bytes(path.read_bytes())
    path.unlink()
    if how == "replaced":
        path.with_name("other.db").rename(path)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["moved", "deleted", "replaced"])
async def test_a_ledger_that_is_taken_away_is_named_as_such(how: str, make_client: Any, path: Path) -> None:
    """A ledger that is moved, deleted or replaced stops the batch, and no error advises to use a new one."""
    emulator = Emulator(tier="enterprise", duration=0.01)
    wanted, taken = [Job(str(number), {"prompt": str(number)}) for number in range(50)], 0
    with pytest.raises(LedgerError, match="put it back") as caught:
        async with make_client(emulator).workflows.map("fast-sketch", wanted, ledger=path, max_in_flight=2) as outcomes:
            async for _ in outcomes:
                if not taken:
                    _take_away(how, path)
                taken += 1
    assert "continues from there" not in str(caught.value)
    assert len(emulator.runs) < 10


async def _is_on_record(ledger: SQLiteLedger, run: Any) -> bool:
    entry = await ledger.find(str(run.inputs["product_name"]))
    return entry is not None and entry.execution_id == run.execution_id


def _crashed_copy(path: Path, copy: Path) -> Path:
    """Copy a ledger in the middle of a transaction, as a crash would leave it."""
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode = TRUNCATE")
    writer.execute("PRAGMA cache_size = 1")
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE jobs SET stage = 'final', note = hex(randomblob(2000))")
    copy.write_bytes(path.read_bytes())
    journal = Path(f"{path}-journal").read_bytes()
    Path(f"{copy}-journal").write_bytes(journal)
    writer.execute("ROLLBACK")
    writer.close()
    assert len(journal) > 4096
    return copy


async def _stages(ledger: SQLiteLedger, *keys: str) -> list[str | None]:
    """Return where jobs stand, read without a trace in the folder."""
    before = _files(ledger.path.parent)
    async with ledger.reading() as find:
        found = [await find(key) for key in keys]
    assert _files(ledger.path.parent) == before
    return [None if entry is None else str(entry.stage) for entry in found]


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return the files of a folder, unread: to close a file drops the locks of the process on it."""
    return {path: ((found := path.stat()).st_size, found.st_mtime_ns) for path in folder.iterdir()}


async def test_to_read_a_ledger_writes_nothing(path: Path, tmp_path: Path) -> None:
    """Whether it is there, in use, empty, of an earlier form, or half written by a crash: nothing changes."""
    (tmp_path / "copies").mkdir()
    ledger = SQLiteLedger(path)
    assert await _stages(ledger, "a") == [None]
    await anyio.Path(path).touch()
    assert await _stages(ledger, "a") == [None]
    async with ledger:
        owner = await ledger.join()
        for number in range(50):
            await ledger.claim(claim(f"job-{number}", owner))
        assert await _stages(ledger, "job-7", "a") == ["sending", None]
        crashed = _crashed_copy(path, tmp_path / "copies" / "crashed.db")
    assert await _stages(SQLiteLedger(crashed), "job-7") == ["sending"]
    first = tmp_path / "copies" / "first.db"
    _first_form(first)
    assert await _stages(SQLiteLedger(first), "a") == ["unknown"]


async def test_to_copy_a_ledger_that_a_crash_has_left_drops_no_lock(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a crash has left is read from a copy, and no ledger of the process is in a transaction meanwhile."""
    async with SQLiteLedger(path) as ledger:
        owner = await ledger.join()
        for number in range(50):
            await ledger.claim(claim(f"job-{number}", owner))
    crashed, is_made = _crashed_copy(path, tmp_path / "crashed.db"), list[bool]()
    opening = threading.Thread(target=lambda: LedgerDatabase(tmp_path / "other.db", 5.0).close())
    copy = shutil.copyfile

    def copy_and_open(source: Path, target: Path) -> None:
        copy(source, target)
        if not is_made:
            opening.start()
            opening.join(0.3)
            is_made.append((tmp_path / "other.db").exists())

    monkeypatch.setattr(shutil, "copyfile", copy_and_open)
    async with SQLiteLedger(crashed).reading() as find:
        assert await find("job-7") is not None
    opening.join()
    assert (is_made, (tmp_path / "other.db").exists()) == ([False], True)


async def test_to_read_a_ledger_waits_for_its_lock(path: Path) -> None:
    """While another process writes, the event loop runs on; afterwards the job is found."""
    async with SQLiteLedger(path) as ledger:
        await ledger.claim(claim("a", await ledger.join()))
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    async with anyio.create_task_group() as tasks:
        with anyio.move_on_after(0.3) as waiting:
            async with ledger.reading():
                pass
        assert waiting.cancelled_caught
        tasks.start_soon(_release_soon, writer)
        assert await _stages(ledger, "a") == ["sending"]
    writer.close()


async def _release_soon(writer: sqlite3.Connection) -> None:
    await anyio.sleep(0.3)
    writer.execute("ROLLBACK")


@pytest.mark.parametrize("make", [_words, _foreign, _other_version])
async def test_to_read_what_is_no_ledger_is_refused(make: Any, path: Path) -> None:
    """The error names the file, as when it is opened."""
    make(path)
    with pytest.raises(LedgerError, match=path.name):
        await _stages(SQLiteLedger(path), "a")


async def test_a_crash_in_the_middle_of_a_write_leaves_what_was_before_it(path: Path, tmp_path: Path) -> None:
    """A transaction that is half in the file is undone when the ledger is opened next."""
    async with SQLiteLedger(path) as ledger:
        owner = await ledger.join()
        for number in range(50):
            await ledger.claim(claim(f"job-{number}", owner))
    crashed = _crashed_copy(path, tmp_path / "crashed.db")
    async with SQLiteLedger(crashed) as ledger:
        assert (await ledger.counts()).unknown == 50  # no owner of the copy holds a lock


async def test_many_jobs_share_a_transaction(path: Path) -> None:
    """What a thousand tasks ask for at once takes a few transactions, in one thread that is not the event loop's."""
    threads: set[int] = set()
    transactions = 0

    async with SQLiteLedger(path) as ledger:

        def count(store: LedgerDatabase) -> None:
            nonlocal transactions
            original = store.transact

            def transact(operations: Any) -> Any:
                nonlocal transactions
                transactions += 1
                threads.add(threading.get_ident())
                return original(operations)

            store.transact = transact  # type: ignore[method-assign]

        await ledger._transact(count)
        owner = await ledger.join()
        async with anyio.create_task_group() as tasks:
            for number in range(1000):
                tasks.start_soon(ledger.claim, claim(f"job-{number}", owner))
        assert (await ledger.counts()).sending == 1000
    assert transactions < 50
    assert threads.isdisjoint({threading.get_ident()})
    assert len(threads) == 1


async def test_what_was_asked_for_is_written_without_a_waiter(path: Path) -> None:
    """A call that is cancelled is carried out all the same."""
    async with SQLiteLedger(path) as ledger:
        owner = await ledger.join()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await ledger.claim(claim("a", owner))
        entry = await ledger.find("a")
    assert entry is not None
    assert entry.stage is Stage.SENDING


async def test_a_job_is_claimed_once(path: Path) -> None:
    """Of two owners one may send a job, and a finished one is sent by none; the cap holds for both together."""
    async with SQLiteLedger(path) as ledger, SQLiteLedger(path) as other:
        one, two = await ledger.join(), await other.join()
        assert isinstance(await ledger.claim(claim("a", one, cap=20)), Written)
        taken = await other.claim(claim("a", two, cap=20))
        assert isinstance(taken, Taken)
        assert taken.entry.owner == one
        assert type(await other.claim(claim("b", two, cap=20))).__name__ == "OverBudget"
        until = Moment(wall=0.0, earliest=8.0, latest=9.0)
        await ledger.record("a", 1, Accepted(owner=one, execution_id="run-1", request_id="r-1", until=until))
        await ledger.record("a", 1, Ended(Ending(status="completed", cost=5, reply="{}")))
        assert isinstance(await other.claim(claim("a", two)), Taken)
        assert isinstance(await other.claim(claim("b", two, cap=20)), Written)
        assert isinstance(await other.claim(claim("a", two)), Taken)
        assert await other.known_runs("workflows/x", "me", 0) == (KnownRun(request_id="r-1", begun_by=9.0),)
        assert await other.known_runs("workflows/x", "me", 2) == (KnownRun(request_id="r-1", begun_by=9.0),)
        assert await other.known_runs("workflows/y", "me", 0) == ()
        assert await other.known_runs("workflows/x", "somebody else", 0) == ()
        summary = await other.summary("workflows/x")
        assert (summary.runs, summary.highest_cost, summary.totals.reserved) == (1, 5, 12)
        await other.record("b", 1, NoRun(two))
        assert (await ledger.counts()).new == 1


async def test_an_owner_that_cannot_join_keeps_no_run_from_being_recorded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a lock fails, its error is that of who joins, and not of those whose operations are in one transaction."""

    def refuse(*_: object) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    async with SQLiteLedger(path) as ledger:
        owner = await ledger.join()
        await ledger.claim(claim("a", owner))
        monkeypatch.setattr("knouds_async._batch.owners._try_lock", refuse)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ledger.record, "a", 1, Accepted(owner=owner, execution_id="run"))
            with pytest.raises(LedgerError, match="No locks available"):
                await ledger.join()
        monkeypatch.undo()
        found = await ledger.find("a")
    assert found is not None
    assert found.execution_id == "run"


async def test_a_row_that_makes_no_sense_keeps_no_batch_from_its_ledger(path: Path) -> None:
    """What it knows of credits and of runs in flight is read without the jobs of owners that are gone."""
    async with SQLiteLedger(path) as ledger:
        for key in ("odd", "gone"):
            await ledger.claim(claim(key, gone := await ledger.join()))
            await ledger.leave(gone)
        await ledger.claim(claim("mine", await ledger.join()))
        other = sqlite3.connect(path)
        other.execute("UPDATE jobs SET since = 'odd' WHERE key = 'odd'")
        other.commit()
        other.close()
        assert (await ledger.summary("workflows/x")).in_flight == 1


@pytest.mark.parametrize(("column", "value"), [("stage", "odd"), ("since", "{"), ("until", "[]")])
async def test_a_row_that_makes_no_sense_is_an_error_of_the_ledger(column: str, value: str, path: Path) -> None:
    """Whatever somebody has written into the file, the error is a LedgerError, and the runs of other jobs are kept."""
    async with SQLiteLedger(path) as ledger:
        owner = await ledger.join()
        for key in ("a", "b"):
            await ledger.claim(claim(key, owner))
        other = sqlite3.connect(path)
        other.execute(f"UPDATE jobs SET {column} = ? WHERE key = 'a'", (value,))  # noqa: S608
        other.commit()
        other.close()
        async with anyio.create_task_group() as tasks:  # of one transaction
            tasks.start_soon(ledger.record, "b", 1, Accepted(owner=owner, execution_id="run"))
            with pytest.raises(LedgerError, match=f"ledger '{path}' has a row that makes no sense, .*: [A-Z].*Error: "):
                await ledger.look("a")
        found = await ledger.look("b")
        assert found is not None
        assert found.execution_id == "run"


async def test_the_run_of_an_earlier_attempt_is_none_of_the_next(path: Path) -> None:
    """A job that is run once more, and is answered with the run that failed, is unknown: that run has finished."""
    async with SQLiteLedger(path) as ledger:
        owner = await ledger.join()
        await ledger.claim(claim("a", owner))
        await ledger.record("a", 1, Accepted(owner=owner, execution_id="1"))
        await ledger.record("a", 1, Ended(Ending(status="failed")))
        assert await ledger.retry_failed() == 1
        await ledger.claim(claim("a", owner))
        written = await ledger.record("a", 2, Accepted(owner=owner, execution_id="1"))
        assert written.entry.stage is Stage.UNKNOWN


async def test_a_dear_run_raises_what_is_reserved_for_others(path: Path) -> None:
    """What is in flight is reserved with no less than a run of its target was seen to cost; another target is not."""
    async with SQLiteLedger(path) as ledger:
        owner = await ledger.join()
        for key in ("a", "b", "other"):
            target = "workflows/y" if key == "other" else "workflows/x"
            await ledger.claim(attrs.evolve(claim(key, owner), target=target))
        await ledger.record("a", 1, Ended(Ending(status="completed", cost=20)))
        assert (await ledger.counts()).credits_reserved == 20 + 12


async def test_a_payer_whose_account_was_not_known_is_completed(path: Path) -> None:
    """The first batch of the same service that knows its account binds the ledger to it; another service never does."""
    service, other = "https://knouds.ai", "https://other.test"
    async with SQLiteLedger(path) as ledger:
        await ledger.bind(Payer(user=None, base_url=service))
        for payer in (Payer(user="a", base_url=other), Payer(user=None, base_url=other)):
            with pytest.raises(LedgerError, match="is that of"):
                await ledger.bind(payer)
        await ledger.bind(Payer(user="a", base_url=service))
        with pytest.raises(LedgerError, match="account a"):
            await ledger.bind(Payer(user="b", base_url=service))


async def test_what_can_be_no_key_is_refused(path: Path) -> None:
    """Half a surrogate pair, which no database takes, is an argument that is wrong, and fails for nobody else."""
    async with SQLiteLedger(path) as ledger:
        owner = await ledger.join()
        for call in (
            ledger.find,
            ledger.abandon,
            ledger.approve_resend,
            lambda key: ledger.claim(claim(key, owner)),
            lambda key: ledger.record(key, 1, NoRun(owner)),
        ):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ledger.claim, claim("a", owner))
                with pytest.raises(InvalidArgumentError, match="printable"):
                    await call("\ud800")
        assert await ledger.find("a") is not None


async def test_odd_words_of_the_service_are_kept(path: Path) -> None:
    """A message that is no proper text, and a cost beyond all bounds, are on record like any other."""
    async with SQLiteLedger(path) as ledger:
        owner = await ledger.join()
        await ledger.claim(claim("a", owner))
        ending = Ending(status="failed", code="\ud800", message="half \ud83d", cost=float(10**300))
        written = await ledger.record("a", 1, Ended(ending))
        assert written.entry.stage is Stage.FINAL
        found = await ledger.find("a")
        assert found is not None
        assert found.ending is not None
        assert found.ending.message == "half \\ud83d"


async def test_only_the_dead_lose_their_claims(path: Path) -> None:
    """A job of a process that lives is left to it; of one that is gone it is unknown, or to be picked up."""
    code = (
        "import sys; from pathlib import Path; from knouds_async._batch.sqlite import LedgerDatabase\n"
        "print(LedgerDatabase(Path(sys.argv[1]), 1.0).join(), flush=True); sys.stdin.read()"
    )
    async with SQLiteLedger(path) as ledger, await anyio.open_process([sys.executable, "-c", code, str(path)]) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        theirs, mine = (await other.stdout.receive()).decode().strip(), await ledger.join()
        of_the_past = "5f6b4d1a-boot 1 4711 0123456789ab"  # the name of an owner in a ledger of an earlier form
        for owner in (theirs, mine, of_the_past):
            await ledger._transact(lambda store, owner=owner: store._save(_sending(owner)))  # type: ignore[misc]
        assert [entry.key for entry in await ledger.unknown()] == [of_the_past[-5:]]
        await other.stdin.aclose()
        await other.wait()
        assert (await ledger.look(theirs[-5:])).stage is Stage.UNKNOWN  # type: ignore[union-attr]
        assert (await ledger.look(mine[-5:])).stage is Stage.SENDING  # type: ignore[union-attr]
        await ledger.leave(mine)
        assert {entry.key for entry in await ledger.unknown()} == {each[-5:] for each in (theirs, mine, of_the_past)}


def _sending(owner: str) -> Any:
    from knouds_async import LedgerEntry

    return LedgerEntry(
        key=owner[-5:], target="workflows/x", digest="d", stage=Stage.SENDING, owner=owner, sent_at=1.0, reserved=1
    )


@pytest.mark.slow
async def test_its_thread_ends_when_there_is_nothing_to_do(path: Path) -> None:
    """A ledger that is not used holds no thread, and takes another when it is."""
    async with SQLiteLedger(path) as ledger:
        thread = ledger._thread._thread
        assert thread is not None
        await anyio.to_thread.run_sync(thread.join)
        owner = await ledger.join()
        assert isinstance(await ledger.claim(claim("a", owner)), Written)


async def test_a_thread_that_the_system_does_not_give_is_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked for while no thread can be started is written once one can, and the ledger can be closed."""
    _give_threads(monkeypatch, after=2)
    async with SQLiteLedger(path) as ledger:
        assert isinstance(await ledger.claim(claim("a", "me")), Written)


async def test_a_thread_that_never_comes_is_an_error_of_the_ledger(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for only so long, and what was asked for is not written later."""
    monkeypatch.setattr("knouds_async._io.worker_thread._START_TIMEOUT", 0.0)
    ledger = SQLiteLedger(path)
    with monkeypatch.context() as patch:
        _give_threads(patch, after=1000)
        with pytest.raises(LedgerError, match="no thread"):
            await ledger.claim(claim("a", "me"))
    assert await ledger.look("a") is None
    await ledger.aclose()


def _give_threads(patch: pytest.MonkeyPatch, *, after: int) -> None:
    """Refuse to start the thread of a ledger so many times."""
    start, refusals = threading.Thread.start, iter(range(after))

    def started(thread: threading.Thread) -> None:
        if thread.name == "knouds-ledger" and next(refusals, None) is not None:
            raise RuntimeError("can't start new thread")
        start(thread)

    patch.setattr(threading.Thread, "start", started)


async def test_what_cannot_be_written_for_lack_of_descriptors_is_written_later(path: Path) -> None:
    """The id of a paid run waits until the connections of the process have given back a file descriptor."""
    async with SQLiteLedger(path) as ledger:
        await ledger.claim(claim("a", owner := await ledger.join()))
        with _no_descriptors() as give_back:
            timer = threading.Timer(0.3, give_back)
            timer.start()
            written = await ledger.record("a", 1, Accepted(owner=owner, execution_id="1"))
        timer.join()
        assert (written.entry.stage, written.entry.owner) == (Stage.SUBMITTED, owner)


async def test_a_ledger_has_descriptors_in_reserve(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id is written at once where connections hold all file descriptors, give none back, and take each free one."""
    held: list[int] = []

    def take_all(_: float = 0.0) -> None:
        with suppress(OSError):
            while True:
                held.append(os.dup(2))

    monkeypatch.setattr("knouds_async._batch.sqlite._PATIENCE", 0.5)
    monkeypatch.setattr("knouds_async._batch.sqlite.time.sleep", take_all)
    async with SQLiteLedger(path) as ledger:
        await ledger.claim(claim("a", owner := await ledger.join()))
        resource = pytest.importorskip("resource")
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
        try:
            take_all()
            written = await ledger.record("a", 1, Accepted(owner=owner, execution_id="1"))
        finally:
            for descriptor in held:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert held
        assert written.entry.stage is Stage.SUBMITTED


async def test_a_disk_that_is_full_for_a_moment_costs_no_id(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What must be written is written when there is room again; the log says meanwhile what is waited for."""
    async with SQLiteLedger(path) as ledger:
        await ledger.claim(claim("a", owner := await ledger.join()))
        limits = iter([12, 12, 12, 1_000_000])

        def carried_out(store: LedgerDatabase) -> None:
            store._connection.execute(f"PRAGMA max_page_count = {next(limits)}").fetchall()
            store._connection.execute("CREATE TABLE large (x)")
            store._connection.execute("INSERT INTO large VALUES (zeroblob(100000))")

        await ledger._transact(carried_out)
        written = await ledger.record("a", 1, Accepted(owner=owner, execution_id="1"))
    assert written.entry.stage is Stage.SUBMITTED
    assert caplog.text.count("waits for up to 30 s: database or disk is full") == 1


_FORKS = """
import asyncio, os, sys, threading
from knouds_async import SQLiteLedger
from knouds_async._batch.ledger import Claim
from knouds_async._sansio.ledger import Sending

ledger = SQLiteLedger(sys.argv[1])

def claim(key, owner):
    return Claim(key=key, target="workflows/x", digest="d", sending=Sending(owner=owner, sent_at=1.0))

async def write(name, count):
    owner = await ledger.join()
    for number in range(count):
        await ledger.claim(claim(f"{name}-{number}", owner))
    if name == "parent":
        done.wait()
    return (await ledger.counts()).sending

done = threading.Event()
writer = threading.Thread(target=lambda: asyncio.run(write("parent", 100)))
writer.start()
children = []
for name in range(6):
    if (child := os.fork()) == 0:
        asyncio.run(write(name, 3))
        os._exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
while (counts := asyncio.run(ledger.counts())).sending < 100:  # its parent writes on
    pass
done.set()
writer.join()
print(counts.sending, counts.unknown)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_ledger_works_in_a_forked_child(path: Path) -> None:
    """Whatever the parent is writing when it forks, a child has a connection of its own and hangs nowhere."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", _FORKS, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == ("100 18\n", 0), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_no_file_is_opened_while_the_process_forks(path: Path) -> None:
    """A child would take the locks of a file that was being opened for held, and wait for them in vain."""
    opening = threading.Thread(target=lambda: LedgerDatabase(path, 5.0).close())
    _pause()
    try:
        opening.start()
        opening.join(0.3)
        assert not path.exists()
    finally:
        _continue()
    opening.join()
    assert path.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_threads_that_fork_at_once_pause_one_after_the_other(path: Path) -> None:
    """What waits for a fork does not continue because another thread's has ended."""
    has_paused, may_continue = threading.Event(), threading.Event()

    def fork() -> None:
        _pause()
        has_paused.set()
        may_continue.wait(20)
        _continue()

    forking = threading.Thread(target=fork)
    opening = threading.Thread(target=lambda: LedgerDatabase(path, 5.0).close())
    _pause()
    forking.start()
    forking.join(0.2)
    _continue()
    assert has_paused.wait(20)
    opening.start()
    opening.join(0.3)
    is_made_meanwhile = path.exists()
    may_continue.set()
    for thread in (forking, opening):
        thread.join()
    assert (is_made_meanwhile, path.exists()) == (False, True)


def test_an_interpreter_without_sqlite_says_what_to_do_when_a_ledger_is_used(path: Path) -> None:
    """The package is imported without it, and a ledger in a file names what is missing."""
    code = """
import asyncio, sys
sys.modules["sqlite3"] = None
from knouds_async import LedgerError, SQLiteLedger
async def main():
    try:
        await SQLiteLedger(sys.argv[1]).counts()
    except LedgerError as error:
        print(error)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)  # noqa: S603
    assert "needs Python's module sqlite3" in done.stdout
    assert "libsqlite3-dev" in done.stdout
    assert not path.exists()


@contextmanager
def _no_descriptors() -> Iterator[Callable[[], None]]:
    """Keep the process from opening a file until the block ends, or what is given is called."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_NOFILE, before)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_a_closed_ledger_says_so(path: Path) -> None:
    """It is closed once, as often as one likes, and then refuses."""
    ledger = SQLiteLedger(path)
    await ledger.aclose()
    await ledger.aclose()
    with pytest.raises(LedgerError, match="closed"):
        await ledger.look("a")
    assert not await anyio.Path(path).exists()


def test_a_program_that_forgets_to_close_it_ends_all_the_same(path: Path) -> None:
    """What was asked for is written before the interpreter ends, and nothing keeps it from ending."""
    code = f"""
import asyncio
from knouds_async import SQLiteLedger
from tests_claim import claim

async def main():
    ledger = SQLiteLedger({str(path)!r})
    owner = await ledger.join()
    asyncio.get_running_loop().create_task(ledger.claim(claim(owner)))
    await asyncio.sleep(0)

asyncio.run(main())
"""
    helper = """
from knouds_async._sansio.ledger import Sending
from knouds_async._batch.ledger import Claim
def claim(owner):
    return Claim(key="a", target="workflows/x", digest="d", sending=Sending(owner=owner, sent_at=1.0))
"""
    (path.parent / "tests_claim.py").write_text(helper)
    subprocess.run([sys.executable, "-c", code], cwd=path.parent, check=True, timeout=30)  # noqa: S603
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT key, stage FROM jobs").fetchall() == [("a", "sending")]
    connection.close()


LEAVES = """
import sys, anyio
from knouds_async import SQLiteLedger
from knouds_async.ledgers import Claim
from knouds_async._sansio.ledger import Sending

async def main():
    ledger = SQLiteLedger(sys.argv[1])
    owner = await ledger.join()
    print("joined", flush=True)
    sys.stdin.readline()
    with anyio.move_on_after(0.3):
        if sys.argv[2] == "reads":
            await ledger.find("a")
        await ledger.claim(Claim(key="a", target="workflows/x", digest="d", sending=Sending(owner=owner, sent_at=1.0)))
    print("ends", flush=True)

anyio.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["reads", "writes"])
def test_a_process_that_ends_waits_only_for_what_it_writes(what: str, path: Path) -> None:
    """A file that is locked for long keeps no process that only wanted to read; what is to be written is waited for."""
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", LEAVES, str(path), what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as ending:
        assert ending.stdout is not None
        assert ending.stdin is not None
        assert ending.stdout.readline() == "joined\n"
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        ending.stdin.write("\n")
        ending.stdin.flush()
        assert ending.stdout.readline() == "ends\n"
        try:
            ending.wait(30 if what == "reads" else 3)
        except subprocess.TimeoutExpired:
            assert what == "writes"
        other.execute("COMMIT")
        assert ending.wait(60) == 0
        assert other.execute("SELECT key FROM jobs").fetchall() == ([] if what == "reads" else [("a",)])
        other.close()


def _first_form(path: Path) -> None:
    """Write a ledger as the first version did, with a job that is unknown."""
    old = sqlite3.connect(path)
    old.executescript(
        """
        CREATE TABLE jobs (
            key TEXT NOT NULL, attempt INTEGER NOT NULL, target TEXT NOT NULL, digest TEXT NOT NULL,
            stage TEXT NOT NULL, owner TEXT, reserved REAL, sent_at REAL, execution_id TEXT, request_id TEXT, note TEXT,
            status TEXT, cost REAL, reply TEXT, code TEXT, message TEXT, PRIMARY KEY (key, attempt)
        );
        CREATE TABLE credits (spent REAL NOT NULL, reserved REAL NOT NULL, unpriced INTEGER NOT NULL);
        INSERT INTO credits VALUES (0, 12, 0);
        INSERT INTO jobs (key, attempt, target, digest, stage, reserved, sent_at, note)
            VALUES ('a', 1, 'workflows/x', 'd', 'unknown', 12, 5.0, 'closed');
        PRAGMA application_id = 1263422535;
        PRAGMA user_version = 1;
        """
    )
    old.close()


async def test_a_ledger_of_the_first_form_is_taken_over(path: Path) -> None:
    """It keeps its jobs; what was unknown then was dated by nothing that is certain, and stays unknown."""
    _first_form(path)
    async with SQLiteLedger(path) as ledger:
        (entry,) = await ledger.unknown()
        assert (entry.key, entry.sent_at, entry.lasts) == ("a", 5.0, 0.0)
        assert entry.may_have_begun is None
        assert entry.account is None
    async with SQLiteLedger(path) as ledger:
        assert (await ledger.counts()).unknown == 1


def _of_the_third_form(path: Path, costs: list[float | None]) -> None:
    """Make a ledger as it was before it kept what runs cost apart from them: runs of two targets."""
    LedgerDatabase(path, 1.0).close()
    old = sqlite3.connect(path)
    old.executescript(
        """
        DROP TABLE prices;
        CREATE INDEX jobs_by_cost ON jobs (target, cost) WHERE cost IS NOT NULL;
        PRAGMA user_version = 3;
        """
    )
    finished = (
        "INSERT INTO jobs (key, attempt, target, digest, stage, status, cost) VALUES (?, 1, ?, 'd', 'final', ?, ?)"
    )
    rows = [(f"{number}", f"workflows/{'xy'[number % 2]}", "completed", cost) for number, cost in enumerate(costs)]
    old.executemany(finished, rows)
    old.commit()
    old.close()


@pytest.mark.parametrize(
    ("costs", "known"),
    [
        ([7.0, 99.0, None, 1.0, 12.0, 5.0, 3.0], {"x": (3, 12.0), "y": (3, 99.0), "z": (0, None)}),
        ([0.0, None, 0.0], {"x": (2, None), "y": (0, None)}),
        ([], {"x": (0, None)}),
    ],
)
async def test_what_runs_cost_is_known_of_a_ledger_of_the_third_form(
    costs: list[float | None], known: dict[str, tuple[int, float | None]], path: Path
) -> None:
    """It is counted once, when the ledger is taken over, and with each end from then on."""
    _of_the_third_form(path, costs)
    for _ in range(2):
        async with SQLiteLedger(path) as ledger:
            for name, (runs, highest) in known.items():
                summary = await ledger.summary(f"workflows/{name}")
                assert (summary.runs, summary.highest_cost) == (runs, highest)
    async with SQLiteLedger(path) as ledger:
        owner = await ledger.join()
        written = await ledger.claim(claim("new", owner, reserve=None))
        assert isinstance(written, Written)
        assert written.highest_cost == written.entry.reserved == known["x"][1]
        await ledger.record("new", 1, Ended(Ending(status="completed", cost=200.0)))
        summary = await ledger.summary("workflows/x")
        assert (summary.runs, summary.highest_cost) == (known["x"][0] + 1, 200.0)


@pytest.mark.slow
def test_a_loop_that_ends_while_a_batch_is_left_frees_its_jobs(path: Path) -> None:
    """The next batch of the process picks the runs up, and does not wait for a batch that is no more."""
    service = Emulator(tier="enterprise", duration=2.0)

    async def leave() -> None:
        left = asyncio.Event()

        async def work() -> None:
            async with httpx.AsyncClient(transport=EmulatorTransport(service, latency=0.05)) as http:
                knouds = AsyncKnouds(service.api_key, base_url="https://knouds.test", http_client=http)
                async with knouds.workflows.map(SLUG, jobs(3), ledger=path, validate=False):
                    await asyncio.sleep(0.7)  # all are submitted
                    left.set()

        task = asyncio.create_task(work())
        await left.wait()
        await asyncio.sleep(0)
        assert not task.done()

    async def proceed() -> list[Outcome]:
        async with httpx.AsyncClient(transport=EmulatorTransport(service)) as http:
            knouds = AsyncKnouds(service.api_key, base_url="https://knouds.test", http_client=http)
            with anyio.fail_after(10):
                return await knouds.workflows.gather(SLUG, jobs(3), ledger=path)

    asyncio.run(leave())
    assert len(asyncio.run(proceed())) == 3
    service.assert_charged_once()
