"""aiohttp: `setup(app)` keeps one client for the app and answers errors; the changes of a run as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Final

from knouds_async._web import EVENT_STREAM, HEARTBEAT, MakeClient, answer_to, server_sent_events
from knouds_async.client import AsyncKnouds
from knouds_async.errors import ConfigurationError, KnoudsError
from knouds_async.execution import Execution
from knouds_async.webhooks import WebhookReceiver

try:
    from aiohttp import web
    from aiohttp.typedefs import Handler
except ImportError as error:
    raise ImportError("knouds_async.aiohttp needs aiohttp: pip install 'knouds-async[aiohttp]'") from error

__all__ = ["KNOUDS", "get_knouds", "setup", "stream_updates"]

KNOUDS: Final = web.AppKey("KNOUDS", AsyncKnouds)
"""The key of the client in its app."""


def setup(
    app: web.Application, *, make_client: MakeClient = AsyncKnouds, receiver: WebhookReceiver | None = None
) -> None:
    """Keep one client while an app runs, closed when it shuts down so that waits and streams end; runs continue.

    `make_client`: creates the client, by default from the environment. `receiver`: gets the client, to wake its waits.
    A KnoudsError is answered with its type and whether the run may have started; its message is logged. 404: an unknown
    run; 422: refused inputs; 503: shutting down, or out of quota; 504: a wait; 502: other failures.
    """

    async def keep_client(app: web.Application) -> AsyncIterator[None]:
        async with make_client() as knouds:
            app[KNOUDS] = knouds
            if receiver is not None:
                receiver.client = knouds
            yield

    app.cleanup_ctx.append(keep_client)
    app.on_shutdown.append(lambda app: app[KNOUDS].aclose())
    app.middlewares.append(_answer_errors)


def get_knouds(request: web.Request) -> AsyncKnouds:
    """Return the client of the app, also in a subapp."""
    knouds = request.config_dict.get(KNOUDS)
    if knouds is None:
        raise ConfigurationError("the app has no client: knouds_async.aiohttp.setup(app) keeps one")
    return knouds


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except KnoudsError as error:
        answer = answer_to(error)
        return web.json_response(answer.body, status=answer.status, headers=answer.headers)


async def stream_updates(
    request: web.Request, execution: Execution, *, heartbeat: float = HEARTBEAT
) -> web.StreamResponse:
    """Send each change of a run's status as a server-sent event until it has finished; return the response.

    `heartbeat`: seconds of silence before a comment is sent. Raises what the first poll raises, such as NotFoundError.
    """
    async with aclosing(await server_sent_events(execution, heartbeat)) as events:
        response = web.StreamResponse(headers=EVENT_STREAM)
        await response.prepare(request)
        with suppress(ConnectionResetError):  # the visitor has left
            async for event in events:
                await response.write(event)
    return response
