"""The rate limit: fixed windows per user and route, and what the headers say of them."""

from __future__ import annotations

import math
from collections import Counter
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async.testing import ApiKey, Emulator, Request, Response, faults

SUBMIT = "POST /api/workflows/jingle/run?async=true"
EMPTY: dict[str, object] = {"inputs": {}}


def _get(emulator: Emulator, now: float, path: str = "/api/usage") -> Response:
    answer = emulator.handle(Request("GET", path, "", {"x-api-key": emulator.api_key}), now)
    assert isinstance(answer, Response)
    return answer


@given(
    limit=st.integers(1, 7),
    length=st.floats(0.5, 100),
    phase=st.floats(-100, 100),
    start=st.floats(0, 1e6),
    gaps=st.lists(st.floats(0, 40), max_size=60),
    others=st.sampled_from([0.0, 0.3, 0.9]),
)
def test_no_window_grants_more_than_the_limit(
    limit: int, length: float, phase: float, start: float, gaps: list[float], others: float
) -> None:
    """However requests fall, no window lets more than the limit in, and none with room left is refused."""
    emulator = Emulator(limit=limit, window_length=length, window_phase=phase, others=others)
    granted: Counter[int] = Counter()
    now = start
    for gap in (0.0, *gaps):
        now += gap
        window = math.floor((now - start - phase) / length)
        answer = _get(emulator, now)
        granted[window] += answer.status == 200
        assert answer.status == 200 or granted[window] == limit or others
        assert 0 <= int(answer.headers["x-ratelimit-remaining"]) <= limit - granted[window]
        if answer.status == 429:
            assert answer.headers["x-ratelimit-remaining"] == "0"
            assert length + 1 > int(answer.headers["retry-after"]) >= 1
    assert not granted or max(granted.values()) <= limit


def test_a_full_window_refuses_as_documented(ask: Any) -> None:
    """The 101st request of a Pro user in a window gets the documented 429, with body, Retry-After and headers."""
    emulator = Emulator(window_phase=0.0)
    asker = ask(emulator)
    remaining = [asker(SUBMIT, EMPTY, now=48.5).headers["x-ratelimit-remaining"] for _ in range(100)]
    assert remaining == [str(left) for left in range(99, -1, -1)]
    refused = asker(SUBMIT, EMPTY, now=97.0)
    assert refused.status == 429
    assert refused.json() == {
        "error": "Rate limit exceeded",
        "code": "RATE_LIMIT_EXCEEDED",
        "tier": "pro",
        "limit": 100,
        "retryAfter": 12,
    }
    assert refused.headers["retry-after"] == "12"
    assert refused.headers["x-ratelimit-remaining"] == "0"
    assert refused.headers["x-ratelimit-reset"] == "1780000060"
    assert (len(emulator.runs), len(emulator.refusals)) == (100, 1)
    assert asker(SUBMIT, EMPTY, now=108.5).status == 200


@pytest.mark.parametrize(("rounding", "reset"), [("up", 61), ("down", 60), ("nearest", 60)])
def test_the_reset_is_rounded_as_told(rounding: Any, reset: int) -> None:
    """The window's end is a whole epoch second, rounded up by default."""
    emulator = Emulator(reset_rounding=rounding, window_phase=0.0, epoch=1_000_000_000.4)
    assert _get(emulator, 0.0).headers["x-ratelimit-reset"] == str(1_000_000_000 + reset)


def test_the_clock_is_the_servers(ask: Any) -> None:
    """`Date` and `Reset` are on the service's clock, skew included, whatever the caller's clock shows."""
    emulator = Emulator(clock_skew=-137.0, window_phase=0.0)
    answer = ask(emulator)("GET /api/usage", now=1e5)
    assert answer.headers["date"] == "Thu, 28 May 2026 20:24:23 GMT"
    assert answer.headers["x-ratelimit-reset"] == str(1_780_000_000 - 137 + 60)
    assert parsedate_to_datetime(ask(emulator)("GET /", now=1e5 + 61.7).headers["date"]).second == 24


def test_routes_have_their_own_windows_and_slugs_share_one(ask: Any) -> None:
    """All slugs share one window, synchronous and not; models, polls and usage each have their own."""
    asker = ask(Emulator(tier="business", limit=10, duration=0))
    left = [
        asker(line, EMPTY).headers.get("x-ratelimit-remaining")
        for line in (
            SUBMIT,
            "POST /api/workflows/daily-picture/run",
            "POST /api/models/suno-v5/run",
            "POST /api/models/seedance-2/run?async=true",
            "GET /api/usage?limit=5",
            "GET /api/whoami",
            "GET /api/usage/models",
            "GET /api/workflows",
        )
    ]
    assert left == ["9", "8", "9", "8", "9", None, None, None]
    execution_id = asker.submit()
    assert asker(f"GET /api/executions/{execution_id}").headers["x-ratelimit-remaining"] == "9"
    assert "x-ratelimit-limit" not in asker(f"POST /api/executions/{execution_id}/cancel").headers


def test_polls_and_usage_can_be_unlimited(ask: Any) -> None:
    """Whether polls and usage are limited is a setting, since it is not documented."""
    asker = ask(Emulator(limit=1, polls_limited=False, usage_limited=False))
    execution_id = asker.submit()
    for line in (f"GET /api/executions/{execution_id}", "GET /api/usage"):
        for _ in range(3):
            assert "x-ratelimit-limit" not in asker(line).headers


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({"tier": "pro"}, 100),
        ({"tier": "business"}, 1000),
        ({"tier": "acme-custom"}, 100),
        ({"tier": "acme-custom", "limit": 7}, 7),
        ({"tier": "enterprise"}, None),
        ({"role": "admin"}, None),
        ({"generation": "old", "scope": "free"}, 10),
        ({"generation": "old", "scope": "deployment"}, 100),
        ({"generation": "old", "scope": "admin"}, 1000),
        ({"generation": "old", "scope": "super_admin"}, None),
    ],
)
def test_the_limit_is_the_tiers_or_the_scopes(settings: dict[str, Any], limit: int | None) -> None:
    """Tiers, and scopes in the old generation, have the documented limits; unlimited accounts get no headers."""
    headers = _get(Emulator(**settings), 0.0).headers
    assert headers.get("x-ratelimit-limit") == (None if limit is None else str(limit))


def test_users_do_not_share_but_their_keys_do(ask: Any) -> None:
    """Two keys of one user share a window; another user has another, with the limit of the other's tier."""
    keys = [ApiKey("second"), ApiKey("theirs", user="u_2", tier="business")]
    asker = ask(Emulator(limit=None, keys=keys))
    left = [asker("GET /api/usage", key=key).headers["x-ratelimit-remaining"] for key in ("", "second", "theirs")]
    assert left == ["99", "98", "999"]


def test_a_request_that_is_refused_later_still_counts(ask: Any) -> None:
    """A request past the key check takes its place in the window, even when it is refused for its body."""
    asker = ask(Emulator(limit=5))
    assert asker(SUBMIT, {}).status == 400
    assert asker(SUBMIT, EMPTY).headers["x-ratelimit-remaining"] == "3"
    assert asker(SUBMIT, EMPTY, key="wrong").status == 401
    assert asker(SUBMIT, EMPTY).headers["x-ratelimit-remaining"] == "2"


def test_others_use_up_their_share() -> None:
    """Other users of the quota take their share of each window, spread over it."""
    emulator = Emulator(others=0.3, limit=100, window_phase=0.0)
    left = [int(_get(emulator, now).headers["x-ratelimit-remaining"]) for now in (0.0, 30.0, 59.99, 119.99)]
    assert left[0] == 99
    assert 75 < left[1] < 95
    assert left[2:] == [67, 69]


def test_others_can_be_a_callable() -> None:
    """The number of others' requests in each window can be drawn; more than fit are refused them, not us twice."""
    emulator = Emulator(others=lambda dice: dice.choice([500]), limit=10, window_phase=0.0)
    _get(emulator, 0.0)
    assert _get(emulator, 59.0).status == 429


def test_a_window_can_open_with_the_first_request() -> None:
    """In that mode the window's length counts from the first request after the last window's end."""
    emulator = Emulator(window_opens="first_request", limit=2)
    statuses = [_get(emulator, now).status for now in (5.0, 64.0, 64.9, 65.0, 124.9, 124.95)]
    assert statuses == [200, 200, 429, 200, 200, 429]


def test_the_phase_comes_from_the_seed() -> None:
    """Without a set phase, the seed decides where windows begin: the same for the same seed."""
    resets = {seed: _get(Emulator(seed=seed), 0.0).headers["x-ratelimit-reset"] for seed in range(20)}
    again = {seed: _get(Emulator(seed=seed), 0.0).headers["x-ratelimit-reset"] for seed in range(20)}
    assert resets == again
    assert len(set(resets.values())) > 5


def test_a_request_that_never_arrived_does_not_count() -> None:
    """A fault before the service has the request leaves the window alone; one after it does not."""
    emulator = Emulator(limit=10)
    emulator.faults.add(script=[faults.bad_gateway(), faults.bad_gateway(after_run=True)])
    assert [_get(emulator, 0.0).status for _ in range(2)] == [502, 502]
    assert _get(emulator, 0.0).headers["x-ratelimit-remaining"] == "8"


def test_the_draws_of_others_do_not_move_the_runs(ask: Any) -> None:
    """Each kind of chance has dice of its own, so that a setting does not shift what has nothing to do with it."""

    def ends(others: float) -> list[float]:
        emulator = Emulator(others=others)
        for at in range(5):
            ask(emulator).submit(now=70.0 * at)
        return [run.ends for run in emulator.runs]

    assert ends(0.0) == ends(0.5)


def test_a_window_whose_length_is_changed_ends_when_it_was_to(ask: Any) -> None:
    """The next one has the new length, longer or shorter, and is not as far away as its number in the old one says."""
    for length in (600.0, 20.0):
        emulator = Emulator(limit=1, window_length=60.0, window_phase=0.0)
        asker = ask(emulator)
        assert [asker(SUBMIT, EMPTY, now=now).status for now in (0.0, 3600.0, 3601.0)] == [200, 200, 429]
        emulator.window_length = length
        assert [asker(SUBMIT, EMPTY, now=now).status for now in (3602.0, 3660.0, 3661.0)] == [429, 200, 429]
