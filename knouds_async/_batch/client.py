"""What the batches of one client share: its parts, whose key it is, and what usage rows prove for them."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import anyio
import attrs

from knouds_async import errors
from knouds_async._batch.ledger import Doubted
from knouds_async._io.limiter import Limiter
from knouds_async._io.pipeline import Pipeline, search_usage
from knouds_async._sansio import endpoints
from knouds_async._sansio.ledger import Payer
from knouds_async._sansio.reconcile import Doubt, KnownRun, Wanted, inconclusive, unaccounted
from knouds_async.config import Retries, Timeouts
from knouds_async.errors import KnoudsError
from knouds_async.execution import ExecutionFactory
from knouds_async.telemetry import fields
from knouds_async.types import RunResult, SubmissionSearch, Target

logger = logging.getLogger("knouds_async")


@attrs.define(eq=False, repr=False)
class BatchClient:
    """The parts of a client that its batches use.

    `save`: fetches the files of a run that are not in a folder yet. `one_go`: the targets whose provider cannot be
    polled, as far as this client has learned.
    """

    pipeline: Pipeline
    executions: ExecutionFactory
    limiter: Limiter
    base_url: str
    timeouts: Timeouts
    retries: Retries
    save: Callable[[RunResult, str | os.PathLike[str]], Awaitable[tuple[Path, ...]]]
    one_go: set[Target] = attrs.field(factory=set)
    _warned: set[str] = attrs.field(factory=set)  # ids of doubts
    _payer: Payer | None = None
    _checking: anyio.Lock = attrs.field(factory=lambda: anyio.Lock())  # noqa: PLW0108  (importing loads none of it)
    _checked: tuple[Doubt, float, SubmissionSearch] | None = None

    async def payer(self) -> Payer:
        """Return whose key this is, and of which service; asked once. A service that does not say leaves it open."""
        if self._payer is None:
            try:
                user = (await self.pipeline.send(endpoints.whoami())).id
            except (errors.NotFoundError, errors.PermissionDeniedError) as error:
                if error.status == 403 and not error.from_service:  # what stands in between would answer the runs too
                    raise
                user = None
            self._payer = Payer(user=user, base_url=self.base_url)
        return self._payer

    async def settle(self, doubted: Doubted, target: Target, account: str | None) -> None:
        """Wait until usage rows prove that a ledger lacks no run; LedgerError where only a person can tell."""
        found: Doubted | None = doubted
        while found is not None and (found := await found.again(self.pipeline.time.moment())) is not None:
            search = await self._check(found, account)
            if search.is_certainly_none:
                found = await found.trust()
                continue
            message = f"{found.message}: {unaccounted(search)}"
            if (pause := found.doubt.next_check(self.pipeline.time.moment())) is None:
                raise errors.LedgerError(
                    f"{message}. Nothing was submitted: look whose runs these are, then allow it with `await "
                    "ledger.trust()` or `knouds ledger trust URL`"
                )
            if found.doubt.id not in self._warned:
                self._warned.add(found.doubt.id)
                waiting = "nothing is submitted until usage rows prove that no run is missing: %s"
                extra = fields("ledger_in_doubt", target=str(target), count=len(search.candidates), wait=pause)
                logger.warning(waiting, message, extra=extra)
            await anyio.sleep(pause)

    async def _check(self, doubted: Doubted, account: str | None) -> SubmissionSearch:
        """Return what usage rows prove of runs that a ledger may lack; those who wait for it share an answer."""

        async def runs() -> list[KnownRun]:
            return [] if account is None else [await self._named(*each) for each in await doubted.runs(account)]

        asked_at = anyio.current_time()
        async with self._checking:
            if self._checked is None or self._checked[0] != doubted.doubt or self._checked[1] < asked_at:
                began = anyio.current_time()
                self._checked = (doubted.doubt, began, await self.search(doubted.doubt.wanted(), runs))
            return self._checked[2]

    async def search(self, wanted: Wanted, known: Callable[[], Awaitable[Sequence[KnownRun]]]) -> SubmissionSearch:
        """Return what usage rows prove of a submit; `known`: returns the runs that are known."""
        try:
            wanted = attrs.evolve(wanted, known=await known())
            return await search_usage(self.pipeline.send, wanted, self.pipeline.time, known)
        except (errors.ClientClosedError, errors.LedgerError):
            raise
        except KnoudsError as error:
            return inconclusive(f"the usage could not be read: {error}")

    async def _named(self, execution_id: str | None, run: KnownRun) -> KnownRun:
        """Return a run with its request id, which only the service knows where somebody has named the run."""
        if execution_id is None or run.request_id:
            return run
        state = await self.pipeline.send(endpoints.get_execution(execution_id))
        return attrs.evolve(run, request_id=state.request_id or "")
