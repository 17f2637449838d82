"""A process that works through jobs on a ledger, by a machine's clocks; its outcomes go to stdout, a line each.

Not a test: it is started by those that stop and kill it, with one JSON object as its argument.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.scenarios.clocks import install
from tests.scenarios.shared_clocks import SharedClocks


async def _tick() -> None:
    """Look at the clock often: a wait that has begun does not see that it was moved."""
    while True:  # noqa: ASYNC110  (nobody has an event for it)
        await asyncio.sleep(0.02)


async def _work(order: dict[str, Any]) -> None:
    from knouds_async import AsyncKnouds, Completed, Job, NotRun, SQLiteLedger

    jobs = [Job(key, {"product_name": key}) for key in order["keys"]]
    ticking = asyncio.create_task(_tick())
    async with (
        AsyncKnouds(order["api_key"], base_url=order["url"]) as knouds,
        SQLiteLedger(order["ledger"]) as ledger,
        knouds.workflows.map(order["slug"], jobs, ledger=ledger, **order["options"]) as outcomes,
    ):
        os.write(1, b'{"begun": true}\n')
        count = 0
        async for outcome in outcomes:
            run = outcome.run if isinstance(outcome, Completed) else None
            execution_id = None if isinstance(outcome, NotRun) else outcome.execution_id
            told = [outcome.job.key, type(outcome).__name__, execution_id, "" if run is None else str(run.result)]
            os.write(1, json.dumps({"told": told}).encode() + b"\n")
            count += 1
            if count == order["stop_after"]:
                outcomes.stop()
    ticking.cancel()
    os.write(1, b'{"done": true}\n')


def main() -> None:
    """Work, and say what ended it."""
    order = json.loads(sys.argv[1])
    install(SharedClocks(Path(order["clocks"])))
    from knouds_async import KnoudsError

    try:
        asyncio.run(_work(order))
    except (KnoudsError, KeyboardInterrupt) as error:
        os.write(1, json.dumps({"ended": f"{type(error).__name__}: {error}"}).encode() + b"\n")


if __name__ == "__main__":
    main()
