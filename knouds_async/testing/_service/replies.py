"""How the service writes and reads JSON: answers, errors with documented codes, request bodies (contract 1, 7)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from knouds_async._sansio.responses import strict_json
from knouds_async.testing.messages import Response

__all__ = ["ErrorResponse", "encoded", "json_object", "not_found", "reply"]

_JSON = {"content-type": "application/json"}
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def encoded(body: object) -> bytes:
    """Write JSON the way the service does: compact UTF-8, half a surrogate pair as the escape it came as."""
    return _encode(body).encode(errors="backslashreplace")


def reply(status: int, body: object, headers: Mapping[str, str] | None = None) -> Response:
    """Create a JSON response."""
    return Response(status, {**_JSON, **headers} if headers else dict(_JSON), encoded(body))


class ErrorResponse(Exception):  # noqa: N818 - an answer, not a failure of the emulator
    """An error response; `code` None leaves the code out, as the service may for 401 and 404."""

    def __init__(
        self, status: int, code: str | None, message: str, context: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.context = dict(context or {})
        self.headers: dict[str, str] = {}

    def response(self) -> Response:
        """Return the HTTP response."""
        code = {} if self.code is None else {"code": self.code}
        return reply(self.status, {"error": str(self), **code, **self.context}, self.headers)


def not_found(what: str) -> ErrorResponse:
    """Create a 404 that carries a message only."""
    return ErrorResponse(404, None, f"{what} not found")


_DEEPEST: Final = 200


def json_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object; 400 INVALID_BODY for anything else."""
    try:
        parsed: object = strict_json(body, is_exact=True)
    except ValueError:
        raise ErrorResponse(400, "INVALID_BODY", "The body is not JSON") from None
    if not isinstance(parsed, dict):
        raise ErrorResponse(400, "INVALID_BODY", "The body must be a JSON object")
    if body.count(b"[") + body.count(b"{") > _DEEPEST and _is_too_deep(parsed):
        raise ErrorResponse(400, "INVALID_BODY", f"The body is nested more than {_DEEPEST} levels deep")
    return parsed


def _is_too_deep(value: object) -> bool:
    level: list[object] = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
