"""The application: the commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import cleandoc
from typing import Any, Final

from cyclopts import App, CycloptsError, Parameter

from knouds_async import KnoudsError, __version__
from knouds_async.cli import output
from knouds_async.cli.batch.command import batch
from knouds_async.cli.cancel import cancel
from knouds_async.cli.demo import demo
from knouds_async.cli.emulator import emulator
from knouds_async.cli.exits import Exit, KeyMissingError, ServingError, UsageError, exit_of, table
from knouds_async.cli.run import run as run_command
from knouds_async.cli.schema import schema
from knouds_async.cli.status import status
from knouds_async.cli.usage import usage
from knouds_async.cli.whoami import whoami
from knouds_async.cli.words import said_of
from knouds_async.cli.workflows import workflows

_HELP: Final = """
Submit paid AI runs on Knouds, wait for them and look at them.

The key is read from $KNOUDS_KEY, never from the command line. Results go to stdout, words and progress
to stderr. `knouds demo` needs neither a key nor the network.
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
    """Build the application."""
    app = App(
        name="knouds",
        help=_flowing(_HELP),
        help_format="plaintext",
        help_epilogue=f"Exit codes:\n{table()}",
        version=__version__,
        version_format="plaintext",
        default_parameter=Parameter(negative=""),
        suppress_keyboard_interrupt=False,
    )
    for place, command in enumerate(_COMMANDS):
        app.command(command, sort_key=place, help=_flowing(command.__doc__ or ""), help_epilogue="")
    return app


def _flowing(text: str) -> str:
    """Give a docstring with each paragraph on one line, to be wrapped where the terminal ends."""
    return "\n\n".join(" ".join(part.split()) for part in cleandoc(text).split("\n\n"))


def run(tokens: Sequence[str]) -> int:
    """Run one command line and give its exit code; what goes wrong is said in one line on stderr."""
    with output.opened():
        try:
            return _said_and_done(tokens)
        except BrokenPipeError:
            return Exit.FINE  # the reader has seen enough, as `head` does
        except SystemExit as end:
            if not isinstance(end.__context__, BrokenPipeError):
                raise
            return Exit.FINE  # so rich ends when it meets the same


def _said_and_done(tokens: Sequence[str]) -> int:
    try:
        code = build()(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        output.finish()
        return code if isinstance(code, int) else Exit.FINE
    except CycloptsError as error:
        error.verbose = False
        command = " ".join(("knouds", *(error.command_chain or ())))
        output.tell(f"{error} (`{command} --help` shows how)")
        return Exit.USAGE
    except BrokenPipeError:
        raise
    except (KnoudsError, UsageError, KeyMissingError, ServingError, OSError, KeyboardInterrupt) as error:
        output.tell(said_of(error))
        return exit_of(error)
