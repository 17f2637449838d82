"""What a test can do to an emulator by hand: end a run now, begin anew, take a fault off again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from knouds_async.testing import Deliveries, Emulator, faults


def test_a_run_is_finished_now(ask: Any) -> None:
    """It completes at the moment of the last request, with what its target makes; the usage row follows."""
    emulator = Emulator(duration=1000.0)
    run_id = ask(emulator).submit(now=0.0)
    ask(emulator)("GET /api/health", now=7.0)
    emulator.finish(run_id)
    shown = ask(emulator).poll(run_id, now=7.0)
    assert (shown["status"], shown["ms"], len(shown["result"]["images"])) == ("completed", 7000, 1)
    assert ask(emulator).json("GET /api/usage?status=completed", now=7.0)["total"] == 1
    assert ask(emulator).json("GET /api/usage?status=processing", now=2000.0)["total"] == 0


def test_a_run_is_finished_with_a_result(ask: Any) -> None:
    """Any JSON can be its result."""
    emulator = Emulator()
    run_id = ask(emulator).submit()
    emulator.finish(run_id, {"text": ["a", "b"]})
    assert ask(emulator).poll(run_id, now=0.0)["result"] == {"text": ["a", "b"]}


def test_a_run_fails_now(ask: Any) -> None:
    """The message is told by the look and by the delivery."""
    emulator = Emulator(webhook_url="http://127.0.0.1:9/hook", deliveries=Deliveries(latency=0.0))
    run_id = ask(emulator).submit(now=0.0)
    emulator.settle(3.0)
    emulator.fail(run_id, "out of paint")
    failure = {"code": "EXECUTION_FAILED", "message": "out of paint"}
    assert ask(emulator).poll(run_id, now=3.0)["error"] == failure
    (delivery,) = emulator.due_deliveries(3.0)
    told = json.loads(delivery.body)
    assert (told["event"], told["error"], told["result"]) == ("execution.failed", failure, None)


def test_what_cannot_be_ended_is_refused(ask: Any) -> None:
    """A finished run, one that is not there and a synchronous one are a ValueError."""
    emulator = Emulator(duration=1.0)
    ask(emulator)("POST /api/workflows/daily-picture/run", {"inputs": {}}, now=0.0)
    with pytest.raises(ValueError, match="no asynchronous run"):
        emulator.finish(emulator.runs[0].execution_id)
    with pytest.raises(ValueError, match="no asynchronous run 'nobody'"):
        emulator.fail("nobody")
    run_id = ask(emulator).submit(now=1.0)
    emulator.settle(2.0)
    with pytest.raises(ValueError, match="already completed"):
        emulator.fail(run_id)


def test_a_reset_begins_anew(ask: Any) -> None:
    """Settings, runs, charges, requests, faults, windows, ids and the clock are as they were made."""
    emulator = Emulator(limit=3, window_phase=0.0, webhook_url="http://127.0.0.1:9/hook", credits=100)
    fresh = Emulator(limit=3, window_phase=0.0, webhook_url="http://127.0.0.1:9/hook", credits=100)
    asker = ask(emulator)
    emulator.tier, emulator.duration = "business", 3.0
    emulator.faults.add(faults.not_found(), route="GET /api/health")
    asker.submit(now=50.0)
    asker("GET /api/health", now=55.0)
    emulator.reset()
    assert (emulator.tier, emulator.duration, emulator.credits) == (fresh.tier, fresh.duration, 100)
    assert (emulator.requests.count, list(emulator.requests), emulator.faults.struck) == (0, [], {})
    assert (len(emulator.runs), len(emulator.charges)) == (0, 0)
    assert emulator.due_deliveries(1e6) == []
    emulator.reset()
    answers = [
        ask(one)("POST /api/workflows/daily-picture/run?async=true", {"inputs": {}}, now=70.0)
        for one in (emulator, fresh)
    ]
    assert answers[0] == answers[1]


def test_a_fault_is_taken_off(ask: Any) -> None:
    """`add` gives the number to `remove` it by; the others stay, and each tells what it has met and struck."""
    emulator = Emulator()
    first = emulator.faults.add(faults.not_found(), route="GET /api/health", nth=(1, 2))
    second = emulator.faults.add(faults.service_error(500, after_run=True), probability=1.0)
    third = emulator.faults.add(script=[None, faults.stalled(2.0)])
    assert ask(emulator)("GET /api/health").status == 404
    emulator.faults.remove(first)
    assert ask(emulator)("GET /api/health").status == 500
    with pytest.raises(KeyError):
        emulator.faults.remove(first)
    told = [(one.number, one.description, one.met, one.struck) for one in emulator.faults.attached()]
    assert told == [
        (second, "service_error (after the run) 100%", 2, 1),
        (third, "script: none, stalled", 2, 0),
    ]
