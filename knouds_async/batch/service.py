"""What a batch does with a client; it never sees the client itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import attrs

from knouds_async._io.limiter import LimiterStats
from knouds_async._io.pipeline import Pipeline
from knouds_async._sansio import endpoints
from knouds_async._sansio.entries import Payer
from knouds_async._sansio.reconcile import Wanted
from knouds_async.errors import NotFoundError, PermissionDeniedError
from knouds_async.execution import Execution
from knouds_async.types import SubmissionSearch, Target


@attrs.frozen(eq=False, repr=False)
class BatchClient:
    """Send calls, get the handle of a run, search the usage rows, ask for time and quotas and whose key this is.

    `begun` takes a receipt and its target, `attach` an id and its target. `run_lasts`: seconds that a synchronous run
    may take. `longest`: seconds of the longest pause that calls bear. `one_go`: the targets whose provider cannot be
    polled, as far as this client has learned.
    """

    pipeline: Pipeline
    begun: Callable[..., Execution]
    attach: Callable[..., Execution]
    search: Callable[[Wanted], Awaitable[SubmissionSearch]]
    base_url: str
    run_lasts: float
    stats: Callable[[str], LimiterStats]
    longest: float
    one_go: set[Target] = attrs.field(factory=set)
    _payers: list[Payer] = attrs.field(factory=list)  # the one, once it is known

    def expecting(self, seconds: float | None) -> BatchClient:
        """Give the same service, whose runs should take so long."""
        begun, attach = partial(self.begun, expected=seconds), partial(self.attach, expected=seconds)
        return attrs.evolve(self, begun=begun, attach=attach)

    async def payer(self) -> Payer:
        """Return whose key this is, and of which service; asked once. A service that does not say leaves it open."""
        if not self._payers:
            try:
                user = (await self.pipeline.send(endpoints.whoami())).id
            except (NotFoundError, PermissionDeniedError) as error:
                if error.status == 403 and not error.from_service:  # what stands in between would answer the runs too
                    raise
                user = None
            self._payers.append(Payer(user=user, base_url=self.base_url))
        return self._payers[0]
