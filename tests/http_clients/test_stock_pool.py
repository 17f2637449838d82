"""A lent client's own pool: no cancellation may cost it a connection's place, and who waits in it was sent nothing."""

from __future__ import annotations

import importlib.util
import ssl
import sys
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
import pytest
from anyio.lowlevel import checkpoint

from knouds_async import AsyncKnouds, ConnectionFailedError, Retries, SubmissionUnknownError, Timeouts
from tests.io.proxies import proxying
from tests.io.scripted import AUTHORITY

SLUG = "my-thumbnail-pipeline"
EXECUTION = "550e8400-e29b-41d4-a716-446655440000"
MODULES = ["httpx", *(["httpx2"] if importlib.util.find_spec("httpx2") else [])]


def lend(module: str, **options: Any) -> httpx.AsyncClient:
    """Return a client of one of the modules that allows five connections."""
    own: Any = importlib.import_module(module)
    client: httpx.AsyncClient = own.AsyncClient(limits=own.Limits(max_connections=5), **options)
    return client


def on(service: Any, http: httpx.AsyncClient, url: str | None = None) -> AsyncKnouds:
    """Return a client over the lent one that tries once, and that no quota holds up."""
    once = Retries(attempts=1)
    return AsyncKnouds("k", tier="enterprise", base_url=url or service.url, http_client=http, retries=once)


class Wrapper(httpx.AsyncBaseTransport):
    """A slow transport of the caller's, around httpx's own."""

    def __init__(self, delay: float = 0.0) -> None:
        self.wrapped = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=5))
        self.delay = delay

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await anyio.sleep(self.delay)
        return await self.wrapped.handle_async_request(request)

    async def aclose(self) -> None:
        await self.wrapped.aclose()


async def _cancel_after(turns: int, call: Callable[[], Coroutine[Any, Any, object]]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        for _ in range(turns):
            await checkpoint()
        tasks.cancel_scope.cancel()


async def _churn(clients: list[AsyncKnouds]) -> None:
    """Make calls of several clients that are cancelled after each number of turns of the loop there may be."""
    for turns in range(0, 60, 2):
        async with anyio.create_task_group() as tasks:
            for later in range(5):
                for knouds in clients:
                    tasks.start_soon(_cancel_after, turns + later, knouds.whoami)


@pytest.mark.slow
@pytest.mark.parametrize("lent", [*MODULES, "wrapped"])
async def test_cancelled_calls_cost_the_pool_nothing(lent: str, service: Any) -> None:
    """After hundreds of reads that were cancelled at any moment, all of its connections can still be used."""
    service.delay = 0.005
    http = httpx.AsyncClient(transport=Wrapper()) if lent == "wrapped" else lend(lent)
    async with http:
        await _churn([on(service, http) for _ in range(3)])
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(on(service, http).whoami)


@pytest.mark.slow
async def test_nor_do_they_behind_a_proxy(tls_service: Any) -> None:
    """What is cancelled while a tunnel is dug costs no connection's place either."""
    tls_service.delay = 0.005
    trusted = ssl.create_default_context()
    AUTHORITY.configure_trust(trusted)
    async with proxying("http", urlsplit(tls_service.url).port or 0) as proxy:
        limits = httpx.Limits(max_connections=5)
        async with httpx.AsyncClient(proxy=proxy.url, verify=trusted, limits=limits) as http:
            clients = [on(tls_service, http, "https://knouds.test") for _ in range(3)]
            await _churn(clients)
            with anyio.fail_after(30):
                async with anyio.create_task_group() as tasks:
                    for knouds in clients * 3:
                        tasks.start_soon(knouds.whoami)


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_nor_do_native_cancellations(service: Any) -> None:
    """asyncio's own `Task.cancel`, which no shield holds against, reaches the pool as little."""
    import asyncio

    service.delay = 0.005
    async with lend("httpx") as http:
        clients = [on(service, http) for _ in range(3)]
        for turns in range(60):
            tasks = [asyncio.create_task(knouds.whoami()) for knouds in clients * 5]
            for task in tasks:
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait(tasks)
        with anyio.fail_after(20):
            await asyncio.gather(*(knouds.whoami() for knouds in clients * 5))


@pytest.mark.parametrize("module", MODULES)
async def test_a_caller_leaves_at_once(module: str, service: Any) -> None:
    """A cancelled call does not wait for its answer."""
    service.delay = 2.0
    async with lend(module) as http, AsyncKnouds("k", base_url=service.url, http_client=http) as knouds:
        with anyio.fail_after(1.5):
            with anyio.move_on_after(0.2) as scope:
                await knouds.whoami()
        assert scope.cancelled_caught


@pytest.mark.slow
async def test_submits_wait_in_our_line(service: Any) -> None:
    """More submits than the lent client has connections all end well, for the queue is ours."""
    service.delay = 0.1
    timeouts = Timeouts(submit=0.8)  # the queue takes longer than that
    async with (
        lend("httpx") as http,
        AsyncKnouds("k", tier="enterprise", base_url=service.url, http_client=http, timeouts=timeouts) as knouds,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(50):
            tasks.start_soon(knouds.workflows.submit, SLUG, {})
    assert service.paid == 50


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
async def test_a_submit_that_never_leaves_the_pool_is_not_unknown(module: str, service: Any) -> None:
    """When the owner's own requests hold every connection of the pool, the submit was certainly not sent."""
    service.delay = 1.0
    async with lend(module) as http, anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(http.get, f"{service.url}/held")
        await anyio.sleep(0.1)
        options: Any = {"retries": Retries(attempts=1), "timeouts": Timeouts(submit=0.3)}
        async with AsyncKnouds("k", base_url=service.url, http_client=http, **options) as knouds:
            with pytest.raises(ConnectionFailedError, match="PoolTimeout"):
                await knouds.workflows.submit(SLUG, {})
    assert service.paid == 0


async def test_a_cancelled_submit_is_finished_first(service: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A submit over a lent client is no more cut than over our own: its id is read, and logged."""
    service.delay = 0.6
    async with lend("httpx") as http, on(service, http) as knouds:
        with anyio.move_on_after(0.3):
            await knouds.workflows.submit(SLUG, {})
    assert service.paid == 1
    assert EXECUTION in caplog.text


async def test_a_submit_that_is_not_answered_in_time_is_unknown(service: Any) -> None:
    """The request has left by then, and is not sent again."""
    service.delay = 1.0
    timeouts = Timeouts(submit=0.6)
    async with (
        lend("httpx") as http,
        AsyncKnouds("k", base_url=service.url, http_client=http, timeouts=timeouts) as knouds,
    ):
        with pytest.raises(SubmissionUnknownError):
            await knouds.workflows.submit(SLUG, {})
    assert service.paid == 1


async def test_what_was_left_is_not_sent_later(service: Any) -> None:
    """A request that its caller left before it was sent never is, and keeps its place in our line until it ends."""
    async with httpx.AsyncClient(transport=Wrapper(delay=0.3)) as http, on(service, http) as knouds:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(knouds.whoami)
            await anyio.sleep(0.1)
            tasks.cancel_scope.cancel()
        assert knouds._pipeline._connections.in_use == 3
        with anyio.fail_after(20):
            while knouds._pipeline._connections.in_use:  # noqa: ASYNC110  (there is no event for it)
                await anyio.sleep(0.05)
        assert service.arrived == []


def test_modules_are_not_imported_for_it() -> None:
    """Neither httpx2 nor aiohttp is loaded for a client of httpx."""
    import subprocess

    code = "import sys, httpx, knouds_async; knouds_async.AsyncKnouds('k', http_client=httpx.AsyncClient());"
    code += "print({'httpx2', 'aiohttp'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603  (ours)
    assert run.stdout.strip() == "set()"
