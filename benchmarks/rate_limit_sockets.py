"""The rate limiter on a real clock and real sockets: a server and one or more client processes, each on its own.

    python benchmarks/rate_limit_sockets.py [--processes N] [--length S] [--windows N] [--limit N] [--skew S] [--seed N]
                                            [--unaware]

The server counts in fixed windows of a random phase, on a clock that is `--skew` seconds off, and knows nothing of this
library but HTTP. The processes submit a backlog that fills `--windows` windows, on one SharedLimiter, or `--unaware` of
each other. Printed: how late the last job was accepted, against an oracle that has the whole quota at each edge; the
refusals; what the shared file cost. Exits with 1 when a job was lost or, on one file, a request was refused.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import multiprocessing.connection
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from email.utils import formatdate
from multiprocessing.synchronize import Event
from typing import Any, Final

import anyio
import attrs
from fixed_window_server import FixedWindowServer

from knouds_async import AsyncKnouds, Limiter, SharedLimiter
from knouds_async._io.shared_limiter import LimiterFile

TIERS: Final = {100: "pro", 1000: "business"}
PROCESSES: Final = multiprocessing.get_context("spawn")


class Connection(asyncio.Protocol):
    """Answers one request after the other: granted or refused, with the headers of contract 6."""

    def __init__(self, server: FixedWindowServer, accepted: list[float], refused: list[float]) -> None:
        self.server, self.accepted, self.refused = server, accepted, refused
        self.got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        self.got += data
        while b"\r\n\r\n" in self.got:
            head, _, rest = self.got.partition(b"\r\n\r\n")
            fields = head.lower().split(b"content-length:")
            length = int(fields[1].split(b"\r\n")[0]) if len(fields) > 1 else 0
            if len(rest) < length:
                return
            self.got = rest[length:]
            self.transport.write(self.answer())

    def answer(self) -> bytes:
        """Count one request."""
        now = time.monotonic()
        told = self.server.hit(now)
        (self.refused if told.refused else self.accepted).append(now)
        body = {"error": "Rate limit exceeded", "code": "RATE_LIMIT_EXCEEDED", "retryAfter": told.retry_after}
        if not told.refused:
            body = {"success": True, "executionId": f"run-{len(self.accepted)}", "status": "processing"}
        text = json.dumps(body).encode()
        lines = [
            "HTTP/1.1 429 Too Many Requests" if told.refused else "HTTP/1.1 200 OK",
            f"Date: {formatdate(told.date, usegmt=True)}",
            "Content-Type: application/json",
            f"Content-Length: {len(text)}",
            f"X-RateLimit-Limit: {told.limit}",
            f"X-RateLimit-Remaining: {told.remaining}",
            f"X-RateLimit-Reset: {told.reset}",
            *([f"Retry-After: {told.retry_after}"] if told.refused else []),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + text


def serve(pipe: multiprocessing.connection.Connection, limit: int, length: float, phase: float, skew: float) -> None:
    """Serve until told to stop; then send the times of what was accepted and refused."""
    epoch = time.time() + skew - time.monotonic()
    server = FixedWindowServer(limit=limit, length=length, phase=phase, epoch=epoch)
    accepted, refused = list[float](), list[float]()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(
            lambda: Connection(server, accepted, refused), "127.0.0.1", 0, backlog=1024
        )
        pipe.send(listening.sockets[0].getsockname()[1])
        await loop.run_in_executor(None, pipe.recv)
        listening.close()

    asyncio.run(run())
    pipe.send((accepted, refused))


class Stopwatch:
    """Times the transactions of this process, in CPU seconds; the event loop stands still for each."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        update = LimiterFile.update

        def timed(*args: Any) -> Any:
            began = time.thread_time()
            try:
                return update(*args)
            finally:
                self.seconds.append(time.thread_time() - began)

        LimiterFile.update = timed  # type: ignore[method-assign, assignment]


def submit(
    pipe: multiprocessing.connection.Connection, go: Event, url: str, path: str | None, tier: str | None, jobs: int
) -> None:
    """Submit all jobs at once when told to; send how many succeeded and the seconds of each transaction."""
    watch = Stopwatch()

    async def run() -> int:
        done = 0
        limiter = SharedLimiter(path, tier) if path is not None else Limiter(tier)

        async def one(knouds: AsyncKnouds) -> None:
            nonlocal done
            await knouds.workflows.submit("my-thumbnail-pipeline", {"product_name": "Knouds"})
            done += 1

        async with AsyncKnouds("knouds_live_benchmark", base_url=url, limiter=limiter) as knouds:
            pipe.send("ready")
            await anyio.to_thread.run_sync(go.wait)
            async with anyio.create_task_group() as tasks:
                for _ in range(jobs):
                    tasks.start_soon(one, knouds)
        return done

    pipe.send((anyio.run(run), watch.seconds))


def oracle(began: float, jobs: int, limit: int, length: float, phase: float) -> float:
    """Return when the last of so many jobs is accepted at the earliest."""
    first = math.floor((began - phase) / length)
    last = first + math.ceil(jobs / limit) - 1
    return began if last == first else phase + last * length


@attrs.frozen(kw_only=True)
class Measured:
    """The result of one run: when requests were accepted and refused, how many jobs were done, transaction seconds."""

    began: float
    accepted: list[float]
    refused: list[float]
    done: int
    seconds: list[float]


def measure(args: argparse.Namespace, jobs: int, phase: float) -> Measured:
    """Run the server and the clients, each in a process of its own, with `jobs` for each client."""
    here, there = PROCESSES.Pipe()
    server = PROCESSES.Process(target=serve, args=(there, args.limit, args.length, phase, args.skew), daemon=True)
    server.start()
    url, go = f"http://127.0.0.1:{here.recv()}", PROCESSES.Event()
    with tempfile.TemporaryDirectory() as folder:
        path = None if args.unaware else f"{folder}/quota.db"
        clients = []
        for _ in range(args.processes):
            mine, other = PROCESSES.Pipe()
            options = (other, go, url, path, TIERS.get(args.limit), jobs)
            PROCESSES.Process(target=submit, args=options, daemon=True).start()
            clients.append(mine)
        for client in clients:
            client.recv()
        began = time.monotonic()
        go.set()
        results = [client.recv() for client in clients]
    here.send("end")
    accepted, refused = here.recv()
    return Measured(
        began=began,
        accepted=accepted,
        refused=refused,
        done=sum(done for done, _ in results),
        seconds=sorted(second for _, times in results for second in times),
    )


def report(args: argparse.Namespace, measured: Measured, jobs: int, phase: float) -> None:
    """Print the figures; `jobs` of all clients together."""
    began, accepted, seconds = measured.began, measured.accepted, measured.seconds
    filled = Counter(math.floor((at - phase) / args.length) for at in accepted)
    late = max(accepted) - oracle(began, jobs, args.limit, args.length, phase)
    took = max(accepted) - began
    print(
        f"{args.processes} processes, windows of {args.length:g} s, clock {args.skew:+g} s: {len(accepted)} jobs in"
        f" {took:.1f} s, {late:+.2f} s after the oracle ({1 - late / took:.4f} of its pace), 429s:"
        f" {len(measured.refused)}\n  windows:"
        f" {' '.join(str(filled[window]) for window in range(min(filled), max(filled) + 1))}; the first was on for"
        f" {(phase - began) % args.length:.1f} s"
    )
    if seconds:
        middle, most = statistics.median(seconds), seconds[math.ceil(len(seconds) * 0.99) - 1]
        print(
            f"  the file: {len(seconds) / len(accepted):.2f} transactions a request; of"
            f" {middle * 1e3:.2f} ms CPU (median), {most * 1e3:.2f} ms (p99), {seconds[-1] * 1e3:.2f} ms (longest)"
        )


def main() -> int:
    """Run it once and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--length", type=float, default=8.0)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--skew", type=float, default=137.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--unaware", action="store_true", help="each process with a limiter of its own")
    args = parser.parse_args()
    phase = time.monotonic() + random.Random(args.seed).uniform(0, args.length)
    each = args.limit * args.windows // args.processes
    jobs = each * args.processes
    measured = measure(args, each, phase)
    report(args, measured, jobs, phase)
    is_whole = len(measured.accepted) == jobs == measured.done
    return 0 if is_whole and (args.unaware or not measured.refused) else 1


if __name__ == "__main__":
    sys.exit(main())
