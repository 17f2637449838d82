"""`knouds cancel`: cancel a run."""

from __future__ import annotations

from knouds_async.cli import output
from knouds_async.cli.options import BaseUrl, ExecutionId, Json
from knouds_async.cli.service import query
from knouds_async.cli.shown import print_state


def cancel(execution_id: ExecutionId, /, *, as_json: Json = False, base_url: BaseUrl = None) -> None:
    """Ask for the end of a run.

    It is charged all the same. It may take a moment: what is shown is how the run stands then. A run that is already
    over is no error: it is shown as it ended.
    """
    state = query(base_url, lambda knouds: knouds.executions.cancel(execution_id))
    if as_json:
        output.print_json(state)
    else:
        print_state(state)
    if not state.is_final:
        output.print_info(f"It ends soon; `knouds status {state.execution_id}` shows when.")
