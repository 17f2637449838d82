"""Which usage rows could be a submit whose outcome is unknown: all that could, never a pick among them. Pure.

Source: contract 10. That rows come newest first is only assumed there, so it is watched: as long as it holds the walk
ends at rows older than the submit, otherwise every row is read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

import attrs

from knouds_async.types import SubmissionSearch, Target, UsagePage, UsageRow


@attrs.frozen(kw_only=True)
class Wanted:
    """The submit that is looked for: its target, when it left, how far times may be off, what is accounted for.

    `exclude`: request ids of other runs. Each accounts for one row, for nobody promises that no two runs share one.
    `skew`: by how much the service's clock is ahead of the local one. `sent_at` may have been told by either, for the
    first submit of a process leaves before the service's clock was heard; so both are looked at.
    """

    target: Target
    sent_at: datetime
    tolerance: timedelta
    exclude: Collection[str] = ()
    skew: timedelta = timedelta()

    @property
    def moments(self) -> tuple[datetime, datetime]:
        """When it left, by the service's clock: as told by that clock, or by the local one."""
        return self.sent_at, self.sent_at + self.skew

    def is_conclusive_at(self, server_now: datetime) -> bool:
        """Tell whether its row would be there by now; a moment that is still to come is not when it left."""
        past = [moment for moment in self.moments if moment <= server_now]
        return bool(past) and all(server_now >= moment + self.tolerance for moment in past)

    def could_be(self, row: UsageRow) -> bool:
        """Tell whether a row could be the submit; what a row does not say does not rule it out."""
        created = row.created_at
        if created is not None and all(abs(created - moment) > self.tolerance for moment in self.moments):
            return False
        if self.target.kind == "workflows":
            return row.workflow_slug in (self.target.name, None) and row.source != "api-slim"
        return row.workflow_slug is None and (self.target.name in row.model_ids or not row.model_ids)

    def may_be_another(self, row: UsageRow) -> bool:
        """Tell whether a row can be one of the runs that are accounted for; an empty request id names none."""
        return bool(row.request_id) and row.request_id in self.exclude

    def is_before(self, row: UsageRow) -> bool:
        """Tell whether a row is older than the submit can be."""
        return row.created_at is not None and row.created_at < min(self.moments) - self.tolerance


@attrs.frozen(kw_only=True)
class Search:
    """A walk through the pages of usage rows: `next_offset` is None when it has seen all it needs."""

    wanted: Wanted
    next_offset: int | None = 0
    found: tuple[UsageRow, ...] = ()
    others: Mapping[str | None, UsageRow] = attrs.Factory(dict[str | None, UsageRow])
    oldest: datetime | None = None
    is_ordered: bool = True
    is_whole: bool = True

    def take(self, page: UsagePage) -> Search:
        """Look through one page."""
        found, others, oldest, is_ordered = list(self.found), dict(self.others), self.oldest, self.is_ordered
        for row in page.rows:
            if row.created_at is not None:
                is_ordered = is_ordered and (oldest is None or row.created_at <= oldest)
                oldest = row.created_at
            if not self.wanted.could_be(row):
                continue
            is_another = self.wanted.may_be_another(row) and _is_same(row, others.setdefault(row.request_id, row))
            if not is_another and not any(_is_same(row, known) for known in found):
                found.append(row)
        offset = (self.next_offset or 0) + len(page.rows)
        is_past = is_ordered and any(self.wanted.is_before(row) for row in page.rows)
        is_end = page.total is None or offset >= page.total
        is_last = not page.rows or is_past or (page.total is not None and is_end)
        is_whole = self.is_whole and _all_read(page) and (bool(page.rows) or is_end)
        return attrs.evolve(
            self,
            next_offset=None if is_last else offset,
            found=tuple(found),
            others=others,
            oldest=oldest,
            is_ordered=is_ordered,
            is_whole=is_whole,
        )

    def result(self, server_now: datetime) -> SubmissionSearch:
        """Give what was found; too early, or with rows unread, it cannot say that there is none."""
        is_conclusive = self.is_whole and self.wanted.is_conclusive_at(server_now)
        return SubmissionSearch(candidates=self.found, is_conclusive=is_conclusive)


def _is_same(row: UsageRow, known: UsageRow) -> bool:
    """Tell whether two rows are one: new rows push a row on to the next page, and it may have changed by then."""
    return row == known if row.id is None else row.id == known.id


def _all_read(page: UsagePage) -> bool:
    """Tell whether every row of the answer could be read."""
    rows = page.raw.get("rows") if isinstance(page.raw, dict) else page.rows
    return isinstance(rows, (list, tuple)) and len(rows) == len(page.rows)
