"""What the owner of a lent client has it do before a request is sent: when that fails, nothing was sent."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextvars import ContextVar
from typing import Any

import anyio
import httpx
import pytest
import respx

from knouds_async import AsyncKnouds, ConnectionFailedError, Retries, SubmissionUnknownError, Timeouts
from knouds_async.testing.emulator import Emulator
from knouds_async.testing.transport import EmulatorTransport
from knouds_async.testing.virtual_time import BACKENDS, virtual_backend

SLUG = "my-thumbnail-pipeline"
INPUTS = {"product_name": "Knouds"}

unset: ContextVar[str] = ContextVar("unset")


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run the test on both backends, in virtual time."""
    return virtual_backend(request.param)


def lend(emulator: Emulator, **options: Any) -> httpx.AsyncClient:
    """Return a client on the emulator with hooks or an auth of its owner's."""
    return httpx.AsyncClient(transport=EmulatorTransport(emulator), **options)


def on(emulator: Emulator, http: httpx.AsyncClient, **options: Any) -> AsyncKnouds:
    """Return a client over the lent one that tries twice."""
    retries = Retries(attempts=2)
    return AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http, retries=retries, **options)


async def _reads_what_is_not_set(request: httpx.Request) -> None:
    request.headers["x-request-id"] = unset.get()


async def _fails_with_the_content(request: httpx.Request) -> None:
    raise ValueError(f"{len(request.content)} bytes are too many for {request.url.path}")


async def _times_out(request: httpx.Request) -> None:
    raise httpx.ReadTimeout("the token service was silent", request=request)


HOOKS = [_reads_what_is_not_set, _fails_with_the_content, _times_out]


@pytest.mark.parametrize("hook", HOOKS)
async def test_a_request_hook_that_fails_has_sent_nothing(hook: Any, emulator: Emulator) -> None:
    """A submit whose request hook raises, whatever it raises, is certainly not sent."""
    http = lend(emulator, event_hooks={"request": [hook]})
    async with http, on(emulator, http) as knouds:
        with pytest.raises(ConnectionFailedError, match="not sent") as caught:
            await knouds.workflows.submit(SLUG, INPUTS)
        assert not caught.value.may_have_run
        assert emulator.requests.count == 0


async def test_a_request_hook_that_fails_once_costs_one_attempt(emulator: Emulator) -> None:
    """What was not sent is sent again, and runs once."""
    calls: list[str] = []

    async def fails_once(request: httpx.Request) -> None:
        calls.append(request.method)
        if len(calls) == 1:
            raise LookupError("no token yet")

    http = lend(emulator, event_hooks={"request": [fails_once]})
    async with http, on(emulator, http) as knouds:
        await knouds.workflows.submit(SLUG, INPUTS)
    assert calls == ["POST", "POST"]
    assert len(emulator.runs) == 1


async def test_a_request_hook_that_takes_too_long_has_sent_nothing(emulator: Emulator) -> None:
    """The time of a submit that is used up in a hook is not one in which anything ran."""

    async def hangs(request: httpx.Request) -> None:
        await anyio.sleep_forever()

    http = lend(emulator, event_hooks={"request": [hangs]})
    async with http, on(emulator, http, timeouts=Timeouts(submit=5)) as knouds:
        with pytest.raises(ConnectionFailedError):
            await knouds.workflows.submit(SLUG, INPUTS)
    assert emulator.requests.count == 0


async def test_a_response_hook_that_fails_leaves_the_submit_unknown(emulator: Emulator) -> None:
    """The service has the request by then: it is never sent again."""

    async def fails(response: httpx.Response) -> None:
        raise LookupError("no span")

    http = lend(emulator, event_hooks={"response": [fails]})
    async with http, on(emulator, http) as knouds:
        with pytest.raises(SubmissionUnknownError):
            await knouds.workflows.submit(SLUG, INPUTS)
    assert len(emulator.runs) == 1


class _TokenAuth(httpx.Auth):
    """Fetches a token first, which fails."""

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        if not request.headers.get("authorization"):
            raise httpx.ReadTimeout("the token service was silent")
        yield request


def _reads_a_token_that_is_not_set(request: httpx.Request) -> httpx.Request:
    request.headers["authorization"] = unset.get()
    return request


@pytest.mark.parametrize("auth", [_TokenAuth(), _reads_a_token_that_is_not_set])
async def test_an_auth_of_the_owner_s_that_fails_has_sent_nothing(auth: Any, emulator: Emulator) -> None:
    """A lent client's own auth comes before the request is sent, too."""
    http = lend(emulator, auth=auth)
    async with http, on(emulator, http) as knouds:
        with pytest.raises(ConnectionFailedError):
            await knouds.workflows.submit(SLUG, INPUTS)
    assert emulator.requests.count == 0


class _CopyAuth(httpx.Auth):
    """Sends a copy of the request, and fails at the answer."""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        yield httpx.Request(request.method, request.url, headers=request.headers, content=request.content)
        raise LookupError("no second token")


async def test_an_auth_that_sends_a_copy_leaves_the_submit_unknown(emulator: Emulator) -> None:
    """What was sent in place of the request counts as sent."""
    http = lend(emulator, auth=_CopyAuth())
    async with http, on(emulator, http) as knouds:
        with pytest.raises(SubmissionUnknownError):
            await knouds.workflows.submit(SLUG, INPUTS)
    assert len(emulator.runs) == 1


class _SendsByItself(httpx.AsyncClient):
    """Sends in a way of its own, and fails at the answer."""

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        await self._transport.handle_async_request(
            httpx.Request(request.method, request.url, headers=request.headers, content=request.content)
        )
        raise LookupError("no answer is good enough")


async def test_a_client_that_sends_in_its_own_way_leaves_the_submit_unknown(emulator: Emulator) -> None:
    """A subclass that does not send as httpx's own client does proves nothing."""
    http = _SendsByItself(transport=EmulatorTransport(emulator))
    async with http, on(emulator, http) as knouds:
        with pytest.raises(SubmissionUnknownError):
            await knouds.workflows.submit(SLUG, INPUTS)
    assert emulator.requests.count == 1


class _SendsCopies(httpx.AsyncClient):
    """Sends a request twice; the second time there is no connection."""

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        copy = httpx.Request(request.method, request.url, headers=request.headers, content=request.content)
        await super().send(copy, auth=options["auth"])
        raise httpx.ConnectError("refused")


class _AuthThatSendsCopies(httpx.Auth):
    """The same in an auth."""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        yield httpx.Request(request.method, request.url, headers=request.headers, content=request.content)
        raise httpx.ConnectError("refused")


@pytest.mark.parametrize(
    ("kind", "auth"), [(_SendsCopies, None), (httpx.AsyncClient, _AuthThatSendsCopies()), (_SendsCopies, ("a", "b"))]
)
async def test_a_second_attempt_of_the_owner_s_that_meets_no_connection_proves_nothing(
    kind: type[httpx.AsyncClient], auth: Any, respx_mock: respx.MockRouter
) -> None:
    """Over httpx's own transport, too: what was sent before in the request's place may run, and is made once."""
    route = respx_mock.post(url__startswith="https://knouds.test/").respond(503)
    async with kind(auth=auth) as http:
        with pytest.raises(SubmissionUnknownError):
            await AsyncKnouds("k", base_url="https://knouds.test", http_client=http).workflows.submit(SLUG, INPUTS)
    assert route.call_count == 1
