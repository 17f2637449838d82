"""The receiver: each event once, final states final, nothing told to a forger, and the answer only after the event."""

import gc
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from knouds_async import ConfigurationError
from knouds_async.webhooks import SeenHere, WebhookEvent, WebhookReceiver

SECRET = "whsec_emulator_0123456789abcdef"
End = Callable[..., dict[str, Any]]


class Diary:
    """A handler that notes what it is handed, and fails as often as it is told to."""

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


async def test_final_states_stay_final(sender: Any, end: End) -> None:
    """After its end as completed, a run neither fails nor goes on: late events are answered and not handed on."""
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


async def test_refusals_say_nothing_but_their_status(sender: Any, end: End) -> None:
    """Forged and expired are 401, no header and no event 400; the handler learns of none."""
    diary = Diary()
    send = sender(handler=diary)
    assert await send(end("a"), secret="whsec_of_somebody_else") == 401
    assert await send(end("a"), age=301) == 401
    assert await send(end("a"), age=-301) == 401
    assert await send({"event": None}) == 400
    for header in (None, "", "nonsense", "t=1", "\ud800"):
        assert await send.receiver.take(_parts(b"{}"), header) == 400
    assert diary.events == []


async def test_reads_no_more_than_one_mebibyte() -> None:
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


async def test_a_body_that_drips_is_given_up() -> None:
    """A sender that takes longer than thirty seconds is answered 400."""

    async def dripping() -> AsyncIterator[bytes]:
        while True:
            await anyio.sleep(1)
            yield b" "

    body, began = dripping(), anyio.current_time()
    assert await WebhookReceiver(SECRET).take(body, "t=1,v1=0") == 400
    assert anyio.current_time() - began < 31
    await body.aclose()  # type: ignore[attr-defined]


async def test_the_memory_is_bounded(sender: Any, end: End) -> None:
    """With room for two, the oldest of three is forgotten and so handed on again."""
    diary = Diary()
    send = sender(handler=diary, seen=SeenHere(2))
    for name in ("a", "b", "c", "c", "a"):
        await send(end(name))
    assert [event.execution_id for event in diary.events] == ["a", "b", "c", "a"]
    with pytest.raises(ConfigurationError):
        SeenHere(0)


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
