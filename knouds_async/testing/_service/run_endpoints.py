"""The endpoints of runs: run a workflow or a model, poll, cancel (contract 3, 4, 5)."""

from __future__ import annotations

from urllib.parse import parse_qs

from knouds_async.testing._service.bodies import json_object
from knouds_async.testing._service.inputs import check_inputs
from knouds_async.testing._service.keys import reaches_tier
from knouds_async.testing._service.lifecycle import Run
from knouds_async.testing._service.replies import Refusal, reply
from knouds_async.testing._service.service import Call, Order, Service
from knouds_async.testing.messages import Later, Response

__all__ = ["cancel", "poll", "run_model", "run_workflow"]


def run_workflow(service: Service, call: Call) -> Response | Later:
    """Answer POST /api/workflows/:slug/run, with and without ?async=true."""
    workflow = service.workflows.find(call.subject, call.caller.user)
    inputs = _inputs(call)
    check_inputs(workflow.fields, inputs)
    known = tuple(name for name in workflow.models if name in service.models)
    return _run(service, call, Order("workflow", workflow.slug, inputs, known, _is_async(call)))


def run_model(service: Service, call: Call) -> Response | Later:
    """Answer POST /api/models/:internalName/run, with and without ?async=true."""
    model = service.models.get(call.subject)
    if model is None:
        raise Refusal(404, "MODEL_NOT_FOUND", f"No model is called {call.subject}")
    caller, settings = call.caller, service.settings
    is_admin = (caller.role or settings.role) == "admin"
    if settings.generation == "current" and not (is_admin or reaches_tier(caller.tier or settings.tier, model.tier)):
        raise Refusal(403, "MODEL_TIER_REQUIRED", f"{model.name} needs the {model.tier} tier")
    return _run(service, call, Order("model", model.name, _inputs(call), (model.name,), _is_async(call)))


def poll(service: Service, call: Call) -> Response:
    """Answer GET /api/executions/:id."""
    run = service.find_run(call.subject, call.caller.user, call.now)
    run.polls += 1
    run.seen_at(call.now)
    return reply(200, _execution(service, run, call.now), call.headers)


def cancel(service: Service, call: Call) -> Response:
    """Answer POST /api/executions/:id/cancel; 409 when the run is over."""
    run = service.find_run(call.subject, call.caller.user, call.now)
    if run.is_over_at(call.now):
        raise Refusal(409, "EXECUTION_FINISHED", f"The execution is already {run.status_at(call.now)}")
    service.cancel(run, call.now)
    return reply(200, _execution(service, run, call.now), call.headers)


def _is_async(call: Call) -> bool:
    query = call.request.query
    return query == "async=true" or parse_qs(query).get("async") == ["true"]


def _inputs(call: Call) -> dict[str, object]:
    inputs = json_object(call.request.body).get("inputs")
    if not isinstance(inputs, dict):
        raise Refusal(400, "INVALID_INPUTS", "'inputs' must be an object")
    return inputs


def _run(service: Service, call: Call, order: Order) -> Response | Later:
    if not order.is_async:
        run = service.begin(order, call.caller, call.now)
        return Later(run.ends, lambda now: _finished(service, run, call, now))
    if unpolled := [name for name in order.model_ids if not service.models[name].is_async]:
        message = f"{unpolled[0]} cannot run asynchronously; use the synchronous run"
        raise Refusal(400, "ASYNC_NOT_SUPPORTED", message)
    run = service.begin(order, call.caller, call.now)
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


def _finished(service: Service, run: Run, call: Call, now: float) -> Response:
    """Answer a synchronous run when it is over."""
    if now < run.ends:
        raise ValueError(f"the run ends at {run.ends}: resume it then, not at {now}")
    run.seen_at(now)
    if run.end != "completed":
        refusal = Refusal(500, "EXECUTION_FAILED", run.error)
        return refusal.response()
    body = {"success": True, "result": service.result(run), "cost": run.cost, "ms": _milliseconds(run)}
    return reply(200, body, call.headers)


def _milliseconds(run: Run) -> int:
    return round((run.ends - run.started) * 1000)


def _execution(service: Service, run: Run, now: float) -> dict[str, object]:
    is_over, status = run.is_over_at(now), run.status_at(now)
    error = {"code": "EXECUTION_FAILED", "message": run.error} if status == "failed" else None
    return {
        "executionId": run.execution_id,
        "requestId": run.request_id,
        "status": status,
        "workflowSlug": run.target if run.kind == "workflow" else None,
        "modelIds": run.model_ids,
        "result": service.result(run) if is_over and run.has_result else None,
        "error": error,
        "cost": run.cost if is_over else None,
        "ms": _milliseconds(run) if is_over else None,
        "createdAt": service.clock.iso(run.started),
        "completedAt": service.clock.iso(run.ends) if is_over else None,
    }
