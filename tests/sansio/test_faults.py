"""What a failed look means for those who wait."""

from typing import Any

import pytest

from knouds_async import errors
from knouds_async._sansio.faults import FRESH, PATIENCE, Fault, fault
from knouds_async.errors import APIError, KnoudsError


def refused(status: int) -> APIError:
    """Give a refusal of a look by its status."""
    return APIError("x", status=status)


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (errors.ConnectionFailedError("x"), Fault.PASSING),
        (errors.NoAnswerError("x"), Fault.PASSING),
        (errors.InvalidResponseError("x"), Fault.PASSING),
        (errors.ServiceError("x", status=502), Fault.PASSING),
        (errors.RateLimitError("x", status=429), Fault.PASSING),
        (refused(408), Fault.PASSING),
        (refused(499), Fault.PASSING),
        (refused(418), Fault.LASTING),
        (errors.AuthenticationError("x", status=401), Fault.LASTING),
        (errors.CapabilityDeniedError("x", status=403), Fault.LASTING),
        (errors.UnexpectedRedirectError("x", status=302), Fault.LASTING),
        (errors.BadRequestError("x", status=400), Fault.LASTING),
        (errors.BadRequestError("x", status=400, from_service=False), Fault.PASSING),
        (errors.AuthenticationError("x", status=401, from_service=False), Fault.PASSING),
        (errors.PermissionDeniedError("x", status=403, from_service=False), Fault.PASSING),
        (errors.NotFoundError("x", status=404, from_service=False), Fault.PASSING),
        (errors.UnexpectedRedirectError("x", status=303, from_service=False), Fault.PASSING),
        (APIError("x", status=425, from_service=False), Fault.PASSING),
        (errors.ClientClosedError("x"), Fault.LASTING),
        (errors.WrongEventLoopError("x"), Fault.LASTING),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_fault_of_the_way_passes_and_a_refusal_lasts(error: KnoudsError, meaning: Fault) -> None:
    """What went wrong on the way says nothing of the run; a refusal would come again."""
    for age in (None, 0.0, 4.0, 1e6):
        assert fault(error, age=age) is meaning, age


@pytest.mark.parametrize("kind", [errors.NotFoundError, errors.ExecutionNotFoundError])
@pytest.mark.parametrize(
    ("age", "meaning"),
    [(0.0, Fault.NONE), (3.0, Fault.NONE), (FRESH, Fault.NONE), (FRESH + 0.01, Fault.LASTING),
     (None, Fault.LASTING)],
)  # fmt: skip
def test_a_fresh_id_may_be_unknown_for_a_moment(kind: type[APIError], age: float | None, meaning: Fault) -> None:
    """A 404 shortly after the submit is replication (contract 5); later, or of unknown age, it is final."""
    error: Any = kind("x", status=404)
    assert fault(error, age=age) is meaning
    assert 3.0 <= FRESH <= 5.0


def test_five_faults_in_a_row_are_too_many() -> None:
    """A wait without a deadline ends at the fifth fault in a row."""
    assert PATIENCE == 5
