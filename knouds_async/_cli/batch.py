"""`knouds batch`: run a file of jobs, write a file of results, or show a ledger and record decisions in it.

However a batch ends, runs in flight are in the ledger, and the command that resumes it is printed. The first Ctrl-C
stops submitting and waits for runs in flight, the second exits at once. Even then submits in flight get a moment to be
answered: a run whose id is in the ledger can be resumed, while a crash would leave an unknown one. No ledger is created
to show one or to record a decision. To show one no key is needed; with one, the usage is searched for unknown runs.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs

from knouds_async import (
    AsyncKnouds,
    Completed,
    Estimate,
    ExecutionNotFoundError,
    ExecutionState,
    KnoudsError,
    PermissionDeniedError,
    Progress,
    SQLiteLedger,
    SubmissionSearch,
    Target,
)
from knouds_async._batch.batch import Batch
from knouds_async._batch.ledger import LedgerCounts
from knouds_async._batch.progress import Display, describe_waits
from knouds_async._cli import output
from knouds_async._cli.batch_display import (
    BatchReport,
    estimate_pairs,
    show_display,
    summarize,
    to_record,
)
from knouds_async._cli.batch_results import (
    ResultsFile,
    StdoutResults,
    has_line,
    is_current,
    is_kept,
    is_retryable,
    result_line,
)
from knouds_async._cli.client import DEFAULT_SERVICE, ServiceOptions, connect
from knouds_async._cli.errors import (
    ExitCode,
    KeyMissingError,
    UsageError,
    exit_code_for,
    format_before_run,
    format_error,
)
from knouds_async._cli.input_files import CountedJobs, InvalidLineError, JobSource, JobStream, text_inputs
from knouds_async._cli.ledgers import LedgerPlace, doubt, existing, is_there, open_ledger, owners
from knouds_async._cli.output import one_line, plural
from knouds_async._cli.run import TERMINATION_SIGNALS
from knouds_async._sansio import endpoints
from knouds_async._sansio.ledger import Entry
from knouds_async._sansio.reconcile import LAG
from knouds_async.postgres import LedgerOwner, Postgres


@attrs.frozen(kw_only=True)
class BatchOptions:
    """The options of a batch; `out` is None for stdout."""

    target: Target
    jobs: Path
    ledger: LedgerPlace
    out: Path | None = None
    max_in_flight: int | None = None
    max_credits: float | None = None
    retry_failed: bool = False
    expected: float | None = None
    save: Path | None = None
    dry_run: bool = False
    as_json: bool = False
    service: ServiceOptions = DEFAULT_SERVICE

    @property
    def resume_command(self) -> str:
        """The command that resumes the batch, for a shell.

        Without --retry-failed: the ledger has recorded it, and runs that failed since then would be paid for again.
        """
        options: dict[str, object] = {
            "--model": self.target.kind == "models",
            "--ledger": self.ledger,
            "--out": self.out,
            "--max-in-flight": self.max_in_flight,
            "--max-credits": None if self.max_credits is None else f"{self.max_credits:.15g}",
            "--expected": None if self.expected is None else f"{self.expected:.15g}",
            "--save": self.save,
            "--json": self.as_json,
            **self.service.arguments,
        }
        words = ["knouds", "batch", self.target.name, str(self.jobs)]
        for option, value in options.items():
            if value is not None and value is not False:
                words += [option] if value is True else [option, str(value)]
        return shlex.join(words)


@attrs.define
class BatchRun:
    """The state of a batch."""

    options: BatchOptions
    source: JobSource
    total: int | None
    sink: ResultsFile | StdoutResults
    failed_before: dict[str, Mapping[str, Any]] = attrs.Factory(dict)
    has_begun: bool = False
    report: BatchReport = attrs.Factory(BatchReport)
    progress: Progress = attrs.Factory(Progress)
    failure: Exception | None = None


_MAX_FAULTS: Final = 10  # of a dry run


def run_batch(options: BatchOptions) -> int:
    """Run a batch to its end, or say what it would cost, and return the exit code."""
    if options.dry_run:
        return _dry_run(options)
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
    except (KnoudsError, UsageError, KeyMissingError) as error:
        if batch.has_begun:
            raise
        output.print_error(format_before_run(error))
        return exit_code_for(error)
    finally:
        sink.close(keeps_new=batch.has_begun)
    return print_report(batch)


def _check_paths(options: BatchOptions) -> None:
    """Raise UsageError when two of jobs, ledger and results are the same file."""
    roles = {"the jobs": options.jobs, "--ledger": options.ledger, "--out": options.out}
    seen: dict[Path, str] = {}
    for role, path in roles.items():
        if isinstance(path, Path) and str(path) != "-":
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
    async with connect(options.service) as knouds, open_ledger("--ledger", options.ledger) as ledger:
        if is_there(options.ledger):
            if options.retry_failed:
                await ledger.retry_failed()
            await _drop_lines_of_earlier_runs(run, ledger)
        texts = await _text_inputs(knouds, options.target, run.source)
        source = JobStream(run.source.jobs(texts)) if run.total is None else CountedJobs(run.source, texts, run.total)
        batch = _map(knouds, options, source, ledger)
        try:
            async with batch:
                run.has_begun = True
                async with supervised(run, batch, knouds, source if isinstance(source, JobStream) else None):
                    await _write_outcomes(run, batch)
        finally:
            run.progress = batch.progress
        if run.failure is None:  # includes what other batches on the same ledger spent
            counts = await ledger.counts()
            spent, reserved = counts.credits_spent, counts.credits_reserved
            run.progress = attrs.evolve(run.progress, credits_spent=spent, credits_reserved=reserved)


def _map(
    knouds: AsyncKnouds, options: BatchOptions, jobs: JobStream | CountedJobs, ledger: SQLiteLedger | LedgerPlace | None
) -> Batch:
    runs = knouds.models if options.target.kind == "models" else knouds.workflows
    return runs.map(
        options.target.name,
        jobs,
        ledger=ledger,
        max_in_flight=options.max_in_flight,
        max_credits=options.max_credits,
        expected=options.expected,
        save=None if options.dry_run else options.save,
    )


def _dry_run(options: BatchOptions) -> int:
    """Print what a batch would cost and how long it would take; the exit code is 2 when a job is invalid."""
    source = JobSource(options.jobs)
    estimate, lines = asyncio.run(_estimate(options, source))
    faults = [*(str(line) for line in lines), *estimate.faults]
    estimate = attrs.evolve(estimate, jobs=estimate.jobs + len(lines), invalid=estimate.invalid + len(lines))
    if options.as_json:
        record = attrs.asdict(estimate)
        del record["faults"]
        counts = {name: record.pop(name) for name in ("jobs", "invalid", "already_done")}
        output.print_json(counts | {"to_run": estimate.to_run} | record)
    else:
        output.print_pairs(*estimate_pairs(estimate))
    for fault in faults[:_MAX_FAULTS]:
        output.print_error(fault)
    if not options.as_json:
        output.print_info("Nothing was run.")
    return ExitCode.USAGE if estimate.invalid else ExitCode.OK


async def _estimate(options: BatchOptions, source: JobSource) -> tuple[Estimate, list[InvalidLineError]]:
    """Return the estimate of the jobs that could be read, and the lines that are none."""
    lines: list[InvalidLineError] = []
    async with connect(options.service) as knouds:
        texts = await _text_inputs(knouds, options.target, source)
        jobs = JobStream(source.jobs(texts, on_invalid=lines.append))
        place = options.ledger
        ledger = place if is_there(place) else None
        return await _map(knouds, options, jobs, ledger).estimate(), lines


async def _drop_lines_of_earlier_runs(run: BatchRun, ledger: SQLiteLedger | Postgres) -> None:
    """Remove the lines of jobs that were run again since: the ledger is the record."""
    lines, run.failed_before = list(run.failed_before.values()), {}
    entries = await asyncio.gather(*(ledger.find(line["key"]) for line in lines))
    pairs = zip(lines, entries, strict=True)
    stale = {line["key"] for line, entry in pairs if entry is not None and not is_current(line, entry)}
    if stale and isinstance(run.sink, ResultsFile):
        run.sink.remove(stale)


async def _text_inputs(knouds: AsyncKnouds, target: Target, source: JobSource) -> Collection[str]:
    """Return the inputs whose CSV cells stay strings, according to the workflow's schema."""
    if not source.may_be_csv or target.kind == "models":
        return ()
    try:
        schema = await knouds.workflows.schema(target.name)
    except PermissionDeniedError as error:
        if not error.from_service:  # a proxy would reject the runs as well
            raise
        return ()  # the key may run the workflow but not read it
    return text_inputs(schema)


async def _write_outcomes(run: BatchRun, batch: Batch) -> None:
    """Write a line for each outcome; with --save, it comes after its files were downloaded."""
    try:
        async for outcome in batch:
            run.report.record(outcome)
            if isinstance(outcome, Completed) and outcome.save_error is not None:
                why = format_error(outcome.save_error)
                output.print_error(f"files of {outcome.job.key}: {why}; the same command tries again")
            if has_line(outcome):
                run.sink.write(result_line(outcome, save=run.options.save is not None))
    except Exception as error:  # noqa: BLE001  (reported after the batch)
        run.failure = error


@asynccontextmanager
async def supervised(run: BatchRun, batch: Batch, knouds: AsyncKnouds, stream: JobStream | None) -> AsyncIterator[None]:
    """Show the progress and handle Ctrl-C while the block runs."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  (for the type checker)

    def stop() -> None:
        run.report.is_interrupted = True
        batch.stop()
        if stream is not None:
            stream.stop()
        in_flight = plural(batch.progress.in_flight, "run")
        output.print_error(f"submitting stopped; waiting for {in_flight} in flight; press Ctrl-C again to exit at once")

    def abort() -> None:
        in_flight = plural(batch.progress.in_flight, "run")
        output.print_error(
            f"exiting; {in_flight} still in progress (they will be charged). Resume with: {run.options.resume_command}"
        )
        task.cancel()

    def waits() -> Iterator[str]:
        if run.report.is_interrupted:
            yield "stopping: waiting for runs in flight; press Ctrl-C again to exit at once"
            return
        route, in_flight = endpoints.submit(run.options.target, {}).route, batch.progress.in_flight
        yield from describe_waits(knouds.limiter.stats, route, in_flight, datetime.now().astimezone())

    display = Display(lambda: run.report.excluding_stopped(batch.progress), waits)
    async with handle_interrupts(stop, abort), show_display(display):
        yield


EXIT_GRACE: Final = 3.0
"""Seconds after the second Ctrl-C until the process is ended."""

_SHOW_CURSOR: Final = "\x1b[?25h"


@asynccontextmanager
async def handle_interrupts(stop: Callable[[], None], abort: Callable[[], None]) -> AsyncIterator[None]:
    """Call `stop` at the first Ctrl-C and `abort` at the second while the block runs; a third ends the process.

    SIGTERM and SIGHUP count as two.
    """
    loop, presses = asyncio.get_running_loop(), asyncio.Queue[int]()
    count = 0

    def on_signal(number: int, _: object) -> None:
        nonlocal count
        count = count + 1 if number == signal.SIGINT else max(2, count + 1)
        if count > 2:
            _exit_process()
        loop.call_soon_threadsafe(presses.put_nowait, count)

    # An ignored signal stays ignored: Ctrl-C is not meant for a background job.
    numbers = [one for one in (signal.SIGINT, *TERMINATION_SIGNALS) if signal.getsignal(one) is not signal.SIG_IGN]
    previous = {one: signal.signal(one, on_signal) for one in numbers}
    dispatcher = asyncio.create_task(_dispatch(presses, stop, abort))
    try:
        yield
    finally:
        dispatcher.cancel()
        for one, handler in previous.items():
            signal.signal(one, handler)


async def _dispatch(presses: asyncio.Queue[int], stop: Callable[[], None], abort: Callable[[], None]) -> None:
    """Call `stop` and `abort` in a task: the batch cannot be stopped from a signal handler."""
    while await presses.get() == 1:
        stop()
    timer = threading.Timer(EXIT_GRACE, _exit_process)
    timer.daemon = True
    timer.start()
    abort()


def _exit_process() -> None:
    """End the process at once: the ledger holds all that is needed to resume."""
    screen = sys.__stderr__  # rich may have replaced `sys.stderr`
    if screen is not None and screen.isatty():
        screen.write(_SHOW_CURSOR)  # rich has hidden it
        screen.flush()
    os._exit(ExitCode.INTERRUPTED)


def print_report(run: BatchRun) -> int:
    """Print the report and return the exit code."""
    options, report = run.options, run.report
    now = report.excluding_stopped(run.progress)
    code = report.exit_code(now, run.failure)
    if options.as_json and options.out is not None:
        output.print_json(to_record(now, options.ledger, options.out, code))
    output.print_info(summarize(now))
    for problem in report.problems(shlex.quote(str(options.ledger))):
        output.print_error(problem)
    if run.failure is not None:
        output.print_error(f"stopped: {format_error(run.failure)}")
    if run.failure is not None or report.is_deferred or (report.is_interrupted and not report.is_complete(now)):
        output.print_error(f"Resume with: {options.resume_command}")
    return code


_RUN: Final = "run="
_CONSEQUENCES: Final = {"resend": "the next batch runs it again", "abandon": "it is never run"}


@attrs.frozen
class UnknownJob:
    """A job whose run is unknown, and what the usage rows say of it, where they were read."""

    entry: Entry
    search: SubmissionSearch | None = None

    @property
    def reasons(self) -> str:
        """Why it is unknown, and why it still is."""
        if self.entry.execution_id is not None:
            found = "its id is known: the next batch waits for it"
        elif self.search is None:
            found = ""
        elif self.search.candidates:
            found = "could be " + ", ".join(row.request_id or f"row {row.id}" for row in self.search.candidates)
        else:
            found = "no usage row could be it" + "".join(f", but {reason}" for reason in self.search.reasons)
        return "; ".join(part for part in (self.entry.note, found) if part)


_MOST_SEARCHED: Final = 20  # unknown runs: each takes a request or more
_SEARCH_TIMEOUT: Final = 30.0  # seconds
_ROWS_BEFORE: Final = 600.0  # seconds before a submit, from which on rows of other jobs count as theirs


def print_ledger(path: LedgerPlace, service: ServiceOptions, *, as_json: bool) -> int:
    """Print what a ledger holds; the exit code is 5 while a run is unknown."""
    why_in_doubt, batches, counts, unknown, problem = asyncio.run(_read_ledger(path, service))
    searches = [job.search for job in unknown if job.search is not None]
    rows = {row.id for search in searches for row in search.candidates}
    if not any(attrs.astuple(counts)):
        output.print_info(f"{path}: no jobs yet")
    if as_json:
        record = {"ledger": str(path), **attrs.asdict(counts), "unclaimed_rows": len(rows) if searches else None}
        if isinstance(path, Postgres):
            record |= {"owners": [attrs.asdict(each) for each in batches], "doubt": why_in_doubt}
        output.print_json(record | {"unknown_jobs": [_job_record(job) for job in unknown]})
    else:
        names = [field.name for field in attrs.fields(LedgerCounts)]
        pairs = [(name.replace("_", " "), f"{value:,}" if (value := getattr(counts, name)) else None) for name in names]
        output.print_pairs(*pairs, *([("unclaimed usage rows", len(rows))] if searches else []))
        for each in batches:
            lease = f"lease of {each.lease:.0f} s" if each.lease > 0 else "its lease has run out"
            output.print_pairs(("batch", f"{each.place}: {plural(each.jobs, 'job')}, {lease}"))
        _print_doubt(path, why_in_doubt)
        _print_unknown(path, unknown, problem)
    return ExitCode.MAY_HAVE_RUN if unknown else ExitCode.OK


async def _read_ledger(
    path: LedgerPlace, service: ServiceOptions
) -> tuple[str | None, tuple[LedgerOwner, ...], LedgerCounts, list[UnknownJob], str]:
    """Return its doubt, the batches, the counts, the unknown jobs, and why the usage was not searched, or ""."""
    async with existing("--status", path) as ledger:
        found_first = await doubt(ledger), await owners(ledger)
        counts, jobs = await ledger.counts(), [UnknownJob(entry) for entry in await ledger.unknown()]
        to_find = [job for job in jobs if job.entry.sent_at is not None and job.entry.execution_id is None]
        if not to_find:
            return *found_first, counts, jobs, ""
        try:
            async with asyncio.timeout(_SEARCH_TIMEOUT), connect(service) as knouds:
                found = {job.entry.key: await _search(knouds, ledger, job.entry) for job in to_find[:_MOST_SEARCHED]}
        except (KnoudsError, KeyMissingError, TimeoutError) as error:
            return *found_first, counts, jobs, format_error(error) or f"no answer within {_SEARCH_TIMEOUT:g} s"
    return *found_first, counts, [UnknownJob(job.entry, found.get(job.entry.key)) for job in jobs], ""


async def _search(knouds: AsyncKnouds, ledger: SQLiteLedger | Postgres, entry: Entry) -> SubmissionSearch:
    """Search the usage for a submit, among the rows that no other job of the ledger claims."""
    sent_at = entry.sent_at or 0.0
    since = sent_at - _ROWS_BEFORE
    runs = () if entry.account is None else await ledger.known_runs(entry.target, entry.account, since)
    return await knouds.usage.find_submission(entry.target, sent_at, exclude=[run.request_id for run in runs])


def resolve_unknown(path: LedgerPlace, key: str, decision: str, service: ServiceOptions) -> int:
    """Record what was decided about an unknown run, and print the consequence."""
    if decision not in _CONSEQUENCES and not decision.startswith(_RUN):
        raise UsageError(f"--resolve ... {one_line(decision)}: must be resend, abandon, or run= and an execution's id")
    remaining = asyncio.run(_apply_decision(path, key, decision, service))
    consequence = _CONSEQUENCES.get(
        decision, f"it is execution {one_line(decision.removeprefix(_RUN))}; the next batch waits for it"
    )
    output.print_info(f"{one_line(key)}: {consequence}; {plural(remaining, 'run')} unknown")
    return ExitCode.OK


def rebind_ledger(path: LedgerPlace) -> int:
    """Remove the account and service from a ledger, so that the next batch binds it to its own."""
    asyncio.run(_rebind(path))
    output.print_info(f"{one_line(str(path))}: the next batch binds it to its own account and service")
    return ExitCode.OK


async def _rebind(path: LedgerPlace) -> None:
    async with existing("--rebind", path) as ledger:
        await ledger.rebind()


async def _apply_decision(path: LedgerPlace, key: str, decision: str, service: ServiceOptions) -> int:
    async with existing("--resolve", path) as ledger:
        match decision:
            case "resend":
                await ledger.approve_resend(key)
            case "abandon":
                await ledger.abandon(key)
            case _:
                execution_id = decision.removeprefix(_RUN)
                await _check_execution(execution_id, await ledger.find(key), service)
                await ledger.resolve(key, execution_id)
        return (await ledger.counts()).unknown


async def _check_execution(execution_id: str, entry: Entry | None, service: ServiceOptions) -> None:
    """Ask the service for an execution that somebody names; raises UsageError when it cannot be the job's."""
    async with connect(service) as knouds:
        try:
            state = await knouds.executions.get(execution_id)
        except ExecutionNotFoundError:
            raise UsageError(
                f"run={one_line(execution_id)}: the service knows no such execution. An execution's id stands in the "
                "log of the program that submitted it, in a webhook delivery and in a result; the request ids of "
                "`knouds usage` are others"
            ) from None
    if entry is not None and (why := _why_not(entry, state)) is not None:
        raise UsageError(f"run={one_line(execution_id)} {why}: nothing was changed")


def _why_not(entry: Entry, state: ExecutionState) -> str | None:
    """Return why an execution cannot be the run of a job: it is of another target, or began at another time."""
    runs = (
        [f"workflows/{state.workflow_slug}"] if state.workflow_slug else [f"models/{name}" for name in state.model_ids]
    )
    is_comparable = state.workflow_slug is not None or entry.target.startswith("models/")
    if runs and is_comparable and entry.target not in runs:
        return one_line(f"is a run of {', '.join(runs)}, and {entry.key} of {entry.target}")
    if entry.may_have_begun is None or state.created_at is None:
        return None
    earliest, latest = entry.may_have_begun
    if earliest - LAG <= state.created_at.timestamp() <= latest + LAG:
        return None
    began, sent = (f"{each:%Y-%m-%d %H:%M:%S} UTC" for each in (state.created_at.astimezone(UTC), _at(earliest)))
    return f"began at {began}, and {entry.key} was submitted at {sent}"


def _print_doubt(path: LedgerPlace, why: str | None) -> None:
    """Print why a ledger may lack runs, and what can be done about it."""
    if why is not None:
        output.print_info(
            f"In doubt: {why}. Nothing is submitted until a batch finds every usage row since then on record, or you "
            f"allow it: look whose runs `knouds usage` shows, then `knouds ledger trust {shlex.quote(str(path))}`."
        )


def _print_unknown(path: LedgerPlace, unknown: list[UnknownJob], problem: str) -> None:
    """Print the unknown runs, and what can be done about them."""
    if not unknown:
        return
    output.print_result("")
    heads = ("unknown", "sent (UTC)", "target", "why")
    rows = [(job.entry.key, _sent_at(job.entry), job.entry.target, job.reasons) for job in unknown]
    output.print_table(heads, rows, details=("why", "target"))
    if problem:
        output.print_info(f"The usage was not searched for them: {problem}.")
    output.print_info(
        "They may have run and been charged. The next batch looks for them in the usage. "
        f"Decide with `knouds batch --resolve {shlex.quote(str(path))} KEY resend|abandon|run=ID`."
    )


def _job_record(job: UnknownJob) -> dict[str, Any]:
    entry, sent = job.entry, _sent_at(job.entry)
    return {
        "key": entry.key,
        "target": entry.target,
        "sent_at": None if sent is None else sent.isoformat(),
        "execution_id": entry.execution_id,
        "why": job.reasons,
        "candidates": None if job.search is None else [row.request_id for row in job.search.candidates],
    }


def _sent_at(entry: Entry) -> datetime | None:
    return None if entry.sent_at is None else _at(entry.sent_at)


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
