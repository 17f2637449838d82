"""Run a batch from its file of jobs to its last result.

However it ends, runs in flight are in the ledger, and the command that resumes it is printed.
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
from knouds_async.cli.batch.ending import print_report
from knouds_async.cli.batch.order import BatchOptions
from knouds_async.cli.batch.outcome_lines import has_line, is_current, is_kept, is_retryable, result_line
from knouds_async.cli.batch.results import ResultsFile
from knouds_async.cli.batch.saved import download_missing
from knouds_async.cli.batch.sinks import StdoutResults
from knouds_async.cli.batch.source import CountedJobs, JobSource
from knouds_async.cli.batch.state import BatchRun
from knouds_async.cli.batch.stream import JobStream
from knouds_async.cli.batch.watching import supervised
from knouds_async.cli.exits import ExitCode, UsageError
from knouds_async.cli.service import connect

_MAX_DOWNLOADS: Final = 8
_TEXT_TYPES: Final = ("text", "textarea", "image", "video")


def run_batch(options: BatchOptions) -> int:
    """Run a batch to its end and return the exit code."""
    source = JobSource(options.jobs)
    _check_paths(options)
    total = source.count() if source.is_file else None
    retried: dict[str, Mapping[str, Any]] = {}
    sink = (
        StdoutResults(is_exact=options.as_json)
        if options.out is None
        else ResultsFile(options.out, _keep_line(options, retried))
    )
    batch = BatchRun(options, source, total, sink, retried)
    try:
        asyncio.run(_run_and_record(batch))
    except asyncio.CancelledError:
        return ExitCode.INTERRUPTED  # by a second Ctrl-C: the message was printed
    finally:
        sink.close()
    return print_report(batch)


def _check_paths(options: BatchOptions) -> None:
    """Raise UsageError when two of jobs, ledger and results are the same file."""
    roles = {"the jobs": options.jobs, "--ledger": options.ledger, "--out": options.out}
    seen: dict[Path, str] = {}
    for role, path in roles.items():
        if path is not None and str(path) != "-":
            other = seen.setdefault(path.resolve(), role)
            if other != role:
                raise UsageError(f"{role} and {other} are the same file, {path}")


def _keep_line(options: BatchOptions, retried: dict[str, Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], bool]:
    """Return the predicate for lines to keep; it collects in `retried` those whose job may have been run again."""

    def keep(line: Mapping[str, Any]) -> bool:
        is_kept_line = is_kept(line, retry_failed=options.retry_failed, save=options.save is not None)
        if is_kept_line and is_retryable(line):
            retried.setdefault(line["key"], line)
        return is_kept_line

    return keep


async def _run_and_record(run: BatchRun) -> None:
    """Run the batch; an error that stops it is kept in `run.failure`."""
    options = run.options
    async with connect(options.base_url) as knouds, SQLiteLedger(options.ledger) as ledger:
        if options.retry_failed:
            await ledger.retry_failed()
        await _drop_lines_of_earlier_runs(run, ledger)
        text_inputs = await _text_inputs(knouds, run)
        source = (
            JobStream(run.source.jobs(text_inputs))
            if run.total is None
            else CountedJobs(run.source, text_inputs, run.total)
        )
        runs = knouds.models if options.target.kind == "models" else knouds.workflows
        batch = runs.map(
            options.target.name,
            source,
            ledger=ledger,
            max_in_flight=options.max_in_flight,
            max_credits=options.max_credits,
            expected=options.expected,
        )
        try:
            async with batch, supervised(run, batch, knouds, source if isinstance(source, JobStream) else None):
                await _write_outcomes(run, batch, knouds)
        finally:
            run.progress = batch.progress
        if run.failure is None:  # includes what other batches on the same ledger spent
            counts = await ledger.counts()
            spent, reserved = counts.credits_spent, counts.credits_reserved
            run.progress = attrs.evolve(run.progress, credits_spent=spent, credits_reserved=reserved)


async def _drop_lines_of_earlier_runs(run: BatchRun, ledger: SQLiteLedger) -> None:
    """Remove the lines of jobs that were run again since: the ledger is the record."""
    lines, run.failed_before = list(run.failed_before.values()), {}
    entries = await asyncio.gather(*(ledger.find(line["key"]) for line in lines))
    pairs = zip(lines, entries, strict=True)
    stale = {line["key"] for line, entry in pairs if entry is not None and not is_current(line, entry)}
    if stale and isinstance(run.sink, ResultsFile):
        run.sink.remove(stale)


async def _text_inputs(knouds: AsyncKnouds, run: BatchRun) -> Collection[str]:
    """Return the inputs whose CSV cells stay strings, according to the workflow's schema."""
    if not run.source.may_be_csv or run.options.target.kind == "models":
        return ()
    try:
        schema = await knouds.workflows.schema(run.options.target.name)
    except PermissionDeniedError as error:
        if not error.from_service:  # a proxy would reject the runs as well
            raise
        return ()  # the key may run the workflow but not read it
    return frozenset(field.name for field in schema.fields if _takes_text(field))


def _takes_text(field: SchemaField) -> bool:
    has_text_options = bool(field.options) and all(isinstance(option, str) for option in field.options)
    return has_text_options or field.type in _TEXT_TYPES


async def _write_outcomes(run: BatchRun, batch: Batch, knouds: AsyncKnouds) -> None:
    """Write a line for each outcome; with --save, after its files were downloaded."""
    slots = asyncio.Semaphore(_MAX_DOWNLOADS)
    try:
        async with asyncio.TaskGroup() as saving:
            async for outcome in batch:
                run.report.record(outcome)
                if run.options.save is not None and isinstance(outcome, Completed):
                    await slots.acquire()
                    saving.create_task(_save_and_write(run, outcome, run.options.save, knouds, slots))
                elif has_line(outcome):
                    run.sink.write(result_line(outcome))
    except* Exception as errors:  # noqa: BLE001  (reported after the batch)
        run.failure = errors.exceptions[0]


async def _save_and_write(
    run: BatchRun, outcome: Completed, folder: Path, knouds: AsyncKnouds, slots: asyncio.Semaphore
) -> None:
    try:
        files = await download_missing(knouds, outcome.job.key, outcome.run, folder)
        run.report.unsaved += files is None
        run.sink.write(result_line(outcome, files, save=True))
    finally:
        slots.release()
