"""SharedLimiter: one quota for several processes, kept in a file that reveals nothing of the key."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from knouds_async import AsyncKnouds, ConfigurationError, Limiter, RateLimitError, Secret, SharedLimiter
from knouds_async._io.shared_limiter import LimiterFile
from knouds_async._sansio.rate_limit import QuotaHeaders
from knouds_async.testing import Emulator, Fault, Response, serve

SLUG = "my-thumbnail-pipeline"
ROUTE = "POST /api/workflows/:slug/run"
KEY = Secret("knouds_live_CANARY")

CHILD = """
import sys
import anyio
from knouds_async import AsyncKnouds, SharedLimiter

async def main():
    url, path, key, name, jobs = sys.argv[1:]
    async with AsyncKnouds(key, base_url=url, limiter=SharedLimiter(path)) as knouds:
        async with anyio.create_task_group() as tasks:
            for number in range(int(jobs)):
                tasks.start_soon(knouds.workflows.submit, "my-thumbnail-pipeline", {"product_name": f"{name} {number}"})

anyio.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_three_processes_share_one_quota(tmp_path: Path, anyio_backend: str) -> None:
    """Processes that start together use up every window together, without a 429."""
    emulator = Emulator(tier="pro", limit=20, window_length=2.0, window_phase=0.7, duration=1.0, clock_skew=137.0)
    async with serve(emulator) as url:
        argv = [sys.executable, "-c", CHILD, url, str(tmp_path / "quota.db"), emulator.api_key]
        async with anyio.create_task_group() as tasks:
            for name in "abc":
                tasks.start_soon(anyio.run_process, [*argv, name, "20"])
    assert len(emulator.runs) == 60
    emulator.assert_no_429()
    emulator.assert_charged_once()


async def test_two_clients_with_one_file_provoke_no_429(
    make_client: Callable[..., AsyncKnouds], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In virtual time: two clients, each with the file open for itself, go through five windows without a 429."""
    trades: list[int] = []
    trade = LimiterFile.update

    def counted(*args: Any, **options: Any) -> Any:
        trades.append(1)
        return trade(*args, **options)

    monkeypatch.setattr(LimiterFile, "update", counted)
    emulator = Emulator(tier="pro", limit=100, duration=1.0)
    clients = [
        make_client(emulator, limiter=SharedLimiter(tmp_path / "q.db", "pro", clock=anyio.current_time))
        for _ in range(2)
    ]
    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for number in range(500):
            tasks.start_soon(clients[number % 2].workflows.submit, SLUG, {"product_name": str(number)})
    assert anyio.current_time() - began < 300
    assert len(emulator.runs) == 500
    emulator.assert_no_429()
    asleep = (anyio.current_time() - began) * 2  # one read a second by each client that waits for an edge
    assert len(trades) < 500 * 2.5 + 2 * asleep
    assert clients[0].limiter.stats(ROUTE).limit == 100
    assert clients[0].limiter.stats(ROUTE).resets_in is not None


async def test_turns_are_given_back_and_lost_ones_are_spent(tmp_path: Path) -> None:
    """What becomes of a turn is known to the other processes at once."""
    mine = SharedLimiter(tmp_path / "q.db", "free").for_key(KEY)
    other = SharedLimiter(tmp_path / "q.db", "free").for_key(KEY)
    permit = await mine.acquire(ROUTE)
    mine.release(ROUTE, permit)
    again = await other.acquire(ROUTE)
    other.mark_unanswered(ROUTE, again)
    mine.stats(ROUTE)
    assert mine.stats(ROUTE).limit == 10
    permit = await mine.acquire(ROUTE)
    assert mine.stats(ROUTE).left == 8


async def test_a_report_that_cannot_be_made_stops_no_other(tmp_path: Path) -> None:
    """It raises where it is made, once: later permits and reports need nothing of it."""
    limiter = SharedLimiter(tmp_path / "quota.db", "free").for_key(KEY)
    permit = await limiter.acquire(ROUTE)
    broken: Any = QuotaHeaders(limit=10, remaining=9, reset="soon")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        limiter.on_response(ROUTE, permit, broken, None)
    limiter.mark_unanswered(ROUTE, permit)
    assert limiter.try_acquire(ROUTE) is not None


async def test_accounts_do_not_touch_each_other(tmp_path: Path) -> None:
    """Two keys in one file, each with its own quota on one route."""
    shared = SharedLimiter(tmp_path / "q.db", "free")
    mine, other = shared.for_key(KEY), shared.for_key(Secret("knouds_live_OTHER"))
    mine.mark_unanswered(ROUTE, await mine.acquire(ROUTE))
    other.release(ROUTE, await other.acquire(ROUTE))
    assert (mine.stats(ROUTE).left, other.stats(ROUTE).left) == (9, 10)


async def test_a_file_that_is_removed_is_created_again(tmp_path: Path) -> None:
    """Who has it open notices at once, and all meet in the new file; what was believed goes into it."""
    path = tmp_path / "q.db"
    mine, other = (SharedLimiter(path, "free").for_key(KEY) for _ in range(2))
    mine.mark_unanswered(ROUTE, await mine.acquire(ROUTE))
    path.unlink()
    for number in range(1, 4):
        mine.mark_unanswered(ROUTE, await mine.acquire(ROUTE))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        other.release(ROUTE, await other.acquire(ROUTE))
        assert other.stats(ROUTE).left == 9 - number


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_trouble_with_the_file_never_stops_a_request(
    tmp_path: Path, anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that turns into something else, or vanishes with its folder, is done without, and said once."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "q.db"
    limiter = SharedLimiter(path, "enterprise", clock=anyio.current_time).for_key(KEY)
    limiter.mark_unanswered(ROUTE, await limiter.acquire(ROUTE))
    path.unlink()
    path.write_bytes(b"a letter to a friend" * 100)
    for _ in range(50):
        limiter.mark_unanswered(ROUTE, await limiter.acquire(ROUTE))
    assert path.read_bytes().startswith(b"a letter")
    shutil.rmtree(folder)
    for _ in range(50):
        limiter.mark_unanswered(ROUTE, await limiter.acquire(ROUTE))
    assert len([record for record in caplog.records if "continuing without it" in record.message]) == 1
    assert "CANARY" not in caplog.text


async def test_only_a_locked_file_is_waited_for(tmp_path: Path) -> None:
    """In virtual time: a file that is gone with its folder costs no wait, whatever the folder was called."""
    folder = tmp_path / "locked"
    folder.mkdir()
    limiter = SharedLimiter(folder / "q.db", "pro", clock=anyio.current_time).for_key(KEY)
    shutil.rmtree(folder)
    began = anyio.current_time()
    await limiter.acquire(ROUTE)
    assert anyio.current_time() == began


async def test_a_file_that_can_be_used_again_is_used_again(tmp_path: Path) -> None:
    """In virtual time: the lock is gone, and after ten seconds the file is used again; the next fault is logged."""
    path = tmp_path / "q.db"
    mine, other = (SharedLimiter(path, "free", clock=anyio.current_time).for_key(KEY) for _ in range(2))
    mine.mark_unanswered(ROUTE, await mine.acquire(ROUTE))
    path.rename(tmp_path / "aside")
    path.mkdir()
    for _ in range(3):
        mine.mark_unanswered(ROUTE, await mine.acquire(ROUTE))
    path.rmdir()
    (tmp_path / "aside").rename(path)
    await anyio.sleep(10.1)
    mine.mark_unanswered(ROUTE, await mine.acquire(ROUTE))
    other.release(ROUTE, await other.acquire(ROUTE))
    assert other.stats(ROUTE).left == mine.stats(ROUTE).left == 8  # three were counted in memory only


async def test_a_process_that_hangs_with_the_file_in_hand_stops_nobody_for_long(tmp_path: Path) -> None:
    """In virtual time: after three seconds the others continue without the file."""
    path = tmp_path / "q.db"
    limiter = SharedLimiter(path, "pro", clock=anyio.current_time).for_key(KEY)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    began = anyio.current_time()
    await limiter.acquire(ROUTE)
    assert anyio.current_time() - began == pytest.approx(3.0, abs=0.1)
    holder.close()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    """A named pipe, which would be waited for without an end, is no file."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="cannot be used as a limiter's file"):
        SharedLimiter(tmp_path / "pipe")


@pytest.mark.parametrize("place", ["missing/q.db", "."])
def test_a_place_without_a_file_is_refused(tmp_path: Path, place: str) -> None:
    """A folder that is not there, or that stands in the file's place, is named."""
    with pytest.raises(ConfigurationError, match="cannot be used as a limiter's file"):
        SharedLimiter(tmp_path / place)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits here")
def test_a_full_disk_stops_no_request(tmp_path: Path) -> None:
    """Where nothing can be written any more, turns are given all the same."""
    code = """
import resource, signal, sys, anyio
from knouds_async import Secret, SharedLimiter

async def main():
    limiter = SharedLimiter(sys.argv[1], "enterprise").for_key(Secret("k"))
    limiter.mark_unanswered("R", await limiter.acquire("R"))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    for _ in range(20):
        limiter.mark_unanswered("R", await limiter.acquire("R"))
    print("all went")

anyio.run(main)
"""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code, tmp_path / "q.db"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "all went" in done.stdout
    assert "continuing without it" in done.stderr


async def test_a_crash_costs_what_was_in_flight_and_no_more(tmp_path: Path) -> None:
    """A process that dies with permits in hand loses those to the others, until the window ends."""
    code = """
import os, sys, anyio
from knouds_async import Secret, SharedLimiter
from knouds_async._sansio.rate_limit import QuotaHeaders

async def main():
    limiter = SharedLimiter(sys.argv[1], "pro").for_key(Secret("knouds_live_CANARY"))
    first = await limiter.acquire(sys.argv[2])
    limiter.on_response(sys.argv[2], first, QuotaHeaders(limit=100, remaining=99, reset=1e9 + 60), 1e9)
    async with anyio.create_task_group() as tasks:
        for _ in range(30):
            tasks.start_soon(limiter.acquire, sys.argv[2])
        await anyio.sleep(0)
        os._exit(9)

anyio.run(main)
"""
    argv = [sys.executable, "-c", code, str(tmp_path / "q.db"), ROUTE]
    assert subprocess.run(argv, timeout=60, check=False).returncode == 9  # noqa: S603, ASYNC221
    limiter = SharedLimiter(tmp_path / "q.db", "pro").for_key(KEY)
    limiter.release(ROUTE, await limiter.acquire(ROUTE))
    assert 99 - 30 <= (limiter.stats(ROUTE).left or 0) <= 99


def test_it_is_handed_to_a_spawned_process_as_it_is(tmp_path: Path) -> None:
    """Pickled, as multiprocessing does for an argument, it opens the same file with the same options."""
    shared = SharedLimiter(tmp_path / "q.db", "free", share=0.5)
    twin = pickle.loads(pickle.dumps(shared))  # noqa: S301
    limiters = [one.for_key(KEY) for one in (shared, twin)]

    async def take() -> None:
        limiters[0].mark_unanswered(ROUTE, await limiters[0].acquire(ROUTE))
        limiters[1].release(ROUTE, await limiters[1].acquire(ROUTE))

    anyio.run(take)
    assert limiters[1].share == 0.5


async def test_the_file_is_private_and_holds_no_key(tmp_path: Path) -> None:
    """Mode 0600; neither the key nor a plain hash of it is in the file; two files name one account differently."""
    paths = [tmp_path / "a.db", tmp_path / "b.db"]
    names = []
    for path in paths:
        limiter = SharedLimiter(path, "pro").for_key(KEY)
        limiter.mark_unanswered(ROUTE, await limiter.acquire(ROUTE))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert b"CANARY" not in path.read_bytes()
        with closing(sqlite3.connect(path)) as connection:
            names.append(connection.execute("SELECT name FROM quotas").fetchone()[0])
    assert names[0] != names[1]
    assert names[0].endswith(ROUTE)


@pytest.mark.parametrize("place", [None, 5, b"quota.db"])
def test_what_is_no_place_is_refused(place: Any) -> None:
    """A limiter that is shared at no path and in no database is refused where it is made."""
    with pytest.raises(ConfigurationError, match="must be a path, a Postgres or the URL of one"):
        SharedLimiter(place)


@pytest.mark.parametrize(
    "content",
    [b"this is no database, but a letter to a friend" * 50, None],
    ids=["a letter", "another database"],
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, content: bytes | None) -> None:
    """A file that is not ours is a ConfigurationError that names it, and not a byte of it changes."""
    path = tmp_path / "foreign.db"
    if content is None:
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE windows (mine TEXT)")
        connection.commit()
        connection.close()
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=r"foreign\.db"):
        SharedLimiter(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_file_that_is_held_is_asked_again(tmp_path: Path, anyio_backend: str) -> None:
    """While another process holds the file, a request waits without blocking the loop, and then gets its turn."""
    path = tmp_path / "q.db"
    limiter = SharedLimiter(path, "pro").for_key(KEY)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    ticks = 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(limiter.acquire, ROUTE)
        for _ in range(5):
            await anyio.sleep(0.01)
            ticks += 1
        holder.execute("ROLLBACK")
    holder.close()
    assert ticks == 5
    assert limiter.stats(ROUTE).left == 99


async def test_a_window_from_before_a_restart_is_forgotten(tmp_path: Path) -> None:
    """Times of another boot, and states that cannot be read, mean nothing: the quota is learned anew."""
    path = tmp_path / "q.db"
    limiter = SharedLimiter(path, "free").for_key(KEY)
    limiter.mark_unanswered(ROUTE, await limiter.acquire(ROUTE))
    connection = sqlite3.connect(path)
    for change in ("boot = boot + 1e9", f"state = '{json.dumps({'old': 1})}'"):
        connection.execute(f"UPDATE quotas SET {change}")  # noqa: S608
        connection.commit()
        again = SharedLimiter(path, "free").for_key(KEY)
        again.release(ROUTE, await again.acquire(ROUTE))
        assert again.stats(ROUTE).left == 10
    connection.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_opens_the_file_for_itself(tmp_path: Path) -> None:
    """A limiter that was made before a fork works in the child and in the parent."""
    code = """
import os, sys, anyio
from knouds_async import Secret, SharedLimiter
limiter = SharedLimiter(sys.argv[1], "enterprise")
anyio.run(limiter.for_key(Secret("k")).acquire, "R")
child = os.fork()
anyio.run(limiter.for_key(Secret("k")).acquire, "R")
if child == 0:
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code, tmp_path / "q.db"], check=True, timeout=60)  # noqa: S603


def test_threads_with_loops_of_their_own_share_it(tmp_path: Path) -> None:
    """One SharedLimiter serves clients of several event loops in several threads."""
    shared = SharedLimiter(tmp_path / "q.db", "enterprise")
    taken: list[int] = []

    async def take() -> None:
        limiter = shared.for_key(KEY)
        for _ in range(50):
            limiter.mark_unanswered(ROUTE, await limiter.acquire(ROUTE))
            taken.append(1)

    threads = [threading.Thread(target=anyio.run, args=(take,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(taken) == 200


async def test_a_pause_that_one_was_asked_for_is_known_to_all(
    make_client: Callable[..., AsyncKnouds], tmp_path: Path
) -> None:
    """The other process raises it at once as well, though it was not refused itself."""
    emulator = Emulator(tier="business", duration=1.0)
    body = b'{"error": "Rate limit exceeded", "code": "RATE_LIMIT_EXCEEDED"}'
    a_day = Fault("a day", "before", lambda _: Response(429, {"retry-after": "86400"}, body))
    emulator.faults.add(a_day, route=ROUTE)
    began = anyio.current_time()
    for _ in range(3):
        limiter = SharedLimiter(tmp_path / "q.db", clock=anyio.current_time)
        with pytest.raises(RateLimitError) as caught:
            await make_client(emulator, limiter=limiter).workflows.submit(SLUG, {"product_name": "x"})
        assert caught.value.retry_after == pytest.approx(86_400, abs=60)
    assert anyio.current_time() - began < 60
    assert emulator.requests.by_route[ROUTE] == 1


def _state(**values: object) -> str:
    """Return SQL that sets values of all windows."""
    return f"UPDATE quotas SET state = changed(state, '{json.dumps(values)}')"  # noqa: S608


def _changed(state: str, values: str) -> str:
    """Return a state with other values; nobody else than who has the key can make a digest that fits."""
    digest, _, text = state.partition(" ")
    return f"{digest} {json.dumps(json.loads(text) | json.loads(values))}"


TAMPERINGS = {
    "state is rubbish": "UPDATE quotas SET state = 'rubbish'",
    "state is torn": "UPDATE quotas SET state = substr(state, 1, 100)",
    "state is NULL": "UPDATE quotas SET state = NULL",
    "state is a number": "UPDATE quotas SET state = 7",
    "state is bytes": "UPDATE quotas SET state = x'ff00fe'",
    "state is empty": "UPDATE quotas SET state = ''",
    "state is deep": "UPDATE quotas SET state = replace(hex(zeroblob(5000)), '00', '[')",
    "state is a list": "UPDATE quotas SET state = '[1, 2]'",
    "state is infinite": "UPDATE quotas SET state = replace(state, ':', ': Infinity ')",
    "boot is NULL": "UPDATE quotas SET boot = NULL",
    "boot is text": "UPDATE quotas SET boot = 'noon'",
    "boot is infinite": "UPDATE quotas SET boot = 9e999",
    "boot is before all": "UPDATE quotas SET boot = -9e999",
    "the edge is infinite": 'UPDATE quotas SET state = replace(state, \'"edge": \', \'"edge": Infinity, "x": \')',
    "the edge is far": _state(edge=1e12, left=0),
    "the pause is far": _state(paused_until=1e12),
    "the pause is text": _state(paused_until="long"),
    "nothing is left, and less": _state(left=-(10**9)),
    "the limit is negative": _state(limit=-5),
    "the limit is a list": _state(limit=[1]),
    "the length is nothing": _state(length=0),
    "the length is huge": _state(length=1e300),
    "the requests are text": _state(awaited="many"),
    "the requests are negative": _state(awaited=[[1, -5]]),
    "the requests are too many": _state(awaited=[[1, 999_999_999_999]]),
    "the requests are to come": _state(awaited=[[1e12, 100]]),
    "the clock is turned": _state(clock=[5, -5, 0]),
    "names are gone": "UPDATE quotas SET name = NULL",
    "the salt is another": "PRAGMA user_version = 7",
    "the salt is gone": "PRAGMA user_version = 0",
    "a table is gone": "DROP TABLE quotas",
    "a column is gone": "ALTER TABLE quotas DROP COLUMN boot",
}


async def _requests_go(limiter: Limiter) -> None:
    began = anyio.current_time()
    for _ in range(3):
        limiter.release(ROUTE, await limiter.acquire(ROUTE))
    assert anyio.current_time() - began < 5
    assert limiter.stats(ROUTE).waiting == 0


@pytest.mark.parametrize("sql", [pytest.param(sql, id=name) for name, sql in TAMPERINGS.items()])
async def test_a_file_that_was_tampered_with_stops_no_request(tmp_path: Path, sql: str) -> None:
    """Neither of a client that has it open, nor of one that opens it afterwards, in virtual time."""
    path = tmp_path / "q.db"
    limiter = SharedLimiter(path, "free", clock=anyio.current_time).for_key(KEY)
    limiter.mark_unanswered(ROUTE, await limiter.acquire(ROUTE))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.create_function("changed", 2, _changed)
        connection.execute(sql)
    await _requests_go(limiter)
    with closing(sqlite3.connect(path)) as connection, connection, suppress(sqlite3.Error):
        connection.create_function("changed", 2, _changed)
        connection.execute(sql)
    await _requests_go(SharedLimiter(path, "free", clock=anyio.current_time).for_key(KEY))


@pytest.mark.parametrize("kept", [100, 4096, 5000, 9000])
async def test_a_torn_file_stops_no_request(tmp_path: Path, kept: int) -> None:
    """Cut short at any place, it is done without by those that have it open; and by who opens it, where it is ours."""
    path = tmp_path / "q.db"
    limiter = SharedLimiter(path, "free", clock=anyio.current_time).for_key(KEY)
    limiter.mark_unanswered(ROUTE, await limiter.acquire(ROUTE))
    os.truncate(path, kept)
    await _requests_go(limiter)
    await _requests_go(SharedLimiter(path, "free", clock=anyio.current_time).for_key(KEY))


@pytest.mark.slow
def test_the_locks_of_an_open_transaction_are_kept(tmp_path: Path) -> None:
    """Another limiter on the same file in this process lets no other process into a transaction that is on."""
    path = tmp_path / "q.db"
    SharedLimiter(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        thread = threading.Thread(target=SharedLimiter, args=(path,))
        thread.start()
        thread.join()
        code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
        argv = [sys.executable, "-c", code, str(path)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603
        assert "database is locked" in done.stderr


def test_an_interpreter_without_sqlite_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but a limiter in a file needs the module, and it names what is missing."""
    monkeypatch.setitem(sys.modules, "sqlite3", None)
    with pytest.raises(ConfigurationError, match=r"needs Python's module sqlite3.*libsqlite3-dev"):
        SharedLimiter(tmp_path / "quota.db")
    assert not (tmp_path / "quota.db").exists()
