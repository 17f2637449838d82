"""What is said at the end of a batch: how it went, what is wrong, how to go on."""

from __future__ import annotations

import shlex

from knouds_async.cli import output
from knouds_async.cli.batch.account import as_record, in_words
from knouds_async.cli.batch.state import Run
from knouds_async.cli.words import said_of


def ended(run: Run) -> int:
    """Say how a batch ended, what is wrong and how to go on."""
    order, account = run.order, run.account
    now = account.without_stopped(run.progress)
    code = account.exit(now, run.failure)
    if order.as_json and order.out is not None:
        output.give_json(as_record(now, order.ledger, order.out, code))
        output.finish()  # results first, where both go to one terminal
    output.note(in_words(now))
    for trouble in account.troubles(shlex.quote(str(order.ledger))):
        output.tell(trouble)
    if run.failure is not None:
        output.tell(f"stopped: {said_of(run.failure)}")
    if run.failure is not None or account.is_put_off or (account.is_interrupted and not account.is_complete(now)):
        output.tell(f"To go on: {order.command}")
    return code
