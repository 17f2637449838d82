"""`knouds schema`: show the inputs of a workflow."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from knouds_async import SchemaField
from knouds_async.cli import output
from knouds_async.cli.options import BaseUrl, Json, Slug
from knouds_async.cli.service import query

Public = Annotated[bool, Parameter(show_default=False, help="Of a public playground; needs no key and sends none.")]


def schema(slug: Slug, /, *, public: Public = False, as_json: Json = False, base_url: BaseUrl = None) -> None:
    """Show the inputs that a workflow takes.

    Columns: name, type, whether required, default, what is allowed, help. Piped, they are separated by tabs.
    """
    found = query(
        base_url,
        lambda knouds: knouds.workflows.public_schema(slug) if public else knouds.workflows.schema(slug),
        needs_key=not public,
    )
    if as_json:
        output.print_json(found)
        return
    estimate = found.estimated_credit_cost
    cost = f"about {output.format_cell(estimate)} credits a run" if estimate is not None else None
    about = ": ".join(part for part in (found.name or slug, found.description) if part)
    output.print_info("; ".join(part for part in (about, cost) if part))
    if not found.fields:
        output.print_info("It takes no inputs.")
        return
    output.print_table(
        ("input", "type", "required", "default", "allowed", "help"),
        [
            (field.name, field.type, field.required, field.default, _allowed(field), field.helper_text)
            for field in found.fields
        ],
    )


def _allowed(field: SchemaField) -> str:
    """Return what a field allows: its options, or its bounds and step."""
    if field.options:
        return ", ".join(output.format_cell(option) for option in field.options)
    bounds = [f"{output.format_cell(bound)}" for bound in (field.min, field.max) if bound is not None]
    step = f" in steps of {output.format_cell(field.step)}" if field.step is not None else ""
    return f"{' to '.join(bounds)}{step}".strip()
