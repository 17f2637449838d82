"""From a refusal of the service to a typed error: one row per documented code of both generations (contract 7)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from knouds_async import errors
from knouds_async._sansio import responses
from knouds_async._sansio.endpoints import Call
from knouds_async._sansio.responses import Answer, UnreadableError
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

_FREE: Final = "Nothing was run"
_STRANGER: Final = "Check what stands in between: a proxy, a firewall, a login page"

_BY_STATUS: Final[Mapping[int, type[APIError]]] = {
    400: errors.BadRequestError,
    401: errors.AuthenticationError,
    402: errors.PaymentRequiredError,
    403: errors.PermissionDeniedError,
    404: errors.NotFoundError,
    409: errors.ConflictError,
}


def class_of(status: int, code: str | None) -> type[APIError]:
    """Return the class of a refusal: by its code, else by its HTTP status.

    A code counts in a 4xx only, for its advice says that nothing was run; a 429 is a 429, whatever else it says.
    """
    if status >= 500:
        return errors.ServiceError
    if status < 400:
        return errors.UnexpectedRedirectError
    if status == 429:
        return errors.RateLimitError
    return BY_CODE.get(code or "") or _BY_STATUS.get(status, APIError)


def api_error(
    answer: Answer, call: Call[Any], *, may_have_run: bool = False, server_time: float | None = None
) -> KnoudsError:
    """Return the error of an answer outside 2xx; `server_time`: the service's clock in epoch seconds, for waits."""
    is_own = responses.service_error(answer) is not None
    body = _json_object(answer)
    said = next((body[key] for key in ("error", "message") if isinstance(body.get(key), str)), None)
    code = body["code"] if isinstance(body.get("code"), str) else None
    if (
        is_own
        and said is not None
        and code == "EXECUTION_FAILED"
        and call.pays_for is not None
        and answer.status != 429
    ):
        return errors.ExecutionFailedError(said, code=code)
    kind = class_of(answer.status, code)
    extra: dict[str, Any] = {}
    advice = _advice(kind, answer.status, call, is_own=is_own)
    if issubclass(kind, errors.RateLimitError):
        asked = responses.retry_after(answer, server_time)
        extra = {"retry_after": asked, "limit": _limit(body), "is_pause": asked is not None}
        if asked is not None:
            advice = re.sub("([Ww]ait),", rf"\1 {asked:.0f} s,", advice, count=1)
    return kind(
        describe_body(answer) if said is None else said,
        status=answer.status,
        code=code,
        body=body or None,
        route=call.route,
        request=call.request,
        may_have_run=may_have_run,
        advice=advice,
        from_service=is_own,
        **extra,
    )


def _advice(kind: type[APIError], status: int, call: Call[Any], *, is_own: bool) -> str:
    """Return the advice of a class; that nothing was run is said of paid calls refused with a 4xx, and of no other."""
    if not is_own and 400 <= status < 500 and status != 429:
        return _STRANGER
    if call.pays_for is None:
        first, _, rest = kind.advice.partition("; ")
        return f"{rest[:1].upper()}{rest[1:]}" if first.startswith(_FREE) else kind.advice
    if not 400 <= status < 500 or kind.advice.startswith(_FREE):
        return kind.advice
    return f"{_FREE}; {kind.advice[:1].lower()}{kind.advice[1:]}" if kind.advice else _FREE


def _json_object(answer: Answer) -> Mapping[str, Any]:
    try:
        body = responses.parsed(answer.body)
    except UnreadableError:
        return {}
    return body if isinstance(body, dict) else {}


def describe_body(answer: Answer) -> str:
    """Return what came instead of the service's JSON, in words of bounded length."""
    if 300 <= answer.status < 400:
        where = _host(answer.headers.get("location", ""))
        return f"a redirect to {where}, which is never followed{_intermediary(answer)}"
    what = _type(answer) or "a body of no named type"
    return f"no JSON of the service but {what if answer.body.strip() else 'an empty body'}{_intermediary(answer)}"


def describe_sender(answer: Answer) -> str:
    """Return by status, type and headers who answered, in words of bounded length."""
    return f"{answer.status} {_type(answer) or 'of no named type'}{_intermediary(answer)}"


def _type(answer: Answer) -> str:
    return answer.headers.get("content-type", "").split(";")[0].strip()[:100]


def _intermediary(answer: Answer) -> str:
    """Return what an answer names itself: `server` and `via`."""
    named = [f"{name}: {answer.headers[name]:.100}" for name in ("server", "via") if answer.headers.get(name)]
    return f" ({', '.join(named)})" if named else ""


def _host(location: str) -> str:
    """Name the host of a URL and nothing else of it: the rest may hold secrets."""
    try:
        host = urlsplit(location).hostname
    except ValueError:
        host = None
    return (host or "somewhere unnamed")[:200]


def _limit(body: Mapping[str, Any]) -> int | None:
    limit = body.get("limit")
    return limit if isinstance(limit, int) and not isinstance(limit, bool) else None
