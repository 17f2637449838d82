"""What things may cost, counted instead of timed: calls, tasks, bytes and imports are the same on any machine."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import pickle
import queue
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import anyio
import httpx
import pytest

import knouds_async
from knouds_async import AsyncKnouds, Execution, Inputs, Job, Outcome
from knouds_async._io.pool import PooledTransport
from knouds_async._sansio import endpoints
from knouds_async._sansio.responses import Answer
from knouds_async.testing import Emulator
from knouds_async.testing.virtual_time import BACKENDS, virtual_backend
from knouds_async.types import Target

T = TypeVar("T")
ROOT = str(Path(knouds_async.__file__).parent)
KEY = "knouds_live_budget"
STATE = {
    "executionId": "a",
    "requestId": "r",
    "status": "processing",
    "workflowSlug": "w",
    "createdAt": "2026-05-08T19:29:55Z",
}
RECEIPT = {"_async": True, "requestId": "r", "status": "processing", "pollUrl": "/api/executions/a"}
NUMBERS = itertools.count()
HEAD = (
    "HTTP/1.1 200 OK\r\nDate: Wed, 25 Nov 2026 10:00:00 GMT\r\n"
    "X-RateLimit-Limit: 1000000\r\nX-RateLimit-Remaining: 900000\r\nX-RateLimit-Reset: 1795601000\r\n"
)


class Answering(asyncio.Protocol):
    """Answers every request that ends in what has come: a GET with a state, a POST with a receipt."""

    def __init__(self, open_ones: list[Answering]) -> None:
        open_ones.append(self)

    def abort(self) -> None:
        """Close the connection."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._left = transport, b""

    def data_received(self, data: bytes) -> None:
        """Answer."""
        self._left += data
        while b"\r\n\r\n" in self._left:
            head, _, rest = self._left.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
            if len(rest) < length:
                return
            self._left = rest[length:]
            receipt = {**RECEIPT, "executionId": f"run-{next(NUMBERS)}"}
            body = json.dumps(STATE if head.startswith(b"GET") else receipt)
            self._transport.write(f"{HEAD}Content-Length: {len(body)}\r\n\r\n{body}".encode())


@pytest.fixture
def url() -> Iterator[str]:
    """Serve from a thread of its own, so that what is counted here is the client's alone."""
    ports: queue.Queue[int] = queue.Queue()
    over = threading.Event()

    async def serve() -> None:
        open_ones: list[Answering] = []
        server = await asyncio.get_running_loop().create_server(lambda: Answering(open_ones), "127.0.0.1", 0)
        ports.put(server.sockets[0].getsockname()[1])
        await asyncio.to_thread(over.wait, 120)
        server.close()
        for each in open_ones:
            each.abort()
        await asyncio.sleep(0)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    yield f"http://127.0.0.1:{ports.get(timeout=10)}"
    over.set()
    thread.join(10)


class Counted:
    """Counts what this thread calls in the block: everything, and the functions of this package."""

    def __init__(self) -> None:
        self.all = self.ours = 0

    def _hear(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            self.all += 1
            self.ours += frame.f_code.co_filename.startswith(ROOT)
        elif event == "c_call":
            self.all += 1

    def __enter__(self) -> Counted:
        """Begin to count."""
        gc.disable()
        self._before = sys.getprofile()
        sys.setprofile(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave all as it was."""
        sys.setprofile(self._before)
        gc.enable()


async def many(work: Callable[[], Awaitable[object]], concurrent: int, each: int) -> None:
    """Do `work` so many times in so many tasks."""

    async def repeat() -> None:
        for _ in range(each):
            await work()

    async with anyio.create_task_group() as tasks:
        for _ in range(concurrent):
            tasks.start_soon(repeat)


async def calls_each(work: Callable[[], Awaitable[object]], concurrent: int, each: int) -> tuple[float, float]:
    """Return the calls that one `work` takes, all and ours, once connections are open: the fewest of some trials."""
    await many(work, concurrent, 2)
    trials = []
    for _ in range(2):
        with Counted() as counted:
            await many(work, concurrent, each)
        trials.append((counted.all / (concurrent * each), counted.ours / (concurrent * each)))
    return min(trials)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run on both backends in real time: sockets know no other."""
    name: str = request.param
    return name


@pytest.mark.slow
async def test_a_poll_takes_no_more_than_bare_httpx_on_our_pool(url: str) -> None:
    """Limiter, decoding and all: about as many calls as httpx alone takes for the same request."""
    async with AsyncKnouds(KEY, base_url=url) as knouds, httpx.AsyncClient(transport=PooledTransport()) as http:
        mine, own = await calls_each(lambda: knouds.executions.get("a"), 10, 20)
        bare, _ = await calls_each(lambda: http.get(f"{url}/api/executions/a", headers={"x-api-key": KEY}), 10, 20)
    assert mine < 1.05 * bare, f"{mine:.0f} calls for a poll, {bare:.0f} for bare httpx"
    assert own < 270, f"{own:.0f} calls of ours for a poll"


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_poll_takes_less_than_half_of_stock_httpx(url: str) -> None:
    """With 100 at once httpx's own pool searches all of its connections for each request, and ours does not."""
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=100)
    async with AsyncKnouds(KEY, base_url=url) as knouds, httpx.AsyncClient(limits=limits, timeout=60.0) as http:
        mine, _ = await calls_each(lambda: knouds.executions.get("a"), 100, 2)
        stock, _ = await calls_each(lambda: http.get(f"{url}/api/executions/a", headers={"x-api-key": KEY}), 100, 2)
    assert mine < stock / 2.2, f"{mine:.0f} calls for a poll, {stock:.0f} for stock httpx"


async def test_a_poll_leaves_little_for_the_garbage_collector(url: str) -> None:
    """What httpx ties together in a circle is taken apart at once, not in a pause that stops everything."""
    async with AsyncKnouds(KEY, base_url=url) as knouds:
        await knouds.executions.get("a")
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                await knouds.executions.get("a")
            left = gc.collect()
        finally:
            gc.enable()
    assert left < 5 * 50, f"{left / 50:.0f} objects for a poll"


@pytest.mark.slow
async def test_a_poll_costs_the_same_with_hundreds_at_once(url: str) -> None:
    """From 10 to 200 at once, twice as many as there are connections, within 30 %."""
    async with AsyncKnouds(KEY, base_url=url) as knouds:
        few, _ = await calls_each(lambda: knouds.executions.get("a"), 10, 10)
        lots, _ = await calls_each(lambda: knouds.executions.get("a"), 200, 1)
    assert lots < 1.3 * few, f"{lots:.0f} calls for a poll with 200 at once, {few:.0f} with 10"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_poll_makes_no_task_and_a_submit_makes_one(url: str) -> None:
    """Only what must not be cut has a task of its own."""
    made = [0]

    def factory(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        made[0] += 1
        return asyncio.Task(work, loop=loop, **options)

    async with AsyncKnouds(KEY, base_url=url) as knouds:
        await knouds.executions.get("a")
        asyncio.get_running_loop().set_task_factory(factory)
        await knouds.executions.get("a")
        assert made == [0]
        await knouds.workflows.submit("a", {})
        assert made == [1]


async def traced(runs: Sequence[Any], wait: Callable[[Any], Coroutine[Any, Any, object]]) -> float:
    """Return the bytes that a task takes which waits for one of the `runs`."""
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    now = before
    async with anyio.create_task_group() as tasks:
        for run in runs:
            tasks.start_soon(wait, run)
        await anyio.wait_all_tasks_blocked()
        gc.collect()
        now, _ = tracemalloc.get_traced_memory()
        tasks.cancel_scope.cancel()
    return (now - before) / len(runs)


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", [virtual_backend(name) for name in BACKENDS])
async def test_an_awaited_execution_is_small(knouds: AsyncKnouds) -> None:
    """Handle, record and wait take at most 6 KiB beyond the task of the caller who waits."""
    count, handles, never = 300, list[Execution](), anyio.Event()

    async def submit() -> None:
        handles.append(await knouds.workflows.submit("my-thumbnail-pipeline", {"product_name": "x"}))

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(submit)
    assert [handle.state.is_final for handle in handles] == [False] * count
    alone = ours = 0.0
    tracemalloc.start()
    try:
        for _ in range(2):  # whatever is made once is there the second time
            alone = await traced(handles, lambda _: never.wait())
            ours = await traced(handles, lambda handle: handle.wait())
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        records = [pickle.loads(pickle.dumps(handle)) for handle in handles]  # noqa: S301  (what a handle holds)
        gc.collect()
        handle = (tracemalloc.get_traced_memory()[0] - before) / len(records)
    finally:
        tracemalloc.stop()
    each = ours - alone + handle
    assert each < 6 * 1024, f"{each / 1024:.1f} KiB"


async def files_of(work: Callable[[], Awaitable[T]]) -> tuple[int, T]:
    """Return how many files of the package some work enters, the emulator's aside, and its value."""
    entered: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(ROOT):
            entered.add(frame.f_code.co_filename.removeprefix(ROOT))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        value = await work()
    finally:
        sys.setprofile(before)
    return len([name for name in entered if Path(name).parts[1] != "testing"]), value


@pytest.mark.parametrize("anyio_backend", [virtual_backend("asyncio")])
async def test_a_call_enters_few_files(make_client: Any) -> None:
    """A reader who follows a call opens a dozen files for a free one, and 28 for a job of a batch."""
    knouds = make_client(Emulator(tier="enterprise", duration=1.0))
    inputs: Inputs = {"product_name": "x"}

    async def one_job() -> list[Outcome]:
        async with knouds.workflows.map("my-thumbnail-pipeline", [Job("a", inputs)]) as outcomes:
            return [outcome async for outcome in outcomes]

    account, _ = await files_of(knouds.whoami)
    submit, execution = await files_of(lambda: knouds.workflows.submit("my-thumbnail-pipeline", inputs))
    wait, _ = await files_of(execution.wait)
    batch, _ = await files_of(one_job)
    assert (account <= 12, submit <= 20, wait <= 18, batch <= 28) == (True,) * 4, (account, submit, wait, batch)


def test_a_row_of_use_takes_few_calls() -> None:
    """A page of 500 rows is read in a number of calls that grows with its rows, and slowly."""
    row = {"id": 1, "workflowSlug": "w", "modelIds": ["m"], "status": "completed", "creditsCost": 5, "requestId": "k"}
    body = json.dumps({"rows": [row] * 500, "page": 0, "pageSize": 500, "total": 500}).encode()
    call = endpoints.list_usage(limit=500)
    call.parse(Answer(200, {}, body))
    with Counted() as counted:
        assert len(call.parse(Answer(200, {}, body)).rows) == 500
    assert counted.all / 500 < 80


def test_a_submit_is_prepared_in_few_calls() -> None:
    """Checking the inputs of a run is cheap."""
    inputs: Inputs = {"prompt": "a lighthouse", "steps": 30, "strength": 0.5, "tags": ["a", "b"]}
    target = Target("workflows", "a")
    endpoints.submit(target, inputs)
    with Counted() as counted:
        endpoints.submit(target, inputs)
    assert counted.all < 120


def loaded_by(program: str) -> set[str]:
    """Return the top-level modules that a program has loaded when it ends."""
    code = f"import sys\ntry:\n    {program}\nexcept SystemExit:\n    pass\nprint(*sys.modules, file=sys.stderr)"
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run([sys.executable, "-c", code], env=quiet, capture_output=True, text=True, check=True)  # noqa: S603
    return {name.partition(".")[0] for name in done.stderr.split()}


SLOW = {"httpx", "httpcore", "cattrs", "trio", "sqlite3", "starlette", "uvicorn", "fastapi", "aiohttp", "pytest"}


def test_the_package_loads_what_it_needs_at_once() -> None:
    """HTTP is imported with the first client, SQLite with the first file, and the extras where they are used."""
    assert loaded_by("import knouds_async") & {*SLOW, "cyclopts", "rich"} == set()


def test_help_loads_no_http() -> None:
    """`knouds --help` answers without what only a command needs."""
    assert loaded_by("from knouds_async._cli.commands import run_knouds; run_knouds(['--help'])") & SLOW == set()
