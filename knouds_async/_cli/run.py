"""`knouds run`: submit a run, wait for it to finish, print its result.

However the wait ends, the id of a submitted run is on stderr, and the command that shows it.
"""

from __future__ import annotations

import asyncio
import shlex
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Final

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
    PermissionDeniedError,
    RunResult,
    Status,
    Target,
    WaitTimeoutError,
)
from knouds_async._batch.progress import ROOM_FOR_CTRL_C
from knouds_async._cli import output
from knouds_async._cli.client import (
    DEFAULT_SERVICE,
    ExecutionId,
    Expected,
    Json,
    Save,
    ServiceOptions,
    check_folder,
    connect,
    download_files,
    print_run_result,
    summarize_state,
)
from knouds_async._cli.errors import (
    ExitCode,
    KeyMissingError,
    UsageError,
    exit_code_for,
    format_before_run,
    format_error,
)
from knouds_async._cli.input_files import GivenInputs, read_inputs, text_inputs
from knouds_async._cli.output import call_every, one_line
from knouds_async._sansio.durations import check_expected
from knouds_async._sansio.inputs import input_errors

RunTarget = Annotated[str, Parameter(help="The workflow's slug; with --model a model's internal name.")]
Pairs = Annotated[
    str,
    Parameter(
        help="Inputs as key=value. Under a text input of the workflow's schema a value is a string; any other is JSON "
        "where it is valid JSON (3, true, [1, 2]), else a string; key='\"3\"' is the string 3."
    ),
]
MorePairs = Annotated[
    list[str] | None,
    Parameter(name=["--input", "-i"], help="One input, as key=value, the same as without -i; may be repeated."),
]
InputFile = Annotated[
    Path | None,
    Parameter(
        allow_leading_hyphen=True,
        help="A file with the inputs as a JSON object, - for stdin; a key=value with the same key wins.",
    ),
]
IsModel = Annotated[
    bool, Parameter(name="--model", show_default=False, help="Run a single model instead of a workflow.")
]
Seconds = Annotated[
    float | None, Parameter(help="Seconds to wait for it to finish; then exit code 6, and the run continues.")
]


@attrs.define
class _RunRequest:
    """What to run, and its execution once it was submitted."""

    target: Target | None
    given: GivenInputs
    timeout: float | None
    expected: float | None
    service: ServiceOptions
    folder: Path | None
    execution: Execution | None = None
    state: ExecutionState | None = None  # of a finished run
    files: tuple[Path, ...] | None = None


def run(
    slug: RunTarget,
    /,
    *pairs: Pairs,
    inputs: MorePairs = None,
    input_file: InputFile = None,
    is_model: IsModel = False,
    timeout: Seconds = None,
    expected: Expected = None,
    save: Save = None,
    as_json: Json = False,
    service: ServiceOptions = DEFAULT_SERVICE,
) -> int:
    """Run a workflow or a model, wait, and print the result.

    The inputs are checked against the workflow's schema before anything is run. The result is text and the addresses of
    its files, one per line; with --json the whole execution. The run is submitted at most once. Ctrl-C, SIGTERM and
    --timeout end the wait, not the run: its id is on stderr, and `knouds wait` waits for it again.
    """
    target = Target("models" if is_model else "workflows", slug)
    given = read_inputs([*pairs, *(inputs or ())], input_file)
    request = _RunRequest(target, given, _checked_timeout(timeout), expected, service, check_folder(save))
    try:
        return _see_through(request, _submit_and_wait, as_json=as_json)
    except (KnoudsError, KeyMissingError, UsageError) as error:
        code = exit_code_for(error)
        if code is ExitCode.MAY_HAVE_RUN or request.execution is not None:
            raise
        output.print_error(format_before_run(error))
        return code


def wait(
    execution_id: ExecutionId,
    /,
    *,
    timeout: Seconds = None,
    expected: Expected = None,
    save: Save = None,
    as_json: Json = False,
    service: ServiceOptions = DEFAULT_SERVICE,
) -> int:
    """Wait for a run that was submitted before, and print its result as `knouds run` does.

    Ctrl-C, SIGTERM and --timeout end the wait, not the run.
    """
    folder = check_folder(save)
    request = _RunRequest(None, GivenInputs({}, {}), _checked_timeout(timeout), expected, service, folder)

    async def attach_and_wait(request: _RunRequest) -> KnoudsError | None:
        async with connect(service) as knouds:
            request.execution = knouds.executions.attach(execution_id, expected=expected)
            return await _wait_and_save(knouds, request, request.execution)

    return _see_through(request, attach_and_wait, as_json=as_json)


def _checked_timeout(timeout: float | None) -> float | None:
    if timeout is not None and not timeout > 0:
        raise UsageError(f"--timeout {timeout:g}: must be more than 0 seconds")
    return timeout


def _see_through(
    request: _RunRequest, act: Callable[[_RunRequest], Coroutine[Any, Any, KnoudsError | None]], *, as_json: bool
) -> int:
    """Wait for a run, print how it or the wait ended, and return the exit code."""
    check_expected(request.expected)
    failure: KnoudsError | KeyboardInterrupt | None
    try:
        failure = asyncio.run(act(request))
    except (KeyboardInterrupt, KnoudsError) as error:
        if request.state is None:
            is_attached = request.target is None and not isinstance(error, (KeyboardInterrupt, WaitTimeoutError))
            if request.execution is None or is_attached:
                raise
            return _print_unfinished(request.execution, request, error, as_json=as_json)
        failure = error  # while its files were being saved
    return _print_outcome(request, request.state, failure, as_json=as_json)


async def _submit_and_wait(request: _RunRequest) -> KnoudsError | None:
    """Check the inputs, submit, wait and save; return the error of a run that did not complete."""
    target = request.target
    assert target is not None  # noqa: S101  (for the type checker)
    async with connect(request.service) as knouds:
        inputs = await _read_by_schema(knouds, target, request.given)
        runs = knouds.models if target.kind == "models" else knouds.workflows
        try:
            request.execution = await runs.submit(target.name, inputs, expected=request.expected)
        except AsyncNotSupportedError:
            output.print_info(
                "its provider cannot be polled, so it runs in one request: Ctrl-C would lose the result, not the charge"
            )
            async with show_spinner(lambda: "running"):  # the submit was refused uncharged: this is the only run
                result = await runs.run(target.name, inputs, timeout=request.timeout)
            request.state = _final_state(result)
            await _save(knouds, request)
            return None
        output.print_info(f"submitted execution {request.execution.id}")
        return await _wait_and_save(knouds, request, request.execution)


async def _read_by_schema(knouds: AsyncKnouds, target: Target, given: GivenInputs) -> dict[str, Any]:
    """Return the inputs, read and checked by the workflow's schema where there is one that the key may read."""
    if target.kind == "models":
        return given.read()
    try:
        schema = await knouds.workflows.schema(target.name)
    except PermissionDeniedError as error:
        if not error.from_service:  # a proxy would reject the run as well
            raise
        return given.read()
    inputs = given.read(text_inputs(schema))
    if errors := input_errors(schema, inputs):
        hint = f"Nothing was run; `knouds schema {target.name}` shows what it takes"
        raise UsageError(f"{hint}: {'; '.join(errors)}")
    return inputs


async def _wait_and_save(knouds: AsyncKnouds, request: _RunRequest, execution: Execution) -> KnoudsError | None:
    """Wait and save; return the error of a run that did not complete."""
    request.state = await _wait_visibly(execution, timeout=request.timeout)
    try:
        await execution  # has finished: raises unless it completed
    except (ExecutionFailedError, ExecutionCancelledError) as failure:
        return failure
    await _save(knouds, request)
    return None


async def _save(knouds: AsyncKnouds, request: _RunRequest) -> None:
    if request.folder is not None and request.state is not None:
        run = RunResult(request.state.result, execution_id=request.state.execution_id or None)
        request.files = await download_files(knouds, run, request.folder)


def _final_state(run: RunResult) -> ExecutionState:
    """Return the state of a synchronous run, which has no id (contract 3)."""
    return ExecutionState(
        execution_id="", status=Status.COMPLETED, result=run.result, cost=run.cost, ms=run.ms, raw=run.raw
    )


def _print_outcome(
    request: _RunRequest,
    state: ExecutionState | None,
    failure: KnoudsError | KeyboardInterrupt | None,
    *,
    as_json: bool,
) -> int:
    """Print the result of a finished run, and how it finished."""
    assert state is not None  # noqa: S101  (for the type checker)
    if as_json:
        missing_id = {} if state.execution_id else {"execution_id": None}
        files = {} if request.folder is None else {"files": [str(path) for path in request.files or ()]}
        output.print_json(output.to_jsonable(state) | missing_id | files)
    elif state.result is not None:
        print_run_result(state.result, files=request.files)
    if failure is None:
        output.print_info(summarize_state(state))
        return ExitCode.OK if request.folder is None or request.files is not None else ExitCode.ERROR
    if isinstance(failure, KeyboardInterrupt):
        output.print_error("interrupted while its files were being saved; the run has finished")
        return ExitCode.INTERRUPTED
    output.print_error(format_error(failure))
    return exit_code_for(failure)


def _print_unfinished(
    execution: Execution, request: _RunRequest, error: KnoudsError | KeyboardInterrupt, *, as_json: bool
) -> int:
    """Print why the wait ended, and that the run continues."""
    given = request.service.arguments.items()
    at = "".join(f" {option} {shlex.quote(value)}" for option, value in given if value is not None)
    hint = f"`knouds status {execution.id}{at}` shows it, `knouds wait` waits for it, `knouds cancel` cancels it"
    match error:
        case KeyboardInterrupt():
            output.print_error(f"interrupted; the run continues and will be charged: {hint}")
            return ExitCode.INTERRUPTED
        case WaitTimeoutError():
            output.print_error(f"not finished after {error.timeout:g} s; the run continues: {hint}")
            if as_json:
                output.print_json(execution.state)
            return ExitCode.TIMED_OUT
        case _:
            why = format_error(error)
            output.print_error(f"{why}; the run may continue and be charged: {hint}")
            return ExitCode.MAY_HAVE_RUN


async def _wait_visibly(execution: Execution, *, timeout: float | None) -> ExecutionState:
    """Wait for the run to finish and return its final state; raises what `Execution.wait` raises."""
    printer = None if output.is_live() else asyncio.create_task(_print_changes(execution))
    try:
        async with show_spinner(lambda: f"{execution.state.status}"):
            return await execution.wait(timeout=timeout)
    finally:
        if printer is not None:
            printer.cancel()


@asynccontextmanager
async def show_spinner(status: Callable[[], str]) -> AsyncIterator[None]:
    """Show a status and the elapsed seconds at a terminal while the block runs; elsewhere nothing."""
    if not output.is_live():
        yield
        return
    from rich.console import Console
    from rich.constrain import Constrain
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text

    started = time.monotonic()
    spinner, console = Spinner("dots"), Console(stderr=True)

    def draw() -> None:
        line = f"{status()}, {time.monotonic() - started:.0f} s"
        spinner.update(text=Text(one_line(line), overflow="ellipsis", no_wrap=True))
        display.update(Constrain(spinner, console.width - ROOM_FOR_CTRL_C), refresh=True)

    with Live(console=console, auto_refresh=False, transient=True) as display:
        async with call_every(0.1, draw):
            yield


async def _print_changes(execution: Execution) -> None:
    with suppress(KnoudsError):  # the wait raises it too
        async for state in execution.updates():
            if not state.is_final:
                output.print_info(one_line(state.status))


TERMINATION_SIGNALS: Final = frozenset({signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)})
"""SIGTERM, and SIGHUP (the terminal was closed), which does not exist on Windows.

Their default action would end the process between a submit and its id.
"""
