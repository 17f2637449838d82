"""The examples for many machines, as they stand: real processes, killed, on a real database, a real Redis."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from knouds_async.postgres import Postgres
from knouds_async.testing import Emulator, Run, faults, serve
from knouds_async.webhooks import sign
from tests.postgres.server import Server, free_port
from tests.webhooks.sending import payload

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KNOUDS_KILLS", "3"))
IS_THOROUGH = "KNOUDS_KILLS" in os.environ
"""Then answers take longer, and what is still unknown after two minutes is checked."""
PROVABLE_AFTER = 130

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "many_machines"
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def emulator() -> Emulator:
    """Return a service whose runs take a second, and of which 60 take eight."""
    made = Emulator(tier="pro", duration=1.0, limit=15, window_length=2.0, polls_limited=False, usage_limited=False)
    if IS_THOROUGH:  # so that a kill strikes some of them in their submit
        made.faults.add(faults.stalled(0.1, after_run=True), route="POST /api/workflows/:slug/run", probability=0.5)
        made.faults.add(faults.stalled(0.1), route="POST /api/workflows/:slug/run")
    return made


@pytest.fixture
def environment(emulator: Emulator, url: str) -> Iterator[dict[str, str]]:
    """Return the environment of a machine: the database, and the emulator on a port."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serve(emulator)) as base_url:
        yield {
            **os.environ,
            "DATABASE_URL": url,
            "KNOUDS_KEY": emulator.api_key,
            "KNOUDS_BASE_URL": base_url,
            "STALLED_AFTER": "2",
            "IDLE_TIMEOUT": "2",
            "PROVABLE_AFTER": str(PROVABLE_AFTER if IS_THOROUGH else 2 * PROVABLE_AFTER),
            "TAKEN": "4",
        }


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Start]:
    """Return what starts an example; what is left of it is killed after the test."""
    with ExitStack() as stack:

        def started(name: str, *words: str, **more: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, str(EXAMPLES / name), *words],
                env={**environment, **more},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(end, process)
            return process

        yield started


def end(process: subprocess.Popen[str]) -> None:
    """Kill a process, if it has not ended."""
    if process.poll() is None:
        process.kill()
        process.wait()
    if process.stderr is not None:
        process.stderr.close()


def done(process: subprocess.Popen[str]) -> None:
    """Wait until a process has ended well."""
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said


def kill_one_after_another(
    start: Callable[[], subprocess.Popen[str]], is_over: Callable[[], bool], runs: Sequence[Run]
) -> None:
    """Keep two workers running, kill one of them some time after more runs have begun, and wait until all is done."""
    dice, workers = random.Random(0), [start(), start()]
    until = time.monotonic() + 90 + 10 * KILLS
    for number in range(KILLS):
        begun, latest = len(runs) + 8, time.monotonic() + 4
        while len(runs) < begun and time.monotonic() < latest:
            time.sleep(0.05)
        time.sleep(dice.uniform(0, 2))  # a window's length: at its beginning many are sent at once
        workers[number % 2].send_signal(signal.SIGKILL)
        workers[number % 2].wait()
        workers[number % 2] = start()
    while not is_over():
        assert time.monotonic() < until, [each.poll() for each in workers]
        time.sleep(0.2)


def outcomes(url: str) -> Any:
    """Return the counts of the examples' ledger."""

    async def count() -> Any:
        async with Postgres(url, name="renders") as ledger:
            return await ledger.counts()

    return anyio.run(count)


def settled(url: str, count: int) -> bool:
    """Return whether each job has ended, or is unknown because a kill struck its submit."""
    counts = outcomes(url)
    return bool(counts.completed + counts.unknown == count)


NAMES = [f"lamp-{number}" for number in range(15 * KILLS)]


def check(emulator: Emulator, server: Server, database: str) -> None:
    """Check that no job ran twice; thoroughly, also that what a second look leaves unknown may have run."""
    url = server.url(database)
    before = outcomes(url)
    sys.stderr.write(f"{KILLS} kills: {before}\n")
    assert before.unknown <= 2.5 * KILLS
    if IS_THOROUGH and before.unknown:
        time.sleep(PROVABLE_AFTER + 30)
        after = outcomes(url)
        rows = server.execute("SELECT execution_id FROM knouds_job", database=database)
        lost = {run.execution_id for run in emulator.runs} - {row[0] for row in rows}
        sys.stderr.write(f"after a second look: {after}; {len(lost)} runs are on no record\n")
        assert after.completed + after.unknown == len(NAMES)
        assert lost or not after.unknown
        assert len(lost) <= after.unknown
    times = Counter(str(run.inputs["product_name"]) for run in emulator.runs)
    assert max(times.values()) == 1
    emulator.assert_charged_once()


def test_procrastinate_workers_that_are_killed(
    start: Start, emulator: Emulator, server: Server, database: str, url: str
) -> None:
    """Each job has one run at most, and all that were not struck in their submit complete."""
    done(start("procrastinate_worker.py", "schema"))
    done(start("procrastinate_worker.py", "defer", *NAMES))
    work = partial(start, "procrastinate_worker.py", "work")
    kill_one_after_another(work, lambda: settled(url, len(NAMES)), emulator.runs)
    check(emulator, server, database)


def test_streaq_workers_on_trio_that_are_killed(
    start: Start, emulator: Emulator, server: Server, database: str, url: str, tmp_path: Path
) -> None:
    """The same with Redis as the queue: it may deliver twice, and no job runs twice."""
    redis, port = shutil.which("redis-server"), free_port()
    if redis is None:
        if os.environ.get("CI"):
            pytest.fail("redis-server is not installed")
        pytest.skip("redis-server is not installed (Debian: redis-server)")
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    queue = subprocess.Popen([redis, *options], stdout=subprocess.DEVNULL)  # noqa: S603
    try:
        where = {"REDIS_URL": f"redis://127.0.0.1:{port}"}
        time.sleep(0.5)
        done(start("streaq_worker.py", "enqueue", *NAMES, **where))
        work = partial(start, "streaq_worker.py", "work", **where)
        kill_one_after_another(work, lambda: settled(url, len(NAMES)), emulator.runs)
        check(emulator, server, database)
    finally:
        queue.terminate()
        queue.wait(20)


def test_four_machines_drain_a_table(start: Start, emulator: Emulator, server: Server, database: str, url: str) -> None:
    """One is killed on the way: every row has its outcome and is gone, and no job was paid for twice."""
    done(start("drain.py", "fill", "60"))
    machines = [start("drain.py") for _ in range(4)]
    time.sleep(2.0)
    machines[0].kill()
    until = time.monotonic() + 100
    while not settled(url, 60):
        assert time.monotonic() < until
        time.sleep(0.3)
    emulator.assert_charged_once()
    rendered = server.execute("SELECT count(*) FROM rendered WHERE status = 'completed'", database=database)
    left = server.execute("SELECT count(*) FROM renders", database=database)
    assert rendered[0][0] + left[0][0] == 60
    if left == [(0,)]:
        for each in machines[1:]:
            done(each)


async def test_two_pods(environment: dict[str, str], emulator: Emulator) -> None:
    """A click and its retry through the other pod give one run; a delivery to one pod ends the wait in the other."""
    emulator.duration = 30.0
    secret = "whsec_emulator_0123456789abcdef"
    ports = [free_port(), free_port()]
    pods = [start_pod(port, {**environment, "KNOUDS_WEBHOOK_SECRET": secret}) for port in ports]
    try:
        await _click_and_wait(ports, emulator, secret)
    finally:
        for pod in pods:
            pod.terminate()
        for pod in pods:
            pod.wait(20)


def start_pod(port: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a pod."""
    command = [sys.executable, "-m", "uvicorn", "pods:app", "--app-dir", str(EXAMPLES), "--port", str(port)]
    return subprocess.Popen(  # noqa: S603
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


async def _click_and_wait(ports: list[int], emulator: Emulator, secret: str) -> None:
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    async with httpx.AsyncClient(timeout=30) as http:
        for url in urls:
            with anyio.fail_after(60):
                while not await _is_up(http, url):  # noqa: ASYNC110
                    await anyio.sleep(0.1)
        click: dict[str, Any] = {"json": {"product_name": "Lamp"}, "headers": {"Idempotency-Key": "order-1"}}
        ids = {(await http.post(f"{url}/orders", **click)).json()["id"] for url in urls}
        assert len(ids) == len(emulator.runs) == 1
        (run,) = ids
        found: list[Any] = []

        async def wait() -> None:
            found.append((await http.get(f"{urls[0]}/orders/{run}/result", params={"timeout": 25})).json())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.sleep(2)
            emulator.finish(run)
            body = json.dumps(payload(run)).encode()
            headers = {"X-Knouds-Signature": sign(body, secret, now=time.time())}
            answer = await http.post(f"{urls[1]}/webhooks/knouds", content=body, headers=headers)
            assert answer.status_code == 200
        assert found[0]["status"] == "completed"


async def _is_up(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(f"{url}/docs")).status_code == 200
    except httpx.TransportError:
        return False
