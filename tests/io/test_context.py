"""Whose context a request is made in: a submit in a copy of its caller's, the shared polls in nobody's."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import anyio
import httpx
import pytest
import trio

from knouds_async import AsyncKnouds, Job
from knouds_async._io.concurrency import uninterrupted
from knouds_async.testing.emulator import Emulator
from knouds_async.testing.transport import EmulatorTransport

SLUG = "my-thumbnail-pipeline"
INPUTS = {"product_name": "Knouds"}
NOBODY = "nobody"

request_id: ContextVar[str] = ContextVar("request_id")

Hook = Callable[[httpx.Request], Coroutine[Any, Any, None]]


def a_client(emulator: Emulator, hook: Hook) -> AsyncKnouds:
    """Return a client over a lent one that has a request hook."""
    http = httpx.AsyncClient(transport=EmulatorTransport(emulator, latency=0.1), event_hooks={"request": [hook]})
    return AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http)


class Requests:
    """A request hook that notes in whose context each request was made."""

    def __init__(self) -> None:
        self.submits: list[str] = []
        self.reads: list[str] = []
        self.polls: list[str] = []

    async def note(self, request: httpx.Request) -> None:
        is_poll = request.url.path.startswith(("/api/executions", "/api/usage"))
        seen = self.submits if request.method == "POST" else self.polls if is_poll else self.reads
        seen.append(request_id.get(NOBODY))


async def _for(caller: str, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
    request_id.set(caller)
    await work()


async def test_a_submit_is_made_in_its_callers_context(emulator: Emulator) -> None:
    """Each of several callers finds its own variables in the hooks of its own submit."""
    requests = Requests()
    async with a_client(emulator, requests.note) as knouds, anyio.create_task_group() as tasks:
        for caller in "abc":
            tasks.start_soon(_for, caller, lambda: knouds.workflows.submit(SLUG, INPUTS))
    assert sorted(requests.submits) == ["a", "b", "c"]


async def test_a_batch_submits_in_the_context_that_entered_it(emulator: Emulator) -> None:
    """The jobs of a map are sent in a copy of the context of whoever entered the batch."""
    requests = Requests()
    request_id.set("batch")
    jobs = [Job(key, INPUTS) for key in "abc"]
    async with a_client(emulator, requests.note) as knouds, knouds.workflows.map(SLUG, jobs) as outcomes:
        assert [outcome.job.key async for outcome in outcomes]
    assert requests.submits == ["batch"] * 3
    assert set(requests.polls) == {NOBODY}


async def test_what_a_submit_sets_stays_with_it(emulator: Emulator) -> None:
    """The context is a copy: a variable that a hook sets does not show in the caller."""

    async def sets(request: httpx.Request) -> None:
        request_id.set("the hook's")

    request_id.set("mine")
    async with a_client(emulator, sets) as knouds:
        await knouds.workflows.submit(SLUG, INPUTS)
    assert request_id.get() == "mine"


async def test_polls_belong_to_nobody(emulator: Emulator) -> None:
    """The polls, which all waiters share, see no variable of the one that happened to wait first."""
    requests = Requests()
    async with a_client(emulator, requests.note) as knouds:
        first, second = [await knouds.workflows.submit(SLUG, INPUTS) for _ in range(2)]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_for, "first", first.wait)
            await anyio.sleep(1)
            tasks.start_soon(_for, "second", second.wait)
    assert len(requests.polls) >= 2
    assert set(requests.polls) == {NOBODY}


async def test_a_look_that_a_caller_asks_for_is_its_own(emulator: Emulator) -> None:
    """`refresh`, like any call that is not shared, is made in its caller's context."""
    requests = Requests()
    async with a_client(emulator, requests.note) as knouds:
        execution = await knouds.workflows.submit(SLUG, INPUTS)
        request_id.set("mine")
        await execution.refresh()
        await knouds.whoami()
    assert requests.polls == requests.reads == ["mine"]


class Births(trio.abc.Instrument):
    """Notes the context that creates each task, as tracing tools read it."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def task_spawned(self, task: object) -> None:
        if "PollTask" in repr(task):
            self.seen.append(request_id.get(NOBODY))

    def task_factory(self, loop: Any, work: Any, **options: Any) -> asyncio.Task[Any]:
        if "PollTask" in repr(work):
            self.seen.append(request_id.get(NOBODY))
        return asyncio.Task(work, loop=loop, **options)


async def test_the_poller_is_created_from_within_an_empty_context(
    emulator: Emulator, anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    """Tools that read the context which creates a task find nothing of the caller that waits first."""
    births = Births()
    if anyio_backend[0] == "trio":
        trio.lowlevel.add_instrument(births)
    else:
        asyncio.get_running_loop().set_task_factory(births.task_factory)
    request_id.set("first")
    async with a_client(emulator, Requests().note) as knouds:
        await (await knouds.workflows.submit(SLUG, INPUTS)).wait()
    assert births.seen
    assert set(births.seen) == {NOBODY}


async def test_uninterrupted_work_sees_what_its_caller_has_set() -> None:
    """Work that cannot be cut runs in a copy of its caller's context."""
    request_id.set("mine")

    async def work() -> tuple[str, contextvars.Context]:
        seen = request_id.get()
        request_id.set("the work's")
        return seen, contextvars.copy_context()

    finished = await uninterrupted(work)
    assert finished.value[0] == "mine"
    assert finished.value[1][request_id] == "the work's"
    assert request_id.get() == "mine"


async def test_log_records_of_a_submit_can_name_its_caller(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """A filter that puts a context variable on log records finds the caller's in those of its submit."""

    def stamp(record: logging.LogRecord) -> bool:
        record.request_id = request_id.get(NOBODY)
        return True

    caplog.set_level(logging.DEBUG)
    caplog.handler.addFilter(stamp)
    request_id.set("mine")
    async with a_client(emulator, Requests().note) as knouds:
        await knouds.workflows.submit(SLUG, INPUTS)
    caplog.handler.removeFilter(stamp)
    records = [record for record in caplog.records if record.name in ("httpx", "knouds_async")]
    assert {getattr(record, "request_id", None) for record in records} == {"mine"}
