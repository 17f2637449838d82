"""A FastAPI app that submits runs, reports and streams their status, and waits for their results.

Reads the key from $KNOUDS_KEY. Run it with `uvicorn fastapi_app:app --app-dir examples --timeout-graceful-shutdown 10`.
With $KNOUDS_WEBHOOK_SECRET it receives deliveries at /webhooks/knouds, and seldom needs to poll.

Anyone who has an id can see the run. Before you make this public, store to whom each id belongs and check it.
"""

import asyncio
import json
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Annotated, Literal, TypedDict

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

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
from knouds_async.webhooks.fastapi import router

SLUG = "my-thumbnail-pipeline"
TARGET = f"workflows/{SLUG}"
HEARTBEAT = 15.0  # seconds: proxies cut a stream that is silent for long

logger = logging.getLogger(__name__)


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


class State(TypedDict):
    """What the app keeps while it runs."""

    knouds: AsyncKnouds


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[State]:
    """Keep one client for the whole app: all requests share its rate limit, its connections and its polls."""
    async with AsyncKnouds() as knouds:
        if receiver is not None:
            receiver.client = knouds
        with close_by_signal(knouds):
            yield {"knouds": knouds}


@contextmanager
def close_by_signal(knouds: AsyncKnouds) -> Iterator[None]:
    """Close the client at SIGTERM and Ctrl-C: the server ends the lifespan after its last answer. Runs continue."""
    loop, closing = asyncio.get_running_loop(), set[asyncio.Task[None]]()
    is_main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
    found = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT) if is_main}

    def close_client(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(lambda: closing.add(loop.create_task(knouds.aclose())))
        if callable(server := found[signal.Signals(number)]):
            server(number, frame)

    for number, server in found.items():
        if callable(server):
            signal.signal(number, close_client)
    try:
        yield
    finally:
        for number, server in found.items():
            signal.signal(number, server)


async def client(request: Request) -> AsyncKnouds:
    """Return the app's client, for an endpoint."""
    knouds: AsyncKnouds = request.state.knouds
    return knouds


Knouds = Annotated[AsyncKnouds, Depends(client)]
app = FastAPI(lifespan=lifespan)
secret = os.environ.get("KNOUDS_WEBHOOK_SECRET")
receiver = WebhookReceiver(secret) if secret else None
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
    updates = knouds.executions.attach(run_id, TARGET).updates()
    first = await anext(updates)  # an unknown id is a 404 while there is still a status to answer with

    async def stream() -> AsyncIterator[str]:
        yield event(first)
        while True:
            try:
                yield event(await asyncio.wait_for(anext(updates), HEARTBEAT))
            except TimeoutError:
                yield ": still running\n\n"
            except (StopAsyncIteration, ClientClosedError):
                return

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"cache-control": "no-store"})


def event(state: ExecutionState) -> str:
    """Format a state as a server-sent event."""
    return f"event: {state.status}\ndata: {json.dumps({'id': state.execution_id, 'status': state.status})}\n\n"


@app.exception_handler(KnoudsError)
async def report(_: Request, error: Exception) -> JSONResponse:
    """Answer with the type of an error and whether the run may have started; log its message."""
    assert isinstance(error, KnoudsError)
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
    return JSONResponse(body, status_code=code)
