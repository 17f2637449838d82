"""aiohttp apps: one client while the app runs, errors as answers, a run's changes as a stream, and a quick shutdown."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request

from knouds_async import AsyncKnouds, ClientClosedError, ConfigurationError, Polling
from knouds_async.aiohttp import KNOUDS, get_knouds, setup, stream_updates
from knouds_async.testing import Emulator
from knouds_async.webhooks import WebhookReceiver

SECRET = "whsec_0123456789abcdef"


@pytest.fixture
def anyio_backend() -> str:
    """Use asyncio in real time: these are real sockets."""
    return "asyncio"


@pytest.fixture
def emulator() -> Emulator:
    """Return a service whose runs take ten minutes, unless they are ended by hand."""
    return Emulator(tier="business", duration=600.0)


@pytest.fixture
def knouds(make_client: Any, emulator: Emulator) -> AsyncKnouds:
    """Return a client that polls often, for time is real here."""
    client: AsyncKnouds = make_client(emulator, latency=0.0, polling=Polling.every(0.1))
    return client


async def submit(request: web.Request) -> web.Response:
    """Submit a run."""
    execution = await get_knouds(request).workflows.submit(request.query["slug"], {})
    return web.json_response({"id": execution.id}, status=202)


async def wait(request: web.Request) -> web.Response:
    """Wait for a run."""
    state = await get_knouds(request).executions.attach(request.match_info["run_id"]).wait()
    return web.json_response({"status": state.status})


async def events(request: web.Request) -> web.StreamResponse:
    """Stream what happens to a run."""
    return await stream_updates(request, get_knouds(request).executions.attach(request.match_info["run_id"]))


@pytest.fixture
def receiver() -> WebhookReceiver:
    """Return a receiver without a client."""
    return WebhookReceiver(SECRET)


@pytest.fixture
async def server(knouds: AsyncKnouds, receiver: WebhookReceiver) -> AsyncIterator[TestServer]:
    """Serve an app whose endpoints are in a subapp."""
    app, inner = web.Application(), web.Application()
    setup(app, make_client=lambda: knouds, receiver=receiver)
    inner.add_routes(
        [web.post("/runs", submit), web.get("/runs/{run_id}", wait), web.get("/runs/{run_id}/events", events)]
    )
    app.add_subapp("/inner", inner)
    served = TestServer(app)
    async with served:
        yield served


@pytest.fixture
async def visitor(server: TestServer) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    """Return a visitor of the app."""
    async with TestClient(server) as visitor:
        yield visitor


Visitor = TestClient[web.Request, web.Application]


async def ordered(visitor: Visitor, slug: str = "daily-picture") -> str:
    """Submit a run and return its id."""
    async with visitor.post("/inner/runs", params={"slug": slug}) as answer:
        assert answer.status == 202
        return str((await answer.json())["id"])


async def test_a_run_is_submitted_and_followed(visitor: Visitor, emulator: Emulator) -> None:
    """The stream has the type of server-sent events, and ends with the run."""
    run_id = await ordered(visitor)
    emulator.finish(run_id)
    async with visitor.get(f"/inner/runs/{run_id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-accel-buffering"] == "no"
        assert "event: completed\n" in await answer.text()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/inner/runs/no-such-run", 404),
        ("/inner/runs/no-such-run/events", 404),
        ("/inner/runs/not%20an%20id", 422),
    ],
)
async def test_an_error_is_answered(visitor: Visitor, path: str, status: int) -> None:
    """An unknown run is 404 and an id that is none 422, for the status and for the stream."""
    async with visitor.get(path) as answer:
        assert answer.status == status
        assert (await answer.json())["may_have_run"] is False


async def test_the_client_lives_as_long_as_the_app(
    server: TestServer, receiver: WebhookReceiver, knouds: AsyncKnouds
) -> None:
    """The app and the receiver have it, and it is closed with the app."""
    assert server.app[KNOUDS] is receiver.client is knouds
    await server.close()
    with pytest.raises(ClientClosedError):
        await knouds.whoami()


async def test_a_shutdown_ends_waits_and_streams(server: TestServer, emulator: Emulator) -> None:
    """Who waits gets 503, who follows a run the end of the stream; the run continues."""
    async with ClientSession(server.make_url("/")) as session:
        visitor = TestClient(server)
        run_id = await ordered(visitor)
        waiting = asyncio.ensure_future(session.get(f"/inner/runs/{run_id}"))
        async with session.get(f"/inner/runs/{run_id}/events") as stream:
            assert (await stream.content.readline()) == b"event: processing\n"
            closing = asyncio.ensure_future(server.close())
            assert b"event" not in (await stream.content.read()).partition(b"\n\n")[2]
        assert (await waiting).status == 503
        await visitor.close()
        await closing
    assert emulator.runs[0].status == "processing"


def test_an_app_without_setup_says_what_it_needs() -> None:
    """The error names what keeps a client."""
    request = make_mocked_request("GET", "/", app=web.Application())
    with pytest.raises(ConfigurationError, match=r"setup\(app\)"):
        get_knouds(request)
