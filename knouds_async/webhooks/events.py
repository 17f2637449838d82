"""WebhookEvent: what a verified delivery says (contract 11).

Unknown events and fields pass; an event must have its name and, when it says how a run finished, the run's id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs

from knouds_async._sansio import responses
from knouds_async._sansio.inputs import is_execution_id
from knouds_async._sansio.responses import UnreadableError
from knouds_async._sansio.webhooks import CONTRADICTORY
from knouds_async.types import ExecutionState, Status

TEST: Final = "webhook.test"
"""The event that the dashboard sends to try out a receiver; it has no run."""

_ENDS: Final[Mapping[str, Status]] = {
    "execution.completed": Status.COMPLETED,
    "execution.failed": Status.FAILED,
    "execution.cancelled": Status.CANCELLED,
}
_LONGEST_NAME: Final = 200


@attrs.frozen
class WebhookEvent:
    """One verified delivery.

    `event`: its name, e.g. `execution.completed`. `execution_id`: its run; None for `webhook.test`, and where an event
    of an unknown name has none. `state`: the run as the delivery describes it, None without an id.
    """

    event: str
    execution_id: str | None
    state: ExecutionState | None
    raw: Mapping[str, Any] = attrs.field(repr=False, eq=False)

    @property
    def is_test(self) -> bool:
        """Whether the dashboard sent it to try out the receiver."""
        return self.event == TEST


def read_event(body: bytes) -> WebhookEvent:
    """Return the event in the body of a delivery; raise UnreadableError when it is none."""
    parsed = responses.parsed(body)
    name = parsed.get("event") if isinstance(parsed, dict) else None
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
        raise UnreadableError("the body is not an event")
    execution_id = parsed.get("executionId")
    if name == TEST or (execution_id is None and name not in _ENDS):
        return WebhookEvent(name, None, None, parsed)
    if not isinstance(execution_id, str) or not is_execution_id(execution_id):
        raise UnreadableError("the event names no execution")
    return WebhookEvent(name, execution_id, _state(execution_id, name, parsed), parsed)


def _state(execution_id: str, event: str, body: Mapping[str, Any]) -> ExecutionState:
    """Return the run's state; where name and status of the event contradict each other, it is no final state."""
    status_given, known = body.get("status"), _ENDS.get(event)
    if known is None:
        return responses.execution_state(
            execution_id, body if isinstance(status_given, str) else {**body, "status": event}
        )
    is_contradiction = isinstance(status_given, str) and status_given != known and status_given in set(_ENDS.values())
    status = CONTRADICTORY if is_contradiction else known
    return attrs.evolve(responses.execution_state(execution_id, {**body, "status": status}), raw=body)
