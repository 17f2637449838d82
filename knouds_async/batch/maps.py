"""Makes batches for one client: checks what is asked for, and puts the parts together."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from typing import Final

from knouds_async._sansio import endpoints
from knouds_async._sansio.durations import check_expected
from knouds_async.batch.batch import Batch
from knouds_async.batch.books import LedgerSession
from knouds_async.batch.jobs import Jobs
from knouds_async.batch.ledger import Ledger
from knouds_async.batch.memory import MemoryLedger
from knouds_async.batch.outcomes import Outcome
from knouds_async.batch.progress import OnProgress
from knouds_async.batch.runner import BatchPlan
from knouds_async.batch.sender import JobSubmitter, OnUnknown
from knouds_async.batch.service import BatchClient
from knouds_async.batch.sqlite import SQLiteLedger
from knouds_async.batch.work import JobRunner
from knouds_async.errors import InvalidArgumentError, PermissionDeniedError
from knouds_async.types import Inputs, Target

logger = logging.getLogger("knouds_async")

MOST_IN_FLIGHT: Final = 2000
"""How many jobs are under way at once unless a caller says otherwise: 1000 a minute that take two minutes each."""


class BatchFactory:
    """Makes batches of one client."""

    def __init__(self, client: BatchClient) -> None:
        """Run them through `service`."""
        self._client = client

    def map(
        self,
        target: Target,
        jobs: Jobs,
        *,
        ordered: bool,
        max_in_flight: int | None,
        ledger: Ledger | str | os.PathLike[str] | None,
        max_credits: float | None,
        on_unknown: OnUnknown,
        validate: bool,
        expected: float | None,
        on_progress: OnProgress | None,
    ) -> Batch:
        """Make a batch; see `Workflows.map`."""
        endpoints.submit(target, {})  # checks the name
        _check(jobs, max_in_flight, max_credits, on_unknown)
        check_expected(expected)
        client = self._client.expecting(expected)
        if isinstance(ledger, (str, os.PathLike)):
            session = LedgerSession(SQLiteLedger(ledger), str(target), max_credits, client.pipeline.time, is_own=True)
        else:
            session = LedgerSession(
                ledger or MemoryLedger(), str(target), max_credits, client.pipeline.time, is_own=False
            )
        submitter = JobSubmitter(client, target, session, on_unknown)
        job_runner = JobRunner(client, target, session, submitter)
        plan = BatchPlan(
            jobs=jobs,
            is_ordered=ordered,
            max_in_flight=MOST_IN_FLIGHT if max_in_flight is None else max_in_flight,
            on_progress=on_progress,
        )

        async def prepare() -> None:
            await session.open(None if ledger is None else await client.payer())
            if target.kind == "workflows" and (validate or max_credits is not None):
                await self._fetch_schema(target, submitter, session, validate=validate)

        return Batch(plan, job_runner, submitter, session, prepare)

    async def gather(self, target: Target, inputs: Sequence[Inputs], *, validate: bool) -> list[Outcome]:
        """Run a small list and give its outcomes in order; see `Workflows.gather`."""
        batch = self.map(
            target,
            inputs,
            ordered=True,
            max_in_flight=None,
            ledger=None,
            max_credits=None,
            on_unknown="park",
            validate=validate,
            expected=None,
            on_progress=None,
        )
        async with batch as outcomes:
            return [outcome async for outcome in outcomes]

    async def _fetch_schema(
        self, target: Target, submitter: JobSubmitter, session: LedgerSession, *, validate: bool
    ) -> None:
        """Fetch the schema once; a key that may run the workflow but not read it goes without."""
        try:
            schema = await self._client.pipeline.send(endpoints.workflow_schema(target.name))
        except PermissionDeniedError as error:
            if not error.from_service:  # what stands in between would answer the runs as well
                raise
            logger.warning(
                "the schema of %s cannot be read, so inputs are not checked before they are sent: %s", target, error
            )
            return
        submitter.schema = schema if validate else None
        session.expect(schema.estimated_credit_cost)


def _check(jobs: object, max_in_flight: object, max_credits: object, on_unknown: object) -> None:
    if isinstance(jobs, (str, bytes, Mapping)) or not isinstance(jobs, (Iterable, AsyncIterable)):
        raise InvalidArgumentError(f"jobs={jobs!r:.80}: must be an iterable or an async iterable of jobs")
    is_number = isinstance(max_in_flight, int) and not isinstance(max_in_flight, bool)
    if max_in_flight is not None and not (is_number and max_in_flight >= 1):  # type: ignore[operator]
        raise InvalidArgumentError(f"max_in_flight={max_in_flight!r:.80}: must be a whole number above 0, or None")
    is_credits = isinstance(max_credits, (int, float)) and not isinstance(max_credits, bool)
    if max_credits is not None and not (is_credits and 0 <= max_credits < 1e15):  # type: ignore[operator]
        raise InvalidArgumentError(f"max_credits={max_credits!r:.80}: must be credits, zero or more, or None")
    if on_unknown not in ("park", "stop"):
        raise InvalidArgumentError(f"on_unknown={on_unknown!r:.80}: must be 'park' or 'stop'")
