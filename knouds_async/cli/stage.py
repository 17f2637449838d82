"""The demo's settings: an emulator with an early rate limit and short runs. Imported lazily."""

from __future__ import annotations

import time
from typing import Final

from knouds_async.testing import Emulator, Lognormal

LIMITS: Final = {"pro": 100, "business": 1000}  # requests per minute and route (contract 6)
RUN_SECONDS: Final = 6.0  # median length of a run
_FIRST_WINDOW = 12.0  # seconds until the first window ends: early, so that the limit is reached
_FAILURE_RATE = 0.03


def make_demo_emulator(runs: int, seed: int) -> Emulator:
    """Return the emulator for this many runs."""
    return Emulator(
        tier="pro" if runs <= 2 * LIMITS["pro"] else "business",
        duration=Lognormal(RUN_SECONDS, 0.25),
        failure_rate=_FAILURE_RATE,
        window_phase=_FIRST_WINDOW,
        polls_limited=False,  # whether the service limits them is not documented (contract 6)
        seed=seed,
        epoch=time.time(),
    )
