"""What a failed look means for those who wait. Pure."""

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

FRESH: Final = 5.0  # seconds for which a fresh id may answer 404 (contract 5, assumed)
PATIENCE: Final = 5  # looks that may fail in a row before a wait without a deadline ends

_PASSING: Final = (ConnectionFailedError, NoAnswerError, InvalidResponseError, ServiceError, RateLimitError)
_GAVE_UP: Final = (408, 499)  # a proxy's patience ended: that says nothing of the run


class Fault(Enum):
    """What a failed look means for those who wait."""

    NONE = "none"
    """As good as a look that found the run alive."""
    PASSING = "passing"
    """Of the way there, not of the run: `PATIENCE` in a row end a wait that has no deadline."""
    LASTING = "lasting"
    """No later look can do better: every wait ends."""


def fault(error: KnoudsError, *, age: float | None) -> Fault:
    """Judge a failed look; `age`: seconds since the submit, None when it is not known."""
    if isinstance(error, APIError) and not error.from_service:
        return Fault.PASSING  # somebody in between, who knows nothing of the run
    if isinstance(error, NotFoundError):
        return Fault.NONE if age is not None and age <= FRESH else Fault.LASTING
    gave_up = isinstance(error, APIError) and error.status in _GAVE_UP
    return Fault.PASSING if gave_up or isinstance(error, _PASSING) else Fault.LASTING
