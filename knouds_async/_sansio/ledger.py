"""The states of a job in a ledger as a table, and what a batch may still spend. Pure.

`advance` finds an event in TRANSITIONS: whether it may follow, the next stage, and what else changes. What has no
line there is late news of an owner, which changes no stage, or an IllegalStepError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, StrEnum
from typing import Any, Final, Literal, TypeAlias

import attrs

from knouds_async._sansio.clock import Moment, begun_between
from knouds_async.config import canonical_url
from knouds_async.types import Record


class Stage(StrEnum):
    """Where a job stands in a ledger."""

    NEW = "new"
    """Certainly not run."""
    SENDING = "sending"
    """Its submit is about to leave, or has left, and there is no answer yet."""
    SUBMITTED = "submitted"
    """It runs, and its id is known."""
    FINAL = "final"
    """Its run has finished."""
    UNKNOWN = "unknown"
    """It may have run: its submit left and no answer came. It is not sent again unasked."""
    RESEND_APPROVED = "resend_approved"
    """It may have run, and somebody decided to run it once more all the same: the next attempt is on record."""
    ABANDONED = "abandoned"
    """It may have run, and somebody decided to leave it at that."""


OPEN: Final = frozenset({Stage.SENDING, Stage.SUBMITTED, Stage.UNKNOWN})
"""The stages in which a run may be out."""


class IllegalStepError(ValueError):
    """An event that cannot follow from where the job stands."""


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Ending(Record):
    """How a run ended: `reply` is the service's own JSON where there is one, `code` and `message` say why it failed."""

    status: Literal["completed", "failed", "cancelled"]
    cost: float | None = None
    reply: str | None = None
    code: str | None = None
    message: str | None = None


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Payer(Record):
    """Whose runs they are: the account's id, None when the service did not tell it, and the service's base URL."""

    user: str | None
    base_url: str = attrs.field(converter=canonical_url)

    def __str__(self) -> str:
        """Name both."""
        return f"{'an unnamed account' if self.user is None else f'account {self.user}'} at {self.base_url}"

    @property
    def account(self) -> str | None:
        """Both in one string, None when the account is not known."""
        return None if self.user is None else f"{self.user} {self.base_url}"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Entry(Record):
    """A job's line in a ledger: one per key and attempt; only the last attempt of a key can change.

    `digest`: of its inputs, which are not kept. `owner`: the batch that works on it. `reserved`: credits reserved for
    its run, None when nobody knew the price. `sent_at`: epoch seconds. `note`: why it is unknown, or was until
    somebody named its run. `since`: a moment before its intent was written; `until`: one after which it cannot have
    begun a run any more: its receipt, the loss of its answer, or when its owner was found gone. `lasts`: seconds within
    which a synchronous run may still end. `account`: whose key sent it, and to which service; None: not known.
    """

    key: str
    target: str
    digest: str
    attempt: int = 1
    stage: Stage = Stage.NEW
    owner: str | None = None
    reserved: float | None = None
    sent_at: float | None = None
    execution_id: str | None = None
    request_id: str | None = None
    note: str | None = None
    ending: Ending | None = None
    since: Moment | None = None
    until: Moment | None = None
    lasts: float = 0.0
    account: str | None = None

    @property
    def may_have_begun(self) -> tuple[float, float] | None:
        """Between when it can have begun a run, epoch seconds by the service's clock; None where that is not known."""
        return begun_between(self.since, self.until, self.lasts)


@attrs.frozen(kw_only=True, eq=False)
class Sending:
    """A submit is about to leave: `owner` sends it at `sent_at`, with `reserve` credits reserved, None: not known.

    `since`, `lasts`, `account`: as of Entry.
    """

    owner: str
    sent_at: float
    reserve: float | None = None
    since: Moment | None = None
    lasts: float = 0.0
    account: str | None = None


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Accepted(Record):
    """The service gave its receipt to `owner`, at a moment before `until`."""

    owner: str
    execution_id: str
    request_id: str | None = None
    until: Moment | None = None


@attrs.frozen(eq=False, repr=False)
class NoRun:
    """What `owner` sent certainly began no run."""

    owner: str


@attrs.frozen(eq=False, repr=False)
class Lost:
    """What `owner` sent was not answered by `until`, or so that it stays open whether it runs; `note` says how."""

    owner: str
    note: str
    until: Moment | None = None


@attrs.frozen(eq=False, repr=False)
class Ended:
    """The run has finished."""

    ending: Ending


@attrs.frozen(eq=False, repr=False)
class OwnerGone(Record):
    """The owner is no more: its process ended, or it has left the ledger.

    `until`: when that was found out, None: not known. `owner`: whose end it is, None: that of the job's owner.
    """

    until: Moment | None = None
    owner: str | None = None


@attrs.frozen(eq=False, repr=False)
class PickedUp:
    """`owner` waits for the run from here on."""

    owner: str


@attrs.frozen(eq=False, repr=False)
class Bounded:
    """The submit of `sent_at` began no run later than `until`; until now nothing had bounded it."""

    sent_at: float | None
    until: Moment


@attrs.frozen(eq=False, repr=False)
class NoneFound:
    """The usage rows prove that the submit of `sent_at` began no run; of a later one they prove nothing."""

    sent_at: float | None


@attrs.frozen(eq=False, repr=False)
class Resolved:
    """Somebody found out which run it is."""

    execution_id: str


@attrs.frozen(eq=False, repr=False)
class ResendApproved:
    """Somebody decided that it may be sent once more, at the risk of paying twice."""


@attrs.frozen(eq=False, repr=False)
class Abandoned:
    """Somebody decided to leave it at that."""


Event: TypeAlias = (
    Sending
    | Accepted
    | NoRun
    | Lost
    | Ended
    | OwnerGone
    | PickedUp
    | Bounded
    | NoneFound
    | Resolved
    | ResendApproved
    | Abandoned
)


Fields: TypeAlias = dict[str, Any]

# When an event may follow.


def _from_its_owner(entry: Entry, event: Any) -> bool:
    return event.owner in (None, entry.owner)


def _unowned(entry: Entry, event: Any) -> bool:  # noqa: ARG001
    return entry.owner is None


def _was_resolved(entry: Entry, event: Any) -> bool:  # noqa: ARG001
    return entry.owner is None and entry.note is not None  # the first id may be a slip


def _of_that_submit(entry: Entry, event: Any) -> bool:
    return bool(event.sent_at == entry.sent_at)


# What it changes beside the stage.


def _late(entry: Entry, event: Any) -> Fields:
    """Keep the id of a run that was begun beside that of the owner who has the job now; a final entry never changes."""
    if not isinstance(event, Accepted) or entry.stage is Stage.FINAL or event.execution_id == entry.execution_id:
        return {}
    message = f"execution {event.execution_id} was begun for it as well, by a batch that had been taken for gone"
    if entry.note is None:
        return {"note": message}
    return {} if message in entry.note else {"note": f"{entry.note}; {message}"}


def _set(*of_event: str, **values: object) -> Callable[[Entry, Any], Fields]:
    """Return what sets fields to those of the event that have the same names, and others to values."""
    return lambda _, event: {name: getattr(event, name) for name in of_event} | values


def _intent(entry: Entry, event: Sending) -> Fields:
    return {"note": None, "until": None, "reserved": event.reserve, **_of_intent(entry, event)}


def _receipt(entry: Entry, event: Accepted) -> Fields:
    note = None if entry.stage is Stage.UNKNOWN else entry.note
    return {**_id(entry, event), "note": note, "until": event.until or entry.until}


def _late_receipt(entry: Entry, event: Accepted) -> Fields:
    return {**_receipt(entry, event), "owner": event.owner}


def _loss(entry: Entry, event: Lost | OwnerGone) -> Fields:
    message = event.note if isinstance(event, Lost) else "its process ended before the answer"
    return {"note": message if entry.note is None else f"{message}; {entry.note}", "until": event.until}


def _bound(entry: Entry, event: Bounded) -> Fields:
    """Bound a submit that nothing bounds: this moment is later than the true one, so as good."""
    return {} if entry.until is not None and entry.until.is_known else {"until": event.until}


_of_intent = _set("owner", "sent_at", "since", "lasts", "account")
_id = _set("execution_id", "request_id")
_named_id = _set("execution_id", owner=None)  # its note stays: nobody knew the run before
_ending = _set("ending", owner=None)
_owner = _set("owner")
_no_owner = _set(owner=None)
_as_new = _set(
    **{
        name: field.default
        for name, field in attrs.fields_dict(Entry).items()
        if name not in ("key", "target", "digest", "attempt", "stage")
    }
)

NEW, SENDING, SUBMITTED, FINAL = Stage.NEW, Stage.SENDING, Stage.SUBMITTED, Stage.FINAL
UNKNOWN, RESEND_APPROVED, ABANDONED = Stage.UNKNOWN, Stage.RESEND_APPROVED, Stage.ABANDONED

Transition: TypeAlias = tuple[Callable[[Entry, Any], bool] | None, Stage, Callable[[Entry, Any], Fields]]

TRANSITIONS: Final[Mapping[tuple[Stage, type[Event]], Transition]] = {
    (NEW, Sending): (None, SENDING, _intent),  # on record before the first byte leaves
    (NEW, Accepted): (None, SUBMITTED, _late_receipt),  # so it had begun a run after all
    (NEW, Ended): (None, FINAL, _ending),
    (SENDING, Sending): (_from_its_owner, SENDING, _intent),  # another attempt: the last was refused
    (SENDING, Accepted): (_from_its_owner, SUBMITTED, _receipt),
    (SENDING, NoRun): (_from_its_owner, NEW, _as_new),
    (SENDING, Lost): (_from_its_owner, UNKNOWN, _loss),
    (SENDING, OwnerGone): (_from_its_owner, UNKNOWN, _loss),
    (SENDING, Ended): (None, FINAL, _ending),  # a synchronous run
    (SUBMITTED, OwnerGone): (_from_its_owner, SUBMITTED, _no_owner),
    (SUBMITTED, PickedUp): (_unowned, SUBMITTED, _owner),
    (SUBMITTED, Ended): (None, FINAL, _ending),
    (SUBMITTED, Resolved): (_was_resolved, SUBMITTED, _named_id),
    (SUBMITTED, Abandoned): (None, ABANDONED, _no_owner),
    (UNKNOWN, Accepted): (_from_its_owner, SUBMITTED, _receipt),  # the owner was alive after all
    (UNKNOWN, NoRun): (_from_its_owner, NEW, _as_new),
    (UNKNOWN, Ended): (None, FINAL, _ending),
    (UNKNOWN, Bounded): (_of_that_submit, UNKNOWN, _bound),
    (UNKNOWN, NoneFound): (_of_that_submit, NEW, _as_new),
    (UNKNOWN, Resolved): (None, SUBMITTED, _named_id),
    (UNKNOWN, ResendApproved): (None, RESEND_APPROVED, _no_owner),  # the next attempt begins as new
    (UNKNOWN, Abandoned): (None, ABANDONED, _no_owner),
    (RESEND_APPROVED, Accepted): (None, RESEND_APPROVED, _id),  # the decision stands, and the id is kept
    (RESEND_APPROVED, Ended): (None, FINAL, _ending),  # so it did run, and what it cost is known
    (ABANDONED, Accepted): (None, ABANDONED, _id),
    (ABANDONED, Ended): (None, FINAL, _ending),
}
"""What may follow from what: on which condition, if any, the next stage, and what else changes."""

LATE: Final = (Accepted, NoRun, Lost, Ended, OwnerGone)
"""News that may come when the job is somebody else's by now, or over: a ledger may have taken its owner for gone."""


def advance(entry: Entry, event: Event) -> Entry:
    """Return the entry after an event; IllegalStepError when it cannot follow."""
    _, stage, fields = _transition(entry, event)
    return attrs.evolve(entry, stage=stage, **fields(entry, event))


def _transition(entry: Entry, event: Event) -> Transition:
    found = TRANSITIONS.get((entry.stage, type(event)))
    if found is not None and (found[0] is None or found[0](entry, event)):
        return found
    if isinstance(event, LATE):
        return None, entry.stage, _late
    step = f"is {entry.stage} and cannot take {type(event).__name__}"
    raise IllegalStepError(f"job {entry.key!r} (attempt {entry.attempt}) {step}")


def successor(entry: Entry) -> Entry:
    """Return the next attempt of a job that may be run once more: approved, or ended as anything but completed."""
    is_failed = entry.ending is not None and entry.ending.status != "completed"
    if entry.stage is not Stage.RESEND_APPROVED and not is_failed:
        raise IllegalStepError(f"job {entry.key!r} is {entry.stage} and must not be run once more")
    return Entry(key=entry.key, target=entry.target, digest=entry.digest, attempt=entry.attempt + 1)


# ---- What a database has lost

_LONGEST_REPLY: Final = 2000
_BY_KNOWLEDGE: Final = (NEW, SENDING, UNKNOWN, SUBMITTED, RESEND_APPROVED, ABANDONED, FINAL)


def remembered(entry: Entry) -> Entry:
    """Return what is kept of an entry in case its database loses it: a long result can be polled again."""
    if entry.execution_id is None or entry.ending is None or len(entry.ending.reply or "") <= _LONGEST_REPLY:
        return entry
    return attrs.evolve(entry, stage=SUBMITTED, owner=None, ending=None)


def restored(entry: Entry | None, known: Entry, process: str) -> Entry | None:
    """Return what an entry becomes where `process` had committed `known` before the database lost it.

    It never makes a job one that may be sent. A run beside the one that is on record by now is noted.
    """
    if known.stage is NEW or (entry is not None and entry.attempt > known.attempt):
        return entry
    if entry is None or entry.attempt < known.attempt:
        return known
    if _BY_KNOWLEDGE.index(known.stage) > _BY_KNOWLEDGE.index(entry.stage):
        return known
    if known.execution_id is not None and known.execution_id != entry.execution_id:
        owner, request_id = known.owner or "", known.request_id
        return advance(entry, Accepted(owner=owner, execution_id=known.execution_id, request_id=request_id))
    is_stale = known.owner is None and entry.owner is not None and entry.owner.startswith(f"{process}/")
    return advance(entry, OwnerGone()) if is_stale else entry


# ---- What a batch may still spend

_ROUNDING: Final = 1e-9
_DEARER: Final = 10.0  # a run that costs so many times what others do is no surprise


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Totals(Record):
    """Credits of all jobs: `spent` by ended runs, `reserved` for others.

    `unpriced`: how many runs count with no credits yet: they may be in flight, or their cost was not reported.
    """

    spent: float = 0.0
    reserved: float = 0.0
    unpriced: int = 0

    def moved(self, before: Entry | None, after: Entry) -> Totals:
        """Return the totals after an entry has changed."""
        old, new = _credits_of(before), _credits_of(after)
        if old == new:
            return self
        return Totals(
            spent=self.spent - old[0] + new[0],
            reserved=self.reserved - old[1] + new[1],
            unpriced=self.unpriced - old[2] + new[2],
        )


def _credits_of(entry: Entry | None) -> tuple[float, float, int]:
    """Return what an entry adds to the totals; an end whose cost was not reported counts with what was reserved.

    Where nothing was, it stays unpriced: a failed one too, for nobody says that it costs nothing.
    """
    if entry is None or entry.stage is Stage.NEW:
        return 0.0, 0.0, 0
    reserved = entry.reserved or 0.0
    if entry.ending is None:
        return 0.0, reserved, int(entry.reserved is None and entry.stage in OPEN)
    if entry.ending.cost is None:
        return reserved, 0.0, int(entry.reserved is None)
    return entry.ending.cost, 0.0, 0


class Fit(Enum):
    """Whether another run fits under a cap."""

    NOW = "now"
    LATER = "later"
    """What is reserved may turn out cheaper, or give the price."""
    NEVER = "never"
    """What is spent leaves no room."""


def fit_under_cap(
    totals: Totals, price: float | None, cap: float, *, queued: int = 0, in_flight: int = 0, ended: int = 0
) -> Fit:
    """Return whether a run of this price fits under a cap.

    `queued`: runs that were let through and are not in the totals yet. `in_flight`: with them. `ended`: runs whose
    costs are known: no more are let through than these vouch for, unless they fit at many times their price.
    To wait for LATER with no run in flight would be for ever.
    """
    if price is None:
        if totals.unpriced or queued:
            return Fit.LATER
        if totals.spent + totals.reserved < cap:
            return Fit.NOW
        return Fit.LATER if totals.spent < cap else Fit.NEVER
    most, in_all = cap * (1 + _ROUNDING), totals.reserved + price * (1 + queued + totals.unpriced)
    if totals.spent + in_all > most:
        return Fit.LATER if totals.spent + price <= most else Fit.NEVER
    is_cheap = price > 0 and totals.spent + _DEARER * in_all <= cap
    return Fit.NOW if in_flight <= ended or is_cheap else Fit.LATER


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Prices:
    """What a run of a target costs: the schema's `estimate`, and the largest cost seen; how many runs `ended`."""

    estimate: float | None = None
    ended: int = 0
    highest_cost: float | None = None

    @property
    def price(self) -> float | None:
        """Credits to reserve for a run; None while nothing is known."""
        return highest_known(self.estimate, self.highest_cost)

    def paid(self, cost: float | None) -> Prices:
        """Learn the real cost of a run that ended; None: it was not reported, and never will be."""
        return attrs.evolve(self.seen(cost), ended=self.ended + 1)

    def seen(self, highest_cost: float | None) -> Prices:
        """Learn the largest cost that others have seen; nothing, as a trial grant costs, is no price."""
        highest = highest_known(self.highest_cost, highest_cost or None)
        return self if highest == self.highest_cost else attrs.evolve(self, highest_cost=highest)


def repriced(entry: Entry, cost: float) -> Entry:
    """Return an entry whose run, where one may be in flight, is reserved with no less than a run of its target cost."""
    if entry.stage in (Stage.NEW, Stage.FINAL):
        return entry
    return attrs.evolve(entry, reserved=highest_known(entry.reserved, cost))


def highest_known(*credits: float | None) -> float | None:
    """Return the largest of numbers of credits that may not be known; None where none is."""
    return max((each for each in credits if each is not None), default=None)


def amount(credits: float) -> float:
    """Return credits as the service writes them: an integer where they are whole, so that all show them alike."""
    return int(credits) if abs(credits) < 1e15 and int(credits) == credits else credits
