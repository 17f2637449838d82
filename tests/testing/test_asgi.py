"""The ASGI face: the emulator behind any ASGI transport or server, in virtual and in real time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from knouds_async.testing import Delivery, Emulator, Fault, faults
from knouds_async.testing.asgi import EmulatorApp, background_tasks

RUN = "/api/workflows/jingle/run"
EMPTY: dict[str, object] = {"inputs": {}}


def _client(emulator: Emulator, app: Any = None, prefix: str = "") -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app or emulator.app),
        base_url=f"https://knouds.test{prefix}",
        headers={"x-api-key": emulator.api_key},
    )


async def test_the_app_answers_as_the_emulator_does() -> None:
    """Requests and answers come through whole, and the app is one object."""
    emulator = Emulator(duration=30.0)
    assert emulator.app is emulator.app
    async with _client(emulator) as client:
        answer = await client.post(f"{RUN}?async=true", json=EMPTY)
        assert answer.headers["x-ratelimit-remaining"] == "99"
        path = f"/api/executions/{answer.json()['executionId']}"
        assert (await client.get(path)).json()["status"] == "processing"
        await anyio.sleep(30.0)
        assert (await client.get(path)).json()["status"] == "completed"
        assert (await client.get("/api/workflows/%2E%2E/schema")).json()["code"] == "INVALID_SLUG"
        assert (await client.delete("/api/workflows/jingle")).status_code == 200


async def test_a_synchronous_run_waits_in_anyios_time() -> None:
    """The app waits for the end of a synchronous run, in virtual time at once."""
    emulator, began = Emulator(duration=300.0), anyio.current_time()
    async with _client(emulator) as client:
        assert (await client.post(RUN, json=EMPTY)).json()["ms"] == 300_000
    assert anyio.current_time() - began == pytest.approx(300.0)


async def test_the_app_can_be_mounted_under_a_path() -> None:
    """Another app can have it below a prefix."""
    emulator = Emulator()
    outer = Starlette(routes=[Mount("/knouds", app=emulator.app)])
    async with _client(emulator, outer, "/knouds") as client:
        assert (await client.get("/api/whoami")).status_code == 200


async def test_a_body_in_pieces_is_put_together() -> None:
    """A body that comes in several messages is whole for the emulator."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"inputs": '
        yield b"{}}"

    async with _client(Emulator()) as client:
        assert (await client.post(f"{RUN}?async=true", content=pieces())).status_code == 200


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [(faults.stalled(4.0), 4.0), (faults.stalled(4.0, after_run=True), 4.0), (faults.dripping(0.5), 112.5)],
)
async def test_what_asgi_can_say_is_acted_out(fault: Fault, seconds: float) -> None:
    """Late and dripping answers come whole in the end."""
    emulator, began = Emulator(), anyio.current_time()
    emulator.faults.add(fault)
    async with _client(emulator) as client:
        assert (await client.post(f"{RUN}?async=true", json=EMPTY)).json()["_async"] is True
    assert anyio.current_time() - began == pytest.approx(seconds)


async def test_a_dropped_connection_is_announced() -> None:
    """ASGI can only ask the server to close."""
    emulator = Emulator()
    emulator.faults.add(faults.dropped_keep_alive())
    async with _client(emulator) as client:
        assert (await client.get("/api/health")).headers["connection"] == "close"


async def test_a_stalled_answer_never_comes() -> None:
    """A stalled request hangs until the client goes."""
    emulator = Emulator()
    emulator.faults.add(faults.stalled())
    async with _client(emulator) as client:
        with anyio.move_on_after(3600) as scope:
            await client.get("/api/health")
    assert scope.cancelled_caught


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (faults.reset(), "use knouds_async.testing.serve"),
        (faults.closed(after_run=True), "use knouds_async.testing.serve"),
        (faults.truncated(), "truncated the answer"),
    ],
)
async def test_what_asgi_cannot_say_is_an_error(fault: Fault, message: str) -> None:
    """A fault ASGI has no word for says where it can be acted out."""
    emulator = Emulator()
    emulator.faults.add(fault)
    async with _client(emulator) as client:
        with pytest.raises(RuntimeError, match=message):
            await client.get("/api/health")


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_uvicorn_serves_the_app(anyio_backend: str) -> None:
    """uvicorn serves the app on a real port, answers of synchronous runs and broken ones included."""
    emulator = Emulator(duration=0.05)
    emulator.faults.add(script=[None, None, faults.truncated(), faults.stalled()])
    server = uvicorn.Server(uvicorn.Config(emulator.app, port=0, log_level="critical", date_header=False))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve)
        with anyio.fail_after(20):
            while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
                await anyio.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()
        async with httpx.AsyncClient(
            base_url=f"http://{host}:{port}", headers={"x-api-key": emulator.api_key}
        ) as client:
            assert (await client.post(RUN, json=EMPTY)).json()["ms"] == 50
            assert (await client.get("/api/whoami")).headers["date"].startswith("Thu, 28 May 2026")
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get("/api/whoami")
            with pytest.raises(httpx.ReadTimeout):
                await client.get("/api/whoami", timeout=httpx.Timeout(20.0, read=0.1))
            assert (await client.get("/api/whoami")).status_code == 200
        server.should_exit = True


async def test_the_lifespan_delivers_webhooks() -> None:
    """While a server runs the app's lifespan, ended runs are delivered; with its end, nothing is any more."""
    emulator, taken = Emulator(duration=1.0, webhook_url="http://127.0.0.1:9/hook"), anyio.Event()
    sent: list[str] = []
    phases: list[str] = []

    @asynccontextmanager
    async def delivering() -> AsyncIterator[None]:
        async def post(delivery: Delivery) -> int:
            sent.append(delivery.execution_id)
            taken.set()
            return 200

        async with emulator.delivering(post):
            yield

    async def receive() -> Any:
        if phases:
            await taken.wait()
        return {"type": "lifespan.shutdown" if phases else "lifespan.startup"}

    async def send(message: Any) -> None:
        phases.append(message["type"])
        if len(phases) == 1:
            async with _client(emulator) as client:
                await client.post(f"{RUN}?async=true", json=EMPTY)

    await EmulatorApp(emulator.handle, emulator.resume, delivering)({"type": "lifespan"}, receive, send)
    assert phases == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert sent == [run.execution_id for run in emulator.runs]


async def test_the_console_answers_to_the_servers_own_hosts() -> None:
    """Behind a server on a port, a name that another site has bound to this machine is refused."""
    async with _client(Emulator()) as client:  # its server is knouds.test
        assert (await client.get("/__emulator__/state")).status_code == 200
        assert (await client.get("/__emulator__/state", headers={"host": "evil.example"})).status_code == 421


class Outcome(BaseException):
    """What pytest raises for `pytest.fail` and `pytest.skip` is no Exception either."""


@pytest.mark.parametrize("raised", [ValueError("of the test"), Outcome(), ExceptionGroup("own", [ValueError()])])
async def test_an_exception_of_the_block_comes_out_as_it_is(raised: BaseException) -> None:
    """A failing assertion in a test is what the test fails with, in no group; a group of its own stays as it is."""
    with pytest.raises(type(raised)) as caught:
        async with Emulator(webhook_url="http://127.0.0.1:9/hook").delivering():
            raise raised
    assert caught.value is raised


async def test_an_exception_of_the_receiver_comes_out_as_it_is() -> None:
    """What the test's own function for posting raises ends the block, in no group."""
    emulator, own = Emulator(duration=1.0, webhook_url="http://app.test/hook"), AssertionError("unexpected delivery")

    async def post(delivery: Delivery) -> int:
        raise own

    with pytest.raises(AssertionError) as caught:
        async with emulator.delivering(post), _client(emulator) as client:
            await client.post(f"{RUN}?async=true", json=EMPTY)
            await anyio.sleep_forever()
    assert caught.value is own


async def test_two_exceptions_come_out_in_one_group() -> None:
    """None of two is lost when the block fails while a task fails, too."""

    async def fail() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyError("of the task")

    with pytest.raises(BaseExceptionGroup) as caught:
        async with background_tasks() as tasks:
            tasks.start_soon(fail)
            await anyio.lowlevel.checkpoint()
            await anyio.sleep(0.1)
            raise ValueError("of the block")
    assert {type(error) for error in caught.value.exceptions} == {KeyError, ValueError}


async def test_a_cancelled_block_is_cancelled() -> None:
    """Cancellation passes through, and is not mistaken for the end of the tasks."""
    reached: list[str] = []
    with anyio.move_on_after(1) as scope:
        async with Emulator(webhook_url="http://127.0.0.1:9/hook").delivering():
            await anyio.sleep_forever()
        reached.append("the line after the block")
    assert scope.cancelled_caught
    assert reached == []


async def test_a_websocket_is_refused() -> None:
    """The service has none: the connection is closed before it is accepted."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await Emulator().app({"type": "websocket", "path": "/"}, receive, send)
    assert sent == [{"type": "websocket.close"}]


def test_the_emulator_needs_no_web_framework() -> None:
    """Neither the package nor the app of an emulator imports Starlette or uvicorn."""
    script = """
import sys
import knouds_async.testing
knouds_async.testing.Emulator().app
print({"starlette", "uvicorn"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)  # noqa: S603 - our own script
    assert (done.stdout, done.stderr) == ("set()\n", "")
