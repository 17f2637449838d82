"""Runs of either kind of target, submitted or synchronous: what workflows and models share."""

from __future__ import annotations

import anyio

from knouds_async._io.clocks import ServiceTime
from knouds_async._io.pipeline import Send
from knouds_async._io.poller import Poller
from knouds_async._sansio import endpoints
from knouds_async._sansio.durations import check_expected
from knouds_async._sansio.reconcile import RecentRuns
from knouds_async.errors import InvalidArgumentError
from knouds_async.execution import Execution
from knouds_async.types import ExecutionState, Inputs, RunResult, Status, Submitted, Target


class ExecutionFactory:
    """Starts runs through `send` and creates handles that wait through `poller`; `recent` records every run."""

    def __init__(self, send: Send, poller: Poller, base_url: str, time: ServiceTime, recent: RecentRuns) -> None:
        self._send = send
        self._time = time
        self._recent = recent
        self._poller = poller
        self._base_url = base_url

    async def submit(self, target: Target, inputs: Inputs, *, expected: float | None = None) -> Execution:
        """Submit a run and return its handle; `expected`: seconds that it should take."""
        check_expected(expected)
        return self.from_receipt(await self._send(endpoints.submit(target, inputs)), target, expected)

    def from_receipt(self, receipt: Submitted, target: Target, expected: float | None = None) -> Execution:
        """Return the handle of a run whose receipt has just come."""
        self._recent.add(target, receipt.request_id, self._time.moment())
        record = self._poller.record(
            _first_state(receipt, target),
            target,
            submitted_at=anyio.current_time(),
            expected=expected,
            expects_delivery=receipt.webhook_configured,
        )
        return Execution(record, self._poller, self._base_url)

    async def run(self, target: Target, inputs: Inputs, *, timeout: float | None) -> RunResult:
        """Run synchronously; `timeout` in seconds."""
        if timeout is not None and not (isinstance(timeout, (int, float)) and timeout > 0):
            raise InvalidArgumentError(f"timeout={timeout!r}: must be a number of seconds above 0, or None")
        return await self._send(endpoints.run(target, inputs), total=timeout)

    def expect_deliveries(self) -> None:
        """Expect ends to be delivered."""
        self._poller.expect_deliveries()

    def delivered(self, state: ExecutionState) -> None:
        """Process a verified delivery."""
        self._poller.delivered(state)

    def attach(self, state: ExecutionState, target: Target | None, *, expected: float | None = None) -> Execution:
        """Return a handle of a run that was submitted before, anywhere."""
        check_expected(expected)
        return Execution(self._poller.record(state, target, expected=expected), self._poller, self._base_url)


def _first_state(receipt: Submitted, target: Target) -> ExecutionState:
    """Return the state that a submit's receipt describes; a receipt holds no result, so it is never final."""
    status = (
        Status.PROCESSING if receipt.status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED) else receipt.status
    )
    return ExecutionState(
        execution_id=receipt.execution_id,
        request_id=receipt.request_id,
        status=status,
        workflow_slug=target.name if target.kind == "workflows" else None,
        raw=receipt.raw,
    )
