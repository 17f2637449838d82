"""What a failed poll means for those who wait."""

from typing import Any

import pytest

from knouds_async import errors
from knouds_async._sansio.faults import MAX_POLL_FAILURES, NOT_FOUND_GRACE, PollFailure, classify_poll_error
from knouds_async.errors import APIError, KnoudsError


def refused(status: int) -> APIError:
    """Return a refusal of a poll by its status."""
    return APIError("x", status=status)


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (errors.ConnectionFailedError("x"), PollFailure.TRANSIENT),
        (errors.NoAnswerError("x"), PollFailure.TRANSIENT),
        (errors.InvalidResponseError("x"), PollFailure.TRANSIENT),
        (errors.ServiceError("x", status=502), PollFailure.TRANSIENT),
        (errors.RateLimitError("x", status=429), PollFailure.TRANSIENT),
        (refused(408), PollFailure.TRANSIENT),
        (refused(499), PollFailure.TRANSIENT),
        (refused(418), PollFailure.PERMANENT),
        (errors.AuthenticationError("x", status=401), PollFailure.PERMANENT),
        (errors.CapabilityDeniedError("x", status=403), PollFailure.PERMANENT),
        (errors.UnexpectedRedirectError("x", status=302), PollFailure.PERMANENT),
        (errors.BadRequestError("x", status=400), PollFailure.PERMANENT),
        (errors.BadRequestError("x", status=400, from_service=False), PollFailure.TRANSIENT),
        (errors.AuthenticationError("x", status=401, from_service=False), PollFailure.TRANSIENT),
        (errors.PermissionDeniedError("x", status=403, from_service=False), PollFailure.TRANSIENT),
        (errors.NotFoundError("x", status=404, from_service=False), PollFailure.TRANSIENT),
        (errors.UnexpectedRedirectError("x", status=303, from_service=False), PollFailure.TRANSIENT),
        (APIError("x", status=425, from_service=False), PollFailure.TRANSIENT),
        (errors.ClientClosedError("x"), PollFailure.PERMANENT),
        (errors.WrongEventLoopError("x"), PollFailure.PERMANENT),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_fault_of_the_way_passes_and_a_refusal_lasts(error: KnoudsError, meaning: PollFailure) -> None:
    """What went wrong on the way says nothing of the run; a refusal would come again."""
    for age in (None, 0.0, 4.0, 1e6):
        assert classify_poll_error(error, age=age) is meaning, age


@pytest.mark.parametrize("kind", [errors.NotFoundError, errors.ExecutionNotFoundError])
@pytest.mark.parametrize(
    ("age", "meaning"),
    [
        (0.0, PollFailure.IGNORABLE),
        (3.0, PollFailure.IGNORABLE),
        (NOT_FOUND_GRACE, PollFailure.IGNORABLE),
        (NOT_FOUND_GRACE + 0.01, PollFailure.PERMANENT),
        (None, PollFailure.PERMANENT),
    ],
)
def test_a_fresh_id_may_be_unknown_for_a_moment(kind: type[APIError], age: float | None, meaning: PollFailure) -> None:
    """A 404 shortly after the submit is replication (contract 5); later, or of unknown age, it is final."""
    error: Any = kind("x", status=404)
    assert classify_poll_error(error, age=age) is meaning
    assert 3.0 <= NOT_FOUND_GRACE <= 5.0


def test_five_faults_in_a_row_are_too_many() -> None:
    """A wait without a deadline ends at the fifth fault in a row."""
    assert MAX_POLL_FAILURES == 5
