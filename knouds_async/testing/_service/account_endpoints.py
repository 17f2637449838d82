"""The endpoints of the account and of the service itself: who am I, usage, pricing, health (contract 2, 10)."""

from __future__ import annotations

from urllib.parse import parse_qs

from knouds_async.testing._service.keys import TIER_LIMITS
from knouds_async.testing._service.lifecycle import Run
from knouds_async.testing._service.replies import ErrorResponse, reply
from knouds_async.testing._service.service import EndpointCall, ServiceState
from knouds_async.testing.messages import Response

__all__ = ["health", "pricing", "usage", "usage_models", "whoami"]

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
