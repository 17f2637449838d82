"""AsyncKnouds: its life from construction to close, every endpoint, and what it refuses before any request."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import httpx
import pytest
import trio

from knouds_async import (
    AsyncKnouds,
    AsyncNotSupportedError,
    ClientClosedError,
    ConfigurationError,
    ExecutionFailedError,
    InvalidArgumentError,
    InvalidInputsError,
    InvalidSlugError,
    Limiter,
    ModelTierRequiredError,
    NotFoundError,
    SubmissionUnknownError,
    UsageRow,
    WrongEventLoopError,
)
from knouds_async.testing.emulator import Emulator
from knouds_async.testing.transport import EmulatorTransport

SLUG = "my-thumbnail-pipeline"
INPUTS = {"product_name": "Knouds"}


def on(emulator: Emulator, **options: Any) -> AsyncKnouds:
    """Return a client that the test closes, or not."""
    http = httpx.AsyncClient(transport=EmulatorTransport(emulator))
    return AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http, **options)


# Every endpoint.


async def test_whoami_pricing_and_health(knouds: AsyncKnouds) -> None:
    """The account, the public prices and the health are read."""
    account = await knouds.whoami()
    assert (account.tier, account.role, account.approved) == ("business", "user", True)
    assert (await knouds.pricing()).raw
    assert (await knouds.health()).raw is not None


async def test_the_public_endpoints_send_no_key() -> None:
    """public_schema, pricing and health go out without the key; everything else carries it."""
    keyed: dict[str, bool] = {}

    def answer(request: httpx.Request) -> httpx.Response:
        keyed[request.url.path] = "x-api-key" in request.headers
        return httpx.Response(200, json={})

    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    knouds = AsyncKnouds("k", base_url="https://knouds.test", http_client=http)
    await knouds.pricing()
    await knouds.health()
    await knouds.workflows.public_schema("a")
    await knouds.whoami()
    assert keyed == {
        "/api/pricing/public": False,
        "/api/health": False,
        "/api/workflows/a/public-schema": False,
        "/api/whoami": True,
    }


async def test_a_synchronous_run_gives_its_result(knouds: AsyncKnouds) -> None:
    """`run` waits for the server and gives the result, of a workflow and of a model."""
    run = await knouds.workflows.run(SLUG, INPUTS)
    assert run.images
    assert run.cost == 12
    assert (await knouds.models.run("claude-sonnet", {"prompt": "hello"})).execution_id is None


async def test_a_synchronous_run_that_fails_says_so(make_client: Any) -> None:
    """500 EXECUTION_FAILED is the run's own failure."""
    knouds = make_client(Emulator(tier="business", duration=5.0, failure_rate=1.0))
    with pytest.raises(ExecutionFailedError) as caught:
        await knouds.workflows.run(SLUG, INPUTS)
    assert caught.value.code == "EXECUTION_FAILED"
    assert caught.value.may_have_run


async def test_a_synchronous_run_that_takes_too_long_is_unknown(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """A time-out after the request left is unknown, with target and time, and is not sent again."""
    with pytest.raises(SubmissionUnknownError, match=SLUG) as caught:
        await knouds.workflows.run(SLUG, INPUTS, timeout=10)
    assert caught.value.target == f"workflows/{SLUG}"
    assert len(emulator.runs) == 1


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "x"])
async def test_an_impossible_run_timeout_is_refused(knouds: AsyncKnouds, emulator: Emulator, timeout: Any) -> None:
    """A timeout that is no number of seconds is refused before any request."""
    with pytest.raises(InvalidArgumentError, match="timeout"):
        await knouds.workflows.run(SLUG, INPUTS, timeout=timeout)
    assert emulator.requests.count == 0


async def test_a_model_is_submitted(knouds: AsyncKnouds) -> None:
    """A model whose provider can be polled is submitted; others say to run them synchronously."""
    assert (await (await knouds.models.submit("gpt-image-2", {"prompt": "a cloud"}))).images
    with pytest.raises(AsyncNotSupportedError, match=r"\.run"):
        await knouds.models.submit("claude-sonnet", {"prompt": "hello"})


async def test_models_need_a_tier(make_client: Any) -> None:
    """A refusal for the tier is typed and says what to do."""
    knouds = make_client(Emulator(tier="pro"))
    with pytest.raises(ModelTierRequiredError, match="upgrade"):
        await knouds.models.submit("gpt-image-2", {"prompt": "a cloud"})


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda w: w.create(5), "name=5"),
        (lambda w: w.create(None), "name=None"),
        (lambda w: w.create("x", tags="red"), "tags='red'"),
        (lambda w: w.create("x", nodes={"id": "1"}), "nodes={'id': '1'}"),
        (lambda w: w.create("x", edges=b"[]"), "edges=b'\\[\\]'"),
        (lambda w: w.create("x", viewport=[0, 0, 1]), "viewport="),
        (lambda w: w.create("x", public_playground="yes"), "publicPlayground='yes'"),
        (lambda w: w.update("x", {"name": "y"}), "workflow={'name': 'y'}"),
        (lambda w: w.update("x", description=5), "description=5"),
        (lambda w: w.update("x"), "nothing to update"),
        (lambda w: w.move("x", 5), "folder_id=5"),
    ],
)
async def test_a_workflow_of_the_wrong_types_is_not_sent(
    knouds: AsyncKnouds, emulator: Emulator, call: Callable[[Any], Any], named: str
) -> None:
    """Fields of types that the service cannot mean are refused by name, before any request."""
    with pytest.raises(InvalidArgumentError, match=named):
        await call(knouds.workflows)
    assert not emulator.requests


@pytest.mark.parametrize("target", [5, "my-slug", "folders/x", b"workflows/x"], ids=repr)
def test_a_handle_is_of_a_target(emulator: Emulator, target: Any) -> None:
    """What is no target is refused when a run is attached, not when its waiting fails."""
    with pytest.raises(InvalidArgumentError, match="target"):
        AsyncKnouds(emulator.api_key, base_url="https://knouds.test").executions.attach("abc", target)


async def test_a_workflow_is_created_changed_moved_and_deleted(knouds: AsyncKnouds) -> None:
    """Workflows are written, read back and written again without loss."""
    node = {"id": "n1", "type": "requestInput", "position": {"x": 0, "y": 0}, "data": {}}
    made = await knouds.workflows.create("My poster", nodes=[node], edges=[], tags=["a"])
    again = await knouds.workflows.create("My poster")
    assert (made.slug, again.slug) == ("my-poster", "my-poster-2")
    read = await knouds.workflows.get("my-poster")
    assert read.nodes == (node,)
    await knouds.workflows.update("my-poster", read, description="for walls")
    changed = await knouds.workflows.get("my-poster")
    assert (changed.description, changed.nodes, changed.tags) == ("for walls", (node,), ("a",))
    await knouds.workflows.move("my-poster", "folder-1")
    listed = {row.slug: row for row in await knouds.workflows.list()}
    assert listed["my-poster"].folder_id == "folder-1"
    await knouds.workflows.delete("my-poster")
    with pytest.raises(NotFoundError):
        await knouds.workflows.get("my-poster")


async def test_the_schemas_are_read(knouds: AsyncKnouds) -> None:
    """A workflow's inputs are listed; one that is not public has no public schema."""
    schema = await knouds.workflows.schema(SLUG)
    assert {field.name for field in schema.fields} >= {"product_name", "style", "count"}
    with pytest.raises(NotFoundError):
        await knouds.workflows.public_schema("no-such-workflow")


async def test_usage_is_listed_and_walked(knouds: AsyncKnouds) -> None:
    """A page has rows and a total, `iter` walks all pages without repeating a row, `models` names what was used."""
    for _ in range(7):
        await (await knouds.workflows.submit(SLUG, INPUTS))
    page = await knouds.usage.list(limit=3, offset=1, workflow_slug=SLUG)
    assert (len(page.rows), page.total) == (3, 7)
    rows = [row async for row in knouds.usage.iter(page_size=2)]
    assert len({row.id for row in rows}) == 7
    assert isinstance(rows[0], UsageRow)
    assert await knouds.usage.models()


# Refused before any request.


@pytest.mark.parametrize("slug", ["../..", "x?async=false&", "x#y", "", "Upper", "a/b", "a\n", None, 7])
async def test_a_malformed_slug_is_named_and_nothing_is_sent(
    knouds: AsyncKnouds, emulator: Emulator, slug: Any
) -> None:
    """Slugs that could change the path are refused, with the value named."""
    for refused in (knouds.workflows.submit(slug, {}), knouds.models.run(slug, {}), knouds.workflows.get(slug)):
        with pytest.raises(InvalidSlugError) as caught:
            await refused
        assert repr(slug)[:50] in str(caught.value)
        assert not caught.value.may_have_run
    assert emulator.requests.count == 0


@pytest.mark.parametrize("inputs", [None, [1], "x", {"a": float("nan")}, {"a": {1, 2}}, {1: 2}, {"a": b"x"}])
async def test_inputs_that_are_not_json_are_refused(knouds: AsyncKnouds, emulator: Emulator, inputs: Any) -> None:
    """Inputs that JSON cannot say are refused with the place, and nothing is sent."""
    with pytest.raises(InvalidInputsError, match="inputs"):
        await knouds.workflows.submit(SLUG, inputs)
    assert emulator.requests.count == 0


@pytest.mark.parametrize("limit", [0, 501, 1.5, True])
async def test_an_impossible_page_is_refused(knouds: AsyncKnouds, emulator: Emulator, limit: Any) -> None:
    """A page has 1 to 500 rows; anything else is refused at once, also by `iter`."""
    with pytest.raises(InvalidArgumentError, match="limit"):
        await knouds.usage.list(limit=limit)
    with pytest.raises(InvalidArgumentError, match="limit"):
        knouds.usage.iter(page_size=limit)
    assert emulator.requests.count == 0


def test_a_client_without_a_key_says_how_to_set_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key is a ConfigurationError that names $KNOUDS_KEY."""
    monkeypatch.delenv("KNOUDS_KEY", raising=False)
    with pytest.raises(ConfigurationError, match=r"\$KNOUDS_KEY"):
        AsyncKnouds()


@pytest.mark.parametrize(
    "options",
    [
        {"tier": "platinum"},
        {"max_connections": 0},
        {"base_url": "http://knouds.ai"},
        {"limiter": "pro"},
        {"http_client": "https"},
        {"http_client": {}},
        {"http_client": httpx.AsyncClient},
        {"polling": 5},
        {"retries": 3},
        {"timeouts": 30},
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    """A bad option is named at construction."""
    value = str(next(iter(options.values())))
    with pytest.raises(ConfigurationError, match=re.escape(value)):
        AsyncKnouds("k", **options)


def test_a_synchronous_client_is_refused() -> None:
    """It has a `send`, too, and would block the event loop: the error says what to lend instead."""
    with httpx.Client() as http, pytest.raises(ConfigurationError, match=r"synchronous.*lend an httpx\.AsyncClient"):
        AsyncKnouds("k", http_client=http)  # type: ignore[arg-type,unused-ignore]  # pyright: ignore[reportArgumentType]


def test_the_repr_shows_the_service_only() -> None:
    """Neither the client nor what it is made of shows the key."""
    knouds = AsyncKnouds("knouds_live_canary", base_url="http://127.0.0.1:1")
    assert repr(knouds) == "<AsyncKnouds http://127.0.0.1:1>"


def test_a_client_is_not_copied() -> None:
    """Copying and pickling are refused with what to do instead, and the half-made copy can be shown in a traceback."""
    knouds = AsyncKnouds("knouds_live_canary", base_url="http://127.0.0.1:1")
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="build one in each process"):
            duplicate(knouds)
    assert repr(AsyncKnouds.__new__(AsyncKnouds)) == "<AsyncKnouds unfinished>"


# Its life.


async def test_it_works_without_async_with(emulator: Emulator) -> None:
    """A client that is never entered works, and may be closed by hand, twice."""
    knouds = on(emulator)
    assert await knouds.whoami()
    await knouds.aclose()
    await knouds.aclose()
    with pytest.raises(ClientClosedError):
        await knouds.whoami()


async def test_closing_one_that_was_never_used_is_fine() -> None:
    """A client that sent nothing closes at once."""
    await AsyncKnouds("k").aclose()


@pytest.mark.parametrize("first", [0, 1])
async def test_two_clients_close_in_any_order(emulator: Emulator, first: int) -> None:
    """Clients are not nested in each other: either may be closed first, while the other has runs out."""
    clients = [on(emulator), on(emulator)]
    handles = [await client.workflows.submit(SLUG, INPUTS) for client in clients]
    await clients[first].aclose()
    assert await handles[1 - first]
    await clients[1 - first].aclose()


async def test_it_may_be_entered_in_one_task_and_left_in_another(emulator: Emulator) -> None:
    """As fixtures do: enter and leave in different tasks, with runs awaited in between."""
    knouds = on(emulator)
    handles = []

    async def enter() -> None:
        await knouds.__aenter__()
        handles.append(await knouds.workflows.submit(SLUG, INPUTS))

    async def leave() -> None:
        await handles[0]
        await knouds.__aexit__(None, None, None)

    for step in (enter, leave):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(step)


async def test_it_may_live_in_an_async_generator_that_is_left_early(emulator: Emulator) -> None:
    """`yield` inside `async with` of the client, and a `break`: no consumer dies of it."""

    async def states() -> AsyncIterator[str]:
        async with on(emulator) as knouds:
            async for state in (await knouds.workflows.submit(SLUG, INPUTS)).updates():
                yield str(state.status)

    stream = states()
    async for status in stream:
        assert status == "processing"
        break
    await stream.aclose()  # type: ignore[attr-defined]


async def test_it_may_be_entered_under_a_scope(emulator: Emulator) -> None:
    """A cancel scope entered before and left inside the client's block does no harm."""
    knouds = on(emulator)
    with anyio.move_on_after(100):
        await knouds.__aenter__()
    assert await knouds.whoami()
    await knouds.aclose()


async def test_closing_is_safe_when_cancelled(emulator: Emulator) -> None:
    """A cancelled scope round `aclose` leaves a closed client."""
    knouds = on(emulator)
    await knouds.whoami()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await knouds.aclose()
    with pytest.raises(ClientClosedError):
        await knouds.whoami()


@pytest.mark.parametrize("run", [asyncio.run, lambda coroutine: trio.run(lambda: coroutine)], ids=["asyncio", "trio"])
def test_a_second_event_loop_is_refused(run: Any, emulator: Emulator) -> None:
    """A client used in one loop raises WrongEventLoopError in the next, at once, every time."""
    knouds = on(emulator)
    assert run(knouds.whoami()).tier == "business"
    for _ in range(2):
        with pytest.raises(WrongEventLoopError, match="one client"):
            run(knouds.whoami())
    with pytest.raises(WrongEventLoopError):
        run(knouds.aclose())


def test_a_module_level_client_is_built_outside_any_loop(emulator: Emulator) -> None:
    """A client is built before the loop starts and used inside it."""
    knouds = on(emulator)

    async def main() -> float | None:
        return (await (await knouds.workflows.submit(SLUG, INPUTS, expected=0.05))).cost

    emulator.duration = 0.01
    assert asyncio.run(main()) == 12


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_dropped_client_leaves_no_task(emulator: Emulator) -> None:
    """A client that is dropped without a close leaves nothing running."""
    before = len(asyncio.all_tasks())
    knouds = on(emulator)
    await (await knouds.workflows.submit(SLUG, INPUTS))
    del knouds
    await anyio.sleep(1)
    gc.collect()
    assert len(asyncio.all_tasks()) == before


async def test_a_callers_http_client_is_never_closed(emulator: Emulator) -> None:
    """`aclose` leaves the caller's own httpx client open."""
    http = httpx.AsyncClient(transport=EmulatorTransport(emulator))
    await AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http).aclose()
    assert not http.is_closed
    await http.aclose()


async def test_clients_of_one_account_share_a_limiter(make_client: Any) -> None:
    """Two clients with one limiter draw on one quota, and provoke no 429."""
    emulator = Emulator(tier="pro", limit=5, duration=1.0)
    limiter = Limiter("pro")
    clients = [make_client(emulator, limiter=limiter), make_client(emulator, limiter=limiter)]
    async with anyio.create_task_group() as tasks:
        for index in range(12):
            tasks.start_soon(clients[index % 2].workflows.submit, SLUG, {"product_name": str(index)})
    assert len(emulator.runs) == 12
    emulator.assert_no_429()
    assert clients[0].limiter is clients[1].limiter
