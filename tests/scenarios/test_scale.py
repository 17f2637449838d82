"""Batches at size: the quota of each window is spent, and memory stays flat however many jobs there are."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from knouds_async import Completed, NotRun
from knouds_async.testing import Emulator

SLUG = "my-thumbnail-pipeline"
ROUTE = "POST /api/workflows/:slug/run?async=true"


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_thousand_jobs_run_at_the_limit(make_client: Any) -> None:
    """On Pro the windows between the first and the last are spent to 98 % at least, and no request is refused."""
    emulator = Emulator(tier="pro", duration=45.0, seed=3)
    wanted = ({"product_name": f"Product {number}"} for number in range(1000))
    async with make_client(emulator, tier="pro").workflows.map(SLUG, wanted) as outcomes:
        async for outcome in outcomes:
            assert isinstance(outcome, Completed)
    submits = [row.at for row in emulator.requests if row.route.startswith("POST /api/workflows")]
    assert len(submits) == 1000
    windows = Counter(int((at - submits[0]) // 60) for at in submits)
    full = list(windows.values())[1:-1]
    assert sum(full) >= 0.98 * 100 * len(full)
    assert submits[-1] - submits[0] <= 9 * 60 / 0.98
    emulator.assert_no_429()
    emulator.assert_charged_once()


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_memory_stays_flat(knouds: Any) -> None:
    """Eight thousand jobs, read one by one, take no more room than the first few but for the keys that were seen."""

    def many() -> Iterator[dict[str, Any]]:
        for number in range(8_000):
            yield {"product_name": f"Product {number}"}

    async with knouds.workflows.map(SLUG, many(), max_credits=0, max_in_flight=100) as outcomes:
        peaks, count = [], 0
        tracemalloc.start()
        try:
            async for outcome in outcomes:
                assert isinstance(outcome, NotRun)
                count += 1
                if count % 2_000 == 0:
                    peaks.append(tracemalloc.get_traced_memory()[1])
                    tracemalloc.reset_peak()
        finally:
            tracemalloc.stop()
    assert count == 8_000
    assert max(peaks) < 4 * 2**20
