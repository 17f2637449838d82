"""knouds.models: runs of single models of the registry (contract 2; Business and above)."""

from __future__ import annotations

from knouds_async.execution import Execution
from knouds_async.resources.runs import Runs
from knouds_async.types import Inputs, RunResult, Target


class Models:
    """Runs of single models, by their internal name."""

    def __init__(self, runs: Runs) -> None:
        """Belong to one client."""
        self._runs = runs

    async def submit(self, name: str, inputs: Inputs) -> Execution:
        """Submit a run of the model `name` and give its handle; see `Workflows.submit`.

        Only models whose provider can be polled take it: others raise AsyncNotSupportedError, uncharged; `run` them.
        """
        return await self._runs.submit(Target("models", name), inputs)

    async def run(self, name: str, inputs: Inputs, *, timeout: float | None = None) -> RunResult:
        """Run the model `name` synchronously and give its result; see `Workflows.run`."""
        return await self._runs.run(Target("models", name), inputs, timeout=timeout)
