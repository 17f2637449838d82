"""What web apps share: errors as answers, server-sent events, waits that end at a signal; the docs' apps."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import httpx
import pytest

from knouds_async import (
    AsyncKnouds,
    ClientClosedError,
    ConfigurationError,
    ConnectionFailedError,
    ExecutionFailedError,
    InvalidArgumentError,
    KnoudsError,
    NotFoundError,
    RateLimitError,
    WaitTimeoutError,
)
from knouds_async._web import ErrorAnswer, answer_to, closing_at_signals, server_sent_events
from knouds_async.testing import Emulator, Fault, Response, faults, serve

# ---- Errors as answers


@pytest.mark.parametrize(
    ("error", "status", "may_have_run"),
    [
        (NotFoundError("Execution not found", status=404), 404, False),
        (NotFoundError("a page of a CDN", status=404, from_service=False), 502, False),
        (InvalidArgumentError("no id"), 422, False),
        (ClientClosedError("closed"), 503, False),
        (ConfigurationError("no key"), 500, False),
        (ConnectionFailedError("refused"), 502, False),
        (ExecutionFailedError("no", execution_id="run-1"), 502, True),
        (WaitTimeoutError(execution=None, execution_id="run-1", timeout=20.0), 504, True),
    ],
)
def test_an_error_has_an_answer(
    error: KnoudsError, status: int, may_have_run: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer names the type, the run and whether it may have begun; the message is in the log alone, once."""
    caplog.set_level(logging.INFO, logger="knouds_async")
    body = {"error": type(error).__name__, "may_have_run": may_have_run, "id": error.execution_id}
    assert answer_to(error) == ErrorAnswer(status, body, {})
    assert [record.message for record in caplog.records] == [f"{type(error).__name__}: {error}"]
    assert (caplog.records[0].levelno >= logging.WARNING) is (status >= 500)


def test_a_used_up_quota_says_when_to_come_again() -> None:
    """A visitor's browser learns for how long the rate limit lasts, in whole seconds that are not too few."""
    for wait, seconds in ((12.0, "12"), (12.2, "13")):
        answer = answer_to(RateLimitError("Rate limit exceeded", retry_after=wait))
        assert (answer.status, answer.headers) == (503, {"retry-after": seconds})


# ---- Server-sent events


async def stream(knouds: AsyncKnouds, execution_id: str, *, heartbeat: float = 15.0) -> list[str]:
    """Return the events of a run's stream, each whole."""
    events = await server_sent_events(knouds.executions.attach(execution_id), heartbeat)
    return [event.decode() async for event in events]


def data_of(event: str) -> Any:
    """Return the JSON in an event."""
    return json.loads(event.partition("data: ")[2])


async def test_a_stream_has_each_status_and_a_sign_of_life(knouds: AsyncKnouds) -> None:
    """The present status is first, the final one last, and a comment comes in each fifteen seconds of silence."""
    execution = await knouds.workflows.submit("daily-picture", {})
    first, *silence, last = await stream(knouds, execution.id)
    assert first.startswith("event: processing\n")
    assert set(silence) == {": still running\n\n"}
    assert len(silence) in (2, 3)
    assert last.startswith("event: completed\n")
    assert data_of(last) == {"id": execution.id, "status": "completed"}


async def test_an_unknown_run_is_refused_before_the_stream(knouds: AsyncKnouds) -> None:
    """While there is still a status to answer with, the id turns out to be none."""
    with pytest.raises(NotFoundError):
        await stream(knouds, "no-such-run")


@pytest.mark.parametrize("heartbeat", [0, -1.0, None])
async def test_a_heartbeat_that_never_rests_is_refused(knouds: AsyncKnouds, heartbeat: Any) -> None:
    """A stream of comments without a pause would take the whole event loop."""
    with pytest.raises(InvalidArgumentError, match="heartbeat="):
        await stream(knouds, "run-1", heartbeat=heartbeat)


async def test_a_closed_client_ends_the_stream(knouds: AsyncKnouds) -> None:
    """A stream ends without an error when the app shuts down, and the browser may connect again."""
    execution = await knouds.workflows.submit("daily-picture", {})
    events = await server_sent_events(knouds.executions.attach(execution.id), 15.0)
    await anext(events)
    await knouds.aclose()
    assert [event async for event in events] == []


async def test_an_error_ends_the_stream_with_an_event(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """An error that comes when the answer has begun is its last event: its type, and whether the run may have begun."""
    execution = await knouds.workflows.submit("daily-picture", {})
    events = await server_sent_events(knouds.executions.attach(execution.id), 15.0)
    await anext(events)
    emulator.faults.add(faults.not_found(), route="GET /api/executions/:id")
    *_, last = [event.decode() async for event in events]
    assert last.startswith("event: error\n")
    assert data_of(last)["error"].endswith("NotFoundError")


async def test_a_status_cannot_forge_an_event(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """A status with line breaks in it stays one line of one event."""
    execution = await knouds.workflows.submit("daily-picture", {})
    body = {"executionId": execution.id, "status": "odd\n\nevent: completed"}
    odd = Response(200, {"content-type": "application/json"}, json.dumps(body).encode())
    emulator.faults.add(Fault("odd status", "after", lambda _: odd), route="GET /api/executions/:id", nth=1)
    (event,) = [event for event in await stream(knouds, execution.id) if "odd" in event]
    assert event.startswith("event: odd event: completed\ndata: ")
    assert event.count("\n") == 3


# ---- The end of waits at a signal


@pytest.fixture
def signalled() -> Iterator[list[int]]:
    """Return the list of signals that reach the server's own handlers."""
    reached: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        reached.append(number)

    found = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    yield reached
    for number, before in found.items():
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_waits(knouds: AsyncKnouds, signalled: list[int], number: signal.Signals) -> None:
    """The client is closed, the server's own handler is called, and is in its place again after the block."""
    execution, before = await knouds.workflows.submit("daily-picture", {}), signal.getsignal(number)
    with closing_at_signals(knouds):
        signal.raise_signal(number)
        signal.raise_signal(number)
        with pytest.raises(ClientClosedError):
            await execution
    assert signalled == [number, number]
    assert signal.getsignal(number) is before


async def test_signals_without_a_handler_are_left_alone(knouds: AsyncKnouds) -> None:
    """A signal that would end the process still does: only what a server handles is handled."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with closing_at_signals(knouds):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_a_thread_of_a_server_handles_no_signal(knouds: AsyncKnouds) -> None:
    """Where a server runs outside the main thread, its app starts and stops all the same."""
    failed: list[BaseException] = []

    async def app() -> None:
        with closing_at_signals(knouds):
            pass

    def serve_in_thread() -> None:
        try:
            anyio.run(app)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    before, thread = signal.getsignal(signal.SIGTERM), threading.Thread(target=serve_in_thread)
    thread.start()
    thread.join()
    assert failed == []
    assert signal.getsignal(signal.SIGTERM) is before


# ---- The short apps of the docs

DOCS = (Path(__file__).parent.parent / "docs" / "web-apps.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", DOCS, re.M | re.S)
(SHOP,) = (block for block in BLOCKS if block.startswith("# shop.py"))
(AIOHTTP,) = (block for block in BLOCKS if "setup(app)" in block)
RUN_AIOHTTP = 'if __name__ == "__main__":\n    import sys\n\n    web.run_app(app, port=int(sys.argv[1]))\n'

real_time = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.fixture(params=["fastapi", "aiohttp"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """Write an app of the docs into a file, and return what serves it, but for the port."""
    (tmp_path / "shop.py").write_text(SHOP, encoding="utf-8")
    (tmp_path / "served.py").write_text(f"{AIOHTTP}\n\n{RUN_AIOHTTP}", encoding="utf-8")
    if request.param == "aiohttp":
        return [sys.executable, "served.py"]
    return [sys.executable, "-m", "uvicorn", "shop:app", "--port"]


@pytest.fixture
async def service() -> AsyncIterator[tuple[Emulator, dict[str, str]]]:
    """Serve an emulator whose runs take ten minutes; return it with the environment of its users."""
    emulator = Emulator(tier="business", duration=600.0)
    async with serve(emulator) as url:
        yield emulator, {**os.environ, "KNOUDS_KEY": emulator.api_key, "KNOUDS_BASE_URL": url}


@pytest.mark.slow
@real_time
async def test_ctrl_c_ends_the_apps_of_the_docs(
    command: list[str], service: tuple[Emulator, dict[str, str]], tmp_path: Path
) -> None:
    """An unknown run is 404; Ctrl-C ends an open stream and the server, without a traceback; the run continues."""
    emulator, environment = service
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    log = tmp_path / "log"
    with log.open("w") as out:
        server = subprocess.Popen([*command, port], env=environment, cwd=tmp_path, stdout=out, stderr=out)  # noqa: S603, ASYNC220
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as visitor:
            run_id = await _ordered(visitor)
            assert (await visitor.get(f"/thumbnails/{run_id}")).json() == {"id": run_id, "status": "processing"}
            for path in ("/thumbnails/no-such-run", "/thumbnails/no-such-run/events"):
                assert (await visitor.get(path)).status_code == 404
            async with visitor.stream("GET", f"/thumbnails/{run_id}/events") as events:
                lines = events.aiter_lines()
                assert await anext(lines) == "event: processing"
                server.send_signal(signal.SIGINT)
                assert [line async for line in lines if line.startswith("event")] == []
        with anyio.fail_after(60):
            await anyio.to_thread.run_sync(server.wait, abandon_on_cancel=True)
    finally:
        with suppress(ProcessLookupError):
            server.kill()
        server.wait()
    assert "Traceback" not in log.read_text()
    assert [run.status for run in emulator.runs] == ["processing"]


async def _ordered(visitor: httpx.AsyncClient) -> str:
    for _ in range(600):
        try:
            answer = await visitor.post("/thumbnails", params={"product": "A coffee mug"})
        except httpx.ConnectError:
            await anyio.sleep(0.1)
        else:
            assert answer.status_code == 202
            return str(answer.json()["id"])
    raise AssertionError("the app does not answer")
