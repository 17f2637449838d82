"""The service's endpoints, the table of routes, and the checks before each: key, quota, capability (contract 1 to 10).

The table is contract 2, row by row; a synchronous run and a submit are one route. Media files (contract 12) beside it,
and the description of it all in OpenAPI, which is stored as `testing/openapi.json`.
"""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Callable
from importlib.resources import files
from typing import Any, Final, Literal
from urllib.parse import parse_qs, unquote

import attrs

from knouds_async.testing._service.catalog import (
    SCOPE_LIMITS,
    SLUG,
    TIER_LIMITS,
    ApiKey,
    allows,
    has_scope,
    reaches_tier,
)
from knouds_async.testing._service.replies import ErrorResponse, json_object, not_found, reply
from knouds_async.testing._service.runs import Run
from knouds_async.testing._service.state import EndpointCall, RunRequest, ServiceState
from knouds_async.testing._service.workflows import check_inputs
from knouds_async.testing.messages import Later, Outcome, Request, Response

__all__ = ["ROUTES", "UNKNOWN", "Route", "answer", "limits", "match", "openapi", "with_date"]


def openapi() -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of the service, parsed; each call returns a copy of its own.

    For mock servers, client generators and fuzzers. What the service does not document is marked `x-assumed`.
    """
    document: dict[str, Any] = json.loads(files("knouds_async.testing").joinpath("openapi.json").read_bytes())
    return document


def run_workflow(service: ServiceState, call: EndpointCall) -> Response | Later:
    """Answer POST /api/workflows/:slug/run, with and without ?async=true."""
    workflow = service.workflows.find(call.subject, call.caller.user)
    inputs = _inputs(call)
    check_inputs(workflow.fields, inputs)
    known = tuple(name for name in workflow.models if name in service.models)
    return _run(service, call, RunRequest("workflow", workflow.slug, inputs, known, _is_async(call)))


def run_model(service: ServiceState, call: EndpointCall) -> Response | Later:
    """Answer POST /api/models/:internalName/run, with and without ?async=true."""
    model = service.models.get(call.subject)
    if model is None:
        raise ErrorResponse(404, "MODEL_NOT_FOUND", f"No model is called {call.subject}")
    caller, settings = call.caller, service.settings
    is_admin = (caller.role or settings.role) == "admin"
    if settings.generation == "current" and not (is_admin or reaches_tier(caller.tier or settings.tier, model.tier)):
        raise ErrorResponse(403, "MODEL_TIER_REQUIRED", f"{model.name} needs the {model.tier} tier")
    return _run(service, call, RunRequest("model", model.name, _inputs(call), (model.name,), _is_async(call)))


def poll(service: ServiceState, call: EndpointCall) -> Response:
    """Answer GET /api/executions/:id."""
    run = service.find_run(call.subject, call.caller.user, call.now)
    run.polls += 1
    run.mark_seen(call.now)
    return reply(200, _execution(service, run, call.now), call.headers)


def cancel(service: ServiceState, call: EndpointCall) -> Response:
    """Answer POST /api/executions/:id/cancel; 409 when the run has finished."""
    run = service.find_run(call.subject, call.caller.user, call.now)
    if run.is_finished_at(call.now):
        raise ErrorResponse(409, "EXECUTION_FINISHED", f"The execution is already {run.status_at(call.now)}")
    service.cancel(run, call.now)
    return reply(200, _execution(service, run, call.now), call.headers)


def _is_async(call: EndpointCall) -> bool:
    query = call.request.query
    return query == "async=true" or parse_qs(query).get("async") == ["true"]


def _inputs(call: EndpointCall) -> dict[str, object]:
    inputs = json_object(call.request.body).get("inputs")
    if not isinstance(inputs, dict):
        raise ErrorResponse(400, "INVALID_INPUTS", "'inputs' must be an object")
    return inputs


def _run(service: ServiceState, call: EndpointCall, run_request: RunRequest) -> Response | Later:
    if not run_request.is_async:
        run = service.begin(run_request, call.caller, call.now)
        return Later(run.ends, lambda now: _finished(service, run, call, now))
    if unpolled := [name for name in run_request.model_ids if not service.models[name].is_async]:
        message = f"{unpolled[0]} cannot run asynchronously; use the synchronous run"
        raise ErrorResponse(400, "ASYNC_NOT_SUPPORTED", message)
    run = service.begin(run_request, call.caller, call.now)
    return reply(200, _submitted(run, service.webhook_of(call.caller)), call.headers)


def _submitted(run: Run, webhook_url: str | None) -> dict[str, object]:
    webhook = {"configured": False} if webhook_url is None else {"configured": True, "url": webhook_url}
    return {
        "_async": True,
        "executionId": run.execution_id,
        "requestId": run.request_id,
        "status": "processing",
        "webhookDelivery": webhook,
        "pollUrl": f"/api/executions/{run.execution_id}",
    }


def _finished(service: ServiceState, run: Run, call: EndpointCall, now: float) -> Response:
    """Answer a synchronous run when it has finished."""
    if now < run.ends:
        raise ValueError(f"the run ends at {run.ends}: resume it then, not at {now}")
    run.mark_seen(now)
    if run.end != "completed":
        error = ErrorResponse(500, "EXECUTION_FAILED", run.error)
        return error.response()
    body = {"success": True, "result": service.result(run), "cost": run.cost, "ms": _milliseconds(run)}
    return reply(200, body, call.headers)


def _milliseconds(run: Run) -> int:
    return round((run.ends - run.started) * 1000)


def _execution(service: ServiceState, run: Run, now: float) -> dict[str, object]:
    is_finished, status = run.is_finished_at(now), run.status_at(now)
    error = {"code": "EXECUTION_FAILED", "message": run.error} if status == "failed" else None
    return {
        "executionId": run.execution_id,
        "requestId": run.request_id,
        "status": status,
        "workflowSlug": run.target if run.kind == "workflow" else None,
        "modelIds": run.model_ids,
        "result": service.result(run) if is_finished and run.has_result else None,
        "error": error,
        "cost": run.cost if is_finished else None,
        "ms": _milliseconds(run) if is_finished else None,
        "createdAt": service.clock.iso(run.started),
        "completedAt": service.clock.iso(run.ends) if is_finished else None,
    }


_MOST_ROWS = 500
_FIRST_ROW_ID = 1
_DOLLARS_PER_CREDIT = 0.001
_PROVIDER_SHARE = 0.47


def whoami(service: ServiceState, call: EndpointCall) -> Response:
    """Answer GET /api/whoami."""
    caller, settings = call.caller, service.settings
    user = {
        "id": caller.user,
        "email": f"{caller.user}@example.com",
        "role": caller.role or settings.role,
        "tier": caller.tier or settings.tier,
        "approved": caller.is_approved,
    }
    return reply(200, {"user": user}, call.headers)


def usage(service: ServiceState, call: EndpointCall) -> Response:
    """Answer GET /api/usage: newest first, at most 500 rows."""
    query = {name: values[-1] for name, values in parse_qs(call.request.query).items()}
    limit = min(_MOST_ROWS, _integer(query, "limit", 50, least=1))
    offset = _integer(query, "offset", 0, least=0)
    service.usage.settle(call.now)
    rows, total = service.usage.page(
        call.caller.user,
        query.get("status"),
        query.get("workflowSlug"),
        query.get("modelId"),
        limit=limit,
        offset=offset,
    )
    shown = [_row(service, place, status, run) for place, status, run in rows]
    body = {"rows": shown, "page": offset // limit, "pageSize": limit, "total": total}
    return reply(200, body, call.headers)


def usage_models(service: ServiceState, call: EndpointCall) -> Response:
    """Answer GET /api/usage/models."""
    service.usage.settle(call.now)
    return reply(200, service.usage.models(call.caller.user), call.headers)


def pricing(service: ServiceState, call: EndpointCall) -> Response:
    """Answer GET /api/pricing/public."""
    tiers = [{"id": tier, "requestsPerMinute": limit} for tier, limit in TIER_LIMITS.items()]
    models = [{"id": name, "credits": service.billing.price(name)} for name in service.models]
    return reply(200, {"tiers": tiers, "models": models}, call.headers)


def health(_: ServiceState, call: EndpointCall) -> Response:
    """Answer GET /api/health."""
    return reply(200, {"status": "ok"}, call.headers)


def _integer(query: dict[str, str], name: str, default: int, *, least: int) -> int:
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) < least:
        raise ErrorResponse(400, "INVALID_BODY", f"'{name}' must be an integer, at least {least}")
    return int(text)


def _row(service: ServiceState, place: int, status: str, run: Run) -> dict[str, object]:
    is_finished = status != "processing"
    dollars = run.cost * _DOLLARS_PER_CREDIT
    return {
        "id": _FIRST_ROW_ID + place,
        "userId": run.user,
        "workflowSlug": run.target if run.kind == "workflow" else None,
        "modelIds": run.model_ids,
        "status": status,
        "source": "api-workflow" if run.kind == "workflow" else "api-slim",
        "cost": round(dollars * _PROVIDER_SHARE, 6),
        "userCost": round(dollars, 6),
        "creditsCost": run.cost,
        "durationMs": round((run.ends - run.started) * 1000) if is_finished else None,
        "errorCode": "EXECUTION_FAILED" if status == "failed" else None,
        "requestId": run.request_id,
        "createdAt": service.clock.iso(run.started),
    }


def list_workflows(service: ServiceState, call: EndpointCall) -> Response:
    """Answer GET /api/workflows."""
    rows = service.workflows.visible_to(call.caller.user)
    return reply(200, [row.summary(service.billing.price(row.slug)) for row in rows], call.headers)


def get_workflow(service: ServiceState, call: EndpointCall) -> Response:
    """Answer GET /api/workflows/:slug."""
    return reply(200, service.workflows.find(call.subject, call.caller.user).full(), call.headers)


def create_workflow(service: ServiceState, call: EndpointCall) -> Response:
    """Answer POST /api/workflows."""
    body = json_object(call.request.body)
    created = service.workflows.create(body, call.caller.user, service.clock.iso(call.now))
    return reply(201, created.full(), call.headers)


def update_workflow(service: ServiceState, call: EndpointCall) -> Response:
    """Answer PUT /api/workflows/:slug; the slug stays, whatever the new name is."""
    workflow = service.workflows.find_own(call.subject, call.caller.user)
    workflow.change(json_object(call.request.body), service.clock.iso(call.now))
    return reply(200, workflow.full(), call.headers)


def move_workflow(service: ServiceState, call: EndpointCall) -> Response:
    """Answer PUT /api/workflows/:slug/move; folderId null is the root."""
    workflow = service.workflows.find_own(call.subject, call.caller.user)
    body = json_object(call.request.body)
    folder_id = body.get("folderId")
    if "folderId" not in body or not isinstance(folder_id, str | None):
        raise ErrorResponse(400, "INVALID_BODY", "'folderId' must be a folder's id or null")
    workflow.folder_id = folder_id
    workflow.updated_at = service.clock.iso(call.now)
    return reply(200, workflow.summary(service.billing.price(workflow.slug)), call.headers)


def delete_workflow(service: ServiceState, call: EndpointCall) -> Response:
    """Answer DELETE /api/workflows/:slug."""
    service.workflows.delete(call.subject, call.caller.user)
    return reply(200, {"success": True}, call.headers)


def schema(service: ServiceState, call: EndpointCall) -> Response:
    """Answer GET /api/workflows/:slug/schema."""
    workflow = service.workflows.find(call.subject, call.caller.user)
    return reply(200, workflow.schema(service.billing.price(workflow.slug)), call.headers)


def public_schema(service: ServiceState, call: EndpointCall) -> Response:
    """Answer GET /api/workflows/:slug/public-schema."""
    return reply(200, service.workflows.find_public(call.subject).schema(None), call.headers)


_PNG: Final = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
_MP4: Final = b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isommp41"
_MP3: Final = b"ID3\x04\x00\x00\x00\x00\x00\x00"
_FILES: Final = {".png": ("image/png", _PNG), ".mp4": ("video/mp4", _MP4), ".mp3": ("audio/mpeg", _MP3)}


def media(_: ServiceState, call: EndpointCall) -> Response:
    """Answer GET /media/:name; 400 when a key was sent along, which the real bucket must never see."""
    if "x-api-key" in call.request.headers:
        raise ErrorResponse(400, None, "An API key was sent to the media host")
    for ending, (content_type, body) in _FILES.items():
        if call.subject.endswith(ending):
            return Response(200, {"content-type": content_type}, body)
    raise not_found("File")


@attrs.frozen(kw_only=True)
class Route:
    """One endpoint: `needs` is a capability ("" for any key, None for no key), `scope` counts in the old generation."""

    label: str
    needs: str | None
    answer: Callable[[ServiceState, EndpointCall], Response | Later]
    scope: str = "free"
    limited: Literal["runs", "polls", "usage"] | None = None

    @property
    def method(self) -> str:
        """Return the HTTP method."""
        return self.label.partition(" ")[0]

    @property
    def segments(self) -> tuple[str, ...]:
        """Return the pattern's path segments."""
        return tuple(self.label.partition(" ")[2].split("/"))


def _route(label: str, needs: str | None, answer: Callable[[ServiceState, EndpointCall], Response | Later]) -> Route:
    limited: dict[str, Literal["runs", "polls", "usage"]] = {
        "POST /api/workflows/:slug/run": "runs",
        "POST /api/models/:internalName/run": "runs",
        "GET /api/executions/:id": "polls",
        "GET /api/usage": "usage",
    }
    # Which scope an endpoint needed is known only in outline: writing took deployment, models took admin.
    scopes = {"workflow:write": "deployment", "model:run": "admin"}
    return Route(
        label=label,
        needs=needs,
        answer=answer,
        scope=scopes.get(needs or "", "free"),
        limited=limited.get(label),
    )


ROUTES: Final = (
    _route("GET /api/whoami", "", whoami),
    _route("POST /api/workflows/:slug/run", "workflow:run", run_workflow),
    _route("GET /api/workflows/:slug/schema", "workflow:read", schema),
    _route("GET /api/workflows/:slug/public-schema", None, public_schema),
    _route("GET /api/workflows", "workflow:read", list_workflows),
    _route("GET /api/workflows/:slug", "workflow:read", get_workflow),
    _route("POST /api/workflows", "workflow:write", create_workflow),
    _route("PUT /api/workflows/:slug", "workflow:write", update_workflow),
    _route("PUT /api/workflows/:slug/move", "workflow:write", move_workflow),
    _route("DELETE /api/workflows/:slug", "workflow:write", delete_workflow),
    _route("POST /api/models/:internalName/run", "model:run", run_model),
    _route("GET /api/executions/:id", "execution:read", poll),
    _route("POST /api/executions/:id/cancel", "execution:cancel", cancel),
    _route("GET /api/usage", "", usage),
    _route("GET /api/usage/models", "", usage_models),
    _route("GET /api/pricing/public", None, pricing),
    _route("GET /api/health", None, health),
    _route("GET /media/:name", None, media),
)
UNKNOWN: Final = "(no such route)"

_BY_SHAPE: Final[dict[tuple[str, int], list[tuple[tuple[str, ...], Route]]]] = defaultdict(list)
for _one in ROUTES:
    _BY_SHAPE[(_one.method, len(_one.segments))].append((_one.segments, _one))


def match(method: str, path: str) -> tuple[Route | None, str]:
    """Return the route of a still percent-encoded path, and the name or id in it ("" when it has none)."""
    parts = path.split("/")
    for segments, route in _BY_SHAPE.get((method, len(parts)), ()):
        subject = ""
        for segment, part in zip(segments, parts, strict=True):
            if segment.startswith(":"):
                subject = unquote(part) if "%" in part else part
            elif segment != part:
                break
        else:
            return route, subject
    return None, ""


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


def limits(service: ServiceState, caller: ApiKey) -> dict[str, int]:
    """Return how many requests a minute each limited route allows a caller."""
    found = {route.label: _limit(service, route, caller)[1] for route in ROUTES}
    return {label: limit for label, limit in found.items() if limit is not None}


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
