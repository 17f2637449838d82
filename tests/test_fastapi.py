"""FastAPI: one client while the app runs, endpoints that get it, errors as answers, a run's changes as a stream."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

from knouds_async import AsyncKnouds, ClientClosedError, ConfigurationError, KnoudsError
from knouds_async.fastapi import Knouds, error_handler, get_knouds, lifespan, stream_updates
from knouds_async.webhooks import WebhookReceiver


def build(**options: Any) -> FastAPI:
    """Return an app with the endpoints of the docs."""
    app = FastAPI(exception_handlers={KnoudsError: error_handler}, **options)

    @app.post("/runs", status_code=202)
    async def submit(slug: str, knouds: Knouds) -> dict[str, str]:
        return {"id": (await knouds.workflows.submit(slug, {})).id}

    @app.get("/runs/{run_id}")
    async def status(run_id: str, knouds: Knouds) -> dict[str, str]:
        return {"status": (await knouds.executions.attach(run_id).refresh()).status}

    @app.get("/runs/{run_id}/events")
    async def events(run_id: str, knouds: Knouds) -> StreamingResponse:
        return await stream_updates(knouds.executions.attach(run_id))

    return app


@pytest.fixture
async def visitor(knouds: AsyncKnouds) -> AsyncIterator[httpx.AsyncClient]:
    """Return a visitor of an app whose client a test has replaced."""
    app = build()
    app.dependency_overrides[get_knouds] = lambda: knouds
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app.test") as visitor:
        yield visitor


async def test_a_run_is_submitted_and_followed(visitor: httpx.AsyncClient) -> None:
    """The stream has the type of server-sent events, is not to be stored or buffered, and ends with the run."""
    run_id = (await visitor.post("/runs", params={"slug": "daily-picture"})).json()["id"]
    assert (await visitor.get(f"/runs/{run_id}")).json() == {"status": "processing"}
    answer = await visitor.get(f"/runs/{run_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-store", "no")
    assert [line for line in answer.text.splitlines() if line.startswith("event")] == [
        "event: processing",
        "event: completed",
    ]


@pytest.mark.parametrize("path", ["/runs/no-such-run", "/runs/no-such-run/events"])
async def test_an_unknown_run_is_404(visitor: httpx.AsyncClient, path: str) -> None:
    """Neither the status nor the stream of a run that is not there is a 500 or an empty stream."""
    answer = await visitor.get(path)
    assert answer.status_code == 404
    assert answer.json()["may_have_run"] is False


async def test_what_is_refused_is_422(visitor: httpx.AsyncClient) -> None:
    """Inputs that the service refuses, and ids that are none, are the visitor's to correct."""
    assert (await visitor.post("/runs", params={"slug": "my-thumbnail-pipeline"})).status_code == 422
    assert (await visitor.get("/runs/not%20an%20id")).status_code == 422


async def test_a_closed_client_is_503(visitor: httpx.AsyncClient, knouds: AsyncKnouds) -> None:
    """A request that comes while the app shuts down may be sent again elsewhere."""
    await knouds.aclose()
    assert (await visitor.get("/runs/some-run")).status_code == 503


async def test_other_errors_are_not_swallowed() -> None:
    """The handler takes errors of this library only, wherever it is registered."""
    with pytest.raises(ZeroDivisionError):
        await error_handler(None, ZeroDivisionError())  # type: ignore[arg-type]


async def test_the_lifespan_keeps_a_client_and_closes_it(knouds: AsyncKnouds) -> None:
    """A lifespan of the app's own may add to the state, and the receiver gets the client."""
    receiver = WebhookReceiver("whsec_0123456789abcdef")

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, object]]:
        async with lifespan(app, make_client=lambda: knouds, receiver=receiver) as state:
            yield {**state, "database": "open"}

    async with own(build()) as state:
        assert state == {"knouds": knouds, "database": "open"}
        assert receiver.client is knouds
        assert (await knouds.whoami()).tier == "business"
    with pytest.raises(ClientClosedError):
        await knouds.whoami()


def test_an_app_without_the_lifespan_says_what_it_needs() -> None:
    """The error names what keeps a client."""
    with (
        TestClient(FastAPI()) as visitor,
        pytest.raises(ConfigurationError, match=r"FastAPI\(lifespan=knouds_async.fastapi.lifespan\)"),
    ):
        app: Any = visitor.app
        app.get("/")(_uses_the_client)
        visitor.get("/")


async def _uses_the_client(knouds: Knouds) -> None: ...


def test_sub_apps_and_websockets_get_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is there in a mounted app and in a websocket, without a further line."""
    monkeypatch.setenv("KNOUDS_KEY", "knouds_live_for_nothing_0123456789")
    inner, app = FastAPI(), FastAPI(lifespan=partial(lifespan, make_client=lambda: AsyncKnouds(tier="pro")))
    app.mount("/inner", inner)

    @inner.get("/")
    async def is_there(knouds: Knouds) -> str:
        return type(knouds).__name__

    @app.websocket("/socket")
    async def socket(websocket: WebSocket, knouds: Knouds) -> None:
        await websocket.accept()
        await websocket.send_text(type(knouds).__name__)

    with TestClient(app) as visitor:
        assert visitor.get("/inner/").json() == "AsyncKnouds"
        with visitor.websocket_connect("/socket") as open_socket:
            assert open_socket.receive_text() == "AsyncKnouds"
