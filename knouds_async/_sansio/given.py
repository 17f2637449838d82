"""The ids of the runs that submits were given: one run is one submit's, so an id that comes twice is no receipt."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final, TypeVar

from knouds_async._sansio.calls import Call
from knouds_async._sansio.retry import Again, Done, Fail, Requeue, SoFar
from knouds_async.errors import SubmissionUnknownError
from knouds_async.types import Submitted

T = TypeVar("T")

MOST: Final = 10_000
"""Ids that are remembered; an answer that strays comes soon, or not at all."""


class Given:
    """Remembers the latest ids and whose they are."""

    def __init__(self, most: int = MOST) -> None:
        """Remember at most so many."""
        self._most = most
        self._whose: OrderedDict[str, str] = OrderedDict()

    def checked(
        self, call: Call[T], decision: Done[T] | Again | Requeue | Fail, so_far: SoFar, whose: str | None
    ) -> Done[T] | Again | Requeue | Fail:
        """Give the decision back, or an open outcome where the id in it is another submit's; `whose`: the submit's."""
        found = _id_in(decision)
        if found is None:
            return decision
        if (owner := self._whose.get(found)) is None:
            self._whose[found] = whose or f"another submit of {call.pays_for}"
            if len(self._whose) > self._most:
                self._whose.popitem(last=False)
            return decision
        said = f"execution {found!r}, which is the run of {owner}"
        error = SubmissionUnknownError(
            target=str(call.pays_for),
            sent_at=so_far.sent_at,
            seen=f"the answer names {said}",
            intermediary=f"an answer that names {said}",
        )
        return Fail(error)


def _id_in(decision: Done[Any] | Again | Requeue | Fail) -> str | None:
    match decision:
        case Done(Submitted(execution_id=found)) | Fail(SubmissionUnknownError(execution_id=str() as found)):
            return found
    return None
