"""`knouds workflows`: list the workflows that the account can see."""

from __future__ import annotations

from knouds_async.cli import output
from knouds_async.cli.options import BaseUrl, Json
from knouds_async.cli.service import query


def workflows(*, as_json: Json = False, base_url: BaseUrl = None) -> None:
    """List your workflows, and the public templates.

    Columns: slug, name, estimated credits of a run, last change. Piped, they are separated by tabs.
    """
    found = query(base_url, lambda knouds: knouds.workflows.list())
    if as_json:
        output.print_json(found)
        return
    output.print_table(
        ("slug", "name", "credits", "changed (UTC)"),
        [(workflow.slug, workflow.name, workflow.estimated_credit_cost, workflow.updated_at) for workflow in found],
    )
