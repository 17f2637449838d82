"""What a test can ask the emulator afterwards."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from knouds_async.testing import ApiKey, Emulator, faults

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


def test_charged_twice_is_told_with_both_runs(ask: Any) -> None:
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


def test_refusals_are_told(ask: Any) -> None:
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


def test_a_run_whose_end_nobody_saw_is_told(ask: Any) -> None:
    """A run is collected by a look after its end, by the answer of a synchronous one, or by a delivery taken."""
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
    """Only the latest 10 000 requests are kept; the count goes on."""
    emulator = Emulator()
    asker = ask(emulator)
    for _ in range(10_050):
        asker("GET /api/health", key=None)
    assert len(list(emulator.requests)) == 10_000
    assert emulator.requests.count == 10_050
