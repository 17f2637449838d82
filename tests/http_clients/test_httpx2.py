"""Clients of httpx2, the maintained fork of httpx: their own classes, URL, time-outs and errors are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from knouds_async import (
    AsyncKnouds,
    ConfigurationError,
    ConnectionFailedError,
    DownloadError,
    Media,
    Retries,
    SubmissionUnknownError,
    Timeouts,
)

httpx2: Any = pytest.importorskip("httpx2")

SLUG = "my-thumbnail-pipeline"
ONCE = Retries(attempts=1)


async def test_calls_go_through_it(service: Any) -> None:
    """Reads and submits arrive once each, with the key and what the owner has every request carry."""
    http = httpx2.AsyncClient(headers={"x-owner": "me"}, params={"a": "b"}, cookies={"c": "d"})
    async with http, AsyncKnouds("the-key", base_url=service.url, http_client=http) as knouds:
        assert (await knouds.whoami()).tier == "business"
        execution = await knouds.workflows.submit(SLUG, {"a": 1})
        assert (await knouds.executions.get(execution.id)).is_final
    assert service.paid == 1
    for request in service.arrived:
        assert "a=b" not in request.path
        assert request.headers["x-api-key"] == "the-key"
        assert request.headers["x-owner"] == "me"
        assert request.headers["cookie"] == "c=d"
        assert request.headers["user-agent"].startswith("knouds-async/")


async def test_a_refused_connection_was_sent_nothing(free_port: int) -> None:
    """Its ConnectError is the proof that httpx's own is."""
    async with httpx2.AsyncClient() as http:
        knouds = AsyncKnouds("k", base_url=f"http://127.0.0.1:{free_port}", http_client=http, retries=ONCE)
        with pytest.raises(ConnectionFailedError, match="not sent"):
            await knouds.workflows.submit(SLUG, {})


async def test_a_submit_that_is_not_answered_is_unknown(service: Any) -> None:
    """The server had it and hung up: it may have run, and is sent once."""
    service.mute = True
    async with httpx2.AsyncClient() as http:
        knouds = AsyncKnouds("k", base_url=service.url, http_client=http)
        with pytest.raises(SubmissionUnknownError, match="RemoteProtocolError"):
            await knouds.workflows.submit(SLUG, {})
    assert service.paid == 1


async def test_a_read_that_is_cut_short_is_made_again() -> None:
    """Its errors in the middle of a body are known, and bodies that a hook has read already are taken."""
    seen: list[str] = []

    class Cut(httpx2.AsyncByteStream):  # type: ignore[misc]
        async def __aiter__(self) -> Any:
            yield b'{"us'
            raise httpx2.ReadError("reset")

    def answer(request: Any) -> Any:
        seen.append(request.method)
        return httpx2.Response(200, stream=Cut()) if len(seen) == 1 else httpx2.Response(200, json={"user": {}})

    async def reads(response: Any) -> None:
        if len(seen) > 1:
            await response.aread()

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer), event_hooks={"response": [reads]})
    async with http, AsyncKnouds("k", base_url="https://knouds.test", http_client=http) as knouds:
        await knouds.whoami()
    assert seen == ["GET", "GET"]


async def test_time_outs_are_its_own(service: Any) -> None:
    """A read that takes too long ends by its read time-out."""
    service.delay = 0.5
    async with httpx2.AsyncClient() as http:
        options: Any = {"retries": ONCE, "timeouts": Timeouts(read=0.1)}
        async with AsyncKnouds("k", base_url=service.url, http_client=http, **options) as knouds:
            with pytest.raises(Exception, match="ReadTimeout"):
                await knouds.whoami()


async def test_the_key_goes_nowhere_else(service: Any) -> None:
    """A client that follows redirects does not follow ours."""
    service.redirect = "http://127.0.0.1:1/elsewhere"
    http = httpx2.AsyncClient(follow_redirects=True)
    async with http, AsyncKnouds("k", base_url=service.url, http_client=http) as knouds:
        with pytest.raises(Exception, match="307"):
            await knouds.workflows.submit(SLUG, {})
    assert len(service.arrived) == 1


async def test_a_hook_that_fails_has_sent_nothing(service: Any) -> None:
    """As with httpx, what fails before the request is handed to a transport was not sent."""

    async def fails(request: Any) -> None:
        raise LookupError("not set")

    async with httpx2.AsyncClient(event_hooks={"request": [fails]}) as http:
        knouds = AsyncKnouds("k", base_url=service.url, http_client=http, retries=ONCE)
        with pytest.raises(ConnectionFailedError, match="LookupError"):
            await knouds.workflows.submit(SLUG, {})
    assert service.arrived == []


async def test_files_are_fetched_through_it(service: Any, tmp_path: Path) -> None:
    """Downloads use its requests and URLs too, without the key and what its owner adds."""
    http = httpx2.AsyncClient(headers={"x-owner": "me"})
    async with http, AsyncKnouds("k", base_url=service.url, http_client=http) as knouds:
        media = Media("image", f"{service.url}/a.png")
        with pytest.raises(DownloadError, match="json"):
            await knouds.download(media, tmp_path / "a.png")
    [request] = service.arrived
    assert request.path == "/a.png"
    assert not {"x-api-key", "x-owner"} & set(request.headers)


def test_its_synchronous_client_is_refused() -> None:
    """At construction, with what to lend instead."""
    with httpx2.Client() as http, pytest.raises(ConfigurationError, match="synchronous"):
        AsyncKnouds("k", http_client=http)


_ALIASED = """
import httpx2; httpx2.alias_httpx()
import asyncio, sys
from knouds_async import AsyncKnouds
async def main():
    async with AsyncKnouds("k", base_url=sys.argv[1]) as knouds:
        print((await knouds.whoami()).tier)
    async with httpx2.AsyncClient() as http, AsyncKnouds("k", base_url=sys.argv[1], http_client=http) as knouds:
        print((await knouds.whoami()).tier)
asyncio.run(main())
"""


def test_it_may_stand_in_for_httpx(service: Any) -> None:
    """Where an application has httpx2 take httpx's name, own and lent clients work on it."""
    command = [sys.executable, "-c", _ALIASED, service.url]
    run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (our own words)
    assert run.stdout.split() == ["business"] * 2, run.stderr
