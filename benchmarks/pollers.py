"""How others notice the end of a run: the schedules of well-known clients, as they ship, on the same emulated service.

Rule of the file: a schedule is the pause before the k-th poll. None of these clients keeps a rate limit: after a 429
it sleeps for `Retry-After`, and polls again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, TypeAlias

import anyio
import httpx

Schedule: TypeAlias = Callable[[random.Random, int], float]

SCHEDULES: Final[dict[str, Schedule]] = {
    "Replicate, 0.5 s": lambda dice, k: 0.5,  # noqa: ARG005
    "fal, 0.1 s": lambda dice, k: 0.1,  # noqa: ARG005
    "OpenAI, 1 s": lambda dice, k: 1.0,  # noqa: ARG005
    "comfy, 0.5 to 5 s, x1.5": lambda dice, k: min(5.0, 0.5 * 1.5 ** min(k, 40)),  # noqa: ARG005
    "google-api-core, 1 to 20 s": lambda dice, k: dice.uniform(0, min(20.0, 1.45 ** min(k, 40))),
    "Runway, 6 s": lambda dice, k: 6.0,  # noqa: ARG005
}


async def poll(http: httpx.AsyncClient, url: str, schedule: Schedule, dice: random.Random) -> None:
    """Poll a run by a schedule until it has finished."""
    looks, pause = 0, schedule(dice, 0)
    while True:
        await anyio.sleep(pause)
        answer = await http.get(url)
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            pause = float(answer.headers["retry-after"])
        elif answer.json()["status"] in ("completed", "failed", "cancelled"):
            return
        else:
            looks += 1
            pause = schedule(dice, looks)
