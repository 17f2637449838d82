"""A Procrastinate worker: each job is run once, however often its task is delivered.

Reads $DATABASE_URL and the key from $KNOUDS_KEY. Prepare the database with `python procrastinate_worker.py schema`,
start as many workers as you like with `... work`, and defer jobs with `... defer "A coffee mug" "A lamp"`.

Procrastinate gives the jobs of a worker that was killed to nobody by itself: the sweep does, and the ledger sees to it
that none of them is paid for twice.
"""

import asyncio
import os
import sys
from typing import Any

from procrastinate import App, JobContext, PsycopgConnector
from procrastinate.exceptions import ConnectorException

from knouds_async import AsyncKnouds, Completed, Job, Unknown
from knouds_async.postgres import Postgres

SLUG = "my-thumbnail-pipeline"
STALLED_AFTER = float(os.environ.get("STALLED_AFTER", "60"))  # seconds without a sign of life of a worker
PROVABLE_AFTER = int(os.environ.get("PROVABLE_AFTER", "180"))  # seconds until it can be proven that none began

url = os.environ["DATABASE_URL"]
app = App(connector=PsycopgConnector(conninfo=url))
shared = Postgres(url, name="renders")


@app.task(name="render", queue="renders", pass_context=True)
async def render(context: JobContext, key: str, inputs: dict[str, Any], looks: int = 0) -> None:
    """Run one job. A second delivery of its key waits for the same run, or finds the outcome on record."""
    knouds: AsyncKnouds = context.additional_context["knouds"]
    outcome = await knouds.workflows.once(SLUG, Job(key, inputs), ledger=shared)
    if isinstance(outcome, Completed):
        print(key, outcome.execution_id, flush=True)  # save `outcome.run` here
    elif isinstance(outcome, Unknown) and looks < 3:  # a kill struck its submit: look again once that can be proven
        later = render.configure(schedule_in={"seconds": PROVABLE_AFTER})
        await later.defer_async(key=key, inputs=inputs, looks=looks + 1)
    else:
        raise RuntimeError(f"{key}: {outcome}")  # the queue shows it as failed, for a person


async def sweep() -> None:
    """Hand the jobs of workers that were killed to others."""
    while True:
        try:
            for job in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=STALLED_AFTER):
                await app.job_manager.retry_job(job)
        except ConnectorException as error:  # another worker was faster, or the database is away
            print(error, file=sys.stderr)
        await asyncio.sleep(STALLED_AFTER / 2)


async def work() -> None:
    """Work on jobs until a signal ends it; `concurrency` is the rate times the time that runs take, not the cores."""
    async with app.open_async(), shared, AsyncKnouds() as knouds:
        sweeping = asyncio.create_task(sweep())
        await app.run_worker_async(
            queues=["renders"],
            concurrency=2000,
            additional_context={"knouds": knouds},
            update_heartbeat_interval=STALLED_AFTER / 6,
            stalled_worker_timeout=STALLED_AFTER / 2,
            delete_jobs="successful",
        )
        sweeping.cancel()


async def defer(names: list[str]) -> None:
    """Defer a job for each name, which is its key: a key that is made anew for each delivery would protect nothing."""
    async with app.open_async():
        for name in names:
            await render.defer_async(key=name, inputs={"product_name": name})


async def prepare() -> None:
    """Make the tables of both."""
    async with app.open_async(), shared:
        await app.schema_manager.apply_schema_async()


if __name__ == "__main__":
    command, *names = sys.argv[1:] or ["work"]
    asyncio.run(defer(names) if command == "defer" else prepare() if command == "schema" else work())
