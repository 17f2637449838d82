"""What keeps a batch from submitting, and for how long it is borne: no connection, and whoever answers in between."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from knouds_async._io.witness import Decision
from knouds_async._sansio.retry import Done, Fail, Requeue
from knouds_async.errors import APIError, ConnectionFailedError, SubmissionUnknownError
from knouds_async.types import Target

UNREACHABLE: Final = 600.0  # seconds
_FIRST_PAUSE: Final = 1.0
_SHORT_PAUSE: Final = 5.0
_GATEWAY_FAULTS: Final = 5  # answers of a proxy that got none itself (5xx, 408, 499), in a row


class Outage:
    """A service that cannot be reached: since when, and how long to pause."""

    def __init__(self) -> None:
        """Know of none yet."""
        self._since: float | None = None
        self._pause = _FIRST_PAUSE

    def is_too_long(self, now: float) -> bool:
        """Tell whether it has lasted for so long that there is no hope."""
        self._since = now if self._since is None else self._since
        return now - self._since > UNREACHABLE

    def pause(self) -> float:
        """Give the next pause, each longer than the last."""
        now, self._pause = self._pause, min(60.0, self._pause * 2)
        return now


class ForeignAnswers:
    """Answers to submits that are not the service's own: each leaves a job unknown, so few are borne."""

    def __init__(self) -> None:
        """Have seen none yet."""
        self._in_a_row = 0

    def saw(self, decision: Decision) -> str | None:
        """Take note of an attempt; give who answered where nothing more should be submitted.

        A gateway that finds the service away (5xx, 408, 499) is borne a few times; a page in between is not.
        """
        match decision:
            case Fail(SubmissionUnknownError(intermediary=str() as who, status=status)):
                self._in_a_row += 1
                is_passing = status is not None and (status >= 500 or status in (408, 499))
                return who if not is_passing or self._in_a_row >= _GATEWAY_FAULTS else None
            case Done() | Requeue() | Fail(APIError()):
                self._in_a_row = 0
        return None


class HoldNotices:
    """Pauses that the service asked for: each is worth a word once."""

    def __init__(self) -> None:
        """Know of none yet."""
        self._until: datetime | None = None

    def news(self, now: datetime, held_for: float) -> datetime | None:
        """Give until when a pause lasts, if it is longer than what is known; a short one is not worth a word."""
        until = now + timedelta(seconds=held_for)
        known = now if self._until is None else max(now, self._until)
        if until < known + timedelta(seconds=_SHORT_PAUSE):
            return None
        self._until = until
        return until


def intercepted(target: Target, who: str) -> ConnectionFailedError:
    """Make the error of jobs that are not sent because somebody answers in the service's place."""
    return ConnectionFailedError(
        f"{target}: not sent: something between here and the service answers in its place ({who}). Nothing more is "
        "submitted: look what stands in between (a proxy, a firewall, a login page), then run the rest"
    )
