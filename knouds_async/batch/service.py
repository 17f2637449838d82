"""What a batch does with a client; it never sees the client itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial

import attrs

from knouds_async._io.pipeline import Send
from knouds_async.execution import Execution
from knouds_async.types import SubmissionSearch, Target


@attrs.frozen(eq=False, repr=False)
class Service:
    """Send a call, get the handle of a run, search the usage rows, ask for the time by the service's clock.

    `begun` takes a receipt and its target, `attach` an id and its target. `one_go`: the targets whose provider cannot
    be polled, as far as this client has learned.
    """

    send: Send
    begun: Callable[..., Execution]
    attach: Callable[..., Execution]
    find_submission: Callable[..., Awaitable[SubmissionSearch]]
    now: Callable[[], datetime]
    one_go: set[Target] = attrs.field(factory=set)

    def expecting(self, seconds: float | None) -> Service:
        """Give the same service, whose runs should take so long."""
        begun, attach = partial(self.begun, expected=seconds), partial(self.attach, expected=seconds)
        return attrs.evolve(self, begun=begun, attach=attach)
