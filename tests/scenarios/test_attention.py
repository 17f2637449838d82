"""The ends of runs are noticed soon and with few requests, whatever the usage listings say or fail to say."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import httpx
import pytest

from knouds_async import AsyncKnouds, Completed, InvalidArgumentError, Job, Polling, WaitTimeoutError
from knouds_async.errors import ConfigurationError
from knouds_async.testing import Emulator, EmulatorTransport, Lognormal, faults

SLUG = "daily-picture"
POLL, LISTING = "GET /api/executions/:id", "GET /api/usage"

Rows = list[dict[str, Any]]
Alter = Callable[[dict[str, Any]], None]


class Altered(httpx.AsyncBaseTransport):
    """An emulator whose usage pages are altered on their way."""

    def __init__(self, emulator: Emulator, alter: Alter) -> None:
        self._inner = EmulatorTransport(emulator, latency=0.04)
        self._alter = alter

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Carry a request, and alter the answer if it is a usage page."""
        answer = await self._inner.handle_async_request(request)
        if request.url.path != "/api/usage":
            return answer
        body = json.loads(await answer.aread())
        if "rows" in body:
            self._alter(body)
        headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
        return httpx.Response(answer.status_code, headers=headers, json=body)


@pytest.fixture
async def altered() -> AsyncIterator[Callable[..., AsyncKnouds]]:
    """Return what builds a client whose usage pages are altered; all are closed after the test."""
    async with AsyncExitStack() as stack:

        def make(emulator: Emulator, alter: Alter, **options: Any) -> AsyncKnouds:
            http = httpx.AsyncClient(transport=Altered(emulator, alter))
            knouds = AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http, **options)
            stack.push_async_callback(http.aclose)
            stack.push_async_callback(knouds.aclose)
            return knouds

        yield make


def service(**settings: Any) -> Emulator:
    """Return a service without limits whose runs take around 45 s."""
    return Emulator(**{"tier": "enterprise", "duration": Lognormal(45.0, 0.35), "seed": 7, **settings})


async def latencies(knouds: AsyncKnouds, emulator: Emulator, number: int, **options: Any) -> list[float]:
    """Submit runs within two seconds and await them all; return for how long each end went unnoticed."""
    dice, known = random.Random(number), {}

    async def one(place: int) -> None:
        await anyio.sleep(dice.uniform(0, 2))
        execution = await knouds.workflows.submit(SLUG, {"seed": place}, **options)
        state = await execution.wait()
        assert state.result is not None
        known[execution.id] = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        for place in range(number):
            tasks.start_soon(one, place)
    return [known[run.execution_id] - run.ends for run in emulator.runs if run.execution_id in known]


def requests(emulator: Emulator) -> Counter[str]:
    """Count the polls and listings."""
    return Counter({route: emulator.requests.by_route[route] for route in (POLL, LISTING)})


def within_bound(emulator: Emulator, late: list[float], slack: float = 3.0) -> bool:
    """Return whether each end was noticed within the longest step between two polls at a single run."""
    steps = [max(10.0, (run.ends - run.started) / 4) + slack for run in emulator.runs]
    return all(one <= step for one, step in zip(late, steps, strict=True))


async def test_one_run_is_polled_when_its_end_is_likely(make_client: Any) -> None:
    """A run of a target that was seen before takes eight polls on the average, and 2.1 s to notice."""
    emulator = service()
    knouds = make_client(emulator)
    for place in range(60):
        await (await knouds.workflows.submit(SLUG, {"seed": place})).wait()
    warm = make_client(emulator, durations=json.loads(json.dumps(knouds.durations)))
    before, late = requests(emulator), []
    for place in range(60, 120):
        execution = await warm.workflows.submit(SLUG, {"seed": place})
        await execution.wait()
        late.append(anyio.current_time() - emulator.runs[-1].ends)
    assert sum(late) / 60 <= 2.3
    assert requests(emulator)[POLL] - before[POLL] <= 8.5 * 60
    assert requests(emulator)[LISTING] == 0


async def test_one_listing_shows_the_ends_of_many(make_client: Any) -> None:
    """A hundred runs take 2.2 requests each, limits included, and their ends are known within a second and a half."""
    emulator = service(tier="pro")
    late = sorted(await latencies(make_client(emulator), emulator, 100))
    assert requests(emulator).total() <= 2.2 * 100
    assert sum(late) / 100 <= 0.7
    assert late[94] <= 1.5
    assert all(run.polls >= 1 for run in emulator.runs)
    emulator.assert_no_429()


async def test_the_windows_of_a_long_backlog_are_used(make_client: Any) -> None:
    """When there are fewer polls than ends, no poll is wasted and none is refused."""
    emulator = service(tier="pro", window_phase=5.0)
    await latencies(make_client(emulator), emulator, 300)
    assert emulator.requests.by_route[POLL] <= 1.05 * 300
    emulator.assert_no_429()


@pytest.mark.parametrize("polling", [Polling(sweeps=False), Polling.every(3.0), Polling.backoff()], ids=repr)
async def test_without_listings_nothing_is_listed(make_client: Any, polling: Polling) -> None:
    """`sweeps=False` and the plain schedules leave `GET /api/usage` alone, and find every end."""
    emulator = service()
    late = await latencies(make_client(emulator, polling=polling), emulator, 20)
    assert requests(emulator)[LISTING] == 0
    assert within_bound(emulator, late)


BROKEN = {
    "capability": faults.unknown_error(403, "CAPABILITY_DENIED"),
    "not found": faults.not_found(),
    "500": faults.service_error(500),
    "502": faults.bad_gateway(),
    "login page": faults.login_page(),
    "empty": faults.empty_body(),
    "reset": faults.reset(),
    "truncated": faults.truncated(),
    "no json": faults.invalid_json(b'{"rows": 7}'),
    "stalled": faults.stalled(),
    "redirect": faults.redirect(),
}


@pytest.mark.parametrize("fault", BROKEN.values(), ids=BROKEN)
async def test_a_listing_that_fails_delays_no_run(make_client: Any, fault: Any) -> None:
    """Whatever is wrong with the usage route, polls take over, and it is not asked often."""
    emulator = service()
    emulator.faults.add(fault, route=LISTING)
    late = await latencies(make_client(emulator), emulator, 20)
    assert within_bound(emulator, late)
    assert sum(late) / 20 <= 3.5
    assert requests(emulator)[LISTING] <= 40


async def test_listings_that_fail_now_and_then_are_used_all_the_same(make_client: Any) -> None:
    """With 30 % of the listings lost, runs are found as soon, for fewer requests than polls would take."""
    emulator = service()
    emulator.faults.add(faults.bad_gateway(), route=LISTING, probability=0.3)
    late = await latencies(make_client(emulator), emulator, 100)
    assert sum(late) / 100 <= 1.5
    assert requests(emulator).total() <= 4 * 100


def shuffled(body: dict[str, Any]) -> None:
    """Return the rows in another order."""
    random.Random(len(body["rows"])).shuffle(body["rows"])


def oldest_first(body: dict[str, Any]) -> None:
    """Return the rows in reverse order."""
    body["rows"].reverse()


def half_missing(body: dict[str, Any]) -> None:
    """Leave out every other run."""
    body["rows"] = [row for row in body["rows"] if row["id"] % 2]


def stuck(body: dict[str, Any]) -> None:
    """Make every third run continue for ever."""
    for row in body["rows"]:
        if row["id"] % 3 == 0:
            row["status"] = "processing"


def all_finished(body: dict[str, Any]) -> None:
    """Report every run as finished."""
    for row in body["rows"]:
        row["status"] = "completed"


def no_request(body: dict[str, Any]) -> None:
    """Leave out what a row is matched by."""
    for row in body["rows"]:
        del row["requestId"]


def one_request(body: dict[str, Any]) -> None:
    """Return all rows the request of the first."""
    for row in body["rows"]:
        row["requestId"] = body["rows"][0]["requestId"]


def repeated(body: dict[str, Any]) -> None:
    """Return each row twice, first as it was at the start."""
    body["rows"] = [dict(row, status="processing") for row in body["rows"]] + body["rows"]


def new_words(body: dict[str, Any]) -> None:
    """Use unknown words for the statuses."""
    for row in body["rows"]:
        row["status"] = {"processing": "rendering", "completed": "done"}[row["status"]]


def ends_only(body: dict[str, Any]) -> None:
    """Leave out running runs."""
    body["rows"] = [row for row in body["rows"] if row["status"] != "processing"]


def wrong_total(body: dict[str, Any]) -> None:
    """Count wrongly."""
    body["total"] = 10**6


def odd_rows(body: dict[str, Any]) -> None:
    """Put odd things between the rows."""
    body["rows"] = [None, 7, {}, {"requestId": 5, "status": "completed"}, *body["rows"], {"status": []}]


WRONG = [shuffled, oldest_first, half_missing, all_finished, no_request, one_request, repeated, new_words, ends_only]
WRONG += [wrong_total, odd_rows]


@pytest.mark.parametrize("alter", WRONG, ids=lambda alter: alter.__name__)
async def test_wrong_listings_delay_no_run(altered: Any, alter: Alter) -> None:
    """Rows that are missing, wrong, repeated, odd or in another order delay no run beyond what single polls would."""
    emulator = service()
    late = await latencies(altered(emulator, alter), emulator, 20)
    assert within_bound(emulator, late)
    assert requests(emulator).total() <= 14 * 20


async def test_rows_that_never_end_are_doubted(altered: Any) -> None:
    """Runs whose rows never finish are noticed within 80 s, and as soon as by single polls once that was seen."""
    emulator = service()
    knouds = altered(emulator, stuck)
    assert max(await latencies(knouds, emulator, 20)) <= 80
    assert max(await latencies(knouds, emulator, 20)) <= 20


@pytest.mark.parametrize(("lag", "mean"), [(3.0, 5.0), (20.0, 8.0), (1e8, 5.0)])
async def test_late_listings_are_left_alone(make_client: Any, lag: float, mean: float) -> None:
    """Rows that come late cost no more than their lag, and when that is long, or for ever, polls take over."""
    emulator = service(usage_lag=lag)
    late = await latencies(make_client(emulator), emulator, 20)
    assert sum(late) / 20 <= mean
    assert requests(emulator).total() <= 10 * 20


@pytest.mark.slow
async def test_runs_of_others_in_between_are_passed_over(make_client: Any) -> None:
    """Six hundred newer rows of another program do not hide ours, which are on the second page."""
    emulator = service(durations={"jingle": 400.0})
    knouds, other = make_client(emulator), make_client(emulator)
    late: list[float] = []

    async def theirs(place: int) -> None:
        await anyio.sleep(5)
        await other.workflows.submit("jingle", {"mood": str(place)})

    async with anyio.create_task_group() as tasks:
        for place in range(600):
            tasks.start_soon(theirs, place)
        late += await latencies(knouds, emulator, 50)
    assert len(emulator.runs) == 650
    assert sum(late) / 50 <= 2.0
    assert requests(emulator).total() <= 8 * 50


# What goes wrong with polls, and what waiters do.

LOST = {
    "502": faults.bad_gateway(),
    "reset": faults.reset(),
    "refused": faults.refused(),
    "login page": faults.login_page(),
    "no json": faults.invalid_json(),
    "truncated": faults.truncated(),
    "wrong types": faults.wrong_types(),
    "unknown status": faults.unknown_status(),
    "stalled": faults.stalled(5.0),
}


@pytest.mark.parametrize("fault", LOST.values(), ids=LOST)
async def test_a_third_of_the_polls_may_fail(make_client: Any, fault: Any) -> None:
    """With 30 % of the polls failing, whatever the way, every wait ends with the result, and within the bound."""
    emulator = service()
    emulator.faults.add(fault, route=POLL, probability=0.3)
    late = await latencies(make_client(emulator), emulator, 30)
    assert within_bound(emulator, late, slack=15.0)


async def test_everything_may_fail_at_once(make_client: Any) -> None:
    """Polls and listings that fail in turn, late rows and a limit lose no run, and provoke no refusal."""
    emulator = service(tier="pro", usage_lag=4.0, failure_rate=0.0)
    for fault in (faults.bad_gateway(), faults.reset(), faults.invalid_json()):
        emulator.faults.add(fault, probability=0.1, route=POLL)
        emulator.faults.add(fault, probability=0.1, route=LISTING)
    late = await latencies(make_client(emulator), emulator, 60)
    assert len(late) == 60
    assert max(late) <= 60
    emulator.assert_no_429()


async def test_a_poll_that_hangs_holds_up_no_other_run(make_client: Any) -> None:
    """One poll that is never answered delays its own run alone."""
    emulator = service(duration=20.0)
    emulator.faults.add(faults.stalled(), route=POLL, nth=1)
    late = sorted(await latencies(make_client(emulator), emulator, 20))
    assert late[-2] <= 10


async def test_waiters_that_leave_disturb_no_other(make_client: Any) -> None:
    """Of sixty waits half are cut at odd moments, and some are begun again: all others end, for no more requests."""
    emulator = service(duration=30.0)
    knouds, dice, ended = make_client(emulator), random.Random(3), []

    async def one(place: int) -> None:
        execution = await knouds.workflows.submit(SLUG, {"seed": place})
        if place % 2:
            with anyio.move_on_after(dice.uniform(0, 40)):
                await execution.wait()
        if place % 4 != 1:
            ended.append(await execution)

    async with anyio.create_task_group() as tasks:
        for place in range(60):
            tasks.start_soon(one, place)
    assert len(ended) == 45
    assert requests(emulator).total() <= 4 * 60


async def test_a_wait_bounds_a_poll_that_hangs(make_client: Any) -> None:
    """`timeout` ends a wait to the second, though its poll is in flight, and the next wait finds the end."""
    emulator = service(duration=5.0)
    emulator.faults.add(faults.stalled(), route=POLL, nth=1)
    execution = await make_client(emulator).workflows.submit(SLUG, {})
    began = anyio.current_time()
    with pytest.raises(WaitTimeoutError):
        await execution.wait(timeout=9)
    assert anyio.current_time() - began == pytest.approx(9)
    assert (await execution.wait(timeout=9)).is_final


async def test_a_wait_polls_once_more_before_it_gives_up(make_client: Any) -> None:
    """A run that may well have finished by the deadline is polled just before it, though none was planned."""
    emulator = service(duration=30.0)
    knouds = make_client(emulator, polling=Polling(cost_of_request=20.0))
    execution = await knouds.workflows.submit(SLUG, {}, expected=30)
    assert (await execution.wait(timeout=40)).is_final
    assert emulator.requests.by_route[POLL] <= 2


async def test_each_change_of_status_is_given_once(make_client: Any) -> None:
    """A run that is cancelled while it is followed gives its three statuses, and its end is noticed soon."""
    emulator = service(duration=100.0)
    execution, seen = await make_client(emulator).workflows.submit(SLUG, {}), []

    async def follow() -> None:
        seen.extend([str(state.status) async for state in execution.updates()])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        await anyio.sleep(40)
        await execution.cancel()
    assert seen == ["processing", "cancel_requested", "cancelled"]
    assert anyio.current_time() - emulator.runs[0].ends <= 2


# What callers know.


async def test_a_caller_may_know_better(make_client: Any) -> None:
    """A run that is expected to take 300 s is polled far more rarely than others of its target."""
    emulator = service(duration=300.0)
    knouds = make_client(emulator)
    execution = await knouds.workflows.submit(SLUG, {}, expected=300)
    with anyio.move_on_after(40):
        await execution
    assert requests(emulator).total() <= 2
    with anyio.move_on_after(40):
        await (await knouds.workflows.submit(SLUG, {"seed": 2}))
    assert requests(emulator).total() >= 8


async def test_a_caller_may_know_better_of_a_batch(make_client: Any) -> None:
    """Jobs that are expected to take 300 s are polled far more rarely, and are found when they end."""
    emulator = service(duration=300.0)
    knouds, began = make_client(emulator), anyio.current_time()
    async with knouds.workflows.map(SLUG, [Job("a", {})], expected=300, validate=False) as outcomes:
        with anyio.move_on_after(40):
            await anext(outcomes)
        assert requests(emulator).total() <= 3
        assert isinstance(await anext(outcomes), Completed)
    assert anyio.current_time() - began <= 330


@pytest.mark.parametrize("expected", [0, -1, float("inf"), float("nan"), "30", True, 10**400])
async def test_an_impossible_expectation_is_refused(knouds: AsyncKnouds, emulator: Emulator, expected: Any) -> None:
    """What is no number of seconds is named, before any request."""
    with pytest.raises(InvalidArgumentError, match="expected="):
        await knouds.workflows.submit(SLUG, {}, expected=expected)
    with pytest.raises(InvalidArgumentError, match="expected="):
        await knouds.models.submit("gpt-image-2", {}, expected=expected)
    with pytest.raises(InvalidArgumentError, match="expected="):
        knouds.executions.attach("run-1", expected=expected)
    with pytest.raises(InvalidArgumentError, match="expected="):
        knouds.models.map("gpt-image-2", [], expected=expected)
    assert emulator.requests.count == 0


async def test_what_was_learned_can_be_kept(make_client: Any) -> None:
    """`durations` is plain JSON by target, and a client that begins with it is as wise."""
    emulator = service()
    knouds = make_client(emulator)
    assert knouds.durations == {}
    await latencies(knouds, emulator, 20)
    await latencies(knouds, emulator, 3, expected=50)
    saved = json.loads(json.dumps(knouds.durations))
    assert sorted(saved) == [f"workflows/{SLUG}", f"workflows/{SLUG} expected 39.4 s"]
    assert make_client(emulator, durations=saved).durations == knouds.durations


@pytest.mark.parametrize("saved", [[], "x", 5, {"a": 1}, {1: {}}, {"a": {"version": 9}}], ids=repr)
def test_durations_that_cannot_be_read_are_refused(saved: Any) -> None:
    """What is not what `durations` gave is a ConfigurationError that names the fault."""
    with pytest.raises(ConfigurationError, match="durations: "):
        AsyncKnouds("k", base_url="http://localhost", durations=saved)


async def test_a_run_that_was_attached_is_as_old_as_it_says(make_client: Any) -> None:
    """A run that another process submitted 40 s ago is polled like one of that age."""
    emulator = service(duration=45.0)
    execution = await make_client(emulator).workflows.submit(SLUG, {})
    await anyio.sleep(40)
    same = make_client(emulator).executions.attach(execution.id, execution.target)
    await same
    assert anyio.current_time() - emulator.runs[0].ends <= 5
    assert emulator.requests.by_route[POLL] <= 4
