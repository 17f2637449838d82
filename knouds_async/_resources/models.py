"""knouds.models: runs of single models of the registry (contract 2; Business and above)."""

from __future__ import annotations

import os
from collections.abc import Sequence

from knouds_async._batch.batch import Batch, BatchFactory
from knouds_async._batch.jobs import Jobs, OnProgress, Outcome
from knouds_async._batch.ledger import Ledger
from knouds_async._batch.worker import OnUnknown
from knouds_async._resources.executions import ExecutionFactory
from knouds_async.execution import Execution
from knouds_async.types import Inputs, RunResult, Target


class Models:
    """Runs of single models, by their internal name."""

    def __init__(self, factory: ExecutionFactory, batches: BatchFactory) -> None:
        self._factory = factory
        self._batches = batches

    async def submit(self, name: str, inputs: Inputs, *, expected: float | None = None) -> Execution:
        """Submit a run of the model `name` and return its handle; see `Workflows.submit`.

        Only models whose provider can be polled take it: others raise AsyncNotSupportedError, uncharged; `run` them.
        """
        return await self._factory.submit(Target("models", name), inputs, expected=expected)

    async def run(self, name: str, inputs: Inputs, *, timeout: float | None = None) -> RunResult:
        """Run the model `name` synchronously and return its result; see `Workflows.run`."""
        return await self._factory.run(Target("models", name), inputs, timeout=timeout)

    def map(
        self,
        name: str,
        jobs: Jobs,
        *,
        ordered: bool = False,
        max_in_flight: int | None = None,
        ledger: Ledger | str | os.PathLike[str] | None = None,
        max_credits: float | None = None,
        on_unknown: OnUnknown = "park",
        validate: bool = True,
        expected: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Batch:
        """Run the model `name` once for each job; see `Workflows.map`.

        A model has no schema to check inputs against or to take a price from, so `validate` has nothing to do. One
        whose provider cannot be polled is run through the synchronous endpoint: such runs have no id, so one that is
        interrupted is unknown.
        """
        return self._batches.map(
            Target("models", name),
            jobs,
            ordered=ordered,
            max_in_flight=max_in_flight,
            ledger=ledger,
            max_credits=max_credits,
            on_unknown=on_unknown,
            validate=validate,
            expected=expected,
            on_progress=on_progress,
        )

    async def gather(self, name: str, inputs: Sequence[Inputs]) -> list[Outcome]:
        """Run the model `name` once for each of a small list of inputs; see `Workflows.gather`."""
        return await self._batches.gather(Target("models", name), inputs, validate=False)
