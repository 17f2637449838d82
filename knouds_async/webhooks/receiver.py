"""Webhook deliveries: verified, taken once, and passed to the waiters; the ASGI app of a receiver (contract 11).

`verify` and `sign` are synchronous, with no I/O but the clock that `now` replaces. A receiver answers 2xx only after an
event is taken; a refusal says nothing but its status. The adapter of a framework is a few lines around `take`.
"""

from __future__ import annotations

import inspect
import logging
import math
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, Final, Protocol, TypeVar

import anyio
import attrs

from knouds_async._io.concurrency import checkpoint, native_cancellation, uninterrupted
from knouds_async._sansio import responses
from knouds_async._sansio import webhooks as signatures
from knouds_async._sansio.inputs import is_execution_id
from knouds_async._sansio.responses import UnreadableError
from knouds_async._sansio.webhooks import CONTRADICTORY, MAX_BODY
from knouds_async.client import AsyncKnouds
from knouds_async.config import Secret, is_integer, is_number
from knouds_async.errors import (
    ConfigurationError,
    InvalidArgumentError,
    WebhookFault,
    WebhookVerificationError,
    safe_repr,
)
from knouds_async.postgres import Postgres, bus_of
from knouds_async.telemetry import Span, Telemetry, fields
from knouds_async.types import ExecutionState, Status

# ---- What a delivery says

TEST: Final = "webhook.test"
"""The event that the dashboard sends to try out a receiver; it has no run."""

_ENDS: Final[Mapping[str, Status]] = {
    "execution.completed": Status.COMPLETED,
    "execution.failed": Status.FAILED,
    "execution.cancelled": Status.CANCELLED,
}
_LONGEST_NAME: Final = 200


@attrs.frozen
class WebhookEvent:
    """One verified delivery.

    `event`: its name, e.g. `execution.completed`. `execution_id`: its run; None for `webhook.test`, and where an event
    of an unknown name has none. `state`: the run as the delivery describes it, None without an id.
    """

    event: str
    execution_id: str | None
    state: ExecutionState | None
    raw: Mapping[str, Any] = attrs.field(repr=False, eq=False)

    @property
    def is_test(self) -> bool:
        """Whether the dashboard sent it to try out the receiver."""
        return self.event == TEST


def read_event(body: bytes) -> WebhookEvent:
    """Return the event in the body of a delivery; raise UnreadableError when it is none."""
    parsed = responses.parsed(body)
    name = parsed.get("event") if isinstance(parsed, dict) else None
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
        raise UnreadableError("the body is not an event")
    execution_id = parsed.get("executionId")
    if name == TEST or (execution_id is None and name not in _ENDS):
        return WebhookEvent(name, None, None, parsed)
    if not is_execution_id(execution_id):
        raise UnreadableError("the event names no execution")
    return WebhookEvent(name, execution_id, _state(execution_id, name, parsed), parsed)


def _state(execution_id: str, event: str, body: Mapping[str, Any]) -> ExecutionState:
    """Return the run's state; where name and status of the event contradict each other, it is no final state."""
    stated, known = body.get("status"), _ENDS.get(event)
    if known is None:
        return responses.execution_state(execution_id, body if isinstance(stated, str) else {**body, "status": event})
    is_contradiction = isinstance(stated, str) and stated != known and stated in set(_ENDS.values())
    status = CONTRADICTORY if is_contradiction else known
    return attrs.evolve(responses.execution_state(execution_id, {**body, "status": status}), raw=body)


# ---- Which deliveries were taken before


class SeenStore(Protocol):
    """A store of deliveries that several processes may share, e.g. over Redis (`SET key 1 NX EX 86400`).

    Its methods are not cancelled with a delivery, lest what became of them stay unknown; they have 30 seconds each.
    """

    async def claim(self, key: str) -> bool:
        """Store a key, in one atomic step; return whether it was new."""
        ...

    async def release(self, key: str) -> None:
        """Remove a key again: its delivery was not taken after all."""
        ...


class SeenHere:
    """The store of one process: the latest `most` keys; ConfigurationError for less than one."""

    def __init__(self, most: int = 10_000) -> None:
        if not (is_integer(most) and most >= 1):
            raise ConfigurationError(f"SeenHere(most={safe_repr(most)}): must be an integer of at least 1")
        self._max_keys = most
        self._keys: OrderedDict[str, None] = OrderedDict()

    async def claim(self, key: str) -> bool:
        """Store a key and return whether it was new; the oldest one makes room."""
        if key in self._keys:
            self._keys.move_to_end(key)
            return False
        self._keys[key] = None
        if len(self._keys) > self._max_keys:
            self._keys.popitem(last=False)
        return True

    async def release(self, key: str) -> None:
        """Remove a key again."""
        self._keys.pop(key, None)


# ---- Verifying and signing

SIGNATURE_HEADER: Final = "X-Knouds-Signature"
TOLERANCE: Final = 300.0

Bytes = bytes | bytearray | memoryview
Secrets = str | Secret | Iterable[str | Secret]
"""One signing secret or, while one replaces another, several."""

_MESSAGES: Final = {
    WebhookFault.SIGNATURE_MISSING: f"the delivery has no {SIGNATURE_HEADER} header",
    WebhookFault.SIGNATURE_MALFORMED: f"the {SIGNATURE_HEADER} header is not t=<unix seconds>,v1=<hex>",
    WebhookFault.SIGNATURE_WRONG: "the signature matches none of the secrets. Check that the raw body is verified, as "
    "it came, and that the secret is the one of the dashboard",
    WebhookFault.OUT_OF_TIME: "the signature is right but too old, or from the future. Check this machine's clock",
    WebhookFault.BODY_TOO_LARGE: f"the body has more than {signatures.MAX_BODY} bytes",
    WebhookFault.BODY_MALFORMED: "the body is not the raw bytes of an event's JSON",
    WebhookFault.MISCONFIGURED: f"a signing secret is a string of {signatures.MIN_SECRET} characters or more, at "
    "least one is needed, and `now` and `tolerance` are finite numbers of seconds",
}


def verify(
    body: bytes,
    signature: str | bytes | None,
    secrets: Secrets,
    *,
    now: float | None = None,
    tolerance: float = TOLERANCE,
) -> WebhookEvent:
    """Return the event of a delivery if it is the service's.

    `body`: the raw bytes as they came. `signature`: the `X-Knouds-Signature` header. `secrets`: one, or several while
    they are rotated; all are tried. `now`: unix seconds, by default this machine's clock. `tolerance`: seconds by
    which the signing time may differ. Raises WebhookVerificationError, with a `reason`, and nothing else.
    """
    event = _verified(body, signature, signing_keys(secrets), time.time() if now is None else now, tolerance)
    secrets = ()  # so that this frame does not show them in a traceback with locals
    if isinstance(event, WebhookFault):
        raise WebhookVerificationError(_MESSAGES[event], reason=event)
    return event


def _verified(
    body: object, signature: object, keys: tuple[bytes, ...], now: float, tolerance: float
) -> WebhookEvent | WebhookFault:
    """Return the event, or what is wrong; nothing of a body is read before its signature was found right."""
    if not isinstance(body, Bytes):
        return WebhookFault.BODY_MALFORMED
    if not (keys and _is_finite(now) and _is_finite(tolerance)):
        return WebhookFault.MISCONFIGURED
    raw = bytes(body)
    fault = signatures.check_delivery(raw, signature, keys, now=now, tolerance=tolerance)
    if fault is not None:
        return fault
    try:
        return read_event(raw)
    except UnreadableError:
        return WebhookFault.BODY_MALFORMED


def signing_keys(secrets: object) -> tuple[bytes, ...]:
    """Return the secrets as bytes; an empty tuple when any of them will not do."""
    secret_list = (secrets,) if isinstance(secrets, (str, Secret)) else secrets
    if not isinstance(secret_list, Iterable):
        return ()
    keys = [signatures.secret_bytes(one.reveal() if isinstance(one, Secret) else one) for one in secret_list]
    return () if None in keys else tuple(key for key in keys if key is not None)


def _is_finite(value: object) -> bool:
    return is_number(value) and (isinstance(value, int) or math.isfinite(value))


def sign(body: bytes, secret: str | Secret, *, now: float) -> str:
    """Return the header that the service would send with a body at `now`, in unix seconds: for tests of receivers.

    Raises InvalidArgumentError for a body that is no bytes, a secret of fewer than 16 characters, a time before 1970.
    """
    keys = signing_keys(secret)
    if not (isinstance(body, Bytes) and keys and _is_finite(now) and 0 <= now < 1e12):
        raise InvalidArgumentError(
            f"a body in bytes, a secret of {signatures.MIN_SECRET} characters or more, and a time in unix seconds are "
            "needed to sign"
        )
    return signatures.signature_header(bytes(body), keys[0], str(int(now)))


# ---- What ASGI servers send

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_SIGNATURE: Final = b"x-knouds-signature"


class _SenderDisconnected(Exception):  # noqa: N818  (no failure: there is just nobody to answer)
    """The sender disconnected before its body was complete."""


async def _body(receive: Receive) -> AsyncGenerator[bytes]:
    has_more = True
    while has_more:
        message = await receive()
        if message["type"] != "http.request":
            raise _SenderDisconnected
        yield message.get("body", b"")
        has_more = message.get("more_body", False)


async def _answer_lifespan(receive: Receive, send: Send) -> None:
    while True:
        phase = (await receive())["type"]
        await send({"type": f"{phase}.complete"})
        if phase == "lifespan.shutdown":
            return


# ---- The receiver

T = TypeVar("T")

logger = logging.getLogger("knouds_async")

Handler = Callable[[WebhookEvent], Awaitable[None] | None]
"""Called with each event, once unless the store fails, and awaited if async; the delivery is answered after that."""

_ANSWERS: Final = {
    WebhookFault.SIGNATURE_WRONG: HTTPStatus.UNAUTHORIZED,
    WebhookFault.OUT_OF_TIME: HTTPStatus.UNAUTHORIZED,
    WebhookFault.BODY_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
}
_READ_TIMEOUT: Final = 30.0  # seconds for a whole body: a delivery is sent in one go
_STORE_TIMEOUT: Final = 30.0  # seconds for a change of the store, which nothing else ends
_MAX_FINAL_STATUSES: Final = 10_000


async def _in_time(change: Awaitable[T]) -> T:
    """Await a change of the store; TimeoutError where it hangs, so that its process can end."""
    with anyio.fail_after(_STORE_TIMEOUT):
        return await change


class WebhookReceiver:
    """Takes the deliveries of one webhook.

    `secrets`: the signing secret, or several while one replaces another. `client`: the AsyncKnouds whose waiters are
    woken; it may be set later, as where an app creates it in its lifespan. `seen`: the store of deliveries taken
    before, in this process by default; where it fails, an event may come twice. `handler`: is called with each event
    once, async or not; when it raises, the delivery is answered with 500 and comes again. `tolerance`: seconds by which
    a signature's time may differ. `bus`: a `Postgres` or its URL, where a delivery reaches any of several processes:
    all of them hear of it, and `seen` is there too.

    Raises ConfigurationError for a secret of fewer than 16 characters, and for another argument that cannot be used. It
    belongs to the event loop of its client.
    """

    def __init__(
        self,
        secrets: Secrets,
        *,
        client: AsyncKnouds | None = None,
        seen: SeenStore | None = None,
        handler: Handler | None = None,
        tolerance: float = TOLERANCE,
        bus: Postgres | str | None = None,
    ) -> None:
        shared, bus = Secret.of(bus) if isinstance(bus, str) else bus, None  # so that no frame of ours shows them
        verifier, secrets = _verifier(signing_keys(secrets), tolerance), ()
        if seen is not None and not (hasattr(seen, "claim") and hasattr(seen, "release")):
            seen = None  # it may be a database's URL
            raise ConfigurationError("seen= must be a store with claim and release; a database is named by bus=")
        if handler is not None and not callable(handler):
            raise ConfigurationError(f"handler={safe_repr(handler)}: must be a function of an event, async or not")
        if verifier is None:
            raise ConfigurationError("webhook secrets are strings of 16 characters or more (they are not shown here)")
        if not (_is_finite(tolerance) and tolerance >= 0):
            raise ConfigurationError(
                f"tolerance={safe_repr(tolerance)}: must be a finite number of seconds of at least 0"
            )
        self._verify: Final = verifier
        self._bus: Final = None if shared is None else bus_of(shared)
        self._seen: Final[SeenStore] = seen if seen is not None else self._bus or SeenHere()
        self._handler: Final = handler
        self._in_progress: Final[dict[str, anyio.Event]] = {}
        self._final_statuses: Final[OrderedDict[str, Status | str]] = OrderedDict()
        self._client: AsyncKnouds | None = None
        self._telemetry = Telemetry("") if client is None else client.telemetry
        self.client = client

    @property
    def client(self) -> AsyncKnouds | None:
        """The client whose waiters are woken."""
        return self._client

    @client.setter
    def client(self, client: AsyncKnouds | None) -> None:
        self._client = client
        if client is not None:
            self._telemetry = client.telemetry
            client.executions.expect_deliveries(self._bus)

    async def take(self, chunks: AsyncIterable[bytes], signature: str | bytes | None) -> int:
        """Read a delivery, take its event, and return the HTTP status to answer with.

        At most 1 MiB is read, for 30 s at most. 200: taken, or taken before; 400, 401, 413: refused, which one WARNING
        in the log explains. What the handler raises passes through, to be answered with 500. Cancelled: the event
        counts as not taken.
        """
        with native_cancellation(), self._telemetry.webhook() as span:
            status = await self._take(chunks, signature, span)
            if status >= HTTPStatus.BAD_REQUEST:
                span.fail(str(int(status)))
            return status

    async def _take(self, chunks: AsyncIterable[bytes], signature: str | bytes | None, span: Span) -> int:
        body = bytearray()
        with anyio.move_on_after(_READ_TIMEOUT) as reading:
            async for chunk in chunks:
                body += chunk
                if len(body) > MAX_BODY:
                    return _refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _MESSAGES[WebhookFault.BODY_TOO_LARGE])
        if reading.cancelled_caught:
            return _refuse(HTTPStatus.BAD_REQUEST, f"its body was not complete after {_READ_TIMEOUT:g} s")
        event = self._verify(bytes(body), signature)
        if isinstance(event, WebhookFault):
            is_empty = signature and not body
            why = "its body is empty. Check that no middleware has consumed it" if is_empty else _MESSAGES[event]
            return _refuse(_ANSWERS.get(event, HTTPStatus.BAD_REQUEST), why)
        await self._accept(event, span)
        return HTTPStatus.OK

    async def accept(self, event: WebhookEvent) -> None:
        """Process a verified event: wake the client's waiters, and pass it to `handler` unless it was taken before.

        For events that came another way, as over a bus from the worker that received them.
        """
        with native_cancellation(), self._telemetry.webhook() as span:
            await self._accept(event, span)

    async def _accept(self, event: WebhookEvent, span: Span) -> None:
        if event.is_test:
            return
        if event.state is not None:
            span.set_state(event.state)
        if event.state is not None and self._client is not None:
            self._client.executions.delivered(event.state)  # also one that another process has taken: waiters are here
        if event.state is not None and self._bus is not None and signatures.is_end(event.state):
            await self._bus.send(event.state)  # before it counts as taken, so that none is lost when that fails
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
        if self._contradicts(event):
            return
        may_be_claimed = True  # also where the store fails or is cut off: it could have the key all the same
        try:
            claimed = await uninterrupted(lambda: _in_time(self._seen.claim(key)))
            may_be_claimed = claimed.value
            if claimed.cancellation is not None:
                raise claimed.cancellation
            await checkpoint()  # anyio's cancellation is raised here
            if not claimed.value:
                return
            await self._call_handler(event)
        except BaseException:
            if may_be_claimed:
                await uninterrupted(lambda: _in_time(self._seen.release(key)))
            raise
        state = event.state
        if state is not None and state.is_final:
            self._final_statuses[state.execution_id] = state.status
            if len(self._final_statuses) > _MAX_FINAL_STATUSES:
                self._final_statuses.popitem(last=False)

    async def _call_handler(self, event: WebhookEvent) -> None:
        if self._handler is not None and inspect.isawaitable(answer := self._handler(event)):
            await answer

    def _contradicts(self, event: WebhookEvent) -> bool:
        """Return whether a run finished otherwise than this event says: it came late, or out of order."""
        end = self._final_statuses.get(event.execution_id or "")
        if end is None or (event.state is not None and event.state.status == end):
            return False
        extra = fields("delivery_late", execution_id=event.execution_id, status=end)
        message = "%s of execution %s came after its end as %s: ignored"
        logger.info(message, event.event, event.execution_id, end, extra=extra)
        return True

    @property
    def asgi(self) -> WebhookReceiver:
        """The receiver itself, which is an ASGI app: it takes deliveries on any path of the server that it is given to.

        In a Starlette or FastAPI app use `knouds_async.webhooks.fastapi.router` instead. Starlette's `mount` answers
        307 for a URL without the slash at its end, and the service takes a redirect for a refusal.
        """
        return self

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one ASGI scope: a delivery by `take`, any other request with 405, a lifespan by its own messages."""
        if scope["type"] == "lifespan":
            await _answer_lifespan(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": f"{scope['type']}.close"})

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        signature = b",".join(value for name, value in scope["headers"] if name == _SIGNATURE) or None
        status: int = HTTPStatus.METHOD_NOT_ALLOWED
        try:
            if scope["method"] == "POST":
                async with aclosing(_body(receive)) as chunks:
                    status = await self.take(chunks, signature)
        except _SenderDisconnected:
            return
        await send({"type": "http.response.start", "status": int(status), "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


def _refuse(status: HTTPStatus, why: str) -> HTTPStatus:
    extra = fields("delivery_refused", http_status=status)
    logger.warning("a webhook delivery was refused with %d: %s", status, why, extra=extra)
    return status


def _verifier(
    keys: tuple[bytes, ...], tolerance: float
) -> Callable[[bytes, str | bytes | None], WebhookEvent | WebhookFault] | None:
    """Return the function that verifies, so that no attribute holds a secret; None without keys."""
    return (lambda body, signature: _verified(body, signature, keys, time.time(), tolerance)) if keys else None
