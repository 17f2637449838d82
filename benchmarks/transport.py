"""What a small GET costs the client in CPU, and what cancelled requests cost the pool: ours against stock httpx.

Run it with `python benchmarks/transport.py [requests]`. The server runs in another process; both transports meet it
in the same run, in turns, so that the ratios hold on any machine.
"""

import asyncio
import contextlib
import multiprocessing
import multiprocessing.connection
import sys
import time
from collections.abc import Callable, Iterator

import anyio
import httpx

from knouds_async._io.transport import PooledTransport

CONCURRENT = (1, 10, 100, 500, 1000)
TURNS = 2
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 23\r\n\r\n{"status":"processing"}'

Make = Callable[[int], httpx.AsyncBaseTransport]


class Answering(asyncio.Protocol):
    """Answers whatever comes, as cheaply as Python can; requests without a body that come in one piece."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every request that ends here."""
        self._transport.write(ANSWER * data.count(b"\r\n\r\n"))


def serve(ready: multiprocessing.connection.Connection) -> None:
    """Serve on a free port, which goes through the pipe, until terminated."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0, backlog=4096)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Run the server in a process of its own, and give its URL."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}/api/executions/550e8400"
    finally:
        process.terminate()
        process.join()


def stock(limit: int) -> httpx.AsyncBaseTransport:  # noqa: ARG001  (it comes as it is)
    """Make httpx's own transport with its defaults: 100 connections, 20 of them kept."""
    return httpx.AsyncHTTPTransport()


def stock_wide(limit: int) -> httpx.AsyncBaseTransport:
    """Make httpx's own transport with as many connections as there are requests at once, and keep all."""
    return httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=limit, max_keepalive_connections=limit))


def ours(limit: int) -> httpx.AsyncBaseTransport:  # noqa: ARG001  (it comes as it is)
    """Make the transport of this library with its defaults: 100 connections, all kept."""
    return PooledTransport()


def ours_wide(limit: int) -> httpx.AsyncBaseTransport:
    """Make the transport of this library with as many connections as there are requests at once."""
    return PooledTransport(limit=limit)


async def cpu_per_get(make: Make, url: str, concurrent: int, requests: int) -> float:
    """Measure the client's CPU time for a GET over warm connections, in milliseconds."""
    async with httpx.AsyncClient(transport=make(concurrent), timeout=120) as http:

        async def get(count: int) -> None:
            for _ in range(count):
                (await http.get(url)).raise_for_status()

        async def all_at_once(each: int) -> None:
            async with anyio.create_task_group() as tasks:
                for _ in range(concurrent):
                    tasks.start_soon(get, each)

        await all_at_once(1)
        each = max(4, requests // concurrent)  # so that starting the tasks weighs little
        began = time.process_time()
        await all_at_once(each)
        return (time.process_time() - began) * 1000 / (each * concurrent)


async def served_after_cancelling(make: Make, url: str, seconds: float) -> tuple[int, int]:
    """Cancel requests before they connect for some seconds; count them, and how many of 3 more are answered."""
    cancelled = 0
    async with httpx.AsyncClient(transport=make(10), timeout=2) as http:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            tasks = [asyncio.ensure_future(http.get(url)) for _ in range(20)]
            for _ in range(cancelled // 20 % 12):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            cancelled += len(tasks)
        later = await asyncio.gather(*(http.get(url) for _ in range(3)), return_exceptions=True)
    return cancelled, sum(isinstance(response, httpx.Response) for response in later)


def measure(make: Make, url: str, concurrent: int, requests: int, backend: str) -> float:
    """Give the best of several turns."""
    return min(anyio.run(cpu_per_get, make, url, concurrent, requests, backend=backend) for _ in range(TURNS))


def compare(url: str, requests: int, backend: str) -> None:
    """Print a table of milliseconds per GET and their ratios."""
    print(f"\n{backend}: client CPU per GET in ms, best of {TURNS} turns of {requests} requests or 4 each")
    print(f"{'concurrent':>10} {'httpx':>8} {'ours':>8} {'ratio':>8} {'ours, wide':>12}")
    own: list[float] = []
    for concurrent in CONCURRENT:
        theirs = measure(stock, url, concurrent, requests, backend)
        own.append(measure(ours, url, concurrent, requests, backend))
        wide = measure(ours_wide, url, concurrent, requests, backend)
        print(f"{concurrent:>10} {theirs:>8.3f} {own[-1]:>8.3f} {theirs / own[-1]:>7.1f}x {wide:>12.3f}", flush=True)
    flat = max(own[1:]) / min(own[1:])
    print(f"ours from {CONCURRENT[1]} to {CONCURRENT[-1]} concurrent: highest / lowest = {flat:.2f}")


def main() -> None:
    """Run everything."""
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with serving() as url:
        for backend in ("asyncio", "trio"):
            compare(url, requests, backend)
        theirs = anyio.run(cpu_per_get, stock_wide, url, 100, 200)
        own = anyio.run(cpu_per_get, ours_wide, url, 100, 200)
        print(f"\nasyncio: 100 concurrent, as many connections kept: httpx {theirs:.3f} ms, ours {own:.3f} ms")
        print("\nasyncio: requests cancelled with task.cancel(), then answered of 3 more")
        for name, make in (("httpx", stock_wide), ("ours", ours_wide)):
            cancelled, served = asyncio.run(served_after_cancelling(make, url, 4.0))
            print(f"{name:>10} {cancelled:>8} cancelled, {served} of 3", flush=True)


if __name__ == "__main__":
    main()
