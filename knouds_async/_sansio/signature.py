"""The signature of a webhook delivery: read the header, sign, and judge (contract 11). Pure.

Rule of the file: bounded work for whatever comes in, no early exit that a sender could time, and no exception: what
is wrong is given as a `WebhookFault`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final

import attrs

from knouds_async.errors import WebhookFault

MOST_BODY: Final = 1024 * 1024
"""Bytes of a body; a longer one is refused before it is signed."""

LONGEST_HEADER: Final = 1024
MOST_SIGNATURES: Final = 8
SHORTEST_SECRET: Final = 16
LONGEST_SECRET: Final = 4096

_MOMENT: Final = re.compile(r"[0-9]{1,12}\Z")
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}\Z")
_NOTHING: Final = b"0" * 64


@attrs.frozen
class Signature:
    """A header that could be read: `moment` is its own text of the time, which is what was signed."""

    moment: str
    digests: tuple[bytes, ...]


def secret_bytes(text: object) -> bytes | None:
    """Give a signing secret as bytes, its `whsec_` included; None when it cannot be one."""
    if not isinstance(text, str) or not SHORTEST_SECRET <= len(text) <= LONGEST_SECRET:
        return None
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None


def parse(header: object) -> Signature | WebhookFault:
    """Read `t=<unix seconds>,v1=<hex>`; schemes other than v1 are passed over, one time and one v1 must be there."""
    text = header.decode("latin-1") if isinstance(header, bytes) else header
    if text is None:
        return WebhookFault.SIGNATURE_MISSING
    if not isinstance(text, str) or len(text) > LONGEST_HEADER:
        return WebhookFault.SIGNATURE_MALFORMED
    if not text:
        return WebhookFault.SIGNATURE_MISSING
    pairs = [part.partition("=")[::2] for part in text.split(",")]
    moments = [value for name, value in pairs if name == "t"]
    digests = [value for name, value in pairs if name == "v1"]
    is_read = (
        len(moments) == 1
        and _MOMENT.match(moments[0]) is not None
        and 1 <= len(digests) <= MOST_SIGNATURES
        and all(_DIGEST.match(digest) for digest in digests)
    )
    if not is_read:
        return WebhookFault.SIGNATURE_MALFORMED
    return Signature(moments[0], tuple(digest.lower().encode() for digest in digests))


def sign(body: bytes, secret: bytes, moment: str) -> str:
    """Give the header for a body that is sent at `moment`, whole unix seconds as a text."""
    return f"t={moment},v1={_digest(body, secret, moment).decode()}"


def judge(
    body: bytes, header: object, secrets: Sequence[bytes], *, now: float, tolerance: float
) -> WebhookFault | None:
    """Say what is wrong with a delivery, None when it is the service's; `now`: unix seconds.

    Every secret signs and every signature is compared, whatever the header says: a forger learns nothing from the time
    it takes.
    """
    if len(body) > MOST_BODY:
        return WebhookFault.BODY_TOO_LARGE
    found = parse(header)
    read = Signature("0", ()) if isinstance(found, WebhookFault) else found
    claimed = (*read.digests, *[_NOTHING] * MOST_SIGNATURES)[:MOST_SIGNATURES]
    matches = 0
    for secret in secrets:
        expected = _digest(body, secret, read.moment)
        for digest in claimed:
            matches += hmac.compare_digest(expected, digest)
    if isinstance(found, WebhookFault):
        return found
    if not matches:
        return WebhookFault.SIGNATURE_WRONG
    # Written so that a clock that is not a number refuses.
    return None if abs(now - int(found.moment)) <= tolerance else WebhookFault.OUT_OF_TIME


def _digest(body: bytes, secret: bytes, moment: str) -> bytes:
    signer = hmac.new(secret, f"{moment}.".encode(), hashlib.sha256)
    signer.update(body)
    return signer.hexdigest().encode()
