"""Fan out N runs in an asyncio.TaskGroup, and handle each failure in its own task: `python examples/task_group.py 20`.

Reads the key from $KNOUDS_KEY. The client keeps the rate limit, so all runs can be started at once.
"""

import asyncio
import sys

from knouds_async import AsyncKnouds, KnoudsError, RunResult

SLUG = "my-thumbnail-pipeline"


async def thumbnail(knouds: AsyncKnouds, product_name: str) -> RunResult | KnoudsError:
    """Make one thumbnail; return an error instead of raising it, which would cancel the other tasks."""
    try:
        execution = await knouds.workflows.submit(SLUG, {"product_name": product_name})
        return await execution
    except KnoudsError as error:
        return error


async def main(count: int) -> int:
    """Make `count` thumbnails, print the outcome of each, and return how many failed."""
    products = [f"Product {number}" for number in range(1, count + 1)]
    async with AsyncKnouds() as knouds, asyncio.TaskGroup() as group:
        tasks = [group.create_task(thumbnail(knouds, product)) for product in products]
    failed = 0
    for product, task in zip(products, tasks, strict=True):
        match task.result():
            case RunResult() as run:
                print(product, *(image.url for image in run.images))
            case KnoudsError(may_have_run=True) as error:
                failed += 1
                print(f"{product}: {error} (money may have been spent: do not repeat it blindly)", file=sys.stderr)
            case KnoudsError() as error:
                failed += 1
                print(f"{product}: {error} (nothing was run: safe to repeat)", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(min(1, asyncio.run(main(int(*sys.argv[1:2] or ["10"])))))
