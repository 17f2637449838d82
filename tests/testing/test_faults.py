"""Which request a fault strikes, what it makes of the answer, and how it is written in words; no network."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async.testing import Broken, Emulator, Fault, Later, Request, Response, Wire, faults
from knouds_async.testing.faults import GRAMMAR, KINDS, PLACES, FaultSpec, add_fault, parse_fault

SUBMIT = "POST /api/workflows/:slug/run?async=true"


def _send(emulator: Emulator, method: str = "POST", path: str = "", query: str = "async=true") -> Any:
    body = b'{"inputs": {}}'
    headers = {"x-api-key": emulator.api_key}
    return emulator.handle(Request(method, path or "/api/workflows/jingle/run", query, headers, body), 0.0)


def _strikes(emulator: Emulator, number: int) -> list[int]:
    """Return which of so many submits were struck by a 502, counting from 1."""
    return [place for place in range(1, number + 1) if _send(emulator).status == 502]


def test_a_fault_hits_every_request_unless_set() -> None:
    """Without a choice every request is struck, until the faults are cleared."""
    emulator = Emulator()
    emulator.faults.add(faults.bad_gateway())
    assert _strikes(emulator, 3) == [1, 2, 3]
    emulator.faults.clear()
    assert _strikes(emulator, 3) == []
    assert emulator.faults.struck == {"bad_gateway": 3}


def test_a_fault_strikes_the_nth() -> None:
    """`nth` counts from 1 the requests on the route."""
    emulator = Emulator()
    emulator.faults.add(faults.bad_gateway(), nth=[2, 4])
    assert _strikes(emulator, 6) == [2, 4]


def test_a_script_says_request_by_request() -> None:
    """A script gives each request its fault or none, and then stops."""
    emulator = Emulator()
    emulator.faults.add(script=[None, faults.bad_gateway(), faults.service_error(500), None])
    assert [_send(emulator).status for _ in range(6)] == [200, 502, 500, 200, 200, 200]


def test_chance_is_seeded() -> None:
    """A probability strikes that share, the same requests for the same seed."""

    def struck(seed: int) -> list[int]:
        emulator = Emulator(seed=seed, tier="enterprise")
        emulator.faults.add(faults.bad_gateway(), probability=0.2)
        return _strikes(emulator, 500)

    assert 70 < len(struck(1)) < 130
    assert struck(1) == struck(1) != struck(2)


def test_a_fault_strikes_its_route_only() -> None:
    """With ?async=true only submits are struck, without it synchronous runs too, and never another route."""
    emulator = Emulator(duration=0)
    emulator.faults.add(faults.bad_gateway(), route=SUBMIT)
    assert _send(emulator, query="async=true").status == 502
    assert isinstance(_send(emulator, query=""), Later)
    assert _send(emulator, "GET", "/api/usage", "").status == 200
    emulator.faults.clear()
    emulator.faults.add(faults.bad_gateway(), route=SUBMIT.partition("?")[0])
    assert [_send(emulator, query=query).status for query in ("", "async=true")] == [502, 502]


def test_what_a_submit_is_does_not_hang_on_the_rest_of_the_query() -> None:
    """`?async=true` among other parameters is a submit as well."""
    emulator = Emulator()
    emulator.faults.add(faults.bad_gateway(), route=SUBMIT)
    assert _send(emulator, query="trace=1&async=true").status == 502


def test_the_fault_added_first_wins_and_all_count() -> None:
    """When two would strike, the first added does; the other has counted the request all the same."""
    emulator = Emulator()
    emulator.faults.add(faults.bad_gateway(), nth=1)
    emulator.faults.add(faults.service_error(), nth=[1, 2])
    assert [_send(emulator).status for _ in range(3)] == [502, 503, 200]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either a fault"),
        ({"fault": faults.reset(), "script": [None]}, "either a fault"),
        ({"script": [None], "nth": 1}, "either a fault"),
        ({"fault": faults.reset(), "probability": 1.5}, "probability must be 0 to 1, not 1.5"),
        ({"fault": faults.reset(), "probability": math.nan}, "must be 0 to 1, not nan"),
        ({"fault": faults.reset(), "probability": 0.5, "nth": 1}, "not both"),
        ({"fault": faults.reset(), "nth": [1, 0]}, "nth counts from 1, so it is not 0"),
        ({"fault": faults.reset(), "route": "/api/usage"}, "no route is called '/api/usage'; there are: GET "),
    ],
)
def test_what_cannot_be_attached_is_refused(settings: dict[str, Any], message: str) -> None:
    """A fault that could never occur as set raises ValueError."""
    with pytest.raises(ValueError, match=message):
        Emulator().faults.add(**settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(faults.stalled, -1), "seconds must be 0 to 86400, not -1"),
        (partial(faults.stalled, math.inf, after_run=True), "seconds must be 0 to 86400, not inf"),
        (partial(faults.dripping, math.nan), "seconds must be 0 to 86400, not nan"),
        (partial(faults.service_error, 99999), "status must be 200 to 599, not 99999"),
        (partial(faults.unknown_error, 0), "status must be 200 to 599, not 0"),
        (partial(faults.redirect, status=12), "status must be 200 to 599, not 12"),
        (partial(faults.huge_body, -1), "size must be 0 to 4294967296, not -1"),
        (partial(faults.gzip_bomb, 1, layers=0), "layers must be 1 to 99, not 0"),
        (partial(faults.deep_json, 0), "depth must be 1 to 4294967296, not 0"),
    ],
)
def test_a_number_that_no_fault_can_have_is_refused(make: Callable[[], Fault], message: str) -> None:
    """It raises ValueError where the fault is made, not where it would strike."""
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("fault", "wire", "runs"),
    [
        (faults.refused(), Wire.REFUSED, 0),
        (faults.unreachable(), Wire.UNREACHABLE, 0),
        (faults.reset_unread(), Wire.RESET, 0),
        (faults.reset(), Wire.RESET, 0),
        (faults.reset(after_run=True), Wire.RESET, 1),
        (faults.closed(), Wire.CLOSED, 0),
        (faults.closed(after_run=True), Wire.CLOSED, 1),
        (faults.stalled(), Wire.STALLED, 0),
        (faults.stalled(after_run=True), Wire.STALLED, 1),
        (faults.stalled(7.0, after_run=True), Wire.SLOW, 1),
        (faults.truncated(), Wire.TRUNCATED, 1),
        (faults.dripping(0.1), Wire.DRIPPING, 1),
        (faults.dropped_keep_alive(), Wire.DROPPED, 1),
    ],
)
def test_what_breaks_on_the_wire(fault: Fault, wire: Wire, runs: int) -> None:
    """What happens on the connection is reported as such, with whether the request was carried out."""
    emulator = Emulator()
    emulator.faults.add(fault)
    broken = _send(emulator)
    assert isinstance(broken, Broken)
    assert (broken.wire, broken.processed, len(emulator.runs)) == (wire, runs == 1, runs)
    assert (broken.response is None) == (runs == 0)


@pytest.mark.parametrize(
    ("fault", "status", "runs"),
    [
        (faults.bad_gateway(), 502, 0),
        (faults.bad_gateway(after_run=True), 502, 1),
        (faults.service_error(), 503, 0),
        (faults.service_error(500, after_run=True), 500, 1),
        (faults.not_found(), 404, 0),
        (faults.rate_limited(), 429, 0),
        (faults.redirect("https://other.test/x"), 307, 0),
        (faults.invalid_json(), 200, 1),
        (faults.empty_body(), 200, 1),
        (faults.huge_body(10_000), 200, 1),
        (faults.gzip_bomb(10_000), 200, 1),
        (faults.unknown_status(), 200, 1),
        (faults.wrong_types(), 200, 1),
        (faults.half_headers(), 200, 1),
    ],
)
def test_what_answers_wrongly(fault: Fault, status: int, runs: int) -> None:
    """A wrong answer has its status, and the request was carried out or not, as set."""
    emulator = Emulator()
    emulator.faults.add(fault)
    answer = _send(emulator)
    assert isinstance(answer, Response)
    assert (answer.status, len(emulator.runs)) == (status, runs)
    assert ("date" in answer.headers) == (fault.name != "half_headers")
    assert fault.name != "rate_limited" or set(answer.headers) == {"content-type", "date"}


def _struck(fault: Fault, path: str = "") -> Response:
    emulator = Emulator(duration=1)
    emulator.faults.add(fault)
    answer = _send(emulator, "GET", path) if path else _send(emulator)
    assert isinstance(answer, Response)
    return answer


def test_bodies_are_spoiled_as_named() -> None:
    """Each spoiled body is what its name says."""
    with pytest.raises(json.JSONDecodeError):
        _struck(faults.invalid_json()).json()
    assert _struck(faults.empty_body()).body == b""
    assert len(_struck(faults.huge_body(10_000)).body) == 10_000
    assert json.loads(_struck(faults.huge_body(10_000)).body)["_async"] is True
    assert _struck(faults.bad_gateway()).body.startswith(b"<html>")
    assert _struck(faults.redirect("https://other.test/")).headers["location"] == "https://other.test/"
    body: Any = _struck(faults.unknown_status("paused")).json()
    assert body["status"] == "paused"
    body = _struck(faults.unknown_status("paused"), "/api/health").json()
    assert body == {"status": "paused"}
    assert _struck(faults.unknown_status(), "/api/workflows").json() != []
    assert "status" not in json.loads(_struck(faults.unknown_status(), "/api/whoami").body)


def test_a_bomb_is_small_and_unpacks_large() -> None:
    """A bomb is some bytes that unpack to the size, packed as often as its header says."""
    answer = _struck(faults.gzip_bomb(1_000_000, layers=2))
    assert answer.headers["content-encoding"] == "gzip, gzip"
    assert len(answer.body) < 1000
    assert len(gzip.decompress(gzip.decompress(answer.body))) == 1_000_000


def test_every_type_becomes_another() -> None:
    """With wrong types no value of the answer keeps its type."""
    emulator = Emulator(duration=0)
    submitted: Any = _send(emulator).json()
    path = f"/api/executions/{submitted['executionId']}"
    right: Any = _send(emulator, "GET", path, "").json()
    emulator.faults.add(faults.wrong_types())
    wrong: Any = _send(emulator, "GET", path, "").json()
    assert right.keys() == wrong.keys()
    assert all(type(right[name]) is not type(wrong[name]) for name in right)
    assert isinstance(_send(emulator, "GET", "/api/workflows", "").json(), list)
    health: Any = _send(emulator, "GET", "/api/health", "").json()
    assert health == {"status": {"text": "ok"}}
    submitted = _send(emulator).json()
    assert submitted["_async"] == "yes"
    assert isinstance(submitted["webhookDelivery"], int)


def test_half_the_headers_are_gone() -> None:
    """Of the quota headers one is left."""
    assert set(_struck(faults.half_headers()).headers) == {"x-ratelimit-limit"}


def test_a_held_up_request_arrives_in_the_end() -> None:
    """A request held up before the run is carried out when the time has passed, even if the answer is never read."""
    emulator = Emulator()
    emulator.faults.add(faults.stalled(30.0), nth=1)
    later = _send(emulator)
    assert isinstance(later, Later)
    assert (later.at, len(emulator.runs), emulator.requests.count) == (30.0, 0, 0)
    emulator.settle(29.9)
    assert not emulator.runs
    emulator.settle(100.0)
    assert [run.started for run in emulator.runs] == [30.0]
    answer = emulator.resume(later, 100.0)
    assert isinstance(answer, Response)
    assert (answer.status, emulator.requests.count, emulator.faults.struck) == (200, 1, {"stalled": 1})


def test_a_fault_strikes_a_synchronous_run_at_its_end() -> None:
    """The answer of a synchronous run is lost when it would have come."""
    emulator = Emulator(duration=9.0)
    emulator.faults.add(faults.reset(after_run=True))
    later = _send(emulator, query="")
    assert isinstance(later, Later)
    assert later.at == 9.0
    assert [run.status_at(8.9) for run in emulator.runs] == ["processing"]
    broken = emulator.resume(later, 9.0)
    assert isinstance(broken, Broken)
    assert broken.wire is Wire.RESET


def test_the_fate_is_decided_once() -> None:
    """Who connects first and sends then meets each step of a script once, in order."""
    emulator = Emulator()
    emulator.faults.add(script=[faults.refused(), faults.bad_gateway(), None, faults.reset_unread()])
    request = Request("POST", "/api/workflows/jingle/run", "async=true", {"x-api-key": emulator.api_key}, b"{}")
    met: list[object] = []
    for _ in range(5):
        sent = emulator.connect(request, 0.0)
        outcome = emulator.handle(sent, 0.0) if isinstance(sent, Request) else sent
        met.append(outcome.status if isinstance(outcome, Response) else getattr(outcome, "wire", None))
    assert met == [Wire.REFUSED, 502, 400, Wire.RESET, 400]
    assert emulator.requests.count == 5


def test_delivery_does_not_depend_on_the_sender() -> None:
    """A request on its way arrives at its time; asking for its answer before is the caller's mistake."""
    emulator = Emulator()
    request = Request(
        "POST", "/api/workflows/jingle/run", "async=true", {"x-api-key": emulator.api_key}, b'{"inputs": {}}'
    )
    second, first = emulator.deliver(request, 2.0), emulator.deliver(request, 1.0)
    with pytest.raises(ValueError, match="arrives at 2"):
        emulator.resume(second, 1.5)
    assert [run.started for run in emulator.runs] == [1.0]
    assert isinstance(emulator.resume(first, 1.5), Response)
    assert isinstance(emulator.resume(second, 2.0), Response)
    assert [run.started for run in emulator.runs] == [1.0, 2.0]


def test_a_page_and_a_code_that_nobody_expected() -> None:
    """HTML with 200 comes before or after the run; an unknown code only before."""
    for fault, status, kind, runs in (
        (faults.login_page(), 200, "text/html", 0),
        (faults.login_page(after_run=True), 200, "text/html", 1),
        (faults.unknown_error(418), 418, "application/json", 0),
    ):
        emulator = Emulator()
        emulator.faults.add(fault)
        answer = _send(emulator)
        assert (answer.status, answer.headers["content-type"], len(emulator.runs)) == (status, kind, runs)
    assert answer.json()["code"] == "SOMETHING_NEW"


def test_more_than_the_contract_knows_and_deeper_than_anybody_reads() -> None:
    """What was there stays beside new fields; deep JSON takes its place."""
    emulator = Emulator()
    emulator.faults.add(script=[faults.new_fields(), faults.deep_json(3)])
    body = _send(emulator).json()
    assert body["executionId"]
    assert body["newField"]
    assert _send(emulator).body == b"[[[]]]"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("reset", FaultSpec(faults.reset())),
        ("reset after_run", FaultSpec(faults.reset(after_run=True))),
        ("reset after_run=false on submit", FaultSpec(faults.reset(), SUBMIT)),
        ("stalled seconds=2.5 after_run on poll 20%", FaultSpec(
            faults.stalled(2.5, after_run=True), "GET /api/executions/:id", 0.2)),
        ("closed on submit nth=1,3", FaultSpec(faults.closed(), SUBMIT, nth=(1, 3))),
        ("service_error status=500 probability=0.25", FaultSpec(faults.service_error(500), probability=0.25)),
        ("bad_gateway on get /api/workflows nth=2", FaultSpec(faults.bad_gateway(), "GET /api/workflows", nth=(2,))),
        ("unknown_status status=odd", FaultSpec(faults.unknown_status("odd"))),
        ("invalid_json body={", FaultSpec(faults.invalid_json(b"{"))),
    ],
)  # fmt: skip
def test_words_and_what_they_mean(text: str, meant: FaultSpec) -> None:
    """Kind, arguments, route and when: each is read as it is meant."""
    assert parse_fault(text) == meant


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no fault is called ''"),
        ("rest", "did you mean reset?"),
        ("reset on", "'on' is followed by one of submit, run,"),
        ("reset on moon", "not by 'moon'"),
        ("reset second=3", "'second=3' makes no sense here; reset takes after_run"),
        ("refused after_run", "refused takes nothing"),
        ("stalled seconds", "seconds needs a value"),
        ("stalled seconds=long", "'seconds=long' is not a number"),
        ("dripping", "dripping needs seconds=..."),
        ("reset after_run=maybe", "after_run is true or false, not 'maybe'"),
        ("reset nth=one", "'nth=one' is not a number"),
        ("reset nth=1 20%", "nth or a probability, not both"),
        ("reset nth=1 nth=2", "nth is given twice"),
        ("reset probability=0.2 20%", "probability is given twice"),
        ("stalled seconds=1 seconds=2", "seconds is given twice"),
        ("stalled seconds=-1", "seconds must be 0 to 86400, not -1"),
    ],
)
def test_nonsense_is_named(text: str, told: str) -> None:
    """A ValueError shows the text, what is wrong with it, and what there is."""
    with pytest.raises(ValueError, match=r"^fault ") as caught:
        parse_fault(text)
    assert told in str(caught.value)


@pytest.mark.parametrize("text", ["reset on GET /api/moon", "reset nth=0", "reset 200%"])
def test_words_that_make_no_fault_are_refused(text: str) -> None:
    """A route that is not there, a zeroth request and more than each are a ValueError."""
    with pytest.raises(ValueError, match=r"no route|nth|probability"):
        add_fault(Emulator().faults, text)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_put_everywhere(kind: str) -> None:
    """Each fault of the library has a name in words, and each short name is a route."""
    for place in (*PLACES, "GET /api/health"):
        needed = {"dripping": " seconds=0.1"}.get(kind, "")
        add_fault(Emulator().faults, f"{kind}{needed} on {place} nth=1")


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but a ValueError comes of a text."""
    with contextlib.suppress(ValueError):
        parse_fault(f"reset {text}")


def test_every_fault_is_listed() -> None:
    """The table of faults names each kind, and no other; the grammar is the one that the parser reads."""
    page = (Path(__file__).parent.parent.parent / "docs" / "emulator.md").read_text(encoding="utf-8")
    table = page.partition("| What goes wrong |")[2].partition("\n\n")[0]
    assert {name.partition(" ")[0] for name in re.findall(r"`([^`]+)`", table)} == set(KINDS)
    assert f"    {GRAMMAR}\n" in page
    assert all(f"`{name}`" in page for name in PLACES)
