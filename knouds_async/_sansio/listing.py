"""A page of the usage listing as a sweep reads it: of each row the request and its status, no more (contract 10)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import attrs

from knouds_async._sansio.responses import Answer, UnreadableError, parsed

Mark: TypeAlias = tuple[str, str]
"""A request id and what a row says of its status."""


@attrs.frozen
class Listing:
    """A page: the marks of the rows that can be used, how many rows it had, how many match in all (None: not said)."""

    marks: tuple[Mark, ...]
    rows: int
    total: int | None = None


def listing(answer: Answer) -> Listing:
    """Read a page; odd rows are left out, and a page without a list of rows is no page."""
    body = parsed(answer.body)
    rows = body.get("rows") if isinstance(body, Mapping) else None
    if not isinstance(rows, list):
        raise UnreadableError("'rows' is not a list")
    marks = []
    for row in rows:
        if isinstance(row, dict):
            request, status = row.get("requestId"), row.get("status")
            if isinstance(request, str) and isinstance(status, str):
                marks.append((request, status))
    total = body.get("total")
    return Listing(tuple(marks), len(rows), total if isinstance(total, int) else None)
