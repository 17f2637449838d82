"""The commands and their options, and the application that turns an error into one line on stderr and an exit code.

What takes more than a request is in a module of its own, imported when it is run.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from getpass import getpass
from inspect import cleandoc
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import attrs
from cyclopts import App, CycloptsError, Group, Parameter, Token

from knouds_async import (
    Account,
    AsyncKnouds,
    ExecutionState,
    KnoudsError,
    RunResult,
    SchemaField,
    Secret,
    Status,
    Target,
    UsageRow,
    __version__,
)
from knouds_async._batch.progress import format_credits
from knouds_async._cli import output
from knouds_async._cli.client import (
    DEFAULT_SERVICE,
    ExecutionId,
    Expected,
    Json,
    Save,
    ServiceOptions,
    Slug,
    check_folder,
    connect_with,
    download_files,
    print_state,
    query,
    without_urls,
)
from knouds_async._cli.errors import (
    ExitCode,
    KeyMissingError,
    ServingError,
    UsageError,
    exit_code_for,
    exit_code_table,
    format_error,
)
from knouds_async._cli.input_files import check_stdin, has_a_place
from knouds_async._cli.keys import DEFAULT_PROFILE, StoredKey, save_profile
from knouds_async._cli.output import plural
from knouds_async._cli.run import run, wait
from knouds_async._sansio.durations import check_expected

_MAX_RUNS = 1000


def _read_integer(_: object, tokens: Sequence[Token]) -> int:
    """Return an integer; raises ValueError for any other number, which would be cut to one."""
    text = tokens[0].value
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise ValueError(f"must be an integer, not {text}")
    return int(text)


_INTEGER: Final = Parameter(converter=_read_integer)
Runs = Annotated[
    int, _INTEGER, Parameter(help=f"How many runs, 1 to {_MAX_RUNS}. Above 200 the account is of the tier business.")
]
Seed = Annotated[int, _INTEGER, Parameter(help="The same seed gives the same durations and failures.")]


def demo(*, runs: Runs = 200, seed: Seed = 1) -> None:
    """Run 200 runs at once on an emulator; nothing is paid.

    It needs no key and no network and takes about half a minute. The emulator listens on a free port of this machine
    and has the rate limit of a real account; a few runs fail, as some do.
    """
    if not 1 <= runs <= _MAX_RUNS:
        raise UsageError(f"--runs {runs}: must be an integer from 1 to {_MAX_RUNS}")
    from knouds_async._cli.demo import read_prompts, run_demo

    asyncio.run(run_demo(list(islice(cycle(read_prompts()), runs)), seed))


_STDOUT: Final = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")

BatchTarget = Annotated[str | None, Parameter(help="The workflow's slug; with --model a model's internal name.")]
JobsPath = Annotated[
    Path | None,
    Parameter(
        allow_leading_hyphen=True,
        help="The jobs, - for stdin; a pipe is read as well. "
        'JSON Lines: {"key": ..., "inputs": {...}}, or the inputs alone. CSV (.csv, .tsv): '
        "a column for each input and, if you like, one named key; a cell under a text input is a string, any other is "
        "read as by `knouds run -i`, an empty one is omitted. Without a key a job is identified by its inputs.",
    ),
]
IsModel = Annotated[
    bool, Parameter(name="--model", show_default=False, help="Run a single model instead of a workflow.")
]
LedgerPath = Annotated[
    str | None,
    Parameter(
        help="The file, or the postgresql:// URL, that records every run, so that the same command resumes after "
        "Ctrl-C or a crash and pays for nothing twice; else JOBS.ledger beside the jobs. Jobs from stdin need one."
    ),
]
OutPath = Annotated[
    Path | None,
    Parameter(
        allow_leading_hyphen=True,
        help="Where the results are written, a line for each job: appended to this file, else printed on stdout. A "
        "line is a JSON object with key, status, execution_id, result, cost, ms, error. The images, videos and sounds "
        "that runs make are not in it, only their addresses: see --save.",
    ),
]
SaveBatch = Annotated[
    Path | None,
    Parameter(
        name="--save",
        help="Where the images, videos and sounds that runs make are downloaded: this folder, made where it is "
        "missing. The line of a job then has their paths too, in files. Without it nothing is downloaded. No existing "
        "file is overwritten.",
    ),
]
MaxInFlight = Annotated[int | None, _INTEGER, Parameter(help="Most runs in flight at once.")]
MaxCredits = Annotated[
    float | None,
    Parameter(help="Most credits that the ledger's runs may cost, earlier ones included; then exit code 4."),
]
RetryFailed = Annotated[
    bool, Parameter(show_default=False, help="Run jobs again that failed or were cancelled before.")
]
DryRun = Annotated[
    bool,
    Parameter(
        show_default=False,
        help="Submit nothing: check the jobs, and say what they would cost and how long they would take. The exit code "
        "is 2 when a job is invalid.",
    ),
]
StatusLedger = Annotated[
    str | None, Parameter(show_default=False, help="LEDGER: show what it holds, which runs are unknown and why.")
]
Decision = Annotated[
    tuple[str, str, str] | None,
    Parameter(
        allow_leading_hyphen=True,
        help="LEDGER KEY resend|abandon|run=ID: decide about an unknown run. resend: the next batch runs it, and if it "
        "did run it is paid for twice. abandon: it is never run. run=ID: it did run, as the execution of this id, as a "
        "log or a webhook names (the request ids of `knouds usage` are others); it is looked up, and the next batch "
        "waits for it to finish.",
    ),
]
RebindLedger = Annotated[
    str | None,
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
    save: SaveBatch = None,
    dry_run: DryRun = False,
    status: StatusLedger = None,
    resolve: Decision = None,
    rebind: RebindLedger = None,
    as_json: Json = False,
    service: ServiceOptions = DEFAULT_SERVICE,
) -> int:
    """Run a file of jobs; the same command resumes it where it stopped.

    Each job is run once: jobs in the ledger are not paid for again. Ctrl-C stops submitting and waits for runs in
    flight, a second one exits at once; either way the same command resumes. The exit code is 5 while a run is unknown.

    With --out, --json prints a summary of the batch as a JSON object on stdout.
    """
    from knouds_async._cli.batch import BatchOptions, run_batch
    from knouds_async._cli.ledgers import place_of

    if (slug, status, resolve, rebind).count(None) != 3:
        raise UsageError(
            "give SLUG JOBS, or --status LEDGER, or --resolve LEDGER KEY resend|abandon|run=ID, or --rebind LEDGER"
        )
    if slug is None:
        return _show_or_decide(status, resolve, rebind, service, as_json=as_json)
    if jobs is None:
        raise UsageError("give the file of jobs after the slug, or - for stdin")
    if dry_run and retry_failed:
        raise UsageError("--dry-run and --retry-failed exclude each other: a dry run changes nothing in the ledger")
    if ledger is None and not has_a_place(jobs) and not dry_run:
        raise UsageError("jobs from stdin or a pipe need --ledger FILE: it keeps a rerun from paying twice")
    check_expected(expected)
    options = BatchOptions(
        target=Target("models" if is_model else "workflows", slug),
        jobs=jobs,
        ledger=place_of(ledger or f"{jobs}.ledger"),
        out=None if out is None or str(out) in _STDOUT else out,
        max_in_flight=max_in_flight,
        max_credits=max_credits,
        retry_failed=retry_failed,
        expected=expected,
        save=None if dry_run else check_folder(save),
        dry_run=dry_run,
        as_json=as_json,
        service=service,
    )
    return run_batch(options)


def _show_or_decide(
    status: str | None,
    resolve: tuple[str, str, str] | None,
    rebind: str | None,
    service: ServiceOptions,
    *,
    as_json: bool,
) -> int:
    """Carry out the one of `--status`, `--resolve` and `--rebind` that is given."""
    from knouds_async._cli.batch import print_ledger, rebind_ledger, resolve_unknown
    from knouds_async._cli.ledgers import place_of

    if status is not None:
        return print_ledger(place_of(status), service, as_json=as_json)
    if resolve is not None:
        return resolve_unknown(place_of(resolve[0]), *resolve[1:], service)
    return rebind_ledger(place_of(rebind or ""))


LedgerAction = Annotated[str, Parameter(help="migrate or trust.")]
DatabaseURL = Annotated[str, Parameter(help="postgresql://user:password@host:5432/database")]
LedgerName = Annotated[str, Parameter(show_default=False, help="The name of the ledger in it, for trust.")]


def ledger(action: LedgerAction, url: DatabaseURL, /, *, name: LedgerName = "default") -> int:
    """Prepare a database that many machines share, or trust it after a failover.

    migrate: make its tables, or bring older ones up to date, as a role that may create tables. trust: let batches
    submit again after a replica was promoted or a backup restored; look first at the usage of the minutes lost.
    """
    from knouds_async._cli.ledgers import prepare

    return prepare(action, url, name)


def status(
    execution_id: ExecutionId,
    /,
    *,
    save: Save = None,
    as_json: Json = False,
    service: ServiceOptions = DEFAULT_SERVICE,
) -> int:
    """Show the state of a run, with its result once it has finished.

    The exit code is 0 whatever the status of the run: it says that the request succeeded, and the files were saved.
    """
    folder = check_folder(save)

    async def fetch(knouds: AsyncKnouds) -> tuple[ExecutionState, tuple[Path, ...] | None]:
        state = await knouds.executions.get(execution_id)
        if folder is None or state.result is None:
            return state, ()
        return state, await download_files(knouds, RunResult(state.result, execution_id=state.execution_id), folder)

    state, files = query(service, fetch)
    saved = files if folder is not None and state.result is not None else None
    if as_json:
        names = {} if folder is None else {"files": [str(path) for path in files or ()]}
        output.print_json(output.to_jsonable(state) | names)
    else:
        print_state(state, files=saved)
    return ExitCode.ERROR if files is None else ExitCode.OK


def cancel(execution_id: ExecutionId, /, *, as_json: Json = False, service: ServiceOptions = DEFAULT_SERVICE) -> None:
    """Cancel a run.

    It is charged all the same. Cancelling may take a moment; the state after the request is shown. A run that has
    already finished is not an error: its final state is shown.
    """
    state = query(service, lambda knouds: knouds.executions.cancel(execution_id))
    if as_json:
        output.print_json(state)
    else:
        print_state(state)
    if not state.is_final:
        output.print_info(f"It will be cancelled soon; `knouds status {state.execution_id}` shows when.")


def workflows(*, as_json: Json = False, service: ServiceOptions = DEFAULT_SERVICE) -> None:
    """List your workflows, and the public templates.

    Columns: slug, name, estimated credits of a run, last change. Piped, they are separated by tabs.
    """
    found = query(service, lambda knouds: knouds.workflows.list())
    if not found:
        output.print_info("no workflows")
    if as_json:
        output.print_json(found)
    elif found:
        output.print_table(
            ("slug", "name", "credits", "changed (UTC)"),
            [(workflow.slug, workflow.name, workflow.estimated_credit_cost, workflow.updated_at) for workflow in found],
            details=("name", "changed (UTC)"),
        )


Public = Annotated[bool, Parameter(show_default=False, help="Of a public playground; needs no key and sends none.")]


def schema(
    slug: Slug, /, *, public: Public = False, as_json: Json = False, service: ServiceOptions = DEFAULT_SERVICE
) -> None:
    """Show the inputs that a workflow takes.

    Columns: name, type, whether required, default, what is allowed, help. Piped, they are separated by tabs.
    """
    found = query(
        service,
        lambda knouds: knouds.workflows.public_schema(slug) if public else knouds.workflows.schema(slug),
        needs_key=not public,
    )
    if as_json:
        output.print_json(found)
        return
    estimate = found.estimated_credit_cost
    cost = f"about {format_credits(estimate)} credits a run" if estimate is not None else None
    about = ": ".join(part for part in (found.name or slug, found.description) if part)
    output.print_info("; ".join(part for part in (about, cost) if part))
    if not found.fields:
        output.print_info("It takes no inputs.")
        return
    output.print_table(
        ("input", "type", "required", "default", "allowed", "help"),
        [
            (field.name, field.type, field.required, field.default, _allowed(field), field.helper_text)
            for field in found.fields
        ],
        details=("help", "allowed", "default"),
    )


def _allowed(field: SchemaField) -> str:
    """Return what a field allows: its options, or its bounds and step."""
    if field.options:
        return ", ".join(output.format_cell(option) for option in field.options)
    bounds = [f"{output.format_cell(bound)}" for bound in (field.min, field.max) if bound is not None]
    step = f" in steps of {output.format_cell(field.step)}" if field.step is not None else ""
    return f"{' to '.join(bounds)}{step}".strip()


RowLimit = Annotated[int | None, _INTEGER, Parameter(help="Most rows to list, up to 500; the default is 50.")]
AllRows = Annotated[bool, Parameter(name="--all", show_default=False, help="Every row, page by page.")]
_USAGE_STATUSES: Final = "processing, completed or failed"  # those that contract 10 lists; the service may add others
StatusFilter = Annotated[str | None, Parameter(help=f"Only runs that are {_USAGE_STATUSES}.")]
WorkflowFilter = Annotated[str | None, Parameter(help="Only runs of the workflow with this slug.")]
ModelFilter = Annotated[str | None, Parameter(help="Only runs that used the model with this id.")]
Since = Annotated[
    str | None,
    Parameter(
        help="Only runs of this span, such as 7d, 12h or 30m, or from a date on, such as 2026-05-01 (UTC); every row, "
        "page by page."
    ),
]
SumBy = Annotated[
    Literal["target", "day", "status"] | None,
    Parameter(help="Sum runs, failures and credits instead: by target, day (UTC) or status."),
]
_PAGE_OF_OLDER_ROWS: Final = 500  # rows in a row that are too old, after which no newer one is expected (contract 10)


def usage(
    *,
    limit: RowLimit = None,
    every_row: AllRows = False,
    status: StatusFilter = None,
    workflow: WorkflowFilter = None,
    model: ModelFilter = None,
    since: Since = None,
    by: SumBy = None,
    as_json: Json = False,
    service: ServiceOptions = DEFAULT_SERVICE,
) -> None:
    """List the account's runs, newest first, and their costs, or sum them.

    Columns: start, workflow or models, status, credits, seconds, error, request id; with --by: key, runs, completed,
    failed, credits. Piped, they are separated by tabs. Runs made in the dashboard are not listed.
    """
    takes_every_row = every_row or since is not None or by is not None
    if limit is not None and takes_every_row:
        raise UsageError(f"--limit and {'--all' if every_row else '--since' if since else '--by'} exclude each other")
    start = None if since is None else parse_since(since, datetime.now(UTC))

    async def fetch(knouds: AsyncKnouds) -> tuple[list[UsageRow], int | None]:
        if takes_every_row:
            every = knouds.usage.iter(status=status, workflow_slug=workflow, model_id=model)
            return await _rows_since(every, start), None
        page = await knouds.usage.list(status=status, workflow_slug=workflow, model_id=model, limit=limit)
        return list(page.rows), page.total

    rows, total = query(service, fetch)
    if not rows:
        is_known = status is None or status in re.findall(r"\w+", _USAGE_STATUSES)
        output.print_info("no such runs" if is_known else f"no such runs: --status {status} is not {_USAGE_STATUSES}")
    if by is not None:
        _print_sums(sum_usage(rows, by), as_json=as_json)
    elif as_json:
        output.print_json(rows)
    elif rows:
        heads = ("started (UTC)", "what", "status", "credits", "seconds", "error", "request id")
        output.print_table(heads, [_usage_cells(row) for row in rows], details=("request id", "error", "what"))
        if total is not None and total > len(rows):
            output.print_info(f"{len(rows)} of {total} rows; --all lists all")


async def _rows_since(rows: AsyncIterator[UsageRow], start: datetime | None) -> list[UsageRow]:
    """Return the rows from a moment on; one without a time is of no known span."""
    found, older = [], 0
    async for row in rows:
        if start is None or (row.created_at is not None and row.created_at >= start):
            found.append(row)
            older = 0
        elif (older := older + 1) >= _PAGE_OF_OLDER_ROWS:
            break
    return found


_SPAN: Final = re.compile(r"([0-9]{1,6})([mhdw])")
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_since(text: str, now: datetime) -> datetime:
    """Return the moment that `--since` means; raises UsageError when it is neither a span nor a past date."""
    try:
        span = _SPAN.fullmatch(text)
        start = now - timedelta(**{_UNITS[span[2]]: int(span[1])}) if span else datetime.fromisoformat(text)
        start = start if start.tzinfo else start.replace(tzinfo=UTC)
        if start < now:
            return start
    except (ValueError, OverflowError):
        pass
    raise UsageError(f"--since {text}: must be a span such as 7d, 12h or 30m, or a past date such as 2026-05-01")


@attrs.define
class UsageSum:
    """What the runs of a target, a day or a status have come to."""

    key: str
    runs: int = 0
    completed: int = 0
    failed: int = 0
    credits: float = 0

    def add(self, row: UsageRow) -> None:
        """Count a row."""
        self.runs += 1
        self.completed += row.status == Status.COMPLETED
        self.failed += row.status == Status.FAILED
        self.credits = round(self.credits + (row.credits_cost or 0), 6)


def sum_usage(rows: Iterable[UsageRow], by: str) -> list[UsageSum]:
    """Return the sums of rows, days in their order, all else by credits, the largest first."""
    sums: dict[str, UsageSum] = {}
    for row in rows:
        key = _usage_key(row, by)
        sums.setdefault(key, UsageSum(key)).add(row)
    return sorted(sums.values(), key=lambda each: each.key if by == "day" else (-each.credits, -each.runs, each.key))


def _usage_key(row: UsageRow, by: str) -> str:
    match by:
        case "day":
            return "" if row.created_at is None else f"{row.created_at.astimezone(UTC):%Y-%m-%d}"
        case "status":
            return str(row.status or "")
        case _:
            return f"workflows/{row.workflow_slug}" if row.workflow_slug else f"models/{','.join(row.model_ids)}"


def _print_sums(sums: Sequence[UsageSum], *, as_json: bool) -> None:
    """Print sums: as JSON, as lines, or at a terminal with a bar for the credits of each."""
    if as_json:
        output.print_json(sums)
        return
    if not sums:
        return
    heads = ("key", "runs", "completed", "failed", "credits")
    cells = [(each.key or "-", each.runs, each.completed, each.failed, each.credits) for each in sums]
    output.print_table(heads, cells, bars=[each.credits for each in sums])
    output.print_info(
        f"{plural(sum(each.runs for each in sums), 'run')}, {plural(sum(each.failed for each in sums), 'failure')}, "
        f"{format_credits(sum(each.credits for each in sums))} credits"
    )


def _usage_cells(row: UsageRow) -> tuple[object, ...]:
    seconds = None if row.duration_ms is None else round(row.duration_ms / 1000, 1)
    what = row.workflow_slug or row.model_ids
    return row.created_at, what, row.status, row.credits_cost, seconds, row.error_code, row.request_id


def whoami(*, as_json: Json = False, service: ServiceOptions = DEFAULT_SERVICE) -> None:
    """Show whose key is used."""
    account = query(service, lambda knouds: knouds.whoami())
    if as_json:
        output.print_json(account)
        return
    output.print_pairs(
        ("account", account.email or account.id),
        ("id", account.id),
        ("tier", account.tier),
        ("role", account.role),
        ("approved", account.approved),
    )


def login(*, service: ServiceOptions = DEFAULT_SERVICE) -> None:
    """Save an API key in a private file, under the name of --profile or as the default.

    The key is asked for without being shown, or read from stdin when that is no terminal. The service is asked whose it
    is before it is saved. $KNOUDS_KEY and a file .env win over the default.
    """
    key = Secret(_read_key())
    origin = "--base-url" if service.base_url else "$KNOUDS_BASE_URL"
    stored = StoredKey(key, service.base_url or os.environ.get("KNOUDS_BASE_URL"), origin)

    async def ask() -> Account:
        async with connect_with(stored) as knouds:
            return await knouds.whoami()

    account = asyncio.run(ask())
    name = service.profile or DEFAULT_PROFILE
    path = save_profile(name, stored, os.environ)
    output.print_info(f"The key of {account.email or account.id} is saved as [{name}] in {path}")


def _read_key() -> str:
    check_stdin("pipe the key to it, or run this at a terminal")
    try:
        key = getpass("API key (it is not shown): ") if sys.stdin.isatty() else sys.stdin.readline()
    except EOFError:
        key = ""
    if not key.strip():
        raise KeyMissingError("no key was given on stdin, and nothing was saved; $KNOUDS_KEY needs no file")
    return key.strip()


_FAULTS = Group("Faults and limits")
_FAULT = (
    "What goes wrong: KIND [NAME=VALUE] [after_run] [on ROUTE] [nth=1,3 or 20%], such as 'closed after_run on submit "
    "nth=2' or 'bad_gateway on poll 5%'. May be given more than once; 'help' lists kinds and routes."
)
_SET = "Another setting of knouds_async.testing.Emulator; VALUE is JSON or a string. May be given more than once."

Port = Annotated[int, _INTEGER, Parameter(help="The port; 0 takes a free one.")]
Host = Annotated[str, Parameter(help="The address to serve on; one that other machines reach needs --allow-remote.")]
AllowRemote = Annotated[bool, Parameter(show_default=False, help="Let --host be an address that other machines reach.")]
Tier = Annotated[str, Parameter(help="The account's tier: free, pro, business, enterprise, or any other.")]
Duration = Annotated[float, Parameter(help="Median duration of a run in seconds.")]
FailureRate = Annotated[float, Parameter(help="Share of runs that fail, 0 to 1.", group=_FAULTS)]
RateLimit = Annotated[
    int | None, _INTEGER, Parameter(help="Requests per minute and route, instead of the tier's.", group=_FAULTS)
]
OthersShare = Annotated[
    float, Parameter(help="Share of each quota that others on the account use, 0 to 1.", group=_FAULTS)
]
Faults = Annotated[
    Sequence[str], Parameter(name="--fault", help=_FAULT, negative=(), show_default=False, group=_FAULTS)
]
AnySeed = Annotated[
    int | None,
    _INTEGER,
    Parameter(
        show_default=False,
        help="The same seed gives the same durations, failures and ids; by default each start has its own, so that a "
        "ledger of an earlier start is not given its ids again.",
    ),
]
WebhookUrl = Annotated[str | None, Parameter(help="Where to deliver webhooks; plain http is allowed.")]
WebhookSecret = Annotated[str | None, Parameter(help="What deliveries are signed with.")]
Settings = Annotated[Sequence[str], Parameter(name="--set", help=_SET, negative=(), show_default=False, group=_FAULTS)]


def emulator(
    *,
    port: Port = 8000,
    host: Host = "127.0.0.1",
    allow_remote: AllowRemote = False,
    tier: Tier = "pro",
    duration: Duration = 45.0,
    seed: AnySeed = None,
    webhook_url: WebhookUrl = None,
    webhook_secret: WebhookSecret = None,
    failure_rate: FailureRate = 0.0,
    limit: RateLimit = None,
    others: OthersShare = 0.0,
    fault: Faults = (),
    set_: Settings = (),
) -> int:
    """Serve an emulator of Knouds on this machine, until Ctrl-C.

    It has rate limits, durations, failures and charges like the service, and nothing is paid. Prints the lines that
    point `knouds` and the library at it, for another shell. Its page in a browser shows runs, limits and charges live;
    under /__emulator__/ a test in any language can read them, finish runs, add faults and reset.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: must be 0 to 65535")
    from knouds_async._cli.emulator import is_loopback, make_emulator, print_faults, serve_forever, to_address
    from knouds_async.testing import Lognormal

    if "help" in fault:
        return print_faults()
    host = to_address(host)
    if not allow_remote and not is_loopback(host):
        raise UsageError(f"--host {host}: other machines could reach it; pass --allow-remote if that is intended")
    distribution = Lognormal(duration) if 0 < duration < math.inf else duration
    seed = time.time_ns() if seed is None else seed
    settings: dict[str, Any] = {"tier": tier, "duration": distribution, "seed": seed, "failure_rate": failure_rate}
    settings |= {"limit": limit, "others": others, "webhook_url": webhook_url, "epoch": time.time()}
    settings |= {} if webhook_secret is None else {"webhook_secret": webhook_secret}
    served = make_emulator(settings, set_, fault)
    try:
        asyncio.run(serve_forever(served, host, port))
    except KeyboardInterrupt:
        received = f"{plural(served.requests.count, 'request')} and {plural(len(served.runs), 'run')}"
        output.print_info(f"\nstopped after {received}; {plural(served.credits_spent, 'credit')} would have been paid")
    return ExitCode.OK


_HELP: Final = """
Submit paid AI runs on Knouds, wait for them and show their results.

The key is read from $KNOUDS_KEY, from a file .env, or from what `knouds login` has saved, never from the
command line. Results go to stdout, messages and progress to stderr. `knouds demo` needs neither a key nor the network.
"""

_COMMANDS: Final[tuple[Callable[..., Any], ...]] = (
    demo,
    run,
    batch,
    ledger,
    status,
    wait,
    cancel,
    workflows,
    schema,
    usage,
    whoami,
    login,
    emulator,
)


def build() -> App:
    """Return the application with its commands."""
    app = App(
        name="knouds",
        help=_unwrapped(_HELP),
        help_format="plaintext",
        help_epilogue=f"Exit codes:\n{exit_code_table()}",
        version=__version__,
        version_format="plaintext",
        default_parameter=Parameter(negative=""),
        suppress_keyboard_interrupt=False,
    )
    for place, command in enumerate(_COMMANDS):
        app.command(command, sort_key=place, help=_unwrapped(command.__doc__ or ""), help_epilogue="")
    app.register_install_completion_command(help="Install completion of commands and options for your shell.")
    return app


def _unwrapped(text: str) -> str:
    """Return a docstring with each paragraph on one line; the terminal's width decides where lines break."""
    return "\n\n".join(" ".join(part.split()) for part in cleandoc(text).split("\n\n"))


def run_knouds(tokens: Sequence[str]) -> int:
    """Run one command line and return its exit code; an error is one line on stderr."""
    tokens = without_urls(tokens)
    with output.safe_streams():
        try:
            return _run_command(tokens)
        except BrokenPipeError:
            return ExitCode.OK  # the reader closed the pipe, as `head` does
        except SystemExit as exit_request:
            if not isinstance(exit_request.__context__, BrokenPipeError):
                raise
            return ExitCode.OK  # rich exits so on a broken pipe


def _run_command(tokens: Sequence[str]) -> int:
    try:
        code = build()(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()  # raises BrokenPipeError where its reader has gone
        return code if isinstance(code, int) else ExitCode.OK
    except CycloptsError as error:
        error.verbose = False
        command = " ".join(("knouds", *(error.command_chain or ())))
        output.print_error(f"{error} (see `{command} --help`)")
        return ExitCode.USAGE
    except BrokenPipeError:
        raise
    except (KnoudsError, UsageError, KeyMissingError, ServingError, OSError, KeyboardInterrupt) as error:
        output.print_error(format_error(error))
        return exit_code_for(error)
