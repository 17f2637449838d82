"""A ledger that may lack runs, for all batches of a client: nothing is sent until usage rows account for every run."""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from knouds_async import AsyncKnouds, Job, LedgerError, Outcome
from knouds_async._sansio.clock import Moment
from knouds_async.ledgers import Claim, Claimed, Doubt, Doubted, KnownRun
from knouds_async.testing import Emulator, faults
from tests.batch.in_loop import InLoopLedger

SLUG = "my-thumbnail-pipeline"


def jobs(count: int) -> list[Job]:
    """Return jobs with keys of their own."""
    return [Job(f"job-{number}", {"product_name": f"job-{number}"}) for number in range(count)]


async def run(knouds: AsyncKnouds, ledger: Any, count: int) -> list[Outcome]:
    """Run a batch to its end."""
    async with knouds.workflows.map(SLUG, jobs(count), ledger=ledger) as outcomes:
        return [outcome async for outcome in outcomes]


def kinds(outcomes: list[Outcome]) -> Counter[str]:
    """Count outcomes by their kind and reason."""
    return Counter(str(getattr(outcome, "reason", type(outcome).__name__)) for outcome in outcomes)


class DoubtedLedger(InLoopLedger):
    """A ledger that went through a failover: it may lack runs as long as there is a `doubt`."""

    doubt: Doubt | None = None

    async def claim(self, claim: Claim) -> Claimed:
        """Note an intent, unless something is in doubt."""
        return await super().claim(claim) if self.doubt is None else self._doubted(self.doubt)

    def _doubted(self, doubt: Doubt) -> Doubted:
        return Doubted("the ledger may lack runs", doubt, self._runs, partial(self._again, doubt), self._trust)

    async def _runs(self, account: str) -> list[tuple[str | None, KnownRun]]:
        return [(None, run) for run in await self.known_runs(f"workflows/{SLUG}", account, 0.0)]

    async def _again(self, doubt: Doubt, now: Moment) -> Doubted | None:
        if self.doubt is not None and self.doubt.until is None and self.doubt.id == doubt.id:
            self.doubt = attrs.evolve(self.doubt, until=now.latest)
        return None if self.doubt is None else self._doubted(self.doubt)

    async def _trust(self) -> Doubted | None:
        self.doubt = None
        return None


@pytest.fixture
def doubted(path: Path) -> Any:
    """Return a ledger in the loop that may go through a failover."""
    made = DoubtedLedger(path)
    yield made
    if made._database is not None:
        made._database.close()


async def failed_over(ledger: DoubtedLedger) -> None:
    """Put a ledger on another database than it was, a while after its last run."""
    last = await ledger.find("job-4")
    assert last is not None
    assert last.since is not None
    ledger.doubt = Doubt(id="1", timeline="2", since=last.since.earliest)
    await anyio.sleep(300)


async def test_a_ledger_in_doubt_is_trusted_once_every_row_is_accounted_for(
    knouds: Any, emulator: Emulator, doubted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is sent for the two minutes in which rows may come; then the batch continues, and one warning said so."""
    await run(knouds, doubted, 5)
    await failed_over(doubted)
    began = anyio.current_time()
    assert kinds(await run(knouds, doubted, 10)) == {"Completed": 10}
    assert 120 <= anyio.current_time() - began < 200
    assert [each.levelno for each in caplog.records] == [logging.WARNING]
    assert len(emulator.runs) == 10


async def test_a_row_that_nobody_accounts_for_keeps_a_ledger_in_doubt(
    make_client: Any, emulator: Emulator, doubted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the run of a job that may be sent again: the batch ends, and warning and error name the row."""
    knouds = make_client(emulator)
    await run(knouds, doubted, 5)
    await failed_over(doubted)
    await (await knouds.workflows.submit(SLUG, {"product_name": "lost"}))
    await anyio.sleep(30)
    lost = emulator.runs[-1].request_id
    for _ in range(2):
        with pytest.raises(LedgerError, match=rf"no job on record accounts for usage row .*request {lost}\)"):
            await run(knouds, doubted, 10)
    assert [each.levelno for each in caplog.records] == [logging.WARNING]
    assert lost in caplog.text
    assert len(emulator.runs) == 6
    await doubted._trust()
    assert kinds(await run(knouds, doubted, 10)) == {"Completed": 10}


async def test_once_and_submit_wait_for_a_ledger_in_doubt(knouds: Any, emulator: Emulator, doubted: Any) -> None:
    """A task function and a web app send nothing either, share what is read, and need no batch to continue."""
    await run(knouds, doubted, 5)
    await failed_over(doubted)

    def listings() -> int:
        return sum(each.path == "/api/usage" for each in emulator.requests)

    async def once(number: int) -> None:
        await knouds.workflows.once(SLUG, Job(f"once-{number}", {"product_name": f"{number}"}), ledger=doubted)

    before = listings()
    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(once, number)
        with anyio.move_on_after(60):
            await knouds.workflows.submit(SLUG, {"product_name": "1"}, key="submit", ledger=doubted)
        assert (len(emulator.runs), listings() - before) == (5, 4)  # of two pages each
    await knouds.workflows.submit(SLUG, {"product_name": "1"}, key="submit", ledger=doubted)
    assert len(emulator.runs) == 56


async def test_usage_that_cannot_be_read_trusts_nothing(knouds: Any, emulator: Emulator, doubted: Any) -> None:
    """The batch ends with an error that says why, after the time in which rows and news may come."""
    await run(knouds, doubted, 5)
    await failed_over(doubted)
    emulator.faults.add(faults.not_found(), route="GET /api/usage")
    with pytest.raises(LedgerError, match="the usage could not be read"):
        await run(knouds, doubted, 10)
    assert len(emulator.runs) == 5


async def test_a_batch_that_is_stopped_waits_for_no_proof(knouds: Any, emulator: Emulator, doubted: Any) -> None:
    """`stop` ends the wait at once, and the jobs in line come out as not run."""
    await run(knouds, doubted, 5)
    await failed_over(doubted)
    began = anyio.current_time()
    async with knouds.workflows.map(SLUG, jobs(10), ledger=doubted) as outcomes:
        await anyio.sleep(20)
        outcomes.stop()
        found = [outcome async for outcome in outcomes]
    assert kinds(found) == {"Completed": 5, "stopped": 5}
    assert anyio.current_time() - began < 30
