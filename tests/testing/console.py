"""Asking an emulator's control API and its page, as their tests do."""

from __future__ import annotations

import json
from typing import Any

from knouds_async.testing import Emulator, Request, Response

JSON = {"content-type": "application/json", "host": "127.0.0.1:8000"}


class ControlClient:
    """Asks the console of an emulator, without a key."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator

    def raw(self, line: str, body: object = None, *, now: float = 0.0, **headers: str) -> Response:
        """Send e.g. "POST reset" to the control API."""
        method, _, path = line.partition(" ")
        path, _, query = path.partition("?")
        content = b"" if body is None else json.dumps(body).encode()
        given = {**JSON, **{name.replace("_", "-"): value for name, value in headers.items()}}
        full = path if path.startswith("/") else f"/__emulator__/{path}"
        outcome = self.emulator.handle(Request(method, full, query, given, content), now)
        assert isinstance(outcome, Response)
        return outcome

    def __call__(self, line: str, body: object = None, *, now: float = 0.0) -> Any:
        """Send and give the JSON of a 2xx answer."""
        answer = self.raw(line, body, now=now)
        assert 200 <= answer.status < 300, answer
        return answer.json()


def busy(ask: Any, **settings: Any) -> tuple[Emulator, list[str]]:
    """Return an emulator with three runs of ten seconds, at a moment when the first two have finished."""
    emulator = Emulator(**{"duration": 10.0, "window_phase": 0.0, **settings})
    asker = ask(emulator)
    ids = [asker.submit("workflows/my-thumbnail-pipeline", {"product_name": name}, now=at)
           for name, at in (("cup", 0.0), ("<b>lamp</b>", 1.0), ("chair", 5.0))]  # fmt: skip
    asker.poll(ids[0], now=12.0)
    return emulator, ids
