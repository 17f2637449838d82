"""Tools that trace see every call once, of our own client and of one that is lent, and in whose trace it belongs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from knouds_async import AsyncKnouds

SLUG = "my-thumbnail-pipeline"
CLIENTS = ["own", "lent"]


@pytest.fixture
def kept() -> Any:
    """Return where OpenTelemetry keeps its spans; `provider` makes them."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    exporter = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    exporter.provider = sdk.TracerProvider()
    exporter.provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture
def spans(kept: Any) -> Iterator[Any]:
    """Instrument all of httpx with OpenTelemetry, and return where its spans are kept."""
    instrumentor = pytest.importorskip("opentelemetry.instrumentation.httpx").HTTPXClientInstrumentor()
    instrumentor.instrument(tracer_provider=kept.provider)
    yield kept
    instrumentor.uninstrument()


def _named(exporter: Any, method: str) -> list[Any]:
    return [span for span in exporter.get_finished_spans() if span.name == method]


@pytest.mark.parametrize("client", CLIENTS)
async def test_opentelemetry_sees_every_call_once(client: str, spans: Any, service: Any) -> None:
    """Submit and poll have a span each, and the submit carries its trace to the service."""
    async with AsyncExitStack() as stack:
        http = None if client == "own" else await stack.enter_async_context(httpx.AsyncClient())
        knouds = await stack.enter_async_context(AsyncKnouds("k", base_url=service.url, http_client=http))
        execution = await knouds.workflows.submit(SLUG, {})
        await execution.refresh()
    [submit], [poll] = _named(spans, "POST"), _named(spans, "GET")
    assert submit.attributes.get("http.status_code", submit.attributes.get("http.response.status_code")) == 200
    assert poll.attributes
    assert f"{submit.context.trace_id:032x}" in service.arrived[0].headers["traceparent"]


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS)
async def test_opentelemetry_hangs_a_submit_on_its_caller_s_span(client: str, spans: Any, service: Any) -> None:
    """The span of a submit is a child of its caller's, the polls that all share are roots of their own."""
    async with AsyncExitStack() as stack:
        http = None if client == "own" else await stack.enter_async_context(httpx.AsyncClient())
        knouds = await stack.enter_async_context(AsyncKnouds("k", base_url=service.url, http_client=http))
        with spans.provider.get_tracer("test").start_as_current_span("the caller's") as caller:
            execution = await knouds.workflows.submit(SLUG, {}, expected=0.1)
            await execution.wait()
    [submit], polls = _named(spans, "POST"), _named(spans, "GET")
    assert submit.parent.span_id == caller.get_span_context().span_id
    assert polls
    assert {poll.parent for poll in polls} == {None}


async def test_opentelemetry_can_see_one_lent_client(kept: Any, service: Any) -> None:
    """A lent client that is instrumented by itself is seen, and no other."""
    instrumentor = pytest.importorskip("opentelemetry.instrumentation.httpx").HTTPXClientInstrumentor
    async with httpx.AsyncClient() as http:
        instrumentor.instrument_client(http, tracer_provider=kept.provider)
        for lent in (http, None):
            async with AsyncKnouds("k", base_url=service.url, http_client=lent) as knouds:
                await knouds.whoami()
        instrumentor.uninstrument_client(http)
    assert len(service.arrived) == 2
    assert len(_named(kept, "GET")) == 1


_SENTRY = """
import asyncio, json, sys
import httpx, sentry_sdk
from sentry_sdk.integrations.httpx import HttpxIntegration
from sentry_sdk.transport import Transport
from knouds_async import AsyncKnouds

class Kept(Transport):
    seen = []
    def capture_envelope(self, envelope):
        for item in envelope.items:
            if (event := item.get_transaction_event()) is not None:
                self.seen += [[span["op"], span["description"]] for span in event["spans"]]

async def main(client, url):
    http = httpx.AsyncClient() if client == "lent" else None
    async with AsyncKnouds("the-canary", base_url=url, http_client=http) as knouds:
        with sentry_sdk.start_transaction(name="the caller's"):
            await knouds.workflows.submit("my-thumbnail-pipeline", {})
            await knouds.whoami()
    if http is not None:
        await http.aclose()

sentry_sdk.init(
    dsn="http://k@127.0.0.1:9/1", transport=Kept(), traces_sample_rate=1.0, default_integrations=False,
    integrations=[HttpxIntegration()],
)
asyncio.run(main(*sys.argv[1:]))
print(json.dumps(Kept.seen))
"""


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS)
def test_sentry_sees_every_call_in_its_caller_s_transaction(client: str, service: Any) -> None:
    """The submit, too, which runs in a task of its own, is a span of the transaction of its caller."""
    pytest.importorskip("sentry_sdk")
    command = [
        sys.executable,
        "-c",
        _SENTRY,
        client,
        service.url,
    ]  # in a process: it cannot be taken out of httpx again
    run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (our own words)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [
        ["http.client", f"POST {service.url}/api/workflows/{SLUG}/run"],
        ["http.client", f"GET {service.url}/api/whoami"],
    ]
    assert "sentry-trace" in service.arrived[0].headers


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS)
async def test_opentelemetry_s_http_spans_are_children_of_the_client_s_own(
    client: str, spans: Any, service: Any
) -> None:
    """The POST is below `knouds.submit`, in the caller's trace, and the poller's GET below its `knouds.poll`."""
    async with AsyncExitStack() as stack:
        http = None if client == "own" else await stack.enter_async_context(httpx.AsyncClient())
        knouds = await stack.enter_async_context(
            AsyncKnouds("k", base_url=service.url, http_client=http, tracer_provider=spans.provider)
        )
        await (await knouds.workflows.submit(SLUG, {}))
    for method, name in (("POST", "knouds.submit"), ("GET", "knouds.poll")):
        ours = {span.context.span_id for span in _named(spans, name)}
        assert ours
        assert {span.parent.span_id for span in _named(spans, method)} == ours
