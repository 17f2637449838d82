"""What a failed poll means for those who wait. Pure."""

from __future__ import annotations

from enum import Enum
from typing import Final

from knouds_async.errors import (
    APIError,
    ConnectionFailedError,
    InvalidResponseError,
    KnoudsError,
    NoAnswerError,
    NotFoundError,
    RateLimitError,
    ServiceError,
)

NOT_FOUND_GRACE: Final = 5.0  # seconds for which a fresh id may answer 404 (contract 5, assumed)
MAX_POLL_FAILURES: Final = 5  # polls that may fail in a row before a wait without a deadline ends

_TRANSIENT: Final = (ConnectionFailedError, NoAnswerError, InvalidResponseError, ServiceError, RateLimitError)
_PROXY_TIMEOUTS: Final = (408, 499)  # a proxy timed out: that says nothing of the run


class PollFailure(Enum):
    """What a failed poll means for those who wait."""

    IGNORABLE = "ignorable"
    """As good as a poll that found the run running."""
    TRANSIENT = "transient"
    """Of the way there, not of the run: `MAX_POLL_FAILURES` in a row end a wait that has no deadline."""
    PERMANENT = "permanent"
    """No later poll can do better: every wait ends."""


def classify_poll_error(error: KnoudsError, *, age: float | None) -> PollFailure:
    """Return what a failed poll means; `age`: seconds since the submit, None when unknown."""
    if isinstance(error, APIError) and not error.from_service:
        return PollFailure.TRANSIENT  # somebody in between, who knows nothing of the run
    if isinstance(error, NotFoundError):
        return PollFailure.IGNORABLE if age is not None and age <= NOT_FOUND_GRACE else PollFailure.PERMANENT
    is_proxy_timeout = isinstance(error, APIError) and error.status in _PROXY_TIMEOUTS
    return PollFailure.TRANSIENT if is_proxy_timeout or isinstance(error, _TRANSIENT) else PollFailure.PERMANENT
