"""The client's requests, and the service's deliveries, are as the OpenAPI description of the service has them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache, reduce
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import attrs
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.datastructures import Headers, ImmutableMultiDict

from knouds_async import AsyncKnouds, Polling, Target
from knouds_async._sansio import endpoints
from knouds_async.testing import Deliveries, Emulator, EmulatorTransport, Request, openapi, serve
from knouds_async.testing.messages import Outcome

if TYPE_CHECKING:  # it is imported by the tests that use it: with the validators it takes a quarter of a second
    from openapi_core import OpenAPI
    from openapi_core.datatypes import RequestParameters

BASE = "https://knouds.ai"
DOCUMENT = openapi()
BY_LITERALS = sorted(DOCUMENT["paths"], key=lambda path: path.count("{"))
METHODS = ("get", "post", "put", "delete")
EVERY_ROW = {
    *((method, path) for path, item in DOCUMENT["paths"].items() for method in item if method in METHODS),
    ("post", "/api/workflows/{slug}/run?async=true"),
    ("post", "/api/models/{internalName}/run?async=true"),
}


@cache
def description() -> OpenAPI:
    """Return the description for the validator."""
    from openapi_core import OpenAPI

    return OpenAPI.from_dict(openapi())


@attrs.define
class Sent:
    """One request that left, as the validator wants to see it; `name` is that of a webhook."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = attrs.field(factory=dict)
    body: bytes | None = None
    name: str = ""
    host_url: str = BASE
    content_type: str = attrs.field(init=False)
    parameters: RequestParameters = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Parse the query."""
        from openapi_core.datatypes import RequestParameters

        self.content_type = self.headers.get("content-type", "")
        query = ImmutableMultiDict(parse_qsl(self.query, keep_blank_values=True, strict_parsing=bool(self.query)))
        self.parameters = RequestParameters(query=query, header=Headers(list(self.headers.items())))


def check(sent: Sent) -> tuple[str, str]:
    """Validate a request, allow it nothing that is not described, and give the row of the endpoint it is for."""
    description().validate_apicall_request(sent)
    path = next(path for path in BY_LITERALS if re.fullmatch(re.sub(r"{\w+}", "[^/]+", path), sent.path))
    item = DOCUMENT["paths"][path]
    operation = item[sent.method]
    parameters = [_resolved(each) for each in (*item.get("parameters", []), *operation.get("parameters", []))]
    assert set(sent.parameters.query) <= {each["name"] for each in parameters if each["in"] == "query"}
    assert ("x-api-key" in sent.headers) is (operation.get("security") != [])
    assert bool(sent.body) is ("requestBody" in operation)
    if sent.body:
        schema = _resolved(operation["requestBody"]["content"]["application/json"]["schema"])
        assert set(json.loads(sent.body)) <= set(schema["properties"])
    is_async = sent.parameters.query.get("async") == "true"
    return sent.method, f"{path}?async=true" if is_async else path


def _resolved(value: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in value:
        return value
    _, *parts = value["$ref"].split("/")
    found: dict[str, Any] = reduce(lambda outer, part: outer[part], parts, DOCUMENT)
    return found


@attrs.define(kw_only=True, eq=False, repr=False, slots=False)
class ObservedEmulator(Emulator):
    """An emulator that keeps every request as it came in."""

    seen: list[Sent] = attrs.field(init=False, factory=list[Sent])

    def handle(self, request: Request, now: float) -> Outcome:
        """Keep the request and answer it."""
        parts = (request.method.lower(), request.path, request.query, request.headers, request.body)
        self.seen.append(Sent(*parts))
        return super().handle(request, now)

    def rows(self) -> set[tuple[str, str]]:
        """Check all that came in, and give the rows of the endpoints it was for."""
        return {check(sent) for sent in self.seen}


async def _use_everything(knouds: AsyncKnouds) -> None:
    """Call every method that sends a request, with every argument it takes."""
    await knouds.whoami()
    await knouds.pricing()
    await knouds.health()
    await _use_runs(knouds)
    await _use_workflows(knouds)
    await knouds.usage.list(status="completed", model_id="gpt-image-2", workflow_slug="jingle", limit=500, offset=1)
    assert [row async for row in knouds.usage.iter(status="no such", model_id="é&=", workflow_slug="a b")] == []
    await knouds.usage.models()


async def _use_runs(knouds: AsyncKnouds) -> None:
    execution = await knouds.workflows.submit("my-thumbnail-pipeline", {"product_name": "é", "count": 2})
    await execution
    await (await knouds.models.submit("suno-v5", {})).cancel()
    await knouds.workflows.run("fast-sketch", {"prompt": "x"})
    await knouds.models.run("kling-3", {"nested": {"list": [1, None]}})
    await knouds.executions.get(execution.id)


async def _use_workflows(knouds: AsyncKnouds) -> None:
    created = await knouds.workflows.create(
        "Mine",
        nodes=[{"id": "a", "type": "output", "position": {"x": 0, "y": 0}, "data": {}}],
        edges=[{"id": "e", "source": "a", "target": "a", "sourceHandle": "out", "targetHandle": None}],
        description="x",
        tags=["a"],
        viewport={"x": 0, "y": 0.5, "zoom": 1},
        public_playground=True,
    )
    await knouds.workflows.create("Mine")
    assert created.slug == "mine"
    await knouds.workflows.update(created.slug, name="Ours", nodes=[], edges=[], description="", tags=[], viewport={})
    await knouds.workflows.get(created.slug)
    await knouds.workflows.schema(created.slug)
    await knouds.workflows.public_schema(created.slug)
    await knouds.workflows.move(created.slug, "folder")
    await knouds.workflows.move(created.slug, None)
    await knouds.workflows.delete(created.slug)
    await knouds.workflows.list()


async def test_every_request_of_the_client_is_as_described() -> None:
    """Each method sends what the description has: path, query, body and key; together they use every endpoint."""
    service = ObservedEmulator(tier="business", duration=10.0)
    async with (
        httpx.AsyncClient(transport=EmulatorTransport(service)) as http,
        AsyncKnouds(service.api_key, base_url=BASE, http_client=http) as knouds,
    ):
        await _use_everything(knouds)
    assert service.rows() == EVERY_ROW


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_so_it_is_on_the_wire() -> None:
    """The client's own way of sending says the same."""
    service = ObservedEmulator(tier="business", duration=0.05)
    async with (
        serve(service) as url,
        AsyncKnouds(service.api_key, base_url=url, polling=Polling.every(0.2)) as knouds,
    ):
        await _use_everything(knouds)
    assert service.rows() == EVERY_ROW


async def test_a_workflow_is_written_back_as_described(knouds: AsyncKnouds) -> None:
    """One that was read can be written back whole, its slug and whatever else came along."""
    whole = await knouds.workflows.get("my-thumbnail-pipeline")
    body = json.dumps(whole.raw).encode()
    sent = Sent("put", "/api/workflows/my-thumbnail-pipeline", headers=KEYED, body=body)
    description().validate_apicall_request(sent)
    assert await knouds.workflows.update("my-thumbnail-pipeline", whole) == whole


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]*", fullmatch=True)
PLAIN = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
TARGETS = st.builds(Target, st.sampled_from(["workflows", "models"]), NAMES)
INPUTS = st.dictionaries(st.text(), JSON, max_size=3)
CALLS = st.one_of(
    st.builds(endpoints.submit, TARGETS, INPUTS),
    st.builds(endpoints.run, TARGETS, INPUTS),
    st.builds(endpoints.get_execution, st.from_regex(r"[A-Za-z0-9_-]+", fullmatch=True)),
    st.builds(endpoints.get_workflow, NAMES),
    st.builds(endpoints.move_workflow, NAMES, st.none() | PLAIN),
    st.builds(
        endpoints.list_usage,
        status=st.none() | PLAIN,
        model_id=st.none() | PLAIN,
        workflow_slug=st.none() | PLAIN,
        limit=st.none() | st.integers(1, 500),
        offset=st.none() | st.integers(0, 2**53 - 1),
    ),
)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(CALLS)
def test_any_call_is_as_described(call: endpoints.Call[Any]) -> None:
    """Whatever is asked, what is sent of it is described."""
    path, _, query = call.path.partition("?")
    headers = {"x-api-key": "key"} | ({} if call.body is None else {"content-type": "application/json"})
    check(Sent(method=call.method.lower(), path=path, query=query, headers=headers, body=call.body))


KEYED = {"x-api-key": "key", "content-type": "application/json"}
RUN: dict[str, Any] = {"method": "post", "path": "/api/workflows/x/run", "headers": KEYED, "body": b'{"inputs": {}}'}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"path": "/api/workflows/x/launch"}, id="path"),
        pytest.param({"path": "/api/workflows/X/run"}, id="slug"),
        pytest.param({"method": "put"}, id="method"),
        pytest.param({"query": "async=maybe"}, id="value in the query"),
        pytest.param({"query": "wait=true"}, id="name in the query"),
        pytest.param({"body": b'{"inputs": []}'}, id="type in the body"),
        pytest.param({"body": b'{"inputs": {}, "input": {}}'}, id="name in the body"),
        pytest.param({"body": None}, id="no body"),
        pytest.param({"headers": {"content-type": "application/json"}}, id="no key"),
        pytest.param({"headers": {"x-api-key": "key", "content-type": "text/plain"}}, id="type of the body"),
        pytest.param({"method": "get", "path": "/api/health", "body": None}, id="a key too many"),
    ],
)
def test_the_check_can_fail(change: dict[str, Any]) -> None:
    """A request that is as described passes, and is found when it is off in any one way."""
    from openapi_core.exceptions import OpenAPIError

    assert check(Sent(**RUN)) == ("post", "/api/workflows/{slug}/run")
    with pytest.raises((OpenAPIError, AssertionError)):
        check(Sent(**(RUN | change)))


def test_deliveries_are_as_described() -> None:
    """Every webhook that the emulator sends, however odd, has the header and the body of the description."""
    odd = Deliveries(repeated=0.5, forged=0.5, expired=0.5, stale=0.5)
    emulator = Emulator(webhook_url="https://app.example/hook", deliveries=odd, failure_rate=0.3, duration=10.0)
    for number in range(20):
        submit = endpoints.submit(Target("workflows", "jingle"), {"mood": str(number)})
        emulator.handle(_as_request(emulator, submit), 0.0)
    for run in emulator.runs[:5]:
        emulator.handle(_as_request(emulator, endpoints.cancel_execution(run.execution_id)), 1.0)
    deliveries = emulator.due_deliveries(1000.0)
    assert len({delivery.kind for delivery in deliveries}) == 5
    for delivery in deliveries:
        sent = Sent(name="execution", method="post", path="/hook", headers=delivery.headers, body=delivery.body)
        description().validate_webhook_request(sent)


def _as_request(emulator: Emulator, call: endpoints.Call[Any]) -> Request:
    path, _, query = call.path.partition("?")
    return Request(call.method, path, query, {"x-api-key": emulator.api_key}, call.body or b"")
