"""A small application that pays twice: it submits again whenever a submit raises, as a retry decorator would."""

from __future__ import annotations

from knouds_async import AsyncKnouds, KnoudsError


class Shop:
    """Makes thumbnails for products."""

    def __init__(self, knouds: AsyncKnouds, *, attempts: int = 3) -> None:
        self.knouds = knouds
        self.attempts = attempts

    async def thumbnail(self, product: str) -> str:
        """Make a thumbnail and give its address."""
        for attempt in range(1, self.attempts + 1):
            try:
                execution = await self.knouds.workflows.submit("my-thumbnail-pipeline", {"product_name": product})
                return (await execution).images[0].url
            except KnoudsError:  # whatever it was, try once more
                if attempt == self.attempts:
                    raise
        raise AssertionError
