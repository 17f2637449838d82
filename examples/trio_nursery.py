"""Fan out N runs in a trio nursery and print each as it finishes: `python examples/trio_nursery.py 20`.

Reads the key from $KNOUDS_KEY. It is the same client and the same calls as on asyncio.
"""

import sys

import trio

from knouds_async import AsyncKnouds, KnoudsError

SLUG = "my-thumbnail-pipeline"


async def thumbnail(knouds: AsyncKnouds, product_name: str) -> None:
    """Make one thumbnail and print it; print an error instead of raising it, which would cancel the other tasks."""
    try:
        execution = await knouds.workflows.submit(SLUG, {"product_name": product_name})
        run = await execution
    except KnoudsError as error:
        print(f"{product_name}: {error}", file=sys.stderr)
    else:
        print(product_name, *(image.url for image in run.images))


async def main(count: int) -> None:
    """Make `count` thumbnails."""
    async with AsyncKnouds() as knouds, trio.open_nursery() as nursery:
        for number in range(1, count + 1):
            nursery.start_soon(thumbnail, knouds, f"Product {number}")


if __name__ == "__main__":
    trio.run(main, int(*sys.argv[1:2] or ["10"]))
