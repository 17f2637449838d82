"""`knouds batch`: run a file of jobs, or show a ledger and decide about its unknown runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from knouds_async import Target
from knouds_async._sansio.learned import check_expected
from knouds_async.cli.batch.order import BatchOptions
from knouds_async.cli.exits import UsageError
from knouds_async.cli.options import BaseUrl, Expected, Json
from knouds_async.cli.saving import Save, create_folder

BatchTarget = Annotated[str | None, Parameter(help="The workflow's slug; with --model a model's internal name.")]
JobsPath = Annotated[
    Path | None,
    Parameter(
        allow_leading_hyphen=True,
        help='The jobs, - for stdin. JSON Lines: {"key": ..., "inputs": {...}}, or the inputs alone. CSV (.csv, .tsv): '
        "a column for each input and, if you like, one named key; a cell under a text input is a string, any other is "
        "read as by `knouds run -i`, an empty one is omitted. Without a key a job is identified by its inputs.",
    ),
]
IsModel = Annotated[
    bool, Parameter(name="--model", show_default=False, help="Run a single model instead of a workflow.")
]
LedgerPath = Annotated[
    Path | None,
    Parameter(
        help="The file that records every run, so that the same command resumes after Ctrl-C or a crash and pays for "
        "nothing twice; else JOBS.ledger beside the jobs. Jobs from stdin need one."
    ),
]
OutPath = Annotated[
    Path | None,
    Parameter(
        allow_leading_hyphen=True,
        help="The file that results are appended to, else stdout: a JSON object a line, with key, status, "
        "execution_id, result, cost, ms, error.",
    ),
]
MaxInFlight = Annotated[int | None, Parameter(help="Most runs in flight at once.")]
MaxCredits = Annotated[
    float | None,
    Parameter(help="Most credits that the ledger's runs may cost, earlier ones included; then exit code 4."),
]
RetryFailed = Annotated[bool, Parameter(show_default=False, help="Run jobs again that failed in earlier runs.")]
StatusLedger = Annotated[
    Path | None, Parameter(show_default=False, help="Show what a ledger holds, and which runs are unknown.")
]
Decision = Annotated[
    tuple[Path, str, str] | None,
    Parameter(
        allow_leading_hyphen=True,
        help="LEDGER KEY resend|abandon|run=ID: decide about an unknown run. resend: the next batch runs it, and if it "
        "did run it is paid for twice. abandon: it is never run. run=ID: it did run, as that execution (`knouds usage` "
        "lists them); the next batch waits for it to finish.",
    ),
]
RebindLedger = Annotated[
    Path | None,
    Parameter(
        show_default=False,
        help="LEDGER: let the next batch use it under another account, or with another service.",
    ),
]


def batch(
    slug: BatchTarget = None,
    jobs: JobsPath = None,
    /,
    *,
    ledger: LedgerPath = None,
    out: OutPath = None,
    is_model: IsModel = False,
    max_in_flight: MaxInFlight = None,
    max_credits: MaxCredits = None,
    retry_failed: RetryFailed = False,
    expected: Expected = None,
    save: Save = None,
    status: StatusLedger = None,
    resolve: Decision = None,
    rebind: RebindLedger = None,
    as_json: Json = False,
    base_url: BaseUrl = None,
) -> int:
    """Run a file of jobs; the same command resumes it where it stopped.

    Each job is run once: jobs in the ledger are not paid for again. Ctrl-C stops submitting and waits for runs in
    flight, a second one exits at once; either way the same command resumes. The exit code is 5 while a run is unknown.

    With --out, --json prints a summary of the batch as a JSON object on stdout.
    """
    from knouds_async.cli.batch import admin, running

    if (slug, status, resolve, rebind).count(None) != 3:
        raise UsageError(
            "give SLUG JOBS, or --status LEDGER, or --resolve LEDGER KEY resend|abandon|run=ID, or --rebind LEDGER"
        )
    if status is not None:
        return admin.print_ledger(status, as_json=as_json)
    if resolve is not None:
        return admin.resolve_unknown(*resolve)
    if rebind is not None:
        return admin.rebind_ledger(rebind)
    if slug is None or jobs is None:
        raise UsageError("give the file of jobs after the slug, or - for stdin")
    if ledger is None and str(jobs) == "-":
        raise UsageError("jobs from stdin need --ledger FILE: it keeps a rerun from paying twice")
    check_expected(expected)
    options = BatchOptions(
        target=Target("models" if is_model else "workflows", slug),
        jobs=jobs,
        ledger=ledger or Path(f"{jobs}.ledger"),
        out=None if out is None or str(out) == "-" else out,
        max_in_flight=max_in_flight,
        max_credits=max_credits,
        retry_failed=retry_failed,
        expected=expected,
        save=create_folder(save),
        as_json=as_json,
        base_url=base_url,
    )
    return running.run_batch(options)
