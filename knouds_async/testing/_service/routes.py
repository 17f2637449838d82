"""The service's routes: which method and path is which endpoint, who may call it, and whether it is rate-limited.

The table is contract 2, row by row; a synchronous run and a submit are one route. Media files stand beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Final, Literal
from urllib.parse import unquote

import attrs

from knouds_async.testing._service import account_endpoints as account
from knouds_async.testing._service import run_endpoints as runs
from knouds_async.testing._service import workflow_endpoints as workflows
from knouds_async.testing._service.media import media
from knouds_async.testing._service.service import EndpointCall, ServiceState
from knouds_async.testing.messages import Later, Response

__all__ = ["ROUTES", "UNKNOWN", "Route", "match"]


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
    _route("GET /api/whoami", "", account.whoami),
    _route("POST /api/workflows/:slug/run", "workflow:run", runs.run_workflow),
    _route("GET /api/workflows/:slug/schema", "workflow:read", workflows.schema),
    _route("GET /api/workflows/:slug/public-schema", None, workflows.public_schema),
    _route("GET /api/workflows", "workflow:read", workflows.list_workflows),
    _route("GET /api/workflows/:slug", "workflow:read", workflows.get_workflow),
    _route("POST /api/workflows", "workflow:write", workflows.create_workflow),
    _route("PUT /api/workflows/:slug", "workflow:write", workflows.update_workflow),
    _route("PUT /api/workflows/:slug/move", "workflow:write", workflows.move_workflow),
    _route("DELETE /api/workflows/:slug", "workflow:write", workflows.delete_workflow),
    _route("POST /api/models/:internalName/run", "model:run", runs.run_model),
    _route("GET /api/executions/:id", "execution:read", runs.poll),
    _route("POST /api/executions/:id/cancel", "execution:cancel", runs.cancel),
    _route("GET /api/usage", "", account.usage),
    _route("GET /api/usage/models", "", account.usage_models),
    _route("GET /api/pricing/public", None, account.pricing),
    _route("GET /api/health", None, account.health),
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
