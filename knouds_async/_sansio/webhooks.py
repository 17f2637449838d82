"""Webhook deliveries: their signature, and what they say. Pure.

Checking is bounded work for whatever comes in, with no early exit that a sender could time, and raises nothing: what
is wrong is returned as a `WebhookFault` (contract 11).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import OrderedDict
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


@attrs.frozen(eq=False, repr=False)
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
    if text is None or text == "":
        return WebhookFault.SIGNATURE_MISSING
    if not isinstance(text, str) or len(text) > MAX_HEADER:
        return WebhookFault.SIGNATURE_MALFORMED
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


# ---- What deliveries say

MAX_REMEMBERED: Final = 1000

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


class RecentDeliveries(OrderedDict[str, ExecutionState]):
    """The latest deliveries by run, for those who start waiting only later; bounded."""

    def add(self, state: ExecutionState) -> bool:
        """Add a delivery; a final state stays as it is. Return whether it is the first end delivered for the run."""
        known = self.get(state.execution_id)
        if known is not None and known.is_final and (is_complete(known) or not is_complete(state)):
            return False
        self[state.execution_id] = state
        self.move_to_end(state.execution_id)
        if len(self) > MAX_REMEMBERED:
            self.popitem(last=False)
        return state.is_final and (known is None or not known.is_final)
