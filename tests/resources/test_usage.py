"""Usage: pages of rows, and all of them."""

from __future__ import annotations

from typing import Any

import pytest

from knouds_async import AsyncKnouds, InvalidArgumentError, UsageRow
from knouds_async.testing import Emulator

SLUG = "my-thumbnail-pipeline"
INPUTS = {"product_name": "Knouds"}


async def test_usage_is_listed_and_walked(knouds: AsyncKnouds) -> None:
    """A page has rows and a total, `iter` walks all pages without repeating a row, `models` names what was used."""
    for _ in range(7):
        await (await knouds.workflows.submit(SLUG, INPUTS))
    page = await knouds.usage.list(limit=3, offset=1, workflow_slug=SLUG)
    assert (len(page.rows), page.total) == (3, 7)
    rows = [row async for row in knouds.usage.iter(page_size=2)]
    assert len({row.id for row in rows}) == 7
    assert isinstance(rows[0], UsageRow)
    assert await knouds.usage.models()


@pytest.mark.parametrize("limit", [0, 501, 1.5, True])
async def test_an_impossible_page_is_refused(knouds: AsyncKnouds, emulator: Emulator, limit: Any) -> None:
    """A page has 1 to 500 rows; anything else is refused at once, also by `iter`."""
    with pytest.raises(InvalidArgumentError, match="limit"):
        await knouds.usage.list(limit=limit)
    with pytest.raises(InvalidArgumentError, match="limit"):
        knouds.usage.iter(page_size=limit)
    assert emulator.requests.count == 0
