"""A page of the usage listing, read for the request id and the status of each row only (contract 10)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import attrs

from knouds_async._sansio.responses import Answer, UnreadableError, parsed

RowStatus: TypeAlias = tuple[str, str]
"""A request id and what a row says of its status."""


@attrs.frozen
class StatusPage:
    """A page: the usable rows, how many rows it had, how many match in all (None: not given)."""

    row_statuses: tuple[RowStatus, ...]
    row_count: int
    total: int | None = None


def read_status_page(answer: Answer) -> StatusPage:
    """Return a page; unusable rows are left out, and raise UnreadableError without a list of rows."""
    body = parsed(answer.body)
    rows = body.get("rows") if isinstance(body, Mapping) else None
    if not isinstance(rows, list):
        raise UnreadableError("'rows' is not a list")
    row_statuses = []
    for row in rows:
        if isinstance(row, dict):
            request, status = row.get("requestId"), row.get("status")
            if isinstance(request, str) and isinstance(status, str):
                row_statuses.append((request, status))
    total = body.get("total")
    return StatusPage(tuple(row_statuses), len(rows), total if isinstance(total, int) else None)
