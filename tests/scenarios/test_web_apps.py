"""The example web apps on a port, with a service on another that delivers webhooks to them, in real time."""

import asyncio
import importlib.util
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import httpx
import pytest
import uvicorn
from aiohttp import web
from anyio.from_thread import start_blocking_portal

from knouds_async import AsyncKnouds
from knouds_async._io.pool import PooledTransport
from knouds_async.aiohttp import KNOUDS
from knouds_async.testing import Deliveries, Emulator, serve
from knouds_async.webhooks import WebhookReceiver, sign

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture
def anyio_backend() -> str:
    """Use asyncio in real time: these are real sockets."""
    return "asyncio"


@attrs.define
class Running:
    """A web app on a port, a visitor of it, and the service behind it."""

    emulator: Emulator
    visitor: httpx.AsyncClient
    client: Callable[[], AsyncKnouds]
    stop: Callable[[], Any]

    async def order(self) -> str:
        """Order a thumbnail and give the run's id."""
        answer = await self.visitor.post("/thumbnails", json={"product_name": "A coffee mug"})
        assert answer.status_code == 202
        run_id: str = answer.json()["id"]
        return run_id

    async def result(self, run_id: str) -> httpx.Response:
        """Wait for a run's result."""
        return await self.visitor.get(f"/thumbnails/{run_id}/result")


@contextmanager
def uvicorn_in_a_thread(app: Any, listener: socket.socket) -> Iterator[Callable[[], None]]:
    """Serve an ASGI app, and give what stops it and waits for its end."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=3))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join()

    try:
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        yield stop
    finally:
        stop()


def load(name: str) -> ModuleType:
    """Load an example afresh."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@asynccontextmanager
async def served(name: str, emulator: Emulator, listener: socket.socket) -> AsyncIterator[Running]:
    """Serve an example by its framework's own server, with the environment as it is."""
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    visitors = PooledTransport(limit=600)  # httpx's own pool would be the slowest of all here
    visitors._pool.expiry = 1.0
    module = load(name)
    async with AsyncExitStack() as stack:
        visitor = httpx.AsyncClient(base_url=url, timeout=40, transport=visitors)
        if name == "fastapi_app":
            stop = stack.enter_context(uvicorn_in_a_thread(module.app, listener))
            await stack.enter_async_context(visitor)  # so that it leaves first
            yield Running(emulator, visitor, lambda: module.receiver.client, lambda: asyncio.to_thread(stop))
            return
        app = module.build_app()
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.SockSite(runner, listener, backlog=2048).start()
        await stack.enter_async_context(visitor)
        yield Running(emulator, visitor, lambda: app[KNOUDS], runner.cleanup)


@pytest.fixture(params=["fastapi_app", "aiohttp_app"])
def name(request: pytest.FixtureRequest) -> str:
    """Name an example."""
    example: str = request.param
    return example


@pytest.fixture
async def start(name: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Any]]:
    """Return what puts a service with these settings and the app on ports."""
    async with AsyncExitStack() as stack:
        with ExitStack() as threads:

            async def go(**settings: Any) -> Running:
                listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
                hook = f"http://127.0.0.1:{listener.getsockname()[1]}/webhooks/knouds"
                wanted = {"tier": "enterprise", "duration": 1.0, "webhook_url": hook, **settings}
                emulator = Emulator(**wanted)
                portal = threads.enter_context(start_blocking_portal())
                base_url = threads.enter_context(portal.wrap_async_context_manager(serve(emulator)))
                monkeypatch.setenv("KNOUDS_KEY", emulator.api_key)
                monkeypatch.setenv("KNOUDS_BASE_URL", base_url)
                monkeypatch.setenv("KNOUDS_WEBHOOK_SECRET", emulator.webhook_secret)
                return await stack.enter_async_context(served(name, emulator, listener))

            yield go
            await stack.aclose()


@pytest.mark.slow
async def test_a_delivery_ends_the_wait(start: Any) -> None:
    """A visitor gets the result when the delivery comes; the service sees the submit and no poll."""
    app = await start()
    answer = await app.result(await app.order())
    assert answer.status_code == 200
    assert answer.json()["images"][0].startswith("https://")
    assert app.emulator.requests.count == 1


@pytest.mark.slow
async def test_a_result_that_was_delivered_before_is_there(start: Any) -> None:
    """Who asks only after the delivery gets the result at once, without a poll."""
    app = await start(duration=0.1)
    run_id = await app.order()
    await asyncio.sleep(1)
    assert (await app.result(run_id)).status_code == 200
    assert app.emulator.requests.count == 1


@pytest.mark.slow
async def test_two_hundred_requests_at_once(start: Any) -> None:
    """200 orders and 200 waits at once end with 200 results, at 1.2 requests or fewer a run."""
    app = await start(duration=2.0, deliveries=Deliveries(repeated=0.2, late_by=0.5, forged=0.2))

    async def visit() -> int:
        status: int = (await app.result(await app.order())).status_code
        return status

    assert await asyncio.gather(*(visit() for _ in range(200))) == [200] * 200
    assert len(app.emulator.runs) == 200
    assert app.emulator.requests.count <= 1.2 * 200


@pytest.mark.slow
async def test_five_hundred_waiters_in_one_worker(start: Any, name: str) -> None:
    """500 visitors who wait for 50 runs all get their results, and nothing waits any more then."""
    app = await start(duration=3.0)
    ids = await asyncio.gather(*(app.order() for _ in range(50)))
    answers = await asyncio.gather(*(app.result(ids[place % 50]) for place in range(500)))
    assert {answer.status_code for answer in answers} == {200}
    assert app.emulator.requests.count <= 1.2 * 50
    assert app.client()._poller._awaited == {}


@pytest.mark.slow
async def test_changes_are_streamed(start: Any) -> None:
    """A client without a browser reads each status once as a server-sent event, the last one being the end."""
    app = await start()
    run_id = await app.order()
    async with app.visitor.stream("GET", f"/thumbnails/{run_id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in response.aiter_lines() if line]
    assert [line for line in lines if line.startswith("event:")] == ["event: processing", "event: completed"]
    assert json.loads(lines[-1].removeprefix("data: ")) == {"id": run_id, "status": "completed"}
    assert (await app.visitor.get("/thumbnails/no-such-run/events")).status_code == 404


async def until_nobody_waits(app: Running) -> None:
    """Wait until no task of the app waits for a run, for some seconds at most."""
    for _ in range(400):
        if not app.client()._poller._awaited:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(app.client()._poller._awaited)


@pytest.mark.slow
async def test_visitors_who_leave_cancel_nothing(start: Any) -> None:
    """Visitors who hang up on a wait and on a stream leave no waiter behind, and the run continues."""
    app = await start(duration=1.2)
    run_id = await app.order()
    for _ in range(5):
        with pytest.raises(httpx.ReadTimeout):
            await app.visitor.get(f"/thumbnails/{run_id}/result", params={"timeout": 0.5}, timeout=0.1)
        async with app.visitor.stream("GET", f"/thumbnails/{run_id}/events") as response:
            await anext(response.aiter_lines())
    assert (await app.result(run_id)).status_code == 200
    await until_nobody_waits(app)
    assert app.emulator.runs[0].end == "completed"
    assert app.emulator.runs[0].cancel_requested_at is None


@pytest.mark.slow
async def test_shuts_down_with_runs_in_progress(start: Any) -> None:
    """A server that stops while visitors wait for long runs is gone within seconds, and cancels no run."""
    app = await start(duration=600.0)
    run_id = await app.order()

    async def visit() -> None:
        try:
            assert (await app.result(run_id)).status_code in (500, 503)
        except httpx.HTTPError:
            return

    visits = [asyncio.ensure_future(visit()) for _ in range(20)]
    await asyncio.sleep(0.5)
    async with asyncio.timeout(10):
        await app.stop()
        await asyncio.gather(*visits)
    assert app.emulator.runs[0].status == "processing"
    assert app.emulator.requests.by_route["POST /api/executions/:id/cancel"] == 0


@pytest.mark.slow
async def test_refusals_on_the_wire(start: Any) -> None:
    """What is forged, too long, unsigned or no POST is refused by its status alone."""
    app = await start()
    body, secret = b'{"event":"webhook.test"}', app.emulator.webhook_secret

    async def post(content: bytes, *signatures: str) -> tuple[int, bytes]:
        headers = [("x-knouds-signature", one) for one in signatures]
        answer = await app.visitor.post("/webhooks/knouds", content=content, headers=headers)
        return answer.status_code, answer.content

    good = sign(body, secret, now=time.time())
    assert (await post(body, good))[0] == 200
    assert (await post(body, sign(body, "whsec_of_somebody_else", now=time.time())))[0] == 401
    assert (await post(body, sign(body, secret, now=time.time() - 400)))[0] == 401
    assert (await post(body, good, good))[0] == 400
    assert (await post(body))[0] == 400
    long = b" " * (1024 * 1024 + 1)
    assert (await post(long, sign(long, secret, now=time.time())))[0] == 413
    assert (await app.visitor.get("/webhooks/knouds")).status_code in (404, 405)
    assert b"sign" not in (await post(body))[1]


@pytest.mark.slow
async def test_the_receiver_is_a_server_by_itself() -> None:
    """`receiver.asgi` is handed to uvicorn as it is: deliveries are taken on any path, other methods are 405."""
    taken: list[str] = []

    async def note(event: Any) -> None:
        taken.append(event.event)

    secret = "whsec_0123456789abcdef"
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with uvicorn_in_a_thread(WebhookReceiver(secret, handler=note).asgi, listener):
        async with httpx.AsyncClient(base_url=url) as sender:
            body = b'{"event":"execution.cancelled","executionId":"run-1"}'
            headers = {"x-knouds-signature": sign(body, secret, now=time.time())}
            assert (await sender.post("/any/path", content=body, headers=headers)).status_code == 200
            assert (await sender.get("/")).status_code == 405
            assert (await sender.post("/", content=body)).status_code == 400
        with socket.create_connection(listener.getsockname()) as gone:
            gone.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    assert taken == ["execution.cancelled"]
