"""The application: registers the commands and turns an error into one line on stderr and an exit code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import cleandoc
from typing import Any, Final

from cyclopts import App, CycloptsError, Parameter

from knouds_async import KnoudsError, __version__
from knouds_async._cli import output
from knouds_async._cli.commands import batch, cancel, demo, emulator, schema, status, usage, whoami, workflows
from knouds_async._cli.errors import (
    ExitCode,
    KeyMissingError,
    ServingError,
    UsageError,
    exit_code_for,
    exit_code_table,
    format_error,
)
from knouds_async._cli.run import run as run_command

_HELP: Final = """
Submit paid AI runs on Knouds, wait for them and show their results.

The key is read from $KNOUDS_KEY, never from the command line. Results go to stdout, messages and
progress to stderr. `knouds demo` needs neither a key nor the network.
"""

_COMMANDS: Final[tuple[Callable[..., Any], ...]] = (
    demo,
    run_command,
    batch,
    status,
    cancel,
    workflows,
    schema,
    usage,
    whoami,
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
    return app


def _unwrapped(text: str) -> str:
    """Return a docstring with each paragraph on one line; the terminal's width decides where lines break."""
    return "\n\n".join(" ".join(part.split()) for part in cleandoc(text).split("\n\n"))


def run(tokens: Sequence[str]) -> int:
    """Run one command line and return its exit code; an error is one line on stderr."""
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
        output.flush_stdout()
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
