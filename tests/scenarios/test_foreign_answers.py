"""Money where the answer to a submit is not the service's: what is reported as not run did not run."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from knouds_async.testing import Emulator, Fault
from knouds_async.testing.messages import Response
from tests.scenarios.service import SUBMIT, execution_failed, instead
from tests.scenarios.test_money import PATIENCE, Reports

COUNT = 20

PAGES = {
    status: Response(status, {"content-type": "text/html"}, b"<html>Blocked</html>")
    for status in (200, *range(400, 600, 20), 401, 402, 403, 404, 409, 429, 451)
}
NO_PAGES = {
    "303": Response(303, {"location": "/elsewhere"}, b""),
    "304": Response(304, {}, b""),
    "204": Response(204, {}, b""),
    "403 in JSON of others": Response(403, {"content-type": "application/json"}, b'{"message": "Forbidden"}'),
    "429 in JSON of others": Response(429, {"content-type": "application/json"}, b'{"message": "Slow down"}'),
    "404 in a list": Response(404, {"content-type": "application/json"}, b'["error"]'),
    "400 with no words": Response(400, {"content-type": "application/json"}, b'{"error": {}}'),
}
ANSWERS = {f"a page with {status}": page for status, page in PAGES.items()} | NO_PAGES


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_of_somebody_else_proves_nothing(name: str, make_client: Any) -> None:
    """Whatever stands in between answers, before or after the run began: each run is known, or reported unknown."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    emulator.faults.add(instead(ANSWERS[name], after_run=True), route=SUBMIT, probability=0.3)
    emulator.faults.add(instead(ANSWERS[name], after_run=False), route=SUBMIT, probability=0.3)
    await _check(emulator, make_client)


async def test_a_failure_in_answer_to_a_submit_proves_nothing(make_client: Any) -> None:
    """The service answers a submit with a failure of its run: the run may continue, and be charged."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    fault: Fault = execution_failed()
    emulator.faults.add(fault, route=SUBMIT, probability=0.5)
    await _check(emulator, make_client)


async def _check(emulator: Emulator, make_client: Any) -> None:
    reports, knouds = Reports(), make_client(emulator, timeouts=PATIENCE)
    async with anyio.create_task_group() as tasks:
        for number in range(COUNT):
            tasks.start_soon(reports.submit, knouds, f"job {number}")
    emulator.settle(anyio.current_time())
    reports.check(emulator)
