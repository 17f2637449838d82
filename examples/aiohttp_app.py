"""An aiohttp app that submits runs, reports and streams their status, and waits for their results.

Reads the key from $KNOUDS_KEY and the port from $PORT (8080). Run it with `python examples/aiohttp_app.py`.
With $KNOUDS_WEBHOOK_SECRET it receives deliveries at /webhooks/knouds, and seldom needs to poll.

Anyone who has an id can see the run. Before you make this public, store to whom each id belongs and check it.
"""

import os

from aiohttp import web

from knouds_async import WaitTimeoutError
from knouds_async.aiohttp import get_knouds, setup, stream_updates
from knouds_async.webhooks import WebhookReceiver
from knouds_async.webhooks.aiohttp import routes as webhook_routes

SLUG = "my-thumbnail-pipeline"
TARGET = f"workflows/{SLUG}"
routes = web.RouteTableDef()


@routes.post("/thumbnails")
async def submit(request: web.Request) -> web.Response:
    """Submit a run and answer at once."""
    try:
        inputs = await request.json()
    except (ValueError, LookupError):  # no JSON, no UTF-8, or a charset that nobody knows
        raise web.HTTPBadRequest(text="the body must be JSON") from None
    execution = await get_knouds(request).workflows.submit(SLUG, inputs)
    return web.json_response({"id": execution.id, "status": execution.state.status}, status=202)


@routes.get("/thumbnails/{run_id}")
async def status(request: web.Request) -> web.Response:
    """Return the status of a run; any worker process can, whichever submitted it."""
    run_id = request.match_info["run_id"]
    state = await get_knouds(request).executions.attach(run_id, TARGET).refresh()
    return web.json_response({"id": run_id, "status": state.status, "cost": state.cost})


@routes.get("/thumbnails/{run_id}/result")
async def result(request: web.Request) -> web.Response:
    """Wait for a run for `?timeout=` seconds, 25 at most; 202 when it has not finished by then: ask again."""
    try:
        timeout = min(25.0, float(request.query.get("timeout", "20")))
    except ValueError:
        raise web.HTTPBadRequest(text="timeout must be a number of seconds") from None
    execution = get_knouds(request).executions.attach(request.match_info["run_id"], TARGET)
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
    execution = get_knouds(request).executions.attach(request.match_info["run_id"], TARGET)
    return await stream_updates(request, execution)


def build_app() -> web.Application:
    """Create the app; the client is opened when it starts and closed when it stops."""
    secret = os.environ.get("KNOUDS_WEBHOOK_SECRET")
    receiver = WebhookReceiver(secret) if secret else None
    app = web.Application()
    setup(app, receiver=receiver)
    app.add_routes(routes)
    if receiver is not None:
        app.add_routes(webhook_routes(receiver))
    return app


if __name__ == "__main__":
    web.run_app(build_app(), port=int(os.environ.get("PORT", "8080")))
