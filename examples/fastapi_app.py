"""A FastAPI app that submits runs, reports and streams their status, and waits for their results.

Reads the key from $KNOUDS_KEY. Run it with `uvicorn fastapi_app:app --app-dir examples --port 8080`.
With $KNOUDS_WEBHOOK_SECRET it receives deliveries at /webhooks/knouds, and seldom needs to poll.

Anyone who has an id can see the run. Before you make this public, store to whom each id belongs and check it.
"""

import os
from functools import partial
from typing import Annotated, Literal

from fastapi import FastAPI, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from knouds_async import KnoudsError, WaitTimeoutError
from knouds_async.fastapi import Knouds, error_handler, lifespan, stream_updates
from knouds_async.webhooks import WebhookReceiver
from knouds_async.webhooks.fastapi import router

SLUG = "my-thumbnail-pipeline"
TARGET = f"workflows/{SLUG}"


class Thumbnail(BaseModel):
    """What a visitor orders."""

    product_name: str
    style: Literal["photo", "illustration", "3d"] = "photo"


class Run(BaseModel):
    """The status of a run; `images` are there when it is completed."""

    id: str
    status: str
    images: list[str] = []
    cost: float | None = None


secret = os.environ.get("KNOUDS_WEBHOOK_SECRET")
receiver = WebhookReceiver(secret) if secret else None
app = FastAPI(lifespan=partial(lifespan, receiver=receiver), exception_handlers={KnoudsError: error_handler})
if receiver is not None:
    app.include_router(router(receiver))


@app.post("/thumbnails", status_code=202)
async def submit(order: Thumbnail, knouds: Knouds) -> Run:
    """Submit a run and answer at once."""
    execution = await knouds.workflows.submit(SLUG, order.model_dump())
    return Run(id=execution.id, status=execution.state.status)


@app.get("/thumbnails/{run_id}")
async def status(run_id: str, knouds: Knouds) -> Run:
    """Return the status of a run; any worker process can, whichever submitted it."""
    state = await knouds.executions.attach(run_id, TARGET).refresh()
    return Run(id=run_id, status=state.status, cost=state.cost)


@app.get("/thumbnails/{run_id}/result")
async def result(
    run_id: str, knouds: Knouds, response: Response, timeout: Annotated[float, Query(ge=0, le=25)] = 20
) -> Run:
    """Wait for a run for `timeout` seconds; 202 when it has not finished by then: ask again."""
    execution = knouds.executions.attach(run_id, TARGET)
    try:
        await execution.wait(timeout=timeout)
    except WaitTimeoutError:
        response.status_code = 202
        return Run(id=run_id, status=execution.state.status)
    run = await execution  # it has finished, so this takes no request; it raises when the run has failed
    return Run(id=run_id, status="completed", images=[image.url for image in run.images], cost=run.cost)


@app.get("/thumbnails/{run_id}/events")
async def events(run_id: str, knouds: Knouds) -> StreamingResponse:
    """Stream each change of a run's status as a server-sent event; the run continues when the visitor leaves."""
    return await stream_updates(knouds.executions.attach(run_id, TARGET))
