"""The life of a job in a ledger: every prefix of events leaves a legal stage, and a final entry never changes."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async._sansio.ledger import (
    Abandoned,
    Accepted,
    Ended,
    Ending,
    Entry,
    Event,
    IllegalStepError,
    Lost,
    NoneFound,
    NoRun,
    OwnerGone,
    PickedUp,
    ResendApproved,
    Resolved,
    Sending,
    Stage,
    advance,
    successor,
)

NEW = Entry(key="a", target="workflows/x", digest="d")
SENDING = Sending(owner="me", sent_at=1.0, reserve=12)
ACCEPTED = Accepted(owner="me", execution_id="run-1", request_id="r-1")
LOST = Lost("me", "closed")
COMPLETED = Ended(Ending(status="completed", cost=12, reply="{}"))
FAILED = Ended(Ending(status="failed", code="X"))
EVENTS: list[Event] = [
    SENDING,
    attrs.evolve(SENDING, owner="other"),
    ACCEPTED,
    Accepted(owner="other", execution_id="run-2"),
    NoRun("me"),
    NoRun("other"),
    Lost("me", "closed"),
    Lost("other", "closed"),
    COMPLETED,
    FAILED,
    OwnerGone(),
    PickedUp("me"),
    PickedUp("other"),
    NoneFound(1.0),
    Resolved("run-3"),
    ResendApproved(),
    Abandoned(),
]


def after(*events: Event) -> Entry:
    """Return a new entry after events that are all legal."""
    entry = NEW
    for event in events:
        entry = advance(entry, event)
    return entry


STAGES: dict[str, Entry] = {
    "new": NEW,
    "sending": after(SENDING),
    "submitted": after(SENDING, ACCEPTED),
    "unknown": after(SENDING, Lost("me", "closed")),
    "named": after(SENDING, Lost("me", "closed"), Resolved("a-slip")),
    "awaited": after(SENDING, Lost("me", "closed"), Resolved("a-slip"), PickedUp("me")),
    "final": after(SENDING, ACCEPTED, COMPLETED),
    "resend_approved": after(SENDING, Lost("me", "closed"), ResendApproved()),
    "abandoned": after(SENDING, Lost("me", "closed"), Abandoned()),
}


@pytest.mark.parametrize(
    ("stage", "event", "following"),
    [
        ("new", SENDING, "sending"),
        ("new", OwnerGone(), "new"),
        ("sending", SENDING, "sending"),
        ("sending", ACCEPTED, "submitted"),
        ("sending", NoRun("me"), "new"),
        ("sending", Lost("me", "closed"), "unknown"),
        ("sending", OwnerGone(), "unknown"),
        ("sending", COMPLETED, "final"),
        ("submitted", COMPLETED, "final"),
        ("submitted", FAILED, "final"),
        ("submitted", OwnerGone(), "submitted"),
        ("submitted", ACCEPTED, "submitted"),
        ("submitted", Abandoned(), "abandoned"),
        ("named", Resolved("run-3"), "submitted"),
        ("unknown", ACCEPTED, "submitted"),
        ("unknown", COMPLETED, "final"),
        ("unknown", NoRun("me"), "new"),
        ("unknown", NoneFound(1.0), "new"),
        ("unknown", Resolved("run-3"), "submitted"),
        ("unknown", ResendApproved(), "resend_approved"),
        ("unknown", Abandoned(), "abandoned"),
        ("unknown", OwnerGone(), "unknown"),
        ("unknown", Lost("me", "again"), "unknown"),
        ("new", ACCEPTED, "submitted"),
        ("new", COMPLETED, "final"),
        ("new", NoRun("other"), "new"),
        ("new", Lost("other", "closed"), "new"),
        ("sending", Accepted(owner="other", execution_id="run-2"), "sending"),
        ("sending", NoRun("other"), "sending"),
        ("sending", Lost("other", "closed"), "sending"),
        ("submitted", NoRun("me"), "submitted"),
        ("submitted", Lost("other", "closed"), "submitted"),
        ("submitted", Accepted(owner="other", execution_id="run-2"), "submitted"),
        ("unknown", Accepted(owner="other", execution_id="run-2"), "unknown"),
        ("unknown", NoRun("other"), "unknown"),
        ("final", NoRun("other"), "final"),
        ("final", Lost("other", "closed"), "final"),
        ("final", Accepted(owner="other", execution_id="run-2"), "final"),
        ("abandoned", NoRun("other"), "abandoned"),
        ("resend_approved", ACCEPTED, "resend_approved"),
        ("resend_approved", OwnerGone(), "resend_approved"),
        ("abandoned", ACCEPTED, "abandoned"),
        ("final", COMPLETED, "final"),
        ("final", FAILED, "final"),
        ("final", OwnerGone(), "final"),
    ],
)
def test_what_follows(stage: str, event: Event, following: str) -> None:
    """Each row of the table holds."""
    assert advance(STAGES[stage], event).stage == following


@pytest.mark.parametrize(
    ("stage", "event"),
    [
        ("new", ResendApproved()),
        ("sending", attrs.evolve(SENDING, owner="other")),
        ("sending", NoneFound(1.0)),
        ("sending", ResendApproved()),
        ("sending", Abandoned()),
        ("submitted", SENDING),
        ("submitted", Resolved("run-3")),
        ("awaited", Resolved("run-3")),
        ("submitted", PickedUp("other")),
        ("submitted", ResendApproved()),
        ("unknown", SENDING),
        ("unknown", NoneFound(0.5)),
        ("final", SENDING),
        ("final", ResendApproved()),
        ("final", Abandoned()),
        ("resend_approved", SENDING),
        ("abandoned", SENDING),
    ],
)
def test_what_cannot_follow(stage: str, event: Event) -> None:
    """Whatever else comes is refused, by the name of the job, its stage and the event."""
    with pytest.raises(IllegalStepError, match=f"'a'.*{STAGES[stage].stage}.*{type(event).__name__}"):
        advance(STAGES[stage], event)


@pytest.mark.parametrize("stage", ["sending", "submitted", "unknown"])
def test_late_news_of_another_owner_changes_nothing_but_the_note(stage: str) -> None:
    """A run that was begun beside the one on record keeps its id in the note, until the end and after it."""
    late = advance(STAGES[stage], Accepted(owner="other", execution_id="run-2"))
    assert attrs.evolve(late, note=STAGES[stage].note) == STAGES[stage]
    assert "run-2" in (late.note or "")
    for event in (NoRun("other"), Lost("other", "closed")):
        assert advance(STAGES[stage], event) == STAGES[stage]
    if stage == "sending":
        assert "run-2" in (advance(late, ACCEPTED).note or "")
        assert "run-2" in (advance(late, LOST).note or "")
        assert "run-2" in (advance(advance(late, ACCEPTED), COMPLETED).note or "")


def test_a_run_that_had_begun_after_all_is_not_begun_again() -> None:
    """A receipt for a job that is as new by now, for it was taken to have begun none, makes it submitted."""
    late = advance(after(SENDING, OwnerGone(), NoneFound(1.0)), ACCEPTED)
    assert (late.stage, late.owner, late.execution_id) == (Stage.SUBMITTED, "me", "run-1")


def test_a_run_without_an_owner_is_picked_up_once() -> None:
    """The first to pick it up has it."""
    picked = after(SENDING, ACCEPTED, OwnerGone(), PickedUp("other"))
    assert (picked.owner, picked.execution_id) == ("other", "run-1")
    with pytest.raises(IllegalStepError):
        advance(picked, PickedUp("third"))


def test_what_certainly_did_not_run_is_as_new() -> None:
    """Nothing stays set aside for it, and it can be sent by anybody."""
    assert after(SENDING, NoRun("me")) == NEW
    assert after(SENDING, OwnerGone(), NoneFound(1.0)) == NEW


def test_an_id_that_comes_late_is_kept() -> None:
    """After the decision to send it again the first run's id is on record beside it."""
    late = advance(STAGES["resend_approved"], ACCEPTED)
    assert (late.execution_id, late.stage) == ("run-1", Stage.RESEND_APPROVED)


@pytest.mark.parametrize("stage", STAGES)
def test_only_what_was_approved_or_failed_is_run_once_more(stage: str) -> None:
    """The next attempt is a new one of the same job."""
    entry = STAGES[stage]
    if stage == "resend_approved":
        assert successor(entry) == attrs.evolve(NEW, attempt=2)
    else:
        with pytest.raises(IllegalStepError):
            successor(entry)


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_failed_run_may_be_run_once_more(status: Any) -> None:
    """What ended without a result has a next attempt."""
    ended = after(SENDING, ACCEPTED, Ended(Ending(status=status)))
    assert successor(successor_of := ended).attempt == successor_of.attempt + 1


@given(st.lists(st.sampled_from(EVENTS), max_size=30))
def test_any_prefix_of_events_leaves_a_legal_stage(events: list[Event]) -> None:
    """In whatever order they come: a final entry never changes, and a job is sent only when it surely did not run."""
    entry, may_have_run = NEW, False
    for event in events:
        try:
            following = advance(entry, event)
        except IllegalStepError:
            continue
        if entry.stage is Stage.FINAL:
            assert following == entry
        if following.stage is Stage.SENDING and entry.stage is not Stage.SENDING:
            assert entry.stage is Stage.NEW
            assert not may_have_run
        may_have_run = following.stage not in (Stage.NEW, Stage.SENDING)
        _is_legal(following)
        entry = following


def _is_legal(entry: Entry) -> None:
    match entry.stage:
        case Stage.NEW:
            assert entry == NEW
        case Stage.SENDING:
            assert entry.owner is not None
            assert entry.sent_at is not None
            assert entry.ending is None
        case Stage.SUBMITTED:
            assert entry.execution_id is not None
            assert entry.ending is None
        case Stage.FINAL:
            assert entry.ending is not None
            assert entry.owner is None
        case _:
            assert entry.sent_at is not None or entry.execution_id is not None
            assert entry.ending is None
