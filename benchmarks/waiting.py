"""What waiting costs: memory and idle CPU of thousands of awaited executions, next to as many tasks that just wait."""

from __future__ import annotations

import gc
import time
from functools import partial
from typing import Any

import anyio
import attrs
from clients import PATIENCE
from measure import OURS, Options, apart, in_turns, ratio, requests_seen, resident, show
from server import FOREVER, PLAIN_KEY

from knouds_async import AsyncKnouds, Timeouts

__all__ = ["run"]

TASKS = "tasks alone"


@attrs.frozen(kw_only=True)
class Turn:
    """Bytes for each that waits, the share of a core that is busy meanwhile, and the requests per second."""

    memory: float
    busy: float
    requests: float


async def _submit(knouds: AsyncKnouds, count: int, executions: list[Any]) -> None:
    executions += [await knouds.workflows.submit("bench", {"seconds": FOREVER}) for _ in range(count)]


async def _wait(url: str, count: int, seconds: float, *, is_ours: bool) -> Turn:
    patience = Timeouts(read=PATIENCE, write=PATIENCE, pool=PATIENCE, total=PATIENCE, submit=PATIENCE)
    never, executions = anyio.Event(), list[Any]()

    async def wait(execution: Any) -> None:
        await (execution.wait() if is_ours else never.wait())

    memory, busy, requests = 0.0, 0.0, 0.0
    async with AsyncKnouds(PLAIN_KEY, base_url=url, timeouts=patience) as knouds:
        await _submit(knouds, 100, [])  # whatever is made once is there now
        gc.collect()
        before = resident()
        if is_ours:
            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(_submit, knouds, count // 50, executions)
        else:
            executions += [None] * count
        async with anyio.create_task_group() as tasks:
            for execution in executions:
                tasks.start_soon(wait, execution)
            await anyio.sleep(1)  # all of them have begun to wait
            gc.collect()
            memory = (resident() - before) * 2**20 / count
            requests_seen(url)
            began = time.process_time()
            await anyio.sleep(seconds)
            busy = (time.process_time() - began) / seconds
            requests = requests_seen(url) / seconds
            tasks.cancel_scope.cancel()
    return Turn(memory=memory, busy=busy, requests=requests)


def _alone(name: str, url: str, count: int, seconds: float) -> Turn:
    return anyio.run(partial(_wait, url, count, seconds, is_ours=name == OURS))


def run(url: str, options: Options) -> dict[str, Any]:
    """Wait for many, print what that took, and return the figures."""
    count, seconds = options.pick(10_000, 500), options.pick(60, 3)
    turns = {
        OURS: partial(apart, _alone, OURS, url, count, seconds),
        TASKS: partial(apart, _alone, TASKS, url, count, 3),
    }
    measured = in_turns(turns, options.pick(2, 1))
    beyond = [own.memory - task.memory for own, task in zip(measured[OURS], measured[TASKS], strict=True)]
    kib = ratio(beyond, [1024.0] * len(beyond))
    busy = ratio([own.busy for own in measured[OURS]], [0.01] * len(beyond))
    requests = ratio([own.requests for own in measured[OURS]], [1.0] * len(beyond))
    header = ("", "KiB each, beyond the caller's task", "% of a core", "requests/s")
    show(f"{count} executions awaited for {seconds} s", header, [(OURS, kib, busy, requests)])
    return {"count": count, "kib_each": kib, "percent_of_a_core": busy, "requests_per_second": requests}
