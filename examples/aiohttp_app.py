"""An aiohttp app that submits runs, reports and streams their status, and waits for their results.

Reads the key from $KNOUDS_KEY and the port from $PORT (8080). Run it with `python examples/aiohttp_app.py`.
With $KNOUDS_WEBHOOK_SECRET it receives deliveries at /webhooks/knouds, and seldom needs to poll.

Anyone who has an id can see the run. Before you make this public, store to whom each id belongs and check it.
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from knouds_async import (
    AsyncKnouds,
    ClientClosedError,
    ExecutionState,
    InvalidArgumentError,
    InvalidInputsError,
    KnoudsError,
    NotFoundError,
    WaitTimeoutError,
)
from knouds_async.webhooks import WebhookReceiver
from knouds_async.webhooks.aiohttp import handler as webhook_handler

SLUG = "my-thumbnail-pipeline"
TARGET = f"workflows/{SLUG}"
KNOUDS = web.AppKey("KNOUDS", AsyncKnouds)
RECEIVER = web.AppKey("RECEIVER", WebhookReceiver)
HEARTBEAT = 15.0  # seconds: proxies cut a stream that is silent for long

logger = logging.getLogger(__name__)
routes = web.RouteTableDef()


async def client(app: web.Application) -> AsyncIterator[None]:
    """Keep one client for the whole app: all requests share its rate limit, its connections and its polls."""
    async with AsyncKnouds() as knouds:
        app[KNOUDS] = knouds
        if RECEIVER in app:
            app[RECEIVER].client = knouds
        yield


async def close_client(app: web.Application) -> None:
    """Close the client when the server shuts down: it does not stop before its last answer. The runs continue."""
    await app[KNOUDS].aclose()


@routes.post("/thumbnails")
async def submit(request: web.Request) -> web.Response:
    """Submit a run and answer at once."""
    try:
        inputs = await request.json()
    except json.JSONDecodeError:
        raise web.HTTPBadRequest(text="the body must be JSON") from None
    execution = await request.app[KNOUDS].workflows.submit(SLUG, inputs)
    return web.json_response({"id": execution.id, "status": execution.state.status}, status=202)


@routes.get("/thumbnails/{run_id}")
async def status(request: web.Request) -> web.Response:
    """Return the status of a run; any worker process can, whichever submitted it."""
    run_id = request.match_info["run_id"]
    state = await request.app[KNOUDS].executions.attach(run_id, TARGET).refresh()
    return web.json_response({"id": run_id, "status": state.status, "cost": state.cost})


@routes.get("/thumbnails/{run_id}/result")
async def result(request: web.Request) -> web.Response:
    """Wait for a run for `?timeout=` seconds, 25 at most; 202 when it has not finished by then: ask again."""
    try:
        timeout = min(25.0, float(request.query.get("timeout", "20")))
    except ValueError:
        raise web.HTTPBadRequest(text="timeout must be a number of seconds") from None
    execution = request.app[KNOUDS].executions.attach(request.match_info["run_id"], TARGET)
    try:
        await execution.wait(timeout=timeout)
    except WaitTimeoutError:
        return web.json_response({"id": execution.id, "status": execution.state.status}, status=202)
    run = await execution  # it has finished, so this takes no request; it raises when the run has failed
    images = [image.url for image in run.images]
    return web.json_response({"id": execution.id, "status": "completed", "images": images, "cost": run.cost})


@routes.get("/thumbnails/{run_id}/events")
async def events(request: web.Request) -> web.StreamResponse:
    """Stream each change of a run's status as a server-sent event; the run continues when the visitor leaves."""
    updates = request.app[KNOUDS].executions.attach(request.match_info["run_id"], TARGET).updates()
    state: ExecutionState | None = await anext(updates)  # an unknown id is a 404 while there is a status to answer with
    response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-store"})
    await response.prepare(request)
    while True:
        try:
            await response.write(event(state) if state is not None else b": still running\n\n")
            state = await asyncio.wait_for(anext(updates), HEARTBEAT)
        except TimeoutError:
            state = None
        except (
            StopAsyncIteration,
            ClientClosedError,
            ConnectionResetError,
        ):  # finished, shutting down, or the visitor left
            return response


def event(state: ExecutionState) -> bytes:
    """Format a state as a server-sent event."""
    data = json.dumps({"id": state.execution_id, "status": state.status})
    return f"event: {state.status}\ndata: {data}\n\n".encode()


@web.middleware
async def report(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer with the type of an error and whether the run may have started; log its message."""
    try:
        return await handler(request)
    except KnoudsError as error:
        logger.warning("%s: %s", type(error).__name__, error)
        match error:
            case InvalidInputsError() | InvalidArgumentError():
                code = 422
            case NotFoundError():
                code = 404
            case ClientClosedError():
                code = 503
            case _:
                code = 502
        body = {"error": type(error).__name__, "may_have_run": error.may_have_run, "id": error.execution_id}
        return web.json_response(body, status=code)


def build_app() -> web.Application:
    """Create the app; the client is opened when it starts and closed when it stops."""
    app = web.Application(middlewares=[report])
    app.cleanup_ctx.append(client)
    app.on_shutdown.append(close_client)
    app.add_routes(routes)
    if secret := os.environ.get("KNOUDS_WEBHOOK_SECRET"):
        app[RECEIVER] = WebhookReceiver(secret)
        app.router.add_post("/webhooks/knouds", webhook_handler(app[RECEIVER]))
    return app


if __name__ == "__main__":
    web.run_app(build_app(), port=int(os.environ.get("PORT", "8080")))
