"""The aiohttp routes of a receiver take deliveries whatever slash ends the URL, in subapps and behind middlewares."""

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from knouds_async.webhooks import WebhookReceiver, sign
from knouds_async.webhooks.aiohttp import routes
from tests.webhooks.sending import SECRET

EVENT = {"event": "execution.completed", "executionId": "run-1", "status": "completed"}
Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
def anyio_backend() -> str:
    """Use asyncio in real time: these are real sockets."""
    return "asyncio"


async def deliver(app: web.Application, *paths: str, event: dict[str, Any] = EVENT, chunked: bool = False) -> list[int]:
    """Deliver an event to each path of an app, and return the statuses of the answers; redirects are not followed."""
    body = json.dumps(event).encode()
    headers = {"x-knouds-signature": sign(body, SECRET, now=time.time())}
    async with TestClient(TestServer(app)) as sender:
        found = []
        for path in paths:
            options: Any = {"chunked": True} if chunked else {}
            async with sender.post(path, data=body, headers=headers, allow_redirects=False, **options) as answer:
                found.append(answer.status)
        return found


@pytest.mark.parametrize("given", ["/hook", "/hook/"])
@pytest.mark.parametrize("is_normalizing", [False, True])
async def test_a_slash_loses_no_delivery(
    receiver: WebhookReceiver, taken: list[str], given: str, is_normalizing: bool
) -> None:
    """A slash too many or too few is neither a 404 nor, with aiohttp's middleware for paths, a redirect."""
    middlewares = [web.normalize_path_middleware()] if is_normalizing else []
    app = web.Application(middlewares=middlewares)
    app.add_routes(routes(receiver, given))
    assert await deliver(app, "/hook", "/hook/") == [200, 200]
    assert taken == ["run-1"]


async def test_a_subapp_takes_deliveries_at_its_prefix(receiver: WebhookReceiver, taken: list[str]) -> None:
    """In a subapp the path may be its root, with and without the slash."""
    app, inner = web.Application(), web.Application()
    inner.add_routes(routes(receiver, "/"))
    app.add_subapp("/webhooks/knouds", inner)
    assert await deliver(app, "/webhooks/knouds", "/webhooks/knouds/") == [200, 200]
    assert taken == ["run-1"]


@pytest.mark.parametrize("how", ["read", "text", "json"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_middleware_that_has_read_the_body_loses_no_delivery(
    receiver: WebhookReceiver, taken: list[str], how: str, chunked: bool
) -> None:
    """What a middleware has read is there for the receiver as well."""

    @web.middleware
    async def log_body(request: web.Request, handler: Handle) -> web.StreamResponse:
        assert await getattr(request, how)()
        return await handler(request)

    app = web.Application(middlewares=[log_body])
    app.add_routes(routes(receiver))
    assert await deliver(app, "/webhooks/knouds", chunked=chunked) == [200]
    assert taken == ["run-1"]


async def test_a_body_larger_than_the_apps_own_limit_is_taken(receiver: WebhookReceiver, taken: list[str]) -> None:
    """The limit of the app's own requests does not keep the result of a run from arriving."""
    app = web.Application(client_max_size=1000)
    app.add_routes(routes(receiver))
    event = {**EVENT, "result": {"text": "x" * 200_000}}
    assert await deliver(app, "/webhooks/knouds", event=event) == [200]
    assert taken == ["run-1"]


async def test_a_body_that_is_gone_is_explained(receiver: WebhookReceiver, caplog: pytest.LogCaptureFixture) -> None:
    """A middleware that consumes the stream leaves a refusal whose log line names that cause."""

    @web.middleware
    async def consume(request: web.Request, handler: Handle) -> web.StreamResponse:
        await request.content.read()
        return await handler(request)

    app = web.Application(middlewares=[consume])
    app.add_routes(routes(receiver))
    assert await deliver(app, "/webhooks/knouds") == [401]
    assert [record.message for record in caplog.records if record.name == "knouds_async"] == [
        "a webhook delivery was refused with 401: its body is empty. Check that no middleware has consumed it"
    ]
