"""Handles of submitted runs, awaitable and thin (an id, a target and the poller); what makes them; `knouds.executions`.

Waiting is never the run: whatever happens to a wait, the run continues and is charged (contract 5).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Generator
from typing import Any, Final, TypeVar

import anyio
import attrs

from knouds_async._io.concurrency import ServiceTime, native_cancellation
from knouds_async._io.pipeline import Send
from knouds_async._io.poller import Poller, RunRecord
from knouds_async._sansio import endpoints
from knouds_async._sansio.durations import check_expected
from knouds_async._sansio.endpoints import Call
from knouds_async._sansio.inputs import Default, checked_execution_id
from knouds_async._sansio.reconcile import RecentRuns
from knouds_async.config import Timeouts, canonical_url, is_number
from knouds_async.errors import (
    ClientClosedError,
    ExecutionCancelledError,
    ExecutionFailedError,
    InvalidArgumentError,
    KnoudsError,
    PermissionDeniedError,
    WaitTimeoutError,
    safe_repr,
)
from knouds_async.telemetry import Span, Telemetry, fields
from knouds_async.types import ExecutionState, Inputs, RunResult, Status, Submitted, Target, WorkflowSchema

logger = logging.getLogger("knouds_async")

T = TypeVar("T")


class Execution:
    """A run that was submitted: await it for its result.

    Any number of tasks may await one handle; they share its polls. It pickles to its id, target and base URL, and
    `knouds.executions.attach(execution)` attaches it in any process.
    """

    __slots__ = ("__weakref__", "_base_url", "_poller", "_record")

    def __init__(self, record: RunRecord, poller: Poller | None, base_url: str) -> None:
        self._record = record
        self._poller = poller
        self._base_url = base_url

    @property
    def id(self) -> str:
        """The service's id of the run."""
        return self._record.execution_id

    @property
    def target(self) -> Target | None:
        """What runs; None when it was attached without one."""
        return self._record.target

    @property
    def state(self) -> ExecutionState:
        """The state last seen, without a request; `"unknown"` before the first poll of an attached run."""
        return self._record.state

    @property
    def base_url(self) -> str:
        """The service that runs it."""
        return self._base_url

    def __repr__(self) -> str:
        """Return id, target and status."""
        return f"<Execution {self.id} of {self.target or 'an unknown target'}: {self.state.status}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle to id, target, base URL and the state last seen; never the client or the key."""
        return _detached, (self._record.state, self.target, self._base_url)

    def __await__(self) -> Generator[Any, None, RunResult]:
        """Wait for the run and return its RunResult.

        Raises ExecutionFailedError or ExecutionCancelledError when it failed or was cancelled, and what `wait` raises.
        Cancelling the task that awaits stops the waiting, never the run.
        """
        return self._result().__await__()

    async def _result(self) -> RunResult:
        with self._span() as span:
            state = await self._wait_final(math.inf)
            span.set_state(state)
            return result_of(state)

    async def wait(self, *, timeout: float | None = None) -> ExecutionState:
        """Wait for the run to finish and return its final state.

        `timeout`: seconds for the whole wait, a poll in flight included; then WaitTimeoutError, which carries this
        handle, and the run continues. None and math.inf wait for ever: only `Polling.max_failures` polls that fail in
        a row on the way end such a wait, with their error. Cancelled: only this wait ends.
        """
        if timeout is not None and not (is_number(timeout) and timeout >= 0):
            raise InvalidArgumentError(
                f"timeout={safe_repr(timeout)}: must be a number of seconds of at least 0, or None"
            )
        with self._span() as span:
            longest = math.inf if timeout is None else timeout
            deadline = anyio.current_time() + longest
            with native_cancellation(), anyio.CancelScope(deadline=deadline):
                state = await self._wait_final(deadline)
                span.set_state(state)
                return state
            raise WaitTimeoutError(execution=self, execution_id=self.id, timeout=longest)

    def _span(self) -> Span:
        telemetry = _SILENT if self._poller is None else self._poller.telemetry
        return telemetry.wait(self.id, self.target)

    async def _wait_final(self, deadline: float) -> ExecutionState:
        state = self.state
        while not state.is_final:
            state = await self._attached_poller().wait_for_change(self._record, state, deadline=deadline)
        return state

    async def refresh(self) -> ExecutionState:
        """Poll once, now, and return the state. Raises what any read raises."""
        return await self._attached_poller().refresh(self._record)

    async def cancel(self) -> ExecutionState:
        """Ask the service to cancel the run and return its state then: often `cancel_requested`; wait for the end.

        The run is charged all the same. A run that has already finished is not an error: its final state is returned.
        """
        return await self._attached_poller().cancel(self._record)

    def updates(self) -> Updates:
        """Return an iterator over the changes of status: the present one first and the final one last, each once.

        `async for state in execution.updates(): ...`. It raises what `wait` raises. Leaving the loop early is free.
        """
        return Updates(self._attached_poller(), self._record)

    def _attached_poller(self) -> Poller:
        if self._poller is None:
            raise ClientClosedError(
                f"this handle of execution {self.id} was unpickled and belongs to no client: "
                "attach it with knouds.executions.attach(execution)"
            )
        return self._poller


class Updates:
    """The changes of an execution's status, as an async iterator that holds nothing open between its steps."""

    def __init__(self, poller: Poller, record: RunRecord) -> None:
        self._poller = poller
        self._record = record
        self._last: ExecutionState | None = None

    def __aiter__(self) -> Updates:
        """Return itself."""
        return self

    async def __anext__(self) -> ExecutionState:
        """Wait for the next change. Cancelled: nothing is lost, the next step returns it."""
        if self._last is not None and self._last.is_final:
            raise StopAsyncIteration
        state = self._record.state
        if self._last is not None or state.status == UNSEEN:
            state = await self._poller.wait_for_change(self._record, self._last or state)
        self._last = state
        return state


_SILENT: Final = Telemetry("", enabled=False)  # of handles without a client

UNSEEN = "unknown"
"""The status of an attached run before the first poll."""


def result_of(state: ExecutionState) -> RunResult:
    """Return the result of a final state, or raise how it failed."""
    if state.status == Status.COMPLETED:
        return RunResult(state.result, state.cost, state.ms, state.execution_id, state.raw)
    raise _failure(state)


def _failure(state: ExecutionState) -> KnoudsError:
    if state.status == Status.CANCELLED:
        return ExecutionCancelledError(execution_id=state.execution_id, state=state)
    failure = state.error
    message = (failure.message if failure else None) or "the service gave no reason"
    code = failure.code if failure else None
    return ExecutionFailedError(message, code=code, execution_id=state.execution_id, state=state)


def _detached(state: ExecutionState, target: Target | None, base_url: str) -> Execution:
    """Return an unpickled handle: it knows its run, but no client."""
    return Execution(RunRecord.of(state, target), None, base_url)


class ExecutionFactory:
    """Starts runs through `send` and creates handles that wait through `poller`; `recent` records every run."""

    def __init__(self, send: Send, poller: Poller, base_url: str, time: ServiceTime, recent: RecentRuns) -> None:
        self._send = send
        self._time = time
        self._recent = recent
        self._poller = poller
        self._base_url = base_url
        self._schemas: dict[Target, tuple[float, WorkflowSchema]] = {}

    async def schema(self, target: Target, *, max_age: float = 0.0) -> WorkflowSchema | None:
        """Return the schema of a workflow, which may have been fetched `max_age` seconds ago.

        None for a model, and where the key may run the workflow but not read its schema, which is logged.
        """
        at, schema = self._schemas.get(target, (-math.inf, None))
        if target.kind == "models" or (schema is not None and anyio.current_time() <= at + max_age):
            return schema
        try:
            schema = await self._send(endpoints.workflow_schema(target.name))
        except PermissionDeniedError as error:
            if not error.from_service:  # what stands in between would answer the run as well
                raise
            message = "the schema of %s cannot be read, so inputs are not checked before they are sent: %s"
            extra = fields("schema_unreadable", target=str(target), http_status=error.status)
            logger.warning(message, target, error, extra=extra)
            return None
        self._schemas[target] = (anyio.current_time(), schema)
        return schema

    async def submit(
        self,
        target: Target,
        inputs: Inputs,
        *,
        expected: float | None,
        timeout: float | Timeouts | None,
        default: Default | None,
    ) -> Execution:
        """Submit a run and return its handle; see `Workflows.submit`."""
        check_expected(expected)
        call, total = with_timeout(endpoints.submit(target, inputs, default), timeout)
        return self.from_receipt(await self._send(call, total=total), target, expected)

    def from_receipt(
        self, receipt: Submitted, target: Target, expected: float | None = None, *, is_reported: bool = False
    ) -> Execution:
        """Return the handle of a run whose receipt has just come; `is_reported`: by a batch, if nobody sees its end."""
        self._recent.add(target, receipt.request_id, self._time.moment())
        state, now, expects_delivery = _first_state(receipt, target), anyio.current_time(), receipt.webhook_configured
        record = self._poller.record(RunRecord.of(state, target, now, expected, expects_delivery=expects_delivery))
        record.is_reported = is_reported
        return Execution(record, self._poller, self._base_url)

    async def run(
        self, target: Target, inputs: Inputs, *, timeout: float | Timeouts | None, default: Default | None
    ) -> RunResult:
        """Run synchronously; see `Workflows.run`."""
        call, total = with_timeout(endpoints.run(target, inputs, default), timeout)
        return await self._send(call, total=total)

    def attach(
        self,
        state: ExecutionState,
        target: Target | None,
        *,
        expected: float | None = None,
        is_reported: bool = False,
    ) -> Execution:
        """Return a handle of a run that was submitted before, anywhere."""
        check_expected(expected)
        record = self._poller.record(RunRecord.of(state, target, expected=expected))
        record.is_reported = record.is_reported or is_reported
        return Execution(record, self._poller, self._base_url)

    @property
    def polls_needed(self) -> int:
        """How many polls show the ends of all runs that are waited for, beside those in flight."""
        return self._poller.polls_needed


def with_timeout(call: Call[T], timeout: float | Timeouts | None) -> tuple[Call[T], float | None]:
    """Return a call with the timeouts that replace the client's, and the seconds that replace those of its kind."""
    if isinstance(timeout, Timeouts):
        return attrs.evolve(call, timeouts=timeout), None
    if timeout is not None and not (is_number(timeout) and timeout > 0):
        raise InvalidArgumentError(
            f"timeout={safe_repr(timeout)}: must be a number of seconds above 0, a Timeouts or None"
        )
    return call, timeout


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


class Executions:
    """Submitted runs, by their id (contract 5)."""

    def __init__(self, send: Send, factory: ExecutionFactory, poller: Poller, base_url: str) -> None:
        self._send = send
        self._factory = factory
        self._poller = poller
        self._base_url = base_url

    @property
    def in_flight(self) -> tuple[Execution, ...]:
        """Handles of the runs that somebody waited for, in this client, and that were not seen to finish yet."""
        return tuple(Execution(record, self._poller, self._base_url) for record in self._poller.in_flight.values())

    async def get(self, execution_id: str) -> ExecutionState:
        """Poll an execution once and return its state. An unknown id raises NotFoundError."""
        return await self._send(endpoints.get_execution(execution_id))

    async def cancel(self, execution_id: str) -> ExecutionState:
        """Cancel a run and return its state then; it is charged all the same.

        A run that has already finished is not an error: its final state is returned.
        """
        return await self.attach(execution_id).cancel()

    def expect_deliveries(self, bus: object = None) -> None:
        """Expect ends of runs to be passed to `delivered`: while they come, runs are polled rarely.

        A `WebhookReceiver` with a client calls it by itself, with its bus: what that brings is heard while runs are
        waited for.
        """
        self._poller.expect_deliveries(bus)

    def delivered(self, state: ExecutionState) -> None:
        """Process a state that came another way than by a poll: from a verified webhook, or over a bus from one.

        A final state with its result wakes every waiter of the run, without a request; one without is polled once.
        What comes before anybody waits, even before the submit's answer is read, is remembered: the latest thousand.
        A final state never changes again. It may be called from any thread, and from any callback of an event loop.
        """
        self._poller.delivered(state)

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
            raise InvalidArgumentError(f"target={safe_repr(target)}: must be a Target, workflows/<slug> or None")
        if not isinstance(execution, Execution):
            unseen = ExecutionState(execution_id=checked_execution_id(execution), status=UNSEEN)
            return self._factory.attach(unseen, known, expected=expected)
        if canonical_url(execution.base_url) != canonical_url(self._base_url):
            raise InvalidArgumentError(
                f"execution {execution.id} runs on {execution.base_url}, and this client is for {self._base_url}"
            )
        return self._factory.attach(execution.state, known or execution.target, expected=expected)
