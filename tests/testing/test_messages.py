"""The log of requests: counted by route, with what the service answered, bounded."""

from __future__ import annotations

from typing import Any

import pytest

from knouds_async.testing import Emulator, faults

SUBMIT = "POST /api/workflows/jingle/run?async=true"


def test_requests_are_counted_by_route(ask: Any) -> None:
    """The log counts all requests by route, and keeps method, route, query, status and time of the latest."""
    emulator = Emulator()
    asker = ask(emulator)
    asker(SUBMIT, {"inputs": {}}, now=1.0)
    asker("GET /api/workflows/jingle", now=2.0)
    asker("GET /nowhere", now=3.0)
    assert len(emulator.requests) == emulator.requests.count == 3
    assert emulator.requests.by_route["POST /api/workflows/:slug/run"] == 1
    logged = [(one.method, one.route, one.query, one.status, one.at) for one in emulator.requests]
    assert logged[0] == ("POST", "POST /api/workflows/:slug/run", "async=true", 200, 1.0)
    assert logged[2] == ("GET", "(no such route)", "", 404, 3.0)


def test_a_lost_answer_is_logged_with_what_the_service_said(ask: Any) -> None:
    """The log shows the service's own status of an answer that got lost, and none when nothing was carried out."""
    emulator = Emulator()
    emulator.faults.add(script=[faults.reset(), faults.reset(after_run=True)])
    for _ in range(2):
        with pytest.raises(AssertionError):  # what comes back is no response
            ask(emulator)(SUBMIT, {"inputs": {}})
    assert [one.status for one in emulator.requests] == [None, 200]
    assert len(emulator.runs) == 1
    assert emulator.faults.struck == {"reset": 2}


def test_the_log_is_bounded(ask: Any) -> None:
    """Only the latest 10 000 requests are kept; the count continues."""
    emulator = Emulator()
    asker = ask(emulator)
    for _ in range(10_050):
        asker("GET /api/health", key=None)
    assert len(list(emulator.requests)) == 10_000
    assert emulator.requests.count == 10_050
