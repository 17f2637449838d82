"""`knouds workflows`: the workflows that the key's account sees."""

from __future__ import annotations

from knouds_async.cli import output
from knouds_async.cli.options import BaseUrl, Json
from knouds_async.cli.service import ask


def workflows(*, as_json: Json = False, base_url: BaseUrl = None) -> None:
    """List your workflows, and the templates that everyone sees.

    Columns: slug, name, estimated credits of a run, last change. Piped, they are separated by tabs.
    """
    listed = ask(base_url, lambda knouds: knouds.workflows.list())
    if as_json:
        output.give_json(listed)
        return
    output.give_table(
        ("slug", "name", "credits", "changed (UTC)"),
        [(one.slug, one.name, one.estimated_credit_cost, one.updated_at) for one in listed],
    )
