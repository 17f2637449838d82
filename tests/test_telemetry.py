"""Spans and metrics, as the SDK's exporters in memory see them."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

import anyio
import attrs
import httpx
import pytest
import trio

from knouds_async import (
    AsyncKnouds,
    Completed,
    ExecutionFailedError,
    InvalidInputsError,
    Job,
    KnoudsError,
    SubmissionUnknownError,
    WaitTimeoutError,
)
from knouds_async.testing import Emulator, EmulatorTransport, faults
from knouds_async.webhooks import WebhookReceiver, sign
from tests.batch.in_loop import InLoopLedger

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


async def test_a_meter_that_fails_costs_no_outcome(make_client: MakeClient, emulator: Emulator) -> None:
    """It ends the batch with its error, after the outcome of the run that was paid for."""
    api = pytest.importorskip("opentelemetry.metrics")

    class FailingCounter(api.NoOpCounter):  # type: ignore[misc,name-defined]
        def add(self, *_: object) -> None:
            raise RuntimeError("no room for a number")

    class FailingMeter(api.NoOpMeter):  # type: ignore[misc,name-defined]
        def create_counter(self, name: str, unit: str = "", description: str = "") -> Any:
            counter = FailingCounter if name == "knouds.batch.jobs" else api.NoOpCounter
            return counter(name, unit, description)

    class Provider(api.NoOpMeterProvider):  # type: ignore[misc,name-defined]
        def get_meter(self, name: str, *_: Any, **__: Any) -> Any:
            return FailingMeter(name)

    knouds = make_client(emulator, meter_provider=Provider())
    async with knouds.workflows.map(SLUG, [INPUTS]) as outcomes:
        assert isinstance(await anext(outcomes), Completed)
        with pytest.raises(RuntimeError, match="no room for a number"):
            await anext(outcomes)


async def test_each_wait_is_a_span_and_polls_link_to_all_that_they_serve(
    seen: Seen, make_client: MakeClient, emulator: Emulator
) -> None:
    """Two callers with a trace each await one run: each has a `knouds.wait`, and the polls are roots linked to both."""
    knouds = make_client(emulator, **seen.options)
    execution = await knouds.workflows.submit(SLUG, INPUTS)

    async def caller(name: str) -> None:
        with seen.tracer.start_as_current_span(name):
            await execution

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(caller, "one")
        tasks.start_soon(caller, "two")
    waits, polls = seen.spans("knouds.wait"), seen.spans("knouds.poll")
    callers = {span.context.span_id for name in ("one", "two") for span in seen.spans(name)}
    assert {span.parent.span_id for span in waits} == callers
    assert {span.kind.name for span in waits} == {"INTERNAL"}
    assert {span.attributes["knouds.status"] for span in waits} == {"completed"}
    assert all(span.attributes["knouds.credits"] > 0 for span in waits)
    assert polls
    for poll in polls:
        assert poll.parent is None
        assert poll.attributes["knouds.execution.id"] == execution.id
        assert {link.context.span_id for link in poll.links} == {span.context.span_id for span in waits}
    assert seen.sums("knouds.client.executions.in_flight") == {(): 0}
    assert seen.sums("knouds.client.execution.duration") == {("completed", TARGET): 45.0}
    assert seen.points("knouds.client.notice.delay")[()].sum < 5
    assert seen.sums("knouds.client.credits")[(TARGET,)] > 0


async def test_a_wait_that_fails_is_an_error_of_its_class(
    seen: Seen, make_client: MakeClient, emulator: Emulator
) -> None:
    """A failed run makes `await` an error; a timeout of `wait` too; a cancelled wait is none."""
    knouds = make_client(emulator, **seen.options)
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    with pytest.raises(WaitTimeoutError):
        await execution.wait(timeout=1)
    with anyio.move_on_after(1):
        await execution
    emulator.fail(execution.id, "the CANARY of a message")
    with pytest.raises(ExecutionFailedError):
        await execution
    late, left, failed = seen.spans("knouds.wait")
    assert (late.status.status_code.name, late.attributes["error.type"]) == ("ERROR", "WaitTimeoutError")
    assert (left.status.status_code.name, "error.type" in left.attributes) == ("UNSET", False)
    assert (failed.status.status_code.name, failed.attributes["error.type"]) == ("ERROR", "ExecutionFailedError")
    assert failed.attributes["knouds.status"] == "failed"


async def test_a_listing_is_a_sweep_linked_to_the_waits(seen: Seen, make_client: MakeClient) -> None:
    """Listings in place of many polls are `knouds.sweep`: roots with the links of the waits that they serve."""
    emulator = Emulator(tier="business", duration=30.0)
    knouds = make_client(emulator, tier="business", **seen.options)
    async with knouds.workflows.map(SLUG, [Job(f"job-{n}", INPUTS) for n in range(30)]) as outcomes:
        assert len([outcome async for outcome in outcomes]) == 30
    sweeps = seen.spans("knouds.sweep")
    assert sweeps
    waits = {span.context.span_id for span in seen.spans("knouds.wait")}
    assert len(waits) == 30
    assert all(span.parent is None and {link.context.span_id for link in span.links} <= waits for span in sweeps)
    assert max(len(span.links) for span in sweeps) == 30


async def test_what_is_reported_holds_no_key_no_inputs_and_no_text_of_the_service_s(
    seen: Seen, make_client: MakeClient, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the key nor a canary of the inputs or of a failure's message is in a span, a metric or a record."""
    caplog.set_level(logging.DEBUG, "knouds_async")
    key = emulator.api_key
    knouds = make_client(emulator, **seen.options)
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    emulator.fail(execution.id, f"CANARY {key}")
    with pytest.raises(ExecutionFailedError):
        await execution
    emulator.faults.add(faults.unknown_error(), route=RUN_ROUTE)
    with pytest.raises(KnoudsError):
        await knouds.workflows.run(SLUG, {"product_name": "CANARY", "CANARY_field": key})
    spans = [span.to_json() for span in seen.exporter.get_finished_spans()]
    records = [f"{record.getMessage()} {record.__dict__}" for record in caplog.records if record.name == "knouds_async"]
    assert spans
    assert records
    for text in (*spans, *records, seen.reader.get_metrics_data().to_json()):
        assert "CANARY" not in text
        assert key not in text


async def test_closing_names_the_runs_in_flight_once(
    make_client: MakeClient, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """One WARNING has the number and the first twenty ids of awaited runs; before, `in_flight` has their handles."""
    knouds = make_client(emulator)
    executions = [await knouds.workflows.submit(SLUG, INPUTS) for _ in range(25)]
    await knouds.workflows.submit(SLUG, INPUTS)  # handed on: nobody waits for it here
    for execution in executions:
        with anyio.move_on_after(0.01):
            await execution
    assert [each.id for each in knouds.executions.in_flight] == [each.id for each in executions]
    await knouds.aclose()
    await knouds.aclose()
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.__dict__["event_name"] == "runs_in_flight"
    assert record.getMessage().startswith("25 runs were not seen to finish")
    assert record.getMessage().endswith("and 5 more")
    assert executions[19].id in record.getMessage()


async def test_runs_that_finished_or_that_a_batch_reports_are_not_named(
    make_client: MakeClient, emulator: Emulator, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Nothing is said at closing of runs that were seen to finish, and of those of a ledger."""
    knouds = make_client(emulator)
    await (await knouds.workflows.submit(SLUG, INPUTS))
    async with knouds.workflows.map(SLUG, [Job("a", INPUTS)], ledger=InLoopLedger(tmp_path / "ledger.db")):
        await anyio.sleep(5)
        assert len(knouds.executions.in_flight) == 1
    await knouds.aclose()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def _run_on_asyncio(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


@pytest.mark.parametrize("run", [_run_on_asyncio, trio.run])
def test_the_end_of_the_loop_names_them_where_nobody_closes(
    run: Callable[[Callable[[], Coroutine[Any, Any, None]]], None], caplog: pytest.LogCaptureFixture
) -> None:
    """A client that is never closed warns of the runs in flight when its event loop ends."""
    emulator, kept = Emulator(tier="business", duration=45.0), list[AsyncKnouds]()

    async def main() -> None:
        http = httpx.AsyncClient(transport=EmulatorTransport(emulator))
        knouds = AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http)
        kept.append(knouds)
        execution = await knouds.workflows.submit(SLUG, INPUTS)
        with anyio.move_on_after(0.01):
            await execution

    run(main)
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.getMessage().startswith("1 run was not seen to finish")


async def test_gauges_show_what_is_left_and_who_waits_also_from_another_thread(
    seen: Seen, make_client: MakeClient
) -> None:
    """After a window's quota is used up nothing is left of it and the rest waits; exporters read it in a thread."""
    knouds = make_client(Emulator(tier="pro", duration=5.0), tier="pro", **seen.options)
    seen_there = list[tuple[Any, Any]]()
    async with anyio.create_task_group() as tasks:
        for _ in range(130):
            tasks.start_soon(knouds.workflows.submit, SLUG, INPUTS)
        await anyio.sleep(1)

        names = "knouds.client.rate_limit.remaining", "knouds.client.rate_limit.queue"
        thread = threading.Thread(target=lambda: seen_there.append((seen.sums(names[0]), seen.points(names[1]))))
        thread.start()
        thread.join()
        tasks.cancel_scope.cancel()
    [(remaining, queued)] = seen_there
    assert remaining == {(RUN_ROUTE,): 0}
    assert queued[()].value == 30


async def _chunks(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def test_a_delivery_is_a_span_of_its_run(seen: Seen, make_client: MakeClient, emulator: Emulator) -> None:
    """A delivery that is taken has the run's id and status; one that is refused is an error with its HTTP status."""
    secret = "a secret of sixteen"
    receiver = WebhookReceiver(secret, client=make_client(emulator, **seen.options))
    run = {"executionId": "11111111-2222-4333-8444-555555555555", "status": "completed", "result": "x", "cost": 5}
    body = json.dumps({"event": "execution.completed", **run}).encode()
    await receiver.take(_chunks(body), sign(body, secret, now=time.time()))
    await receiver.take(_chunks(body), "t=1,v1=00")
    taken, refused = seen.spans("knouds.webhook")
    assert taken.kind.name == "CONSUMER"
    assert taken.attributes["knouds.execution.id"] == run["executionId"]
    assert taken.attributes["knouds.status"] == "completed"
    assert taken.status.status_code.name == "UNSET"
    assert refused.attributes["error.type"] == "400"
    assert refused.status.status_code.name == "ERROR"
