"""knouds.executions: submitted runs, by their id (contract 5), and the factory of handles that all resources share."""

from __future__ import annotations

import anyio

from knouds_async._io.concurrency import ServiceTime
from knouds_async._io.pipeline import Send
from knouds_async._io.poller import Poller
from knouds_async._sansio import endpoints
from knouds_async._sansio.durations import check_expected
from knouds_async._sansio.inputs import checked_execution_id
from knouds_async._sansio.reconcile import RecentRuns
from knouds_async.config import one_spelling
from knouds_async.errors import InvalidArgumentError
from knouds_async.execution import UNSEEN, Execution
from knouds_async.types import ExecutionState, Inputs, RunResult, Status, Submitted, Target

# ---- The factory of handles


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


# ---- The resource


class Executions:
    """Executions by their id."""

    def __init__(self, send: Send, factory: ExecutionFactory, base_url: str) -> None:
        self._send = send
        self._factory = factory
        self._base_url = base_url

    async def get(self, execution_id: str) -> ExecutionState:
        """Poll an execution once and return its state. An unknown id raises NotFoundError."""
        return await self._send(endpoints.get_execution(execution_id))

    async def cancel(self, execution_id: str) -> ExecutionState:
        """Cancel a run and return its state then; it is charged all the same.

        A run that has already finished is not an error: its final state is returned.
        """
        return await self.attach(execution_id).cancel()

    def expect_deliveries(self) -> None:
        """Expect ends of runs to be passed to `delivered`: while they come, runs are polled rarely.

        A `WebhookReceiver` with a client calls it by itself.
        """
        self._factory.expect_deliveries()

    def delivered(self, state: ExecutionState) -> None:
        """Process a state that came another way than by a poll: from a verified webhook, or over a bus from one.

        A final state with its result wakes every waiter of the run, without a request; one without is polled once.
        What comes before anybody waits, even before the submit's answer is read, is remembered: the latest thousand.
        A final state never changes again. Call it in the client's event loop; WrongEventLoopError in another.
        """
        self._factory.delivered(state)

    def attach(
        self, execution: str | Execution, target: Target | str | None = None, *, expected: float | None = None
    ) -> Execution:
        """Return a handle of a run that was submitted before, in any process; no request is made.

        `execution`: an id, or a handle that was pickled. `target`: what runs, if known (`workflows/<slug>`), so that
        the time such runs take can be learned. `expected`: seconds that it should take in all, if you know better.
        A handle of another service raises InvalidArgumentError.
        """
        known = Target.parse(target) if isinstance(target, str) else target
        if known is not None and not isinstance(known, Target):
            raise InvalidArgumentError(f"target={target!r:.80}: must be a Target, a string (workflows/<slug>) or None")
        if not isinstance(execution, Execution):
            unseen = ExecutionState(execution_id=checked_execution_id(execution), status=UNSEEN)
            return self._factory.attach(unseen, known, expected=expected)
        if one_spelling(execution.base_url) != one_spelling(self._base_url):
            raise InvalidArgumentError(
                f"execution {execution.id} runs on {execution.base_url}, and this client is for {self._base_url}"
            )
        return self._factory.attach(execution.state, known or execution.target, expected=expected)
