"""The key: it is sent to the API's own origin and shows nowhere else."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
from typing import Any
from urllib.parse import quote

import anyio
import httpx
import pytest
import respx

from knouds_async import (
    AsyncKnouds,
    AuthenticationError,
    ConfigurationError,
    ConnectionFailedError,
    KnoudsError,
    Polling,
    Retries,
    Secret,
    ServiceError,
    SubmissionUnknownError,
    UnexpectedRedirectError,
)
from knouds_async.testing.emulator import Emulator
from tests.scripted_client import scripted

CANARY = "knouds_live_CANARY0123456789"
BASE = "https://knouds.test"


def everything_shown(error: BaseException) -> str:
    """Return all that a traceback tool would show of an error, locals of every frame included."""
    seen: list[str] = []
    left: list[BaseException] = [error]
    while left:
        one = left.pop()
        seen += traceback.TracebackException.from_exception(one, capture_locals=True).format(chain=True)
        seen += [repr(one), str(one), repr(vars(one)), repr(one.args)]
        left += [more for more in (one.__cause__, one.__context__) if more is not None]
        left += list(one.exceptions) if isinstance(one, BaseExceptionGroup) else []
    return "".join(seen)


def reachable(error: BaseException) -> set[type]:
    """Return the types of all that an error holds on to, its traceback aside."""
    found: set[type] = set()
    left: list[Any] = [error]
    while left:
        one = left.pop()
        found.add(type(one))
        values = one.values() if isinstance(one, dict) else one if isinstance(one, (list, tuple, set)) else ()
        left += list(values) + list(getattr(one, "__dict__", {}).values())
        if isinstance(one, BaseException):
            left += [one.__cause__, one.__context__, one.args]
    return found


FAULTS: dict[str, Any] = {
    "401": httpx.Response(401, json={"error": f"bad key {CANARY}"}),
    "html that echoes": httpx.Response(502, html=f"<pre>x-api-key: {CANARY}</pre>"),
    "redirect": httpx.Response(307, headers={"location": f"https://evil.test/?k={CANARY}"}),
    "rubbish": httpx.Response(200, text="nonsense"),
    "connect": httpx.ConnectError(f"no way with {CANARY}"),
    "read": httpx.ReadError("reset"),
    "timeout": httpx.ReadTimeout("slow"),
    "protocol": httpx.RemoteProtocolError("Server disconnected without sending a response."),
    "strange": ValueError(f"a foreign transport failed with {CANARY}"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_key_shows_in_no_error_and_no_log(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever goes wrong, no repr, traceback with locals, pickle or DEBUG record holds the key or an HTTP object."""
    caplog.set_level(logging.DEBUG)

    def respond(request: httpx.Request) -> httpx.Response:
        if isinstance(FAULTS[fault], Exception):
            raise FAULTS[fault]
        answer: httpx.Response = FAULTS[fault]
        return answer

    http = httpx.AsyncClient(transport=httpx.MockTransport(respond))
    knouds = AsyncKnouds(CANARY, base_url=BASE, http_client=http, retries=Retries(attempts=1))
    handle = knouds.executions.attach("run-1")
    for call in (
        knouds.whoami,
        lambda: knouds.workflows.submit("a", {}),
        lambda: knouds.workflows.run("a", {}),
        lambda: knouds.workflows.create("a"),
        handle.wait,
    ):
        with pytest.raises(KnoudsError) as caught:
            await call()
        assert CANARY not in everything_shown(caught.value)
        assert CANARY.encode() not in pickle.dumps(caught.value)
        assert type(copy.copy(caught.value)) is type(caught.value)
        assert not [kind for kind in reachable(caught.value) if kind.__module__.startswith(("httpx", "httpcore"))]
    logged = [record for record in caplog.records if record.name.startswith("knouds_async")]
    assert CANARY not in "".join(record.getMessage() + repr(record.args) for record in logged)


def spelled(key: str) -> str:
    """Spell a key as JSON may."""
    return "".join(f"\\u{ord(char):04x}" if place % 2 else char for place, char in enumerate(key))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
async def test_a_key_that_is_echoed_in_another_spelling_shows_nowhere(
    encoding: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever an answer echoes, parsed or not: no error, record, state, raw body or log holds the key."""
    caplog.set_level(logging.DEBUG)
    echo = f'"x-api-key: {spelled(CANARY)}", "{spelled(CANARY)}": ["%6bnouds_live_CANARY0123456789"]'
    bodies = {
        "/api/whoami": (401, f'{{"error": {echo}}}'),
        "/api/executions/run-1": (
            200,
            f'{{"status": "failed", "error": {{"message": {echo}}}, "result": {{"a": {echo}}}}}',
        ),
        "/api/executions/run-2": (200, f'{{"status": {echo}, "executionId": "run-2"}}'),
        "/api/workflows/a/run": (500, f'{{"error": {echo}}}'),
        "/api/usage": (200, f'{{"rows": [{{"requestId": {echo}}}]}}'),
        "/api/pricing/public": (200, f"[{{{echo.partition(', ')[2]}}}]"),
    }

    def respond(request: httpx.Request) -> httpx.Response:
        status, body = bodies[request.url.path]
        assert CANARY not in body
        assert CANARY in json.dumps(json.loads(body))
        return httpx.Response(status, content=body.encode(encoding), headers={"location": quote(CANARY)})

    http = httpx.AsyncClient(transport=httpx.MockTransport(respond))
    knouds = AsyncKnouds(CANARY, base_url=BASE, http_client=http, retries=Retries(attempts=1))
    shown = ""
    for call in (
        knouds.whoami,
        lambda: knouds.executions.get("run-1"),
        lambda: knouds.executions.get("run-2"),
        knouds.executions.attach("run-1").wait,
        knouds.usage.list,
        knouds.pricing,
        lambda: knouds.workflows.submit("a", {}),
    ):
        try:
            got: Any = await call()
            shown += repr(got) + repr(got.raw) + str(pickle.dumps(got))
        except KnoudsError as error:
            shown += everything_shown(error) + str(pickle.dumps(error))
    assert "x-api-key: ***" in shown
    assert CANARY not in shown + caplog.text


async def test_a_cancellation_shows_no_key(make_client: Any, emulator: Emulator) -> None:
    """The traceback of a request that was cut shows no frame in which the key stands."""
    knouds = make_client(emulator, latency=5.0)
    shown = ""
    with anyio.move_on_after(1):
        try:
            await knouds.whoami()
        except BaseException as cut:
            shown = everything_shown(cut)
            raise
    assert "whoami" in shown
    assert emulator.api_key not in shown


async def test_no_object_shows_the_key(make_client: Any, emulator: Emulator) -> None:
    """Client, resources, handles, results and their pickles hold no key that shows."""
    knouds = make_client(emulator)
    execution = await knouds.workflows.submit("my-thumbnail-pipeline", {"product_name": "x"})
    run = await execution
    parts = [knouds, knouds.workflows, knouds.models, knouds.executions, knouds.usage, knouds.limiter, execution, run]
    for part in parts:
        assert emulator.api_key not in repr(part)
        assert emulator.api_key not in repr(getattr(part, "__dict__", {}))
    assert emulator.api_key.encode() not in pickle.dumps((execution, run, execution.state))


def test_a_secret_neither_shows_nor_pickles() -> None:
    """A Secret gives its text only when asked."""
    secret = Secret(CANARY)
    assert secret.reveal() == CANARY
    assert CANARY not in f"{secret} {secret!r} {[secret]}"
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError) as caught:
            leak(secret)
        assert CANARY not in str(caught.value)
    assert repr(AsyncKnouds(secret, base_url=BASE))


@pytest.mark.parametrize("key", ["", "a b c", "key\n", "\tkey", "ключ", "k\0", "x" * 600, "k\r\nHost: evil"])
def test_a_malformed_key_is_refused_and_not_shown(key: str) -> None:
    """A key that cannot be a header is refused at construction, without being printed."""
    with pytest.raises(ConfigurationError) as caught:
        AsyncKnouds(key)
    assert not key or key not in str(caught.value)
    frames = traceback.walk_tb(caught.value.__traceback__)
    ours = [frame.f_locals for frame, _ in frames if "knouds_async" in frame.f_code.co_filename]
    assert ours
    assert not key or repr(key) not in repr(ours)


@pytest.mark.parametrize("url", ["https://{}.example", "https://user:{}@knouds.ai", "https://knouds.ai/?key={}"])
def test_a_key_in_a_base_url_is_refused_and_not_shown(url: str) -> None:
    """Nor does a key that got into the base URL stand in the locals of our frames."""
    with pytest.raises(ConfigurationError) as caught:
        AsyncKnouds("k", base_url=url.format("knouds_live_CANARY"))
    frames = traceback.walk_tb(caught.value.__traceback__)
    ours = [frame.f_locals for frame, _ in frames if "knouds_async" in frame.f_code.co_filename]
    assert ours
    assert "CANARY" not in repr(ours)
    assert "CANARY" not in str(caught.value)


async def test_a_key_in_the_place_of_a_name_is_refused_and_not_shown(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """A key in the place of another argument is refused before any request, by an error that does not show it."""
    for call in (knouds.executions.get, knouds.executions.cancel, knouds.workflows.schema, knouds.workflows.delete):
        with pytest.raises(KnoudsError, match=r"knouds_live_\*\*\*") as caught:
            await call(CANARY)
        assert CANARY not in str(caught.value)
    for submit in (knouds.workflows.submit, knouds.models.submit):
        with pytest.raises(KnoudsError, match=r"knouds_live_\*\*\*") as caught:
            await submit(CANARY, {})
        assert CANARY not in str(caught.value)
    assert emulator.requests.count == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_errors_that_name_the_host_only(status: int) -> None:
    """The API never redirects: key and body go nowhere else, no query is repeated, and a submit's outcome is open."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(status, headers={"location": "https://evil.test/steal?token=abc"})

    http = httpx.AsyncClient(transport=httpx.MockTransport(answer), follow_redirects=True)
    knouds = AsyncKnouds(CANARY, base_url=BASE, http_client=http)
    with pytest.raises(SubmissionUnknownError, match=r"evil\.test") as caught:
        await knouds.workflows.submit("a", {})
    assert asked == ["knouds.test"]
    with pytest.raises(UnexpectedRedirectError, match=r"evil\.test") as looked:
        await knouds.whoami()
    assert set(asked) == {"knouds.test"}
    assert "token" not in str(caught.value) + str(looked.value)
    assert not looked.value.may_have_run


async def test_the_requests_of_our_own_client_are_intercepted_by_respx() -> None:
    """Users may mock HTTP with respx: our transport is intercepted like httpx's own."""
    with respx.mock(base_url=BASE) as router:
        router.get("/api/whoami").respond(json={"user": {"tier": "pro"}}, headers={"x-ratelimit-limit": "100"})
        async with AsyncKnouds(CANARY, base_url=BASE) as knouds:
            assert (await knouds.whoami()).tier == "pro"
        sent = router.calls.last.request
    assert sent.headers["x-api-key"] == CANARY
    assert sent.headers["accept-encoding"] == "gzip"
    assert "authorization" not in sent.headers


@pytest.mark.parametrize(
    ("fault", "times_sent"),
    [(httpx.ReadTimeout, 1), (httpx.ReadError, 1), (httpx.RemoteProtocolError, 1), (httpx.ConnectError, 4)],
)
async def test_a_submit_mocked_with_respx_is_sent_again_only_when_it_was_not_sent(
    fault: type[httpx.TransportError], times_sent: int
) -> None:
    """Also under mocks, which fire no trace events, only a failed connection is repeated."""
    with respx.mock(base_url=BASE) as router:
        route = router.post("/api/workflows/a/run").mock(side_effect=fault)
        async with AsyncKnouds(CANARY, base_url=BASE) as knouds:
            with pytest.raises(KnoudsError) as caught:
                await knouds.workflows.submit("a", {})
    assert route.call_count == times_sent
    assert caught.value.may_have_run is (times_sent == 1)


async def test_the_log_names_routes_and_ids_only(
    make_client: Any, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """DEBUG records have routes, statuses and ids; never inputs, results or headers."""
    caplog.set_level(logging.DEBUG, logger="knouds_async")
    knouds = make_client(emulator, polling=Polling.every(10))
    run = await (await knouds.workflows.submit("my-thumbnail-pipeline", {"product_name": "SECRET-INPUT"}))
    assert "POST /api/workflows/:slug/run" in caplog.text
    for hidden in ("SECRET-INPUT", run.images[0].url, "x-api-key", "x-ratelimit"):
        assert hidden not in caplog.text


async def test_http_basic_errors_do_not_blame_the_run() -> None:
    """An error of a read never says that a run may have begun."""
    http = httpx.AsyncClient(transport=httpx.MockTransport(lambda request: httpx.Response(500, json={"error": "x"})))
    knouds = AsyncKnouds(CANARY, base_url=BASE, http_client=http)
    with pytest.raises(ServiceError) as caught:
        await knouds.whoami()
    assert not caught.value.may_have_run
    assert not isinstance(caught.value, AuthenticationError)


@pytest.mark.parametrize("auth", [httpx.BasicAuth("who", "word"), httpx.DigestAuth("who", "word")])
async def test_the_auth_of_a_callers_client_goes_along_with_the_key(auth: httpx.Auth) -> None:
    """What a gateway in between wants to know is its owner's wish, with as many requests as it takes."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if "authorization" not in request.headers:
            challenge = 'Digest realm="r", nonce="n", qop="auth", algorithm=MD5'
            return httpx.Response(401, headers={"www-authenticate": challenge})
        return httpx.Response(200, json={"user": {"id": "u"}})

    http = httpx.AsyncClient(transport=httpx.MockTransport(answer), auth=auth)
    assert (await AsyncKnouds(CANARY, base_url=BASE, http_client=http).whoami()).id == "u"
    assert "authorization" in seen[-1].headers
    assert [request.headers["x-api-key"] for request in seen] == [CANARY] * len(seen)


async def test_no_cookie_of_the_service_is_kept() -> None:
    """Our own client takes none, from whatever answer."""
    with respx.mock as router:
        router.get(f"{BASE}/api/whoami").respond(200, json={"user": {"id": "u"}}, headers={"set-cookie": "a=b"})
        async with AsyncKnouds(CANARY, base_url=BASE) as knouds:
            await knouds.whoami()
            await knouds.whoami()
            assert not knouds._exchange._http.cookies
        assert all("cookie" not in call.request.headers for call in router.calls)


@pytest.mark.parametrize("is_lent", [True, False])
async def test_a_client_that_is_closed_sends_nothing_for_certain(*, is_lent: bool) -> None:
    """httpx refuses with a RuntimeError then, which by itself would prove nothing."""
    http = httpx.AsyncClient(transport=httpx.MockTransport(lambda request: httpx.Response(200))) if is_lent else None
    knouds = AsyncKnouds(CANARY, base_url=BASE, http_client=http, retries=Retries(attempts=1))
    await knouds._exchange._http.aclose()
    with pytest.raises(ConnectionFailedError, match="closed") as caught:
        await knouds.workflows.submit("a", {})
    assert not caught.value.may_have_run


async def test_an_answer_that_echoes_the_key_does_not_carry_it_into_errors() -> None:
    """Also in a 2xx the key is masked."""
    knouds = scripted(lambda request: httpx.Response(200, json={"executionId": [request.headers["x-api-key"]]}))
    with pytest.raises(KnoudsError) as caught:
        await knouds.workflows.submit("a", {})
    assert "CANARY" not in str(caught.value)
