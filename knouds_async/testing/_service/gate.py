"""What a request passes before its endpoint: the key, the quota, the right (contract 1, 2, 6, 7), in this order."""

from __future__ import annotations

from typing import Final

from knouds_async.testing._service.catalog import SLUG
from knouds_async.testing._service.keys import SCOPE_LIMITS, TIER_LIMITS, ApiKey, allows, has_scope
from knouds_async.testing._service.replies import Refusal, not_found
from knouds_async.testing._service.routes import Route
from knouds_async.testing._service.service import Call, Service
from knouds_async.testing.messages import Later, Outcome, Request, Response

__all__ = ["answer", "dated"]

_BY_DESIGN_CLOSED: Final = ("/api/me/", "/api/credits/", "/api/api-keys/", "/api/business/admin/")
_NOBODY: Final = ApiKey("nobody", capabilities=(), user="nobody")


def answer(service: Service, route: Route | None, subject: str, request: Request, now: float) -> Outcome:
    """Answer a request as the service does; every answer carries `Date`."""
    try:
        answered = _pass(service, route, subject, request, now)
    except Refusal as refusal:
        answered = refusal.response()
    if isinstance(answered, Later):
        finish = answered.finish
        return Later(answered.at, lambda later: dated(service, finish(later), later))
    return dated(service, answered, now)


def dated(service: Service, answered: Outcome, now: float) -> Outcome:
    """Put the service's `Date` on an answer; one that is broken or still to come stays as it is."""
    if isinstance(answered, Response) and isinstance(answered.headers, dict):
        answered.headers["date"] = service.clock.date(now)
    return answered


def _pass(service: Service, route: Route | None, subject: str, request: Request, now: float) -> Response | Later:
    if route is None:
        raise _no_route(service, request)
    if route.needs is None:
        _check_slug(route, subject)
        return route.answer(service, Call(request, _NOBODY, subject, now, {}))
    caller = _authenticated(service, request)
    _check_access(service, route, caller)
    headers = _admitted(service, route, caller, now)
    _check_slug(route, subject)
    _check_right(service, route, caller, subject)
    return route.answer(service, Call(request, caller, subject, now, headers))


def _no_route(service: Service, request: Request) -> Refusal:
    is_closed = f"{request.path}/".startswith(_BY_DESIGN_CLOSED)
    if is_closed and request.headers.get("x-api-key") in service.keys:
        return Refusal(403, "API_KEY_ACCESS_DENIED", "This endpoint cannot be used with an API key")
    return not_found("Endpoint")


def _authenticated(service: Service, request: Request) -> ApiKey:
    key = service.keys.get(request.headers.get("x-api-key", ""))
    if key is None or key.state == "revoked":
        raise Refusal(401, None, "Invalid or missing API key")
    if key.state == "legacy" and service.settings.generation == "current":
        raise Refusal(401, "LEGACY_KEY_RETIRED", "This key is from before May 2026. Create a new one.")
    if not key.is_approved:
        raise Refusal(401, None, "This account is not approved yet")
    return key


def _check_access(service: Service, route: Route, caller: ApiKey) -> None:
    """Refuse a free account everything but whoami: it has no API access now (contract 6)."""
    settings = service.settings
    is_free = settings.generation == "current" and (caller.tier or settings.tier) == "free"
    if is_free and (caller.role or settings.role) != "admin" and not route.label.endswith("/whoami"):
        raise Refusal(403, "API_KEY_ACCESS_DENIED", "The free tier has no API access")


def _admitted(service: Service, route: Route, caller: ApiKey, now: float) -> dict[str, str]:
    """Count the request against its window and give the quota headers; 429 when the window is used up."""
    tier, limit = _limit(service, route, caller)
    if limit is None:
        return {}
    verdict = service.windows.count(caller.user, route.label, limit, service.clock.elapsed(now))
    if verdict.is_granted:
        return verdict.headers()
    context = {"tier": tier, "limit": limit, "retryAfter": verdict.retry_after}
    refusal = Refusal(429, "RATE_LIMIT_EXCEEDED", "Rate limit exceeded", context)
    refusal.headers = {**verdict.headers(), "retry-after": str(verdict.retry_after)}
    raise refusal


def _limit(service: Service, route: Route, caller: ApiKey) -> tuple[str, int | None]:
    """Give the tier (or scope) that decides, and the requests it allows; None is unlimited."""
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
        raise Refusal(400, "INVALID_SLUG", "Slugs are lower-case letters, digits and hyphens")


def _check_right(service: Service, route: Route, caller: ApiKey, subject: str) -> None:
    needs = route.needs
    if service.settings.generation == "old":
        if not has_scope(caller.scope, route.scope):
            context = {"required": route.scope, "actual": caller.scope}
            raise Refusal(403, "SCOPE_DENIED", f"This needs the scope {route.scope}", context)
        return
    if not needs:
        return
    kind, _, verb = needs.partition(":")
    if not allows(caller.capabilities, needs, f"{kind}:{subject}:{verb}"):
        raise Refusal(403, "CAPABILITY_DENIED", f"The key lacks the capability {needs}", {"required": needs})
