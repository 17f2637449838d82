"""Tools that answer in the service's place see every call, of our own client and of one that is lent: none leaves."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx

from knouds_async import AsyncKnouds, KnoudsError, Retries, SubmissionUnknownError

SLUG = "my-thumbnail-pipeline"
RUN = f"/api/workflows/{SLUG}/run"
SUBMITTED = {"_async": True, "executionId": "mocked", "status": "processing"}
KEY = "knouds_live_canary"

Client = Callable[[str], Any]


@pytest.fixture(params=["own", "lent"])
def client(request: pytest.FixtureRequest) -> Client:
    """Return what opens a client that tries once: with the HTTP client of its own, or over one that is lent."""

    @asynccontextmanager
    async def opened(url: str) -> AsyncGenerator[AsyncKnouds]:
        once = Retries(attempts=1)
        if request.param == "own":
            async with AsyncKnouds(KEY, base_url=url, retries=once) as knouds:
                yield knouds
        else:
            http = httpx.AsyncClient()
            async with http, AsyncKnouds(KEY, base_url=url, retries=once, http_client=http) as knouds:
                yield knouds

    return opened


@pytest.mark.parametrize("using", ["httpcore", "httpx"])
async def test_respx_answers(using: str, client: Client, service: Any) -> None:
    """Both of its modes answer a submit, and see the key in it."""
    async with respx.mock(using=using) as router:
        route = router.post(f"{service.url}{RUN}").respond(200, json=SUBMITTED)
        async with client(service.url) as knouds:
            assert (await knouds.workflows.submit(SLUG, {"a": 1})).id == "mocked"
    assert route.call_count == 1
    request = route.calls.last.request
    assert request.headers["x-api-key"] == KEY
    assert json.loads(request.content) == {"inputs": {"a": 1}}
    assert service.arrived == []


@pytest.mark.parametrize("using", ["httpcore", "httpx"])
async def test_respx_refuses_what_it_has_no_route_for(using: str, client: Client, service: Any) -> None:
    """A paid request without a route does not leave."""
    async with respx.mock(using=using), client(service.url) as knouds:
        with pytest.raises(KnoudsError, match="not mocked"):
            await knouds.workflows.submit(SLUG, {})
    assert service.arrived == []


@pytest.mark.parametrize("using", ["httpcore", "httpx"])
async def test_a_time_out_that_respx_plays_is_unknown(using: str, client: Client, service: Any) -> None:
    """A mocked read time-out is as good as a real one: the submit may have run, and is made once."""
    async with respx.mock(using=using) as router, client(service.url) as knouds:
        route = router.post(url__startswith=f"{service.url}{RUN}").mock(side_effect=httpx.ReadTimeout)
        with pytest.raises(SubmissionUnknownError):
            await knouds.workflows.submit(SLUG, {})
    assert route.call_count == 1


@pytest.mark.parametrize("using", ["httpcore", "httpx"])
async def test_respx_lets_through_what_it_is_set_to(using: str, client: Client, service: Any) -> None:
    """A route that passes through reaches the service."""
    async with respx.mock(using=using) as router, client(service.url) as knouds:
        router.get(f"{service.url}/api/whoami").pass_through()
        assert (await knouds.whoami()).tier == "business"
    assert len(service.arrived) == 1


async def test_pytest_httpx_answers(client: Client, service: Any, request: pytest.FixtureRequest) -> None:
    """Its fixture answers a submit, and nothing leaves."""
    pytest.importorskip("pytest_httpx")
    httpx_mock = request.getfixturevalue("httpx_mock")
    httpx_mock.add_response(method="POST", url=f"{service.url}{RUN}?async=true", json=SUBMITTED)
    async with client(service.url) as knouds:
        assert (await knouds.workflows.submit(SLUG, {})).id == "mocked"
    [sent] = httpx_mock.get_requests()
    assert sent.headers["x-api-key"] == KEY
    assert service.arrived == []


async def test_pytest_httpx_refuses_the_rest(client: Client, service: Any, request: pytest.FixtureRequest) -> None:
    """A paid request without an answer of its fixture's does not leave."""
    pytest.importorskip("pytest_httpx")
    httpx_mock = request.getfixturevalue("httpx_mock")
    async with client(service.url) as knouds:
        with pytest.raises(KnoudsError, match="No response can be found"):
            await knouds.workflows.submit(SLUG, {})
    httpx_mock.reset()  # else it asks for an answer to each request
    assert service.arrived == []


def _recorder(folder: Path, **options: Any) -> Any:
    vcr = pytest.importorskip("vcr")
    return vcr.VCR(**options).use_cassette(str(folder / "cassette.yaml"))


async def test_vcrpy_records_and_plays(client: Client, service: Any, tmp_path: Path) -> None:
    """What was recorded is played without the service, and the cassette holds no key where it is filtered."""
    for mode in ("once", "none"):
        with _recorder(tmp_path, record_mode=mode, filter_headers=["x-api-key"]) as cassette:
            async with client(service.url) as knouds:
                assert (await knouds.workflows.submit(SLUG, {"a": 1})).target.name == SLUG
        assert service.paid == 1
    assert cassette.play_count == 1
    assert KEY not in (tmp_path / "cassette.yaml").read_text()


async def test_a_cassette_holds_the_key_unless_it_is_filtered(client: Client, service: Any, tmp_path: Path) -> None:
    """vcrpy sees the request as it leaves: without `filter_headers` the key is in the cassette, as the docs say."""
    with _recorder(tmp_path, record_mode="once"):
        async with client(service.url) as knouds:
            await knouds.whoami()
    assert KEY in (tmp_path / "cassette.yaml").read_text()


async def test_vcrpy_refuses_what_is_not_recorded(client: Client, service: Any, tmp_path: Path) -> None:
    """With `record_mode="none"` no paid request leaves a test that believes the network is recorded."""
    with _recorder(tmp_path, record_mode="none"):
        async with client(service.url) as knouds:
            with pytest.raises(KnoudsError, match="CannotOverwriteExistingCassetteException"):
                await knouds.workflows.submit(SLUG, {})
            with pytest.raises(KnoudsError, match="CannotOverwriteExistingCassetteException"):
                await knouds.whoami()
    assert service.arrived == []


async def test_vcrpy_refuses_over_httpx2_too(service: Any, tmp_path: Path) -> None:
    """A lent client of the fork is recorded and refused in the same way."""
    httpx2 = pytest.importorskip("httpx2")
    async with httpx2.AsyncClient() as http:
        with _recorder(tmp_path, record_mode="none"):
            async with AsyncKnouds(KEY, base_url=service.url, http_client=http) as knouds:
                with pytest.raises(KnoudsError, match="CannotOverwriteExistingCassetteException"):
                    await knouds.workflows.submit(SLUG, {})
    assert service.arrived == []
