"""`knouds run`: submit a run, wait for its end, give its result.

Rule of the file: whatever ends the wait, the id of a run that was submitted is on stderr, and how to look at it.
"""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path
from typing import Annotated, Any

import attrs
from cyclopts import Parameter

from knouds_async import (
    AsyncKnouds,
    AsyncNotSupportedError,
    Execution,
    ExecutionCancelledError,
    ExecutionFailedError,
    ExecutionState,
    KnoudsError,
    RunResult,
    Status,
    Target,
    WaitTimeoutError,
)
from knouds_async._sansio.learned import check_expected
from knouds_async.cli import output
from knouds_async.cli.exits import Exit, UsageError, exit_of
from knouds_async.cli.inputs import inputs_of
from knouds_async.cli.options import BaseUrl, Expected, Json
from knouds_async.cli.saving import Save, prepared
from knouds_async.cli.saving import save as saved
from knouds_async.cli.service import connect
from knouds_async.cli.shown import ended, give_result
from knouds_async.cli.signals import as_by_ctrl_c
from knouds_async.cli.waiting import on_show, wait
from knouds_async.cli.words import said_of

Slug = Annotated[str, Parameter(help="The workflow's slug; with --model a model's internal name.")]
Inputs = Annotated[
    list[str] | None,
    Parameter(
        name=["--input", "-i"],
        help="One input, as key=value; may be repeated. A value that reads as JSON is JSON (3, true, [1, 2]), "
        "any other is text as it stands; write key='\"3\"' for the text 3.",
    ),
]
InputFile = Annotated[
    Path | None,
    Parameter(
        allow_leading_hyphen=True,
        help="A file with the inputs as a JSON object, - for stdin; an -i with the same key wins.",
    ),
]
IsModel = Annotated[
    bool, Parameter(name="--model", show_default=False, help="Run a single model instead of a workflow.")
]
Seconds = Annotated[float | None, Parameter(help="Seconds to wait for the end; then exit code 6, and the run goes on.")]


@attrs.define
class _Job:
    """What is to be run where, and the handle once it is out."""

    target: Target
    inputs: dict[str, Any]
    timeout: float | None
    expected: float | None
    base_url: str | None
    folder: Path | None
    execution: Execution | None = None
    state: ExecutionState | None = None  # of a run that is over
    files: tuple[Path, ...] | None = None


def run(
    slug: Slug,
    /,
    *,
    inputs: Inputs = None,
    input_file: InputFile = None,
    is_model: IsModel = False,
    timeout: Seconds = None,
    expected: Expected = None,
    save: Save = None,
    as_json: Json = False,
    base_url: BaseUrl = None,
) -> int:
    """Run a workflow or a model, wait, and print the result.

    The result is text and the addresses of its files, one per line; with --json the execution with all it gave. The
    run is submitted at most once. Ctrl-C, SIGTERM and --timeout end the waiting, not the run: its id is on stderr.
    """
    if timeout is not None and not timeout > 0:
        raise UsageError(f"--timeout {timeout:g}: must be more than 0 seconds")
    check_expected(expected)
    target = Target("models" if is_model else "workflows", slug)
    job = _Job(target, inputs_of(inputs or (), input_file), timeout, expected, base_url, prepared(save))
    failure: KnoudsError | KeyboardInterrupt | None
    try:
        with as_by_ctrl_c():
            failure = asyncio.run(_carry_out(job))
    except (KeyboardInterrupt, KnoudsError) as error:
        if job.state is None:
            if job.execution is None:
                raise
            return _left(job.execution, job, error, as_json=as_json)
        failure = error  # while its files were being saved
    return _give(job, job.state, failure, as_json=as_json)


async def _carry_out(job: _Job) -> KnoudsError | None:
    """Submit, wait and save; give the error of a run that did not complete."""
    async with connect(job.base_url) as knouds:
        runs = knouds.models if job.target.kind == "models" else knouds.workflows
        try:
            job.execution = await runs.submit(job.target.name, job.inputs, expected=job.expected)
        except AsyncNotSupportedError:
            job.state = await _synchronously(knouds, job)
        else:
            output.note(f"submitted execution {job.execution.id}")
            job.state = await wait(job.execution, timeout=job.timeout)
            try:
                await job.execution  # is over, so this only says how it ended
            except (ExecutionFailedError, ExecutionCancelledError) as failure:
                return failure
        if job.folder is not None:
            run = RunResult(job.state.result, execution_id=job.state.execution_id or None)
            job.files = await saved(knouds, run, job.folder)
        return None


async def _synchronously(knouds: AsyncKnouds, job: _Job) -> ExecutionState:
    """Run what cannot be submitted (contract 4): it was refused uncharged, so this is the first run of it."""
    output.note(
        "its provider cannot be polled, so it runs in one request: Ctrl-C would lose its result, not its charge"
    )
    runs = knouds.models if job.target.kind == "models" else knouds.workflows
    async with on_show(lambda: "running"):
        given = await runs.run(job.target.name, job.inputs, timeout=job.timeout)
    return ExecutionState(
        execution_id="", status=Status.COMPLETED, result=given.result, cost=given.cost, ms=given.ms, raw=given.raw
    )


def _give(
    job: _Job, state: ExecutionState | None, failure: KnoudsError | KeyboardInterrupt | None, *, as_json: bool
) -> int:
    """Give what a run that is over left, and say how it ended."""
    assert state is not None  # noqa: S101  (for the type checker)
    if as_json:
        no_id = {} if state.execution_id else {"execution_id": None}
        files = {} if job.folder is None else {"files": [str(path) for path in job.files or ()]}
        output.give_json(output.plain(state) | no_id | files)
    elif state.result is not None:
        give_result(state.result, files=job.files)
    output.finish()  # results first, where both go to one terminal
    if failure is None:
        output.note(ended(state))
        return Exit.FINE if job.folder is None or job.files is not None else Exit.ERROR
    if isinstance(failure, KeyboardInterrupt):
        output.tell("interrupted while its files were saved; the run is over")
        return Exit.INTERRUPTED
    output.tell(said_of(failure))
    return exit_of(failure)


def _left(execution: Execution, job: _Job, error: KnoudsError | KeyboardInterrupt, *, as_json: bool) -> int:
    """Say why the waiting ended, and that the run goes on."""
    at = "" if job.base_url is None else f" --base-url {shlex.quote(job.base_url)}"
    look = f"`knouds status {execution.id}{at}` shows it, `knouds cancel` ends it"
    match error:
        case KeyboardInterrupt():
            output.tell(f"interrupted; the run goes on and is charged: {look}")
            return Exit.INTERRUPTED
        case WaitTimeoutError():
            output.tell(f"not over after {error.timeout:g} s; the run goes on: {look}")
            if as_json:
                output.give_json(execution.state)
            return Exit.TIMED_OUT
        case _:
            why = said_of(error)
            output.tell(f"{why}; the run may go on and is charged: {look}")
            return Exit.MAY_HAVE_RUN
