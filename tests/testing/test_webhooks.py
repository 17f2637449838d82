"""The emulator's deliveries: signed as the contract says, due when runs finish, and as unruly as they are set to be."""

import hashlib
import hmac
import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from knouds_async.testing import ApiKey, Deliveries, Delivery, Emulator

Ask = Callable[[Emulator], Any]
HOOK = "http://127.0.0.1:9/hook"


def hooked(**settings: Any) -> Emulator:
    """Return a service whose key has a webhook and whose runs take ten seconds."""
    return Emulator(**{"tier": "enterprise", "duration": 10.0, "webhook_url": HOOK, **settings})


def all_due(emulator: Emulator, *, until: float = 1000.0) -> list[tuple[float, Delivery]]:
    """Collect every delivery when it is due, none being answered."""
    found = []
    while (at := emulator.next_delivery_at()) <= until:
        found += [(at, delivery) for delivery in emulator.due_deliveries(at)]
    return found


def is_signed(delivery: Delivery, secret: str) -> bool:
    """Check a signature without anything of the library's."""
    moment, _, digest = delivery.headers["x-knouds-signature"].removeprefix("t=").partition(",v1=")
    signed = moment.encode() + b"." + delivery.body
    return hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() == digest


def test_an_end_is_delivered_once_and_signed(ask: Ask) -> None:
    """0.2 s after its end a run's delivery is due, once, with what the contract has in it."""
    emulator = hooked()
    run_id = ask(emulator).submit(now=5.0)
    assert emulator.due_deliveries(15.0) == []
    assert emulator.next_delivery_at() == pytest.approx(15.2)
    (delivery,) = emulator.due_deliveries(15.2)
    assert emulator.due_deliveries(99.0) == []
    assert emulator.next_delivery_at() == math.inf
    assert (delivery.url, delivery.execution_id) == (HOOK, run_id)
    assert is_signed(delivery, emulator.webhook_secret)
    told = json.loads(delivery.body)
    assert (told["event"], told["executionId"], told["status"]) == ("execution.completed", run_id, "completed")
    assert told["result"]["images"]
    assert (told["cost"], told["ms"], told["error"]) == (emulator.cost, 10_000, None)


def test_the_signature_is_dated_as_asked(ask: Ask) -> None:
    """By the caller's unix time, or by the service's own clock without one."""
    for unix_now, moment in ((1234.9, "t=1234,"), (None, "t=1780000010,")):
        emulator = hooked(deliveries=Deliveries(latency=0.0))
        ask(emulator).submit(now=0.0)
        (delivery,) = emulator.due_deliveries(10.0, unix_now=unix_now)
        assert delivery.headers["x-knouds-signature"].startswith(moment)


def test_only_asynchronous_runs_of_a_key_with_a_webhook(ask: Ask) -> None:
    """Neither a run of another key nor a synchronous one is delivered."""
    emulator = hooked(keys=[ApiKey("knouds_live_other")])
    ask(emulator)("POST /api/workflows/daily-picture/run", {"inputs": {}}, now=0.0)
    ask(emulator)("POST /api/workflows/daily-picture/run?async=true", {"inputs": {}}, now=0.0, key="knouds_live_other")
    assert emulator.next_delivery_at() == math.inf


def test_a_cancelled_run_is_delivered_when_it_ends(ask: Ask) -> None:
    """A cancel moves the delivery to the earlier end."""
    emulator = hooked()
    asker = ask(emulator)
    run_id = asker.submit(now=0.0)
    asker.json(f"POST /api/executions/{run_id}/cancel", now=1.0)
    ((at, delivery),) = all_due(emulator)
    assert at < 4
    assert json.loads(delivery.body)["event"] == "execution.cancelled"


def test_what_is_not_taken_is_sent_again(ask: Ask) -> None:
    """After a 500 or no answer three attempts are made in all, at growing pauses; after a 200 no other."""
    emulator = hooked()
    ask(emulator).submit(now=0.0)
    at, times = emulator.next_delivery_at(), []
    while at < math.inf:
        for delivery in emulator.due_deliveries(at):
            times.append(at)
            emulator.delivery_answered(delivery, 500 if len(times) == 1 else None, at)
        at = emulator.next_delivery_at()
    assert times == pytest.approx([10.2, 15.2, 25.2])
    ask(emulator).submit(now=100.0)
    taken = [one for at, one in all_due(emulator)]
    emulator.delivery_answered(taken[-1], 204, 120.0)
    assert emulator.next_delivery_at() == math.inf


def test_unruly_deliveries(ask: Ask) -> None:
    """Of 400 runs the shares asked for are dropped, repeated, forged, expired and stale; the same each time."""
    unruly = Deliveries(dropped=0.3, repeated=0.2, forged=0.25, expired=0.1, stale=0.15, late=0.5, late_by=7.0)

    def kinds() -> Counter[str]:
        emulator = hooked(deliveries=unruly)
        asker = ask(emulator)
        for _ in range(400):
            asker.submit(now=0.0)
        found = all_due(emulator)
        for _, delivery in found:
            assert is_signed(delivery, emulator.webhook_secret) == (delivery.kind != "forged")
        return Counter(delivery.kind for _, delivery in found)

    seen = kinds()
    assert seen == kinds()
    assert seen["genuine"] == pytest.approx(280, abs=30)
    assert seen["repeated"] == pytest.approx(56, abs=20)
    assert seen["forged"] == pytest.approx(100, abs=25)
    assert seen["expired"] == pytest.approx(40, abs=20)
    assert seen["stale"] == pytest.approx(42, abs=20)


def test_a_spread_latency_puts_them_out_of_order(ask: Ask) -> None:
    """Runs that end one after another are delivered in another order."""
    emulator = hooked(deliveries=Deliveries(latency=lambda dice: 30 * dice.random()))
    ids = [ask(emulator).submit(now=float(second)) for second in range(20)]
    came = [delivery.execution_id for _, delivery in all_due(emulator)]
    assert sorted(came) == sorted(ids)
    assert came != ids


@pytest.mark.parametrize("options", [{"dropped": 1.1}, {"latency": -1}, {"attempts": 0}, {"late_by": math.inf}])
def test_impossible_deliveries_are_refused(options: dict[str, Any]) -> None:
    """Shares beyond one, times before zero and no attempt at all are a ValueError."""
    with pytest.raises(ValueError, match=next(iter(options))):
        Deliveries(**options)
