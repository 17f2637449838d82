"""knouds.executions: submitted runs, by their id (contract 5)."""

from __future__ import annotations

from knouds_async._io.pipeline import Send
from knouds_async._sansio import endpoints
from knouds_async._sansio.inputs import checked_execution_id
from knouds_async.config import one_spelling
from knouds_async.errors import InvalidArgumentError
from knouds_async.execution import UNSEEN, Execution, ExecutionFactory
from knouds_async.types import ExecutionState, Target


class Executions:
    """Executions by their id."""

    def __init__(self, send: Send, factory: ExecutionFactory, base_url: str) -> None:
        self._send = send
        self._factory = factory
        self._base_url = base_url

    @property
    def in_flight(self) -> tuple[Execution, ...]:
        """Handles of the runs that somebody waited for, in this client, and that were not seen to finish yet."""
        return self._factory.in_flight

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
        self._factory.expect_deliveries(bus)

    def delivered(self, state: ExecutionState) -> None:
        """Process a state that came another way than by a poll: from a verified webhook, or over a bus from one.

        A final state with its result wakes every waiter of the run, without a request; one without is polled once.
        What comes before anybody waits, even before the submit's answer is read, is remembered: the latest thousand.
        A final state never changes again. It may be called from any thread, and from any callback of an event loop.
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
