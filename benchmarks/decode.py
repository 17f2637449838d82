"""What large answers cost: a result of 5 MB and a page of 500 usage rows, from the socket to the value."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
import anyio
import httpx
from measure import OURS, Options, in_turns, ratio, show
from server import BIG, FOREVER, PLAIN_KEY, ROWS

from knouds_async import AsyncKnouds
from knouds_async._sansio import responses
from knouds_async._sansio.responses import Answer

__all__ = ["run"]

PATHS = {"a result of 5 MB": f"/api/executions/{BIG}", "500 rows of use": f"/api/usage?limit={ROWS}"}
JSON = "json.loads alone"
RECORDS = "records from the bytes, alone"

Get = Callable[[], Awaitable[object]]


@asynccontextmanager
async def _ours(url: str, what: str) -> AsyncGenerator[Get]:
    async with AsyncKnouds(PLAIN_KEY, base_url=url) as knouds:
        if "rows" in what:
            yield partial(knouds.usage.list, limit=ROWS)
        else:
            yield partial(knouds.executions.get, BIG)


@asynccontextmanager
async def _httpx(url: str, what: str) -> AsyncGenerator[Get]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:

        async def get() -> object:
            return (await http.get(PATHS[what])).json()

        yield get


@asynccontextmanager
async def _aiohttp(url: str, what: str) -> AsyncGenerator[Get]:
    async with aiohttp.ClientSession(url) as http:

        async def get() -> object:
            async with http.get(PATHS[what]) as reply:
                return await reply.json()

        yield get


@asynccontextmanager
async def _json(url: str, what: str) -> AsyncGenerator[Get]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        body = (await http.get(PATHS[what])).content

        async def get() -> object:
            return json.loads(body)

        yield get


@asynccontextmanager
async def _records(url: str, what: str) -> AsyncGenerator[Get]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        answer = Answer(200, {}, (await http.get(PATHS[what])).content)
        read = responses.usage_page if "rows" in what else responses.execution(BIG)

        async def get() -> object:
            return read(answer)

        yield get


CONTESTANTS = {
    OURS: _ours,
    "httpx and .json()": _httpx,
    "aiohttp and .json()": _aiohttp,
    RECORDS: _records,
    JSON: _json,
}


async def _turn(make: Callable[[str, str], Any], url: str, what: str, times: int) -> float:
    async with make(url, what) as get:
        await get()
        began = time.process_time()
        for _ in range(times):
            await get()
        return (time.process_time() - began) / times


def run(url: str, options: Options) -> dict[str, Any]:
    """Read both, print the tables, and return the figures."""
    for _ in range(ROWS):
        httpx.post(f"{url}/api/workflows/bench/run?async=true", json={"inputs": {"seconds": FOREVER}})
    found: dict[str, Any] = {}
    for what in PATHS:
        turns: dict[str, Callable[[], Any]] = {
            name: partial(anyio.run, partial(_turn, make, url, what, 5)) for name, make in CONTESTANTS.items()
        }
        measured = in_turns(turns, options.pick(15, 2))
        found[what] = {
            name: {"cpu_ms": statistics.median(each) * 1e3, "times_ours": ratio(each, measured[OURS])}
            for name, each in measured.items()
        }
        rows = [(name, each["cpu_ms"], each["times_ours"]) for name, each in found[what].items()]
        show(what, ("", "CPU ms", "CPU / ours"), rows)
    return found
