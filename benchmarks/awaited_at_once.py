"""What ten thousand runs that are awaited at once cost: the CPU of the scheduler, and the memory of the waits."""

from __future__ import annotations

import asyncio
import gc
import math
import random
import time
import tracemalloc
from collections import deque
from typing import Final

import httpx
from runs_that_end import USUAL

from knouds_async import AsyncKnouds, Polling
from knouds_async._sansio.durations import LearnedDurations
from knouds_async._sansio.listings import StatusPage
from knouds_async._sansio.polling import PollScheduler, TrackedRun
from knouds_async.testing import Emulator, EmulatorTransport

TRIP: Final = 0.08


def cost_of_scheduling(runs: int) -> float:
    """Measure the CPU milliseconds for each of so many runs, awaited at once, that the scheduler takes by itself."""
    dice = random.Random(1)
    ends = [USUAL(dice) for _ in range(runs)]
    scheduler, places = PollScheduler(Polling(), LearnedDurations()), {f"x{place}": place for place in range(runs)}
    tracked = [
        TrackedRun(f"x{place}", duration_key="a", submitted_at=0.0, request_id=f"r{place}") for place in range(runs)
    ]
    now, spent, back = 0.0, 0.0, deque[tuple[float, str]]()
    began = time.process_time()
    for run in tracked:
        scheduler.add(run, now)
    spent += time.process_time() - began
    while len(scheduler):
        states = ["completed" if end <= now else "processing" for end in ends]
        pages = [
            StatusPage(tuple((f"r{place}", states[place]) for place in range(first, min(first + 500, runs))), 500)
            for first in range(0, runs, 500)
        ]
        began = time.process_time()
        while back and back[0][0] <= now:
            name = back.popleft()[1]
            if ends[places[name]] <= now:
                scheduler.finished(name, now, duration=ends[places[name]])
            scheduler.polled(name, now)
        plan = scheduler.plan(now)
        page = plan.page
        while page is not None:
            page = scheduler.page_received(page, pages[min(page.offset // 500, len(pages) - 1)], now)
        spent += time.process_time() - began
        back.extend((now + TRIP, name) for name in plan.polls)
        now = max(now + 0.02, min(plan.next_at if plan.page is None else now, back[0][0] if back else math.inf))
    return spent / runs * 1e3


async def memory_of_waiting(runs: int) -> float:
    """Measure the KiB for each of so many awaited runs, beyond a task that waits for an event."""
    emulator = Emulator(tier="enterprise", duration=1e6)
    async with httpx.AsyncClient(transport=EmulatorTransport(emulator)) as http:
        client = AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http)
        before = await _grown_by(client, runs, is_awaited=False)
        return (await _grown_by(client, runs, is_awaited=True) - before) / runs / 1024


async def _grown_by(client: AsyncKnouds, runs: int, *, is_awaited: bool) -> int:
    """Measure the bytes of as many tasks that wait: for runs that were attached, or each for an event."""
    event = asyncio.Event()
    gc.collect()
    tracemalloc.start()
    waits = (
        client.executions.attach(f"x{place}", "workflows/daily-picture").wait() if is_awaited else event.wait()
        for place in range(runs)
    )
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.sleep(0)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return grown
