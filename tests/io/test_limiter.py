"""Turns at the rate limit: order, cancellation, waking. The mathematics has its own tests."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from knouds_async import (
    ConfigurationError,
    Job,
    KnoudsError,
    Limiter,
    RateLimitError,
    Retries,
    WrongEventLoopError,
)
from knouds_async._sansio.endpoints import Priority
from knouds_async._sansio.rate_limit import Permit, QuotaHeaders
from knouds_async.testing import Fault, Response, faults
from knouds_async.testing.emulator import Emulator

ROUTE = "POST /api/workflows/:slug/run"
SLUG = "my-thumbnail-pipeline"


class Server:
    """Answers each turn at once, with the headers of a window of 60 s that opens at a full minute."""

    def __init__(self, limiter: Limiter, limit: int) -> None:
        self.limiter, self.limit = limiter, limit
        self.taken: dict[int, int] = {}

    def answer(self, permit: Permit) -> None:
        now = anyio.current_time()
        window = int(now // 60)
        self.taken[window] = self.taken.get(window, 0) + 1
        refused = self.taken[window] > self.limit
        reply = QuotaHeaders(
            refused=refused,
            limit=self.limit,
            remaining=max(0, self.limit - self.taken[window]),
            reset=float((window + 1) * 60),
            retry_after=60.0 - now % 60 if refused else None,
        )
        self.limiter.on_response(ROUTE, permit, reply, float(int(now)))


async def test_turns_are_given_in_order() -> None:
    """First come, first served, across windows; no window gives more than its limit."""
    limiter = Limiter("pro")
    server, order = Server(limiter, 5), list[int]()

    async def request(number: int) -> None:
        server.answer(await limiter.acquire(ROUTE))
        order.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(23):
            tasks.start_soon(request, number)
            await anyio.lowlevel.checkpoint()
    assert order == sorted(order)
    assert max(server.taken.values()) == 5


async def test_nobody_overtakes_who_waits() -> None:
    """A permit that comes back is that of the first who waits, also before that one has noticed."""
    limiter, taken = Limiter("pro"), list[Permit]()
    while (permit := limiter.try_acquire(ROUTE)) is not None:
        taken.append(permit)
    got = list[Permit]()

    async def request() -> None:
        got.append(await limiter.acquire(ROUTE))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(request)
        await anyio.sleep(0.1)
        limiter.release(ROUTE, taken.pop())
        assert limiter.try_acquire(ROUTE) is None
        await anyio.sleep(0.1)
        assert len(got) == 1


async def test_a_cancelled_waiter_costs_nothing_and_wakes_the_next() -> None:
    """A waiter that leaves the queue, at its head or in the middle, takes no slot, and no other is forgotten."""
    limiter = Limiter("pro")
    server, done = Server(limiter, 2), list[int]()

    async def request(number: int, patience: float) -> None:
        with anyio.move_on_after(patience):
            server.answer(await limiter.acquire(ROUTE))
            done.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon(request, number, 10.0 if number in (2, 3, 6) else 1000.0)
            await anyio.lowlevel.checkpoint()
    assert done == [0, 1, 4, 5, 7, 8, 9, 10, 11]
    assert limiter.stats(ROUTE).waiting == 0
    assert limiter.stats(ROUTE).refusals == 0


async def test_status_reads_go_before_submits_and_a_requeued_one_before_all() -> None:
    """Two lanes: cancels and reads first; within a priority a request that was refused goes to the head."""
    limiter = Limiter("pro")
    server, order = Server(limiter, 1), list[str]()

    async def request(name: str, priority: Priority, front: bool) -> None:
        server.answer(await limiter.acquire(ROUTE, priority, front=front))
        order.append(name)

    async with anyio.create_task_group() as tasks:
        for name, priority, front in (
            ("first", Priority.SUBMIT, False),
            ("submit", Priority.SUBMIT, False),
            ("requeued", Priority.SUBMIT, True),
            ("read", Priority.STATUS, False),
        ):
            tasks.start_soon(request, name, priority, front)
            await anyio.lowlevel.checkpoint()
    assert order == ["first", "read", "requeued", "submit"]


async def test_a_turn_given_back_goes_to_the_next() -> None:
    """A request that was not sent gives its slot to the next waiter."""
    limiter = Limiter("pro")
    permit = await limiter.acquire(ROUTE)
    got: list[Permit] = []

    async def next_one() -> None:
        got.append(await limiter.acquire(ROUTE))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(next_one)
        await anyio.sleep(0.01)
        assert not got  # the first request of a route goes alone
        limiter.release(ROUTE, permit)
    assert got


async def test_the_stats_tell_how_a_quota_stands() -> None:
    """A dashboard sees limit, what is left, when it resets, who waits and the 429s."""
    limiter = Limiter("pro")
    assert limiter.stats(ROUTE).limit == 100
    server = Server(limiter, 3)
    server.answer(await limiter.acquire(ROUTE))
    stats = limiter.stats(ROUTE)
    assert (stats.limit, stats.left, stats.waiting, stats.refusals) == (3, 2, 0, 0)
    assert stats.resets_in is not None
    assert 0 < stats.resets_in <= 61
    assert limiter.server_time(anyio.current_time()) is not None


@pytest.mark.parametrize("tier", ["enterprise", "super_admin"])
async def test_an_unlimited_tier_waits_for_nothing(tier: str) -> None:
    """No canary and no line for an account without limits."""
    limiter, began = Limiter(tier), anyio.current_time()
    for _ in range(1000):
        await limiter.acquire(ROUTE)
    assert anyio.current_time() - began < 1e-3
    assert limiter.stats(ROUTE).limit is None


def test_an_unknown_tier_is_refused() -> None:
    """A tier that does not exist is named, with those that do."""
    with pytest.raises(ConfigurationError, match="platinum"):
        Limiter("platinum")


@pytest.mark.parametrize(
    ("tier", "setup"),
    [
        ("pro", {"tier": "pro"}),
        (None, {"tier": "pro"}),
        ("free", {"tier": "business"}),
        ("business", {"tier": "pro"}),
        ("deployment", {"generation": "old", "scope": "deployment"}),
        (None, {"tier": "atelier", "limit": 7}),
    ],
)
async def test_the_headers_win_over_the_first_guess(make_client: Any, tier: str | None, setup: dict[str, Any]) -> None:
    """Whatever tier was guessed, a batch of twice the limit runs without a 429."""
    emulator = Emulator(**setup, duration=1.0)
    knouds = make_client(emulator, tier=tier)
    await knouds.workflows.submit(SLUG, {"product_name": "first"})
    limit = knouds.limiter.stats(ROUTE).limit
    async with anyio.create_task_group() as tasks:
        for number in range(min(2 * limit, 250)):
            tasks.start_soon(knouds.workflows.submit, SLUG, {"product_name": str(number)})
    emulator.assert_no_429()
    assert len(emulator.runs) == min(2 * limit, 250) + 1


async def test_a_429_costs_no_job(make_client: Any) -> None:
    """Refused by somebody else's use of the quota, a submit waits at the head of the line and runs once."""
    emulator = Emulator(tier="pro", limit=10, duration=1.0, others=0.6)
    knouds = make_client(emulator)
    async with anyio.create_task_group() as tasks:
        for number in range(30):
            tasks.start_soon(knouds.workflows.submit, SLUG, {"product_name": str(number)})
    assert len(emulator.runs) == 30
    emulator.assert_charged_once()


async def test_a_longest_wait_raises_instead_of_waiting(make_client: Any) -> None:
    """With `max_wait` a request that finds no turn in time raises, having sent and cost nothing."""
    emulator = Emulator(tier="pro", limit=2, duration=1.0, window_phase=0.0)
    knouds = make_client(emulator, limiter=Limiter("pro", max_wait=3.0))
    for number in range(2):
        await knouds.workflows.submit(SLUG, {"product_name": str(number)})
    began = anyio.current_time()
    with pytest.raises(RateLimitError, match="was not sent") as caught:
        await knouds.workflows.submit(SLUG, {"product_name": "late"})
    assert anyio.current_time() - began == pytest.approx(3.0)
    assert caught.value.limit == 2
    assert caught.value.retry_after == pytest.approx(60 - 3, abs=2)
    assert not caught.value.may_have_run
    assert len(emulator.runs) == 2
    assert knouds.limiter.stats(ROUTE).waiting == 0


async def test_a_share_leaves_the_rest_to_others(make_client: Any) -> None:
    """With `share=0.7` a backlog spends 70 % of each window."""
    emulator = Emulator(tier="pro", limit=10, duration=1.0, window_phase=0.0)
    knouds = make_client(emulator, limiter=Limiter("pro", share=0.7))
    async with anyio.create_task_group() as tasks:
        for number in range(21):
            tasks.start_soon(knouds.workflows.submit, SLUG, {"product_name": str(number)})
    per_window: dict[int, int] = {}
    for run in emulator.runs:
        per_window[int(run.started // 60)] = per_window.get(int(run.started // 60), 0) + 1
    assert list(per_window.values()) == [7, 7, 7]


def test_impossible_options_are_refused() -> None:
    """A share or a longest wait that cannot be is named."""
    for name, values in {"share": (0, 1.5, "x"), "max_wait": (-1, "x", True, math.nan, 10**400, 10**5000)}.items():
        for value in values:
            options: dict[str, Any] = {name: value}
            with pytest.raises(ConfigurationError, match=f"^{name}="):
                Limiter("pro", **options)


@pytest.mark.parametrize("run", [asyncio.run, trio.run], ids=["asyncio", "trio"])
def test_a_limiter_belongs_to_one_event_loop(run: Any) -> None:
    """Used in a second loop, in turn or in another thread, it raises at once and says what serves several."""
    limiter, told = Limiter("enterprise"), list[str]()

    async def take() -> None:
        await limiter.acquire(ROUTE)

    async def take_elsewhere() -> None:
        await take()
        thread = threading.Thread(target=late)
        thread.start()
        thread.join(30)

    def run_(function: Any) -> None:
        run(function() if run is asyncio.run else function)

    def late() -> None:
        with pytest.raises(WrongEventLoopError, match="SharedLimiter"):
            run_(take)
        told.append("told")

    run_(take_elsewhere)
    late()
    assert told == ["told", "told"]


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_ten_thousand_waiters_are_served_and_leave_without_a_scan() -> None:
    """Ten thousand in line: joining, leaving and being served do not grow with the line."""
    limiter = Limiter("enterprise")
    limiter.on_response(
        ROUTE,
        await limiter.acquire(ROUTE),
        QuotaHeaders(limit=20_000, remaining=0, reset=60.0),
        0.0,
    )
    got: list[int] = []

    async def request(number: int) -> None:
        with anyio.move_on_after(1000 if number % 2 else 1):
            limiter.mark_unanswered(ROUTE, await limiter.acquire(ROUTE))
            got.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(10_000):
            tasks.start_soon(request, number)
    assert sorted(got) == list(range(1, 10_000, 2))


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_what_a_turn_costs_does_not_grow_with_the_line() -> None:
    """Counted in function calls: a turn costs as much with ten thousand in line as with five hundred."""

    async def cost(line: int) -> float:
        limiter, left = Limiter("enterprise"), line
        first = await limiter.acquire(ROUTE)
        limiter.on_response(ROUTE, first, QuotaHeaders(limit=line + 1, remaining=line, reset=60.0), 0.0)
        hold = QuotaHeaders(refused=True, succeeded=False, retry_after=30.0)
        limiter.on_response(ROUTE, first, hold, None)

        async def request() -> None:
            nonlocal left
            permit = await limiter.acquire(ROUTE)
            left -= 1
            limiter.on_response(ROUTE, permit, QuotaHeaders(limit=line + 1, remaining=left, reset=60.0), 0.0)

        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event == "call"

        async with anyio.create_task_group() as tasks:
            for _ in range(line):
                tasks.start_soon(request)
            while limiter.stats(ROUTE).waiting < line:
                await anyio.lowlevel.checkpoint()
            sys.setprofile(count)
        sys.setprofile(None)
        assert left == 0
        return calls / line

    assert await cost(10_000) < 1.1 * await cost(500)


DAY = QuotaHeaders(refused=True, succeeded=False, retry_after=86_400.0)


async def test_a_pause_of_a_day_is_raised_and_not_slept() -> None:
    """A call with a shorter `longest` gets an error with the remaining time at once, waiting already or not."""
    limiter, told = Limiter("pro"), list[float | None]()
    first = await limiter.acquire(ROUTE)

    async def request() -> None:
        with pytest.raises(RateLimitError) as caught:
            await limiter.acquire(ROUTE, max_pause=120.0)
        assert caught.value.is_pause
        assert not caught.value.may_have_run
        told.append(caught.value.retry_after)

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(request)
        await anyio.sleep(0.1)
        assert told == []
        limiter.on_response(ROUTE, first, DAY, None)
        await anyio.sleep(1)
        assert len(told) == 5
    await anyio.sleep(40_000)
    assert limiter.stats(ROUTE).held_for == pytest.approx(46_400, abs=10)
    await request()
    assert told[-1] == pytest.approx(46_400, abs=10)
    await anyio.sleep(46_300)
    began = anyio.current_time()
    await limiter.acquire(ROUTE, max_pause=120.0)
    assert 90 < anyio.current_time() - began < 120


async def test_each_bears_what_it_was_given(emulator: Emulator) -> None:
    """A call that may wait a day waits for it; those behind it that may not get an error."""
    limiter, order = Limiter("pro"), list[str]()
    first = await limiter.acquire(ROUTE)

    async def request(name: str, longest: float) -> None:
        try:
            await limiter.acquire(ROUTE, max_pause=longest)
            order.append(name)
        except RateLimitError:
            order.append(f"not {name}")

    async with anyio.create_task_group() as tasks:
        for name, longest in (("patient", 1e6), ("impatient", 60.0)):
            tasks.start_soon(request, name, longest)
            await anyio.lowlevel.checkpoint()
        limiter.on_response(ROUTE, first, DAY, None)
    assert order == ["not impatient", "patient"]


async def test_no_call_sleeps_a_day_away(make_client: Any, emulator: Emulator) -> None:
    """The first call raises, and so does every later one, polls and listings too; each says how long it would take."""
    knouds = make_client(emulator)
    body = b'{"error": "Rate limit exceeded", "code": "RATE_LIMIT_EXCEEDED"}'
    fault = Fault("a day", "before", lambda _: Response(429, {"retry-after": "86400"}, body))
    for route in (ROUTE, "GET /api/executions/:id", "GET /api/usage"):
        emulator.faults.add(fault, route=route)
    began = anyio.current_time()
    calls = (
        lambda: knouds.workflows.submit(SLUG, {"product_name": "x"}),
        lambda: knouds.executions.get("run-1"),
        knouds.usage.list,
    )
    for asked, call in enumerate(calls, 1):
        for _ in range(3):
            with pytest.raises(RateLimitError) as caught:
                await call()
            assert caught.value.retry_after == pytest.approx(86_400, abs=60)
        assert emulator.requests.count == asked
    with pytest.raises(RateLimitError):
        await knouds.executions.attach("run-1").wait()
    assert anyio.current_time() - began < 600


REFUSED = b'{"error": "Rate limit exceeded", "code": "RATE_LIMIT_EXCEEDED"}'
WRONG = {
    "400": Response(400, {}, b'{"error": "no such input", "code": "INVALID_INPUTS"}'),
    "404": Response(404, {}, b'{"error": "no such workflow"}'),
    "502": Response(502, {"content-type": "text/html"}, b"<html>"),
    "redirect": Response(307, {"location": "https://elsewhere.example/"}, b""),
}


@pytest.mark.parametrize("wrong", [*WRONG, "lost"])
async def test_failed_requests_do_not_use_up_a_limit_that_is_not_known(make_client: Any, wrong: str) -> None:
    """What is no 429 was let through: without a tier, 24 submits that fail one by one hold back no other."""
    emulator = Emulator(tier="pro", duration=1.0)
    fault = faults.reset() if wrong == "lost" else Fault(wrong, "before", lambda _: WRONG[wrong])
    emulator.faults.add(fault, route=ROUTE, nth=tuple(range(1, 25)))
    knouds, began = make_client(emulator), anyio.current_time()
    for _ in range(24):
        with pytest.raises(KnoudsError):
            await knouds.workflows.submit(SLUG, {"product_name": "bad"})
    await knouds.workflows.submit(SLUG, {"product_name": "good"})
    assert anyio.current_time() - began < 10
    assert len(emulator.runs) == 1


async def test_a_batch_of_bad_jobs_and_a_good_one_is_soon_done(make_client: Any) -> None:
    """Each of 24 jobs is refused with 400: the 25th runs at once."""
    emulator = Emulator(tier="pro", duration=1.0)
    emulator.faults.add(Fault("400", "before", lambda _: WRONG["400"]), route=ROUTE, nth=tuple(range(1, 25)))
    knouds, began = make_client(emulator), anyio.current_time()
    jobs = [Job(str(number), {"product_name": str(number)}) for number in range(25)]
    async with knouds.workflows.map(SLUG, jobs) as outcomes:
        found = [outcome async for outcome in outcomes]
    assert len(found) == 25
    assert anyio.current_time() - began < 10


async def test_a_bare_refusal_costs_a_second_or_so(make_client: Any, emulator: Emulator) -> None:
    """A 429 that names no time: the request goes again a second later, and after three in a row within eight."""
    emulator.faults.add(Fault("bare", "before", lambda _: Response(429, {}, REFUSED)), route=ROUTE, nth=(1, 2, 3, 5))
    knouds = make_client(emulator)
    for most in (8.0, 1.5):
        began = anyio.current_time()
        await knouds.workflows.submit(SLUG, {"product_name": "x"})
        assert anyio.current_time() - began < most
    assert knouds.limiter.stats(ROUTE).refusals == 4


@pytest.mark.parametrize("is_counted", [False, True], ids=["no headers", "a used-up window"])
async def test_a_hold_outlives_the_call_that_met_it(make_client: Any, *, is_counted: bool) -> None:
    """Every later call raises at once too, with the time that is left, though the window's state is known."""
    emulator = Emulator(tier="pro", duration=1.0, window_phase=0.0)
    headers, knouds = {"retry-after": "30"}, make_client(emulator, retries=Retries(longest=5.0))
    await knouds.workflows.submit(SLUG, {"product_name": "x"})
    if is_counted:
        reset = knouds.limiter.server_time(anyio.current_time()) + knouds.limiter.stats(ROUTE).resets_in
        headers |= {"x-ratelimit-limit": "100", "x-ratelimit-remaining": "0", "x-ratelimit-reset": f"{reset:.0f}"}
    emulator.faults.add(Fault("30 s", "before", lambda _: Response(429, headers, REFUSED)), route=ROUTE, nth=1)
    began = anyio.current_time()
    for _ in range(3):
        with pytest.raises(RateLimitError) as caught:
            await knouds.workflows.submit(SLUG, {"product_name": "x"})
        assert caught.value.retry_after == pytest.approx(began + 30 - anyio.current_time(), abs=2)
        assert caught.value.is_pause
        assert knouds.limiter.stats(ROUTE).held_for == pytest.approx(began + 30 - anyio.current_time(), abs=2)
        await anyio.sleep(2)
    await anyio.sleep(25)
    await knouds.workflows.submit(SLUG, {"product_name": "x"})
    assert emulator.requests.by_route[ROUTE] == 3


async def test_a_permit_knows_how_long_it_was_waited_for() -> None:
    """Its wait is nothing where one is free at once, and else the seconds in the queue."""
    limiter, waited = Limiter("pro"), list[float]()
    server = Server(limiter, 1)

    async def request() -> None:
        permit = await limiter.acquire(ROUTE)
        waited.append(permit.waited)
        server.answer(permit)

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(request)
            await anyio.lowlevel.checkpoint()
    assert waited[0] == 0
    assert 0 < waited[1] <= 61
