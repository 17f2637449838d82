"""How the emulator delivers webhooks, and one delivery as it goes out: values only (contract 11)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs

from knouds_async.testing.laws import Seconds, is_number, is_seconds

__all__ = ["Deliveries", "Delivery"]

Kind = Literal["genuine", "repeated", "forged", "expired", "stale", "test"]


def _is_share(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not (is_number(value) and 0 <= value <= 1):
        raise ValueError(f"{attribute.name} must be between 0 and 1, not {value!r}")


@attrs.frozen(kw_only=True)
class Deliveries:
    """How webhooks arrive; the shares are of the runs, and independent of each other.

    `latency`: seconds from the end of a run to its delivery; a spread puts them out of order. `late`: the
    share that takes `late_by` more. `dropped`: never sent. `repeated`: sent again after another `late_by`. `forged`:
    preceded by one with another result and a signature by another secret. `expired`: sent first with a signature of
    an hour ago. `stale`: followed by an event that has the run still processing. `has_result`: whether they have
    results. `attempts`: how often one that is not answered with 2xx is sent in all, at growing pauses.
    """

    latency: Seconds = attrs.field(default=0.2, validator=is_seconds)
    late: float = attrs.field(default=0.0, validator=_is_share)
    late_by: Seconds = attrs.field(default=20.0, validator=is_seconds)
    dropped: float = attrs.field(default=0.0, validator=_is_share)
    repeated: float = attrs.field(default=0.0, validator=_is_share)
    forged: float = attrs.field(default=0.0, validator=_is_share)
    expired: float = attrs.field(default=0.0, validator=_is_share)
    stale: float = attrs.field(default=0.0, validator=_is_share)
    has_result: bool = True
    attempts: int = attrs.field(default=3, validator=[attrs.validators.instance_of(int), attrs.validators.ge(1)])


@attrs.frozen(kw_only=True)
class Delivery:
    """One POST that the service sends: to `url`, with `headers` and `body`; `kind` says what is odd about it."""

    url: str
    execution_id: str
    kind: Kind
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    attempt: int = 1
