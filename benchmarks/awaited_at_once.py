"""What ten thousand runs that are awaited at once cost: the CPU of the agenda alone, and the memory of the waits."""

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
from knouds_async._sansio.agenda import Agenda
from knouds_async._sansio.course import Course
from knouds_async._sansio.learned import Learned
from knouds_async._sansio.listing import Listing
from knouds_async.testing import Emulator, EmulatorTransport

TRIP: Final = 0.08


def cost_of_agenda(runs: int) -> float:
    """Measure the CPU milliseconds for each of so many runs, awaited at once, that the agenda takes by itself."""
    dice = random.Random(1)
    ends = [USUAL(dice) for _ in range(runs)]
    agenda, places = Agenda(Polling(), Learned()), {f"x{place}": place for place in range(runs)}
    courses = [Course(f"x{place}", law="a", submitted=0.0, request_id=f"r{place}") for place in range(runs)]
    now, spent, back = 0.0, 0.0, deque[tuple[float, str]]()
    began = time.process_time()
    for course in courses:
        agenda.watch(course, now, 0.5)
    spent += time.process_time() - began
    while len(agenda):
        states = ["completed" if end <= now else "processing" for end in ends]
        pages = [
            Listing(tuple((f"r{place}", states[place]) for place in range(first, min(first + 500, runs))), 500)
            for first in range(0, runs, 500)
        ]
        began = time.process_time()
        while back and back[0][0] <= now:
            name = back.popleft()[1]
            if ends[places[name]] <= now:
                agenda.over(name, now, lasted=ends[places[name]])
            agenda.looked(name, now, 0.5)
        plan = agenda.plan(now, 0.5)
        page = plan.page
        while page is not None:
            page = agenda.listed(page, pages[min(page.offset // 500, len(pages) - 1)], now)
        spent += time.process_time() - began
        back.extend((now + TRIP, name) for name in plan.looks)
        now = max(now + 0.02, min(plan.at if plan.page is None else now, back[0][0] if back else math.inf))
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
