"""What is logged under `knouds_async`: events with fields, for structlog and JSON formatters, and waits for quota."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from pythonjsonlogger.json import JsonFormatter

from knouds_async import Limiter, SharedLimiter
from knouds_async.testing import Emulator, Fault, Response, faults

SLUG = "my-thumbnail-pipeline"
ROUTE = "POST /api/workflows/:slug/run"
MakeClient = Any
LOGGER = logging.getLogger("knouds_async")


def inputs(count: int) -> list[dict[str, str]]:
    """Return inputs of so many runs."""
    return [{"product_name": f"Product {number}"} for number in range(count)]


def of(caplog: pytest.LogCaptureFixture, event: str) -> list[logging.LogRecord]:
    """Return the records of an event."""
    return [record for record in caplog.records if getattr(record, "event_name", None) == event]


async def submit_all(knouds: Any, count: int) -> None:
    """Submit so many runs at once."""
    async with anyio.create_task_group() as tasks:
        for each in inputs(count):
            tasks.start_soon(knouds.workflows.submit, SLUG, each)


@pytest.mark.parametrize("is_shared", [False, True])
async def test_a_wait_for_quota_is_logged_once_a_window(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture, tmp_path: Path, *, is_shared: bool
) -> None:
    """A burst that a window has no room for is one record, with how many wait and for how long, and so is the next."""
    caplog.set_level(logging.INFO, "knouds_async")
    shared = SharedLimiter(tmp_path / "quota.db", "pro", clock=anyio.current_time)
    knouds = make_client(Emulator(tier="pro", window_phase=31.0), limiter=shared if is_shared else Limiter("pro"))
    await submit_all(knouds, 242)
    first, second = of(caplog, "rate_limit_wait")
    assert first.getMessage() == f"142 requests wait for {ROUTE}; the window resets in 31 s"
    assert (first.levelname, first.__dict__["route"], first.__dict__["count"]) == ("INFO", ROUTE, 142)
    assert first.__dict__["wait"] == pytest.approx(31, abs=1)
    assert second.getMessage().startswith(f"42 requests wait for {ROUTE}; the window resets in ")
    assert second.__dict__["wait"] == pytest.approx(59.0, abs=1.5)


async def test_a_batch_says_how_many_of_its_jobs_wait(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The count is that of all its jobs that wait, though they are read a few at a time."""
    caplog.set_level(logging.INFO, "knouds_async")
    knouds = make_client(Emulator(tier="pro", duration=5.0, window_phase=31.0))
    await knouds.workflows.gather(SLUG, inputs(250))
    waits = [record.__dict__ for record in of(caplog, "rate_limit_wait")]
    assert [each["count"] for each in waits if each["route"] == ROUTE] == [150, 50]


async def test_one_request_that_waits_is_said_in_the_singular(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """One request waits, two wait."""
    caplog.set_level(logging.INFO, "knouds_async")
    await submit_all(make_client(Emulator(tier="pro", window_phase=31.0), tier="pro"), 101)
    (record,) = of(caplog, "rate_limit_wait")
    assert record.getMessage().startswith(f"1 request waits for {ROUTE}; ")


async def test_what_waits_for_no_window_is_not_logged(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests that wait for the answer of a probe, or for an edge that is less than a second away, are no record."""
    caplog.set_level(logging.INFO, "knouds_async")
    emulator = Emulator(tier="pro", window_phase=20.0)
    knouds = make_client(emulator, latency=0.3)
    await submit_all(knouds, 100)
    await anyio.sleep(20 - anyio.current_time() % 60 - 0.3)
    await submit_all(knouds, 60)  # the edge opens, and one of them crosses it alone
    assert len(emulator.runs) == 160
    assert [record.getMessage() for record in of(caplog, "rate_limit_wait")] == []


async def test_a_pause_that_the_service_asked_for_is_logged_as_that(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests that wait for the end of a pause say so, once."""
    caplog.set_level(logging.INFO, "knouds_async")
    emulator = Emulator(tier="pro", window_phase=31.0)
    body = json.dumps({"error": "Rate limit exceeded", "code": "RATE_LIMIT_EXCEEDED"}).encode()
    pause = Fault("pause", "before", lambda _: Response(429, {"retry-after": "20"}, body))
    emulator.faults.add(pause, route=ROUTE, nth=1)
    await make_client(emulator).workflows.submit(SLUG, {"product_name": "Knouds"})
    assert [record.getMessage() for record in of(caplog, "rate_limit_wait")] == [
        f"1 request waits for {ROUTE}; the service asked for a pause of 20 s"
    ]


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Return where a handler of the test writes; it is removed afterwards."""
    handler = logging.StreamHandler(found := io.StringIO())
    handlers, level = list(LOGGER.handlers), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    yield found
    LOGGER.handlers[:] = handlers
    LOGGER.setLevel(level)


def json_formatter() -> logging.Formatter:
    """Return python-json-logger's."""
    return JsonFormatter("%(levelname)s %(message)s")


def structlog_formatter() -> logging.Formatter:
    """Return structlog's, for records that the standard library made."""
    processors: list[Any] = [
        structlog.stdlib.ExtraAdder(),
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(),
    ]
    return structlog.stdlib.ProcessorFormatter(processors=processors)


@pytest.mark.parametrize("formatter", [json_formatter, structlog_formatter])
async def test_fields_arrive_in_json(make_client: MakeClient, stream: io.StringIO, formatter: Any) -> None:
    """Each record is a line of JSON with its event and what is known of it, and nothing that is None."""
    LOGGER.handlers[-1].setFormatter(formatter())
    emulator = Emulator(tier="pro", duration=5.0)
    knouds = make_client(emulator)
    await (await knouds.workflows.submit(SLUG, {"product_name": "canary of the inputs"}))
    emulator.faults.add(faults.service_error(), route="GET /api/whoami", nth=1)
    await knouds.whoami()
    await submit_all(knouds, 120)
    records = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert all(record["event_name"] for record in records)
    assert not any(value is None for record in records for value in record.values())
    submit = next(each for each in records if each.get("route") == ROUTE)
    (run, *_) = emulator.runs
    assert submit["event_name"] == "attempt"
    assert (submit["target"], submit["execution_id"]) == (f"workflows/{SLUG}", run.execution_id)
    assert (submit["attempt"], submit["http_status"]) == (1, 200)
    assert submit["duration"] == pytest.approx(0.08, abs=0.01)
    assert run.execution_id in submit["message"]
    assert "0.080 s" in submit["message"]
    assert [each["http_status"] for each in records if each.get("route") == "GET /api/whoami"] == [503, 200]
    (wait,) = [each for each in records if each["event_name"] == "rate_limit_wait"]
    assert wait["count"] >= 20
    assert wait["wait"] > 1
    assert emulator.api_key not in stream.getvalue()
    assert "canary of the inputs" not in stream.getvalue()


def test_the_library_configures_no_logging() -> None:
    """The logger has no handler, no level and no filter of the library's, and passes its records on."""
    assert LOGGER.propagate
    assert (LOGGER.handlers, LOGGER.level, LOGGER.filters, LOGGER.disabled) == ([], logging.NOTSET, [], False)
