"""AsyncKnouds: its life from construction to close, every endpoint, and what it refuses before any request."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import re
import ssl
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest
import trio

from knouds_async import (
    AsyncKnouds,
    ClientClosedError,
    ConfigurationError,
    Limiter,
    WrongEventLoopError,
)
from knouds_async.testing.emulator import Emulator
from knouds_async.testing.transport import EmulatorTransport
from tests.scripted_client import scripted

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


# Refused before any request.


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
        {"max_connections": True},
        {"base_url": "http://knouds.ai"},
        {"limiter": "pro"},
        {"http_client": "https"},
        {"http_client": {}},
        {"http_client": httpx.AsyncClient},
        {"polling": 5},
        {"retries": 3},
        {"timeouts": 30},
        {"allow_insecure_http": "false"},
        {"telemetry": "off"},
        {"tracer_provider": 5},
        {"meter_provider": 6},
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    """A bad option is named at construction."""
    value = str(next(iter(options.values())))
    with pytest.raises(ConfigurationError, match=re.escape(value)):
        AsyncKnouds("k", **options)


OF_THE_KEY = ["tier", "limiter", "http_client", "ssl_context", "media_hosts", "durations", "polling", "max_connections"]


@pytest.mark.parametrize("name", OF_THE_KEY)
def test_a_key_in_the_place_of_an_option_is_not_shown(name: str) -> None:
    """What was meant as the key shows in no message, wherever it was given."""
    options: dict[str, Any] = {name: "knouds_live_CANARY0123"}
    with pytest.raises(ConfigurationError, match=name) as refused:
        AsyncKnouds("k", **options)
    assert "CANARY" not in str(refused.value)


def test_a_synchronous_client_is_refused() -> None:
    """It has a `send`, too, and would block the event loop: the error says what to lend instead."""
    with httpx.Client() as http, pytest.raises(ConfigurationError, match=r"synchronous.*lend an httpx\.AsyncClient"):
        AsyncKnouds("k", http_client=http)  # type: ignore[arg-type,unused-ignore]  # pyright: ignore[reportArgumentType]


def test_certificates_are_verified_by_a_lent_client() -> None:
    """A context that nobody would use is refused: who gave it counts on it."""
    with pytest.raises(ConfigurationError, match=r"ssl_context= .*http_client="):
        AsyncKnouds("k", http_client=httpx.AsyncClient(), ssl_context=ssl.create_default_context())


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
    """Clients are not nested in each other: either may be closed first, while the other has runs in flight."""
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
    """`yield` inside `async with` of the client, and a `break`: the consumer gets no error."""

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
    """`aclose` in a cancelled scope leaves a closed client."""
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


async def test_closing_ends_submits_that_wait_in_line(make_client: Any) -> None:
    """A submit that waits for its turn when the client closes ends at once and is never sent."""
    emulator = Emulator(tier="pro", limit=1, duration=5.0)
    knouds = make_client(emulator)
    await knouds.workflows.submit(SLUG, INPUTS)
    ended: list[float] = []

    async def late() -> None:
        with pytest.raises(ClientClosedError):
            await knouds.workflows.submit(SLUG, INPUTS)
        ended.append(anyio.current_time())

    closed = anyio.current_time() + 1
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(late)
        await anyio.sleep_until(closed)
        await knouds.aclose()
    assert ended == pytest.approx([closed], abs=0.1)
    await anyio.sleep(200)
    assert len(emulator.runs) == 1


async def test_default_parameters_of_a_callers_client_do_not_change_the_call(emulator: Emulator) -> None:
    """A caller's `params` must not turn a submit into a synchronous run."""
    http = httpx.AsyncClient(transport=EmulatorTransport(emulator), params={"tenant": "a"})
    async with http, AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http) as knouds:
        execution = await knouds.workflows.submit(SLUG, INPUTS)
        assert emulator.runs[0].is_async
        assert await execution.wait()


async def test_an_absurd_clock_of_the_service_breaks_nothing() -> None:
    """A `Date` in the year 9999 is no time, and every later call works."""
    date = {"date": "Fri, 31 Dec 9999 23:59:59 GMT"}
    knouds = scripted(lambda request: httpx.Response(200, json={"user": {}}, headers=date))
    for _ in range(3):
        assert await knouds.whoami() is not None


async def test_a_refusal_that_asks_for_no_pause_is_not_hammered() -> None:
    """429 with `Retry-After: 0` is asked again at most once a second."""
    asked: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(anyio.current_time())
        if len(asked) < 10:
            return httpx.Response(429, json={"error": "slow down"}, headers={"retry-after": "0"})
        return httpx.Response(200, json={"user": {}})

    await scripted(answer).whoami()
    assert asked[-1] - asked[0] >= 9
