"""From an answer to a value or an error: (status, headers, body) in, a record of `types` or a typed error out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import attrs

from knouds_async import types
from knouds_async._sansio import names
from knouds_async._sansio.structure import structured
from knouds_async._sansio.values import ExtendedBody, OtherAnswerError, UnreadableError, is_number, json_object
from knouds_async.types import Status

T = TypeVar("T")


@attrs.frozen
class Answer:
    """What came back: the HTTP status, the headers this library reads (lower case) and the decoded body."""

    status: int
    headers: Mapping[str, str]
    body: bytes = attrs.field(repr=False)


def parsed(body: bytes) -> Any:
    """Return a body as JSON; what is not strict JSON is unreadable."""
    try:
        return json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise UnreadableError("its JSON is nested too deeply") from None
    except ValueError as error:
        what = "it is empty" if not body.strip() else f"it is not JSON ({error})"
        raise UnreadableError(f"{what:.200}") from None


def _no_constant(name: str) -> None:
    raise UnreadableError(f"it holds {name}, which is not JSON")


def service_error(answer: Answer) -> Mapping[str, Any] | None:
    """Return the body if it is the service's own JSON, `{"error": <text>, ...}`; a proxy's page is None."""
    try:
        body = parsed(answer.body)
    except UnreadableError:
        return None
    return body if isinstance(body, dict) and isinstance(body.get("error"), str) else None


# One reader per kind of reply.


def read(kind: type[T]) -> Callable[[Answer], T]:
    """Return the parser of a reply that is one record."""
    return lambda answer: structured(parsed(answer.body), kind)


def account(answer: Answer) -> types.Account:
    """Read who the key belongs to; the record lies under `user` (contract 2)."""
    body = json_object(parsed(answer.body))
    return attrs.evolve(structured(body.get("user", body), types.Account), raw=body)


def nothing(answer: Answer) -> None:
    """Take any 2xx for done, whatever its body says, but for a web page: that is not the service's."""
    _reject_web_page(answer)


def _reject_web_page(answer: Answer) -> None:
    if answer.body.lstrip()[:1] == b"<":
        raise UnreadableError("it is a web page")


def workflows(answer: Answer) -> tuple[types.WorkflowSummary, ...]:
    """Read the list of workflows: a JSON array (contract 2)."""
    rows = parsed(answer.body)
    if not isinstance(rows, list):
        raise UnreadableError(f"{names.safe_repr(rows)} is not a list")
    return tuple(structured(row, types.WorkflowSummary) for row in rows)


def submitted(answer: Answer) -> types.Submitted:
    """Read the receipt of a submit: only the id must be there and usable, for a paid run hangs on it (contract 4).

    What tells of a run that has ended is the answer to a look at some run, and no receipt.
    """
    body = json_object(parsed(answer.body))
    if is_finished_state(body):
        raise OtherAnswerError(f"it is no receipt but the end of execution {names.safe_repr(body.get('executionId'))}")
    receipt = structured({"executionId": None, **body}, types.Submitted)
    if not names.is_execution_id(receipt.execution_id):
        raise UnreadableError(f"executionId {names.safe_repr(receipt.execution_id)} is not an id")
    webhook = body.get("webhookDelivery")
    return attrs.evolve(receipt, webhook_configured=isinstance(webhook, dict) and webhook.get("configured") is True)


_FINISHED_FIELDS: Final = ("result", "completedAt", "cost", "ms", "durationMs")


def is_finished_state(body: Mapping[str, Any]) -> bool:
    """Return whether a body is a look's that found a run ended, in the place of a receipt (contract 4 and 5)."""
    status = body.get("status")
    is_failed = isinstance(status, str) and status in (Status.FAILED, Status.CANCELLED)
    is_ended = is_failed or any(body.get(key) is not None for key in _FINISHED_FIELDS)
    return is_ended and body.get("_async") is not True


def run_result(answer: Answer) -> types.RunResult:
    """Read the result of a synchronous run (contract 3)."""
    body = json_object(parsed(answer.body))
    if body.get("success") is False:
        raise UnreadableError("'success' is false, and no error is named")
    if "success" not in body and isinstance(body.get("status"), str) and isinstance(body.get("executionId"), str):
        raise OtherAnswerError(f"it is what a look finds of execution {names.safe_repr(body['executionId'])}")
    if "result" not in body:
        raise UnreadableError("'result' is missing")
    return structured(body, types.RunResult)


def execution(execution_id: str) -> Callable[[Answer], types.ExecutionState]:
    """Return the parser of an execution; only `status` must be there (contract 5), and it must be no other's."""
    return lambda answer: execution_state(execution_id, _own_body(execution_id, json_object(parsed(answer.body))))


def _own_body(execution_id: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse the body of another run; one that names none contradicts nothing."""
    named = body.get("executionId")
    if isinstance(named, str) and named.casefold() != execution_id.casefold():
        raise OtherAnswerError(f"it is of execution {names.safe_repr(named)}, not of {execution_id!r}")
    return body


def execution_state(execution_id: str, body: Mapping[str, Any]) -> types.ExecutionState:
    """Read an execution from its JSON; the id asked for is the id of the record."""
    ms = next((body[key] for key in ("ms", "durationMs") if is_number(body.get(key))), None)
    return structured(ExtendedBody(body, executionId=execution_id, ms=ms), types.ExecutionState)


def cancelled(execution_id: str) -> Callable[[Answer], types.ExecutionState]:
    """Return the parser of a cancel; a 2xx without a status means it was requested (contract 5, assumed)."""

    def reader(answer: Answer) -> types.ExecutionState:
        body = _own_body(execution_id, json_object(parsed(answer.body))) if answer.body.strip() else {}
        has_status = isinstance(body.get("status"), str)
        given = body if has_status else {**body, "status": Status.CANCEL_REQUESTED}
        return attrs.evolve(execution_state(execution_id, given), raw=body)

    return reader


def usage_page(answer: Answer) -> types.UsagePage:
    """Read a page of usage rows (contract 10); a page without a list of rows is not an empty one."""
    body = json_object(parsed(answer.body))
    if not isinstance(body.get("rows"), list):
        raise UnreadableError("'rows' is not a list")
    return structured(body, types.UsagePage)


def usage_models(answer: Answer) -> tuple[str, ...]:
    """Read the distinct model ids: a list, or an object that holds one (contract 2; the shape is assumed)."""
    found = parsed(answer.body)
    if isinstance(found, dict):
        found = next((value for value in (found.get("models"), *found.values()) if isinstance(value, list)), [])
    if not isinstance(found, list):
        raise UnreadableError(f"{names.safe_repr(found)} is not a list")
    return tuple(item for item in found if isinstance(item, str))


def pricing(answer: Answer) -> types.Pricing:
    """Keep the public prices as they are; their shape is not documented."""
    return types.Pricing(raw=parsed(answer.body))


def health(answer: Answer) -> types.Health:
    """Read the service's health from any 2xx but a web page, which is not the service's."""
    _reject_web_page(answer)
    try:
        return structured(parsed(answer.body), types.Health)
    except UnreadableError:
        return types.Health(raw=answer.body[:1000].decode(errors="replace"))
