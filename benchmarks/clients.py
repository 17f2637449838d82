"""The clients that are compared: this library, what it is built on, and the SDKs of other services that run and poll.

Rule of the file: each submits a run, polls one, and does both until it has finished, as its own documentation shows;
timeouts are long enough for none to fail. All of them use the same server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import aiohttp
import anyio
import attrs
import fal_client
import fal_client.client
import httpx
import openai
from replicate.client import Client as Replicate
from server import LIMITED_KEY, PLAIN_KEY

from knouds_async import AsyncKnouds, Polling, Timeouts
from knouds_async._io.pool import PooledTransport

__all__ = ["CLIENTS", "PEERS", "Client", "Open"]

PATIENCE = 600.0
FLOOD = 100  # connections at once, as httpx and this library have by default


@attrs.frozen(kw_only=True)
class Client:
    """An open client: `submit(seconds)` returns an id, `poll(id)` polls once, `run(seconds, interval)` returns its end.

    `interval`: seconds between polls, for clients with a fixed interval.
    """

    submit: Callable[[float], Awaitable[str]]
    poll: Callable[[str], Awaitable[object]]
    run: Callable[[float, float], Awaitable[float]]


Open = Callable[[str], contextlib.AbstractAsyncContextManager[Client]]


@contextlib.asynccontextmanager
async def ours(url: str, *, key: str = PLAIN_KEY, polling: Polling | None = None) -> AsyncGenerator[Client]:
    """This library, with its defaults."""
    patience = Timeouts(read=PATIENCE, write=PATIENCE, pool=PATIENCE, total=PATIENCE, submit=PATIENCE)
    async with AsyncKnouds(key, base_url=url, polling=polling, timeouts=patience) as knouds:

        async def submit(seconds: float) -> str:
            return (await knouds.workflows.submit("bench", {"seconds": seconds})).id

        async def run(seconds: float, interval: float) -> float:  # noqa: ARG001  (it decides by itself)
            ended: float = (await (await knouds.workflows.submit("bench", {"seconds": seconds}))).result["ended"]
            return ended

        yield Client(submit=submit, poll=knouds.executions.get, run=run)


@contextlib.asynccontextmanager
async def _by_httpx(http: httpx.AsyncClient) -> AsyncGenerator[Client]:
    gate = anyio.Semaphore(FLOOD)

    async def submit(seconds: float) -> str:
        response = await http.post("/api/workflows/bench/run?async=true", json={"inputs": {"seconds": seconds}})
        run: str = response.raise_for_status().json()["executionId"]
        return run

    async def poll(run: str) -> Any:
        return (await http.get(f"/api/executions/{run}")).raise_for_status().json()

    async def run(seconds: float, interval: float) -> float:
        async with gate:
            execution = await submit(seconds)
        while True:
            await anyio.sleep(interval)
            async with gate:
                seen = await poll(execution)
            if seen["status"] == "completed":
                ended: float = seen["result"]["ended"]
                return ended

    async with http:
        yield Client(submit=submit, poll=poll, run=run)


def by_httpx(url: str, *, transport: httpx.AsyncBaseTransport | None = None) -> Any:
    """httpx, and a loop with a semaphore."""
    headers = {"x-api-key": LIMITED_KEY}
    return _by_httpx(httpx.AsyncClient(base_url=url, headers=headers, timeout=PATIENCE, transport=transport))


def by_httpx_on_ours(url: str) -> Any:
    """The same over the connection pool of this library."""
    return by_httpx(url, transport=PooledTransport())


@contextlib.asynccontextmanager
async def by_aiohttp(url: str) -> AsyncGenerator[Client]:
    """aiohttp, and a loop."""
    headers = {"x-api-key": LIMITED_KEY}
    async with aiohttp.ClientSession(url, headers=headers, timeout=aiohttp.ClientTimeout(PATIENCE)) as http:

        async def submit(seconds: float) -> str:
            async with http.post("/api/workflows/bench/run?async=true", json={"inputs": {"seconds": seconds}}) as reply:
                run: str = (await reply.json())["executionId"]
                return run

        async def poll(run: str) -> Any:
            async with http.get(f"/api/executions/{run}") as reply:
                return await reply.json()

        async def run(seconds: float, interval: float) -> float:
            execution = await submit(seconds)
            while True:
                await asyncio.sleep(interval)
                seen = await poll(execution)
                if seen["status"] == "completed":
                    ended: float = seen["result"]["ended"]
                    return ended

        yield Client(submit=submit, poll=poll, run=run)


@contextlib.asynccontextmanager
async def by_replicate(url: str) -> AsyncGenerator[Client]:
    """`replicate`: predictions, and `async_wait`."""
    client = Replicate("r8_bench", base_url=url, timeout=httpx.Timeout(PATIENCE))

    async def submit(seconds: float) -> str:
        return (await client.predictions.async_create(version="v", input={"seconds": seconds})).id

    async def run(seconds: float, interval: float) -> float:
        client.poll_interval = interval
        prediction = await client.predictions.async_create(version="v", input={"seconds": seconds})
        await prediction.async_wait()
        assert prediction.output is not None
        ended: float = prediction.output["ended"]
        return ended

    yield Client(submit=submit, poll=client.predictions.async_get, run=run)
    await client._async_client.aclose()  # noqa: SLF001  (it has no other way to close)


@contextlib.asynccontextmanager
async def by_fal(url: str) -> AsyncGenerator[Client]:
    """`fal-client`: its queue. A run's result takes one more request."""
    fal_client.client.QUEUE_URL_FORMAT = f"{url}/"  # https by default, and not to be set otherwise
    fal_client.client.QUEUE_POLL_TIMEOUT = httpx.Timeout(PATIENCE)
    client = fal_client.AsyncClient(key="bench", default_timeout=PATIENCE)
    http = await client._client  # noqa: SLF001

    async def submit(seconds: float) -> str:
        return (await client.submit("a/b", {"seconds": seconds})).request_id

    async def poll(run: str) -> object:
        handle = fal_client.AsyncRequestHandle.from_request_id(http, "a/b", run)
        return await handle.status()

    async def run(seconds: float, interval: float) -> float:
        handle = await client.submit("a/b", {"seconds": seconds})
        ended: float = (await handle.get(interval=interval))["ended"]
        return ended

    yield Client(submit=submit, poll=poll, run=run)
    await http.aclose()


@contextlib.asynccontextmanager
async def by_openai(url: str) -> AsyncGenerator[Client]:
    """`openai`: responses in the background, and a loop, since it has none."""
    async with openai.AsyncOpenAI(api_key="bench", base_url=f"{url}/openai", timeout=PATIENCE) as client:

        async def submit(seconds: float) -> str:
            return (await client.responses.create(model="bench", input=str(seconds), background=True)).id

        async def run(seconds: float, interval: float) -> float:
            response = await client.responses.create(model="bench", input=str(seconds), background=True)
            while response.status != "completed":
                await asyncio.sleep(interval)
                response = await client.responses.retrieve(response.id)
            return float(json.loads(response.output_text))

        yield Client(submit=submit, poll=client.responses.retrieve, run=run)


def ours_limited(url: str) -> Any:
    """This library, with a key whose answers have the headers of a rate limit: the limiter does all of its work."""
    return ours(url, key=LIMITED_KEY)


PEERS: dict[str, Open] = {"replicate": by_replicate, "fal-client": by_fal, "openai": by_openai}
CLIENTS: dict[str, Open] = {
    "knouds_async": ours_limited,
    "aiohttp": by_aiohttp,
    "httpx on our transport": by_httpx_on_ours,
    "httpx": by_httpx,
    **PEERS,
}
