"""The contract of the service, section by section, tried on an emulator that is served: raw HTTP, nothing of ours.

Time is real here, so runs are ended through the control API; what needs minutes is tried in the tests beside this one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from email.utils import parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from queue import Queue
from threading import Thread
from typing import Any
from uuid import UUID

import attrs
import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from knouds_async.testing import ApiKey, Deliveries, EmulatedWorkflow, Emulator, Model, serve

SLUG = "my-thumbnail-pipeline"
INPUTS = {"product_name": "Knouds"}
EMPTY: dict[str, Any] = {"inputs": {}}
ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\Z")
QUOTA = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")


@attrs.frozen
class Service:
    """A served emulator, and a client of it with its key."""

    url: str
    http: httpx.Client

    def __call__(self, line: str, body: Any = None, *, key: str | None = "") -> httpx.Response:
        """Send e.g. "GET /api/usage"; key None sends none, "" the emulator's own."""
        method, _, path = line.partition(" ")
        headers = {"x-api-key": key} if key else {}
        if key is None:
            return httpx.request(method, self.url + path, json=body)
        return self.http.request(method, path, json=body, headers=headers)

    def submit(self, target: str = "workflows/daily-picture", inputs: Any = None, **options: Any) -> Any:
        """Submit a run and give the answer's JSON."""
        answer = self(f"POST /api/{target}/run?async=true", {"inputs": inputs or {}}, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def poll(self, execution_id: str) -> Any:
        """Poll a run."""
        return self(f"GET /api/executions/{execution_id}").json()

    def end(self, execution_id: str, how: str = "finish") -> None:
        """End a run now."""
        assert self(f"POST /__emulator__/runs/{execution_id}/{how}", key=None).status_code == 200


Serve = Callable[..., Service]


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    """Return an event loop in a thread, for the servers of this module."""
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture
def on_a_port(portal: BlockingPortal) -> Iterator[Serve]:
    """Return what serves an emulator with these settings until the end of the test; its runs finish on request."""
    with ExitStack() as stack:

        def start(**settings: Any) -> Service:
            emulator = Emulator(**{"tier": "business", "duration": 3600.0, "epoch": time.time(), **settings})
            url = stack.enter_context(
                portal.wrap_async_context_manager(serve(emulator, serves_media="media_url" not in settings))
            )
            headers = {"x-api-key": emulator.api_key}
            return Service(url, stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=20)))

        yield start


def refused(answer: httpx.Response, status: int, code: str | None) -> Any:
    """Check a refusal as section 1 has it, and give its body."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert isinstance(body["error"], str)
    assert body.get("code") == code
    return body


# 1. Ground rules


def test_1_the_key_goes_in_its_own_header(on_a_port: Serve) -> None:
    """`x-api-key` is taken, `Authorization: Bearer` is not; without a valid key it is 401 without a code."""
    service = on_a_port()
    key = service.http.headers["x-api-key"]
    assert key.startswith("knouds_live_")
    assert service("GET /api/whoami").status_code == 200
    bearer = httpx.get(f"{service.url}/api/whoami", headers={"authorization": f"Bearer {key}"})
    for answer in (bearer, service("GET /api/whoami", key=None), service("GET /api/whoami", key="knouds_live_other")):
        refused(answer, 401, None)


@pytest.mark.parametrize("path", ["me", "credits/balance", "api-keys", "api-keys/7", "business/admin/users"])
def test_1_some_endpoints_take_no_api_key(on_a_port: Serve, path: str) -> None:
    """What is for the dashboard refuses a key."""
    refused(on_a_port()(f"GET /api/{path}"), 403, "API_KEY_ACCESS_DENIED")


def test_1_what_is_not_there_is_404_with_a_message(on_a_port: Serve) -> None:
    """A path that only begins like one for the dashboard is not there, like any other."""
    service = on_a_port()
    for path in ("meow", "creditsx", "moon", "workflows/a/b/c"):
        refused(service(f"GET /api/{path}"), 404, None)


def test_1_an_account_that_is_not_approved_gets_401(on_a_port: Serve) -> None:
    """Its key is valid, and still it is 401."""
    service = on_a_port(keys=[ApiKey("knouds_live_new", is_approved=False)])
    refused(service("GET /api/whoami", key="knouds_live_new"), 401, None)


# 2. Endpoints and capabilities


@pytest.mark.parametrize("role", ["user", "admin"])
@pytest.mark.parametrize("tier", ["free", "pro", "business", "enterprise", "creator", "acme"])
def test_2_whoami(on_a_port: Serve, tier: str, role: str) -> None:
    """Any key may ask who it is, on every tier."""
    user = on_a_port(tier=tier, role=role)("GET /api/whoami").json()["user"]
    assert set(user) == {"id", "email", "role", "tier", "approved"}
    assert (user["role"], user["tier"], user["approved"]) == (role, tier, True)


READ, WRITE = "workflow:read", "workflow:write"
NEEDS = {
    f"POST /api/workflows/{SLUG}/run": ("workflow:run", f"workflow:{SLUG}:run", "workflow:*", "*"),
    f"POST /api/workflows/{SLUG}/run?async=true": ("workflow:run", f"workflow:{SLUG}:run", "workflow:*", "*"),
    f"GET /api/workflows/{SLUG}/schema": (READ, "workflow:*", "*"),
    "GET /api/workflows": (READ, "workflow:*", "*"),
    f"GET /api/workflows/{SLUG}": (READ, "workflow:*", "*"),
    "POST /api/workflows": (WRITE, "workflow:*", "*"),
    f"PUT /api/workflows/{SLUG}": (WRITE, "workflow:*", "*"),
    f"PUT /api/workflows/{SLUG}/move": (WRITE, "workflow:*", "*"),
    "DELETE /api/workflows/jingle": (WRITE, "workflow:*", "*"),
    "POST /api/models/suno-v5/run": ("model:run", "model:suno-v5:run", "model:*", "*"),
    "POST /api/models/suno-v5/run?async=true": ("model:run", "model:suno-v5:run", "model:*", "*"),
    "GET /api/executions/:id": ("execution:read", "execution:*", "*"),
    "POST /api/executions/:id/cancel": ("execution:cancel", "execution:*", "*"),
    "GET /api/usage": ("",),
    "GET /api/usage/models": ("",),
    "GET /api/whoami": ("",),
}
BODIES = {
    "run": {"inputs": INPUTS},
    "move": {"folderId": "f_1"},
    "workflows": {"name": "New"},
    SLUG: {"name": "Renamed"},
}
EVERY = sorted({right for rights in NEEDS.values() for right in rights if right})


@pytest.mark.parametrize("line", NEEDS)
def test_2_each_endpoint_needs_its_capability(on_a_port: Serve, line: str) -> None:
    """Each capability alone opens the endpoints that the table gives it, no other; a refusal names what is needed."""
    keys = [ApiKey(f"knouds_live_{place}", capabilities=[right]) for place, right in enumerate(EVERY)]
    service = on_a_port(keys=[*keys, ApiKey("knouds_live_none", capabilities=[])], duration=0.0)
    path = line.partition("?")[0].rsplit("/", 1)[1]
    for key in [*keys, ApiKey("knouds_live_none", capabilities=[])]:
        filled = line.replace(":id", service.submit()["executionId"] if ":id" in line else "")
        answer = service(filled, BODIES.get(path) if line.startswith(("POST", "PUT")) else None, key=key.text)
        if NEEDS[line] == ("",) or set(key.capabilities) & set(NEEDS[line]):
            assert answer.status_code in ((200, 201, 409) if line.endswith("cancel") else (200, 201)), answer.text
        else:
            assert refused(answer, 403, "CAPABILITY_DENIED")["required"] in NEEDS[line]
        if line.startswith("DELETE") and answer.status_code == 200:
            service("POST /api/workflows", {"name": "Jingle"})


@pytest.mark.parametrize(
    "line", ["GET /api/pricing/public", "GET /api/health", f"GET /api/workflows/{SLUG}/public-schema"]
)
def test_2_public_endpoints_need_no_key(on_a_port: Serve, line: str) -> None:
    """Prices, health and the schema of a public playground are for all."""
    assert on_a_port()(line, key=None).status_code == 200


def test_2_a_schema_is_public_only_where_the_playground_is(on_a_port: Serve) -> None:
    """Another workflow's, one that is not there and a slug that is none: 404, 404, 400."""
    service = on_a_port()
    refused(service("GET /api/workflows/jingle/public-schema", key=None), 404, None)
    refused(service("GET /api/workflows/moon/public-schema", key=None), 404, None)
    refused(service("GET /api/workflows/Moon/public-schema", key=None), 400, "INVALID_SLUG")


@pytest.mark.parametrize("slug", ["Upper", "under_score", "-first", "a%2Fb", "a.b", "%2E%2E", "a%20b", "\u00e4"])
def test_2_a_slug_is_lower_case_letters_digits_and_hyphens(on_a_port: Serve, slug: str) -> None:
    """Anything else is 400, for workflows and models alike."""
    service = on_a_port()
    for line in (f"GET /api/workflows/{slug}", f"POST /api/workflows/{slug}/run", f"POST /api/models/{slug}/run"):
        refused(service(line, EMPTY if line.startswith("POST") else None), 400, "INVALID_SLUG")


def test_2_templates_are_seen_by_all_and_changed_by_none_but_their_owner(on_a_port: Serve) -> None:
    """They are listed and can be run and read; a change is refused."""
    service = on_a_port()
    assert "portrait-starter" in [row["slug"] for row in service("GET /api/workflows").json()]
    assert service("GET /api/workflows/portrait-starter").status_code == 200
    service.submit("workflows/portrait-starter", {"photo": "https://example.com/me.png"})
    refused(service("PUT /api/workflows/portrait-starter", {"name": "Mine"}), 403, "CAPABILITY_DENIED")
    refused(service("DELETE /api/workflows/portrait-starter"), 403, "CAPABILITY_DENIED")


def test_2_models_need_business_and_admins_pass(on_a_port: Serve) -> None:
    """Below the model's tier it is 403, for an admin never."""
    for tier, role, code in (
        ("pro", "user", "MODEL_TIER_REQUIRED"),
        ("pro", "admin", None),
        ("business", "user", None),
    ):
        answer = on_a_port(tier=tier, role=role)("POST /api/models/suno-v5/run?async=true", EMPTY)
        if code:
            refused(answer, 403, code)
        else:
            assert answer.status_code == 200


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [("free", {"read"}), ("deployment", {"read", "write"}), ("admin", {"read", "write", "model"}),
     ("super_admin", {"read", "write", "model"})],
)  # fmt: skip
def test_2_the_older_generation_has_scopes(on_a_port: Serve, scope: str, allowed: set[str]) -> None:
    """A scope that does not suffice is a 403, with what is required and what there is."""
    service = on_a_port(generation="old", scope=scope, capabilities=[])
    lines = {
        "read": ("GET /api/workflows", None),
        "write": ("POST /api/workflows", {"name": "New"}),
        "model": ("POST /api/models/suno-v5/run?async=true", EMPTY),
    }
    for right, (line, body) in lines.items():
        answer = service(line, body)
        if right in allowed:
            assert answer.status_code in (200, 201)
        else:
            told = refused(answer, 403, "SCOPE_DENIED")
            assert told["actual"] == scope
            assert told["required"] in ("deployment", "admin")


# 3. Synchronous runs


def test_3_a_synchronous_run(on_a_port: Serve) -> None:
    """It answers when the run has finished, with result, cost and milliseconds."""
    service = on_a_port(duration=0.05, cost=7)
    body = service(f"POST /api/workflows/{SLUG}/run", {"inputs": {**INPUTS, "count": 2}}).json()
    assert set(body) == {"success", "result", "cost", "ms"}
    assert (body["success"], body["cost"], body["ms"]) == (True, 7, 50)
    assert [set(image) for image in body["result"]["images"]] == [{"url"}, {"url"}]


@pytest.mark.parametrize(
    ("model", "makes"),
    [("seedance-2", "videos"), ("suno-v5", "audios"), ("gpt-image-2", "images"), ("claude-sonnet", "text")],
)
def test_3_the_shape_of_a_result_is_the_models(on_a_port: Serve, model: str, makes: str) -> None:
    """Images, videos and audios are lists of addresses, text is text."""
    result = on_a_port(duration=0.0)(f"POST /api/models/{model}/run", EMPTY).json()["result"]
    assert set(result) == {makes}
    assert isinstance(result[makes], str if makes == "text" else list)


def test_3_a_trial_grant_is_reported_as_no_cost(on_a_port: Serve) -> None:
    """0 credits, and nothing is taken from the account's own."""
    service = on_a_port(duration=0.0, grant=20, cost=12)
    assert service(f"POST /api/workflows/{SLUG}/run", {"inputs": INPUTS}).json()["cost"] == 0
    charges = service("GET /__emulator__/state").json()["charges"]
    assert charges == {"total": 1, "credits": 0, "grant": 12}


# 4. Submits


def test_4_a_submit(on_a_port: Serve) -> None:
    """It answers at once, with a UUID and the provider's id, which the usage rows have as well."""
    service = on_a_port()
    body = service.submit()
    assert set(body) == {"_async", "executionId", "requestId", "status", "webhookDelivery", "pollUrl"}
    assert UUID(body["executionId"]).version == 4
    assert (body["_async"], body["status"], body["webhookDelivery"]) == (True, "processing", {"configured": False})
    assert body["pollUrl"] == f"/api/executions/{body['executionId']}"
    assert service("GET /api/usage").json()["rows"][0]["requestId"] == body["requestId"]


@pytest.mark.parametrize("name", ["kling-3", "seedream-v5", "nano-banana-2", "claude-sonnet"])
def test_4_a_provider_that_cannot_be_polled_refuses_a_submit(on_a_port: Serve, name: str) -> None:
    """400, and nothing is run or charged; the synchronous run works."""
    service = on_a_port(duration=0.0)
    refused(service(f"POST /api/models/{name}/run?async=true", EMPTY), 400, "ASYNC_NOT_SUPPORTED")
    assert service("GET /__emulator__/state").json()["charges"]["total"] == 0
    assert service(f"POST /api/models/{name}/run", EMPTY).status_code == 200
    refused(
        service("POST /api/workflows/fast-sketch/run?async=true", {"inputs": {"prompt": "x"}}),
        400,
        "ASYNC_NOT_SUPPORTED",
    )


def test_4_there_is_no_idempotency_key(on_a_port: Serve) -> None:
    """Sent twice it runs twice and is charged twice, whatever header is with it."""
    service = on_a_port()
    headers = {"idempotency-key": "one", "x-request-id": "one"}
    path = "/api/workflows/daily-picture/run?async=true"
    ids = {service.http.post(path, json=EMPTY, headers=headers).json()["executionId"] for _ in range(2)}
    assert len(ids) == 2
    assert service("GET /__emulator__/state").json()["charges"]["total"] == 2


@pytest.mark.parametrize("query", ["", "?async=false", "?async=1", "?async=True"])
def test_4_only_async_true_is_a_submit(on_a_port: Serve, query: str) -> None:
    """Any other value is a synchronous run."""
    assert on_a_port(duration=0.0)(f"POST /api/workflows/daily-picture/run{query}", EMPTY).json()["success"] is True


# 5. Executions


def test_5_a_run_from_begin_to_end(on_a_port: Serve) -> None:
    """Processing without a result, then completed with one, its cost and its times."""
    service = on_a_port()
    submitted = service.submit(f"workflows/{SLUG}", INPUTS)
    body = service.poll(submitted["executionId"])
    assert (body["status"], body["result"], body["error"], body["completedAt"]) == ("processing", None, None, None)
    assert (body["workflowSlug"], body["requestId"]) == (SLUG, submitted["requestId"])
    service.end(submitted["executionId"])
    body = service.poll(submitted["executionId"])
    assert (body["status"], body["error"], body["cost"]) == ("completed", None, 12)
    assert body["result"]["images"][0]["url"]
    assert body["modelIds"] == ["gpt-image-2"]
    assert ISO.match(body["createdAt"])
    assert ISO.match(body["completedAt"])
    assert body["ms"] >= 0


def test_5_a_run_that_fails_says_why(on_a_port: Serve) -> None:
    """Failed, with code and message and no result; synchronously 500."""
    service = on_a_port()
    execution_id = service.submit()["executionId"]
    service.end(execution_id, "fail")
    body = service.poll(execution_id)
    assert (body["status"], body["result"], set(body["error"])) == ("failed", None, {"code", "message"})
    failing = on_a_port(failure_rate=1.0, duration=0.0)
    refused(failing(f"POST /api/workflows/{SLUG}/run", {"inputs": INPUTS}), 500, "EXECUTION_FAILED")


def test_5_a_cancel_lands_later(on_a_port: Serve) -> None:
    """First `cancel_requested`, asked twice as well, then `cancelled` without a result; charged all the same."""
    service = on_a_port(cancel_delay=0.3)
    execution_id = service.submit()["executionId"]
    for _ in range(2):
        answer = service(f"POST /api/executions/{execution_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancel_requested")
    assert service.poll(execution_id)["status"] == "cancel_requested"
    while (body := service.poll(execution_id))["status"] == "cancel_requested":
        time.sleep(0.05)
    assert (body["status"], body["result"], body["cost"]) == ("cancelled", None, 12)
    refused(service(f"POST /api/executions/{execution_id}/cancel"), 409, "EXECUTION_FINISHED")


@pytest.mark.parametrize("reported", ["completed", "cancelled"])
def test_5_a_run_may_end_before_its_cancel_lands(on_a_port: Serve, reported: str) -> None:
    """It is completed, or cancelled with a result."""
    service = on_a_port(duration=0.2, cancel_delay=60.0, late_cancel=reported)
    execution_id = service.submit()["executionId"]
    assert service(f"POST /api/executions/{execution_id}/cancel").json()["status"] == "cancel_requested"
    while (body := service.poll(execution_id))["status"] == "cancel_requested":
        time.sleep(0.05)
    assert body["status"] == reported
    assert body["result"]["images"]


def test_5_what_is_not_there_and_what_is_not_ones_own_is_404(on_a_port: Serve) -> None:
    """An unknown id, another user's run, and one that has just been submitted, for a moment."""
    service = on_a_port(keys=[ApiKey("knouds_live_theirs", user="u_2")], not_found_after_submit=0.3)
    execution_id = service.submit()["executionId"]
    refused(service(f"GET /api/executions/{execution_id}"), 404, "EXECUTION_NOT_FOUND")
    refused(service("GET /api/executions/550e8400-e29b-41d4-a716-446655440000"), 404, "EXECUTION_NOT_FOUND")
    time.sleep(0.35)
    assert service.poll(execution_id)["status"] == "processing"
    for line in (f"GET /api/executions/{execution_id}", f"POST /api/executions/{execution_id}/cancel"):
        refused(service(line, key="knouds_live_theirs"), 404, "EXECUTION_NOT_FOUND")


# 6. Rate limits


def test_6_a_quota_is_counted_and_refused(on_a_port: Serve) -> None:
    """The headers count down; then 429 with its body, `Retry-After` and the headers, and nothing is run."""
    service = on_a_port(tier="pro", limit=3, window_phase=0.0)
    path = "POST /api/workflows/daily-picture/run?async=true"
    answers = [service(path, EMPTY) for _ in range(4)]
    assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == ["2", "1", "0", "0"]
    assert {answer.headers["x-ratelimit-limit"] for answer in answers} == {"3"}
    (reset,) = {int(answer.headers["x-ratelimit-reset"]) for answer in answers}
    assert 58 <= reset - parsedate_to_datetime(answers[0].headers["date"]).timestamp() <= 61
    body = refused(answers[3], 429, "RATE_LIMIT_EXCEEDED")
    assert (body["tier"], body["limit"]) == ("pro", 3)
    assert str(body["retryAfter"]) == answers[3].headers["retry-after"]
    assert 1 <= body["retryAfter"] <= 60
    assert service("GET /__emulator__/state").json()["runs"]["total"] == 3


def test_6_a_window_ends_when_it_says(on_a_port: Serve) -> None:
    """After `Retry-After` the quota is whole again."""
    service = on_a_port(limit=1, window_length=1.0)
    assert service("GET /api/usage").status_code == 200
    again = service("GET /api/usage")
    while again.status_code == 429:
        time.sleep(0.1)
        again = service("GET /api/usage")
    assert again.headers["x-ratelimit-remaining"] == "0"


def test_6_each_route_has_a_bucket_of_its_own_for_all_slugs_and_keys(on_a_port: Serve) -> None:
    """Workflows share one, models another, polls and usage theirs; two keys of a user share, another user does not."""
    keys = [ApiKey("knouds_live_two"), ApiKey("knouds_live_theirs", user="u_2")]
    service = on_a_port(limit=50, keys=keys, duration=0.0)
    left = [
        service(line, EMPTY if "run" in line else None, key=key).headers.get("x-ratelimit-remaining")
        for line, key in (
            ("POST /api/workflows/daily-picture/run?async=true", ""),
            ("POST /api/workflows/jingle/run", "knouds_live_two"),
            ("POST /api/models/suno-v5/run?async=true", ""),
            ("GET /api/usage", ""),
            ("POST /api/models/suno-v5/run", "knouds_live_theirs"),
            ("GET /api/whoami", ""),
            ("GET /api/workflows", ""),
        )
    ]
    assert left == ["49", "48", "49", "49", "49", None, None]


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({"tier": "pro"}, "100"),
        ({"tier": "business"}, "1000"),
        ({"tier": "enterprise"}, None),
        ({"role": "admin"}, None),
        ({"generation": "old", "scope": "free"}, "10"),
        ({"generation": "old", "scope": "deployment"}, "100"),
        ({"generation": "old", "scope": "admin"}, "1000"),
        ({"generation": "old", "scope": "super_admin"}, None),
    ],
)
def test_6_the_limit_is_the_tiers_or_the_scopes(on_a_port: Serve, settings: dict[str, Any], limit: str | None) -> None:
    """An unlimited account gets none of the headers."""
    headers = on_a_port(**settings)("POST /api/workflows/daily-picture/run?async=true", EMPTY).headers
    assert headers.get("x-ratelimit-limit") == limit
    assert sum(name in headers for name in QUOTA) == (0 if limit is None else 3)


def test_6_the_free_tier_has_no_access_now(on_a_port: Serve) -> None:
    """But to whoami."""
    service = on_a_port(tier="free")
    refused(service("GET /api/workflows"), 403, "API_KEY_ACCESS_DENIED")
    assert service("GET /api/whoami").status_code == 200


@pytest.mark.parametrize(("rounding", "expected"), [("up", 101), ("down", 100), ("nearest", 100)])
def test_6_the_reset_is_a_whole_second_of_a_clock_that_may_be_off(
    on_a_port: Serve, rounding: str, expected: int
) -> None:
    """Its rounding and its clock's skew are the service's; `Date` is of the same clock."""
    service = on_a_port(reset_rounding=rounding, window_phase=0.0, epoch=1_700_000_040.4, clock_skew=-300.0)
    service("GET /api/whoami")
    answer = service("GET /api/usage")
    assert int(answer.headers["x-ratelimit-reset"]) - (1_700_000_000 - 300) == expected
    assert abs(parsedate_to_datetime(answer.headers["date"]).timestamp() - (1_700_000_040 - 300)) <= 3


# 7. Errors


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "INVALID_BODY"),
        (b"{", "INVALID_BODY"),
        (b"[]", "INVALID_BODY"),
        (b"{}", "INVALID_INPUTS"),
        (b'{"inputs": []}', "INVALID_INPUTS"),
        (b'{"inputs": null}', "INVALID_INPUTS"),
        (b'{"inputs": {}}', "INVALID_INPUTS"),
        (b'{"inputs": {"product_name": 3}}', "INVALID_INPUTS"),
        (b'{"inputs": {"product_name": "x", "count": 9}}', "INVALID_INPUTS"),
    ],
)
def test_7_a_body_that_cannot_be_run_is_400(on_a_port: Serve, body: bytes, code: str) -> None:
    """And neither run nor charged."""
    service = on_a_port()
    answer = service.http.post(
        f"/api/workflows/{SLUG}/run?async=true", content=body, headers={"content-type": "application/json"}
    )
    refused(answer, 400, code)
    assert service("GET /__emulator__/state").json()["charges"]["total"] == 0


def test_7_keys_that_are_no_good(on_a_port: Serve) -> None:
    """One from before May 2026 has a code of its own, and still worked then; a revoked one has none."""
    keys = [ApiKey("knouds_live_old", state="legacy"), ApiKey("knouds_live_gone", state="revoked")]
    now, then = on_a_port(keys=keys), on_a_port(keys=keys, generation="old")
    refused(now("GET /api/whoami", key="knouds_live_old"), 401, "LEGACY_KEY_RETIRED")
    refused(now("GET /api/whoami", key="knouds_live_gone"), 401, None)
    assert then("GET /api/whoami", key="knouds_live_old").status_code == 200
    refused(then("GET /api/whoami", key="knouds_live_gone"), 401, None)


@pytest.mark.parametrize(
    ("settings", "code"), [({"credits": 13}, "INSUFFICIENT_CREDITS"), ({"grant": 13}, "grant_exhausted")]
)
def test_7_what_cannot_be_paid_is_402(on_a_port: Serve, settings: dict[str, Any], code: str) -> None:
    """The credits or the grant are used up after one run; a top-up helps the first alone."""
    service = on_a_port(**settings)
    service.submit()
    path = "POST /api/workflows/daily-picture/run?async=true"
    refused(service(path, EMPTY), 402, code)
    service("PATCH /__emulator__/settings", {"credits": 1000})
    assert service(path, EMPTY).status_code == (200 if code.isupper() else 402)


def test_7_what_is_not_there_is_404(on_a_port: Serve) -> None:
    """A model has a code, a workflow a message only."""
    service = on_a_port()
    refused(service("POST /api/models/moon/run", EMPTY), 404, "MODEL_NOT_FOUND")
    for line in ("GET /api/workflows/moon", "GET /api/workflows/moon/schema", "DELETE /api/workflows/moon"):
        refused(service(line), 404, None)
    refused(service("POST /api/workflows/moon/run", EMPTY), 404, None)


# 8. Schemas


def test_8_a_schema(on_a_port: Serve) -> None:
    """Fields, default values, name, description; the estimate for those with a key alone."""
    service = on_a_port(costs={SLUG: 9})
    body = service(f"GET /api/workflows/{SLUG}/schema").json()
    public = service(f"GET /api/workflows/{SLUG}/public-schema", key=None).json()
    assert body.pop("estimatedCreditCost") == 9
    assert body == public
    assert set(body) == {"fields", "values", "name", "description"}
    assert body["values"] == {"style": "photo", "count": 1}
    assert all({"name", "type"} <= set(field) for field in body["fields"])


FIELDS = (
    {"name": "text", "type": "text"},
    {"name": "area", "type": "textarea"},
    {"name": "number", "type": "number"},
    {"name": "slider", "type": "slider", "min": 1, "max": 4, "step": 0.5},
    {"name": "pills", "type": "pills", "options": ["a", "b"]},
    {"name": "toggle", "type": "toggle"},
    {"name": "image", "type": "image"},
    {"name": "video", "type": "video"},
    {"name": "new", "type": "hologram"},
    {"name": "must", "type": "text", "required": True},
)


@pytest.mark.parametrize(
    ("inputs", "is_right"),
    [
        ({}, True),
        ({"text": "x", "area": "x\ny", "number": 1.5, "slider": 2.5, "pills": "b", "toggle": False}, True),
        ({"image": "https://example.com/a.png", "video": "https://example.com/a.mp4", "new": [1], "more": 1}, True),
        ({"text": 1}, False),
        ({"area": None}, False),
        ({"number": "1"}, False),
        ({"number": True}, False),
        ({"slider": 0}, False),
        ({"slider": 4.5}, False),
        ({"slider": 2.25}, False),
        ({"pills": "c"}, False),
        ({"toggle": 1}, False),
        ({"image": "http://example.com/a.png"}, False),
        ({"video": "data:video/mp4;base64,AA"}, False),
        ({"must": ""}, True),
        ({"must": None}, False),
    ],
)
def test_8_inputs_are_checked_against_it(on_a_port: Serve, inputs: dict[str, Any], *, is_right: bool) -> None:
    """By the type of the field; what is left out takes its default, what no field names is let through."""
    service = on_a_port(workflows=[EmulatedWorkflow("checked", FIELDS)])
    answer = service("POST /api/workflows/checked/run?async=true", {"inputs": {"must": "x", **inputs}})
    if is_right:
        assert answer.status_code == 200, answer.text
    else:
        refused(answer, 400, "INVALID_INPUTS")


def test_8_without_an_input_node_there_are_no_fields(on_a_port: Serve) -> None:
    """And empty inputs are taken."""
    service = on_a_port()
    assert service("GET /api/workflows/daily-picture/schema").json()["fields"] == []
    service.submit("workflows/daily-picture", {})


# 9. Workflows


def test_9_a_summary(on_a_port: Serve) -> None:
    """The rows of the listing have the documented keys."""
    row = on_a_port()("GET /api/workflows").json()[0]
    assert set(row) == {"slug", "name", "description", "tags", "updatedAt", "estimatedCreditCost", "folderId"}
    assert isinstance(row["tags"], list)
    assert ISO.match(row["updatedAt"])


def test_9_what_is_read_can_be_created_again(on_a_port: Serve) -> None:
    """The shape is the same; the slug comes from the name, with -2, -3 where it is taken, and stays."""
    service = on_a_port()
    full = service(f"GET /api/workflows/{SLUG}").json()
    keys = {"slug", "name", "description", "tags", "nodes", "edges", "viewport", "publicPlayground"}
    assert set(full) == keys
    assert all({"id", "type", "position", "data"} <= set(node) for node in full["nodes"])
    assert all({"id", "source", "target", "sourceHandle", "targetHandle"} <= set(edge) for edge in full["edges"])
    again = [service("POST /api/workflows", full).json() for _ in range(2)]
    assert [one["slug"] for one in again] == [f"{SLUG}-2", f"{SLUG}-3"]
    assert {**again[0], "slug": SLUG} == full
    changed = service(f"PUT /api/workflows/{SLUG}-2", {"name": "Another name"}).json()
    assert (changed["slug"], changed["name"], changed["nodes"]) == (f"{SLUG}-2", "Another name", full["nodes"])


def test_9_a_blank_name_is_untitled(on_a_port: Serve) -> None:
    """With the slug of that."""
    made = on_a_port()("POST /api/workflows", {"name": "  "}).json()
    assert (made["name"], made["slug"]) == ("Untitled workflow", "untitled-workflow")


def test_9_a_workflow_is_moved_and_deleted(on_a_port: Serve) -> None:
    """Into a folder, to the root, and away."""
    service = on_a_port()
    for folder in ("f_1", None):
        assert service("PUT /api/workflows/jingle/move", {"folderId": folder}).status_code == 200
        rows = {row["slug"]: row for row in service("GET /api/workflows").json()}
        assert rows["jingle"]["folderId"] == folder
    refused(service("PUT /api/workflows/jingle/move", {}), 400, "INVALID_BODY")
    assert service("DELETE /api/workflows/jingle").status_code == 200
    refused(service("DELETE /api/workflows/jingle"), 404, None)


# 10. Usage


def test_10_usage_rows(on_a_port: Serve) -> None:
    """Newest first, with ids that increase, the source, and the costs; the runs of others are not in it."""
    service = on_a_port(keys=[ApiKey("knouds_live_theirs", user="u_2")], costs={SLUG: 255})
    first = service.submit(f"workflows/{SLUG}", INPUTS)
    second = service.submit("models/suno-v5")
    service.submit("models/suno-v5", key="knouds_live_theirs")
    service.end(first["executionId"])
    service.end(second["executionId"], "fail")
    body = service("GET /api/usage").json()
    assert (body["page"], body["pageSize"], body["total"]) == (0, 50, 2)
    newer, older = body["rows"]
    assert set(older) == {
        "id", "userId", "workflowSlug", "modelIds", "status", "source", "cost", "userCost", "creditsCost", "durationMs",
        "errorCode", "requestId", "createdAt",
    }  # fmt: skip
    assert newer["id"] > older["id"]
    assert (older["workflowSlug"], older["source"], older["status"]) == (SLUG, "api-workflow", "completed")
    assert (older["creditsCost"], older["userCost"], older["errorCode"]) == (255, 0.255, None)
    assert older["cost"] < older["userCost"]
    assert (newer["workflowSlug"], newer["source"], newer["modelIds"]) == (None, "api-slim", ["suno-v5"])
    assert (newer["status"], newer["errorCode"]) == ("failed", "EXECUTION_FAILED")
    assert ISO.match(newer["createdAt"])
    assert service("GET /api/usage/models").json() == ["gpt-image-2", "suno-v5"]


def test_10_usage_is_filtered_and_paged(on_a_port: Serve) -> None:
    """By status, model and workflow; at most 500 a page."""
    service = on_a_port(tier="enterprise")
    ids = [
        service.submit("workflows/jingle" if one % 2 else "workflows/daily-picture")["executionId"] for one in range(6)
    ]
    service.end(ids[0])
    totals = {
        query: service(f"GET /api/usage?{query}").json()["total"]
        for query in ("status=completed", "status=processing", "status=failed", "modelId=suno-v5", "modelId=moon",
                      "workflowSlug=jingle", "workflowSlug=jingle&status=completed")
    }  # fmt: skip
    assert list(totals.values()) == [1, 5, 0, 3, 0, 3, 0]
    page = service("GET /api/usage?limit=2&offset=2").json()
    assert (len(page["rows"]), page["page"], page["pageSize"], page["total"]) == (2, 1, 2, 6)
    assert service("GET /api/usage?limit=9999").json()["pageSize"] == 500


def test_10_rows_may_lag(on_a_port: Serve) -> None:
    """A row comes, and ends, later than its run."""
    service = on_a_port(usage_lag=0.4)
    service.submit()
    assert service("GET /api/usage").json()["total"] == 0
    time.sleep(0.45)
    assert service("GET /api/usage").json()["rows"][0]["status"] == "processing"


# 11. Webhooks


class _Receiver(BaseHTTPRequestHandler):
    """Takes deliveries, and puts header and body in the server's queue."""

    def do_POST(self) -> None:
        """Record one."""
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.taken.put((self.headers["x-knouds-signature"], body))  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep silent."""


@pytest.fixture
def receiver() -> Iterator[tuple[str, Queue[tuple[str, bytes]]]]:
    """Return the address of a receiver of webhooks, and the queue of what it took."""
    server = HTTPServer(("127.0.0.1", 0), _Receiver)
    server.taken = Queue()  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", server.taken  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


def verified(taken: tuple[str, bytes], secret: str) -> Any:
    """Check a delivery's signature by hand, and give its payload."""
    header, body = taken
    match = re.fullmatch(r"t=(\d+),v1=([0-9a-f]{64})", header)
    assert match is not None
    assert abs(int(match[1]) - time.time()) < 300
    signed = match[1].encode() + b"." + body
    assert hmac.compare_digest(hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest(), match[2])
    return json.loads(body)


def test_11_each_end_is_delivered_and_signed(on_a_port: Serve, receiver: tuple[str, Queue[tuple[str, bytes]]]) -> None:
    """Completed, failed and cancelled, and the dashboard's test; the answer to the submit says where they go."""
    url, taken = receiver
    secret = "whsec_of_the_contract_tests"
    service = on_a_port(webhook_url=url, webhook_secret=secret, cancel_delay=0.05, deliveries=Deliveries(latency=0.0))
    ends = {"completed": "finish", "failed": "fail", "cancelled": None}
    for status, how in ends.items():
        submitted = service.submit()
        assert submitted["webhookDelivery"] == {"configured": True, "url": url}
        if how:
            service.end(submitted["executionId"], how)
        else:
            service(f"POST /api/executions/{submitted['executionId']}/cancel")
        told = verified(taken.get(timeout=10), secret)
        assert (told["event"], told["status"]) == (f"execution.{status}", status)
        assert (told["executionId"], told["requestId"]) == (submitted["executionId"], submitted["requestId"])
        assert (told["result"] is not None, told["error"] is not None) == (status == "completed", status == "failed")
        assert {"userId", "workflowSlug", "modelIds", "cost", "createdAt", "completedAt"} <= set(told)
    assert service("POST /__emulator__/test-webhook").status_code == 202
    assert verified(taken.get(timeout=10), secret)["event"] == "webhook.test"


def test_11_only_a_key_that_may_receives_webhooks(on_a_port: Serve) -> None:
    """Without `webhook:receive` none is configured."""
    every = (["workflow:run"], ["workflow:run", "webhook:receive"], ["*"], ["workflow:*", "webhook:*"])
    keys = [
        ApiKey(f"knouds_live_{place}", capabilities=rights, webhook_url="http://127.0.0.1:9/hook")
        for place, rights in enumerate(every)
    ]
    service = on_a_port(keys=keys)
    assert [service.submit(key=key.text)["webhookDelivery"]["configured"] for key in keys] == [False, True, True, True]


def test_11_there_is_no_test_without_a_webhook(on_a_port: Serve) -> None:
    """It is refused in words."""
    assert "webhook_url" in refused(on_a_port()("POST /__emulator__/test-webhook"), 400, "INVALID_BODY")["error"]


# 12. Media


def test_12_files_lie_on_another_origin_that_takes_no_key(on_a_port: Serve) -> None:
    """A result can be fetched there without the key, and never with it; the service itself is not there."""
    made = (("images", "image/png"), ("audios", "audio/mpeg"), ("videos", "video/mp4"))
    service = on_a_port(
        duration=0.0,
        models=[Model("gpt-image-2"), Model("suno-v5", "audios"), Model("seedance-2", "videos")],
        workflows=[
            EmulatedWorkflow("images"),
            EmulatedWorkflow("audios", models=["suno-v5"]),
            EmulatedWorkflow("videos", models=["seedance-2"]),
        ],
    )
    origins = set()
    for makes, kind in made:
        url = service(f"POST /api/workflows/{makes}/run", EMPTY).json()["result"][makes][0]["url"]
        assert httpx.URL(url).port != httpx.URL(service.url).port
        answer = httpx.get(url)
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
        assert answer.content
        assert httpx.get(url, headers={"x-api-key": "knouds_live_x"}).status_code == 400
        origins.add(url.partition("/media/")[0])
    (origin,) = origins
    assert httpx.get(f"{origin}/api/health").status_code == 404
    assert httpx.get(f"{origin}/media/none").status_code == 404
