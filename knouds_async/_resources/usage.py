"""knouds.usage: the account's own use of the API, row by row (contract 10)."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from datetime import UTC, datetime
from typing import overload

import attrs

from knouds_async._io.concurrency import ServiceTime
from knouds_async._io.pipeline import Send, search_usage
from knouds_async._sansio import endpoints
from knouds_async._sansio.inputs import checked_slug
from knouds_async._sansio.reconcile import LAG, KnownRun, LostSubmit, RecentRuns, Wanted
from knouds_async.config import is_number
from knouds_async.errors import InvalidArgumentError, SubmissionUnknownError
from knouds_async.types import SubmissionSearch, Target, UsagePage, UsageRow


class Usage:
    """Usage rows, newest first."""

    def __init__(self, send: Send, time: ServiceTime, recent: RecentRuns) -> None:
        self._send = send
        self._time = time
        self._recent = recent

    async def list(
        self,
        *,
        status: str | None = None,
        model_id: str | None = None,
        workflow_slug: str | None = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> UsagePage:
        """Return one page: `limit` rows (50 when None, 500 at most) from `offset` on, filtered by what is not None."""
        filters = {"status": status, "model_id": model_id, "workflow_slug": workflow_slug}
        return await self._send(endpoints.list_usage(**filters, limit=limit, offset=offset))

    def iter(
        self,
        *,
        status: str | None = None,
        model_id: str | None = None,
        workflow_slug: str | None = None,
        page_size: int = endpoints.LARGEST_PAGE,
    ) -> UsageRows:
        """Iterate over all rows, page by page: `async for row in knouds.usage.iter(): ...`.

        Rows that arrive meanwhile push older ones down; a row whose id was returned already is left out.
        """
        endpoints.list_usage(status=status, model_id=model_id, workflow_slug=workflow_slug, limit=page_size)  # checks
        return UsageRows(self, {"status": status, "model_id": model_id, "workflow_slug": workflow_slug}, page_size)

    @overload
    async def find_submission(
        self, error: SubmissionUnknownError, /, *, tolerance: float = LAG, exclude: Collection[str] = ()
    ) -> SubmissionSearch: ...

    @overload
    async def find_submission(
        self, target: Target | str, sent_at: datetime | float, *, tolerance: float = LAG, exclude: Collection[str] = ()
    ) -> SubmissionSearch: ...

    async def find_submission(
        self,
        target: Target | str | SubmissionUnknownError,
        sent_at: datetime | float | None = None,
        *,
        tolerance: float = LAG,
        exclude: Collection[str] = (),
    ) -> SubmissionSearch:
        """Search for a submit whose outcome is unknown: proof that it began no run, or every row that could be it.

        Give the SubmissionUnknownError itself, which knows when it left by the service's clock; or what was submitted
        and when, as `error.sent_at` said (an aware datetime, or epoch seconds): of a submit of another client that
        finds the rows that could be it, but proves nothing, for the clock that told the time may have been set since.
        `tolerance`: seconds by which rows may be late. `exclude`: request ids of other runs that are known to have run
        on the account of the submit. One of them at least has to stand in the rows, else they may be another account's;
        for a submit of this client's own, so do the runs that it submitted. It never picks one of several; `reasons`
        of what it returns say what keeps it from being conclusive. Contract 10.
        """
        error = target if isinstance(target, SubmissionUnknownError) else None
        known, lag = _target(target), _seconds(tolerance)
        sent = _datetime(sent_at) if error is None else error.sent_at
        if isinstance(exclude, str) or not all(isinstance(each, str) for each in exclude):
            raise InvalidArgumentError(f"exclude={exclude!r:.80}: must be a collection of request ids")
        if not self._time.moment().is_known:
            await self.list(limit=1)  # tells it
        lost = self._recent.lost(known, sent)
        wanted = self._wanted(error, known, sent, lost)
        own = self._recent.of(known, is_of_account=lost is not None)
        runs = (*own, *(KnownRun(request_id=each, begun_by=0.0) for each in exclude))
        return await search_usage(self._send, attrs.evolve(wanted, known=runs, lag=lag), self._time)

    def _wanted(
        self, error: SubmissionUnknownError | None, target: Target, sent_at: datetime, lost: LostSubmit | None
    ) -> Wanted:
        """Return what is known of a submit: from its error, from what this client remembers, or as it was given."""
        if error is not None and error.sent_after is not None:
            return Wanted.of_error(error, target)
        if lost is not None:
            return Wanted.between(self._time.moment(lost.since), self._time.moment(lost.until), lost.lasts, target)
        if error is not None:
            return Wanted.of_error(error, target)
        return Wanted.at(sent_at.timestamp(), target, self._time.moment())

    async def models(self) -> tuple[str, ...]:
        """Return the distinct model ids of the account's usage."""
        return await self._send(endpoints.usage_models())


class UsageRows:
    """All usage rows, as an async iterator that requests a page when it has run out of rows."""

    def __init__(self, usage: Usage, filters: dict[str, str | None], page_size: int) -> None:
        self._usage = usage
        self._filters = filters
        self._page_size = page_size
        self._offset = 0
        self._rows: deque[UsageRow] = deque()
        self._returned_ids: set[int | str] = set()
        self._is_last = False

    def __aiter__(self) -> UsageRows:
        """Return itself."""
        return self

    async def __anext__(self) -> UsageRow:
        """Return the next row. Cancelled: nothing is lost, the next step requests the same page again."""
        while not self._rows and not self._is_last:
            self._take(await self._usage.list(**self._filters, limit=self._page_size, offset=self._offset))
        if not self._rows:
            raise StopAsyncIteration
        return self._rows.popleft()

    def _take(self, page: UsagePage) -> None:
        """Keep the rows not returned yet; a page that brings no row is the last, whatever `total` says."""
        self._offset += len(page.rows)
        is_full = page.total is None or self._offset < page.total
        self._is_last = not page.rows or not is_full
        for row in page.rows:
            if row.id is None or row.id not in self._returned_ids:
                self._rows.append(row)
            if row.id is not None:
                self._returned_ids.add(row.id)


def _target(target: object) -> Target:
    if isinstance(target, SubmissionUnknownError):
        target = target.target
    known = Target.parse(target) if isinstance(target, str) else target
    if not isinstance(known, Target):
        said = f"target={target!r:.80}: must be a SubmissionUnknownError, a Target or its text (workflows/<slug>)"
        raise InvalidArgumentError(said)
    checked_slug(known.name)
    return known


def _datetime(value: datetime | float | None) -> datetime:
    if value is None:
        raise InvalidArgumentError("sent_at is missing: say when it was sent, or give the error itself")
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise InvalidArgumentError(
                f"sent_at={value!r}: must have a time zone; pass the error itself, or its `sent_at`"
            )
        return value
    return datetime.fromtimestamp(_seconds(value, "sent_at"), UTC)


def _seconds(value: float, name: str = "tolerance") -> float:
    if is_number(value) and 0 <= value < 1e11:
        return float(value)
    raise InvalidArgumentError(f"{name}={value!r}: must be a number of seconds of at least 0")
