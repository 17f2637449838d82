"""The endpoints of runs: run a workflow or a model, poll, cancel (contract 3, 4, 5)."""

from __future__ import annotations

from urllib.parse import parse_qs

from knouds_async.testing._service.bodies import json_object
from knouds_async.testing._service.inputs import check_inputs
from knouds_async.testing._service.keys import reaches_tier
from knouds_async.testing._service.lifecycle import Run
from knouds_async.testing._service.replies import ErrorResponse, reply
from knouds_async.testing._service.service import EndpointCall, RunRequest, ServiceState
from knouds_async.testing.messages import Later, Response

__all__ = ["cancel", "poll", "run_model", "run_workflow"]


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
