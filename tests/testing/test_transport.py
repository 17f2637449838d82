"""The in-process transport: an httpx client meets the emulator with latency, time-outs and httpx's own errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from random import Random
from typing import Any

import anyio
import httpx
import pytest

from knouds_async.testing import Emulator, EmulatorTransport, Fault, faults

SENT = "http11.send_request_headers.started"
RUN = "/api/workflows/jingle/run"
EMPTY: dict[str, object] = {"inputs": {}}


def _client(emulator: Emulator, timeout: float | None = 5.0, **settings: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=EmulatorTransport(emulator, **settings),
        base_url="https://knouds.test",
        headers={"x-api-key": emulator.api_key},
        timeout=timeout,
    )


async def test_requests_and_answers_come_through_whole() -> None:
    """Method, path, query, headers and body reach the emulator; status, headers and body come back."""
    emulator = Emulator()
    async with _client(emulator) as client:
        answer = await client.post(f"{RUN}?async=true", json=EMPTY)
        assert answer.json()["status"] == "processing"
        assert answer.headers["x-ratelimit-remaining"] == "99"
        assert (answer.reason_phrase, answer.http_version) == ("OK", "HTTP/1.1")
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert (await client.get("/api/workflows/%2E%2E/schema")).json()["code"] == "INVALID_SLUG"
        assert (await client.get("/api/usage", params={"limit": "5"})).json()["pageSize"] == 5
        assert (await client.get("/api/whoami", headers={"X-Api-Key": "wrong"})).status_code == 401
    assert emulator.runs[0].target == "jingle"


async def test_a_streamed_request_body_arrives() -> None:
    """A body that is sent in pieces is put together."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"inputs": '
        yield b"{}}"

    async with _client(Emulator()) as client:
        assert (await client.post(f"{RUN}?async=true", content=pieces())).status_code == 200


async def test_a_synchronous_run_takes_its_time() -> None:
    """The answer comes when the run has finished, and not before a read time-out that is shorter."""
    emulator = Emulator(duration=42.0)
    began = anyio.current_time()
    async with _client(emulator, None) as client:
        assert (await client.post(RUN, json=EMPTY)).json()["ms"] == 42000
    assert anyio.current_time() - began == pytest.approx(42.0)
    async with _client(emulator, 5.0) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(RUN, json=EMPTY)
    assert anyio.current_time() - began == pytest.approx(47.0)
    assert len(emulator.runs) == 2


async def test_latency_delays_both_ways_and_is_seeded() -> None:
    """The service sees a request one delay after it was sent; the answer takes another; the same seed, the same."""

    async def seen(seed: int) -> tuple[float, float]:
        emulator, began = Emulator(), anyio.current_time()
        async with _client(emulator, latency=lambda dice: dice.uniform(0.1, 0.2), seed=seed) as client:
            await client.get("/api/health")
        return round(next(iter(emulator.requests)).at - began, 9), round(anyio.current_time() - began, 9)

    out, both = await seen(1)
    dice = Random("1:latency")
    first, second = dice.uniform(0.1, 0.2), dice.uniform(0.1, 0.2)
    assert out == pytest.approx(first)
    assert both == pytest.approx(first + second)
    assert await seen(1) == (out, both)


async def test_a_request_that_has_left_arrives_although_its_sender_was_cancelled() -> None:
    """Cancelling while the bytes are under way loses the answer, not the run."""
    emulator = Emulator()
    async with _client(emulator, latency=1.0) as client:
        with anyio.move_on_after(0.5):
            await client.post(f"{RUN}?async=true", json=EMPTY)
        assert not emulator.runs
        await anyio.sleep(1.0)
        emulator.settle(anyio.current_time())
    assert len(emulator.runs) == 1


async def test_a_request_cancelled_while_connecting_never_leaves() -> None:
    """Cancelling before the connection stands leaves nothing behind."""
    emulator = Emulator()
    async with _client(emulator) as client:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await client.post(f"{RUN}?async=true", json=EMPTY)
    emulator.settle(100.0)
    assert emulator.requests.count == 0


async def test_the_answer_is_timed_out_on_its_way_back() -> None:
    """The read time-out runs until the answer is here, latency included; the run has happened."""
    emulator = Emulator()
    async with _client(emulator, 1.5, latency=1.0) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(f"{RUN}?async=true", json=EMPTY)
    assert len(emulator.runs) == 1


async def _meet(emulator: Emulator, timeout: float | None = 5.0) -> tuple[object, list[str]]:
    """Send one submit and give the status or the exception's class, and the trace."""
    events: list[str] = []

    async def trace(event: str, details: Mapping[str, object]) -> None:
        assert ("exception" in details) == event.endswith(".failed")
        events.append(event)

    async with _client(emulator, timeout) as client:
        try:
            answer = await client.post(f"{RUN}?async=true", json=EMPTY, extensions={"trace": trace})
        except httpx.HTTPError as error:
            return type(error), events
        return answer.status_code, events


async def test_the_trace_of_a_good_exchange() -> None:
    """httpcore's events come in httpcore's order."""
    _, events = await _meet(Emulator())
    steps = (
        "connection.connect_tcp",
        "http11.send_request_headers",
        "http11.send_request_body",
        "http11.receive_response_headers",
        "http11.receive_response_body",
    )
    assert events == [f"{step}.{end}" for step in steps for end in ("started", "complete")]


@pytest.mark.parametrize(
    ("fault", "met", "was_sent", "runs", "seconds"),
    [
        (faults.refused(), httpx.ConnectError, False, 0, 0.0),
        (faults.unreachable(), httpx.ConnectTimeout, False, 0, 5.0),
        (faults.reset_unread(), httpx.ReadError, True, 0, 0.0),
        (faults.reset(), httpx.ReadError, True, 0, 0.0),
        (faults.reset(after_run=True), httpx.ReadError, True, 1, 0.0),
        (faults.closed(), httpx.RemoteProtocolError, True, 0, 0.0),
        (faults.closed(after_run=True), httpx.RemoteProtocolError, True, 1, 0.0),
        (faults.stalled(), httpx.ReadTimeout, True, 0, 5.0),
        (faults.stalled(after_run=True), httpx.ReadTimeout, True, 1, 5.0),
        (faults.stalled(3.0), 200, True, 1, 3.0),
        (faults.stalled(3.0, after_run=True), 200, True, 1, 3.0),
        (faults.stalled(6.0, after_run=True), httpx.ReadTimeout, True, 1, 5.0),
        (faults.truncated(), httpx.RemoteProtocolError, True, 1, 0.0),
        (faults.dripping(0.1), 200, True, 1, 22.5),
        (faults.dropped_keep_alive(), 200, True, 1, 0.0),
        (faults.bad_gateway(), 502, True, 0, 0.0),
        (faults.gzip_bomb(1000), 200, True, 1, 0.0),
    ],
)
async def test_faults_come_as_httpx_gives_them(
    fault: Fault, met: object, *, was_sent: bool, runs: int, seconds: float
) -> None:
    """Each fault appears as on a real socket, after the time it takes; the trace shows whether the request was sent."""
    emulator, began = Emulator(), anyio.current_time()
    emulator.faults.add(fault)
    outcome, events = await _meet(emulator)
    assert (outcome, SENT in events, len(emulator.runs)) == (met, was_sent, runs)
    assert anyio.current_time() - began == pytest.approx(seconds, abs=1e-6)
    assert any(event.endswith(".failed") for event in events) == (not isinstance(met, int))


async def test_what_times_out_still_runs_later() -> None:
    """A request held up longer than its sender waits is carried out all the same."""
    emulator = Emulator()
    emulator.faults.add(faults.stalled(30.0))
    assert (await _meet(emulator))[0] is httpx.ReadTimeout
    assert not emulator.runs
    await anyio.sleep(30.0)
    emulator.settle(anyio.current_time())
    assert len(emulator.runs) == 1


async def test_without_time_outs_a_silent_service_is_waited_for() -> None:
    """Where the client sets no time-out, only its own cancellation ends a wait."""
    for fault in (faults.unreachable(), faults.stalled()):
        emulator = Emulator()
        emulator.faults.add(fault)
        with anyio.move_on_after(3600) as scope:
            await _meet(emulator, None)
        assert scope.cancelled_caught


async def test_an_odd_status_has_no_reason() -> None:
    """A status that HTTP does not name passes through."""
    emulator = Emulator()
    emulator.faults.add(faults.service_error(599))
    assert (await _meet(emulator))[0] == 599
