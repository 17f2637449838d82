"""WebhookReceiver: takes deliveries, each once, wakes the waiters, and returns what to answer (contract 11).

2xx only after an event is taken; a refusal says nothing but its status. The adapter of a framework is a few lines
around `take`.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncIterable, Awaitable, Callable
from http import HTTPStatus
from typing import Final

import anyio

from knouds_async._sansio.webhooks import MAX_BODY
from knouds_async.client import AsyncKnouds
from knouds_async.errors import ConfigurationError, WebhookFault, WebhookVerificationError
from knouds_async.types import Status
from knouds_async.webhooks.asgi import ASGIReceiver
from knouds_async.webhooks.events import WebhookEvent
from knouds_async.webhooks.seen import SeenHere, SeenStore
from knouds_async.webhooks.verification import TOLERANCE, Secrets, signing_keys, verify

logger = logging.getLogger("knouds_async")

Handler = Callable[[WebhookEvent], Awaitable[None]]
"""Called with each event, once; the delivery is answered when it returns."""

_ANSWERS: Final = {
    WebhookFault.SIGNATURE_WRONG: HTTPStatus.UNAUTHORIZED,
    WebhookFault.OUT_OF_TIME: HTTPStatus.UNAUTHORIZED,
    WebhookFault.BODY_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
}
_READ_TIMEOUT: Final = 30.0  # seconds for a whole body: a delivery is sent in one go
_MAX_FINAL_STATUSES: Final = 10_000


class WebhookReceiver:
    """Takes the deliveries of one webhook.

    `secrets`: the signing secret, or several while one replaces another. `client`: the AsyncKnouds whose waiters are
    woken; it may be set later, as where an app creates it in its lifespan. `seen`: the store of deliveries taken
    before, in this process by default. `handler`: is called with each event once; when it raises, the delivery is
    answered with 500 and comes again. `tolerance`: seconds by which a signature's time may differ.

    Raises ConfigurationError for a secret of fewer than 16 characters. It belongs to the event loop of its client.
    """

    def __init__(
        self,
        secrets: Secrets,
        *,
        client: AsyncKnouds | None = None,
        seen: SeenStore | None = None,
        handler: Handler | None = None,
        tolerance: float = TOLERANCE,
    ) -> None:
        keys, secrets = signing_keys(secrets), ()  # so that no frame of ours shows them
        if not keys:
            raise ConfigurationError("webhook secrets are strings of 16 characters or more (they are not shown here)")
        if not 0 <= tolerance < float("inf"):
            raise ConfigurationError(f"tolerance={tolerance!r}: must be a finite number of seconds of at least 0")
        self._verify: Final = _verifier(keys, tolerance)
        self._seen: Final = SeenHere() if seen is None else seen
        self._handler: Final = handler
        self._in_progress: Final[dict[str, anyio.Event]] = {}
        self._final_statuses: Final[OrderedDict[str, Status | str]] = OrderedDict()
        self._client: AsyncKnouds | None = None
        self.client = client

    @property
    def client(self) -> AsyncKnouds | None:
        """The client whose waiters are woken."""
        return self._client

    @client.setter
    def client(self, client: AsyncKnouds | None) -> None:
        self._client = client
        if client is not None:
            client.executions.expect_deliveries()

    async def take(self, chunks: AsyncIterable[bytes], signature: str | bytes | None) -> int:
        """Read a delivery, take its event, and return the HTTP status to answer with.

        At most 1 MiB is read, for 30 s at most. 200: taken, or taken before; 400, 401, 413: refused. What the handler
        raises passes through, to be answered with 500. Cancelled: the event counts as not taken.
        """
        body = bytearray()
        with anyio.move_on_after(_READ_TIMEOUT) as reading:
            async for chunk in chunks:
                body += chunk
                if len(body) > MAX_BODY:
                    return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        if reading.cancelled_caught:
            return HTTPStatus.BAD_REQUEST
        try:
            event = self._verify(bytes(body), signature)
        except WebhookVerificationError as refused:
            logger.info("a webhook delivery was refused: %s", refused.reason)
            return _ANSWERS.get(refused.reason, HTTPStatus.BAD_REQUEST)
        await self.accept(event)
        return HTTPStatus.OK

    async def accept(self, event: WebhookEvent) -> None:
        """Take a verified event: wake the client's waiters, and pass it to `handler` unless it was taken before.

        For events that came another way, as over a bus from the worker that received them.
        """
        if event.is_test:
            return
        if event.state is not None and self._client is not None:
            self._client.executions.delivered(event.state)  # also one that another process has taken: waiters are here
        if event.execution_id is None:  # nothing to recognise it by
            await self._call_handler(event)
            return
        run = event.execution_id
        while (other := self._in_progress.get(run)) is not None:
            await other.wait()  # should its handler fail, this one is taken; else they may contradict each other
        self._in_progress[run] = done = anyio.Event()
        try:
            await self._accept_once(event, f"{run} {event.event}")
        finally:
            del self._in_progress[run]
            done.set()

    async def _accept_once(self, event: WebhookEvent, key: str) -> None:
        if self._contradicts(event) or not await self._seen.claim(key):
            return
        try:
            await self._call_handler(event)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._seen.release(key)
            raise
        state = event.state
        if state is not None and state.is_final:
            self._final_statuses[state.execution_id] = state.status
            if len(self._final_statuses) > _MAX_FINAL_STATUSES:
                self._final_statuses.popitem(last=False)

    async def _call_handler(self, event: WebhookEvent) -> None:
        if self._handler is not None:
            await self._handler(event)

    def _contradicts(self, event: WebhookEvent) -> bool:
        """Return whether a run finished otherwise than this event says: it came late, or out of order."""
        end = self._final_statuses.get(event.execution_id or "")
        if end is None or (event.state is not None and event.state.status == end):
            return False
        logger.info("%s of execution %s came after its end as %s: ignored", event.event, event.execution_id, end)
        return True

    @property
    def asgi(self) -> ASGIReceiver:
        """The receiver as an ASGI app that takes deliveries on any path: pass it to a server, or mount it."""
        return ASGIReceiver(self.take)


def _verifier(keys: tuple[bytes, ...], tolerance: float) -> Callable[[bytes, str | bytes | None], WebhookEvent]:
    """Return the function that verifies, so that no attribute holds a secret."""
    secrets = tuple(key.decode() for key in keys)
    return lambda body, signature: verify(body, signature, secrets, tolerance=tolerance)
