"""An httpx transport that talks to an emulator in process: no socket, any clock, and the errors real sockets give.

The emulator decides, this performs it. The only module of the emulator that imports httpx.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from http import HTTPStatus
from random import Random
from typing import Final

import anyio
import anyio.lowlevel
import httpx

from knouds_async.testing.emulator import Emulator
from knouds_async.testing.messages import Broken, Later, Request, Response, Wire
from knouds_async.testing.settings import Seconds, checked_seconds, draw
from knouds_async.testing.virtual_time import clock_in_use, is_virtual

__all__ = ["EmulatorTransport", "emulator_client"]

_UNTRACED: Final = nullcontext()
_Trace = Callable[[str, Mapping[str, object]], Awaitable[None]]


class EmulatorTransport(httpx.AsyncBaseTransport):
    """Send an httpx client's requests to an emulator.

    `latency` is the one-way delay in seconds: a number or a callable over `random.Random`, drawn twice a request
    from `seed`. A request that has left arrives even when its sender is cancelled meanwhile; call
    `emulator.settle(anyio.current_time())` before counting runs after that. httpx's time-outs are respected, and
    httpcore's `trace` events are fired, each request on a connection of its own.
    ValueError for an impossible latency.
    """

    def __init__(self, emulator: Emulator, *, latency: Seconds = 0.0, seed: int = 0) -> None:
        self._emulator = emulator
        self._latency = checked_seconds("latency", latency)
        self._rng = Random(f"{seed}:latency")

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request to the emulator and return its response."""
        trace: _Trace | None = request.extensions.get("trace")
        timeouts: Mapping[str, float | None] = request.extensions.get("timeout", {})
        sent = await self._connect(await _as_sent(request), timeouts.get("connect"), trace)
        for step in ("http11.send_request_headers", "http11.send_request_body"):
            async with _traced(trace, step):
                pass
        async with _traced(trace, "http11.receive_response_headers"):
            try:
                with anyio.fail_after(timeouts.get("read")):
                    outcome = await self._exchange(sent)
            except TimeoutError:
                raise httpx.ReadTimeout("") from None
            response, broken = _response_or_raise(outcome)
        headers = [*response.headers.items(), ("content-length", str(len(response.body)))]
        extensions = {"http_version": b"HTTP/1.1", "reason_phrase": _reason(response.status)}
        body = _ResponseStream(response.body, broken, trace)
        return httpx.Response(response.status, headers=headers, stream=body, extensions=extensions)

    async def _connect(self, sent: Request, timeout: float | None, trace: _Trace | None) -> Request | Broken:
        async with _traced(trace, "connection.connect_tcp"):
            met = self._emulator.connect(sent, anyio.current_time())
            await anyio.lowlevel.checkpoint()
            wire = met.wire if isinstance(met, Broken) else None
            if wire is Wire.UNREACHABLE:
                await anyio.sleep(math.inf if timeout is None else timeout)
                raise httpx.ConnectTimeout("")
            if wire is Wire.REFUSED:
                raise httpx.ConnectError("All connection attempts failed")
            return met

    async def _exchange(self, sent: Request | Broken) -> Response | Broken:
        if isinstance(sent, Broken):
            return sent
        now = anyio.current_time()
        delay = draw(self._latency, self._rng)
        emulator = self._emulator
        outcome = emulator.deliver(sent, now + delay) if delay else emulator.handle(sent, now)
        while isinstance(outcome, Later):
            await anyio.sleep_until(outcome.at)
            # A virtual clock may stop the last bit of a float short of the time it was to reach.
            outcome = emulator.resume(outcome, max(outcome.at, anyio.current_time()))
        await anyio.sleep(draw(self._latency, self._rng))
        if isinstance(outcome, Broken) and outcome.wire is not Wire.DRIPPING:
            await anyio.sleep(math.inf if outcome.wire is Wire.STALLED else outcome.seconds)
        return outcome


class _VirtualTimeOnly(EmulatorTransport):
    """Refuses requests in real time, where a test would wait minutes for a run."""

    def __init__(self, emulator: Emulator, *, latency: Seconds, report: Callable[[str], None]) -> None:
        super().__init__(emulator, latency=latency)
        self._report = report

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if is_virtual():
            return await super().handle_async_request(request)
        message = (
            f"the test was to run in virtual time, but its clock is that of {clock_in_use()}: make the project's loop "
            "or backend one of knouds_async.testing (VirtualTimeLoop, virtual_backend), or use "
            "@pytest.mark.knouds(virtual_time=False, duration=0.01) to run it in real time"
        )
        self._report(message)
        return httpx.Response(400, json={"error": message, "code": "NOT_IN_VIRTUAL_TIME"})


def emulator_client(
    emulator: Emulator, *, latency: Seconds = 0.0, on_real_time: Callable[[str], None] | None = None
) -> httpx.AsyncClient:
    """Create an httpx client on an emulator.

    `on_real_time`, if given, is called when the client is used by a loop in real time; the request is refused then.
    """
    if on_real_time is None:
        return httpx.AsyncClient(transport=EmulatorTransport(emulator, latency=latency))
    return httpx.AsyncClient(transport=_VirtualTimeOnly(emulator, latency=latency, report=on_real_time))


class _ResponseStream(httpx.AsyncByteStream):
    """A response's bytes as they arrive: whole, cut short, or one at a time."""

    def __init__(self, body: bytes, broken: Broken | None, trace: _Trace | None) -> None:
        self._body = body
        self._broken = broken
        self._trace = trace

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async with _traced(self._trace, "http11.receive_response_body"):
            async for part in self._parts():
                yield part

    async def _parts(self) -> AsyncIterator[bytes]:
        body, broken = self._body, self._broken
        if broken is None or broken.wire not in (Wire.DRIPPING, Wire.TRUNCATED):
            yield body
        elif broken.wire is Wire.DRIPPING:
            for place in range(len(body)):
                await anyio.sleep(broken.seconds)
                yield body[place : place + 1]
        else:
            yield body[: len(body) // 2]
            raise httpx.RemoteProtocolError(
                "peer closed connection without sending complete message body "
                f"(received {len(body) // 2} bytes, expected {len(body)})"
            )


async def _as_sent(request: httpx.Request) -> Request:
    url, body = request.url, await request.aread()
    headers = {name.lower().decode("ascii"): value.decode("latin-1") for name, value in request.headers.raw}
    path, _, query = url.raw_path.decode("ascii").partition("?")
    return Request(request.method, path, query, headers, body)


def _response_or_raise(outcome: Response | Broken) -> tuple[Response, Broken | None]:
    """Return the response and the fault in it, or raise what httpx raises when the connection breaks before it."""
    if isinstance(outcome, Response):
        return outcome, None
    if outcome.wire is Wire.RESET:
        raise httpx.ReadError("")
    if outcome.response is None or outcome.wire is Wire.CLOSED:
        raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
    return outcome.response, outcome


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""


def _traced(trace: _Trace | None, step: str) -> AbstractAsyncContextManager[None]:
    """Fire httpcore's events around a step, if there is a trace."""
    return _UNTRACED if trace is None else _fired(trace, step)


@asynccontextmanager
async def _fired(trace: _Trace, step: str) -> AsyncIterator[None]:
    """Fire the events as httpcore's own `Trace` does."""
    await trace(f"{step}.started", {})
    try:
        yield
    except BaseException as error:
        await trace(f"{step}.failed", {"exception": error})
        raise
    await trace(f"{step}.complete", {"return_value": None})
