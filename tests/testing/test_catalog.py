"""Who may do what: capabilities and their wildcards, scopes of the old generation, tiers."""

from __future__ import annotations

from typing import Any

import pytest

from knouds_async.testing import Emulator, Model
from tests.testing.answers import GOOD, SUBMIT, check_refused


@pytest.mark.parametrize(
    ("capabilities", "line", "required"),
    [
        ([], SUBMIT, "workflow:run"),
        (["workflow:jingle:run"], SUBMIT, "workflow:run"),
        (["workflow:read"], "DELETE /api/workflows/jingle", "workflow:write"),
        (["model:*"], "GET /api/workflows", "workflow:read"),
        (["workflow:*"], "GET /api/executions/e", "execution:read"),
        (["execution:read"], "POST /api/executions/e/cancel", "execution:cancel"),
        (["workflow:*"], "POST /api/models/suno-v5/run", "model:run"),
    ],
)
def test_a_missing_capability_is_named(ask: Any, capabilities: list[str], line: str, required: str) -> None:
    """A key without the capability gets 403 that names it."""
    emulator = Emulator(tier="business", capabilities=capabilities)
    check_refused(ask(emulator)(line, GOOD), 403, "CAPABILITY_DENIED", required=required)


@pytest.mark.parametrize(
    "capabilities",
    [["*"], ["workflow:*"], ["workflow:run"], ["workflow:my-thumbnail-pipeline:run"], ["x", "workflow:run"]],
)
def test_capabilities_and_wildcards_open(ask: Any, capabilities: list[str]) -> None:
    """The capability itself, one for the slug, and wildcards all let a run through."""
    assert ask(Emulator(capabilities=capabilities))(SUBMIT, GOOD).status == 200


def test_a_key_without_capabilities_may_ask_for_itself(ask: Any) -> None:
    """whoami and usage are open to any key."""
    asker = ask(Emulator(capabilities=[]))
    for path in ("/api/whoami", "/api/usage", "/api/usage/models"):
        assert asker(f"GET {path}").status == 200


def test_the_old_generation_has_scopes(ask: Any) -> None:
    """A key whose scope is too small gets SCOPE_DENIED with what it needs and has; capabilities do not count."""
    emulator = Emulator(generation="old", scope="free", capabilities=[])
    context = {"required": "deployment", "actual": "free"}
    check_refused(ask(emulator)("DELETE /api/workflows/jingle"), 403, "SCOPE_DENIED", **context)
    assert ask(emulator)(SUBMIT, GOOD).status == 200
    assert ask(Emulator(generation="old", scope="admin"))("DELETE /api/workflows/jingle").status == 200


def test_models_need_their_tier(ask: Any) -> None:
    """Models need Business, or more when they say so; enterprise, custom tiers and administrators pass."""
    models = [Model("suno-v5"), Model("grand-1", tier="enterprise")]
    line = "POST /api/models/suno-v5/run?async=true"
    for tier in ("pro", "creator"):
        emulator = Emulator(tier=tier, models=models, workflows=[])
        check_refused(ask(emulator)(line, GOOD), 403, "MODEL_TIER_REQUIRED")
    for tier in ("business", "enterprise", "acme-custom"):
        assert ask(Emulator(tier=tier, models=models, workflows=[]))(line, GOOD).status == 200
    grand = "POST /api/models/grand-1/run?async=true"
    business = Emulator(tier="business", models=models, workflows=[])
    check_refused(ask(business)(grand, GOOD), 403, "MODEL_TIER_REQUIRED")
    assert ask(Emulator(role="admin", models=models, workflows=[]))(grand, GOOD).status == 200
