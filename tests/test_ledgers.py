"""A ledger of somebody else's, made of the public names alone, keeps the same promises."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import attrs
import pytest

from knouds_async import AsyncKnouds, Job, LedgerError, Outcome
from knouds_async.ledgers import (
    OPEN,
    Accepted,
    Claim,
    Claimed,
    Entry,
    Event,
    KnownRun,
    OwnerGone,
    Payer,
    Summary,
    Totals,
    Written,
    advance,
    decide,
    held_against,
    repriced,
)
from knouds_async.testing import ApiKey, Emulator, faults

SLUG = "my-thumbnail-pipeline"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where a ledger is to be."""
    return tmp_path / "renders.pickle"


ROUTE = "POST /api/workflows/:slug/run"


@attrs.define
class State:
    """What is on record: the last attempt of each job, all credits, the largest cost, and whose it is."""

    entries: dict[str, Entry] = attrs.Factory(dict)
    totals: Totals = attrs.Factory(Totals)
    highest_cost: float | None = None
    payer: Payer | None = None


class PickledLedger:
    """A ledger for one process at a time: everything in a file, which is replaced with every change."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state: State = pickle.loads(path.read_bytes()) if path.exists() else State()  # noqa: S301  (our own)
        for entry in list(self._state.entries.values()):  # their owners are gone: there is one process at a time
            self._save(entry, advance(entry, OwnerGone()))

    async def bind(self, payer: Payer) -> None:
        """Bind it to the first payer."""
        if self._state.payer not in (None, payer):
            raise LedgerError(f"the ledger is that of {self._state.payer}, and this is {payer}")
        self._state.payer = payer
        self._write()

    async def join(self) -> str:
        """Return a new owner."""
        return str(uuid4())

    async def leave(self, owner: str) -> None:
        """Free what an owner had."""
        for entry in [each for each in self._state.entries.values() if each.owner == owner]:
            self._save(entry, advance(entry, OwnerGone()))

    async def look(self, key: str) -> Entry | None:
        """Return the last attempt."""
        return self._state.entries.get(key)

    async def claim(self, claim: Claim) -> Claimed:
        """Write the intent, if it may be sent."""
        before = self._state.entries.get(claim.key)
        decided = decide(before, claim, self._state.totals, self._state.highest_cost)
        if isinstance(decided, Written):
            self._save(before, decided.entry)
        return decided

    async def record(self, key: str, attempt: int, event: Event) -> Written:
        """Write what follows from an event."""
        before = self._state.entries[key]
        assert before.attempt == attempt
        if isinstance(event, Accepted):
            event = held_against(event, self._other_job_of(event.execution_id, key))
        after = advance(before, event)
        self._save(before, after)
        cost = after.ending.cost if after.ending is not None else None
        if cost and cost > (self._state.highest_cost or 0.0):
            self._state.highest_cost = cost
            for entry in [each for each in self._state.entries.values() if each.stage in OPEN]:
                self._save(entry, repriced(entry, cost))
        return Written(after, self._state.totals, self._state.highest_cost)

    async def summary(self, target: str) -> Summary:
        """Return all credits and the largest cost."""
        ended = [each for each in self._state.entries.values() if each.ending is not None and each.target == target]
        return Summary(totals=self._state.totals, runs=len(ended), highest_cost=self._state.highest_cost)

    async def known_runs(self, target: str, account: str, since: float) -> tuple[KnownRun, ...]:
        """Return all runs that are known."""
        known = [each for each in self._state.entries.values() if (each.target, each.account) == (target, account)]
        return tuple(
            KnownRun(request_id=each.request_id, begun_by=None if each.until is None else each.until.latest)
            for each in known
            if each.request_id is not None
        )

    async def aclose(self) -> None:
        """Everything is written."""

    def _other_job_of(self, execution_id: str, key: str) -> str | None:
        runs = [each for each in self._state.entries.values() if each.execution_id == execution_id]
        return next((each.key for each in runs if each.key != key), None)

    def _save(self, before: Entry | None, after: Entry) -> None:
        self._state.totals = self._state.totals.moved(before, after)
        self._state.entries[after.key] = after
        self._write()

    def _write(self) -> None:
        beside = self._path.with_suffix(".new")
        beside.write_bytes(pickle.dumps(self._state))
        beside.replace(self._path)


async def run(knouds: AsyncKnouds, path: Path, count: int, **options: Any) -> list[str]:
    """Run jobs one after the other on the ledger as it is on the disk, and name the kinds of outcomes."""
    jobs = [Job(f"job-{number}", {"product_name": f"job-{number}"}) for number in range(count)]
    found: list[Outcome] = []
    ledger = PickledLedger(path)
    async with knouds.workflows.map(SLUG, jobs, ledger=ledger, ordered=True, max_in_flight=1, **options) as outcomes:
        async for outcome in outcomes:
            found.append(outcome)  # noqa: PERF401  (it may be cancelled)
    return [type(outcome).__name__ for outcome in found]


async def test_it_resumes_proves_and_pays_once(make_client: Any, path: Path) -> None:
    """A batch that was cut continues, and a lost submit is sent again once it is proven that it did not run."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    knouds = make_client(emulator)
    with anyio.move_on_after(12.0):
        await run(knouds, path, 4)
    emulator.faults.add(faults.closed(), route=ROUTE, nth=1)
    assert await run(knouds, path, 5) == ["Completed", "Completed", "Unknown", "Completed", "Completed"]
    await anyio.sleep(400)
    assert await run(knouds, path, 5) == ["Completed"] * 5
    emulator.assert_charged_once()


async def test_it_keeps_the_cap_and_its_account(make_client: Any, path: Path) -> None:
    """The cap holds over all batches, and another account's batch is refused."""
    other = ApiKey("knouds_live_of_somebody_else", user="u_else")
    emulator = Emulator(tier="enterprise", duration=1.0, cost=12, keys=[other])
    assert await run(make_client(emulator), path, 2, max_credits=36) == ["Completed"] * 2
    assert await run(make_client(emulator), path, 5, max_credits=36) == ["Completed"] * 3 + ["NotRun"] * 2
    assert emulator.credits_spent == 36
    with pytest.raises(LedgerError, match="and this is account u_else"):
        await run(make_client(emulator, api_key=other.text), path, 5)
