"""Every example is run as a user would run it, on real sockets, and judged by what the emulator received."""

import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import uvicorn
from aiohttp import web

import knouds_async
from knouds_async.testing import Emulator

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parent.parent / "examples"
OFTEN = Path(__file__).with_name("often.py")
PROGRAMS = {"script.py", "task_group.py", "trio_nursery.py"}
APPS = {"fastapi_app.py", "aiohttp_app.py"}

StartApp = Callable[[], Awaitable[httpx.AsyncClient]]
RunExample = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def anyio_backend() -> str:
    """Use asyncio in real time: these are real sockets."""
    return "asyncio"


@pytest.fixture
def emulator() -> Emulator:
    """Return a service whose runs take half a second."""
    return Emulator(tier="business", duration=0.5)


@contextmanager
def on_a_port(app: Any) -> Iterator[str]:
    """Serve an ASGI app with uvicorn on a free port of the loopback, in a thread of its own; yield its URL."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=5))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def service(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the emulator on a port and point the environment at it."""
    with on_a_port(emulator.app) as url:
        monkeypatch.setenv("KNOUDS_KEY", emulator.api_key)
        monkeypatch.setenv("KNOUDS_BASE_URL", url)
        yield url


@pytest.fixture
def run_example(service: str, tmp_path: Path) -> RunExample:
    """Return a function that runs an example in a process of its own, away from the checkout."""

    def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603
            [sys.executable, OFTEN, EXAMPLES / name, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONWARNINGS": "error", **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.mark.parametrize(
    "command", [("-m", "uvicorn", "fastapi_app:app", "--app-dir", str(EXAMPLES)), (str(EXAMPLES / "aiohttp_app.py"),)]
)
async def test_a_signal_ends_the_waits_and_no_run(
    command: tuple[str, ...], service: str, emulator: Emulator, tmp_path: Path
) -> None:
    """At SIGTERM waiting requests get 503, streams end, and the server exits; runs continue; the log is clean."""
    emulator.duration = 600.0
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    if "uvicorn" in command:
        command = (*command, "--port", port)
    environment = {**os.environ, "PORT": port}
    log = tmp_path / "log"
    with log.open("w") as out:
        server = await asyncio.create_subprocess_exec(sys.executable, *command, env=environment, stdout=out, stderr=out)
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as visitor:
                run_id = await _first_order(visitor)
                wait = asyncio.ensure_future(visitor.get(f"/thumbnails/{run_id}/result"))
                async with visitor.stream("GET", f"/thumbnails/{run_id}/events") as stream:
                    lines = stream.aiter_lines()
                    assert await anext(lines) == "event: processing"
                    server.terminate()
                    assert (await wait).status_code == 503
                    assert [line async for line in lines if line.startswith("event")] == []
            await asyncio.wait_for(server.wait(), 60)
        finally:
            with suppress(ProcessLookupError):
                server.kill()
    assert "Traceback" not in log.read_text()
    assert [run.status for run in emulator.runs] == ["processing"]


async def _first_order(visitor: httpx.AsyncClient) -> str:
    """Order a thumbnail as soon as the app answers."""
    for _ in range(600):
        try:
            answer = await visitor.post("/thumbnails", json={"product_name": "A coffee mug"})
        except httpx.ConnectError:
            await asyncio.sleep(0.1)
        else:
            assert answer.status_code == 202
            return str(answer.json()["id"])
    raise AssertionError("the app does not answer")


def test_every_example_is_run_here() -> None:
    """No example is left out of these tests."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == PROGRAMS | APPS


@pytest.mark.parametrize("name", sorted(PROGRAMS | APPS))
def test_examples_readme_names_every_example(name: str) -> None:
    """The examples' README lists each example."""
    assert f"({name})" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


def test_script_prints_the_result_of_one_run(run_example: RunExample, emulator: Emulator) -> None:
    """The script submits one run with the input it was given and prints its image."""
    done = run_example("script.py", "A coffee mug")
    assert (done.returncode, done.stderr.splitlines()[1:]) == (0, ["12 credits"])
    assert [dict(run.inputs) for run in emulator.runs] == [{"product_name": "A coffee mug"}]
    assert done.stdout.startswith("https://")
    assert emulator.runs[0].execution_id in done.stderr


def test_script_ends_with_one_clear_line_when_it_fails(run_example: RunExample, emulator: Emulator) -> None:
    """A wrong key is one line on stderr and exit code 1; nothing is run and the key is not shown."""
    done = run_example("script.py", KNOUDS_KEY="knouds_live_wrong")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("AuthenticationError: ")
    assert len(done.stderr.splitlines()) == 1
    assert "knouds_live_wrong" not in done.stderr
    assert not emulator.runs


@pytest.mark.parametrize("name", ["task_group.py", "trio_nursery.py"])
def test_fan_out_runs_each_job_once(name: str, run_example: RunExample, emulator: Emulator) -> None:
    """With credits for 18 of 20 jobs, each of the 18 is run once and printed, the other two are errors; no 429."""
    emulator.credits = 18 * emulator.cost
    done = run_example(name, "20")
    assert len(done.stdout.splitlines()) == 18
    assert done.stderr.count("INSUFFICIENT_CREDITS") == len(done.stderr.splitlines()) == 2
    assert len({run.inputs["product_name"] for run in emulator.runs}) == 18
    emulator.assert_charged_once()
    emulator.assert_no_429()


def test_task_group_says_what_each_failure_means_for_money(run_example: RunExample, emulator: Emulator) -> None:
    """A refused submit is called safe to repeat, a failed run is not, and the exit code is 1."""
    emulator.credits, emulator.failure_rate = emulator.cost, 1.0
    done = run_example("task_group.py", "2")
    assert (done.returncode, done.stdout) == (1, "")
    assert sorted("safe to repeat" in line for line in done.stderr.splitlines()) == [False, True]
    assert sorted("money may have been spent" in line for line in done.stderr.splitlines()) == [False, True]


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def _serve_aiohttp(app: web.Application, stack: AsyncExitStack) -> str:
    runner = web.AppRunner(app)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    return f"http://{host}:{port}"


@pytest.fixture(params=["fastapi_app", "aiohttp_app"])
async def start_app(
    request: pytest.FixtureRequest, service: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[StartApp]:
    """Yield a function that starts another instance of a web app on a port, and returns a client for it."""
    monkeypatch.setattr(knouds_async, "AsyncKnouds", _load(OFTEN).Often)
    async with AsyncExitStack() as stack:
        servers = stack.enter_context(ExitStack())

        async def start() -> httpx.AsyncClient:
            module = _load(EXAMPLES / f"{request.param}.py")
            if request.param == "fastapi_app":
                url = await asyncio.to_thread(servers.enter_context, on_a_port(module.app))
            else:
                url = await _serve_aiohttp(module.build_app(), stack)
            return await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=30))

        yield start


async def _submitted(visitor: httpx.AsyncClient) -> str:
    answer = await visitor.post("/thumbnails", json={"product_name": "A coffee mug"})
    assert answer.status_code == 202
    run_id: str = answer.json()["id"]
    return run_id


async def test_app_answers_202_until_the_run_has_finished(start_app: StartApp, emulator: Emulator) -> None:
    """An order gets an id at once, a wait that ends too early the same id, and asking again the result."""
    emulator.duration = 1.0
    visitor = await start_app()
    run_id = await _submitted(visitor)
    early = await visitor.get(f"/thumbnails/{run_id}/result", params={"timeout": 0.2})
    assert (early.status_code, early.json()["id"], early.json()["status"]) == (202, run_id, "processing")
    result = await visitor.get(f"/thumbnails/{run_id}/result")
    assert (result.status_code, result.json()["cost"]) == (200, emulator.cost)
    assert result.json()["images"][0].startswith("https://")
    assert (await visitor.get(f"/thumbnails/{run_id}")).json()["status"] == "completed"
    assert [run.execution_id for run in emulator.runs] == [run_id]


async def test_app_shares_the_polls_of_its_visitors(start_app: StartApp, emulator: Emulator) -> None:
    """Twenty visitors who wait for one run get the same answer, for the polls of one."""
    emulator.duration = 1.5
    visitor = await start_app()
    run_id = await _submitted(visitor)
    waits = [visitor.get(f"/thumbnails/{run_id}/result") for _ in range(20)]
    answers = {answer.text for answer in await asyncio.gather(*waits)}
    assert len(answers) == 1
    assert emulator.runs[0].polls < 20


async def test_app_finds_a_run_that_another_process_submitted(start_app: StartApp, emulator: Emulator) -> None:
    """A second instance of the app returns the status and the result of a run that the first one submitted."""
    first, second = await start_app(), await start_app()
    run_id = await _submitted(first)
    assert (await second.get(f"/thumbnails/{run_id}")).json()["status"] == "processing"
    assert (await second.get(f"/thumbnails/{run_id}/result")).status_code == 200
    assert len(emulator.runs) == 1


async def test_app_says_that_a_failed_run_may_have_cost_money(start_app: StartApp, emulator: Emulator) -> None:
    """A run that failed is a 502 which names the error, the run, and that it began."""
    emulator.failure_rate = 1.0
    visitor = await start_app()
    run_id = await _submitted(visitor)
    answer = await visitor.get(f"/thumbnails/{run_id}/result")
    assert answer.status_code == 502
    assert answer.json() == {"error": "ExecutionFailedError", "may_have_run": True, "id": run_id}


async def test_app_refuses_what_it_cannot_read(start_app: StartApp, emulator: Emulator) -> None:
    """Ids and bodies that cannot be are 4xx answers, never a 500, and nothing is run."""
    visitor = await start_app()
    assert (await visitor.get("/thumbnails/no-such-run")).status_code == 404
    assert (await visitor.get("/thumbnails/not%20an%20id")).status_code == 422
    assert (await visitor.post("/thumbnails", json={"style": "photo"})).status_code == 422
    for body, charset in (("not JSON", "utf-8"), (b"\xff", "utf-8"), ("{}", "none-such")):
        headers = {"content-type": f"application/json; charset={charset}"}
        assert (await visitor.post("/thumbnails", content=body, headers=headers)).status_code in (400, 422)
    assert (await visitor.get("/thumbnails/x/result", params={"timeout": "soon"})).status_code in (400, 422)
    assert not emulator.runs
