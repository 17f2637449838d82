"""Webhook deliveries: their signature, what they say, how far to rely on them, and when to poll all the same. Pure.

Checking is bounded work for whatever comes in, with no early exit that a sender could time, and raises nothing: what
is wrong is returned as a `WebhookFault`. A run whose end should be delivered is polled only once it is overdue, and
then at ever longer steps; a lost delivery is noticed, later than by frequent polling. `now` is local monotonic seconds
unless it says unix seconds (contract 11).
"""

from __future__ import annotations

import hashlib
import heapq
import hmac
import math
import re
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final

import attrs

from knouds_async.errors import WebhookFault
from knouds_async.types import ExecutionState, Status

# ---- The signature

MAX_BODY: Final = 1024 * 1024
"""Bytes of a body; a longer one is refused before it is signed."""

MAX_HEADER: Final = 1024
MAX_SIGNATURES: Final = 8
MIN_SECRET: Final = 16
MAX_SECRET: Final = 4096

_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}\Z")
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}\Z")
_NO_DIGEST: Final = b"0" * 64


@attrs.frozen
class Signature:
    """A header that could be parsed: `timestamp` is its own string of the time, which is what was signed."""

    timestamp: str
    digests: tuple[bytes, ...]


def secret_bytes(text: object) -> bytes | None:
    """Return a signing secret as bytes, its `whsec_` included; None when it cannot be one."""
    if not isinstance(text, str) or not MIN_SECRET <= len(text) <= MAX_SECRET:
        return None
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None


def parse_header(header: object) -> Signature | WebhookFault:
    """Parse `t=<unix seconds>,v1=<hex>`; schemes other than v1 are ignored, one time and one v1 must be there."""
    text = header.decode("latin-1") if isinstance(header, bytes) else header
    if text is None:
        return WebhookFault.SIGNATURE_MISSING
    if not isinstance(text, str) or len(text) > MAX_HEADER:
        return WebhookFault.SIGNATURE_MALFORMED
    if not text:
        return WebhookFault.SIGNATURE_MISSING
    pairs = [part.partition("=")[::2] for part in text.split(",")]
    timestamps = [value for name, value in pairs if name == "t"]
    digests = [value for name, value in pairs if name == "v1"]
    is_read = (
        len(timestamps) == 1
        and _TIMESTAMP.match(timestamps[0]) is not None
        and 1 <= len(digests) <= MAX_SIGNATURES
        and all(_DIGEST.match(digest) for digest in digests)
    )
    if not is_read:
        return WebhookFault.SIGNATURE_MALFORMED
    return Signature(timestamps[0], tuple(digest.lower().encode() for digest in digests))


def signature_header(body: bytes, secret: bytes, timestamp: str) -> str:
    """Return the header for a body that is sent at `timestamp`, unix seconds as a string of digits."""
    return f"t={timestamp},v1={_digest(body, secret, timestamp).decode()}"


def check_delivery(
    body: bytes, header: object, secrets: Sequence[bytes], *, now: float, tolerance: float
) -> WebhookFault | None:
    """Return what is wrong with a delivery, None when it is the service's; `now`: unix seconds.

    Every secret signs and every signature is compared, whatever the header says: a forger learns nothing from the time
    it takes.
    """
    if len(body) > MAX_BODY:
        return WebhookFault.BODY_TOO_LARGE
    found = parse_header(header)
    read = Signature("0", ()) if isinstance(found, WebhookFault) else found
    claimed = (*read.digests, *[_NO_DIGEST] * MAX_SIGNATURES)[:MAX_SIGNATURES]
    matches = 0
    for secret in secrets:
        expected = _digest(body, secret, read.timestamp)
        for digest in claimed:
            matches += hmac.compare_digest(expected, digest)
    if isinstance(found, WebhookFault):
        return found
    if not matches:
        return WebhookFault.SIGNATURE_WRONG
    # Written so that a clock that is not a number refuses.
    return None if abs(now - int(found.timestamp)) <= tolerance else WebhookFault.OUT_OF_TIME


def _digest(body: bytes, secret: bytes, timestamp: str) -> bytes:
    signer = hmac.new(secret, f"{timestamp}.".encode(), hashlib.sha256)
    signer.update(body)
    return signer.hexdigest().encode()


# ---- What deliveries say, and when to poll all the same

FIRST_POLL_AGE: Final = 90.0
"""Seconds after which a run of a target that was never seen to finish is polled."""

_OVERDUE_FACTOR: Final = 1.5  # times the longest of the ends seen lately, and the factor between two polls
_MIN_DELAY: Final = 10.0
_MAX_DELAY: Final = 600.0
_REMEMBERED_ENDS: Final = 32  # ends that are remembered of each target
_WINDOW: Final = 50  # ends by which deliveries are judged, and the fewest that suffice
_MIN_ENDS: Final = 3
_MIN_DELIVERED: Final = 0.4  # the part of them that must have been delivered
_ENDS_TO_ESTIMATE: Final = 8  # ends of a target that shorten the delays of runs submitted before any was known
_MAX_TARGETS: Final = 1000
_MAX_REMEMBERED: Final = 1000


CONTRADICTORY: Final = "contradictory"
"""The status of a delivery whose event and status name different ends."""


def is_end(state: ExecutionState) -> bool:
    """Return whether a delivery says that a run finished, however much it says of that."""
    return state.is_final or state.status == CONTRADICTORY


def is_complete(state: ExecutionState) -> bool:
    """Return whether a state says all there is to know of how a run finished, so that no poll is needed."""
    match state.status:
        case Status.COMPLETED:
            return state.result is not None
        case Status.FAILED:
            return state.error is not None
        case _:
            return state.status == Status.CANCELLED


class RecentDeliveries:
    """The latest deliveries, for those who start waiting only later; bounded."""

    def __init__(self, max_states: int = _MAX_REMEMBERED) -> None:
        self._max_states = max_states
        self._states: OrderedDict[str, ExecutionState] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of runs remembered."""
        return len(self._states)

    def get(self, execution_id: str) -> ExecutionState | None:
        """Return what was delivered of a run."""
        return self._states.get(execution_id)

    def add(self, state: ExecutionState) -> bool:
        """Add a delivery; a final state stays as it is. Return whether it is the first end delivered for the run."""
        known = self._states.get(state.execution_id)
        if known is not None and known.is_final and (is_complete(known) or not is_complete(state)):
            return False
        self._states[state.execution_id] = state
        self._states.move_to_end(state.execution_id)
        if len(self._states) > self._max_states:
            self._states.popitem(last=False)
        return state.is_final and (known is None or not known.is_final)


@attrs.frozen
class _DelayedRun:
    """A run that is not polled until `due_at`; `submitted_at`: None once it has been overdue."""

    due_at: float
    target: str
    submitted_at: float | None


class FallbackPolling:
    """When to poll runs whose ends should be delivered, and whether to rely on deliveries at all."""

    def __init__(self) -> None:
        self.is_expected = False
        self._was_delivered: deque[bool] = deque(maxlen=_WINDOW)  # for each end
        self._ages: OrderedDict[str, deque[float]] = OrderedDict()
        self._delayed: dict[str, _DelayedRun] = {}
        self._heap: list[tuple[float, str]] = []

    @property
    def is_reliable(self) -> bool:
        """Whether deliveries are expected and come, for the most part."""
        seen = len(self._was_delivered)
        return self.is_expected and (seen < _MIN_ENDS or sum(self._was_delivered) >= _MIN_DELIVERED * seen)

    @property
    def has_deliveries(self) -> bool:
        """Whether deliveries came lately."""
        return self.is_reliable and any(self._was_delivered)

    def delay(self, execution_id: str, target: str, *, submitted_at: float, now: float) -> None:
        """Delay the polls of a run until it is overdue; `submitted_at`: or when it was first seen."""
        age, overdue_age = now - submitted_at, self._overdue_age(target)
        at = submitted_at + overdue_age if age < overdue_age else now + max(_MIN_DELAY, (_OVERDUE_FACTOR - 1) * age)
        self._put(
            execution_id, _DelayedRun(min(at, now + _MAX_DELAY), target, submitted_at if age < overdue_age else None)
        )

    def _overdue_age(self, target: str) -> float:
        """Return the seconds after which a run of a target is overdue, by the ends seen lately."""
        ages = self._ages.get(target)
        return FIRST_POLL_AGE if ages is None else max(_MIN_DELAY, _OVERDUE_FACTOR * max(ages))

    def _put(self, execution_id: str, delayed: _DelayedRun) -> None:
        self._delayed[execution_id] = delayed
        heapq.heappush(self._heap, (delayed.due_at, execution_id))

    def is_delayed(self, execution_id: str) -> bool:
        """Return whether the polls of a run are delayed."""
        return execution_id in self._delayed

    def release(self, execution_id: str) -> bool:
        """Delay a run no longer; return whether it was delayed."""
        return self._delayed.pop(execution_id, None) is not None

    def pop_due(self, now: float) -> list[str]:
        """Return the overdue runs, or all when deliveries fail to come; they are no longer delayed."""
        if not self.is_reliable:
            found = list(self._delayed)
            self._delayed.clear()
            return found
        found = []
        while self.next_due_at() <= now:
            _, execution_id = heapq.heappop(self._heap)
            delayed = self._delayed.pop(execution_id)
            if (
                delayed.submitted_at is not None
                and (at := delayed.submitted_at + self._overdue_age(delayed.target)) > now
            ):
                self._put(
                    execution_id, attrs.evolve(delayed, due_at=min(at, now + _MAX_DELAY))
                )  # ends came later meanwhile
            else:
                found.append(execution_id)
        return found

    def next_due_at(self) -> float:
        """Return when the next run is overdue; inf when none is delayed."""
        while self._heap:
            at, execution_id = self._heap[0]
            delayed = self._delayed.get(execution_id)
            if delayed is not None and delayed.due_at == at:
                return at
            heapq.heappop(self._heap)
        return math.inf

    def record_delivered(self, target: str, *, age: float | None) -> None:
        """Record an end that was delivered; `age`: the seconds such runs take, where it says that."""
        self._was_delivered.append(True)
        if age is None:
            return
        ages = self._ages.setdefault(target, deque(maxlen=_REMEMBERED_ENDS))
        ages.append(age)
        self._ages.move_to_end(target)
        if len(ages) == _ENDS_TO_ESTIMATE:
            self._shorten_delays(target)
        if len(self._ages) > _MAX_TARGETS:
            self._ages.popitem(last=False)

    def _shorten_delays(self, target: str) -> None:
        """Shorten delays that were set before it was known how long runs of the target take."""
        overdue_age = self._overdue_age(target)
        for execution_id, delayed in list(self._delayed.items()):
            if (
                delayed.target == target
                and delayed.submitted_at is not None
                and delayed.submitted_at + overdue_age < delayed.due_at
            ):
                self._put(execution_id, attrs.evolve(delayed, due_at=delayed.submitted_at + overdue_age))

    def record_missed(self) -> None:
        """Record an end that a poll found before any delivery."""
        self._was_delivered.append(False)
