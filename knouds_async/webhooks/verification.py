"""verify and sign: whether a delivery is the service's, and how the service signs one (contract 11).

Synchronous, no I/O but the clock that `now` replaces. Only WebhookVerificationError is raised.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any, Final

from knouds_async._sansio import webhooks as signatures
from knouds_async._sansio.responses import UnreadableError
from knouds_async.config import Secret
from knouds_async.errors import InvalidArgumentError, WebhookFault, WebhookVerificationError
from knouds_async.webhooks.events import WebhookEvent, read_event

SIGNATURE_HEADER: Final = "X-Knouds-Signature"
TOLERANCE: Final = 300.0

Secrets = str | Secret | Iterable[str | Secret]
"""One signing secret or, while one replaces another, several."""

_MESSAGES: Final = {
    WebhookFault.SIGNATURE_MISSING: f"the delivery has no {SIGNATURE_HEADER} header",
    WebhookFault.SIGNATURE_MALFORMED: f"the {SIGNATURE_HEADER} header is not t=<unix seconds>,v1=<hex>",
    WebhookFault.SIGNATURE_WRONG: "the signature matches none of the secrets. Check that the raw body is verified, as "
    "it came, and that the secret is the one of the dashboard",
    WebhookFault.OUT_OF_TIME: "the signature is right but too old, or from the future. Check this machine's clock",
    WebhookFault.BODY_TOO_LARGE: f"the body has more than {signatures.MAX_BODY} bytes",
    WebhookFault.BODY_MALFORMED: "the body is not the JSON of an event",
    WebhookFault.MISCONFIGURED: f"a signing secret is a string of {signatures.MIN_SECRET} characters or more, at "
    "least one is needed, and `now` and `tolerance` are finite numbers of seconds",
}


def verify(
    body: bytes,
    signature: str | bytes | None,
    secrets: Secrets,
    *,
    now: float | None = None,
    tolerance: float = TOLERANCE,
) -> WebhookEvent:
    """Return the event of a delivery if it is the service's.

    `body`: the raw bytes as they came. `signature`: the `X-Knouds-Signature` header. `secrets`: one, or several while
    they are rotated; all are tried. `now`: unix seconds, by default this machine's clock. `tolerance`: seconds by
    which the signing time may differ. Raises WebhookVerificationError, with a `reason`, and nothing else.
    """
    timestamp = time.time() if now is None else now
    event, fault = _verified(body, signature, signing_keys(secrets), timestamp, tolerance)
    secrets = ()  # so that this frame does not show them in a traceback with locals
    if event is None:
        raise WebhookVerificationError(_MESSAGES[fault], reason=fault)
    return event


def _verified(
    body: Any, signature: object, keys: tuple[bytes, ...], now: object, tolerance: object
) -> tuple[WebhookEvent | None, WebhookFault]:
    """Check first, parse then: nothing of a body is read before its signature was found right."""
    fault: WebhookFault | None = WebhookFault.MISCONFIGURED
    if not isinstance(body, (bytes, bytearray, memoryview)):
        return None, WebhookFault.BODY_MALFORMED
    raw = bytes(body)
    if keys and _is_number(now) and _is_number(tolerance):
        fault = signatures.check_delivery(raw, signature, keys, now=now, tolerance=tolerance)  # type: ignore[arg-type]
    if fault is not None:
        return None, fault
    try:
        return read_event(raw), WebhookFault.BODY_MALFORMED
    except UnreadableError:
        return None, WebhookFault.BODY_MALFORMED


def signing_keys(secrets: object) -> tuple[bytes, ...]:
    """Return the secrets as bytes; an empty tuple when any of them will not do."""
    given = (secrets,) if isinstance(secrets, (str, Secret)) else secrets
    if not isinstance(given, Iterable):
        return ()
    keys = [signatures.secret_bytes(one.reveal() if isinstance(one, Secret) else one) for one in given]
    return () if None in keys else tuple(key for key in keys if key is not None)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return not isinstance(value, float) or math.isfinite(value)


def sign(body: bytes, secret: str | Secret, *, now: float) -> str:
    """Return the header that the service would send with a body at `now`, in unix seconds: for tests of receivers.

    Raises InvalidArgumentError for a secret of fewer than 16 characters and for a time before 1970.
    """
    keys = signing_keys(secret)
    if not keys or not _is_number(now) or not 0 <= now < 1e12:
        raise InvalidArgumentError(
            f"a secret of {signatures.MIN_SECRET} characters or more and a time in unix seconds are needed to sign"
        )
    return signatures.signature_header(bytes(body), keys[0], str(int(now)))
