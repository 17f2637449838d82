"""What a batch does with a client; it never sees the client itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

import attrs

from knouds_async._io.pipeline import Send
from knouds_async.execution import Execution
from knouds_async.types import SubmissionSearch, Submitted, Target


@attrs.frozen
class Service:
    """Send a call, get the handle of a run, search the usage rows, ask for the time by the service's clock.

    `one_go`: the targets whose provider cannot be polled, as far as this client has learned.
    """

    send: Send
    begun: Callable[[Submitted, Target], Execution]
    attach: Callable[[str, Target], Execution]
    find_submission: Callable[..., Awaitable[SubmissionSearch]]
    now: Callable[[], datetime]
    one_go: set[Target] = attrs.field(factory=set)
