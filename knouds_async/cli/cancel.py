"""`knouds cancel`: cancel a run."""

from __future__ import annotations

from knouds_async.cli import output
from knouds_async.cli.options import BaseUrl, ExecutionId, Json
from knouds_async.cli.service import query
from knouds_async.cli.shown import print_state


def cancel(execution_id: ExecutionId, /, *, as_json: Json = False, base_url: BaseUrl = None) -> None:
    """Cancel a run.

    It is charged all the same. Cancelling may take a moment; the state after the request is shown. A run that has
    already finished is not an error: its final state is shown.
    """
    state = query(base_url, lambda knouds: knouds.executions.cancel(execution_id))
    if as_json:
        output.print_json(state)
    else:
        print_state(state)
    if not state.is_final:
        output.print_info(f"It will be cancelled soon; `knouds status {state.execution_id}` shows when.")
