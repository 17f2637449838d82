"""The router of a receiver takes deliveries whatever slash ends the URL, under mounts and behind middlewares."""

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from starlette.applications import Starlette
from starlette.routing import Mount

from knouds_async.webhooks import WebhookReceiver, sign
from knouds_async.webhooks.fastapi import router
from tests.webhooks.sending import SECRET

EVENT = {"event": "execution.completed", "executionId": "run-1", "status": "completed"}


async def deliver(app: Any, path: str, event: dict[str, Any] = EVENT, *, method: str = "POST") -> int:
    """Deliver an event to an app, and return the status of its answer; redirects are not followed."""
    body = json.dumps(event).encode()
    headers = {"x-knouds-signature": sign(body, SECRET, now=time.time())}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app.test") as sender:
        return (await sender.request(method, path, content=body, headers=headers)).status_code


@pytest.mark.parametrize("given", ["/hook", "/hook/", "/hook//"])
@pytest.mark.parametrize("url", ["/hook", "/hook/"])
@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_a_slash_loses_no_delivery(
    receiver: WebhookReceiver, taken: list[str], given: str, url: str, prefix: str
) -> None:
    """A slash too many or too few at the end of the path or of the URL is no redirect, under a prefix neither."""
    app = FastAPI()
    app.include_router(router(receiver, given), prefix=prefix)
    assert await deliver(app, prefix + url) == 200
    assert taken == ["run-1"]


@pytest.mark.parametrize("url", ["/outer/inner/hook", "/outer/inner/hook/"])
async def test_mounts_and_routers_lose_no_delivery(receiver: WebhookReceiver, taken: list[str], url: str) -> None:
    """The router works in a router of an app that is mounted in another app."""
    inner, outer, app = APIRouter(prefix="/inner"), FastAPI(), FastAPI()
    inner.include_router(router(receiver, "/hook"))
    outer.include_router(inner)
    app.mount("/outer", outer)
    assert await deliver(app, url) == 200
    assert taken == ["run-1"]


@pytest.mark.parametrize("url", ["/mounted/hook", "/mounted/hook/"])
async def test_its_routes_are_starlettes(receiver: WebhookReceiver, taken: list[str], url: str) -> None:
    """Starlette takes the routes of the router as they are."""
    app = Starlette(routes=[Mount("/mounted", routes=router(receiver, "/hook").routes)])
    assert await deliver(app, url) == 200
    assert taken == ["run-1"]


async def test_the_root_of_an_app_can_take_deliveries(receiver: WebhookReceiver, taken: list[str]) -> None:
    """The path may be the root."""
    app = FastAPI()
    app.include_router(router(receiver, "/"))
    assert await deliver(app, "/") == 200
    assert taken == ["run-1"]


async def test_a_middleware_that_has_read_the_body_loses_no_delivery(
    receiver: WebhookReceiver, taken: list[str]
) -> None:
    """What a middleware reads with `body` or `json` is there for the receiver as well."""
    app = FastAPI()
    app.include_router(router(receiver, "/hook"))

    @app.middleware("http")
    async def log_body(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        assert await request.json() == EVENT
        return await call_next(request)

    assert await deliver(app, "/hook") == 200
    assert taken == ["run-1"]


async def test_a_body_that_is_gone_is_explained(
    receiver: WebhookReceiver, taken: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A middleware that consumes the body and keeps it leaves a refusal whose log line names that cause."""
    app = FastAPI()
    app.include_router(router(receiver, "/hook"))

    @app.middleware("http")
    async def consume(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        async for _ in request.stream():
            pass
        return await call_next(request)

    assert await deliver(app, "/hook") == 401
    assert [record.message for record in caplog.records if record.name == "knouds_async"] == [
        "a webhook delivery was refused with 401: its body is empty. Check that no middleware has consumed it"
    ]
    assert taken == []


async def test_only_post_delivers(receiver: WebhookReceiver, taken: list[str]) -> None:
    """Another method is 405, with and without the slash, and the route is not in the app's schema."""
    app = FastAPI()
    app.include_router(router(receiver, "/hook"))
    assert [await deliver(app, url, method="PUT") for url in ("/hook", "/hook/")] == [405, 405]
    assert app.openapi()["paths"] == {}
    assert taken == []
