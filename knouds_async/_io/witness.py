"""What a paid request did is told before anything follows from it: to a witness that writes it down, else to the log.

Rule of the file: an id that was read must not be lost, whatever became of the caller or of the writing.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any, Final, Protocol, TypeAlias

import anyio

from knouds_async._io.clocks import read_clocks
from knouds_async._io.uninterrupted import is_cancelled, uninterrupted
from knouds_async._sansio.clock import Reading
from knouds_async._sansio.endpoints import Call
from knouds_async._sansio.retry import Again, Done, Fail, Requeue
from knouds_async.types import Submitted

logger = logging.getLogger("knouds_async")

_CLAIM: Final = 30.0  # seconds from an intent on record to its first byte; then it is another owner's business as well

Decision: TypeAlias = Done[Any] | Again | Requeue | Fail


class SendHooks(Protocol):
    """Who writes down what a paid request does; what it raises, `send` raises. `name`, if any: whose it is."""

    async def before_send(self, sent_at: datetime) -> Reading | None:
        """Be told of an attempt before its first byte leaves; what this raises keeps it from leaving.

        Return when what allows it was written down: 30 s later it must not leave any more, and is told anew.
        """
        ...

    async def after_attempt(self, decision: Decision) -> None:
        """Be told what became of an attempt, before the caller is and whatever happened to the caller."""
        ...


class StaleClaimError(Exception):
    """An intent is too old for its request to leave now."""


def refuse_stale(claimed: Reading) -> None:
    """Raise when an intent is too old for its first byte to leave, by whichever clock shows most."""
    age = read_clocks(anyio.current_time()).since(claimed)
    if age > _CLAIM:
        raise StaleClaimError(f"its intent was {age:.0f} s old when it was about to leave")


async def report_attempt(
    call: Call[Any],
    decision: Decision,
    sent_at: datetime,
    hooks: SendHooks | None,
    cancellation: BaseException | None,
) -> None:
    """Tell what became of an attempt and raise the cancellation that came meanwhile, if any.

    Where there is no witness, the log is told of what the caller may not hear: it was cancelled. Where there is one,
    only of what it could not write.
    """
    failure: BaseException | None = None
    if hooks is not None:
        try:
            cancellation = (await uninterrupted(lambda: hooks.after_attempt(decision))).cancellation or cancellation
        except BaseException as error:  # noqa: BLE001  (raised again; a cancellation: the end of the loop cut it)
            failure = error
    is_cut = cancellation is not None or (call.pays_for is not None and is_cancelled())
    if failure is not None or (hooks is None and is_cut):
        _log(call, decision, sent_at)
    if (stop := cancellation or failure) is not None:
        raise stop


def _log(call: Call[Any], decision: Decision, sent_at: datetime) -> None:
    """Say at WARNING what became of a submit that its caller may not hear of: the id must not be lost."""
    if isinstance(decision, Done) and isinstance(decision.value, Submitted):
        logger.warning(
            "execution %s of %s was submitted although its caller was cancelled or failed; it runs and is charged: "
            "knouds.executions.attach(%r) picks it up",
            decision.value.execution_id,
            call.pays_for,
            decision.value.execution_id,
        )
    elif isinstance(decision, Fail) and decision.error.may_have_run:
        logger.warning(
            "a submit of %s at %s ended as unknown while its caller was cancelled or failed: %s",
            call.pays_for,
            sent_at.isoformat(),
            decision.error,
        )
