"""How soon the ends of runs are noticed and for how many requests, in virtual time: bounds for any rule.

A request is a poll or a page of a listing; durations are in seconds.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import anyio
import attrs
import httpx
import pytest

from knouds_async import AsyncKnouds, Polling
from knouds_async.testing import Deliveries, Emulator, EmulatorTransport, Lognormal, faults
from knouds_async.webhooks import WebhookReceiver
from tests.webhooks.sending import into

SLUG = "daily-picture"
POLL, LISTING = "GET /api/executions/:id", "GET /api/usage"
USUAL = Lognormal(45.0, 0.35)
ON_ONE_LOOP = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)  # a long simulation

MakeClient = Callable[..., AsyncKnouds]
Duration = Callable[[random.Random], float] | float


@attrs.frozen
class Notice:
    """What noticing the ends of some runs took: seconds from each end to its waiter, requests a run, and the speed.

    `speed`: the time until all runs had finished, against the time until all of that was known.
    """

    late: Sequence[float]
    requests: float
    speed: float

    @property
    def mean(self) -> float:
        """The mean of the delays."""
        return sum(self.late) / len(self.late)

    @property
    def p95(self) -> float:
        """The delay that 95 % of the runs stay below."""
        return sorted(self.late)[math.ceil(0.95 * len(self.late)) - 1]


def service(duration: Duration = USUAL, *, tier: str = "pro", seed: int = 1, **settings: Any) -> Emulator:
    """Return a service; Pro allows 100 requests of each kind a minute, Business 1000."""
    return Emulator(**{"tier": tier, "duration": duration, "seed": seed, **settings})


def in_turn(*durations: float) -> Callable[[random.Random], float]:
    """Return these durations in turn."""
    left = list(durations)
    return lambda _: left.pop(0)


async def notice(knouds: AsyncKnouds, emulator: Emulator, number: int, within: float | None = None) -> Notice:
    """Submit so many runs within some seconds and await them all."""
    dice, known, first = random.Random(number), {}, len(emulator.runs)
    within = min(2.0, number / 10) if within is None else within

    async def one(place: int) -> None:
        await anyio.sleep(dice.uniform(0, within))
        execution = await knouds.workflows.submit(SLUG, {"seed": place})
        state = await execution.wait()
        assert state.is_final
        known[execution.id] = anyio.current_time()

    before, began = requests(emulator), anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for place in range(number):
            tasks.start_soon(one, place)
    runs = emulator.runs[first:]
    speed = (max(run.ends for run in runs) - began) / (max(known.values()) - began)
    late = [known[run.execution_id] - run.ends for run in runs]
    return Notice(late, (requests(emulator) - before) / number, speed)


async def one_after_another(knouds: AsyncKnouds, emulator: Emulator, number: int) -> Notice:
    """Submit and await so many runs, each after the one before it."""
    return together([await notice(knouds, emulator, 1) for _ in range(number)])


def together(seen: Sequence[Notice]) -> Notice:
    """Return the figures of several of the same size as one."""
    return Notice(
        [late for one in seen for late in one.late],
        sum(one.requests for one in seen) / len(seen),
        sum(one.speed for one in seen) / len(seen),
    )


def requests(emulator: Emulator) -> int:
    """Return the number of polls and listings."""
    return emulator.requests.by_route[POLL] + emulator.requests.by_route[LISTING]


# ---- One run


@ON_ONE_LOOP
async def test_a_lone_run_of_a_known_target(make_client: MakeClient) -> None:
    """A run of 45 s of a target that was seen before takes 8 requests, and 2.1 s to notice, on the average."""
    emulator = service(tier="enterprise")
    knouds = make_client(emulator)
    await one_after_another(knouds, emulator, 150)
    warm = make_client(emulator, durations=json.loads(json.dumps(knouds.durations)))
    seen = await one_after_another(warm, emulator, 100)
    assert seen.requests <= 8
    assert seen.mean <= 2.1
    assert seen.p95 <= 4.5
    assert emulator.requests.by_route[LISTING] == 0


@ON_ONE_LOOP
async def test_a_lone_run_of_an_unknown_target(make_client: MakeClient) -> None:
    """A run of 45 s of a target that nobody has seen takes 10 requests, and 2.6 s to notice, on the average."""
    emulator = service(tier="enterprise", seed=100)
    seen = together([await notice(make_client(emulator), emulator, 1) for _ in range(150)])
    assert seen.requests <= 10
    assert seen.mean <= 2.6
    assert seen.p95 <= 5


@pytest.mark.parametrize(("duration", "late"), [(1.0, 1.0), (5.0, 1.5), (10.0, 2.5)])
@pytest.mark.parametrize("latency", [0.0, 0.04, 0.1])
async def test_a_short_run_of_an_unknown_target(
    make_client: MakeClient, duration: float, late: float, latency: float
) -> None:
    """Where quota is plenty a new target is polled early as well, for 12 requests at most."""
    emulator = service(duration)
    seen = await notice(make_client(emulator, latency=latency), emulator, 1)
    assert max(seen.late) <= late
    assert seen.requests <= 12


@pytest.mark.parametrize(("duration", "late"), [(240.0, 60.0), (1800.0, 450.0)])
async def test_a_long_run_is_polled_ever_more_rarely(make_client: MakeClient, duration: float, late: float) -> None:
    """The steps grow with the age of a run, to a minute at most: a run of half an hour takes 100 requests."""
    emulator = service(duration)
    seen = await notice(make_client(emulator), emulator, 1)
    assert seen.requests <= 100
    assert max(seen.late) <= min(late, 61)
    polls = [row.at for row in emulator.requests if row.route == POLL]
    assert max(later - earlier for earlier, later in pairwise(polls)) <= 61


@pytest.mark.parametrize("number", [3, 10])
async def test_listings_let_no_long_run_go_unseen_for_longer_than_polls(make_client: MakeClient, number: int) -> None:
    """Runs of many minutes of a new target that listings serve are noticed within the minute that a lone one is."""
    emulator = service(Lognormal(1500.0, 0.4), tier="enterprise", seed=6)
    seen = await notice(make_client(emulator), emulator, number)
    assert max(seen.late) <= 61
    assert seen.requests <= 50
    assert emulator.requests.by_route[LISTING] > number


# ---- Batches


@ON_ONE_LOOP
@pytest.mark.parametrize(
    ("number", "tier", "seeds", "most", "mean", "p95"),
    [
        (20, "pro", 12, 4, 1.1, 2.5),
        (100, "pro", 3, 2.2, 0.7, 1.5),
        pytest.param(500, "business", 1, 1.3, 0.7, 1.2, marks=pytest.mark.slow),
    ],
)
async def test_a_batch(
    make_client: MakeClient, number: int, tier: str, seeds: int, most: float, mean: float, p95: float
) -> None:
    """Runs submitted together share listings: the more there are, the fewer requests each takes."""
    seen = []
    for seed in range(seeds):
        emulator = service(tier=tier, seed=seed)
        seen.append(await notice(make_client(emulator), emulator, number))
        emulator.assert_no_429()
    figures = together(seen)
    assert figures.requests <= most
    assert figures.mean <= mean
    assert figures.p95 <= p95


@pytest.mark.parametrize(("duration", "late"), [(1.0, 1.0), (5.0, 1.5), (10.0, 2.5)])
@pytest.mark.parametrize("number", [3, 5, 9])
async def test_short_runs_of_an_unknown_target_in_a_batch(
    make_client: MakeClient, number: int, duration: float, late: float
) -> None:
    """A new target is listed early as well, so that three or more runs are noticed about as soon as a lone one."""
    emulator = service(duration)
    seen = await notice(make_client(emulator), emulator, number)
    assert max(seen.late) <= late + 0.2
    assert seen.requests <= 3


@pytest.mark.parametrize("others", [1.0, 2.0, 5.0])
async def test_a_straggler(make_client: MakeClient, others: float) -> None:
    """In a batch of five the one that takes 10 s is noticed within 2 s of its end."""
    for tier in ("pro", "enterprise"):
        emulator = service(in_turn(others, others, others, others, 10.0), tier=tier)
        seen = await notice(make_client(emulator), emulator, 5, within=0)
        assert seen.late[-1] <= 2
        assert seen.requests <= 4


PIPELINES: dict[str, tuple[dict[str, Any], float]] = {
    "all limited": ({}, 0.98),
    "rows never match": ({"usage_lag": 1e8}, 0.95),
    "rows 3 s late": ({"usage_lag": 3.0}, 0.98),
}


async def pipeline(make_client: MakeClient, number: int, settings: dict[str, Any], speed: float) -> None:
    """Submit so many runs at once on Pro, where every route is limited, and check the figures."""
    emulator = service(**settings)
    seen = await notice(make_client(emulator), emulator, number, within=0)
    assert seen.requests <= 1.5
    assert seen.speed >= speed
    emulator.assert_no_429()


@ON_ONE_LOOP
@pytest.mark.parametrize("which", PIPELINES)
async def test_a_pipeline(make_client: MakeClient, which: str) -> None:
    """Three hundred runs that wait for their submits are noticed as fast as the quota allows, for 1.5 requests each."""
    await pipeline(make_client, 300, *PIPELINES[which])


@pytest.mark.slow
@ON_ONE_LOOP
@pytest.mark.parametrize("which", PIPELINES)
async def test_a_long_pipeline(make_client: MakeClient, which: str) -> None:
    """The same of a thousand."""
    await pipeline(make_client, 1000, *PIPELINES[which])


@pytest.mark.parametrize("number", [100, 300])
async def test_no_poll_takes_what_a_result_needs(make_client: MakeClient, number: int) -> None:
    """Where a window has just a poll for each result, listings find all ends and every result comes in time."""
    emulator = service(Lognormal(6.0, 0.25), window_phase=50.0, seed=3)
    seen = await notice(make_client(emulator), emulator, number, within=0)
    assert max(seen.late) <= 2
    assert emulator.requests.by_route[POLL] == number


async def test_no_run_that_listings_show_running_takes_the_poll_of_a_result(make_client: MakeClient) -> None:
    """However old it is, while listings show ends in time: a poll too many may cost a batch a window of a minute."""
    for seed in range(1, 4):
        emulator = service(Lognormal(45.0, 0.25), window_phase=20.0, seed=seed)
        await notice(make_client(emulator), emulator, 300, within=0)
        assert emulator.requests.by_route[POLL] == 300


@ON_ONE_LOOP
@pytest.mark.parametrize("begun", [5.0, 25.0, 50.0])
async def test_no_window_ends_with_a_poll_that_could_have_been_sent(make_client: MakeClient, begun: float) -> None:
    """Two hundred runs that have finished, attached at once on Pro, are known when the next window opens."""
    emulator = service(1.0, window_phase=0.0)
    knouds = make_client(emulator)
    ids = [(await knouds.workflows.submit(SLUG, {"seed": place})).id for place in range(200)]
    await anyio.sleep(60 - anyio.current_time() % 60 + begun)
    began, other = anyio.current_time(), make_client(emulator)
    async with anyio.create_task_group() as tasks:
        for execution_id in ids:
            tasks.start_soon(other.executions.attach(execution_id).wait)
    assert anyio.current_time() - began <= 60 - begun + 1
    assert emulator.requests.by_route[POLL] == 200


# ---- Listings that are late, wrong or failing


@pytest.mark.slow
@ON_ONE_LOOP
@pytest.mark.parametrize("fault", [faults.service_error(503), faults.stalled()], ids=lambda fault: fault.name)
@pytest.mark.parametrize(("number", "tier", "seeds"), [(20, "pro", 4), (100, "enterprise", 2), (300, "pro", 1)])
async def test_listings_that_fail_are_as_if_there_were_none(
    make_client: MakeClient, number: int, tier: str, seeds: int, fault: Any
) -> None:
    """Ends are noticed about as soon as without listings, and a batch is as fast."""
    noticed: list[tuple[Notice, Notice]] = []
    for seed in range(seeds):
        alone, failing = service(tier=tier, seed=seed), service(tier=tier, seed=seed)
        failing.faults.add(fault, route=LISTING)
        first = await notice(make_client(alone, polling=Polling(sweeps=False)), alone, number, within=0)
        noticed.append((first, await notice(make_client(failing), failing, number, within=0)))
        failing.assert_no_429()
    without, seen = map(together, zip(*noticed, strict=True))
    assert seen.mean <= 1.25 * without.mean + 0.75
    assert seen.speed >= without.speed - 0.06


@pytest.mark.parametrize("lag", [3.0, 5.0, 20.0, 1e8])
async def test_late_rows_delay_no_run_beyond_its_own_schedule(make_client: MakeClient, lag: float) -> None:
    """A run whose row is late or missing is noticed within its longest step, and on the average as soon as alone."""
    emulator = service(tier="enterprise", usage_lag=lag)
    seen = await notice(make_client(emulator), emulator, 60)
    steps = [max(10.0, (run.ends - run.started) / 4) + 3.0 for run in emulator.runs]
    assert all(late <= step for late, step in zip(seen.late, steps, strict=True))
    assert seen.mean <= 3


async def test_late_rows_delay_few_runs_little_where_polls_are_limited(make_client: MakeClient) -> None:
    """Of twenty runs on Pro whose rows are late each has seven requests at most: their ends are noticed within 4 s."""
    for lag, mean, p95 in ((5.0, 4.0, 6.5), (20.0, 4.0, 9.0)):
        seen = []
        for seed in range(8):
            emulator = service(seed=seed, usage_lag=lag)
            seen.append(await notice(make_client(emulator), emulator, 20))
            emulator.assert_no_429()
        figures = together(seen)
        assert figures.mean <= mean
        assert figures.p95 <= p95
        assert figures.requests <= 7


class StoppedRows(EmulatorTransport):
    """Answers every listing after 100 s with the last one before."""

    _last: bytes | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        is_listing = request.url.path == "/api/usage"
        if is_listing and self._last is not None and anyio.current_time() > 100:
            return httpx.Response(200, content=self._last)
        answer = await super().handle_async_request(request)
        if is_listing:
            self._last = await answer.aread()
            return httpx.Response(answer.status_code, headers=answer.headers, content=self._last)
        return answer


async def test_rows_that_stop_changing_stop_no_batch() -> None:
    """Though a poll is kept for each result, runs that listings show running for ever are polled in the end."""
    emulator = service(limit=20)
    transport = StoppedRows(emulator, latency=0.04)
    async with (
        httpx.AsyncClient(transport=transport) as http,
        AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http) as knouds,
    ):
        with anyio.fail_after(1000):
            seen = await notice(knouds, emulator, 60, within=0)
    assert seen.mean <= 70
    assert max(seen.late) <= 240


# ---- Webhooks


async def delivered(
    make_client: MakeClient, number: int, duration: Duration, *, dropped: float, within: float, seed: int
) -> Notice:
    """Notice so many runs, some of whose deliveries are lost."""
    emulator = service(
        duration,
        tier="enterprise",
        webhook_url="http://app.test/hook",
        deliveries=Deliveries(dropped=dropped),
        seed=seed,
    )
    knouds = make_client(emulator)
    receiver = WebhookReceiver(emulator.webhook_secret, client=knouds)
    async with emulator.delivering(into(receiver)):
        return await notice(knouds, emulator, number, within)


async def test_webhooks_that_arrive_make_polls_rare(make_client: MakeClient) -> None:
    """Runs whose ends are delivered take a fifth of a request each; where a fifth is lost, listings help out."""
    for dropped, most, mean in ((0.0, 0.2, 0.5), (0.2, 1.0, 3.0)):
        seen = await delivered(make_client, 120, USUAL, dropped=dropped, within=2.0, seed=5)
        assert seen.requests <= most
        assert seen.mean <= mean


@pytest.mark.slow
@ON_ONE_LOOP
async def test_long_runs_whose_deliveries_are_lost_now_and_then(make_client: MakeClient) -> None:
    """Of runs of 300 s a tenth of which is not delivered the mean is noticed within 7 s, and none 300 s late."""
    law = Lognormal(300.0, 0.4)
    seen = together([await delivered(make_client, 300, law, dropped=0.1, within=600.0, seed=seed) for seed in (1, 2)])
    assert seen.requests <= 2.6
    assert seen.mean <= 7
    assert max(seen.late) <= 300
