"""Spans and metrics, as the SDK's exporters in memory see them."""

from __future__ import annotations

from typing import Any, Protocol

import anyio
import attrs
import pytest

from knouds_async import AsyncKnouds, InvalidInputsError, Job, SubmissionUnknownError
from knouds_async.testing import Emulator, faults

sdk_trace = pytest.importorskip("opentelemetry.sdk.trace")
sdk_export = pytest.importorskip("opentelemetry.sdk.trace.export")
in_memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
sdk_metrics = pytest.importorskip("opentelemetry.sdk.metrics")
metrics_export = pytest.importorskip("opentelemetry.sdk.metrics.export")

SLUG = "my-thumbnail-pipeline"
TARGET = f"workflows/{SLUG}"
INPUTS = {"product_name": "CANARY of the inputs"}
RUN_ROUTE = "POST /api/workflows/:slug/run"


class MakeClient(Protocol):
    """Builds a client on an emulator."""

    def __call__(self, emulator: Emulator, **options: Any) -> AsyncKnouds:
        """Build it."""
        ...


@attrs.frozen
class Seen:
    """What was exported by clients that were built with `options`."""

    exporter: Any
    reader: Any
    tracer: Any
    options: dict[str, Any]

    def spans(self, name: str) -> list[Any]:
        """Return the finished spans of a name."""
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def points(self, name: str) -> dict[tuple[str, ...], Any]:
        """Return the data points of a metric by the values of their attributes, in the order of the names of these."""
        data = self.reader.get_metrics_data()
        metrics = [
            each for resource in data.resource_metrics for scope in resource.scope_metrics for each in scope.metrics
        ]
        points = [point for metric in metrics if metric.name == name for point in metric.data.data_points]
        return {tuple(point.attributes[key] for key in sorted(point.attributes)): point for point in points}

    def sums(self, name: str) -> dict[tuple[str, ...], Any]:
        """Return the values of a counter, or the sums of a histogram."""
        return {key: getattr(point, "value", getattr(point, "sum", None)) for key, point in self.points(name).items()}


@pytest.fixture
def seen() -> Seen:
    """Return exporters in memory, and the options of a client that reports to them."""
    exporter, reader = in_memory.InMemorySpanExporter(), metrics_export.InMemoryMetricReader()
    tracers, meters = sdk_trace.TracerProvider(), sdk_metrics.MeterProvider([reader])
    tracers.add_span_processor(sdk_export.SimpleSpanProcessor(exporter))
    options = {"tracer_provider": tracers, "meter_provider": meters}
    return Seen(exporter, reader, tracers.get_tracer("test"), options)


async def test_a_submit_is_a_span_below_its_caller_s(seen: Seen, make_client: MakeClient, emulator: Emulator) -> None:
    """It has target, id, outcome and attempts, and no error."""
    knouds = make_client(emulator, **seen.options)
    with seen.tracer.start_as_current_span("caller") as caller:
        execution = await knouds.workflows.submit(SLUG, INPUTS)
    [span] = seen.spans("knouds.submit")
    assert span.parent.span_id == caller.get_span_context().span_id
    assert span.kind.name == "CLIENT"
    assert span.status.status_code.name == "UNSET"
    assert {
        "knouds.target": TARGET,
        "knouds.execution.id": execution.id,
        "knouds.submit.outcome": "submitted",
        "knouds.may_have_run": True,
        "knouds.attempts": 1,
        "knouds.rate_limit.refusals": 0,
        "knouds.rate_limit.wait": 0.0,
        "server.address": "knouds.test",
        "http.request.method": "POST",
        "url.template": "/api/workflows/:slug/run",
    }.items() <= span.attributes.items()
    assert seen.sums("knouds.client.submits") == {("submitted", TARGET): 1}
    assert seen.sums("knouds.client.requests") == {(RUN_ROUTE, "ok"): 1}


async def test_a_submit_that_is_refused_or_lost_is_an_error(
    seen: Seen, make_client: MakeClient, emulator: Emulator
) -> None:
    """The outcome is `not_run` or `unknown`, the type of the error its class, and no text of it is kept."""
    emulator.faults.add(faults.closed(after_run=True), route=f"{RUN_ROUTE}?async=true", nth=1)
    knouds = make_client(emulator, **seen.options)
    with pytest.raises(SubmissionUnknownError):
        await knouds.workflows.submit(SLUG, INPUTS)
    with pytest.raises(InvalidInputsError):
        await knouds.workflows.submit(SLUG, {"nonsense": 1})
    lost, refused = seen.spans("knouds.submit")
    assert lost.attributes["knouds.submit.outcome"] == "unknown"
    assert lost.attributes["knouds.may_have_run"]
    assert refused.attributes["knouds.submit.outcome"] == "not_run"
    assert not refused.attributes["knouds.may_have_run"]
    for span, error in ((lost, SubmissionUnknownError), (refused, InvalidInputsError)):
        assert span.attributes["error.type"] == error.__name__
        assert span.status.status_code.name == "ERROR"
        assert span.status.description is None
        assert not span.events
    assert seen.sums("knouds.client.submits") == {("unknown", TARGET): 1, ("not_run", TARGET): 1}


async def test_a_submit_that_is_cut_says_what_became_of_it(seen: Seen, make_client: MakeClient) -> None:
    """In its middle it is finished and `submitted`; in the queue for quota it is `not_run`; neither is an error."""
    knouds = make_client(Emulator(tier="pro", duration=5.0), latency=1.0, tier="pro", **seen.options)
    with anyio.move_on_after(0.5):
        await knouds.workflows.submit(SLUG, INPUTS)
    async with anyio.create_task_group() as tasks:
        for _ in range(250):
            tasks.start_soon(knouds.workflows.submit, SLUG, INPUTS)
        await anyio.sleep(10)
        tasks.cancel_scope.cancel()
    spans = seen.spans("knouds.submit")
    outcomes = [span.attributes["knouds.submit.outcome"] for span in spans]
    assert outcomes[0] == "submitted"
    assert spans[0].attributes["knouds.execution.id"]
    assert "not_run" in outcomes
    assert {span.status.status_code.name for span in spans} == {"UNSET"}
    waits = [span.attributes["knouds.rate_limit.wait"] for span in spans if span.attributes["knouds.attempts"] == 0]
    assert len(waits) == outcomes.count("not_run")
    assert min(waits) > 0


async def test_a_synchronous_run_is_a_span_with_its_credits(
    seen: Seen, make_client: MakeClient, emulator: Emulator
) -> None:
    """`knouds.run` counts as a submit, and its credits count too."""
    knouds = make_client(emulator, **seen.options)
    run = await knouds.workflows.run(SLUG, INPUTS)
    [span] = seen.spans("knouds.run")
    assert span.attributes["knouds.credits"] == run.cost
    assert span.attributes["knouds.status"] == "completed"
    assert seen.sums("knouds.client.submits") == {("submitted", TARGET): 1}
    assert seen.sums("knouds.client.credits") == {(TARGET,): run.cost}


async def test_a_refused_request_is_counted_and_is_no_attempt(seen: Seen, make_client: MakeClient) -> None:
    """A 429 sends a submit back to the queue: one refusal, one attempt, and the wait between them."""
    emulator = Emulator(tier="pro", duration=5.0)
    other, knouds = make_client(emulator, tier="pro"), make_client(emulator, tier="pro", **seen.options)
    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(other.workflows.submit, SLUG, INPUTS)
    await knouds.workflows.submit(SLUG, INPUTS)
    [span] = seen.spans("knouds.submit")
    assert (span.attributes["knouds.attempts"], span.attributes["knouds.rate_limit.refusals"]) == (1, 1)
    assert span.attributes["knouds.rate_limit.wait"] >= 1
    assert seen.sums("knouds.client.rate_limit.refusals") == {(RUN_ROUTE,): 1}
    assert seen.sums("knouds.client.requests") == {(RUN_ROUTE, "refused"): 1, (RUN_ROUTE, "ok"): 1}
    [wait] = seen.points("knouds.client.rate_limit.wait").values()
    assert wait.count == 1


async def test_nothing_is_reported_when_telemetry_is_off(
    seen: Seen, make_client: MakeClient, emulator: Emulator
) -> None:
    """`telemetry=False` makes no span and no data point."""
    knouds = make_client(emulator, telemetry=False, **seen.options)
    await (await knouds.workflows.submit(SLUG, INPUTS))
    assert not seen.exporter.get_finished_spans()
    assert not seen.sums("knouds.client.submits") if seen.reader.get_metrics_data() else True


async def test_a_batch_is_a_span_with_its_submits_below(
    seen: Seen, make_client: MakeClient, emulator: Emulator
) -> None:
    """The submits of `map` are children of one `knouds.batch`, each with the key of its job; it is the caller's."""
    knouds = make_client(emulator, **seen.options)
    with seen.tracer.start_as_current_span("caller") as caller:
        async with knouds.workflows.map(SLUG, [Job(f"job-{n}", INPUTS) for n in range(10)]) as outcomes:
            assert len([outcome async for outcome in outcomes]) == 10
    [batch] = seen.spans("knouds.batch")
    assert batch.parent.span_id == caller.get_span_context().span_id
    assert batch.attributes["knouds.target"] == TARGET
    submits = seen.spans("knouds.submit")
    assert {span.parent.span_id for span in submits} == {batch.context.span_id}
    assert {span.attributes["knouds.job.key"] for span in submits} == {f"job-{n}" for n in range(10)}
    assert seen.sums("knouds.batch.jobs") == {("completed",): 10}
