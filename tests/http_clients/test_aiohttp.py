"""Clients of httpx-aiohttp: aiohttp's connector proves that nothing was sent, its other errors prove nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import anyio
import anyio.abc
import httpx
import pytest

from knouds_async import AsyncKnouds, ConnectionFailedError, Retries, SubmissionUnknownError, Timeouts

aiohttp: Any = pytest.importorskip("aiohttp")
httpx_aiohttp: Any = pytest.importorskip("httpx_aiohttp")

SLUG = "my-thumbnail-pipeline"


@pytest.fixture
def anyio_backend() -> str:
    """Run the test on asyncio, for aiohttp knows no other."""
    return "asyncio"


def on(url: str, http: Any, **options: Any) -> AsyncKnouds:
    """Return a client over the lent one that tries once."""
    return AsyncKnouds("the-key", base_url=url, http_client=http, retries=Retries(attempts=1), **options)


@pytest.fixture(params=["HttpxAiohttpClient", "Httpx2AiohttpClient"])
def http_client(request: pytest.FixtureRequest) -> Any:
    """Return a client of httpx-aiohttp, of httpx and of httpx2."""
    if request.param == "HttpxAiohttpClient":
        return httpx_aiohttp.HttpxAiohttpClient()
    pytest.importorskip("httpx2")
    return pytest.importorskip("httpx_aiohttp.httpx2").Httpx2AiohttpClient()


async def test_calls_go_through_it(service: Any, http_client: Any) -> None:
    """Reads and submits arrive once each, with the key."""
    async with http_client as http, on(service.url, http) as knouds:
        assert (await knouds.whoami()).tier == "business"
        execution = await knouds.workflows.submit(SLUG, {"a": 1})
        assert (await knouds.executions.get(execution.id)).is_final
    assert service.paid == 1
    assert {request.headers["x-api-key"] for request in service.arrived} == {"the-key"}


async def test_a_refused_connection_was_sent_nothing(free_port: int, http_client: Any) -> None:
    """The connector's error proves it."""
    async with http_client as http, on(f"http://127.0.0.1:{free_port}", http) as knouds:
        with pytest.raises(ConnectionFailedError, match="not sent"):
            await knouds.workflows.submit(SLUG, {})


async def test_a_host_that_is_not_known_was_sent_nothing() -> None:
    """A name that cannot be resolved is the connector's failure."""

    class Resolver(aiohttp.abc.AbstractResolver):  # type: ignore[misc]
        async def resolve(self, *args: object, **options: object) -> list[Any]:
            raise OSError("no such host")

        async def close(self) -> None:
            pass

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=Resolver()))
    transport = httpx_aiohttp.AiohttpTransport(client=session)
    async with (
        httpx_aiohttp.HttpxAiohttpClient(transport=transport) as http,
        on("https://nowhere.test", http) as knouds,
    ):
        with pytest.raises(ConnectionFailedError, match="not sent"):
            await knouds.workflows.submit(SLUG, {})


async def test_a_certificate_that_is_not_trusted_was_sent_nothing(service: Any) -> None:
    """A TLS handshake that fails is the connector's failure, too."""
    url = service.url.replace("http:", "https:")
    async with httpx_aiohttp.HttpxAiohttpClient() as http, on(url, http) as knouds:
        with pytest.raises(ConnectionFailedError, match="not sent"):
            await knouds.workflows.submit(SLUG, {})


async def test_a_connect_time_out_was_sent_nothing() -> None:
    """A connection that does not come about in time, or a pool that has none, proves it."""

    class Slow(aiohttp.abc.AbstractResolver):  # type: ignore[misc]
        async def resolve(self, *args: object, **options: object) -> list[Any]:
            await anyio.sleep_forever()
            raise AssertionError

        async def close(self) -> None:
            pass

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=Slow()))
    transport = httpx_aiohttp.AiohttpTransport(client=session)
    timeouts = Timeouts(connect=0.05, submit=0.5)
    async with (
        httpx_aiohttp.HttpxAiohttpClient(transport=transport) as http,
        on("https://slow.test", http, timeouts=timeouts) as knouds,
    ):
        with pytest.raises(ConnectionFailedError, match="not sent"):
            await knouds.workflows.submit(SLUG, {})


async def test_a_proxy_that_refuses_was_sent_nothing() -> None:
    """What is asked of a proxy is not the request: a tunnel that it refuses has carried nothing."""

    async def refuse(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port: int = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610  (not Django's)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, refuse)
        http = httpx_aiohttp.HttpxAiohttpClient(proxy=f"http://127.0.0.1:{port}")
        async with http, on("https://knouds.test", http) as knouds:
            with pytest.raises(ConnectionFailedError, match="not sent"):
                await knouds.workflows.submit(SLUG, {})
        tasks.cancel_scope.cancel()


async def test_a_server_that_hangs_up_leaves_the_submit_unknown(service: Any, http_client: Any) -> None:
    """httpx-aiohttp calls it a ConnectTimeout, and the server had the request all the same: it is sent once."""
    service.mute = True
    async with http_client as http:
        knouds = AsyncKnouds("k", base_url=service.url, http_client=http)
        with pytest.raises(SubmissionUnknownError, match="ConnectTimeout"):
            await knouds.workflows.submit(SLUG, {})
    assert service.paid == 1


async def test_a_read_time_out_leaves_the_submit_unknown(service: Any) -> None:
    """The answer is late: the run may have begun."""
    service.delay = 1.0
    async with httpx_aiohttp.HttpxAiohttpClient() as http:
        knouds = AsyncKnouds("k", base_url=service.url, http_client=http, timeouts=Timeouts(submit=0.6))
        with pytest.raises(SubmissionUnknownError):
            await knouds.workflows.submit(SLUG, {})
    assert service.paid == 1


async def test_a_transport_that_wraps_it_proves_nothing(free_port: int) -> None:
    """A transport of the owner's may have sent the request before, whatever error it ends with."""

    class Retrying(httpx_aiohttp.AiohttpTransport):  # type: ignore[misc]
        pass

    async with httpx_aiohttp.HttpxAiohttpClient(transport=Retrying()) as http:
        with pytest.raises(SubmissionUnknownError):
            await on(f"http://127.0.0.1:{free_port}", http).workflows.submit(SLUG, {})


async def _sends_again(request: Any, handler: Any) -> Any:
    """Fail to connect after a request that was not answered, as a middleware that sends again may."""
    try:
        return await handler(request)
    except aiohttp.ClientError:
        raise aiohttp.ClientConnectorError(request.connection_key, OSError(111, "refused")) from None


class _SendsAgain(httpx_aiohttp.HttpxAiohttpClient):  # type: ignore[misc]
    async def send(self, request: Any, **options: Any) -> Any:
        try:
            return await super().send(request, **options)
        except httpx.ConnectTimeout:
            raise httpx.ConnectError("refused") from aiohttp.ConnectionTimeoutError()


def _session() -> Any:
    return aiohttp.ClientSession(middlewares=(_sends_again,))


CLIENTS_THAT_SEND_AGAIN: dict[str, Callable[[], Any]] = {
    "middleware": lambda: httpx_aiohttp.AiohttpTransport(client=_session()),
    "middleware, made later": lambda: httpx_aiohttp.AiohttpTransport(client=_session),
    "send": httpx_aiohttp.AiohttpTransport,
}


@pytest.mark.parametrize("how", CLIENTS_THAT_SEND_AGAIN)
async def test_a_client_that_may_send_again_below_proves_nothing(how: str, service: Any) -> None:
    """A second attempt that meets no connection is no proof of the first: the submit is unknown, and made once."""
    if "middlewares" not in inspect.signature(aiohttp.ClientSession).parameters and how != "send":
        pytest.skip("aiohttp has middlewares since 3.12")
    service.mute = True
    kind = _SendsAgain if how == "send" else httpx_aiohttp.HttpxAiohttpClient
    async with kind(transport=CLIENTS_THAT_SEND_AGAIN[how]()) as http:
        with pytest.raises(SubmissionUnknownError):
            await AsyncKnouds("k", base_url=service.url, http_client=http).workflows.submit(SLUG, {})
    assert service.paid == 1


async def test_a_session_that_is_made_later_proves_what_others_do(free_port: int) -> None:
    """A transport may be given what makes its session."""
    transport = httpx_aiohttp.AiohttpTransport(client=aiohttp.ClientSession)
    url = f"http://127.0.0.1:{free_port}"
    async with httpx_aiohttp.HttpxAiohttpClient(transport=transport) as http, on(url, http) as knouds:
        with pytest.raises(ConnectionFailedError, match="not sent"):
            await knouds.workflows.submit(SLUG, {})


async def test_submits_wait_in_our_line(service: Any) -> None:
    """As many calls leave at once as aiohttp's connector allows, and the others wait where it costs them nothing."""
    service.delay = 0.05
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=4))
    transport = httpx_aiohttp.AiohttpTransport(client=session)
    async with (
        httpx_aiohttp.HttpxAiohttpClient(transport=transport) as http,
        on(service.url, http, tier="enterprise", timeouts=Timeouts(submit=0.3)) as knouds,
        anyio.create_task_group() as tasks,
    ):
        assert knouds._pipeline._connections.limit == 4
        for _ in range(40):
            tasks.start_soon(knouds.workflows.submit, SLUG, {})
    assert service.paid == 40
