"""What a test can ask the emulator, and do to it: assertions, finished runs, resets, faults taken off again."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from knouds_async.testing import ApiKey, Deliveries, Emulator, faults

SUBMIT = "POST /api/workflows/jingle/run?async=true"


def test_charged_once_passes_for_different_jobs(ask: Any) -> None:
    """Different inputs or targets are different jobs."""
    emulator = Emulator(tier="business")
    asker = ask(emulator)
    asker.submit("workflows/jingle", {"mood": "a"})
    asker.submit("workflows/jingle", {"mood": "b"})
    asker.submit("workflows/daily-picture", {"mood": "a"})
    asker.submit("models/suno-v5", {"mood": "a"})
    emulator.assert_charged_once()
    assert [charge.amount for charge in emulator.charges] == [12] * 4
    assert emulator.credits_spent == 48
    assert emulator.credits == 1_000_000_000 - 48


def test_charged_twice_is_reported_with_both_runs(ask: Any) -> None:
    """Two runs of equal target and inputs fail the assertion, whatever the order of keys; both are shown."""
    emulator = Emulator()
    ids = [ask(emulator).submit("workflows/jingle", inputs) for inputs in ({"a": 1, "b": 2}, {"b": 2, "a": 1})]
    with pytest.raises(AssertionError, match=r"1 job.* more than once") as caught:
        emulator.assert_charged_once()
    told = str(caught.value)
    assert 'workflow jingle {"a": 1, "b": 2}' in told
    assert all(f"{one} jingle started at 0.000 s, processing, not polled" in told for one in ids)
    emulator.assert_charged_once(allow_equal_inputs=True)


def test_a_charge_without_a_run_is_told(ask: Any) -> None:
    """Runs and charges that do not match are an error of their own."""
    emulator = Emulator()
    ask(emulator).submit()
    paid = emulator._service.billing.charges.pop()
    with pytest.raises(AssertionError, match=r"1 run\(s\) were not charged once:\n.*charged 0 times"):
        emulator.assert_charged_once()
    emulator._service.billing.charges += [paid, paid]
    with pytest.raises(AssertionError, match="charged 2 times"):
        emulator.assert_charged_once()
    emulator._service.billing.charges[:] = [paid, attrs.evolve(paid, execution_id="nobody-s")]
    with pytest.raises(AssertionError, match=r"1 charge\(s\) were for unknown runs: nobody-s"):
        emulator.assert_charged_once()


def test_refusals_are_reported(ask: Any) -> None:
    """A 429 fails the assertion, which names the first."""
    emulator = Emulator(limit=1)
    emulator.assert_no_429()
    for now in (0.0, 0.25, 0.5):
        ask(emulator)(SUBMIT, {"inputs": {}}, now=now)
    assert len(emulator.refusals) == 2
    with pytest.raises(
        AssertionError,
        match=r"2 request\(s\) were refused with 429 \(2 of POST .*/run\); the first: POST .* at 0\.250 s",
    ):
        emulator.assert_no_429()


def test_a_flood_of_runs_is_told_in_part(ask: Any) -> None:
    """A message shows twenty of a kind and counts the others."""
    emulator = Emulator(tier="enterprise")
    for _ in range(25):
        ask(emulator).submit()
    with pytest.raises(AssertionError, match="and 5 more") as caught:
        emulator.assert_charged_once()
    assert str(caught.value).count("started at") == 20


def test_a_run_whose_end_was_not_seen_is_reported(ask: Any) -> None:
    """A run is collected by a poll after its end, by the answer of a synchronous run, or by an accepted delivery."""
    emulator = Emulator(duration=10.0, keys=[ApiKey("hooked", webhook_url="http://127.0.0.1:9/hook")])
    asker = ask(emulator)
    polled, lost = asker.submit(), asker.submit("workflows/jingle")
    asker("POST /api/workflows/jingle/run?async=true", {"inputs": {}}, key="hooked")
    asker.poll(polled, now=5.0)
    emulator.assert_all_collected()
    asker("POST /api/workflows/jingle/run", {"inputs": {"mood": "sad"}}, now=1.0)
    asker.poll(polled, now=11.0)
    for delivery in emulator.due_deliveries(11.0):
        emulator.delivery_answered(delivery, 200, 11.0)
    with pytest.raises(AssertionError, match=r"^1 finished run\(s\) were never observed.*:\n.*jingle") as caught:
        emulator.assert_all_collected()
    assert lost in str(caught.value)


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
    """The message is in the answer to a poll and in the delivery."""
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


def test_a_reset_starts_again(ask: Any) -> None:
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
    """`add` returns the number to `remove` it by; the others stay, and each counts what it has matched and hit."""
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
