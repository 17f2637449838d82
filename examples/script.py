"""Submit one run, await it, print its images: `python examples/script.py "A coffee mug"`.

Reads the key from $KNOUDS_KEY. Replace the workflow and its inputs with your own.
"""

import asyncio
import sys

from knouds_async import AsyncKnouds, KnoudsError

SLUG = "my-thumbnail-pipeline"


async def main(product_name: str) -> None:
    """Make one thumbnail."""
    async with AsyncKnouds() as knouds:
        execution = await knouds.workflows.submit(SLUG, {"product_name": product_name})
        print(f"submitted {execution.id}", file=sys.stderr)  # with the id, a run can be picked up again anywhere
        run = await execution
    for image in run.images:
        print(image.url)
    print(f"{run.cost} credits", file=sys.stderr)


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:2] or ["Knouds"]))
    except KnoudsError as error:
        sys.exit(f"{type(error).__name__}: {error}")
