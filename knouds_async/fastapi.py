"""FastAPI: one client for the whole app, errors as answers, and the changes of a run as server-sent events.

app = FastAPI(lifespan=lifespan, exception_handlers={KnoudsError: error_handler})

@app.get("/runs/{run_id}")
async def status(run_id: str, knouds: Knouds) -> dict[str, str]: ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, TypeAlias

from knouds_async._web import EVENT_STREAM, HEARTBEAT, MakeClient, answer_to, closing_at_signals, server_sent_events
from knouds_async.client import AsyncKnouds
from knouds_async.errors import ConfigurationError, KnoudsError
from knouds_async.execution import Execution
from knouds_async.webhooks import WebhookReceiver

try:
    from fastapi import Depends, FastAPI
    from fastapi.requests import HTTPConnection, Request
    from fastapi.responses import JSONResponse, StreamingResponse
except ImportError as error:
    raise ImportError("knouds_async.fastapi needs FastAPI: pip install 'knouds-async[fastapi]'") from error

__all__ = ["Knouds", "error_handler", "get_knouds", "lifespan", "stream_updates"]


@asynccontextmanager
async def lifespan(
    _: FastAPI, *, make_client: MakeClient = AsyncKnouds, receiver: WebhookReceiver | None = None
) -> AsyncIterator[Mapping[str, AsyncKnouds]]:
    """Keep one client while the app runs; yield the state that `Knouds` finds it in.

    `make_client`: creates the client, by default from the environment. `receiver`: gets the client, to wake its waits.
    SIGTERM and Ctrl-C close the client first, so that waits and streams end and the server can; runs continue. In a
    lifespan of your own: `async with lifespan(app) as state: yield {**state, ...}`.
    """
    async with make_client() as knouds:
        if receiver is not None:
            receiver.client = knouds
        with closing_at_signals(knouds):
            yield {"knouds": knouds}


async def get_knouds(connection: HTTPConnection) -> AsyncKnouds:
    """Return the app's client: what `Knouds` depends on, and what tests override in `app.dependency_overrides`."""
    knouds = getattr(connection.state, "knouds", None)
    if not isinstance(knouds, AsyncKnouds):
        raise ConfigurationError("the app has no client: FastAPI(lifespan=knouds_async.fastapi.lifespan) keeps one")
    return knouds


Knouds: TypeAlias = Annotated[AsyncKnouds, Depends(get_knouds)]
"""The type of an endpoint's parameter that gets the app's client."""


async def error_handler(_: Request, error: Exception) -> JSONResponse:
    """Answer a KnoudsError with its type and whether the run may have started; its message is logged.

    404: an unknown run; 422: refused inputs; 503: shutting down, or out of quota; 504: a wait; 502: other failures.
    """
    if not isinstance(error, KnoudsError):
        raise error
    answer = answer_to(error)
    return JSONResponse(answer.body, status_code=answer.status, headers=answer.headers)


async def stream_updates(execution: Execution, *, heartbeat: float = HEARTBEAT) -> StreamingResponse:
    """Return a response that sends each change of a run's status as a server-sent event, until the run has finished.

    `heartbeat`: seconds of silence after which a comment is sent. Raises what the first poll raises, such as
    NotFoundError. The run continues when the visitor leaves.
    """
    return StreamingResponse(await server_sent_events(execution, heartbeat), headers=EVENT_STREAM)
