"""Deliveries verified, each event accepted once, final states final, and nothing revealed to a forger.

Any input of `verify` ends as an event or as a WebhookVerificationError; a delivery is answered only after its event.
"""

import asyncio
import gc
import json
import pickle
import time
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knouds_async import ConfigurationError, InvalidArgumentError, Secret, Status
from knouds_async.testing import virtual_backend
from knouds_async.webhooks import (
    SeenHere,
    WebhookEvent,
    WebhookFault,
    WebhookReceiver,
    WebhookVerificationError,
    sign,
    verify,
)
from tests.webhooks.sending import SECRET, Sender, payload

NOW = 1_780_000_000.0
PAYLOAD = {
    "event": "execution.completed",
    "executionId": "550e8400-e29b-41d4-a716-446655440000",
    "requestId": "kie_1",
    "userId": "u_1",
    "workflowSlug": "daily-picture",
    "modelIds": ["gpt-image-2"],
    "status": "completed",
    "result": {"images": [{"url": "https://knouds-media.s3.amazonaws.com/media/1.png"}]},
    "error": None,
    "cost": 12,
    "durationMs": 8420,
}
ANY_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
End = Callable[..., dict[str, Any]]


def checked(body: bytes, **options: Any) -> WebhookEvent:
    """Verify a body that is rightly signed."""
    return verify(body, sign(body, SECRET, now=NOW), SECRET, now=NOW, **options)


def event(**changes: Any) -> WebhookEvent:
    """Verify the payload with changes; a value of ... leaves the key out."""
    payload = {key: value for key, value in {**PAYLOAD, **changes}.items() if value is not ...}
    return checked(json.dumps(payload).encode())


def reason(body: Any, signature: Any, secrets: Any = SECRET, **options: Any) -> WebhookFault:
    """Return why a delivery is refused."""
    with pytest.raises(WebhookVerificationError) as caught:
        verify(body, signature, secrets, **{"now": NOW, **options})
    return caught.value.reason


def test_gives_the_event_with_the_run() -> None:
    """A completed run comes with its id, its status, its result, cost and time."""
    received = event()
    assert (received.event, received.execution_id, received.is_test) == (
        "execution.completed",
        PAYLOAD["executionId"],
        False,
    )
    assert received.state is not None
    assert (received.state.status, received.state.result) == (Status.COMPLETED, PAYLOAD["result"])
    assert (received.state.cost, received.state.ms, received.state.request_id) == (12, 8420, "kie_1")
    assert received.raw == PAYLOAD == received.state.raw


def test_failed_and_cancelled_runs() -> None:
    """A failed run brings its error, a cancelled one may bring a result."""
    failed = event(event="execution.failed", status="failed", result=None, error={"code": "X", "message": "no"}).state
    assert failed is not None
    assert failed.error is not None
    assert (failed.status, failed.error.code, failed.error.message) == (Status.FAILED, "X", "no")
    cancelled = event(event="execution.cancelled", status="cancelled").state
    assert cancelled is not None
    assert (cancelled.status, cancelled.result) == (Status.CANCELLED, PAYLOAD["result"])


@pytest.mark.parametrize("status", [..., None, 17, "processing", "odd"])
def test_the_events_name_says_the_status(status: object) -> None:
    """A known event whose status is missing or no end has the status of its name."""
    state = event(status=status).state
    assert state is not None
    assert state.status == Status.COMPLETED


def test_contradicting_ends_are_no_end() -> None:
    """An event that names two different ends is accepted, but has no state."""
    state = event(status="failed").state
    assert state is not None
    assert not state.is_final


def test_unknown_events_and_fields_pass() -> None:
    """An event of a name that is not known is accepted, with and without a run, and so are unknown fields."""
    progress = event(event="execution.progress", status="processing", percent=40)
    assert progress.state is not None
    assert (progress.state.status, progress.raw["percent"]) == (Status.PROCESSING, 40)
    strange = event(event="execution.archived", status=...)
    assert strange.state is not None
    assert (strange.state.status, strange.state.is_final) == ("execution.archived", False)
    account = event(event="account.low_credits", executionId=...)
    assert (account.execution_id, account.state) == (None, None)


def test_the_test_event_needs_no_run() -> None:
    """webhook.test is an event of no run, whatever id it makes up."""
    received = event(event="webhook.test", executionId="../../x")
    assert (received.is_test, received.execution_id, received.state) == (True, None, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"event": ...},
        {"event": None},
        {"event": ""},
        {"event": 17},
        {"event": "x" * 201},
        {"executionId": ...},
        {"executionId": "../../etc/passwd"},
        {"executionId": ""},
        {"executionId": 17},
        {"event": "execution.progress", "executionId": "a b"},
    ],
)
def test_what_is_signed_and_no_event_is_malformed(changes: dict[str, Any]) -> None:
    """Without a name, or with an id that could not be one, a body is refused though its signature is right."""
    payload = {key: value for key, value in {**PAYLOAD, **changes}.items() if value is not ...}
    body = json.dumps(payload).encode()
    assert reason(body, sign(body, SECRET, now=NOW)) is WebhookFault.BODY_MALFORMED


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"\xff", b"{", b"[" * 100_000, b"1" * 5000, b'{"event":NaN}'])
def test_what_is_signed_and_no_json_is_malformed(body: bytes) -> None:
    """Bodies that parsers choke on end as malformed."""
    assert reason(body, sign(body, SECRET, now=NOW)) is WebhookFault.BODY_MALFORMED


def test_the_raw_bytes_are_verified() -> None:
    """The same JSON written otherwise does not match."""
    body = json.dumps(PAYLOAD).encode()
    compact = json.dumps(PAYLOAD, separators=(",", ":")).encode()
    assert reason(compact, sign(body, SECRET, now=NOW)) is WebhookFault.SIGNATURE_WRONG


def test_secrets_may_be_one_or_several_and_masked() -> None:
    """One text, one Secret, or any iterable of them is taken; the one that matches need not be the first."""
    body = json.dumps(PAYLOAD).encode()
    for secrets in (SECRET, Secret(SECRET), ["another_secret_00", SECRET], (Secret(SECRET),), iter([SECRET])):
        assert verify(body, sign(body, SECRET, now=NOW), secrets, now=NOW).event == "execution.completed"


@pytest.mark.parametrize("secrets", [[], "", "short", ["x" * 15], [SECRET, "short"], None, 17, [None], b"x" * 20])
def test_unusable_secrets_are_the_receivers_own_fault(secrets: Any) -> None:
    """Too short, none, or no texts: that is refused as misconfigured, not as a forgery."""
    body = json.dumps(PAYLOAD).encode()
    assert reason(body, sign(body, SECRET, now=NOW), secrets) is WebhookFault.MISCONFIGURED


@pytest.mark.parametrize(
    "options", [{"now": "soon"}, {"now": float("nan")}, {"now": True}, {"tolerance": float("nan")}, {"tolerance": None}]
)
def test_unusable_clocks_are_the_receivers_own_fault(options: dict[str, Any]) -> None:
    """A clock or a tolerance that is no number accepts nothing."""
    body = json.dumps(PAYLOAD).encode()
    assert reason(body, sign(body, SECRET, now=NOW), **options) is WebhookFault.MISCONFIGURED


def test_the_clock_is_this_machines() -> None:
    """Without `now` the present is meant."""
    body = json.dumps(PAYLOAD).encode()
    assert verify(body, sign(body, SECRET, now=time.time()), SECRET).event == "execution.completed"
    with pytest.raises(WebhookVerificationError):
        verify(body, sign(body, SECRET, now=time.time() - 400), SECRET)
    assert verify(body, sign(body, SECRET, now=time.time() - 400), SECRET, tolerance=500).event


@given(
    st.one_of(st.none(), st.binary(max_size=200), st.text(max_size=200), st.integers()),
    st.one_of(st.none(), st.text(max_size=200), st.binary(max_size=200), st.floats()),
    st.one_of(st.none(), st.text(max_size=40), st.lists(st.text(max_size=40) | st.none(), max_size=3), st.integers()),
    st.one_of(st.floats(), st.none(), st.text(max_size=3)),
)
def test_nothing_else_comes_out_whatever_goes_in(body: Any, header: Any, secrets: Any, now: Any) -> None:
    """Of any four values at all comes a WebhookVerificationError with a reason."""
    with pytest.raises(WebhookVerificationError) as caught:
        verify(body, header, secrets, now=now)
    assert isinstance(caught.value.reason, WebhookFault)


@settings(max_examples=50, deadline=None)
@given(ANY_JSON, st.dictionaries(st.sampled_from(sorted(PAYLOAD)), ANY_JSON, max_size=6))
def test_signed_json_of_any_shape_is_an_event_or_malformed(anything: Any, changes: dict[str, Any]) -> None:
    """A body of any JSON, or an event with any of its fields replaced, is read or refused as malformed."""
    for written in (anything, {**PAYLOAD, **changes}):
        body = json.dumps(written).encode()
        received: WebhookEvent | WebhookFault
        try:
            received = checked(body)
        except WebhookVerificationError as error:
            received = error.reason
        assert received is WebhookFault.BODY_MALFORMED or received.event == written["event"]  # type: ignore[union-attr]


def test_the_error_is_plain_and_holds_no_secret() -> None:
    """It pickles with its reason, and shows no secret in its words nor in the frames of the library."""
    with pytest.raises(WebhookVerificationError) as caught:
        verify(b"{}", f"t={NOW:.0f},v1={'0' * 64}", SECRET, now=NOW)
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (again.reason, str(again)) == (WebhookFault.SIGNATURE_WRONG, str(caught.value))
    assert SECRET not in str(caught.value)
    frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)][1:]
    assert frames
    assert all(SECRET not in repr(frame.f_locals) for frame in frames)


@pytest.mark.parametrize(("secret", "now"), [("short", NOW), (SECRET, -1.0), (SECRET, float("nan")), (SECRET, 1e12)])
def test_sign_refuses_what_no_receiver_would_take(secret: str, now: float) -> None:
    """A short secret or an impossible time is an argument error, without the secret in it."""
    with pytest.raises(InvalidArgumentError) as caught:
        sign(b"{}", secret, now=now)
    assert secret not in str(caught.value)


@pytest.mark.parametrize("body", ["{}", 3, None])
def test_a_body_is_bytes(body: Any) -> None:
    """A text is what a framework made of the bytes: neither signed nor verified, and the error says what is needed."""
    with pytest.raises(InvalidArgumentError, match="bytes"):
        sign(body, SECRET, now=NOW)
    with pytest.raises(WebhookVerificationError, match="raw bytes"):
        verify(body, sign(b"{}", SECRET, now=NOW), SECRET, now=NOW)


@pytest.fixture
def sender() -> Callable[..., Sender]:
    """Return a function that makes a receiver with these options, and a sender to it."""
    return lambda **options: Sender(WebhookReceiver(SECRET, **options))


@pytest.fixture
def end() -> Callable[..., dict[str, Any]]:
    """Return a function that writes the event of a run's end."""
    return payload


class Diary:
    """A handler that records what it gets, and fails as often as it is set to."""

    def __init__(self, *, failures: int = 0, seconds: float = 0.0) -> None:
        self.events: list[WebhookEvent] = []
        self.begun = 0
        self._failures = failures
        self._seconds = seconds

    async def __call__(self, event: WebhookEvent) -> None:
        self.begun += 1
        await anyio.sleep(self._seconds)
        if self._failures:
            self._failures -= 1
            raise RuntimeError("the database is away")
        self.events.append(event)

    @property
    def names(self) -> list[str]:
        """The events that were taken."""
        return [event.event for event in self.events]


async def test_hands_each_event_on_once(sender: Any, end: End) -> None:
    """A delivery that comes three times is answered 200 each time and handed on once."""
    diary = Diary()
    send = sender(handler=diary)
    assert [await send(end("a")) for _ in range(3)] == [200, 200, 200]
    assert diary.names == ["execution.completed"]


async def test_an_event_that_came_over_a_bus_is_handed_on_once(sender: Any, end: End) -> None:
    """What another worker has verified is accepted like a delivery, and the delivery itself is then no other event."""
    diary = Diary()
    send = sender(handler=diary)
    for _ in range(2):
        await send.receiver.accept(event(executionId="a"))
    assert await send(end("a")) == 200
    assert diary.names == ["execution.completed"]


async def test_two_runs_and_two_events_are_four(sender: Any, end: End) -> None:
    """What is remembered is the pair of run and event."""
    diary = Diary()
    send = sender(handler=diary)
    for name in "ab":
        await send(end(name, event="execution.progress", status="processing"))
        await send(end(name))
    assert len(diary.events) == 4


async def test_deliveries_at_once_are_handed_on_once(sender: Any, end: End) -> None:
    """Of twenty that come in the same moment one is handed on, and all are answered only after that."""
    diary = Diary(seconds=5)
    send, answers = sender(handler=diary), []

    async def deliver() -> None:
        answers.append((await send(end("a")), len(diary.events)))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(deliver)
    assert answers == [(200, 1)] * 20
    assert diary.begun == 1


async def test_a_failed_handler_gets_the_event_again(sender: Any, end: End) -> None:
    """What the handler raises passes through, so that the service sends again, and then it is taken."""
    diary = Diary(failures=1)
    send = sender(handler=diary)
    with pytest.raises(RuntimeError):
        await send(end("a"))
    assert await send(end("a")) == 200
    assert diary.names == ["execution.completed"]


async def test_who_waited_for_a_failed_handler_takes_over(sender: Any, end: End) -> None:
    """A second delivery that came while the first one's handler failed is taken in its place."""
    diary = Diary(failures=1, seconds=1)
    send, answers = sender(handler=diary), []

    async def deliver() -> None:
        try:
            answers.append(await send(end("a")))
        except RuntimeError:
            answers.append(500)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(deliver)
        tasks.start_soon(deliver)
    assert sorted(answers) == [200, 500]
    assert diary.names == ["execution.completed"]


async def test_a_cancelled_handler_has_not_taken_the_event(sender: Any, end: End) -> None:
    """When the server cuts a delivery short, the next one is handed on."""
    diary = Diary(seconds=10)
    send = sender(handler=diary)
    with anyio.move_on_after(1):
        await send(end("a"))
    assert await send(end("a")) == 200
    assert diary.names == ["execution.completed"]


class SlowStore(SeenHere):
    """A store of which the answer takes five seconds, and the change none."""

    async def claim(self, key: str) -> bool:
        """Store a key."""
        is_new = await super().claim(key)
        await anyio.sleep(5)
        return is_new

    async def release(self, key: str) -> None:
        """Remove a key."""
        await anyio.sleep(5)
        await super().release(key)


async def test_a_delivery_that_is_cancelled_while_it_is_claimed_is_not_taken(sender: Any, end: End) -> None:
    """A store may have the key though its answer was not awaited: the handler gets the event of the next delivery."""
    diary = Diary()
    send = sender(handler=diary, seen=SlowStore())
    with anyio.move_on_after(1):
        await send(end("a"))
    assert diary.begun == 0
    assert await send(end("a")) == 200
    assert diary.names == ["execution.completed"]


async def test_a_store_that_hangs_lets_a_delivery_end(sender: Any, end: End) -> None:
    """One that never answers fails the delivery after its time, cancelled or not."""

    class HangingStore(SeenHere):
        async def claim(self, key: str) -> bool:
            """Wait for ever."""
            await anyio.sleep_forever()
            return True

    send = sender(handler=Diary(), seen=HangingStore())
    with anyio.fail_after(60), pytest.raises(TimeoutError):
        await send(end("a"))
    with anyio.fail_after(60), anyio.move_on_after(1), pytest.raises(TimeoutError):
        await send(end("a"))


@pytest.mark.parametrize("fault", [OSError, TimeoutError])
async def test_a_store_that_fails_with_a_key_loses_no_event(sender: Any, end: End, fault: type[OSError]) -> None:
    """Its answer may be lost after the key was stored: the next delivery is handed on all the same."""

    class FailingStore(SeenHere):
        async def claim(self, key: str) -> bool:
            """Store a key, and fail to say so the first time."""
            is_new = await super().claim(key)
            if faults:
                raise faults.pop()
            return is_new

    diary, faults = Diary(), [fault()]
    send = sender(handler=diary, seen=FailingStore())
    with pytest.raises(fault):
        await send(end("a"))
    assert await send(end("a")) == 200
    assert diary.names == ["execution.completed"]


async def test_a_cancelled_delivery_leaves_what_another_has_taken(sender: Any, end: End) -> None:
    """A key that the store knew is not removed when the delivery that met it is cancelled."""
    diary, store = Diary(), SlowStore()
    first, second = sender(handler=diary, seen=store), sender(handler=diary, seen=store)
    await first(end("a"))
    with anyio.move_on_after(1):
        await second(end("a"))
    await second(end("a"))
    assert diary.begun == 1


@pytest.mark.parametrize("anyio_backend", [virtual_backend("asyncio")])
async def test_a_claim_is_given_back_through_two_cancellations(sender: Any, end: End) -> None:
    """The first comes while the key is claimed and the second while it is released: both are waited for."""
    diary = Diary()
    send = sender(handler=diary, seen=SlowStore())
    task = asyncio.create_task(send(end("a")))
    for _ in range(2):
        await anyio.sleep(3)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await send(end("a")) == 200
    assert diary.names == ["execution.completed"]


async def test_a_plain_function_is_a_handler_too(sender: Any, end: End) -> None:
    """It is called once with each event: that it returns nothing to await does not fail the delivery."""
    events: list[WebhookEvent] = []
    send = sender(handler=events.append)
    assert [await send(end("a")) for _ in range(2)] == [200, 200]
    assert [event.execution_id for event in events] == [end("a")["executionId"]]


async def test_final_states_stay_final(sender: Any, end: End) -> None:
    """A run that has completed neither fails nor continues: late events are answered and not passed on."""
    diary = Diary()
    send = sender(handler=diary)
    later = [end("a", "failed"), end("a", "cancelled"), end("a", event="execution.progress", status="processing")]
    assert [await send(event) for event in (end("a"), *later)] == [200] * 4
    assert diary.names == ["execution.completed"]


async def test_two_ends_of_a_run_at_once_are_one(sender: Any, end: End) -> None:
    """An end that comes while the handler is still busy with another end of the same run is not handed on."""
    diary = Diary(seconds=5)
    send = sender(handler=diary)
    async with anyio.create_task_group() as tasks:
        for status in ("completed", "failed", "cancelled"):
            tasks.start_soon(send, end("a", status))
            await anyio.sleep(1)
    assert diary.names == ["execution.completed"]


async def test_an_unknown_event_of_the_same_end_is_handed_on(sender: Any, end: End) -> None:
    """A new kind of event that has the run as it is known passes."""
    diary = Diary()
    send = sender(handler=diary)
    await send(end("a"))
    await send(end("a", event="execution.archived"))
    assert diary.names == ["execution.completed", "execution.archived"]


async def test_the_test_event_is_answered_and_ignored(sender: Any) -> None:
    """webhook.test gets 200, and neither handler nor client learn of it."""
    diary = Diary()
    assert await sender(handler=diary)({"event": "webhook.test", "executionId": "made-up"}) == 200
    assert diary.events == []


async def test_events_of_no_run_are_handed_on(sender: Any) -> None:
    """An unknown event without an execution cannot be known again, so each is handed on."""
    diary = Diary()
    send = sender(handler=diary)
    assert [await send({"event": "account.low_credits"}) for _ in range(2)] == [200, 200]
    assert len(diary.events) == 2


async def test_refusals_say_nothing_but_their_status(sender: Any, end: End, caplog: pytest.LogCaptureFixture) -> None:
    """Forged and expired are 401, no header and no event 400; the handler learns of none, the log of each."""
    diary = Diary()
    send = sender(handler=diary)
    assert await send(end("a"), secret="whsec_of_somebody_else") == 401
    assert await send(end("a"), age=301) == 401
    assert await send(end("a"), age=-301) == 401
    assert await send({"event": None}) == 400
    for header in (None, "", "nonsense", "t=1", "\ud800"):
        assert await send.receiver.take(_parts(b"{}"), header) == 400
    assert diary.events == []
    assert len(caplog.records) == 9
    assert all(record.message.startswith("a webhook delivery was refused with 40") for record in caplog.records)


async def test_reads_no_more_than_one_mebibyte(caplog: pytest.LogCaptureFixture) -> None:
    """An endless body is 413 after 1 MiB and one chunk, before anything is verified."""
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 65_536
            yield bytes(65_536)

    body = endless()
    assert await WebhookReceiver(SECRET).take(body, "t=1,v1=0") == 413
    await body.aclose()  # type: ignore[attr-defined]
    assert given == 1024 * 1024 + 65_536
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_a_body_that_drips_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """A sender that takes longer than thirty seconds is answered 400."""

    async def dripping() -> AsyncIterator[bytes]:
        while True:
            await anyio.sleep(1)
            yield b" "

    body, began = dripping(), anyio.current_time()
    assert await WebhookReceiver(SECRET).take(body, "t=1,v1=0") == 400
    assert anyio.current_time() - began < 31
    assert [record.message for record in caplog.records] == [
        "a webhook delivery was refused with 400: its body was not complete after 30 s"
    ]
    await body.aclose()  # type: ignore[attr-defined]


async def test_the_memory_is_bounded(sender: Any, end: End) -> None:
    """With room for two, the one of three that came longest ago is forgotten and so handed on again."""
    diary = Diary()
    send = sender(handler=diary, seen=SeenHere(2))
    for name in ("a", "b", "a", "c", "a", "b"):
        await send(end(name))
    assert [event.execution_id for event in diary.events] == ["a", "b", "c", "b"]


async def test_a_shared_memory_spans_receivers(sender: Any, end: End) -> None:
    """Two workers with one store hand an event on once between them."""
    seen, diary = SeenHere(), Diary()
    first, second = sender(handler=diary, seen=seen), sender(handler=diary, seen=seen)
    assert [await first(end("a")), await second(end("a"))] == [200, 200]
    assert len(diary.events) == 1


@pytest.mark.parametrize("secrets", ["short", [], ["x" * 15], None])
def test_unusable_secrets_are_refused_at_once(secrets: Any) -> None:
    """A receiver that could accept nothing is not built, and the error does not show the secret."""
    with pytest.raises(ConfigurationError) as caught:
        WebhookReceiver(secrets)
    assert "short" not in str(caught.value)


@pytest.mark.parametrize("tolerance", [-1, float("nan"), float("inf")])
def test_an_unusable_tolerance_is_refused_at_once(tolerance: float) -> None:
    """A tolerance is a finite number of seconds."""
    with pytest.raises(ConfigurationError):
        WebhookReceiver(SECRET, tolerance=tolerance)


@pytest.mark.parametrize("options", [{"handler": "on_event"}, {"seen": {"a"}}, {"seen": "redis://localhost"}], ids=str)
def test_unusable_handlers_and_stores_are_refused_at_once(options: dict[str, Any]) -> None:
    """What would fail with each delivery is refused when the app starts."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        WebhookReceiver(SECRET, **options)


@pytest.mark.parametrize("options", [{"handler": 5}, {"seen": 5}, {"tolerance": -1}, {"bus": 5}], ids=str)
def test_no_refusal_shows_a_secret(options: dict[str, Any]) -> None:
    """A traceback that shows the variables of the library's frames shows no secret in them, as text or as bytes."""
    with pytest.raises(ConfigurationError) as caught:
        WebhookReceiver(SECRET, **options)
    frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)][1:]
    assert frames
    assert all(SECRET not in repr(frame.f_locals) for frame in frames)


@pytest.mark.parametrize("most", [0, 1.5, "5", True])
def test_a_store_has_room_for_one_key_at_least(most: Any) -> None:
    """Its bound is an integer of at least one."""
    with pytest.raises(ConfigurationError, match="most="):
        SeenHere(most)


def test_shows_no_secret() -> None:
    """Neither its repr nor its attributes show the secret."""
    receiver = WebhookReceiver(SECRET)
    assert SECRET not in repr(receiver)
    assert SECRET not in repr(vars(receiver))


async def test_no_event_is_kept_in_flight(sender: Any, end: End) -> None:
    """After the answers nothing of the deliveries is left but the bounded memory."""
    send = sender(handler=Diary())
    for place in range(100):
        await send(end(f"run-{place}"))
    gc.collect()
    assert send.receiver._in_progress == {}


async def _parts(body: bytes) -> AsyncIterator[bytes]:
    yield body


HTTP = {"type": "http", "method": "POST", "headers": []}
CASES: list[tuple[dict[str, Any], list[dict[str, Any]], list[str]]] = [
    (
        {"type": "lifespan"},
        [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}],
        ["lifespan.startup.complete", "lifespan.shutdown.complete"],
    ),
    ({"type": "websocket"}, [{"type": "websocket.connect"}], ["websocket.close"]),
    (HTTP, [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}], []),
    (HTTP, [{"type": "http.request", "body": b"{}"}], ["http.response.start", "http.response.body"]),
]


@pytest.mark.parametrize(("scope", "incoming", "outgoing"), CASES)
async def test_a_server_is_answered_in_its_own_messages(
    scope: dict[str, Any], incoming: list[dict[str, Any]], outgoing: list[str]
) -> None:
    """Start and end of an app are confirmed, a socket is closed, and nobody is answered who has hung up."""
    messages, sent = iter(incoming), list[str]()

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await WebhookReceiver(SECRET).asgi(scope, receive, send)
    assert sent == outgoing
