"""A batch from its file of jobs to its last result.

Rule of the file: whatever ends it, what is out is in the ledger, and how to go on is said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from knouds_async import AsyncKnouds, PermissionDeniedError, SchemaField
from knouds_async.batch.batch import Batch
from knouds_async.batch.outcomes import Completed
from knouds_async.batch.sqlite import SQLiteLedger
from knouds_async.cli.batch.ending import ended
from knouds_async.cli.batch.order import Order
from knouds_async.cli.batch.outcome_lines import is_of, is_written, line_of, may_be_retried, stays
from knouds_async.cli.batch.results import Results
from knouds_async.cli.batch.saved import save
from knouds_async.cli.batch.sinks import Stdout
from knouds_async.cli.batch.source import CountedJobs, Source
from knouds_async.cli.batch.state import Run
from knouds_async.cli.batch.stream import Stream
from knouds_async.cli.batch.watching import watched
from knouds_async.cli.exits import Exit, UsageError
from knouds_async.cli.service import connect

_SAVED_AT_ONCE: Final = 8
_TEXTS: Final = ("text", "textarea", "image", "video")


def run(order: Order) -> int:
    """Run a batch to its end and give the exit code."""
    source = Source(order.jobs)
    _check_paths(order)
    total = source.count() if source.is_file else None
    retried: dict[str, Mapping[str, Any]] = {}
    sink = Stdout(is_exact=order.as_json) if order.out is None else Results(order.out, _keep(order, retried))
    batch = Run(order, source, total, sink, retried)
    try:
        asyncio.run(_carry_out(batch))
    except asyncio.CancelledError:
        return Exit.INTERRUPTED  # by a second Ctrl-C: all has been said
    finally:
        sink.close()
    return ended(batch)


def _check_paths(order: Order) -> None:
    """Refuse one file in two roles; the ledger and the results are checked for what they hold when they are opened."""
    roles = {"the jobs": order.jobs, "--ledger": order.ledger, "--out": order.out}
    seen: dict[Path, str] = {}
    for role, path in roles.items():
        if path is not None and str(path) != "-":
            other = seen.setdefault(path.resolve(), role)
            if other != role:
                raise UsageError(f"{role} and {other} are the same file, {path}")


def _keep(order: Order, retried: dict[str, Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], bool]:
    """Return what tells which lines stay, and puts aside those whose job may have been run once more since."""

    def keep(line: Mapping[str, Any]) -> bool:
        is_kept = stays(line, retry_failed=order.retry_failed, save=order.save is not None)
        if is_kept and may_be_retried(line):
            retried.setdefault(line["key"], line)
        return is_kept

    return keep


async def _carry_out(run: Run) -> None:
    """Run the batch; what ends it before its time is kept in `run.failure`."""
    order = run.order
    async with connect(order.base_url) as knouds, SQLiteLedger(order.ledger) as ledger:
        if order.retry_failed:
            await ledger.retry_failed()
        await _drop_lines_of_earlier_runs(run, ledger)
        texts = await _texts(knouds, run)
        source = Stream(run.source.jobs(texts)) if run.total is None else CountedJobs(run.source, texts, run.total)
        runs = knouds.models if order.target.kind == "models" else knouds.workflows
        batch = runs.map(
            order.target.name,
            source,
            ledger=ledger,
            max_in_flight=order.max_in_flight,
            max_credits=order.max_credits,
            expected=order.expected,
        )
        try:
            async with batch, watched(run, batch, knouds, source if isinstance(source, Stream) else None):
                await _take_all(run, batch, knouds)
        finally:
            run.progress = batch.progress
        if run.failure is None:  # what other batches on the same ledger have spent meanwhile is in it
            counts = await ledger.counts()
            spent, reserved = counts.credits_spent, counts.credits_reserved
            run.progress = attrs.evolve(run.progress, credits_spent=spent, credits_reserved=reserved)


async def _drop_lines_of_earlier_runs(run: Run, ledger: SQLiteLedger) -> None:
    """Make room for jobs that were run once more, in whatever way that was asked for: the ledger is the record."""
    lines, run.failed_before = list(run.failed_before.values()), {}
    entries = await asyncio.gather(*(ledger.find(line["key"]) for line in lines))
    pairs = zip(lines, entries, strict=True)
    stale = {line["key"] for line, entry in pairs if entry is not None and not is_of(line, entry)}
    if stale and isinstance(run.sink, Results):
        run.sink.drop(stale)


async def _texts(knouds: AsyncKnouds, run: Run) -> Collection[str]:
    """Give the inputs whose cells stay text in CSV, as far as the workflow says so."""
    if not run.source.may_be_csv or run.order.target.kind == "models":
        return ()
    try:
        schema = await knouds.workflows.schema(run.order.target.name)
    except PermissionDeniedError as error:
        if not error.from_service:  # what stands in between would answer the runs as well
            raise
        return ()  # a key that may run it but not read it
    return frozenset(field.name for field in schema.fields if _is_text(field))


def _is_text(field: SchemaField) -> bool:
    has_texts = bool(field.options) and all(isinstance(option, str) for option in field.options)
    return has_texts or field.type in _TEXTS


async def _take_all(run: Run, batch: Batch, knouds: AsyncKnouds) -> None:
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


async def _save(run: Run, outcome: Completed, folder: Path, knouds: AsyncKnouds, turns: asyncio.Semaphore) -> None:
    try:
        files = await save(knouds, outcome.job.key, outcome.run, folder)
        run.account.unsaved += files is None
        run.sink.write(line_of(outcome, files, save=True))
    finally:
        turns.release()
