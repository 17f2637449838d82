"""A delivery that reaches one process ends the wait in another; which were taken is known to all."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

from knouds_async import AsyncKnouds
from knouds_async.errors import ConfigurationError
from knouds_async.postgres import Postgres, bus_of
from knouds_async.testing import Emulator
from knouds_async.testing.transport import EmulatorTransport
from knouds_async.webhooks import WebhookEvent, WebhookReceiver
from tests.postgres.server import PASSWORD, Pooler, Server, shown, until
from tests.webhooks.sending import SECRET, Sender, payload

pytestmark = pytest.mark.slow

SLUG = "my-thumbnail-pipeline"


@asynccontextmanager
async def pod(emulator: Emulator, bus: Any, **options: Any) -> AsyncIterator[tuple[AsyncKnouds, Sender]]:
    """Run a pod: a client, and a receiver whose bus it hears."""
    async with (
        httpx.AsyncClient(transport=EmulatorTransport(emulator)) as http,
        AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http) as knouds,
    ):
        yield knouds, Sender(WebhookReceiver(SECRET, client=knouds, bus=bus, **options))


@pytest.fixture
def emulator() -> Emulator:
    """Return a service whose key has a webhook, and whose runs take an hour."""
    return Emulator(tier="enterprise", duration=3600.0, webhook_url="http://app.test/hook", webhook_secret=SECRET)


async def test_a_delivery_that_reaches_another_pod_ends_the_wait(
    server: Server, database: str, url: str, emulator: Emulator
) -> None:
    """The pod that waits polls the run once, at once, and has its result; it listens only as long as it waits."""
    buses = [Postgres(f"{url}?application_name=pod{number}") for number in range(2)]
    threads = [bus._thread_of(bus._url) for bus in buses]
    async with buses[0], buses[1], pod(emulator, buses[0]) as (knouds, _), pod(emulator, buses[1]) as (_, deliver):
        execution = await knouds.workflows.submit(SLUG, {"product_name": "Lamp"})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(execution.wait)
            await until(lambda: threads[0]._session is not None and threads[0]._session.is_listening)
            emulator.finish(execution.id)
            with anyio.fail_after(20):
                assert await deliver(payload(execution.id)) == 200
                await execution
        assert emulator.runs[0].polls == 1
        await until(lambda: threads[0]._session is not None and not threads[0]._session.is_listening)
    assert server.execute("SELECT count(*) FROM knouds_seen", database=database) == [(1,)]


async def test_after_a_lost_connection_every_run_is_polled_once(server: Server, url: str, emulator: Emulator) -> None:
    """What was said meanwhile is lost, so each run that is waited for is polled when it listens again."""
    bus = Postgres(url)
    thread = bus._thread_of(bus._url)
    async with bus, pod(emulator, bus) as (knouds, _):
        execution = await knouds.workflows.submit(SLUG, {"product_name": "Lamp"})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(execution.wait)
            await until(lambda: thread._session is not None and thread._session.is_listening)
            emulator.finish(execution.id)
            end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'knouds'"
            await anyio.to_thread.run_sync(server.execute, end)
            with anyio.fail_after(20):
                await execution
        assert emulator.runs[0].polls == 1


async def test_a_delivery_is_taken_by_one_pod(url: str, emulator: Emulator) -> None:
    """A delivery that comes again, to whichever pod, is answered and passed to no handler a second time."""
    handled: list[WebhookEvent] = []

    async def handler(event: WebhookEvent) -> None:
        handled.append(event)

    buses = [Postgres(f"{url}?application_name=pod{number}") for number in range(2)]
    async with (
        buses[0],
        buses[1],
        pod(emulator, buses[0], handler=handler) as (_, one),
        pod(emulator, buses[1], handler=handler) as (_, other),
    ):
        event = payload("5e0c9f10-3f41-4ce7-9b0f-2f6f8f1d2c3b")
        async with anyio.create_task_group() as tasks:
            for deliver in (one, other, one, other):
                tasks.start_soon(deliver, event)
        assert len(handled) == 1


async def test_a_handler_that_fails_leaves_the_delivery_to_the_next(url: str, emulator: Emulator) -> None:
    """It counts as not taken, so that the pod it comes to next handles it."""
    fails = [True]

    async def handler(event: WebhookEvent) -> None:
        if fails.pop() if fails else False:
            raise RuntimeError("not now")

    async with Postgres(url) as bus, pod(emulator, bus, handler=handler) as (_, deliver):
        event = payload("5e0c9f10-3f41-4ce7-9b0f-2f6f8f1d2c3b")
        with pytest.raises(RuntimeError):
            await deliver(event)
        assert await bus_of(bus).claim(f"{event['executionId']} execution.completed")


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_behind_a_pooler_runs_are_polled(
    server: Server, database: str, pooler: Pooler, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing can be heard, a run is polled as if there were no webhook, and one warning says why."""
    emulator = Emulator(tier="enterprise", duration=1.0, webhook_url="http://app.test/hook", webhook_secret=SECRET)
    async with Postgres(server.url(database, port=pooler.port)) as bus, pod(emulator, bus) as (knouds, _):
        for _ in range(2):
            with anyio.fail_after(20):
                await (await knouds.workflows.submit(SLUG, {"product_name": "Lamp"}))
    assert [each.levelno for each in caplog.records if "pooler" in each.message] == [logging.WARNING]


async def test_messages_of_others_are_ignored(url: str, emulator: Emulator) -> None:
    """Anybody with the database may say anything on the channel: what names no run wakes nobody and fails nothing."""
    heard: list[Any] = []
    async with Postgres(url) as shared:
        stop = bus_of(shared).listen(heard.append, lambda: None, lambda: None)
        thread = shared._thread_of(shared._url)
        await until(lambda: thread._session is not None and thread._session.is_listening)
        run = "5e0c9f10-3f41-4ce7-9b0f-2f6f8f1d2c3b"
        for said in ("", "[]", "{}", "{", json.dumps({"executionId": 7, "status": "completed"}), "[" * 5000):
            await shared.notify(said)
        await shared.notify(json.dumps({"executionId": run, "status": "completed"}))
        await until(lambda: bool(heard))
        stop()
    assert [state.execution_id for state in heard] == [run]


def test_a_bus_that_is_none_shows_no_password() -> None:
    """What is no URL is refused, and no frame of ours shows it."""
    for given in (f"https://u:{PASSWORD}@h", f"postgresql://u:{PASSWORD}@b@h/d"):
        with pytest.raises(ConfigurationError) as caught:
            WebhookReceiver(SECRET, bus=given)
        assert PASSWORD not in shown(caught.value)
