"""The control API: what it returns, what it accepts, and what it keeps secret."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knouds_async.testing import ApiKey, Emulator, Request, Response
from tests.testing.console import ControlClient, busy

SUBMIT = "POST /api/workflows/my-thumbnail-pipeline/run?async=true"
PAGE_OF_THE_DOCS = Path(__file__).parent.parent.parent / "docs" / "emulator.md"


def test_the_state_tells_the_sums(ask: Any) -> None:
    """Runs by status, credits, requests, windows and faults, as of the time of asking."""
    emulator, _ = busy(ask, credits=100)
    emulator.faults.add(script=[None])
    state = ControlClient(emulator)("GET state", now=12.0)
    assert state["runs"] == {"total": 3, "completed": 2, "processing": 1}
    assert state["charges"] == {"total": 3, "credits": 36, "grant": 0}
    assert (state["credits"], state["requests"], state["elapsed"]) == (64, {"total": 4, "refused": 0}, 12.0)
    assert state["windows"][0] == {
        "user": "u_knouds",
        "route": "POST /api/workflows/:slug/run",
        "limit": 100,
        "used": 3,
        "remaining": 97,
        "resetsIn": 48.0,
    }
    assert state["faults"] == [{"number": 1, "fault": "script: none", "met": 0, "struck": 0}]
    assert ControlClient(emulator)("GET state", now=70.0)["windows"] == []


def test_asking_the_console_is_no_request(ask: Any) -> None:
    """The console is not counted, not limited, and met by no fault."""
    emulator, _ = busy(ask)
    emulator.faults.add(emulator_fault())
    before = emulator.requests.count
    for line in ("GET state", "GET /"):
        assert ControlClient(emulator).raw(line, now=12.0).status == 200
    assert emulator.requests.count == before
    assert emulator.faults.struck == {}


def emulator_fault() -> Any:
    """Return a fault that strikes everything."""
    from knouds_async.testing import faults

    return faults.refused()


def test_runs_are_listed_newest_first(ask: Any) -> None:
    """With inputs, times and polls; by status and target, page by page."""
    emulator, ids = busy(ask)
    hand = ControlClient(emulator)
    rows = hand("GET runs", now=12.0)["rows"]
    assert [row["executionId"] for row in rows] == ids[::-1]
    first = hand(f"GET runs/{ids[0]}", now=12.0)
    assert first == {**rows[2], "result": first["result"]}
    assert first["result"]["images"][0]["url"].endswith(".png")
    assert hand(f"GET runs/{ids[2]}", now=12.0)["result"] is None
    assert (first["status"], first["inputs"], first["polls"]) == ("completed", {"product_name": "cup"}, 1)
    assert (first["startedAt"], first["endsAt"], first["endSeenAt"], first["cost"]) == (0.0, 10.0, 12.0, 12)
    assert [row["executionId"] for row in hand("GET runs?status=processing", now=12.0)["rows"]] == [ids[2]]
    assert hand("GET runs?target=jingle", now=12.0)["rows"] == []
    page = hand("GET runs?limit=1&offset=1", now=12.0)
    assert ([row["executionId"] for row in page["rows"]], page["total"]) == ([ids[1]], 3)


def test_charges_and_requests_are_listed(ask: Any) -> None:
    """Newest first, with times since the first request."""
    emulator, ids = busy(ask)
    hand = ControlClient(emulator)
    charge = hand("GET charges?limit=1", now=12.0)["rows"]
    target = "my-thumbnail-pipeline"
    assert charge == [{"executionId": ids[2], "target": target, "amount": 12, "paidBy": "credits", "at": 5.0}]
    (latest, *_) = hand("GET requests", now=12.0)["rows"]
    assert latest == {
        "method": "GET",
        "path": f"/api/executions/{ids[0]}",
        "route": "GET /api/executions/:id",
        "query": "",
        "status": 200,
        "at": 12.0,
    }


def test_a_run_is_ended_by_hand(ask: Any) -> None:
    """Finished with a result or failed with a message, now; a finished run is a 400."""
    emulator, ids = busy(ask)
    hand = ControlClient(emulator)
    assert hand(f"POST runs/{ids[2]}/finish", {"result": {"text": "hi"}}, now=12.0)["endsAt"] == 12.0
    assert ask(emulator).poll(ids[2], now=12.0)["result"] == {"text": "hi"}
    again = hand.raw(f"POST runs/{ids[2]}/fail", now=13.0)
    assert (again.status, again.json()["code"]) == (400, "INVALID_BODY")  # type: ignore[index]
    other = ask(emulator).submit(now=13.0)
    assert hand(f"POST runs/{other}/fail", {"message": "no paint"}, now=14.0)["error"] == "no paint"
    assert hand.raw(f"POST runs/{other}x/fail", now=14.0).status == 404
    assert hand.raw(f"POST runs/{ask(emulator).submit(now=15.0)}/fail", {"message": 3}, now=15.0).status == 400


def test_faults_come_and_go(ask: Any) -> None:
    """In words, or as a script; one or all are taken off."""
    emulator = Emulator()
    hand = ControlClient(emulator)
    assert hand("POST faults", {"fault": "not_found on GET /api/health nth=1"})["number"] == 1
    hand("POST faults", {"script": ["service_error status=500", None], "route": "GET /api/health"})
    assert [ask(emulator)("GET /api/health").status for _ in range(3)] == [404, 200, 200]
    rows = hand("GET faults")["rows"]
    assert [(row["number"], row["met"], row["struck"]) for row in rows] == [(1, 3, 1), (2, 3, 0)]
    assert [row["number"] for row in hand("DELETE faults/1")["rows"]] == [2]
    assert hand.raw("DELETE faults/1").status == hand.raw("DELETE faults/x").status == 404
    assert hand("DELETE faults")["rows"] == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"fault": "moon"},
        {"fault": 3},
        {"fault": "reset", "script": []},
        {"fault": "reset", "route": "GET /api/health"},
        {"fault": "reset", "nth": 1},
        {"script": ["moon"]},
        {"script": ["reset nth=3"]},
        {"script": ["reset on poll"]},
        [1],
        "x",
    ],
)
def test_a_fault_that_cannot_be_is_a_400(body: Any) -> None:
    """The answer says what is wrong, and no word that says which requests it strikes is passed over."""
    emulator = Emulator()
    answer = ControlClient(emulator).raw("POST faults", body)
    assert answer.status == 400
    assert answer.json()["error"]  # type: ignore[index]
    assert not emulator.faults


@pytest.mark.parametrize("verb", ["finish", "fail"])
def test_a_misspelled_field_ends_no_run(ask: Any, verb: str) -> None:
    """A field that does not exist is a 400 that names those that do, and the run continues."""
    emulator = Emulator()
    run = ask(emulator).submit()
    answer = ControlClient(emulator).raw(f"POST runs/{run}/{verb}", {"reslut": {}}, now=1.0)
    assert answer.status == 400
    assert "there is no 'reslut'; there are: " in str(answer.json())
    assert emulator.runs[0].status == "processing"


def test_settings_are_changed_together_or_not_at_all(ask: Any) -> None:
    """What can be changed is, by its Python name; one that cannot be leaves all as they were."""
    emulator = Emulator()
    hand = ControlClient(emulator)
    shown = hand("PATCH settings", {"tier": "business", "duration": 5, "deliveries": {"dropped": 0.5}})
    assert (shown["tier"], shown["duration"], shown["deliveries"]["dropped"]) == ("business", 5, 0.5)
    assert ask(emulator)("GET /api/usage").headers["x-ratelimit-limit"] == "1000"
    for body, told in (
        ({"tier": "pro", "duration": -1}, "duration must be finite seconds"),
        ({"tier": "enterprise", "limit": 5}, "limit has no effect"),
        ({"durations": {"moon": 1}}, "durations names unknown targets"),
        ({"teir": "pro"}, "did you mean 'tier'?"),
        ({"seed": 3}, "seed is read when the emulator is created"),
        ({"duration": "long"}, "duration must be finite seconds"),
        ({"failure_rate": True}, "failure_rate must be between 0 and 1"),
        ({"tier": 3}, "tier"),
        ({"deliveries": {"moon": 1}}, "moon"),
        ({"deliveries": {"attempts": "many"}}, "attempts"),
        ({"duration": {"mean": 3}}, "duration is seconds, or"),
        ({"durations": {"jingle": {"median": "long"}}}, "durations is seconds, or"),
    ):
        answer = hand.raw("PATCH settings", body)
        assert answer.status == 400
        assert told in str(answer.json())
        assert (emulator.tier, emulator.duration, emulator.limit) == ("business", 5, None)


def test_laws_can_be_json(ask: Any) -> None:
    """A median and a spread are a log-normal law, for durations and deliveries."""
    emulator = Emulator()
    law = {"median": 3.0, "sigma": 0.0}
    hand = ControlClient(emulator)
    hand("PATCH settings", {"duration": law, "durations": {"jingle": law}, "deliveries": {"latency": law}})
    ask(emulator).submit()
    ask(emulator).submit("workflows/jingle")
    assert [run.ends for run in emulator.runs] == [3.0, 3.0]


def test_keys_are_made(ask: Any) -> None:
    """With what they may do, whose they are, and a text of their own; a reset takes them away."""
    emulator = Emulator()
    hand = ControlClient(emulator)
    key = hand("POST keys", {"capabilities": ["workflow:read"], "user": "u_2", "tier": "free", "role": "admin"})["key"]
    assert ask(emulator)("GET /api/workflows", key=key).status == 200
    assert ask(emulator)("POST /api/workflows", {"name": "x"}, key=key).status == 403
    assert ask(emulator).json("GET /api/whoami", key=key)["user"]["id"] == "u_2"
    assert hand("POST keys", {"text": "knouds_live_mine"})["key"] == "knouds_live_mine"
    for body, status in (
        ({"text": "knouds_live_mine"}, 409),
        ({"text": "two words"}, 400),
        ({"scope": "moon"}, 400),
        ({"capabilities": "*"}, 400),
        ({"capabilities": [3]}, 400),
        ({"capabilities": 3}, 400),
        ({"moon": 1}, 400),
    ):
        assert hand.raw("POST keys", body).status == status
    hand("POST reset")
    assert ask(emulator)("GET /api/workflows", key=key).status == 401


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2000) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["tier", "duration", "durations", "limit", "deliveries", "costs", "credits", "grant", "others", "polls_limited",
     "fault", "script", "route", "result", "message", "capabilities", "user", "text", "webhook_secret", "media_url"]
)  # fmt: skip


@settings(max_examples=150)
@given(
    line=st.sampled_from(
        ["PATCH settings", "POST faults", "POST keys", "POST reset", "POST runs/RUN/finish", "POST runs/RUN/fail",
         "DELETE faults/x", "GET runs?limit=-1", "POST test-webhook", "PUT moon"]
    ),
    body=st.dictionaries(NAMES, JSON_VALUES, max_size=3) | JSON_VALUES,
)  # fmt: skip
def test_whatever_comes_is_answered(line: str, body: Any) -> None:
    """No body makes the console fail, and what it takes leaves a service and a page that answer."""
    emulator = Emulator(duration=5.0)
    headers = {"x-api-key": emulator.api_key}
    submitted = Request("POST", "/api/workflows/jingle/run", "async=true", headers, b'{"inputs": {}}')
    emulator.handle(submitted, 0.0)
    hand = ControlClient(emulator)
    answer = hand.raw(line.replace("RUN", emulator.runs[0].execution_id), body)
    assert answer.status in (200, 201, 202, 400, 404, 409)
    assert answer.status < 300 or answer.json()["error"]  # type: ignore[index]
    emulator.faults.clear()
    again = emulator.handle(submitted, 1.0)
    assert isinstance(again, Response)
    for run in emulator.runs:
        polled = emulator.handle(Request("GET", f"/api/executions/{run.execution_id}", "", headers), 1e6)
        assert isinstance(polled, Response)
    emulator.due_deliveries(1e6)
    for path in ("GET /", "GET state", "GET settings", "GET runs"):
        assert hand.raw(path, now=2.0).status == 200


def test_a_reset_starts_again(ask: Any) -> None:
    """All is as it was when the emulator was made, the counts as well."""
    emulator, _ = busy(ask)
    hand = ControlClient(emulator)
    hand("GET state", now=12.0)
    state = hand("POST reset", now=12.0)
    assert (state["runs"], state["charges"]["total"], state["requests"]["total"]) == ({"total": 0}, 0, 0)
    ask(emulator).submit(now=20.0)
    assert hand("GET state", now=20.0)["runs"] == {"total": 1, "processing": 1}


def test_no_key_and_no_secret_is_told(ask: Any) -> None:
    """Neither the page nor any answer of the control API shows a key or the webhook secret."""
    emulator, ids = busy(ask, keys=[ApiKey("knouds_live_second")], webhook_secret="whsec_0123456789abcdefgh")
    hand = ControlClient(emulator)
    lines = ("", "state", "runs", f"runs/{ids[0]}", "charges", "requests", "windows", "faults", "settings", "/")
    told = b"".join(hand.raw(f"GET {line}", now=12.0).body for line in lines)
    for secret in (emulator.api_key, "knouds_live_second", "whsec_0123456789abcdefgh"):
        assert secret.encode() not in told


def test_the_index_tells_what_there_is() -> None:
    """GET /__emulator__/ lists the routes; a 404 says where the list is."""
    hand = ControlClient(Emulator())
    routes = hand("GET ")["routes"]
    assert "PATCH /__emulator__/settings" in routes
    assert "POST /__emulator__/runs/:id/finish" in routes
    answer = hand.raw("GET moon")
    assert answer.status == 404
    assert "GET /__emulator__/ lists what there is" in answer.json()["error"]  # type: ignore[index]
    assert hand.raw("POST /").status == hand.raw("GET runs/a/b/c").status == 404
    assert hand.raw("GET runs?limit=x").status == 400


def test_another_sites_page_cannot_meddle() -> None:
    """A script of another origin and a form are refused; a page of the emulator's own and a test are not."""
    emulator = Emulator()
    hand = ControlClient(emulator)
    assert hand.raw("POST reset", origin="https://evil.example").status == 403
    assert hand.raw("POST reset", origin="null").status == 403
    assert hand.raw("POST reset", origin="http://127.0.0.1:8000").status == 200
    assert hand.raw("POST faults", {"fault": "reset"}, content_type="text/plain").status == 415
    assert hand.raw("GET state", origin="https://evil.example").status == 200
    assert "access-control-allow-origin" not in hand.raw("GET state", origin="https://evil.example").headers


def test_every_route_is_listed(ask: Any) -> None:
    """The table of the control API is the one that the API returns."""
    listed = re.findall(
        r"^\| `([A-Z]+ /__emulator__/[^`]*)` \|", PAGE_OF_THE_DOCS.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(listed) == sorted(ask(Emulator()).json("GET /__emulator__/")["routes"])


OWN_HOSTS = ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1:8000", "[::1]:8000", "app.localhost:8000"]
FOREIGN_HOSTS = [
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "", "[", "evil@x:y",
    "10.0.0.1", "emulator:8000", "notlocalhost", "localhost@evil.example", "169.254.169.254",
]  # fmt: skip


def answer_under(host: str, hosts: tuple[str, ...] | None, line: str = "GET /__emulator__/state") -> int:
    """Return the status of an answer to a request that names a host, from a server that serves others."""
    method, _, path = line.partition(" ")
    headers = {"host": host, "origin": f"http://{host}"}
    outcome = Emulator(webhook_url="http://x.test").handle(Request(method, path, "", headers, hosts=hosts), 0.0)
    assert isinstance(outcome, Response)
    return outcome.status


@pytest.mark.parametrize("line", ["GET /", "HEAD /", "GET /__emulator__/state", "POST /__emulator__/reset"])
def test_names_bound_to_this_machine_by_others_are_refused(line: str) -> None:
    """The page and the control API answer under localhost and its addresses, and under no name of another site."""
    hosts = ("127.0.0.1", "127.0.0.1")
    assert {answer_under(host, hosts, line) for host in OWN_HOSTS} == {200}
    assert {answer_under(host, hosts, line) for host in FOREIGN_HOSTS} == {421}


def test_a_host_that_was_asked_for_is_answered() -> None:
    """A server under a name of the network, or an address, answers under it."""
    assert answer_under("lab.example:8000", ("Lab.example", "192.168.1.5")) == 200
    assert answer_under("192.168.1.5:8000", ("lab.example", "192.168.1.5")) == 200
    for host in ("lab.example", "lab.example.:8000", "LAB.EXAMPLE:8000"):
        assert answer_under(host, ("lab.example.", "192.168.1.5")) == 200
    assert answer_under("evil.example:8000", ("lab.example", "192.168.1.5")) == 421


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104
def test_a_server_for_all_addresses_answers_to_them(host: str) -> None:
    """Addresses and a container's name, which has no dot, can be no site of others; a name with a dot can."""
    hosts = (host, "172.17.0.2")
    assert [answer_under(one, hosts) for one in ("172.17.0.2:80", "192.168.1.5", "[fe80::1]:80", "emulator:80")] == [
        200
    ] * 4
    assert [answer_under(one, hosts) for one in ("evil.example", "1.2.3.4.evil.example", "", "a.b")] == [421] * 4


def test_requests_that_come_through_no_port_may_have_any_host() -> None:
    """In process nobody can pretend; the service itself answers under every name, for it wants a key."""
    assert answer_under("knouds.test", None) == 200
    assert answer_under("evil.example", ("127.0.0.1",), "GET /api/health") == 200
