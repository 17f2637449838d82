"""A batch from its file of jobs to its last result.

Rule of the file: whatever ends it, what is out is in the ledger, and how to go on is said.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs

from knouds_async import AsyncKnouds, LimiterStats, PermissionDeniedError, SchemaField
from knouds_async._sansio import calls
from knouds_async.batch.batch import Batch
from knouds_async.batch.jobs import Job
from knouds_async.batch.outcomes import Completed
from knouds_async.batch.progress import Progress
from knouds_async.batch.sqlite import SQLiteLedger
from knouds_async.cli import output
from knouds_async.cli.batch.account import Account, as_record, in_words
from knouds_async.cli.batch.display import Display, shown
from knouds_async.cli.batch.interrupts import taken
from knouds_async.cli.batch.order import Order
from knouds_async.cli.batch.outcome_lines import is_written, line_of, stays
from knouds_async.cli.batch.results import Results
from knouds_async.cli.batch.saved import save
from knouds_async.cli.batch.sinks import Stdout
from knouds_async.cli.batch.source import Source
from knouds_async.cli.batch.stream import Stream
from knouds_async.cli.exits import Exit, UsageError
from knouds_async.cli.service import connect
from knouds_async.cli.words import counted, said_of
from knouds_async.types import Inputs

_SAVED_AT_ONCE: Final = 8
_TEXTS: Final = ("text", "textarea", "image", "video")


@attrs.frozen
class _FileOfJobs:
    """The jobs of a file that was looked through: their number is known, and they are read as they are wanted."""

    source: Source
    texts: Collection[str]
    total: int

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Job | Inputs]:
        return self.source.jobs(self.texts, self.total)


@attrs.define
class _Run:
    """A batch under way."""

    order: Order
    source: Source
    total: int | None
    sink: Results | Stdout
    account: Account = attrs.Factory(Account)
    progress: Progress = attrs.Factory(Progress)
    failure: Exception | None = None


def run(order: Order) -> int:
    """Run a batch to its end and give the exit code."""
    source = Source(order.jobs)
    _check_paths(order)
    total = source.count() if source.is_file else None
    sink = Stdout(is_exact=order.as_json) if order.out is None else Results(order.out, _keep(order))
    batch = _Run(order, source, total, sink)
    try:
        asyncio.run(_carry_out(batch))
    except asyncio.CancelledError:
        return Exit.INTERRUPTED  # by a second Ctrl-C: all has been said
    finally:
        sink.close()
    return _ended(batch)


def _check_paths(order: Order) -> None:
    """Refuse one file in two roles; the ledger and the results are checked for what they hold when they are opened."""
    roles = {"the jobs": order.jobs, "--ledger": order.ledger, "--out": order.out}
    seen: dict[Path, str] = {}
    for role, path in roles.items():
        if path is not None and str(path) != "-":
            other = seen.setdefault(path.resolve(), role)
            if other != role:
                raise UsageError(f"{role} and {other} are the same file, {path}")


def _keep(order: Order) -> Callable[[Mapping[str, Any]], bool]:
    return lambda line: stays(line, retry_failed=order.retry_failed, save=order.save is not None)


async def _carry_out(run: _Run) -> None:
    """Run the batch; what ends it before its time is kept in `run.failure`."""
    order = run.order
    async with connect(order.base_url) as knouds, SQLiteLedger(order.ledger) as ledger:
        if order.retry_failed:
            await ledger.retry_failed()
        texts = await _texts(knouds, run)
        source = Stream(run.source.jobs(texts)) if run.total is None else _FileOfJobs(run.source, texts, run.total)
        runs = knouds.models if order.target.kind == "models" else knouds.workflows
        batch = runs.map(
            order.target.name,
            source,
            ledger=ledger,
            max_in_flight=order.max_in_flight,
            max_credits=order.max_credits,
        )
        try:
            async with batch, _watched(run, batch, knouds, source if isinstance(source, Stream) else None):
                await _take_all(run, batch, knouds)
        finally:
            run.progress = batch.progress


async def _texts(knouds: AsyncKnouds, run: _Run) -> Collection[str]:
    """Give the inputs whose cells stay text in CSV, as far as the workflow says so."""
    if not run.source.may_be_csv or run.order.target.kind == "models":
        return ()
    try:
        schema = await knouds.workflows.schema(run.order.target.name)
    except PermissionDeniedError:
        return ()  # a key that may run it but not read it
    return frozenset(field.name for field in schema.fields if _is_text(field))


def _is_text(field: SchemaField) -> bool:
    has_texts = bool(field.options) and all(isinstance(option, str) for option in field.options)
    return has_texts or field.type in _TEXTS


@asynccontextmanager
async def _watched(run: _Run, batch: Batch, knouds: AsyncKnouds, stream: Stream | None) -> AsyncIterator[None]:
    """Show the progress and take Ctrl-C while the block runs."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  (for the type checker)

    def stop() -> None:
        run.account.is_interrupted = True
        batch.stop()
        if stream is not None:
            stream.stop()
        out = counted(batch.progress.in_flight, "run")
        output.tell(f"nothing more is submitted; waiting for {out} still out; Ctrl-C again leaves at once")

    def leave() -> None:
        out = counted(batch.progress.in_flight, "run")
        output.tell(f"left at once; {out} still out, charged and in the ledger. To go on: {run.order.command}")
        task.cancel()

    def word() -> str:
        if run.account.is_interrupted:
            return "stopping: waiting for what is out; Ctrl-C again leaves at once"
        return _quota(knouds.limiter.stats(calls.submit(run.order.target, {}).route))

    async with taken(stop, leave), shown(Display(lambda: batch.progress, word)):
        yield


def _quota(stats: LimiterStats) -> str:
    """Say how the quota stands while jobs wait for it."""
    if not stats.waiting or stats.resets_in is None:
        return ""
    return f"{stats.waiting:,} wait for their turn; the next window opens in {stats.resets_in:.0f} s"


async def _take_all(run: _Run, batch: Batch, knouds: AsyncKnouds) -> None:
    """Write a line for each outcome; with --save, once its files are there."""
    turns = asyncio.Semaphore(_SAVED_AT_ONCE)
    try:
        async with asyncio.TaskGroup() as saving:
            async for outcome in batch:
                run.account.see(outcome)
                if run.order.save is not None and isinstance(outcome, Completed):
                    await turns.acquire()
                    saving.create_task(_save(run, outcome, run.order.save, knouds, turns))
                elif is_written(outcome):
                    run.sink.write(line_of(outcome))
    except* Exception as errors:  # noqa: BLE001  (said when the batch has been left)
        run.failure = errors.exceptions[0]


async def _save(run: _Run, outcome: Completed, folder: Path, knouds: AsyncKnouds, turns: asyncio.Semaphore) -> None:
    try:
        files = await save(knouds, outcome.job.key, outcome.run, folder)
        run.account.unsaved += files is None
        run.sink.write(line_of(outcome, files, save=True))
    finally:
        turns.release()


def _ended(run: _Run) -> int:
    """Say how a batch ended, what is wrong and how to go on."""
    now, order, account = run.progress, run.order, run.account
    code = account.exit(now, run.failure)
    if order.as_json and order.out is not None:
        output.give_json(as_record(now, order.ledger, order.out, code))
        output.finish()  # results first, where both go to one terminal
    output.note(in_words(now))
    for trouble in account.troubles(shlex.quote(str(order.ledger))):
        output.tell(trouble)
    if run.failure is not None:
        output.tell(f"stopped: {said_of(run.failure)}")
    if run.failure is not None or code is Exit.INTERRUPTED:
        output.tell(f"To go on: {order.command}")
    return code
