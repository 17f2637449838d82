"""A web app of several pods behind a load balancer: clicks that come twice, waits, and webhooks that reach any pod.

Reads $DATABASE_URL, the key from $KNOUDS_KEY, and $KNOUDS_WEBHOOK_SECRET. Run as many as you like:
`uvicorn pods:app --app-dir examples/many_machines --port 8001`.
"""

import os
from functools import partial
from typing import Annotated

from fastapi import FastAPI, Header, Query, Response
from pydantic import BaseModel

from knouds_async import AsyncKnouds, KnoudsError, SharedLimiter, WaitTimeoutError
from knouds_async.fastapi import Knouds, error_handler, lifespan
from knouds_async.postgres import Postgres
from knouds_async.webhooks import WebhookReceiver
from knouds_async.webhooks.fastapi import router

SLUG = "my-thumbnail-pipeline"

shared = Postgres(os.environ["DATABASE_URL"], name="orders")
receiver = WebhookReceiver(os.environ["KNOUDS_WEBHOOK_SECRET"], bus=shared)
app = FastAPI(
    lifespan=partial(lifespan, make_client=partial(AsyncKnouds, limiter=SharedLimiter(shared)), receiver=receiver),
    exception_handlers={KnoudsError: error_handler},
)
app.include_router(router(receiver))


class Order(BaseModel):
    """What a visitor orders."""

    product_name: str


@app.post("/orders", status_code=202)
async def order(order: Order, knouds: Knouds, idempotency_key: Annotated[str, Header()]) -> dict[str, str]:
    """Submit an order, unless one of its key is there: a second click, or a retry, gets the same id from any pod."""
    execution = await knouds.workflows.submit(SLUG, order.model_dump(), key=idempotency_key, ledger=shared)
    return {"id": execution.id}


@app.get("/orders/{run_id}/result")
async def result(
    run_id: str, knouds: Knouds, response: Response, timeout: Annotated[float, Query(ge=0, le=60)] = 20.0
) -> dict[str, object]:
    """Wait for a result; the delivery may reach any pod, and ends the wait in this one."""
    try:
        state = await knouds.executions.attach(run_id, f"workflows/{SLUG}").wait(timeout=timeout)
    except WaitTimeoutError:
        response.status_code = 202
        return {"id": run_id, "status": "processing"}
    return {"id": run_id, "status": state.status, "result": state.result}
