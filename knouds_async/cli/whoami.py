"""`knouds whoami`: whose key this is."""

from __future__ import annotations

from knouds_async.cli import output
from knouds_async.cli.options import BaseUrl, Json
from knouds_async.cli.service import ask


def whoami(*, as_json: Json = False, base_url: BaseUrl = None) -> None:
    """Show whose key $KNOUDS_KEY is."""
    account = ask(base_url, lambda knouds: knouds.whoami())
    if as_json:
        output.give_json(account)
        return
    output.give_pairs(
        ("account", account.email or account.id),
        ("id", account.id),
        ("tier", account.tier),
        ("role", account.role),
        ("approved", account.approved),
    )
