"""A streaq worker on trio: each job is run once, however often Redis delivers its task.

Reads $REDIS_URL for the queue, $DATABASE_URL for the ledger, and the key from $KNOUDS_KEY. Start as many workers as you
like with `python streaq_worker.py work`, and enqueue jobs with `... enqueue "A coffee mug" "A lamp"`.

Redis may lose what it was told a moment ago, so that it is no place for a ledger; for a queue that is no harm: a task
that comes twice, or is enqueued again, has the same key.
"""

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from streaq import StreaqRetry, Worker

from knouds_async import AsyncKnouds, Completed, Job, Unknown
from knouds_async.postgres import Postgres

SLUG = "my-thumbnail-pipeline"
IDLE_TIMEOUT = float(os.environ.get("IDLE_TIMEOUT", "60"))  # seconds after which a killed worker's tasks go to others
PROVABLE_AFTER = int(os.environ.get("PROVABLE_AFTER", "180"))  # seconds until it can be proven that none began

shared = Postgres(os.environ["DATABASE_URL"], name="renders")


@asynccontextmanager
async def lifespan() -> AsyncIterator[AsyncKnouds]:
    """Keep one client and one connection for all tasks of this process."""
    async with shared, AsyncKnouds() as knouds:
        yield knouds


worker = Worker(
    redis_url=os.environ.get("REDIS_URL", "redis://localhost:6379"),
    lifespan=lifespan,
    concurrency=2000,  # the rate times the time that runs take, not the cores
    serializer=json.dumps,  # by default it is pickle
    deserializer=json.loads,
    idle_timeout=IDLE_TIMEOUT,
    anyio_backend="trio",
)


@worker.task(name="render", max_tries=20, timeout=None)
async def render(key: str, inputs: dict[str, Any]) -> str | None:
    """Run one job. A second delivery of its key waits for the same run, or finds the outcome on record."""
    outcome = await worker.context.workflows.once(SLUG, Job(key, inputs), ledger=shared)
    if isinstance(outcome, Completed):
        print(key, outcome.execution_id, flush=True)  # save `outcome.run` here
        return outcome.execution_id
    if isinstance(outcome, Unknown):  # a kill struck its submit: look again once that can be proven
        raise StreaqRetry("its submit is unknown", delay=PROVABLE_AFTER)
    print(key, outcome, file=sys.stderr, flush=True)  # for a person
    return None


async def enqueue(names: list[str]) -> None:
    """Enqueue a task for each name, which is its key."""
    async with worker:
        for name in names:
            await render.enqueue(name, {"product_name": name})


if __name__ == "__main__":
    command, *names = sys.argv[1:] or ["work"]
    if command == "enqueue":
        trio.run(enqueue, names)
    else:
        worker.run_sync()
