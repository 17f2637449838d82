"""Settings that cannot be are refused with a sentence, and the key stays out of sight."""

from __future__ import annotations

from typing import Any

import pytest

from knouds_async.testing import ApiKey, EmulatedWorkflow, Emulator, Lognormal, Model, Request


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tier": ""}, "tier"),
        ({"role": "root"}, "role"),
        ({"generation": "next"}, "generation"),
        ({"scope": "root"}, "scope"),
        ({"duration": -1}, "duration must be finite seconds"),
        ({"duration": float("nan")}, "duration must be finite seconds"),
        ({"durations": {"jingle": float("inf")}}, "must be finite seconds"),
        ({"durations": {"no-such": 1}}, "durations names unknown targets: \\['no-such'\\]"),
        ({"costs": {"no-such": 1}}, "costs names unknown targets"),
        ({"costs": {"jingle": -1}}, "integer number of credits"),
        ({"cost": 1.5}, "cost must be an integer number of credits"),
        ({"cost": True}, "cost must be an integer number of credits"),
        ({"credits": -1}, "credits must be an integer"),
        ({"grant": -1}, "grant must be an integer"),
        ({"failure_rate": 1.1}, "failure_rate must be between 0 and 1"),
        ({"window_length": 0}, "window_length"),
        ({"window_length": float("inf")}, "window_length must be a finite number"),
        ({"window_phase": float("nan")}, "window_phase must be a finite number"),
        ({"window_opens": "never"}, "window_opens"),
        ({"reset_rounding": "sideways"}, "reset_rounding"),
        ({"limit": 0}, "limit"),
        ({"limit": 5, "tier": "enterprise"}, "limit has no effect"),
        ({"limit": 5, "role": "admin"}, "limit has no effect"),
        ({"limit": 5, "generation": "old", "scope": "super_admin"}, "limit has no effect"),
        ({"others": 1.0}, "others must be a share of the limit"),
        ({"usage_lag": -1}, "usage_lag must be finite seconds"),
        ({"not_found_after_submit": float("inf")}, "not_found_after_submit must be finite seconds"),
        ({"cancel_delay": -1}, "cancel_delay must be finite seconds"),
        ({"late_cancel": "failed"}, "late_cancel"),
        ({"epoch": 0}, "epoch"),
        ({"clock_skew": float("inf")}, "clock_skew must be a finite number"),
        ({"workflows": [EmulatedWorkflow("a"), EmulatedWorkflow("a")]}, "workflows has duplicate names: \\['a'\\]"),
        ({"models": [Model("a"), Model("a")], "workflows": []}, "models has duplicate names"),
        ({"workflows": [EmulatedWorkflow("a", models=["no-such"])]}, "uses unknown models"),
        ({"keys": [ApiKey("a"), ApiKey("a")]}, "two API keys have the same text"),
        ({"api_key": "with space"}, "printable ASCII"),
        ({"api_key": ""}, "printable ASCII"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    """An impossible setting raises ValueError that names it."""
    with pytest.raises(ValueError, match=message):
        Emulator(**settings)


def test_one_capability_is_not_a_list() -> None:
    """A text in place of a list of capabilities is refused, not read letter by letter."""
    with pytest.raises(TypeError, match="list of capabilities"):
        Emulator(capabilities="workflow:run")


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        (Lognormal, {"median": 0}),
        (Lognormal, {"median": 45, "sigma": -1}),
        (EmulatedWorkflow, {"slug": "Bad Slug"}),
        (Model, {"name": "x_y"}),
        (Model, {"name": "x", "makes": "smells"}),
        (ApiKey, {"text": "x", "state": "lost"}),
        (ApiKey, {"text": "x", "scope": "root"}),
        (ApiKey, {"text": "x", "user": ""}),
    ],
)
def test_parts_that_cannot_be_are_refused(part: Any, settings: dict[str, Any]) -> None:
    """Impossible laws, workflows, models and keys raise ValueError that names the setting."""
    with pytest.raises(ValueError, match=list(settings)[-1]):
        part(**settings)


def test_settings_can_change_on_the_way(ask: Any) -> None:
    """Settings can be set later, and are checked then too; runs that began keep what they were given."""
    emulator = Emulator(duration=10, cost=12)
    ask(emulator).submit()
    emulator.duration, emulator.cost, emulator.limit = 99, 5, 3
    ask(emulator).submit()
    assert [(run.ends, run.cost) for run in emulator.runs] == [(10, 12), (99, 5)]
    with pytest.raises(ValueError, match="failure_rate"):
        emulator.failure_rate = 2.0


def test_the_key_never_shows() -> None:
    """No repr of the emulator, its keys or requests, nor an error about keys, shows a key."""
    canary = "knouds_live_canary_8c1f"
    emulator = Emulator(api_key=canary, keys=[ApiKey(f"{canary}2")])
    request = Request("GET", "/api/whoami", headers={"x-api-key": canary, "accept": "*/*"})
    answer = emulator.handle(request, 0.0)
    emulator.handle(Request("POST", "/api/workflows/jingle/run", "async=true", {"x-api-key": canary}, b"{}"), 0.0)
    shown = repr([emulator, emulator.keys, request, answer, list(emulator.requests), emulator.runs, emulator.charges])
    assert canary not in shown
    assert "*/*" in shown
    with pytest.raises(ValueError, match="not shown") as caught:
        Emulator(api_key=f"{canary}\n")
    assert canary not in str(caught.value)
    assert repr(emulator) == "<Emulator tier='pro' requests=2 runs=0>"
