"""The ids of the runs that jobs were given: one run is one job's, so an id that comes twice is no receipt. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final, TypeVar

from knouds_async._sansio.endpoints import Call
from knouds_async._sansio.retry import Again, Done, Fail, Requeue, SoFar, unknown
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
        """Return the decision, or an open outcome where the id in it is another job's.

        `whose`: the job's name; None outside of batches, where nothing tells one submit from another.
        """
        found = _id_in(decision)
        if found is None or whose is None:
            return decision
        if (owner := self._whose.get(found)) is None:
            self._whose[found] = whose
            if len(self._whose) > self._most:
                self._whose.popitem(last=False)
            return decision
        said = f"execution {found!r}, which is the run of {owner}"
        return Fail(unknown(call, f"the answer names {said}", so_far, intermediary=f"an answer that names {said}"))


def _id_in(decision: Done[Any] | Again | Requeue | Fail) -> str | None:
    match decision:
        case Done(Submitted(execution_id=found)) | Fail(SubmissionUnknownError(execution_id=str() as found)):
            return found
    return None
