"""A run as it is asked for, and what a refusal has to look like, for the tests of the emulator's answers."""

from __future__ import annotations

from knouds_async.testing import EmulatedWorkflow, Response

RUN = "POST /api/workflows/my-thumbnail-pipeline/run"
SUBMIT = f"{RUN}?async=true"
GOOD = {"inputs": {"product_name": "x"}}
SLIDER = EmulatedWorkflow("slider", ({"name": "n", "type": "slider", "min": -1e308, "step": 5e-324},), ())


def check_refused(answer: Response, status: int, code: str | None, **context: object) -> None:
    """Check that an answer refuses with a status and a code, says why, and has the fields of `context`."""
    assert answer.status == status
    body = answer.json()
    assert isinstance(body, dict)
    assert body.pop("error")
    assert body.pop("code", None) == code
    assert context.items() <= body.items()
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["date"].endswith(" GMT")
    assert "x-ratelimit-limit" not in answer.headers or status == 429
