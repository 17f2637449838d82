"""How the service writes its answers: JSON bodies, and refusals with their documented codes (contract 1, 7)."""

from __future__ import annotations

import json
from collections.abc import Mapping

from knouds_async.testing.messages import Response

__all__ = ["ErrorResponse", "encoded", "not_found", "reply"]

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
        """Store the parts of the answer."""
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
