"""knouds.usage: the account's own use of the API, row by row (contract 10)."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from knouds_async._io.pipeline import Send, ServiceClock
from knouds_async._sansio import calls, names
from knouds_async._sansio.reconcile import Search, Wanted
from knouds_async.errors import InvalidArgumentError
from knouds_async.types import SubmissionSearch, Target, UsagePage, UsageRow


class Usage:
    """Usage rows, newest first."""

    def __init__(self, send: Send, clock: ServiceClock) -> None:
        """Belong to one client; `clock`: the service's."""
        self._send = send
        self._clock = clock

    async def list(
        self,
        *,
        status: str | None = None,
        model_id: str | None = None,
        workflow_slug: str | None = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> UsagePage:
        """Give one page: `limit` rows (50 when None, 500 at most) from `offset` on, filtered by what is not None."""
        filters = {"status": status, "model_id": model_id, "workflow_slug": workflow_slug}
        return await self._send(calls.list_usage(**filters, limit=limit, offset=offset))

    def iter(
        self,
        *,
        status: str | None = None,
        model_id: str | None = None,
        workflow_slug: str | None = None,
        page_size: int = calls.LARGEST_PAGE,
    ) -> UsageRows:
        """Walk all rows, page by page: `async for row in knouds.usage.iter(): ...`.

        Rows that arrive meanwhile push older ones down; a row with an id that was given already is left out.
        """
        calls.list_usage(status=status, model_id=model_id, workflow_slug=workflow_slug, limit=page_size)  # checks
        return UsageRows(self, {"status": status, "model_id": model_id, "workflow_slug": workflow_slug}, page_size)

    async def find_submission(
        self,
        target: Target | str,
        sent_at: datetime | float,
        *,
        tolerance: float = 120.0,
        exclude: Collection[str] = (),
    ) -> SubmissionSearch:
        """Look for a submit whose outcome is unknown: certainly none, or every row that could be it.

        `target`, `sent_at`: as SubmissionUnknownError has them (an aware datetime, or epoch seconds). `tolerance`:
        seconds that the row may be dated before or after it. `exclude`: request ids that are accounted for. Before
        `tolerance` has passed since the submit the search is not conclusive. It never picks one of several.
        """
        known, moment, span = _target(target), _moment(sent_at), timedelta(seconds=_seconds(tolerance))
        slug = known.name if known.kind == "workflows" else None
        model = known.name if known.kind == "models" else None
        page = await self.list(workflow_slug=slug, model_id=model, limit=calls.LARGEST_PAGE, offset=0)
        began, skew = self._clock.server_now(), self._clock.skew()  # known by now, from that answer
        wanted = Wanted(target=known, sent_at=moment, tolerance=span, exclude=frozenset(exclude), skew=skew)
        search = Search(wanted=wanted).take(page)
        while search.next_offset is not None:
            page = await self.list(
                workflow_slug=slug, model_id=model, limit=calls.LARGEST_PAGE, offset=search.next_offset
            )
            search = search.take(page)
        return search.result(began)

    async def models(self) -> tuple[str, ...]:
        """Give the distinct model ids of the account's usage."""
        return await self._send(calls.usage_models())


class UsageRows:
    """All usage rows, as an async iterator that asks for a page when it has run out of rows."""

    def __init__(self, usage: Usage, filters: dict[str, str | None], page_size: int) -> None:
        """Made by `Usage.iter`."""
        self._usage = usage
        self._filters = filters
        self._page_size = page_size
        self._offset = 0
        self._rows: deque[UsageRow] = deque()
        self._given: set[int | str] = set()
        self._is_last = False

    def __aiter__(self) -> UsageRows:
        """Iterate over itself."""
        return self

    async def __anext__(self) -> UsageRow:
        """Give the next row. Cancelled: nothing is lost, the next step asks for the same page again."""
        while not self._rows and not self._is_last:
            self._take(await self._usage.list(**self._filters, limit=self._page_size, offset=self._offset))
        if not self._rows:
            raise StopAsyncIteration
        return self._rows.popleft()

    def _take(self, page: UsagePage) -> None:
        """Keep the rows not given yet; a page that brings no row ends the walk, whatever `total` says."""
        self._offset += len(page.rows)
        is_full = page.total is None or self._offset < page.total
        self._is_last = not page.rows or not is_full
        for row in page.rows:
            if row.id is None or row.id not in self._given:
                self._rows.append(row)
            if row.id is not None:
                self._given.add(row.id)


def _target(target: Target | str) -> Target:
    known = Target.parse(target) if isinstance(target, str) else target
    names.slug(known.name)
    return known


def _moment(moment: datetime | float) -> datetime:
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise InvalidArgumentError(f"sent_at={moment!r}: must know its time zone; take it from the error as it is")
        return moment
    return datetime.fromtimestamp(_seconds(moment, "sent_at"), UTC)


def _seconds(value: float, name: str = "tolerance") -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e11:
        return float(value)
    raise InvalidArgumentError(f"{name}={value!r}: must be a number of seconds of at least 0")
