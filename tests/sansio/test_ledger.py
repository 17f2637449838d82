"""The states of a job in a ledger, whatever events come in whatever order, and what a batch may still spend."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from knouds_async import Estimate, Progress
from knouds_async._sansio.clock import Moment
from knouds_async._sansio.ledger import (
    Abandoned,
    Accepted,
    Bounded,
    Ended,
    Ending,
    Entry,
    Event,
    Fit,
    IllegalStepError,
    Lost,
    NoneFound,
    NoRun,
    OwnerGone,
    Payer,
    PickedUp,
    Prices,
    ResendApproved,
    Resolved,
    Sending,
    Stage,
    Totals,
    advance,
    amount,
    fit_under_cap,
    remembered,
    repriced,
    restored,
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
    OwnerGone(owner="me"),
    OwnerGone(owner="other"),
    Bounded(1.0, Moment(wall=9.0, earliest=8.0, latest=10.0)),
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
    "left": after(SENDING, ACCEPTED, OwnerGone()),
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
        ("sending", OwnerGone(owner="me"), "unknown"),
        ("sending", OwnerGone(owner="other"), "sending"),
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
        ("resend_approved", COMPLETED, "final"),
        ("abandoned", ACCEPTED, "abandoned"),
        ("abandoned", COMPLETED, "final"),
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
        ("left", Resolved("run-3")),
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
    said = "execution run-2 was begun for it as well, by a batch that had been taken for gone"
    assert late.note == (said if STAGES[stage].note is None else f"{STAGES[stage].note}; {said}")
    for event in (NoRun("other"), Lost("other", "closed")):
        assert advance(STAGES[stage], event) == STAGES[stage]
    if stage == "sending":
        assert "run-2" in (advance(late, ACCEPTED).note or "")
        assert advance(late, LOST).note == f"closed; {said}"
        assert "run-2" in (advance(advance(late, ACCEPTED), COMPLETED).note or "")


def test_the_same_receipt_says_nothing_new() -> None:
    """An id that is on record is noted once, no matter who brings it."""
    for late in (ACCEPTED, attrs.evolve(ACCEPTED, owner="other")):
        assert advance(STAGES["submitted"], late) == STAGES["submitted"]


def test_a_receipt_that_comes_after_all_ends_the_doubt() -> None:
    """Nothing is noted of the loss, and its moment bounds the run unless the receipt's is known."""
    early, late = moment(8, 10), moment(88, 90)
    for until, kept in ((None, early), (late, late)):
        found = after(SENDING, Lost("me", "closed", early), attrs.evolve(ACCEPTED, until=until))
        assert (found.stage, found.note, found.until) == (Stage.SUBMITTED, None, kept)


def test_an_account_is_known_with_its_service_or_not_at_all() -> None:
    """The same user of another service is somebody else."""
    assert Payer(user=None, base_url="https://x").account is None
    known = {Payer(user=user, base_url=url).account for user in ("u1", "u2") for url in ("https://x", "https://y")}
    assert len(known - {None}) == 4


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
    again = attrs.evolve(NEW, attempt=2)
    assert advance(advance(again, SENDING), NoRun("me")) == again


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


def moment(earliest: float | None, latest: float | None) -> Moment:
    """Return a moment between these two, by the service's clock."""
    return Moment(wall=0.0, earliest=earliest, latest=latest, known="heard")


@pytest.mark.parametrize(
    ("since", "until", "lasts", "between"),
    [
        (moment(1, 3), moment(8, 10), 0, (1, 10)),
        (moment(1, 3), moment(8, 10), 600, (1, 603)),
        (moment(1, 3), moment(None, 10), 0, (1, 10)),
        (None, moment(8, 10), 0, None),
        (moment(1, 3), None, 0, None),
        (moment(None, 3), moment(8, 10), 0, None),
        (moment(1, None), moment(8, 10), 0, None),
        (moment(1, 3), moment(8, None), 0, None),
    ],
)
def test_when_a_run_may_have_begun(
    since: Moment | None, until: Moment | None, lasts: float, between: tuple[float, float] | None
) -> None:
    """Between the intent and the loss of the answer, or as long as a synchronous run lasts; else it is not known."""
    entry = after(attrs.evolve(SENDING, since=since, lasts=lasts), Lost("me", "closed", until))
    assert entry.may_have_begun == between


def test_a_run_whose_owner_is_another_by_now_keeps_that_one() -> None:
    """The end of an owner that had lost a run to another one leaves it to that one."""
    picked = after(SENDING, ACCEPTED, OwnerGone(), PickedUp("other"))
    assert advance(picked, OwnerGone(owner="me")) == picked
    assert advance(picked, OwnerGone(owner="other")).owner is None


def test_a_loss_says_how_and_is_bounded_once() -> None:
    """The first note stays, and the first moment that is known; only the submit that is meant is bounded."""
    early, late, undated = moment(8, 10), moment(88, 90), moment(None, None)
    assert after(SENDING, LOST).note == "closed"
    assert after(SENDING, OwnerGone()).note == "its process ended before the answer"
    for until, found, kept in (
        (early, late, early),
        (None, late, late),
        (undated, late, late),
    ):
        entry = after(SENDING, Lost("me", "closed", until), Bounded(1.0, found))
        assert (entry.note, entry.until) == ("closed", kept)
    for entry in (after(SENDING), after(SENDING, NoRun("me"), attrs.evolve(SENDING, sent_at=2.0), LOST)):
        with pytest.raises(IllegalStepError):
            advance(entry, Bounded(1.0, late))


# What a batch may still spend.


def moved(*events: Event) -> Totals:
    """Return the totals after events of one job."""
    totals, entry = Totals().moved(None, NEW), NEW
    for event in events:
        following = advance(entry, event)
        totals, entry = totals.moved(entry, following), following
    return totals


def sending(reserve: float | None = 12) -> Sending:
    """Return a submit with credits set aside."""
    return Sending(owner="me", sent_at=1.0, reserve=reserve)


@pytest.mark.parametrize(
    ("events", "totals"),
    [
        ([], Totals()),
        ([sending()], Totals(reserved=12)),
        ([sending(), ACCEPTED], Totals(reserved=12)),
        ([sending(), NoRun("me")], Totals()),
        ([sending(), LOST], Totals(reserved=12)),
        ([sending(), LOST, NoneFound(1.0)], Totals()),
        ([sending(), LOST, Abandoned()], Totals(reserved=12)),
        ([sending(), LOST, ResendApproved()], Totals(reserved=12)),
        ([sending(), Ended(Ending(status="completed", cost=20))], Totals(spent=20)),
        ([sending(), Ended(Ending(status="failed"))], Totals(spent=12)),
        ([sending(), Ended(Ending(status="completed", cost=0))], Totals()),
        ([sending(None)], Totals(unpriced=1)),
        ([sending(None), LOST], Totals(unpriced=1)),
        ([sending(None), LOST, Abandoned()], Totals()),
        ([sending(None), Ended(Ending(status="failed"))], Totals(unpriced=1)),
        ([sending(None), Ended(Ending(status="completed"))], Totals(unpriced=1)),
        ([sending(None), Ended(Ending(status="cancelled"))], Totals(unpriced=1)),
        ([sending(None), Ended(Ending(status="completed", cost=20))], Totals(spent=20)),
        ([sending(), Ended(Ending(status="completed"))], Totals(spent=12)),
    ],
)
def test_every_stage_has_its_weight(events: list[Event], totals: Totals) -> None:
    """What may have run counts as if it had, until its real cost is known or it certainly did not run."""
    assert moved(*events) == totals
    assert totals.moved(after(*events), attrs.evolve(after(*events), stage=Stage.NEW)) == Totals()


@pytest.mark.parametrize(
    ("events", "reserved"),
    [
        ([], None),
        ([sending()], 20),
        ([sending(30)], 30),
        ([sending(None), ACCEPTED], 20),
        ([sending(None), LOST], 20),
        ([sending(), LOST, ResendApproved()], 20),
        ([sending(None), LOST, Abandoned()], 20),
        ([sending(), Ended(Ending(status="failed"))], 12),
    ],
)
def test_a_dearer_run_raises_what_is_reserved(events: list[Event], reserved: float | None) -> None:
    """What may be in flight is reserved with the largest cost; what is new or final stays as it is."""
    entry = NEW
    for event in events:
        entry = advance(entry, event)
    assert repriced(entry, 20) == attrs.evolve(entry, reserved=reserved)


@pytest.mark.parametrize(
    ("totals", "price", "cap", "said"),
    [
        (Totals(), 12, 12, Fit.NOW),
        (Totals(), 12, 11.99, Fit.NEVER),
        (Totals(spent=88, reserved=0), 12, 100, Fit.NOW),
        (Totals(spent=89, reserved=0), 12, 100, Fit.NEVER),
        (Totals(spent=50, reserved=39), 12, 100, Fit.LATER),
        (Totals(spent=0.1 + 0.2), 0.7, 1.0, Fit.NOW),
        (Totals(unpriced=2), 12, 36, Fit.NOW),
        (Totals(unpriced=2), 12, 35, Fit.LATER),
        (Totals(), None, 1, Fit.NOW),
        (Totals(), None, 0, Fit.NEVER),
        (Totals(unpriced=1), None, 100, Fit.LATER),
        (Totals(spent=5), None, 5, Fit.NEVER),
        (Totals(reserved=5), None, 5, Fit.LATER),
        (Totals(), 0, 0, Fit.NOW),
    ],
)
def test_a_run_is_sent_when_it_surely_fits(totals: Totals, price: float | None, cap: float, said: Fit) -> None:
    """It may go, has to wait for what is set aside, or can never fit."""
    assert fit_under_cap(totals, price, cap) is said


def test_what_was_let_through_counts() -> None:
    """Runs that are about to be sent count before they are on record."""
    assert fit_under_cap(Totals(), 12, 24, queued=1) is Fit.NOW
    assert fit_under_cap(Totals(), 12, 23, queued=1) is Fit.LATER
    assert fit_under_cap(Totals(), None, 100, queued=1) is Fit.LATER


@pytest.mark.parametrize(
    ("cap", "ended", "in_flight", "bold"),
    [(24, 0, 0, False), (24, 0, 1, True), (24, 1, 1, False), (240, 0, 1, False), (239, 0, 1, True), (239, 2, 2, False)],
)
def test_few_ends_let_few_runs_go(cap: int, ended: int, in_flight: int, bold: bool) -> None:
    """No more runs are in flight than have ended, and one, unless they fit at ten times their price."""
    totals = Totals(reserved=12.0 * in_flight)
    assert fit_under_cap(totals, 12, cap, in_flight=in_flight, ended=ended) is (Fit.LATER if bold else Fit.NOW)
    free = fit_under_cap(totals, 0, cap, in_flight=in_flight, ended=ended)
    assert free is (Fit.LATER if in_flight > ended else Fit.NOW)


@given(
    st.integers(0, 500),
    st.integers(1, 40),
    st.lists(st.tuples(st.sampled_from(["send", "end", "lose", "refuse"]), st.integers(0, 20)), max_size=60),
)
def test_the_cap_is_never_passed_by_a_credit_of_estimate(cap: int, price: int, steps: list[tuple[str, int]]) -> None:
    """All that is spent and set aside stays under the cap, as long as runs cost what was estimated at most."""
    totals = Totals()
    out: list[Entry] = []
    for step, number in steps:
        if step == "send":
            if fit_under_cap(totals, price, cap) is Fit.NOW:
                sent = advance(NEW, sending(price))
                totals = totals.moved(NEW, sent)
                out.append(sent)
        elif out:
            entry = out.pop(number % len(out))
            event: Any = {
                "end": Ended(Ending(status="completed", cost=min(number, price))),
                "lose": LOST,
                "refuse": NoRun("me"),
            }[step]
            totals = totals.moved(entry, advance(entry, event))
        assert totals.spent + totals.reserved <= cap


class Spending:
    """One batch under a cap, as it decides: runs that are let go, in flight, and over."""

    def __init__(self, estimate: int | None, cap: int) -> None:
        self.prices, self.totals, self.cap = Prices(estimate=estimate), Totals(), cap
        self.in_flight: list[tuple[Entry, int]] = []
        self.charged = 0
        self.untold: list[tuple[int, float]] = []
        self.passing: list[tuple[int, float]] = []  # real cost and reservation of those in flight at the last send

    def send(self, cost: int) -> None:
        """Start a run that will cost so much, if it may."""
        price = self.prices.price
        in_flight, ended = len(self.in_flight), self.prices.ended
        if fit_under_cap(self.totals, price, self.cap, in_flight=in_flight, ended=ended) is not Fit.NOW:
            return
        sent = advance(NEW, sending(price))
        self.totals = self.totals.moved(NEW, sent)
        self.in_flight.append((sent, cost))
        self.charged += cost
        self.passing = [(real, entry.reserved or 0.0) for entry, real in self.in_flight]

    def end(self, number: int, *, is_told: bool) -> None:
        """Finish a run."""
        entry, cost = self.in_flight.pop(number % len(self.in_flight))
        status: Any = "completed" if is_told else "failed"
        after = advance(entry, Ended(Ending(status=status, cost=cost if is_told else None)))
        self.totals = self.totals.moved(entry, after)
        if not is_told:
            self.untold.append((cost, entry.reserved or 0.0))
        before, self.prices = self.prices.highest_cost, self.prices.paid(cost if is_told else None)
        if is_told and (before is None or cost > before):
            raised = [(repriced(each, cost), real) for each, real in self.in_flight]
            for (old, _), (new, _) in zip(self.in_flight, raised, strict=True):
                self.totals = self.totals.moved(old, new)
            self.in_flight = raised


STEPS = st.lists(
    st.tuples(st.sampled_from(["send", "send", "send", "told", "told", "untold"]), st.integers(0, 20)), max_size=150
)


@given(st.none() | st.integers(1, 12), st.integers(0, 400), st.integers(1, 10), STEPS)
def test_what_a_varying_price_can_pass(
    estimate: int | None, cap: int, factor: int, steps: list[tuple[str, int]]
) -> None:
    """One run in five costs `factor` times as much, and some costs are not reported: the docs' bound holds.

    Each of the runs in flight when the last one was sent, and each whose cost was never told, may have cost more than
    was reserved for it; nothing else passes the cap.
    """
    batch = Spending(estimate, cap)
    for step, number in steps:
        if step == "send":
            batch.send(12 * factor if number % 5 == 0 else 12)
        elif batch.in_flight:
            batch.end(number, is_told=step == "told")
    over = sum(max(0.0, cost - reserved) for cost, reserved in batch.passing + batch.untold)
    assert batch.charged <= cap + over
    if estimate == 12 * factor or (estimate == 12 and factor == 1):
        assert batch.charged <= cap


@given(st.integers(1, 400), STEPS)
def test_a_price_that_was_seen_at_its_upper_end_is_never_passed(cap: int, steps: list[tuple[str, int]]) -> None:
    """Once one of the expensive runs has finished, costs below its own exceed no cap, reported or not."""
    batch = Spending(None, cap)
    batch.send(120)
    if not batch.in_flight:
        return
    batch.end(0, is_told=True)
    begun = batch.charged
    for step, number in steps:
        if step == "send":
            batch.send(120 if number % 5 == 0 else 12)
        elif batch.in_flight:
            batch.end(number, is_told=step == "told")
    assert batch.charged <= max(cap, begun)


@given(st.integers(1, 400), STEPS)
def test_without_an_estimate_the_first_run_alone_can_pass(cap: int, steps: list[tuple[str, int]]) -> None:
    """As long as all runs cost the same and report it, a cap is exceeded by the first run or by none."""
    batch = Spending(None, cap)
    for step, number in steps:
        if step == "send":
            batch.send(12)
        elif batch.in_flight:
            batch.end(number, is_told=True)
    assert batch.charged <= max(cap, 12)


def test_a_price_is_the_estimate_or_what_runs_really_cost() -> None:
    """The schema's estimate counts, unless a real run cost more; whatever the others cost."""
    assert Prices().price is None
    assert Prices(estimate=12).price == 12
    assert Prices().paid(10).paid(20).paid(None).paid(10).price == 20
    assert Prices().paid(10).paid(None).seen(5).ended == 2
    assert Prices().paid(0).price is None
    assert Prices(estimate=12).paid(10).price == 12
    assert Prices(estimate=12).paid(30).price == 30


# What a database has lost.

SENT = advance(NEW, attrs.evolve(SENDING, owner="p/1"))
RUNNING = advance(SENT, attrs.evolve(ACCEPTED, owner="p/1"))


def history(events: list[Event]) -> Entry:
    """Return the entry after those events that can follow."""
    entry = NEW
    for event in events:
        with suppress(IllegalStepError):
            entry = advance(entry, event)
    return entry


@example([ACCEPTED, Accepted(owner="other", execution_id="run-2"), OwnerGone(), Resolved("run-3")], 1)
@given(st.lists(st.sampled_from(EVENTS), max_size=12), st.integers(0, 12))
def test_what_is_restored_is_never_less_than_what_is_there(events: list[Event], kept: int) -> None:
    """Of any history whose end was lost, no job may be sent that might have been; restoring twice changes nothing."""
    known, entry = history(events), history(events[:kept])
    for there in (None, entry):
        result = restored(there, known, "p")
        assert known.stage is Stage.NEW or (result is not None and result.stage is not Stage.NEW)
        assert restored(result, known, "p") == result
    if known.stage is Stage.NEW:
        assert restored(entry, known, "p") is entry


def test_a_later_attempt_is_restored_and_an_earlier_one_is_none() -> None:
    """What is on record of a later attempt stays, whatever was known of the one before."""
    second = attrs.evolve(RUNNING, attempt=2)
    assert restored(RUNNING, second, "p") == second
    assert restored(second, RUNNING, "p") == second
    never_sent = attrs.evolve(NEW, attempt=2)
    assert restored(RUNNING, never_sent, "p") == RUNNING
    assert restored(None, never_sent, "p") is None


def test_a_run_beside_the_one_on_record_is_noted() -> None:
    """Somebody trusted the ledger and sent the job again meanwhile: both ids are kept."""
    theirs = attrs.evolve(RUNNING, owner="q/1", execution_id="run-9")
    result = restored(theirs, RUNNING, "p")
    assert result is not None
    assert (result.execution_id, "run-1" in (result.note or "")) == ("run-9", True)
    assert restored(SENT, RUNNING, "p") == RUNNING


def test_an_owner_that_had_left_is_gone_again() -> None:
    """A run that its batch had released is free, unless another process has picked it up."""
    released = advance(RUNNING, OwnerGone())
    assert restored(RUNNING, released, "p") == released
    assert restored(RUNNING, RUNNING, "p") == RUNNING
    theirs = attrs.evolve(RUNNING, owner="q/1")
    assert restored(theirs, released, "p") == theirs


def test_long_results_are_not_kept_in_memory() -> None:
    """A run whose result is long is kept as one to be polled again; a short one as it is."""
    ended = advance(RUNNING, COMPLETED)
    assert remembered(ended) == ended
    assert remembered(RUNNING) == RUNNING
    long = attrs.evolve(ended, ending=Ending(status="completed", reply="x" * 5000))
    assert (remembered(long).stage, remembered(long).ending, remembered(long).owner) == (Stage.SUBMITTED, None, None)
    assert remembered(attrs.evolve(long, execution_id=None)).ending is not None


def test_credits_are_written_one_way() -> None:
    """A whole number of credits is an integer wherever it was summed, as the service writes it; others stay."""
    assert [repr(amount(each)) for each in (12, 12.0, 0.0, 0.255, 1e300, float("inf"))] == [
        "12",
        "12",
        "0",
        "0.255",
        "1e+300",
        "inf",
    ]
    assert repr(Progress(credits_spent=1200.0, max_credits=5e3).credits_spent) == "1200"
    assert repr(Estimate(jobs=1, credits=12.0).credits) == "12"
