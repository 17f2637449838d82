"""From a refusal of the service to a typed error: one row per documented code of both generations (contract 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from knouds_async import errors
from knouds_async._sansio import headers, replies
from knouds_async._sansio.replies import Answer
from knouds_async.errors import APIError, KnoudsError

BY_CODE: Final[Mapping[str, type[APIError]]] = {
    "INVALID_INPUTS": errors.InvalidInputsError,
    "INVALID_SLUG": errors.InvalidSlugError,
    "INVALID_BODY": errors.InvalidBodyError,
    "INVALID_CAPABILITY": errors.InvalidCapabilityError,
    "INVALID_SCOPE": errors.InvalidScopeError,
    "ASYNC_NOT_SUPPORTED": errors.AsyncNotSupportedError,
    "LEGACY_KEY_RETIRED": errors.LegacyKeyRetiredError,
    "INSUFFICIENT_CREDITS": errors.InsufficientCreditsError,
    "grant_exhausted": errors.GrantExhaustedError,
    "CAPABILITY_DENIED": errors.CapabilityDeniedError,
    "CAPABILITY_ABOVE_CEILING": errors.CapabilityAboveCeilingError,
    "SCOPE_DENIED": errors.ScopeDeniedError,
    "MODEL_TIER_REQUIRED": errors.ModelTierRequiredError,
    "API_KEY_ACCESS_DENIED": errors.APIKeyAccessDeniedError,
    "MODEL_NOT_FOUND": errors.ModelNotFoundError,
    "EXECUTION_NOT_FOUND": errors.ExecutionNotFoundError,
    "RATE_LIMIT_EXCEEDED": errors.RateLimitError,
}

_BY_STATUS: Final[Mapping[int, type[APIError]]] = {
    400: errors.BadRequestError,
    401: errors.AuthenticationError,
    402: errors.PaymentRequiredError,
    403: errors.PermissionDeniedError,
    404: errors.NotFoundError,
    409: errors.ConflictError,
    429: errors.RateLimitError,
}


def class_of(status: int, code: str | None) -> type[APIError]:
    """Give the class of a refusal: by its code, else by its HTTP status."""
    by_code = BY_CODE.get(code or "")
    if by_code is not None:
        return by_code
    if status >= 500:
        return errors.ServiceError
    if status < 400:
        return errors.UnexpectedRedirectError
    return _BY_STATUS.get(status, APIError)


def refusal(answer: Answer, route: str, *, may_have_run: bool = False) -> KnoudsError:
    """Give the error of an answer outside 2xx."""
    body = replies.own_words(answer)
    code = body.get("code") if body else None
    if body is not None and code == "EXECUTION_FAILED":
        return errors.ExecutionFailedError(body["error"], code="EXECUTION_FAILED")
    kind = class_of(answer.status, code if isinstance(code, str) else None)
    extra: dict[str, Any] = {}
    if issubclass(kind, errors.RateLimitError):
        extra = {"retry_after": headers.retry_after(answer, None), "limit": _limit(body)}
    return kind(
        body["error"] if body else _unworded(answer),
        status=answer.status,
        code=code if isinstance(code, str) else None,
        body=body,
        route=route,
        may_have_run=may_have_run,
        **extra,
    )


def _unworded(answer: Answer) -> str:
    """Say what came instead of the service's JSON."""
    if 300 <= answer.status < 400:
        host = urlsplit(answer.headers.get("location", "")).hostname
        return f"a redirect to {host or 'somewhere unnamed'}, which is never followed"
    what = answer.headers.get("content-type", "").split(";")[0] or "a body of no named type"
    return f"no JSON of the service but {what if answer.body.strip() else 'an empty body'}"


def _limit(body: Mapping[str, Any] | None) -> int | None:
    limit = body.get("limit") if body else None
    return limit if isinstance(limit, int) and not isinstance(limit, bool) else None
