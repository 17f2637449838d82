"""One machine of `many_machines.py`: a process that works through a list of jobs on a ledger that others share.

Not a benchmark: it is started by one, with one JSON object as its argument. It says "ready" once all is imported,
begins when it is sent a line with where the service and the database are, and says at its end how many outcomes it saw.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.scenarios.clocks import install


class Clock:
    """The clocks of this machine, of which the one on the wall is off: namespaces have no such clock of their own."""

    def __init__(self, off: float) -> None:
        """Take the seconds by which it is off."""
        self._off, self._wall, self._gettime = off, time.time, time.clock_gettime
        self.monotonic = time.monotonic
        self._boot_clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def boot_time(self) -> float:
        """Return the seconds since the boot."""
        return self._gettime(self._boot_clock)

    def wall(self) -> float:
        """Return the epoch seconds that it believes in."""
        return self._wall() + self._off


def hurry(factor: float) -> None:
    """Shorten what takes a minute or two in the library: a lease, the age of a claim, the lateness of usage rows."""
    from knouds_async._batch import worker
    from knouds_async._io import pipeline, pool, transactions
    from knouds_async._sansio import reconcile

    constants: list[tuple[Any, str]] = [
        (transactions, "LEASE"),
        (transactions, "_RENEW"),
        (pipeline, "_CLAIM"),
        (worker, "_LONGEST_PAUSE"),
        (pool, "_UNDELIVERED"),
        (transactions, "_IN_TRANSACTION"),
    ]
    for module, name in constants:
        value = getattr(module, name)
        setattr(module, name, value / factor if isinstance(value, float) else max(1, round(value / factor)))
    defaults = reconcile.Wanted.__init__.__kwdefaults__
    assert defaults is not None
    defaults["lag"] = reconcile.LAG / factor


async def work(order: dict[str, Any], service: str, database: str) -> Counter[str]:
    """Work through all jobs in an order of its own; return how many outcomes of each kind there were."""
    from knouds_async import AsyncKnouds, Job, SharedLimiter, Timeouts
    from knouds_async.postgres import Postgres

    shared = Postgres(database, name="renders")
    jobs = [Job(key, {"product_name": key}) for key in order["keys"]]
    random.shuffle(jobs)
    client = partial(AsyncKnouds, order["api_key"], base_url=service, limiter=SharedLimiter(shared))
    if (factor := order["factor"]) != 1:
        client = partial(client, timeouts=Timeouts(connect=2.0, submit=60 / factor, total=60 / factor))
    seen = Counter[str]()
    async with shared, client() as knouds, knouds.workflows.map(order["slug"], jobs, ledger=shared) as outcomes:
        async for outcome in outcomes:
            seen[type(outcome).__name__.lower()] += 1
    return seen


def _show_tasks() -> None:
    """Say where all tasks stand, of a process that does not end."""
    where = Counter(" > ".join(_awaits(task.get_coro())) for task in asyncio.all_tasks())
    for chain, count in where.most_common():
        print(f"{count} x {chain}", file=sys.stderr)
    faulthandler.dump_traceback(all_threads=True)


def _awaits(awaited: Any) -> Iterator[str]:
    """Yield the functions of a task, each of which waits for the next."""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
        if frame is not None:
            yield f"{frame.f_code.co_qualname}:{frame.f_lineno}"
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)


def main() -> None:
    """Work when told to."""
    order = json.loads(sys.argv[1])
    install(Clock(order["clock"]))
    import httpx  # noqa: F401  (imported before it begins, as what follows)
    import psycopg  # noqa: F401

    import knouds_async.postgres  # noqa: F401

    if order["factor"] != 1:
        hurry(order["factor"])
    signal.signal(signal.SIGUSR1, lambda *_: _show_tasks())
    print("ready", flush=True)
    service, database = json.loads(sys.stdin.readline())
    print(json.dumps(asyncio.run(work(order, service, database))), flush=True)


if __name__ == "__main__":
    main()
