"""The test of five lines that finds the bug: an answer is lost, and each job must still be paid for once."""

from __future__ import annotations

import pytest
from shop import Shop

from knouds_async import AsyncKnouds, SubmissionUnknownError
from knouds_async.testing import Emulator


@pytest.mark.knouds(faults="closed after_run on submit nth=2")
async def test_no_thumbnail_is_paid_for_twice(knouds: AsyncKnouds, knouds_emulator: Emulator) -> None:
    """Three products are three charges."""
    for product in ("cup", "lamp", "chair"):
        await Shop(knouds).thumbnail(product)
    knouds_emulator.assert_charged_once()


@pytest.mark.knouds(faults="closed after_run on submit nth=2")
async def test_without_the_bug(knouds: AsyncKnouds, knouds_emulator: Emulator) -> None:
    """The shop that does not submit again passes: the lost answer comes up as an error, and is paid for once."""
    shop = Shop(knouds, attempts=1)
    await shop.thumbnail("cup")
    with pytest.raises(SubmissionUnknownError):
        await shop.thumbnail("lamp")
    knouds_emulator.assert_charged_once()
