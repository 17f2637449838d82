"""WebhookEvent: what a verified delivery says (contract 11).

Rule of the file: events and fields that this library does not know pass; what an event must have is its name and, when
it tells how a run ended, the run's id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs

from knouds_async._sansio import responses
from knouds_async._sansio.deliveries import CONTRADICTORY
from knouds_async._sansio.inputs import is_execution_id
from knouds_async._sansio.responses import UnreadableError
from knouds_async.types import ExecutionState, Status

TEST: Final = "webhook.test"
"""The event that the dashboard sends to try out a receiver; it is of no run."""

_ENDS: Final[Mapping[str, Status]] = {
    "execution.completed": Status.COMPLETED,
    "execution.failed": Status.FAILED,
    "execution.cancelled": Status.CANCELLED,
}
_LONGEST_NAME: Final = 200


@attrs.frozen
class WebhookEvent:
    """One verified delivery.

    `event`: its name, e.g. `execution.completed`. `execution_id`: the run it is of; None for `webhook.test`, and where
    an event of an unknown name has none. `state`: the run as the delivery tells of it, None without an id.
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
    """Read the body of a delivery; UnreadableError when it is not an event."""
    parsed = responses.parsed(body)
    name = parsed.get("event") if isinstance(parsed, dict) else None
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
        raise UnreadableError("the body is not an event")
    found = parsed.get("executionId")
    if name == TEST or (found is None and name not in _ENDS):
        return WebhookEvent(name, None, None, parsed)
    if not isinstance(found, str) or not is_execution_id(found):
        raise UnreadableError("the event names no execution")
    return WebhookEvent(name, found, _state(found, name, parsed), parsed)


def _state(execution_id: str, event: str, body: Mapping[str, Any]) -> ExecutionState:
    """Read the run's state; where name and status of the event contradict each other, it says nothing of the end."""
    told, known = body.get("status"), _ENDS.get(event)
    if known is None:
        return responses.execution_state(execution_id, body if isinstance(told, str) else {**body, "status": event})
    is_contradiction = isinstance(told, str) and told != known and told in set(_ENDS.values())
    status = CONTRADICTORY if is_contradiction else known
    return attrs.evolve(responses.execution_state(execution_id, {**body, "status": status}), raw=body)
