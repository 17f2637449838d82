"""A process that works through jobs on a ledger, by a machine's clocks; its outcomes go to stdout, a line each.

Not a test: it is started by those that stop and kill it, with one JSON object as its argument.
"""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import selectors
import sys
from pathlib import Path
from typing import Any

from tests.scenarios.clocks import install
from tests.scenarios.shared_clocks import SharedClocks


def wake_often() -> None:
    """Make event loops read the clock often: a wait that has begun does not notice that the clock was changed."""
    select = selectors.DefaultSelector.select

    def short(self: selectors.DefaultSelector, timeout: float | None = None) -> Any:
        return select(self, 0.02 if timeout is None else min(timeout, 0.02))

    selectors.DefaultSelector.select = short  # type: ignore[method-assign]


async def _work(order: dict[str, Any]) -> None:
    from knouds_async import AsyncKnouds, Completed, Job, NotRun, SQLiteLedger

    jobs = [Job(key, {"product_name": key}) for key in order["keys"]]
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
    os.write(1, b'{"done": true}\n')


def _run_command(order: dict[str, Any]) -> None:
    """Work as the command `knouds batch` does, which appends its outcomes to a file."""
    jobs = Path(order["out"]).with_suffix(".jsonl")
    lines = (json.dumps({"key": key, "inputs": {"product_name": key}}) for key in order["keys"])
    jobs.write_text("".join(f"{line}\n" for line in lines))
    os.environ["KNOUDS_KEY"] = order["api_key"]
    options = order["options"]
    sys.argv = ["knouds", "batch", order["slug"], str(jobs), "--ledger", order["ledger"], "--out", order["out"]]
    sys.argv += ["--base-url", order["url"], "--max-in-flight", str(options["max_in_flight"])]
    if options["max_credits"] is not None:
        sys.argv += ["--max-credits", str(options["max_credits"])]
    runpy.run_module("knouds_async", run_name="__main__", alter_sys=True)


def main() -> None:
    """Work, and say what ended it."""
    order = json.loads(sys.argv[1])
    install(SharedClocks(Path(order["clocks"])))
    wake_often()
    if order["out"]:
        _run_command(order)
        return
    from knouds_async import KnoudsError

    try:
        asyncio.run(_work(order))
    except (KnoudsError, KeyboardInterrupt) as error:
        os.write(1, json.dumps({"ended": f"{type(error).__name__}: {error}"}).encode() + b"\n")


if __name__ == "__main__":
    main()
