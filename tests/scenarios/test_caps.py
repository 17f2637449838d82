"""A cap where the service reports little: prices that vary, estimates that are too low, costs that are missing."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from knouds_async import AsyncKnouds, Completed, Job, NotRun
from knouds_async.testing import Emulator, faults
from knouds_async.testing.transport import EmulatorTransport
from tests.batch.in_loop import InLoopLedger

SLUG = "my-thumbnail-pipeline"
MODEL = "gpt-image-2"


class Varying(Mapping[str, int]):
    """What a run costs: a share of them ten times as much, in an order that a seed decides."""

    def __init__(self, seed: int, price: int, first: int | None = None, share: float = 0.2) -> None:
        self._random, self._price, self._share = random.Random(seed), price, share
        self._first: int | None = price if first is None else first

    def __getitem__(self, target: str) -> int:
        """Return the price of the next run; the first to ask is the schema."""
        estimate, self._first = self._first, None
        return estimate or self._price * (10 if self._random.random() < self._share else 1)

    def __iter__(self) -> Iterator[str]:
        """Name no target: each has its price when it is asked for."""
        return iter(())

    def __len__(self) -> int:
        """Count none."""
        return 0


class Untold(httpx.AsyncBaseTransport):
    """The emulator's answers without the costs of some runs."""

    def __init__(self, emulator: Emulator, share: float, seed: int) -> None:
        self._service = EmulatorTransport(emulator, latency=0.04)
        self._share, self._random = share, random.Random(seed)
        self._is_told: dict[str, bool] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer as the emulator does."""
        answer = await self._service.handle_async_request(request)
        body = json.loads(await answer.aread())
        told = self._is_told.setdefault(body.get("executionId", ""), self._random.random() >= self._share)
        if "status" in body and not told:
            body["cost"] = None
        return httpx.Response(answer.status_code, headers=answer.headers, json=body)


async def spend(emulator: Emulator, resource: str, target: str, cap: int, share: float, **options: Any) -> list[Any]:
    """Run a batch of 60 jobs under a cap, with costs that are reported for some runs only."""
    inputs = [{"prompt": str(number), "product_name": str(number)} for number in range(60)]
    async with httpx.AsyncClient(transport=Untold(emulator, share, cap)) as http:
        knouds = AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http)
        batch = getattr(knouds, resource).map(target, inputs, max_credits=cap, validate=False, **options)
        async with batch as outcomes:
            return [outcome async for outcome in outcomes]


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(12))
async def test_a_price_that_varies_keeps_to_the_bound_of_the_docs(seed: int, share: float) -> None:
    """Charges exceed the cap by no more than the cost above reservation of runs in flight and of unreported ones."""
    emulator = Emulator(tier="enterprise", duration=lambda dice: dice.uniform(2, 20), failure_rate=0.2, seed=seed)
    emulator.costs = Varying(seed, 12)
    cap = random.Random(seed).choice([60, 200, 500, 1500])
    assert len(await spend(emulator, "workflows", SLUG, cap, share)) == 60
    dear = [run for run in emulator.runs if run.cost > 12]
    learned = min((run.seen_ended_at or math.inf for run in dear), default=math.inf) if share == 0.0 else math.inf
    in_flight = sum(run.started <= learned + 0.1 for run in dear)
    assert emulator.credits_spent <= cap + in_flight * (120 - 12)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("seed", range(12))
async def test_an_estimate_of_the_upper_end_is_never_passed(seed: int) -> None:
    """With the most expensive run as the estimate the cap holds whatever the rest costs, reported or not."""
    emulator = Emulator(tier="enterprise", duration=5.0, failure_rate=0.3, seed=seed)
    emulator.costs = Varying(seed, 12, first=120)
    await spend(emulator, "workflows", SLUG, 700, 0.5)
    assert emulator.credits_spent <= 700


async def test_a_dear_run_holds_back_what_is_in_line() -> None:
    """Once a run has cost ten times the estimate, no further one goes that would not fit at that price."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    emulator.costs = Varying(0, 120, first=12, share=0.0)
    found = await spend(emulator, "workflows", SLUG, 400, 0.0)
    assert emulator.credits_spent == 360
    assert sum(isinstance(outcome, Completed) for outcome in found) == 3


async def test_a_refused_submit_is_not_sent_again_at_a_price_that_no_longer_fits(make_client: Any) -> None:
    """What waits after a 429 is not in flight: when a run turns out dear, it is sent only if it still fits."""
    emulator = Emulator(tier="pro", duration=1.0, cost=1)
    emulator.faults.add(faults.rate_limited(), route="POST /api/workflows/:slug/run", nth=tuple(range(23, 42)))
    inputs = [{"product_name": str(number)} for number in range(40)]
    async with make_client(emulator).workflows.map(SLUG, inputs, max_credits=100) as outcomes:
        async for _ in outcomes:
            emulator.cost = 40 if len(emulator.runs) >= 21 else 1
    assert emulator.credits_spent == 21 + 40
    assert outcomes.progress.not_run == 40 - 22


async def test_failed_runs_without_a_cost_count() -> None:
    """A failed run counts as its estimate: the service does not say that it is free."""
    emulator = Emulator(tier="enterprise", duration=5.0, cost=12, failure_rate=1.0)
    await spend(emulator, "workflows", SLUG, 100, 1.0)
    assert emulator.credits_spent == 96


async def test_a_failed_run_of_no_known_price_ends_what_a_cap_allows() -> None:
    """Without an estimate, and without the cost of the first run, no cap can be kept: nothing more is sent."""
    emulator = Emulator(tier="enterprise", duration=5.0, cost=12, failure_rate=1.0)
    found = await spend(emulator, "models", MODEL, 100, 1.0)
    assert len(emulator.runs) == 1
    assert "is not known" in str(next(outcome.error for outcome in found if isinstance(outcome, NotRun)))


@pytest.mark.parametrize(("cap", "completed", "is_estimated"), [(1000, 40, False), (240, 20, False), (240, 20, True)])
async def test_two_batches_share_what_a_cap_allows(
    cap: int, completed: int, is_estimated: bool, make_client: Any, path: Path
) -> None:
    """None gives up while runs of the other may still tell the price, or turn out cheaper; both keep the cap."""
    emulator, found = Emulator(tier="enterprise", duration=45.0), list[Any]()
    ledgers = [InLoopLedger(path), InLoopLedger(path)]

    async def run(ledger: InLoopLedger, name: str) -> None:
        knouds = make_client(emulator)
        runs, target = (knouds.workflows, SLUG) if is_estimated else (knouds.models, MODEL)
        inputs = {"product_name" if is_estimated else "prompt": "x"}
        jobs = [Job(f"{name}-{number}", inputs) for number in range(20)]
        found.extend(await runs.gather(target, jobs, ledger=ledger, max_credits=cap))

    async with anyio.create_task_group() as tasks:
        for name, ledger in zip("ab", ledgers, strict=True):
            tasks.start_soon(run, ledger, name)
    assert sum(isinstance(outcome, Completed) for outcome in found) == len(emulator.runs) == completed
    assert len(found) == 40
    for ledger in ledgers:
        assert ledger._database is not None
        ledger._database.close()


async def test_a_run_that_an_owner_left_holds_up_no_other_batch(make_client: Any, path: Path) -> None:
    """What is reserved for runs that nobody waits for stays so: the batch ends at once."""
    emulator = Emulator(tier="enterprise", duration=45.0)
    emulator.faults.add(faults.closed(after_run=True), nth=1, route="POST /api/models/:internalName/run")
    ledger, knouds = InLoopLedger(path), make_client(emulator)
    for key in "ab":
        await knouds.models.gather(MODEL, [Job(key, {"prompt": "x"})], ledger=ledger, max_credits=1000)
        assert anyio.current_time() < 5
    assert len(emulator.runs) == 1
    assert ledger._database is not None
    ledger._database.close()


async def test_another_batch_learns_what_was_dearest(path: Path) -> None:
    """A ledger knows the dearest run of a target: the next batch reserves its cost from the first job on."""
    emulator = Emulator(tier="enterprise", duration=5.0, costs={MODEL: 70})
    ledger = InLoopLedger(path)
    assert await spend(emulator, "models", MODEL, 70, 0.0, ledger=ledger)
    emulator.costs = {MODEL: 7}
    await spend(emulator, "models", MODEL, 139, 0.0, ledger=ledger)
    assert len(emulator.runs) == 1
    await spend(emulator, "models", MODEL, 140, 0.0, ledger=ledger)
    assert len(emulator.runs) == 2
    assert ledger._database is not None
    ledger._database.close()
