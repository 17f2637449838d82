"""The life of a job in a ledger, as a state machine: what it is, and what may follow from what. Pure.

    stage               event            next
    ─────────────────   ──────────────   ───────────────────────────────────────────────────────────────────
    new                 Sending          sending         the intent, on record before the first byte leaves
    sending             Sending          sending         another attempt of the same owner: the last was refused
                        Accepted         submitted
                        NoRun            new             certainly not run
                        Ended            final           a synchronous run
                        Lost, OwnerGone  unknown
    submitted           PickedUp         submitted       by another owner, when the last one is gone
                        OwnerGone        submitted       with no owner
                        Ended            final
                        Abandoned        abandoned
    unknown             Accepted, Ended  submitted, final: the owner was alive after all, and brings the answer
                        NoneFound        new             certainly not run
                        OwnerGone        unknown         with the moment by which nothing of it was under way
                        Resolved         submitted       somebody knows the id
                        ResendApproved   resend_approved the next attempt begins as new
                        Abandoned        abandoned
    final               -                a final entry never changes; a retry of a failed one is another attempt

Whatever else comes is an IllegalStepError, and the entry stays as it was; news that changes nothing is let pass.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import Final, Literal, TypeAlias

import attrs

from knouds_async._sansio.clock import Moment
from knouds_async.config import one_spelling


class Stage(StrEnum):
    """Where a job stands in a ledger."""

    NEW = "new"
    """Certainly not run."""
    SENDING = "sending"
    """Its submit is about to leave, or has left, and there is no answer yet."""
    SUBMITTED = "submitted"
    """It runs, and its id is known."""
    FINAL = "final"
    """Its run is over."""
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


@attrs.frozen(kw_only=True)
class Ending:
    """How a run ended: `reply` is the service's own JSON where there is one, `code` and `message` say why it failed."""

    status: Literal["completed", "failed", "cancelled"]
    cost: float | None = None
    reply: str | None = None
    code: str | None = None
    message: str | None = None


@attrs.frozen(kw_only=True)
class Payer:
    """Whose runs they are: the account's id, None when the service did not tell it, and the service's base URL."""

    user: str | None
    base_url: str = attrs.field(converter=one_spelling)

    def __str__(self) -> str:
        """Name both."""
        return f"{'an unnamed account' if self.user is None else f'account {self.user}'} at {self.base_url}"

    @property
    def account(self) -> str | None:
        """Both in one string, None when the account is not known."""
        return None if self.user is None else f"{self.user} {self.base_url}"


@attrs.frozen(kw_only=True)
class Entry:
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
        since, until = self.since, self.until
        if since is None or until is None or since.earliest is None or since.latest is None or until.latest is None:
            return None
        return since.earliest, max(until.latest, since.latest + self.lasts)


@attrs.frozen(kw_only=True)
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


@attrs.frozen(kw_only=True)
class Accepted:
    """The service gave its receipt to `owner`, at a moment before `until`."""

    owner: str
    execution_id: str
    request_id: str | None = None
    until: Moment | None = None


@attrs.frozen
class NoRun:
    """What `owner` sent certainly began no run."""

    owner: str


@attrs.frozen
class Lost:
    """What `owner` sent was not answered by `until`, or so that it stays open whether it runs; `note` says how."""

    owner: str
    note: str
    until: Moment | None = None


@attrs.frozen
class Ended:
    """The run is over."""

    ending: Ending


@attrs.frozen
class OwnerGone:
    """The owner is no more: its process ended, or it let go; `until`: when that was found out, None: not known."""

    until: Moment | None = None


@attrs.frozen
class PickedUp:
    """`owner` waits for the run from here on."""

    owner: str


@attrs.frozen
class NoneFound:
    """The usage rows prove that the submit of `sent_at` began no run; of a later one they prove nothing."""

    sent_at: float | None


@attrs.frozen
class Resolved:
    """Somebody found out which run it is."""

    execution_id: str


@attrs.frozen
class ResendApproved:
    """Somebody decided that it may be sent once more, at the risk of paying twice."""


@attrs.frozen
class Abandoned:
    """Somebody decided to leave it at that."""


Event: TypeAlias = (
    Sending | Accepted | NoRun | Lost | Ended | OwnerGone | PickedUp | NoneFound | Resolved | ResendApproved | Abandoned
)


def advance(entry: Entry, event: Event) -> Entry:
    """Return the entry after an event; IllegalStepError when it cannot follow."""
    following = _step(entry, event)
    if following is None:
        raise IllegalStepError(
            f"job {entry.key!r} (attempt {entry.attempt}) is {entry.stage} and cannot take {type(event).__name__}"
        )
    return following


def _step(entry: Entry, event: Event) -> Entry | None:
    match entry.stage:
        case Stage.NEW:
            return _sending(entry, event) if isinstance(event, Sending) else _unmoved(entry, event, OwnerGone)
        case Stage.SENDING:
            return _from_sending(entry, event)
        case Stage.SUBMITTED:
            return _from_submitted(entry, event)
        case Stage.UNKNOWN:
            return _from_unknown(entry, event)
        case Stage.RESEND_APPROVED | Stage.ABANDONED:
            return _late(entry, event)
        case _:
            return _unmoved(entry, event, Accepted, Ended, OwnerGone)


def _sending(entry: Entry, event: Sending) -> Entry:
    return attrs.evolve(
        entry,
        stage=Stage.SENDING,
        owner=event.owner,
        sent_at=event.sent_at,
        reserved=event.reserve,
        note=None,
        since=event.since,
        until=None,
        lasts=event.lasts,
        account=event.account,
    )


def _from_sending(entry: Entry, event: Event) -> Entry | None:
    match event:
        case Sending() if event.owner == entry.owner:
            return _sending(entry, event)
        case Accepted() if event.owner == entry.owner:
            return _submitted(entry, event)
        case NoRun(owner) if owner == entry.owner:
            return _new(entry)
        case Lost(owner, note, until) if owner == entry.owner:
            return attrs.evolve(entry, stage=Stage.UNKNOWN, note=note, until=until)
        case OwnerGone(until):
            return attrs.evolve(entry, stage=Stage.UNKNOWN, note="its process ended before the answer", until=until)
        case Ended(ending):
            return attrs.evolve(entry, stage=Stage.FINAL, owner=None, ending=ending)
    return None


def _from_submitted(entry: Entry, event: Event) -> Entry | None:
    match event:
        case Ended(ending):
            return attrs.evolve(entry, stage=Stage.FINAL, owner=None, ending=ending)
        case OwnerGone():
            return attrs.evolve(entry, owner=None)
        case PickedUp(owner) if entry.owner is None:
            return attrs.evolve(entry, owner=owner)
        case Resolved(execution_id) if entry.owner is None and entry.note is not None:  # the first id may be a slip
            return attrs.evolve(entry, execution_id=execution_id)
        case Abandoned():
            return attrs.evolve(entry, stage=Stage.ABANDONED, owner=None)
        case Accepted() if event.execution_id == entry.execution_id:
            return entry
    return None


def _from_unknown(entry: Entry, event: Event) -> Entry | None:
    match event:
        case Accepted() if event.owner == entry.owner:
            return _submitted(entry, event)
        case Ended(ending):
            return attrs.evolve(entry, stage=Stage.FINAL, owner=None, ending=ending)
        case NoneFound(sent_at) if sent_at == entry.sent_at:
            return _new(entry)
        case NoRun(owner) if owner == entry.owner:
            return _new(entry)
        case OwnerGone(Moment() as until) if entry.until is None or not entry.until.is_known:
            return attrs.evolve(entry, until=until)  # later than the true one, so as good a bound
        case Resolved(execution_id):
            return attrs.evolve(entry, stage=Stage.SUBMITTED, owner=None, execution_id=execution_id)
        case ResendApproved():
            return attrs.evolve(entry, stage=Stage.RESEND_APPROVED, owner=None)
        case Abandoned():
            return attrs.evolve(entry, stage=Stage.ABANDONED, owner=None)
        case _:
            return _unmoved(entry, event, Lost, OwnerGone)


def _late(entry: Entry, event: Event) -> Entry | None:
    """Keep the id that comes after somebody has decided; the decision stands."""
    if isinstance(event, Accepted):
        return attrs.evolve(entry, execution_id=event.execution_id, request_id=event.request_id)
    return _unmoved(entry, event, Lost, Ended, OwnerGone)


def _submitted(entry: Entry, event: Accepted) -> Entry:
    return attrs.evolve(
        entry,
        stage=Stage.SUBMITTED,
        execution_id=event.execution_id,
        request_id=event.request_id,
        note=None,
        until=event.until or entry.until,
    )


def _new(entry: Entry) -> Entry:
    return Entry(key=entry.key, target=entry.target, digest=entry.digest, attempt=entry.attempt)


def _unmoved(entry: Entry, event: Event, *passing: type) -> Entry | None:
    return entry if isinstance(event, passing) else None


def successor(entry: Entry) -> Entry:
    """Return the next attempt of a job that may be run once more: approved, or ended as anything but completed."""
    is_failed = entry.ending is not None and entry.ending.status != "completed"
    if entry.stage is not Stage.RESEND_APPROVED and not is_failed:
        raise IllegalStepError(f"job {entry.key!r} is {entry.stage} and must not be run once more")
    return Entry(key=entry.key, target=entry.target, digest=entry.digest, attempt=entry.attempt + 1)


_ROUNDING: Final = 1e-9
_DEARER: Final = 10.0  # a run that costs so many times what others do is no surprise


@attrs.frozen(kw_only=True)
class Totals:
    """Credits of all jobs: `spent` by ended runs, `reserved` for others.

    `unpriced`: how many runs count with no credits yet, for they may be out, or their cost was not told at the end.
    """

    spent: float = 0.0
    reserved: float = 0.0
    unpriced: int = 0

    def moved(self, before: Entry | None, after: Entry) -> Totals:
        """Return the totals after an entry has changed."""
        old, new = _weight(before), _weight(after)
        return Totals(
            spent=self.spent - old.spent + new.spent,
            reserved=self.reserved - old.reserved + new.reserved,
            unpriced=self.unpriced - old.unpriced + new.unpriced,
        )


_NOTHING: Final = Totals()


def _weight(entry: Entry | None) -> Totals:
    """Return what one entry adds to the totals; an end whose cost was not told counts with what was reserved.

    Where nothing was, it stays unpriced: a failed one too, for nobody says that it costs nothing.
    """
    if entry is None or entry.stage is Stage.NEW:
        return _NOTHING
    reserved = entry.reserved or 0.0
    if entry.ending is not None:
        is_open = entry.reserved is None and entry.ending.cost is None
        return Totals(spent=reserved if entry.ending.cost is None else entry.ending.cost, unpriced=int(is_open))
    return Totals(reserved=reserved, unpriced=int(entry.reserved is None and entry.stage in OPEN))


class Verdict(Enum):
    """Whether another run may be sent."""

    GO = "go"
    WAIT = "wait"
    """Not now: what is reserved may turn out cheaper, or give the price."""
    NEVER = "never"
    """What is spent leaves no room."""


def verdict(totals: Totals, price: float | None, cap: float, *, queued: int = 0) -> Verdict:
    """Return whether a run of this price may be sent.

    `queued`: runs that were let through and are not in the totals yet. Whoever is told to wait with no run in flight
    will wait for ever.
    """
    if price is None:
        if totals.unpriced or queued:
            return Verdict.WAIT
        is_room = totals.spent + totals.reserved < cap
        return Verdict.GO if is_room else Verdict.WAIT if totals.spent < cap else Verdict.NEVER
    most = cap * (1 + _ROUNDING)
    if totals.spent + _in_flight(totals, price, queued) <= most:
        return Verdict.GO
    return Verdict.WAIT if totals.spent + price <= most else Verdict.NEVER


def is_bold(totals: Totals, price: float, cap: float, *, queued: int, in_flight: int, ended: int) -> bool:
    """Return whether one more run is more than the `ended` runs, whose costs are known, vouch for."""
    is_cheap = price > 0 and totals.spent + _DEARER * _in_flight(totals, price, queued) <= cap
    return in_flight > ended and not is_cheap


def _in_flight(totals: Totals, price: float, queued: int) -> float:
    """Return what all that may be in flight costs, with one more run."""
    return totals.reserved + price * (1 + queued + totals.unpriced)


@attrs.frozen(kw_only=True)
class Prices:
    """What a run of a target costs: the schema's `estimate`, and the largest cost seen; how many runs `ended`."""

    estimate: float | None = None
    ended: int = 0
    highest_cost: float | None = None

    @property
    def price(self) -> float | None:
        """Credits to reserve for a run; None while nothing is known."""
        return larger(self.estimate, self.highest_cost)

    def paid(self, cost: float | None) -> Prices:
        """Learn the real cost of a run that ended; None: it was not told, and waiting does not help."""
        return attrs.evolve(self.seen(cost), ended=self.ended + 1)

    def seen(self, highest_cost: float | None) -> Prices:
        """Learn the largest cost that others have seen; nothing, as a trial grant costs, is no price."""
        return attrs.evolve(self, highest_cost=larger(self.highest_cost, highest_cost or None))


def repriced(entry: Entry, cost: float) -> Entry:
    """Return an entry whose run, where one may be in flight, is reserved with no less than a run of its target cost."""
    if entry.stage in (Stage.NEW, Stage.FINAL):
        return entry
    return attrs.evolve(entry, reserved=larger(entry.reserved, cost))


def larger(one: float | None, other: float | None) -> float | None:
    """Return the larger of two numbers of credits, of which either may not be known."""
    known = [each for each in (one, other) if each is not None]
    return max(known, default=None)
