"""`knouds status`: show the state of a run."""

from __future__ import annotations

from knouds_async.cli import output
from knouds_async.cli.options import BaseUrl, ExecutionId, Json
from knouds_async.cli.service import query
from knouds_async.cli.shown import print_state


def status(execution_id: ExecutionId, /, *, as_json: Json = False, base_url: BaseUrl = None) -> None:
    """Show the state of a run, with its result once it has finished.

    The exit code is 0 whatever the status of the run: it says that the request succeeded.
    """
    state = query(base_url, lambda knouds: knouds.executions.get(execution_id))
    if as_json:
        output.print_json(state)
    else:
        print_state(state)
