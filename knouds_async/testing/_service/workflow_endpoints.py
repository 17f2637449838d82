"""The endpoints of workflows: list, read, create, change, move, delete, and their schemas (contract 8, 9)."""

from __future__ import annotations

from knouds_async.testing._service.bodies import json_object
from knouds_async.testing._service.replies import ErrorResponse, reply
from knouds_async.testing._service.service import EndpointCall, ServiceState
from knouds_async.testing.messages import Response

__all__ = [
    "create_workflow",
    "delete_workflow",
    "get_workflow",
    "list_workflows",
    "move_workflow",
    "public_schema",
    "schema",
    "update_workflow",
]


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
