"""Drain a table of jobs from several machines at once: `python drain.py` on each of them.

Reads $DATABASE_URL and the key from $KNOUDS_KEY. `python drain.py fill 1000` makes the table and some jobs.

A machine takes 50 rows at a time, past those that others are taking (SKIP LOCKED), and deletes a row after its outcome,
not before: rows of a machine that died come back after TAKEN seconds, and the ledger knows which of them ran.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator

import psycopg

from knouds_async import AsyncKnouds, Cancelled, Completed, Failed, Job, NotRun, NotRunReason, Outcome, SharedLimiter
from knouds_async.postgres import Postgres

SLUG = "my-thumbnail-pipeline"
TAKEN = int(os.environ.get("TAKEN", "900"))  # seconds: longer than a run takes
PROVABLE_AFTER = int(os.environ.get("PROVABLE_AFTER", "180"))  # seconds until it can be proven that none began

TABLES = """
    CREATE TABLE IF NOT EXISTS renders (key text PRIMARY KEY, inputs jsonb NOT NULL, free_at timestamptz DEFAULT now());
    CREATE TABLE IF NOT EXISTS rendered (key text PRIMARY KEY, status text NOT NULL, execution_id text, result jsonb);
"""
TAKE = """
    UPDATE renders SET free_at = now() + make_interval(secs => %s) WHERE key IN (
        SELECT key FROM renders WHERE free_at <= now() ORDER BY free_at LIMIT 50 FOR UPDATE SKIP LOCKED
    ) RETURNING key, inputs
"""

url = os.environ["DATABASE_URL"]
Connection = psycopg.AsyncConnection[tuple[object, ...]]


async def jobs(connection: Connection) -> AsyncIterator[Job]:
    """Yield jobs as the batch has room for them, until there is none to take."""
    while rows := await (await connection.execute(TAKE, (TAKEN,))).fetchall():
        for key, inputs in rows:
            yield Job(str(key), inputs)  # type: ignore[arg-type]  # a JSON object, as `fill` has written it


async def save(connection: Connection, outcome: Outcome) -> None:
    """Write an outcome and delete its row in one transaction; leave the row of a job that is to be looked at again."""
    match outcome:
        case Completed() | Failed() | Cancelled():
            status, result = type(outcome).__name__.lower(), getattr(getattr(outcome, "run", None), "result", None)
            async with connection.transaction():
                await connection.execute(
                    "INSERT INTO rendered VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                    (outcome.job.key, status, outcome.execution_id, json.dumps(result)),
                )
                await connection.execute("DELETE FROM renders WHERE key = %s", (outcome.job.key,))
        case NotRun(reason=NotRunReason.DUPLICATE):  # it came back while this batch has it
            return
        case _:
            print(outcome.job.key, outcome, file=sys.stderr)
            again = "UPDATE renders SET free_at = now() + make_interval(secs => %s) WHERE key = %s"
            await connection.execute(again, (PROVABLE_AFTER, outcome.job.key))


async def drain() -> None:
    """Run batches until the table is empty; each ends when there is nothing to take at that moment."""
    shared = Postgres(url, name="renders")
    async with (
        shared,
        await psycopg.AsyncConnection.connect(url, autocommit=True) as source,
        await psycopg.AsyncConnection.connect(url, autocommit=True) as sink,
        AsyncKnouds(limiter=SharedLimiter(shared)) as knouds,
    ):
        while await (await sink.execute("SELECT FROM renders LIMIT 1")).fetchone() is not None:
            async with knouds.workflows.map(SLUG, jobs(source), ledger=shared) as outcomes:
                async for outcome in outcomes:
                    await save(sink, outcome)
            await asyncio.sleep(2)


async def fill(count: int) -> None:
    """Make the tables and some jobs."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(TABLES)
        for number in range(count):
            inputs = json.dumps({"product_name": f"Lamp {number}"})
            await connection.execute(
                "INSERT INTO renders VALUES (%s, %s) ON CONFLICT DO NOTHING", (f"lamp-{number}", inputs)
            )


if __name__ == "__main__":
    asyncio.run(fill(int(sys.argv[2])) if sys.argv[1:2] == ["fill"] else drain())
