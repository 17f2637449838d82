"""Asking an emulator one question at a time, as its tests do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from knouds_async.testing import Emulator, Later, Request, Response


class Asker:
    """Sends requests with a key and reads the JSON that comes back; waits for a synchronous run in no time."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator

    def __call__(
        self, line: str, body: object = None, *, now: float = 0.0, key: str | None = "", raw: bytes | None = None
    ) -> Response:
        """Send e.g. "GET /api/usage?limit=5"; key "" is the emulator's own, None sends none."""
        method, _, target = line.partition(" ")
        path, _, query = target.partition("?")
        headers = {} if key is None else {"x-api-key": key or self.emulator.api_key}
        content = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        outcome = self.emulator.handle(Request(method, path, query, headers, content), now)
        while isinstance(outcome, Later):
            outcome = self.emulator.resume(outcome, outcome.at)
        assert isinstance(outcome, Response)
        return outcome

    def json(self, line: str, body: object = None, *, now: float = 0.0, key: str | None = "") -> Any:
        """Send and give the body of a 2xx answer."""
        response = self(line, body, now=now, key=key)
        assert 200 <= response.status < 300, response
        return response.json()

    def submit(self, target: str = "workflows/daily-picture", inputs: object = None, *, now: float = 0.0) -> str:
        """Submit a run and give its execution id."""
        answer = self.json(f"POST /api/{target}/run?async=true", {"inputs": inputs or {}}, now=now)
        return str(answer["executionId"])

    def poll(self, execution_id: str, *, now: float) -> Any:
        """Poll a run."""
        return self.json(f"GET /api/executions/{execution_id}", now=now)


@pytest.fixture
def ask() -> Callable[[Emulator], Any]:
    """Return what asks an emulator."""
    return Asker
