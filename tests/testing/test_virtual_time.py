"""Virtual time: what the rest of the suite stands on."""

import anyio


async def test_an_hour_passes_at_once_and_exactly() -> None:
    """Fifty sleeps of an hour advance the clock by fifty hours and take no time."""
    began = anyio.current_time()
    for _ in range(50):
        await anyio.sleep(3600)
    assert abs(anyio.current_time() - began - 50 * 3600) < 1e-3


async def test_sleepers_wake_in_the_order_of_their_times() -> None:
    """The clock jumps to the next timer, never past it."""
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        await anyio.sleep(seconds)
        woken.append(seconds)

    async with anyio.create_task_group() as tasks:
        for seconds in (3.0, 1.0, 2.0):
            tasks.start_soon(sleeper, seconds)
    assert woken == [1.0, 2.0, 3.0]
