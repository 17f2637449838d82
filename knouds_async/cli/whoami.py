"""`knouds whoami`: show the account of the key."""

from __future__ import annotations

from knouds_async.cli import output
from knouds_async.cli.options import BaseUrl, Json
from knouds_async.cli.service import query


def whoami(*, as_json: Json = False, base_url: BaseUrl = None) -> None:
    """Show whose key $KNOUDS_KEY is."""
    account = query(base_url, lambda knouds: knouds.whoami())
    if as_json:
        output.print_json(account)
        return
    output.print_pairs(
        ("account", account.email or account.id),
        ("id", account.id),
        ("tier", account.tier),
        ("role", account.role),
        ("approved", account.approved),
    )
