"""What the emulator costs: requests per second, open runs in memory, time to the first answer; next to respx's mocks.

Run it with `python benchmarks/emulator.py [--quick]`. Times are CPU times, so that a busy machine does not count.
Tests pay for httpx as well, so the same poll is also made through httpx, on the emulator and on a mock of respx that
always returns the same answer, in the same run.
"""

import argparse
import asyncio
import gc
import json
import time
import tracemalloc
from collections.abc import Callable
from functools import partial

import httpx
import respx

from knouds_async.testing import Emulator, EmulatorTransport, Request

BASE_URL = "https://knouds.test"
SUBMIT = "/api/workflows/my-thumbnail-pipeline/run"
BODY = json.dumps({"inputs": {"product_name": "Knouds"}}).encode()
TURNS = 3


def best_rate(work: Callable[[], int]) -> float:
    """Return the best of several turns, in calls per second of CPU; `work` returns how many it made."""
    rates = []
    for _ in range(TURNS):
        began = time.process_time()
        done = work()
        rates.append(done / (time.process_time() - began))
    return max(rates)


def emulator() -> Emulator:
    """Return an emulator whose limits are counted but never reached, and whose runs stay open."""
    return Emulator(tier="business", limit=10**9, duration=1e6)


def submit(service: Emulator, number: int, *, since: int = 0) -> None:
    """Submit so many runs, a millisecond apart."""
    headers = {"x-api-key": service.api_key}
    for place in range(since, since + number):
        service.handle(Request("POST", SUBMIT, "async=true", headers, BODY), place / 1000)


def look(service: Emulator, number: int) -> int:
    """Poll so many times, one run after another."""
    headers = {"x-api-key": service.api_key}
    paths = [f"/api/executions/{run.execution_id}" for run in service.runs[:: max(1, len(service.runs) // 1000)]]
    now = len(service.runs) / 1000
    for place in range(number):
        service.handle(Request("GET", paths[place % len(paths)], "", headers), now)
    return number


def time_to_first_answer() -> float:
    """Return the milliseconds from the import to the first answer."""
    began = time.process_time()
    Emulator().handle(Request("GET", "/api/health"), 0.0)
    return (time.process_time() - began) * 1000


def bytes_of_a_run(number: int) -> float:
    """Return the bytes that an open run takes in memory, when the log of requests is full already."""
    service = emulator()
    submit(service, 11_000)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    submit(service, number, since=11_000)
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return taken / number


async def rate_through_httpx(client: httpx.AsyncClient, path: str, number: int) -> float:
    """Return the polls per second of CPU that httpx manages."""
    rates = []
    for _ in range(TURNS):
        began = time.process_time()
        for _ in range(number):
            (await client.get(path)).json()
        rates.append(number / (time.process_time() - began))
    return max(rates)


async def through_httpx(number: int) -> tuple[float, float]:
    """Return the rates on the emulator and on a mock."""
    service = emulator()
    submit(service, 1)
    path = f"/api/executions/{service.runs[0].execution_id}"
    headers = {"x-api-key": service.api_key}
    async with httpx.AsyncClient(transport=EmulatorTransport(service), base_url=BASE_URL, headers=headers) as client:
        emulated = await rate_through_httpx(client, path, number)
        answer = (await client.get(path)).json()
    with respx.mock(base_url=BASE_URL) as mock:
        mock.get(path).respond(json=answer)
        async with httpx.AsyncClient(base_url=BASE_URL, headers=headers) as client:
            mocked = await rate_through_httpx(client, path, number)
    return emulated, mocked


def milliseconds(work: Callable[[], object]) -> float:
    """Return how long a call takes, the second time."""
    work()
    began = time.process_time()
    work()
    return (time.process_time() - began) * 1000


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    scale = 10 if parser.parse_args().quick else 1
    runs, looks = 100_000 // scale, 50_000 // scale
    print(f"first answer after {time_to_first_answer():.2f} ms")
    service = emulator()
    began = time.process_time()
    submit(service, runs)
    print(f"{runs / (time.process_time() - began):>9,.0f} submits per second, {runs:,} runs open then")
    print(f"{best_rate(lambda: look(service, looks)):>9,.0f} polls per second with {runs:,} runs open")
    fresh = emulator()
    submit(fresh, 1)
    print(f"{best_rate(lambda: look(fresh, looks)):>9,.0f} polls per second with one run open")
    print(f"{bytes_of_a_run(20_000 // scale):>9,.0f} bytes for each open run, with its inputs")
    headers, now = {"x-api-key": service.api_key}, runs / 1000
    for name, request in (
        ("usage page of 500 rows", Request("GET", "/api/usage", "limit=500", headers)),
        ("status page", Request("GET", "/")),
    ):
        taken = milliseconds(partial(service.handle, request, now))
        print(f"{taken:>9.1f} ms for a {name}, {runs:,} runs open")
    emulated, mocked = asyncio.run(through_httpx(2_000 // scale))
    print(f"{emulated:>9,.0f} polls per second through httpx; {mocked:,.0f} on respx's mock: {emulated / mocked:.1f}x")


if __name__ == "__main__":
    main()
