"""Refusals: every documented code of both generations has its class, and every other answer a clear error."""

import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async import errors
from knouds_async._sansio import endpoints, retry
from knouds_async._sansio.responses import Answer
from knouds_async.errors import APIError, KnoudsError
from knouds_async.types import Target

ROUTE = "POST /api/workflows/:slug/run"
REQUEST = "POST /api/workflows/my-slug/run"
SUBMIT = endpoints.submit(Target("workflows", "my-slug"), {})

# contract 7: HTTP status, code, class, a word of the advice
DOCUMENTED: list[tuple[int, str | None, type[APIError], str]] = [
    (400, "INVALID_INPUTS", errors.InvalidInputsError, "schema"),
    (400, "INVALID_SLUG", errors.InvalidSlugError, "lowercase"),
    (400, "INVALID_BODY", errors.InvalidBodyError, "Nothing was run"),
    (400, "INVALID_CAPABILITY", errors.InvalidCapabilityError, "Nothing was run"),
    (400, "INVALID_SCOPE", errors.InvalidScopeError, "Nothing was run"),
    (400, "ASYNC_NOT_SUPPORTED", errors.AsyncNotSupportedError, ".run("),
    (401, None, errors.AuthenticationError, "$KNOUDS_KEY"),
    (401, "LEGACY_KEY_RETIRED", errors.LegacyKeyRetiredError, "make a new one"),
    (402, "INSUFFICIENT_CREDITS", errors.InsufficientCreditsError, "top up"),
    (402, "grant_exhausted", errors.GrantExhaustedError, "upgrade"),
    (403, "CAPABILITY_DENIED", errors.CapabilityDeniedError, "capability"),
    (403, "SCOPE_DENIED", errors.ScopeDeniedError, "scope"),
    (403, "MODEL_TIER_REQUIRED", errors.ModelTierRequiredError, "tier"),
    (403, "CAPABILITY_ABOVE_CEILING", errors.CapabilityAboveCeilingError, "Nothing was run"),
    (403, "API_KEY_ACCESS_DENIED", errors.APIKeyAccessDeniedError, "dashboard"),
    (404, "MODEL_NOT_FOUND", errors.ModelNotFoundError, "internal name"),
    (404, "EXECUTION_NOT_FOUND", errors.ExecutionNotFoundError, "heck the id"),
    (404, None, errors.NotFoundError, "heck the name"),
    (409, None, errors.ConflictError, "state"),
    (429, "RATE_LIMIT_EXCEEDED", errors.RateLimitError, "wait"),
]
PLAIN_BY_STATUS: dict[int, type[APIError]] = {
    302: errors.UnexpectedRedirectError,
    304: errors.UnexpectedRedirectError,
    400: errors.BadRequestError,
    401: errors.AuthenticationError,
    402: errors.PaymentRequiredError,
    403: errors.PermissionDeniedError,
    404: errors.NotFoundError,
    408: APIError,
    409: errors.ConflictError,
    418: APIError,
    429: errors.RateLimitError,
    500: errors.ServiceError,
    502: errors.ServiceError,
    599: errors.ServiceError,
    999: errors.ServiceError,
}


def refused(status: int, body: Any, headers: dict[str, str] | None = None, **more: Any) -> KnoudsError:
    """Return the error of an answer with this JSON, or these bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return retry.api_error(Answer(status, headers or {}, content), SUBMIT, **more)


@pytest.mark.parametrize(("status", "code", "kind", "advice"), DOCUMENTED)
def test_a_documented_code_has_its_class(status: int, code: str | None, kind: type[APIError], advice: str) -> None:
    """Each row of contract 7 becomes its class, says what the service said, and what to do next."""
    body = {"error": "The words.", "extra": 1} | ({"code": code} if code else {})
    error = refused(status, body)
    assert type(error) is kind
    assert isinstance(error, APIError)
    assert (error.status, error.code, error.message, error.body) == (status, code, "The words.", body)
    assert (error.route, error.request, error.may_have_run) == (ROUTE, REQUEST, False)
    for words in (REQUEST, str(status), "The words", advice, *([code] if code else [])):
        assert words in str(error)


def test_every_code_that_is_known_is_in_the_table() -> None:
    """No class of a code goes untested."""
    assert set(retry.BY_CODE) == {code for _, code, _, _ in DOCUMENTED if code}
    assert all(kind.advice for kind in retry.BY_CODE.values())


@pytest.mark.parametrize(("status", "kind"), PLAIN_BY_STATUS.items())
def test_an_unknown_code_falls_to_its_status(status: int, kind: type[APIError]) -> None:
    """New codes may come at any time: the status decides, and a code that is a text is kept."""
    for code in (None, "BRAND_NEW", "", 5, ["INVALID_SLUG"], "invalid_slug", "GRANT_EXHAUSTED"):
        error = refused(status, {"error": "x", "code": code})
        assert type(error) is kind, code
        assert isinstance(error, APIError)
        assert error.code == (code if isinstance(code, str) else None)


@pytest.mark.parametrize("status", [302, 500, 503])
def test_a_code_counts_only_in_a_refusal(status: int) -> None:
    """A 5xx or a redirect never claims that nothing was run, whatever code stands in it."""
    for code in retry.BY_CODE:
        error = refused(status, {"error": "x", "code": code}, may_have_run=status >= 500)
        assert type(error) is PLAIN_BY_STATUS.get(status, errors.ServiceError), code
        assert error.may_have_run is (status >= 500), code
        assert ("Nothing was run" in str(error)) is False


@pytest.mark.parametrize("code", [*retry.BY_CODE, "EXECUTION_FAILED"])
def test_a_429_is_a_rate_limit_whatever_its_code(code: str) -> None:
    """What was refused for its rate was not run (contract 6)."""
    error = refused(429, {"error": "x", "code": code}, {"retry-after": "3"})
    assert isinstance(error, errors.RateLimitError)
    assert error.retry_after == 3.0


@pytest.mark.parametrize("status", [500, 502, 400])
def test_a_failed_run_is_named_so(status: int) -> None:
    """EXECUTION_FAILED is the end of a synchronous run, not a fault of the service, and may have cost money."""
    error = refused(status, {"error": "no GPU", "code": "EXECUTION_FAILED"}, may_have_run=status >= 500)
    assert isinstance(error, errors.ExecutionFailedError)
    assert (error.code, error.message, error.may_have_run) == ("EXECUTION_FAILED", "no GPU", True)


@pytest.mark.parametrize(
    ("code", "extra", "seen"),
    [
        ("CAPABILITY_DENIED", {"required": "workflow:run"}, {"required": "workflow:run"}),
        ("CAPABILITY_DENIED", {"required": 5}, {"required": None}),
        ("CAPABILITY_DENIED", {}, {"required": None}),
        ("SCOPE_DENIED", {"required": "admin", "actual": "free"}, {"required": "admin", "actual": "free"}),
        ("CAPABILITY_ABOVE_CEILING", {"attempted": "*"}, {"attempted": "*"}),
    ],
)
def test_what_a_refusal_names_can_be_read(code: str, extra: dict[str, Any], seen: dict[str, Any]) -> None:
    """The extra fields of a code are attributes of its error."""
    error = refused(403, {"error": "x", "code": code, **extra})
    assert {name: getattr(error, name) for name in seen} == seen


@pytest.mark.parametrize(
    ("headers", "extra", "retry_after", "limit"),
    [
        ({"retry-after": "12"}, {"limit": 100, "retryAfter": 9}, 12.0, 100),
        ({}, {"limit": 100, "retryAfter": 9}, 9.0, 100),
        ({"retry-after": "Fri, 08 May 2026 19:30:25 GMT"}, {}, 30.0, None),
        ({}, {"limit": "100"}, None, None),
        ({}, {"limit": True}, None, None),
        ({}, {}, None, None),
    ],
)
def test_a_rate_limit_tells_the_wait(
    headers: dict[str, str], extra: dict[str, Any], retry_after: float | None, limit: int | None
) -> None:
    """The wait and the limit are read from header and body, a date against the server's time."""
    error = refused(429, {"error": "x", **extra}, headers, server_time=1778268595.0)
    assert isinstance(error, errors.RateLimitError)
    assert (error.retry_after, error.limit) == (retry_after, limit)


@pytest.mark.parametrize(
    ("body", "headers", "words"),
    [
        (b"<html>Bad Gateway</html>", {"content-type": "text/html; charset=utf-8"}, "text/html"),
        (b"", {"content-type": "text/html"}, "an empty body"),
        (b" \n", {}, "an empty body"),
        (b"what?", {}, "a body of no named type"),
        (b"[" * 100_000, {"content-type": "application/json"}, "application/json"),
        (b"9" * 5000, {}, "a body of no named type"),
        (b'{"error": NaN}', {}, "a body of no named type"),
        ([1], {"content-type": "application/json"}, "application/json"),
        ({"error": {"message": "deep"}}, {"content-type": "application/json"}, "application/json"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_a_body_that_is_not_the_service_s_names_status_and_route(
    body: Any, headers: dict[str, str], words: str
) -> None:
    """A proxy's page, or nothing at all, becomes an error that says where it came from and what came."""
    for status in (400, 404, 500, 502):
        error = refused(status, body, headers)
        assert isinstance(error, APIError)
        assert type(error) is PLAIN_BY_STATUS[status]
        for part in (REQUEST, str(status), words):
            assert part in str(error)


def test_a_message_only_is_told() -> None:
    """A refusal that has a `message` in the place of `error` is told in these words (contract 1)."""
    error = refused(404, {"message": "Workflow not found"})
    assert isinstance(error, errors.NotFoundError)
    assert (error.message, error.body) == ("Workflow not found", {"message": "Workflow not found"})


def test_a_refusal_without_words_is_still_told() -> None:
    """An empty `error` leaves status, route and advice."""
    assert str(refused(402, {"error": "", "code": "INSUFFICIENT_CREDITS"})) == (
        f"{REQUEST} answered 402 INSUFFICIENT_CREDITS. Nothing was run; top up the account's credits"
    )


@pytest.mark.parametrize(("status", "code", "kind", "_"), DOCUMENTED)
def test_a_paid_call_that_is_refused_says_that_nothing_was_run(
    status: int, code: str | None, kind: type[APIError], _: str
) -> None:
    """Whatever the refusal, its advice says so once, beside what to do next, and a copy says the same."""
    error = refused(status, {"error": "x", "code": code})
    assert isinstance(error, kind)
    assert str(error).lower().count("nothing was run") == 1
    assert error.advice.lower().endswith(kind.advice[1:].lower())
    assert pickle.loads(pickle.dumps(error)).advice == error.advice  # noqa: S301  (our own)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (endpoints.workflow_schema("my-slug"), "GET /api/workflows/my-slug/schema answered 404: x. Check the name"),
        (endpoints.get_execution("run-1"), "GET /api/executions/run-1 answered 404: x. Check the name"),
        (endpoints.list_usage_statuses(limit=5, offset=0), "GET /api/usage answered 404: x. Check the name"),
        (SUBMIT, f"{REQUEST} answered 404: x. Nothing was run; check the name"),
    ],
)
def test_a_refusal_names_what_was_asked_for(call: endpoints.Call[Any], words: str) -> None:
    """The slug or the id stands in the message, the query does not, and a look never says that nothing was run."""
    assert str(retry.api_error(Answer(404, {}, b'{"error": "x"}'), call)).startswith(words)


@pytest.mark.parametrize(
    ("location", "host"),
    [
        ("https://elsewhere.example/login?token=canary", "elsewhere.example"),
        ("https://canary:canary@elsewhere.example/", "elsewhere.example"),
        ("/login?token=canary", "somewhere unnamed"),
        ("http://[::1", "somewhere unnamed"),
        ("http://[canary]/", "somewhere unnamed"),
        ("", "somewhere unnamed"),
        (None, "somewhere unnamed"),
    ],
)
def test_a_redirect_names_the_host_only(location: str | None, host: str) -> None:
    """A redirect says where it leads by host, whatever the header holds, and shows nothing else of it."""
    for status in (300, 301, 302, 303, 307, 308):
        error = refused(status, b"", {} if location is None else {"location": location})
        assert type(error) is errors.UnexpectedRedirectError, status
        assert host in str(error)
        assert "canary" not in str(error)


def test_a_long_host_or_type_is_cut() -> None:
    """No header makes a message of unbounded length."""
    assert len(str(refused(302, b"", {"location": f"https://{'x' * 10_000}/"}))) < 600
    assert len(str(refused(502, b"x", {"content-type": "x" * 10_000}))) < 600


@pytest.mark.parametrize("status", [400, 401, 403, 404, 425])
@pytest.mark.parametrize("call", [SUBMIT, endpoints.get_execution("run-1")])
def test_a_page_in_the_place_of_a_refusal_is_somebody_else_s(status: int, call: endpoints.Call[Any]) -> None:
    """It says who answered and to look in between, and never that nothing was run or that the key is wrong."""
    told = {"content-type": "text/html", "server": "squid", "via": "1.1 office"}
    error = retry.api_error(Answer(status, told, b"<html>no</html>"), call)
    assert isinstance(error, APIError)
    assert not error.from_service
    for words in ("text/html (server: squid, via: 1.1 office)", "a proxy, a firewall, a login page"):
        assert words in str(error)
    for words in ("run", "KNOUDS_KEY"):
        assert words not in str(error).replace(call.request, "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
KEYS = st.sampled_from(["error", "code", "message", "limit", "retryAfter", "required", "tier"])


@given(
    st.integers(100, 999).filter(lambda status: not 200 <= status < 300),
    st.dictionaries(KEYS, JSON | st.sampled_from([*retry.BY_CODE, "EXECUTION_FAILED"])) | JSON,
    st.dictionaries(st.sampled_from(["location", "content-type", "retry-after", "date"]), st.text()),
)
def test_any_refusal_is_a_plain_error(status: int, body: Any, headers: dict[str, str]) -> None:
    """Whatever is answered outside 2xx becomes an error of this library that names it and pickles."""
    error = refused(status, body, headers)
    assert isinstance(error, APIError | errors.ExecutionFailedError)
    assert isinstance(error, errors.ExecutionFailedError) or f"{REQUEST} answered {status}" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301  (our own)


@given(st.integers(100, 999).filter(lambda status: not 200 <= status < 300), st.binary())
def test_any_bytes_are_a_plain_error(status: int, body: bytes) -> None:
    """Whatever the bytes, the error names status and request."""
    assert f"{REQUEST} answered {status}" in str(refused(status, body))
