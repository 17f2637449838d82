"""The checks before an endpoint: the key, the quota, the capability (contract 1, 2, 6, 7), in this order."""

from __future__ import annotations

from typing import Final

from knouds_async.testing._service.catalog import SLUG
from knouds_async.testing._service.keys import SCOPE_LIMITS, TIER_LIMITS, ApiKey, allows, has_scope
from knouds_async.testing._service.replies import ErrorResponse, not_found
from knouds_async.testing._service.routes import Route
from knouds_async.testing._service.service import EndpointCall, ServiceState
from knouds_async.testing.messages import Later, Outcome, Request, Response

__all__ = ["answer", "with_date"]

_NOT_FOR_API_KEYS: Final = ("/api/me/", "/api/credits/", "/api/api-keys/", "/api/business/admin/")
_NOBODY: Final = ApiKey("nobody", capabilities=(), user="nobody")


def answer(service: ServiceState, route: Route | None, subject: str, request: Request, now: float) -> Outcome:
    """Answer a request as the service does; every answer carries `Date`."""
    try:
        outcome = _dispatch(service, route, subject, request, now)
    except ErrorResponse as error:
        outcome = error.response()
    if isinstance(outcome, Later):
        finish = outcome.finish
        return Later(outcome.at, lambda later: with_date(service, finish(later), later))
    return with_date(service, outcome, now)


def with_date(service: ServiceState, outcome: Outcome, now: float) -> Outcome:
    """Add the service's `Date` to an answer; a broken or later one stays as it is."""
    if isinstance(outcome, Response) and isinstance(outcome.headers, dict):
        outcome.headers["date"] = service.clock.date(now)
    return outcome


def _dispatch(
    service: ServiceState, route: Route | None, subject: str, request: Request, now: float
) -> Response | Later:
    if route is None:
        raise _no_route(service, request)
    if route.needs is None:
        _check_slug(route, subject)
        return route.answer(service, EndpointCall(request, _NOBODY, subject, now, {}))
    caller = _authenticated(service, request)
    _check_api_access(service, route, caller)
    headers = _check_quota(service, route, caller, now)
    _check_slug(route, subject)
    _check_capability(service, route, caller, subject)
    return route.answer(service, EndpointCall(request, caller, subject, now, headers))


def _no_route(service: ServiceState, request: Request) -> ErrorResponse:
    is_closed = f"{request.path}/".startswith(_NOT_FOR_API_KEYS)
    if is_closed and request.headers.get("x-api-key") in service.keys:
        return ErrorResponse(403, "API_KEY_ACCESS_DENIED", "This endpoint cannot be used with an API key")
    return not_found("Endpoint")


def _authenticated(service: ServiceState, request: Request) -> ApiKey:
    key = service.keys.get(request.headers.get("x-api-key", ""))
    if key is None or key.state == "revoked":
        raise ErrorResponse(401, None, "Invalid or missing API key")
    if key.state == "legacy" and service.settings.generation == "current":
        raise ErrorResponse(401, "LEGACY_KEY_RETIRED", "This key is from before May 2026. Create a new one.")
    if not key.is_approved:
        raise ErrorResponse(401, None, "This account is not approved yet")
    return key


def _check_api_access(service: ServiceState, route: Route, caller: ApiKey) -> None:
    """Refuse a free account everything but whoami: it has no API access (contract 6)."""
    settings = service.settings
    is_free = settings.generation == "current" and (caller.tier or settings.tier) == "free"
    if is_free and (caller.role or settings.role) != "admin" and not route.label.endswith("/whoami"):
        raise ErrorResponse(403, "API_KEY_ACCESS_DENIED", "The free tier has no API access")


def _check_quota(service: ServiceState, route: Route, caller: ApiKey, now: float) -> dict[str, str]:
    """Count the request against its window and return the quota headers; 429 when the window is used up."""
    tier, limit = _limit(service, route, caller)
    if limit is None:
        return {}
    decision = service.windows.count(caller.user, route.label, limit, service.clock.elapsed(now))
    if decision.is_granted:
        return decision.headers()
    context = {"tier": tier, "limit": limit, "retryAfter": decision.retry_after}
    error = ErrorResponse(429, "RATE_LIMIT_EXCEEDED", "Rate limit exceeded", context)
    error.headers = {**decision.headers(), "retry-after": str(decision.retry_after)}
    raise error


def _limit(service: ServiceState, route: Route, caller: ApiKey) -> tuple[str, int | None]:
    """Return the tier (or scope) that applies, and the requests it allows; None is unlimited."""
    settings = service.settings
    tier = caller.tier or settings.tier if settings.generation == "current" else caller.scope
    is_limited = {
        "runs": True,
        "polls": settings.polls_limited,
        "usage": settings.usage_limited,
        None: False,
    }[route.limited]
    if not is_limited or (caller.role or settings.role) == "admin":
        return tier, None
    limits = TIER_LIMITS if settings.generation == "current" else SCOPE_LIMITS
    limit = limits.get(tier, TIER_LIMITS["pro"])
    return tier, limit if limit is None or settings.limit is None else settings.limit


def _check_slug(route: Route, subject: str) -> None:
    has_slug = ":slug" in route.label or ":internalName" in route.label
    if has_slug and SLUG.match(subject) is None:
        raise ErrorResponse(400, "INVALID_SLUG", "Slugs are lower-case letters, digits and hyphens")


def _check_capability(service: ServiceState, route: Route, caller: ApiKey, subject: str) -> None:
    needs = route.needs
    if service.settings.generation == "old":
        if not has_scope(caller.scope, route.scope):
            context = {"required": route.scope, "actual": caller.scope}
            raise ErrorResponse(403, "SCOPE_DENIED", f"This needs the scope {route.scope}", context)
        return
    if not needs:
        return
    kind, _, verb = needs.partition(":")
    if not allows(caller.capabilities, needs, f"{kind}:{subject}:{verb}"):
        raise ErrorResponse(403, "CAPABILITY_DENIED", f"The key lacks the capability {needs}", {"required": needs})
