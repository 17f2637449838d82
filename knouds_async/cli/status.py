"""`knouds status`: how a run stands."""

from __future__ import annotations

from knouds_async.cli import output
from knouds_async.cli.options import BaseUrl, ExecutionId, Json
from knouds_async.cli.service import ask
from knouds_async.cli.shown import give_state


def status(execution_id: ExecutionId, /, *, as_json: Json = False, base_url: BaseUrl = None) -> None:
    """Show how a run stands, with its result once it is there.

    The exit code is 0 whatever became of the run: it says that the look went well.
    """
    state = ask(base_url, lambda knouds: knouds.executions.get(execution_id))
    if as_json:
        output.give_json(state)
    else:
        give_state(state)
