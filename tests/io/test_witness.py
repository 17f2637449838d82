"""A witness of a submit is told before its first byte leaves, and what became of it before anybody else."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from typing import Any

import anyio
import httpx
import pytest

from knouds_async._io.exchange import Exchange
from knouds_async._io.limiter import Limiter
from knouds_async._io.pipeline import Decision, Pipeline
from knouds_async._sansio import endpoints
from knouds_async._sansio.endpoints import Call
from knouds_async._sansio.retry import Done, Fail, Requeue
from knouds_async.config import Retries, Secret, Timeouts
from knouds_async.errors import KnoudsError, SubmissionUnknownError
from knouds_async.testing import Emulator, EmulatorTransport, faults
from knouds_async.types import Submitted, Target

CALL: Call[Submitted] = endpoints.submit(Target("workflows", "my-thumbnail-pipeline"), {"product_name": "Knouds"})
ROUTE = "POST /api/workflows/:slug/run"


def pipeline(emulator: Emulator, latency: float = 1.0) -> Pipeline:
    """Build a pipeline on an emulator: one way takes `latency` seconds."""
    exchange = Exchange(
        httpx.AsyncClient(transport=EmulatorTransport(emulator, latency=latency)),
        base_url="https://knouds.test",
        key=Secret(emulator.api_key),
        timeouts=Timeouts(),
        agent="test",
        is_known=True,
    )
    return Pipeline(exchange, Limiter(), Retries())


class Notes:
    """A witness that takes `slow` seconds for each note, and fails where it is told to."""

    def __init__(self, emulator: Emulator, slow: float = 0.0, fails: str = "") -> None:
        self.emulator = emulator
        self.slow, self.fails = slow, fails
        self.runs_when_leaving: list[int] = []
        self.decisions: list[Decision] = []

    async def before_send(self, sent_at: datetime) -> None:
        self.runs_when_leaving.append(self.emulator.requests.count)
        await anyio.sleep(self.slow)
        if self.fails == "leaving":
            raise KnoudsError("nothing can be written")

    async def after_attempt(self, decision: Decision) -> None:
        await anyio.sleep(self.slow)
        if self.fails == "ended":
            raise KnoudsError("nothing can be written")
        self.decisions.append(decision)


async def test_it_is_told_before_and_after(emulator: Emulator) -> None:
    """The intent is noted before the service sees the request, the receipt before the caller has it."""
    notes = Notes(emulator, slow=0.5)
    receipt = await pipeline(emulator).send(CALL, hooks=notes)
    (decision,) = notes.decisions
    assert notes.runs_when_leaving == [0]
    assert isinstance(decision, Done)
    assert decision.value is receipt


async def test_what_cannot_be_noted_does_not_leave(emulator: Emulator) -> None:
    """A witness that fails before the request keeps it from leaving, and its turn goes to another."""
    sender = pipeline(Emulator(tier="pro", limit=1))
    with pytest.raises(KnoudsError, match="nothing can be written"):
        await sender.send(CALL, hooks=Notes(emulator, fails="leaving"))
    await sender.send(CALL)
    assert anyio.current_time() < 10


@pytest.mark.parametrize("at", [0.25, 0.75, 1.5, 2.25, 2.75])
async def test_a_cancelled_caller_cuts_nothing(at: float, emulator: Emulator) -> None:
    """From the first note on the submit is finished and its receipt noted, whenever the caller's scope is cancelled."""
    notes = Notes(emulator, slow=0.5)
    with anyio.move_on_after(at):
        await pipeline(emulator).send(CALL, hooks=notes)
    (decision,) = notes.decisions
    assert isinstance(decision, Done)
    assert [run.execution_id for run in emulator.runs] == [decision.value.execution_id]


@pytest.mark.parametrize("at", [0.25, 0.75, 1.5, 2.25, 2.75])
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_asyncios_own_cancellation_cuts_nothing(at: float, emulator: Emulator) -> None:
    """The receipt is noted, then the cancellation is raised."""
    notes = Notes(emulator, slow=0.5)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(at):
            await pipeline(emulator).send(CALL, hooks=notes)
    (decision,) = notes.decisions
    assert isinstance(decision, Done)
    assert [run.execution_id for run in emulator.runs] == [decision.value.execution_id]


async def test_an_id_that_cannot_be_noted_is_logged(emulator: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """When the receipt cannot be written down, the caller learns of it and the id stands in the log."""
    caplog.set_level(logging.WARNING, logger="knouds_async")
    with pytest.raises(KnoudsError, match="nothing can be written"):
        await pipeline(emulator).send(CALL, hooks=Notes(emulator, fails="ended"))
    assert emulator.runs[0].execution_id in caplog.text


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_an_id_whose_noting_the_end_of_the_loop_cuts_is_logged(
    emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """When the loop ends while the receipt is being written down, the id stands in the log."""
    caplog.set_level(logging.WARNING, logger="knouds_async")
    sending = asyncio.create_task(pipeline(emulator).send(CALL, hooks=Notes(emulator, slow=1.0)))
    before = asyncio.all_tasks() - {sending}
    await asyncio.sleep(3.5)  # noted, sent and answered by 3, noted again by 4
    for task in asyncio.all_tasks() - before:  # as asyncio.Runner does when it closes
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert emulator.runs[0].execution_id in caplog.text


@pytest.mark.parametrize("is_noted", [True, False])
async def test_what_is_noted_is_not_logged(
    is_noted: bool, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """The id of a submit whose caller was cancelled stands in the log only when nobody else has written it down."""
    caplog.set_level(logging.WARNING, logger="knouds_async")
    with anyio.move_on_after(1.5):
        await pipeline(emulator).send(CALL, hooks=Notes(emulator) if is_noted else None)
    assert (emulator.runs[0].execution_id in caplog.text) is not is_noted


async def test_every_attempt_is_told(emulator: Emulator) -> None:
    """A refused attempt and the one after it are both told, and so is an open outcome."""
    notes: Any = Notes(emulator)
    emulator.faults.add(faults.rate_limited(), route=ROUTE, nth=1)
    await pipeline(emulator).send(CALL, hooks=notes)
    assert [type(decision) for decision in notes.decisions] == [Requeue, Done]
    emulator.faults.add(faults.closed(after_run=True), route=ROUTE, nth=1)
    with pytest.raises(SubmissionUnknownError):
        await pipeline(emulator).send(CALL, hooks=notes)
    assert isinstance(notes.decisions[-1], Fail)
