"""`knouds usage`: list the account's runs and their costs."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from knouds_async import AsyncKnouds, UsageRow
from knouds_async.cli import output
from knouds_async.cli.exits import UsageError
from knouds_async.cli.options import BaseUrl, Json
from knouds_async.cli.service import query

RowLimit = Annotated[int | None, Parameter(help="Most rows to list, up to 500; the default is 50.")]
AllRows = Annotated[bool, Parameter(name="--all", show_default=False, help="Every row, page by page.")]
StatusFilter = Annotated[str | None, Parameter(help="Only runs that are processing, completed or failed.")]
WorkflowFilter = Annotated[str | None, Parameter(help="Only runs of the workflow with this slug.")]
ModelFilter = Annotated[str | None, Parameter(help="Only runs that used the model with this id.")]


def usage(
    *,
    limit: RowLimit = None,
    every_row: AllRows = False,
    status: StatusFilter = None,
    workflow: WorkflowFilter = None,
    model: ModelFilter = None,
    as_json: Json = False,
    base_url: BaseUrl = None,
) -> None:
    """List the account's runs, newest first, and their costs.

    Columns: start, workflow or models, status, credits, seconds, error, request id. Piped, they are separated by
    tabs. Runs made in the dashboard are not listed.
    """
    if every_row and limit is not None:
        raise UsageError("--limit and --all exclude each other")

    async def fetch(knouds: AsyncKnouds) -> tuple[list[UsageRow], int | None]:
        if every_row:
            iterator = knouds.usage.iter(status=status, workflow_slug=workflow, model_id=model)
            return [row async for row in iterator], None
        page = await knouds.usage.list(status=status, workflow_slug=workflow, model_id=model, limit=limit)
        return list(page.rows), page.total

    rows, total = query(base_url, fetch)
    if as_json:
        output.print_json(rows)
        return
    if not rows:
        output.print_info("no such runs")
        return
    heads = ("started (UTC)", "what", "status", "credits", "seconds", "error", "request id")
    output.print_table(heads, [_usage_cells(row) for row in rows], unbroken="request id")
    if total is not None and total > len(rows):
        output.print_info(f"{len(rows)} of {total} rows; --all lists all")


def _usage_cells(row: UsageRow) -> tuple[object, ...]:
    seconds = None if row.duration_ms is None else round(row.duration_ms / 1000, 1)
    what = row.workflow_slug or row.model_ids
    return row.created_at, what, row.status, row.credits_cost, seconds, row.error_code, row.request_id
