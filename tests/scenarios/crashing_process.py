"""A process that runs a batch on a ledger until it is done or dies; its outcomes go to stdout, a line each.

Not a test: it is started by those that kill it. `STEP:NTH` as the last argument has it die by `os._exit` at the nth
time that it comes to a step.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from knouds_async import AsyncKnouds, Completed, Job, LedgerEntry, Outcome, Polling, SQLiteLedger
from knouds_async.ledgers import Claim, Claimed, Event, Written

SLUG = "my-thumbnail-pipeline"


class Mortal(SQLiteLedger):
    """A ledger whose process dies at a step: `before` it is written, or `after`, before the caller knows."""

    step, nth = "", 0

    def _come_to(self, step: str) -> None:
        if step == self.step:
            self.nth -= 1
            if self.nth == 0:
                os._exit(9)

    async def look(self, key: str) -> LedgerEntry | None:
        """Check the step, and perhaps die."""
        self._come_to("before look")
        return await super().look(key)

    async def claim(self, claim: Claim) -> Claimed:
        """Claim, and perhaps die."""
        self._come_to("before claim")
        claimed = await super().claim(claim)
        self._come_to("after claim")
        return claimed

    async def record(self, key: str, attempt: int, event: Event) -> Written:
        """Record, and perhaps die."""
        name = type(event).__name__
        self._come_to(f"before {name}")
        written = await super().record(key, attempt, event)
        self._come_to(f"after {name}")
        return written

    async def leave(self, owner: str) -> None:
        """Leave, and perhaps die."""
        self._come_to("before leave")
        await super().leave(owner)


def _line(outcome: Outcome) -> str:
    source = "ledger" if isinstance(outcome, Completed) and outcome.from_ledger else "run"
    return f"{outcome.job.key} {type(outcome).__name__} {source}\n"


async def main(url: str, path: str, count: int, step: str) -> None:
    """Run `count` jobs and say how each ended."""
    ledger = Mortal(Path(path))
    ledger.step, _, nth = step.rpartition(":")
    ledger.nth = int(nth or 0)
    jobs = [Job(f"job-{number}", {"product_name": f"job-{number}"}) for number in range(count)]
    async with (
        AsyncKnouds(base_url=url, polling=Polling.every(0.05)) as knouds,
        ledger,
        knouds.workflows.map(SLUG, jobs, ledger=ledger, max_in_flight=8) as outcomes,
    ):
        os.write(1, b"begun\n")
        async for outcome in outcomes:
            os.write(1, _line(outcome).encode())
    os.write(1, b"done\n")


if __name__ == "__main__":
    _, address, file, number, *last = sys.argv
    asyncio.run(main(address, file, int(number), *(last or [""])))
