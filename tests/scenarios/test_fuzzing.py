"""The emulator keeps to the OpenAPI description of the service, whatever a schema-driven fuzzer asks of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knouds_async.testing import Emulator, Later, Request, Response, openapi
from knouds_async.testing._service.endpoints import ROUTES

if TYPE_CHECKING:  # the fuzzer is imported by the tests that use it: it takes every process a third of a second
    import requests
    import schemathesis
    from schemathesis import Case, GenerationMode

MINE = "a-workflow-of-mine"
ECHOED = {"RunRequest", "WorkflowDraft", "Node", "Edge", "Viewport", "Field", "Move"}
ACCOUNTS: Final[dict[str, dict[str, Any]]] = {
    "unlimited": {"tier": "enterprise"},
    "limited": {"tier": "business", "limit": 3, "window_phase": 0.0},
    "of the old generation": {"generation": "old", "scope": "free"},
    "free": {"tier": "free"},
    "out of credits": {"tier": "business", "credits": 24},
    "on trial": {"tier": "business", "grant": 24},
    "with a webhook": {"tier": "business", "webhook_url": "https://app.example/webhook"},
    "without capabilities": {"tier": "business", "capabilities": ()},
    "out of luck": {"tier": "business", "failure_rate": 1.0},
}
UNHURRIED = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
DETERMINISTIC = settings(derandomize=True, database=None, deadline=None, suppress_health_check=UNHURRIED)


def _closed() -> dict[str, Any]:
    """Return the description with answers that hold documented fields only; what users store may hold any."""
    document = openapi()
    for name, schema in document["components"]["schemas"].items():
        if "properties" in schema and name not in ECHOED:
            schema["additionalProperties"] = False
    return document


OPERATIONS: dict[str, dict[str, Any]] = {
    f"{method.upper()} {path}": operation
    for path, described in openapi()["paths"].items()
    for method, operation in described.items()
    if method != "parameters"
}
TAKING = [label for label in OPERATIONS if label not in ("GET /api/pricing/public", "GET /api/health")]


@cache
def operations() -> Mapping[str, Any]:
    """Return what the fuzzer knows of each operation."""
    import schemathesis

    schema = schemathesis.openapi.from_dict(_closed())
    lines = (label.split(" ") for label in OPERATIONS)
    return {f"{method} {path}": schema[path][method.lower()] for method, path in lines}


class Fuzzed:
    """An emulator with a workflow and runs in several states, and what asks it and checks its answers."""

    def __init__(self, account: str) -> None:
        self.account = account
        self.emulator = Emulator(duration=6.0, cancel_delay=1.0, **ACCOUNTS[account])
        self.key = {"x-api-key": self.emulator.api_key}
        self.now = 0.0
        self.ask(_case("POST /api/workflows", body={"name": MINE}, headers=self.key))
        jingle = {"path_parameters": {"slug": "jingle"}, "body": {"inputs": {}}, "headers": self.key}
        for query in ({}, {"async": "true"}, {"async": "true"}, {"async": "true"}):
            self.ask(_case("POST /api/workflows/{slug}/run", query=query, **jingle))
        for run in self.emulator.runs[-1:]:
            parameters = {"id": run.execution_id}
            self.ask(_case("POST /api/executions/{id}/cancel", path_parameters=parameters, headers=self.key))

    def names(self) -> list[str]:
        """Return what can stand in a path: slugs, models, ids."""
        models = [model.name for model in self.emulator.models]
        runs = [run.execution_id for run in self.emulator.runs]
        return ["jingle", MINE, "my-thumbnail-pipeline", "portrait-starter", *models, *runs]

    def ask(self, case: Case[Any]) -> schemathesis.Response:
        """Send a case, a few seconds after the last one; the answer has to be one that the description has."""
        import requests
        import schemathesis
        from schemathesis.specs.openapi import checks

        conformance = [
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_headers_conformance,
            checks.response_schema_conformance,
        ]
        sent = requests.Request(**case.as_transport_kwargs(base_url="https://knouds.test")).prepare()
        self.now += 4.0
        outcome = self.emulator.handle(_as_seen(sent), self.now)
        while isinstance(outcome, Later):
            self.now = outcome.at
            outcome = self.emulator.resume(outcome, self.now)
        assert isinstance(outcome, Response)
        headers = {name: [value] for name, value in outcome.headers.items()}
        answer = schemathesis.Response(outcome.status, headers, outcome.body, sent, 0.0, verify=False)
        case.validate_response(answer, checks=conformance)
        if answer.status_code >= 500:
            assert (self.account, answer.json()["code"]) == ("out of luck", "EXECUTION_FAILED")
        return answer

    def read_all(self) -> None:
        """Read all there is."""
        for label in ("GET /api/workflows", "GET /api/usage", "GET /api/usage/models", "GET /api/whoami"):
            self.ask(_case(label, headers=self.key))
        for slug, end in product((MINE, "jingle"), ("", "/schema", "/public-schema")):
            self.ask(_case(f"GET /api/workflows/{{slug}}{end}", path_parameters={"slug": slug}, headers=self.key))
        for run in self.emulator.runs[-3:]:
            parameters = {"id": run.execution_id}
            self.ask(_case("GET /api/executions/{id}", path_parameters=parameters, headers=self.key))


def _case(label: str, **parts: Any) -> Case[Any]:
    media_type = "application/json" if "body" in parts else None
    case: Case[Any] = operations()[label].Case(media_type=media_type, **parts)
    return case


def _as_seen(request: requests.PreparedRequest) -> Request:
    path, _, query = request.path_url.partition("?")
    headers = {name.lower(): str(value) for name, value in request.headers.items()}
    body = request.body or b""
    assert isinstance(body, str | bytes)
    return Request(str(request.method), path, query, headers, body.encode() if isinstance(body, str) else body)


def _fuzz(label: str, mode: GenerationMode, examples: int) -> None:
    @settings(DETERMINISTIC, max_examples=examples)
    @given(
        operations()[label].as_strategy(generation_mode=mode),
        st.sampled_from(list(ACCOUNTS)),
        st.booleans(),
        st.data(),
    )
    def whatever_is_asked(case: Case[Any], account: str, has_key: bool, data: st.DataObject) -> None:
        fuzzed = Fuzzed(account)
        if case.path_parameters:
            name = data.draw(st.none() | st.sampled_from(fuzzed.names()))
            case.path_parameters = dict.fromkeys(case.path_parameters, name) if name else case.path_parameters
        if has_key:
            case.headers.update(fuzzed.key)
        answer = fuzzed.ask(case)
        if has_rubbish_body(case):
            assert answer.status_code >= 400
        fuzzed.read_all()

    whatever_is_asked()


def has_rubbish_body(case: Case[Any]) -> bool:
    """Return whether the body of a case is not as the description has it."""
    from schemathesis import GenerationMode

    parts = case.meta.components if case.meta else {}
    return any(str(kind.value) == "body" and part.mode is GenerationMode.NEGATIVE for kind, part in parts.items())


@pytest.mark.slow
@pytest.mark.parametrize("label", OPERATIONS)
def test_valid_requests_get_documented_answers(label: str) -> None:
    """Whatever is asked as documented gets a documented answer, and so does every read after it."""
    from schemathesis import GenerationMode

    _fuzz(label, GenerationMode.POSITIVE, 15)


@pytest.mark.slow
@pytest.mark.parametrize("label", TAKING)
def test_rubbish_gets_documented_answers(label: str) -> None:
    """Whatever is asked against the description gets a documented answer too, and a wrong body is refused."""
    from schemathesis import GenerationMode

    _fuzz(label, GenerationMode.NEGATIVE, 15)


ODD_TEXTS = st.text(st.characters(), max_size=8) | st.sampled_from(["\ud800", "\udfff\ud800", "\x00"])
ODD_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | ODD_TEXTS
    | st.floats()
    | st.sampled_from([10**400, -(10**400), 10**308, 5e-324, 2**63]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD_TEXTS, inner, max_size=3),
    max_leaves=8,
)
ODD_FIELDS = st.fixed_dictionaries(
    {"name": st.just("count"), "type": st.sampled_from(["slider", "pills", "number", "text", "other"])},
    optional=dict.fromkeys(("min", "max", "step", "options", "default", "required"), ODD_VALUES),
)
ODD_NODES = st.fixed_dictionaries(
    {"id": st.just("input"), "type": st.sampled_from(["requestInput", "model"])},
    optional={
        "data": st.fixed_dictionaries({"fields": st.lists(ODD_FIELDS, max_size=2), "model": ODD_VALUES}),
        "position": ODD_VALUES,
    },
)
ODD_BODIES = st.binary(max_size=40) | st.one_of(
    ODD_VALUES,
    st.fixed_dictionaries({"inputs": st.dictionaries(st.just("count"), ODD_VALUES)}),
    st.fixed_dictionaries({"nodes": st.lists(ODD_NODES, max_size=2), "name": ODD_TEXTS}),
).map(lambda value: json.dumps(value).encode())
ODD_REQUESTS = st.builds(
    lambda line, name, query, body, headers: (line.replace(":slug", name).replace(":id", name), query, body, headers),
    st.sampled_from([route.label for route in ROUTES]) | st.text(max_size=20),
    st.sampled_from([MINE, "my-thumbnail-pipeline", "%ED%A0%80", "..", ""]) | st.text(max_size=5),
    st.sampled_from(["", "async=true", "limit=%FF", "limit=-1", "offset=9e9", "status=%00&status"])
    | st.text(max_size=9),
    ODD_BODIES,
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
)


@pytest.mark.slow
@settings(DETERMINISTIC, max_examples=100)
@given(st.lists(ODD_REQUESTS, min_size=1, max_size=3))
def test_no_request_is_too_odd_for_an_answer(odd_requests: list[tuple[str, str, bytes, dict[str, str]]]) -> None:
    """Whatever bytes come, there is an answer in JSON that blames the sender, and all that was there can be read."""
    fuzzed = Fuzzed("unlimited")
    for line, query, body, headers in odd_requests:
        method, _, path = line.partition(" ")
        outcome = fuzzed.emulator.handle(Request(method, path, query, {**headers, **fuzzed.key}, body), fuzzed.now)
        while isinstance(outcome, Later):
            fuzzed.now = outcome.at
            outcome = fuzzed.emulator.resume(outcome, fuzzed.now)
        assert isinstance(outcome, Response)
        assert outcome.status < 500
        outcome.json()
    fuzzed.read_all()


def test_the_description_is_valid() -> None:
    """It is OpenAPI 3.1, by a validator of its own."""
    from openapi_spec_validator import OpenAPIV31SpecValidator

    OpenAPIV31SpecValidator(openapi()).validate()


def test_the_description_has_every_endpoint() -> None:
    """Each route has its operation, with the capability it needs and whether it is counted; nothing else has one."""
    described = {
        label: (operation.get("x-capability"), "x-rate-limited" in operation) for label, operation in OPERATIONS.items()
    }
    routes = [route for route in ROUTES if route.label.split(" ")[1].startswith("/api")]
    assert described == {
        re.sub(r":(\w+)", r"{\1}", route.label): (route.needs or None, route.limited is not None) for route in routes
    }
    open_to_all = {label for label, operation in OPERATIONS.items() if operation.get("security") == []}
    assert open_to_all == {re.sub(r":(\w+)", r"{\1}", route.label) for route in routes if route.needs is None}


def test_each_caller_gets_a_copy() -> None:
    """A description that somebody changes stays theirs."""
    openapi()["paths"].clear()
    assert openapi()["paths"]
